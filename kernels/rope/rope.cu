// rope: pairs (a, b) of a head's numbers turned by position * frequency: y = (a cos - b sin, b cos + a sin); dx is dy turned back.
// axes      x, y, dy, dx [rows, D] with rows = tokens * heads, half = D / 2; table [positions, 2, half] f32: cosines, then sines;
//           frequencies [half] f64, given as pairs of int; positions [positions] or null: then start, start + 1, ..
// types     T in {f32, bf16, f16}; angles in f64, less whole quarter turns; sines, cosines and products in f32
// launch    fwd_table: a thread an angle; fwd, bwd_dx: a thread W pairs of HEADS heads;
//           token t has position t mod positions
// paths     16-byte packs where they divide half and places allow it, else single pairs
// traffic   reads x once, writes y once; the table is kept between launches, unless positions are an input, and found in the caches
// order     every pair alone: same input, same bits
// budget    sm_80 88 registers, sm_90a 88, gfx90a 80, gfx942 80; no spills
// measured  H200, 2026-11-22, bf16, 4 x 4096 tokens, 32 heads of 128: 70 us, 91 % of the copy rate; with results that stay in the caches
//           74, with 4 heads a thread 72
// source    Su et al. 2021, section 3.2; sine and cosine by Taylor's series up to a quarter of pi, residual 2^-28

#include "common/math.cuh"
#include "common/pack.cuh"

constexpr int THREADS = 256;

#ifdef ON_NVIDIA
DEVICE double nearest(double x) { return rint(x); }
DEVICE double below(double x) { return floor(x); }
DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
DEVICE double nearest(double x) { return __builtin_rint(x); }
DEVICE double below(double x) { return __builtin_floor(x); }
DEVICE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

