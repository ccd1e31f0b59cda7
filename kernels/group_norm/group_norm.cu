// group_norm: y = (x - mean) * rstd * gamma + beta over the tokens and channels of a group, channels last.
// axes      x, y, dy, dx [B, N, C]; gamma, beta, dgamma, dbeta [C]; mean, rstd, avg_h, avg_hn [B, groups] f32; products, sums [B, C] f32
// types     T in {f32, bf16, f16}; sums in f32, those of means in f64
// launch    fwd in three stages: fwd_partial (common/groups.cuh), fwd_stats a warp a group, fwd flat (common/elementwise.cuh); bwd: bwd_sums
//           and bwd_totals a sample at a time (common/columns.cuh, grid z = B), bwd_terms a warp a group, bwd_dx flat
// paths     16-byte packs when W divides C (statistics: C / groups), else single numbers
// traffic   fwd reads x twice, writes y; bwd reads x, dy twice, writes dx, which it reads when adding
// order     fixed: same input, same bits
// budget    sm_80 128 registers, sm_90a 128, gfx90a 232, gfx942 232; no spills
// source    Wu, He 2018, section 3

#include "common/columns.cuh"
#include "common/elementwise.cuh"
#include "common/groups.cuh"

extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 4)
    group_norm_fwd_partial(float* means, float* squares, const T* x, int tokens, int c, int groups, int pieces) {
    follow();
    piece_moments(means, squares, x, tokens, groups, c / groups, pieces);
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS) group_norm_fwd_stats(
    float* mean, float* rstd, const float* means, const float* squares, i64 cells, int count, int pieces, float eps) {
    follow();
    i64 cell = cell_of_warp();
    if (cell >= cells) return;
    float m, variance;
    merge_moments(m, variance, means + cell * pieces, squares + cell * pieces, pieces, GROUP_PIECE<T>, count);
    if (lane() == 0) mean[cell] = m, rstd[cell] = inverse_root(variance + eps);
}

// The channel of a place, and the first cell of its sample.
struct Channel {
    int c;
    i64 cells;
};
DEVICE Channel channel_of(i64 at, i64 sample, int c, int groups) {
    return Channel{(int)modulo(at, c), quotient(at, sample) * groups};
}

struct Normalise {
    const T* gamma;
    const T* beta;
    const float* mean;
    const float* rstd;
    i64 sample;
    int c;
    int groups;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W]) {
        Channel first = channel_of(at, sample, c, groups);
        Pack<T, W> g = load_kept<T, W>(gamma + first.c), b = load_kept<T, W>(beta + first.c);
        int wide = c / groups;
        // As a rule a pack lies in one group.
        if (wide % W == 0) {
            i64 cell = first.cells + (u32)first.c / (u32)wide;
            float m = mean[cell], s = rstd[cell];
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = fmaf((x[i] - m) * s, g.get(i), b.get(i));
            return;
        }
#pragma unroll
        for (int i = 0; i < W; ++i) {
            i64 cell = first.cells + (u32)(first.c + i) / (u32)wide;
            v[i] = fmaf((x[i] - mean[cell]) * rstd[cell], g.get(i), b.get(i));
        }
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) group_norm_fwd(
    T* y, const T* x, const T* gamma, const T* beta, const float* mean, const float* rstd, i64 n, i64 sample, int c, int groups) {
    follow();
    bool may_be_wide = c % WIDE<T> == 0 && is_aligned<16>(gamma) && is_aligned<16>(beta);
    map_packs(may_be_wide, y, 0, n, Normalise{gamma, beta, mean, rstd, sample, c, groups}, x);
}

