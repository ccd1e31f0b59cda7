// outer: a tile of a^T * b in shared memory, a [depth, ROWS..] and b [depth, COLUMNS..] row-major: the gradient of a weight matrix from the
// gradient of the results and the inputs of a batch, a tile at a time, for kernels that use it where it is made.
// types     T in {bf16, f16} by the matrix unit, f32 by FFMA; sums in f32
// tile      ROWS x COLUMNS, whose rows lie SUMS_STRIDE apart, so that a warp's pairs of sums touch all banks
// paths     16-byte copies where an operand starts and steps by multiples of 16 bytes, 4-byte copies where it does by those of 4, else numbers
// order     depth ascending, in one block: same input, same bits

#pragma once
#include "common/math.cuh"
#include "common/panel.cuh"

constexpr int OUTER_THREADS = 256;
constexpr int ROWS = 64, COLUMNS = 128;
constexpr int SUMS_STRIDE = COLUMNS + 8;

// An operand: rows of `length` numbers, one behind the other.
struct Side {
    const T* at;
    i64 length;
};

// The rows from r0 on of the numbers from c0 on, as a panel; zeros where there is none. How many rows: `depth`, in all.
template <int WIDTH, int DEPTH> DEVICE void fill(const Panel<T>& panel, const Side& side, i64 r0, i64 depth, i64 c0) {
    bool is_wide = is_aligned<16>(side.at) && side.length % 8 == 0, is_paired = is_aligned<4>(side.at) && side.length % 2 == 0;
    // Loops that are not unrolled: their addresses would take the registers of what is under way.
    if (is_wide) {
#pragma unroll 1
        for (int i = thread(); i < DEPTH * WIDTH / 8; i += OUTER_THREADS) {
            int r = i / (WIDTH / 8), c = i % (WIDTH / 8);
            bool is_there = r0 + r < depth && c0 + c * 8 < side.length;
            copy_piece(panel.piece(r, c), side.at + (r0 + r) * side.length + c0 + c * 8, is_there);
        }
    } else if (is_paired) {
#pragma unroll 1
        for (int i = thread(); i < DEPTH * WIDTH / 2; i += OUTER_THREADS) {
            int r = i / (WIDTH / 2), c = i % (WIDTH / 2) * 2;
            bool is_there = r0 + r < depth && c0 + c < side.length;
            copy_bytes<4>(panel.number(r, c), side.at + (r0 + r) * side.length + c0 + c, is_there);
        }
    } else {
#pragma unroll 1
        for (int i = thread(); i < DEPTH * WIDTH; i += OUTER_THREADS) {
            int r = i / WIDTH, c = i % WIDTH;
            bool is_there = r0 + r < depth && c0 + c < side.length;
            *panel.number(r, c) = is_there ? side.at[(r0 + r) * side.length + c0 + c] : narrow<T>(0.0f);
        }
    }
}

// Sums of the matrix unit: a warp has 32 x 32 of a tile on NVIDIA, 32 x 64 on AMD.
template <typename U> struct OuterMatrix {
    static constexpr int DEPTH = 64;
    static constexpr int BYTES = DEPTH * (ROWS + COLUMNS) * sizeof(U);
    static constexpr int ACROSS = OUTER_THREADS / WARP / (ROWS / 32), WIDTH = COLUMNS / ACROSS, N = WIDTH / 16;
    Tile16 sum[2][N];

    DEVICE int row0() const { return warp_id() / ACROSS * 32; }
    DEVICE int column0() const { return warp_id() % ACROSS * WIDTH; }
    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < N; ++j) sum[i][j].clear();
    }
    DEVICE void add(const Side& a, const Side& b, i64 depth, i64 row, i64 column, char* smem) {
        Panel<U> left((U*)smem, ROWS), right((U*)smem + DEPTH * ROWS, COLUMNS);
        for (i64 r = 0; r < depth; r += DEPTH) {
            if (r > 0) block_sync();
            fill<ROWS, DEPTH>(left, a, r, depth, row);
            fill<COLUMNS, DEPTH>(right, b, r, depth, column);
            copies_end();
            block_sync();
#pragma unroll 1
            for (int k = 0; k < DEPTH; k += 16) {
                Frag16<U> own[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) load_own_turned(own[i], left, k, row0() + 16 * i);
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    Frag16<U> other;
                    load_other_turned(other, right, k, column0() + 16 * j);
#pragma unroll
                    for (int i = 0; i < 2; ++i) multiply_own(sum[i][j], own[i], other);
                }
            }
        }
    }
    DEVICE void put(float* sums) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
                for (int v = 0; v < Tile16::NUMBERS; ++v)
                    sums[(row0() + 16 * i + ::own(v)) * SUMS_STRIDE + column0() + 16 * j + ::other(v)] = sum[i][j].v[v];
    }
    template <typename F> DEVICE void each(F f) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
                for (int v = 0; v < Tile16::NUMBERS; ++v) f(sum[i][j].v[v]);
    }
};

// The same by products of single numbers: a thread has 8 rows of 4 columns.
struct OuterScalar {
    static constexpr int DEPTH = 16;
    static constexpr int BYTES = DEPTH * (ROWS + COLUMNS) * 4;
    static constexpr int LANES = COLUMNS / 4;
    float sum[8][4];

    DEVICE int row0() const { return (int)thread() / LANES * 8; }
    DEVICE int column0() const { return (int)thread() % LANES * 4; }
    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i][j] = 0.0f;
    }
    template <int WIDTH> DEVICE void take(float* to, const Side& side, i64 r0, i64 depth, i64 c0) {
        for (int i = thread(); i < DEPTH * WIDTH; i += OUTER_THREADS) {
            int r = i / WIDTH, c = i % WIDTH;
            to[i] = r0 + r < depth && c0 + c < side.length ? widen(side.at[(r0 + r) * side.length + c0 + c]) : 0.0f;
        }
    }
    DEVICE void add(const Side& a, const Side& b, i64 depth, i64 row, i64 column, char* smem) {
        float *left = (float*)smem, *right = left + DEPTH * ROWS;
        for (i64 r = 0; r < depth; r += DEPTH) {
            if (r > 0) block_sync();
            take<ROWS>(left, a, r, depth, row);
            take<COLUMNS>(right, b, r, depth, column);
            block_sync();
            for (int k = 0; k < DEPTH; ++k) {
                float x[4];
                load_kept<f32, 4>(right + k * COLUMNS + column0()).unpack(x);
#pragma unroll
                for (int i = 0; i < 8; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(left[k * ROWS + row0() + i], x[j], sum[i][j]);
            }
        }
    }
    DEVICE void put(float* sums) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) store<f32, 4>(sums + (row0() + i) * SUMS_STRIDE + column0(), sum[i]);
    }
    template <typename F> DEVICE void each(F f) const {
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) f(sum[i][j]);
    }
};

template <int BYTES> struct OuterOf {
    using Type = OuterMatrix<T>;
};
template <> struct OuterOf<4> {
    using Type = OuterScalar;
};
using Outer = OuterOf<sizeof(T)>::Type;
