// features: small kernels that make clang use as many encodings as possible. Compiled by make.sh.
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))

typedef _Float16 half2 __attribute__((ext_vector_type(2)));
typedef float float2 __attribute__((ext_vector_type(2)));
typedef unsigned long long u64;

__device__ int thread() { return __builtin_amdgcn_workitem_id_x(); }

// Scalar and vector integers: division, 64 bits, bit counts, bytes, carries.
extern "C" __global__ void integers(u64* y, const unsigned* x, u64 a, u64 b, unsigned d, signed char c) {
    unsigned i = thread() + __builtin_amdgcn_workgroup_id_x() * __builtin_amdgcn_workgroup_size_x(), v = x[i];
    u64 s = a * b + (a >> (d & 63)) - __builtin_popcountll(b) + __builtin_clzll(a | 1) + (a / d);
    y[4 * i] = s + (u64)v * d + v / d + v % 10;
    y[4 * i + 1] = (u64)(v >> 8 & 255) + (v << 3 | v >> 29) + __builtin_bitreverse32(v) + __builtin_popcount(v);
    y[4 * i + 2] = __builtin_amdgcn_perm(v, d, 0x03020100) ^ __builtin_amdgcn_alignbit(v, d, 7) ^ (signed char)v * c;
    y[4 * i + 3] = __builtin_ctz(v | 1) + __builtin_amdgcn_sad_u8(v, d, 1) + (v > d ? a : b);
}

// Floats of every width, packed ones, conversions, comparisons, special functions.
extern "C" __global__ void floats(double* y, const float* x, const double* z, const half2* h, float s) {
    int i = thread();
    float v = x[i], w = __builtin_fabsf(x[i + 1]);
    half2 p = h[i] * h[i + 1] + h[i + 2];
    float2 q = {v, w};
    q = __builtin_elementwise_fma(q, (float2){s, s}, (float2){-1.0f, 2.0f}) * q + q;
    double u = z[i] / z[i + 1] + __builtin_sqrt(z[i]) + __builtin_floor(z[i]);
    float e = __builtin_amdgcn_exp2f(v) + __builtin_logf(w) + __builtin_amdgcn_rcpf(v) + v / w + __builtin_sqrtf(w);
    y[i] = u + (double)e + (double)(float)p.x + (double)p.y + q.x + q.y + __builtin_rintf(v) + (int)v + (unsigned)w;
    y[i + 64] = (v < w && !(w != w)) ? __builtin_fmin(u, 0.5) : __builtin_ldexp(u, i) * 0.15915494309189532;
    y[i + 128] = (_Float16)v > (_Float16)s ? (double)(_Float16)w : (double)(unsigned char)i;
    y[i + 192] = __builtin_amdgcn_fmed3f(v, w, s) + __builtin_amdgcn_fractf(v) + __builtin_fminf(__builtin_fmaxf(v, 0.0f), 1.0f);
}

// Lanes: permutations through LDS and through DPP, votes, broadcasts.
extern "C" __global__ void lanes(int* y, const int* x) {
    int i = thread(), v = x[i];
    int lane = __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0));
    v += __builtin_amdgcn_ds_bpermute((lane ^ 1) << 2, v);
    v += __builtin_amdgcn_ds_swizzle(v, 0x041f) + __builtin_amdgcn_ds_swizzle(v, 0x80b1);
    v += __builtin_amdgcn_update_dpp(0, v, 0x111, 0xf, 0xf, false);
    v += __builtin_amdgcn_mov_dpp(v, 0x1b, 0xf, 0xf, true) + __builtin_amdgcn_mov_dpp(v, 0x142, 0xa, 0xf, false);
    v += __builtin_amdgcn_readlane(v, 5) + __builtin_amdgcn_readfirstlane(v);
    y[i] = v + (int)__builtin_popcountll(__builtin_amdgcn_ballot_w64(v > 3));
}

