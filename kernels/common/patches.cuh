// patches: images as rows of tokens and back, in tiles through shared memory: both sides are read and written in long runs.
// tile      rows of the image and patches next to each other: of one row of patches all channels where they lie together in a token,
//           else some channels with all their rows
// launch    PATCH_THREADS threads a tile, 16 to 48 KB of shared memory, whose tokens lie `pitch` numbers apart: an odd number of banks
// paths     image: 16 bytes at a time, or single numbers; tokens: 16, 4 or 2 bytes, as lengths and places allow; shared memory by packs,
//           words or single numbers, as the order of features allows
// order     every number alone: same input, same bits
// measured  H200, 2026-11-22, bf16, images of 133 to 166 MB, per cent of the copy rate to tokens and back: [c][p][q] 87 and 86 (patch 8),
//           85 and 81 (patch 2), [p][q][c] 83 and 81 (patch 8), 79 and 72 (patch 2); copies by boxes and square tiles took 42 and 21

#pragma once
#include "common/pack.cuh"

constexpr int PATCH_THREADS = 256;
// Packs of a thread that are under way before the first is used.
constexpr int PATCH_PACKS = 2;

// An image [B, c, h * p, width] and its tokens [B, h * (width / q), features], features in the order [c][p][q] or [p][q][c].
struct Patches {
    i64 plane;          // numbers of a channel of the image
    u32 width;          // numbers of a row of it
    u32 c, h, p, q;     // channels, patches down, rows and columns of a patch
    u32 features;
    u32 rows, tokens;   // of a tile, at most
    u32 pitch;
    u32 slabs, strips;  // tiles above each other in a row of patches, and next to each other
    int channels_last;
};

// Division of numbers below 2^16 by one that stays.
struct SmallDivisor {
    u32 by, magic;
    DEVICE explicit SmallDivisor(u32 by) : by(by), magic(0xffffffffu / by + 1) {}
    DEVICE u32 quotient(u32 n) const { return by == 1 ? n : (u32)(((u64)n * magic) >> 32); }
};

struct PatchTile {
    i64 image, token;  // the first number on both sides
    u32 first;         // the first row, counted through all channels, where features are [c][p][q]
    u32 rows, tokens;
    u32 line;          // the row of the image, where a tile has all channels of one
    SmallDivisor by_p;
    DEVICE explicit PatchTile(const Patches& s) : by_p(s.p) {
        u32 rest = block_x() / s.strips, left = (block_x() - rest * s.strips) * s.tokens;
        u32 line = rest / s.slabs, slab = rest - line * s.slabs, b = line / s.h, i = line - b * s.h, across = s.width / s.q;
        first = s.channels_last ? 0 : slab * s.rows;
        rows = s.channels_last ? s.c : (u32)least(s.rows, (i64)s.c * s.p - first);
        tokens = (u32)least(s.tokens, across - left);
        this->line = i * s.p + (s.channels_last ? slab : 0);
        image = (i64)b * s.c * s.plane + (i64)this->line * s.width + (i64)left * s.q;
        token = ((i64)line * across + left) * s.features + (s.channels_last ? slab * s.q * s.c : first * s.q);
    }
    DEVICE u32 channel(const Patches& s, u32 row) const { return s.channels_last ? row : by_p.quotient(first + row); }
    // Where a row begins, after the tile's first number.
    DEVICE i64 place(const Patches& s, u32 row) const {
        u32 c = channel(s, row);
        return s.channels_last ? c * s.plane : c * s.plane + (i64)(first + row - c * s.p) * s.width;
    }
};

// Number i of a pack as it is.
template <typename U, int W> DEVICE U number_of(const Pack<U, W>& p, int i) {
    if constexpr (sizeof(U) * W < 4) {
        return p.value;
    } else if constexpr (sizeof(U) == 4) {
        return float_of(p.word[i]);
    } else {
        return U{(u16)(p.word[i / 2] >> (16 * (i % 2)))};
    }
}
template <typename U, int W> DEVICE Pack<U, W> pack_of(const U (&v)[W]) {
    Pack<U, W> p;
    if constexpr (sizeof(U) * W < 4) {
        p.value = v[0];
    } else {
#pragma unroll
        for (int i = 0; i < Pack<U, W>::WORDS; ++i) {
            if constexpr (sizeof(U) == 4) {
                p.word[i] = bits_of(v[i]);
            } else {
                p.word[i] = (u32)v[2 * i].bits | (u32)v[2 * i + 1].bits << 16;
            }
        }
    }
    return p;
}

