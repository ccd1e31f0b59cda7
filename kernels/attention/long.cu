// attention, long sequences: a warp keeps its queries, scores and sums in registers and walks the keys, which come into shared memory
// meanwhile. Forward, of 16-bit types, on devices without a text of their own: A100, MI200, MI300.
// axes      q, y [B, Nq, H, d]; k, v [B, Nk, H / group, d]: a token's rows are `row` numbers apart, all multiples of 16 bytes; bias
//           [H, Nq, Nk]; lse [B, H, Nq]; lengths [B]; spoiled [B, H, tiles of MARKED queries]
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D in {64, 96, 128}: d is a multiple of 8, at most D
// launch    a block has 128 queries of a head: 4 warps of 32 (with EXTRAS at D of 128 on NVIDIA 8 of 16) and FWD_KEYS * 16 keys a step;
//           grid [tiles * B * H]; shared memory: on NVIDIA queries and two steps of keys and values, on AMD one step
// paths     where nothing is hidden a step has no mask; with a mask, causal or sliding, steps that nobody sees are left out, and a tile
//           whose sums a hidden number may have spoiled is marked for the general kernel, which runs behind this one
// matrix    HMMA on sm_80, sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for bf16 and f16
// traffic   q and y once; k and v once for 128 queries, out of the cache where blocks of a head run at the same time
// floor     two products: 4 D FLOPs a pair, in clocks of a multiprocessor D / 512 on A100, D / 256 on MI200, D / 512 on MI300
// estimate  of clocks of a warp's step, counted in the code (bf16): matrix units / vector or issue / its share of shared memory.
//           sm_80, 32 queries x 32 keys, of the whole multiprocessor: D 64: 128 / - / 64; D 128: 256 / - / 192, 8 warps
//           gfx90a, 32 x 64, of a SIMD: D 64: 2048 / 1320 / 640; D 128: 4096 / 1460 / 1280; two or three warps a SIMD: 60 to 70 % of the
//           peak. gfx942: D 64: 1024 / 1320 / 640, bound by exponentials and rounding; D 128: 2048 / 1460 / 1280: 45 and 60 %. Not measured
// measured  with mma.sync on an H200, 2026-11-22, to FlashAttention-2 of torch 2.11 in the same run: D 64: 1.06 (n 1024), 1.12 (4096), 1.15
//           (16384, 348 TFLOP/s), causal 1.10; D 128: 0.93 (2048), 0.97 (16384, 339 TFLOP/s), causal 0.98; D 96 (n 4050): 0.83
// left      at D of 128 64 keys a step are 6 % faster on an H200, but leave an A100 one block of 4 warps; D of 96 has no reason yet
// conflicts none: 16 bytes a lane of 8 rows next to each other touch all banks, stored or read, as they lie or turned
// order     keys ascending: same input, same bits; no atomics
// budget    sm_80 255 registers, sm_90a 255, gfx90a 256, gfx942 256; no spills
// source    Dao 2023, algorithm 1, sections 3.2 and 3.3; the maximum is renewed only when it grows by 2^8: Zadouri et al. 2025

#include "common/tiles.cuh"

// Tiles of 16 queries of a warp and of 16 keys of a step, whether registers hold the queries, blocks at once.
#ifndef FWD_OWN
#define FWD_OWN (WARP == 32 && D > 96 && EXTRAS ? 1 : 2)
#endif
#ifndef FWD_KEYS
#define FWD_KEYS (WARP == 64 || D <= 64 && !EXTRAS ? 4 : 2)
#endif
#ifndef FWD_HOLDS
#define FWD_HOLDS (D <= 64)
#endif
#ifndef FWD_BLOCKS
#define FWD_BLOCKS (FWD_OWN == 1 ? 1 : 2)
#endif

constexpr int FWD_ROWS = 128, FWD_WARPS = FWD_ROWS / (16 * FWD_OWN), FWD_THREADS = FWD_WARPS * WARP, FWD_STEP = FWD_KEYS * 16;

// The scores and sums of a warp's queries.
struct Weigher {
    static constexpr int R = FWD_OWN, KT = FWD_KEYS;
    Tile16 sum[R][TILES];
    float top[R][HELD], total[R][HELD];

