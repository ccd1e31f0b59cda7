// attention: the forward kernel of Hopper for 16-bit types: scores and weighted sums by wgmma, operands by bulk tensor copies.
// axes      q, y [B, Nq, H, D]; k, v [B, Nk, H / group, D], each behind a tensor map {D, heads, tokens, samples}; bias [H, Nq, Nk];
//           lse [B, H, Nq]; spoiled [B, H, tiles of 64 queries], a byte of each for each warp; lengths [B]; seen [Nq + Nk, 2]: see common/seen.cuh
// types     T in {bf16, f16}; scores, sums, bias, lse in f32; D a multiple of 8 from 16 to 256, not padded to a power of two
// launch    as many blocks as multiprocessors, each walks tiles of ROWS queries; a warpgroup copies, 2 or 3 multiply
// paths     a block of keys where nothing is hidden has no mask; tiles that a hidden number may have spoiled are the general kernel's
// maxima    a block of keys is weighed with the maxima of the blocks before, and looks for its own only where a row has none yet or a
//           sum of weights grows large; then the warp computes its scores once more
// matrix    HGMMA on sm_90a
// traffic   q and y once; k and v once for ROWS queries, out of the cache where heads follow each other
// dropout   a block of Philox is for two lanes, which draw in turns and trade, among the exponentials; the factor comes with the division
// floor     two products of 2 Nq Nk D FLOPs a head: a pair takes 4 D / 4096 clocks of a multiprocessor's matrix units and 1 / 16 of its
//           exponentials, so that both take as long at D of 64, and below it the exponentials decide
// left      beside cuDNN in turns on an H200: the whole operator (2026-11-22, benches/beside) 16384 tokens 1.22 at D of 64, 1.17 at 128,
//           512 tokens 0.98 and 1.07; causal 512 with the look for marks behind it (2026-11-23) 0.95 and 0.92: ends of tiles, and half of
//           the last block of a tile that is multiplied and hidden; D of 48 1.23: exponentials and the instructions around them
// order     keys descending in blocks of KEYS, ascending inside: same input, same bits; no atomics
// budget    sm_90a 168 registers; no spills
// source    Dao et al. 2022, algorithm 1; Shah et al. 2024, sections 3.1 and 3.2

#include "common/dropping.cuh"
#include "common/math.cuh"
#include "common/panel.cuh"
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

// Warpgroups that multiply: the launcher takes 2 where 3 would leave too many rows of the last tile empty.
#ifndef GROUPS
#define GROUPS 2
#endif

constexpr int KEYS = D <= 128 ? 128 : D <= 192 ? 112 : 80;  // of a block
constexpr int AHEAD = D <= 64 ? 4 : 2;                        // blocks of keys on their way, a power of 2
constexpr int QUEUE = D <= 128 ? 3 : 1;                       // tiles of queries: there, leaving, on their way
constexpr bool TRUSTS = D <= 128;                             // maxima of blocks before: wider heads have no registers to mend it
constexpr float MOST = 32768.0f;                              // of the weights that a thread adds up; f16 has twice that
constexpr float FOLLOWED = 8.0f;                              // by how much a maximum grows before the sums follow, as a power of 2
constexpr int BATCH = D <= 96 ? 16 : 8;                       // exponentials of a thread whose arguments are computed together
constexpr int ROWS = 64 * GROUPS;
constexpr int THREADS = 128 * (GROUPS + 1);
constexpr int PANELS = (D + 63) / 64;                                              // of 64 numbers, 128 bytes a row
constexpr int DEPTH = (D + 15) / 16;                                               // steps of the scores' products
constexpr int COPIER_REGISTERS = GROUPS == 3 ? 32 : 24, REGISTERS = GROUPS == 3 ? 160 : 240;

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Bytes of a panel of queries and of keys; swizzled tiles start at multiples of 1024.
constexpr int ROW_PANEL = ROWS * 128, KEY_PANEL = KEYS * 128;

// What of a tile of queries is computed: its place, and which blocks of keys any of its rows sees.
struct Tile {
    int first, head, sample, low, blocks;  // the first query; the first block and their number

