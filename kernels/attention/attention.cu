// attention: softmax of scaled scores over the visible keys, times the values; scores never leave the chip. Forward, and the gradients
// of q, k, v and of the bias, from the scores computed again.
// axes      q, y, dq, dy [B, Nq, H, d]; k, v, dk, dv [B, Nk, H / group, d]: a token's rows are `row` numbers apart; bias [H, Nq, Nk];
//           lse, total [B, H, Nq]; lengths [B]; seen [Nq + Nk, 2]: see common/seen.cuh
// types     T in {f32, bf16, f16}; scores, sums, bias, lse in f32; D in {64, 128}: 64 for d up to 64, 128 for all d
// launch    128 threads; a warp has 16 rows of one side (queries; in bwd_dkdv keys) and walks the other side in tiles of COLUMNS:
//           grid [tiles * B * H, 1, d / D], or of marked tiles [/ MARKS]; bwd_dbias [tiles of queries * tiles of keys * H]; bwd_total 8 lanes a query;
//           bwd_rows as bwd_dq
// paths     16-byte loads where rows start and step by multiples of 16 bytes, else single numbers; `only`: marked tiles alone
//           On an H200, where bf16 and f16 have kernels of their own, f32 has 0.26 (forward) and 0.14 (backward) of PyTorch eager's speed:
//           scores go through shared memory, products wait for their loads, dk and dv are two walks, and nothing is rounded to tf32
// matrix    HMMA on sm_80, sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for all types; f32 on NVIDIA is FFMA out of shared memory
// traffic   every tile of rows reads all of the other side once (d / D times); results once; f32 backward reads q, k, v, dy once more
// order     columns ascending, heads of a group ascending, samples ascending: same input, same bits; no atomics
// budget    sm_80 208 registers, sm_90a 216, gfx90a 200, gfx942 192; no spills
// source    Dao et al. 2022, algorithms 1 and 4; Milakov, Gimelshein 2018 for the running maximum

#include "common/attention.cuh"

using Mask = Seen<i64>;

// How many of a tile's columns, from c0 on, lie before `end`.
DEVICE int columns_before(i64 end, i64 c0) { return (int)Mask::clamp(end - c0, COLUMNS); }

struct Block {
    i64 tile, sample, head;
};

// Which rows of which head this block has: heads next to each other share keys in the cache.
DEVICE Block block_of(i64 at, i64 tiles, i64 heads) {
    i64 rest = quotient(at, tiles), tile = at - rest * tiles, sample = quotient(rest, heads);
    return {tile, sample, rest - sample * heads};
}

