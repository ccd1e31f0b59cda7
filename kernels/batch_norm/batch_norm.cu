// batch_norm: y = (x - mean) * rstd * weight + bias, a mean and a variance for every channel.
// axes      x, y, dy, dx [B, C, S]; weight, bias, dweight, dbias [C]; all statistics [C] f32
// types     T in {f32, bf16, f16}; sums and statistics in f32, sums of means in f64
// launch    fwd in three stages: fwd_partial (common/groups.cuh), fwd_stats a warp a channel, fwd flat (common/elementwise.cuh); bwd: bwd_sums
//           or bwd_sum (dy alone), bwd_channels a warp a channel, bwd_dx flat; without dx of the batch bwd_total a warp a sum, then the
//           gradients of the channels a thread each
// paths     16-byte packs when W divides S, flat stages also when S is 1 and W divides C, else single numbers
// traffic   fwd reads x twice, writes y; bwd reads x, dy twice, writes dx, which it reads when adding
// order     fixed: same input, same bits
// budget    sm_80 88 registers, sm_90a 88, gfx90a 80, gfx942 80; no spills
// source    Ioffe, Szegedy 2015, algorithms 1 and 2

#include "common/elementwise.cuh"
#include "common/groups.cuh"

extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 4)
    batch_norm_fwd_partial(float* means, float* squares, const T* x, int batch, int channels, int space, int pieces) {
    follow();
    piece_moments(means, squares, x, batch, channels, space, pieces);
}

// Statistics of the batch; momentum m: the new running ones are (1 - m) * old + m * batch, the variance unbiased: kept = 1 - m,
// taken = m, taken_unbiased = m * n / (n - 1).
extern "C" __global__ void __launch_bounds__(GROUP_THREADS) batch_norm_fwd_stats(
    float* new_mean, float* new_var, float* mean, float* rstd, const float* running_mean, const float* running_var, const float* means,
    const float* squares, i64 channels, int count, int pieces, float eps, float kept, float taken, float taken_unbiased) {
    follow();
    i64 c = cell_of_warp();
    if (c >= channels) return;
    float m, variance;
    merge_moments(m, variance, means + c * pieces, squares + c * pieces, pieces, GROUP_PIECE<T>, count);
    if (lane() != 0) return;
    new_mean[c] = fmaf(running_mean[c], kept, m * taken);
    new_var[c] = fmaf(running_var[c], kept, variance * taken_unbiased);
    mean[c] = m;
    rstd[c] = inverse_root(variance + eps);
}

// rstd of the running statistics.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    batch_norm_fwd_running(float* rstd, const float* running_var, i64 channels, float eps) {
    follow();
    i64 c = (i64)block_x() * GROUP_THREADS + thread();
    if (c < channels) rstd[c] = inverse_root(running_var[c] + eps);
}

// The channels of a pack: one and the same, or neighbours where there is no space.
struct Channels {
    i64 first;
    int step;
};
DEVICE Channels channels_of(i64 at, i64 channels, i64 space) {
    if (space == 1) return Channels{modulo(at, channels), 1};
    return Channels{modulo(quotient(at, space), channels), 0};
}
DEVICE bool has_packs(i64 channels, i64 space) { return (space == 1 ? channels : space) % WIDE<T> == 0; }

struct Normalise {
    const T* weight;
    const T* bias;
    const float* mean;
    const float* rstd;
    i64 channels;
    i64 space;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W]) {
        Channels c = channels_of(at, channels, space);
        if (c.step == 0) {
            float m = mean[c.first], slope = widen(weight[c.first]) * rstd[c.first], b = widen(bias[c.first]);
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = fmaf(x[i] - m, slope, b);
            return;
        }
#pragma unroll
        for (int i = 0; i < W; ++i) {
            i64 k = c.first + i;
            v[i] = fmaf(x[i] - mean[k], widen(weight[k]) * rstd[k], widen(bias[k]));
        }
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) batch_norm_fwd(
    T* y, const T* x, const T* weight, const T* bias, const float* mean, const float* rstd, i64 n, i64 channels, i64 space) {
    follow();
    map_packs(has_packs(channels, space), y, 0, n, Normalise{weight, bias, mean, rstd, channels, space}, x);
}

// Sums of a piece: of dy, and of dy * z with z = (x - mean) * rstd.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 4) batch_norm_bwd_sums(
    float* sums, float* products, const T* x, const float* mean, const float* rstd, const T* dy, int batch, int channels, int space,
    int pieces) {
    follow();
    __shared__ BlockScratch<GROUP_THREADS> scratch;
    Piece p = piece_of<T>(batch, channels, space, pieces);
    bool may_be_wide = is_aligned<16>(x) && is_aligned<16>(dy);
    HeldPiece<T> number(x, p, may_be_wide), gradient(dy, p, may_be_wide);
    float m = mean[p.group], s = rstd[p.group], sum = 0.0f, product = 0.0f;
#pragma unroll
    for (int k = 0; k < GROUP_PACKS; ++k) {
#pragma unroll
        for (int i = 0; i < WIDE<T>; ++i) {
            float d = gradient.get(k, i);
            sum += d;
            product = fmaf(d, (number.get(k, i) - m) * s, product);
        }
    }
    block_sum2(sum, product, scratch);
    if (thread() == 0) sums[block_x()] = sum, products[block_x()] = product;
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 3)
    batch_norm_bwd_sum(float* sums, const T* dy, int batch, int channels, int space, int pieces) {
    follow();
    __shared__ BlockScratch<GROUP_THREADS> scratch;
    Piece p = piece_of<T>(batch, channels, space, pieces);
    HeldPiece<T> gradient(dy, p, is_aligned<16>(dy));
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < GROUP_PACKS; ++k) {
#pragma unroll
        for (int i = 0; i < WIDE<T>; ++i) sum += gradient.get(k, i);
    }
    sum = block_sum(sum, scratch);
    if (thread() == 0) sums[block_x()] = sum;
}

