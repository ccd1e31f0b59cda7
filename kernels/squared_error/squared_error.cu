// squared_error: loss = 1/n * sum of weight[h] * (p - y)^2; dp = 2/n * weight[h] * (p - y) * dloss = -dy.
// axes      p, y, dp, dy [n] as rows of `width` numbers; weight, dweight [weights], those of the rows in turn; loss, dloss [1]
// types     p, dp in T, y, dy in TARGET, each of f32, bf16, f16; weight, loss in f32; errors in f32, sums in f64
// launch    fwd: sums of stretches, then one block; bwd_dp, bwd_dy flat; bwd_dweight: sums of rows, of their stretches, of equal rows
// paths     16-byte packs of the wider type, single numbers at the ends
// traffic   fwd reads p, y; bwd_dp, bwd_dy read p, y, write a gradient, which they read when adding
// order     fixed: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 96, gfx942 96; no spills
// source    the definition; weights: Rasp et al. 2020, equation 2

#include "common/mean_error.cuh"

struct Error {
    DEVICE static float error(float d) { return mul(d, d); }
    DEVICE static float pull(float s, float d) { return mul(s, d); }
};

extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) squared_error_fwd_sums(
    int* sums, const T* p, const TARGET* y, const float* weight, i64 width, i64 weights, i64 rows, i64 n, i64 stretch, i64 stretches,
    int lanes) {
    follow();
    error_sums<Error>(sums, p, y, weight, width, weights, rows, n, stretch, stretches, lanes);
}
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) squared_error_fwd(float* loss, const int* sums, i64 stretches, i64 n) {
    follow();
    mean_of_sums(loss, sums, stretches, n);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) squared_error_bwd_dp(
    T* dp, const T* p, const TARGET* y, const float* weight, const float* dloss, i64 n, i64 width, i64 weights, float factor,
    int add_dp) {
    follow();
    map_packs(true, dp, add_dp, n, ErrorPull<Error>{weight, dloss, width, weights, factor}, p, y);
}
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) squared_error_bwd_dy(
    TARGET* dy, const T* p, const TARGET* y, const float* weight, const float* dloss, i64 n, i64 width, i64 weights, float factor,
    int add_dy) {
    follow();
    map_packs(true, dy, add_dy, n, ErrorPull<Error>{weight, dloss, width, weights, factor}, p, y);
}

// The sums of the stretches of every row: fwd_sums without weights. Then those of stretches, and of rows of one weight.
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) squared_error_bwd_dweight_rows(
    float* dweight, int* sums, const int* x, i64 rows, i64 n, i64 stretch, i64 stretches, int lanes, const float* dloss, i64 count,
    int add_dweight) {
    follow();
    WeightGradient to{dweight, (double*)sums, dloss, count, add_dweight};
    total_rows((const double*)x, rows, n, stretch, stretches, lanes, to);
}
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) squared_error_bwd_dweight_axis(
    float* dweight, int* sums, const int* x, i64 outer, i64 n, i64 inner, i64 stretch, i64 stretches, int lanes, const float* dloss,
    i64 count, int add_dweight) {
    follow();
    WeightGradient to{dweight, (double*)sums, dloss, count, add_dweight};
    total_axis((const double*)x, outer, n, inner, stretch, stretches, lanes, to);
}
