//! The table filled from the CUDA driver, `libcuda.so.1`.
//!
//! One [`Cuda`] holds the device's primary context, which NVIDIA's own libraries use too, so that their work and ours share
//! streams and memory. The context is made current by every call, because any thread may call.
//!
//! Memory comes from the device's default pool in the order of a stream; the pool keeps what is freed ([`Driver::trim`] gives it
//! back). Pool memory cannot be opened by another process through the 64-byte handles that CUDA and HIP have in common, so
//! [`Driver::alloc_shared`] takes whole pages from `cuMemAlloc` instead.
#![allow(unsafe_code, reason = "calls of libcuda; every pointer given is to a live local of the type in cuda.h")]

mod api;
mod runtime;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use runtime::{NAMES, Runtime};

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::{Attributes, Driver, Launch, Stream};
use super::limits::PORTABLE_CLUSTER;
use super::opened::{self, Opened};
use crate::error::Result;
use api::{Api, Handle, Status};

/// One open device of the CUDA driver.
#[derive(Debug)]
pub(crate) struct Cuda {
    runtime: Arc<Runtime>,
    device: c_int,
    context: Handle,
    /// The default memory pool, if the device has pools.
    pool: Option<Handle>,
    opened: Opened<Entry>,
    /// Other devices whose contexts are held because their memory is mapped here.
    peers: Mutex<Vec<c_int>>,
}

/// What is known of an entry point.
#[derive(Debug)]
struct Entry {
    name: String,
    module: Handle,
    attributes: Attributes,
    /// Bytes of each parameter, where the driver tells.
    params: Option<Box<[usize]>>,
    /// Shared memory that has been asked for so far.
    asked: AtomicU32,
}

