// anchor: what Hopper adds, one unit a kernel, with raw shared memory on one side, so that layouts are compared and not only results.
// axes      as the line above each kernel says; words are 32 bits of anything
// launch    one block; dynamic shared memory where a kernel has `dynamic`, 1024 bytes more than it uses

#include "common/wgmma.cuh"

extern __shared__ unsigned char dynamic[];

// The filling of shared memory that no copy touches.
constexpr u32 UNTOUCHED = 0xeeeeeeeeu;

DEVICE void fill(u32* tile, int words) {
    for (int i = thread(); i < words; i += 128) tile[i] = UNTOUCHED;
    proxy_fence();
}

// A box as it lies in shared memory: raw [words], of which the copy brings `bytes`.
#define BOX_IN(name, call, ...) \
    extern "C" __global__ void __launch_bounds__(128) name(u32* raw, const __grid_constant__ TensorMap map, int words, int bytes, __VA_ARGS__) { \
        __shared__ Barrier ready; \
        u32* tile = (u32*)aligned<1024>(dynamic); \
        fill(tile, words); \
        if (thread() == 0) { \
            ready.init(1); \
            barrier_init_fence(); \
        } \
        block_sync(); \
        if (thread() == 0) { \
            ready.arrive_expect(bytes); \
            call; \
        } \
        ready.wait(0); \
        for (int i = thread(); i < words; i += 128) raw[i] = tile[i]; \
    }
#define LOAD(n, at, ...) \
    asm volatile("cp.async.bulk.tensor." #n "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" at "}], [%2];" ::"r"( \
                     shared_address(tile)), "l"(&map), "r"(ready.address()), __VA_ARGS__ : "memory")
