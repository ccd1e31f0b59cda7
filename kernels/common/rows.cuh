// rows: one team of threads for each row of a row-major matrix: softmax and the normalisations of rows.
// teams     a warp for a row that fits into its registers, ROW_THREADS threads (a block) for longer ones
// launch    ROW_THREADS threads; a block has ROW_THREADS / WARP rows, or one
// paths     held: the row is read once, in 16-byte packs, and stays in registers; else read again for every pass, in packs when W
//           divides the length and singly when not (the second pass finds it in the caches)
// order     a thread adds its packs from first to last, then the team in the order of reduce.cuh: same input, same bits

#pragma once
#include "common/pack.cuh"
#include "common/reduce.cuh"

constexpr int ROW_THREADS = 256;

struct WarpTeam {
    static constexpr int SIZE = WARP;
    DEVICE static int id() { return lane(); }
    DEVICE static i64 row() { return (i64)block_x() * (ROW_THREADS / WARP) + warp_id(); }
    DEVICE float sum(float v) { return warp_sum(v); }
    DEVICE void sum2(float& a, float& b) { warp_sum2(a, b); }
    DEVICE float max(float v) { return warp_max(v); }
};

struct BlockTeam {
    static constexpr int SIZE = ROW_THREADS;
    BlockScratch<ROW_THREADS>* scratch;
    DEVICE static int id() { return thread(); }
    DEVICE static i64 row() { return block_x(); }
    DEVICE float sum(float v) { return block_sum(v, *scratch); }
    DEVICE void sum2(float& a, float& b) { block_sum2(a, b, *scratch); }
    DEVICE float max(float v) { return block_max(v, *scratch); }
};

// How a team of SIZE threads walks a row: packs of W numbers, of which a thread holds up to HELD; 0 if it holds none.
template <int SIZE_, int W_, int HELD_> struct Walk {
    static constexpr int SIZE = SIZE_, W = W_, HELD = HELD_, SLOTS = HELD_ ? HELD_ : 1;

    // Calls f(slot, at) for every pack of this thread, `at` being its first column.
    template <typename F> DEVICE static void each(int c, int id, F f) {
        if constexpr (HELD > 0) {
#pragma unroll
            for (int p = 0; p < HELD; ++p) {
                int at = (id + p * SIZE) * W;
                if (at < c) f(p, at);
            }
        } else {
            // i64, so that a step past the end of a long row does not overflow.
            for (i64 at = (i64)id * W; at < c; at += SIZE * W) f(0, (int)at);
        }
    }
};

// A row under a walk: held in registers or read when asked for.
template <typename U, typename WALK> struct Row {
    static constexpr int W = WALK::W;
    const U* x;
    Pack<U, W> pack[WALK::SLOTS];

    DEVICE Row(const U* x, int c, int id) : x(x) {
        if constexpr (WALK::HELD > 0) {
#pragma unroll
            for (int p = 0; p < WALK::HELD; ++p) {
                int at = (id + p * WALK::SIZE) * W;
                if (at < c) pack[p] = load_once<U, W>(x + at);
            }
        }
    }
    DEVICE void get(float (&v)[W], int slot, int at) const {
        if constexpr (WALK::HELD > 0) {
            pack[slot].unpack(v);
        } else {
            load_kept<U, W>(x + at).unpack(v);
        }
    }
};

// Calls f.run<WALK>() for the fastest walk that a row of c numbers allows.
template <int SIZE, int W, int HELD, typename F> DEVICE void walk_row(int c, bool is_aligned, F f) {
    if (c % W != 0 || !is_aligned) {
        f.template run<Walk<SIZE, 1, 0>>();
    } else if (c <= SIZE * W * HELD) {
        f.template run<Walk<SIZE, W, HELD>>();
    } else {
        f.template run<Walk<SIZE, W, 0>>();
    }
}
