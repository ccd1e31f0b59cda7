// device: the words that kernels are written in, one vocabulary for both vendors. Includes no header of a toolkit.
// branches  NVRTC and nvcc; hipRTC; clang -x hip with neither headers nor device libraries
// lanes     WARP lanes execute together: 32 on NVIDIA, 64 on AMD; whatever counts lanes is written with WARP
// blocks    one-dimensional; how many threads a block has is a constant of the kernel, how many blocks the launcher's business

#pragma once

#if defined(__HIP__) || defined(__HIPCC_RTC__)
#define ON_AMD 1
#else
#define ON_NVIDIA 1
#endif

#if defined(ON_AMD) && !defined(__HIPCC_RTC__)
// Bare clang knows the attributes but not their names.
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
// The second number, blocks at once on a multiprocessor, is for NVIDIA's compiler alone: AMD's takes the registers it needs.
#define __launch_bounds__(threads, ...) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#endif

// For AMD's compiler: warps at once on a quarter of a multiprocessor, so that a lane keeps to its share of 512 registers. With all of
// them the results of matrix instructions lie where no other instruction reaches them.
#ifdef ON_AMD
#define __warps_at_once__(count) __attribute__((amdgpu_waves_per_eu(count)))
#else
#define __warps_at_once__(count)
#endif

#ifdef ON_AMD
// A product and a sum are fused where the text says fmaf, as the text of NVIDIA's branch does with mul: see math.cuh.
#pragma clang fp contract(off)
#endif

#define DEVICE __device__ __forceinline__
#if defined(ON_AMD) && !defined(__HIPCC_RTC__)
#define __forceinline__ inline __attribute__((always_inline))
#endif

// Lengths and places of numbers: a tensor may have more than 2^31.
using i64 = long long;
using u64 = unsigned long long;
using u32 = unsigned int;
using u16 = unsigned short;

#ifdef ON_NVIDIA
constexpr int WARP = 32;
DEVICE u32 thread() { return threadIdx.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
#else
constexpr int WARP = 64;
DEVICE u32 thread() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE u32 block_x() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE u32 block_y() { return __builtin_amdgcn_workgroup_id_y(); }
DEVICE u32 block_z() { return __builtin_amdgcn_workgroup_id_z(); }
#endif

// The first word of a kernel that may begin while the last blocks of the one before it are at work: behind it, everything that those
// wrote is there. A launcher that finds the word launches the kernel so; the kernel after it may begin as early. On an H200 (2026-11-22)
// kernels one after the other take 1.2 to 1.6 times less time at some microseconds each, 1.03 times less at a hundred.
DEVICE void follow() {
#if defined(ON_NVIDIA) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE int lane() { return thread() % WARP; }
// The same for all lanes of a warp; on AMD the compiler is told so, and keeps what follows from it in scalar registers.
DEVICE int warp_id() {
#ifdef ON_AMD
    return __builtin_amdgcn_readfirstlane(thread() / WARP);
#else
    return thread() / WARP;
#endif
}

// What another lane of the warp holds. All lanes take part.
#ifdef ON_NVIDIA
DEVICE float lane_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float lane_down(float v, int by) { return __shfl_down_sync(0xffffffffu, v, by); }
DEVICE float lane_at(float v, int from) { return __shfl_sync(0xffffffffu, v, from); }
DEVICE int lane_xor(int v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE int lane_down(int v, int by) { return __shfl_down_sync(0xffffffffu, v, by); }
DEVICE int lane_at(int v, int from) { return __shfl_sync(0xffffffffu, v, from); }
#else
DEVICE int lane_at(int v, int from) { return __builtin_amdgcn_ds_bpermute(from << 2, v); }
DEVICE int lane_xor(int v, int mask) { return lane_at(v, lane() ^ mask); }
// Past the last lane: the lane's own value, as on NVIDIA.
DEVICE int lane_down(int v, int by) { return lane() + by < WARP ? lane_at(v, lane() + by) : v; }
DEVICE float lane_at(float v, int from) { return __builtin_bit_cast(float, lane_at(__builtin_bit_cast(int, v), from)); }
DEVICE float lane_xor(float v, int mask) { return lane_at(v, lane() ^ mask); }
DEVICE float lane_down(float v, int by) { return __builtin_bit_cast(float, lane_down(__builtin_bit_cast(int, v), by)); }
#endif

// All threads of the block arrive, and see what the others wrote to shared memory before.
DEVICE void block_sync() {
#ifdef ON_NVIDIA
    __syncthreads();
#else
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
#endif
}

// All lanes of the warp arrive, and see what the others wrote to shared memory before.
DEVICE void warp_sync() {
#ifdef ON_NVIDIA
    __syncwarp();
#else
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
#endif
}

// Bits of a float and back.
DEVICE u32 bits_of(float x) {
#ifdef ON_NVIDIA
    return __float_as_uint(x);
#else
    return __builtin_bit_cast(u32, x);
#endif
}
DEVICE float float_of(u32 bits) {
#ifdef ON_NVIDIA
    return __uint_as_float(bits);
#else
    return __builtin_bit_cast(float, bits);
#endif
}

DEVICE constexpr i64 least(i64 a, i64 b) { return a < b ? a : b; }

// a / b and a % b for 0 <= a, 0 < b: short where both fit into 32 bits, as all but the largest tensors' do.
DEVICE i64 quotient(i64 a, i64 b) {
    if (((u64)(a | b) >> 32) == 0) return (u32)a / (u32)b;
    return a / b;
}
DEVICE i64 modulo(i64 a, i64 b) {
    if (((u64)(a | b) >> 32) == 0) return (u32)a % (u32)b;
    return a % b;
}
