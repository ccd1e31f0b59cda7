// softmax: y[r, c] = exp(x[r, c] - m[r]) / sum over k of exp(x[r, k] - m[r]), m the largest of the row; dx = y * (dy - sum of dy * y).
// axes      x, y, dy, dx [rows, C]
// types     T in {f32, bf16, f16}; exponentials and sums in f32
// launch    a warp a row, ROW_THREADS / WARP rows a block; _wide: a block a row; any rows, any C: common/rows.cuh
// paths     C a multiple of W: up to HELD packs a thread in registers, longer rows are read again; else single numbers, read again
// traffic   fwd reads x, writes y; bwd reads y, dy, writes dx, which it reads when adding; once each when held
// order     fixed: same input, same bits
// budget    sm_80 80 registers, sm_90a 80, gfx90a 80, gfx942 88; no spills
// source    the definition, shifted by the maximum; Milakov, Gimelshein 2018, section 2

#include "common/rows.cuh"

constexpr int HELD = 4;

template <typename TEAM> struct SoftmaxRow {
    T* y;
    const T* x;
    int c;
    TEAM team;

    template <typename WALK> DEVICE void run() {
        constexpr int W = WALK::W;
        int id = TEAM::id();
        Row<T, WALK> row(x, c, id);
        // The largest that is a number: a NaN makes the sum NaN anyhow.
        float top = -infinity();
        WALK::each(c, id, [&](int slot, int at) {
            float v[W];
            row.get(v, slot, at);
#pragma unroll
            for (int i = 0; i < W; ++i) top = larger(top, v[i]);
        });
        top = team.max(top);
        // Exponentials of a held row are held, too; else they are computed again.
        float total = 0.0f, power[WALK::SLOTS][W];
        WALK::each(c, id, [&](int slot, int at) {
            row.get(power[slot], slot, at);
#pragma unroll
            for (int i = 0; i < W; ++i) {
                power[slot][i] = exp_of<T>(power[slot][i] - top);
                total += power[slot][i];
            }
        });
        float inverse = divide(1.0f, team.sum(total));
        WALK::each(c, id, [&](int slot, int at) {
            if constexpr (WALK::HELD == 0) row.get(power[0], 0, at);
            float v[W];
#pragma unroll
            for (int i = 0; i < W; ++i) {
                v[i] = (WALK::HELD == 0 ? exp_of<T>(power[0][i] - top) : power[slot][i]) * inverse;
            }
            store<T, W>(y + at, v);
        });
    }
};

template <typename TEAM> struct SoftmaxGradientRow {
    T* dx;
    const T* y;
    const T* dy;
    int c;
    int add;
    TEAM team;

    template <typename WALK> DEVICE void run() {
        constexpr int W = WALK::W;
        int id = TEAM::id();
        Row<T, WALK> result(y, c, id), gradient(dy, c, id);
        float inner = 0.0f;
        WALK::each(c, id, [&](int slot, int at) {
            float v[W], d[W];
            result.get(v, slot, at);
            gradient.get(d, slot, at);
#pragma unroll
            for (int i = 0; i < W; ++i) inner = fmaf(d[i], v[i], inner);
        });
        inner = team.sum(inner);
        WALK::each(c, id, [&](int slot, int at) {
            float v[W], d[W];
            result.get(v, slot, at);
            gradient.get(d, slot, at);
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = mul(v[i], d[i] - inner);
            put<T, W>(dx + at, v, add);
        });
    }
};

template <typename TEAM> DEVICE void forward(T* y, const T* x, i64 rows, int c, TEAM team) {
    i64 r = TEAM::row();
    if (r >= rows) return;
    SoftmaxRow<TEAM> row{y + r * c, x + r * c, c, team};
    walk_row<TEAM::SIZE, WIDE<T>, HELD>(c, is_aligned<16>(x) && is_aligned<16>(y), row);
}

template <typename TEAM> DEVICE void backward(T* dx, const T* y, const T* dy, i64 rows, int c, int add, TEAM team) {
    i64 r = TEAM::row();
    if (r >= rows) return;
    SoftmaxGradientRow<TEAM> row{dx + r * c, y + r * c, dy + r * c, c, add, team};
    bool all_aligned = is_aligned<16>(dx) && is_aligned<16>(y) && is_aligned<16>(dy);
    walk_row<TEAM::SIZE, WIDE<T>, HELD>(c, all_aligned, row);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3) softmax_fwd(T* y, const T* x, i64 rows, int c) {
    follow();
    forward(y, x, rows, c, WarpTeam{});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3) softmax_fwd_wide(T* y, const T* x, i64 rows, int c) {
    follow();
    __shared__ BlockScratch<ROW_THREADS> scratch;
    forward(y, x, rows, c, BlockTeam{&scratch});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)
    softmax_bwd_dx(T* dx, const T* y, const T* dy, i64 rows, int c, int add_dx) {
    follow();
    backward(dx, y, dy, rows, c, add_dx, WarpTeam{});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)
    softmax_bwd_dx_wide(T* dx, const T* y, const T* dy, i64 rows, int c, int add_dx) {
    follow();
    __shared__ BlockScratch<ROW_THREADS> scratch;
    backward(dx, y, dy, rows, c, add_dx, BlockTeam{&scratch});
}
