// totals: sums in f64 of whole tensors, of stretches of them and along one axis: reductions, losses and their weights' gradients.
// why f64   one rounding at the end, whatever the length, and squares do not overflow; these kernels wait for memory, and the chips
//           of both vendors that the library is for add f64 at half the rate of f32
// stages    a team of threads sums a stretch and leaves an f64; the same text over those sums adds the stretches
// teams     `lanes` threads, a power of two up to WARP, or all TOTAL_THREADS; team i of a launch has item i
// launch    TOTAL_THREADS threads; grid [items * lanes / TOTAL_THREADS], for an axis [tiles * stretches]
// paths     16-byte packs from the first place that allows them to the last, single numbers before and after
// memory    an f64 between two launches is two ints of an `int*`
// 16 bits   along an axis a thread adds its few numbers in f32, and f64 begins where threads are added
// order     a thread adds its numbers from first to last, a team by halving, then warps from first to last: same input, same bits

#pragma once
#include "common/elementwise.cuh"

constexpr int TOTAL_THREADS = 256;

// a * b + c with one rounding.
DEVICE double fused(double a, double b, double c) {
#ifdef ON_NVIDIA
    return __fma_rn(a, b, c);
#else
    return __builtin_fma(a, b, c);
#endif
}
DEVICE double square_root(double x) {
#ifdef ON_NVIDIA
    return __dsqrt_rn(x);
#else
    return __builtin_sqrt(x);
#endif
}
DEVICE double lane_xor(double v, int mask) {
#ifdef ON_NVIDIA
    return __hiloint2double(lane_xor(__double2hiint(v), mask), lane_xor(__double2loint(v), mask));
#else
    u64 bits = __builtin_bit_cast(u64, v);
    u64 low = (u32)lane_xor((int)bits, mask), high = (u32)lane_xor((int)(bits >> 32), mask);
    return __builtin_bit_cast(double, high << 32 | low);
#endif
}

// The threads that have one item.
struct Team {
    int lanes;
    DEVICE i64 item() const { return (i64)block_x() * (TOTAL_THREADS / lanes) + thread() / lanes; }
    DEVICE int id() const { return thread() & (lanes - 1); }

    // Adds over the threads of each team; all threads of the block take part, and all of a team get the result.
    template <int N> DEVICE void sum(double (&v)[N]) const {
        __shared__ double scratch[N][TOTAL_THREADS / WARP];
        for (int m = (lanes < WARP ? lanes : WARP) / 2; m > 0; m /= 2) {
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] += lane_xor(v[i], m);
        }
        if (lanes <= WARP) return;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (lane() == 0) scratch[i][warp_id()] = v[i];
        }
        block_sync();
#pragma unroll
        for (int i = 0; i < N; ++i) {
            v[i] = scratch[i][0];
#pragma unroll
            for (int w = 1; w < TOTAL_THREADS / WARP; ++w) v[i] += scratch[i][w];
        }
        block_sync();
    }
};

// The numbers of an item: stretch `item % stretches` of a row of `n` numbers; none past the last row.
struct Stretch {
    i64 row;
    i64 begin;
    i64 end;
};
DEVICE Stretch stretch_of(i64 item, i64 rows, i64 n, i64 stretch, i64 stretches) {
    i64 row = quotient(item, stretches), first = (item - row * stretches) * stretch;
    if (row >= rows) return Stretch{row, 0, 0};
    return Stretch{row, row * n + first, row * n + least(n, first + stretch)};
}

template <int W, int N, typename U> DEVICE Taken<U, W, N> take_apart(const U* x, i64 step) {
    Taken<U, W, N> t;
#pragma unroll
    for (int k = 0; k < N; ++k) t.pack[k] = load_once<U, W>(x + k * step);
    return t;
}

template <int W, int N, typename F, typename... X>
DEVICE void visit_taken(F& f, i64 at, i64 step, const Taken<X, W, N>&... x) {
#pragma unroll
    for (int k = 0; k < N; ++k) f(at + k * step, Numbers<W>(x.pack[k]).v...);
}

