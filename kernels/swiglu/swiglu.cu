// swiglu: y = silu(gate) * up with silu(g) = g * s, s = 1 / (1 + exp(-g)).
// axes      gate, up, y, dy, dgate, dup [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh; swiglu_bwd computes both gradients in one pass
// paths     16-byte packs, 2 a thread of each input, else single numbers
// traffic   fwd reads gate, up, writes y; bwd reads gate, up, dy, writes both gradients, which it reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 72, gfx942 72; no spills
// source    Shazeer 2020, equation 6 with beta = 1

#include "common/elementwise.cuh"

DEVICE float gate_slope(float gate, float s) { return fmaf(gate * s, 1.0f - s, s); }

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) swiglu_fwd(T* y, const T* gate, const T* up, i64 n) {
    follow();
    map_flat(y, 0, n, [](float g, float u) { return g * sigmoid_of<T>(g) * u; }, gate, up);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    swiglu_bwd_dgate(T* dgate, const T* gate, const T* up, const T* dy, i64 n, int add_dgate) {
    follow();
    auto gradient = [](float g, float u, float dy) { return dy * u * gate_slope(g, sigmoid_of<T>(g)); };
    map_flat(dgate, add_dgate, n, gradient, gate, up, dy);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    swiglu_bwd_dup(T* dup, const T* gate, const T* dy, i64 n, int add_dup) {
    follow();
    map_flat(dup, add_dup, n, [](float g, float dy) { return dy * (g * sigmoid_of<T>(g)); }, gate, dy);
}

// Both: the second result is written where the first one is computed.
struct BothGradients {
    T* dup;
    int add_dup;
    template <int W>
    DEVICE void operator()(i64 at, float (&v)[W], const float (&gate)[W], const float (&up)[W], const float (&dy)[W]) {
        float other[W];
#pragma unroll
        for (int i = 0; i < W; ++i) {
            float s = sigmoid_of<T>(gate[i]);
            v[i] = dy[i] * up[i] * gate_slope(gate[i], s);
            other[i] = dy[i] * (gate[i] * s);
        }
        put<T, W>(dup + at, other, add_dup);
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    swiglu_bwd(T* dgate, T* dup, const T* gate, const T* up, const T* dy, i64 n, int add_dgate, int add_dup) {
    follow();
    map_packs(is_aligned<16>(dup), dgate, add_dgate, n, BothGradients{dup, add_dup}, gate, up, dy);
}
