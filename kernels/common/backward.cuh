// backward: what the kernels of attention's gradients on Hopper share: what a block does and who sees what of it, products, a tile's
// probabilities and the gradients of its scores, copies in, and what runs before and after
// needs     D, HAS_BIAS, HAS_DROPOUT; KEYS of a block: 128 for heads up to 128 numbers, 64 beyond
// layout    rows of the accumulators are keys, columns queries: both operands of the next products stay in registers

#pragma once
#include "common/dropping.cuh"
#include "common/math.cuh"
#include "common/pack.cuh"
#include "common/seen.cuh"
#include "common/wgmma.cuh"

#ifndef D
#define D 128
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef HAS_DROPOUT
#define HAS_DROPOUT 0
#endif

constexpr int KEYS = D <= 128 ? 128 : 64;                   // of a block
constexpr int QUERIES = 64;                                 // of a tile
constexpr int THREADS = 384;
constexpr int PANELS = (D + 63) / 64;                       // of 64 numbers, 128 bytes a row
constexpr int DEPTH = (D + 15) / 16;                        // steps of the scores' products
constexpr int KEY_PANEL = KEYS * 128, QUERY_PANEL = QUERIES * 128;  // bytes
constexpr int DS_BYTES = KEYS * QUERIES * 2;                // of the gradients of a tile's scores
constexpr int SUM_COUNT = QUERIES * D;                      // numbers of dq that a step makes
constexpr int TURNS = D <= 128 ? 1 : 2;                     // turns of a tile of queries: of all columns of dq, or of two shares
constexpr float LOG2_E = 1.4426950408889634f;

// In place of the sum of dy y for a query that sees one key alone: its probability is 1 whatever the score, which has no gradient.
constexpr u32 ALONE = 0x7fc5a1e5;

// Sizes and masks of one application.
struct Problem {
    int nq, nk, heads, group, batch, before, after, section;
    const int *lengths, *table;
    Dropping dropping;

    // Blocks of keys of all heads.
    DEVICE int works() const { return (nk + KEYS - 1) / KEYS * (heads / group) * batch; }
    DEVICE int tiles() const { return (nq + QUERIES - 1) / QUERIES; }
    DEVICE int length(int sample) const { return lengths ? lengths[sample] : nk; }
    DEVICE Seen<int> seen(int sample) const { return {nq, nk, length(sample), before, after, table}; }
    // Where the length is known: that of a block's work.
    template <typename WORK> DEVICE Seen<int> seen(const WORK& work) const { return {nq, nk, work.length, before, after, table}; }
};

// What a block does: KEYS keys of one head of keys, for `steps` tiles of queries down to `lowest`, of each head of the group. A tile
// is taken by all blocks from that of the first key which its first query sees to that of the last key of its last one.
struct Work {
    int block, kv_head, sample, length, lowest, steps;

    Work() = default;
    DEVICE int highest() const { return lowest + steps - 1; }

    // The ticket-th: blocks of keys ascending, heads of a section, whose queries fit into the cache, side by side.
    DEVICE Work(const Problem& of, int ticket) {
        int kv_heads = of.heads / of.group, all = kv_heads * of.batch, blocks = (of.nk + KEYS - 1) / KEYS;
        int part = ticket / (blocks * of.section), rest = ticket - part * blocks * of.section;
        int here = all - part * of.section < of.section ? all - part * of.section : of.section;
        int pair = part * of.section + rest % here;
        block = rest / here, sample = pair / kv_heads, kv_head = pair - sample * kv_heads;
        length = of.length(sample);
        Seen<int> seen = of.seen(*this);
        int last = ((block + 1) * KEYS < of.nk ? (block + 1) * KEYS : of.nk) - 1;
        int from = seen.first_query(block * KEYS), to = seen.end_query(last);
        lowest = from / QUERIES, steps = from < to ? (to + QUERIES - 1) / QUERIES - lowest : 0;
    }
};

// The first of a thread's two keys; the other is 8 further.
DEVICE int first_key_of(const Work& work, int group) {
    return work.block * KEYS + 64 * group + warp_id() % 4 * 16 + lane() / 4;
}

// Calls step(head, tile) in the order of the work.
template <typename F> DEVICE void each_step(const Problem& of, const Work& work, F step) {
#pragma unroll 1
    for (int g = 0; g < of.group; ++g) {
#pragma unroll 1
        for (int tile = work.highest(); tile >= work.lowest; --tile) step(work.kv_head * of.group + g, tile);
    }
}

