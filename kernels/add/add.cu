// add: y[r, i] = x[r, i] + b[i]; dx = dy; db[i] = sum over r of dy[r, i].
// axes      x, y, dy, dx [n], n = rows * width; b, db [width]
// types     T in {f32, bf16, f16}; sums in f32
// launch    fwd, bwd_dx flat: common/elementwise.cuh; bwd in one stage or two: common/columns.cuh
// paths     16-byte packs when W divides the width, else single numbers; as many rows as one: b is read like x
// traffic   fwd reads x, b, writes y; bwd reads dy, writes dx, and db or stretches * width f32, which are added
// order     fixed: same input, same bits
// budget    sm_80 56 registers, sm_90a 64, gfx90a 168, gfx942 168; no spills
// source    the definition

#include "common/columns.cuh"
#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) add_fwd(T* y, const T* x, const T* b, i64 n, i64 width) {
    follow();
    auto sum = [](float x, float b) { return x + b; };
    if (width == n) {
        map_flat(y, 0, n, sum, x, b);
    } else {
        map_repeated(y, 0, n, sum, x, b, width);
    }
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) add_bwd_dx(T* dx, const T* dy, i64 n, int add_dx) {
    follow();
    map_flat(dx, add_dx, n, [](float dy) { return dy; }, dy);
}

// Adds dy over rows and, where dx is there, copies it on the way.
template <int W> struct CopiedTerm {
    T* dx;
    const T* dy;
    i64 width;
    int add;
    template <typename S> DEVICE void operator()(i64 row, const Columns& c, S (&sum)[1][W]) const {
        float v[W];
        load_columns<W>(v, dy + row * width, c);
#pragma unroll
        for (int i = 0; i < W; ++i) add_to(sum[0][i], v[i]);
        if (!dx) return;
        T* to = dx + row * width;
        if (c.is_wide) {
            put<T, W>(to + c.first, v, add);
            return;
        }
#pragma unroll
        for (int i = 0; i < W; ++i) {
            if (i < c.count) put(to + column(c, i), v[i], add);
        }
    }
};

// Both gradients; without dx that of b alone. Without partial it is whole, else add_bwd_db_total adds the stretches.
extern "C" __global__ void __launch_bounds__(COLUMN_THREADS, 2) add_bwd(
    T* dx, T* db, float* partial, const T* dy, i64 rows, i64 width, i64 stretch, int stretches, int lanes, int add_dx, int add_db) {
    follow();
    constexpr int W = WIDE<T>;
    CopiedTerm<W> term{dx, dy, width, add_dx};
    bool may_be_wide = is_aligned<16>(dy) && is_aligned<16>(dx);
    column_sums<W>(db, partial, rows, width, stretch, stretches, lanes, add_db, may_be_wide, term);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    add_bwd_db_total(T* db, const float* partial, i64 stretches, i64 width, int lanes, int add_db) {
    follow();
    column_totals(db, partial, stretches, width, lanes, add_db);
}