    // The first key of the tile's j-th block.
    DEVICE int key(int j) const { return (low + j) * KEYS; }
};

struct Problem {
    int nq, nk, heads, group, batch, before, after, section, blocks;
    const int *lengths, *table;
    int* counter;
    bool hides;
    Dropping dropping;

    DEVICE int tiles() const { return (nq + ROWS - 1) / ROWS; }
    DEVICE int all_tiles() const { return tiles() * heads * batch; }
    DEVICE int length(int sample) const { return lengths ? lengths[sample] : nk; }
    DEVICE Seen<int> seen(int sample) const { return {nq, nk, length(sample), before, after, table}; }
    // What the block does after tile t: where tiles differ in length and a block has few, they are handed out as blocks become free.
    DEVICE int next(int t) const { return counter ? blocks + take_number(counter) : t + blocks; }
    // The t-th tile. Heads of a section, whose keys fit into the cache, follow each other; with a mask the last tiles of a
    // section, which are the longest of a causal one, come first, so that what is left at the end is short.
    DEVICE Tile tile(int t) const {
        int rows = tiles(), all = heads * batch, part = t / (rows * section), rest = t - part * rows * section;
        int here = all - part * section < section ? all - part * section : section;
        int m = hides ? rows - 1 - rest / here : rest % rows;
        int h = part * section + (hides ? rest % here : rest / rows);
        int sample = h / heads, first = m * ROWS, last = (first + ROWS < nq ? first + ROWS : nq) - 1;
        Seen<int> s = seen(sample);
        // Rows that see nothing walk one block, all hidden.
        int low = s.first(first) / KEYS, count = (s.end(last) + KEYS - 1) / KEYS - low;
        return {first, h - sample * heads, sample, low, count > 0 ? count : 1};
    }
};

struct Shared {
    unsigned char q[QUEUE][PANELS * ROW_PANEL];
    unsigned char k[AHEAD][PANELS * KEY_PANEL];
    unsigned char v[AHEAD][PANELS * KEY_PANEL];
    Tile tile[QUEUE];
    Barrier q_full[QUEUE], q_empty[QUEUE], k_full[AHEAD], k_empty[AHEAD], v_full[AHEAD], v_empty[AHEAD];
};

// Issues the scores of 64 queries with a block of keys.
DEVICE void issue_scores(float (&s)[KEYS / 2], u32 q, u32 k) {
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < DEPTH; ++step) {
        int panel = step / 4, within = step % 4 * 2;
        multiply<T>(s, swizzled(q + panel * (ROW_PANEL >> 4) + within), swizzled(k + panel * (KEY_PANEL >> 4) + within), step > 0);
    }
    wgmma_commit();
}

// Issues what a block of values adds to the sums.
DEVICE void issue_sums(float (&o)[D / 2], const u32 (&p)[KEYS / 16][4], u32 v, bool add) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) multiply<T, 1>(o, p[step], swizzled(v + step * 128), add || step > 0);
    wgmma_commit();
}

// A thread's two rows: the running maximum in units of the scores' exponent of 2, and this lane's part of the sum.
struct Rows {
    float top[2] = {-infinity(), -infinity()};
    float sum[2] = {0.0f, 0.0f};

