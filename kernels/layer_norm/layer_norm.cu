// layer_norm: y = (x - mean) * rstd * gamma + beta over the last axis.
// axes      x, y, dy, dx [rows, C] row-major; gamma, beta, dgamma, dbeta [C]; mean, rstd [rows] f32
// types     T in {f32, bf16, f16}; sums in f32
// launch    fwd, bwd_dx: a warp a row, ROW_THREADS / WARP rows a block; _wide: a block a row: common/rows.cuh; gradients of the
//           parameters in two stages: common/columns.cuh; any rows, any C; layer_norm_held.cu has rows that teams can hold
// paths     C a multiple of W: up to HELD packs a thread in registers, longer rows are read again; else single numbers, read again
// traffic   fwd reads x, writes y, mean, rstd; bwd_dx reads x, dy, writes dx, which it reads when adding; bwd_dparams reads x, dy again
// order     fixed: same input, same bits
// budget    sm_80 96 registers, sm_90a 112, gfx90a 184, gfx942 192; no spills
// source    Ba, Kiros, Hinton 2016, section 3

#include "common/columns.cuh"
#include "common/rows.cuh"

constexpr int HELD_FWD = 8;
// Two rows are held.
constexpr int HELD_BWD = 4;

template <typename TEAM> struct NormRow {
    T* y;
    float* mean;
    float* rstd;
    const T* x;
    const T* gamma;
    const T* beta;
    int c;
    float eps;
    TEAM team;

    template <typename WALK> DEVICE void run() {
        constexpr int W = WALK::W;
        int id = TEAM::id();
        Row<T, WALK> row(x, c, id);
        float total = 0.0f, squares = 0.0f;
        WALK::each(c, id, [&](int slot, int at) {
            float v[W];
            row.get(v, slot, at);
#pragma unroll
            for (int i = 0; i < W; ++i) total += v[i];
        });
        float m = divide(team.sum(total), (float)c);
        // About the mean, not about 0: a mean far above the spread must not cost the variance.
        WALK::each(c, id, [&](int slot, int at) {
            float v[W];
            row.get(v, slot, at);
#pragma unroll
            for (int i = 0; i < W; ++i) squares = fmaf(v[i] - m, v[i] - m, squares);
        });
        float s = inverse_root(divide(team.sum(squares), (float)c) + eps);
        WALK::each(c, id, [&](int slot, int at) {
            float v[W];
            row.get(v, slot, at);
            Pack<T, W> g = load_kept<T, W>(gamma + at), b = load_kept<T, W>(beta + at);
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = fmaf((v[i] - m) * s, g.get(i), b.get(i));
            store<T, W>(y + at, v);
        });
        if (id == 0) *mean = m, *rstd = s;
    }
};

// With n = (x - mean) * rstd and g = dy * gamma: dx = rstd * (g - avg(g) - n * avg(g * n)).
template <typename TEAM> struct NormGradientRow {
    T* dx;
    const T* x;
    const T* gamma;
    const T* dy;
    float m;
    float s;
    int c;
    int add;
    TEAM team;

    template <typename WALK> DEVICE void run() {
        constexpr int W = WALK::W;
        int id = TEAM::id();
        Row<T, WALK> numbers(x, c, id), gradient(dy, c, id);
        float sum_g = 0.0f, sum_gn = 0.0f;
        WALK::each(c, id, [&](int slot, int at) {
            float v[W], d[W];
            numbers.get(v, slot, at);
            gradient.get(d, slot, at);
            Pack<T, W> weight = load_kept<T, W>(gamma + at);
#pragma unroll
            for (int i = 0; i < W; ++i) {
                float g = mul(d[i], weight.get(i));
                sum_g += g;
                sum_gn = fmaf(g, (v[i] - m) * s, sum_gn);
            }
        });
        team.sum2(sum_g, sum_gn);
        float avg_g = divide(sum_g, (float)c), avg_gn = divide(sum_gn, (float)c);
        WALK::each(c, id, [&](int slot, int at) {
            float v[W], d[W];
            numbers.get(v, slot, at);
            gradient.get(d, slot, at);
            Pack<T, W> weight = load_kept<T, W>(gamma + at);
#pragma unroll
            for (int i = 0; i < W; ++i) {
                // g is rounded before the average is taken away, as the average was: in a row of one they cancel.
                float g = mul(d[i], weight.get(i));
                v[i] = mul(fmaf((m - v[i]) * s, avg_gn, g - avg_g), s);
            }
            put<T, W>(dx + at, v, add);
        });
    }
};

template <typename TEAM>
DEVICE void forward(
    T* y, float* mean, float* rstd, const T* x, const T* gamma, const T* beta, i64 rows, int c, float eps, TEAM team) {
    i64 r = TEAM::row();
    if (r >= rows) return;
    NormRow<TEAM> row{y + r * c, mean + r, rstd + r, x + r * c, gamma, beta, c, eps, team};
    bool all_aligned = is_aligned<16>(y) && is_aligned<16>(x) && is_aligned<16>(gamma) && is_aligned<16>(beta);
    walk_row<TEAM::SIZE, WIDE<T>, HELD_FWD>(c, all_aligned, row);
}