BOX_IN(box_in_1, LOAD(1, "%3", "r"(x)), int x)
BOX_IN(box_in_2, load_box(tile, map, ready, x, y), int x, int y)
BOX_IN(box_in_3, load_box(tile, map, ready, x, y, z), int x, int y, int z)
BOX_IN(box_in_5, LOAD(5, "%3, %4, %5, %6, %7", "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)), int x, int y, int z, int u, int v)

// Raw shared memory to a box, written or added.
#define BOX_OUT(name, call, ...) \
    extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ TensorMap map, const u32* raw, int words, __VA_ARGS__) { \
        u32* tile = (u32*)aligned<1024>(dynamic); \
        for (int i = thread(); i < words; i += 128) tile[i] = raw[i]; \
        proxy_fence(); \
        block_sync(); \
        if (thread() == 0) { \
            call; \
            store_commit(); \
            store_wait<0>(); \
        } \
    }
#define STORE(n, kind, at, ...) \
    asm volatile(kind " [%0, {" at "}], [%1];" ::"l"(&map), "r"(shared_address(tile)), __VA_ARGS__ : "memory")
#define STORED(n) "cp.async.bulk.tensor." #n "d.global.shared::cta.tile.bulk_group"
#define REDUCED(op) "cp.reduce.async.bulk.tensor.2d.global.shared::cta." op ".tile.bulk_group"
BOX_OUT(box_out_2, store_box(map, tile, x, y), int x, int y)
BOX_OUT(box_out_3, STORE(3, STORED(3), "%2, %3, %4", "r"(x), "r"(y), "r"(z)), int x, int y, int z)
BOX_OUT(box_add, add_box(map, tile, x, y), int x, int y)
BOX_OUT(box_min, STORE(2, REDUCED("min"), "%2, %3", "r"(x), "r"(y)), int x, int y)
BOX_OUT(box_xor, STORE(2, REDUCED("xor"), "%2, %3", "r"(x), "r"(y)), int x, int y)

// Matrices into shared memory: one block of 128 threads, x [128, 4]; raw [1024]: what four warps stored, plain and transposed.
extern "C" __global__ void __launch_bounds__(128) store_rows(u32* raw, const u32* x) {
    u32* tile = (u32*)aligned<1024>(dynamic);
    for (int i = thread(); i < 1024; i += 128) tile[i] = UNTOUCHED;
    block_sync();
    u32 t = thread(), at = shared_address(tile + warp_id() * 128 + (lane() * 7 + 2) % 32 * 4);
    store_matrices(at, x[4 * t], x[4 * t + 1], x[4 * t + 2], x[4 * t + 3]);
    store_matrices_transposed(at + 2048, x[4 * t], x[4 * t + 1], x[4 * t + 2], x[4 * t + 3]);
    block_sync();
    for (int i = thread(); i < 1024; i += 128) raw[i] = tile[i];
}

// Products of four warps: d [128, N / 2] f32 by register, c likewise, from raw operands a [2048] words and b [N, 32] words in shared memory.
// form_a, form_b: the descriptors but for the address.
#define PRODUCT(name, type, N, A_ALONG_M, B_ALONG_N) \
    extern "C" __global__ void __launch_bounds__(128) name(float* d, const float* c, const u32* a, const u32* b, u64 form_a, u64 form_b) { \
        u32* left = (u32*)aligned<1024>(dynamic); \
        u32* right = left + 2048; \
        for (int i = thread(); i < 2048; i += 128) left[i] = a[i]; \
        for (int i = thread(); i < N * 32; i += 128) right[i] = b[i]; \
        proxy_fence(); \
        block_sync(); \
        float s[N / 2]; \
        _Pragma("unroll") for (int i = 0; i < N / 2; i++) s[i] = c[thread() * (N / 2) + i]; \
        pin(s); \
        wgmma_fence(); \
        Wgmma<N>::template type<A_ALONG_M, B_ALONG_N>(s, matrix(left, 0, 0, Swizzle::NONE) | form_a, matrix(right, 0, 0, Swizzle::NONE) | form_b, true); \
        wgmma_commit(); \
        wgmma_wait<0>(); \
        pin(s); \
        _Pragma("unroll") for (int i = 0; i < N / 2; i++) d[thread() * (N / 2) + i] = s[i]; \
    }
PRODUCT(wgmma_bf16_8, bf16, 8, 0, 0)
PRODUCT(wgmma_bf16_24, bf16, 24, 0, 0)
PRODUCT(wgmma_bf16_64, bf16, 64, 0, 0)
PRODUCT(wgmma_bf16_64_mk, bf16, 64, 1, 0)
PRODUCT(wgmma_bf16_64_kn, bf16, 64, 0, 1)
PRODUCT(wgmma_bf16_64_mn, bf16, 64, 1, 1)
PRODUCT(wgmma_bf16_128, bf16, 128, 0, 0)
PRODUCT(wgmma_bf16_256, bf16, 256, 0, 0)
PRODUCT(wgmma_f16_16, f16, 16, 0, 0)
PRODUCT(wgmma_f16_96, f16, 96, 0, 0)
PRODUCT(wgmma_f16_192, f16, 192, 0, 0)

// The same with A in registers, four words a thread.
extern "C" __global__ void __launch_bounds__(128) wgmma_registers(float* d, const float* c, const u32* a, const u32* b, u64, u64 form_b) {
    u32* right = (u32*)aligned<1024>(dynamic);
    for (int i = thread(); i < 32 * 32; i += 128) right[i] = b[i];
    proxy_fence();
    block_sync();
    float s[16];
    u32 left[4];
#pragma unroll
    for (int i = 0; i < 16; i++) s[i] = c[thread() * 16 + i];
#pragma unroll
    for (int i = 0; i < 4; i++) left[i] = a[thread() * 4 + i];
    pin(s);
    wgmma_fence();
    Wgmma<32>::f16<0>(s, left, matrix(right, 0, 0, Swizzle::NONE) | form_b, true);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
#pragma unroll
    for (int i = 0; i < 16; i++) d[thread() * 16 + i] = s[i];
}

// Pairs of halves and bfloats that sm_80 does not have, two words in, eight out a thread.
extern "C" __global__ void bfloats(u32* y, const u32* x, int n) {
    int i = block_x() * 128 + thread();
    if (i >= n) return;
    u32 a = x[2 * i], b = x[2 * i + 1], *o = y + (i64)i * 8;
#define BINARY(k, name) asm(name " %0, %1, %2;" : "=r"(o[k]) : "r"(a), "r"(b))
    BINARY(0, "add.rn.bf16x2");
    BINARY(1, "mul.rn.bf16x2");
    BINARY(2, "sub.rn.bf16x2");
    asm("fma.rn.bf16x2 %0, %1, %2, %2;" : "=r"(o[3]) : "r"(a), "r"(b));
    u16 h;
    asm("{ .reg .f32 r; cvt.f32.bf16 r, %1; mov.b32 %0, r; }" : "=r"(o[4]) : "h"((u16)a));
    asm("cvt.rn.bf16.s32 %0, %1;" : "=h"(h) : "r"(a));
    o[5] = h;
    asm("{ .reg .b16 p; mov.b32 {p, _}, %1; cvt.rni.s32.bf16 %0, p; }" : "=r"(o[6]) : "r"(a));
    asm("redux.sync.add.s32 %0, %1, 0xffffffff;" : "=r"(o[7]) : "r"(a));
}
