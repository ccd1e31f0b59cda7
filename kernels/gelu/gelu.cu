// gelu: y = x * Phi(x), by the error function or by its approximation with tanh.
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh; is_tanh: 0 for the definition, 1 for the approximation
// paths     16-byte packs, 4 a thread (backward 2), else single numbers
// traffic   fwd reads x, writes y; bwd reads x, dy, writes dx, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 64, gfx942 64; no spills
// source    Hendrycks, Gimpel 2016, sections 2 and 4; the polynomial: Abramowitz, Stegun 1964, 7.1.26

#include "common/elementwise.cuh"
#include "common/gelu.cuh"

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) gelu_fwd(T* y, const T* x, i64 n, int is_tanh) {
    follow();
    if (is_tanh) {
        map_flat(y, 0, n, [](float x) { return gelu_of<true>(x); }, x);
    } else {
        map_flat(y, 0, n, [](float x) { return gelu_of<false>(x); }, x);
    }
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    gelu_bwd_dx(T* dx, const T* x, const T* dy, i64 n, int is_tanh, int add_dx) {
    follow();
    if (is_tanh) {
        map_flat(dx, add_dx, n, [](float x, float dy) { return dy * gelu_slope<true>(x); }, x, dy);
    } else {
        map_flat(dx, add_dx, n, [](float x, float dy) { return dy * gelu_slope<false>(x); }, x, dy);
    }
}
