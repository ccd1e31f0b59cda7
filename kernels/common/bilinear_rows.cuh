// bilinear_rows: bilinear interpolation between grids of any sizes: a warp has a tile of the columns of a plane and walks down its rows. Planes
// of the large grid lie in T; numbers of the small one are of any type, in a row `apart` from each other: 1 in an image, the channels of a
// token in tokens.
// launch    THREADS threads, a warp a part of a plane: common/bilinear.cuh
// order     every number of y alone; sums of dx: rows, then columns, both ascending: same input, same bits; no atomics

#pragma once
#include "common/bilinear.cuh"

// How far numbers of a row of an image lie apart, known when this is compiled.
struct One {
    DEVICE constexpr operator int() const { return 1; }
};

// ---- forward ----

// Columns of a warp's tile: SEGMENTS runs of EACH neighbours a lane, the lanes side by side, so that a warp stores neighbours. Numbers of a
// row of x lie `apart`.
template <int EACH, int SEGMENTS> struct Columns {
    static constexpr int N = SEGMENTS * EACH;
    int first;
    int low[N], high[N];
    float at_low[N], at_high[N];

    template <typename Apart> DEVICE Columns(const Axis& a, int tile, Apart apart) : first((tile * SEGMENTS * WARP + lane()) * EACH) {
#pragma unroll
        for (int k = 0; k < SEGMENTS; ++k) {
            Place place(a, column(k) < a.outputs ? column(k) : 0);
#pragma unroll
            for (int i = k * EACH; i < (k + 1) * EACH; ++i) {
                Tap t = tap_at(a, place);
                low[i] = t.low * apart, high[i] = t.high * apart, at_low[i] = t.at_low, at_high[i] = t.at_high;
                place.next(a);
            }
        }
    }
    DEVICE int column(int k) const { return first + k * WARP * EACH; }
};

// The numbers of one row of x that a lane's columns lie between.
template <typename X, int N> struct Between {
    X left[N], right[N];
    template <typename C> DEVICE void load(const X* row, const C& c) {
#pragma unroll
        for (int i = 0; i < N; ++i) left[i] = row[c.low[i]], right[i] = row[c.high[i]];
    }
    template <typename C> DEVICE void blend(float (&v)[N], const C& c) const {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = fmaf(c.at_high[i], widen(right[i]), c.at_low[i] * widen(left[i]));
    }
};

// A chunk of the rows of y; `first_of(plane)` is the number of x with which a plane begins.
template <int EACH, int SEGMENTS, typename X, typename First, typename Apart>
DEVICE void walk_forward(T* y, const X* x, First first_of, Apart apart, const Part& part, const Axis& rows, const Axis& across, int chunk) {
    constexpr int N = SEGMENTS * EACH;
    Columns<EACH, SEGMENTS> columns(across, part.tile, apart);
    int row = part.chunk * chunk, end = (int)least(rows.outputs, row + chunk);
    Taps<false> down{row};
    T* to = y + (part.plane * rows.outputs + row) * across.outputs + columns.first;
    // Rows `upper` and `lower` of x between the columns; most rows of y need no other.
    const X* from = x + first_of(part.plane);
    auto row_of = [&](int i) { return from + (i64)i * across.inputs * apart; };
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
        Between<X, N> high, low;
        bool reads_high = t.low != upper, reads_low = t.high != lower;
        if (reads_high) high.load(row_of(t.low), columns);
        if (reads_low) low.load(row_of(t.high), columns);
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

// ---- backward ----

// What a warp has of dy: SPAN columns, LANE_COLUMNS a lane. Of dx it has MOST_INPUTS columns at most.
constexpr int LANE_COLUMNS = 8;
constexpr int PACK = WIDE<T>;
constexpr int PACKS = LANE_COLUMNS / PACK;
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

    DEVICE static int column(int p) { return (lane() + p * WARP) * PACK; }

    DEVICE Gather(Line& line, const Axis& across, int tile, int index, bool may_be_wide) : across(across) {
        begin = index * tile, end = (int)least(across.inputs, begin + tile);
        first = first_from(across, begin - 1) & ~(PACK - 1);
        is_wide = may_be_wide && across.outputs % PACK == 0;
        is_thin = across.step > across.below;
        // Where the columns begin that have b as their higher input, how many they are, and how many follow that have it as the lower.
        for (int b = begin + lane(); b < end; b += WARP) {
            int high = first_from(across, b - 1), low = first_from(across, b), past = first_from(across, b + 1);
            line.reach[b - begin] = (u32)(high - first) | (u32)(low - high) << 10 | (u32)(past - low) << 20;
        }
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int j = first + column(p);
            Place place(across, j < across.outputs ? j : 0);
#pragma unroll
            for (int i = p * PACK; i < (p + 1) * PACK; ++i) {
                Tap t = joined_tap_at(across, place);
                at_low[i] = t.at_low, at_high[i] = t.at_high;
                place.next(across);
            }
        }
    }

    DEVICE void load(Pack<T, PACK> (&v)[PACKS], const T* row, bool is_row) const {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            int j = first + column(p);
#pragma unroll
            for (int i = 0; i < Pack<T, PACK>::WORDS; ++i) v[p].word[i] = 0;
            if (!is_row) continue;
            if (is_wide) {
                if (j < across.outputs) load_words_once(v[p].word, row + j);
                continue;
            }
            float single[PACK];
#pragma unroll
            for (int i = 0; i < PACK; ++i) single[i] = j + i < across.outputs ? widen(row[j + i]) : 0.0f;
            v[p].pack(single);
        }
    }

    // A row of dx from its sums by column of dy.
    template <typename X> DEVICE void write(X* to, int apart, const float (&sum)[LANE_COLUMNS], Line& line, int add) const {
#pragma unroll
        for (int i = 0; i < LANE_COLUMNS; ++i) {
            int j = slot(column(i / PACK) + i % PACK);
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
                put(to + (i64)b * apart, all, 1);
            } else {
                to[(i64)b * apart] = narrow<X>(all);
            }
        }
        warp_sync();
    }
};

