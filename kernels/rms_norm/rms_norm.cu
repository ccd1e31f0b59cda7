// rms_norm: y = x * rstd * weight with rstd = 1 / sqrt(mean of x^2 + eps) over the last axis.
// axes      x, y, dy, dx [rows, C] row-major; weight, dweight [C]; rstd [rows] f32
// types     T in {f32, bf16, f16}; sums in f32
// launch    fwd, bwd_dx: a warp a row, ROW_THREADS / WARP rows a block; _wide: a block a row: common/rows.cuh; the gradient of the
//           weight in two stages: common/columns.cuh; any rows, any C; rms_norm_held.cu has rows that teams can hold
// paths     C a multiple of W: up to HELD packs a thread in registers, longer rows are read again; else single numbers, read again
// traffic   fwd reads x, writes y, rstd; bwd_dx reads x, dy, writes dx, which it reads when adding; bwd_dweight reads x, dy again
// order     fixed: same input, same bits
// budget    sm_80 80 registers, sm_90a 80, gfx90a 176, gfx942 176; no spills
// source    Zhang, Sennrich 2019, equation 4, with eps inside the root

#include "common/columns.cuh"
#include "common/rows.cuh"

constexpr int HELD_FWD = 8;
// Two rows are held.
constexpr int HELD_BWD = 4;

template <typename TEAM> struct NormRow {
    T* y;
    float* rstd;
    const T* x;
    const T* weight;
    int c;
    float eps;
    TEAM team;

    // The mean of (x * scale)^2.
    template <typename WALK> DEVICE float mean_square(const Row<T, WALK>& row, float scale) {
        constexpr int W = WALK::W;
        float squares = 0.0f;
        WALK::each(c, TEAM::id(), [&](int slot, int at) {
            float v[W];
            row.get(v, slot, at);
#pragma unroll
            for (int i = 0; i < W; ++i) squares = fmaf(v[i] * scale, v[i] * scale, squares);
        });
        return divide(team.sum(squares), (float)c);
    }

    template <typename WALK> DEVICE void run() {
        constexpr int W = WALK::W;
        int id = TEAM::id();
        Row<T, WALK> row(x, c, id);
        float s = inverse_root(mean_square(row, 1.0f) + eps);
        // Squares that leave f32 leave 0 behind: again 2^80 smaller, where eps is nothing.
        if (s == 0.0f) s = inverse_root(mean_square(row, 8.27180613e-25f)) * 8.27180613e-25f;
        WALK::each(c, id, [&](int slot, int at) {
            float v[W];
            row.get(v, slot, at);
            Pack<T, W> w = load_kept<T, W>(weight + at);
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = v[i] * s * w.get(i);
            store<T, W>(y + at, v);
        });
        if (id == 0) *rstd = s;
    }
};

// With g = dy * weight: dx = rstd * (g - x * rstd^2 * avg(g * x)).
template <typename TEAM> struct NormGradientRow {
    T* dx;
    const T* x;
    const T* weight;
    const T* dy;
    float s;
    int c;
    int add;
    TEAM team;

    template <typename WALK> DEVICE void run() {
        constexpr int W = WALK::W;
        int id = TEAM::id();
        Row<T, WALK> numbers(x, c, id), gradient(dy, c, id);
        float sum_gn = 0.0f;
        WALK::each(c, id, [&](int slot, int at) {
            float v[W], d[W];
            numbers.get(v, slot, at);
            gradient.get(d, slot, at);
            Pack<T, W> w = load_kept<T, W>(weight + at);
#pragma unroll
            for (int i = 0; i < W; ++i) sum_gn = fmaf(d[i] * w.get(i), v[i] * s, sum_gn);
        });
        float avg_gn = divide(team.sum(sum_gn), (float)c);
        WALK::each(c, id, [&](int slot, int at) {
            float v[W], d[W];
            numbers.get(v, slot, at);
            gradient.get(d, slot, at);
            Pack<T, W> w = load_kept<T, W>(weight + at);
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = mul(fmaf(-(v[i] * s), avg_gn, mul(d[i], w.get(i))), s);
            put<T, W>(dx + at, v, add);
        });
    }
};

template <typename TEAM>
DEVICE void forward(T* y, float* rstd, const T* x, const T* weight, i64 rows, int c, float eps, TEAM team) {
    i64 r = TEAM::row();
    if (r >= rows) return;
    NormRow<TEAM> row{y + r * c, rstd + r, x + r * c, weight, c, eps, team};
    bool all_aligned = is_aligned<16>(y) && is_aligned<16>(x) && is_aligned<16>(weight);
    walk_row<TEAM::SIZE, WIDE<T>, HELD_FWD>(c, all_aligned, row);
}

template <typename TEAM>
DEVICE void backward(
    T* dx, const T* x, const T* weight, const float* rstd, const T* dy, i64 rows, int c, int add, TEAM team) {
    i64 r = TEAM::row();
    if (r >= rows) return;
    NormGradientRow<TEAM> row{dx + r * c, x + r * c, weight, dy + r * c, rstd[r], c, add, team};
    bool all_aligned = is_aligned<16>(dx) && is_aligned<16>(x) && is_aligned<16>(weight) && is_aligned<16>(dy);
    walk_row<TEAM::SIZE, WIDE<T>, HELD_BWD>(c, all_aligned, row);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)
    rms_norm_fwd(T* y, float* rstd, const T* x, const T* weight, i64 rows, int c, float eps) {
    follow();
    forward(y, rstd, x, weight, rows, c, eps, WarpTeam{});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)
    rms_norm_fwd_wide(T* y, float* rstd, const T* x, const T* weight, i64 rows, int c, float eps) {
    follow();
    __shared__ BlockScratch<ROW_THREADS> scratch;
    forward(y, rstd, x, weight, rows, c, eps, BlockTeam{&scratch});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)
    rms_norm_bwd_dx(T* dx, const T* x, const T* weight, const float* rstd, const T* dy, i64 rows, int c, int add_dx) {
    follow();
    backward(dx, x, weight, rstd, dy, rows, c, add_dx, WarpTeam{});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)
    rms_norm_bwd_dx_wide(T* dx, const T* x, const T* weight, const float* rstd, const T* dy, i64 rows, int c, int add_dx) {
    follow();
    __shared__ BlockScratch<ROW_THREADS> scratch;
    backward(dx, x, weight, rstd, dy, rows, c, add_dx, BlockTeam{&scratch});
}

// dweight[c] = sum over r of dy * x * rstd.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) rms_norm_bwd_dweight(
    float* dweight, const T* x, const float* rstd, const T* dy, i64 rows, i64 width, i64 stretch, int stretches, int lanes) {
    follow();
    constexpr int W = WIDE<T>;
    auto term = [=](i64 row, const Columns& c, RowSum<T>::Type(&sum)[1][W]) {
        float number[W], d[W];
        load_columns<W>(number, x + row * width, c);
        load_columns<W>(d, dy + row * width, c);
        float s = rstd[row];
#pragma unroll
        for (int i = 0; i < W; ++i) add_product(sum[0][i], d[i], number[i] * s);
    };
    bool may_be_wide = is_aligned<16>(x) && is_aligned<16>(dy);
    column_partials<W>(dweight, rows, width, stretch, stretches, lanes, may_be_wide, term);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    rms_norm_bwd_total(T* d, const float* partial, i64 stretches, i64 width, int lanes, int add_d) {
    follow();
    column_totals(d, partial, stretches, width, lanes, add_d);
}
