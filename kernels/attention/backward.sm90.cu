// attention: the backward kernels of Hopper for 16-bit types: dq, dk and dv out of five products of wgmma a tile of the scores.
// axes      q, dq, y, dy [B, Nq, H, D]; k, v, dk, dv [B, Nk, H / group, D]: a token's rows of q, k, v and their gradients are `row`
//           numbers apart; lse, total [B, H, Nq]; bias [H, Nq, Nk]; lengths [B]; seen: see common/seen.cuh; exponent, inner [B, H, rows to whole tiles];
//           sums [B, H, tiles of queries, QUERIES * D] in the order of accumulators; turns: a ticket, then [B, H, tiles of queries];
//           spoiled_q [B, H, tiles of 64 queries], spoiled_k [B, H / group, tiles of 64 keys]
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D a multiple of 8 from 16 to 128, not padded to a power of two
// launch    bwd: one block for KEYS keys of a head, that walks all queries that see them: a warp copies, two warps add dq's
//           sums to memory, two warpgroups multiply, each for 64 keys; bwd_begin before it, bwd_end after it: see there
// paths     where nothing is hidden a tile has no mask; where a hidden number may have spoiled a sum its tile is marked for the
//           general kernels, which run behind these
// matrix    HGMMA on sm_90a for bf16 and f16
// traffic   k, v, dk, dv once; q and dy once, dq's sums in f32 twice for KEYS keys, out of the cache where a section fits into it
// dropout   drawn while products run: of four neighbouring keys, rows of four lanes, each lane draws for one of two keys and one of two
//           queries that all four have, and gives each of the others its bits
// order     dq's sums are added keys ascending, each block when the one before has: same input, same bits. Atomic is the ticket alone
// waiting   a block takes its work in the order in which blocks start, and waits for nothing but work that was taken before its own:
//           of all that is unfinished the first waits for nobody. So it ends whatever the number of blocks that run at once
// budget    sm_90a 168 registers; no spills
// source    Dao et al. 2022, algorithm 4; Shah et al. 2024, section 3; Spector et al. 2024 for keys as rows of the accumulators

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

constexpr int KEYS = 128;                                   // of a block: 64 for each warpgroup that multiplies
constexpr int QUERIES = 64;                                 // of a tile
constexpr int THREADS = 384;
constexpr int PANELS = (D + 63) / 64;                       // of 64 numbers, 128 bytes a row
constexpr int DEPTH = (D + 15) / 16;                        // steps of the scores' products
#ifdef STAGES_OF_BLOCK
constexpr int STAGES = STAGES_OF_BLOCK;
#else
constexpr int STAGES = D <= 64 ? 4 : 2;                     // tiles of queries on their way
#endif
constexpr int KEY_PANEL = KEYS * 128, QUERY_PANEL = QUERIES * 128;  // bytes
constexpr int DS_BYTES = KEYS * QUERIES * 2;                // of the gradients of a tile's scores
constexpr int SUM_COUNT = QUERIES * D;                      // numbers of dq that a step makes
// Of dq each warpgroup makes one panel of columns; of a single panel the first makes all.
constexpr int FIRST_COLUMNS = D <= 64 ? D : 64, SECOND_COLUMNS = D - FIRST_COLUMNS;
constexpr int TILE_BYTES = 2 * PANELS * KEY_PANEL + 2 * STAGES * PANELS * QUERY_PANEL + 2 * DS_BYTES;
#ifdef SUM_STAGES_OF_BLOCK
constexpr int SUM_STAGES = SUM_STAGES_OF_BLOCK;
#else
constexpr int SUM_STAGES = TILE_BYTES + 2 * SUM_COUNT * 4 + 3072 <= 227 * 1024 ? 2 : 1;
#endif
constexpr int COPIER_REGISTERS = D <= 64 ? 56 : 24, REGISTERS = D <= 64 ? 224 : 240;
constexpr float LOG2_E = 1.4426950408889634f;

