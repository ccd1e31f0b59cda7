// run: small kernels that the emulator's tests execute, and some that are wrong on purpose. Compiled by make.sh.
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define KERNEL(threads) extern "C" __global__ __attribute__((amdgpu_flat_work_group_size(1, threads))) void

typedef _Float16 half;
typedef __bf16 bfloat;
typedef unsigned u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef float float4 __attribute__((ext_vector_type(4)));
typedef float float16 __attribute__((ext_vector_type(16)));
typedef short short4 __attribute__((ext_vector_type(4)));
typedef half half4 __attribute__((ext_vector_type(4)));

__device__ u32 thread() { return __builtin_amdgcn_workitem_id_x(); }
__device__ u32 block() { return __builtin_amdgcn_workgroup_id_x(); }
__device__ u32 threads() { return __builtin_amdgcn_workgroup_size_x(); }
__device__ u32 lane() { return __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)); }
__device__ float from_lane(float v, u32 lane) {
    return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute(lane << 2, __builtin_bit_cast(int, v)));
}
__device__ void block_sync() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
__device__ float wave_sum(float v) {
    for (u32 m = 32; m; m >>= 1) v += from_lane(v, lane() ^ m);
    return v;
}

// y[row] = sum of row, 256 threads a row.
KERNEL(256) row_sum(float* y, const float* x, int n) {
    __shared__ float part[4];
    float sum = 0;
    for (int i = thread(); i < n; i += threads()) sum += x[block() * (long)n + i];
    sum = wave_sum(sum);
    if (lane() == 0) part[thread() / 64] = sum;
    block_sync();
    if (thread() == 0) y[block()] = part[0] + part[1] + part[2] + part[3];
}

// y = x z + x in packs of four.
KERNEL(256) axpy4(float* y, const float* x, const float* z, int n) {
    int i = block() * threads() + thread();
    if (4 * i < n) ((float4*)y)[i] = ((const float4*)x)[i] * ((const float4*)z)[i] + ((const float4*)x)[i];
}

// Roundings and back.
KERNEL(256) narrow(bfloat* y, half* z, const float* x, int n) {
    int i = block() * threads() + thread();
    if (i < n) y[i] = (bfloat)x[i], z[i] = (half)x[i];
}
KERNEL(256) widen(float* y, const bfloat* x, const half* z, int n) {
    int i = block() * threads() + thread();
    if (i < n) y[i] = (float)x[i] + (float)z[i];
}

// Half precision, plain and fused.
KERNEL(256) halves(half* y, const half* x, const half* z, int n) {
    int i = block() * threads() + thread();
    if (i < n) {
        half a = x[i], b = z[i];
        y[i] = a * b + a / b - (a > b ? a : b);
        y[n + i] = __builtin_fmaf16(a, b, b);
    }
}