    DEVICE void clear() {
#pragma unroll
        for (int m = 0; m < R; ++m) {
#pragma unroll
            for (int n = 0; n < HELD; ++n) top[m][n] = NONE, total[m][n] = 0.0f;
#pragma unroll
            for (int c = 0; c < TILES; ++c) sum[m][c].clear();
        }
    }
    // Scores to weights. What the powers refer to is renewed only when a score is 8 above it: until then they and their sums are below
    // 2^16, and the division at the end takes it out again.
    DEVICE void weigh(Tile16 (&s)[R][KT], float factor) {
        float largest[R][HELD];
        bool grows = false;
#pragma unroll
        for (int m = 0; m < R; ++m)
#pragma unroll
            for (int n = 0; n < HELD; ++n) {
                float most = NONE;
#pragma unroll
                for (int t = 0; t < KT; ++t)
#ifdef ON_AMD
                    most = largest_number(largest_number(most, s[m][t].v[0], s[m][t].v[1]), s[m][t].v[2], s[m][t].v[3]);
#else
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; ++i)
                        if (held(i) == n) most = larger(most, s[m][t].v[i]);
#endif
                largest[m][n] = most * factor;
                grows |= largest[m][n] > top[m][n] + 8.0f;
            }
        if (any_lane(grows)) {
#pragma unroll
            for (int m = 0; m < R; ++m)
#pragma unroll
                for (int n = 0; n < HELD; ++n) {
                    float next = larger(own_max(largest[m][n]), top[m][n]), fade = exp2_small(top[m][n] - next);
                    top[m][n] = next, total[m][n] *= fade;
#pragma unroll
                    for (int c = 0; c < TILES; ++c)
#pragma unroll
                        for (int i = 0; i < Tile16::NUMBERS; ++i)
                            if (held(i) == n) sum[m][c].v[i] *= fade;
                }
        }
#pragma unroll
        for (int m = 0; m < R; ++m)
#pragma unroll
            for (int t = 0; t < KT; ++t) {
#ifdef ON_AMD
                const Two by = {factor, factor}, down = {-top[m][0], -top[m][0]};
#pragma unroll
                for (int i = 0; i < Tile16::NUMBERS; i += 2) {
                    Two x = __builtin_elementwise_fma(Two{s[m][t].v[i], s[m][t].v[i + 1]}, by, down);
                    s[m][t].v[i] = exp2_small(x.x), s[m][t].v[i + 1] = exp2_small(x.y);
                }
#pragma unroll
                for (int i = 0; i < Tile16::NUMBERS; ++i) total[m][0] += s[m][t].v[i];
#else
#pragma unroll
                for (int i = 0; i < Tile16::NUMBERS; ++i) {
                    s[m][t].v[i] = exp2_small(fmaf(s[m][t].v[i], factor, -top[m][held(i)]));
                    total[m][held(i)] += s[m][t].v[i];
                }
#endif
            }
    }
};

