// attention: softmax of scaled scores over the visible keys, times the values; scores never leave the chip. Forward, and the gradients
// of q, k, v and of the bias, from the scores computed again.
// axes      q, y, dq, dy [B, Nq, H, d]; k, v, dk, dv [B, Nk, H / group, d]: a token's rows are `row` numbers apart; bias [H, Nq, Nk];
//           lse, total [B, H, Nq]; lengths [B]
// types     T in {f32, bf16, f16}; scores, sums, bias, lse in f32; D in {64, 128, 512}: d rounded up
// launch    128 threads; a warp has 16 rows of one side (queries; in bwd_dkdv keys) and walks the other side in tiles of COLUMNS:
//           grid [tiles * B * H, 1, D / DV]; bwd_dbias [tiles of queries * tiles of keys * H]; bwd_total one warp a query
// paths     16-byte loads where rows start and step by multiples of 16 bytes, else single numbers
// matrix    HMMA on sm_80, sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for all types; f32 on NVIDIA is FFMA out of shared memory,
//           some 15 % of its rate
// traffic   every tile of rows reads all of the other side once (D / DV times); results once
// order     columns ascending, heads of a group ascending, samples ascending: same input, same bits; no atomics
// budget    sm_80 255 registers, sm_90a 255, gfx90a 256, gfx942 256; no spills
// source    Dao et al. 2022, algorithms 1 and 4; Milakov, Gimelshein 2018 for the running maximum

#include "common/mma.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"
#include "common/rng.cuh"

#ifndef D
#define D 64
#endif

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int ROWS = 16 * WARPS;                     // of a block
constexpr int COLUMNS = sizeof(T) == 4 ? 16 : 32;    // of a tile
constexpr int TILES = COLUMNS / 16;
constexpr int DC = D < 64 ? D : 64;                  // depth of one stage of the scores
constexpr int DV = D < 128 ? D : 128;                // numbers of a result's row that a block computes
constexpr int PAD = 16 / (int)sizeof(T);             // so that eight rows lie in different banks
constexpr int SC = DC + PAD, SK = COLUMNS + PAD, SS = COLUMNS + 1;

#ifdef ON_NVIDIA
constexpr bool HAS_MATRIX_UNIT = sizeof(T) == 2;
#else
constexpr bool HAS_MATRIX_UNIT = true;
#endif

enum { SEES_ALL, TOP_LEFT, BOTTOM_RIGHT };

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

// What a head of a sample sees.
struct Mask {
    i64 nq, nk, length;
    int causal;

    // How many keys query i sees: always the first ones.
    DEVICE i64 visible(i64 i) const {
        if (i >= nq) return 0;
        if (causal == TOP_LEFT) return least(length, i + 1);
        if (causal == BOTTOM_RIGHT) {
            i64 n = i + 1 + nk - nq;
            return n < 0 ? 0 : least(length, n);
        }
        return length;
    }
};

// Dropout of the probabilities; reach 0 keeps all.
struct Dropping {
    i64 seed, stream;
    int reach;
    float scale;

    DEVICE float factor(i64 row, i64 nk, i64 j) const {
        return reach ? kept(drawn_bits(seed, stream, row * ((nk + 3) / 4 * 4) + j), reach, scale) : 1.0f;
    }
};

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

// COUNT vectors from r0 on, DC numbers of each from c0 on, as they lie.
template <int COUNT> DEVICE void stage(T* to, const Vectors& v, i64 r0, int c0) {
    constexpr int PACKS = DC / WIDE<T>;
#pragma unroll 1
    for (int i = thread(); i < COUNT * PACKS; i += THREADS) {
        int r = i / PACKS, c = i % PACKS * WIDE<T>;
        store<T, WIDE<T>>(to + r * SC + c, numbers_of(v, r0 + r, c0 + c));
    }
}

