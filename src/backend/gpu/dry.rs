//! A device that computes nothing and checks everything that is asked of it: every address against what is allocated, every
//! launch against the limits of its architecture and against the kernel's C line.
//!
//! It loads the text of kernels as it is, so it needs no compiler. What is read from it is zero.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::driver::{
    Arch, Attributes, DeviceInfo, Driver, Event, Function, Graph, Launch, Module, Param, Stream, TENSOR_MAP_BYTES,
    TensorMapSpec,
};
use super::handles::Handles;
use super::kernel::signature::{self, Kind, Parameter};
use super::known;
use crate::error::{Error, Result};

/// Where memory starts: an address that no number means by accident and that is none of the host's.
const BASE: u64 = 0x0d00_0000_0000;
/// Addresses between two allocations, so that the end of one is not the start of the next.
const GAP: u64 = 4096;
/// What an address of no bytes may be: kernels do not read it.
const EMPTY: u64 = 256;
/// Launches that are remembered.
const REMEMBERED: usize = 1 << 16;

/// A device that checks and computes nothing.
#[derive(Debug)]
pub struct Dry {
    info: DeviceInfo,
    modules: Handles<String>,
    functions: Handles<Entry>,
    streams: Handles<()>,
    events: Handles<()>,
    graphs: Handles<Vec<Launched>>,
    state: Mutex<State>,
}

/// A launch that was found sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The entry point.
    pub kernel: String,
    /// Blocks and threads.
    pub launch: Launch,
    /// The arguments.
    pub params: Vec<Param>,
    /// Where it went.
    pub stream: Stream,
}

#[derive(Debug)]
struct Entry {
    module: u64,
    name: String,
    parameters: Vec<Parameter>,
}

#[derive(Debug, Default)]
struct State {
    /// Handles given so far.
    handles: u64,
    /// Length of each allocation by its address.
    memory: BTreeMap<u64, u64>,
    /// Bytes of addresses given so far; none is given twice, so that a freed one is known for what it is.
    given: u64,
    used: u64,
    /// What each recording has so far.
    captures: HashMap<u64, Vec<Launched>>,
    launches: VecDeque<Launched>,
    /// Events that have been marked.
    marked: HashSet<u64>,
}

impl Dry {
    /// A device of this architecture, with the memory that its largest has.
    ///
    /// # Errors
    /// [`Error::Argument`] if its limits are not known.
    pub fn new(arch: Arch) -> Result<Dry> {
        let mut info = known::device(arch, format!("dry:{arch}"))?;
        // A100 80 GB, H200, one die of MI250X, MI300X.
        info.memory_bytes = match arch {
            Arch::SM_80 => 80,
            Arch::SM_90A => 141,
            Arch::GFX90A => 64,
            _ => 192,
        } * 1_000_000_000;
        Ok(Dry {
            info,
            modules: Handles::new("module"),
            functions: Handles::new("function"),
            streams: Handles::new("stream"),
            events: Handles::new("event"),
            graphs: Handles::new("graph"),
            state: Mutex::default(),
        })
    }

    /// What was launched, the last 65536 of it, and forgets it.
    pub fn launches(&self) -> Vec<Launched> {
        std::mem::take(&mut self.state().launches).into()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self) -> u64 {
        let mut state = self.state();
        state.handles += 1;
        state.handles
    }

    fn stream(&self, stream: Stream) -> Result<()> {
        if stream == Stream::DEFAULT { Ok(()) } else { self.streams.get(stream.0).map(drop) }
    }

    /// Whether all bytes lie in one allocation.
    fn check_bytes(&self, what: &str, at: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let left = self.state().left(at).map_err(|e| Error::driver(format!("{}: {what}: {e}", self.info.name)))?;
        if bytes <= left {
            return Ok(());
        }
        Err(Error::driver(format!("{}: {what}: {bytes} bytes at {at:#x}, where {left} are left", self.info.name)))
    }

    /// Refuses what the host waits for while a stream is recorded.
    fn check_running(&self, what: &str, stream: Stream) -> Result<()> {
        self.stream(stream)?;
        if self.state().captures.contains_key(&stream.0) {
            return Err(Error::argument(format!(
                "{}: {what}: the stream is being recorded; do it before or after",
                self.info.name
            )));
        }
        Ok(())
    }