// The tiles that a block computes: one of its own; where only marked ones are wanted, those of MARKS that are, of which there are hardly
// ever any: a block a tile would take longer to start than to look. -1 behind the last.
constexpr int MARKS = 32;
DEVICE int tile_after(int at, const int* only, int marks) {
    if (!only) return -1;
    block_sync();
    int end = (int)least(((i64)block_x() + 1) * MARKS, marks);
    while (++at < end) {
        if (only[at]) return at;
    }
    return -1;
}
DEVICE int first_tile(const int* only, int marks) {
    if (!only) return (int)block_x();
    int first = (int)block_x() * MARKS, any = 0;
#pragma unroll
    for (int i = 0; i < MARKS; ++i) any |= first + i < marks ? only[first + i] : 0;
    return any ? tile_after(first - 1, only, marks) : -1;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_fwd(T* y, f32* lse, const T* q, const T* k, const T* v, const f32* bias, const int* lengths, const int* seen, i64 q_at, i64 k_at, i64 v_at,
                  i64 q_row, i64 k_row, i64 v_row, i64 nq, i64 nk, i64 before, i64 after, int heads, int group, int d, float scale, i64 seed,
                  i64 stream, int reach, float kept_scale, const int* only, int marks) {
    follow();
    __shared__ Shared s;
    for (int todo = first_tile(only, marks); todo >= 0; todo = tile_after(todo, only, marks)) {
        Block b = block_of(todo, (nq + ROWS - 1) / ROWS, heads);
        i64 r0 = b.tile * ROWS, head = (b.sample * heads + b.head) * nq, kv = b.head / group * d;
        i64 drawn = (b.sample * heads + b.head) * Dropping::tiles(nq);
        Mask mask{nq, nk, lengths ? lengths[b.sample] : nk, before, after, seen};
        Dropping dropping{seed, stream, reach, kept_scale};
        Vectors qs = vectors(q + q_at + b.sample * nq * q_row + b.head * d, q_row, nq, d);
        Vectors ks = vectors(k + k_at + b.sample * nk * k_row + kv, k_row, nk, d);
        Vectors vs = vectors(v + v_at + b.sample * nk * v_row + kv, v_row, nk, d);
        if (bias) bias += b.head * nq * nk;
        int out = block_z() * DV;
        i64 first = r0 + warp_id() * 16, i = first + my_row(), from = mask.first(i), to = i < nq ? mask.end(i) : from;
        i64 start = mask.first(r0) / COLUMNS * COLUMNS, most = mask.end(least(r0 + ROWS, nq) - 1);
        float top = -infinity(), total = 0.0f;
        Tile16 sum[DV / 16];
#pragma unroll
        for (int t = 0; t < DV / 16; ++t) sum[t].clear();
        float* score = s.score[warp_id()];
        for (i64 c0 = start; c0 < most; c0 += COLUMNS) {
            scores(s, score, qs, r0, ks, c0, c0 == start);
            bool is_spoiled = any_thread(s, stage_transposed(s.turned, vs, c0, out));
            float largest = top;
#pragma unroll 1
            for (int c = my_part(); c < COLUMNS; c += SHARING) {
                float x = from <= c0 + c && c0 + c < to ? score_of(score[my_row() * SS + c], scale, bias, i * nk + c0 + c) : -infinity();
                score[my_row() * SS + c] = x;
                largest = x > largest || is_nan(x) ? x : largest;
            }
            largest = row_max(largest);
            // Where every score is -inf all probabilities are 0.
            float shift = largest == -infinity() ? 0.0f : largest;
            float fade = exp_f32(top - shift), part = 0.0f;
#pragma unroll 1
            for (int c = my_part(); c < COLUMNS; c += SHARING) {
                float e = from <= c0 + c && c0 + c < to ? exp_f32(score[my_row() * SS + c] - shift) : 0.0f;
                part += e;
                if (reach) e *= dropping.factor(drawn, i, c0 + c);
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
            weigh(sum, s, whole_tiles(d - out, DV), is_spoiled, [&](int row, int& from, int& to) {
                from = columns_before(mask.first(first + row), c0), to = columns_before(mask.end(first + row), c0);
            });
        }
        block_sync();
        float shift = top == -infinity() ? 0.0f : top;
        if (my_part() == 0) {
            s.factor[warp_id()][my_row()] = total == 0.0f ? 1.0f : total;
            if (i < nq && block_z() == 0) lse[head + i] = from < to ? shift + log_f32(total) : -infinity();
        }
        each_result(s, sum, [&](int row, int column, float v) {
            i64 r = first + row;
            int c = out + column;
            if (r < nq && c < d) y[((b.sample * nq + r) * heads + b.head) * d + c] = narrow<T>(divide(v, s.factor[warp_id()][row]));
        });
    }
}

// total = sum of dy * y: SHARERS lanes a query of a head, by 16 bytes where all rows begin at multiples of them. Rows go as they lie in
// y, [B, Nq, H, d]; in total they are [B, H, Nq].
constexpr int SHARERS = 8;
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_total(f32* total, const T* y, const T* dy, i64 queries, i64 nq, int heads, int d) {
    follow();
    constexpr int W = 16 / sizeof(T);
    i64 row = (i64)block_x() * (THREADS / SHARERS) + thread() / SHARERS, at = least(row, queries - 1) * d;
    int l = thread() % SHARERS;
    float sum = 0.0f;
    if (d % W == 0 && ((u64)y | (u64)dy) % 16 == 0) {
        for (int c = l * W; c < d; c += SHARERS * W) {
            Pack<T, W> a = load_kept<T, W>(dy + at + c), b = load_kept<T, W>(y + at + c);
#pragma unroll
            for (int k = 0; k < W; ++k) sum = fmaf(a.get(k), b.get(k), sum);
        }
    } else {
        for (int c = l; c < d; c += SHARERS) sum = fmaf(widen(dy[at + c]), widen(y[at + c]), sum);
    }
#pragma unroll
    for (int m = SHARERS / 2; m > 0; m /= 2) sum += lane_xor(sum, m);
    if (l > 0 || row >= queries) return;
    i64 token = quotient(row, heads), sample = quotient(token, nq);
    total[(sample * heads + row - token * heads) * nq + token - sample * nq] = sum;
}

// What the backward kernels share of a head. `inverse` is there for f32 alone: see attention_bwd_rows.
struct Back {
    Mask mask;
    Dropping dropping;
    float scale;
    const float *bias, *lse, *total, *inverse;
    i64 drawn;  // the first row of tiles of its dropout

    // The probability of key j for query i, which sees it.
    DEVICE float probability(i64 i, i64 j, float product) const {
        float at = lse[i];
        return exp_f32(score_of(product, scale, bias, i * mask.nk + j) - (at == -infinity() ? 0.0f : at));
    }
    // p and ds of query i and key j, from q k and dy v; the dropped p in `weight`.
    DEVICE float gradient(i64 i, i64 j, float product, float dproduct, float& weight) const {
        weight = 0.0f;
        if (i >= mask.nq || !mask.sees(i, j)) return 0.0f;
        float p = probability(i, j, product);
        if (inverse) p *= inverse[i];
        float factor = dropping.factor(drawn, i, j);
        weight = dropping.reach ? p * factor : p;
        // Of one key the probability is 1 whatever its score: the difference below would only be rounding.
        if (mask.is_alone(i)) return 0.0f * dproduct;
        return p * ((dropping.reach ? dproduct * factor : dproduct) - total[i]);
    }
};

// For f32: total = sum of p * dp and inverse = 1 / sum of p, of the probabilities that the gradients use. exp(score - lse) errs by what
// rounding took from lse, the same factor for a whole row: divided by their sum they add up to 1 again, and the gradients of a row's
// scores to 0. 16-bit results hide both: they take attention_bwd_total,
// which costs no product.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_rows(f32* total, f32* inverse, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse,
                       const int* lengths, const int* seen, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row, i64 v_row, i64 nq,
                       i64 nk, i64 before, i64 after, int heads, int group, int d, float scale, i64 seed, i64 stream, int reach,
                       float kept_scale) {
    follow();
    if constexpr (sizeof(T) == 4) {
        __shared__ Shared s;
        Block b = block_of(block_x(), (nq + ROWS - 1) / ROWS, heads);
        i64 r0 = b.tile * ROWS, head = (b.sample * heads + b.head) * nq, kv = b.head / group * d;
        Back back{{nq, nk, lengths ? lengths[b.sample] : nk, before, after, seen}, {seed, stream, reach, kept_scale}, scale,
                  bias ? bias + b.head * nq * nk : bias, lse + head, nullptr, nullptr, (b.sample * heads + b.head) * Dropping::tiles(nq)};
        Vectors qs = vectors(q + q_at + b.sample * nq * q_row + b.head * d, q_row, nq, d);
        Vectors ks = vectors(k + k_at + b.sample * nk * k_row + kv, k_row, nk, d);
        Vectors vs = vectors(v + v_at + b.sample * nk * v_row + kv, v_row, nk, d);
        Vectors dys = vectors(dy + (b.sample * nq * heads + b.head) * d, (i64)heads * d, nq, d);
        i64 i = r0 + warp_id() * 16 + my_row(), from = back.mask.first(i), to = i < nq ? back.mask.end(i) : from;
        i64 start = back.mask.first(r0) / COLUMNS * COLUMNS, most = back.mask.end(least(r0 + ROWS, nq) - 1);
        Sum part{0.0f, 0.0f}, inner{0.0f, 0.0f};
        float *score = s.score[warp_id()], *product = s.product[warp_id()];
        for (i64 c0 = start; c0 < most; c0 += COLUMNS) {
#pragma unroll 1
            for (int pass = 0; pass < 2; ++pass)
                scores(s, pass ? score : product, pick(pass, dys, qs), r0, pick(pass, vs, ks), c0, true);
#pragma unroll 1
            for (int at = my_part(); at < COLUMNS && c0 + at < to; at += SHARING) {
                if (c0 + at < from) continue;
                float p = back.probability(i, c0 + at, product[my_row() * SS + at]), dp = score[my_row() * SS + at];
                if (reach) dp *= back.dropping.factor(back.drawn, i, c0 + at);
                add_to(part, p);
                add_product(inner, p, dp);
            }
        }
        float all = row_sum(value_of(part)), sum = row_sum(value_of(inner));
        if (my_part() == 0 && i < nq) {
            float one = all == 0.0f ? 1.0f : divide(1.0f, all);
            inverse[head + i] = one, total[head + i] = sum * one;
        }
    }
}

// dq: as forward, queries against all keys.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_dq(T* dq, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse, const f32* total,
                     const f32* inverse, const int* lengths, const int* seen, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row,
                     i64 v_row, i64 nq, i64 nk, i64 before, i64 after, int heads, int group, int d, float scale, i64 seed, i64 stream, int reach,
                     float kept_scale, int add_dq, const int* only, int marks) {
    follow();
    __shared__ Shared s;
    for (int todo = first_tile(only, marks); todo >= 0; todo = tile_after(todo, only, marks)) {
        Block b = block_of(todo, (nq + ROWS - 1) / ROWS, heads);
        i64 r0 = b.tile * ROWS, head = (b.sample * heads + b.head) * nq, kv = b.head / group * d;
        i64 q_first = q_at + b.sample * nq * q_row + b.head * d;
        Back back{{nq, nk, lengths ? lengths[b.sample] : nk, before, after, seen}, {seed, stream, reach, kept_scale}, scale,
                  bias ? bias + b.head * nq * nk : bias, lse + head, total + head, inverse ? inverse + head : inverse,
                  (b.sample * heads + b.head) * Dropping::tiles(nq)};
        Vectors qs = vectors(q + q_first, q_row, nq, d);
        Vectors ks = vectors(k + k_at + b.sample * nk * k_row + kv, k_row, nk, d);
        Vectors vs = vectors(v + v_at + b.sample * nk * v_row + kv, v_row, nk, d);
        Vectors dys = vectors(dy + (b.sample * nq * heads + b.head) * d, (i64)heads * d, nq, d);
        int out = block_z() * DV;
        i64 first = r0 + warp_id() * 16, i = first + my_row();
        i64 start = back.mask.first(r0) / COLUMNS * COLUMNS, most = back.mask.end(least(r0 + ROWS, nq) - 1);
        Tile16 sum[DV / 16];
#pragma unroll
        for (int t = 0; t < DV / 16; ++t) sum[t].clear();
        float *score = s.score[warp_id()], *product = s.product[warp_id()];
        for (i64 c0 = start; c0 < most; c0 += COLUMNS) {
#pragma unroll 1
            for (int pass = 0; pass < 2; ++pass)
                scores(s, pass ? score : product, pick(pass, dys, qs), r0, pick(pass, vs, ks), c0, true);
            bool is_spoiled = any_thread(s, stage_transposed(s.turned, ks, c0, out));
#pragma unroll 1
            for (int at = my_part(); at < COLUMNS; at += SHARING) {
                float weight, ds = back.gradient(i, c0 + at, product[my_row() * SS + at], score[my_row() * SS + at], weight);
                s.weight[warp_id()][my_row() * SK + at] = narrow<T>(ds * scale);
            }
            block_sync();
            weigh(sum, s, whole_tiles(d - out, DV), is_spoiled, [&](int row, int& from, int& to) {
                from = columns_before(back.mask.first(first + row), c0), to = columns_before(back.mask.end(first + row), c0);
            });
        }
        each_result(s, sum, [&](int row, int column, float v) {
            i64 r = first + row;
            int c = out + column;
            if (r < nq && c < d) put(dq + q_first + r * q_row + c, v, add_dq);
        });
    }
}

