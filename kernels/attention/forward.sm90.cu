// attention: the forward kernel of Hopper for 16-bit types: scores and weighted sums by wgmma, operands by bulk tensor copies.
// axes      q, y [B, Nq, H, D]; k, v [B, Nk, H / group, D], each behind a tensor map {D, heads, tokens, samples}; bias [H, Nq, Nk];
//           lse [B, H, Nq]; spoiled [B, H, tiles of 64 queries]; lengths [B]
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D a multiple of 8 from 16 to 256, not padded to a power of two
// launch    as many blocks as multiprocessors, each walks tiles of ROWS queries; a warpgroup copies, 2 or 3 multiply
// paths     where nothing is hidden a block of keys has no mask; a tile whose sums a hidden number may have spoiled is marked for
//           the general kernel, which runs behind this one
// matrix    HGMMA on sm_90a
// traffic   q and y once; k and v once for ROWS queries, out of the cache where heads follow each other
// dropout   drawn while products run: a lane draws four neighbouring keys of one of its rows, and trades bits with its neighbour for
//           two keys of each; the factor comes with the division
// floor     two products of 2 Nq Nk D FLOPs a head: a pair takes 4 D / 4096 clocks of a multiprocessor's matrix units and 1 / 16 of its
//           exponentials, so that both take as long at D of 64, and below it the exponentials decide
// left      ncu, 2048 tokens: at D of 128 the matrix units run 72 % of the time, at D of 64 they and the issue slots 47 %: three warps of
//           a scheduler wait for their own results
// order     keys descending in blocks of KEYS, ascending inside: same input, same bits; no atomics
// budget    sm_90a 168 registers; no spills
// source    Dao et al. 2022, algorithm 1; Shah et al. 2024, sections 3.1 and 3.2

#include "common/dropping.cuh"
#include "common/math.cuh"
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

// Warpgroups that multiply: the launcher takes 2 where 3 would leave too many rows of the last tile empty.
#ifndef GROUPS
#define GROUPS 2
#endif

constexpr int KEYS = D <= 128 ? 128 : D <= 192 ? 112 : 80;  // of a block
constexpr int AHEAD = D <= 64 ? 4 : 2;                        // blocks of keys on their way
constexpr int QUEUE = D <= 128 ? 3 : 1;                       // tiles of queries: there, leaving, on their way
constexpr float FOLLOWED = 8.0f;                              // by how much a maximum grows before the sums follow, as a power of 2
constexpr bool LEAVES_LATE = QUEUE > 1 && GROUPS == 2;
constexpr int ROWS = 64 * GROUPS;
constexpr int THREADS = 128 * (GROUPS + 1);
constexpr int PANELS = (D + 63) / 64;                                              // of 64 numbers, 128 bytes a row
constexpr int DEPTH = (D + 15) / 16;                                               // steps of the scores' products
constexpr int COPIER_REGISTERS = GROUPS == 3 ? 32 : 24, REGISTERS = GROUPS == 3 ? 160 : 240;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

enum { SEES_ALL, TOP_LEFT, BOTTOM_RIGHT };

// Bytes of a panel of queries and of keys; swizzled tiles start at multiples of 1024.
constexpr int ROW_PANEL = ROWS * 128, KEY_PANEL = KEYS * 128;