// Copies what a block of keys needs: keys and values once, when those of the block before are no longer read, then queries and the
// gradients of their results, tile by tile. One thread; `turn` is 0 and 1 in turns for one block after the other, `count` is the number
// of tiles so far.
template <typename S>
DEVICE void copy(S& s, const Problem& of, const Work& work, u32 turn, int& count, const TensorMap& q, const TensorMap& k, const TensorMap& v,
                 const TensorMap& dy, const f32* exponent, const f32* inner) {
    s.k_empty.wait(turn ^ 1), s.v_empty.wait(turn ^ 1);
    if (work.steps == 0) return s.k_full.arrive(), s.v_full.arrive();
    s.k_full.arrive_expect(PANELS * KEY_PANEL);
    for (int p = 0; p < PANELS; ++p)
        load_box(s.k + p * KEY_PANEL, k, s.k_full, p * 64, work.kv_head, work.block * KEYS, work.sample);
    bool is_first = true;
    each_step(of, work, [&](int head, int tile) {
        i64 row = ((i64)(work.sample * of.heads + head) * of.tiles() + tile) * QUERIES;
        int stage = count % S::STAGES, dy_stage = count % S::DY_STAGES;
        s.q_empty[stage].wait(count / S::STAGES % 2 ^ 1);
        s.q_full[stage].arrive_expect(PANELS * QUERY_PANEL + QUERIES * 4);
        for (int p = 0; p < PANELS; ++p)
            load_box(s.q[stage] + p * QUERY_PANEL, q, s.q_full[stage], p * 64, head, tile * QUERIES, work.sample);
        load_bytes(s.exponent[stage], exponent + row, QUERIES * 4, s.q_full[stage]);
        if (is_first) {
            s.v_full.arrive_expect(PANELS * KEY_PANEL);
            for (int p = 0; p < PANELS; ++p)
                load_box(s.v + p * KEY_PANEL, v, s.v_full, p * 64, work.kv_head, work.block * KEYS, work.sample);
            is_first = false;
        }
        s.dy_empty[dy_stage].wait(count / S::DY_STAGES % 2 ^ 1);
        s.dy_full[dy_stage].arrive_expect(PANELS * QUERY_PANEL + QUERIES * 4);
        for (int p = 0; p < PANELS; ++p)
            load_box(s.dy[dy_stage] + p * QUERY_PANEL, dy, s.dy_full[dy_stage], p * 64, head, tile * QUERIES, work.sample);
        load_bytes(s.inner[dy_stage], inner + row, QUERIES * 4, s.dy_full[dy_stage]);
        ++count;
    });
}

DEVICE int load_acquired(const int* at) {
    int v;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
DEVICE void store_released(int* at, int v) { asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(at), "r"(v) : "memory"); }
// Orders what bulk copies do in global memory with what threads see of it.
DEVICE void global_proxy_fence() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// What was there ends here: the first product sets, and no register has to keep the old numbers for it.
template <int R> DEVICE void forget(float (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; ++i) d[i] = 0.0f;
    pin(d);
}

// Descriptors of operands by their lower halves, which take half the registers.
DEVICE u32 low_k(const void* start) { return low_along_k(shared_address(start)); }
DEVICE u32 low_n(const void* start, u32 panel) { return low_along_n(shared_address(start), panel); }

// Issues 64 keys times a tile of queries, or values times gradients of results.
DEVICE void issue_scores(float (&s)[QUERIES / 2], u32 keys, u32 queries) {
    forget(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < DEPTH; ++step) {
        int panel = step / 4, within = step % 4 * 2;
        multiply<T>(s, swizzled(keys + panel * (KEY_PANEL >> 4) + within), swizzled(queries + panel * (QUERY_PANEL >> 4) + within), step > 0);
    }
    wgmma_commit();
}

// Issues what a tile of queries, or of gradients of results, adds to the sums of 64 keys.
DEVICE void issue_sums(float (&sum)[D / 2], const u32 (&weight)[QUERIES / 16][4], u32 rows) {
    pin(sum);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < QUERIES / 16; ++step) multiply<T, 1>(sum, weight[step], swizzled(rows + step * 128), true);
    wgmma_commit();
}

