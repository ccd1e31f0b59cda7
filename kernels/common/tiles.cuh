// tiles: attention whose own rows stay in a warp's registers: which tile of which head a block has, what it sees of the other side, which
// probabilities are kept, and how sums get to memory
// D         head size of the text; EXTRAS: whether it has a bias and dropout, which take registers also where they are not used
// order     fixed: same input, same bits

#pragma once
#include "common/dropping.cuh"
#include "common/feed.cuh"

#ifndef D
#define D 64
#endif
#ifndef EXTRAS
#define EXTRAS 0
#endif

constexpr int TILES = D / 16;
constexpr float LOG2_E = 1.442695041f, LOG_2 = 0.693147181f;
// Below every score, and finite: the difference to -inf is none.
constexpr float NONE = -1e38f;
// Queries of a tile of the general kernel.
constexpr int MARKED = 16 * (128 / WARP);

// Those from first to last - 1.
struct Range {
    int first, last;
};

// Who sees whom: query i keys from i - before to i + after - 1, of the first `length`. Neither end goes back from one query to the next.
struct Mask {
    int nq, nk, length, before, after;

    static DEVICE int clamp(int n, int most) { return n < 0 ? 0 : n < most ? n : most; }
    DEVICE int first(int i) const { return clamp(i - before, length); }
    DEVICE int end(int i) const { return clamp(i + after, length); }
    // The first query whose keys end behind key j, and the end of those whose keys begin at j or before.
    DEVICE int first_query(int j) const { return j >= length ? nq : clamp(j - after + 1, nq); }
    DEVICE int end_query(int j) const { return j >= length ? nq : clamp(j + before + 1, nq); }
};

DEVICE Range seen_by(const Mask& mask, int query) { return {mask.first(query), mask.end(query)}; }
// What any query from `from` to `to` sees, and what all of them see.
DEVICE Range seen_by_any(const Mask& mask, int from, int to) { return {mask.first(from), mask.end(to)}; }
DEVICE Range seen_by_all(const Mask& mask, int from, int to) { return {mask.first(to), mask.end(from)}; }

#ifdef ON_AMD
// Two numbers of a lane in one instruction.
typedef float Two __attribute__((ext_vector_type(2)));
// The largest that is a number: the compiler would make sure first that none is a signalling NaN.
DEVICE float largest_number(float a, float b, float c) {
    float most;
    asm("v_max3_f32 %0, %1, %2, %3" : "=v"(most) : "v"(a), "v"(b), "v"(c));
    return most;
}
#endif

// Which tile of which head of which sample a block has. Blocks go round over the dies of MI300, each with a cache of its own: there a
// die gets whole heads. Where later tiles are longer (`is_rising`) they come first.
struct Place {
    int tile, head, sample;

    DEVICE Place(int tiles, int heads, int batch, bool is_rising) {
#ifdef __gfx942__
        constexpr int DIES = 8;
#else
        constexpr int DIES = 1;
#endif
        int block = block_x(), pairs = heads * batch, even = pairs / DIES * DIES, pair;
        if (DIES > 1 && block < even * tiles) {
            int rest = block / DIES;
            pair = rest / tiles, tile = rest - pair * tiles, pair = pair * DIES + block % DIES;
        } else {
            pair = block / tiles, tile = block - pair * tiles;
        }
        if (is_rising) tile = tiles - 1 - tile;
        sample = pair / heads, head = pair - sample * heads;
    }
};

