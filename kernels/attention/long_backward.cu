// attention, long sequences: the gradients of q, k and v of 16-bit types, on devices without a text of their own: A100, MI200, MI300. As
// long.cu: own rows stay in registers, rows of the other side come into shared memory meanwhile.
// axes      q, dq, dy [B, Nq, H, d]; k, v, dk, dv [B, Nk, H / group, d]: a token's rows are `row` numbers apart, all multiples of 16 bytes;
//           bias [H, Nq, Nk]; lse, total [B, H, Nq]; lengths [B]; spoiled [B, H, tiles of MARKED queries] or [B, H / group, of keys]
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D in {64, 96, 128}: d is a multiple of 8, at most D
// launch    bwd_dkv: a block has 128 keys of a head, for all heads of its group; bwd_dq: 128 queries of a head, at D above 64 on NVIDIA 256
//           (with EXTRAS at 128 again 128). 4 or 8 warps, 32 rows of the other side a step; grid [tiles * B * heads]; shared memory: on
//           NVIDIA own rows of two tensors and two steps, on AMD one step
// paths     where nothing is hidden a step has no mask; where a hidden number may have spoiled a sum its tile is marked for the general
//           kernels, which run behind these
// matrix    HMMA on sm_80, sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for bf16 and f16
// traffic   own rows once; the other side's two tensors once for 128 own rows, out of the cache
// floor     dq apart from dk and dv is 7 products in place of 5, but there are no sums in memory, and no order that blocks wait for
// estimate  of clocks of a warp's step, counted in the code (bf16): matrix units / vector / its block's in shared memory. gfx90a at D of
//           128: dkv, 16 keys x 32 queries: 2048 / 880 / 2400 of two warps a SIMD; dq, 32 x 32: 3072 / 780 / 1000. At D of 64: dkv, 32 x
//           32: 2048 / 1140 / 640; dq 1536 / 740 / 500. On gfx942 matrix units take half the time: dkv at D of 128 is bound by shared
//           memory. About 55 % of the peak for these products on gfx90a, 40 % on gfx942. Not measured. sm_80: dkv at D of
//           128, of the whole multiprocessor: 256 / - / 288, for a fragment is used once; D of 64 and dq twice: 256 / - / 192
// measured  with mma.sync on an H200, 2026-11-22, both kernels to FlashAttention-2 of torch 2.11 in the same run, which adds dq in no order:
//           D 64: 0.89 (n 1024), 0.78 (4096), 0.74 (16384, 207 TFLOP/s of five products), causal 0.86; D 96: 0.75; D 128: 0.77 (2048), 0.67
//           (16384, 202 TFLOP/s), causal 0.72
// left      dkv with 64 queries a step and keys out of shared memory: 269 TFLOP/s of its products in place of 241 at D of 128, n 2048, with
//           a spill of 4 bytes on sm_80; at D of 64 it is slower
// conflicts AMD stores rows that are turned at half the rate; otherwise none
// order     the other side ascending, heads of a group ascending: same input, same bits; no atomics; no memory beyond what is there
// budget    sm_80 255 registers, sm_90a 255, gfx90a 256, gfx942 256; no spills
// source    Dao et al. 2022, algorithm 4; Dao 2023, section 3.1

#include "common/tiles.cuh"

// Warps of a block, tiles of 16 own rows of a warp and of 16 rows of the other side of a step, whether registers hold the own rows: keys
// for dk and dv, queries for dq.
#ifndef DKV_OWN
#define DKV_OWN (D <= 64 ? 2 : 1)
#endif
#ifndef DKV_TILES
#define DKV_TILES 2
#endif
#ifndef DKV_HOLDS
#define DKV_HOLDS (D > 64 && !EXTRAS)
#endif
#ifndef DQ_WARPS
#define DQ_WARPS (WARP == 64 || D <= 64 ? 4 : 8)
#endif
#ifndef DQ_OWN
#define DQ_OWN (WARP == 32 && D > 96 && EXTRAS ? 1 : 2)
#endif
#ifndef DQ_HOLDS
#define DQ_HOLDS (D <= 64 || DQ_OWN == 1)
#endif

