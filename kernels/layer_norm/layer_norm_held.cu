// layer_norm, rows held: y = (x - mean) * rstd * gamma + beta over the last axis, and all three gradients in one pass over x and dy.
// axes      x, y, dy, dx [rows, C] row-major; gamma, beta [C]; mean, rstd [rows] f32; sums [blocks, C] f32
// types     T in {f32, bf16, f16}; sums in f32
// launch    teams of `lanes` threads walk the rows of a block: common/held.cuh; PACKS, a thread's packs of a row, in {1, 2, 3, 4}, for
//           16-bit types also 6
// paths     C a multiple of W, at most lanes * PACKS * W; all other rows and single gradients: layer_norm.cu
// traffic   fwd reads x, writes y, mean, rstd; bwd reads x, dy, writes dx, which it reads when adding, and sums: the floor and
//           8 C bytes a block, of which a processor has one or two
// order     fixed: same input, same bits
// budget    sm_80 255 registers, sm_90a 255, gfx90a 256, gfx942 256; no spills
// source    Ba, Kiros, Hinton 2016, section 3

#include "common/held.cuh"

extern "C" __global__ void __launch_bounds__(HELD_THREADS, PACKS < 6 ? 4 : 3) layer_norm_fwd_held(
    T* y, float* mean, float* rstd, const T* x, const T* gamma, const T* beta, i64 rows, i64 stretch, int lanes, int c, float eps) {
    normalise_held<true>(y, mean, rstd, x, gamma, beta, rows, stretch, lanes, c, eps);
}

// Blocks at once, by the registers that sums over rows take.
constexpr int BLOCKS = PACKS == 1 ? 3 : PACKS < (sizeof(T) == 2 ? 4 : 3) ? 2 : 1;

extern "C" __global__ void __launch_bounds__(HELD_THREADS, BLOCKS) layer_norm_bwd_held(
    T* dx, float* gamma_sums, float* beta_sums, const T* x, const T* gamma, const float* mean, const float* rstd, const T* dy, i64 rows,
    i64 stretch, int lanes, int c, int add_dx) {
    gradients_held<true>(dx, gamma_sums, beta_sums, x, gamma, mean, rstd, dy, rows, stretch, lanes, c, add_dx);
}
