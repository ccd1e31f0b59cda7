//! The HIP runtime's functions, numbers and structs that the table uses, as `hip_runtime_api.h` of HIP 5.2 to 7 has them.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::backend::gpu::library::table;

/// `hipError_t`.
pub(super) type Status = c_int;
/// A device address, `void*` in the header.
pub(super) type Address = u64;
/// A pointer to something of the runtime's: stream, event, module, function, graph, pool.
pub(super) type Handle = u64;

table! {
    /// What is needed to say why the rest cannot be used.
    pub(super) struct Core {
        hipInit: fn(c_uint) -> Status,
        hipRuntimeGetVersion: fn(*mut c_int) -> Status,
        hipGetErrorName: fn(Status) -> *const c_char,
        hipGetErrorString: fn(Status) -> *const c_char,
        hipGetDeviceCount: fn(*mut c_int) -> Status,
    }
}

table! {
    /// All of it is in the runtime of HIP 5.2.
    pub(super) struct Api {
        hipDeviceGet: fn(*mut c_int, c_int) -> Status,
        hipDeviceGetName: fn(*mut c_char, c_int, c_int) -> Status,
        hipDeviceGetAttribute: fn(*mut c_int, c_int, c_int) -> Status,
        hipDeviceTotalMem: fn(*mut usize, c_int) -> Status,
        hipSetDevice: fn(c_int) -> Status,
        hipMemGetInfo: fn(*mut usize, *mut usize) -> Status,
        hipMalloc: fn(*mut Address, usize) -> Status,
        hipFree: fn(Address) -> Status,
        hipMallocAsync: fn(*mut Address, usize, Handle) -> Status,
        hipFreeAsync: fn(Address, Handle) -> Status,
        hipDeviceGetDefaultMemPool: fn(*mut Handle, c_int) -> Status,
        hipMemPoolSetAttribute: fn(Handle, c_int, *mut c_void) -> Status,
        hipMemPoolGetAttribute: fn(Handle, c_int, *mut c_void) -> Status,
        hipMemPoolTrimTo: fn(Handle, usize) -> Status,
        hipMemPoolSetAccess: fn(Handle, *const MemAccess, usize) -> Status,
        hipMemcpyHtoDAsync: fn(Address, *const c_void, usize, Handle) -> Status,
        hipMemcpyDtoHAsync: fn(*mut c_void, Address, usize, Handle) -> Status,
        hipMemcpyDtoDAsync: fn(Address, Address, usize, Handle) -> Status,
        hipMemsetD8Async: fn(Address, u8, usize, Handle) -> Status,
        hipModuleLoadData: fn(*mut Handle, *const c_void) -> Status,
        hipModuleUnload: fn(Handle) -> Status,
        hipModuleGetFunction: fn(*mut Handle, Handle, *const c_char) -> Status,
        hipFuncGetAttribute: fn(*mut c_int, c_int, Handle) -> Status,
        hipModuleLaunchKernel: fn(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> Status,
        hipStreamCreateWithFlags: fn(*mut Handle, c_uint) -> Status,
        hipStreamDestroy: fn(Handle) -> Status,
        hipStreamSynchronize: fn(Handle) -> Status,
        hipStreamWaitEvent: fn(Handle, Handle, c_uint) -> Status,
        hipStreamIsCapturing: fn(Handle, *mut c_int) -> Status,
        hipStreamBeginCapture: fn(Handle, c_int) -> Status,
        hipStreamEndCapture: fn(Handle, *mut Handle) -> Status,
        hipEventCreateWithFlags: fn(*mut Handle, c_uint) -> Status,
        hipEventDestroy: fn(Handle) -> Status,
        hipEventRecord: fn(Handle, Handle) -> Status,
        hipEventSynchronize: fn(Handle) -> Status,
        hipEventElapsedTime: fn(*mut f32, Handle, Handle) -> Status,
        hipGraphInstantiateWithFlags: fn(*mut Handle, Handle, u64) -> Status,
        hipGraphLaunch: fn(Handle, Handle) -> Status,
        hipGraphExecDestroy: fn(Handle) -> Status,
        hipGraphDestroy: fn(Handle) -> Status,
        hipDeviceCanAccessPeer: fn(*mut c_int, c_int, c_int) -> Status,
        hipDeviceEnablePeerAccess: fn(c_int, c_uint) -> Status,
        hipIpcGetMemHandle: fn(*mut IpcHandle, Address) -> Status,
        hipIpcOpenMemHandle: fn(*mut Address, IpcHandle, c_uint) -> Status,
        hipIpcCloseMemHandle: fn(Address) -> Status,
    }
    optional {
        // The struct of HIP 6 and later, and the one of HIP 5 under the plain name.
        hipGetDevicePropertiesR0600: fn(*mut Properties, c_int) -> Status,
        hipGetDeviceProperties: fn(*mut Properties, c_int) -> Status,
        // From HIP 5.5 on.
        hipModuleLaunchCooperativeKernel: fn(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void
        ) -> Status,
    }
}

/// `hipDeviceProp_t` of any version, as bytes: 792 in HIP 5, 1472 from HIP 6 on.
#[repr(C, align(8))]
#[derive(Debug)]
pub(super) struct Properties(pub(super) [u8; 4096]);

/// Where `gcnArchName`, 256 characters, stands in the struct of HIP 6 and later.
pub(super) const ARCH_NAME_R0600: usize = 1160;
/// Where it stands in the struct of HIP 5.
pub(super) const ARCH_NAME_R0000: usize = 396;

/// `hipMemAccessDesc`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct MemAccess {
    pub(super) location_type: c_int,
    pub(super) location: c_int,
    pub(super) flags: c_int,
}