constexpr int DKV_WARPS = 8 / DKV_OWN, DKV_ROWS = 128, DKV_THREADS = DKV_WARPS * WARP;
constexpr int DQ_ROWS = 16 * DQ_OWN * DQ_WARPS, DQ_THREADS = DQ_WARPS * WARP, DQ_TILES = 2;

// What the gradients need of a query: log2 of what its powers add up to, infinite where there are none, and the sum of dy * y.
struct About {
    float exponent, inner;
};

DEVICE About about_query(const f32* lse, const f32* total, int i, int count) {
    if (i >= count) return {infinity(), 0.0f};
    float l = with_plain_nan(lse[i]);
    return {l == -infinity() ? infinity() : l * LOG2_E, total[i]};
}

// Probabilities from scores, in place, and the gradients of scores from those of probabilities: `about(n)` is of number n's query.
template <typename F> DEVICE void to_slopes(Tile16& p, Tile16& dp, float factor, F about) {
#ifdef ON_AMD
#pragma unroll
    for (int i = 0; i < Tile16::NUMBERS; i += 2) {
        About a = about(i), b = about(i + 1);
        Two x = __builtin_elementwise_fma(Two{p.v[i], p.v[i + 1]}, Two{factor, factor}, -Two{a.exponent, b.exponent});
        Two y = {exp2_small(x.x), exp2_small(x.y)};
        Two d = y * (Two{dp.v[i], dp.v[i + 1]} - Two{a.inner, b.inner});
        p.v[i] = y.x, p.v[i + 1] = y.y, dp.v[i] = d.x, dp.v[i + 1] = d.y;
    }
#else
#pragma unroll
    for (int i = 0; i < Tile16::NUMBERS; ++i) {
        About a = about(i);
        p.v[i] = exp2_small(fmaf(p.v[i], factor, -a.exponent));
        dp.v[i] = p.v[i] * (dp.v[i] - a.inner);
    }
#endif
}

// What the query of a number does not see is nothing, whatever it holds: `range(n)` is of number n's query, `key(n)` its key.
template <typename F, typename G> DEVICE void hide(Tile16& s, Tile16& dp, F range, G key) {
#pragma unroll
    for (int i = 0; i < Tile16::NUMBERS; ++i) {
        Range r = range(i);
        bool is_hidden = key(i) < r.first || key(i) >= r.last;
        s.v[i] = is_hidden ? -infinity() : s.v[i], dp.v[i] = is_hidden ? 0.0f : dp.v[i];
    }
}
// Of one key the probability is 1 whatever its score: the difference was only rounding.
template <typename F> DEVICE void settle(Tile16& ds, F range) {
#pragma unroll
    for (int i = 0; i < Tile16::NUMBERS; ++i) {
        Range r = range(i);
        ds.v[i] = r.last - r.first == 1 ? 0.0f * ds.v[i] : ds.v[i];
    }
}

// Numbers whose bit is set times a factor, the others 0.
DEVICE void keep(Tile16& x, u32 bits, float factor) {
#pragma unroll
    for (int i = 0; i < Tile16::NUMBERS; ++i) x.v[i] = bits >> i & 1 ? x.v[i] * factor : 0.0f;
}

// The products of a step: own rows times those of the other side, twice.
template <typename FA, typename FB, int R, int N, typename A, typename B>
DEVICE void multiply_twice(Tile16 (&s)[R][N], Tile16 (&g)[R][N], const A& a, T* a_at, const B& b, T* b_at, T* fa_at, T* fb_at) {
#pragma unroll
    for (int c = 0; c < TILES; c += 2) {
        Frag16<T> x[R][2], y[R][2];
#pragma unroll
        for (int m = 0; m < R; ++m) a.load(x[m], a_at, m, c), b.load(y[m], b_at, m, c);
#pragma unroll
        for (int t = 0; t < N; ++t) {
            Frag16<T> f[2];
            FA::load_straight(f, fa_at, t * 16, c * 16);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int m = 0; m < R; ++m) multiply_own(s[m][t], x[m][h], f[h]);
            FB::load_straight(f, fb_at, t * 16, c * 16);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int m = 0; m < R; ++m) multiply_own(g[m][t], y[m][h], f[h]);
        }
    }
}