// Which numbers of a tile of 16 probabilities by 16 are kept, the first in the lowest bit: queries are own rows, row `rows` of all heads'
// tiles, keys come from `j` on. On AMD a lane has numbers of two blocks, and its neighbour of the same two: each draws one.
DEVICE u32 kept_of_queries(Dropping dropping, u32 rows, int j) {
    dropping.seed = anew(dropping.seed);
    int l = lane();
#ifdef ON_NVIDIA
    return dropping.kept_bits(rows, j + l / 8 * 4 + l % 4) >> l / 4 % 2 * 8 & 0xff;
#else
    int own = l % 2, shift = own * 8 + l % 16 / 8 * 2 + l / 32 * 4;
    u32 mine = dropping.kept_bits(rows, j + l % 8 / 2 * 4 + l / 16 % 2 * 2 + own), other = (u32)lane_xor((int)mine, 1);
    u32 low = (own ? other : mine) >> shift, high = (own ? mine : other) >> shift;
    return (low & 3) | (high & 3) << 2;
#endif
}
// The same where keys are own rows.
DEVICE u32 kept_of_keys(Dropping dropping, u32 rows, int j) {
    dropping.seed = anew(dropping.seed);
    int l = lane();
#ifdef ON_NVIDIA
    u32 bits = dropping.kept_bits(rows, j + l % 4 * 4 + l / 8) >> l / 4 % 2;
    bits = (bits & 0x55) | (bits >> 7 & 0xaa);
    return (bits & 0xc3) | (bits >> 2 & 0x0c) | (bits << 2 & 0x30);
#else
    int own = l % 2, shift = own + l % 16 / 8 * 4 + l / 32 * 2;
    u32 mine = dropping.kept_bits(rows, j + (l / 16 % 2 * 2 + own) * 4 + l % 8 / 2), other = (u32)lane_xor((int)mine, 1);
    u32 low = (own ? other : mine) >> shift, high = (own ? mine : other) >> shift;
    return (low & 1) | (low >> 7 & 2) | (high & 1) << 2 | (high >> 7 & 2) << 2;
#endif
}

// A tile's bias, for products that start with it and are scaled later: of `own_count` and `other_count` rows from `bias` on; own rows'
// are `down` apart, those of the other side `right`.
DEVICE void start_with(Tile16& s, const f32* bias, i64 down, i64 right, int own_count, int other_count, float scale) {
    float inverse = divide(1.0f, scale);
#pragma unroll
    for (int i = 0; i < Tile16::NUMBERS; ++i) {
        bool is_there = own(i) < own_count && other(i) < other_count;
        s.v[i] = is_there ? with_plain_nan(bias[own(i) * down + other(i) * right]) * inverse : 0.0f;
    }
}

// Whether one of a warp's sums is infinite or NaN.
template <int R> DEVICE bool is_any_odd(const Tile16 (&sum)[R][TILES]) {
    bool is_odd = false;
#pragma unroll
    for (int m = 0; m < R; ++m)
#pragma unroll
        for (int c = 0; c < TILES; ++c)
#pragma unroll
            for (int i = 0; i < Tile16::NUMBERS; ++i) is_odd |= !(absolute(sum[m][c].v[i]) < infinity());
    return any_lane(is_odd);
}

// Marks tiles of MARKED rows in which a number that no row sees may have spoiled sums of a warp, which has R * 16 of their rows; whether
// this warp's tile is one of them.
template <int R, int WARPS> DEVICE bool mark(int* spoiled, bool is_odd, int tile, int rows) {
    constexpr int SLABS = R * 16 * WARPS / MARKED, SHARING = WARPS / SLABS;
    __shared__ int odd[WARPS];
    if (lane() == 0) odd[warp_id()] = is_odd;
    block_sync();
    bool any = false;
    int slab = warp_id() / SHARING;
#pragma unroll
    for (int w = 0; w < SHARING; ++w) any |= odd[slab * SHARING + w] != 0;
    slab += tile * SLABS;
    if (lane() == 0 && warp_id() % SHARING == 0 && slab * MARKED < rows) spoiled[slab] = any;
    return any;
}

// A warp's results, rounded, through its rows `r` of a panel to memory: to `v` or onto what is there.
template <int R> DEVICE void store_tiles(const Vectors<T>& v, T* to, T* panel, int r, const Tile16 (&sum)[R][TILES], int add) {
    Panel<T> rows(panel, D);
#pragma unroll
    for (int m = 0; m < R; ++m)
#pragma unroll
        for (int c = 0; c < TILES; ++c) put_tile(rows, r + m * 16, c * 16, sum[m][c]);
    warp_sync();
#pragma unroll 4
    for (int i = lane(); i < R * 16 * (D / 8); i += WARP) {
        int at = r + i / (D / 8), c = i % (D / 8);
        if (at >= v.count || c * 8 >= v.d) continue;
        Pack<T, 8> pack = load_kept<T, 8>(rows.piece(at, c));
        T* place = to + at * v.row + c * 8;
        if (add) {
            float x[8];
            pack.unpack(x);
            put<T, 8>(place, x, 1);
        } else {
            store<T, 8>(place, pack);
        }
    }
}
