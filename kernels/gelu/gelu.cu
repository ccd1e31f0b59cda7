// gelu: y = x * Phi(x), by the error function or by its approximation with tanh.
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh; is_tanh: 0 for the definition, 1 for the approximation
// paths     16-byte packs, 4 a thread (backward 2), else single numbers
// traffic   fwd reads x, writes y; bwd reads x, dy, writes dx, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 64, gfx942 64; no spills
// source    Hendrycks, Gimpel 2016, sections 2 and 4

#include "common/elementwise.cuh"

constexpr float ROOT_HALF = 0.70710678118654752f;
constexpr float INNER = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float CUBE = 0.044715f * INNER;
constexpr float DENSITY = 0.39894228040143268f;  // 1 / sqrt(2 pi)

// Phi(x): how likely a normal number is below x.
DEVICE float probability(float x) { return fmaf(0.5f, erf_f32(x * ROOT_HALF), 0.5f); }

DEVICE float tanh_of_inner(float x, float square) { return tanh_f32(x * fmaf(CUBE, square, INNER)); }

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) gelu_fwd(T* y, const T* x, i64 n, int is_tanh) {
    if (is_tanh) {
        map_flat(y, 0, n, [](float x) { return 0.5f * x * (1.0f + tanh_of_inner(x, x * x)); }, x);
    } else {
        map_flat(y, 0, n, [](float x) { return x * probability(x); }, x);
    }
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    gelu_bwd_dx(T* dx, const T* x, const T* dy, i64 n, int is_tanh, int add_dx) {
    if (is_tanh) {
        auto gradient = [](float x, float dy) {
            float square = x * x, t = tanh_of_inner(x, square), slope = fmaf(3.0f * CUBE, square, INNER);
            return dy * (0.5f * fmaf(x * fmaf(-t, t, 1.0f), slope, 1.0f + t));
        };
        map_flat(dx, add_dx, n, gradient, x, dy);
    } else {
        auto gradient = [](float x, float dy) {
            return dy * fmaf(x * DENSITY, exp_f32(-0.5f * (x * x)), probability(x));
        };
        map_flat(dx, add_dx, n, gradient, x, dy);
    }
}
