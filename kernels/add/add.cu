// add: y[r, i] = x[r, i] + b[i]; dx = dy; db[i] = sum over r of dy[r, i].
// axes      x, y, dy, dx [n], n = rows * width; b, db [width]
// types     T in {f32, bf16, f16}; sums in f32
// launch    fwd, bwd_dx flat: common/elementwise.cuh; bwd_db in two stages: common/columns.cuh
// paths     16-byte packs when W divides the width, else single numbers; as many rows as one: b is read like x
// traffic   fwd reads x, b, writes y; bwd_dx copies dy; bwd_db reads dy, leaves stretches * width f32 and adds them
// order     fixed: same input, same bits
// budget    sm_80 56 registers, sm_90a 56, gfx90a 88, gfx942 88; no spills
// source    the definition

#include "common/columns.cuh"
#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) add_fwd(T* y, const T* x, const T* b, i64 n, i64 width) {
    auto sum = [](float x, float b) { return x + b; };
    if (width == n) {
        map_flat(y, 0, n, sum, x, b);
    } else {
        map_repeated(y, 0, n, sum, x, b, width);
    }
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) add_bwd_dx(T* dx, const T* dy, i64 n, int add_dx) {
    map_flat(dx, add_dx, n, [](float dy) { return dy; }, dy);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    add_bwd_db(float* partial, const T* dy, i64 rows, i64 width, i64 stretch, int stretches, int lanes) {
    constexpr int W = WIDE<T>;
    PlainTerm<W, T> term{dy, width};
    column_partials<W>(partial, rows, width, stretch, stretches, lanes, is_aligned<16>(dy), term);
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    add_bwd_db_total(T* db, const float* partial, i64 stretches, i64 width, int lanes, int add_db) {
    column_totals(db, partial, stretches, width, lanes, add_db);
}
