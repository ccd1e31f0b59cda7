// patchify: y[b, i*w + j, f(c, p, q)] = x[b, c, i*P + p, j*Q + q]; dx by the inverse.
// axes      x, dx [B, C, h*P, w*Q]; y, dy [B, h*w, C*P*Q]
// types     T in {f32, bf16, f16}, moved as they are
// launch    common/movement.cuh: a box, or tiles where the fastest axis changes
// paths     16, 8, 4 or 2 bytes at a time, as lengths, steps and places allow; tiles singly
// traffic   reads what moves once, writes every place of the result once; a gradient that is added is read, too
// order     every number alone: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 48, gfx942 48; no spills
// source    Dosovitskiy et al. 2021, section 3.1

#include "common/movement.cuh"

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) patchify_fwd(T* y, const T* x, Box box) {
    copy_box(y, x, box, 0);
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) patchify_fwd_tiled(T* y, const T* x, Tiles tiles) {
    copy_tiles(y, x, tiles, 0);
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) patchify_bwd_dx(T* dx, const T* dy, Box box, int add_dx) {
    copy_box(dx, dy, box, add_dx);
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) patchify_bwd_dx_tiled(T* dx, const T* dy, Tiles tiles, int add_dx) {
    copy_tiles(dx, dy, tiles, add_dx);
}