// V numbers of a pack, from number i on.
template <int V, typename U, int W> DEVICE Pack<U, V> part_of(const Pack<U, W>& p, int i) {
    U v[V];
#pragma unroll
    for (int g = 0; g < V; ++g) v[g] = number_of(p, i + g);
    return pack_of(v);
}

// A pack is stored as it is; when it is added to what is there, as numbers.
template <typename U, int W> DEVICE void leave(U* to, const Pack<U, W>& p, int add) {
    if (add) {
        float v[W];
        p.unpack(v);
        put<U, W>(to, v, 1);
    } else {
        store<U, W>(to, p);
    }
}

// Some neighbours in a row of the tile: their row, the patch in which they begin, and where in it.
struct RowSpot {
    u32 row, column, patch, q;
};
template <int W> struct RowSpots {
    u32 across, count;
    SmallDivisor by_across, by_q;
    DEVICE RowSpots(const Patches& s, const PatchTile& t)
        : across(t.tokens * s.q / W), count(t.rows * (t.tokens * s.q / W)), by_across(t.tokens * s.q / W), by_q(s.q) {}
    DEVICE RowSpot at(u32 k) const {
        u32 row = by_across.quotient(k), column = (k - row * across) * W, patch = by_q.quotient(column);
        return {row, column, patch, column - patch * by_q.by};
    }
};

// How numbers of a row lie in shared memory: W neighbours of the image at a time, of which G are neighbours there, too.
template <int G_, int W_, bool IS_WITHIN_> struct RowWay {
    static constexpr int G = G_, W = W_;
    static constexpr bool IS_WITHIN = IS_WITHIN_;  // none of the W is of another patch, and channels come last
};

template <class Way, class Each> DEVICE void along_row(const Patches& s, u32 rows, RowSpot at, Each each) {
    if constexpr (Way::IS_WITHIN) {
        u32 first = at.patch * s.pitch + at.q * rows + at.row;
#pragma unroll
        for (int i = 0; i < Way::W; ++i) each(i, first + i * rows);
    } else {
#pragma unroll
        for (int i = 0; i < Way::W; i += Way::G) {
            each(i, at.patch * s.pitch + (s.channels_last ? at.q * rows + at.row : at.row * s.q + at.q));
            at.q += Way::G;
            if (at.q == s.q) at.q = 0, ++at.patch;
        }
    }
}

// Calls each(`of.row(channel)`, place in shared memory, numbers of the image) for all that are neighbours on both sides.
template <class Way, typename X, class Of, class Each>
DEVICE void each_of_rows(const X* x, const Patches& s, const PatchTile& t, Of& of, Each each) {
    constexpr int G = Way::G, W = Way::W;
    RowSpots<W> spots(s, t);
    for (u32 first = thread(); first < spots.count; first += PATCH_PACKS * PATCH_THREADS) {
        Pack<X, W> taken[PATCH_PACKS];
        RowSpot spot[PATCH_PACKS];
#pragma unroll
        for (int k = 0; k < PATCH_PACKS; ++k) {
            if (first + k * PATCH_THREADS >= spots.count) break;
            spot[k] = spots.at(first + k * PATCH_THREADS);
            taken[k] = load_once<X, W>(x + t.image + t.place(s, spot[k].row) + spot[k].column);
        }
#pragma unroll
        for (int k = 0; k < PATCH_PACKS; ++k) {
            if (first + k * PATCH_THREADS >= spots.count) break;
            auto of_row = of.row(t.channel(s, spot[k].row));
            along_row<Way>(s, t.rows, spot[k], [&](int i, u32 at) {
                X v[G];
#pragma unroll
                for (int g = 0; g < G; ++g) v[g] = number_of(taken[k], i + g);
                each(of_row, at, v);
            });
        }
    }
}

template <class Way, typename X, class Map> DEVICE void take_rows(T* room, const X* x, const Patches& s, const PatchTile& t, Map map) {
    each_of_rows<Way>(x, s, t, map, [&](decltype(map.row(0))& of_row, u32 at, const X(&image)[Way::G]) {
        T v[Way::G];
#pragma unroll
        for (int g = 0; g < Way::G; ++g) v[g] = of_row(image[g]);
        *(Pack<T, Way::G>*)(room + at) = pack_of(v);
    });
}

