// mish: y = x * t with t = tanh(log(1 + exp(x))); dx = dy * (t + x * (1 - t^2) * s), s = 1 / (1 + exp(-x)).
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh
// paths     16-byte packs, 4 a thread (backward 2), else single numbers
// traffic   fwd reads x, writes y; bwd reads x, dy, writes dx, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 48, gfx942 56; no spills
// source    Misra 2019, section 2

#include "common/elementwise.cuh"

// With e = exp(x) and w = e * (e + 2): t = w / (w + 2) and 1 - t = 2 / (w + 2), one exponential and no logarithm. Beyond 20 t is 1.
DEVICE float weight(float x) {
    float e = exp_f32(x > 20.0f ? 20.0f : x);
    return e * (e + 2.0f);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) mish_fwd(T* y, const T* x, i64 n) {
    follow();
    auto value = [](float x) {
        float w = weight(x);
        return x * (w * reciprocal(w + 2.0f));
    };
    map_flat(y, 0, n, value, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    mish_bwd_dx(T* dx, const T* x, const T* dy, i64 n, int add_dx) {
    follow();
    auto gradient = [](float x, float dy) {
        float w = weight(x), r = reciprocal(w + 2.0f), t = w * r;
        return dy * fmaf(x * (2.0f * r) * (1.0f + t), sigmoid_f32(x), t);
    };
    map_flat(dx, add_dx, n, gradient, x, dy);
}
