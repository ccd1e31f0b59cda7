// basic: what nearly every kernel does. Compiled for compute_80.

// y = a x + b, grid-stride; the last block is not full.
extern "C" __global__ void axpb(float* y, const float* x, float a, float b, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = a * x[i] + b;
}

// Sum of a block: shuffles inside warps, shared memory between them.
extern "C" __global__ void block_sum(float* y, const float* x, int n) {
    __shared__ float part[32];
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
    for (int m = 16; m; m /= 2) v += __shfl_xor_sync(~0u, v, m);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
#ifndef NO_BARRIER
    __syncthreads();
#endif
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
        for (int m = 16; m; m /= 2) v += __shfl_xor_sync(~0u, v, m);
        if (threadIdx.x == 0) y[blockIdx.x] = v;
    }
}

// Loops of different length in each lane, and a branch inside.
extern "C" __global__ void collatz(unsigned* steps, const unsigned* start, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned x = start[i], count = 0;
    while (x != 1) {
        if (x & 1)
            x = 3 * x + 1;
        else
            x /= 2;
        ++count;
    }
    steps[i] = count;
}

// A tile through shared memory, 16-bit numbers, two dimensions.
extern "C" __global__ void transpose(unsigned short* y, const unsigned short* x, int rows, int cols) {
    __shared__ unsigned short tile[32][33];
    int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (r + k < rows && c < cols) tile[threadIdx.y + k][threadIdx.x] = x[(r + k) * cols + c];
    __syncthreads();
    int c2 = blockIdx.y * 32 + threadIdx.x, r2 = blockIdx.x * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (r2 + k < cols && c2 < rows) y[(r2 + k) * rows + c2] = tile[threadIdx.x][threadIdx.y + k];
}

// Integers of every width, bits, 64-bit division, a table in constant memory, a local array.
__constant__ int table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
extern "C" __global__ void integers(long long* y, const long long* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long a = x[2 * i], b = x[2 * i + 1];
    int s = (int)a, t = (int)b;
    long long v[8];
    v[0] = b ? a / b : 0;
    v[1] = b ? a % b : 0;
    v[2] = __mulhi(s, t) + __popc(s) + __clz(t) + __brev(s) + __ffs(t);
    v[3] = __popcll(a) + __clzll(b) + (long long)__umul64hi(a, b);
    v[4] = (short)s * (short)t + (signed char)s + (unsigned char)t;
    v[5] = __funnelshift_l(s, t, t & 31) + __byte_perm(s, t, 0x5140) + __sad(s, t, 7u);
    v[6] = (a >> (b & 63)) + (a << (s & 63)) + ((unsigned long long)a >> (t & 63)) + min(a, b) + max(s, t);
    v[7] = table[s & 7] + (s / 7) * 3 + (t % 13) + (unsigned)s / 10u + __dp4a(s, t, 5);
    long long sum = 0;
    for (int k = 0; k < 8; ++k) sum = sum * 31 + v[(k + s) & 7];
    y[i] = sum;
}

// Doubles, and floats with all roundings.
extern "C" __global__ void roundings(float* y, double* z, const float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = x[2 * i], b = x[2 * i + 1];
    float* o = y + 16 * i;
    o[0] = __fadd_rd(a, b), o[1] = __fadd_ru(a, b), o[2] = __fadd_rz(a, b), o[3] = __fmul_ru(a, b);
    o[4] = __fmaf_rd(a, b, a), o[5] = __fdiv_rn(a, b), o[6] = __fsqrt_rn(fabsf(a)), o[7] = __frcp_rn(b);
    o[8] = rintf(a), o[9] = truncf(b), o[10] = floorf(a), o[11] = fminf(a, b), o[12] = copysignf(a, b);
    o[13] = (float)(int)a, o[14] = (float)(unsigned long long)fabsf(b * 1e9f), o[15] = __saturatef(a);
    z[2 * i] = (double)a / b + sqrt(fabs((double)b)), z[2 * i + 1] = fma((double)a, (double)b, 1e-3) - (double)(long long)a;
}

// Counts of values, by atomics on shared and global memory.
extern "C" __global__ void histogram(unsigned* counts, const unsigned char* x, int n) {
    __shared__ unsigned bins[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&bins[x[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&counts[i], bins[i]);
}

// Votes, matches, shuffles of parts of a warp.
extern "C" __global__ void lanes(unsigned* y, const unsigned* x) {
    unsigned t = threadIdx.x, v = x[t], *o = y + 8 * t;
    o[0] = __ballot_sync(~0u, v & 1);
    o[1] = __any_sync(~0u, v == 7) * 2 + __all_sync(~0u, v < 1000);
    o[2] = __shfl_up_sync(~0u, v, 3, 8);
    o[3] = __shfl_down_sync(~0u, v, 1, 16);
    o[4] = __shfl_sync(~0u, v, 5, 8);
    o[5] = __match_any_sync(~0u, v & 3);
    o[6] = __reduce_add_sync(~0u, v);
    o[7] = t < 16 ? __shfl_xor_sync(0xffffu, v, 1) : __shfl_xor_sync(0xffff0000u, v, 2);
}

// Half of a warp does not come to the shuffle.
extern "C" __global__ void divergent_shuffle(float* y, const float* x) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(~0u, v, 1);
    y[threadIdx.x] = v;
}