    DEVICE bool knows_nothing() const { return any_lane(top[0] == -infinity() || top[1] == -infinity()); }
    // Lets the maxima follow these scores; by how much the sums so far shrink.
    DEVICE void follow(const float (&s)[KEYS / 2], float scale, float (&fade)[2]) {
        // Several chains a row: one alone would wait for itself.
        constexpr int CHAINS = 4;
        float most[2][CHAINS];
#pragma unroll
        for (int i = 0; i < KEYS / 2; i += 2) {
            float pair = fmaxf(s[i], s[i + 1]), &so_far = most[i / 2 % 2][i / 4 % CHAINS];
            so_far = i / 4 < CHAINS ? pair : fmaxf(so_far, pair);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) most[h][0] = fmaxf(fmaxf(most[h][0], most[h][1]), fmaxf(most[h][2], most[h][3]));
#pragma unroll
        for (int h = 0; h < 2; ++h) most[h][0] = fmaxf(most[h][0], lane_xor(most[h][0], 1));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float top_now = fmaxf(most[h][0], lane_xor(most[h][0], 2)) * scale;
            // A maximum that grows little is not followed: weights up to 2^FOLLOWED lose nothing, and the sums need not shrink.
            top_now = top_now > top[h] + FOLLOWED ? top_now : top[h];
            fade[h] = exp2_fast(top[h] - (top_now == -infinity() ? 0.0f : top_now));
            top[h] = top_now;
            sum[h] *= fade[h];
        }
    }
    // Scores to probabilities before the division.
    DEVICE void weigh(float (&s)[KEYS / 2], float scale) const {
        // Where every score is -inf all probabilities are 0.
        float shift[2] = {top[0] == -infinity() ? 0.0f : top[0], top[1] == -infinity() ? 0.0f : top[1]};
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i) {
            // Each batch waits for the first exponentials of the one before, by adding 0: else the compiler puts all products first.
            if (i >= BATCH && i % BATCH < 4 && i % 2 == 0) shift[i / 2 % 2] += fminf(s[i - BATCH], 0.0f);
            s[i] = exp2_fast(fmaf(s[i], scale, -shift[i / 2 % 2]));
        }
    }
};

// What a thread's rows do not see becomes -inf. `c0` is the block's first key.
DEVICE void hide(float (&s)[KEYS / 2], int c0, int first, int second, int certain) {
    int c = c0 + lane() % 4 * 2, limit[2] = {first - c, second - c};
    if (c0 + KEYS / 2 / 8 * 8 > certain) {
#pragma unroll
        for (int i = 0; i < KEYS / 16 * 4; ++i) {
            if (limit[i / 2 % 2] <= i / 4 * 8 + i % 2) s[i] = -infinity();
        }
    }
#pragma unroll
    for (int i = KEYS / 16 * 4; i < KEYS / 2; ++i) {
        if (limit[i / 2 % 2] <= i / 4 * 8 + i % 2) s[i] = -infinity();
    }
}

// The same for what lies before a row's first key.
DEVICE void hide_before(float (&s)[KEYS / 2], int c0, int first, int second) {
    int c = c0 + lane() % 4 * 2, limit[2] = {first - c, second - c};
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
        if (limit[i / 2 % 2] > i / 4 * 8 + i % 2) s[i] = -infinity();
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

// Four of eight bytes: the lowest digit of `which` says which is the lowest.
DEVICE u32 bytes_of(u32 low, u32 high, u32 which) { return __byte_perm(low, high, which); }

// Which of a thread's weights of a block of keys are kept.
struct Kept {
    static constexpr int WORDS = (KEYS + 63) / 64;
    u32 bits[WORDS];  // for 64 keys each

    // For keys from c0 on and the warp's 16 queries, which are row `rows` of all heads' tiles. Lanes of queries side by side have the
    // same blocks: each draws for half of the keys, and they trade.
    DEVICE void draw(const Dropping& dropping, u32 rows, int c0) {
        int own = lane() / 4 % 2;
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            u32 place = c0 + 64 * w + 32 * own + lane() / 8 * 4 + lane() % 4;
            u32 mine = dropping.kept_bits(rows, place) | dropping.kept_bits(rows, place + 16) << 16, other = lane_xor((int)mine, 4);
            bits[w] = own ? bytes_of(other, mine, 0x7531) : bytes_of(mine, other, 0x6420);
        }
    }
    DEVICE float of(float weight, int i) const {
        return !HAS_DROPOUT || bits[i / 32] >> i % 32 & 1 ? weight : 0.0f;
    }
};

// Weights as the operand of the next product, and the sums of a thread's two rows of them.
DEVICE void to_operand(u32 (&p)[KEYS / 16][4], const float (&s)[KEYS / 2], const Kept& kept, float (&all)[2]) {
    float part[2][2];
#pragma unroll
    for (int i = 0; i < KEYS / 4; ++i) {
        float a = s[2 * i], b = s[2 * i + 1];
        p[i / 4][i % 4] = narrow_pair<T>(kept.of(a, 2 * i), kept.of(b, 2 * i + 1));
        part[i % 2][0] = i < 2 ? a : part[i % 2][0] + a;
        part[i % 2][1] = i < 2 ? b : part[i % 2][1] + b;
    }
    for (int h = 0; h < 2; ++h) all[h] = part[h][0] + part[h][1];
}