DEVICE int take_number(int* counter) {
    int before;
    asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

DEVICE bool any_lane(bool yes) { return __any_sync(0xffffffffu, yes); }

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// What of a tile of queries is computed: its place, and how far each row sees.
struct Tile {
    int first, head, sample, blocks;  // the first query; blocks of keys that any of its rows sees
};

struct Problem {
    int nq, nk, heads, group, batch, causal, section, blocks;
    const int* lengths;
    int* counter;
    Dropping dropping;

    DEVICE int tiles() const { return (nq + ROWS - 1) / ROWS; }
    DEVICE int all_tiles() const { return tiles() * heads * batch; }
    DEVICE int length(int sample) const { return lengths ? lengths[sample] : nk; }
    // How many keys query i sees: always the first ones, and never fewer than the query before.
    DEVICE int visible(int i, int length) const {
        int n = causal == TOP_LEFT ? i + 1 : causal == BOTTOM_RIGHT ? i + 1 + nk - nq : length;
        return n < 0 ? 0 : n < length ? n : length;
    }
    // Rows that see nothing walk one block, all hidden.
    DEVICE static int most_blocks(int keys) { return keys <= KEYS ? 1 : (keys + KEYS - 1) / KEYS; }
    // What the block does after tile t: where tiles differ in length, they are handed out as blocks become free.
    DEVICE int next(int t) const { return counter ? blocks + take_number(counter) : t + blocks; }
    // The t-th tile. Heads of a section, whose keys fit into the cache, follow each other; with a causal mask the longest tiles of
    // a section come first, so that what is left at the end is short.
    DEVICE Tile tile(int t) const {
        int rows = tiles(), all = heads * batch, part = t / (rows * section), rest = t - part * rows * section;
        int here = all - part * section < section ? all - part * section : section;
        int m = causal == SEES_ALL ? rest % rows : rows - 1 - rest / here;
        int h = part * section + (causal == SEES_ALL ? rest / rows : rest % here);
        int sample = h / heads, last = (m + 1) * ROWS < nq ? (m + 1) * ROWS : nq;
        return {m * ROWS, h - sample * heads, sample, most_blocks(visible(last - 1, length(sample)))};
    }
};

DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

struct Shared {
    unsigned char q[QUEUE][PANELS * ROW_PANEL];
    unsigned char k[AHEAD][PANELS * KEY_PANEL];
    unsigned char v[AHEAD][PANELS * KEY_PANEL];
    Tile tile[QUEUE];
    Barrier q_full[QUEUE], q_empty[QUEUE], k_full[AHEAD], k_empty[AHEAD], v_full[AHEAD], v_empty[AHEAD];
};

// Issues the scores of 64 queries with a block of keys.
DEVICE void issue_scores(float (&s)[KEYS / 2], u64 q, u64 k) {
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < DEPTH; ++step) {
        int panel = step / 4, within = step % 4 * 2;
        multiply<T>(s, q + panel * (ROW_PANEL >> 4) + within, k + panel * (KEY_PANEL >> 4) + within, step > 0);
    }
    wgmma_commit();
}

// Issues what a block of values adds to the sums.
DEVICE void issue_sums(float (&o)[D / 2], const u32 (&p)[KEYS / 16][4], u64 v, bool add) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) multiply<T, 1>(o, p[step], v + step * 128, add || step > 0);
    wgmma_commit();
}

// A thread's two rows: the running maximum in units of the scores' exponent of 2, and this lane's part of the sum.
struct Rows {
    float top[2] = {-infinity(), -infinity()};
    float sum[2] = {0.0f, 0.0f};

    // Scores to probabilities before the division; by how much the sums so far shrink.
    DEVICE void next(float (&s)[KEYS / 2], float scale, float (&fade)[2]) {
        // Several chains a row: one alone would wait for itself.
        constexpr int CHAINS = 4;
        float most[2][CHAINS];
#pragma unroll
        for (int i = 0; i < KEYS / 2; i += 2) {
            float pair = fmaxf(s[i], s[i + 1]), &so_far = most[i / 2 % 2][i / 4 % CHAINS];
            so_far = i / 4 < CHAINS ? pair : fmaxf(so_far, pair);
        }
        float shift[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) most[h][0] = fmaxf(fmaxf(most[h][0], most[h][1]), fmaxf(most[h][2], most[h][3]));
#pragma unroll
        for (int h = 0; h < 2; ++h) most[h][0] = fmaxf(most[h][0], lane_xor(most[h][0], 1));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float top_now = fmaxf(most[h][0], lane_xor(most[h][0], 2)) * scale;
            // A maximum that grows little is not followed: weights up to 2^FOLLOWED lose nothing, and the sums need not shrink.
            top_now = top_now > top[h] + FOLLOWED ? top_now : top[h];
            // Where every score is -inf all probabilities are 0.
            shift[h] = top_now == -infinity() ? 0.0f : top_now;
            fade[h] = exp2_fast(top[h] - shift[h]);
            top[h] = top_now;
        }
        float part[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i) {
            s[i] = exp2_fast(fmaf(s[i], scale, -shift[i / 2 % 2]));
            part[i / 2 % 2][i % 2] += s[i];
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) sum[h] = fmaf(sum[h], fade[h], part[h][0] + part[h][1]);
    }
};

