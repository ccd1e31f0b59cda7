//! An emulated device behind the driver table: the rest of the library does not know that nothing is there.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::backend::emulator::ptx::units::tensor_map::encode;
use crate::backend::emulator::{Counters, Memory, Schedule};
use crate::backend::gpu::driver::{
    Arch, Attributes, DeviceInfo, Driver, Event, Function, Graph, Launch, Module, Param, Stream, TENSOR_MAP_BYTES,
    TensorMapSpec,
};
use crate::error::{Error, Result};

/// Loaded code that an emulator executes.
pub(crate) trait Code: fmt::Debug + Send + Sync {
    /// What the code says of an entry point; `None` if there is none of this name.
    fn attributes(&self, entry: &str) -> Option<Attributes>;

    /// Executes a launch.
    ///
    /// # Errors
    /// What the kernel did wrong: kernel, instruction, block, warp, lane.
    fn launch(
        &self,
        entry: &str,
        launch: &Launch,
        params: &[Param],
        memory: &Memory,
        schedule: Schedule,
    ) -> Result<Counters>;
}

/// A device that executes code instead of having hardware.
pub(crate) struct Emulator {
    info: DeviceInfo,
    memory: Memory,
    load: fn(&[u8], Arch) -> Result<Arc<dyn Code>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    schedule: Schedule,
    counters: Counters,
    next: u64,
    modules: HashMap<u64, Arc<dyn Code>>,
    functions: HashMap<u64, (Arc<dyn Code>, Box<str>)>,
    events: HashMap<u64, Option<Instant>>,
    /// What is recorded by streams that capture.
    captures: HashMap<u64, Vec<Recorded>>,
    graphs: HashMap<u64, Arc<Vec<Recorded>>>,
}

/// Work of a graph.
#[derive(Clone)]
enum Recorded {
    Launch { function: Function, launch: Launch, params: Vec<Param> },
    Copy { to: u64, from: u64, bytes: usize },
    Fill { at: u64, byte: u8, bytes: usize },
}

impl Emulator {
    /// An emulator of the device that `info` describes, whose code is read by `load`.
    pub(crate) fn new(info: DeviceInfo, load: fn(&[u8], Arch) -> Result<Arc<dyn Code>>) -> Emulator {
        let memory = Memory::new(info.memory_bytes);
        Emulator { info, memory, load, state: Mutex::default() }
    }

    /// How what the programming model leaves open is decided from now on.
    pub(crate) fn set_schedule(&self, schedule: Schedule) {
        self.state().schedule = schedule;
    }

    /// What was executed since the last call.
    pub(crate) fn take_counters(&self) -> Counters {
        std::mem::take(&mut self.state().counters)
    }

    /// What was executed since [`Emulator::take_counters`].
    pub(crate) fn counters(&self) -> Counters {
        self.state().counters.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, work: &Recorded) -> Result<()> {
        match work {
            Recorded::Copy { to, from, bytes } => self.memory.copy(*to, *from, *bytes as u64),
            Recorded::Fill { at, byte, bytes } => self.memory.fill(*at, *byte, *bytes as u64),
            Recorded::Launch { function, launch, params } => {
                let (code, entry, schedule) = {
                    let state = self.state();
                    let found = state.functions.get(&function.0).cloned();
                    let (code, entry) = found.ok_or_else(|| ended("function", function.0))?;
                    (code, entry, state.schedule)
                };
                let counters = code.launch(&entry, launch, params, &self.memory, schedule)?;
                self.state().counters += &counters;
                Ok(())
            }
        }
    }

    /// Runs work now, or keeps it if the stream captures.
    fn submit(&self, work: Recorded, stream: Stream) -> Result<()> {
        if let Some(kept) = self.state().captures.get_mut(&stream.0) {
            kept.push(work);
            return Ok(());
        }
        self.run(&work)
    }
}

fn ended(kind: &str, handle: u64) -> Error {
    Error::argument(format!("{kind}: expected one of this device that has not ended, found {handle:#x}"))
}

impl State {
    fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Emulator({})", self.info.arch)
    }
}

