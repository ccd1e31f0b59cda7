// adamw: m += follow (g - m); v = beta2 v + take g^2; p = keep p - rate m / (root sqrt(v) + eps), with g = factor * grad; for all at once.
// axes      param, m, v and what they were before, in the same place or another, and grad: [n], an arena; undecayed [ranges] pairs of
//           i64: places whose p is not multiplied by keep; one of half and brain, or none: [n], the new param in 16 bits
// types     T in {f32, bf16, f16}, the type of grad; m and v in f32 or, by name, in bf16; param in f32; the numbers of a step in f64
// rounding  param to its 16-bit shadow to the nearest; m and v to bf16 up with the probability of what is cut off: block i / 4 of Philox
//           stream `step` under `seed` gives the number at place i one word, whose lower half decides on m and whose upper half on v
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

#include "common/adamw.cuh"
#include "common/totals.cuh"

constexpr int PACKS = 2;

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

template <typename M, int W> struct Held {
    Old<M, W> old;
    Pack<T, W> grad;
    DEVICE void load(const Before<M>& from, const T* g, i64 at) {
        old.load(from, at);
        grad = load_once<T, W>(g + at);
    }
};

template <typename M, int W>
DEVICE void update(const State<M>& to, const Shadow& shadow, const Held<M, W>& held, i64 at, i64 first, const Rates& r,
                   const Undecayed& undecayed, const Dice& dice) {
    float g[W];
    held.grad.unpack(g);
    int k = undecayed.behind(at);
    step_pack<M, W>(to, shadow, held.old, g, at, first + at, r, dice, [&](int i) {
        while (k < undecayed.count && undecayed.end(k) <= at + i) ++k;
        return k == undecayed.count || at + i < undecayed.start(k);
    });
}

// The step of a block.
template <typename M>
DEVICE void step_of(const State<M>& to, const Shadow& shadow, const Before<M>& from, const T* grad, i64 n, i64 place, const Undecayed& spared,
                    const float* ready, Rates rates, Dice dice) {
    constexpr int W = 4;
    if (!is_made(ready, rates, dice)) return;
    i64 block = (i64)block_x() * (FLAT_THREADS * PACKS);
    if (are_aligned<W>(to, shadow, from) && is_aligned<sizeof(T) * W>(grad)) {
        i64 packs = n / W, first = block + thread();
        Held<M, W> held[PACKS];
#pragma unroll
        for (int k = 0; k < PACKS; ++k) {
            i64 at = first + k * FLAT_THREADS;
            if (at < packs) held[k].load(from, grad, at * W);
        }
#pragma unroll
        for (int k = 0; k < PACKS; ++k) {
            i64 at = first + k * FLAT_THREADS;
            if (at < packs) update<M, W>(to, shadow, held[k], at * W, place, rates, spared, dice);
        }
        // The numbers after the last whole pack.
        i64 at = packs * W + thread();
        if (block_x() == 0 && at < n) {
            Held<M, 1> one;
            one.load(from, grad, at);
            update<M, 1>(to, shadow, one, at, place, rates, spared, dice);
        }
        return;
    }
    i64 end = least(n, (block + FLAT_THREADS * PACKS) * W);
    for (i64 at = block * W + thread(); at < end; at += FLAT_THREADS) {
        Held<M, 1> one;
        one.load(from, grad, at);
        update<M, 1>(to, shadow, one, at, place, rates, spared, dice);
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
    step_of<f32>({param, m, v}, {half, brain}, {old_param, old_m, old_v}, grad, n, 0, {(const i64*)undecayed, ranges}, ready,
                {factor, keep, toward, beta2, take, rate, root, eps}, {0, 0});
}

// The same with moments in bf16, of the step `step` unless the device knows it; the first number is `place` of all that draw.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    adamw_fwd_stochastic(f32* param, bf16* m, bf16* v, f16* half, bf16* brain, const f32* old_param, const bf16* old_m, const bf16* old_v,
    const T* grad, i64 n, const int* undecayed, int ranges, const float* ready, float factor, float keep, float toward, float beta2,
    float take, float rate, float root, float eps, i64 seed, i64 step, i64 place) {
    follow();
    step_of<bf16>({param, m, v}, {half, brain}, {old_param, old_m, old_v}, grad, n, place, {(const i64*)undecayed, ranges}, ready,
                {factor, keep, toward, beta2, take, rate, root, eps}, {seed, step});
}
