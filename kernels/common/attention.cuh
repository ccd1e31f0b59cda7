// attention: what attention kernels are made of: a head's vectors and what it sees of them, products of a warp's 16 rows with COLUMNS
// vectors of the other side out of shared memory, and the weighted sums that come back
// block     128 threads; a tile of COLUMNS vectors at a time, DC numbers of each
// D         head size of the text: 64 or 128
// order     the inner axis ascending: same input, same bits

#pragma once

#include "common/dropping.cuh"
#include "common/mma.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"
#include "common/seen.cuh"

#ifndef D
#define D 64
#endif

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int ROWS = 16 * WARPS;                     // of a block
constexpr int COLUMNS = sizeof(T) == 4 ? 16 : 32;    // of a tile
constexpr int TILES = COLUMNS / 16;
constexpr int DC = 64;                               // depth of one stage of the scores
constexpr int DV = D;                                // numbers of a result's row that a block computes
constexpr int PAD = 16 / (int)sizeof(T);             // so that eight rows lie in different banks
constexpr int SC = DC + PAD, SK = COLUMNS + PAD, SS = COLUMNS + 1, SO = DV + 8;

#ifdef ON_NVIDIA
constexpr bool HAS_MATRIX_UNIT = sizeof(T) == 2;
#else
constexpr bool HAS_MATRIX_UNIT = true;
#endif

template <typename U, typename V> constexpr bool is_same = false;
template <typename U> constexpr bool is_same<U, U> = true;

// The f16 products of gfx90a take numbers below 2^-14 for 0, and of many keys each has less: their probabilities and gradients are
// multiplied as f32, at a quarter of the rate.
#ifdef __gfx90a__
constexpr bool WIDENS_WEIGHTS = is_same<T, f16>;
#else
constexpr bool WIDENS_WEIGHTS = false;
#endif

// What lies beyond a head's own size is 0, and left out where it may be: with branches between the matrix instructions of bwd_dkv
// clang 19 makes an instruction that gfx90a does not have, and refuses it.
#ifdef ON_NVIDIA
constexpr bool SKIPS_ZEROS = true;
#else
constexpr bool SKIPS_ZEROS = false;
#endif

// Vectors of one head of one sample: the r-th starts at at + r * row.
struct Vectors {
    const T* at;
    i64 row, count;
    int d;
    bool is_wide;
};

DEVICE Vectors vectors(const T* at, i64 row, i64 count, int d) {
    return {at, row, count, d, is_aligned<16>(at) && row % WIDE<T> == 0 && d % WIDE<T> == 0};
}

// Numbers of a row that are multiplied: in tiles of 16, at most `most`.
DEVICE int whole_tiles(int d, int most) { return SKIPS_ZEROS ? (int)least((d + 15) / 16 * 16, most) : most; }

// One or the other, field by field: a choice between two objects would put both into local memory.
DEVICE Vectors pick(bool first, const Vectors& a, const Vectors& b) {
    return {first ? a.at : b.at, first ? a.row : b.row, first ? a.count : b.count, a.d, first ? a.is_wide : b.is_wide};
}

// One pack of WIDE numbers of vector r from c on; zeros outside.
DEVICE Pack<T, WIDE<T>> numbers_of(const Vectors& v, i64 r, int c) {
    if (v.is_wide && r < v.count && c + WIDE<T> <= v.d) return load_kept<T, WIDE<T>>(v.at + r * v.row + c);
    union {
        Pack<T, WIDE<T>> pack;
        T number[WIDE<T>];
    } p;
#pragma unroll
    for (int i = 0; i < WIDE<T>; ++i) {
        p.number[i] = r < v.count && c + i < v.d ? v.at[r * v.row + c + i] : narrow<T>(0.0f);
    }
    return p.pack;
}

// COLUMNS vectors from r0 on, up to DV numbers of each from c0 on, transposed; whether this thread met a number that is not finite.
DEVICE bool stage_transposed(T* to, const Vectors& v, i64 r0, int c0) {
    int packs = whole_tiles(v.d - c0, DV) / WIDE<T>;
    bool is_spoiled = false;
#pragma unroll 1
    for (int i = thread(); i < COLUMNS * packs; i += THREADS) {
        int r = i % COLUMNS, c = i / COLUMNS * WIDE<T>;
        union {
            Pack<T, WIDE<T>> pack;
            T number[WIDE<T>];
        } p;
        p.pack = numbers_of(v, r0 + r, c0 + c);
#pragma unroll
        for (int k = 0; k < WIDE<T>; ++k) {
            to[(c + k) * SK + r] = p.number[k];
            is_spoiled |= !(absolute(widen(p.number[k])) < infinity());
        }
    }
    return is_spoiled;
}

