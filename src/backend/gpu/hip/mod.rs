//! The table filled from the HIP runtime, `libamdhip64.so`.
//!
//! HIP mirrors the CUDA driver's functions with a current device a thread instead of a context; the device is made current by
//! every call, because any thread may call. What AMD's hardware does not have (clusters of blocks, tensor maps) is refused here.
//! A block gets the whole local data share without asking. A memory fault usually ends the process from inside the
//! runtime: there is nothing to report then.
#![allow(
    unsafe_code,
    reason = "calls of libamdhip64; every pointer given is to a live local of the type in hip_runtime_api.h"
)]

mod api;
mod runtime;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use runtime::{NAMES, Runtime};

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use super::driver::{Attributes, Driver, Stream};
use super::opened::{self, Opened};
use crate::error::Result;
use api::{Api, Handle, Status};

/// One open device of the HIP runtime.
#[derive(Debug)]
pub(crate) struct Hip {
    runtime: Arc<Runtime>,
    device: c_int,
    /// The default memory pool, if the device has pools.
    pool: Option<Handle>,
    opened: Opened<Entry>,
}

/// What is known of an entry point.
#[derive(Debug)]
struct Entry {
    name: String,
    module: Handle,
    attributes: Attributes,
}

impl opened::Entry for Entry {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Hip {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// `Error::Device` if there is no such device, `Error::Driver` if the runtime refuses it.
    pub(crate) fn open(runtime: Arc<Runtime>, ordinal: u32) -> Result<Hip> {
        let info = runtime.info(ordinal)?;
        let device = runtime.device(ordinal)?;
        let has_pools = runtime.attribute(device, api::MEMORY_POOLS_SUPPORTED)? != 0;
        let mut hip = Hip { device, pool: None, opened: Opened::new(format!("hip:{ordinal}"), info), runtime };
        if has_pools {
            hip.pool = Some(hip.open_pool()?);
        }
        Ok(hip)
    }

    /// The default pool, told to keep what is freed.
    fn open_pool(&self) -> Result<Handle> {
        let api = self.enter()?;
        let (mut pool, mut keep) = (0, u64::MAX);
        // SAFETY: `pool` and `keep` are live locals of the sizes that the header gives.
        self.check("hipDeviceGetDefaultMemPool", unsafe {
            (api.hipDeviceGetDefaultMemPool)(&raw mut pool, self.device)
        })?;
        let at = (&raw mut keep).cast::<c_void>();
        // SAFETY: as above.
        let status = unsafe { (api.hipMemPoolSetAttribute)(pool, api::POOL_RELEASE_THRESHOLD, at) };
        self.check("hipMemPoolSetAttribute", status)?;
        Ok(pool)
    }

    /// Makes the device current on this thread; refuses if it is lost.
    fn enter(&self) -> Result<&Api> {
        self.opened.usable()?;
        // SAFETY: the device exists.
        self.check("hipSetDevice", unsafe { (self.runtime.api.hipSetDevice)(self.device) })?;
        Ok(&self.runtime.api)
    }

    /// An error for any status but success; remembers those that end the device's work.
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
        self.check("hipStreamIsCapturing", unsafe { (api.hipStreamIsCapturing)(stream, &raw mut status) })?;
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
        self.check("hipFuncGetAttribute", unsafe { (api.hipFuncGetAttribute)(&raw mut value, which, function) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// What the loader knows of an entry point.
    fn entry(&self, api: &Api, module: Handle, function: Handle, name: &str) -> Result<Entry> {
        let get = |which| self.function_attribute(api, which, function);
        let attributes = Attributes {
            registers: get(api::FUNC_REGISTERS)?,
            local_bytes: get(api::FUNC_LOCAL_BYTES)?,
            static_shared: get(api::FUNC_SHARED_BYTES)?,
            max_threads: get(api::FUNC_MAX_THREADS)?,
        };
        Ok(Entry { name: name.to_owned(), module, attributes })
    }

    /// Lets this device reach the default pool of device `other`, which peer access to it does not cover.
    fn open_peer_pool(&self, api: &Api, other: c_int) -> Result<()> {
        if self.runtime.attribute(other, api::MEMORY_POOLS_SUPPORTED)? == 0 {
            return Ok(());
        }
        let mut pool = 0;
        // SAFETY: `pool` is a live pointer-sized local.
        self.check("hipDeviceGetDefaultMemPool", unsafe { (api.hipDeviceGetDefaultMemPool)(&raw mut pool, other) })?;
        let access =
            api::MemAccess { location_type: api::LOCATION_DEVICE, location: self.device, flags: api::READ_WRITE };
        // SAFETY: one descriptor, alive during the call.
        self.check("hipMemPoolSetAccess", unsafe { (api.hipMemPoolSetAccess)(pool, &raw const access, 1) })
    }
}
