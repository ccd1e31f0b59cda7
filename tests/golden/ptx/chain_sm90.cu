// chain_sm90: o = (q kt) v for 64 rows, the product in the middle staying in registers.
// axes      q [64, 64], k [64, 64] and v [64, 64] (keys by features) bf16 by tensor maps with swizzle 128; o [64, 64] f32
// launch    one block of 128 threads, 25600 bytes of dynamic shared memory; boxes 64 x 64

#include "common/wgmma.cuh"

constexpr int TILE = 64 * 64 * 2;

DEVICE u32 pack(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

extern "C" __global__ void __launch_bounds__(128) chain(float* o, const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                                                        const __grid_constant__ TensorMap v) {
    extern __shared__ unsigned char dynamic[];
    __shared__ Barrier ready[2];
    unsigned char* tile = aligned<1024>(dynamic);      // q, k, v: [3][64][64]
    if (thread() == 0) {
        ready[0].init(1);
        ready[1].init(1);
        barrier_init_fence();
        ready[0].arrive_expect(2 * TILE);
        load_box(tile, q, ready[0], 0, 0);
        load_box(tile + TILE, k, ready[0], 0, 0);
        ready[1].arrive_expect(TILE);
        load_box(tile + 2 * TILE, v, ready[1], 0, 0);
    }
    block_sync();
    ready[0].wait(0);
    float s[32], d[32];
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
        Wgmma<64>::bf16(s, matrix_along_k(tile + step * 32), matrix_along_k(tile + TILE + step * 32), step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    ready[1].wait(0);
    u32 p[4][4];
#pragma unroll
    for (int step = 0; step < 4; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) p[step][i] = pack(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
    }
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
        Wgmma<64>::bf16<1>(d, p[step], matrix_along_n(tile + 2 * TILE + step * 2048, TILE), step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
    float* row = o + (16 * warp_id() + lane() / 4) * 64 + lane() % 4 * 2;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        row[8 * j] = d[4 * j];
        row[8 * j + 1] = d[4 * j + 1];
        row[8 * 64 + 8 * j] = d[4 * j + 2];
        row[8 * 64 + 8 * j + 1] = d[4 * j + 3];
    }
}
