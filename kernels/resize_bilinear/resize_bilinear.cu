// resize_bilinear: y[i, j] = sum over a, b of rows[i, a] * columns[j, b] * x[a, b], two weights a row and two a column.
// axes      x, dx [planes, h, w]; y, dy [planes, to_h, to_w]; wide [planes, h, to_w] f32; of each axis inputs * outputs < 2^30
// types     T in {f32, bf16, f16}; weights and sums in f32
// launch    THREADS threads; a thread has a run of W columns of one row: fwd [rows * runs, planes / each], bwd_rows [planes * h * runs],
//           bwd_dx one number a thread
// paths     packs of W, 4, where it divides the columns, else single numbers, neighbouring threads neighbouring columns
// traffic   fwd reads x through the caches, writes y; bwd reads dy twice, writes and reads wide, writes dx, which it reads when adding
// order     rows before columns, both ascending, one thread a sum: same input, same bits; no atomics
// budget    sm_80 80 registers, sm_90a 80, gfx90a 80, gfx942 80; no spills
// source    PyTorch's documentation of interpolate(mode="bilinear", antialias=False)

#include "common/math.cuh"
#include "common/pack.cuh"

constexpr int THREADS = 128;
constexpr int W = 4;

// One axis: output o lies at (first + o * step) / below between the inputs, not before 0.
struct Axis {
    int inputs, outputs, first, step, below;
};
DEVICE Axis axis_of(int inputs, int outputs, int aligned) {
    if (!aligned) return {inputs, outputs, inputs - outputs, 2 * inputs, 2 * outputs};
    if (outputs == 1) return {inputs, outputs, 0, 0, 1};
    return {inputs, outputs, 0, inputs - 1, outputs - 1};
}

// The two inputs of an output and their weights, each rounded once.
struct Tap {
    int low, high;
    float at_low, at_high;
};
DEVICE Tap tap_of(const Axis& a, int o) {
    int above = a.first + o * a.step;
    u32 place = above < 0 ? 0 : above, whole = place / (u32)a.below, part = place - whole * a.below;
    int low = (int)least(whole, a.inputs - 1), high = (int)least(low + 1, a.inputs - 1);
    float below = (float)a.below;
    return {low, high, divide((float)(a.below - part), below), divide((float)part, below)};
}

// The first output that has input `low` or a later one as its lower one.
DEVICE int first_from(const Axis& a, int low) {
    if (low <= 0) return 0;
    if (a.step == 0) return a.outputs;
    int far = low * a.below - a.first;
    return (int)least(((u32)far + (u32)a.step - 1) / (u32)a.step, a.outputs);
}
// What output o takes of input i, one of its two; where the last input is both, it takes both weights.
DEVICE float weight_of(const Axis& a, int o, int i) {
    Tap t = tap_of(a, o);
    return (t.low == i ? t.at_low : 0.0f) + (t.high == i ? t.at_high : 0.0f);
}
// The outputs that take something of input i, also with weight 0: one that is not finite is then NaN.
struct Reach {
    int first, end;
};
DEVICE Reach reach_of(const Axis& a, int i) {
    return {first_from(a, i - 1), i + 1 < a.inputs ? first_from(a, i + 1) : a.outputs};
}

// Run p of a row of `columns` numbers: W of them side by side, or as many with the other runs' between them.
struct Run {
    int first, step, columns;
    bool is_wide;
    DEVICE int column(int i) const { return first + i * step; }
    DEVICE bool has(int i) const { return is_wide || column(i) < columns; }
};
DEVICE Run run_of(int p, int runs, int columns, bool may_be_wide) {
    if (may_be_wide && columns % W == 0) return {p * W, 1, columns, true};
    return {p, runs, columns, false};
}