    fn check_params(&self, entry: &Entry, params: &[Param]) -> Result<()> {
        let refuse = |what: String| Err(Error::argument(format!("{}: launch: {what}", entry.name)));
        if entry.parameters.len() != params.len() {
            return refuse(format!("expected {} arguments, found {}", entry.parameters.len(), params.len()));
        }
        for (parameter, param) in entry.parameters.iter().zip(params) {
            if let Kind::Number(_) = parameter.kind {
                continue;
            }
            let Ok(bytes) = <[u8; 8]>::try_from(param.bytes()) else {
                return refuse(format!("`{parameter}`: expected an address, found {} bytes", param.bytes().len()));
            };
            let at = u64::from_le_bytes(bytes);
            if at != 0
                && at != EMPTY
                && let Err(why) = self.state().left(at)
            {
                return refuse(format!("`{parameter}`: {why}"));
            }
        }
        Ok(())
    }
}

impl State {
    /// Bytes from `at` to the end of its allocation.
    fn left(&self, at: u64) -> Result<u64, String> {
        let below = self.memory.range(..=at).next_back();
        match below {
            Some((start, bytes)) if at - start < *bytes => Ok(bytes - (at - start)),
            _ if (BASE..BASE + self.given).contains(&at) => {
                Err(format!("{at:#x} lies in memory that was freed or between allocations"))
            }
            _ => Err(format!("{at:#x} is no address of this device")),
        }
    }

    fn remember(&mut self, launched: Launched) {
        if self.launches.len() == REMEMBERED {
            self.launches.pop_front();
        }
        self.launches.push_back(launched);
    }
}

