//! The functions of the table, a call or two of the driver each.
#![allow(unsafe_code, reason = "calls of libcuda; every pointer given is to a live local of the type in cuda.h")]

use std::ffi::{CString, c_void};
use std::sync::{Arc, PoisonError};

use super::{Cuda, Entry, api};
use crate::backend::gpu::driver::{
    Attributes, DeviceInfo, Driver, Event, Function, Graph, Launch, MapType, Module, Param, Stream, Swizzle,
    TENSOR_MAP_BYTES, TensorMapSpec,
};
use crate::backend::gpu::image::Image;
use crate::error::{Error, Result};

/// What memory for other processes is rounded up to: smaller pieces share a page, and a handle shows the whole page.
const SHARED_PAGE: usize = 2 << 20;
/// Bytes of the log of a module that does not load.
const LOG_BYTES: usize = 8 << 10;

/// Whether the arguments are those that the kernel takes: the driver reads as many bytes as the kernel declares.
fn check_params(entry: &Entry, params: &[Param]) -> Result<()> {
    let Some(expected) = &entry.params else { return Ok(()) };
    let found: Vec<usize> = params.iter().map(|p| p.bytes().len()).collect();
    if **expected == *found {
        return Ok(());
    }
    Err(Error::argument(format!(
        "{}: launch: expected {} arguments of {expected:?} bytes, found {} of {found:?}",
        entry.name,
        expected.len(),
        found.len()
    )))
}

impl Cuda {
    /// Why a module does not load, with the driver's log.
    fn not_loaded(&self, error: &Error, status: api::Status, log: &[u8]) -> Error {
        let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
        let log = String::from_utf8_lossy(&log[..end]).trim().replace('\n', "; ");
        let log = if log.is_empty() { log } else { format!(": {log}") };
        let hint = if status == api::NO_BINARY_FOR_GPU {
            format!("; compile it for {}, which this device is", self.opened.info.arch)
        } else {
            String::new()
        };
        Error::driver(format!("{error}{log}{hint}"))
    }
}

