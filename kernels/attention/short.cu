// attention, short sequences: a head whole in shared memory, every number of its tensors read once. Forward, and all gradients at once.
// axes      q, y, dq, dy [B, Nq, H, d]; k, v, dk, dv [B, Nk, H / group, d]: a token's rows are `row` numbers apart, all multiples of 16
//           bytes; bias [H, Nq, Nk]; lse [B, H, Nq]; lengths [B]; backward has groups of one head
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D in {16, 32, 48, 64, 96, 128}: d is a multiple of 8, at most D
// launch    a block has `each` heads: fwd 3 warps, one MR * 16 queries at a time against KT * 16 keys at a time; bwd BW warps, one 16
//           keys, then 16 keys or queries at a time; grid [heads of all samples / each], with a gradient of the bias [H * shares];
//           shared memory: q, k, v (y over q); backward q, dy, k, v and the gradients of the scores; tokens rounded up to 16
// paths     one: 16-byte copies (cp.async on NVIDIA) into swizzled rows; ldmatrix reads eight of them without a conflict
//           on Hopper small.sm90.cu takes what it can: up to 144 tokens, d of 64; on AMD long.cu what is no window and fills its tiles
// matrix    HMMA on sm_80, sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for bf16 and f16
// traffic   fwd q, k, v, y once: 8 d bytes a token and head, [2048, 144, 8, 64] is 1.21 GB, 0.284 ms at 4.26 TB/s; bwd q, k, v, y, dy, dq,
//           dk, dv once: 16 d bytes, 0.57 ms. A window of 144, d = 64 reads 162 KB out of shared memory forward (1,300 clocks of 128 B,
//           of 4,200 that its bytes take on an H200), 900 KB backward (7,100 of 8,400): backward is bound by both
// order     keys ascending, queries ascending, samples ascending: same input, same bits; no atomics
// occupancy sm_90 at d = 64, 144 tokens: fwd 4 blocks of 55 KB and 3 warps, bwd 2 blocks of 113 KB and 6 warps: 3 warps of 168
//           registers on each quarter of a multiprocessor
//           gfx90a, gfx942: 64 KB are one block of a window of 144, d = 64, with 3 waves for 4 SIMDs: queries in registers would leave
//           room for nothing more, as keys and values alone take 37 KB
// budget    sm_80 255 registers, sm_90a 232, gfx90a 256, gfx942 256; no spills
// source    Dao et al. 2022, algorithms 1 and 4; the maximum is renewed only when it grows by 2^8: Zadouri et al. 2025

#include "common/math.cuh"
#include "common/panel.cuh"
#include "common/windows.cuh"

#ifndef D
#define D 64
#endif
// Tiles of 16 queries that share what is read of a key, tiles of 16 keys between two looks at the maximum, blocks of a multiprocessor:
// as many as registers allow.
#ifndef MR
#define MR (D <= 64 ? 3 : D <= 96 ? 2 : 1)
#endif
#ifndef KT
#define KT (D <= 96 ? 1 : 3)
#endif
#ifndef FW
#define FW 3
#endif
#if defined(ON_NVIDIA) && __CUDA_ARCH__ < 900
// Shared memory of A100 holds fewer heads than Hopper's.
constexpr int FWD_BLOCKS = 2, BWD_BLOCKS = 1;
#else
constexpr int FWD_BLOCKS = D <= 64 ? 4 : 3, BWD_BLOCKS = D <= 64 ? 2 : 1;
#endif
#ifndef BLOCKS
#define BLOCKS FWD_BLOCKS
#endif

// Warps of a block of the gradients.
#ifndef BW
#define BW (WARP == 32 ? 6 : 4)
#endif
#ifndef HOLD
#define HOLD (D <= 64 ? 2 : 0)
#endif

constexpr int THREADS = FW * WARP, BWD_THREADS = BW * WARP;
constexpr int PIECES = D / 8, TILES = D / 16;
constexpr float LOG2_E = 1.442695041f, LOG_2 = 0.693147181f;
// Below every score, and finite: the difference to -inf is none.
constexpr float NONE = -1e38f;

enum { SEES_ALL, TOP_LEFT, BOTTOM_RIGHT };

