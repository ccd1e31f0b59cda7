// movement: numbers copied from box to box, bit by bit: permute, concat, slice, pad, roll, patchify, unpatchify and their gradients.
// copy_box     strides on both sides; 16, 8, 4 or 2 bytes at a time, as the launcher finds that lengths, steps and places allow
// copy_window  every number of a contiguous result: from a box inside it, 0 outside; or rolled around the ends of the axes
// copy_tiles   the fastest axis of one side is a slow one of the other: square tiles through shared memory, both sides coalesced
// launch       MOVE_THREADS threads; a block moves MOVE_THREADS * MOVE_PACKS packs, or one tile
// order        every number is copied alone; a gradient that is added is rounded once: same input, same bits

#pragma once
#include "common/pack.cuh"

constexpr int MOVE_THREADS = 256;
constexpr int MOVE_PACKS = 4;
constexpr int MOVE_AXES = 6;

// One axis: how far neighbours lie apart where is read and where is written, and its length.
struct MoveAxis {
    i64 from;
    i64 to;
    u32 len;
};

// A box to copy; axes are slowest first, the last `rank` of the array; all in packs of `width` numbers. It has fewer than 2^31 packs: the
// launcher cuts larger ones, and division stays short.
struct Box {
    i64 from;
    i64 to;
    u32 count;
    int rank;
    int width;
    MoveAxis axis[MOVE_AXES];
};

struct Place {
    i64 from;
    i64 to;
};

DEVICE Place place_in(const Box& box, u32 k) {
    Place p{box.from, box.to};
#pragma unroll
    for (int a = MOVE_AXES - 1; a >= 0; --a) {
        if (a < MOVE_AXES - box.rank) break;
        u32 rest = k / box.axis[a].len, i = k - rest * box.axis[a].len;
        p.from += i * box.axis[a].from;
        p.to += i * box.axis[a].to;
        k = rest;
    }
    return p;
}

// A pack moves as it is; when it is added to what is there, as numbers.
template <typename U, int W> DEVICE void move(U* to, const Pack<U, W>& p, int add) {
    if (add) {
        float v[W];
        p.unpack(v);
        put<U, W>(to, v, 1);
    } else {
        store<U, W>(to, p);
    }
}

template <typename U, int W> DEVICE void copy_packs(U* y, const U* x, const Box& box, int add) {
    u32 first = block_x() * (MOVE_THREADS * MOVE_PACKS) + thread();
    Pack<U, W> taken[MOVE_PACKS];
    Place place[MOVE_PACKS];
#pragma unroll
    for (int k = 0; k < MOVE_PACKS; ++k) {
        u32 at = first + k * MOVE_THREADS;
        if (at < box.count) {
            place[k] = place_in(box, at);
            taken[k] = load_once<U, W>(x + place[k].from * W);
        }
    }
#pragma unroll
    for (int k = 0; k < MOVE_PACKS; ++k) {
        if (first + k * MOVE_THREADS < box.count) move<U, W>(y + place[k].to * W, taken[k], add);
    }
}

DEVICE void copy_box(T* y, const T* x, const Box& box, int add) {
    if (box.width == WIDE<T>) {
        copy_packs<T, WIDE<T>>(y, x, box, add);
    } else if (box.width == WIDE<T> / 2) {
        copy_packs<T, WIDE<T> / 2>(y, x, box, add);
    } else if (sizeof(T) == 2 && box.width == 2) {
        copy_packs<T, 2>(y, x, box, add);
    } else {
        copy_packs<T, 1>(y, x, box, add);
    }
}

// One axis of a contiguous result: the step where is read, its length, where the box begins in it, and how long that is.
struct WindowAxis {
    i64 from;
    u32 len;
    u32 start;
    u32 inner;
};

// A result of `count` packs, `width` numbers each; with wraps, what lies before the start comes from the end of the
// axis. Fewer than 2^31 packs.
struct Window {
    i64 from;
    u32 count;
    int rank;
    int width;
    int wraps;
    WindowAxis axis[MOVE_AXES];
};

// Where pack k comes from; -1: from nowhere.
DEVICE i64 source_of(const Window& w, u32 k) {
    i64 from = w.from;
    bool is_inside = true;
#pragma unroll
    for (int a = MOVE_AXES - 1; a >= 0; --a) {
        if (a < MOVE_AXES - w.rank) break;
        u32 rest = k / w.axis[a].len, here = k - rest * w.axis[a].len;
        // Before the start it is beyond 2^31, and so outside, or around the end.
        u32 i = here - w.axis[a].start;
        if (w.wraps && here < w.axis[a].start) i += w.axis[a].len;
        is_inside = is_inside && i < w.axis[a].inner;
        from += i * w.axis[a].from;
        k = rest;
    }
    return is_inside ? from : -1;
}

