// adamw: m += follow (g - m); v = beta2 v + take g^2; p = keep p - rate m / (root sqrt(v) + eps), with g = factor * grad; for all at once.
// axes      param, m, v and what they were before, in the same place or another, and grad: [n], an arena; undecayed [ranges] pairs of
//           i64: places whose p is not multiplied by keep; one of half and brain, or none: [n], the new param in 16 bits
// types     T in {f32, bf16, f16}, the type of grad; m and v in f32 or, by name, in bf16; param in f32; the numbers of a step in f64
// rounding  param to its 16-bit shadow to the nearest; m and v to bf16 up with the probability of what is cut off: block i / 4 of Philox
//           stream `step` under `seed` gives element i one word, whose lower half decides on m and whose upper half on v
// launch    flat: a block covers 2048 numbers; where the device knows the step, one thread first makes its numbers
// skip      with `ready`, whose last number is not 0, nothing is written: gradients that are not finite
// paths     packs of 4 numbers, 2 a thread, where all arenas are aligned to them, else single numbers
// traffic   reads param, m, v, grad, writes param, m, v, and a shadow if there is one, each once; a pack looks the ranges up by halving
// order     every number alone, rounded as on the CPU: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 48, gfx942 48; no spills
// measured  H200, 2026-11-22: global_norm and this over 302 M parameters in f32 2.43 ms, 1.07 times 32 bytes a parameter at the copy rate;
//           PyTorch's unscale, clip and fused step in the same run 5.73 ms; 2026-11-23, this alone, of the copy rate: 2.11 ms, 95.6 %, with
//           a shadow 2.26, 95.7, with moments in bf16 1.51, 95.4, with both 1.67, 94.9
// source    Loshchilov, Hutter 2019, algorithm 2; Gupta et al. 2015, "Deep learning with limited numerical precision", section 3.1

#include "common/rng.cuh"
#include "common/totals.cuh"

constexpr int PACKS = 2;

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