// Rows 0 to rows - 1 of a panel: vectors of d numbers of the first `count` tokens, or of those that `tokens` names, from 0 on; the rest
// is 0, so that what nobody sees is 0.
template <int THREADS> DEVICE void copy_rows(const Panel<T>& to, int rows, const T* from, i64 row, int count, int d, const int* tokens) {
    constexpr bool IS_EVEN = THREADS % PIECES == 0;
    if constexpr (IS_EVEN) {
        // A thread stays in its column.
        const int c = thread() % PIECES;
        const T* mine = from + c * 8;
        if (c * 8 >= d) count = 0;
        if (tokens) {
#pragma unroll 4
            for (int r = thread() / PIECES; r < rows; r += THREADS / PIECES) {
                int token = tokens[r];
                bool is_there = r < count && token >= 0;
                copy_piece(to.piece(r, c), is_there ? mine + token * row : from, is_there);
            }
            return;
        }
        mine += thread() / PIECES * row;
#pragma unroll 4
        for (int r = thread() / PIECES; r < rows; r += THREADS / PIECES, mine += THREADS / PIECES * row)
            copy_piece(to.piece(r, c), r < count ? mine : from, r < count);
        return;
    }
#pragma unroll 4
    for (int i = thread(); i < rows * PIECES; i += THREADS) {
        int r = i / PIECES, c = i % PIECES, token = tokens ? tokens[r] : r;
        bool is_there = r < count && token >= 0 && c * 8 < d;
        copy_piece(to.piece(r, c), from + (is_there ? token * row + c * 8 : 0), is_there);
    }
}

// A head of a window of a sample. Without windows a sample is one.
struct Head {
    i64 sample, head;
    int window, keys;  // keys that are there

    DEVICE Head(i64 number, i64 heads, const int* lengths, int nk, const Windows& windows) {
        sample = quotient(number, heads), head = number - sample * heads, window = 0;
        if (windows.are_there()) {
            i64 of = sample;
            sample = quotient(of, windows.all()), window = (int)(of - sample * windows.all());
        }
        keys = lengths ? lengths[sample] : nk;
    }
};