// Issues dq of 64 queries and some columns: gradients of scores, which lie with a key a row, times the keys.
template <int R> DEVICE void issue_dq(float (&dq)[R], u32 ds, u32 keys) {
    forget(dq);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) multiply<T, 1, 1>(dq, swizzled(ds + step * 128), swizzled(keys + step * 128), step > 0);
    wgmma_commit();
}

// Which of a thread's probabilities of a tile are kept.
struct Kept {
    u32 bits[2];  // for 32 queries each

    // Of a tile of queries of the `head`-th of all heads from i0 on, and the 16 keys of a warp from `key` on. Lanes of keys side by side
    // have the same blocks: each draws one word, and they trade. What is the same for every tile is computed anew: kept, it would take
    // registers from the products.
    DEVICE void draw(Dropping dropping, int head, int nq, int i0, int key) {
        int l = lane();
        asm volatile("" : "+r"(l), "+r"(nq), "+l"(dropping.seed), "+l"(dropping.stream));
        int own = l / 4 % 2;
        u32 rows = head * Dropping::tiles(nq) + i0 / 16 + 2 * own, place = key + l % 4 * 4 + l / 8;
        u32 mine = dropping.kept_bits(rows, place) | dropping.kept_bits(rows + 1, place) << 16, other = lane_xor((int)mine, 4);
        bits[0] = (own ? other : mine) >> own;
        bits[1] = (own ? mine : other) >> own;
    }
    // A probability that is dropped becomes negative: no register has to remember it apart.
    DEVICE float sign(float p, int i) const { return bits[i / 16] >> (i / 8 % 2 * 16 + i % 2 * 8 + i / 2 % 2 * 4 + i / 4 % 2 * 2) & 1 ? p : -p; }
};

// What of such a probability takes part in sums; the factor of what is kept comes when they are complete.
DEVICE float weight_of(float p) { return HAS_DROPOUT && p < 0.0f ? 0.0f : p; }

// `of` of each number, packed.
template <typename F> DEVICE void to_operand(u32 (&p)[QUERIES / 16][4], const float (&s)[QUERIES / 2], F of) {
#pragma unroll
    for (int i = 0; i < QUERIES / 4; ++i) p[i / 4][i % 4] = narrow_pair<T>(of(s[2 * i]), of(s[2 * i + 1]));
}

// Tiles of queries that all see all keys of the block.
struct Clear {
    int from, to;  // their first queries

    Clear() = default;
    DEVICE Clear(const Problem& of, const Work& work) {
        Seen<int> seen = of.seen(work);
        from = seen.first_query((work.block + 1) * KEYS - 1), to = seen.end_query(work.block * KEYS);
        // Queries that there are not have no probabilities.
        to = to == of.nq ? of.nq : to - QUERIES;
    }
    DEVICE bool has(int i0) const { return from <= i0 && i0 <= to; }
};

// Takes work after work, when the copies of the one before are under way, and at last says that there is none. One thread. Not sooner:
// a block that holds work which it does not do lets those wait who come after it.
template <typename S>
DEVICE void take(S& s, const Problem& of, int* ticket) {
    for (Ring<2> ring;; ring.next()) {
        int taken = atomicAdd(ticket, 1);
        s.work_empty[ring.stage].wait(ring.parity ^ 1);
        Work& work = s.work[ring.stage];
        bool is_there = taken < of.works();
        if (is_there) {
            work = Work(of, taken);
            asm volatile("" ::: "memory");  // what is written there takes no registers
            s.clear[ring.stage] = Clear(of, work);
        } else {
            work.steps = -1;
        }
        s.work_full[ring.stage].arrive();
        if (!is_there) return;
        s.work_wanted.wait(ring.stage);
    }
}

// Copies what work after work needs. One thread.
template <typename S>
DEVICE void feed(S& s, const Problem& of, const TensorMap& q, const TensorMap& k, const TensorMap& v, const TensorMap& dy,
                 const f32* exponent, const f32* inner) {
    int count = 0;
    for (Ring<2> ring;; ring.next()) {
        s.work_full[ring.stage].wait(ring.parity);
        const Work& work = s.work[ring.stage];
        if (work.steps < 0) return;
        copy(s, of, work, ring.stage, count, q, k, v, dy, exponent, inner);
        s.work_wanted.arrive();
        s.work_empty[ring.stage].arrive();
    }
}

// Which queries see a thread's two keys. Computed anew for each tile that needs it: kept, it would take registers from the products.
struct Seeing {
    int from[2];
    u32 count[2];