// d += a * b^T for 16 rows of each and `depth` of at most K numbers, a multiple of 16 or K, out of shared memory.
template <int K, typename U> DEVICE void multiply(Tile16& d, const U* a, int a_stride, const U* b, int b_stride, int depth) {
    if constexpr (HAS_MATRIX_UNIT) {
        // Sums of f32 err by their length: every other step is summed apart.
        Tile16 apart;
        apart.clear();
#pragma unroll
        for (int k = 0; k < K; k += 16) {
            if (k >= depth) break;
            Frag16<U> fa, fb;
            fa.load_a(a + k, a_stride);
            fb.load_b(b + k, b_stride);
            mma16<U>(sizeof(U) == 4 && k % 32 ? apart : d, fa, fb);
        }
        if constexpr (sizeof(U) == 4) {
#pragma unroll
            for (int i = 0; i < Tile16::NUMBERS; ++i) d.v[i] += apart.v[i];
        }
    } else {
#pragma unroll 4
        for (int k = 0; k < depth; ++k)
#pragma unroll
            for (int i = 0; i < Tile16::NUMBERS; ++i)
                d.v[i] = fmaf(widen(a[Tile16::row(i) * a_stride + k]), widen(b[Tile16::column(i) * b_stride + k]), d.v[i]);
    }
}

// The same of K numbers through products of f32.
template <int K, typename U> DEVICE void multiply_widened(Tile16& d, const U* a, int a_stride, const U* b, int b_stride) {
#ifdef ON_AMD
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        Frag16<f32> fa, fb;
        fa.load_widened(a + k, a_stride);
        fb.load_widened(b + k, b_stride);
        mma16<f32>(d, fa, fb);
    }
#endif
}

// Everything that a block keeps in shared memory.
struct Shared {
    union {
        struct {
            alignas(16) T staged[(ROWS + COLUMNS) * SC];  // rows of this side, then of the other
            union {
                struct {
                    alignas(16) T turned[DV * SK];         // of the other side, k fastest
                    alignas(16) T weight[WARPS][16 * SK];  // the left operand of the second product
                };
                float running[WARPS][16 * SS];  // dbias has no second product, but sums
            };
            float score[WARPS][16 * SS];
            float product[WARPS][16 * SS];  // backward needs the scores and the gradients of the probabilities
        };
        float out[WARPS][16 * SO];  // results on their way to memory
    };
    float factor[WARPS][16];
    int first[WARPS][16], end[WARPS][16];
    int is_spoiled[WARPS];
};

// Vectors of both sides, DC numbers of each from c on, as they lie. A loop that is not unrolled: the text of a pack exists once.
DEVICE void stage(Shared& s, const Vectors& rows, i64 r0, const Vectors& columns, i64 c0, int c, bool with_rows) {
    constexpr int PACKS = DC / WIDE<T>;
#pragma unroll 1
    for (int i = thread() + (with_rows ? 0 : ROWS * PACKS); i < (ROWS + COLUMNS) * PACKS; i += THREADS) {
        int r = i / PACKS, at = i % PACKS * WIDE<T>;
        bool is_row = r < ROWS;
        Pack<T, WIDE<T>> pack = numbers_of(pick(is_row, rows, columns), is_row ? r0 + r : c0 + r - ROWS, c + at);
        store<T, WIDE<T>>(s.staged + r * SC + at, pack);
    }
}

// Products of this warp's 16 rows with COLUMNS vectors of the other side, into `to`. All warps take part. With one stage, rows that are
// there already stay.
DEVICE void scores(Shared& s, float* to, const Vectors& rows, i64 r0, const Vectors& columns, i64 c0, bool with_rows) {
    Tile16 sum[TILES];
#pragma unroll
    for (int t = 0; t < TILES; ++t) sum[t].clear();
#pragma unroll 1
    for (int c = 0; c < (D == DC ? D : rows.d); c += DC) {
        block_sync();
        stage(s, rows, r0, columns, c0, c, with_rows || D != DC);
        const T* mine = s.staged + warp_id() * 16 * SC;
        int depth = whole_tiles(rows.d - c, DC);
        block_sync();
#pragma unroll
        for (int t = 0; t < TILES; ++t)
            multiply<DC>(sum[t], mine, SC, s.staged + (ROWS + t * 16) * SC, SC, depth);
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < Tile16::NUMBERS; ++i) to[Tile16::row(i) * SS + t * 16 + Tile16::column(i)] = sum[t].v[i];
    block_sync();
}

