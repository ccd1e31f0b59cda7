// resize_bilinear: y[i, j] = sum over a, b of rows[i, a] * columns[j, b] * x[a, b], two weights a row and two a column.
// axes      x, dx [planes, h, w]; y, dy [planes, to_h, to_w]; of each axis inputs * outputs < 2^30
// types     T in {f32, bf16, f16}; weights and sums in f32
// launch    THREADS threads; a warp has a tile of the columns of a plane and walks down a chunk of its rows: [planes * chunks * tiles]
//           warps; bwd_dx_any, a thread a number, where one input goes to more columns than a warp has
// paths     _doubled: both axes grow twice, forward also four times, all rows of a warp at once (common/bilinear_doubled.cuh); _whole:
//           columns grow 2, 4 or 8 times or shrink to half, 16 bytes a lane (common/bilinear_whole.cuh); else fwd: two 16-bit numbers a
//           store where they divide the columns; bwd: 16-byte packs of dy where they do, else single numbers
// traffic   fwd reads a row of x once a chunk, and its first two again, and writes y; bwd reads a row of dy once a chunk, and those of
//           one row of x again, and writes dx, which it reads when adding
// order     every number of y alone; sums of dx: rows, then columns, both ascending: same input, same bits; no atomics
// budget    sm_80 128 registers, sm_90a 128, gfx90a 128, gfx942 128; no spills
// source    PyTorch's documentation of interpolate(mode="bilinear", antialias=False)

#include "common/bilinear_doubled.cuh"
#include "common/bilinear_rows.cuh"

// Runs of columns of a lane, forward.
constexpr int SEGMENTS = 4;

extern "C" __global__ void __launch_bounds__(THREADS) resize_bilinear_fwd(
    T* y, const T* x, i64 planes, int h, int w, int to_h, int to_w, int aligned, int each, int tiles, int chunk, int chunks) {
    follow();
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    Axis rows = axis_of(h, to_h, aligned), across = axis_of(w, to_w, aligned);
    auto first_of = [&](i64 plane) { return plane * rows.inputs * across.inputs; };
    if (each == 2) {
        walk_forward<4 / (int)sizeof(T), SEGMENTS>(y, x, first_of, One{}, part, rows, across, chunk);
    } else {
        walk_forward<1, SEGMENTS>(y, x, first_of, One{}, part, rows, across, chunk);
    }
}

// Columns that grow `ratio` times, or shrink to half where it is 0: common/bilinear_whole.cuh.
extern "C" __global__ void __launch_bounds__(THREADS, 6) resize_bilinear_fwd_whole(
    T* y, const T* x, i64 planes, int h, int w, int to_h, int to_w, int ratio, int tiles, int chunk, int chunks) {
    follow();
    __shared__ RowTaps taps[WARPS];
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    Axis rows = axis_of(h, to_h, 0);
    Down down(y, x, part, rows, w, to_w, chunk);
    if (ratio == 2) {
        walk_grown<2>(taps[warp_id()], down, Grown<2>(part.tile, w, to_w), rows);
    } else if (ratio == 4) {
        walk_grown<4>(taps[warp_id()], down, Grown<4>(part.tile, w, to_w), rows);
    } else if (ratio == 8) {
        walk_grown<8>(taps[warp_id()], down, Grown<8>(part.tile, w, to_w), rows);
    } else {
        walk_halved(taps[warp_id()], down, Halved(part.tile, w, to_w), rows);
    }
}

// Both axes grow 2 times, forward also 4 times: common/bilinear_doubled.cuh.
extern "C" __global__ void __launch_bounds__(THREADS, 6)
    resize_bilinear_fwd_doubled(T* y, const T* x, i64 planes, int h, int w, int ratio, int tiles, int chunks) {
    follow();
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    if (ratio == 2) {
        grow_both<2>(y, x, part, h, w);
    } else {
        grow_both<4>(y, x, part, h, w);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 6)
    resize_bilinear_bwd_dx_doubled(T* dx, const T* dy, i64 planes, int h, int w, int tiles, int chunks, int add_dx) {
    follow();
    Part part = part_of(tiles, chunks);
    if (part.plane < planes) gather_doubled(dx, dy, part, h, w, add_dx);
}

extern "C" __global__ void __launch_bounds__(THREADS) resize_bilinear_bwd_dx(
    T* dx, const T* dy, i64 planes, int h, int w, int to_h, int to_w, int aligned, int tile, int tiles, int chunk, int chunks, int add_dx) {
    __shared__ Line lines[WARPS];
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    Axis rows = axis_of(h, to_h, aligned), across = axis_of(w, to_w, aligned);
    walk_backward(
        lines[warp_id()], dx + part.plane * h * w, 1, dy + part.plane * to_h * to_w, part, rows, across, tile, chunk, add_dx);
}

// Columns that grew `ratio` times, or shrank to half where it is 0: common/bilinear_whole.cuh. It does not follow: it has few blocks, which
// would crowd on the processors that are free first (50 us became 55).
extern "C" __global__ void __launch_bounds__(THREADS, 6) resize_bilinear_bwd_dx_whole(
    T* dx, const T* dy, i64 planes, int h, int w, int to_h, int to_w, int ratio, int tiles, int chunk, int chunks, int add_dx) {
    __shared__ Gathering gathering[WARPS];
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    Axis rows = axis_of(h, to_h, 0);
    if (ratio == 2) {
        gather_whole<Shares<2>>(gathering[warp_id()], dx, dy, part, rows, w, to_w, chunk, add_dx);
    } else if (ratio == 4) {
        gather_whole<Shares<4>>(gathering[warp_id()], dx, dy, part, rows, w, to_w, chunk, add_dx);
    } else if (ratio == 8) {
        gather_whole<Shares<8>>(gathering[warp_id()], dx, dy, part, rows, w, to_w, chunk, add_dx);
    } else {
        gather_whole<Doubled>(gathering[warp_id()], dx, dy, part, rows, w, to_w, chunk, add_dx);
    }
}

// The same by a thread a number, for any sizes.
extern "C" __global__ void __launch_bounds__(THREADS)
    resize_bilinear_bwd_dx_any(T* dx, const T* dy, i64 planes, int h, int w, int to_h, int to_w, int aligned, int add_dx) {
    follow();
    i64 index = (i64)block_x() * THREADS + thread(), line = quotient(index, w), plane = quotient(line, h);
    if (plane >= planes) return;
    int a = (int)(line - plane * h), b = (int)(index - line * w);
    Axis rows = axis_of(h, to_h, aligned), across = axis_of(w, to_w, aligned);
    put(dx + index, gradient_of(dy + plane * to_h * to_w, rows, across, a, b), add_dx);
}