    Seeing() = default;
    DEVICE Seeing(const Problem& of, const Work& work, int group) {
        Seen<int> seen = of.seen(work);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int key = first_key_of(work, group) + 8 * h;
            from[h] = seen.first_query(key);
            count[h] = key < seen.length ? (u32)(seen.end_query(key) - from[h]) : 0;
        }
    }
    DEVICE bool sees(int h, int query) const { return (u32)(query - from[h]) < count[h]; }
};

// Scores to probabilities. `exponent` is log2 of what a query's exponentials add up to, infinite for a query that there is not.
template <bool IS_MASKED>
DEVICE void probabilities(float (&s)[QUERIES / 2], const float* exponent, float factor, const Seeing& seen, int i0,
                          const Kept& kept) {
#pragma unroll
    for (int j = 0; j < QUERIES / 8; ++j) {
        int at = 8 * j + lane() % 4 * 2;
        float2 e = *(const float2*)(exponent + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x = exp2_small(fmaf(s[4 * j + i], factor, i % 2 ? -e.y : -e.x));
            if (HAS_DROPOUT) x = kept.sign(x, 4 * j + i);
            s[4 * j + i] = IS_MASKED && !seen.sees(i / 2, i0 + at + i % 2) ? 0.0f : x;
        }
    }
}

// Probabilities and their gradients to the gradients of scores, in place of the latter.
template <bool IS_MASKED>
DEVICE void gradients(float (&dp)[QUERIES / 2], const float (&p)[QUERIES / 2], const float* inner, const Seeing& seen, int i0,
                      const Problem& of) {
#pragma unroll
    for (int j = 0; j < QUERIES / 8; ++j) {
        int at = 8 * j + lane() % 4 * 2;
        float2 e = *(const float2*)(inner + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float weight = p[4 * j + i], sum = i % 2 ? e.y : e.x, kept = HAS_DROPOUT && weight < 0.0f ? 0.0f : dp[4 * j + i];
            // A factor out of constant memory takes no register.
            float slope = HAS_DROPOUT ? fmaf(kept, of.dropping.scale, -sum) : kept - sum;
            float ds = (HAS_DROPOUT ? absolute(weight) : weight) * slope;
            if (IS_MASKED) {
                if (bits_of(sum) == ALONE) ds = 0.0f * dp[4 * j + i];
                if (!seen.sees(i / 2, i0 + at + i % 2)) ds = 0.0f;
            }
            dp[4 * j + i] = ds;
        }
    }
}

// Scores times their factor, plus bias: what is not there counts as 0.
DEVICE void add_bias(float (&s)[QUERIES / 2], const f32* bias, int first_query, int first_key, const Problem& of, float factor) {
#pragma unroll
    for (int i = 0; i < QUERIES / 2; ++i) {
        int r = first_query + i / 4 * 8 + lane() % 4 * 2 + i % 2, c = first_key + i / 2 % 2 * 8;
        float b = r < of.nq && c < of.nk ? bias[r * of.nk + c] : 0.0f;
        s[i] = fmaf(s[i], factor, b * LOG2_E);
    }
}

// This warp's 16 keys of the gradients of scores to shared memory, a key a row.
DEVICE void keep(unsigned char* ds, const u32 (&p)[QUERIES / 16][4], int group) {
    int r = lane() % 16, row = 64 * group + warp_id() % 4 * 16 + r;
    u32 to = shared_address(ds) + row * 128 + (lane() / 16 ^ r % 8) * 16;
    // Chunk 2 * step further on lies where the swizzle turns these bits: one address, not four.
#pragma unroll
    for (int step = 0; step < QUERIES / 16; ++step) store_matrices(to ^ step * 32, p[step][0], p[step][1], p[step][2], p[step][3]);
}

// Whether a number is infinite or NaN.
template <int R> DEVICE bool is_any_odd(const float (&d)[R]) {
    bool is_odd = false;
#pragma unroll
    for (int i = 0; i < R; ++i) is_odd |= !(absolute(d[i]) < infinity());
    return is_odd;
}

// Four lanes of a row, which have columns 2 l and 2 l + 1 of four neighbouring blocks of 8, get all 8 of block l each.
DEVICE void gather(u32 (&a)[4]) {
#pragma unroll
    for (int m = 1; m < 4; m *= 2) {
        bool is_high = lane() & m;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & m) continue;
            u32 got = lane_xor((int)(is_high ? a[i] : a[i + m]), m);
            if (is_high) a[i] = got;
            else a[i + m] = got;
        }
    }
}

