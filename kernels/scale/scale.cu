// scale: y = factor * x; dx = factor * dy.
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh
// paths     16-byte packs, 4 a thread, else single numbers
// traffic   reads one tensor, writes one, which backward reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 40 registers, sm_90a 48, gfx90a 48, gfx942 48; no spills
// source    the definition

#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) scale_fwd(T* y, const T* x, i64 n, float factor) {
    follow();
    map_flat(y, 0, n, [=](float x) { return factor * x; }, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    scale_bwd_dx(T* dx, const T* dy, i64 n, float factor, int add_dx) {
    follow();
    map_flat(dx, add_dx, n, [=](float dy) { return mul(factor, dy); }, dy);
}