// Ascending ranges that lie apart.
struct Undecayed {
    const i64* edges;
    int count;
    DEVICE i64 start(int k) const { return edges[2 * k]; }
    DEVICE i64 end(int k) const { return edges[2 * k + 1]; }
    // The first range that ends behind `at`.
    DEVICE int behind(i64 at) const {
        int low = 0, high = count;
        while (low < high) {
            int middle = (low + high) / 2;
            if (end(middle) > at) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        return low;
    }
};

template <typename M> struct State {
    f32* param;
    M *m, *v;
};
template <typename M> struct Before {
    const f32* param;
    const M *m, *v;
    const T* grad;
};
struct Shadow {
    f16* half;
    bf16* brain;
};

template <typename M, int W> struct Held {
    Pack<f32, W> param;
    Pack<M, W> m, v;
    Pack<T, W> grad;
    DEVICE void load(const Before<M>& from, i64 at) {
        param = load_once<f32, W>(from.param + at);
        m = load_once<M, W>(from.m + at);
        v = load_once<M, W>(from.v + at);
        grad = load_once<T, W>(from.grad + at);
    }
};

// The moments as they are kept.
template <int W> DEVICE void keep_moments(const State<f32>& to, const float (&mean)[W], const float (&square)[W], i64 at, const Dice&) {
    store<f32, W>(to.m + at, mean);
    store<f32, W>(to.v + at, square);
}
template <int W>
DEVICE void keep_moments(const State<bf16>& to, const float (&mean)[W], const float (&square)[W], i64 at, const Dice& dice) {
    u32 word[4];
    if constexpr (W == 4) {
        philox(word, dice.seed, dice.step, at >> 2);
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
        word[0] = drawn_bits(dice.seed, dice.step, at);
        to.m[at] = rounded_by(mean[0], word[0]);
        to.v[at] = rounded_by(square[0], word[0] >> 16);
    }
}

template <typename M, int W>
DEVICE void update(const State<M>& to, const Shadow& shadow, const Held<M, W>& old, i64 at, const Rates& r, const Undecayed& undecayed,
                   const Dice& dice) {
    float p[W], mean[W], square[W];
    int k = undecayed.behind(at);
#pragma unroll
    for (int i = 0; i < W; ++i) {
        while (k < undecayed.count && undecayed.end(k) <= at + i) ++k;
        bool decays = k == undecayed.count || at + i < undecayed.start(k);
        float g = mul(r.factor, old.grad.get(i));
        mean[i] = old.m.get(i) + mul(r.follow, g - old.m.get(i));
        square[i] = mul(r.beta2, old.v.get(i)) + mul(r.take, mul(g, g));
        float step = divide(mean[i], mul(r.root, square_root(square[i])) + r.eps);
        p[i] = mul(decays ? r.keep : 1.0f, old.param.get(i)) - mul(r.rate, step);
    }
    store<f32, W>(to.param + at, p);
    keep_moments<W>(to, mean, square, at, dice);
    if (shadow.brain) store<bf16, W>(shadow.brain + at, p);
    if (shadow.half) store<f16, W>(shadow.half + at, p);
}

// The step of a block.
template <typename M>
DEVICE void step_of(const State<M>& to, const Shadow& shadow, const Before<M>& from, i64 n, const Undecayed& spared, const float* ready,
                    Rates rates, Dice dice) {
    constexpr int W = 4;
    if (ready) {
        Ready made = *(const Ready*)ready;
        if (made.is_skipped != 0.0f) return;
        rates = made.rates;
        dice.step = (i64)((u64)made.step[1] << 32 | made.step[0]);
    }
    i64 block = (i64)block_x() * (FLAT_THREADS * PACKS);
    bool all_aligned = is_aligned<16>(from.param) && is_aligned<sizeof(M) * W>(from.m) && is_aligned<sizeof(M) * W>(from.v) &&
                       is_aligned<sizeof(T) * W>(from.grad) && is_aligned<8>(shadow.half) && is_aligned<8>(shadow.brain);
    if (all_aligned && is_aligned<16>(to.param) && is_aligned<sizeof(M) * W>(to.m) && is_aligned<sizeof(M) * W>(to.v)) {
        i64 packs = n / W, first = block + thread();
        Held<M, W> held[PACKS];
#pragma unroll
        for (int k = 0; k < PACKS; ++k) {
            i64 at = first + k * FLAT_THREADS;
            if (at < packs) held[k].load(from, at * W);
        }
#pragma unroll
        for (int k = 0; k < PACKS; ++k) {
            i64 at = first + k * FLAT_THREADS;
            if (at < packs) update<M, W>(to, shadow, held[k], at * W, rates, spared, dice);
        }
        // The numbers after the last whole pack.
        i64 at = packs * W + thread();
        if (block_x() == 0 && at < n) {
            Held<M, 1> one;
            one.load(from, at);
            update<M, 1>(to, shadow, one, at, rates, spared, dice);
        }
        return;
    }
    i64 end = least(n, (block + FLAT_THREADS * PACKS) * W);
    for (i64 at = block * W + thread(); at < end; at += FLAT_THREADS) {
        Held<M, 1> one;
        one.load(from, at);
        update<M, 1>(to, shadow, one, at, rates, spared, dice);
    }
}

// b^t by squaring.
DEVICE double power(double b, u64 t) {
    double all = 1.0;
    for (; t > 0; t >>= 1) {
        if (t & 1) all *= b;
        b *= b;
    }
    return all;
}

struct Rule {
    double beta1, beta2, eps, decay;
};

// One thread: the numbers of the step after `updates`, which it counts if gradients are finite. updates is an i64, lr a double.
extern "C" __global__ void __launch_bounds__(64)
    adamw_fwd_ready(float* ready, int* updates, const int* lr, const float* factor, const float* finite, Rule rule) {
    follow();
    if (thread() > 0) return;
    u64* count = (u64*)updates;
    bool is_skipped = *finite == 0.0f;
    u64 step = *count + 1;
    double size = *(const double*)lr;
    Ready made{};
    made.is_skipped = is_skipped ? 1.0f : 0.0f;
    made.step[0] = (u32)step, made.step[1] = (u32)(step >> 32);
    made.rates = Rates{*factor,
                       (float)(1.0 - size * rule.decay),
                       (float)(1.0 - rule.beta1),
                       (float)rule.beta2,
                       (float)(1.0 - rule.beta2),
                       (float)(size / (1.0 - power(rule.beta1, step))),
                       (float)(1.0 / square_root(1.0 - power(rule.beta2, step))),
                       (float)rule.eps};
    *(Ready*)ready = made;
    if (!is_skipped) *count = step;
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    adamw_fwd(f32* param, f32* m, f32* v, f16* half, bf16* brain, const f32* old_param, const f32* old_m, const f32* old_v,
    const T* grad, i64 n, const int* undecayed, int ranges, const float* ready, float factor, float keep, float toward, float beta2,
    float take, float rate, float root, float eps) {
    follow();
    step_of<f32>({param, m, v}, {half, brain}, {old_param, old_m, old_v, grad}, n, {(const i64*)undecayed, ranges}, ready,
                {factor, keep, toward, beta2, take, rate, root, eps}, {0, 0});
}

// The same with moments in bf16, of the step `step` unless the device knows it.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    adamw_fwd_stochastic(f32* param, bf16* m, bf16* v, f16* half, bf16* brain, const f32* old_param, const bf16* old_m, const bf16* old_v,
    const T* grad, i64 n, const int* undecayed, int ranges, const float* ready, float factor, float keep, float toward, float beta2,
    float take, float rate, float root, float eps, i64 seed, i64 step) {
    follow();
    step_of<bf16>({param, m, v}, {half, brain}, {old_param, old_m, old_v, grad}, n, {(const i64*)undecayed, ranges}, ready,
                {factor, keep, toward, beta2, take, rate, root, eps}, {seed, step});
}