// The tokens of a window's places, -1 where there is none, and their regions.
template <int THREADS> DEVICE void seat_tokens(int* tokens, int* regions, int rows, const Windows& windows, int window) {
    for (int r = thread(); r < rows; r += THREADS) {
        int region = -1, token = r < windows.places() ? windows.token(window, r, region) : -1;
        tokens[r] = token, regions[r] = region;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) __warps_at_once__(2)
    attention_short_fwd(T* y, f32* lse, const T* q, const T* k, const T* v, const f32* bias, const int* lengths, i64 q_at, i64 k_at,
                        i64 v_at, i64 q_row, i64 k_row, i64 v_row, i64 q_tokens, i64 k_tokens, int nq, int nk, int heads, int group,
                        int d, float scale, i64 all, int each, Windows windows) {
    extern __shared__ T memory[];
    const int q_rows = (nq + 15) / 16 * 16, k_rows = (nk + 15) / 16 * 16, rows = q_rows + 2 * k_rows;
    float* logs = (float*)(memory + each * rows * D);
    int* seats = windows.are_there() ? (int*)(logs + each * q_rows) : nullptr;
    if (seats) {
        for (int u = 0; u < each; ++u) {
            i64 number = (i64)block_x() * each + u;
            if (number >= all) break;
            int window = Head(number, heads, lengths, nk, windows).window;
            seat_tokens<THREADS>(seats + 2 * u * q_rows, seats + (2 * u + 1) * q_rows, q_rows, windows, window);
        }
        block_sync();
    }
    for (int u = 0; u < each; ++u) {
        i64 number = (i64)block_x() * each + u;
        if (number >= all) break;
        Head h(number, heads, lengths, nk, windows);
        i64 kv = h.head / group * d;
        T* at = memory + u * rows * D;
        const int* tokens = seats ? seats + 2 * u * q_rows : seats;
        Panel<T> qs(at, D), ks(at + q_rows * D, D), vs(at + (q_rows + k_rows) * D, D);
        copy_rows<THREADS>(qs, q_rows, q + q_at + h.sample * q_tokens * q_row + h.head * d, q_row, nq, d, tokens);
        copy_rows<THREADS>(ks, k_rows, k + k_at + h.sample * k_tokens * k_row + kv, k_row, h.keys, d, tokens);
        copy_rows<THREADS>(vs, k_rows, v + v_at + h.sample * k_tokens * v_row + kv, v_row, h.keys, d, tokens);
    }
    copies_end();
    block_sync();

    const int tasks = (q_rows + 16 * MR - 1) / (16 * MR);
    for (int task = warp_number(); task < each * tasks; task += THREADS / WARP) {
        int u = task / tasks, q0 = (task - u * tasks) * 16 * MR;
        i64 number = (i64)block_x() * each + u;
        if (number >= all) break;
        Head h(number, heads, lengths, nk, windows);
        Panel<T> qs(memory + u * rows * D, D), ks(qs.at + q_rows * D, D), vs(ks.at + k_rows * D, D);
        const f32* added = bias ? bias + h.head * nq * nk : bias;
        const int* regions = seats + (2 * u + 1) * q_rows;
        const bool hides = windows.hides && windows.is_mixed(h.window);
        // What the products start with is scaled with them.
        const float factor = scale * LOG2_E, inverse = divide(1.0f, scale);
        float top[MR][HELD], total[MR][HELD];
        Tile16 sum[MR][TILES];
#pragma unroll
        for (int m = 0; m < MR; ++m) {
#pragma unroll
            for (int n = 0; n < HELD; ++n) top[m][n] = NONE, total[m][n] = 0.0f;
#pragma unroll
            for (int t = 0; t < TILES; ++t) sum[m][t].clear();
        }
#pragma unroll 1
        for (int j0 = 0; j0 < h.keys; j0 += 16 * KT) {
            Tile16 s[MR][KT];
#pragma unroll
            for (int m = 0; m < MR; ++m)
#pragma unroll
                for (int t = 0; t < KT; ++t) s[m][t].clear();
            if (added) {
#pragma unroll
                for (int m = 0; m < MR; ++m)
#pragma unroll
                    for (int t = 0; t < KT; ++t)
#pragma unroll
                        for (int i = 0; i < Tile16::NUMBERS; ++i) {
                            int r = q0 + m * 16 + own(i), j = j0 + t * 16 + other(i);
                            if (r < nq && j < h.keys) s[m][t].v[i] = added[r * nk + j] * inverse;
                        }
            }
            // Rows beyond the queries are keys', and their results nobody's.
#pragma unroll
            for (int c = 0; c < TILES; ++c) {
                Frag16<T> key[KT];
#pragma unroll
                for (int t = 0; t < KT; ++t)
                    if (t == 0 || j0 + t * 16 < k_rows) load_other(key[t], ks, j0 + t * 16, c * 16);
#pragma unroll
                for (int m = 0; m < MR; ++m) {
                    Frag16<T> query;
                    load_own(query, qs, q0 + m * 16, c * 16);
#pragma unroll
                    for (int t = 0; t < KT; ++t)
                        if (t == 0 || j0 + t * 16 < k_rows) multiply_own(s[m][t], query, key[t]);
                }
            }
            if (j0 + 16 * KT > h.keys || hides) {
#pragma unroll
                for (int m = 0; m < MR; ++m)
#pragma unroll
                    for (int t = 0; t < KT; ++t)
#pragma unroll
                        for (int i = 0; i < Tile16::NUMBERS; ++i) {
                            int r = q0 + m * 16 + own(i), j = j0 + t * 16 + other(i);
                            if (j >= h.keys || hides && (r >= q_rows || regions[r] != regions[j])) s[m][t].v[i] = -infinity();
                        }
            }
            // The reference of a row's powers is renewed only when a score is 8 above it: until then they and their sums are below
            // 2^16, and the division at the end takes it out again.
            auto largest = [&](int m, int n) {
                float most = NONE;
#pragma unroll
                for (int t = 0; t < KT; ++t)
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; ++i)
                        if (held(i) == n) most = larger(most, s[m][t].v[i]);
                return most * factor;
            };
            bool grows = false;
#pragma unroll
            for (int m = 0; m < MR; ++m)
#pragma unroll
                for (int n = 0; n < HELD; ++n) grows |= largest(m, n) > top[m][n] + 8.0f;
            if (any_lane(grows)) {
#pragma unroll
                for (int m = 0; m < MR; ++m)
#pragma unroll
                    for (int n = 0; n < HELD; ++n) {
                        float next = larger(own_max(largest(m, n)), top[m][n]), fade = exp2_small(top[m][n] - next);
                        top[m][n] = next, total[m][n] *= fade;
#pragma unroll
                        for (int t = 0; t < TILES; ++t)
#pragma unroll
                            for (int i = 0; i < Tile16::NUMBERS; ++i)
                                if (held(i) == n) sum[m][t].v[i] *= fade;
                    }
            }
#pragma unroll
            for (int m = 0; m < MR; ++m)
#pragma unroll
                for (int t = 0; t < KT; ++t)
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; ++i) {
                        s[m][t].v[i] = exp2_small(fmaf(s[m][t].v[i], factor, -top[m][held(i)]));
                        total[m][held(i)] += s[m][t].v[i];
                    }
#pragma unroll
            for (int t = 0; t < KT; ++t) {
                if (t > 0 && j0 + t * 16 >= h.keys) break;
                Frag16<T> weight[MR];
#pragma unroll
                for (int m = 0; m < MR; ++m) load_sums(weight[m], s[m][t]);
#pragma unroll
                for (int c = 0; c < TILES; ++c) {
                    Frag16<T> value;
                    load_other_turned(value, vs, j0 + t * 16, c * 16);
#pragma unroll
                    for (int m = 0; m < MR; ++m) multiply_own(sum[m][c], weight[m], value);
                }
            }
        }
        // The results take the place of the queries, which only this warp reads.
#pragma unroll
        for (int m = 0; m < MR; ++m) {
            if (q0 + m * 16 >= q_rows) break;
#pragma unroll
            for (int n = 0; n < HELD; ++n) {
                float all_of = own_sum(total[m][n]), share = divide(1.0f, all_of == 0.0f ? 1.0f : all_of);
                // Lanes that hold the same row store the same.
                logs[u * q_rows + q0 + m * 16 + held_row(n)] = all_of == 0.0f ? -infinity() : fmaf(top[m][n], LOG_2, log_f32(all_of));
#pragma unroll
                for (int t = 0; t < TILES; ++t)
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; ++i)
                        if (held(i) == n) sum[m][t].v[i] *= share;
            }
#pragma unroll
            for (int t = 0; t < TILES; ++t) put_tile(qs, q0 + m * 16, t * 16, sum[m][t]);
        }
    }
    block_sync();
    for (int u = 0; u < each; ++u) {
        i64 number = (i64)block_x() * each + u;
        if (number >= all) break;
        Head h(number, heads, lengths, nk, windows);
        Panel<T> ys(memory + u * rows * D, D);
        const int* tokens = seats ? seats + 2 * u * q_rows : seats;
        T* to = y + (h.sample * q_tokens * heads + h.head) * d;
#pragma unroll 4
        for (int i = thread(); i < nq * PIECES; i += THREADS) {
            int r = i / PIECES, c = i % PIECES, token = tokens ? tokens[r] : r;
            if (c * 8 < d && token >= 0) store<T, 8>(to + (i64)token * heads * d + c * 8, load_kept<T, 8>(ys.piece(r, c)));
        }
        for (int i = thread(); i < nq; i += THREADS) {
            int token = tokens ? tokens[i] : i;
            if (token >= 0) lse[(h.sample * heads + h.head) * q_tokens + token] = logs[u * q_rows + i];
        }
    }
}