// dk (is_value = 0) or dv (is_value = 1): keys against all queries that see them, for all heads of the group.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_dkv(T* to, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse, const f32* total,
                      const f32* inverse, const int* lengths, const int* seen, i64 q_at, i64 k_at, i64 v_at, i64 q_row, i64 k_row,
                      i64 v_row, i64 nq, i64 nk, i64 before, i64 after, int heads, int group, int d, float scale, i64 seed, i64 stream, int reach,
                      float kept_scale, int is_value, int add_to, const int* only, int marks) {
    follow();
    __shared__ Shared s;
    for (int todo = first_tile(only, marks); todo >= 0; todo = tile_after(todo, only, marks)) {
        Block b = block_of(todo, (nk + ROWS - 1) / ROWS, heads / group);
        i64 r0 = b.tile * ROWS;
        i64 k_first = k_at + b.sample * nk * k_row + b.head * d, v_first = v_at + b.sample * nk * v_row + b.head * d;
        Vectors ks = vectors(k + k_first, k_row, nk, d), vs = vectors(v + v_first, v_row, nk, d);
        Mask mask{nq, nk, lengths ? lengths[b.sample] : nk, before, after, seen};
        int out = block_z() * DV;
        i64 first = r0 + warp_id() * 16, j = first + my_row();
        Tile16 sum[DV / 16];
#pragma unroll
        for (int t = 0; t < DV / 16; ++t) sum[t].clear();
        float *score = s.score[warp_id()], *product = s.product[warp_id()];
        // Queries that see any of the keys.
        i64 start = mask.first_query(r0) / COLUMNS * COLUMNS, end = mask.end_query(least(r0 + ROWS, nk) - 1);
#pragma unroll 1
        for (int g = 0; g < group; ++g) {
            i64 h = b.head * group + g, head = (b.sample * heads + h) * nq;
            Back back{mask, {seed, stream, reach, kept_scale}, scale, bias ? bias + h * nq * nk : bias,
                      lse + head, total + head, inverse ? inverse + head : inverse,
                  (b.sample * heads + h) * Dropping::tiles(nq)};
            Vectors qs = vectors(q + q_at + b.sample * nq * q_row + h * d, q_row, nq, d);
            Vectors dys = vectors(dy + (b.sample * nq * heads + h) * d, (i64)heads * d, nq, d);
#pragma unroll 1
            for (i64 c0 = start; c0 < end && r0 < mask.length; c0 += COLUMNS) {
                // The gradient of a probability is nothing that dv needs.
#pragma unroll 1
                for (int pass = 0; pass < (is_value ? 1 : 2); ++pass)
                    scores(s, pass ? score : product, pick(pass, vs, ks), r0, pick(pass, dys, qs), c0, true);
                bool is_spoiled = any_thread(s, stage_transposed(s.turned, pick(is_value, dys, qs), c0, out));
#pragma unroll 1
                for (int at = my_part(); at < COLUMNS; at += SHARING) {
                    float dp = is_value ? 0.0f : score[my_row() * SS + at], weight;
                    float ds = back.gradient(c0 + at, j, product[my_row() * SS + at], dp, weight);
                    s.weight[warp_id()][my_row() * SK + at] = narrow<T>(is_value ? weight : ds * scale);
                }
                block_sync();
                weigh(sum, s, whole_tiles(d - out, DV), is_spoiled, [&](int row, int& from, int& to) {
                    i64 key = first + row;
                    from = columns_before(mask.first_query(key), c0);
                    to = key < mask.length ? columns_before(mask.end_query(key), c0) : 0;
                });
            }
        }
        i64 row = is_value ? v_row : k_row, at = is_value ? v_first : k_first;
        each_result(s, sum, [&](int r, int column, float v) {
            int c = out + column;
            if (first + r < nk && c < d) put(to + at + (first + r) * row + c, v, add_to);
        });
    }
}

