// dropout: y = x * m, dx = dy * m with m[i] = scale where element i of the stream is kept, else 0.
// axes      x, y, dy, dx [n]; i counts elements in row-major order
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh; kept where the 24 bits drawn reach `reach` = ceil(p * 2^24)
// paths     16-byte packs, 4 a thread: one block of the stream for 4 numbers; else a block of the stream for each number
// traffic   reads one tensor, writes one, which backward reads when adding; the mask is drawn again and never stored
// order     every number alone: same input, same bits
// budget    sm_80 48 registers, sm_90a 48, gfx90a 48, gfx942 48; no spills
// source    Srivastava et al. 2014, section 10 (the inverted form)

#include "common/elementwise.cuh"
#include "common/rng.cuh"

struct Dropped {
    i64 seed;
    i64 stream;
    int reach;
    float scale;
    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W]) {
        if constexpr (W == 1) {
            v[0] = mul(x[0], kept(drawn_bits(seed, stream, at), reach, scale));
        } else {
            u32 word[4];
#pragma unroll
            for (int i = 0; i < W; ++i) {
                if (i % 4 == 0) philox(word, seed, stream, (at + i) >> 2);
                v[i] = mul(x[i], kept(word[i % 4], reach, scale));
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 5)
    dropout_fwd(T* y, const T* x, i64 n, i64 seed, i64 stream, int reach, float scale) {
    map_packs(true, y, 0, n, Dropped{seed, stream, reach, scale}, x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 5)
    dropout_bwd_dx(T* dx, const T* dy, i64 n, i64 seed, i64 stream, int reach, float scale, int add_dx) {
    map_packs(true, dx, add_dx, n, Dropped{seed, stream, reach, scale}, dy);
}