template <typename TEAM>
DEVICE void backward(
    T* dx, const T* x, const T* gamma, const float* mean, const float* rstd, const T* dy, i64 rows, int c, int add, TEAM team) {
    i64 r = TEAM::row();
    if (r >= rows) return;
    NormGradientRow<TEAM> row{dx + r * c, x + r * c, gamma, dy + r * c, mean[r], rstd[r], c, add, team};
    bool all_aligned = is_aligned<16>(dx) && is_aligned<16>(x) && is_aligned<16>(gamma) && is_aligned<16>(dy);
    walk_row<TEAM::SIZE, WIDE<T>, HELD_BWD>(c, all_aligned, row);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)
    layer_norm_fwd(T* y, float* mean, float* rstd, const T* x, const T* gamma, const T* beta, i64 rows, int c, float eps) {
    follow();
    forward(y, mean, rstd, x, gamma, beta, rows, c, eps, WarpTeam{});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3)
    layer_norm_fwd_wide(T* y, float* mean, float* rstd, const T* x, const T* gamma, const T* beta, i64 rows, int c, float eps) {
    follow();
    __shared__ BlockScratch<ROW_THREADS> scratch;
    forward(y, mean, rstd, x, gamma, beta, rows, c, eps, BlockTeam{&scratch});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3) layer_norm_bwd_dx(
    T* dx, const T* x, const T* gamma, const float* mean, const float* rstd, const T* dy, i64 rows, int c, int add_dx) {
    follow();
    backward(dx, x, gamma, mean, rstd, dy, rows, c, add_dx, WarpTeam{});
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 3) layer_norm_bwd_dx_wide(
    T* dx, const T* x, const T* gamma, const float* mean, const float* rstd, const T* dy, i64 rows, int c, int add_dx) {
    follow();
    __shared__ BlockScratch<ROW_THREADS> scratch;
    backward(dx, x, gamma, mean, rstd, dy, rows, c, add_dx, BlockTeam{&scratch});
}

// dgamma[c] = sum over r of dy * n, dbeta[c] = sum over r of dy; one entry for both, one for each alone.
template <int W> struct GammaTerm {
    const T* x;
    const float* mean;
    const float* rstd;
    const T* dy;
    i64 width;
    template <int SUMS, typename S> DEVICE void operator()(i64 row, const Columns& c, S (&sum)[SUMS][W]) const {
        float number[W], d[W];
        load_columns<W>(number, x + row * width, c);
        load_columns<W>(d, dy + row * width, c);
        float m = mean[row], s = rstd[row];
#pragma unroll
        for (int i = 0; i < W; ++i) {
            add_product(sum[0][i], d[i], (number[i] - m) * s);
            if constexpr (SUMS == 2) add_to(sum[1][i], d[i]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) layer_norm_bwd_dparams(
    float* dgamma, float* dbeta, const T* x, const float* mean, const float* rstd, const T* dy, i64 rows, i64 width, i64 stretch,
    int stretches, int lanes) {
    follow();
    constexpr int W = WIDE<T>;
    bool may_be_wide = is_aligned<16>(x) && is_aligned<16>(dy);
    GammaTerm<W> term{x, mean, rstd, dy, width};
    column_partials2<W>(dgamma, dbeta, rows, width, stretch, stretches, lanes, may_be_wide, term);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) layer_norm_bwd_dgamma(
    float* dgamma, const T* x, const float* mean, const float* rstd, const T* dy, i64 rows, i64 width, i64 stretch, int stretches,
    int lanes) {
    follow();
    constexpr int W = WIDE<T>;
    bool may_be_wide = is_aligned<16>(x) && is_aligned<16>(dy);
    GammaTerm<W> term{x, mean, rstd, dy, width};
    column_partials<W>(dgamma, rows, width, stretch, stretches, lanes, may_be_wide, term);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    layer_norm_bwd_dbeta(float* dbeta, const T* dy, i64 rows, i64 width, i64 stretch, int stretches, int lanes) {
    follow();
    constexpr int W = WIDE<T>;
    PlainTerm<W, T> term{dy, width};
    column_partials<W>(dbeta, rows, width, stretch, stretches, lanes, is_aligned<16>(dy), term);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    layer_norm_bwd_total(T* d, const float* partial, i64 stretches, i64 width, int lanes, int add_d) {
    follow();
    column_totals(d, partial, stretches, width, lanes, add_d);
}

// Both gradients of parameters from the sums of blocks: block_y 0 has dgamma, 1 dbeta.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) layer_norm_bwd_totals(
    T* dgamma, T* dbeta, const float* gamma_sums, const float* beta_sums, i64 blocks, i64 width, int lanes, int add_dgamma,
    int add_dbeta) {
    follow();
    bool is_beta = block_y() == 1;
    column_totals(is_beta ? dbeta : dgamma, is_beta ? beta_sums : gamma_sums, blocks, width, lanes, is_beta ? add_dbeta : add_dgamma);
}