// Calls f(at, x, ..) for the numbers [begin, end) of tensors, x being arrays of W or of 1 floats of which the first is number `at`; the
// thread `id` of `lanes` has every so many packs. Several packs are under way before the first is used.
template <typename F, typename... X> DEVICE void visit(i64 begin, i64 end, int id, int lanes, F& f, const X*... x) {
    constexpr int W = 16 / widest<X...>(), N = sizeof...(X) == 1 ? 4 : 2;
    i64 first = end, last = end;
    if ((is_aligned<sizeof(X) * W>(x) && ...)) {
        first = least(end, (begin + W - 1) & ~(i64)(W - 1));
        last = first + ((end - first) & ~(i64)(W - 1));
    }
    for (i64 at = begin + id; at < first; at += lanes) f(at, Numbers<1>(load_kept<X, 1>(x + at)).v...);
    i64 step = (i64)lanes * W, at = first + (i64)id * W;
    for (; at + (N - 1) * step < last; at += N * step) {
        visit_taken<W, N, F, X...>(f, at, step, take_apart<W, N>(x + at, step)...);
    }
    for (; at < last; at += step) visit_taken<W, 1, F, X...>(f, at, step, take_apart<W, 1>(x + at, step)...);
    for (i64 at = last + id; at < end; at += lanes) f(at, Numbers<1>(load_kept<X, 1>(x + at)).v...);
}

// The same over sums of an earlier stage.
template <typename F> DEVICE void visit(i64 begin, i64 end, int id, int lanes, F& f, const double* x) {
#pragma unroll 4
    for (i64 at = begin + id; at < end; at += lanes) {
        double v[1] = {x[at]};
        f(at, v);
    }
}

// The sum of numbers as they are.
struct PlainTotal {
    double total[1];
    template <typename V, int W> DEVICE void operator()(i64, const V (&x)[W]) {
#pragma unroll
        for (int i = 0; i < W; ++i) total[0] += (double)x[i];
    }
};

// Sums of the stretches of rows: result(item, sum) for every item.
template <typename X, typename F>
DEVICE void total_rows(const X* x, i64 rows, i64 n, i64 stretch, i64 stretches, int lanes, F result) {
    Team team{lanes};
    i64 item = team.item();
    Stretch s = stretch_of(item, rows, n, stretch, stretches);
    PlainTotal sum{};
    visit(s.begin, s.end, team.id(), lanes, sum, x);
    team.sum(sum.total);
    if (team.id() == 0 && s.row < rows) result(item, sum.total[0]);
}

// How wide a thread reads along the axis behind the one that is summed.
template <typename X> constexpr int COLUMN_PACK = WIDE<X>;
template <> constexpr int COLUMN_PACK<double> = 2;

// What a thread adds its numbers along an axis in: those of 16 bits in f32, as few as they are; conversions to f64 are slow.
template <typename X> struct ThreadTotal {
    using Type = float;
};
template <> struct ThreadTotal<f32> {
    using Type = double;
};
template <> struct ThreadTotal<double> {
    using Type = double;
};

template <typename X, int W> DEVICE void add_packed(typename ThreadTotal<X>::Type (&sum)[W], const X* x) {
    float v[W];
    load_once<X, W>(x).unpack(v);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] += v[i];
}
// Sums of an earlier stage are few: they are read singly.
template <> DEVICE void add_packed<double, 2>(double (&)[2], const double*) {}
DEVICE double wide_number(double x) { return x; }
template <typename X> DEVICE double wide_number(X x) { return widen(x); }

// Adds over the threads of a column; the first `lanes` threads hold the result.
template <int W> DEVICE void add_below(double (&sum)[W], int lanes) {
    __shared__ double scratch[W][TOTAL_THREADS];
    int t = thread();
#pragma unroll
    for (int i = 0; i < W; ++i) scratch[i][t] = sum[i];
    for (int half = TOTAL_THREADS / 2; half >= lanes; half /= 2) {
        block_sync();
        if (t < half) {
#pragma unroll
            for (int i = 0; i < W; ++i) {
                sum[i] += scratch[i][t + half];
                scratch[i][t] = sum[i];
            }
        }
    }
}