// Adds the pieces of every channel.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    batch_norm_bwd_total(float* total, const float* partial, i64 channels, int pieces) {
    follow();
    i64 c = cell_of_warp();
    if (c >= channels) return;
    float sum = merge_sums(partial + c * pieces, pieces);
    if (lane() == 0) total[c] = sum;
}

// The gradients of a channel's parameters, and what its dx needs, from its pieces: a warp a channel. `d_mean` and `d_var` flow to the new
// statistics, if they are there: mean_share = m / n, var_share = 2 * m / (n - 1).
extern "C" __global__ void __launch_bounds__(GROUP_THREADS) batch_norm_bwd_channels(
    T* dweight, T* dbias, float* shift, float* slope, const float* sums, const float* products, const T* weight, const float* rstd,
    const float* d_mean, const float* d_var, i64 channels, int pieces, float n, float mean_share, float var_share, int add_dweight,
    int add_dbias) {
    follow();
    i64 c = cell_of_warp();
    if (c >= channels) return;
    float sum = merge_sums(sums + c * pieces, pieces), product = merge_sums(products + c * pieces, pieces);
    if (lane() != 0) return;
    if (dweight) put(dweight + c, product, add_dweight);
    if (dbias) put(dbias + c, sum, add_dbias);
    float k = widen(weight[c]) * rstd[c];
    float down = divide(mul(k, sum), n), slant = divide(mul(k, product), n);
    shift[c] = d_mean ? fmaf(-d_mean[c], mean_share, down) : down;
    slope[c] = d_var ? slant - divide(d_var[c] * var_share, rstd[c]) : slant;
}

// A total as a gradient: dbias from the sums of dy, dweight from those of dy * z.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    batch_norm_bwd_dparam(T* d, const float* total, i64 channels, int add_d) {
    follow();
    i64 c = (i64)block_x() * GROUP_THREADS + thread();
    if (c < channels) put(d + c, total[c], add_d);
}

// The gradient of old running statistics under batch statistics: what flows to the new ones, times 1 - m.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    batch_norm_bwd_kept(float* d, const float* d_new, i64 channels, float kept, int add_d) {
    follow();
    i64 c = (i64)block_x() * GROUP_THREADS + thread();
    if (c < channels) put(d + c, d_new[c] * kept, add_d);
}

// Gradients of the running statistics that y was computed with: dmean = -k * sum, dvar = -k * rstd * product / 2, k = weight * rstd.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    batch_norm_bwd_dmean(float* dmean, const T* weight, const float* rstd, const float* sum, i64 channels, int add_dmean) {
    follow();
    i64 c = (i64)block_x() * GROUP_THREADS + thread();
    if (c < channels) put(dmean + c, -(widen(weight[c]) * rstd[c] * sum[c]), add_dmean);
}
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    batch_norm_bwd_dvar(float* dvar, const T* weight, const float* rstd, const float* product, i64 channels, int add_dvar) {
    follow();
    i64 c = (i64)block_x() * GROUP_THREADS + thread();
    if (c < channels) put(dvar + c, -0.5f * (widen(weight[c]) * rstd[c] * rstd[c]) * product[c], add_dvar);
}

// dx subtracts shift + z * slope in every channel under batch statistics.
struct BatchGradient {
    const T* weight;
    const float* mean;
    const float* rstd;
    const float* shift;
    const float* slope;
    i64 channels;
    i64 space;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W], const float (&dy)[W]) {
        Channels c = channels_of(at, channels, space);
        auto gradient = [&](int i, float m, float s, float scale, float down, float slant) {
            return fmaf((m - x[i]) * s, slant, mul(dy[i], scale) - down);
        };
        if (c.step == 0) {
            i64 k = c.first;
            float m = mean[k], s = rstd[k], scale = widen(weight[k]) * s, down = shift[k], slant = slope[k];
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = gradient(i, m, s, scale, down, slant);
            return;
        }
#pragma unroll
        for (int i = 0; i < W; ++i) {
            i64 k = c.first + i;
            v[i] = gradient(i, mean[k], rstd[k], widen(weight[k]) * rstd[k], shift[k], slope[k]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) batch_norm_bwd_dx(
    T* dx, const T* x, const T* weight, const float* mean, const float* rstd, const float* shift, const float* slope, const T* dy, i64 n,
    i64 channels, i64 space, int add_dx) {
    follow();
    BatchGradient f{weight, mean, rstd, shift, slope, channels, space};
    map_packs(has_packs(channels, space), dx, add_dx, n, f, x, dy);
}

// dx under running statistics: dy * weight * rstd.
struct RunningGradient {
    const T* weight;
    const float* rstd;
    i64 channels;
    i64 space;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&dy)[W]) {
        Channels c = channels_of(at, channels, space);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            i64 k = c.first + i * c.step;
            v[i] = mul(dy[i], widen(weight[k]) * rstd[k]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    batch_norm_bwd_dx_running(T* dx, const T* weight, const float* rstd, const T* dy, i64 n, i64 channels, i64 space, int add_dx) {
    follow();
    map_packs(has_packs(channels, space), dx, add_dx, n, RunningGradient{weight, rstd, channels, space}, dy);
}
