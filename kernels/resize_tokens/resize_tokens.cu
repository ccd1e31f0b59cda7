// resize_tokens: y[b, c, i, j] = sum over s, t of rows[i, s] * columns[j, t] * x[b, s * w + t, c], two weights a row and two a column; and back.
// axes      x, dx [B, h*w, C]; y, dy [B, C, to_h, to_w]; of each axis inputs * outputs < 2^30
// types     TOKEN in {f32, bf16, f16}, of x and dx; T = f32, of y and dy; weights and sums in f32
// launch    THREADS threads; a warp has a tile of the columns of a channel's plane and walks down a chunk of its rows: [B * C * chunks *
//           tiles] warps; bwd_dx_any, a thread a number, where one token goes to more columns than a warp has
// paths     common/bilinear_rows.cuh; fwd: 16 bytes a store where they divide the columns; bwd: 16-byte packs of dy where they do; else
//           single numbers
// traffic   fwd reads a row of tokens once a chunk, one channel at a time and so 32 bytes a number out of the cache, and writes y; bwd
//           reads a row of dy once a chunk, and those of one row of tokens again, and writes dx, which it reads when adding
// floor     y in f32: where a grid grows P times each way tokens are 1 / P^2 of it
// order     every number of y alone; sums of dx: rows, then columns, both ascending: same input, same bits; no atomics
// budget    sm_80 120 registers, sm_90a 120, gfx90a 104, gfx942 104; no spills
// source    PyTorch's documentation of interpolate(mode="bilinear", antialias=False)

#include "common/bilinear_rows.cuh"

#ifndef TOKEN
#define TOKEN f32
#endif

// Where the plane of a channel begins among tokens of C numbers.
DEVICE i64 first_token(i64 plane, int c, int h, int w) {
    i64 b = quotient(plane, c);
    return b * h * w * c + (plane - b * c);
}

extern "C" __global__ void __launch_bounds__(THREADS) resize_tokens_fwd(
    f32* y, const TOKEN* x, i64 planes, int c, int h, int w, int to_h, int to_w, int aligned, int each, int tiles, int chunk, int chunks) {
    follow();
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    Axis rows = axis_of(h, to_h, aligned), across = axis_of(w, to_w, aligned);
    auto first_of = [&](i64 plane) { return first_token(plane, c, h, w); };
    if (each == 4) {
        walk_forward<4, 1>(y, x, first_of, c, part, rows, across, chunk);
    } else {
        walk_forward<1, 4>(y, x, first_of, c, part, rows, across, chunk);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) resize_tokens_bwd_dx(
    TOKEN* dx, const f32* dy, i64 planes, int c, int h, int w, int to_h, int to_w, int aligned, int tile, int tiles, int chunk, int chunks,
    int add_dx) {
    follow();
    __shared__ Line lines[WARPS];
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    Axis rows = axis_of(h, to_h, aligned), across = axis_of(w, to_w, aligned);
    TOKEN* to = dx + first_token(part.plane, c, h, w);
    walk_backward(lines[warp_id()], to, c, dy + part.plane * to_h * to_w, part, rows, across, tile, chunk, add_dx);
}

// The same by a thread a number, for any sizes.
extern "C" __global__ void __launch_bounds__(THREADS)
    resize_tokens_bwd_dx_any(TOKEN* dx, const f32* dy, i64 planes, int c, int h, int w, int to_h, int to_w, int aligned, int add_dx) {
    follow();
    i64 index = (i64)block_x() * THREADS + thread(), token = quotient(index, c), line = quotient(token, w), b = quotient(line, h);
    i64 plane = b * c + (index - token * c);
    if (b * c >= planes) return;
    Axis rows = axis_of(h, to_h, aligned), across = axis_of(w, to_w, aligned);
    put(dx + index, gradient_of(dy + plane * to_h * to_w, rows, across, (int)(line - b * h), (int)(token - line * w)), add_dx);
}
