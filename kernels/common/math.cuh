// math: functions of f32, accurate to 2 units in the last place on both vendors, and the same text for both.
// building  IEEE fmaf, add and multiply; the hardware's 2^x and 1/x (1 unit each) where that costs no accuracy
// names     _f32, so that they are never the vendor's own
// special   NaN in, NaN out; infinities as the mathematics says; results below the normal range are not flushed
// source    polynomials: own minimax fits (Lawson's iteration), residual 2^-27 or better; the splittings are textbook: Cody, Waite 1980

#pragma once
#include "common/device.cuh"

DEVICE float infinity() { return float_of(0x7f800000u); }

#ifdef ON_AMD
// a * b + c with one rounding; NVRTC knows the word.
DEVICE float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#endif

// A product that is rounded before it is used: NVRTC would fuse it with a sum that follows.
DEVICE float mul(float a, float b) {
#ifdef ON_NVIDIA
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

// Correctly rounded: for one number a row. For one an element see reciprocal.
DEVICE float divide(float a, float b) {
#ifdef ON_NVIDIA
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}
DEVICE float square_root(float x) {
#ifdef ON_NVIDIA
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
}
// 1 / sqrt(x), both correctly rounded.
DEVICE float inverse_root(float x) { return divide(1.0f, square_root(x)); }

// The same to 2 units.
DEVICE float inverse_root_near(float x) {
#ifdef ON_NVIDIA
    float y;
    asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return __builtin_amdgcn_rsqf(x);
#endif
}

// 1 / x to 1 unit; 0 where x is beyond 2^126.
DEVICE float reciprocal(float x) {
#ifdef ON_NVIDIA
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return __builtin_amdgcn_rcpf(x);
#endif
}

// 2^x to 1 unit; beyond the normal range 0 or infinity.
DEVICE float exp2_small(float x) {
#ifdef ON_NVIDIA
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return __builtin_amdgcn_exp2f(x);
#endif
}

// The larger that is a number; NaN if neither is.
DEVICE float larger(float a, float b) {
#ifdef ON_NVIDIA
    return fmaxf(a, b);
#else
    return __builtin_fmaxf(a, b);
#endif
}
DEVICE float absolute(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
DEVICE float with_sign_of(float x, float sign) {
    return float_of((bits_of(x) & 0x7fffffffu) | (bits_of(sign) & 0x80000000u));
}
DEVICE bool is_nan(float x) { return x != x; }

// e^x = 2^n * 2^f with n whole and |f| <= 1/2; 2^n in two factors, so that neither overflows nor vanishes before the product.
DEVICE float exp_f32(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -105.0f ? -105.0f : x;
    constexpr float WHOLE = 12582912.0f;  // 1.5 * 2^23: the last place is 1
    float shifted = fmaf(x, 1.442695041f, WHOLE);
    float n = shifted - WHOLE;
    float f = fmaf(x, 1.925963033e-8f, fmaf(x, 1.442695022f, -n));
    int whole = (int)(bits_of(shifted) - bits_of(WHOLE)), half = whole >> 1;
    float low = float_of((u32)(half + 127) << 23), high = float_of((u32)(whole - half + 127) << 23);
    return exp2_small(f) * low * high;
}

// e^x for a result that is rounded to U: for 16 bits one product and 2^x, off by 2^-24 * |x| of itself.
template <typename U> DEVICE float exp_of(float x) {
    if constexpr (sizeof(U) == 2) return exp2_small(x * 1.442695041f);
    return exp_f32(x);
}

// log(2^e * (1 + f)) = e * log 2 + f - f^2/2 + f^3 * P(f), with 1 + f from sqrt(1/2) to sqrt(2).
DEVICE float log_f32(float x) {
    bool is_tiny = x < 1.17549435e-38f;
    float scaled = is_tiny ? x * 8388608.0f : x;
    // sqrt(1/2) has the bits 3f3504f3: the exponent changes there and not at 1.
    u32 moved = bits_of(scaled) - 0x3f3504f3u;
    float e = (float)((int)moved >> 23) - (is_tiny ? 23.0f : 0.0f);
    float f = float_of((moved & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float p = 0.0691542551f;
    p = fmaf(p, f, -0.117898345f);
    p = fmaf(p, f, 0.118729651f);
    p = fmaf(p, f, -0.123843432f);
    p = fmaf(p, f, 0.142186597f);
    p = fmaf(p, f, -0.16669251f);
    p = fmaf(p, f, 0.200022265f);
    p = fmaf(p, f, -0.249999866f);
    p = fmaf(p, f, 0.333333105f);
    float square = mul(f, f);
    float tail = fmaf(mul(p, f), square, fmaf(-0.5f, square, mul(e, 1.42860677e-6f)));
    float y = fmaf(e, 0.693145752f, f + tail);
    y = x == 0.0f ? -infinity() : y;
    y = x < 0.0f ? float_of(0x7fc00000u) : y;
    // Infinity and NaN stay.
    return x < infinity() ? y : x;
}

// Below 0.6 the odd polynomial; above 1 - 2 / (e^2x + 1), where nothing cancels.
DEVICE float tanh_f32(float x) {
    float a = absolute(x), z = mul(x, x);
    float p = -0.00590586849f;
    p = fmaf(p, z, 0.020805385f);
    p = fmaf(p, z, -0.0537866838f);
    p = fmaf(p, z, 0.133319587f);
    p = fmaf(p, z, -0.333332986f);
    float small = fmaf(mul(p, z), x, x);
    // Beyond 10 it is 1 in f32.
    float far = a > 10.0f ? 10.0f : a;
    float large = fmaf(-2.0f, reciprocal(exp2_small(mul(far, 2.885390082f)) + 1.0f), 1.0f);
    return a > 0.6f ? with_sign_of(large, x) : small;
}

// Below 1 the odd polynomial; above 1 - 2^Q, where 2^Q is the complement.
DEVICE float erf_f32(float x) {
    float a = absolute(x), z = mul(x, x);
    float p = 7.88912294e-5f;
    p = fmaf(p, z, -0.000802084222f);
    p = fmaf(p, z, 0.00518953567f);
    p = fmaf(p, z, -0.0268544443f);
    p = fmaf(p, z, 0.112836003f);
    p = fmaf(p, z, -0.37612626f);
    p = fmaf(p, z, 0.128379166f);
    float small = fmaf(p, x, x);
    // Beyond 4 it is 1 in f32.
    float far = a > 4.0f ? 4.0f : a;
    float q = -3.1287389e-5f;
    q = fmaf(q, far, 0.000636712299f);
    q = fmaf(q, far, -0.00606589252f);
    q = fmaf(q, far, 0.0363678038f);
    q = fmaf(q, far, -0.156414911f);
    q = fmaf(q, far, -0.913543224f);
    q = fmaf(q, far, -1.62963712f);
    q = fmaf(q, far, 0.000271280092f);
    float large = 1.0f - exp2_small(q);
    return a > 1.0f ? with_sign_of(large, x) : small;
}

// 1 / (1 + e^-x), the plain text: what overflows gives 0. The second for a result that is rounded to U.
DEVICE float sigmoid_f32(float x) { return reciprocal(1.0f + exp_f32(-x)); }
template <typename U> DEVICE float sigmoid_of(float x) { return reciprocal(1.0f + exp_of<U>(-x)); }
