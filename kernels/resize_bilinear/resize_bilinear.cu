// resize_bilinear: y[i, j] = sum over a, b of rows[i, a] * columns[j, b] * x[a, b], two weights a row and two a column.
// axes      x, dx [planes, h, w]; y, dy [planes, to_h, to_w]; of each axis inputs * outputs < 2^30
// types     T in {f32, bf16, f16}; weights and sums in f32
// launch    THREADS threads; a warp has a tile of the columns of a plane and walks down a chunk of its rows: [planes * chunks * tiles]
//           warps; bwd_dx_any, a thread a number, where one input goes to more columns than a warp has
// paths     _doubled: both axes grow twice, all rows of a warp at once (common/bilinear_doubled.cuh); _whole: columns grow 2, 4 or 8
//           times or shrink to half, 16 bytes a lane (common/bilinear_whole.cuh); else fwd: two 16-bit
//           numbers a store where they divide the columns; bwd: 16-byte packs of dy where they do, else single numbers
// traffic   fwd reads a row of x once a chunk, and its first two again, and writes y; bwd reads a row of dy once a chunk, and those of
//           one row of x again, and writes dx, which it reads when adding
// order     every number of y alone; sums of dx: rows, then columns, both ascending: same input, same bits; no atomics
// budget    sm_80 128 registers, sm_90a 128, gfx90a 128, gfx942 128; no spills
// source    PyTorch's documentation of interpolate(mode="bilinear", antialias=False)

#include "common/bilinear.cuh"
#include "common/bilinear_doubled.cuh"

// Columns of a warp's tile: SEGMENTS runs of EACH neighbours a lane, the lanes side by side, so that a warp stores neighbours.
constexpr int SEGMENTS = 4;

template <int EACH> struct Columns {
    static constexpr int N = SEGMENTS * EACH;
    int first;
    int low[N], high[N];
    float at_low[N], at_high[N];

    DEVICE Columns(const Axis& a, int tile) : first((tile * SEGMENTS * WARP + lane()) * EACH) {
#pragma unroll
        for (int k = 0; k < SEGMENTS; ++k) {
            Place place(a, column(k) < a.outputs ? column(k) : 0);
#pragma unroll
            for (int i = k * EACH; i < (k + 1) * EACH; ++i) {
                Tap t = tap_at(a, place);
                low[i] = t.low, high[i] = t.high, at_low[i] = t.at_low, at_high[i] = t.at_high;
                place.next(a);
            }
        }
    }
    DEVICE int column(int k) const { return first + k * WARP * EACH; }
};

// The numbers of one row of x that a lane's columns lie between.
template <int N> struct Between {
    T left[N], right[N];
    template <typename C> DEVICE void load(const T* row, const C& c) {
#pragma unroll
        for (int i = 0; i < N; ++i) left[i] = row[c.low[i]], right[i] = row[c.high[i]];
    }
    template <typename C> DEVICE void blend(float (&v)[N], const C& c) const {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = fmaf(c.at_high[i], widen(right[i]), c.at_low[i] * widen(left[i]));
    }
};

