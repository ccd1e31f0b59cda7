//! The functions of the table, a call or two of the runtime each.
#![allow(
    unsafe_code,
    reason = "calls of libamdhip64; every pointer given is to a live local of the type in hip_runtime_api.h"
)]

use std::ffi::{CString, c_void};
use std::sync::Arc;

use super::{Hip, api};
use crate::backend::gpu::driver::{
    Attributes, DeviceInfo, Driver, Event, Function, Graph, Launch, Module, Param, Stream, TENSOR_MAP_BYTES,
    TensorMapSpec,
};
use crate::backend::gpu::image::Image;
use crate::error::{Error, Result};

/// What memory for other processes is rounded up to: smaller pieces share a page, and a handle shows the whole page.
const SHARED_PAGE: usize = 2 << 20;

impl Driver for Hip {
    fn info(&self) -> &DeviceInfo {
        &self.opened.info
    }

    fn alloc(&self, bytes: usize, stream: Stream) -> Result<u64> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        let mut at = 0;
        if self.pool.is_some() {
            // SAFETY: `at` is a live address; zero bytes are refused by the runtime, so one is asked for.
            let status = unsafe { (api.hipMallocAsync)(&raw mut at, bytes.max(1), stream) };
            self.allocated("hipMallocAsync", status, bytes)?;
        } else {
            // SAFETY: as above.
            let status = unsafe { (api.hipMalloc)(&raw mut at, bytes.max(1)) };
            self.allocated("hipMalloc", status, bytes)?;
        }
        Ok(at)
    }

    fn alloc_shared(&self, bytes: usize) -> Result<u64> {
        let api = self.enter()?;
        let whole = bytes.max(1).checked_next_multiple_of(SHARED_PAGE).unwrap_or(usize::MAX);
        let mut at = 0;
        // SAFETY: `at` is a live address.
        self.allocated("hipMalloc", unsafe { (api.hipMalloc)(&raw mut at, whole) }, whole)?;
        self.opened.shared.insert(at, ());
        Ok(at)
    }

    fn free(&self, at: u64, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        if self.pool.is_some() && self.opened.shared.remove(at).is_err() {
            // SAFETY: the runtime knows its allocations and refuses any other address.
            return self.check("hipFreeAsync", unsafe { (api.hipFreeAsync)(at, stream) });
        }
        // Work that was queued may still use it.
        // SAFETY: the stream is alive; the runtime refuses an address that is no allocation.
        unsafe {
            self.check("hipStreamSynchronize", (api.hipStreamSynchronize)(stream))?;
            self.check("hipFree", (api.hipFree)(at))
        }
    }

    fn make_current(&self) -> Result<()> {
        self.enter().map(drop)
    }

    fn trim(&self) -> Result<()> {
        let Some(pool) = self.pool else { return Ok(()) };
        let api = self.enter()?;
        // SAFETY: the default pool lives as long as the device.
        self.check("hipMemPoolTrimTo", unsafe { (api.hipMemPoolTrimTo)(pool, 0) })
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let api = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are live size_t.
        self.check("hipMemGetInfo", unsafe { (api.hipMemGetInfo)(&raw mut free, &raw mut total) })?;
        let (mut reserved, mut used) = (0u64, 0u64);
        if let Some(pool) = self.pool {
            for (which, value) in [(api::POOL_RESERVED, &mut reserved), (api::POOL_USED, &mut used)] {
                let at = std::ptr::from_mut(value).cast::<c_void>();
                // SAFETY: both attributes are 64-bit numbers.
                self.check("hipMemPoolGetAttribute", unsafe { (api.hipMemPoolGetAttribute)(pool, which, at) })?;
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
        let status = unsafe { (api.hipMemcpyHtoDAsync)(to, from.as_ptr().cast(), from.len(), stream) };
        self.check("hipMemcpyHtoDAsync", status)
    }

    fn read(&self, to: &mut [u8], from: u64, stream: Stream) -> Result<()> {
        let api = self.enter()?;
        let stream = self.running_stream(api, stream, "read")?;
        // SAFETY: `to` is writable for its length and borrowed until the stream is done.
        unsafe {
            if !to.is_empty() {
                let status = (api.hipMemcpyDtoHAsync)(to.as_mut_ptr().cast(), from, to.len(), stream);
                self.check("hipMemcpyDtoHAsync", status)?;
            }
            self.check("hipStreamSynchronize", (api.hipStreamSynchronize)(stream))
        }
    }

    fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: addresses of the device; a wrong one is the runtime's error.
        self.check("hipMemcpyDtoDAsync", unsafe { (api.hipMemcpyDtoDAsync)(to, from, bytes, stream) })
    }

    fn fill(&self, at: u64, byte: u8, bytes: usize, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: an address of the device; a wrong one is the runtime's error.
        self.check("hipMemsetD8Async", unsafe { (api.hipMemsetD8Async)(at, byte, bytes, stream) })
    }

    fn load(&self, code: &[u8]) -> Result<Module> {
        let named = |e: Error| Error::driver(format!("{}: {e}", self.opened.name));
        Image::of(code).and_then(|image| image.check(self.opened.info.arch)).map_err(named)?;
        let api = self.enter()?;
        let mut module = 0;
        // SAFETY: `code` is a whole ELF file.
        let status = unsafe { (api.hipModuleLoadData)(&raw mut module, code.as_ptr().cast()) };
        if status == api::NO_BINARY_FOR_GPU {
            let text = self.runtime.describe("hipModuleLoadData", status);
            let arch = self.opened.info.arch;
            return Err(Error::driver(format!(
                "{}: {text}; compile it for {arch}, which this device is",
                self.opened.name
            )));
        }
        self.check("hipModuleLoadData", status)?;
        self.opened.modules.insert(module, ());
        Ok(Module(module))
    }

    fn unload(&self, module: Module) -> Result<()> {
        let api = self.enter()?;
        self.opened.modules.remove(module.0)?;
        self.opened.functions.retain(|entry| entry.module != module.0);
        // SAFETY: the module was loaded and not unloaded.
        self.check("hipModuleUnload", unsafe { (api.hipModuleUnload)(module.0) })
    }

    fn function(&self, module: Module, entry: &str) -> Result<Function> {
        let api = self.enter()?;
        self.opened.modules.get(module.0)?;
        let name = CString::new(entry)
            .map_err(|_| Error::argument(format!("{}: an entry point's name has no zero byte", self.opened.name)))?;
        let mut function = 0;
        // SAFETY: the module is loaded, `name` is a C string.
        let status = unsafe { (api.hipModuleGetFunction)(&raw mut function, module.0, name.as_ptr()) };
        if status == api::NOT_FOUND {
            return Err(Error::driver(format!("{}: the module has no entry point `{entry}`", self.opened.name)));
        }
        self.check("hipModuleGetFunction", status)?;
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
        let mut pointers: Vec<*mut c_void> = params.iter().map(|p| p.bytes().as_ptr().cast_mut().cast()).collect();
        let ([x, y, z], [u, v, w]) = (launch.grid, launch.block);
        let (bytes, params) = (launch.shared, pointers.as_mut_ptr());
        let (call, status) = if launch.is_cooperative {
            let Some(cooperative) = api.hipModuleLaunchCooperativeKernel else {
                return Err(Error::driver(format!(
                    "{}: this HIP has no cooperative launches of modules",
                    self.opened.name
                )));
            };
            // SAFETY: one pointer a parameter, to as many bytes as the C line says: whoever launches has checked that, because
            // the runtime does not tell; they are copied before the call returns.
            let status = unsafe { cooperative(function.0, x, y, z, u, v, w, bytes, stream, params) };
            ("hipModuleLaunchCooperativeKernel", status)
        } else {
            let extra = std::ptr::null_mut();
            // SAFETY: as above.
            let status =
                unsafe { (api.hipModuleLaunchKernel)(function.0, x, y, z, u, v, w, bytes, stream, params, extra) };
            ("hipModuleLaunchKernel", status)
        };
        self.opened.launched(Arc::clone(&entry));
        if status == 0 { Ok(()) } else { self.check(&format!("{call} {}", entry.name), status) }
    }

    fn create_stream(&self) -> Result<Stream> {
        let api = self.enter()?;
        let mut stream = 0;
        // SAFETY: `stream` is a live pointer-sized local.
        self.check("hipStreamCreateWithFlags", unsafe {
            (api.hipStreamCreateWithFlags)(&raw mut stream, api::NON_BLOCKING)
        })?;
        self.opened.streams.insert(stream, ());
        Ok(Stream(stream))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        let api = self.enter()?;
        self.opened.streams.remove(stream.0)?;
        // SAFETY: the stream was created and not destroyed; the runtime ends it after its work.
        self.check("hipStreamDestroy", unsafe { (api.hipStreamDestroy)(stream.0) })
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let api = self.enter()?;
        let stream = self.running_stream(api, stream, "synchronize")?;
        // SAFETY: the stream is alive.
        self.check("hipStreamSynchronize", unsafe { (api.hipStreamSynchronize)(stream) })
    }

    fn create_event(&self) -> Result<Event> {
        let api = self.enter()?;
        let mut event = 0;
        // SAFETY: `event` is a live pointer-sized local; no flags means that it has a time.
        self.check("hipEventCreateWithFlags", unsafe { (api.hipEventCreateWithFlags)(&raw mut event, 0) })?;
        self.opened.events.insert(event, ());
        Ok(Event(event))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        let api = self.enter()?;
        self.opened.events.remove(event.0)?;
        // SAFETY: the event was created and not destroyed.
        self.check("hipEventDestroy", unsafe { (api.hipEventDestroy)(event.0) })
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        self.opened.events.get(event.0)?;
        // SAFETY: both are alive.
        self.check("hipEventRecord", unsafe { (api.hipEventRecord)(event.0, stream) })
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        self.opened.events.get(event.0)?;
        // SAFETY: both are alive.
        self.check("hipStreamWaitEvent", unsafe { (api.hipStreamWaitEvent)(stream, event.0, 0) })
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f64> {
        let api = self.enter()?;
        self.opened.events.get(from.0)?;
        self.opened.events.get(to.0)?;
        let mut milliseconds = 0.0f32;
        // SAFETY: both events are alive, `milliseconds` is a live float.
        unsafe {
            self.check("hipEventSynchronize", (api.hipEventSynchronize)(to.0))?;
            self.check("hipEventElapsedTime", (api.hipEventElapsedTime)(&raw mut milliseconds, from.0, to.0))?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        // SAFETY: the stream is alive.
        self.check("hipStreamBeginCapture", unsafe { (api.hipStreamBeginCapture)(stream, api::CAPTURE_RELAXED) })
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        let (mut graph, mut exec) = (0, 0);
        // SAFETY: the stream is alive, the locals are pointer-sized; the graph is destroyed once it has been instantiated.
        unsafe {
            self.check("hipStreamEndCapture", (api.hipStreamEndCapture)(stream, &raw mut graph))?;
            let status = (api.hipGraphInstantiateWithFlags)(&raw mut exec, graph, 0);
            let destroyed = (api.hipGraphDestroy)(graph);
            self.check("hipGraphInstantiate", status)?;
            self.check("hipGraphDestroy", destroyed)?;
        }
        self.opened.graphs.insert(exec, ());
        Ok(Graph(exec))
    }

    fn replay(&self, graph: Graph, stream: Stream) -> Result<()> {
        let (api, stream) = (self.enter()?, self.opened.stream(stream)?);
        self.opened.graphs.get(graph.0)?;
        // SAFETY: both are alive.
        self.check("hipGraphLaunch", unsafe { (api.hipGraphLaunch)(graph.0, stream) })
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        let api = self.enter()?;
        self.opened.graphs.remove(graph.0)?;
        // SAFETY: the graph was instantiated and not destroyed.
        self.check("hipGraphExecDestroy", unsafe { (api.hipGraphExecDestroy)(graph.0) })
    }

    fn open_peer(&self, other: u32) -> Result<bool> {
        let other = self.runtime.device(other)?;
        if other == self.device {
            return Ok(true);
        }
        let mut can = 0;
        let api = self.enter()?;
        // SAFETY: `can` is a live int.
        let status = unsafe { (api.hipDeviceCanAccessPeer)(&raw mut can, self.device, other) };
        self.check("hipDeviceCanAccessPeer", status)?;
        if can == 0 {
            return Ok(false);
        }
        // SAFETY: the device exists; the flags must be zero.
        let status = unsafe { (api.hipDeviceEnablePeerAccess)(other, 0) };
        if status != api::PEER_ACCESS_ALREADY_ENABLED {
            self.check("hipDeviceEnablePeerAccess", status)?;
        }
        self.open_peer_pool(api, other)?;
        Ok(true)
    }

    fn export(&self, at: u64) -> Result<[u8; 64]> {
        let api = self.enter()?;
        self.opened.shared.get(at)?;
        let mut handle = api::IpcHandle([0; 64]);
        // SAFETY: `handle` is live and of the header's size; `at` is an allocation of hipMalloc.
        self.check("hipIpcGetMemHandle", unsafe { (api.hipIpcGetMemHandle)(&raw mut handle, at) })?;
        Ok(handle.0)
    }

    fn import(&self, handle: &[u8; 64]) -> Result<u64> {
        let api = self.enter()?;
        let mut at = 0;
        let handle = api::IpcHandle(*handle);
        // SAFETY: `at` is a live address; the runtime refuses a handle that is not of its making.
        let open = |at: &mut u64, flags| unsafe { (api.hipIpcOpenMemHandle)(at, handle, flags) };
        // The one flag there is has another number in HIP 5, which refuses the later one.
        let status = match open(&mut at, api::IPC_LAZY_PEER) {
            api::INVALID_VALUE => open(&mut at, 0),
            other => other,
        };
        self.check("hipIpcOpenMemHandle", status)?;
        Ok(at)
    }

    fn close(&self, at: u64) -> Result<()> {
        let api = self.enter()?;
        // SAFETY: the runtime refuses an address that it did not open.
        self.check("hipIpcCloseMemHandle", unsafe { (api.hipIpcCloseMemHandle)(at) })
    }

    fn tensor_map(&self, _: &TensorMapSpec) -> Result<[u8; TENSOR_MAP_BYTES]> {
        Err(Error::argument(format!("{}: tensor map: AMD's devices have none", self.opened.name)))
    }
}