template <class Way, typename X, class Map>
DEVICE void leave_rows(X* y, const T* room, const Patches& s, const PatchTile& t, int add, Map map) {
    constexpr int G = Way::G, W = Way::W;
    RowSpots<W> spots(s, t);
    for (u32 k = thread(); k < spots.count; k += PATCH_THREADS) {
        RowSpot spot = spots.at(k);
        X v[W];
        auto of_row = map.row(t.channel(s, spot.row));
        along_row<Way>(s, t.rows, spot, [&](int i, u32 at) {
            Pack<T, G> p = *(const Pack<T, G>*)(room + at);
#pragma unroll
            for (int g = 0; g < G; ++g) v[i + g] = of_row(number_of(p, g));
        });
        leave(y + t.image + t.place(s, spot.row) + spot.column, pack_of(v), add);
    }
}

// Every number of the tile beside that of another image: `of.row(channel)(number of a token, number of the image)` is what the token gets,
// if `of` says so.
template <class Way, class Of> DEVICE void meet_rows(T* room, const f32* x, const Patches& s, const PatchTile& t, Of& of) {
    each_of_rows<Way>(x, s, t, of, [&](decltype(of.row(0))& of_row, u32 at, const f32(&image)[Way::G]) {
        Pack<T, Way::G>& p = *(Pack<T, Way::G>*)(room + at);
        T v[Way::G];
#pragma unroll
        for (int g = 0; g < Way::G; ++g) v[g] = of_row(number_of(p, g), image[g]);
        if constexpr (Of::WRITES) p = pack_of(v);
    });
}

// Packs of W numbers of the tile's tokens, which lie in shared memory in pieces of V.
template <int W> struct TokenSpots {
    u32 packs, count;
    SmallDivisor by_packs;
    DEVICE TokenSpots(const Patches& s, const PatchTile& t)
        : packs(t.rows * s.q / W), count(t.tokens * (t.rows * s.q / W)), by_packs(t.rows * s.q / W) {}
};
template <int V, int W> DEVICE void take_tokens(T* room, const T* x, const Patches& s, const PatchTile& t) {
    TokenSpots<W> spots(s, t);
    for (u32 first = thread(); first < spots.count; first += PATCH_PACKS * PATCH_THREADS) {
        Pack<T, W> taken[PATCH_PACKS];
        u32 at[PATCH_PACKS];
#pragma unroll
        for (int k = 0; k < PATCH_PACKS; ++k) {
            u32 pack = first + k * PATCH_THREADS;
            if (pack >= spots.count) break;
            u32 token = spots.by_packs.quotient(pack), along = (pack - token * spots.packs) * W;
            at[k] = token * s.pitch + along;
            taken[k] = load_once<T, W>(x + t.token + (i64)token * s.features + along);
        }
#pragma unroll
        for (int k = 0; k < PATCH_PACKS; ++k) {
            if (first + k * PATCH_THREADS >= spots.count) break;
#pragma unroll
            for (int i = 0; i < W; i += V) *(Pack<T, V>*)(room + at[k] + i) = part_of<V>(taken[k], i);
        }
    }
}
template <int V, int W> DEVICE void leave_tokens(T* y, const T* room, const Patches& s, const PatchTile& t, int add) {
    TokenSpots<W> spots(s, t);
    for (u32 k = thread(); k < spots.count; k += PATCH_THREADS) {
        u32 token = spots.by_packs.quotient(k), along = (k - token * spots.packs) * W;
        T v[W];
#pragma unroll
        for (int i = 0; i < W; i += V) {
            Pack<T, V> p = *(const Pack<T, V>*)(room + token * s.pitch + along + i);
#pragma unroll
            for (int g = 0; g < V; ++g) v[i + g] = number_of(p, g);
        }
        leave(y + t.token + (i64)token * s.features + along, pack_of(v), add);
    }
}

// Numbers of a word of shared memory.
constexpr int WORD = sizeof(T) == 2 ? 2 : 1;

// What tokens are moved by: 0 single numbers, 1 words, 2 packs of 16 bytes and words of shared memory, 3 packs on both sides.
DEVICE int token_way(const T* tokens, const Patches& s, const PatchTile& t) {
    u64 steps = (u64)t.token | s.features | t.rows * s.q;
    if (steps % WIDE<T> == 0 && is_aligned<16>(tokens) && s.pitch % WORD == 0) return s.pitch % WIDE<T> == 0 ? 3 : 2;
    return (steps | s.pitch) % WORD == 0 && is_aligned<4>(tokens) ? 1 : 0;
}

