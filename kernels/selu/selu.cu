// selu: y = above * x for x > 0, else below * (exp(x) - 1); dx = dy * above or dy * below * exp(x).
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh
// paths     16-byte packs, 4 a thread (backward 2), else single numbers
// traffic   fwd reads x, writes y; bwd reads x, dy, writes dx, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 48 registers, sm_90a 48, gfx90a 40, gfx942 40; no spills
// source    Klambauer, Unterthiner, Mayr, Hochreiter 2017, equation 2

#include "common/elementwise.cuh"

constexpr float ABOVE = 1.0507009873554805f;
constexpr float BELOW = 1.7580993408473766f;

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) selu_fwd(T* y, const T* x, i64 n) {
    map_flat(y, 0, n, [](float x) { return x > 0.0f ? ABOVE * x : BELOW * (exp_f32(x) - 1.0f); }, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    selu_bwd_dx(T* dx, const T* x, const T* dy, i64 n, int add_dx) {
    auto gradient = [](float x, float dy) { return mul(dy, x > 0.0f ? ABOVE : BELOW * exp_f32(x)); };
    map_flat(dx, add_dx, n, gradient, x, dy);
}