// dbias: the gradients of the scores, summed over samples.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_bwd_dbias(f32* dbias, const T* q, const T* k, const T* v, const T* dy, const f32* bias, const f32* lse,
                        const f32* total, const f32* inverse, const int* lengths, const int* seen, i64 q_at, i64 k_at, i64 v_at,
                        i64 q_row, i64 k_row, i64 v_row, i64 nq, i64 nk, i64 before, i64 after, int heads, int group, int d,
                        float scale, i64 seed,
                        i64 stream, int reach, float kept_scale, i64 samples, int add_dbias) {
    follow();
    __shared__ Shared s;
    i64 tiles = (nk + COLUMNS - 1) / COLUMNS, rest = quotient(block_x(), tiles), c0 = (block_x() - rest * tiles) * COLUMNS;
    Block b = block_of(block_x(), 1, 1);
    i64 row_tiles = (nq + ROWS - 1) / ROWS;
    b.head = quotient(rest, row_tiles), b.tile = rest - b.head * row_tiles;
    i64 r0 = b.tile * ROWS, i = r0 + warp_id() * 16 + my_row();
    float *score = s.score[warp_id()], *product = s.product[warp_id()], *sum = s.running[warp_id()] + my_row() * SS;
    for (int at = my_part(); at < COLUMNS; at += SHARING) sum[at] = 0.0f;
    for (i64 sample = 0; sample < samples; ++sample) {
        i64 head = (sample * heads + b.head) * nq, kv = b.head / group * d;
        Back back{{nq, nk, lengths ? lengths[sample] : nk, before, after, seen}, {seed, stream, reach, kept_scale}, scale,
                  bias + b.head * nq * nk,
                  lse + head, total + head, inverse ? inverse + head : inverse,
                  (sample * heads + b.head) * Dropping::tiles(nq)};
        // A tile that nobody sees adds nothing.
        if (c0 + COLUMNS <= back.mask.first(r0) || c0 >= back.mask.end(least(r0 + ROWS, nq) - 1)) continue;
        Vectors qs = vectors(q + q_at + sample * nq * q_row + b.head * d, q_row, nq, d);
        Vectors ks = vectors(k + k_at + sample * nk * k_row + kv, k_row, nk, d);
        Vectors vs = vectors(v + v_at + sample * nk * v_row + kv, v_row, nk, d);
        Vectors dys = vectors(dy + (sample * nq * heads + b.head) * d, (i64)heads * d, nq, d);
#pragma unroll 1
        for (int pass = 0; pass < 2; ++pass)
            scores(s, pass ? score : product, pick(pass, dys, qs), r0, pick(pass, vs, ks), c0, true);
#pragma unroll 1
        for (int at = my_part(); at < COLUMNS; at += SHARING) {
            float weight;
            sum[at] += back.gradient(i, c0 + at, product[my_row() * SS + at], score[my_row() * SS + at], weight);
        }
    }
#pragma unroll 1
    for (int at = my_part(); at < COLUMNS; at += SHARING) {
        i64 j = c0 + at;
        if (i < nq && j < nk) put(dbias + (b.head * nq + i) * nk + j, sum[at], add_dbias);
    }
}