impl opened::Entry for Entry {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Cuda {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// `Error::Device` if there is no such device, `Error::Driver` if the driver refuses it.
    pub(crate) fn open(runtime: Arc<Runtime>, ordinal: u32) -> Result<Cuda> {
        let info = runtime.info(ordinal)?;
        let device = runtime.device(ordinal)?;
        let mut context = 0;
        // SAFETY: `context` is a live pointer-sized local; the context is released when this value is dropped.
        let status = unsafe { (runtime.api.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        runtime.check("cuDevicePrimaryCtxRetain", status)?;
        let has_pools = runtime.attribute(device, api::MEMORY_POOLS_SUPPORTED)? != 0;
        let mut cuda = Cuda {
            device,
            context,
            pool: None,
            opened: Opened::new(format!("cuda:{ordinal}"), info),
            peers: Mutex::new(Vec::new()),
            runtime,
        };
        if has_pools {
            cuda.pool = Some(cuda.open_pool()?);
        }
        Ok(cuda)
    }

    /// The default pool, told to keep what is freed.
    fn open_pool(&self) -> Result<Handle> {
        let api = self.enter()?;
        let (mut pool, mut keep) = (0, u64::MAX);
        // SAFETY: `pool` and `keep` are live locals of the sizes that the header gives.
        self.check("cuDeviceGetDefaultMemPool", unsafe {
            (api.cuDeviceGetDefaultMemPool)(&raw mut pool, self.device)
        })?;
        let at = (&raw mut keep).cast::<c_void>();
        // SAFETY: as above.
        let status = unsafe { (api.cuMemPoolSetAttribute)(pool, api::POOL_RELEASE_THRESHOLD, at) };
        self.check("cuMemPoolSetAttribute", status)?;
        Ok(pool)
    }

    /// Makes the context current on this thread; refuses if it is lost.
    fn enter(&self) -> Result<&Api> {
        self.opened.usable()?;
        // SAFETY: the context is held until this value is dropped.
        let status = unsafe { (self.runtime.api.cuCtxSetCurrent)(self.context) };
        self.check("cuCtxSetCurrent", status)?;
        Ok(&self.runtime.api)
    }

    /// An error for any status but success; remembers those that end the context.
    fn check(&self, call: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        Err(self.opened.failed(&self.runtime.describe(call, status), api::STICKY.contains(&status)))
    }

    /// A stream that is not recording: what the host reads or writes cannot be replayed.
    fn running_stream(&self, api: &Api, stream: Stream, what: &str) -> Result<Handle> {
        let stream = self.opened.stream(stream)?;
        let mut status = 0;
        // SAFETY: `status` is a live int, the stream is alive.
        self.check("cuStreamIsCapturing", unsafe { (api.cuStreamIsCapturing)(stream, &raw mut status) })?;
        if status == 0 {
            return Ok(stream);
        }
        Err(self.opened.recording_error(what))
    }

    /// The status of an allocation as an error that says what is free.
    fn allocated(&self, call: &str, status: Status, bytes: usize) -> Result<()> {
        if status != api::OUT_OF_MEMORY {
            return self.check(call, status);
        }
        Err(self.opened.out_of_memory(bytes, self.memory().unwrap_or((0, self.opened.info.memory_bytes))))
    }

    fn function_attribute(&self, api: &Api, which: c_int, function: Handle) -> Result<u32> {
        let mut value = 0;
        // SAFETY: `value` is a live int, the function's module is loaded.
        self.check("cuFuncGetAttribute", unsafe { (api.cuFuncGetAttribute)(&raw mut value, which, function) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    fn set_function_attribute(&self, api: &Api, function: Handle, which: c_int, value: u32) -> Result<()> {
        let value = c_int::try_from(value).unwrap_or(c_int::MAX);
        // SAFETY: the function's module is loaded.
        self.check("cuFuncSetAttribute", unsafe { (api.cuFuncSetAttribute)(function, which, value) })
    }

    /// What the driver and the loader know of an entry point.
    fn entry(&self, api: &Api, module: Handle, function: Handle, name: &str) -> Result<Entry> {
        let get = |which| self.function_attribute(api, which, function);
        let attributes = Attributes {
            registers: get(api::FUNC_REGISTERS)?,
            local_bytes: get(api::FUNC_LOCAL_BYTES)?,
            static_shared: get(api::FUNC_SHARED_BYTES)?,
            max_threads: get(api::FUNC_MAX_THREADS)?,
        };
        let params = api.cuFuncGetParamInfo.map(|info| {
            let mut sizes = Vec::new();
            let (mut offset, mut size) = (0, 0);
            // SAFETY: both are live size_t; an index past the last parameter is an error and nothing else.
            while unsafe { info(function, sizes.len(), &raw mut offset, &raw mut size) } == 0 {
                sizes.push(size);
            }
            sizes.into()
        });
        Ok(Entry { name: name.to_owned(), module, attributes, params, asked: AtomicU32::new(0) })
    }

    /// Lets the kernel have more shared memory or a larger cluster than it gets without asking.
    fn opt_in(&self, api: &Api, function: Handle, entry: &Entry, launch: &Launch) -> Result<()> {
        let free = self.opened.info.shared_bytes.saturating_sub(entry.attributes.static_shared);
        if launch.shared > free && launch.shared > entry.asked.load(Ordering::Relaxed) {
            self.set_function_attribute(api, function, api::FUNC_MAX_DYNAMIC_SHARED, launch.shared)?;
            entry.asked.fetch_max(launch.shared, Ordering::Relaxed);
        }
        if launch.cluster.iter().map(|&n| u64::from(n)).product::<u64>() > PORTABLE_CLUSTER {
            self.set_function_attribute(api, function, api::FUNC_NON_PORTABLE_CLUSTER, 1)?;
        }
        Ok(())
    }

    /// Lets this device reach the default pool of device `other`, which peer access to its context does not cover.
    fn open_peer_pool(&self, api: &Api, other: c_int) -> Result<()> {
        if self.runtime.attribute(other, api::MEMORY_POOLS_SUPPORTED)? == 0 {
            return Ok(());
        }
        let mut pool = 0;
        // SAFETY: `pool` is a live pointer-sized local.
        self.check("cuDeviceGetDefaultMemPool", unsafe { (api.cuDeviceGetDefaultMemPool)(&raw mut pool, other) })?;
        let access =
            api::MemAccess { location_type: api::LOCATION_DEVICE, location: self.device, flags: api::READ_WRITE };
        // SAFETY: one descriptor, alive during the call.
        self.check("cuMemPoolSetAccess", unsafe { (api.cuMemPoolSetAccess)(pool, &raw const access, 1) })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let peers = std::mem::take(self.peers.get_mut().unwrap_or_else(PoisonError::into_inner));
        for device in peers.into_iter().chain([self.device]) {
            // SAFETY: each was retained once. A failure means that the context is gone already.
            unsafe { (self.runtime.api.cuDevicePrimaryCtxRelease)(device) };
        }
    }
}
