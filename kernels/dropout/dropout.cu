// dropout: y = x * m, dx = dy * m with m[i] = scale where element i of the stream is kept, else 0.
// axes      x, y, dy, dx [n]; i counts elements in row-major order
// types     T in {f32, bf16, f16}; arithmetic in f32
// launch    flat: common/elementwise.cuh; kept where the 24 bits drawn reach `reach` = ceil(p * 2^24)
// paths     16-byte packs, 2 a thread: one block of the stream for 4 numbers; else a block of the stream for each number
// traffic   reads one tensor, writes one, which backward reads when adding; the mask is drawn again and never stored
// order     every number alone: same input, same bits
// budget    sm_80 48 registers, sm_90a 48, gfx90a 48, gfx942 48; no spills
// measured  H200, 2026-11-22, bf16, 65536 x 768: 54 us, 88 % of the copy rate (a copy of that size 51); before, with 4 packs a thread and
//           every product of Philox for every block, 58 us; what limits it are the integer products; 2026-11-23 with room for 6 blocks
//           53.9 us, 89 %, for 8, which had 32 registers, 54.2
// source    Srivastava et al. 2014, section 10 (the inverted form)

#include "common/elementwise.cuh"
#include "common/rng.cuh"

struct Dropped {
    i64 seed;
    i64 stream;
    u32 least;
    float scale;
    DEVICE Dropped(i64 seed, i64 stream, int reach, float scale) : seed(seed), stream(stream), least((u32)reach << 8), scale(scale) {}

    template <int W> DEVICE void operator()(i64 at, float (&v)[W], const float (&x)[W]) {
        if constexpr (W == 1) {
            v[0] = mul(x[0], factor(drawn_bits(seed, stream, at)));
        } else {
            // The upper half of a block's number is the same for all numbers of a thread block, which are a power of two: so are two of
            // the products of Philox's first rounds.
            u32 word[4], upper = (u32)(((i64)block_x() * (FLAT_THREADS * PACKS_OF_ONE * W)) >> 34);
#pragma unroll
            for (int i = 0; i < W; ++i) {
                if (i % 4 == 0) philox(word, seed, stream, (u32)((at + i) >> 2), upper);
                v[i] = mul(x[i], factor(word[i % 4]));
            }
        }
    }
    // As kept(): the 24 bits drawn reach `reach` where the whole word reaches `least`.
    DEVICE float factor(u32 word) const { return word >= least ? scale : 0.0f; }
};

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 6)
    dropout_fwd(T* y, const T* x, i64 n, i64 seed, i64 stream, int reach, float scale) {
    follow();
    map_packs(true, y, 0, n, Dropped(seed, stream, reach, scale), x);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 6)
    dropout_bwd_dx(T* dx, const T* dy, i64 n, i64 seed, i64 stream, int reach, float scale, int add_dx) {
    follow();
    // Apart, so that setting has forward's code.
    Dropped dropped(seed, stream, reach, scale);
    if (add_dx) {
        map_packs(true, dx, 1, n, dropped, dy);
    } else {
        map_packs(true, dx, 0, n, dropped, dy);
    }
}