// Shared memory of every width, atomics of both spaces, a barrier, memory that the launch asks for.
extern __shared__ float dynamic[];
extern "C" __global__ void memory(float* y, unsigned* n, u64* m, double* d, const unsigned char* b) {
    __shared__ __attribute__((aligned(16))) float tile[16][68];
    __shared__ unsigned counts[64];
    int i = thread();
    typedef float float4 __attribute__((ext_vector_type(4)));
    *(float4*)&tile[i & 15][(i >> 4) * 4] = *(const float4*)(y + 4 * i);
    counts[i] = 0;
    dynamic[i] = (float)b[i] + (float)((const signed char*)b)[i + 64] + (float)((const unsigned short*)b)[i];
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
    __hip_atomic_fetch_add(&counts[i & 7], 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
    unsigned before = __hip_atomic_fetch_max(n + (i & 3), counts[i], __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    __hip_atomic_fetch_add(m, (u64)before, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    __hip_atomic_compare_exchange_strong(n + 8, &before, 7u, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
    __builtin_amdgcn_global_atomic_fadd_f64((__attribute__((address_space(1))) double*)d, 1.0);
    y[i] = tile[i >> 2][i & 3] + dynamic[i ^ 1] + (float)before;
    ((unsigned short*)y)[1000 + i] = (unsigned short)i;
    ((unsigned char*)y)[4000 + i] = (unsigned char)i;
}

// A stack, calls through a register, a table of pointers that the loader fills in, a clock, a trap.
__device__ int one(int v) { return v + 1; }
__device__ int two(int v) { return v * v; }
__constant__ int numbers[4] = {3, 5, 7, 11};
__device__ const int* places[2] = {&numbers[1], &numbers[3]};
__device__ __attribute__((noinline)) int called(int* stack, int n) {
    for (int k = 0; k < n; k++) stack[k & 15] += k;
    return stack[n & 15];
}
extern "C" __global__ void stack(int* y, const int* x, int n, int choose) {
    int local[16];
    for (int k = 0; k < 16; k++) local[k] = x[k];
    int (*function)(int) = choose ? one : two;
    y[thread()] = called(local, n) + local[thread() & 15] + function(n) + *places[choose & 1] + (int)__builtin_readcyclecounter();
    if (n < 0) __builtin_trap();
}

// Every kind of matrix instruction that both targets have a builtin for.
typedef float f4 __attribute__((ext_vector_type(4)));
typedef float f16 __attribute__((ext_vector_type(16)));
typedef int i4 __attribute__((ext_vector_type(4)));
typedef double d4 __attribute__((ext_vector_type(4)));
typedef _Float16 h4 __attribute__((ext_vector_type(4)));
typedef short s4 __attribute__((ext_vector_type(4)));
extern "C" __global__ void matrices(f16* y, f4* z, i4* w, d4* e, const float* a, const h4* h, const s4* b, const double* d) {
    int i = thread();
    y[i] = __builtin_amdgcn_mfma_f32_32x32x2f32(a[i], a[i + 64], y[i], 0, 0, 0);
    y[i] = __builtin_amdgcn_mfma_f32_32x32x8f16(h[i], h[i + 64], y[i], 0, 0, 0);
    y[i] = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(b[i], b[i + 64], y[i], 0, 0, 0);
    z[i] = __builtin_amdgcn_mfma_f32_16x16x4f32(a[i], a[i + 64], z[i], 0, 0, 0);
    z[i] = __builtin_amdgcn_mfma_f32_16x16x16f16(h[i], h[i + 64], z[i], 0, 0, 0);
    z[i] = __builtin_amdgcn_mfma_f32_4x4x4bf16_1k(b[i], b[i + 64], z[i], 4, 3, 2);
    e[i] = __builtin_amdgcn_mfma_f64_16x16x4f64(d[i], d[i + 64], e[i], 0, 0, 0);
    w[i] = __builtin_amdgcn_mfma_i32_4x4x4i8(i, i + 1, w[i], 0, 0, 0);
}