// Rows r to r + 15 of a panel that this warp has written, those before `count`, to memory or onto what is there.
DEVICE void store_rows(T* to, i64 row, const Panel<T>& from, int r, int count, int d, const int* tokens, int add) {
    warp_sync();
#pragma unroll 1
    for (int i = lane(); i < 16 * PIECES; i += WARP) {
        int at = r + i / PIECES, c = i % PIECES;
        if (at >= count || c * 8 >= d) continue;
        int token = tokens ? tokens[at] : at;
        if (token < 0) continue;
        float v[8];
        load_kept<T, 8>(from.piece(at, c)).unpack(v);
        put<T, 8>(to + token * row + c * 8, v, add);
    }
}

// A block's heads are `each` apart from those of its next round, and `all` at the end: with a bias a block stays with one of its heads,
// and sums its gradient over the samples of its rounds in `partial`, keys by queries.
extern "C" __global__ void __launch_bounds__(BWD_THREADS, BWD_BLOCKS) __warps_at_once__(2)
    attention_short_bwd(T* dq, T* dk, T* dv, f32* partial, f32* stats, int* seats, const T* q, const T* k, const T* v, const T* y, const T* dy,
                        const f32* bias, const f32* lse, const int* lengths, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row,
                        i64 v_row, i64 q_tokens, i64 k_tokens, int nq, int nk, int heads, int d, float scale, i64 all, int each,
                        i64 step, int add_q, int add_k, int add_v, Windows windows) {
    extern __shared__ T memory[];
    const int q_rows = (nq + 15) / 16 * 16, k_rows = (nk + 15) / 16 * 16, q_tiles = q_rows / 16, k_tiles = k_rows / 16;
    // Queries, their gradients, keys, values; the gradients of the scores, keys by queries, where the results lie before.
    const int rows = 2 * q_rows + 2 * k_rows, size = rows * D + q_rows * (k_rows > D ? k_rows : D);
    const float factor = scale * LOG2_E, inverse = divide(1.0f, scale);
    for (i64 first = (i64)block_x() * each; first < all; first += step) {
        const int count = (int)least(each, all - first);
        if (first >= step) block_sync();
        if (seats) {
            for (int u = 0; u < count; ++u) {
                int* tokens = seats + (first + u) * 2 * q_rows;
                int window = Head(first + u, heads, lengths, nk, windows).window;
                seat_tokens<BWD_THREADS>(tokens, tokens + q_rows, q_rows, windows, window);
            }
            block_sync();
        }
        for (int u = 0; u < count; ++u) {
            Head h(first + u, heads, lengths, nk, windows);
            T* at = memory + u * size;
            const int* tokens = seats ? seats + (first + u) * 2 * q_rows : seats;
            i64 there = (h.sample * q_tokens * heads + h.head) * d, head = h.head * d, y_row = (i64)heads * d;
            Panel<T> qs(at, D), dys(at + q_rows * D, D), ks(dys.at + q_rows * D, D), vs(ks.at + k_rows * D, D), ys(vs.at + k_rows * D, D);
            copy_rows<BWD_THREADS>(qs, q_rows, q + q_at + h.sample * q_tokens * q_row + head, q_row, nq, d, tokens);
            copy_rows<BWD_THREADS>(dys, q_rows, dy + there, y_row, nq, d, tokens);
            copy_rows<BWD_THREADS>(ks, k_rows, k + k_at + h.sample * k_tokens * k_row + head, k_row, h.keys, d, tokens);
            copy_rows<BWD_THREADS>(vs, k_rows, v + v_at + h.sample * k_tokens * v_row + head, v_row, h.keys, d, tokens);
            copy_rows<BWD_THREADS>(ys, q_rows, y + there, y_row, nq, d, tokens);
        }
        copies_end();
        block_sync();

        // What the gradients need of a query: the logarithm of its sum, +inf where it sees nothing, and the sum of dy * y.
        for (int u = 0; u < count; ++u) {
            Head h(first + u, heads, lengths, nk, windows);
            const int* tokens = seats ? seats + (first + u) * 2 * q_rows : seats;
            Panel<T> dys(memory + u * size + q_rows * D, D), ys(memory + u * size + rows * D, D);
#pragma unroll 1
            for (int i = thread(); i < q_rows * 4; i += BWD_THREADS) {
                int r = i / 4;
                float sum = 0.0f;
#pragma unroll
                for (int c = i % 4; c < PIECES; c += 4) {
                    Pack<T, 8> a = load_kept<T, 8>(dys.piece(r, c)), b = load_kept<T, 8>(ys.piece(r, c));
#pragma unroll
                    for (int n = 0; n < 8; ++n) sum = fmaf(a.get(n), b.get(n), sum);
                }
                sum += lane_xor(sum, 1), sum += lane_xor(sum, 2);
                int token = tokens ? tokens[r] : r;
                float at = r < nq && token >= 0 ? lse[(h.sample * heads + h.head) * q_tokens + token] : -infinity();
                float two[2] = {at == -infinity() ? infinity() : at * LOG2_E, sum};
                if (i % 4 == 0) store<f32, 2>(stats + ((first + u) * q_rows + r) * 2, two);
            }
        }
        block_sync();

        for (int job = warp_number(); job < count * k_tiles; job += BW) {
            int u = job / k_tiles, k0 = (job - u * k_tiles) * 16;
            Head h(first + u, heads, lengths, nk, windows);
            Panel<T> qs(memory + u * size, D), dys(qs.at + q_rows * D, D), ks(dys.at + q_rows * D, D), vs(ks.at + k_rows * D, D);
            Panel<T> scores(vs.at + k_rows * D, q_rows);
            const f32* about = stats + (first + u) * q_rows * 2;
            const f32* added = bias ? bias + h.head * nq * nk + k0 : bias;
            const int* tokens = seats ? seats + (first + u) * 2 * q_rows : seats;
            const int* regions = tokens + q_rows;
            const bool hides = windows.hides && windows.is_mixed(h.window);
            f32* sums = partial ? partial + ((i64)block_x() * k_rows + k0) * q_rows : partial;
            Frag16<T> key[HOLD > 0 ? TILES : 1], value[HOLD > 1 ? TILES : 1];
#pragma unroll
            for (int c = 0; c < TILES; ++c) {
                if (HOLD > 0) load_own(key[HOLD > 0 ? c : 0], ks, k0, c * 16);
                if (HOLD > 1) load_own(value[HOLD > 1 ? c : 0], vs, k0, c * 16);
            }
            Tile16 sum[TILES];
#pragma unroll
            for (int c = 0; c < TILES; ++c) sum[c].clear();
#pragma unroll 1
            for (int q0 = 0; q0 < q_rows; q0 += 16) {
                Tile16 s, g;
                s.clear(), g.clear();
                // What earlier rounds left is on its way while the products are made.
                Pack<f32, 2> before[Tile16::NUMBERS / 2];
                if (sums) {
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; i += 2)
                        before[i / 2] = load_if<f32, 2>(sums + own(i) * q_rows + q0 + other(i), first >= step);
                }
                if (added) {
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; ++i) {
                        int r = q0 + other(i), j = own(i);
                        if (r < nq && k0 + j < h.keys) s.v[i] = added[r * nk + j] * inverse;
                    }
                }
#pragma unroll
                for (int c = 0; c < TILES; ++c) {
                    Frag16<T> f;
                    if (HOLD < 1) load_own(key[0], ks, k0, c * 16);
                    load_other(f, qs, q0, c * 16);
                    multiply_own(s, key[HOLD > 0 ? c : 0], f);
                    if (HOLD < 2) load_own(value[0], vs, k0, c * 16);
                    load_other(f, dys, q0, c * 16);
                    multiply_own(g, value[HOLD > 1 ? c : 0], f);
                }
                if (hides) {
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; ++i)
                        if (regions[k0 + own(i)] != regions[q0 + other(i)]) s.v[i] = -infinity();
                }
#pragma unroll
                for (int i = 0; i < Tile16::NUMBERS; i += 2) {
                    Pack<f32, 4> two = load_kept<f32, 4>(about + (q0 + other(i)) * 2);
#pragma unroll
                    for (int n = 0; n < 2; ++n) {
                        s.v[i + n] = exp2_small(fmaf(s.v[i + n], factor, -two.get(2 * n)));
                        g.v[i + n] = s.v[i + n] * (g.v[i + n] - two.get(2 * n + 1));
                    }
                }
                // Of one key the probability is 1 whatever its score: the difference above would only be rounding.
                if (k0 + 16 > h.keys || h.keys == 1) {
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; ++i) {
                        bool is_seen = k0 + own(i) < h.keys;
                        s.v[i] = is_seen ? s.v[i] : 0.0f, g.v[i] = !is_seen ? 0.0f : h.keys == 1 ? 0.0f * g.v[i] : g.v[i];
                    }
                }
                if (sums) {
#pragma unroll
                    for (int i = 0; i < Tile16::NUMBERS; i += 2) {
                        float two[2] = {before[i / 2].get(0) + g.v[i], before[i / 2].get(1) + g.v[i + 1]};
                        store<f32, 2>(sums + own(i) * q_rows + q0 + other(i), two);
                    }
                }
                Frag16<T> weight;
                load_sums(weight, s);
