// columns: sums over rows of a row-major matrix, column by column: gradients of biases, scales and whatever is repeated over rows.
// stages    a block sums a stretch of rows of a tile of columns and leaves f32 partial sums; a second kernel, the same text over the
//           partial sums, adds the stretches
// launch    COLUMN_THREADS threads; grid [tiles, stretches, matrices]; `lanes`, a power of two, threads lie side by side over lanes * W
//           columns, the others below them: narrow and low matrices use all threads, too
// paths     16-byte loads when W divides the width, else single numbers, neighbouring threads neighbouring columns
// order     a thread adds its rows from first to last, the threads of a column by halving; in f32, and where stretches are added, no
//           addition loses what it rounds off (Sum in common/reduce.cuh): same input, same bits, and sums that cancel keep their digits

#pragma once
#include "common/pack.cuh"
#include "common/reduce.cuh"

constexpr int COLUMN_THREADS = 256;

// What a thread's sums over rows are of: f32 keeps what rounding takes (reduce.cuh), 16-bit types would not show it.
template <typename U> struct RowSum {
    using Type = float;
};
template <> struct RowSum<f32> {
    using Type = Sum;
};
DEVICE void add_to(float& s, float v) { s += v; }
DEVICE void add_product(float& s, float a, float b) { s = fmaf(a, b, s); }
DEVICE float value_of(float s) { return s; }

// The columns of a thread: `count` of them from `first` on, `step` apart.
struct Columns {
    i64 first;
    int step;
    int count;
    bool is_wide;
};

// Column i of a thread.
DEVICE i64 column(const Columns& c, int i) { return c.first + (i64)i * c.step; }

template <int W> DEVICE Columns columns_of(i64 width, int lanes, bool may_be_wide) {
    int side = thread() % lanes;
    i64 tile = (i64)block_x() * lanes * W;
    if (may_be_wide && width % W == 0) {
        i64 first = tile + (i64)side * W;
        return Columns{first, 1, first < width ? W : 0, true};
    }
    i64 left = width - tile - side;
    return Columns{tile + side, lanes, left <= 0 ? 0 : (int)least(W, (left + lanes - 1) / lanes), false};
}

// The numbers of a thread's columns in the row that begins at `row`; 0 where there is no column.
template <int W, typename U> DEVICE void load_columns(float (&v)[W], const U* row, const Columns& c) {
    if (c.is_wide) {
        load_once<U, W>(row + c.first).unpack(v);
        return;
    }
#pragma unroll
    for (int i = 0; i < W; ++i) v[i] = i < c.count ? widen(row[column(c, i)]) : 0.0f;
}

template <int W, typename S> struct ColumnScratch {
    S v[W][COLUMN_THREADS];
};

// Adds over the threads of a column; the first `lanes` threads hold the result.
template <int W, typename S> DEVICE void add_threads(S (&sum)[W], int lanes, ColumnScratch<W, S>& scratch) {
    int t = thread();
    if (lanes == COLUMN_THREADS) return;
#pragma unroll
    for (int i = 0; i < W; ++i) scratch.v[i][t] = sum[i];
    for (int half = COLUMN_THREADS / 2; half >= lanes; half /= 2) {
        block_sync();
        if (t < half) {
#pragma unroll
            for (int i = 0; i < W; ++i) {
                add_to(sum[i], scratch.v[i][t + half]);
                scratch.v[i][t] = sum[i];
            }
        }
    }
    block_sync();
}

// The sums over the rows [begin, end), to which `term(row, columns, sum)` adds row `row`: sum[s][i] is sum s of column i. Returns whether
// this thread holds results.
template <typename S, int SUMS, int W, typename F>
DEVICE bool sum_columns(float (&result)[SUMS][W], const Columns& c, i64 begin, i64 end, int lanes, F term) {
    __shared__ ColumnScratch<W, S> scratch;
    S sum[SUMS][W];
#pragma unroll
    for (int i = 0; i < SUMS * W; ++i) sum[i / W][i % W] = S{};
    int groups = COLUMN_THREADS / lanes;
    auto walk = [&](const Columns& columns) {
#pragma unroll 4
        for (i64 row = begin + thread() / lanes; row < end; row += groups) term(row, columns, sum);
    };
    // Told apart outside the loop, so that several loads are under way in it.
    if (c.count > 0 && c.is_wide) {
        walk(Columns{c.first, 1, W, true});
    } else if (c.count > 0) {
        walk(Columns{c.first, c.step, c.count, false});
    }
#pragma unroll
    for (int s = 0; s < SUMS; ++s) {
        add_threads<W, S>(sum[s], lanes, scratch);
#pragma unroll
        for (int i = 0; i < W; ++i) result[s][i] = value_of(sum[s][i]);
    }
    return thread() < (u32)lanes && c.count > 0;
}