// In place of the sum of dy y for a query that sees one key alone: its probability is 1 whatever the score, which has no gradient.
constexpr u32 ALONE = 0x7fc5a1e5;

// Sizes and masks of one application.
struct Problem {
    int nq, nk, heads, group, batch, before, after, section;
    const int *lengths, *table;
    Dropping dropping;

    DEVICE int tiles() const { return (nq + QUERIES - 1) / QUERIES; }
    DEVICE int length(int sample) const { return lengths ? lengths[sample] : nk; }
    DEVICE Seen<int> seen(int sample) const { return {nq, nk, length(sample), before, after, table}; }
};

// What a block does: KEYS keys of one head of keys, for `steps` tiles of queries down to `lowest`, of each head of the group. A tile
// is taken by all blocks from that of the first key which its first query sees to that of the last key of its last one.
struct Work {
    int block, kv_head, sample, lowest, steps;

    Work() = default;
    DEVICE int highest() const { return lowest + steps - 1; }

    // The ticket-th: blocks of keys ascending, heads of a section, whose queries fit into the cache, side by side.
    DEVICE Work(const Problem& of, int ticket) {
        int kv_heads = of.heads / of.group, all = kv_heads * of.batch, blocks = (of.nk + KEYS - 1) / KEYS;
        int part = ticket / (blocks * of.section), rest = ticket - part * blocks * of.section;
        int here = all - part * of.section < of.section ? all - part * of.section : of.section;
        int pair = part * of.section + rest % here;
        block = rest / here, sample = pair / kv_heads, kv_head = pair - sample * kv_heads;
        Seen<int> seen = of.seen(sample);
        int last = ((block + 1) * KEYS < of.nk ? (block + 1) * KEYS : of.nk) - 1;
        int from = seen.first_query(block * KEYS), to = seen.end_query(last);
        lowest = from / QUERIES, steps = from < to ? (to + QUERIES - 1) / QUERIES - lowest : 0;
    }
};

struct Shared {
    unsigned char k[PANELS * KEY_PANEL];
    unsigned char v[PANELS * KEY_PANEL];
    unsigned char q[STAGES][PANELS * QUERY_PANEL];
    unsigned char dy[STAGES][PANELS * QUERY_PANEL];
    unsigned char ds[2][DS_BYTES];  // a row for each key
    alignas(128) float sums[SUM_STAGES][SUM_COUNT];
    alignas(16) float exponent[STAGES][QUERIES];
    alignas(16) float inner[STAGES][QUERIES];
    Barrier k_full, v_full, q_full[STAGES], q_empty[STAGES], dy_full[STAGES], dy_empty[STAGES];
    Barrier sums_full[SUM_STAGES], sums_empty[SUM_STAGES];
    Work work;
};
static_assert(sizeof(Shared) + 1024 <= 227 * 1024);

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

