// patchify: y[b, i*w + j, f(c, p, q)] = x[b, c, i*P + p, j*Q + q]; dx by the inverse.
// axes      x, dx [B, C, h*P, w*Q]; y, dy [B, h*w, C*P*Q]
// types     T in {f32, bf16, f16}, moved as they are
// launch    common/patches.cuh: tiles through shared memory; a box (common/movement.cuh) where no tile fits
// paths     16, 8, 4 or 2 bytes at a time, as lengths, steps and places allow
// traffic   reads what moves once, writes every place of the result once; a gradient that is added is read, too
// order     every number alone: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 64, gfx942 64; no spills
// source    Dosovitskiy et al. 2021, section 3.1

#include "common/movement.cuh"
#include "common/patches.cuh"

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) patchify_fwd(T* y, const T* x, Box box) {
    follow();
    copy_box(y, x, box, 0);
}

extern "C" __global__ void __launch_bounds__(PATCH_THREADS) patchify_fwd_patches(T* y, const T* x, Patches patches) {
    follow();
    extern __shared__ u32 memory[];
    image_to_tokens(y, x, patches, 0, (T*)memory, Same{});
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) patchify_bwd_dx(T* dx, const T* dy, Box box, int add_dx) {
    follow();
    copy_box(dx, dy, box, add_dx);
}

extern "C" __global__ void __launch_bounds__(PATCH_THREADS) patchify_bwd_dx_patches(T* dx, const T* dy, Patches patches, int add_dx) {
    follow();
    extern __shared__ u32 memory[];
    tokens_to_image(dx, dy, patches, add_dx, (T*)memory, Same{});
}
