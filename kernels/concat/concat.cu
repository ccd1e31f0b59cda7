// concat: y is one tensor after the other along one axis; every gradient is a part of dy.
// axes      x, dx [outer, n_k, inner]; y, dy [outer, sum of n_k, inner]; one launch an input
// types     T in {f32, bf16, f16}, moved as they are
// launch    common/movement.cuh: a box
// paths     16, 8, 4 or 2 bytes at a time, as lengths, steps and places allow
// traffic   reads what moves once, writes every place of the result once; a gradient that is added is read, too
// order     every number alone: same input, same bits
// budget    sm_80 40 registers, sm_90a 40, gfx90a 48, gfx942 48; no spills
// source    the definition

#include "common/movement.cuh"

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) concat_fwd(T* y, const T* x, Box box) {
    follow();
    copy_box(y, x, box, 0);
}

extern "C" __global__ void __launch_bounds__(MOVE_THREADS, 4) concat_bwd_dx(T* dx, const T* dy, Box box, int add_dx) {
    follow();
    copy_box(dx, dy, box, add_dx);
}
