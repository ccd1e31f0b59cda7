// rms_norm, rows held: y = x * rstd * weight with rstd = 1 / sqrt(mean of x^2 + eps), and both gradients in one pass over x and dy.
// axes      x, y, dy, dx [rows, C] row-major; weight [C]; rstd [rows] f32; sums [blocks, C] f32
// types     T in {f32, bf16, f16}; sums in f32
// launch    teams of `lanes` threads walk the rows of a block: common/held.cuh; PACKS, a thread's packs of a row, in {1, 2, 3, 4}, for
//           16-bit types also 6
// paths     C a multiple of W, at most lanes * PACKS * W; all other rows and single gradients: rms_norm.cu
// traffic   fwd reads x, writes y, rstd; bwd reads x, dy, writes dx, which it reads when adding, and sums: the floor and 4 C bytes a
//           block, of which a processor has one or two
// order     fixed: same input, same bits
// budget    sm_80 216 registers, sm_90a 216, gfx90a 232, gfx942 232; no spills
// source    Zhang, Sennrich 2019, equation 4, with eps inside the root

#include "common/held.cuh"

extern "C" __global__ void __launch_bounds__(HELD_THREADS, PACKS < 6 ? 4 : 3)
    rms_norm_fwd_held(T* y, float* rstd, const T* x, const T* weight, i64 rows, i64 stretch, int lanes, int c, float eps) {
    normalise_held<false>(y, nullptr, rstd, x, weight, nullptr, rows, stretch, lanes, c, eps);
}

// Blocks at once, by the registers that sums over rows take.
constexpr int BLOCKS = PACKS == 1 ? 3 : PACKS < (sizeof(T) == 2 ? 5 : 4) ? 2 : 1;

extern "C" __global__ void __launch_bounds__(HELD_THREADS, BLOCKS) rms_norm_bwd_held(
    T* dx, float* weight_sums, const T* x, const T* weight, const float* rstd, const T* dy, i64 rows, i64 stretch, int lanes, int c,
    int add_dx) {
    gradients_held<false>(dx, weight_sums, nullptr, x, weight, nullptr, rstd, dy, rows, stretch, lanes, c, add_dx);
}