// Sums along the middle axis of x [outer, n, inner] by stretches of it: result(at, sum) for every place of [outer, stretches, inner].
// `lanes`, a power of two, threads lie side by side over lanes * COLUMN_PACK of the outer * inner columns, the others below them.
template <typename X, typename F>
DEVICE void total_axis(const X* x, i64 outer, i64 n, i64 inner, i64 stretch, i64 stretches, int lanes, F result) {
    constexpr int W = COLUMN_PACK<X>;
    i64 columns = outer * inner, tile = (i64)lanes * W, tiles = quotient(columns + tile - 1, tile);
    i64 s = quotient(block_x(), tiles), left = (block_x() - s * tiles) * tile;
    int side = thread() & (lanes - 1), below = thread() / lanes, groups = TOTAL_THREADS / lanes;
    bool is_packed = sizeof(X) < 8 && inner % W == 0 && is_aligned<sizeof(X) * W>(x);
    // Columns of a thread and where their first numbers lie.
    i64 first = left + (is_packed ? side * W : side);
    int step = is_packed ? 1 : lanes;
    const X* from[W];
    typename ThreadTotal<X>::Type sum[W];
#pragma unroll
    for (int i = 0; i < W; ++i) {
        i64 column = first + i * step, o = quotient(column, inner);
        from[i] = x + column + o * (n - 1) * inner;
        sum[i] = 0;
    }
    i64 end = least(n, (s + 1) * stretch);
    if (is_packed && first < columns) {
#pragma unroll 4
        for (i64 row = s * stretch + below; row < end; row += groups) add_packed(sum, from[0] + row * inner);
    }
    if (!is_packed) {
#pragma unroll 4
        for (i64 row = s * stretch + below; row < end; row += groups) {
#pragma unroll
            for (int i = 0; i < W; ++i) {
                if (first + i * step < columns) sum[i] += wide_number(from[i][row * inner]);
            }
        }
    }
    double total[W];
#pragma unroll
    for (int i = 0; i < W; ++i) total[i] = (double)sum[i];
    add_below(total, lanes);
    if (below > 0) return;
#pragma unroll
    for (int i = 0; i < W; ++i) {
        i64 column = first + i * step, o = quotient(column, inner);
        if (column < columns) result(column + (o * (stretches - 1) + s) * inner, total[i]);
    }
}

// A number that many places are divided by: a product and a step up or down, where a division of 64 bits is a call.
struct Divisor {
    i64 value;
    double inverse;
    // Newton's iteration twice, from 23 bits: a division would be a call.
    DEVICE explicit Divisor(i64 value) : value(value), inverse((double)reciprocal((float)value)) {
        inverse = fused(fused(-(double)value, inverse, 1.0), inverse, inverse);
        inverse = fused(fused(-(double)value, inverse, 1.0), inverse, inverse);
    }
};
DEVICE i64 quotient(i64 a, const Divisor& b) {
    i64 q = (i64)((double)a * b.inverse), rest = a - q * b.value;
    return q + (rest >= b.value) - (rest < 0);
}
DEVICE i64 modulo(i64 a, const Divisor& b) { return a - quotient(a, b) * b.value; }
DEVICE i64 value_of(const Divisor& b) { return b.value; }
DEVICE i64 value_of(i64 b) { return b; }

// For numbers at, at + 1, .. of rows of `width`: enter(row) before the first number of each row, then f(i).
template <int W, typename WIDTH, typename ENTER, typename F> DEVICE void by_row(i64 at, const WIDTH& width, ENTER enter, F f) {
    i64 row = quotient(at, width), left = (row + 1) * value_of(width) - at;
    enter(row);
    if (left >= W) {
#pragma unroll
        for (int i = 0; i < W; ++i) f(i);
        return;
    }
#pragma unroll
    for (int i = 0; i < W; ++i, --left) {
        if (left == 0) enter(++row), left = value_of(width);
        f(i);
    }
}
