// permute: y[i[axes[0]], i[axes[1]], ..] = x[i[0], i[1], ..]; dx by the inverse.
// axes      x, dx [d0, d1, ..]; y, dy [d[axes[0]], d[axes[1]], ..]
// types     T in {f32, bf16, f16}, moved as they are
// launch    common/movement.cuh: a box, or tiles where the fastest axis changes
// paths     16, 8, 4 or 2 bytes at a time, as lengths, steps and places allow; tiles singly
// traffic   reads what moves once, writes every place of the result once; a gradient that is added is read, too
// order     every number alone: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 48, gfx942 48; no spills
// source    the definition

#include "common/movement.cuh"

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) permute_fwd(T* y, const T* x, Box box) {
    follow();
    copy_box(y, x, box, 0);
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) permute_fwd_tiled(T* y, const T* x, Tiles tiles) {
    follow();
    copy_tiles(y, x, tiles, 0);
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) permute_bwd_dx(T* dx, const T* dy, Box box, int add_dx) {
    follow();
    copy_box(dx, dy, box, add_dx);
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) permute_bwd_dx_tiled(T* dx, const T* dy, Tiles tiles, int add_dx) {
    follow();
    copy_tiles(dx, dy, tiles, add_dx);
}