// sum += weights times the rows of the other side.
template <typename F, int R, int N> DEVICE void add_weighed(Tile16 (&sum)[R][TILES], const Frag16<T> (&weight)[R][N], T* at) {
#pragma unroll
    for (int c = 0; c < TILES; ++c) {
#pragma unroll
        for (int t = 0; t < N; t += 2) {
            Frag16<T> f[2];
            F::load_turned(f, at, t * 16, c * 16);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int m = 0; m < R; ++m) multiply_own(sum[m][c], weight[m][t + h], f[h]);
        }
    }
}

template <int R, int COLUMNS> DEVICE void clear(Tile16 (&x)[R][COLUMNS]) {
#pragma unroll
    for (int m = 0; m < R; ++m)
#pragma unroll
        for (int t = 0; t < COLUMNS; ++t) x[m][t].clear();
}

// dk and dv: 128 keys of a head a block, against all queries that see them, of all heads of the group.
extern "C" __global__ void __launch_bounds__(DKV_THREADS, DKV_OWN) __warps_at_once__(2)
    attention_long_bwd_dkv(T* dk, T* dv, int* spoiled, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse,
                           const f32* total, const int* lengths, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row, int nq,
                           int nk, int heads, int group, int batch, int d, float scale, int before, int after, i64 seed, i64 stream,
                           int reach, float kept_scale, int add_dk, int add_dv) {
    follow();
    constexpr int R = DKV_OWN, QT = DKV_TILES, STEP = 16 * QT;
    extern __shared__ T memory[];
    using Rows = Own<T, R, D, DKV_THREADS, DKV_HOLDS>;
    using LateRows = Own<T, R, D, DKV_THREADS, WARP == 64>;
    using Queries = Feed<T, STEP, D, DKV_THREADS, true, true, 2>;
    const int tiles = (nk + DKV_ROWS - 1) / DKV_ROWS, kv_heads = heads / group;
    Place at(tiles, kv_heads, batch, false);
    const int k0 = at.tile * DKV_ROWS, mine = warp_number() * R * 16, first = k0 + mine;
    const Mask mask{nq, nk, lengths ? lengths[at.sample] : nk, before, after};
    const Dropping dropping{seed, stream, reach, kept_scale};
    const i64 k_first = k_at + at.sample * nk * k_row + at.head * d, v_first = v_at + at.sample * nk * v_row + at.head * d;
    const float factor = scale * LOG2_E;
    T* value_rows = memory + Rows::NUMBERS;
    auto place = [&](int n) { return value_rows + Rows::NUMBERS + n % PLACES * 2 * Queries::NUMBERS; };
    // What is known of each query of a step: two numbers beside each other; on AMD first those of all queries, then the others.
    float* stats = (float*)(value_rows + Rows::NUMBERS + PLACES * 2 * Queries::NUMBERS);
    auto about = [&](int n, int i) { return stats + (WARP == 64 ? i : (n % PLACES * STEP + i) * 2); };

    // All steps: those of each head of the group.
    const Range seen{mask.first_query(k0), mask.end_query((int)least(k0 + DKV_ROWS, mask.length) - 1)};
    const int low = seen.first / STEP, each = seen.last > seen.first ? (seen.last + STEP - 1) / STEP - low : 0, steps = each * group;
    Queries feed;
    float carried[2] = {0.0f, 0.0f};
    auto begin = [&](int n) {
        int g = n / each, i0 = (low + n - g * each) * STEP;
        i64 head = at.head * group + g, row = (at.sample * (i64)heads + head) * nq;
        Vectors<T> qs{q + q_at + at.sample * nq * q_row + head * d, q_row, nq, d};
        Vectors<T> dys{dy + (at.sample * nq * heads + head) * d, (i64)heads * d, nq, d};
        feed.begin(place(n), qs.from(i0), dys.from(i0));
        if (thread() < STEP) {
            About a = about_query(lse + row, total + row, i0 + thread(), nq);
            carried[0] = a.exponent, carried[1] = a.inner;
        }
    };
    Rows keys;
    LateRows values;
    keys.begin(memory, Vectors<T>{k + k_first, k_row, mask.length, d}.from(k0));
    values.begin(value_rows, Vectors<T>{v + v_first, v_row, mask.length, d}.from(k0));
    if (steps > 0) begin(0);
    copies_end();
    block_sync();
    keys.end(memory), values.end(value_rows);
    Tile16 dks[R][TILES], dvs[R][TILES];
    clear(dks), clear(dvs);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        T *q_place = place(step), *dy_place = q_place + Queries::NUMBERS;
        if (PLACES == 1) block_sync();
        feed.end(q_place);
        if (thread() < STEP) {
            float* mine = about(step, thread());
            if constexpr (WARP == 64) {
                mine[0] = carried[0], mine[STEP] = carried[1];
            } else {
                store<f32, 2>(mine, carried);
            }
        }
        copies_end();
        block_sync();
        if (step + 1 < steps) begin(step + 1);
        const int g = step / each, i0 = (low + step - g * each) * STEP;
        const Range any = seen_by_any(mask, i0, i0 + STEP - 1), all = seen_by_all(mask, i0, i0 + STEP - 1);
        if (first >= any.last || first + R * 16 <= any.first) continue;
        const bool is_edge = first < all.first || first + R * 16 > all.last;
        const i64 head = at.head * group + g;
        Tile16 s[R][QT], ds[R][QT];
        clear(s), clear(ds);
        if (EXTRAS && bias) {
#pragma unroll
            for (int m = 0; m < R; ++m)
#pragma unroll
                for (int t = 0; t < QT; ++t) {
                    int i = i0 + t * 16, j = first + m * 16;
                    start_with(s[m][t], bias + (head * nq + i) * nk + j, 1, nk, nk - j, nq - i, scale);
                }
        }
        multiply_twice<Queries, Queries>(s, ds, keys, memory, values, value_rows, q_place, dy_place);
        Frag16<T> weight[R][QT], slope[R][QT];
#pragma unroll
        for (int m = 0; m < R; ++m)
#pragma unroll
            for (int t = 0; t < QT; ++t) {
                const int i = i0 + t * 16, j = first + m * 16;
                auto range = [&](int n) { return seen_by(mask, i + other(n)); };
                if (is_edge) hide(s[m][t], ds[m][t], range, [&](int n) { return j + own(n); });
                u32 kept = 0;
                if (EXTRAS && reach) {
                    kept = kept_of_keys(dropping, (u32)(at.sample * heads + head) * Dropping::tiles(nq) + i / 16, j);
                    keep(ds[m][t], kept, kept_scale);
                }
#ifdef ON_AMD
                const float* theirs = about(step, t * 16 + other(0));
                const Pack<f32, 4> exponents = load_kept<f32, 4>(theirs), inners = load_kept<f32, 4>(theirs + STEP);
                to_slopes(s[m][t], ds[m][t], factor, [&](int n) { return About{exponents.get(n), inners.get(n)}; });
#else
                to_slopes(s[m][t], ds[m][t], factor, [&](int n) {
                    Pack<f32, 2> two = load_kept<f32, 2>(about(step, t * 16 + other(n)));
                    return About{two.get(0), two.get(1)};
                });
#endif
                if (is_edge && all.last - all.first <= 1) settle(ds[m][t], range);
                if (EXTRAS && reach) keep(s[m][t], kept, 1.0f);
                load_rounded<T>(weight[m][t], s[m][t]);
                load_rounded<T>(slope[m][t], ds[m][t]);
            }
        add_weighed<Queries>(dvs, weight, dy_place);
        add_weighed<Queries>(dks, slope, q_place);
    }
    block_sync();
    // What stands beyond the last key is nothing, whatever it was multiplied with.
    float share = EXTRAS && reach ? kept_scale : 1.0f;
