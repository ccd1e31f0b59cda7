// bulk_sm90: runs of bytes and boxes of tensors in and out of shared memory without registers.
// axes      double_and_add: x, y, sum [n] f32, n a multiple of 256: y = 2 x, sum += 2 x
//           move_boxes: from [D, H, W], to [H2, W2] bf16 by tensor maps without swizzle, boxes 32 x 8 (x 2): adds both planes of a
//           box at (x, y, z) to the box at (u, v)
// launch    double_and_add: grid n / 256, 64 threads; move_boxes: one block, 32 threads

#include "common/sm90.cuh"

extern "C" __global__ void __launch_bounds__(64) double_and_add(float* y, float* sum, const float* x) {
    __shared__ alignas(16) float tile[256];
    __shared__ Barrier ready;
    i64 first = (i64)block_x() * 256;
    if (thread() == 0) {
        ready.init(1);
        barrier_init_fence();
    }
    block_sync();
    if (thread() == 0) {
        ready.arrive_expect(1024);
        load_bytes(tile, x + first, 512, ready);
        load_bytes(tile + 128, x + first + 128, 512, ready);
    }
    ready.wait(0);
    for (int i = thread(); i < 256; i += 64) tile[i] *= 2;
    proxy_fence();
    block_sync();
    if (thread() == 0) {
        store_bytes(y + first, tile, 1024);
        add_floats(sum + first, tile, 1024);
        store_commit();
        store_wait<0>();
    }
}

extern "C" __global__ void __launch_bounds__(32) move_boxes(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to,
                                                            int x, int y, int z, int u, int v) {
    constexpr int PLANE = 32 * 8 * 2;
    __shared__ alignas(128) unsigned char tile[2 * PLANE];
    __shared__ Barrier ready;
    bool is_chosen = elected();
    if (is_chosen) {
        ready.init(1);
        barrier_init_fence();
        ready.arrive_expect(2 * PLANE);
        load_box(tile, from, ready, x, y, z);
    }
    __syncwarp();
    ready.wait(0);
    if (is_chosen) {
        add_box(to, tile, u, v);
        add_box(to, tile + PLANE, u, v);
        store_commit();
        store_wait_read<0>();
        store_wait<0>();
    }
}
