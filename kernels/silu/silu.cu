// silu: y = x * s with s = 1 / (1 + exp(-x)); dx = dy * s * (1 + x * (1 - s)).
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh
// paths     16-byte packs, 4 a thread (backward 2), else single numbers
// traffic   fwd reads x, writes y; bwd reads x, dy, writes dx, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 56 registers, sm_90a 56, gfx90a 48, gfx942 48; no spills
// source    Hendrycks, Gimpel 2016; Ramachandran, Zoph, Le 2017

#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) silu_fwd(T* y, const T* x, i64 n) {
    follow();
    map_flat(y, 0, n, [](float x) { return x * sigmoid_of<T>(x); }, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    silu_bwd_dx(T* dx, const T* x, const T* dy, i64 n, int add_dx) {
    follow();
    auto gradient = [](float x, float dy) {
        float s = sigmoid_of<T>(x);
        return dy * s * fmaf(x, 1.0f - s, 1.0f);
    };
    map_flat(dx, add_dx, n, gradient, x, dy);
}
