//! AMD's CDNA targets: the code objects that clang makes for gfx90a and gfx942, read, decoded and executed.
//!
//! A wave is 64 lanes; the registers of the unified file, EXEC, VCC, SCC, M0 and MODE are as the manuals have them, and so
//! is the state in which a wave starts. Results of memory instructions come at once or as late as `s_waitcnt` allows;
//! every access is checked against its allocation; races between waves on LDS are refused. What is not modelled: time, the
//! idle states that hardware needs between dependent instructions (a missing `s_nop` is not found), the order of global
//! memory between workgroups, traps and debugging.

pub mod decode;
pub mod matrix;
pub mod metadata;
pub mod object;

mod buffer;
mod control;
mod float;
mod global;
mod lanes;
mod launch;
mod lds;
mod lower;
mod matrix_unit;
mod micro;
mod program;
mod scalar;
mod scalar_memory;
mod scratch;
mod shared;
mod vector;
mod waits;
mod wave;
mod workgroup;

#[cfg(test)]
mod expressions;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use decode::Target;
use launch::Dispatch;
use metadata::ArgumentKind;
use object::{CodeObject, Kernel};
use program::Program;
use shared::{IMAGE, PRIVATE_WINDOW, SHARED_WINDOW};

use super::device::Code;
use super::{Counters, Fault, Memory, Schedule};
use crate::backend::gpu::driver::{Arch, Attributes, Launch, Param};
use crate::error::{Error, Result};

/// Bytes of LDS that a workgroup can have.
const LDS_BYTES: u32 = 65536;
/// Instructions that a wave may execute before it is taken for one that never ends: a hundred times those of the longest.
const BUDGET: u64 = 1 << 30;
/// Threads that a workgroup can have.
const MAX_THREADS: u64 = 1024;

/// A loaded code object.
pub struct Module {
    target: Target,
    /// Instructions that a wave may execute.
    budget: u64,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    kernel: Kernel,
    program: Program,
    /// Index of its first instruction.
    start: usize,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({:?}, {:?})", self.target, self.entries.keys())
    }
}

impl Module {
    /// Reads a code object and resolves its instructions.
    ///
    /// # Errors
    /// A damaged file, one for another target, words that are no instruction.
    pub fn load(elf: &[u8], arch: Arch) -> Result<Module> {
        let target = Target::of(arch)?;
        let object = CodeObject::read(elf)?;
        if object.target() != target {
            return Err(Error::driver(format!("code object: expected one for {arch}, found {:?}", object.target())));
        }
        let mut image = object.image().to_vec();
        for relocation in object.relocations() {
            let place = usize::try_from(relocation.address).ok().and_then(|at| image.get_mut(at..at.checked_add(8)?));
            let place = place.ok_or_else(|| Error::driver("code object: a relocation lies outside its memory"))?;
            place.copy_from_slice(&relocation.value.wrapping_add(IMAGE).to_le_bytes());
        }
        let code = object.instructions()?;
        // A kernel runs its own code and that of functions, not that of other kernels.
        let kernels: Vec<_> = object.kernels().iter().map(|k| k.entry).collect();
        let ranges = object.symbols().iter().filter(|s| s.is_function && kernels.contains(&s.address));
        let ranges: Vec<_> = ranges.map(|s| s.address..s.address.saturating_add(s.size)).collect();
        let others = |entry: u64| ranges.iter().filter(move |range| range.start != entry);
        let mut entries = BTreeMap::new();
        for kernel in object.kernels() {
            let descriptor = &kernel.descriptor;
            let registers = (descriptor.vector_registers() as u16, descriptor.accumulator_offset() as u16);
            let own = code.iter().filter(|i| !others(kernel.entry).any(|range| range.contains(&i.address))).copied();
            let program = Program::new(image.clone(), own.collect(), registers.0, registers.1);
            let start = program.index_of(kernel.entry).ok_or_else(|| {
                Error::driver(format!("code object: kernel {}: its code is missing", kernel.metadata.name))
            })?;
            entries.insert(kernel.metadata.name.clone(), Entry { kernel: kernel.clone(), program, start });
        }
        Ok(Module { target, budget: BUDGET, entries })
    }

    /// The names of its kernels.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// After how many instructions a wave is taken for one that never ends.
    pub fn set_budget(&mut self, instructions: u64) {
        self.budget = instructions;
    }

    /// What a kernel would be refused for if it came there: kernel, instruction and why.
    pub fn refusals(&self) -> impl Iterator<Item = String> {
        let of = |(name, entry): (&String, &Entry)| -> Vec<String> {
            entry.program.refused().map(|(text, why)| format!("{name}: `{text}`: {why}")).collect()
        };
        self.entries.iter().flat_map(of)
    }

    /// Executes a launch of the kernel `entry`.
    ///
    /// # Errors
    /// A launch that the kernel does not take; what the kernel did wrong.
    pub fn launch(
        &self,
        entry: &str,
        launch: &Launch,
        params: &[Param],
        memory: &Memory,
        schedule: Schedule,
    ) -> Result<Counters> {
        Ok(self.prepare(entry, launch, params, schedule)?.run(memory)?)
    }

    /// The same, with a fault of the kernel apart from other errors.
    ///
    /// # Errors
    /// Outside, a launch that the kernel does not take; inside, what the kernel did wrong.
    pub fn try_launch(
        &self,
        entry: &str,
        launch: &Launch,
        params: &[Param],
        memory: &Memory,
        schedule: Schedule,
    ) -> Result<std::result::Result<Counters, Fault>> {
        Ok(self.prepare(entry, launch, params, schedule)?.run(memory))
    }

