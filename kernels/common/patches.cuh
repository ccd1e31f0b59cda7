// patches: images as rows of tokens and back, in tiles through shared memory: both sides are read and written in long runs.
// tile      rows of the image and patches next to each other: of one row of patches all channels where they lie together in a token,
//           else some channels with all their rows
// launch    PATCH_THREADS threads a tile, 16 to 48 KB of shared memory, whose tokens lie `pitch` numbers apart: an odd number of banks
// paths     image: 16 bytes at a time, or single numbers; tokens: 16, 4 or 2 bytes, as lengths and places allow
// order     every number alone: same input, same bits

#pragma once
#include "common/pack.cuh"

constexpr int PATCH_THREADS = 256;

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

// Division of small numbers by one that stays.
struct Divisor {
    u32 by;
    u64 magic;
    DEVICE explicit Divisor(u32 by) : by(by), magic((u64)(0xffffffffu / by) + 1) {}
    // Exact for numbers below 2^16.
    DEVICE u32 quotient(u32 n) const { return (u32)((n * magic) >> 32); }
};

struct PatchTile {
    i64 image, token;  // the first number on both sides
    u32 first;         // the first row, counted through all channels, where features are [c][p][q]
    u32 rows, tokens;
    DEVICE explicit PatchTile(const Patches& s) {
        u32 rest = block_x() / s.strips, left = (block_x() - rest * s.strips) * s.tokens;
        u32 line = rest / s.slabs, slab = rest - line * s.slabs, b = line / s.h, i = line - b * s.h, across = s.width / s.q;
        first = s.channels_last ? 0 : slab * s.rows;
        rows = s.channels_last ? s.c : (u32)least(s.rows, (i64)s.c * s.p - first);
        tokens = (u32)least(s.tokens, across - left);
        image = (i64)b * s.c * s.plane + (i64)(i * s.p + (s.channels_last ? slab : 0)) * s.width + (i64)left * s.q;
        token = ((i64)line * across + left) * s.features + (s.channels_last ? slab * s.q * s.c : first * s.q);
    }
    DEVICE u32 channel(const Patches& s, u32 row) const { return s.channels_last ? row : (first + row) / s.p; }
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

// Calls `visit(row, column, patch, q)` for groups of W columns of every row of the tile: which patch they begin in, and where in it.
template <int W, class Visit> DEVICE void visit_rows(const Patches& s, const PatchTile& t, Visit visit) {
    u32 across = t.tokens * s.q / W;
    Divisor by_across(across), by_q(s.q);
    for (u32 k = thread(); k < t.rows * across; k += PATCH_THREADS) {
        u32 row = by_across.quotient(k), column = (k - row * across) * W, patch = by_q.quotient(column);
        visit(row, column, patch, column - patch * s.q);
    }
}

// Numbers of a row and those of the tokens in shared memory, G neighbours of both at a time.
template <int G, int W, class Each> DEVICE void along_row(const Patches& s, u32 pitch, u32 rows, u32 row, u32 patch, u32 q, Each each) {
#pragma unroll
    for (int i = 0; i < W; i += G) {
        each(i, patch * pitch + (s.channels_last ? q * rows + row : row * s.q + q));
        q += G;
        if (q == s.q) q = 0, ++patch;
    }
}

template <int G, int W, typename X, class Map>
DEVICE void take_rows(T* room, const X* x, const Patches& s, const PatchTile& t, Map map) {
    visit_rows<W>(s, t, [&](u32 row, u32 column, u32 patch, u32 q) {
        Pack<X, W> taken = load_once<X, W>(x + t.image + t.place(s, row) + column);
        u32 c = t.channel(s, row);
        along_row<G, W>(s, s.pitch, t.rows, row, patch, q, [&](int i, u32 at) {
            T v[G];
#pragma unroll
            for (int g = 0; g < G; ++g) v[g] = map(c, number_of(taken, i + g));
            *(Pack<T, G>*)(room + at) = pack_of(v);
        });
    });
}

template <int G, int W, typename X, class Map>
DEVICE void leave_rows(X* y, const T* room, const Patches& s, const PatchTile& t, int add, Map map) {
    visit_rows<W>(s, t, [&](u32 row, u32 column, u32 patch, u32 q) {
        X v[W];
        u32 c = t.channel(s, row);
        along_row<G, W>(s, s.pitch, t.rows, row, patch, q, [&](int i, u32 at) {
            Pack<T, G> p = *(const Pack<T, G>*)(room + at);
#pragma unroll
            for (int g = 0; g < G; ++g) v[i + g] = map(c, number_of(p, g));
        });
        leave(y + t.image + t.place(s, row) + column, pack_of(v), add);
    });
}

// Calls `visit(place of the token's pack, place in shared memory)` for all packs of W numbers of the tile's tokens.
template <int W, class Visit> DEVICE void visit_tokens(const Patches& s, const PatchTile& t, Visit visit) {
    u32 packs = t.rows * s.q / W;
    Divisor by_packs(packs);
    for (u32 k = thread(); k < t.tokens * packs; k += PATCH_THREADS) {
        u32 token = by_packs.quotient(k), at = (k - token * packs) * W;
        visit(t.token + (i64)token * s.features + at, token * s.pitch + at);
    }
}

// The widest packs that tokens allow: 16 bytes, a word, or a number.
template <class Run> DEVICE void with_token_width(const T* tokens, const Patches& s, const PatchTile& t, Run run) {
    u64 steps = (u64)t.token | s.features | s.pitch | t.rows * s.q;
    if (steps % WIDE<T> == 0 && is_aligned<16>(tokens)) {
        run(Pack<T, WIDE<T>>{});
    } else if (sizeof(T) == 2 && steps % 2 == 0 && is_aligned<4>(tokens)) {
        run(Pack<T, sizeof(T) == 2 ? 2 : 1>{});
    } else {
        run(Pack<T, 1>{});
    }
}
template <typename U, int W> constexpr int width_of(const Pack<U, W>&) { return W; }

// The widest packs that the image allows, and how many neighbours lie together in shared memory, too.
template <typename X, class Run> DEVICE void with_image_width(const X* image, const Patches& s, const PatchTile& t, Run run) {
    constexpr int W = WIDE<X>;
    bool is_wide = ((u64)t.image | (u64)s.plane | s.width | t.tokens * s.q) % W == 0 && is_aligned<16>(image);
    if (!is_wide) {
        run(Pack<X, 1>{}, Pack<T, 1>{});
    } else if (!s.channels_last && s.q % W == 0 && s.pitch % W == 0) {
        run(Pack<X, W>{}, Pack<T, W>{});
    } else if (sizeof(T) == 2 && !s.channels_last && s.q % 2 == 0) {
        run(Pack<X, W>{}, Pack<T, sizeof(T) == 2 ? 2 : 1>{});
    } else {
        run(Pack<X, W>{}, Pack<T, 1>{});
    }
}

// `map(channel, number of the image)` as tokens.
template <typename X, class Map> DEVICE void image_to_tokens(T* y, const X* x, const Patches& s, int add, T* room, Map map) {
    PatchTile t(s);
    with_image_width(x, s, t, [&](auto image, auto group) { take_rows<width_of(group), width_of(image)>(room, x, s, t, map); });
    block_sync();
    with_token_width(y, s, t, [&](auto pack) {
        constexpr int W = width_of(pack);
        visit_tokens<W>(s, t, [&](i64 to, u32 at) { leave(y + to, *(const Pack<T, W>*)(room + at), add); });
    });
}

// `map(channel, number of a token)` as an image.
template <typename X, class Map> DEVICE void tokens_to_image(X* y, const T* x, const Patches& s, int add, T* room, Map map) {
    PatchTile t(s);
    with_token_width(x, s, t, [&](auto pack) {
        constexpr int W = width_of(pack);
        visit_tokens<W>(s, t, [&](i64 from, u32 at) { *(Pack<T, W>*)(room + at) = load_once<T, W>(x + from); });
    });
    block_sync();
    with_image_width(y, s, t, [&](auto image, auto group) { leave_rows<width_of(group), width_of(image)>(y, room, s, t, add, map); });
}

// As it is.
struct Same {
    template <typename U> DEVICE U operator()(u32, U v) const { return v; }
};