template <typename U, int W> DEVICE void window_packs(U* y, const U* x, const Window& w, int add) {
    u32 first = block_x() * (MOVE_THREADS * MOVE_PACKS) + thread();
    Pack<U, W> taken[MOVE_PACKS];
#pragma unroll
    for (int k = 0; k < MOVE_PACKS; ++k) {
        u32 at = first + k * MOVE_THREADS;
        float zero[W] = {};
        taken[k].pack(zero);
        if (at < w.count) {
            i64 from = source_of(w, at);
            if (from >= 0) taken[k] = load_once<U, W>(x + from * W);
        }
    }
#pragma unroll
    for (int k = 0; k < MOVE_PACKS; ++k) {
        u32 at = first + k * MOVE_THREADS;
        if (at < w.count) move<U, W>(y + (i64)at * W, taken[k], add);
    }
}

DEVICE void copy_window(T* y, const T* x, const Window& w, int add) {
    if (w.width == WIDE<T>) {
        window_packs<T, WIDE<T>>(y, x, w, add);
    } else if (w.width == WIDE<T> / 2) {
        window_packs<T, WIDE<T> / 2>(y, x, w, add);
    } else if (sizeof(T) == 2 && w.width == 2) {
        window_packs<T, 2>(y, x, w, add);
    } else {
        window_packs<T, 1>(y, x, w, add);
    }
}

// A matrix to transpose for every place of a box of the other axes: `lines` neighbours where is written, `across` neighbours where is
// read. On the other side they lie `near` apart within runs of `run`, and the runs `far` apart: the columns of an image and those of its
// patches, for instance. Tiles of 128 bytes a side.
struct TileAxis {
    i64 near;
    i64 far;
    u32 len;
    u32 run;
};
struct Tiles {
    TileAxis lines;
    TileAxis across;
    u32 tiles_down;
    u32 tiles_across;
    Box rest;
};
DEVICE i64 place_along(const TileAxis& a, u32 i) {
    if (a.run == a.len) return i * a.near;
    u32 runs = i / a.run;
    return runs * a.far + (i - runs * a.run) * a.near;
}

constexpr int TILE_SIDE = 128 / (int)sizeof(T);
constexpr int TILE_STEP = MOVE_THREADS / TILE_SIDE;

// A thread's numbers of a tile, all under way before the first is used; IS_EVEN: lines lie equally far apart.
template <bool IS_EVEN>
DEVICE void take_lines(T (&taken)[TILE_SIDE / TILE_STEP], const T* from, const Tiles& t, u32 line, u32 column) {
#pragma unroll
    for (int k = 0; k < TILE_SIDE / TILE_STEP; ++k) {
        u32 i = line + k * TILE_STEP;
        if (i < t.lines.len && column < t.across.len) taken[k] = from[IS_EVEN ? i * t.lines.near : place_along(t.lines, i)];
    }
}

DEVICE void copy_tiles(T* y, const T* x, const Tiles& t, int add) {
    // A line longer by one word: neighbouring threads reach neighbouring banks in both directions.
    __shared__ T tile[TILE_SIDE][TILE_SIDE + 4 / sizeof(T)];
    u32 block = block_x(), down = block / t.tiles_across, outer = down / t.tiles_down;
    Place place = place_in(t.rest, outer);
    u32 line = (down - outer * t.tiles_down) * TILE_SIDE, column = (block - down * t.tiles_across) * TILE_SIDE;
    u32 along = thread() % TILE_SIDE, other = thread() / TILE_SIDE;
    constexpr int STEP = TILE_STEP;
    const T* from = x + place.from + column + along;
    T taken[TILE_SIDE / STEP];
    if (t.lines.run == t.lines.len) {
        take_lines<true>(taken, from, t, line + other, column + along);
    } else {
        take_lines<false>(taken, from, t, line + other, column + along);
    }
#pragma unroll
    for (int k = 0; k < TILE_SIDE / STEP; ++k) tile[other + k * STEP][along] = taken[k];
    block_sync();
    T* to = y + place.to + line + along;
#pragma unroll
    for (int k = 0; k < TILE_SIDE; k += STEP) {
        u32 j = other + k;
        if (line + along < t.lines.len && column + j < t.across.len) {
            Pack<T, 1> p = load_kept<T, 1>(&tile[along][j]);
            move<T, 1>(to + place_along(t.across, column + j), p, add);
        }
    }
}