// What most sums add: the numbers of a matrix.
template <int W, typename U> struct PlainTerm {
    const U* x;
    i64 width;
    template <typename S> DEVICE void operator()(i64 row, const Columns& c, S (&sum)[1][W]) const {
        float v[W];
        load_columns<W>(v, x + row * width, c);
#pragma unroll
        for (int i = 0; i < W; ++i) add_to(sum[0][i], v[i]);
    }
};

// The first stage of one sum: partial[matrix][stretch][column] over the stretch block_y of `stretch` rows of matrix block_z.
template <int W, typename F>
DEVICE void column_partials(float* partial, i64 rows, i64 width, i64 stretch, int stretches, int lanes, bool may_be_wide, F term) {
    Columns c = columns_of<W>(width, lanes, may_be_wide);
    i64 begin = block_y() * stretch;
    float sum[1][W];
    if (!sum_columns<typename RowSum<T>::Type, 1, W>(sum, c, begin, least(rows, begin + stretch), lanes, term)) return;
    float* to = partial + ((i64)block_z() * stretches + block_y()) * width;
#pragma unroll
    for (int i = 0; i < W; ++i) {
        if (i < c.count) to[column(c, i)] = sum[0][i];
    }
}

// One sum in as few launches as it takes: partial sums as above, or, without room for them, the sums over all rows set or added.
template <int W, typename F>
DEVICE void column_sums(
    T* y, float* partial, i64 rows, i64 width, i64 stretch, int stretches, int lanes, int add, bool may_be_wide, F term) {
    if (partial) {
        column_partials<W>(partial, rows, width, stretch, stretches, lanes, may_be_wide, term);
        return;
    }
    Columns c = columns_of<W>(width, lanes, may_be_wide);
    float sum[1][W];
    if (!sum_columns<typename RowSum<T>::Type, 1, W>(sum, c, 0, rows, lanes, term)) return;
    if (c.is_wide && is_aligned<sizeof(T) * W>(y)) {
        put<T, W>(y + c.first, sum[0], add);
        return;
    }
#pragma unroll
    for (int i = 0; i < W; ++i) {
        if (i < c.count) put(y + column(c, i), sum[0][i], add);
    }
}

// Partial sums of two quantities.
template <int W, typename F>
DEVICE void column_partials2(float* a, float* b, i64 rows, i64 width, i64 stretch, int stretches, int lanes, bool may_be_wide, F term) {
    Columns c = columns_of<W>(width, lanes, may_be_wide);
    i64 begin = block_y() * stretch;
    float sum[2][W];
    if (!sum_columns<typename RowSum<T>::Type, 2, W>(sum, c, begin, least(rows, begin + stretch), lanes, term)) return;
    i64 to = ((i64)block_z() * stretches + block_y()) * width;
#pragma unroll
    for (int i = 0; i < W; ++i) {
        if (i < c.count) a[to + column(c, i)] = sum[0][i], b[to + column(c, i)] = sum[1][i];
    }
}

// The second stage: the columns of a matrix of `stretches` rows for each of block_z matrices, set or added.
template <typename U>
DEVICE void column_totals(U* y, const float* partial, i64 stretches, i64 width, int lanes, int add) {
    constexpr int W = WIDE<float>;
    Columns c = columns_of<W>(width, lanes, is_aligned<16>(partial));
    const float* from = partial + block_z() * stretches * width;
    float sum[1][W];
    if (!sum_columns<Sum, 1, W>(sum, c, 0, stretches, lanes, PlainTerm<W, float>{from, width})) return;
#pragma unroll
    for (int i = 0; i < W; ++i) {
        if (i < c.count) put(y + block_z() * width + column(c, i), sum[0][i], add);
    }
}
