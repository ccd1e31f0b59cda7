// drop_path: y[b] = x[b] * m[b], dx[b] = dy[b] * m[b] with m[b] = scale where element b of the stream is kept, else 0.
// axes      x, y, dy, dx [B, width], n = B * width
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh; kept where the 24 bits drawn reach `reach` = ceil(p * 2^24)
// paths     16-byte packs, 4 a thread, when W divides the width: one block of the stream a pack; else one for each number
// traffic   reads one tensor, writes one, which backward reads when adding
// order     every number alone: same input, same bits
// budget    sm_80 48 registers, sm_90a 48, gfx90a 48, gfx942 48; no spills
// source    Huang et al. 2016

#include "common/elementwise.cuh"
#include "common/rng.cuh"

struct DroppedSample {
    i64 width;
    i64 seed;
    i64 stream;
    int reach;
    float scale;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W]) {
        float factor = kept(drawn_bits(seed, stream, quotient(at, width)), reach, scale);
#pragma unroll
        for (int i = 0; i < W; ++i) v[i] = mul(x[i], factor);
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    drop_path_fwd(T* y, const T* x, i64 n, i64 width, i64 seed, i64 stream, int reach, float scale) {
    follow();
    map_packs(width % WIDE<T> == 0, y, 0, n, DroppedSample{width, seed, stream, reach, scale}, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4)
    drop_path_bwd_dx(T* dx, const T* dy, i64 n, i64 width, i64 seed, i64 stream, int reach, float scale, int add_dx) {
    follow();
    map_packs(width % WIDE<T> == 0, dx, add_dx, n, DroppedSample{width, seed, stream, reach, scale}, dy);
}
