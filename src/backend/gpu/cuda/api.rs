//! The CUDA driver's functions, numbers and structs that the table uses, as `cuda.h` of CUDA 12.0 to 13 has them.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::backend::gpu::library::table;

/// `CUresult`.
pub(super) type Status = c_int;
/// `CUdeviceptr`.
pub(super) type Address = u64;
/// A pointer to something of the driver's: context, stream, event, module, function, graph, pool.
pub(super) type Handle = u64;

table! {
    /// What is needed to say why the rest cannot be used.
    pub(super) struct Core {
        cuInit: fn(c_uint) -> Status,
        cuDriverGetVersion: fn(*mut c_int) -> Status,
        cuGetErrorName: fn(Status, *mut *const c_char) -> Status,
        cuGetErrorString: fn(Status, *mut *const c_char) -> Status,
        cuDeviceGetCount: fn(*mut c_int) -> Status,
    }
}

table! {
    /// All of it is in the driver of CUDA 12.0.
    pub(super) struct Api {
        cuDeviceGet: fn(*mut c_int, c_int) -> Status,
        cuDeviceGetName: fn(*mut c_char, c_int, c_int) -> Status,
        cuDeviceGetAttribute: fn(*mut c_int, c_int, c_int) -> Status,
        cuDeviceTotalMem as "cuDeviceTotalMem_v2": fn(*mut usize, c_int) -> Status,
        cuDevicePrimaryCtxRetain: fn(*mut Handle, c_int) -> Status,
        cuDevicePrimaryCtxRelease as "cuDevicePrimaryCtxRelease_v2": fn(c_int) -> Status,
        cuCtxSetCurrent: fn(Handle) -> Status,
        cuMemGetInfo as "cuMemGetInfo_v2": fn(*mut usize, *mut usize) -> Status,
        cuMemAlloc as "cuMemAlloc_v2": fn(*mut Address, usize) -> Status,
        cuMemFree as "cuMemFree_v2": fn(Address) -> Status,
        cuMemAllocAsync: fn(*mut Address, usize, Handle) -> Status,
        cuMemFreeAsync: fn(Address, Handle) -> Status,
        cuDeviceGetDefaultMemPool: fn(*mut Handle, c_int) -> Status,
        cuMemPoolSetAttribute: fn(Handle, c_int, *mut c_void) -> Status,
        cuMemPoolGetAttribute: fn(Handle, c_int, *mut c_void) -> Status,
        cuMemPoolTrimTo: fn(Handle, usize) -> Status,
        cuMemPoolSetAccess: fn(Handle, *const MemAccess, usize) -> Status,
        cuMemcpyHtoDAsync as "cuMemcpyHtoDAsync_v2": fn(Address, *const c_void, usize, Handle) -> Status,
        cuMemcpyDtoHAsync as "cuMemcpyDtoHAsync_v2": fn(*mut c_void, Address, usize, Handle) -> Status,
        cuMemcpyDtoDAsync as "cuMemcpyDtoDAsync_v2": fn(Address, Address, usize, Handle) -> Status,
        cuMemsetD8Async: fn(Address, u8, usize, Handle) -> Status,
        cuModuleLoadDataEx: fn(*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void) -> Status,
        cuModuleUnload: fn(Handle) -> Status,
        cuModuleGetFunction: fn(*mut Handle, Handle, *const c_char) -> Status,
        cuFuncGetAttribute: fn(*mut c_int, c_int, Handle) -> Status,
        cuFuncSetAttribute: fn(Handle, c_int, c_int) -> Status,
        cuLaunchKernelEx: fn(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void) -> Status,
        cuStreamCreate: fn(*mut Handle, c_uint) -> Status,
        cuStreamDestroy as "cuStreamDestroy_v2": fn(Handle) -> Status,
        cuStreamSynchronize: fn(Handle) -> Status,
        cuStreamWaitEvent: fn(Handle, Handle, c_uint) -> Status,
        cuStreamIsCapturing: fn(Handle, *mut c_int) -> Status,
        cuStreamBeginCapture as "cuStreamBeginCapture_v2": fn(Handle, c_int) -> Status,
        cuStreamEndCapture: fn(Handle, *mut Handle) -> Status,
        cuEventCreate: fn(*mut Handle, c_uint) -> Status,
        cuEventDestroy as "cuEventDestroy_v2": fn(Handle) -> Status,
        cuEventRecord: fn(Handle, Handle) -> Status,
        cuEventSynchronize: fn(Handle) -> Status,
        cuEventElapsedTime: fn(*mut f32, Handle, Handle) -> Status,
        cuGraphInstantiateWithFlags: fn(*mut Handle, Handle, u64) -> Status,
        cuGraphLaunch: fn(Handle, Handle) -> Status,
        cuGraphExecDestroy: fn(Handle) -> Status,
        cuGraphDestroy: fn(Handle) -> Status,
        cuDeviceCanAccessPeer: fn(*mut c_int, c_int, c_int) -> Status,
        cuCtxEnablePeerAccess: fn(Handle, c_uint) -> Status,
        cuIpcGetMemHandle: fn(*mut IpcHandle, Address) -> Status,
        cuIpcOpenMemHandle as "cuIpcOpenMemHandle_v2": fn(*mut Address, IpcHandle, c_uint) -> Status,
        cuIpcCloseMemHandle: fn(Address) -> Status,
        cuTensorMapEncodeTiled: fn(
            *mut TensorMap, c_int, u32, u64, *const u64, *const u64, *const u32, *const u32, c_int, c_int, c_int, c_int
        ) -> Status,
    }
    optional {
        // From CUDA 12.4 on.
        cuFuncGetParamInfo: fn(Handle, usize, *mut usize, *mut usize) -> Status,
    }
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct LaunchConfig {
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) shared: c_uint,
    pub(super) stream: Handle,
    pub(super) attributes: *const LaunchAttribute,
    pub(super) count: c_uint,
}