// Copies queries, a thread's task: tile after tile, and at last word that there is none.
DEVICE void copy_queries(Shared& s, const Problem& of, const TensorMap& q) {
    Ring<QUEUE> at;
    for (int t = block_x();; t = of.next(t)) {
        Barrier& full = s.q_full[at.stage];
        s.q_empty[at.stage].wait(at.parity ^ 1);
        Tile tile = t < of.all_tiles() ? of.tile(t) : Tile{0, 0, 0, 0, 0};
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
                load_box(s.k[at.stage] + p * KEY_PANEL, k, s.k_full[at.stage], p * 64, head, tile.key(j), tile.sample);
            s.v_empty[at.stage].wait(at.parity ^ 1);
            s.v_full[at.stage].arrive_expect(PANELS * KEY_PANEL);
            for (int p = 0; p < PANELS; ++p)
                load_box(s.v[at.stage] + p * KEY_PANEL, v, s.v_full[at.stage], p * 64, head, tile.key(j), tile.sample);
        }
    }
}

// A tile's results, written where its queries were: then boxes leave with what lies outside the tensor dropped.
DEVICE void store_rows(unsigned char* q, const float (&o)[D / 2], int group) {
    int t = thread_again(), l = t % 32, r = l % 16, row = 64 * group + t / 32 % 4 * 16 + r;
    // Where chunk l / 16 of the row lies; an even number of chunks further is an exclusive or.
    u32 first = shared_address(q + row * 128 + (l / 16 ^ r % 8) * 16);
#pragma unroll
    for (int g = 0; g < D / 8; g += 2) {
        u32 to = (first ^ g % 8 * 16) + g / 8 * ROW_PANEL;
        bool is_pair = g + 1 < D / 8;
        u32 c = is_pair ? narrow_pair<T>(o[(4 * g + 4) % (D / 2)], o[(4 * g + 5) % (D / 2)]) : 0;
        u32 d = is_pair ? narrow_pair<T>(o[(4 * g + 6) % (D / 2)], o[(4 * g + 7) % (D / 2)]) : 0;
        store_matrices(to, narrow_pair<T>(o[4 * g], o[4 * g + 1]), narrow_pair<T>(o[4 * g + 2], o[4 * g + 3]), c, d);
    }
}

// The same rows leave.
DEVICE void send_rows(const unsigned char* q, const TensorMap& y, int group, const Tile& tile) {
    proxy_fence();
    warp_sync();
    if (lane() == 0) {
        int slab = 64 * group + warp_id() % 4 * 16;
        for (int p = 0; p < PANELS; ++p) store_box(y, q + p * ROW_PANEL + slab * 128, p * 64, tile.head, tile.first + slab, tile.sample);
        store_commit();
    }
}

// What a warpgroup remembers of a tile; the rest lies with its queries.
struct Slab {
    int stage, certain, from;  // of the tile's keys, how many up to the last that every row sees; the first block that all see from its first
};

// Multiplies: 64 queries of each tile with all keys that they see. Scores of a block are issued together with the sums of the block
// before, also across tiles: the exponentials of one run beside the products of the other.
struct Weigher {
    Shared& s;
    const Problem& of;
    const TensorMap& y;
    f32* lse;
    unsigned char* spoiled;
    const f32* bias;
    float scale;
    int group;
    u32 block = 0, before = 0;  // the block whose scores are computed, and the one whose values are added beside
    Ring<QUEUE> qs;
    DEVICE static u32 stage(u32 block) { return block % AHEAD; }
    DEVICE static u32 parity(u32 block) { return block / AHEAD % 2; }

