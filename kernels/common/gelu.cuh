// gelu: the function and its slope, by the error function or by the approximation with tanh: `gelu`, `bias_gelu`.
// source    Hendrycks, Gimpel 2016, sections 2 and 4; the polynomial: Abramowitz, Stegun 1964, 7.1.26

#pragma once
#include "common/math.cuh"
#include "common/pack.cuh"

constexpr float ROOT_HALF = 0.70710678118654752f;
constexpr float INNER = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float CUBE = 0.044715f * INNER;
constexpr float DENSITY = 0.39894228040143268f;  // 1 / sqrt(2 pi)

constexpr bool IS_NARROW = sizeof(T) == 2;

// Phi(x), how likely a normal number is below x, and the density there times the root of 2 pi: for 16 bits by one polynomial and one
// 2^x for both, within 10^-7.
struct Normal {
    float below;
    float density;
};
DEVICE Normal normal(float x) {
    if constexpr (IS_NARROW) {
        float e = exp_of<T>(-0.5f * (x * x)), t = reciprocal(fmaf(0.3275911f * ROOT_HALF, absolute(x), 1.0f));
        float p = 0.5f * 1.061405429f;
        p = fmaf(p, t, 0.5f * -1.453152027f);
        p = fmaf(p, t, 0.5f * 1.421413741f);
        p = fmaf(p, t, 0.5f * -0.284496736f);
        p = fmaf(p, t, 0.5f * 0.254829592f);
        float beyond = p * t * e;
        return {x < 0.0f ? beyond : 1.0f - beyond, e};
    }
    return {fmaf(0.5f, erf_f32(x * ROOT_HALF), 0.5f), exp_f32(-0.5f * (x * x))};
}

// tanh(x * (INNER + CUBE * x^2)); for 16 bits by the sigmoid of twice that.
DEVICE float tanh_of_inner(float x, float square) {
    float inner = x * fmaf(CUBE, square, INNER);
    if constexpr (IS_NARROW) return fmaf(2.0f, sigmoid_of<T>(2.0f * inner), -1.0f);
    return tanh_f32(inner);
}

template <bool IS_TANH> DEVICE float gelu_of(float x) {
    if constexpr (IS_TANH) return 0.5f * x * (1.0f + tanh_of_inner(x, x * x));
    return x * normal(x).below;
}

template <bool IS_TANH> DEVICE float gelu_slope(float x) {
    if constexpr (IS_TANH) {
        float square = x * x, t = tanh_of_inner(x, square), slope = fmaf(3.0f * CUBE, square, INNER);
        return 0.5f * fmaf(x * fmaf(-t, t, 1.0f), slope, 1.0f + t);
    }
    Normal at = normal(x);
    return fmaf(x * DENSITY, at.density, at.below);
}