extern "C" __global__ void __launch_bounds__(THREADS)
    resize_bilinear_fwd(T* y, const T* x, i64 planes, int h, int w, int to_h, int to_w, int aligned, i64 each) {
    int runs = (to_w + W - 1) / W;
    i64 index = (i64)block_x() * THREADS + thread(), row = quotient(index, runs);
    if (row >= to_h) return;
    Run run = run_of((int)(index - row * runs), runs, to_w, is_aligned<sizeof(T) * W>(y));
    Tap down = tap_of(axis_of(h, to_h, aligned), (int)row), across[W];
    Axis columns = axis_of(w, to_w, aligned);
#pragma unroll
    for (int i = 0; i < W; ++i) across[i] = tap_of(columns, (int)least(run.column(i), to_w - 1));
    i64 end = least(planes, (block_y() + 1) * each);
    for (i64 plane = block_y() * each; plane < end; ++plane) {
        const T* top = x + (plane * h + down.low) * w;
        const T* bottom = x + (plane * h + down.high) * w;
        T* to = y + (plane * to_h + row) * to_w;
        float v[W];
#pragma unroll
        for (int i = 0; i < W; ++i) {
            Tap t = across[i];
            float above = fmaf(t.at_high, widen(top[t.high]), t.at_low * widen(top[t.low]));
            float below = fmaf(t.at_high, widen(bottom[t.high]), t.at_low * widen(bottom[t.low]));
            v[i] = fmaf(down.at_high, below, down.at_low * above);
        }
        if (run.is_wide) {
            store<T, W>(to + run.first, v);
            continue;
        }
#pragma unroll
        for (int i = 0; i < W; ++i) {
            if (run.has(i)) to[run.column(i)] = narrow<T>(v[i]);
        }
    }
}

// wide[plane, a] = sum over the rows i that take something of row a of their weight * dy[plane, i].
extern "C" __global__ void __launch_bounds__(THREADS)
    resize_bilinear_bwd_rows(f32* wide, const T* dy, i64 planes, int h, int to_h, int to_w, int aligned) {
    int runs = (to_w + W - 1) / W;
    i64 index = (i64)block_x() * THREADS + thread(), line = quotient(index, runs);
    if (line >= planes * h) return;
    Run run = run_of((int)(index - line * runs), runs, to_w, is_aligned<sizeof(T) * W>(dy));
    i64 plane = quotient(line, h);
    int a = (int)(line - plane * h);
    Axis rows = axis_of(h, to_h, aligned);
    Reach reach = reach_of(rows, a);
    float sum[W];
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] = 0.0f;
#pragma unroll 2
    for (int o = reach.first; o < reach.end; ++o) {
        const T* from = dy + (plane * to_h + o) * to_w;
        float weight = weight_of(rows, o, a), d[W];
        if (run.is_wide) {
            load_kept<T, W>(from + run.first).unpack(d);
        } else {
#pragma unroll
            for (int i = 0; i < W; ++i) d[i] = run.has(i) ? widen(from[run.column(i)]) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < W; ++i) sum[i] = fmaf(weight, d[i], sum[i]);
    }
#pragma unroll
    for (int i = 0; i < W; ++i) {
        if (run.has(i)) wide[line * to_w + run.column(i)] = sum[i];
    }
}

// dx[line, b] = sum over the columns j that take something of column b of their weight * wide[line, j].
extern "C" __global__ void __launch_bounds__(THREADS)
    resize_bilinear_bwd_dx(T* dx, const f32* wide, i64 lines, int w, int to_w, int aligned, int add_dx) {
    i64 index = (i64)block_x() * THREADS + thread(), line = quotient(index, w);
    if (line >= lines) return;
    int b = (int)(index - line * w);
    Axis columns = axis_of(w, to_w, aligned);
    Reach reach = reach_of(columns, b);
    float sum = 0.0f;
#pragma unroll 2
    for (int o = reach.first; o < reach.end; ++o) sum = fmaf(weight_of(columns, o, b), wide[line * to_w + o], sum);
    put(dx + index, sum, add_dx);
}
