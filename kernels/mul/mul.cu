// mul: y[r, i] = x[r, i] * b[i]; dx[r, i] = dy[r, i] * b[i]; db[i] = sum over r of dy[r, i] * x[r, i].
// axes      x, y, dy, dx [n], n = rows * width; b, db [width]
// types     T in {f32, bf16, f16}; sums in f32
// launch    fwd, bwd_dx and bwd_db_flat (one row) flat: common/elementwise.cuh; bwd_db in two stages: common/columns.cuh
// paths     16-byte packs when W divides the width, else single numbers
// traffic   fwd reads x, b, writes y; bwd_dx the same; bwd_db reads dy, x, leaves stretches * width f32 and adds them
// order     fixed: same input, same bits
// budget    sm_80 64 registers, sm_90a 64, gfx90a 168, gfx942 176; no spills
// source    the definition

#include "common/columns.cuh"
#include "common/elementwise.cuh"

// With add, what is there is added after the product was rounded: set and add differ by nothing else.
DEVICE void products(T* y, int add, const T* x, const T* b, i64 n, i64 width) {
    auto product = [](float x, float b) { return mul(x, b); };
    if (width == n) {
        map_flat(y, add, n, product, x, b);
    } else {
        map_repeated(y, add, n, product, x, b, width);
    }
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) mul_fwd(T* y, const T* x, const T* b, i64 n, i64 width) {
    follow();
    products(y, 0, x, b, n, width);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    mul_bwd_dx(T* dx, const T* b, const T* dy, i64 n, i64 width, int add_dx) {
    follow();
    products(dx, add_dx, dy, b, n, width);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    mul_bwd_db_flat(T* db, const T* x, const T* dy, i64 n, int add_db) {
    follow();
    products(db, add_db, dy, x, n, n);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) mul_bwd_db(
    T* db, float* partial, const T* x, const T* dy, i64 rows, i64 width, i64 stretch, int stretches, int lanes, int add_db) {
    follow();
    constexpr int W = WIDE<T>;
    auto term = [=](i64 row, const Columns& c, RowSum<T>::Type(&sum)[1][W]) {
        float number[W], d[W];
        load_columns<W>(number, x + row * width, c);
        load_columns<W>(d, dy + row * width, c);
#pragma unroll
        for (int i = 0; i < W; ++i) add_product(sum[0][i], d[i], number[i]);
    };
    bool may_be_wide = is_aligned<16>(dy) && is_aligned<16>(x);
    column_sums<W>(db, partial, rows, width, stretch, stretches, lanes, add_db, may_be_wide, term);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    mul_bwd_db_total(T* db, const float* partial, i64 stretches, i64 width, int lanes, int add_db) {
    follow();
    column_totals(db, partial, stretches, width, lanes, add_db);
}