// What rows are moved by: 0 single numbers, else packs of 16 bytes: 1 on both sides, 2 words of shared memory, 3 and 4 single numbers of it.
template <typename X> DEVICE int row_way(const X* image, const Patches& s, const PatchTile& t) {
    constexpr int W = WIDE<X>;
    if (((u64)t.image | (u64)s.plane | s.width | t.tokens * s.q) % W != 0 || !is_aligned<16>(image)) return 0;
    if (s.channels_last) return s.q % W == 0 ? 4 : 3;
    return s.q % W == 0 && s.pitch % W == 0 ? 1 : s.q % WORD == 0 && s.pitch % WORD == 0 ? 2 : 3;
}

DEVICE void take_all_tokens(T* room, const T* x, const Patches& s, const PatchTile& t) {
    switch (token_way(x, s, t)) {
    case 3: take_tokens<WIDE<T>, WIDE<T>>(room, x, s, t); break;
    case 2: take_tokens<WORD, WIDE<T>>(room, x, s, t); break;
    case 1: take_tokens<WORD, WORD>(room, x, s, t); break;
    default: take_tokens<1, 1>(room, x, s, t);
    }
}
DEVICE void leave_all_tokens(T* y, const T* room, const Patches& s, const PatchTile& t, int add) {
    switch (token_way(y, s, t)) {
    case 3: leave_tokens<WIDE<T>, WIDE<T>>(y, room, s, t, add); break;
    case 2: leave_tokens<WORD, WIDE<T>>(y, room, s, t, add); break;
    case 1: leave_tokens<WORD, WORD>(y, room, s, t, add); break;
    default: leave_tokens<1, 1>(y, room, s, t, add);
    }
}
// The same where channels come last.
template <class Of> DEVICE void meet_all_rows(T* room, const f32* x, const Patches& s, const PatchTile& t, Of& of) {
    constexpr int W = WIDE<f32>;
    switch (row_way(x, s, t)) {
    case 4: meet_rows<RowWay<1, W, true>>(room, x, s, t, of); break;
    case 3: meet_rows<RowWay<1, W, false>>(room, x, s, t, of); break;
    default: meet_rows<RowWay<1, 1, false>>(room, x, s, t, of);
    }
}

// `map.row(channel)(number of the image)` as tokens.
template <typename X, class Map> DEVICE void image_to_tokens(T* y, const X* x, const Patches& s, int add, T* room, Map map) {
    constexpr int W = WIDE<X>;
    PatchTile t(s);
    switch (row_way(x, s, t)) {
    case 1: take_rows<RowWay<W, W, false>>(room, x, s, t, map); break;
    case 2: take_rows<RowWay<WORD, W, false>>(room, x, s, t, map); break;
    case 3: take_rows<RowWay<1, W, false>>(room, x, s, t, map); break;
    case 4: take_rows<RowWay<1, W, true>>(room, x, s, t, map); break;
    default: take_rows<RowWay<1, 1, false>>(room, x, s, t, map);
    }
    block_sync();
    leave_all_tokens(y, room, s, t, add);
}

// `map.row(channel)(number of a token)` as an image.
template <typename X, class Map> DEVICE void tokens_to_image(X* y, const T* x, const Patches& s, int add, T* room, Map map) {
    constexpr int W = WIDE<X>;
    PatchTile t(s);
    take_all_tokens(room, x, s, t);
    block_sync();
    switch (row_way(y, s, t)) {
    case 1: leave_rows<RowWay<W, W, false>>(y, room, s, t, add, map); break;
    case 2: leave_rows<RowWay<WORD, W, false>>(y, room, s, t, add, map); break;
    case 3: leave_rows<RowWay<1, W, false>>(y, room, s, t, add, map); break;
    case 4: leave_rows<RowWay<1, W, true>>(y, room, s, t, add, map); break;
    default: leave_rows<RowWay<1, 1, false>>(y, room, s, t, add, map);
    }
}

// As it is.
struct Same {
    DEVICE Same row(u32) const { return *this; }
    template <typename U> DEVICE U operator()(U v) const { return v; }
};
