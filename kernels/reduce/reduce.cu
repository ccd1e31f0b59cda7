// reduce: y = sum of x over some axes, divided by the number of terms for a mean; dx = dy (divided) where it went in.
// axes      neighbouring axes of one fate are one; a pass takes the innermost that is summed: x [outer, n, inner] -> [outer, inner]
// types     T in {f32, bf16, f16}; sums in f64, between passes too; shares of gradients in f32
// launch    fwd: common/totals.cuh, teams over rows where inner is 1, else tiles of columns, and again over the sums of stretches;
//           bwd flat: common/elementwise.cuh, a pass for every axis that was summed, the outermost first
// paths     fwd 16-byte packs wherever places allow them, single numbers at the ends of a row; bwd packs of dx
// traffic   fwd reads x once, writes y, and 8 bytes a sum between passes; bwd reads dy, writes dx, which it reads when adding
// order     fixed: same input, same bits
// budget    sm_80 120 registers, sm_90a 112, gfx90a 136, gfx942 136; no spills
// source    the definition

#include "common/totals.cuh"

// Where a sum goes: among those of this pass, or, divided, to the result.
struct Result {
    T* y;
    double* sums;
    i64 terms;
    DEVICE void operator()(i64 at, double sum) const {
        if (y) {
            y[at] = narrow<T>((float)(terms == 1 ? sum : sum / (double)terms));
        } else {
            sums[at] = sum;
        }
    }
};

extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) reduce_fwd_rows(
    T* y, int* sums, const T* x, i64 rows, i64 n, i64 stretch, i64 stretches, int lanes, i64 terms) {
    follow();
    total_rows(x, rows, n, stretch, stretches, lanes, Result{y, (double*)sums, terms});
}
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) reduce_fwd_rows_again(
    T* y, int* sums, const int* x, i64 rows, i64 n, i64 stretch, i64 stretches, int lanes, i64 terms) {
    follow();
    total_rows((const double*)x, rows, n, stretch, stretches, lanes, Result{y, (double*)sums, terms});
}
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) reduce_fwd_axis(
    T* y, int* sums, const T* x, i64 outer, i64 n, i64 inner, i64 stretch, i64 stretches, int lanes, i64 terms) {
    follow();
    total_axis(x, outer, n, inner, stretch, stretches, lanes, Result{y, (double*)sums, terms});
}
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS) reduce_fwd_axis_again(
    T* y, int* sums, const int* x, i64 outer, i64 n, i64 inner, i64 stretch, i64 stretches, int lanes, i64 terms) {
    follow();
    total_axis((const double*)x, outer, n, inner, stretch, stretches, lanes, Result{y, (double*)sums, terms});
}

// dy [outer, inner] at every place of [outer, n, inner].
template <typename X> struct Spread {
    const X* dy;
    i64 n;
    i64 inner;
    float terms;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W]) {
        // Numbers that one of dy went into lie in a row of n where inner is 1.
        i64 line = quotient(at, inner), o = quotient(line, n), column = at - line * inner;
        if (inner % W == 0 && is_aligned<sizeof(X) * W>(dy)) {
            load_kept<X, W>(dy + o * inner + column).unpack(v);
#pragma unroll
            for (int i = 0; i < W; ++i) v[i] = share(v[i]);
            return;
        }
        i64 left = n - (line - o * n);
        const X* from = dy + o * inner;
        float shared = share(widen(from[column]));
#pragma unroll
        for (int i = 0; i < W; ++i) {
            v[i] = shared;
            bool has_line_end = ++column == inner;
            if (has_line_end) column = 0;
            bool has_next = has_line_end && --left == 0;
            if (has_next) from += inner, left = n;
            if (i + 1 < W && (has_next || inner > 1)) shared = share(widen(from[column]));
        }
    }
    DEVICE float share(float v) const { return terms == 1.0f ? v : divide(v, terms); }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    reduce_bwd_dx(T* dx, const T* dy, i64 all, i64 n, i64 inner, float terms, int add_dx) {
    follow();
    map_packs(true, dx, add_dx, all, Spread<T>{dy, n, inner, terms});
}
// The same where several axes were summed: the first pass, those between, the last.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    reduce_bwd_dx_first(f32* share, const T* dy, i64 all, i64 n, i64 inner, float terms) {
    follow();
    map_packs(true, share, 0, all, Spread<T>{dy, n, inner, terms});
}
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    reduce_bwd_dx_next(f32* share, const f32* dy, i64 all, i64 n, i64 inner, float terms) {
    follow();
    map_packs(true, share, 0, all, Spread<f32>{dy, n, inner, terms});
}
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    reduce_bwd_dx_last(T* dx, const f32* dy, i64 all, i64 n, i64 inner, float terms, int add_dx) {
    follow();
    map_packs(true, dx, add_dx, all, Spread<f32>{dy, n, inner, terms});
}
