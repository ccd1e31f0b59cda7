// roles_sm90: four warps write what four others read, in turns by named barriers, with registers moved from the one to the other.
// axes      x, y [blocks, rounds, 128] f32: y = x read mirrored, times two
// launch    one block for each of `blocks`, 256 threads

#include "common/sm90.cuh"

extern "C" __global__ void __launch_bounds__(256, 1) mirror(float* y, const float* x, int rounds) {
    __shared__ float buffer[2][128];
    constexpr int FULL = 1, EMPTY = 3, ALL = 256;
    int t = thread() % 128;
    const float* from = x + (i64)block_x() * rounds * 128;
    float* to = y + (i64)block_x() * rounds * 128;
    if (warp_id() < 4) {
        registers_down<40>();
        for (int i = 0; i < rounds; i++) {
            int side = i % 2;
            if (i >= 2) named_sync(EMPTY + side, ALL);
            buffer[side][t] = from[(i64)i * 128 + t];
            named_arrive(FULL + side, ALL);
        }
    } else {
        registers_up<232>();
        for (int i = 0; i < rounds; i++) {
            int side = i % 2;
            named_sync(FULL + side, ALL);
            to[(i64)i * 128 + t] = 2 * buffer[side][127 - t];
            if (i + 2 < rounds) named_arrive(EMPTY + side, ALL);
        }
    }
}