// The table of common/seen.cuh for `count` sequences one after the other, which begin at query_at and key_at; a thread a query or key.
extern "C" __global__ void __launch_bounds__(256)
    attention_seen(int* seen, const int* query_at, const int* key_at, int nq, int nk, int count, int left, int right, int ends_together) {
    follow();
    i64 at = (i64)block_x() * 256 + thread();
    if (at >= (i64)nq + nk) return;
    bool is_query = at < nq;
    int own = (int)(is_query ? at : at - nq), low = 0, high = count;
    const int* starts = is_query ? query_at : key_at;
    // The last sequence that begins at or before it: where several do, the others are empty.
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (starts[middle] <= own) low = middle;
        else high = middle;
    }
    int q0 = query_at[low], q1 = query_at[low + 1], k0 = key_at[low], k1 = key_at[low + 1];
    // A query's own key, or a key's own query, and how far those lie that see each other.
    int across = ends_together ? k1 - q1 : k0 - q0, mine = own + (is_query ? across : -across);
    int first = mine - (is_query ? left : right), end = mine + (is_query ? right : left) + 1;
    int from = is_query ? k0 : q0, to = is_query ? k1 : q1;
    seen[2 * at] = first < from ? from : first < to ? first : to;
    seen[2 * at + 1] = end < from ? from : end < to ? end : to;
}
