// selu: y = above * x for x > 0, else below * (exp(x) - 1); dx = dy * above or dy * below * exp(x).
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh
// paths     16-byte packs, 4 a thread (backward 2), else single numbers
// traffic   fwd reads x, writes y; bwd reads x, dy, writes dx, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 48 registers, sm_90a 48, gfx90a 40, gfx942 40; no spills
// source    Klambauer, Unterthiner, Mayr, Hochreiter 2017, equation 2; the polynomial interpolates at Chebyshev's points, error 2^-29

#include "common/elementwise.cuh"

constexpr float ABOVE = 1.0507009873554805f;
constexpr float BELOW = 1.7580993408473766f;

// e^x - 1 for x <= 0 to 1 unit, where the difference would cancel: 2^n * (e^r - 1) + (2^n - 1), the latter exact.
DEVICE float exp_less_one(float x) {
    x = x < -30.0f ? -30.0f : x;
    constexpr float WHOLE = 12582912.0f;  // 1.5 * 2^23: the last place is 1
    float shifted = fmaf(x, 1.442695041f, WHOLE), n = shifted - WHOLE;
    float r = fmaf(n, -1.42860677e-6f, fmaf(n, -0.693145752f, x)), square = mul(r, r);
    float p = 0.000198826921f;
    p = fmaf(p, r, 0.00139261771f);
    p = fmaf(p, r, 0.00833332073f);
    p = fmaf(p, r, 0.0416665561f);
    p = fmaf(p, r, 0.166666672f);
    float small = fmaf(mul(square, r), p, fmaf(0.5f, square, r));
    float power = float_of((bits_of(shifted) - bits_of(WHOLE) + 127u) << 23);
    return fmaf(power, small, power - 1.0f);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) selu_fwd(T* y, const T* x, i64 n) {
    follow();
    map_flat(y, 0, n, [](float x) { return x > 0.0f ? ABOVE * x : BELOW * exp_less_one(x); }, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    selu_bwd_dx(T* dx, const T* x, const T* dy, i64 n, int add_dx) {
    follow();
    auto gradient = [](float x, float dy) { return mul(dy, x > 0.0f ? ABOVE : BELOW * exp_of<T>(x)); };
    map_flat(dx, add_dx, n, gradient, x, dy);
}
