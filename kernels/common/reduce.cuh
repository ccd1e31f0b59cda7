// reduce: sums and maxima over a warp or a block, in a fixed order: same input, same bits. Every lane gets the result.
// warp      a butterfly: log2(WARP) exchanges
// block     warps first, then their results through shared memory, which is free again when the call returns
// blocks    threads are a multiple of WARP, all of them take part

#pragma once
#include "common/math.cuh"

// A sum together with what rounding took from it, for sums that go through many hands: the result is rounded about once.
struct Sum {
    float top;
    float rest;
};
DEVICE void add_to(Sum& s, float v) {
    float t = s.top + v, z = t - s.top;
    s.rest += (s.top - (t - z)) + (v - z);
    s.top = t;
}
// a * b added without rounding it.
DEVICE void add_product(Sum& s, float a, float b) {
    float p = mul(a, b);
    add_to(s, p);
    s.rest += fmaf(a, b, -p);
}
DEVICE void add_to(Sum& s, Sum o) {
    add_to(s, o.top);
    s.rest += o.rest;
}
// The rest of an infinite sum is NaN; the sum is not.
DEVICE float value_of(Sum s) {
    float v = s.top + s.rest;
    return is_nan(v) ? s.top : v;
}

DEVICE float warp_sum(float v) {
#pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2) v += lane_xor(v, m);
    return v;
}

// Two sums at once: the exchanges of one hide behind those of the other.
DEVICE void warp_sum2(float& a, float& b) {
#pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2) {
        float other_a = lane_xor(a, m), other_b = lane_xor(b, m);
        a += other_a;
        b += other_b;
    }
}

// The largest that is a number.
DEVICE float warp_max(float v) {
#pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2) v = larger(v, lane_xor(v, m));
    return v;
}

// Shared memory for the block functions below, for blocks of THREADS.
template <int THREADS> struct BlockScratch {
    static constexpr int WARPS = THREADS / WARP;
    float a[WARPS];
    float b[WARPS];
};

template <int THREADS> DEVICE void block_sum2(float& a, float& b, BlockScratch<THREADS>& s) {
    warp_sum2(a, b);
    if (lane() == 0) s.a[warp_id()] = a, s.b[warp_id()] = b;
    block_sync();
    a = s.a[0], b = s.b[0];
#pragma unroll
    for (int w = 1; w < BlockScratch<THREADS>::WARPS; ++w) a += s.a[w], b += s.b[w];
    block_sync();
}

template <int THREADS> DEVICE float block_sum(float v, BlockScratch<THREADS>& s) {
    v = warp_sum(v);
    if (lane() == 0) s.a[warp_id()] = v;
    block_sync();
    v = s.a[0];
#pragma unroll
    for (int w = 1; w < BlockScratch<THREADS>::WARPS; ++w) v += s.a[w];
    block_sync();
    return v;
}

template <int THREADS> DEVICE float block_max(float v, BlockScratch<THREADS>& s) {
    v = warp_max(v);
    if (lane() == 0) s.a[warp_id()] = v;
    block_sync();
    v = s.a[0];
#pragma unroll
    for (int w = 1; w < BlockScratch<THREADS>::WARPS; ++w) v = larger(v, s.a[w]);
    block_sync();
    return v;
}