// What a thread's rows do not see becomes -inf. `c0` is the block's first key.
DEVICE void hide(float (&s)[KEYS / 2], int c0, int first, int second) {
    int limit[2] = {first, second}, c = c0 + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
        if (c + i / 4 * 8 + i % 2 >= limit[i / 2 % 2]) s[i] = -infinity();
    }
}

DEVICE void add_bias(float (&s)[KEYS / 2], const f32* bias, int c0, int first, int nq, int nk, float scale) {
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
        int r = first + i / 2 % 2 * 8, c = c0 + lane() % 4 * 2 + i / 4 * 8 + i % 2;
        float b = r < nq && c < nk ? bias[(i64)r * nk + c] : 0.0f;
        s[i] = fmaf(s[i], scale, b * LOG2_E);
    }
}

// Which of a thread's weights of a block of keys are kept.
struct Kept {
    static constexpr int WORDS = (KEYS + 63) / 64;  // of 8 times 4 bits, for 64 keys
    u32 bits[2][WORDS];

    // For keys from c0 on; `row` is the first of the thread's two, among all rows of all heads.
    DEVICE void draw(const Dropping& dropping, i64 row, int nk, int c0) {
        int own = lane() % 2;
        i64 block = (row + 8 * own) * Dropping::blocks(nk) + c0 / 4 + lane() % 4 / 2;
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            u32 mine = 0;
#pragma unroll 4
            for (int j = KEYS / 8 - 8 * w < 8 ? KEYS / 8 - 8 * w - 1 : 7; j >= 0; --j)
                mine = mine << 4 | dropping.kept_bits(block + 2 * (8 * w + j));
            u32 other = lane_xor((int)mine, 1);
            bits[0][w] = (own ? other : mine) >> 2 * own;
            bits[1][w] = (own ? mine : other) >> 2 * own;
        }
    }
    DEVICE float of(float weight, int i) const {
        return !HAS_DROPOUT || bits[i / 2 % 2][i / 32] >> (i / 4 % 8 * 4 + i % 2) & 1 ? weight : 0.0f;
    }
};

DEVICE void to_operand(u32 (&p)[KEYS / 16][4], const float (&s)[KEYS / 2], const Kept& kept) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; ++i) p[i / 4][i % 4] = narrow_pair<T>(kept.of(s[2 * i], 2 * i), kept.of(s[2 * i + 1], 2 * i + 1));
}

// Copies queries, a thread's task: tile after tile, and at last word that there is none.
DEVICE void copy_queries(Shared& s, const Problem& of, const TensorMap& q) {
    Ring<QUEUE> at;
    for (int t = block_x();; t = of.next(t)) {
        Barrier& full = s.q_full[at.stage];
        s.q_empty[at.stage].wait(at.parity ^ 1);
        Tile tile = t < of.all_tiles() ? of.tile(t) : Tile{0, 0, 0, 0};
        s.tile[at.stage] = tile;
        if (tile.blocks == 0) return full.arrive();
        full.arrive_expect(PANELS * ROW_PANEL);
        for (int p = 0; p < PANELS; ++p)
            load_box(s.q[at.stage] + p * ROW_PANEL, q, full, p * 64, tile.head, tile.first, tile.sample);
        at.next();
    }
}