impl Driver for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.opened.info
    }

    fn alloc(&self, bytes: usize, stream: Stream) -> Result<u64> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        let mut at = 0;
        if self.pool.is_some() {
            // SAFETY: `at` is a live address; zero bytes are refused by the driver, so one is asked for.
            let status = unsafe { (api.cuMemAllocAsync)(&raw mut at, bytes.max(1), stream) };
            self.allocated("cuMemAllocAsync", status, bytes)?;
        } else {
            // SAFETY: as above.
            let status = unsafe { (api.cuMemAlloc)(&raw mut at, bytes.max(1)) };
            self.allocated("cuMemAlloc", status, bytes)?;
        }
        Ok(at)
    }

    fn alloc_shared(&self, bytes: usize) -> Result<u64> {
        let api = self.enter()?;
        let whole = bytes.max(1).checked_next_multiple_of(SHARED_PAGE).unwrap_or(usize::MAX);
        let mut at = 0;
        // SAFETY: `at` is a live address.
        self.allocated("cuMemAlloc", unsafe { (api.cuMemAlloc)(&raw mut at, whole) }, whole)?;
        self.opened.shared.insert(at, ());
        Ok(at)
    }

    fn free(&self, at: u64, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        if self.pool.is_some() && self.opened.shared.remove(at).is_err() {
            // SAFETY: the driver knows its allocations and refuses any other address.
            return self.check("cuMemFreeAsync", unsafe { (api.cuMemFreeAsync)(at, stream) });
        }
        // Work that was queued may still use it.
        // SAFETY: the stream is alive; the driver refuses an address that is no allocation.
        unsafe {
            self.check("cuStreamSynchronize", (api.cuStreamSynchronize)(stream))?;
            self.check("cuMemFree", (api.cuMemFree)(at))
        }
    }

    fn make_current(&self) -> Result<()> {
        self.enter().map(drop)
    }

    fn trim(&self) -> Result<()> {
        let Some(pool) = self.pool else { return Ok(()) };
        let api = self.enter()?;
        // SAFETY: the default pool lives as long as the device.
        self.check("cuMemPoolTrimTo", unsafe { (api.cuMemPoolTrimTo)(pool, 0) })
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let api = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are live size_t.
        self.check("cuMemGetInfo", unsafe { (api.cuMemGetInfo)(&raw mut free, &raw mut total) })?;
        let (mut reserved, mut used) = (0u64, 0u64);
        if let Some(pool) = self.pool {
            for (which, value) in [(api::POOL_RESERVED, &mut reserved), (api::POOL_USED, &mut used)] {
                let at = std::ptr::from_mut(value).cast::<c_void>();
                // SAFETY: both attributes are 64-bit numbers.
                self.check("cuMemPoolGetAttribute", unsafe { (api.cuMemPoolGetAttribute)(pool, which, at) })?;
            }
        }
        // What the pool keeps is there for the next allocation.
        Ok((free as u64 + reserved.saturating_sub(used), total as u64))
    }

    fn write(&self, to: u64, from: &[u8], stream: Stream) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let api = self.enter()?;
        let stream = self.running_stream(api, stream, "write")?;
        // SAFETY: `from` is readable for its length; pageable memory has been copied when the call returns.
        let status = unsafe { (api.cuMemcpyHtoDAsync)(to, from.as_ptr().cast(), from.len(), stream) };
        self.check("cuMemcpyHtoDAsync", status)
    }

    fn read(&self, to: &mut [u8], from: u64, stream: Stream) -> Result<()> {
        let api = self.enter()?;
        let stream = self.running_stream(api, stream, "read")?;
        // SAFETY: `to` is writable for its length and borrowed until the stream is done.
        unsafe {
            if !to.is_empty() {
                let status = (api.cuMemcpyDtoHAsync)(to.as_mut_ptr().cast(), from, to.len(), stream);
                self.check("cuMemcpyDtoHAsync", status)?;
            }
            self.check("cuStreamSynchronize", (api.cuStreamSynchronize)(stream))
        }
    }

    fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: addresses of the device; a wrong one is the driver's error.
        self.check("cuMemcpyDtoDAsync", unsafe { (api.cuMemcpyDtoDAsync)(to, from, bytes, stream) })
    }

    fn fill(&self, at: u64, byte: u8, bytes: usize, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: an address of the device; a wrong one is the driver's error.
        self.check("cuMemsetD8Async", unsafe { (api.cuMemsetD8Async)(at, byte, bytes, stream) })
    }

    fn load(&self, code: &[u8]) -> Result<Module> {
        let named = |e: Error| Error::driver(format!("{}: {e}", self.opened.name));
        Image::of(code).and_then(|image| image.check(self.opened.info.arch)).map_err(named)?;
        let api = self.enter()?;
        // PTX is a C string.
        let code = [code, b"\0"].concat();
        let (mut log, mut module) = (vec![0u8; LOG_BYTES], 0);
        let mut options = [api::JIT_ERROR_LOG, api::JIT_ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
        // SAFETY: `code` is a whole ELF file or a C string; the log is writable for the length that is given.
        let status = unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            (api.cuModuleLoadDataEx)(&raw mut module, code.as_ptr().cast(), 2, options, values)
        };
        self.check("cuModuleLoadDataEx", status).map_err(|e| self.not_loaded(&e, status, &log))?;
        self.opened.modules.insert(module, ());
        Ok(Module(module))
    }

    fn unload(&self, module: Module) -> Result<()> {
        let api = self.enter()?;
        self.opened.modules.remove(module.0)?;
        self.opened.functions.retain(|entry| entry.module != module.0);
        // SAFETY: the module was loaded and not unloaded.
        self.check("cuModuleUnload", unsafe { (api.cuModuleUnload)(module.0) })
    }

    fn function(&self, module: Module, entry: &str) -> Result<Function> {
        let api = self.enter()?;
        self.opened.modules.get(module.0)?;
        let name = CString::new(entry)
            .map_err(|_| Error::argument(format!("{}: an entry point's name has no zero byte", self.opened.name)))?;
        let mut function = 0;
        // SAFETY: the module is loaded, `name` is a C string.
        let status = unsafe { (api.cuModuleGetFunction)(&raw mut function, module.0, name.as_ptr()) };
        if status == api::NOT_FOUND {
            return Err(Error::driver(format!("{}: the module has no entry point `{entry}`", self.opened.name)));
        }
        self.check("cuModuleGetFunction", status)?;
        self.opened.functions.insert(function, self.entry(api, module.0, function, entry)?);
        Ok(Function(function))
    }

    fn attributes(&self, function: Function) -> Result<Attributes> {
        Ok(self.opened.functions.get(function.0)?.attributes)
    }

    fn launch(&self, function: Function, launch: &Launch, params: &[Param], stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        let entry = self.opened.functions.get(function.0)?;
        launch.check(&entry.name, &self.opened.info, entry.attributes.static_shared, entry.attributes.max_threads)?;
        check_params(&entry, params)?;
        self.opt_in(api, function.0, &entry, launch)?;
        let mut attributes = [api::LaunchAttribute { id: 0, pad: 0, value: [0; 16] }; 3];
        let mut count = 0;
        if launch.is_cooperative {
            attributes[count].id = api::LAUNCH_COOPERATIVE;
            attributes[count].value[0] = 1;
            count += 1;
        }
        if launch.cluster != [1, 1, 1] {
            attributes[count].id = api::LAUNCH_CLUSTER;
            attributes[count].value[..3].copy_from_slice(&launch.cluster);
            count += 1;
        }
        if launch.follows && self.opened.info.has_clusters {
            attributes[count].id = api::LAUNCH_FOLLOWS;
            attributes[count].value[0] = 1;
            count += 1;
        }
        let config = api::LaunchConfig {
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            stream,
            attributes: attributes.as_ptr(),
            count: count as u32,
        };
        let mut pointers: Vec<*mut c_void> = params.iter().map(|p| p.bytes().as_ptr().cast_mut().cast()).collect();
        // SAFETY: one pointer a parameter, each to as many bytes as the kernel declares (checked above where the driver tells);
        // the driver copies them before it returns.
        let status = unsafe {
            (api.cuLaunchKernelEx)(&raw const config, function.0, pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        self.opened.launched(Arc::clone(&entry));
        if status == 0 { Ok(()) } else { self.check(&format!("cuLaunchKernelEx {}", entry.name), status) }
    }

    fn create_stream(&self) -> Result<Stream> {
        let api = self.enter()?;
        let mut stream = 0;
        // SAFETY: `stream` is a live pointer-sized local.
        self.check("cuStreamCreate", unsafe { (api.cuStreamCreate)(&raw mut stream, api::NON_BLOCKING) })?;
        self.opened.streams.insert(stream, ());
        Ok(Stream(stream))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        let api = self.enter()?;
        self.opened.streams.remove(stream.0)?;
        // SAFETY: the stream was created and not destroyed; the driver ends it after its work.
        self.check("cuStreamDestroy", unsafe { (api.cuStreamDestroy)(stream.0) })
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let api = self.enter()?;
        let stream = self.running_stream(api, stream, "synchronize")?;
        // SAFETY: the stream is alive.
        self.check("cuStreamSynchronize", unsafe { (api.cuStreamSynchronize)(stream) })
    }

    fn create_event(&self) -> Result<Event> {
        let api = self.enter()?;
        let mut event = 0;
        // SAFETY: `event` is a live pointer-sized local; no flags means that it has a time.
        self.check("cuEventCreate", unsafe { (api.cuEventCreate)(&raw mut event, 0) })?;
        self.opened.events.insert(event, ());
        Ok(Event(event))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        let api = self.enter()?;
        self.opened.events.remove(event.0)?;
        // SAFETY: the event was created and not destroyed.
        self.check("cuEventDestroy", unsafe { (api.cuEventDestroy)(event.0) })
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        self.opened.events.get(event.0)?;
        // SAFETY: both are alive.
        self.check("cuEventRecord", unsafe { (api.cuEventRecord)(event.0, stream) })
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        self.opened.events.get(event.0)?;
        // SAFETY: both are alive.
        self.check("cuStreamWaitEvent", unsafe { (api.cuStreamWaitEvent)(stream, event.0, 0) })
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f64> {
        let api = self.enter()?;
        self.opened.events.get(from.0)?;
        self.opened.events.get(to.0)?;
        let mut milliseconds = 0.0f32;
        // SAFETY: both events are alive, `milliseconds` is a live float.
        unsafe {
            self.check("cuEventSynchronize", (api.cuEventSynchronize)(to.0))?;
            self.check("cuEventElapsedTime", (api.cuEventElapsedTime)(&raw mut milliseconds, from.0, to.0))?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        // SAFETY: the stream is alive.
        self.check("cuStreamBeginCapture", unsafe { (api.cuStreamBeginCapture)(stream, api::CAPTURE_RELAXED) })
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        let (mut graph, mut exec) = (0, 0);
        // SAFETY: the stream is alive, the locals are pointer-sized; the graph is destroyed once it has been instantiated.
        unsafe {
            self.check("cuStreamEndCapture", (api.cuStreamEndCapture)(stream, &raw mut graph))?;
            let status = (api.cuGraphInstantiateWithFlags)(&raw mut exec, graph, 0);
            let destroyed = (api.cuGraphDestroy)(graph);
            self.check("cuGraphInstantiate", status)?;
            self.check("cuGraphDestroy", destroyed)?;
        }
        self.opened.graphs.insert(exec, ());
        Ok(Graph(exec))
    }

    fn replay(&self, graph: Graph, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        self.opened.graphs.get(graph.0)?;
        // SAFETY: both are alive.
        self.check("cuGraphLaunch", unsafe { (api.cuGraphLaunch)(graph.0, stream) })
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        let api = self.enter()?;
        self.opened.graphs.remove(graph.0)?;
        // SAFETY: the graph was instantiated and not destroyed.
        self.check("cuGraphExecDestroy", unsafe { (api.cuGraphExecDestroy)(graph.0) })
    }

    fn open_peer(&self, other: u32) -> Result<bool> {
        let other = self.runtime.device(other)?;
        if other == self.device {
            return Ok(true);
        }
        let mut can = 0;
        let api = self.enter()?;
        // SAFETY: `can` is a live int.
        let status = unsafe { (api.cuDeviceCanAccessPeer)(&raw mut can, self.device, other) };
        self.check("cuDeviceCanAccessPeer", status)?;
        if can == 0 {
            return Ok(false);
        }
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.contains(&other) {
            return Ok(true);
        }
        let mut context = 0;
        // SAFETY: `context` is a live pointer-sized local; the context is released when this value is dropped.
        let status = unsafe { (api.cuDevicePrimaryCtxRetain)(&raw mut context, other) };
        self.check("cuDevicePrimaryCtxRetain", status)?;
        peers.push(other);
        drop(peers);
        // SAFETY: the context is alive; the flags must be zero.
        let status = unsafe { (api.cuCtxEnablePeerAccess)(context, 0) };
        if status != api::PEER_ACCESS_ALREADY_ENABLED {
            self.check("cuCtxEnablePeerAccess", status)?;
        }
        self.open_peer_pool(api, other)?;
        Ok(true)
    }

    fn export(&self, at: u64) -> Result<[u8; 64]> {
        let api = self.enter()?;
        self.opened.shared.get(at)?;
        let mut handle = api::IpcHandle([0; 64]);
        // SAFETY: `handle` is live and of the header's size; `at` is an allocation of cuMemAlloc.
        self.check("cuIpcGetMemHandle", unsafe { (api.cuIpcGetMemHandle)(&raw mut handle, at) })?;
        Ok(handle.0)
    }

    fn import(&self, handle: &[u8; 64]) -> Result<u64> {
        let api = self.enter()?;
        let mut at = 0;
        let handle = api::IpcHandle(*handle);
        // SAFETY: `at` is a live address; the driver refuses a handle that is not of its making.
        let status = unsafe { (api.cuIpcOpenMemHandle)(&raw mut at, handle, api::IPC_LAZY_PEER) };
        self.check("cuIpcOpenMemHandle", status)?;
        Ok(at)
    }

    fn close(&self, at: u64) -> Result<()> {
        let api = self.enter()?;
        // SAFETY: the driver refuses an address that it did not open.
        self.check("cuIpcCloseMemHandle", unsafe { (api.cuIpcCloseMemHandle)(at) })
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<[u8; TENSOR_MAP_BYTES]> {
        spec.check()?;
        let api = self.enter()?;
        let mut map = api::TensorMap([0; TENSOR_MAP_BYTES]);
        let ones = [1u32; 5];
        // CUtensorMapDataType.
        let dtype = match spec.dtype {
            MapType::U8 => 0,
            MapType::I32 => 3,
            MapType::F16 => 6,
            MapType::F32 => 7,
            MapType::Bf16 => 9,
        };
        // CUtensorMapSwizzle.
        let swizzle = match spec.swizzle {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 2,
            Swizzle::B128 => 3,
        };
        // No interleaving; lines of 128 bytes are fetched whole into the last-level cache.
        let (interleave, promotion) = (0, 2);
        // SAFETY: the arrays have as many elements as there are axes (one fewer for the strides), checked above; `map` is live
        // and 64-byte aligned.
        let status = unsafe {
            (api.cuTensorMapEncodeTiled)(
                &raw mut map,
                dtype,
                spec.dims.len() as u32,
                spec.address,
                spec.dims.as_ptr(),
                spec.strides.as_ptr(),
                spec.box_dims.as_ptr(),
                ones.as_ptr(),
                interleave,
                swizzle,
                promotion,
                spec.is_nan_filled.into(),
            )
        };
        self.check("cuTensorMapEncodeTiled", status)?;
        Ok(map.0)
    }
}