/// `CUlaunchAttribute`: the value is a union of 64 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub(super) struct LaunchAttribute {
    pub(super) id: c_int,
    pub(super) pad: u32,
    pub(super) value: [u32; 16],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct MemAccess {
    pub(super) location_type: c_int,
    pub(super) location: c_int,
    pub(super) flags: c_int,
}

/// `CUipcMemHandle`, passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct IpcHandle(pub(super) [u8; 64]);

/// `CUtensorMap`.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct TensorMap(pub(super) [u8; 128]);

// CUresult.
pub(super) const OUT_OF_MEMORY: Status = 2;
pub(super) const STUB_LIBRARY: Status = 34;
pub(super) const NO_DEVICE: Status = 100;
pub(super) const NO_BINARY_FOR_GPU: Status = 209;
pub(super) const NOT_FOUND: Status = 500;
pub(super) const PEER_ACCESS_ALREADY_ENABLED: Status = 704;
pub(super) const SYSTEM_DRIVER_MISMATCH: Status = 803;

/// Results that no call recovers from: a fault of a kernel, a device that does not answer. The driver repeats them until the
/// process ends.
pub(super) const STICKY: [Status; 13] = [214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719];

// CUdevice_attribute.
pub(super) const MAX_THREADS_PER_BLOCK: c_int = 1;
pub(super) const MAX_BLOCK_DIM_X: c_int = 2;
pub(super) const MAX_GRID_DIM_X: c_int = 5;
pub(super) const MAX_SHARED_PER_BLOCK: c_int = 8;
pub(super) const WARP_SIZE: c_int = 10;
pub(super) const MULTIPROCESSOR_COUNT: c_int = 16;
pub(super) const L2_CACHE_SIZE: c_int = 38;
pub(super) const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
pub(super) const COMPUTE_CAPABILITY_MINOR: c_int = 76;
pub(super) const COOPERATIVE_LAUNCH: c_int = 95;
pub(super) const MAX_SHARED_PER_BLOCK_OPTIN: c_int = 97;
pub(super) const MEMORY_POOLS_SUPPORTED: c_int = 115;
pub(super) const CLUSTER_LAUNCH: c_int = 120;

// CUfunction_attribute.
pub(super) const FUNC_MAX_THREADS: c_int = 0;
pub(super) const FUNC_SHARED_BYTES: c_int = 1;
pub(super) const FUNC_LOCAL_BYTES: c_int = 3;
pub(super) const FUNC_REGISTERS: c_int = 4;
pub(super) const FUNC_MAX_DYNAMIC_SHARED: c_int = 8;
pub(super) const FUNC_NON_PORTABLE_CLUSTER: c_int = 14;

// CUlaunchAttributeID.
pub(super) const LAUNCH_COOPERATIVE: c_int = 2;
pub(super) const LAUNCH_CLUSTER: c_int = 4;
/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`: devices of capability 9.0, as clusters.
pub(super) const LAUNCH_FOLLOWS: c_int = 6;

// CUmemPool_attribute.
pub(super) const POOL_RELEASE_THRESHOLD: c_int = 4;
pub(super) const POOL_RESERVED: c_int = 5;
pub(super) const POOL_USED: c_int = 7;

// CUjit_option.
pub(super) const JIT_ERROR_LOG: c_int = 5;
pub(super) const JIT_ERROR_LOG_BYTES: c_int = 6;

/// `CU_STREAM_NON_BLOCKING`: does not wait for the default stream.
pub(super) const NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: a recording may be begun and ended by different threads, and another thread's
/// allocation does not end it. What cannot be recorded is refused by the table itself.
pub(super) const CAPTURE_RELAXED: c_int = 2;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
pub(super) const LOCATION_DEVICE: c_int = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
pub(super) const READ_WRITE: c_int = 3;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
pub(super) const IPC_LAZY_PEER: c_uint = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_layout_of_the_header() {
        // sizeof and offsetof of cuda.h 13.2 on x86-64, the same since 12.0.
        assert_eq!((size_of::<LaunchConfig>(), std::mem::offset_of!(LaunchConfig, stream)), (56, 32));
        assert_eq!((size_of::<LaunchAttribute>(), std::mem::offset_of!(LaunchAttribute, value)), (72, 8));
        assert_eq!((size_of::<MemAccess>(), size_of::<IpcHandle>()), (12, 64));
        assert_eq!((size_of::<TensorMap>(), align_of::<TensorMap>()), (128, 64));
    }
}