// Copies: the keys and values once, then queries and the gradients of their results, tile by tile. One thread.
DEVICE void copy(Shared& s, const Problem& of, const Work& work, const TensorMap& q, const TensorMap& k, const TensorMap& v,
                 const TensorMap& dy, const f32* exponent, const f32* inner) {
    if (work.steps == 0) return;
    s.k_full.arrive_expect(PANELS * KEY_PANEL);
    for (int p = 0; p < PANELS; ++p)
        load_box(s.k + p * KEY_PANEL, k, s.k_full, p * 64, work.kv_head, work.block * KEYS, work.sample);
    Ring<STAGES> at;
    bool is_first = true;
    each_step(of, work, [&](int head, int tile) {
        i64 row = ((i64)(work.sample * of.heads + head) * of.tiles() + tile) * QUERIES;
        s.q_empty[at.stage].wait(at.parity ^ 1);
        s.q_full[at.stage].arrive_expect(PANELS * QUERY_PANEL + QUERIES * 4);
        for (int p = 0; p < PANELS; ++p)
            load_box(s.q[at.stage] + p * QUERY_PANEL, q, s.q_full[at.stage], p * 64, head, tile * QUERIES, work.sample);
        load_bytes(s.exponent[at.stage], exponent + row, QUERIES * 4, s.q_full[at.stage]);
        if (is_first) {
            s.v_full.arrive_expect(PANELS * KEY_PANEL);
            for (int p = 0; p < PANELS; ++p)
                load_box(s.v + p * KEY_PANEL, v, s.v_full, p * 64, work.kv_head, work.block * KEYS, work.sample);
            is_first = false;
        }
        s.dy_empty[at.stage].wait(at.parity ^ 1);
        s.dy_full[at.stage].arrive_expect(PANELS * QUERY_PANEL + QUERIES * 4);
        for (int p = 0; p < PANELS; ++p)
            load_box(s.dy[at.stage] + p * QUERY_PANEL, dy, s.dy_full[at.stage], p * 64, head, tile * QUERIES, work.sample);
        load_bytes(s.inner[at.stage], inner + row, QUERIES * 4, s.dy_full[at.stage]);
        at.next();
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

// Adds the dq of every SUM_STAGES-th step to its sum in memory, when the blocks of keys that take the tile before this one have: their
// number is the turn.
// The first sets. One thread for each stage: while one waits until its sum has arrived, the next is on its way.
DEVICE void add(Shared& s, const Problem& of, const Work& work, int stage, f32* sums, int* turns) {
    int step = 0;
    u32 parity = 0;
    Seen<int> seen = of.seen(work.sample);
    each_step(of, work, [&](int head, int tile) {
        if (step++ % SUM_STAGES != stage) return;
        i64 place = (i64)(work.sample * of.heads + head) * of.tiles() + tile;
        int turn = work.block - seen.first(tile * QUERIES) / KEYS;
        while (load_acquired(turns + place) != turn) {}
        s.sums_full[stage].wait(parity);
        parity ^= 1;
        global_proxy_fence();
        if (turn == 0) {
            store_bytes(sums + place * SUM_COUNT, s.sums[stage], SUM_COUNT * 4);
        } else {
            add_floats(sums + place * SUM_COUNT, s.sums[stage], SUM_COUNT * 4);
        }
        store_commit();
        store_wait_read<0>();
        s.sums_empty[stage].arrive();
        store_wait<0>();
        global_proxy_fence();
        store_released(turns + place, turn + 1);
    });
}

// What was there ends here: the first product sets, and no register has to keep the old numbers for it.
template <int R> DEVICE void forget(float (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; ++i) d[i] = 0.0f;
    pin(d);
}

// Issues 64 keys times a tile of queries, or values times gradients of results.
DEVICE void issue_scores(float (&s)[QUERIES / 2], u64 keys, u64 queries) {
    forget(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < DEPTH; ++step) {
        int panel = step / 4, within = step % 4 * 2;
        multiply<T>(s, keys + panel * (KEY_PANEL >> 4) + within, queries + panel * (QUERY_PANEL >> 4) + within, step > 0);
    }
    wgmma_commit();
}

// Issues what a tile of queries, or of gradients of results, adds to the sums of 64 keys.
DEVICE void issue_sums(float (&sum)[D / 2], const u32 (&weight)[QUERIES / 16][4], u64 rows) {
    pin(sum);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < QUERIES / 16; ++step) multiply<T, 1>(sum, weight[step], rows + step * 128, true);
    wgmma_commit();
}

// Issues dq of 64 queries and some columns: gradients of scores, which lie with a key a row, times the keys.
template <int R> DEVICE void issue_dq(float (&dq)[R], u64 ds, u64 keys) {
    forget(dq);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) multiply<T, 1, 1>(dq, ds + step * 128, keys + step * 128, step > 0);
    wgmma_commit();
}

// Which of a thread's probabilities of a tile are kept.
struct Kept {
    u32 bits[4];  // of its first key and query, the first key and second query, and so on: 4 bits for each 8 queries

    // Of a tile of queries from `row` on, among all rows of all heads, and the 16 keys of a warp from `key` on. What is the same for
    // every tile is computed anew: kept, it would take registers from the products.
    DEVICE void draw(Dropping dropping, i64 row, int nk, int key) {
        int l = lane();
        asm volatile("" : "+r"(l), "+r"(nk), "+l"(dropping.seed), "+l"(dropping.stream));
        int own = l / 4 % 4;
        i64 blocks = Dropping::blocks(nk), block = (row + l % 4 * 2 + own % 2) * blocks + key / 4 + l / 16 + own / 2 * 2;
        u32 mine = 0;
#pragma unroll 2
        for (int j = QUERIES / 8 - 1; j >= 0; --j) mine = mine << 4 | dropping.kept_bits(block + 8 * j * blocks);
#pragma unroll
        for (int t = 0; t < 4; ++t) bits[t] = (u32)lane_at((int)mine, l - own * 4 + t * 4) >> own;
    }
    // A probability that is dropped becomes negative: no register has to remember it apart.
    DEVICE float sign(float p, int i) const { return bits[i % 4] >> i / 4 * 4 & 1 ? p : -p; }
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

    DEVICE Clear(const Problem& of, const Work& work) {
        Seen<int> seen = of.seen(work.sample);
        from = seen.first_query((work.block + 1) * KEYS - 1), to = seen.end_query(work.block * KEYS);
        // Queries that there are not have no probabilities.
        to = to == of.nq ? of.nq : to - QUERIES;
    }
    DEVICE bool has(int i0) const { return from <= i0 && i0 <= to; }
};

// Which queries see a thread's two keys. Computed anew for each tile that needs it: kept, it would take registers from the products.
struct Seeing {
    int from[2];
    u32 count[2];

    Seeing() = default;
    DEVICE Seeing(const Problem& of, const Work& work, int group) {
        Seen<int> seen = of.seen(work.sample);
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
            float weight = p[4 * j + i], sum = i % 2 ? e.y : e.x, factor = weight < 0.0f ? 0.0f : of.dropping.scale;
            float slope = HAS_DROPOUT ? fmaf(dp[4 * j + i], factor, -sum) : dp[4 * j + i] - sum;
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
#pragma unroll
    for (int step = 0; step < QUERIES / 16; ++step) {
        int chunk = 2 * step + lane() / 16;
        unsigned char* to = ds + row * 128 + (chunk ^ r % 8) * 16;
        store_matrices(shared_address(to), p[step][0], p[step][1], p[step][2], p[step][3]);
    }
}

// Whether a number is infinite or NaN.
template <int R> DEVICE bool is_any_odd(const float (&d)[R]) {
    bool is_odd = false;
#pragma unroll
    for (int i = 0; i < R; ++i) is_odd |= !(absolute(d[i]) < infinity());
    return is_odd;
}

// dk or dv of this thread's two keys to memory.
DEVICE void finish(T* to, i64 row, const float (&sum)[D / 2], float factor, int first_key, int nk, int add) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int key = first_key + 8 * h;
        if (key >= nk) continue;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
            float v[2] = {sum[4 * j + 2 * h] * factor, sum[4 * j + 2 * h + 1] * factor};
            put<T, 2>(to + key * row + 8 * j + lane() % 4 * 2, v, add);
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

// Multiplies: 64 keys with all queries that see them, and COLUMNS columns of dq.
template <int COLUMNS>
DEVICE void weigh(Shared& s, const Problem& of, const Work& work, int group, const Results& to, const f32* bias, float scale) {
    float dk[D / 2], dv[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; ++i) dk[i] = 0.0f, dv[i] = 0.0f;
    float factor = scale * LOG2_E;
    if (work.steps > 0) {
        float p[QUERIES / 2], dp[QUERIES / 2], dq[COLUMNS > 0 ? COLUMNS / 2 : 4];
        u32 weight[QUERIES / 16][4];
        int first_key = first_key_of(work, group);
        Clear clear(of, work);
        Kept kept;
        int left = work.steps * of.group, count = 0, i0 = work.highest() * QUERIES, head = work.kv_head * of.group;
        u64 keys = matrix_along_k(s.k + group * 8192), values = matrix_along_k(s.v + group * 8192);
        u64 key_columns = matrix_along_n(s.k + group % PANELS * KEY_PANEL, KEY_PANEL);
        s.k_full.wait(0);
        s.q_full[0].wait(0);
        issue_scores(p, keys, matrix_along_k(s.q[0]));
        s.v_full.wait(0);
#pragma unroll 1
        while (left > 0) {
            if (HAS_DROPOUT) {
                i64 row = ((i64)work.sample * of.heads + head) * of.nq + i0;
                kept.draw(of.dropping, row, of.nk, work.block * KEYS + 64 * group + warp_id() % 4 * 16);
            }
            wgmma_wait<0>();
            pin(p);
            int stage = count % STAGES;
            unsigned char* ds = s.ds[count % 2];
            s.dy_full[stage].wait(count / STAGES % 2);
            issue_scores(dp, values, matrix_along_k(s.dy[stage]));
            if (HAS_BIAS) add_bias(p, bias + (i64)head * of.nq * of.nk, i0, first_key, of, factor);
            if (clear.has(i0)) {
                probabilities<false>(p, s.exponent[stage], HAS_BIAS ? 1.0f : factor, Seeing(), i0, kept);
            } else {
                Seeing seen(of, work, group);
                probabilities<true>(p, s.exponent[stage], HAS_BIAS ? 1.0f : factor, seen, i0, kept);
            }
            to_operand(weight, p, weight_of);
            issue_sums(dv, weight, matrix_along_n(s.dy[stage], QUERY_PANEL));
            wgmma_wait<1>();
            pin(dp);
            if (clear.has(i0)) {
                gradients<false>(dp, p, s.inner[stage], Seeing(), i0, of);
            } else {
                Seeing seen(of, work, group);
                gradients<true>(dp, p, s.inner[stage], seen, i0, of);
            }
            u32 slope[QUERIES / 16][4];
            to_operand(slope, dp, [](float ds) { return ds; });
            keep(ds, slope, group);
            proxy_fence();
            issue_sums(dk, slope, matrix_along_n(s.q[stage], QUERY_PANEL));
            wgmma_wait<1>();
            pin(dv);
            if (lane() == 0) s.dy_empty[stage].arrive();
            named_sync(1, 256);
            if constexpr (COLUMNS > 0) issue_dq(dq, matrix_along_n(ds, KEY_PANEL), key_columns);
            // The next scores; the last step makes its own again, which nobody uses: a branch would end the run of products.
            int next = --left > 0 ? count + 1 : count;
            s.q_full[next % STAGES].wait(next / STAGES % 2);
            issue_scores(p, keys, matrix_along_k(s.q[next % STAGES]));
            // All but the next scores.
            wgmma_wait<1>();
            pin(dk);
            if (lane() == 0) s.q_empty[stage].arrive();
            if constexpr (COLUMNS > 0) {
                pin(dq);
                int at = count % SUM_STAGES;
                s.sums_empty[at].wait(count / SUM_STAGES % 2 ^ 1);
                float4* sums = (float4*)(s.sums[at] + group * 64 * FIRST_COLUMNS) + thread() % 128;
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) sums[j * 128] = {dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]};
                proxy_fence();
                __syncwarp();
                if (lane() == 0) s.sums_full[at].arrive();
            }
            count = next;
            i0 -= QUERIES;
            if (i0 < work.lowest * QUERIES) i0 = work.highest() * QUERIES, ++head;
        }
        wgmma_wait<0>();
        pin(p);
    }
    int first_key = first_key_of(work, group);
    if (to.spoiled) {
        // The general kernels set or add what is left out here.
        bool is_odd = named_any(2 + group, 128, is_any_odd(dk) || is_any_odd(dv));
        int tile = 2 * work.block + group, tiles = (of.nk + 63) / 64, kv_heads = of.heads / of.group;
        if (thread() % 128 == 0 && tile < tiles) to.spoiled[(i64)(work.sample * kv_heads + work.kv_head) * tiles + tile] = is_odd;
        if (is_odd) return;
    }
    i64 first_row = (i64)work.sample * of.nk;
    if (to.dk) finish(to.dk + to.k_at + first_row * to.k_row + work.kv_head * D, to.k_row, dk, scale, first_key, of.nk, to.add_dk);
    float kept = HAS_DROPOUT ? of.dropping.scale : 1.0f;
    if (to.dv) finish(to.dv + to.v_at + first_row * to.v_row + work.kv_head * D, to.v_row, dv, kept, first_key, of.nk, to.add_dv);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_bwd(T* dk, T* dv, f32* sums, int* turns, int* spoiled_k, const __grid_constant__ TensorMap q,
                  const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap dy,
                  const f32* exponent, const f32* inner, const f32* bias, const int* lengths, const int* seen, i64 k_at, i64 v_at, i64 k_row,
                  i64 v_row, int nq, int nk, int before, int after, int heads, int group, int batch, float scale, int section, int add_dk,
                  int add_dv, i64 seed, i64 stream, int reach, float kept_scale) {
    extern __shared__ unsigned char memory[];
    Shared& s = *(Shared*)aligned<1024>(memory);
    Problem of{nq, nk, heads, group, batch, before, after, section, lengths, seen, {seed, stream, reach, kept_scale}};
    if (thread() == 0) {
        s.k_full.init(1), s.v_full.init(1);
        for (int i = 0; i < STAGES; ++i) {
            s.q_full[i].init(1), s.dy_full[i].init(1);
            s.q_empty[i].init(8), s.dy_empty[i].init(8);
        }
        for (int i = 0; i < SUM_STAGES; ++i) s.sums_full[i].init(SECOND_COLUMNS > 0 ? 8 : 4), s.sums_empty[i].init(1);
        barrier_init_fence();
        s.work = Work(of, atomicAdd(turns, 1));
    }
    block_sync();
    const Work& work = s.work;
    Results to{dk, dv, k_at, v_at, k_row, v_row, add_dk, add_dv, spoiled_k};
    if (warp_id() < 4) {
        registers_down<COPIER_REGISTERS>();
        if (warp_id() == 0 && elected()) copy(s, of, work, q, k, v, dy, exponent, inner);
        if (warp_id() > 0 && warp_id() <= SUM_STAGES && elected()) add(s, of, work, warp_id() - 1, sums, turns + 1);
    } else if (warp_id() < 8) {
        registers_up<REGISTERS>();
        weigh<FIRST_COLUMNS>(s, of, work, 0, to, bias, scale);
    } else {
        registers_up<REGISTERS>();
        weigh<SECOND_COLUMNS>(s, of, work, 1, to, bias, scale);
    }
}

// ---- before and after ----

constexpr int PACKS = D / 8;                                                        // of 16 bytes, of a row
constexpr int ROW_LANES = PACKS <= 2 ? 2 : PACKS <= 4 ? 4 : PACKS <= 8 ? 8 : 16;    // that share a row
constexpr int BEGIN_ROWS = 128 / ROW_LANES;                                         // of a block

// For every query what the gradients of its scores need, in whole tiles: log2 of what its exponentials add up to, and the sum of dy * y,
// in `total` too if it is there; and nothing added yet: turns and the ticket are 0. ROW_LANES threads a query of a head, in the order of
// y: grid [samples * rows of whole tiles * heads / BEGIN_ROWS].
extern "C" __global__ void __launch_bounds__(128)
    attention_bwd_begin(f32* exponent, f32* inner, f32* total, int* turns, const T* y, const T* dy, const f32* lse, const int* lengths,
                        const int* seen, i64 count, int nq, int nk, int before, int after, int heads) {
    i64 at = (i64)block_x() * BEGIN_ROWS + thread() / ROW_LANES;
    int part = thread() % ROW_LANES, tiles = (nq + QUERIES - 1) / QUERIES, rows = tiles * QUERIES;
    if (block_x() == 0 && thread() == 0) turns[0] = 0;
    i64 token = quotient(at, heads), sample = quotient(token, rows);
    int head = (int)(at - token * heads), i = (int)(token - sample * rows);
    bool is_there = at < count && i < nq;
    float sum = 0.0f;
    if (is_there && part < PACKS) {
        i64 place = ((sample * nq + i) * heads + head) * D + part * 8;
        Pack<T, 8> a = load_once<T, 8>(y + place), b = load_once<T, 8>(dy + place);
#pragma unroll
        for (int c = 0; c < 8; ++c) sum = fmaf(a.get(c), b.get(c), sum);
    }
#pragma unroll
    for (int m = ROW_LANES / 2; m > 0; m /= 2) sum += lane_xor(sum, m);
    if (at >= count || part != 0) return;
    i64 of_head = sample * heads + head;
    float l = is_there ? lse[of_head * nq + i] : infinity();
    // No probability where there is no query, or it sees nothing.
    exponent[of_head * rows + i] = l == -infinity() ? infinity() : l * LOG2_E;
    Problem of{nq, nk, heads, 1, 1, before, after, 1, lengths, seen, {}};
    inner[of_head * rows + i] = is_there && of.seen((int)sample).is_alone(i) ? float_of(ALONE) : sum;
    if (total && is_there) total[of_head * nq + i] = sum;
    if (i % QUERIES == 0) turns[1 + of_head * tiles + i / QUERIES] = 0;
}

// dq from its sums: 8 columns of two queries a thread and unit, out of the order that the products left: unit (j, r) is columns 8 j of
// rows r and r + 8 of 16. Grid [samples * heads * tiles of queries].
extern "C" __global__ void __launch_bounds__(128)
    attention_bwd_end(T* dq, int* spoiled_q, const f32* sums, const int* lengths, const int* seen, i64 q_at, i64 q_row, int nq, int nk,
                      int before, int after, int heads, float scale, int add_dq) {
    Problem of{nq, nk, heads, 1, 1, before, after, 1, lengths, seen, {}};
    int tiles = of.tiles(), tile = (int)modulo(block_x(), tiles), pair = (int)quotient(block_x(), tiles);
    int sample = pair / heads, head = pair - sample * heads;
    int last = (tile + 1) * QUERIES < nq ? (tile + 1) * QUERIES - 1 : nq - 1;
    // Otherwise nobody has written the sums.
    bool is_seen = of.seen(sample).end(last) > of.seen(sample).first(tile * QUERIES);
    const f32* from = sums + (i64)block_x() * SUM_COUNT;
    T* to = dq + q_at + (i64)sample * nq * q_row + head * D;
    if (spoiled_q) {
        bool is_odd = false;
        for (int i = thread(); is_seen && i < SUM_COUNT; i += 128) is_odd |= !(absolute(from[i]) < infinity());
        is_odd = __syncthreads_or(is_odd);
        if (thread() == 0) spoiled_q[block_x()] = is_odd;
        if (is_odd) return;
    }
#pragma unroll 1
    for (int u = thread(); u < QUERIES / 2 * ((D + 31) / 32 * 4); u += 128) {
        // Four neighbours in columns, then rows, then the rest: a warp writes 64 bytes of each row.
        int r = u / 4 % 32, j = u / 128 * 4 + u % 4, i = tile * QUERIES + r / 8 * 16 + r % 8;
        if (j >= D / 8) continue;
        const float4* sum = (const float4*)from + j * 128 + r * 4;
        float v[2][8] = {};
        if (is_seen) {
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                float4 x = sum[t];
                v[0][2 * t] = x.x * scale, v[0][2 * t + 1] = x.y * scale, v[1][2 * t] = x.z * scale, v[1][2 * t + 1] = x.w * scale;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (i + 8 * h < nq) put<T, 8>(to + (i + 8 * h) * q_row + 8 * j, v[h], add_dq);
    }
}
