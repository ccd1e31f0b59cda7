// One text for three compilers, for the tests of compiling: no room's kernel, and without kernels/common.
#if !defined(__CUDACC_RTC__)
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __syncthreads() __builtin_amdgcn_s_barrier()
#define THREAD __builtin_amdgcn_workitem_id_x()
#else
#define THREAD threadIdx.x
#endif

extern "C" __global__ void trial_fwd(T* y, const T* x, int n) {
    __shared__ float tile[N];
    int i = THREAD;
    tile[i] = (float)x[i];
    __syncthreads();
    if (i < n) y[i] = (T)(tile[N - 1 - i] * 2.0f + 1.0f);
}
