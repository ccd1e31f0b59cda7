// pad: y[i + before, ..] = x[i, ..], 0 elsewhere; dx is cut out of dy.
// axes      x, dx [d0, d1, ..]; y, dy [before + d0 + after, ..]
// types     T in {f32, bf16, f16}, moved as they are
// launch    common/movement.cuh: a window; bwd_dx a box
// paths     16, 8, 4 or 2 bytes at a time, as lengths, steps and places allow
// traffic   reads what moves once, writes every place of the result once; a gradient that is added is read, too
// order     every number alone: same input, same bits
// budget    sm_80 40 registers, sm_90a 40, gfx90a 48, gfx942 48; no spills
// source    the definition

#include "common/movement.cuh"

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) pad_fwd(T* y, const T* x, Window window) {
    follow();
    copy_window(y, x, window, 0);
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) pad_bwd_dx(T* dx, const T* dy, Box box, int add_dx) {
    follow();
    copy_box(dx, dy, box, add_dx);
}
