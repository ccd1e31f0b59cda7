// conv2d: y = sums over windows of x times w, plus bias, cross-correlation with stride, padding, dilation and groups, and its gradients.
// axes      x, dx [B, C, H, W]; w, dw [O, C / groups, KH, KW]; bias, dbias [O]; y, dy [B, O, H_out, W_out]; part [stretches, weights or O] f32
// types     T in {f32, bf16, f16}; sums in f32
// launch    CONV_THREADS threads a 64 x 64 tile of a product: fwd, bwd_dx [places, channels, groups], bwd_dw [taps, channels, groups *
//           stretches]; _thin: fwd, bwd_dx a thread a number, bwd_dw [weights, stretches]; bwd_dbias [O, stretches]: common/convolution.cuh
// paths     single numbers, gathered; neighbouring threads neighbouring places. That is why forward has 0.39 of the speed of PyTorch
//           eager (cuDNN) in 16-bit types and 0.43 in f32 (H200, 4 x 64 x 56 x 56): a stage of windows is fetched number by number, and
//           products wait for it
// matrix    HMMA on sm_80, sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for all types; f32 on NVIDIA is FFMA, 4 x 8 a thread
// traffic   a tile reads 64 rows of one operand and 64 columns of the other for every k, through the caches; y once
// order     k ascending in one block; dw, dbias: stretches of outputs, then the stretches: same input, same bits; no atomics
// budget    sm_80 128 registers, sm_90a 128, gfx90a 128, gfx942 128; no spills
// source    Chetlur et al. 2014, section 3: the matrix of windows exists only tile by tile

#include "common/convolution.cuh"

extern "C" __global__ void __launch_bounds__(CONV_THREADS, 4)
    conv2d_fwd(T* y, const T* x, const T* w, const T* bias, Window s) {
    conv_forward(y, x, w, bias, s);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS, 4)
    conv2d_fwd_thin(T* y, const T* x, const T* w, const T* bias, Window s, i64 count) {
    conv_forward_thin(y, x, w, bias, s, count);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS, 4)
    conv2d_bwd_dx(T* dx, const T* w, const T* dy, Window s, int add_dx) {
    conv_input(dx, w, dy, s, add_dx);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS, 4)
    conv2d_bwd_dx_thin(T* dx, const T* w, const T* dy, Window s, i64 count, int add_dx) {
    conv_input_thin(dx, w, dy, s, count, add_dx);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS, 4)
    conv2d_bwd_dw(f32* part, const T* x, const T* dy, Window s, int stretch, int stretches) {
    conv_weight(part, x, dy, s, stretch, stretches);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS, 4)
    conv2d_bwd_dw_thin(f32* part, const T* x, const T* dy, Window s, int stretch, i64 weights) {
    conv_weight_thin(part, x, dy, s, stretch, weights);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS, 4) conv2d_bwd_dbias(f32* part, const T* dy, Window s, int stretch) {
    conv_bias(part, dy, s, stretch);
}

// dw or dbias: the stretches added.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    conv2d_bwd_total(T* d, const f32* part, i64 stretches, i64 width, int lanes, int add_d) {
    column_totals(d, part, stretches, width, lanes, add_d);
}