    fn prepare(&self, name: &str, launch: &Launch, params: &[Param], schedule: Schedule) -> Result<Dispatch<'_>> {
        let refuse = |what: String| Error::driver(format!("{name}: launch: {what}"));
        let Some(entry) = self.entries.get(name) else {
            let names: Vec<&str> = self.entries().collect();
            return Err(Error::driver(format!("launch: expected kernel {}, found {name}", names.join(", "))));
        };
        let metadata = &entry.kernel.metadata;
        let (blocks, threads) = (launch.blocks(), launch.threads());
        let most = if metadata.block_limit == 0 { MAX_THREADS } else { MAX_THREADS.min(metadata.block_limit.into()) };
        if blocks == 0 || threads == 0 || threads > most {
            return Err(refuse(format!("expected blocks of 1 to {most} threads, found {blocks} blocks of {threads}")));
        }
        if launch.cluster != [1, 1, 1] {
            return Err(refuse("clusters of blocks do not exist on this target".into()));
        }
        let shared = u64::from(metadata.shared_bytes) + u64::from(launch.shared);
        if shared > u64::from(LDS_BYTES) {
            return Err(refuse(format!("expected at most {LDS_BYTES} bytes of shared memory, found {shared}")));
        }
        Ok(Dispatch {
            kernel: &entry.kernel,
            program: &entry.program,
            entry: entry.start,
            has_flat_scratch: self.target == Target::Gfx942,
            grid: launch.grid,
            block: launch.block,
            shared: shared as u32,
            arguments: arguments(&entry.kernel, launch, params).map_err(refuse)?,
            packet: packet(launch),
            schedule,
            budget: self.budget,
        })
    }
}

impl Code for Module {
    fn attributes(&self, entry: &str) -> Option<Attributes> {
        let metadata = &self.entries.get(entry)?.kernel.metadata;
        Some(Attributes {
            registers: metadata.vector_registers,
            local_bytes: metadata.private_bytes,
            static_shared: metadata.shared_bytes,
            max_threads: metadata.block_limit,
        })
    }

    fn launch(
        &self,
        entry: &str,
        launch: &Launch,
        params: &[Param],
        memory: &Memory,
        schedule: Schedule,
    ) -> Result<Counters> {
        Module::launch(self, entry, launch, params, memory, schedule)
    }
}

/// The argument block: what the caller gives, and what the launch itself adds.
fn arguments(kernel: &Kernel, launch: &Launch, params: &[Param]) -> std::result::Result<Vec<u8>, String> {
    let metadata = &kernel.metadata;
    let expected = metadata.arguments.iter().filter(|a| !a.kind.is_hidden()).count();
    if expected != params.len() {
        return Err(format!("expected {expected} arguments, found {}", params.len()));
    }
    // Scalar loads take more than they need: the block ends where a cache line does.
    let mut out = vec![0; (metadata.argument_bytes as usize).next_multiple_of(64)];
    let mut given = params.iter().enumerate();
    for argument in &metadata.arguments {
        let value: Vec<u8> = if argument.kind.is_hidden() {
            hidden(argument.kind, launch).to_le_bytes().into()
        } else {
            let Some((i, param)) = given.next() else { break };
            if param.bytes().len() != argument.size as usize {
                let found = param.bytes().len();
                return Err(format!("argument {i}: expected {} bytes, found {found}", argument.size));
            }
            param.bytes().into()
        };
        let at = argument.offset as usize;
        let place = out.get_mut(at..at + argument.size as usize);
        match (place, value.get(..argument.size as usize)) {
            (Some(place), Some(value)) => place.copy_from_slice(value),
            _ => return Err(format!("an argument of {} bytes at {at} does not fit its block", argument.size)),
        }
    }
    Ok(out)
}

/// What a launch says of itself; blocks are always whole.
fn hidden(kind: ArgumentKind, launch: &Launch) -> u64 {
    let along = |sizes: [u32; 3], axis: u8| sizes.get(usize::from(axis)).map_or(0, |n| u64::from(*n));
    match kind {
        ArgumentKind::BlockCount(axis) => along(launch.grid, axis),
        ArgumentKind::GroupSize(axis) => along(launch.block, axis),
        ArgumentKind::GridDims => {
            (0..3).rev().find(|a| launch.grid[*a] * launch.block[*a] > 1).map_or(1, |a| a as u64 + 1)
        }
        ArgumentKind::DynamicSharedSize => u64::from(launch.shared),
        ArgumentKind::PrivateBase => u64::from(PRIVATE_WINDOW),
        ArgumentKind::SharedBase => u64::from(SHARED_WINDOW),
        _ => 0,
    }
}

/// The dispatch packet, from which older code takes the shape of the launch.
fn packet(launch: &Launch) -> Vec<u8> {
    let mut out = vec![0; 64];
    for axis in 0..3 {
        let (block, grid) = (launch.block[axis], launch.grid[axis].saturating_mul(launch.block[axis]));
        out[4 + 2 * axis..][..2].copy_from_slice(&(block as u16).to_le_bytes());
        out[12 + 4 * axis..][..4].copy_from_slice(&grid.to_le_bytes());
    }
    out
}