// Copies keys and values, another thread's: the blocks of each tile from the last to the first.
DEVICE void copy_keys(Shared& s, const Problem& of, const TensorMap& k, const TensorMap& v) {
    Ring<AHEAD> at;
    for (Ring<QUEUE> tiles;; tiles.next()) {
        s.q_full[tiles.stage].wait(tiles.parity);
        Tile tile = s.tile[tiles.stage];
        if (tile.blocks == 0) return;
        int head = tile.head / of.group;
        for (int j = tile.blocks - 1; j >= 0; --j, at.next()) {
            s.k_empty[at.stage].wait(at.parity ^ 1);
            s.k_full[at.stage].arrive_expect(PANELS * KEY_PANEL);
            for (int p = 0; p < PANELS; ++p)
                load_box(s.k[at.stage] + p * KEY_PANEL, k, s.k_full[at.stage], p * 64, head, j * KEYS, tile.sample);
            s.v_empty[at.stage].wait(at.parity ^ 1);
            s.v_full[at.stage].arrive_expect(PANELS * KEY_PANEL);
            for (int p = 0; p < PANELS; ++p)
                load_box(s.v[at.stage] + p * KEY_PANEL, v, s.v_full[at.stage], p * 64, head, j * KEYS, tile.sample);
        }
    }
}

// A tile's results, written where its queries were: then boxes leave with what lies outside the tensor dropped.
DEVICE void store_rows(unsigned char* q, const TensorMap& y, const float (&o)[D / 2], int group, const Tile& tile) {
    int r = lane() % 8 + lane() / 8 % 2 * 8, row = 64 * group + warp_id() % 4 * 16 + r;
#pragma unroll
    for (int g = 0; g < D / 8; g += 2) {
        int chunk = g + lane() / 16;
        unsigned char* to = q + chunk / 8 * ROW_PANEL + row * 128 + (chunk % 8 ^ r % 8) * 16;
        bool is_pair = g + 1 < D / 8;
        u32 c = is_pair ? narrow_pair<T>(o[(4 * g + 4) % (D / 2)], o[(4 * g + 5) % (D / 2)]) : 0;
        u32 d = is_pair ? narrow_pair<T>(o[(4 * g + 6) % (D / 2)], o[(4 * g + 7) % (D / 2)]) : 0;
        store_matrices(shared_address(to), narrow_pair<T>(o[4 * g], o[4 * g + 1]), narrow_pair<T>(o[4 * g + 2], o[4 * g + 3]), c, d);
    }
    proxy_fence();
    named_sync(1 + group, 128);
    if (thread() % 128 == 0) {
        for (int p = 0; p < PANELS; ++p)
            store_box(y, q + p * ROW_PANEL + group * 8192, p * 64, tile.head, tile.first + 64 * group, tile.sample);
        store_commit();
    }
}

// A warpgroup's 64 rows of a tile; the rest of what is known of it lies with its queries.
struct Slab {
    int stage, first, certain;  // certain: keys that every row sees

    // A row of the thread.
    DEVICE int row(int h) const { return first + warp_id() % 4 * 16 + lane() / 4 + 8 * h; }
};

// Multiplies: 64 queries of each tile with all keys that they see. Scores of a block are issued together with the sums of the block
// before, also across tiles: the exponentials of one run beside the products of the other.
struct Weigher {
    Shared& s;
    const Problem& of;
    const TensorMap& y;
    f32* lse;
    int* spoiled;
    const f32* bias;
    float scale;
    int group;
    Ring<AHEAD> ks, vs;
    Ring<QUEUE> qs;
    int leaving = -1;  // the place whose results are being stored