    // Waits for the next tile; false if there is none.
    DEVICE bool take(Slab& slab, int& j) {
        s.q_full[qs.stage].wait(qs.parity);
        const Tile& tile = s.tile[qs.stage];
        j = tile.blocks - 1;
        Seen<int> seen = of.seen(tile.sample);
        int first = tile.first + 64 * group, last = first + 64 < of.nq ? first + 63 : of.nq - 1;
        slab = {qs.stage, seen.end(first) - tile.key(0), (seen.first(first + 63) + KEYS - 1) / KEYS - tile.low};
        qs.next();
        // Blocks that other warpgroups see alone, behind this one's last query; not more than are on their way while one is still in use.
        int end = first < of.nq ? seen.end(last) : 0;
#pragma unroll 1
        for (int most = AHEAD - 1; most > 0 && j > 0 && tile.key(j) >= end; --most, --j) skip();
        return j >= 0;
    }
    DEVICE void skip() {
        u32 at = stage(block), turn = parity(block);
        s.k_full[at].wait(turn), s.k_empty[at].arrive();
        s.v_full[at].wait(turn), s.v_empty[at].arrive();
        ++block;
    }
    // The first of the thread's two rows.
    DEVICE int row(int stage) const { return s.tile[stage].first + 64 * group + thread_again() / 4 % 32 / 8 * 16 + thread_again() / 4 % 8; }
    // Its place in lse.
    DEVICE i64 head_of(const Tile& tile) const { return (i64)tile.sample * of.heads + tile.head; }
    // The place of a tile is free once what left from there has been read.
    DEVICE void let_go(int stage) {
        if (lane() == 0) store_wait_read<0>();
        s.q_empty[stage].arrive();
    }
    DEVICE void scores(float (&x)[KEYS / 2], int place) {
        s.k_full[stage(block)].wait(parity(block));
        u32 q = shared_address(s.q[place] + group * 8192);
        asm volatile("" : "+r"(q));  // else descriptors of all steps are kept in registers where the place is always the same
        issue_scores(x, low_along_k(q), low_along_k(shared_address(s.k[stage(block)])));
    }
    // The same for this warp's rows alone.
    DEVICE void scores_again(float (&x)[KEYS / 2], int place) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i) x[i] = 0.0f;
