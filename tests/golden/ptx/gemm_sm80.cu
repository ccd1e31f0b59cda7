// gemm_sm80: y = a b with tiles that arrive by cp.async three deep, ldmatrix, and mma.sync.
// axes      a [M, K], b [K, N] row-major bf16, y [M, N] f32; M, N multiples of 64, K of 32
// launch    grid (N / 64, M / 64), 128 threads: four warps of 32 x 32

#include "common/device.cuh"

constexpr int STAGES = 3;
constexpr int K_TILE = 32;

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE void copy_16(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
DEVICE void load_matrices(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Places of 16-byte pieces: rows of 64 bytes for a, of 128 for b, permuted so that neither rows nor columns conflict.
DEVICE u32 place_a(int row, int piece) { return row * 64 + ((piece ^ (row / 2 & 3)) * 16); }
DEVICE u32 place_b(int row, int piece) { return row * 128 + ((piece ^ (row & 7)) * 16); }

extern "C" __global__ void __launch_bounds__(128) gemm(float* y, const u16* a, const u16* b, int N, int K) {
    __shared__ alignas(128) unsigned char tiles[STAGES][64 * 64 + 32 * 128];
    int t = thread(), first_row = block_y() * 64, first_column = block_x() * 64;
    auto load = [&](int k) {
        u32 to = shared_address(tiles[k / K_TILE % STAGES]);
        for (int i = t; i < 256; i += 128) {
            copy_16(to + place_a(i / 4, i % 4), a + (i64)(first_row + i / 4) * K + k + i % 4 * 8);
            copy_16(to + 4096 + place_b(i / 8, i % 8), b + (i64)(k + i / 8) * N + first_column + i % 8 * 8);
        }
    };
    for (int s = 0; s < STAGES - 1; s++) {
        if (s * K_TILE < K) load(s * K_TILE);
        copy_commit();
    }
    float d[2][4][4] = {};
    int row = warp_id() / 2 * 32, column = warp_id() % 2 * 32, l = lane();
    for (int k = 0; k < K; k += K_TILE) {
        copy_wait<STAGES - 2>();
        block_sync();
        u32 from = shared_address(tiles[k / K_TILE % STAGES]);
#pragma unroll
        for (int step = 0; step < 2; step++) {
            u32 left[2][4], right[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                load_matrices(left[i], from + place_a(row + 16 * i + l % 16, 2 * step + l / 16));
                load_matrices_transposed(right[i], from + 4096 + place_b(16 * step + l % 16, column / 8 + 2 * i + l / 16));
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) multiply(d[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
            }
        }
        // The tile that is written next was read in the round before, by all: the barrier above stands between.
        if (k + (STAGES - 1) * K_TILE < K) load(k + (STAGES - 1) * K_TILE);
        copy_commit();
    }
    float* to = y + (i64)(first_row + row + l / 4) * N + first_column + column + l % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float* p = to + (i64)(16 * i) * N + 8 * j;
            p[0] = d[i][j][0];
            p[1] = d[i][j][1];
            p[8 * (i64)N] = d[i][j][2];
            p[8 * (i64)N + 1] = d[i][j][3];
        }
    }
}