    // Waits for the next tile, and says where its queries are; false if there is none.
    DEVICE bool take(u64& q) {
        s.q_full[qs.stage].wait(qs.parity);
        q = matrix_along_k(s.q[qs.stage] + group * 8192);
        return s.tile[qs.stage].blocks > 0;
    }
    DEVICE Slab slab_at(int stage) const {
        int first = s.tile[stage].first + 64 * group;
        return {stage, first, of.visible(first, of.length(s.tile[stage].sample))};
    }
    // The place of a tile is free once what left from there has been read.
    DEVICE void let_go() {
        if (leaving >= 0 && thread() % 128 == 0) {
            store_wait_read<0>();
            s.q_empty[leaving].arrive();
        }
        leaving = -1;
    }
    DEVICE void scores(float (&x)[KEYS / 2], u64 q) {
        s.k_full[ks.stage].wait(ks.parity);
        issue_scores(x, q, matrix_along_k(s.k[ks.stage]));
    }
    DEVICE void have_scores(float (&x)[KEYS / 2]) {
        pin(x);
        if (lane() == 0) s.k_empty[ks.stage].arrive();
        ks.next();
    }
    DEVICE void sums(float (&o)[D / 2], const u32 (&p)[KEYS / 16][4]) {
        s.v_full[vs.stage].wait(vs.parity);
        issue_sums(o, p, matrix_along_n(s.v[vs.stage], KEY_PANEL), true);
    }
    DEVICE void have_sums(float (&o)[D / 2]) {
        wgmma_wait<0>();
        pin(o);
        if (lane() == 0) s.v_empty[vs.stage].arrive();
        vs.next();
    }
    DEVICE void draw(Kept& kept, const Slab& slab, int j) {
        if (!HAS_DROPOUT) return;
        const Tile& tile = s.tile[slab.stage];
        i64 head = (i64)tile.sample * of.heads + tile.head;
        kept.draw(of.dropping, head * of.nq + slab.row(0), of.nk, j * KEYS);
    }
    DEVICE void weights(float (&x)[KEYS / 2], const Slab& slab, int j, Rows& rows, float (&fade)[2]) {
        const Tile& tile = s.tile[slab.stage];
        if (HAS_BIAS) {
            const f32* of_head = bias + (i64)tile.head * of.nq * of.nk;
            add_bias(x, of_head, j * KEYS, slab.row(0), of.nq, of.nk, scale * LOG2_E);
        }
        if ((j + 1) * KEYS > slab.certain) {
            int length = of.length(tile.sample);
            hide(x, j * KEYS, of.visible(slab.row(0), length), of.visible(slab.row(1), length));
        }
        rows.next(x, HAS_BIAS ? 1.0f : scale * LOG2_E, fade);
        pin(x);
    }
    // Divides the sums, and lets them leave; they are 0 afterwards.
    DEVICE void finish(float (&o)[D / 2], const Rows& rows, const Slab& slab) {
        Tile tile = s.tile[slab.stage];
        bool is_odd = false;
        float all[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float sum = rows.sum[h];
            sum += lane_xor(sum, 1);
            sum += lane_xor(sum, 2);
            float one = reciprocal_fast(sum == 0.0f ? 1.0f : sum) * (HAS_DROPOUT ? of.dropping.scale : 1.0f);
#pragma unroll
            for (int i = 2 * h; i < D / 2; i += 4) {
                o[i] *= one, o[i + 1] *= one;
                is_odd |= o[i] != o[i] || o[i + 1] != o[i + 1];
            }
            all[h] = sum == 0.0f ? -infinity() : (rows.top[h] == -infinity() ? 0.0f : rows.top[h] * LN_2) + log_f32(sum);
        }
        let_go();
        store_rows(s.q[slab.stage], y, o, group, tile);
        leaving = slab.stage;
        // Behind the fence of what leaves, which would wait for these.
        i64 head = (i64)tile.sample * of.heads + tile.head;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (lane() % 4 == 0 && slab.row(h) < of.nq) lse[head * of.nq + slab.row(h)] = all[h];
        }
        // A hidden value that is infinite or NaN times a weight of 0.
        if (spoiled) {
            bool hides = slab.certain < of.nk && slab.certain < tile.blocks * KEYS;
            is_odd = named_any(1 + group, 128, is_odd && hides);
            if (thread() % 128 == 0 && slab.first < of.nq) spoiled[head * ((of.nq + 63) / 64) + slab.first / 64] = is_odd;
        }
#pragma unroll
        for (int i = 0; i < D / 2; ++i) o[i] = 0.0f;
    }

    DEVICE void run() {
        float o[D / 2], x[KEYS / 2], fade[2];
        u32 p[KEYS / 16][4];
        u64 q;
        Rows rows;
        Kept kept;
#pragma unroll
        for (int i = 0; i < D / 2; ++i) o[i] = 0.0f;
        if (!take(q)) return;
        Slab slab = slab_at(qs.stage);
        int j = s.tile[qs.stage].blocks - 1;
        qs.next();
        auto begin = [&] {
            scores(x, q);
            draw(kept, slab, j);
            wgmma_wait<0>();
            have_scores(x);
            weights(x, slab, j, rows, fade);
            to_operand(p, x, kept);
        };
        auto end = [&] {
            sums(o, p);
            have_sums(o);
            finish(o, rows, slab);
        };
        begin();
        // A tile's last sums leave beside the next tile's scores, where registers suffice for both.
        bool leaves = false;
        int place = 0;
        Rows done;
#pragma unroll 1
        for (;;) {
            let_go();
            bool ends = j == 0;
            int from = slab.stage;
            --j;
            if (ends) {
                if (QUEUE == 1) {
                    end();
                    let_go();
                }
                if (!take(q)) break;
                slab = slab_at(qs.stage);
                j = s.tile[qs.stage].blocks - 1;
                qs.next();
                if (QUEUE == 1) {
                    rows = Rows();
                    begin();
                    continue;
                }
            }
            scores(x, q);
            if (LEAVES_LATE && leaves) finish(o, done, slab_at(place));
            sums(o, p);
            draw(kept, slab, j);
            wgmma_wait<1>();
            have_scores(x);
            leaves = ends;
            if (ends) done = rows, rows = Rows(), place = from;
            weights(x, slab, j, rows, fade);
            // The wait stands behind a branch: in one piece the compiler would wait before the exponentials and overlap nothing.
            if (!ends && any_lane(fade[0] != 1.0f || fade[1] != 1.0f)) {
                have_sums(o);
#pragma unroll
                for (int i = 0; i < D / 2; ++i) o[i] *= fade[i / 2 % 2];
            } else {
                have_sums(o);
            }
            to_operand(p, x, kept);
            if (!LEAVES_LATE && ends) finish(o, done, slab_at(place));
        }
        if (LEAVES_LATE && leaves) finish(o, done, slab_at(place));
        if (QUEUE > 1) end();
        if (thread() % 128 == 0) store_wait_read<0>();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fwd(f32* lse, int* spoiled, int* counter, const __grid_constant__ TensorMap y, const __grid_constant__ TensorMap q,
                  const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, const f32* bias, const int* lengths, int nq,
                  int nk, int heads, int group, int batch, float scale, int causal, int section, int blocks,
                  i64 seed, i64 stream, int reach, float kept_scale) {
    extern __shared__ unsigned char memory[];
    Shared& s = *(Shared*)aligned<1024>(memory);
    if (thread() == 0) {
        for (int i = 0; i < QUEUE; ++i) s.q_full[i].init(1), s.q_empty[i].init(GROUPS);
        for (int i = 0; i < AHEAD; ++i) {
            s.k_full[i].init(1), s.v_full[i].init(1);
            s.k_empty[i].init(4 * GROUPS), s.v_empty[i].init(4 * GROUPS);
        }
        barrier_init_fence();
    }
    if (thread() == 32) prefetch(q), prefetch(k), prefetch(v), prefetch(y);
    block_sync();
    Problem of{nq, nk, heads, group, batch, causal, section, blocks, lengths, counter, {seed, stream, reach, kept_scale}};
    if (thread() < 128) {
        registers_down<COPIER_REGISTERS>();
        if (warp_id() == 0 && elected()) copy_keys(s, of, k, v);
        if (warp_id() == 1 && elected()) copy_queries(s, of, q);
    } else {
        registers_up<REGISTERS>();
        Weigher{s, of, y, lse, spoiled, bias, scale, warp_id() / 4 - 1}.run();
    }
}
