// layer_norm, rows held: y = (x - mean) * rstd * gamma + beta over the last axis, and all three gradients in one pass over x and dy.
// axes      x, y, dy, dx [rows, C] row-major; gamma, beta [C]; mean, rstd [rows] f32; sums [blocks, C] f32
// types     T in {f32, bf16, f16}; sums in f32
// launch    teams of `lanes` threads have a row each: common/held.cuh; PACKS, a thread's packs of a row, in {1, 2, 3, 4}, for
//           16-bit types also 6
// paths     C a multiple of W, at most lanes * PACKS * W; all other rows and single gradients: layer_norm.cu
// traffic   fwd reads x, writes y, mean, rstd; bwd reads x, dy, writes dx, which it reads when adding, and sums: the floor and
//           8 C bytes a block, of which a processor has one to four; _add reads residual, writes sum; backward reads dsum, writes
//           dresidual
// order     fixed: same input, same bits
// budget    sm_80 216 registers, sm_90a 216, gfx90a 280, gfx942 280; no spills
// source    Ba, Kiros, Hinton 2016, section 3

#include "common/held.cuh"

// Blocks at once: forward by the rows that are to be under way, backward by the registers that sums over rows take.
constexpr int BLOCKS = PACKS < 3 ? 4 : PACKS == 3 ? 6 : PACKS == 4 ? 5 : 4;
constexpr int BLOCKS_ADDING = PACKS < 3 ? 3 : PACKS == 3 ? 5 : PACKS == 4 ? 4 : 3;
constexpr int BLOCKS_BACK = PACKS == 1 ? (sizeof(T) == 2 ? 4 : 3) : PACKS < 4 ? 2 : 1;

extern "C" __global__ void __launch_bounds__(HELD_THREADS, BLOCKS) layer_norm_fwd_held(
    T* y, float* mean, float* rstd, const T* x, const T* gamma, const T* beta, i64 rows, int lanes, int c, float eps) {
    follow();
    normalise_held<true, false>(y, nullptr, mean, rstd, x, nullptr, gamma, beta, rows, lanes, c, eps);
}

// Of x + residual, which goes to sum.
extern "C" __global__ void __launch_bounds__(HELD_THREADS, BLOCKS_ADDING) layer_norm_fwd_add_held(
    T* sum, T* y, float* mean, float* rstd, const T* x, const T* residual, const T* gamma, const T* beta, i64 rows, int lanes, int c,
    float eps) {
    follow();
    normalise_held<true, true>(y, sum, mean, rstd, x, residual, gamma, beta, rows, lanes, c, eps);
}

extern "C" __global__ void __launch_bounds__(HELD_THREADS, BLOCKS_BACK) layer_norm_bwd_held(
    T* dx, float* gamma_sums, float* beta_sums, const T* x, const T* gamma, const float* mean, const float* rstd, const T* dy, i64 rows,
    i64 step, int lanes, int c, int add_dx) {
    follow();
    gradients_held<true, false>(
        dx, nullptr, gamma_sums, beta_sums, x, gamma, mean, rstd, dy, nullptr, rows, step, lanes, c, add_dx, 0);
}

extern "C" __global__ void __launch_bounds__(HELD_THREADS, BLOCKS_BACK) layer_norm_bwd_add_held(
    T* dx, T* dresidual, float* gamma_sums, float* beta_sums, const T* sum, const T* gamma, const float* mean, const float* rstd,
    const T* dy, const T* dsum, i64 rows, i64 step, int lanes, int c, int add_dx, int add_dresidual) {
    follow();
    gradients_held<true, true>(
        dx, dresidual, gamma_sums, beta_sums, sum, gamma, mean, rstd, dy, dsum, rows, step, lanes, c, add_dx, add_dresidual);
}