// COLUMNS vectors from r0 on, DV numbers of each from c0 on, transposed; whether this thread met a number that is not finite.
DEVICE bool stage_transposed(T* to, const Vectors& v, i64 r0, int c0) {
    constexpr int PACKS = DV / WIDE<T>;
    bool is_spoiled = false;
#pragma unroll 1
    for (int i = thread(); i < COLUMNS * PACKS; i += THREADS) {
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

// d += a * b^T for 16 rows of each and k numbers, out of shared memory.
template <int K, typename U> DEVICE void multiply(Tile16& d, const U* a, int a_stride, const U* b, int b_stride) {
    if constexpr (HAS_MATRIX_UNIT) {
#pragma unroll
        for (int k = 0; k < K; k += 16) {
            Frag16<U> fa, fb;
            fa.load_a(a + k, a_stride);
            fb.load_b(b + k, b_stride);
            mma16<U>(d, fa, fb);
        }
    } else {
#pragma unroll 4
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int i = 0; i < Tile16::NUMBERS; ++i)
                d.v[i] = fmaf(widen(a[Tile16::row(i) * a_stride + k]), widen(b[Tile16::column(i) * b_stride + k]), d.v[i]);
    }
}

// Everything that a block keeps in shared memory.
struct Shared {
    alignas(16) T rows[ROWS * SC];
    alignas(16) T columns[COLUMNS * SC];
    alignas(16) T turned[DV * SK];           // of the other side, k fastest
    alignas(16) T weight[WARPS][16 * SK];    // the left operand of the second product
    float score[WARPS][16 * SS];
    float product[WARPS][16 * SS];           // backward needs the scores and the gradients of the probabilities
    float factor[WARPS][16];
    int is_spoiled[WARPS];
};

// Products of this warp's 16 rows with COLUMNS vectors of the other side, into `to`. All warps take part.
DEVICE void scores(Shared& s, float* to, const Vectors& rows, i64 r0, const Vectors& columns, i64 c0, bool keeps_rows) {
    Tile16 sum[TILES];
#pragma unroll
    for (int t = 0; t < TILES; ++t) sum[t].clear();
#pragma unroll 1
    for (int c = 0; c < D; c += DC) {
        block_sync();
        // With one stage the rows are there from the first tile on.
        if (!(keeps_rows && D == DC)) stage<ROWS>(s.rows, rows, r0, c);
        stage<COLUMNS>(s.columns, columns, c0, c);
        block_sync();
#pragma unroll
        for (int t = 0; t < TILES; ++t)
            multiply<DC>(sum[t], s.rows + warp_id() * 16 * SC, SC, s.columns + t * 16 * SC, SC);
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

// sum += weight * turned^T. Where a number is not finite a weight of 0 would not hide it: then only the columns from first(row) to
// end(row) are added, one by one.
template <typename Range> DEVICE void weigh(Tile16 (&sum)[DV / 16], Shared& s, bool is_spoiled, Range range) {
    const T* weight = s.weight[warp_id()];
    if (!is_spoiled) {
#pragma unroll
        for (int t = 0; t < DV / 16; ++t) multiply<COLUMNS>(sum[t], weight, SK, s.turned + t * 16 * SK, SK);
        return;
    }
#pragma unroll
    for (int i = 0; i < Tile16::NUMBERS; ++i) {
        int row = Tile16::row(i), first, end;
        range(row, first, end);
        for (int k = first; k < end; ++k)
#pragma unroll
            for (int t = 0; t < DV / 16; ++t)
                sum[t].v[i] = fmaf(widen(weight[row * SK + k]), widen(s.turned[(t * 16 + Tile16::column(i)) * SK + k]),
                                   sum[t].v[i]);
    }
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

// The score of query i and key j.
DEVICE float score_of(float product, float scale, const float* bias, i64 at) { return bias ? fmaf(product, scale, bias[at]) : product * scale; }

struct Block {
    i64 tile, sample, head;
};

// Which rows of which head this block has: heads next to each other share keys in the cache.
DEVICE Block block_of(i64 tiles, i64 heads) {
    i64 rest = quotient(block_x(), tiles), tile = block_x() - rest * tiles, sample = quotient(rest, heads);
    return {tile, sample, rest - sample * heads};
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_fwd(T* y, f32* lse, const T* q, const T* k, const T* v, const f32* bias, const int* lengths, i64 q_at, i64 k_at, i64 v_at,
                  i64 q_row, i64 k_row, i64 v_row, i64 nq, i64 nk, int heads, int group, int d, float scale, int causal, i64 seed,
                  i64 stream, int reach, float kept_scale) {
    __shared__ Shared s;
    Block b = block_of((nq + ROWS - 1) / ROWS, heads);
    i64 r0 = b.tile * ROWS, head = (b.sample * heads + b.head) * nq, kv = b.head / group * d;
    Mask mask{nq, nk, lengths ? lengths[b.sample] : nk, causal};
    Dropping dropping{seed, stream, reach, kept_scale};
    Vectors qs = vectors(q + q_at + b.sample * nq * q_row + b.head * d, q_row, nq, d);
    Vectors ks = vectors(k + k_at + b.sample * nk * k_row + kv, k_row, nk, d);
    Vectors vs = vectors(v + v_at + b.sample * nk * v_row + kv, v_row, nk, d);
    if (bias) bias += b.head * nq * nk;
    int out = block_z() * DV;
    i64 first = r0 + warp_id() * 16, i = first + my_row(), seen = mask.visible(i);
    // The last row of the block sees most.
    i64 most = mask.visible(least(r0 + ROWS, nq) - 1);
    float top = -infinity(), total = 0.0f;
    Tile16 sum[DV / 16];
#pragma unroll
    for (int t = 0; t < DV / 16; ++t) sum[t].clear();
    if (D == DC) stage<ROWS>(s.rows, qs, r0, 0);
    float* score = s.score[warp_id()];
    for (i64 c0 = 0; c0 < most; c0 += COLUMNS) {
        scores(s, score, qs, r0, ks, c0, true);
        bool is_spoiled = any_thread(s, stage_transposed(s.turned, vs, c0, out));
        float largest = top;
        for (int c = my_part(); c < COLUMNS; c += SHARING) {
            float x = c0 + c < seen ? score_of(score[my_row() * SS + c], scale, bias, i * nk + c0 + c) : -infinity();
            score[my_row() * SS + c] = x;
            largest = x > largest || is_nan(x) ? x : largest;
        }
        largest = row_max(largest);
        // Where every score is -inf all probabilities are 0.
        float shift = largest == -infinity() ? 0.0f : largest;
        float fade = exp_f32(top - shift), part = 0.0f;
        for (int c = my_part(); c < COLUMNS; c += SHARING) {
            float e = c0 + c < seen ? exp_f32(score[my_row() * SS + c] - shift) : 0.0f;
            part += e;
            if (reach) e *= dropping.factor(head + i, nk, c0 + c);
            s.weight[warp_id()][my_row() * SK + c] = narrow<T>(e);
        }
        total = fmaf(total, fade, row_sum(part));
        top = largest;
        if (my_part() == 0) s.factor[warp_id()][my_row()] = fade;
        block_sync();
#pragma unroll
        for (int n = 0; n < Tile16::NUMBERS; ++n) {
            float f = s.factor[warp_id()][Tile16::row(n)];
#pragma unroll
            for (int t = 0; t < DV / 16; ++t) sum[t].v[n] *= f;
        }
        weigh(sum, s, is_spoiled, [&](int row, int& from, int& to) {
            from = 0;
            i64 n = mask.visible(first + row) - c0;
            to = n < 0 ? 0 : (int)least(n, COLUMNS);
        });
    }
    block_sync();
    float shift = top == -infinity() ? 0.0f : top;
    if (my_part() == 0) {
        s.factor[warp_id()][my_row()] = total == 0.0f ? 1.0f : total;
        if (i < nq && block_z() == 0) lse[head + i] = seen > 0 ? shift + log_f32(total) : -infinity();
    }
    block_sync();
#pragma unroll
    for (int n = 0; n < Tile16::NUMBERS; ++n) {
        i64 r = first + Tile16::row(n);
        float f = s.factor[warp_id()][Tile16::row(n)];
        if (r >= nq) continue;
        T* to = y + ((b.sample * nq + r) * heads + b.head) * d;
#pragma unroll
        for (int t = 0; t < DV / 16; ++t) {
            int c = out + t * 16 + Tile16::column(n);
            if (c < d) to[c] = narrow<T>(divide(sum[t].v[n], f));
        }
    }
}

// total = sum of dy * y: one warp a query of a head.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_total(f32* total, const T* y, const T* dy, i64 queries, i64 nq, int heads, int d) {
    i64 row = (i64)block_x() * WARPS + warp_id();
    if (row >= queries) return;
    // Rows are [B, H, Nq], y is [B, Nq, H, d].
    i64 rest = quotient(row, nq), i = row - rest * nq, sample = quotient(rest, heads), head = rest - sample * heads;
    i64 at = ((sample * nq + i) * heads + head) * d;
    float sum = 0.0f;
    for (int c = lane(); c < d; c += WARP) sum = fmaf(widen(dy[at + c]), widen(y[at + c]), sum);
    sum = warp_sum(sum);
    if (lane() == 0) total[row] = sum;
}

// What the backward kernels share of a head.
struct Back {
    Mask mask;
    Dropping dropping;
    float scale;
    const float *bias, *lse, *total;
    i64 head;

    // p and ds of query i and key j, from q k and dy v; the dropped p in `weight`.
    DEVICE float gradient(i64 i, i64 j, float product, float dproduct, float& weight) const {
        weight = 0.0f;
        if (j >= mask.visible(i)) return 0.0f;
        float at = lse[i];
        float p = exp_f32(score_of(product, scale, bias, i * mask.nk + j) - (at == -infinity() ? 0.0f : at));
        float factor = dropping.factor(head + i, mask.nk, j);
        weight = dropping.reach ? p * factor : p;
        // Of one key the probability is 1 whatever its score: the difference below would only be rounding.
        if (mask.visible(i) == 1) return 0.0f * dproduct;
        return p * ((dropping.reach ? dproduct * factor : dproduct) - total[i]);
    }
};

// dq: as forward, queries against all keys.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_dq(T* dq, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse, const f32* total,
                     const int* lengths, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row, i64 nq, i64 nk, int heads,
                     int group, int d, float scale, int causal, i64 seed, i64 stream, int reach, float kept_scale, int add_dq) {
    __shared__ Shared s;
    Block b = block_of((nq + ROWS - 1) / ROWS, heads);
    i64 r0 = b.tile * ROWS, head = (b.sample * heads + b.head) * nq, kv = b.head / group * d, q_first = q_at + b.sample * nq * q_row + b.head * d;
    Back back{{nq, nk, lengths ? lengths[b.sample] : nk, causal}, {seed, stream, reach, kept_scale}, scale,
              bias ? bias + b.head * nq * nk : bias, lse + head, total + head, head};
    Vectors qs = vectors(q + q_first, q_row, nq, d);
    Vectors ks = vectors(k + k_at + b.sample * nk * k_row + kv, k_row, nk, d);
    Vectors vs = vectors(v + v_at + b.sample * nk * v_row + kv, v_row, nk, d);
    Vectors dys = vectors(dy + (b.sample * nq * heads + b.head) * d, (i64)heads * d, nq, d);
    int out = block_z() * DV;
    i64 first = r0 + warp_id() * 16, i = first + my_row();
    i64 most = back.mask.visible(least(r0 + ROWS, nq) - 1);
    Tile16 sum[DV / 16];
#pragma unroll
    for (int t = 0; t < DV / 16; ++t) sum[t].clear();
    float *score = s.score[warp_id()], *product = s.product[warp_id()];
    for (i64 c0 = 0; c0 < most; c0 += COLUMNS) {
        scores(s, product, qs, r0, ks, c0, false);
        scores(s, score, dys, r0, vs, c0, false);
        bool is_spoiled = any_thread(s, stage_transposed(s.turned, ks, c0, out));
#pragma unroll
        for (int c = 0; c < COLUMNS / SHARING; ++c) {
            int at = c * SHARING + my_part();
            float weight, ds = back.gradient(i, c0 + at, product[my_row() * SS + at], score[my_row() * SS + at], weight);
            s.weight[warp_id()][my_row() * SK + at] = narrow<T>(ds * scale);
        }
        block_sync();
        weigh(sum, s, is_spoiled, [&](int row, int& from, int& to) {
            from = 0;
            i64 n = back.mask.visible(first + row) - c0;
            to = n < 0 ? 0 : (int)least(n, COLUMNS);
        });
    }
#pragma unroll
    for (int n = 0; n < Tile16::NUMBERS; ++n) {
        i64 r = first + Tile16::row(n);
        if (r >= nq) continue;
#pragma unroll
        for (int t = 0; t < DV / 16; ++t) {
            int c = out + t * 16 + Tile16::column(n);
            if (c < d) put(dq + q_first + r * q_row + c, sum[t].v[n], add_dq);
        }
    }
}

// dk (is_value = 0) or dv (is_value = 1): keys against all queries that see them, for all heads of the group.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_dkv(T* to, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse, const f32* total,
                      const int* lengths, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row, i64 nq, i64 nk, int heads,
                      int group, int d, float scale, int causal, i64 seed, i64 stream, int reach, float kept_scale, int is_value,
                      int add_to) {
    __shared__ Shared s;
    Block b = block_of((nk + ROWS - 1) / ROWS, heads / group);
    i64 r0 = b.tile * ROWS;
    i64 k_first = k_at + b.sample * nk * k_row + b.head * d, v_first = v_at + b.sample * nk * v_row + b.head * d;
    Vectors ks = vectors(k + k_first, k_row, nk, d), vs = vectors(v + v_first, v_row, nk, d);
    Mask mask{nq, nk, lengths ? lengths[b.sample] : nk, causal};
    int out = block_z() * DV;
    i64 first = r0 + warp_id() * 16, j = first + my_row();
    Tile16 sum[DV / 16];
#pragma unroll
    for (int t = 0; t < DV / 16; ++t) sum[t].clear();
    float *score = s.score[warp_id()], *product = s.product[warp_id()];
    // The first query that sees key j; without a causal mask all do.
    i64 late = causal == TOP_LEFT ? 0 : causal == BOTTOM_RIGHT ? nk - nq : nq;
    i64 start = causal == SEES_ALL ? 0 : r0 - late;
    start = start < 0 ? 0 : start / COLUMNS * COLUMNS;
#pragma unroll 1
    for (int g = 0; g < group; ++g) {
        i64 h = b.head * group + g, head = (b.sample * heads + h) * nq;
        Back back{mask, {seed, stream, reach, kept_scale}, scale, bias ? bias + h * nq * nk : bias, lse + head, total + head, head};
        Vectors qs = vectors(q + q_at + b.sample * nq * q_row + h * d, q_row, nq, d);
        Vectors dys = vectors(dy + (b.sample * nq * heads + h) * d, (i64)heads * d, nq, d);
#pragma unroll 1
        for (i64 c0 = start; c0 < nq && r0 < mask.length; c0 += COLUMNS) {
            scores(s, product, ks, r0, qs, c0, false);
            // The gradient of a probability is nothing that dv needs.
            if (!is_value) scores(s, score, vs, r0, dys, c0, false);
            bool is_spoiled = any_thread(s, stage_transposed(s.turned, is_value ? dys : qs, c0, out));
#pragma unroll
            for (int c = 0; c < COLUMNS / SHARING; ++c) {
                int at = c * SHARING + my_part();
                float weight, ds = back.gradient(c0 + at, j, product[my_row() * SS + at], is_value ? 0.0f : score[my_row() * SS + at], weight);
                s.weight[warp_id()][my_row() * SK + at] = narrow<T>(is_value ? weight : ds * scale);
            }
            block_sync();
            weigh(sum, s, is_spoiled, [&](int row, int& from, int& to) {
                // Queries that see this key: from one of them on, all.
                from = 0, to = (int)least(nq - c0, COLUMNS);
                while (from < to && mask.visible(c0 + from) <= first + row) ++from;
            });
        }
    }
    i64 row = is_value ? v_row : k_row, at = is_value ? v_first : k_first;
#pragma unroll
    for (int n = 0; n < Tile16::NUMBERS; ++n) {
        i64 r = first + Tile16::row(n);
        if (r >= nk) continue;
#pragma unroll
        for (int t = 0; t < DV / 16; ++t) {
            int c = out + t * 16 + Tile16::column(n);
            if (c < d) put(to + at + r * row + c, sum[t].v[n], add_to);
        }
    }
}

// dbias: the gradients of the scores, summed over samples.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_dbias(f32* dbias, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse, const f32* total,
                        const int* lengths, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row, i64 nq, i64 nk, int heads,
                        int group, int d, float scale, int causal, i64 seed, i64 stream, int reach, float kept_scale, i64 samples,
                        int add_dbias) {
    __shared__ Shared s;
    i64 tiles = (nk + COLUMNS - 1) / COLUMNS, rest = quotient(block_x(), tiles), c0 = (block_x() - rest * tiles) * COLUMNS;
    Block b = block_of(1, 1);
    i64 row_tiles = (nq + ROWS - 1) / ROWS;
    b.head = quotient(rest, row_tiles), b.tile = rest - b.head * row_tiles;
    i64 r0 = b.tile * ROWS, i = r0 + warp_id() * 16 + my_row();
    float sum[COLUMNS / SHARING];
#pragma unroll
    for (int c = 0; c < COLUMNS / SHARING; ++c) sum[c] = 0.0f;
    float *score = s.score[warp_id()], *product = s.product[warp_id()];
    for (i64 sample = 0; sample < samples; ++sample) {
        i64 head = (sample * heads + b.head) * nq, kv = b.head / group * d;
        Back back{{nq, nk, lengths ? lengths[sample] : nk, causal}, {seed, stream, reach, kept_scale}, scale, bias + b.head * nq * nk,
                  lse + head, total + head, head};
        Vectors qs = vectors(q + q_at + sample * nq * q_row + b.head * d, q_row, nq, d);
        Vectors ks = vectors(k + k_at + sample * nk * k_row + kv, k_row, nk, d);
        Vectors vs = vectors(v + v_at + sample * nk * v_row + kv, v_row, nk, d);
        Vectors dys = vectors(dy + (sample * nq * heads + b.head) * d, (i64)heads * d, nq, d);
        scores(s, product, qs, r0, ks, c0, false);
        scores(s, score, dys, r0, vs, c0, false);
#pragma unroll
        for (int c = 0; c < COLUMNS / SHARING; ++c) {
            int at = c * SHARING + my_part();
            float weight;
            sum[c] += back.gradient(i, c0 + at, product[my_row() * SS + at], score[my_row() * SS + at], weight);
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS / SHARING; ++c) {
        i64 j = c0 + c * SHARING + my_part();
        if (i < nq && j < nk) put(dbias + (b.head * nq + i) * nk + j, sum[c], add_dbias);
    }
}