// A chunk of the rows of dx; `dy` and `to` are the first numbers of the planes.
template <typename X>
DEVICE void walk_backward(
    Line& line, X* to, int apart, const T* dy, const Part& part, const Axis& rows, const Axis& across, int tile, int chunk, int add) {
    Gather gather(line, across, tile, part.tile, is_aligned<16>(dy));
    int begin = part.chunk * chunk, past = (int)least(rows.inputs, begin + chunk);
    int i = first_from(rows, begin - 1), end = first_from(rows, past), a = begin - 1;
    i64 pitch = (i64)across.inputs * apart;
    const T* from = dy + (i64)i * across.outputs;
    // Two rows of dy are under way.
    Pack<T, PACK> now[PACKS], next[PACKS], after[PACKS];
    gather.load(next, from, i < end);
    gather.load(after, from + across.outputs, i + 1 < end);
    float here[LANE_COLUMNS] = {}, below[LANE_COLUMNS] = {};
    auto finish = [&](int until) {
        for (; a < until; ++a) {
            if (a >= begin) gather.write(to + a * pitch, apart, here, line, add);
#pragma unroll
            for (int k = 0; k < LANE_COLUMNS; ++k) here[k] = below[k], below[k] = 0.0f;
        }
    };
    Taps<true> down{i};
    warp_sync();
    for (; i < end; ++i) {
        from += across.outputs;
#pragma unroll
        for (int p = 0; p < PACKS; ++p) now[p] = next[p], next[p] = after[p];
        gather.load(after, from + across.outputs, i + 2 < end);
        Tap t = down.at(rows, i);
        finish(t.low);
#pragma unroll
        for (int k = 0; k < LANE_COLUMNS; ++k) {
            float d = now[k / PACK].get(k % PACK);
            here[k] = fmaf(t.at_low, d, here[k]);
            below[k] = fmaf(t.at_high, d, below[k]);
        }
    }
    finish(past);
}

// The gradient of number [a, b] of a plane by one thread, for any sizes; `dy` is the plane's first number.
DEVICE float gradient_of(const T* dy, const Axis& rows, const Axis& across, int a, int b) {
    auto weight = [](const Axis& axis, int o, int i) {
        Tap t = joined_tap_at(axis, Place(axis, o));
        return t.low == i ? t.at_low : t.at_high;
    };
    float sum = 0.0f;
    for (int i = first_from(rows, a - 1); i < first_from(rows, a + 1); ++i) {
        const T* from = dy + (i64)i * across.outputs;
        float part = 0.0f;
        for (int j = first_from(across, b - 1); j < first_from(across, b + 1); ++j) {
            part = fmaf(weight(across, j, b), widen(from[j]), part);
        }
        sum = fmaf(weight(rows, i, a), part, sum);
    }
    return sum;
}
