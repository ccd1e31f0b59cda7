// accumulate: sum[i] += x[i], rounded once: what the tape does where two gradients meet; of x in f32 set or added, where gradients of a
//           pass in 16 bits are kept in its type.
// axes      sum, x [n]
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: see common/elementwise.cuh
// paths     16-byte packs, else single numbers; of another type single numbers, for these are few
// traffic   reads sum and x, writes sum
// order     every number alone: same input, same bits
// budget    sm_80 48 registers, sm_90a 48, gfx90a 64, gfx942 64; no spills
// source    none

#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) accumulate(T* sum, const T* x, i64 n) {
    follow();
    map_flat(sum, 1, n, [](float x) { return x; }, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) accumulate_wide(T* sum, const f32* x, i64 n, int add) {
    follow();
    i64 i = (i64)block_x() * FLAT_THREADS + thread();
    if (i < n) sum[i] = narrow<T>((add ? widen(sum[i]) : 0.0f) + x[i]);
}
