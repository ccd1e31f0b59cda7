// global_norm: norm = sqrt(sum of grad^2) / loss_scale; factor = min(1, max_norm / (norm + 1e-6)) / loss_scale; finite = 1 or 0.
// axes      grad [n], an arena of gradients; norm, factor, finite one number each, f32
// types     T in {f32, bf16, f16}; sums in f64, which holds every square exactly and in which none overflows
// launch    fwd_partial: a block a piece, whose length is a multiple of 4 packs a thread; fwd: one block over the sums of the pieces
// paths     16-byte packs, 4 under way before the first is used, where grad is aligned to them, else single numbers
// traffic   reads grad once; sums of the pieces 8 bytes each
// order     fixed: four sums a thread, the threads of a block by halves, the pieces likewise: same input, same bits
// budget    sm_80 60 registers, sm_90a 60, gfx90a 40, gfx942 40; no spills
// source    Pascanu, Mikolov, Bengio 2013, algorithm 1

#include "common/totals.cuh"

constexpr int THREADS = 256;
constexpr int PACKS = 4;
constexpr double TINY = 1e-6;  // added to the norm, so that a norm of 0 divides

// The sum over the block, in its first thread.
DEVICE double first_threads_sum(double sum, double (&sums)[THREADS]) {
    sums[thread()] = sum;
#pragma unroll
    for (int half = THREADS / 2; half > 0; half /= 2) {
        block_sync();
        if (thread() < half) sums[thread()] = sum += sums[thread() + half];
    }
    return sum;
}

template <int W> DEVICE double add_squares(double sum, const Pack<T, W>& x) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
        double v = x.get(i);
        sum = fused(v, v, sum);
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) global_norm_fwd_partial(float* sums, const T* grad, i64 n, i64 piece) {
    follow();
    constexpr int W = WIDE<T>;
    __shared__ double shared[THREADS];
    i64 begin = (i64)block_x() * piece, end = least(n, begin + piece), single = begin;
    double sum[PACKS] = {};
    if (is_aligned<16>(grad)) {
        i64 packs = end / W;
        for (i64 first = begin / W + thread(); first < packs; first += THREADS * PACKS) {
            Pack<T, W> x[PACKS];
#pragma unroll
            for (int k = 0; k < PACKS; ++k) {
                if (first + k * THREADS < packs) x[k] = load_once<T, W>(grad + (first + k * THREADS) * W);
            }
#pragma unroll
            for (int k = 0; k < PACKS; ++k) {
                if (first + k * THREADS < packs) sum[k] = add_squares<W>(sum[k], x[k]);
            }
        }
        // The numbers after the last whole pack.
        single = packs * W;
    }
    for (i64 at = single + thread(); at < end; at += THREADS) sum[0] = add_squares<1>(sum[0], load_kept<T, 1>(grad + at));
    double all = first_threads_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), shared);
    if (thread() == 0) ((double*)sums)[block_x()] = all;
}

// A max_norm of 0 stands for none.
struct Rule {
    double loss_scale;
    double max_norm;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    global_norm_fwd(float* norm, float* factor, float* finite, const float* sums, int pieces, Rule rule) {
    follow();
    __shared__ double shared[THREADS];
    double sum = 0.0;
    for (int i = thread(); i < pieces; i += THREADS) sum += ((const double*)sums)[i];
    double square = first_threads_sum(sum, shared);
    if (thread() != 0) return;
    double length = square_root(square) / rule.loss_scale, clip = 1.0;
    if (rule.max_norm > 0.0) {
        double shortened = rule.max_norm / (length + TINY);
        clip = shortened < 1.0 ? shortened : 1.0;
        clip = length == length ? clip : length;
    }
    *norm = (float)length;
    *factor = (float)(clip / rule.loss_scale);
    *finite = square - square == 0.0 ? 1.0f : 0.0f;
}

// One thread: `finite` stays 1 only if x is finite, too: a loss, for instance.
extern "C" __global__ void __launch_bounds__(64) global_norm_fwd_also(float* finite, const float* x) {
    follow();
    if (thread() == 0 && !(*x - *x == 0.0f)) *finite = 0.0f;
}
