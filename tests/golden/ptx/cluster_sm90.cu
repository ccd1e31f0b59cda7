// cluster_sm90: two blocks share the columns of a product by multicast; four blocks sum through one another's shared memory.
// axes      gemm_multicast: a [M, K], b [N, K] bf16 by tensor maps with swizzle 128, y [M, N] f32, M a multiple of 128, N of 64
//           cluster_sum: x [clusters, 4 n] f32; y [clusters, 4]: of each cluster the sum over all four parts, from every block
// launch    gemm_multicast: grid (M / 64, N / 64), clusters of 2, 128 threads, 50176 bytes of dynamic shared memory
//           cluster_sum: grid 4 clusters, clusters of 4, 128 threads
// boxes     a 64 x 64, b 64 x 32: each block loads half of the columns' rows and sends them to both

#include "common/wgmma.cuh"

constexpr int STAGES = 3;
constexpr int TILE = 64 * 64 * 2;

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(128, 1)
    gemm_multicast(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* y, int N, int K) {
    extern __shared__ unsigned char dynamic[];
    __shared__ Barrier full[STAGES], empty[STAGES];
    unsigned char* tiles_a = aligned<1024>(dynamic);        // [STAGES][64][64]
    unsigned char* tiles_b = tiles_a + STAGES * TILE;       // [STAGES][64][64]
    u32 rank = cluster_rank();
    int first_row = block_x() * 64, first_column = block_y() * 64;
    if (thread() == 0) {
        for (int s = 0; s < STAGES; s++) {
            full[s].init(1);
            // Four warps of either block.
            empty[s].init(8);
        }
        barrier_init_fence();
    }
    cluster_sync();
    Ring<STAGES> writing, reading;
    auto load = [&](int k) {
        Barrier& ready = full[writing.stage];
        empty[writing.stage].wait(writing.parity ^ 1);
        ready.arrive_expect(2 * TILE);
        load_box(tiles_a + writing.stage * TILE, a, ready, k, first_row);
        load_box_to(3, tiles_b + writing.stage * TILE + rank * (TILE / 2), b, ready, k, first_column + rank * 32);
        writing.next();
    };
    if (thread() == 0) {
        for (int k = 0; k < K && k < (STAGES - 1) * 64; k += 64) load(k);
    }
    float d[32];
    for (int k = 0; k < K; k += 64, reading.next()) {
        if (thread() == 0 && k + (STAGES - 1) * 64 < K) load(k + (STAGES - 1) * 64);
        __syncwarp();
        full[reading.stage].wait(reading.parity);
        pin(d);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++) {
            u64 left = matrix_along_k(tiles_a + reading.stage * TILE + step * 32);
            u64 right = matrix_along_k(tiles_b + reading.stage * TILE + step * 32);
            Wgmma<64>::bf16(d, left, right, k + step > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        pin(d);
        if (lane() < 2) empty[reading.stage].arrive_at(lane());
    }
    float* row = y + (i64)(first_row + 16 * warp_id() + lane() / 4) * N + first_column + lane() % 4 * 2;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        row[8 * j] = d[4 * j];
        row[8 * j + 1] = d[4 * j + 1];
        row[8 * (i64)N + 8 * j] = d[4 * j + 2];
        row[8 * (i64)N + 8 * j + 1] = d[4 * j + 3];
    }
    // The other block may still send arrivals here.
    cluster_sync();
}

extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(128) cluster_sum(float* y, const float* x, int n) {
    __shared__ float partial[4], parts[4];
    u32 rank = cluster_rank();
    const float* slice = x + (i64)block_x() * n;
    float sum = 0;
    for (int i = thread(); i < n; i += 128) sum += slice[i];
    for (int by = WARP / 2; by > 0; by /= 2) sum += lane_xor(sum, by);
    if (lane() == 0) partial[warp_id()] = sum;
    block_sync();
    // No block may be written to before it runs.
    cluster_sync();
    if (thread() < cluster_size()) {
        store_to(thread(), &parts[rank], partial[0] + partial[1] + partial[2] + partial[3]);
    }
    cluster_sync();
    if (thread() == 0) {
        float own = parts[0] + parts[1] + parts[2] + parts[3];
        // What the next block has must be the same.
        float other = load_from((rank + 1) % 4, &parts[0]) + load_from((rank + 1) % 4, &parts[1]) +
                      load_from((rank + 1) % 4, &parts[2]) + load_from((rank + 1) % 4, &parts[3]);
        y[block_x()] = own == other ? own : -1;
    }
    cluster_sync();
}
