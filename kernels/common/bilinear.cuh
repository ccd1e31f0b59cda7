// bilinear: where the outputs of a bilinear interpolation lie between its inputs, along one axis: resize_bilinear.
// launch    THREADS threads; a warp has a tile of the columns of a plane and walks down a chunk of its rows: [planes * chunks * tiles]
//           warps
// sizes     of each axis inputs * outputs < 2^30: places are fractions of 32-bit integers
// source    quotients: Markstein 1990, theorem 8

#pragma once
#include "common/math.cuh"
#include "common/pack.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;

// One axis: output o lies at (first + o * step) / below between the inputs, not before 0.
struct Axis {
    int inputs, outputs, first, step, below;
    int whole_step, part_step;
    float divisor, inverse;
};
DEVICE Axis axis_of(int inputs, int outputs, int aligned) {
    int first = aligned ? 0 : inputs - outputs, step = aligned ? inputs - 1 : 2 * inputs, below = aligned ? outputs - 1 : 2 * outputs;
    if (aligned && outputs == 1) step = 0, below = 1;
    int whole_step = (u32)step / (u32)below;
    float divisor = (float)below;
    return {inputs, outputs, first, step, below, whole_step, step - whole_step * below, divisor, divide(1.0f, divisor)};
}

// Where an output lies, and the next one by additions alone, but for those that lie before 0.
struct Place {
    int above, whole, part;
    DEVICE Place(const Axis& a, int o) : above(a.first + o * a.step) { split(a); }
    DEVICE void split(const Axis& a) {
        u32 place = above < 0 ? 0 : above;
        whole = (int)(place / (u32)a.below);
        part = (int)place - whole * a.below;
    }
    DEVICE void next(const Axis& a) {
        bool was_before = above < 0;
        above += a.step;
        whole += a.whole_step;
        part += a.part_step;
        if (part >= a.below) part -= a.below, ++whole;
        if (was_before) split(a);
    }
};

// n / below, rounded once.
DEVICE float share(const Axis& a, int n) {
    float v = (float)n, q = mul(v, a.inverse);
    return fmaf(fmaf(-q, a.divisor, v), a.inverse, q);
}

// The two inputs of an output and their weights.
struct Tap {
    int low, high;
    float at_low, at_high;
};
DEVICE Tap tap_at(const Axis& a, const Place& p) {
    int last = a.inputs - 1, low = p.whole < last ? p.whole : last, high = low < last ? low + 1 : last;
    return {low, high, share(a, a.below - p.part), share(a, p.part)};
}
// As above; where the last input is both, it takes both weights at once.
DEVICE Tap joined_tap_at(const Axis& a, const Place& p) {
    Tap t = tap_at(a, p);
    if (t.low == t.high) t.at_low += t.at_high, t.at_high = 0.0f;
    return t;
}

// Taps of one output after another from `first` on: a warp works out WARP of them at once, one a lane.
template <bool ARE_JOINED> struct Taps {
    int first;
    Tap mine;
    DEVICE Tap at(const Axis& a, int o) {
        int k = (o - first) % WARP, last = a.inputs - 1;
        if (k == 0) {
            Place place(a, o + lane() < a.outputs ? o + lane() : 0);
            mine = ARE_JOINED ? joined_tap_at(a, place) : tap_at(a, place);
        }
        int low = lane_at(mine.low, k);
        return {low, low < last ? low + 1 : last, lane_at(mine.at_low, k), lane_at(mine.at_high, k)};
    }
};

// The first output that has input `low` or a later one as its lower one.
DEVICE int first_from(const Axis& a, int low) {
    if (low <= 0) return 0;
    if (a.step == 0 || low >= a.inputs) return a.outputs;
    int far = low * a.below - a.first;
    u32 first = ((u32)far + (u32)a.step - 1) / (u32)a.step;
    return first < (u32)a.outputs ? (int)first : a.outputs;
}

// The work of a warp.
struct Part {
    i64 plane;
    int tile;
    int chunk;
};
DEVICE Part part_of(int tiles, int chunks) {
    i64 item = (i64)block_x() * WARPS + warp_id(), above = quotient(item, tiles), plane = quotient(above, chunks);
    return {plane, (int)(item - above * tiles), (int)(above - plane * chunks)};
}