// What a token adds to the sums of its channels: dy * n and dy, with n = (x - mean) * rstd.
template <int W> struct ChannelTerm {
    const T* x;
    const T* dy;
    int c;
    float m[W], s[W];
    DEVICE ChannelTerm(const T* x, const float* mean, const float* rstd, const T* dy, int c, int wide, const Columns& at)
        : x(x), dy(dy), c(c) {
#pragma unroll
        for (int i = 0; i < W; ++i) {
            int cell = i < at.count ? (int)((u32)column(at, i) / (u32)wide) : 0;
            m[i] = mean[cell], s[i] = rstd[cell];
        }
    }
    template <typename S> DEVICE void operator()(i64 row, const Columns& at, S (&sum)[2][W]) const {
        float number[W], d[W];
        load_columns<W>(number, x + row * c, at);
        load_columns<W>(d, dy + row * c, at);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            add_product(sum[0][i], d[i], (number[i] - m[i]) * s[i]);
            add_to(sum[1][i], d[i]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS, 2) group_norm_bwd_sums(
    float* products, float* sums, const T* x, const float* mean, const float* rstd, const T* dy, i64 tokens, int c, int groups,
    i64 stretch, int stretches, int lanes) {
    follow();
    constexpr int W = WIDE<T>;
    i64 sample = block_z() * tokens * c, cells = (i64)block_z() * groups;
    bool may_be_wide = is_aligned<16>(x) && is_aligned<16>(dy);
    Columns columns = columns_of<W>(c, lanes, may_be_wide);
    ChannelTerm<W> term(x + sample, mean + cells, rstd + cells, dy + sample, c, c / groups, columns);
    column_partials2<W>(products, sums, tokens, c, stretch, stretches, lanes, may_be_wide, term);
}

// Adds the stretches of each of block_z samples: block_y 0 has the products, 1 the sums.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) group_norm_bwd_totals(
    float* products, float* sums, const float* product_partials, const float* sum_partials, i64 stretches, i64 width, int lanes) {
    follow();
    bool is_sum = block_y() == 1;
    column_totals(is_sum ? sums : products, is_sum ? sum_partials : product_partials, stretches, width, lanes, 0);
}

// With h = dy * gamma: the averages of h and of h * n over a group.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS) group_norm_bwd_terms(
    float* avg_h, float* avg_hn, const T* gamma, const float* products, const float* sums, i64 cells, int count, int c, int groups) {
    follow();
    i64 cell = cell_of_warp();
    if (cell >= cells) return;
    i64 b = quotient(cell, groups);
    int wide = c / groups, first = (int)(cell - b * groups) * wide;
    float h = 0.0f, hn = 0.0f;
    for (int i = lane(); i < wide; i += WARP) {
        float g = widen(gamma[first + i]);
        // Rounded before it is added, as the gradient of a number is: in a group of one they cancel.
        h += mul(g, sums[b * c + first + i]);
        hn += mul(g, products[b * c + first + i]);
    }
    warp_sum2(h, hn);
    if (lane() == 0) avg_h[cell] = divide(h, (float)count), avg_hn[cell] = divide(hn, (float)count);
}

// dx = rstd * (h - avg(h) - n * avg(h * n)).
struct Gradient {
    const T* gamma;
    const float* mean;
    const float* rstd;
    const float* avg_h;
    const float* avg_hn;
    i64 sample;
    int c;
    int groups;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W], const float (&dy)[W]) {
        Channel first = channel_of(at, sample, c, groups);
        Pack<T, W> g = load_kept<T, W>(gamma + first.c);
        int wide = c / groups;
        auto gradient = [&](int i, float m, float s, float of_h, float of_hn) {
            return mul(fmaf((m - x[i]) * s, of_hn, mul(dy[i], g.get(i)) - of_h), s);
        };
        if (wide % W == 0) {
            i64 cell = first.cells + (u32)first.c / (u32)wide;
            float m = mean[cell], s = rstd[cell], of_h = avg_h[cell], of_hn = avg_hn[cell];
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = gradient(i, m, s, of_h, of_hn);
            return;
        }
#pragma unroll
        for (int i = 0; i < W; ++i) {
            i64 cell = first.cells + (u32)(first.c + i) / (u32)wide;
            v[i] = gradient(i, mean[cell], rstd[cell], avg_h[cell], avg_hn[cell]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) group_norm_bwd_dx(
    T* dx, const T* x, const T* gamma, const float* mean, const float* rstd, const float* avg_h, const float* avg_hn, const T* dy, i64 n,
    i64 sample, int c, int groups, int add_dx) {
    follow();
    bool may_be_wide = c % WIDE<T> == 0 && is_aligned<16>(gamma);
    map_packs(may_be_wide, dx, add_dx, n, Gradient{gamma, mean, rstd, avg_h, avg_hn, sample, c, groups}, x, dy);
}

// dgamma or dbeta: the sums of the samples (or, for dbeta alone, of stretches) added.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    group_norm_bwd_dparam(T* d, const float* sums, i64 samples, i64 width, int lanes, int add_d) {
    follow();
    column_totals(d, sums, samples, width, lanes, add_d);
}

// Both: block_y 0 has dgamma, 1 dbeta.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) group_norm_bwd_dparams(
    T* dgamma, T* dbeta, const float* products, const float* sums, i64 samples, i64 width, int lanes, int add_dgamma, int add_dbeta) {
    follow();
    bool is_beta = block_y() == 1;
    column_totals(is_beta ? dbeta : dgamma, is_beta ? sums : products, samples, width, lanes, is_beta ? add_dbeta : add_dgamma);
}

// dbeta alone, where neither x nor the statistics matter.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    group_norm_bwd_dbeta(float* partial, const T* dy, i64 rows, i64 width, i64 stretch, int stretches, int lanes) {
    follow();
    constexpr int W = WIDE<T>;
    PlainTerm<W, T> term{dy, width};
    column_partials<W>(partial, rows, width, stretch, stretches, lanes, is_aligned<16>(dy), term);
}