DEVICE void cosine_and_sine(double angle, float& cosine, float& sine) {
    double quarters = nearest(angle * 0.63661977236758138);
    float t = (float)fused(quarters, -1.5707963267948966, angle), z = mul(t, t);
    int turned = (int)fused(below(quarters * 0.25), -4.0, quarters);
    float s = 2.75573192e-6f;
    s = fmaf(s, z, -1.98412698e-4f);
    s = fmaf(s, z, 8.33333333e-3f);
    s = fmaf(s, z, -0.166666667f);
    s = fmaf(mul(s, z), t, t);
    float c = -2.75573192e-7f;
    c = fmaf(c, z, 2.48015873e-5f);
    c = fmaf(c, z, -1.38888889e-3f);
    c = fmaf(c, z, 4.16666667e-2f);
    c = fmaf(c, z, -0.5f);
    c = fmaf(c, z, 1.0f);
    cosine = turned % 2 ? s : c;
    sine = turned % 2 ? c : s;
    if (turned == 1 || turned == 2) cosine = -cosine;
    if (turned >= 2) sine = -sine;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_fwd_table(float* table, const int* positions, const int* frequencies, i64 start, i64 angles, int half) {
    follow();
    i64 at = (i64)block_x() * THREADS + thread();
    if (at >= angles) return;
    i64 row = quotient(at, half), i = at - row * half;
    double position = positions ? (double)positions[row] : (double)(start + row);
    float cosine, sine;
    cosine_and_sine(position * ((const double*)frequencies)[i], cosine, sine);
    table[row * 2 * half + i] = cosine;
    table[row * 2 * half + half + i] = sine;
}

template <int W> DEVICE void load_table(float (&v)[W], const float* at) {
    constexpr int EACH = W < 4 ? W : 4;
#pragma unroll
    for (int k = 0; k < W; k += EACH) {
        Pack<f32, EACH> p = load_kept<f32, EACH>(at + k);
#pragma unroll
        for (int i = 0; i < EACH; ++i) v[k + i] = p.get(i);
    }
}

// Heads of a thread: one token's, turned by the same angles, and all under way before the first is used.
constexpr int HEADS = 2;

struct Turn {
    const float* table;
    i64 tokens;
    i64 positions;
    int heads;
    int half;
    float sign;  // 1, or -1 to turn back

    // W pairs of up to HEADS heads, from place `at` of [tokens, groups of heads, half] on. Neighbours lie in one pack after the other,
    // halves in packs that are `half` apart.
    template <int W, bool ARE_NEIGHBOURS> DEVICE void run(T* to, const T* from, i64 at, int groups, int add) const {
        i64 row = quotient(at, half), i = at - row * half, token = quotient(row, groups);
        if (token >= tokens) return;
        int head = (int)(row - token * groups) * HEADS;
        const float* angles = table + modulo(token, positions) * 2 * half + i;
        i64 first = (token * heads + head) * 2 * half + (ARE_NEIGHBOURS ? 2 * i : i), apart = ARE_NEIGHBOURS ? W : half;
        Pack<T, W> x[HEADS], y[HEADS];
#pragma unroll
        for (int k = 0; k < HEADS; ++k) {
            if (head + k >= heads) break;
            const T* of_head = from + first + (i64)k * 2 * half;
            x[k] = load_once<T, W>(of_head), y[k] = load_once<T, W>(of_head + apart);
        }
        float cosine[W], sine[W];
        load_table<W>(cosine, angles);
        load_table<W>(sine, angles + half);
#pragma unroll
        for (int k = 0; k < HEADS; ++k) {
            if (head + k >= heads) break;
            T* of_head = to + first + (i64)k * 2 * half;
            turn<W, ARE_NEIGHBOURS>(of_head, of_head + apart, x[k], y[k], cosine, sine, add);
        }
    }

    template <int W, bool ARE_NEIGHBOURS>
    DEVICE void turn(
        T* to, T* apart, const Pack<T, W>& x, const Pack<T, W>& y, const float (&cosine)[W], const float (&sine)[W], int add) const {
        float low[W], high[W];
#pragma unroll
        for (int k = 0; k < W; ++k) {
            // Where a and b of pair k stand, and where their places are afterwards.
            int p = ARE_NEIGHBOURS ? 2 * k : k, q = ARE_NEIGHBOURS ? 2 * k + 1 : k + W;
            float a = p < W ? x.get(p) : y.get(p - W), b = q < W ? x.get(q) : y.get(q - W);
            float s = mul(sign, sine[k]), turned_a = mul(a, cosine[k]) - mul(b, s), turned_b = mul(b, cosine[k]) + mul(a, s);
            if (p < W) {
                low[p] = turned_a;
            } else {
                high[p - W] = turned_a;
            }
            if (q < W) {
                low[q] = turned_b;
            } else {
                high[q - W] = turned_b;
            }
        }
        if constexpr (W == WIDE<T>) {
            if (!add) {
                store_once<T, W>(to, low);
                store_once<T, W>(apart, high);
                return;
            }
        }
        put<T, W>(to, low, add);
        put<T, W>(apart, high, add);
    }

    template <bool ARE_NEIGHBOURS> DEVICE void all(T* to, const T* from, int add) const {
        constexpr int W = WIDE<T>;
        int groups = (heads + HEADS - 1) / HEADS;
        i64 begin = (i64)block_x() * (THREADS * W);
        if (half % W == 0 && is_aligned<16>(to) && is_aligned<16>(from) && is_aligned<16>(table)) {
            run<W, ARE_NEIGHBOURS>(to, from, begin + thread() * W, groups, add);
            return;
        }
        for (i64 at = begin + thread(); at < begin + THREADS * W; at += THREADS) run<1, ARE_NEIGHBOURS>(to, from, at, groups, add);
    }
};

DEVICE void turn_all(T* to, const T* from, const Turn& turn, int are_neighbours, int add) {
    if (are_neighbours) {
        turn.all<true>(to, from, add);
    } else {
        turn.all<false>(to, from, add);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    rope_fwd(T* y, const T* x, const float* table, i64 tokens, i64 positions, int heads, int half, int are_neighbours) {
    follow();
    turn_all(y, x, Turn{table, tokens, positions, heads, half, 1.0f}, are_neighbours, 0);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) rope_bwd_dx(
    T* dx, const T* dy, const float* table, i64 tokens, i64 positions, int heads, int half, int are_neighbours, int add_dx) {
    follow();
    turn_all(dx, dy, Turn{table, tokens, positions, heads, half, -1.0f}, are_neighbours, add_dx);
}