/// `hipIpcMemHandle_t`, passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct IpcHandle(pub(super) [u8; 64]);

// hipError_t.
pub(super) const INVALID_VALUE: Status = 1;
pub(super) const OUT_OF_MEMORY: Status = 2;
pub(super) const NO_DEVICE: Status = 100;
/// What `hipInit` of HIP 5 says where there is no device.
pub(super) const INVALID_DEVICE: Status = 101;
pub(super) const NO_BINARY_FOR_GPU: Status = 209;
pub(super) const NOT_FOUND: Status = 500;
pub(super) const PEER_ACCESS_ALREADY_ENABLED: Status = 704;

/// Results that no call recovers from: a fault of a kernel, a device that does not answer.
pub(super) const STICKY: [Status; 7] = [214, 700, 702, 709, 710, 719, 1053];

// hipDeviceAttribute_t: the numbers are the same from HIP 5.2 on; what went out of use kept its place.
pub(super) const COOPERATIVE_LAUNCH: c_int = 10;
pub(super) const L2_CACHE_SIZE: c_int = 19;
pub(super) const MAX_BLOCK_DIM_X: c_int = 26;
pub(super) const MAX_GRID_DIM_X: c_int = 29;
pub(super) const MAX_THREADS_PER_BLOCK: c_int = 56;
pub(super) const MULTIPROCESSOR_COUNT: c_int = 63;
pub(super) const MAX_SHARED_PER_BLOCK: c_int = 74;
pub(super) const WARP_SIZE: c_int = 87;
pub(super) const MEMORY_POOLS_SUPPORTED: c_int = 88;

// hipFunction_attribute.
pub(super) const FUNC_MAX_THREADS: c_int = 0;
pub(super) const FUNC_SHARED_BYTES: c_int = 1;
pub(super) const FUNC_LOCAL_BYTES: c_int = 3;
pub(super) const FUNC_REGISTERS: c_int = 4;

// hipMemPoolAttr.
pub(super) const POOL_RELEASE_THRESHOLD: c_int = 4;
pub(super) const POOL_RESERVED: c_int = 5;
pub(super) const POOL_USED: c_int = 7;

/// `hipStreamNonBlocking`: does not wait for the default stream.
pub(super) const NON_BLOCKING: c_uint = 1;
/// `hipStreamCaptureModeRelaxed`: see the CUDA filling.
pub(super) const CAPTURE_RELAXED: c_int = 2;
/// `hipMemLocationTypeDevice`.
pub(super) const LOCATION_DEVICE: c_int = 1;
/// `hipMemAccessFlagsProtReadWrite`.
pub(super) const READ_WRITE: c_int = 3;
/// `hipIpcMemLazyEnablePeerAccess` of HIP 6 and later; 0 in HIP 5.
pub(super) const IPC_LAZY_PEER: c_uint = 1;