#pragma unroll
                for (int c = 0; c < TILES; ++c) {
                    Frag16<T> f;
                    load_other_turned(f, dys, q0, c * 16);
                    multiply_own(sum[c], weight, f);
                }
                put_tile(scores, k0, q0, g);
            }
            if (dv) {
#pragma unroll
                for (int c = 0; c < TILES; ++c) put_tile(vs, k0, c * 16, sum[c]);
                store_rows(dv + v_at + h.sample * k_tokens * v_row + h.head * d, v_row, vs, k0, nk, d, tokens, add_v);
            }
        }
        block_sync();

        // dk where values were, dq where dy was.
        for (int job = warp_number(); job < count * (k_tiles + q_tiles); job += BW) {
            int u = job / (k_tiles + q_tiles), tile = job - u * (k_tiles + q_tiles);
            bool is_key = tile < k_tiles;
            if (!(is_key ? dk : dq)) continue;
            Head h(first + u, heads, lengths, nk, windows);
            Panel<T> qs(memory + u * size, D), dys(qs.at + q_rows * D, D), ks(dys.at + q_rows * D, D), vs(ks.at + k_rows * D, D);
            Panel<T> scores(vs.at + k_rows * D, q_rows);
            int r = (is_key ? tile : tile - k_tiles) * 16, end = is_key ? q_rows : k_rows;
            T* across = is_key ? qs.at : ks.at;
            Tile16 sum[TILES];
#pragma unroll
            for (int c = 0; c < TILES; ++c) sum[c].clear();
#pragma unroll (D <= 64 ? 3 : 1)
            for (int at = 0; at < end; at += 16) {
                Frag16<T> ds;
                if (is_key) load_own(ds, scores, r, at);
                else load_own_turned(ds, scores, at, r);
#pragma unroll
                for (int c = 0; c < TILES; ++c) {
                    Frag16<T> f;
                    load_other_turned(f, Panel<T>(across, D), at, c * 16);
                    multiply_own(sum[c], ds, f);
                }
            }
            Panel<T> out(is_key ? vs.at : dys.at, D);
#pragma unroll
            for (int c = 0; c < TILES; ++c) {
#pragma unroll
                for (int i = 0; i < Tile16::NUMBERS; ++i) sum[c].v[i] *= scale;
                put_tile(out, r, c * 16, sum[c]);
            }
            const int* tokens = seats ? seats + (first + u) * 2 * q_rows : seats;
            T* to = is_key ? dk + k_at + h.sample * k_tokens * k_row : dq + q_at + h.sample * q_tokens * q_row;
            store_rows(to + h.head * d, is_key ? k_row : q_row, out, r, is_key ? nk : nq, d, tokens, is_key ? add_k : add_q);
        }
    }
}

// dbias: the partial sums of `blocks` blocks a head, keys by queries, in their order.
extern "C" __global__ void __launch_bounds__(256)
    attention_short_bwd_dbias(f32* dbias, const f32* partial, int nq, int nk, int heads, int blocks, int add) {
    i64 q_rows = (nq + 15) / 16 * 16, k_rows = (nk + 15) / 16 * 16, at = (i64)block_x() * 256 + thread();
    i64 rest = quotient(at, q_rows), i = at - rest * q_rows, head = quotient(rest, nk), j = rest - head * nk;
    if (head >= heads || i >= nq) return;
    float sum = 0.0f;
    for (int b = 0; b < blocks; ++b) sum += partial[((b * heads + head) * k_rows + j) * q_rows + i];
    put(dbias + (head * nq + i) * nk + j, sum, add);
}