// Whether any thread says so. Two barriers, all threads take part.
DEVICE bool any_thread(Shared& s, bool mine) {
    float most = warp_max(mine ? 1.0f : 0.0f);
    if (lane() == 0) s.is_spoiled[warp_id()] = most > 0.0f;
    block_sync();
    bool any = false;
    for (int w = 0; w < WARPS; ++w) any |= s.is_spoiled[w] != 0;
    return any;
}

// Lanes that share a row of scores, and this lane's place among them.
constexpr int SHARING = WARP / 16;
DEVICE int my_row() { return lane() / SHARING; }
DEVICE int my_part() { return lane() % SHARING; }
DEVICE float row_sum(float v) {
#pragma unroll
    for (int m = SHARING / 2; m > 0; m /= 2) v += lane_xor(v, m);
    return v;
}
DEVICE float row_max(float v) {
#pragma unroll
    for (int m = SHARING / 2; m > 0; m /= 2) {
        float other = lane_xor(v, m);
        v = other > v || is_nan(other) ? other : v;
    }
    return v;
}

// sum += weight * turned^T, of which `width` rows are there. Where a number is not finite a weight of 0 would not hide it: then only the
// columns from first to end of range(row, first, end) are added, one by one.
template <typename Range> DEVICE void weigh(Tile16 (&sum)[DV / 16], Shared& s, int width, bool is_spoiled, Range range) {
    const T* weight = s.weight[warp_id()];
    if (!is_spoiled && HAS_MATRIX_UNIT) {
#pragma unroll
        for (int t = 0; t < DV / 16; ++t) {
            if (t * 16 >= width) break;
            if constexpr (WIDENS_WEIGHTS) {
                multiply_widened<COLUMNS>(sum[t], weight, SK, s.turned + t * 16 * SK, SK);
            } else {
                multiply<COLUMNS>(sum[t], weight, SK, s.turned + t * 16 * SK, SK, COLUMNS);
            }
        }
        return;
    }
    if (my_part() == 0) {
        int first = 0, end = COLUMNS;
        if (is_spoiled) range(my_row(), first, end);
        s.first[warp_id()][my_row()] = first, s.end[warp_id()][my_row()] = end;
    }
    block_sync();
#pragma unroll 1
    for (int k = 0; k < COLUMNS; ++k) {
#pragma unroll
        for (int i = 0; i < Tile16::NUMBERS; ++i) {
            int row = Tile16::row(i);
            if (k < s.first[warp_id()][row] || k >= s.end[warp_id()][row]) continue;
            float w = widen(weight[row * SK + k]);
#pragma unroll
            for (int t = 0; t < DV / 16; ++t) {
                if (t * 16 >= width) break;
                sum[t].v[i] = fmaf(w, widen(s.turned[(t * 16 + Tile16::column(i)) * SK + k]), sum[t].v[i]);
            }
        }
    }
}

// Calls finish(row, column, sum) for every number of this warp's result, neighbouring lanes for neighbours. All warps take part.
template <typename F> DEVICE void each_result(Shared& s, const Tile16 (&sum)[DV / 16], F finish) {
    float* mine = s.out[warp_id()];
    block_sync();
#pragma unroll
    for (int t = 0; t < DV / 16; ++t)
#pragma unroll
        for (int i = 0; i < Tile16::NUMBERS; ++i) mine[Tile16::row(i) * SO + t * 16 + Tile16::column(i)] = sum[t].v[i];
    block_sync();
#pragma unroll 1
    for (int at = lane(); at < 16 * DV; at += WARP) finish(at / DV, at % DV, mine[at / DV * SO + at % DV]);
}

// The score of query i and key j.
DEVICE float score_of(float product, float scale, const float* bias, i64 at) {
    return bias ? fmaf(product, scale, bias[at]) : product * scale;
}