// dk or dv of this thread's two keys to memory.
DEVICE void finish(T* to, i64 row, const float (&sum)[D / 2], float factor, int first_key, int nk, int add) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int key = first_key + 8 * h;
        T* own = to + key * row + 8 * (lane() % 4);
        if (add) {
#pragma unroll
            for (int j = 0; j < D / 8; ++j) {
                float v[2] = {sum[4 * j + 2 * h] * factor, sum[4 * j + 2 * h + 1] * factor};
                if (key < nk) put<T, 2>(to + key * row + 8 * j + lane() % 4 * 2, v, add);
            }
            continue;
        }
#pragma unroll
        for (int j = 0; j < D / 8; j += 4) {
            u32 v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                v[i] = j + i < D / 8 ? narrow_pair<T>(sum[(4 * (j + i) + 2 * h) % (D / 2)] * factor, sum[(4 * (j + i) + 2 * h + 1) % (D / 2)] * factor) : 0;
            gather(v);
            if (key < nk && j + lane() % 4 < D / 8) *(uint4*)(own + 8 * j) = {v[0], v[1], v[2], v[3]};
        }
    }
}

// Where the results of a block go.
struct Results {
    T *dk, *dv;
    i64 k_at, v_at, k_row, v_row;
    int add_dk, add_dv;
    int* spoiled;
};

// ---- before and after ----

constexpr int PACKS = D / 8;                                                        // of 16 bytes, of a row
constexpr int ROW_LANES = PACKS <= 2 ? 2 : PACKS <= 4 ? 4 : PACKS <= 8 ? 8 : PACKS <= 16 ? 16 : 32;  // that share a row
constexpr int AT_ONCE = 8;                                                          // queries of a head that they take together

// For every query what the gradients of its scores need, in whole tiles: log2 of what its exponentials add up to, and the sum of dy * y,
// in `total` too if it is there; and nothing added yet: turns and the ticket are 0. ROW_LANES threads AT_ONCE queries of a head, so that
// loads wait together and what is written is side by side; heads next to each other, as in y:
// grid [samples * rows of whole tiles * heads / AT_ONCE * ROW_LANES / 128].
DEVICE void begin(f32* exponent, f32* inner, f32* total, int* turns, const T* y, const T* dy, const f32* lse, const int* lengths,
                        const int* seen, i64 count, int nq, int nk, int before, int after, int heads) {
    i64 at = ((i64)block_x() * 128 + thread()) / ROW_LANES;
    int part = thread() % ROW_LANES, tiles = (nq + QUERIES - 1) / QUERIES, rows = tiles * QUERIES;
    if (block_x() == 0 && thread() == 0) turns[0] = 0;
    i64 few = quotient(at, heads), sample = quotient(few, rows / AT_ONCE);
    int head = (int)(at - few * heads), first = (int)(few - sample * (rows / AT_ONCE)) * AT_ONCE;
    bool is_there = at * AT_ONCE < count;
    Pack<T, 8> a[AT_ONCE], b[AT_ONCE];
#pragma unroll
    for (int t = 0; t < AT_ONCE; ++t) {
        bool has = is_there && first + t < nq && part < PACKS;
        i64 place = ((sample * nq + first + t) * heads + head) * D + part * 8;
        a[t] = load_if<T, 8>(y + place, has), b[t] = load_if<T, 8>(dy + place, has);
    }
    float sum[AT_ONCE];
#pragma unroll
    for (int t = 0; t < AT_ONCE; ++t) {
        sum[t] = 0.0f;
#pragma unroll
        for (int c = 0; c < 8; ++c) sum[t] = fmaf(a[t].get(c), b[t].get(c), sum[t]);
#pragma unroll
        for (int m = ROW_LANES / 2; m > 0; m /= 2) sum[t] += lane_xor(sum[t], m);
    }
    if (!is_there) return;
    i64 of_head = sample * heads + head;
    Problem of{nq, nk, heads, 1, 1, before, after, 1, lengths, seen, {}};
#pragma unroll
    for (int base = 0; base < AT_ONCE; base += ROW_LANES) {
        float own = sum[base];
#pragma unroll
        for (int t = base + 1; t < AT_ONCE && t < base + ROW_LANES; ++t) own = part == t - base ? sum[t] : own;
        int i = first + base + part;
        if (base + part >= AT_ONCE) continue;
        float l = i < nq ? lse[of_head * nq + i] : infinity();
        // No probability where there is no query, or it sees nothing.
        exponent[of_head * rows + i] = l == -infinity() ? infinity() : l * LOG2_E;
        inner[of_head * rows + i] = i < nq && of.seen((int)sample).is_alone(i) ? float_of(ALONE) : own;
        if (total && i < nq) total[of_head * nq + i] = own;
    }
    if (part == 0 && first % QUERIES == 0)
        for (int t = 0; t < TURNS; ++t) turns[1 + (of_head * tiles + first / QUERIES) * TURNS + t] = 0;
}

