// adamw: the arithmetic of a step on the numbers of a pack, whoever has their gradients: adamw, adamw_product.
// rounding  moments to bf16 up with the probability of what is cut off: see kernels/adamw/adamw.cu
// order     every number alone, rounded as on the CPU: same input, same bits

#pragma once
#include "common/math.cuh"
#include "common/pack.cuh"
#include "common/rng.cuh"

// The numbers of one step, as the CPU's path has them.
struct Rates {
    float factor, keep, follow, beta2, take, rate, root, eps;
};

// The same where the device made them, whether there is no step at all, and which it is, in halves.
struct Ready {
    Rates rates;
    float is_skipped;
    u32 step[2];
};

// Where the moments' random bits come from.
struct Dice {
    i64 seed, step;
};

// A finite number between two of bf16 becomes either, the nearer one the more often, so that what a step is too small to change it does
// change on the average.
DEVICE bf16 rounded_by(float x, u32 random) {
    u32 bits = bits_of(x);
    bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
    u32 up = is_finite ? bits + (random & 0xffffu) : x == x ? bits : bits | 0x400000u;
    return bf16{(u16)(up >> 16)};
}

template <typename M> struct State {
    f32* param;
    M *m, *v;
};
template <typename M> struct Before {
    const f32* param;
    const M *m, *v;
};
struct Shadow {
    f16* half;
    bf16* brain;
};

// A pack as it was.
template <typename M, int W> struct Old {
    Pack<f32, W> param;
    Pack<M, W> m, v;
    DEVICE void load(const Before<M>& from, i64 at) {
        param = load_once<f32, W>(from.param + at);
        m = load_once<M, W>(from.m + at);
        v = load_once<M, W>(from.v + at);
    }
};

// Whether packs of W numbers lie where they can be moved at once.
template <int W, typename M> DEVICE bool are_aligned(const State<M>& to, const Shadow& shadow, const Before<M>& from) {
    return is_aligned<4 * W>(from.param) && is_aligned<sizeof(M) * W>(from.m) && is_aligned<sizeof(M) * W>(from.v) &&
           is_aligned<2 * W>(shadow.half) && is_aligned<2 * W>(shadow.brain) && is_aligned<4 * W>(to.param) &&
           is_aligned<sizeof(M) * W>(to.m) && is_aligned<sizeof(M) * W>(to.v);
}

// The moments as they are kept.
template <int W> DEVICE void keep_moments(const State<f32>& to, const float (&mean)[W], const float (&square)[W], i64 at, i64, const Dice&) {
    store<f32, W>(to.m + at, mean);
    store<f32, W>(to.v + at, square);
}
template <int W>
DEVICE void keep_moments(const State<bf16>& to, const float (&mean)[W], const float (&square)[W], i64 at, i64 named, const Dice& dice) {
    u32 word[4];
    if constexpr (W == 4) {
        philox(word, dice.seed, dice.step, named >> 2);
        Pack<bf16, 4> m, v;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            u32 low = word[2 * i], high = word[2 * i + 1];
            m.word[i] = rounded_by(mean[2 * i], low).bits | (u32)rounded_by(mean[2 * i + 1], high).bits << 16;
            v.word[i] = rounded_by(square[2 * i], low >> 16).bits | (u32)rounded_by(square[2 * i + 1], high >> 16).bits << 16;
        }
        store<bf16, 4>(to.m + at, m);
        store<bf16, 4>(to.v + at, v);
    } else {
        word[0] = drawn_bits(dice.seed, dice.step, named);
        to.m[at] = rounded_by(mean[0], word[0]);
        to.v[at] = rounded_by(square[0], word[0] >> 16);
    }
}

// The pack at `at`, whose gradients are g; `decays(i)`: whether the i-th number does. Random numbers are those of place `named`.
template <typename M, int W, typename Decays>
DEVICE void step_pack(const State<M>& to, const Shadow& shadow, const Old<M, W>& old, const float (&g)[W], i64 at, i64 named,
                      const Rates& r, const Dice& dice, Decays decays) {
    float p[W], mean[W], square[W];
#pragma unroll
    for (int i = 0; i < W; ++i) {
        float scaled = mul(r.factor, g[i]);
        mean[i] = old.m.get(i) + mul(r.follow, scaled - old.m.get(i));
        square[i] = mul(r.beta2, old.v.get(i)) + mul(r.take, mul(scaled, scaled));
        float step = divide(mean[i], mul(r.root, square_root(square[i])) + r.eps);
        p[i] = mul(decays(i) ? r.keep : 1.0f, old.param.get(i)) - mul(r.rate, step);
    }
    store<f32, W>(to.param + at, p);
    keep_moments<W>(to, mean, square, at, named, dice);
    if (shadow.brain) store<bf16, W>(shadow.brain + at, p);
    if (shadow.half) store<f16, W>(shadow.half + at, p);
}

// The numbers of a step, where the device made them; whether there is a step.
DEVICE bool is_made(const float* ready, Rates& rates, Dice& dice) {
    if (!ready) return true;
    Ready made = *(const Ready*)ready;
    rates = made.rates;
    dice.step = (i64)((u64)made.step[1] << 32 | made.step[0]);
    return made.is_skipped == 0.0f;
}
