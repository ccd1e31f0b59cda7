// sigmoid: y = 1 / (1 + exp(-x)); dx = dy * y * (1 - y).
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh
// paths     16-byte packs, 4 a thread (backward 2), else single numbers
// traffic   fwd reads x, writes y; bwd reads y, dy, writes dx, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 40 registers, sm_90a 48, gfx90a 40, gfx942 40; no spills
// source    the definition

#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) sigmoid_fwd(T* y, const T* x, i64 n) {
    follow();
    map_flat(y, 0, n, [](float x) { return sigmoid_of<T>(x); }, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    sigmoid_bwd_dx(T* dx, const T* y, const T* dy, i64 n, int add_dx) {
    follow();
    auto gradient = [](float y, float dy) { return dy * y * (1.0f - y); };
    map_flat(dx, add_dx, n, gradient, y, dy);
}