impl Driver for Dry {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize, stream: Stream) -> Result<u64> {
        self.stream(stream)?;
        let (bytes, total) = (bytes.max(1) as u64, self.info.memory_bytes);
        let mut state = self.state();
        let free = total - state.used;
        if bytes > free {
            return Err(Error::out_of_memory(format!(
                "{}: out of memory: asked {bytes} bytes, free {free} of {total}",
                self.info.name
            )));
        }
        let at = BASE + state.given;
        state.given += bytes.next_multiple_of(GAP) + GAP;
        state.used += bytes;
        state.memory.insert(at, bytes);
        Ok(at)
    }

    fn free(&self, at: u64, stream: Stream) -> Result<()> {
        self.stream(stream)?;
        let mut state = self.state();
        match state.memory.remove(&at) {
            Some(bytes) => {
                state.used -= bytes;
                Ok(())
            }
            None => Err(Error::driver(format!("{}: free: {at:#x} is the start of no allocation", self.info.name))),
        }
    }

    fn memory(&self) -> Result<(u64, u64)> {
        Ok((self.info.memory_bytes - self.state().used, self.info.memory_bytes))
    }

    fn write(&self, to: u64, from: &[u8], stream: Stream) -> Result<()> {
        self.check_running("write", stream)?;
        self.check_bytes("write", to, from.len() as u64)
    }

    fn read(&self, to: &mut [u8], from: u64, stream: Stream) -> Result<()> {
        self.check_running("read", stream)?;
        self.check_bytes("read", from, to.len() as u64)?;
        to.fill(0);
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<()> {
        self.stream(stream)?;
        self.check_bytes("copy from", from, bytes as u64)?;
        self.check_bytes("copy to", to, bytes as u64)
    }

    fn fill(&self, at: u64, _: u8, bytes: usize, stream: Stream) -> Result<()> {
        self.stream(stream)?;
        self.check_bytes("fill", at, bytes as u64)
    }

    fn load(&self, code: &[u8]) -> Result<Module> {
        let text = std::str::from_utf8(code).ok().filter(|t| !signature::entries(t).is_empty()).ok_or_else(|| {
            Error::driver(format!("{}: load: expected the text of kernels, found none in it", self.info.name))
        })?;
        let module = self.handle();
        self.modules.insert(module, text.to_owned());
        Ok(Module(module))
    }

    fn unload(&self, module: Module) -> Result<()> {
        self.functions.retain(|entry| entry.module != module.0);
        self.modules.remove(module.0).map(drop)
    }

    fn function(&self, module: Module, entry: &str) -> Result<Function> {
        let text = self.modules.get(module.0)?;
        let parameters = signature::parameters(&text, entry)
            .map_err(|why| Error::driver(format!("{}: function: {why}", self.info.name)))?;
        let function = self.handle();
        self.functions.insert(function, Entry { module: module.0, name: entry.to_owned(), parameters });
        Ok(Function(function))
    }

    fn attributes(&self, function: Function) -> Result<Attributes> {
        self.functions.get(function.0)?;
        Ok(Attributes { max_threads: self.info.max_threads, ..Attributes::default() })
    }

    fn launch(&self, function: Function, launch: &Launch, params: &[Param], stream: Stream) -> Result<()> {
        self.stream(stream)?;
        let entry = self.functions.get(function.0)?;
        launch.check(&entry.name, &self.info, 0, self.info.max_threads)?;
        self.check_params(&entry, params)?;
        let launched = Launched { kernel: entry.name.clone(), launch: *launch, params: params.to_vec(), stream };
        let mut state = self.state();
        match state.captures.get_mut(&stream.0) {
            Some(recorded) => recorded.push(launched),
            None => state.remember(launched),
        }
        Ok(())
    }

    fn create_stream(&self) -> Result<Stream> {
        let stream = self.handle();
        self.streams.insert(stream, ());
        Ok(Stream(stream))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        self.streams.remove(stream.0).map(drop)
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.check_running("synchronize", stream)
    }

    fn create_event(&self) -> Result<Event> {
        let event = self.handle();
        self.events.insert(event, ());
        Ok(Event(event))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        self.events.remove(event.0).map(drop)
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        self.stream(stream)?;
        self.events.get(event.0)?;
        self.state().marked.insert(event.0);
        Ok(())
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        self.stream(stream)?;
        self.events.get(event.0).map(drop)
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f64> {
        for event in [from, to] {
            self.events.get(event.0)?;
            if !self.state().marked.contains(&event.0) {
                return Err(Error::argument(format!("{}: elapsed: an event was never recorded", self.info.name)));
            }
        }
        Ok(0.0)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.check_running("begin_capture", stream)?;
        self.state().captures.insert(stream.0, Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.stream(stream)?;
        let recorded = self.state().captures.remove(&stream.0);
        let recorded = recorded.ok_or_else(|| {
            Error::argument(format!("{}: end_capture: the stream is not being recorded", self.info.name))
        })?;
        let graph = self.handle();
        self.graphs.insert(graph, recorded);
        Ok(Graph(graph))
    }

    fn replay(&self, graph: Graph, stream: Stream) -> Result<()> {
        self.check_running("replay", stream)?;
        for launched in self.graphs.get(graph.0)?.iter() {
            self.state().remember(Launched { stream, ..launched.clone() });
        }
        Ok(())
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        self.graphs.remove(graph.0).map(drop)
    }

    fn open_peer(&self, other: u32) -> Result<bool> {
        Ok(other == 0)
    }

    fn export(&self, at: u64) -> Result<[u8; 64]> {
        self.check_bytes("export", at, 1)?;
        let mut handle = [0; 64];
        handle[..8].copy_from_slice(&at.to_le_bytes());
        Ok(handle)
    }

    fn import(&self, handle: &[u8; 64]) -> Result<u64> {
        let [a, b, c, d, e, f, g, h, ..] = *handle;
        let at = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        self.check_bytes("import", at, 1).map(|()| at)
    }

    fn close(&self, at: u64) -> Result<()> {
        self.check_bytes("close", at, 1)
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<[u8; TENSOR_MAP_BYTES]> {
        if self.info.arch != Arch::SM_90A {
            return Err(Error::argument(format!("{}: tensor map: this architecture has none", self.info.name)));
        }
        spec.check()?;
        self.check_bytes("tensor map", spec.address, 1)?;
        Ok([0; TENSOR_MAP_BYTES])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"extern \"C\" __global__ void add_fwd(float* y, const float* x, int n) {}";

    fn dry() -> (Dry, Function) {
        let dry = Dry::new(Arch::SM_90A).unwrap();
        let add = dry.function(dry.load(TEXT).unwrap(), "add_fwd").unwrap();
        (dry, add)
    }

    fn params(y: u64, x: u64) -> Vec<Param> {
        vec![Param::new(y.to_le_bytes()), Param::new(x.to_le_bytes()), Param::new(1i32.to_le_bytes())]
    }

    #[test]
    fn a_launch_whose_pointers_are_alive_is_remembered() {
        let (dry, add) = dry();
        let at = dry.alloc(1000, Stream::DEFAULT).unwrap();
        let launch = Launch::linear(3, 128);
        dry.launch(add, &launch, &params(at, at + 999), Stream::DEFAULT).unwrap();
        dry.launch(add, &launch, &params(at, 0), Stream::DEFAULT).unwrap();
        let launches = dry.launches();
        assert_eq!((launches.len(), launches[0].kernel.as_str(), launches[0].launch), (2, "add_fwd", launch));
        assert!(dry.launches().is_empty());
    }

    #[test]
    fn a_pointer_that_is_freed_past_the_end_or_of_the_host_is_named() {
        let (dry, add) = dry();
        let (at, freed) = (dry.alloc(1000, Stream::DEFAULT).unwrap(), dry.alloc(8, Stream::DEFAULT).unwrap());
        dry.free(freed, Stream::DEFAULT).unwrap();
        let on_host = &raw const dry as u64;
        for (x, why) in [(at + 1000, "freed or between"), (freed, "freed or between"), (on_host, "no address")] {
            let error = dry.launch(add, &Launch::linear(1, 32), &params(at, x), Stream::DEFAULT).unwrap_err();
            assert!(error.to_string().starts_with("add_fwd: launch: `const float* x`: 0x"), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        let error = dry.launch(add, &Launch::linear(1, 32), &params(at, at)[..2], Stream::DEFAULT).unwrap_err();
        assert_eq!(error.to_string(), "add_fwd: launch: expected 3 arguments, found 2");
        assert!(dry.launch(add, &Launch::linear(1, 2048), &params(at, at), Stream::DEFAULT).is_err());
        assert!(dry.launches().is_empty());
    }

    #[test]
    fn memory_is_checked_byte_by_byte() {
        let (dry, _) = dry();
        let at = dry.alloc(10, Stream::DEFAULT).unwrap();
        dry.write(at + 2, &[0; 8], Stream::DEFAULT).unwrap();
        let mut bytes = [7; 4];
        dry.read(&mut bytes, at, Stream::DEFAULT).unwrap();
        assert_eq!(bytes, [0; 4]);
        let text = dry.write(at + 2, &[0; 9], Stream::DEFAULT).unwrap_err().to_string();
        assert!(text.starts_with("dry:sm_90a: write: 9 bytes at 0x") && text.ends_with("where 8 are left"), "{text}");
        assert!(dry.copy(at, at + 8, 3, Stream::DEFAULT).is_err() && dry.fill(at, 0, 11, Stream::DEFAULT).is_err());
        assert!(dry.free(at + 1, Stream::DEFAULT).is_err());
        dry.free(at, Stream::DEFAULT).unwrap();
        assert!(dry.free(at, Stream::DEFAULT).is_err() && dry.fill(at, 0, 1, Stream::DEFAULT).is_err());
    }

    #[test]
    fn memory_ends_where_the_device_s_does() {
        let dry = Dry::new(Arch::GFX90A).unwrap();
        dry.alloc(60_000_000_000, Stream::DEFAULT).unwrap();
        let error = dry.alloc(5_000_000_000, Stream::DEFAULT).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory(_)));
        assert!(error.to_string().contains("asked 5000000000 bytes, free 4000000000 of 64000000000"), "{error}");
        dry.alloc(4_000_000_000, Stream::DEFAULT).unwrap();
    }

    #[test]
    fn a_recording_is_remembered_when_it_is_replayed() {
        let (dry, add) = dry();
        let stream = dry.create_stream().unwrap();
        let at = dry.alloc(8, stream).unwrap();
        dry.begin_capture(stream).unwrap();
        dry.launch(add, &Launch::linear(1, 32), &params(at, at), stream).unwrap();
        assert!(dry.synchronize(stream).is_err() && dry.read(&mut [0], at, stream).is_err());
        let graph = dry.end_capture(stream).unwrap();
        assert!(dry.launches().is_empty() && dry.end_capture(stream).is_err());
        dry.replay(graph, stream).unwrap();
        dry.replay(graph, stream).unwrap();
        assert_eq!(dry.launches().len(), 2);
    }

    #[test]
    fn what_is_no_kernel_does_not_load() {
        let (dry, _) = dry();
        assert!(dry.load(b"int main() {}").is_err() && dry.load(&[0xff; 8]).is_err());
        let module = dry.load(TEXT).unwrap();
        let text = dry.function(module, "sub_fwd").unwrap_err().to_string();
        assert_eq!(text, "dry:sm_90a: function: no `extern \"C\" __global__` kernel sub_fwd");
    }
}