#pragma unroll 1
        for (int step = 0; step < DEPTH; ++step) {
            Panel<T> mine((T*)(s.q[place] + step / 4 * ROW_PANEL), 64), keys((T*)(s.k[stage(block)] + step / 4 * KEY_PANEL), 64);
            Frag16<T> a, b;
            load_own(a, mine, 64 * group + warp_id() % 4 * 16, step % 4 * 16);
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                load_other(b, keys, 16 * n, step % 4 * 16);
                Tile16 tile;
#pragma unroll
                for (int i = 0; i < 8; ++i) tile.v[i] = x[8 * n + i];
                mma16<T>(tile, a, b);
#pragma unroll
                for (int i = 0; i < 8; ++i) x[8 * n + i] = tile.v[i];
            }
        }
    }
    DEVICE void keys_read() { s.k_empty[stage(block)].arrive(); }
    DEVICE void sums(float (&o)[D / 2], const u32 (&p)[KEYS / 16][4]) {
        s.v_full[stage(before)].wait(parity(before));
        issue_sums(o, p, low_along_n(shared_address(s.v[stage(before)]), KEY_PANEL), true);
    }
    DEVICE void values_read() { s.v_empty[stage(before)].arrive(); }
    DEVICE void draw(Kept& kept, const Slab& slab, int j) {
        if (!HAS_DROPOUT) return;
        const Tile& tile = s.tile[slab.stage];
        u32 rows = (u32)head_of(tile) * Dropping::tiles(of.nq) + (tile.first + 64 * group) / 16 + warp_id() % 4;
        kept.draw(of.dropping, rows, tile.key(j));
    }
    DEVICE void prepare(float (&x)[KEYS / 2], const Slab& slab, int j) {
        const Tile& tile = s.tile[slab.stage];
        if (HAS_BIAS) {
            const f32* of_head = bias + (i64)tile.head * of.nq * of.nk;
            add_bias(x, of_head, tile.key(j), row(slab.stage), of.nq, of.nk, scale * LOG2_E);
        }
        if ((j + 1) * KEYS > slab.certain || j < slab.from) {
            Seen<int> seen = of.seen(tile.sample);
            int r = row(slab.stage), start = tile.key(0);
            hide(x, j * KEYS, seen.end(r) - start, seen.end(r + 8) - start, slab.certain);
            // Between the two, so that the conditions of both need no registers at once.
            pin(x);
            if (j < slab.from) hide_before(x, j * KEYS, seen.first(r) - start, seen.first(r + 8) - start);
        }
    }
    // Scores to weights, and by how much the sums so far shrink, which are complete afterwards. The maxima of blocks before serve as long
    // as no weight grows large, which the weights' sum tells: then the scores, which are gone, are computed once more, and the maxima follow.
    DEVICE void weights(float (&x)[KEYS / 2], u32 (&p)[KEYS / 16][4], float (&o)[D / 2], Kept& kept, const Slab& slab, int j, Rows& rows, float (&fade)[2]) {
        float factor = HAS_BIAS ? 1.0f : scale * LOG2_E, all[2];
        bool follows = !TRUSTS || rows.knows_nothing();
        fade[0] = fade[1] = 1.0f;
#pragma unroll 1
        for (;;) {
            prepare(x, slab, j);
            // Either way the wait stands behind a branch: in one piece the compiler would wait before the exponentials and overlap nothing.
            if (follows) {
                rows.follow(x, factor, fade);
                draw(kept, slab, j);
                rows.weigh(x, factor);
            } else {
                draw(kept, slab, j);
                rows.weigh(x, factor);
                pin(x);
            }
            wgmma_wait<0>();
            pin(o);
            to_operand(p, x, kept, all);
            pin(all);
            if (follows || !any_lane(all[0] > MOST || all[1] > MOST)) break;
            follows = true;
            scores_again(x, slab.stage);
        }
        rows.sum[0] += all[0], rows.sum[1] += all[1];
        keys_read();
    }
    // What a tile's sums are divided by, as factors; writes the logarithms.
    DEVICE void close(const Rows& rows, int stage, float (&one)[2]) {
        const Tile& tile = s.tile[stage];
        float sum[2], all[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) sum[h] = rows.sum[h] + lane_xor(rows.sum[h], 1);
#pragma unroll
        for (int h = 0; h < 2; ++h) sum[h] += lane_xor(sum[h], 2);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            one[h] = reciprocal_fast(sum[h] == 0.0f ? 1.0f : sum[h]) * (HAS_DROPOUT ? of.dropping.scale : 1.0f);
            all[h] = ((rows.top[h] == -infinity() ? 0.0f : rows.top[h]) + log2_fast(sum[h])) * LN_2;
        }
        int r = row(stage);
        if (lane() % 4 == 0 && r < of.nq) {
            f32* to = lse + head_of(tile) * of.nq + r;
            to[0] = all[0];
            if (r + 8 < of.nq) to[8] = all[1];
        }
    }
    // Divides the sums, and puts them where they leave from; they are 0 afterwards.
    DEVICE void finish(float (&o)[D / 2], const float (&one)[2], int stage) {
        Tile tile = s.tile[stage];
#pragma unroll
        for (int i = 0; i < D / 2; ++i) o[i] *= one[i / 2 % 2];
        store_rows(s.q[stage], o, group);
        // A hidden value that is infinite or NaN times a weight of 0.
        if (spoiled) {
            Seen<int> seen = of.seen(tile.sample);
            int first = tile.first + 64 * group, end = seen.end(first);
            float odd[2] = {0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < D / 2; ++i) odd[i % 2] = fmaf(o[i], 0.0f, odd[i % 2]);
            bool hides = seen.first(first + 63) > tile.key(0) || (end < of.nk && end < tile.key(tile.blocks));
            // A byte a warp: the four need not wait for each other.
            bool is_odd = any_lane(odd[0] + odd[1] != 0.0f && hides);
            if (lane() == 0 && first < of.nq) spoiled[(head_of(tile) * ((of.nq + 63) / 64) + first / 64) * 4 + warp_id() % 4] = is_odd;
        }
        // A zero that the compiler does not know: of those that it knows it makes one register each, long before.
        float zero;
        asm volatile("mov.f32 %0, 0f00000000;" : "=f"(zero));
#pragma unroll
        for (int i = 0; i < D / 2; ++i) o[i] = zero;
        pin(o);
    }

    DEVICE void run() {
        float o[D / 2], x[KEYS / 2], fade[2], one[2];
        u32 p[KEYS / 16][4];
        Rows rows;
        Kept kept;
        Slab slab;
        int j;
#pragma unroll
        for (int i = 0; i < D / 2; ++i) o[i] = 0.0f;
        if (!take(slab, j)) return;
        auto begin = [&] {
            scores(x, slab.stage);
            wgmma_wait<0>();
            pin(x);
            weights(x, p, o, kept, slab, j, rows, fade);
            before = block++;
        };
        auto end = [&] {
            sums(o, p);
            close(rows, slab.stage, one);
            wgmma_wait<0>();
            pin(o);
            values_read();
            finish(o, one, slab.stage);
            send_rows(s.q[slab.stage], y, group, s.tile[slab.stage]);
        };
        begin();
        // A tile's last sums leave beside the next tile's scores.
        enum { NONE, CLOSED, STORED } state = NONE;
        int from = 0;
#pragma unroll 1
        for (;;) {
            if (state == STORED) {
                let_go(from);
                state = NONE;
            }
            bool ends = j == 0;
            --j;
            int last = slab.stage;
            if (ends) {
                if (QUEUE == 1) {
                    end();
                    let_go(last);
                }
                if (!take(slab, j)) {
                    slab.stage = last;
                    break;
                }
                if (QUEUE == 1) {
                    rows = Rows();
                    begin();
                    continue;
                }
            }
            scores(x, slab.stage);
            if (state == CLOSED) {
                finish(o, one, from);
            }
            sums(o, p);
            if (state == CLOSED) {
                send_rows(s.q[from], y, group, s.tile[from]);
                state = STORED;
            }
            if (ends) {
                if (state == STORED) let_go(from);
                close(rows, last, one);
                rows = Rows();
                from = last;
                state = CLOSED;
            }
            wgmma_wait<1>();
            pin(x);
            weights(x, p, o, kept, slab, j, rows, fade);
            values_read();
            if (!ends && any_lane(fade[0] != 1.0f || fade[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < D / 2; ++i) o[i] *= fade[i / 2 % 2];
            }
            before = block++;
        }
        if (QUEUE > 1) {
            if (state == CLOSED) {
                finish(o, one, from);
                send_rows(s.q[from], y, group, s.tile[from]);
            }
            end();
        }
        if (lane() == 0) store_wait_read<0>();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_fwd(f32* lse, int* spoiled, int* counter, const __grid_constant__ TensorMap y, const __grid_constant__ TensorMap q,
                  const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, const f32* bias, const int* lengths, const int* seen, int nq,
                  int nk, int before, int after, int heads, int group, int batch, float scale, int section, int blocks, i64 seed, i64 stream, int reach, float kept_scale) {
    follow();
    extern __shared__ unsigned char memory[];
    Shared& s = *(Shared*)aligned<1024>(memory);
    if (thread() == 0) {
        for (int i = 0; i < QUEUE; ++i) s.q_full[i].init(1), s.q_empty[i].init(128 * GROUPS);
        for (int i = 0; i < AHEAD; ++i) {
            s.k_full[i].init(1), s.v_full[i].init(1);
            s.k_empty[i].init(128 * GROUPS), s.v_empty[i].init(128 * GROUPS);
        }
        barrier_init_fence();
    }
    if (thread() == 32) prefetch(q), prefetch(k), prefetch(v), prefetch(y);
    block_sync();
    Problem of{nq, nk, heads, group, batch, before, after, section, blocks, lengths, seen, counter, spoiled != nullptr, {seed, stream, reach, kept_scale}};
    if (thread() < 128) {
        registers_down<COPIER_REGISTERS>();
        if (warp_id() == 0 && elected()) copy_keys(s, of, k, v);
        if (warp_id() == 1 && elected()) copy_queries(s, of, q);
    } else {
        registers_up<REGISTERS>();
        int group = uniform(warp_id() / 4) - 1;
        Weigher{s, of, y, lse, (unsigned char*)spoiled, bias, scale, group}.run();
    }
}