impl Driver for Emulator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize, _: Stream) -> Result<u64> {
        self.memory.alloc(bytes as u64)
    }

    fn free(&self, at: u64, _: Stream) -> Result<()> {
        self.memory.free(at)
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let all = self.memory.capacity();
        Ok((all - self.memory.used().min(all), all))
    }

    fn write(&self, to: u64, from: &[u8], _: Stream) -> Result<()> {
        self.memory.write(to, from)
    }

    fn read(&self, to: &mut [u8], from: u64, _: Stream) -> Result<()> {
        self.memory.read(from, to)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<()> {
        self.submit(Recorded::Copy { to, from, bytes }, stream)
    }

    fn fill(&self, at: u64, byte: u8, bytes: usize, stream: Stream) -> Result<()> {
        self.submit(Recorded::Fill { at, byte, bytes }, stream)
    }

    fn load(&self, code: &[u8]) -> Result<Module> {
        let code = (self.load)(code, self.info.arch)?;
        let mut state = self.state();
        let handle = state.handle();
        state.modules.insert(handle, code);
        Ok(Module(handle))
    }

    fn unload(&self, module: Module) -> Result<()> {
        self.state().modules.remove(&module.0).map(drop).ok_or_else(|| ended("module", module.0))
    }

    fn function(&self, module: Module, entry: &str) -> Result<Function> {
        let mut state = self.state();
        let code = state.modules.get(&module.0).cloned().ok_or_else(|| ended("module", module.0))?;
        if code.attributes(entry).is_none() {
            return Err(Error::driver(format!("{}: the code has no entry point {entry}", self.info.name)));
        }
        let handle = state.handle();
        state.functions.insert(handle, (code, entry.into()));
        Ok(Function(handle))
    }

    fn attributes(&self, function: Function) -> Result<Attributes> {
        let state = self.state();
        let found = state.functions.get(&function.0).and_then(|(code, entry)| code.attributes(entry));
        found.ok_or_else(|| ended("function", function.0))
    }

    fn launch(&self, function: Function, launch: &Launch, params: &[Param], stream: Stream) -> Result<()> {
        self.submit(Recorded::Launch { function, launch: *launch, params: params.to_vec() }, stream)
    }

    fn create_stream(&self) -> Result<Stream> {
        Ok(Stream(self.state().handle()))
    }

    fn destroy_stream(&self, _: Stream) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, _: Stream) -> Result<()> {
        Ok(())
    }

    fn create_event(&self) -> Result<Event> {
        let mut state = self.state();
        let handle = state.handle();
        state.events.insert(handle, None);
        Ok(Event(handle))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        self.state().events.remove(&event.0).map(drop).ok_or_else(|| ended("event", event.0))
    }

    fn record(&self, event: Event, _: Stream) -> Result<()> {
        let mut state = self.state();
        let at = state.events.get_mut(&event.0).ok_or_else(|| ended("event", event.0))?;
        *at = Some(Instant::now());
        Ok(())
    }

    fn wait(&self, _: Stream, event: Event) -> Result<()> {
        self.state().events.get(&event.0).map(|_| ()).ok_or_else(|| ended("event", event.0))
    }

    fn elapsed(&self, from: Event, to: Event) -> Result<f64> {
        let state = self.state();
        let at = |e: Event| state.events.get(&e.0).copied().flatten().ok_or_else(|| ended("recorded event", e.0));
        Ok(at(to)?.saturating_duration_since(at(from)?).as_secs_f64())
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        if self.state().captures.insert(stream.0, Vec::new()).is_some() {
            return Err(Error::driver("capture: the stream is captured already"));
        }
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let mut state = self.state();
        let work = state.captures.remove(&stream.0);
        let work = work.ok_or_else(|| Error::driver("capture: the stream is not captured"))?;
        let handle = state.handle();
        state.graphs.insert(handle, Arc::new(work));
        Ok(Graph(handle))
    }

    fn replay(&self, graph: Graph, _: Stream) -> Result<()> {
        let work = self.state().graphs.get(&graph.0).cloned().ok_or_else(|| ended("graph", graph.0))?;
        work.iter().try_for_each(|w| self.run(w))
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        self.state().graphs.remove(&graph.0).map(drop).ok_or_else(|| ended("graph", graph.0))
    }

    fn open_peer(&self, _: u32) -> Result<bool> {
        Ok(false)
    }

    fn export(&self, _: u64) -> Result<[u8; 64]> {
        Err(Error::driver(format!("{}: an emulated device shares no memory with other processes", self.info.name)))
    }

    fn import(&self, _: &[u8; 64]) -> Result<u64> {
        Err(Error::driver(format!("{}: an emulated device shares no memory with other processes", self.info.name)))
    }

    fn close(&self, _: u64) -> Result<()> {
        Err(Error::driver(format!("{}: an emulated device shares no memory with other processes", self.info.name)))
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<[u8; TENSOR_MAP_BYTES]> {
        if !self.info.has_clusters {
            return Err(Error::driver(format!("{}: {} has no bulk tensor copies", self.info.name, self.info.arch)));
        }
        encode(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::emulator::load_ptx;
    use crate::backend::gpu::driver::{MapType, Swizzle};
    use crate::backend::gpu::known;

    #[test]
    fn tensor_maps_are_for_devices_that_copy_by_them() {
        let spec = TensorMapSpec {
            dtype: MapType::F16,
            address: 256,
            dims: vec![64, 64],
            strides: vec![128],
            box_dims: vec![64, 8],
            swizzle: Swizzle::B128,
            is_nan_filled: false,
        };
        let device = |arch: Arch| Emulator::new(known::device(arch, format!("emu:{arch}")).unwrap(), load_ptx);
        assert!(device(Arch::SM_90A).tensor_map(&spec).is_ok());
        let wrong = TensorMapSpec { address: 1, ..spec.clone() };
        let line = device(Arch::SM_90A).tensor_map(&wrong).unwrap_err().to_string();
        assert!(line.contains("tensor map: address: expected a multiple of 16"), "{line}");
        let line = device(Arch::SM_80).tensor_map(&spec).unwrap_err().to_string();
        assert!(line.contains("sm_80 has no bulk tensor copies"), "{line}");
    }
}