template <int EACH>
DEVICE void walk_forward(T* y, const T* x, const Part& part, const Axis& rows, const Axis& across, int chunk) {
    constexpr int N = SEGMENTS * EACH;
    Columns<EACH> columns(across, part.tile);
    int row = part.chunk * chunk, end = (int)least(rows.outputs, row + chunk);
    Taps<false> down{row};
    const T* from = x + part.plane * rows.inputs * across.inputs;
    T* to = y + (part.plane * rows.outputs + row) * across.outputs + columns.first;
    // Rows `upper` and `lower` of x between the columns; most rows of y need no other.
    int upper = -1, lower = -1;
    float above[N], below[N];
    for (; row < end; ++row, to += across.outputs) {
        Tap t = down.at(rows, row);
        if (t.low != upper && t.low == lower) {
#pragma unroll
            for (int i = 0; i < N; ++i) above[i] = below[i];
            upper = lower;
        }
        // Both rows are under way before the first is used.
        Between<N> high, low;
        bool reads_high = t.low != upper, reads_low = t.high != lower;
        if (reads_high) high.load(from + (i64)t.low * across.inputs, columns);
        if (reads_low) low.load(from + (i64)t.high * across.inputs, columns);
        if (reads_high) high.blend(above, columns);
        if (reads_low) low.blend(below, columns);
        upper = t.low, lower = t.high;
#pragma unroll
        for (int k = 0; k < SEGMENTS; ++k) {
            float v[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i) v[i] = fmaf(t.at_high, below[k * EACH + i], t.at_low * above[k * EACH + i]);
            if (columns.column(k) < across.outputs) store<T, EACH>(to + k * WARP * EACH, v);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) resize_bilinear_fwd(
    T* y, const T* x, i64 planes, int h, int w, int to_h, int to_w, int aligned, int each, int tiles, int chunk, int chunks) {
    follow();
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    Axis rows = axis_of(h, to_h, aligned), across = axis_of(w, to_w, aligned);
    if (each == 2) {
        walk_forward<4 / (int)sizeof(T)>(y, x, part, rows, across, chunk);
    } else {
        walk_forward<1>(y, x, part, rows, across, chunk);
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

// Both axes grow twice: common/bilinear_doubled.cuh.
extern "C" __global__ void __launch_bounds__(THREADS, 6)
    resize_bilinear_fwd_doubled(T* y, const T* x, i64 planes, int h, int w, int tiles, int chunks) {
    follow();
    Part part = part_of(tiles, chunks);
    if (part.plane < planes) double_up(y, x, part, h, w);
}

extern "C" __global__ void __launch_bounds__(THREADS, 6)
    resize_bilinear_bwd_dx_doubled(T* dx, const T* dy, i64 planes, int h, int w, int tiles, int chunks, int add_dx) {
    follow();
    Part part = part_of(tiles, chunks);
    if (part.plane < planes) gather_doubled(dx, dy, part, h, w, add_dx);
}

// What a warp has of dy: SPAN columns, LANE_COLUMNS a lane. Of dx it has MOST_INPUTS columns at most.
constexpr int LANE_COLUMNS = 8;
constexpr int W = WIDE<T>;
constexpr int LOADS = LANE_COLUMNS / W;
constexpr int SPAN = LANE_COLUMNS * WARP;
constexpr int MOST_INPUTS = 512;

// One row of x, spread over the columns of dy: what each gives to its lower and to its higher input. A word is left free behind 32, so
// that lanes which read every fourth or eighth reach different banks.
struct Line {
    float low[SPAN + SPAN / 32];
    float high[SPAN + SPAN / 32];
    u32 reach[MOST_INPUTS];
};
DEVICE int slot(int j) { return j + (j >> 5); }

struct Gather {
    Axis across;
    int first;   // column of dy that is the tile's first
    int begin;   // columns of dx
    int end;
    bool is_wide;
    bool is_thin;  // a column of dx has at most one column of dy on either side
    float at_low[LANE_COLUMNS], at_high[LANE_COLUMNS];

    DEVICE static int column(int p) { return (lane() + p * WARP) * W; }

    DEVICE Gather(Line& line, const Axis& across, int tile, int index, bool may_be_wide) : across(across) {
        begin = index * tile, end = (int)least(across.inputs, begin + tile);
        first = first_from(across, begin - 1) & ~(W - 1);
        is_wide = may_be_wide && across.outputs % W == 0;
        is_thin = across.step > across.below;
        // Where the columns begin that have b as their higher input, how many they are, and how many follow that have it as the lower.
        for (int b = begin + lane(); b < end; b += WARP) {
            int high = first_from(across, b - 1), low = first_from(across, b), past = first_from(across, b + 1);
            line.reach[b - begin] = (u32)(high - first) | (u32)(low - high) << 10 | (u32)(past - low) << 20;
        }
#pragma unroll
        for (int p = 0; p < LOADS; ++p) {
            int j = first + column(p);
            Place place(across, j < across.outputs ? j : 0);
#pragma unroll
            for (int i = p * W; i < (p + 1) * W; ++i) {
                Tap t = joined_tap_at(across, place);
                at_low[i] = t.at_low, at_high[i] = t.at_high;
                place.next(across);
            }
        }
    }

    DEVICE void load(Pack<T, W> (&v)[LOADS], const T* row, bool is_row) const {
#pragma unroll
        for (int p = 0; p < LOADS; ++p) {
            int j = first + column(p);
#pragma unroll
            for (int i = 0; i < Pack<T, W>::WORDS; ++i) v[p].word[i] = 0;
            if (!is_row) continue;
            if (is_wide) {
                if (j < across.outputs) load_words_once(v[p].word, row + j);
                continue;
            }
            float single[W];
#pragma unroll
            for (int i = 0; i < W; ++i) single[i] = j + i < across.outputs ? widen(row[j + i]) : 0.0f;
            v[p].pack(single);
        }
    }

    // A row of dx from its sums by column of dy.
    DEVICE void write(T* to, const float (&sum)[LANE_COLUMNS], Line& line, int add) const {
#pragma unroll
        for (int i = 0; i < LANE_COLUMNS; ++i) {
            int j = slot(column(i / W) + i % W);
            line.low[j] = mul(at_low[i], sum[i]), line.high[j] = mul(at_high[i], sum[i]);
        }
        warp_sync();
        for (int b = begin + lane(); b < end; b += WARP) {
            u32 reach = line.reach[b - begin];
            int j = reach & 1023, low = j + (reach >> 10 & 1023), past = low + (reach >> 20);
            float all = 0.0f;
            if (is_thin) {
                if (j < low) all = line.high[slot(j)];
                if (low < past) all += line.low[slot(low)];
            } else {
                for (; j < low; ++j) all += line.high[slot(j)];
                for (; j < past; ++j) all += line.low[slot(j)];
            }
            if (add) {
                put(to + b, all, 1);
            } else {
                to[b] = narrow<T>(all);
            }
        }
        warp_sync();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) resize_bilinear_bwd_dx(
    T* dx, const T* dy, i64 planes, int h, int w, int to_h, int to_w, int aligned, int tile, int tiles, int chunk, int chunks, int add_dx) {
    __shared__ Line lines[WARPS];
    Part part = part_of(tiles, chunks);
    if (part.plane >= planes) return;
    Line& line = lines[warp_id()];
    Axis rows = axis_of(h, to_h, aligned);
    Gather gather(line, axis_of(w, to_w, aligned), tile, part.tile, is_aligned<16>(dy));
    int begin = part.chunk * chunk, past = (int)least(h, begin + chunk), i = first_from(rows, begin - 1), end = first_from(rows, past);
    const T* from = dy + (part.plane * to_h + i) * to_w;
    T* to = dx + part.plane * h * w;
    // Two rows of dy are under way.
    Pack<T, W> now[LOADS], next[LOADS], after[LOADS];
    gather.load(next, from, i < end);
    gather.load(after, from + to_w, i + 1 < end);
    float here[LANE_COLUMNS] = {}, below[LANE_COLUMNS] = {};
    int a = begin - 1;
    auto finish = [&](int until) {
        for (; a < until; ++a) {
            if (a >= begin) gather.write(to + (i64)a * w, here, line, add_dx);
#pragma unroll
            for (int k = 0; k < LANE_COLUMNS; ++k) here[k] = below[k], below[k] = 0.0f;
        }
    };
    Taps<true> down{i};
    warp_sync();
    for (; i < end; ++i) {
        from += to_w;
#pragma unroll
        for (int p = 0; p < LOADS; ++p) now[p] = next[p], next[p] = after[p];
        gather.load(after, from + to_w, i + 2 < end);
        Tap t = down.at(rows, i);
        finish(t.low);
#pragma unroll
        for (int k = 0; k < LANE_COLUMNS; ++k) {
            float d = now[k / W].get(k % W);
            here[k] = fmaf(t.at_low, d, here[k]);
            below[k] = fmaf(t.at_high, d, below[k]);
        }
    }
    finish(past);
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
    auto weight = [](const Axis& axis, int o, int i) {
        Tap t = joined_tap_at(axis, Place(axis, o));
        return t.low == i ? t.at_low : t.at_high;
    };
    float sum = 0.0f;
    for (int i = first_from(rows, a - 1); i < first_from(rows, a + 1); ++i) {
        const T* from = dy + (plane * to_h + i) * to_w;
        float part = 0.0f;
        for (int j = first_from(across, b - 1); j < first_from(across, b + 1); ++j) {
            part = fmaf(weight(across, j, b), widen(from[j]), part);
        }
        sum = fmaf(weight(rows, i, a), part, sum);
    }
    put(dx + index, sum, add_dx);
}