extern "C" __global__ void __launch_bounds__(FWD_THREADS, FWD_BLOCKS) __warps_at_once__(2)
    attention_long_fwd(T* y, f32* lse, int* spoiled, const T* q, const T* k, const T* v, const f32* bias, const int* lengths, i64 q_at,
                       i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row, int nq, int nk, int heads, int group, int batch, int d,
                       float scale, int before, int after, i64 seed, i64 stream, int reach, float kept_scale) {
    follow();
    constexpr int R = FWD_OWN, KT = FWD_KEYS, STEP = FWD_STEP;
    extern __shared__ T memory[];
    using Queries = Own<T, R, D, FWD_THREADS, FWD_HOLDS>;
    using Keys = Feed<T, STEP, D, FWD_THREADS, true, false>;
    using Values = Feed<T, STEP, D, FWD_THREADS, false, true>;
    const int tiles = (nq + FWD_ROWS - 1) / FWD_ROWS;
    Place at(tiles, heads, batch, after < nk);
    const int q0 = at.tile * FWD_ROWS, mine = warp_number() * R * 16, first = q0 + mine;
    const Mask mask{nq, nk, lengths ? lengths[at.sample] : nk, before, after};
    const i64 kv = (i64)(at.head / group) * d, row = ((i64)at.sample * heads + at.head) * nq;
    const Dropping dropping{seed, stream, reach, kept_scale};
    Vectors<T> qs = Vectors<T>{q + q_at + at.sample * nq * q_row + at.head * d, q_row, nq, d}.from(q0);
    Vectors<T> ks{k + k_at + at.sample * nk * k_row + kv, k_row, mask.length, d};
    Vectors<T> vs{v + v_at + at.sample * nk * v_row + kv, v_row, mask.length, d};
    const float factor = scale * LOG2_E;
    auto place = [&](int step) { return memory + Queries::NUMBERS + step % PLACES * (Keys::NUMBERS + Values::NUMBERS); };

    // In steps of STEP keys: what any query of the block sees, what any and what all of the warp's see.
    const Range seen = seen_by_any(mask, q0, (int)least(q0 + FWD_ROWS, nq) - 1);
    const int begin = seen.first / STEP, end = (seen.last + STEP - 1) / STEP;
    Queries queries;
    Keys key_feed;
    Values value_feed;
    queries.begin(memory, qs);
    if (begin < end) {
        key_feed.begin(place(begin), ks.from(begin * STEP));
        value_feed.begin(place(begin) + Keys::NUMBERS, vs.from(begin * STEP));
    }
    copies_end();
    block_sync();
    queries.end(memory);
    Weigher w;
    w.clear();
#pragma unroll 1
    for (int step = begin; step < end; ++step) {
        T* key_place = place(step), *value_place = key_place + Keys::NUMBERS;
        const int j0 = step * STEP;
        if (PLACES == 1) block_sync();
        key_feed.end(key_place), value_feed.end(value_place);
        copies_end();
        block_sync();
        if (step + 1 < end) {
            key_feed.begin(place(step + 1), ks.from(j0 + STEP));
            value_feed.begin(place(step + 1) + Keys::NUMBERS, vs.from(j0 + STEP));
        }
        const Range here = seen_by_any(mask, first, first + R * 16 - 1), whole = seen_by_all(mask, first, first + R * 16 - 1);
        if (j0 >= here.last || j0 + STEP <= here.first) continue;
        Tile16 s[R][KT];
#pragma unroll
        for (int m = 0; m < R; ++m)
#pragma unroll
            for (int t = 0; t < KT; ++t) {
                s[m][t].clear();
                int i = first + m * 16, j = j0 + t * 16;
                if (EXTRAS && bias) start_with(s[m][t], bias + ((i64)at.head * nq + i) * nk + j, nk, 1, nq - i, nk - j, scale);
            }
#pragma unroll
        for (int c = 0; c < TILES; c += 2) {
            Frag16<T> query[R][2];
#pragma unroll
            for (int m = 0; m < R; ++m) queries.load(query[m], memory, m, c);
#pragma unroll
            for (int t = 0; t < KT; ++t) {
                Frag16<T> key[2];
                Keys::load_straight(key, key_place, t * 16, c * 16);
#pragma unroll
                for (int h = 0; h < 2; ++h)
#pragma unroll
                    for (int m = 0; m < R; ++m) multiply_own(s[m][t], query[m][h], key[h]);
            }
        }
        if (j0 < whole.first || j0 + STEP > whole.last) {
#pragma unroll
            for (int m = 0; m < R; ++m)
#pragma unroll
                for (int n = 0; n < HELD; ++n) {
                    Range own_keys = seen_by(mask, first + m * 16 + held_row(n));
#pragma unroll
                    for (int t = 0; t < KT; ++t)
#pragma unroll
                        for (int i = 0; i < Tile16::NUMBERS; ++i) {
                            int j = j0 + t * 16 + other(i);
                            if (held(i) == n && (j < own_keys.first || j >= own_keys.last)) s[m][t].v[i] = -infinity();
                        }
                }
        }
        w.weigh(s, factor);
        if (EXTRAS && reach) {
            const u32 rows = (at.sample * heads + at.head) * Dropping::tiles(nq) + first / 16;
#pragma unroll
            for (int m = 0; m < R; ++m)
#pragma unroll
                for (int t = 0; t < KT; ++t) {
                    u32 kept = kept_of_queries(dropping, rows + m, j0 + t * 16);
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; ++i) s[m][t].v[i] = kept >> i & 1 ? s[m][t].v[i] : 0.0f;
                }
        }
#pragma unroll
        for (int t = 0; t < KT; t += 2) {
            Frag16<T> weight[R][2];
#pragma unroll
            for (int m = 0; m < R; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) load_rounded<T>(weight[m][h], s[m][t + h]);
#pragma unroll
            for (int c = 0; c < TILES; ++c) {
                Frag16<T> value[2];
                Values::load_turned(value, value_place, t * 16, c * 16);
#pragma unroll
                for (int h = 0; h < 2; ++h)
#pragma unroll
                    for (int m = 0; m < R; ++m) multiply_own(w.sum[m][c], weight[m][h], value[h]);
            }
        }
    }
    block_sync();
    if (spoiled) {
        int slabs = (nq + MARKED - 1) / MARKED;
        mark<R, FWD_WARPS>(spoiled + ((i64)at.sample * heads + at.head) * slabs, is_any_odd(w.sum), at.tile, nq);
    }
#pragma unroll
    for (int m = 0; m < R; ++m)
#pragma unroll
        for (int n = 0; n < HELD; ++n) {
            float all = own_sum(w.total[m][n]), share = divide(EXTRAS && reach ? kept_scale : 1.0f, all == 0.0f ? 1.0f : all);
            int i = first + m * 16 + held_row(n);
            if (i < nq && other(0) == 0) lse[row + i] = all == 0.0f ? -infinity() : fmaf(w.top[m][n], LOG_2, log_f32(all));
#pragma unroll
            for (int c = 0; c < TILES; ++c)
#pragma unroll
                for (int x = 0; x < Tile16::NUMBERS; ++x)
                    if (held(x) == n) w.sum[m][c].v[x] *= share;
        }
    Vectors<T> ys{nullptr, (i64)heads * d, nq - q0, d};
    store_tiles<R>(ys, y + (((i64)at.sample * nq + q0) * heads + at.head) * d, memory, mine, w.sum, 0);
}
