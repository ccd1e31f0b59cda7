// cast: the same numbers in another type, rounded once; y = x in the type of the entry's name, dx = dy in T.
// axes      x, y, dy, dx [n]
// types     T in {f32, bf16, f16}, the type of x and dx; the other type is in the name of the entry
// launch    flat: common/elementwise.cuh; W is that of the wider type
// paths     packs of 16 bytes of the wider type, 4 a thread, else single numbers
// traffic   reads one tensor, writes one, which backward reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 40 registers, sm_90a 48, gfx90a 48, gfx942 48; no spills
// source    IEEE 754-2019, sections 4.3.1 and 5.4.2

#include "common/elementwise.cuh"

template <typename Y, typename X> DEVICE void convert(Y* y, int add, const X* x, i64 n) {
    map_flat(y, add, n, [](float x) { return x; }, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) cast_fwd_f32(f32* y, const T* x, i64 n) {
    follow();
    convert(y, 0, x, n);
}
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) cast_fwd_bf16(bf16* y, const T* x, i64 n) {
    follow();
    convert(y, 0, x, n);
}
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) cast_fwd_f16(f16* y, const T* x, i64 n) {
    follow();
    convert(y, 0, x, n);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    cast_bwd_dx_f32(T* dx, const f32* dy, i64 n, int add_dx) {
    follow();
    convert(dx, add_dx, dy, n);
}
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    cast_bwd_dx_bf16(T* dx, const bf16* dy, i64 n, int add_dx) {
    follow();
    convert(dx, add_dx, dy, n);
}
extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    cast_bwd_dx_f16(T* dx, const f16* dy, i64 n, int add_dx) {
    follow();
    convert(dx, add_dx, dy, n);
}