// dq from its sums: 8 columns of two queries a thread and unit, out of the order that the products left: unit (j, r) is columns 8 j of
// rows r and r + 8 of 16. Grid [samples * heads * tiles of queries].
DEVICE void end(T* dq, int* spoiled_q, const f32* sums, const int* lengths, const int* seen, i64 q_at, i64 q_row, int nq, int nk,
                      int before, int after, int heads, float scale, int add_dq) {
    Problem of{nq, nk, heads, 1, 1, before, after, 1, lengths, seen, {}};
    int tiles = of.tiles(), tile = (int)modulo(block_x(), tiles), pair = (int)quotient(block_x(), tiles);
    int sample = pair / heads, head = pair - sample * heads;
    int last = (tile + 1) * QUERIES < nq ? (tile + 1) * QUERIES - 1 : nq - 1;
    // Otherwise nobody has written the sums.
    bool is_seen = of.seen(sample).end(last) > of.seen(sample).first(tile * QUERIES);
    const float4* from = (const float4*)(sums + (i64)block_x() * SUM_COUNT);
    T* to = dq + q_at + (i64)sample * nq * q_row + head * D;
    // Four neighbours in columns, then rows, then the rest: a warp writes 64 bytes of each row.
    auto load = [&](float4 (&x)[4], int u) {
#pragma unroll
        for (int t = 0; t < 4; ++t) x[t] = is_seen && u / 128 * 4 + u % 4 < D / 8 ? from[(u / 128 * 4 + u % 4) * 128 + u / 4 % 32 * 4 + t] : float4{};
    };
    auto write = [&](const float4 (&x)[4], int u) {
        int r = u / 4 % 32, j = u / 128 * 4 + u % 4, i = tile * QUERIES + r / 8 * 16 + r % 8;
        if (j >= D / 8) return;
        float v[2][8];
#pragma unroll
        for (int t = 0; t < 4; ++t)
            v[0][2 * t] = x[t].x * scale, v[0][2 * t + 1] = x[t].y * scale, v[1][2 * t] = x[t].z * scale, v[1][2 * t + 1] = x[t].w * scale;
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (i + 8 * h < nq) put<T, 8>(to + (i + 8 * h) * q_row + 8 * j, v[h], add_dq);
    };
    // Not 0 once any number is infinite or NaN.
    float odd = 0.0f;
    auto look = [&](const float4& x) {
        odd = fmaf(x.x, 0.0f, odd), odd = fmaf(x.y, 0.0f, odd), odd = fmaf(x.z, 0.0f, odd), odd = fmaf(x.w, 0.0f, odd);
    };
    auto vote = [&] {
        bool is_odd = __syncthreads_or(odd != 0.0f);
        if (thread() == 0) spoiled_q[block_x()] = is_odd;
        return is_odd;
    };
    constexpr int UNITS = (D + 31) / 32;
    if (spoiled_q && D > 64) {
        // All at once: a second look would load them again.
        float4 x[UNITS][4];
#pragma unroll
        for (int u = 0; u < UNITS; ++u) load(x[u], u * 128 + thread());
#pragma unroll
        for (int u = 0; u < UNITS; ++u)
#pragma unroll
            for (int t = 0; t < 4; ++t) look(x[u][t]);
        if (vote()) return;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) write(x[u], u * 128 + thread());
        return;
    }
    if (spoiled_q) {
#pragma unroll
        for (int i = 0; i < SUM_COUNT / 512; ++i) {
            look(is_seen ? from[i * 128 + thread()] : float4{});
        }
        if (vote()) return;
    }
#pragma unroll 1
    for (int u = 0; u < UNITS; ++u) {
        float4 x[4];
        load(x, u * 128 + thread());
        write(x, u * 128 + thread());
    }
}