// Counts by the low four bits, then sums and maxima over blocks.
KERNEL(256) histogram(int* count, float* sum, const int* x, int n) {
    __shared__ int own[16];
    if (thread() < 16) own[thread()] = 0;
    block_sync();
    int i = block() * threads() + thread();
    if (i < n) __atomic_fetch_add(&own[x[i] & 15], 1, __ATOMIC_RELAXED);
    block_sync();
    if (thread() < 16) {
        int v = own[thread()];
        __hip_atomic_fetch_add(count + thread(), v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
        __hip_atomic_fetch_max(count + 16 + thread(), v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
        __hip_atomic_fetch_add(sum + thread(), (float)v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    }
}

// Quotients and remainders of 32 and 64 bits.
KERNEL(256) divide(int* q, u32* r, u64* l, const int* a, const int* b, int n) {
    int i = block() * threads() + thread();
    if (i < n) {
        q[i] = a[i] / b[i];
        r[i] = (u32)a[i] % (u32)b[i];
        l[i] = (u64)(u32)a[i] * 0x123456789ull / (u64)(u32)b[i];
    }
}

// Exact functions first (n each): 1 / x, sqrt, x / z, floor, round; then exp, log, sin of turns.
KERNEL(256) functions(float* y, const float* x, const float* z, int n) {
    int i = block() * threads() + thread();
    if (i < n) {
        float v = x[i];
        y[i] = 1.0f / v;
        y[n + i] = __builtin_sqrtf(v);
        y[2 * n + i] = v / z[i];
        y[3 * n + i] = __builtin_floorf(v);
        y[4 * n + i] = __builtin_roundf(v);
        y[5 * n + i] = __builtin_expf(v);
        y[6 * n + i] = __builtin_logf(v);
        y[7 * n + i] = __builtin_amdgcn_sinf(__builtin_amdgcn_fractf(v));
    }
}

KERNEL(256) doubles(double* y, const double* x, int n) {
    int i = block() * threads() + thread();
    if (i < n) {
        double v = x[i];
        y[i] = v * v + 3;
        y[n + i] = 1 / v;
        y[2 * n + i] = __builtin_sqrt(v);
        y[3 * n + i] = (double)(int)v + (double)(float)v;
    }
}

// An array in private memory, indexed by data.
KERNEL(64) private_array(int* y, const int* x, int n) {
    int a[32], s = 0;
    for (int i = 0; i < 32; i++) a[i] = x[i] * thread();
    for (int i = 0; i < n; i++) s += a[x[i] & 31], a[s >> 3 & 31] ^= i;
    y[thread()] = s;
}

// Calls, and a stack that grows with the data.
__device__ __attribute__((noinline)) int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
KERNEL(64) recursive(int* y, const int* x) { y[thread()] = fibonacci(x[thread()]); }

// Where a thread is: blocks and threads along three axes.
KERNEL(256) places(u32* y) {
    u32 x = thread(), row = __builtin_amdgcn_workitem_id_y(), page = __builtin_amdgcn_workitem_id_z();
    u32 wide = threads(), high = __builtin_amdgcn_workgroup_size_y(), deep = __builtin_amdgcn_workgroup_size_z();
    u32 bx = block(), by = __builtin_amdgcn_workgroup_id_y(), bz = __builtin_amdgcn_workgroup_id_z();
    u32 blocks_x = __builtin_amdgcn_grid_size_x() / wide, blocks_y = __builtin_amdgcn_grid_size_y() / high;
    u32 at = ((bz * blocks_y + by) * blocks_x + bx) * wide * high * deep + (page * high + row) * wide + x;
    y[at] = x | row << 4 | page << 8 | bx << 12 | by << 16 | bz << 20;
}

// Lanes by data-parallel primitives, by permutation, by reading single ones.
KERNEL(64) lanes(int* y, const int* x) {
    int v = x[thread()];
    y[thread()] = __builtin_amdgcn_update_dpp(-1, v, 0x111, 15, 15, false);
    y[64 + thread()] = __builtin_amdgcn_update_dpp(0, v, 0x141, 15, 15, true);
    y[128 + thread()] = __builtin_amdgcn_ds_swizzle(v, 0x041f);
    y[192 + thread()] = __builtin_amdgcn_ds_permute((63 - thread()) << 2, v);
    y[256 + thread()] = __builtin_amdgcn_readlane(v, 17) + __builtin_amdgcn_readfirstlane(v);
    y[320 + thread()] = __builtin_amdgcn_mov_dpp(v, 0x1b, 15, 15, true);
}

// Bytes and halves of shared memory that the launch asks for, through flat addresses too.
extern __shared__ unsigned char dynamic[];
__device__ __attribute__((noinline)) u32 through_flat(const u32* at) { return *(volatile const u32*)at; }
KERNEL(128) bytes(u32* y, const u32* x) {
    u16* halves = (u16*)(dynamic + 128);
    dynamic[thread()] = x[thread()] >> 8, halves[thread()] = x[thread()] >> 16;
    block_sync();
    u32 other = 127 - thread();
    y[thread()] = dynamic[other] | (u32)halves[other] << 8;
    y[128 + thread()] = through_flat((const u32*)dynamic + thread() / 4) ^ through_flat(x + thread());
}

// c = a b^T, a wave 32 by 32; blocks of 64 by 64.
KERNEL(256) matmul32(const u16* a, const u16* b, float* c, int m, int n, int k) {
    __shared__ __attribute__((aligned(16))) u16 sa[64][36], sb[64][36];
    int t = thread(), w = t >> 6, l = t & 63, row = __builtin_amdgcn_workgroup_id_y() * 64, column = block() * 64;
    int wm = (w >> 1) * 32, wn = (w & 1) * 32;
    float16 sum = {};
    for (int k0 = 0; k0 < k; k0 += 32) {
        for (int i = t; i < 64 * 8; i += 256) {
            int r = i >> 3, e = (i & 7) * 4;
            *(short4*)&sa[r][e] = *(const short4*)(a + (long)(row + r) * k + k0 + e);
            *(short4*)&sb[r][e] = *(const short4*)(b + (long)(column + r) * k + k0 + e);
        }
        block_sync();
        for (int kk = 0; kk < 32; kk += 8) {
            short4 x = *(short4*)&sa[wm + (l & 31)][kk + (l >> 5) * 4], y = *(short4*)&sb[wn + (l & 31)][kk + (l >> 5) * 4];
            sum = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(x, y, sum, 0, 0, 0);
        }
        block_sync();
    }
    for (int i = 0; i < 16; i++) {
        int r = (i >> 2) * 8 + (l >> 5) * 4 + (i & 3);
        c[(long)(row + wm + r) * n + column + wn + (l & 31)] = sum[i];
    }
}

// One wave: c = a b^T in bfloat16, d = e f^T in half precision, g = h i^T in single precision, 16 by 16.
KERNEL(64) matmul16(float* c, float* d, float* g, const u16* a, const u16* b, const half* e, const half* f, const float* h,
                    const float* i, int k) {
    int l = lane(), at = (l & 15) * k + (l >> 4) * 4;
    float4 sum = {}, of_halves = {}, of_singles = {};
    for (int k0 = 0; k0 < k; k0 += 16) {
        sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(*(const short4*)(a + at + k0), *(const short4*)(b + at + k0), sum, 0, 0, 0);
        of_halves = __builtin_amdgcn_mfma_f32_16x16x16f16(*(const half4*)(e + at + k0), *(const half4*)(f + at + k0), of_halves, 0, 0, 0);
        for (int kk = k0; kk < k0 + 16; kk += 4) {
            int own = (l & 15) * k + (l >> 4) + kk;
            of_singles = __builtin_amdgcn_mfma_f32_16x16x4f32(h[own], i[own], of_singles, 0, 0, 0);
        }
    }
    for (int r = 0; r < 4; r++) {
        int to = ((l >> 4) * 4 + r) * 16 + (l & 15);
        c[to] = sum[r], d[to] = of_halves[r], g[to] = of_singles[r];
    }
}

// Wrong on purpose: no barrier between a write and its read by another wave.
KERNEL(128) no_barrier(float* y, const float* x) {
    __shared__ float s[128];
    s[thread()] = x[thread()];
    __builtin_amdgcn_wave_barrier();
    y[thread()] = ((volatile float*)s)[127 - thread()];
}

// Wrong on purpose: the last thread reads one element beyond.
KERNEL(64) one_beyond(float* y, const float* x, int n) {
    if ((int)thread() < n) y[thread()] = x[thread() + 1];
}

// Wrong on purpose: a sum over 32 lanes, as if a wave ended there.
KERNEL(64) half_wave(float* y, const float* x) {
    float sum = x[thread()];
    for (u32 m = 16; m; m >>= 1) sum += from_lane(sum, lane() % 32 ^ m);
    if (thread() % 32 == 0) y[thread() / 32] = sum;
}

// Wrong on purpose: every fifth element is forgotten.
KERNEL(64) unwritten(float* y) {
    if (thread() % 5) y[thread()] = 1.0f;
}

// Wrong on purpose: waits for what never comes.
KERNEL(64) endless(volatile int* y) {
    while (!*y) __builtin_amdgcn_s_sleep(1);
}
