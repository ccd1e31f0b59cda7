// relu: y = max(x, 0); dx = dy where y > 0, else 0. NaN stays NaN.
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh
// paths     16-byte packs, 4 a thread (backward 2), else single numbers
// traffic   fwd reads x, writes y; bwd reads y, dy, writes dx, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 40 registers, sm_90a 40, gfx90a 40, gfx942 40; no spills
// source    Nair, Hinton 2010

#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) relu_fwd(T* y, const T* x, i64 n) {
    follow();
    map_flat(y, 0, n, [](float x) { return x <= 0.0f ? 0.0f : x; }, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    relu_bwd_dx(T* dx, const T* y, const T* dy, i64 n, int add_dx) {
    follow();
    // Selected and not multiplied: an infinite dy must not become NaN where y is 0.
    auto gradient = [](float y, float dy) { return y <= 0.0f ? 0.0f : dy; };
    map_flat(dx, add_dx, n, gradient, y, dy);
}