#pragma unroll
    for (int m = 0; m < R; ++m)
#pragma unroll
        for (int c = 0; c < TILES; ++c)
#pragma unroll
            for (int i = 0; i < Tile16::NUMBERS; ++i) {
                bool is_there = first + m * 16 + own(i) < mask.length;
                dks[m][c].v[i] = is_there ? dks[m][c].v[i] * scale : 0.0f, dvs[m][c].v[i] = is_there ? dvs[m][c].v[i] * share : 0.0f;
            }
    if (spoiled) {
        int slabs = (nk + MARKED - 1) / MARKED;
        int* of_head = spoiled + ((i64)at.sample * kv_heads + at.head) * slabs;
        if (mark<R, DKV_WARPS>(of_head, is_any_odd(dks) || is_any_odd(dvs), at.tile, nk)) return;
    }
    if (dk) store_tiles<R>({nullptr, k_row, nk - k0, d}, dk + k_first + k0 * k_row, memory, mine, dks, add_dk);
    warp_sync();
    if (dv) store_tiles<R>({nullptr, v_row, nk - k0, d}, dv + v_first + k0 * v_row, memory, mine, dvs, add_dv);
}

// dq: DQ_ROWS queries of a head a block, against all keys that they see.
extern "C" __global__ void __launch_bounds__(DQ_THREADS, 8 / DQ_WARPS) __warps_at_once__(2)
    attention_long_bwd_dq(T* dq, int* spoiled, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse,
                          const f32* total, const int* lengths, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row, int nq,
                          int nk, int heads, int group, int batch, int d, float scale, int before, int after, i64 seed, i64 stream,
                          int reach, float kept_scale, int add_dq) {
    follow();
    constexpr int R = DQ_OWN, KT = DQ_TILES, STEP = 16 * KT;
    extern __shared__ T memory[];
    using Rows = Own<T, R, D, DQ_THREADS, DQ_HOLDS>;
    using Keys = Feed<T, STEP, D, DQ_THREADS, true, true>;
    using Values = Feed<T, STEP, D, DQ_THREADS, true, false>;
    const int tiles = (nq + DQ_ROWS - 1) / DQ_ROWS;
    Place at(tiles, heads, batch, after < nk);
    const int q0 = at.tile * DQ_ROWS, mine = warp_number() * R * 16, first = q0 + mine;
    const Mask mask{nq, nk, lengths ? lengths[at.sample] : nk, before, after};
    const Dropping dropping{seed, stream, reach, kept_scale};
    const i64 kv = (i64)(at.head / group) * d, row = ((i64)at.sample * heads + at.head) * nq;
    const i64 q_first = q_at + at.sample * nq * q_row + at.head * d;
    Vectors<T> ks{k + k_at + at.sample * nk * k_row + kv, k_row, mask.length, d};
    Vectors<T> vs{v + v_at + at.sample * nk * v_row + kv, v_row, mask.length, d};
    const float factor = scale * LOG2_E;
    T* dy_rows = memory + Rows::NUMBERS;
    auto place = [&](int step) { return dy_rows + Rows::NUMBERS + step % PLACES * (Keys::NUMBERS + Values::NUMBERS); };
    const Range seen = seen_by_any(mask, q0, (int)least(q0 + DQ_ROWS, nq) - 1), here = seen_by_any(mask, first, first + R * 16 - 1);
    const Range whole = seen_by_all(mask, first, first + R * 16 - 1);
    const int begin = seen.first / STEP, end = (seen.last + STEP - 1) / STEP;
    Rows queries, dys;
    Keys key_feed;
    Values value_feed;
    queries.begin(memory, Vectors<T>{q + q_first, q_row, nq, d}.from(q0));
    dys.begin(dy_rows, Vectors<T>{dy + (at.sample * (i64)nq * heads + at.head) * d, (i64)heads * d, nq, d}.from(q0));
    if (begin < end) {
        key_feed.begin(place(begin), ks.from(begin * STEP));
        value_feed.begin(place(begin) + Keys::NUMBERS, vs.from(begin * STEP));
    }
    About about[R][HELD];
#pragma unroll
    for (int m = 0; m < R; ++m)
#pragma unroll
        for (int n = 0; n < HELD; ++n) about[m][n] = about_query(lse + row, total + row, first + m * 16 + held_row(n), nq);
    copies_end();
    block_sync();
    queries.end(memory), dys.end(dy_rows);
    Tile16 sum[R][TILES];
    clear(sum);
#pragma unroll 1
    for (int step = begin; step < end; ++step) {
        T *key_place = place(step), *value_place = key_place + Keys::NUMBERS;
        const int j0 = step * STEP;
        if (PLACES == 1) block_sync();
        key_feed.end(key_place), value_feed.end(value_place);
        copies_end();
        block_sync();
        if (step + 1 < end) {
            key_feed.begin(place(step + 1), ks.from(j0 + STEP));
            value_feed.begin(place(step + 1) + Keys::NUMBERS, vs.from(j0 + STEP));
        }
        if (j0 >= here.last || j0 + STEP <= here.first) continue;
        const bool is_edge = j0 < whole.first || j0 + STEP > whole.last;
        Tile16 s[R][KT], ds[R][KT];
        clear(s), clear(ds);
        if (EXTRAS && bias) {
#pragma unroll
            for (int m = 0; m < R; ++m)
#pragma unroll
                for (int t = 0; t < KT; ++t) {
                    int i = first + m * 16, j = j0 + t * 16;
                    start_with(s[m][t], bias + ((i64)at.head * nq + i) * nk + j, nk, 1, nq - i, nk - j, scale);
                }
        }
        multiply_twice<Keys, Values>(s, ds, queries, memory, dys, dy_rows, key_place, value_place);
        Frag16<T> slope[R][KT];
#pragma unroll
        for (int m = 0; m < R; ++m)
#pragma unroll
            for (int t = 0; t < KT; ++t) {
                const int i = first + m * 16, j = j0 + t * 16;
                auto range = [&](int n) { return seen_by(mask, i + own(n)); };
                if (is_edge) hide(s[m][t], ds[m][t], range, [&](int n) { return j + other(n); });
                if (EXTRAS && reach) keep(ds[m][t], kept_of_queries(dropping, (at.sample * heads + at.head) * Dropping::tiles(nq) + i / 16, j), kept_scale);
                to_slopes(s[m][t], ds[m][t], factor, [&](int n) { return about[m][held(n)]; });
                if (is_edge && whole.last - whole.first <= 1) settle(ds[m][t], range);
                load_rounded<T>(slope[m][t], ds[m][t]);
            }
        add_weighed<Keys>(sum, slope, key_place);
    }
    block_sync();
    if (spoiled) {
        int slabs = (nq + MARKED - 1) / MARKED;
        int* of_head = spoiled + ((i64)at.sample * heads + at.head) * slabs;
        if (mark<R, DQ_WARPS>(of_head, is_any_odd(sum), at.tile, nq)) return;
    }
#pragma unroll
    for (int m = 0; m < R; ++m)
#pragma unroll
        for (int c = 0; c < TILES; ++c)
#pragma unroll
            for (int i = 0; i < Tile16::NUMBERS; ++i) sum[m][c].v[i] *= scale;
    store_tiles<R>({nullptr, q_row, nq - q0, d}, dq + q_first + q0 * q_row, memory, mine, sum, add_dq);
}
