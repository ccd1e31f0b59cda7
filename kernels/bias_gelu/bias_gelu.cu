// bias_gelu: y = gelu(x + bias); dx = dy * gelu'(x + bias); dbias is the sum over rows of dx.
// axes      x, y, dy, dx [rows, C]; bias, dbias [C]
// types     T in {f32, bf16, f16}; arithmetic and sums in f32, dbias from dx before it is rounded
// launch    fwd, bwd_dx (without dbias) flat: common/elementwise.cuh; bwd in two stages: common/columns.cuh, whose first one also writes
//           dx where there is a place for it; is_tanh: 0 for the definition, 1 for the approximation
// paths     16-byte packs when W divides C, else single numbers
// traffic   fwd reads x, writes y; bwd reads x and dy once, writes dx, which it reads when adding, and stretches * C f32, and adds them
// order     fixed: same input, same bits
// budget    sm_80 80 registers, sm_90a 80, gfx90a 256, gfx942 256; no spills
// measured  H200, 2026-11-22 and 23, bf16, 32768 x 3072, of the copy rate: fwd 84 %, bwd_dx 90 %; bwd before its second stage 74 % with
//           two blocks a processor, 79 with the next row under way, 88 with three blocks, 74 where a fourth waits for them
// source    Hendrycks, Gimpel 2016, sections 2 and 4

#include "common/columns.cuh"
#include "common/elementwise.cuh"
#include "common/gelu.cuh"

template <bool IS_TANH> struct Biased {
    DEVICE float operator()(float x, float bias) const { return gelu_of<IS_TANH>(x + bias); }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    bias_gelu_fwd(T* y, const T* x, const T* bias, i64 n, i64 c, int is_tanh) {
    follow();
    if (is_tanh) {
        map_repeated(y, 0, n, Biased<true>{}, x, bias, c);
    } else {
        map_repeated(y, 0, n, Biased<false>{}, x, bias, c);
    }
}

template <bool IS_TANH> struct BiasedGradient {
    const T* bias;
    i64 c;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W], const float (&dy)[W]) {
        Pack<T, W> b = load_kept<T, W>(bias + modulo(at, c));
#pragma unroll
        for (int i = 0; i < W; ++i) v[i] = dy[i] * gelu_slope<IS_TANH>(x[i] + b.get(i));
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    bias_gelu_bwd_dx(T* dx, const T* x, const T* bias, const T* dy, i64 n, i64 c, int is_tanh, int add_dx) {
    follow();
    bool is_wide = c % WIDE<T> == 0 && is_aligned<16>(bias);
    if (is_tanh) {
        map_packs(is_wide, dx, add_dx, n, BiasedGradient<true>{bias, c}, x, dy);
    } else {
        map_packs(is_wide, dx, add_dx, n, BiasedGradient<false>{bias, c}, x, dy);
    }
}

// The gradients of a row: summed, and written where dx is not null. The packs of a thread's next row are under way meanwhile, but on
// AMD, where they would cost a block its place.
template <int W, bool IS_TANH> struct GradientTerm {
    static constexpr bool IS_AHEAD = WARP == 32;
    T* dx;
    const T* x;
    const T* dy;
    i64 c;
    i64 end;
    int step;
    int add;
    float bias[W];
    Pack<T, W> next_x, next_dy;

    DEVICE GradientTerm(T* dx, const T* x, const T* bias_of, const T* dy, i64 c, i64 begin, i64 end, int lanes, int add,
                        const Columns& columns)
        : dx(dx), x(x), dy(dy), c(c), end(end), step(COLUMN_THREADS / lanes), add(add) {
#pragma unroll
        for (int i = 0; i < W; ++i) bias[i] = i < columns.count ? widen(bias_of[column(columns, i)]) : 0.0f;
        if (IS_AHEAD && columns.is_wide && columns.count > 0) fetch(begin + thread() / lanes, columns);
    }
    DEVICE void fetch(i64 row, const Columns& columns) {
        if (row >= end) return;
        next_x = load_once<T, W>(x + row * c + columns.first);
        next_dy = load_once<T, W>(dy + row * c + columns.first);
    }
    template <typename S> DEVICE void operator()(i64 row, const Columns& columns, S (&sum)[1][W]) {
        float number[W], d[W];
        if (IS_AHEAD && columns.is_wide) {
            next_x.unpack(number);
            next_dy.unpack(d);
            fetch(row + step, columns);
        } else {
            load_columns<W>(number, x + row * c, columns);
            load_columns<W>(d, dy + row * c, columns);
        }
#pragma unroll
        for (int i = 0; i < W; ++i) {
            d[i] = d[i] * gelu_slope<IS_TANH>(number[i] + bias[i]);
            add_to(sum[0][i], d[i]);
        }
        if (!dx) return;
        T* to = dx + row * c;
        if (columns.is_wide) {
            put<T, W>(to + columns.first, d, add);
            return;
        }
#pragma unroll
        for (int i = 0; i < W; ++i) {
            if (i < columns.count) put(to + column(columns, i), d[i], add);
        }
    }
};

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS, WARP == 32 ? 3 : 2) bias_gelu_bwd(
    T* dx, float* sums, const T* x, const T* bias, const T* dy, i64 rows, i64 width, i64 stretch, int stretches, int lanes, int is_tanh,
    int add_dx) {
    follow();
    constexpr int W = WIDE<T>;
    bool may_be_wide = is_aligned<16>(x) && is_aligned<16>(dy) && is_aligned<16>(dx);
    Columns columns = columns_of<W>(width, lanes, may_be_wide);
    i64 begin = block_y() * stretch, end = least(rows, begin + stretch);
    if (is_tanh) {
        GradientTerm<W, true> term(dx, x, bias, dy, width, begin, end, lanes, add_dx, columns);
        column_partials<W>(sums, rows, width, stretch, stretches, lanes, may_be_wide, term);
    } else {
        GradientTerm<W, false> term(dx, x, bias, dy, width, begin, end, lanes, add_dx, columns);
        column_partials<W>(sums, rows, width, stretch, stretches, lanes, may_be_wide, term);
    }
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    bias_gelu_bwd_total(T* d, const float* partial, i64 stretches, i64 width, int lanes, int add_d) {
    follow();
    column_totals(d, partial, stretches, width, lanes, add_d);
}
