// gemm_sm90: y = a b with roles for warps: one thread loads by tensor maps, two groups of four warps multiply, all through a ring.
// axes      a [M, K], b [N, K] (gemm_nt) or [K, N] (gemm_nn), y [M, N], row-major bf16; tensor maps with swizzle 128
// launch    grid (N / 64, M / 128) rounded up, 384 threads, 92160 bytes of dynamic shared memory
// boxes     a 64 x 128, b 64 x 64, y 64 x 64

#include "common/wgmma.cuh"

constexpr int STAGES = 3;
constexpr int A_BYTES = 128 * 64 * 2;
constexpr int B_BYTES = 64 * 64 * 2;
constexpr int Y_BYTES = 64 * 64 * 2;

DEVICE u32 pack(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// The sums of one group, rounded, to its swizzled tile of 64 rows of 128 bytes.
DEVICE void stage_sums(const float (&d)[32], unsigned char* tile, int warp) {
    int l = lane(), row = 16 * warp + (l / 8 % 2) * 8 + l % 8;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int piece = 2 * j + l / 16;
        u32 to = shared_address(tile) + row * 128 + ((piece ^ (row & 7)) * 16);
        store_matrices(to, pack(d[8 * j], d[8 * j + 1]), pack(d[8 * j + 2], d[8 * j + 3]), pack(d[8 * j + 4], d[8 * j + 5]),
                       pack(d[8 * j + 6], d[8 * j + 7]));
    }
}

template <int B_ALONG_N> DEVICE void gemm(const TensorMap& a, const TensorMap& b, const TensorMap& y, int K) {
    extern __shared__ unsigned char dynamic[];
    __shared__ Barrier full[STAGES], empty[STAGES];
    unsigned char* tiles_a = aligned<1024>(dynamic);           // [STAGES][128][64]
    unsigned char* tiles_b = tiles_a + STAGES * A_BYTES;       // [STAGES][64][64]
    unsigned char* tiles_y = tiles_b + STAGES * B_BYTES;       // [2][64][64]
    int group = warp_id() / 4, first_row = block_y() * 128, first_column = block_x() * 64;
    if (thread() == 0) {
        for (int s = 0; s < STAGES; s++) {
            full[s].init(1);
            empty[s].init(8);
        }
        barrier_init_fence();
    }
    block_sync();
    Ring<STAGES> ring;
    if (group == 0) {
        registers_down<24>();
        if (thread() != 0) return;
        prefetch(a);
        prefetch(b);
        for (int k = 0; k < K; k += 64, ring.next()) {
            Barrier& ready = full[ring.stage];
            empty[ring.stage].wait(ring.parity ^ 1);
            ready.arrive_expect(A_BYTES + B_BYTES);
            load_box(tiles_a + ring.stage * A_BYTES, a, ready, k, first_row);
            unsigned char* to = tiles_b + ring.stage * B_BYTES;
            if (B_ALONG_N) {
                load_box(to, b, ready, first_column, k);
            } else {
                load_box(to, b, ready, k, first_column);
            }
        }
        return;
    }
    registers_up<240>();
    float d[32];
    int consumer = group - 1;
    for (int k = 0; k < K; k += 64, ring.next()) {
        full[ring.stage].wait(ring.parity);
        const unsigned char* rows = tiles_a + ring.stage * A_BYTES + consumer * 64 * 128;
        const unsigned char* columns = tiles_b + ring.stage * B_BYTES;
        pin(d);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++) {
            u64 left = matrix_along_k(rows + step * 32);
            u64 right = B_ALONG_N ? matrix_along_n(columns + step * 2048, B_BYTES) : matrix_along_k(columns + step * 32);
            Wgmma<64>::bf16<0, B_ALONG_N>(d, left, right, k + step > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        pin(d);
        if (lane() == 0) empty[ring.stage].arrive();
    }
    unsigned char* tile = tiles_y + consumer * Y_BYTES;
    stage_sums(d, tile, warp_id() % 4);
    proxy_fence();
    named_sync(1 + consumer, 128);
    if (thread() % 128 == 0) {
        store_box(y, tile, first_column, first_row + consumer * 64);
        store_commit();
        store_wait<0>();
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_nt(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                                                             const __grid_constant__ TensorMap y, int K) {
    gemm<0>(a, b, y, K);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_nn(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                                                             const __grid_constant__ TensorMap y, int K) {
    gemm<1>(a, b, y, K);
}
