//! Devices of NVIDIA, executed from the PTX text that the compiler prints.
//!
//! ```text
//! text ──lex, parse──▶ lines ──decode──▶ steps ──launch──▶ clusters on threads ──▶ warps in turns ──▶ 32 lanes a step
//! ```
//!
//! A register is a row of 32 lanes, a predicate a word of 32 bits. Lanes of a warp that have parted run the furthest behind
//! first and join again where they meet. Warps of a block take turns as the schedule says; asynchronous work is done at once
//! or as late as the waits allow; shared memory starts poisoned, every access is checked for bounds, alignment and races.
//! What this cannot tell: speed, weak memory ordering between blocks, missing proxy fences.

mod access;
mod asynchronous;
mod barrier;
mod cluster;
mod code;
mod convert;
mod decode;
mod exchange;
mod exec;
mod float;
mod function;
#[cfg(test)]
mod golden;
mod half;
mod hopper;
mod hopper_op;
mod integer;
mod launch;
mod lex;
mod load;
mod long_op;
mod op;
mod parse;
mod phases;
mod races;
mod rare;
mod rows;
mod syntax;
mod unit;
mod unit_op;
pub mod units;
mod warp;
mod window;

use std::collections::HashMap;
use std::sync::Arc;

pub use syntax::Parameter;

use self::code::Code;
use self::launch::Shape;
use self::syntax::{Unit, Variable};
use super::fault::Fault;
use super::memory::{Memory, Region};
use super::{Counters, Schedule};
use crate::error::{Error, Result};

/// PTX text, decoded: entry points and the variables they share.
#[derive(Debug)]
pub struct Module {
    source: Arc<str>,
    entries: Vec<Code>,
    /// Module variables, in an allocation that every launch sees.
    variables: Option<Arc<Region>>,
}

/// What is known of an entry point.
#[derive(Clone, Copy, Debug)]
pub struct EntryInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its parameters, in order.
    pub parameters: &'a [Parameter],
    /// Bytes of shared memory that it declares.
    pub static_shared: usize,
    /// Bytes of local memory of a thread.
    pub local: usize,
    /// Most threads of a block, if it says so.
    pub max_threads: Option<u32>,
    /// The shape of a cluster, if it requires one.
    pub cluster: Option<[u32; 3]>,
    /// Rows of registers that a warp needs here; not what the hardware's compiler will allocate.
    pub registers: usize,
}

/// A launch.
#[derive(Clone, Debug)]
pub struct Grid<'a> {
    /// The entry point.
    pub entry: &'a str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster along x, y, z; `[1, 1, 1]` for none.
    pub cluster: [u32; 3],
    /// Bytes of shared memory beyond what the entry declares.
    pub dynamic_shared: u32,
    /// Whether all blocks are resident at once, because they wait for one another.
    pub is_cooperative: bool,
    /// Steps of a cluster after which it counts as endless; none for a generous number.
    pub budget: Option<u64>,
}

impl<'a> Grid<'a> {
    /// A launch of `grid` blocks of `block` threads, without clusters and dynamic shared memory.
    pub fn new(entry: &'a str, grid: [u32; 3], block: [u32; 3]) -> Grid<'a> {
        Grid { entry, grid, block, cluster: [1; 3], dynamic_shared: 0, is_cooperative: false, budget: None }
    }
}

/// Where module variables lie: below every allocation.
const VARIABLES: u64 = 0x7e00_0000_0000;

impl Module {
    /// Reads and decodes PTX text.
    ///
    /// # Errors
    /// [`Error::Driver`] with the line, if the text or an instruction of it is not known.
    pub fn parse(text: &str) -> Result<Module> {
        let unit = parse::parse(text)?;
        let (addresses, bytes) = place(&unit.globals);
        let mut module = Module { source: text.into(), entries: vec![], variables: None };
        if bytes > 0 {
            module.variables = Some(Arc::new(Region::filled(VARIABLES, &initial(&unit, &addresses, bytes)?)));
        }
        for entry in &unit.entries {
            module.entries.push(decode::decode(text, entry, &addresses, &unit.shared, &unit.target)?);
        }
        Ok(module)
    }

    /// Its entry points.
    pub fn entries(&self) -> impl Iterator<Item = EntryInfo<'_>> {
        self.entries.iter().map(|code| EntryInfo {
            name: &code.name,
            parameters: &code.parameters,
            static_shared: code.static_shared,
            local: code.local_bytes,
            max_threads: code.max_threads,
            cluster: code.cluster,
            registers: code.rows32 + 2 * code.rows64,
        })
    }

    /// Runs an entry point to its end.
    ///
    /// # Errors
    /// [`Error::Argument`] if the launch does not fit the entry point, [`Error::Driver`] with the [`Fault`] of the kernel.
    pub fn launch(&self, grid: &Grid, params: &[Vec<u8>], memory: &Memory, schedule: Schedule) -> Result<Counters> {
        self.try_launch(grid, params, memory, schedule)?.map_err(Error::from)
    }

    /// Like [`Module::launch`], with the kernel's fault as it is.
    ///
    /// # Errors
    /// [`Error::Argument`] if the launch does not fit the entry point.
    pub fn try_launch(
        &self,
        grid: &Grid,
        params: &[Vec<u8>],
        memory: &Memory,
        schedule: Schedule,
    ) -> Result<Result<Counters, Fault>> {
        let code = self.entries.iter().find(|c| *c.name == *grid.entry).ok_or_else(|| {
            let names: Vec<&str> = self.entries.iter().map(|c| &*c.name).collect();
            Error::argument(format!("{}: no such entry point; there are {}", grid.entry, names.join(", ")))
        })?;
        let shape = shape(code, grid)?;
        let parameters = pack(code, params)?;
        let space = memory.space();
        let space = match &self.variables {
            Some(region) => Arc::new(space.with(region.clone())),
            None => space,
        };
        Ok(launch::launch(code, &self.source, &shape, &parameters, space, schedule))
    }
}

/// Addresses of module variables and the bytes that they take.
fn place(variables: &[Variable]) -> (HashMap<Box<str>, u64>, usize) {
    let (mut addresses, mut at) = (HashMap::new(), 0usize);
    for v in variables {
        at = at.next_multiple_of(v.align);
        addresses.insert(v.name.clone(), VARIABLES + at as u64);
        at += v.bytes;
    }
    (addresses, at)
}

/// The first bytes of module variables.
fn initial(unit: &Unit, addresses: &HashMap<Box<str>, u64>, bytes: usize) -> Result<Vec<u8>> {
    let mut all = vec![0; bytes];
    for v in &unit.globals {
        let at = (addresses[&v.name] - VARIABLES) as usize;
        let too_many = || Error::driver(format!("ptx: {}: more initial values than it holds", v.name));
        let to = all.get_mut(at..at + v.initial.len().min(v.bytes)).ok_or_else(too_many)?;
        to.copy_from_slice(&v.initial[..to.len()]);
        for (offset, name) in &v.pointers {
            let address = addresses.get(name).ok_or_else(|| Error::driver(format!("ptx: {}: {name}?", v.name)))?;
            let to = to.get_mut(*offset..*offset + 8).ok_or_else(too_many)?;
            let value = u64::from_le_bytes(to.try_into().unwrap_or_default()).wrapping_add(*address);
            to.copy_from_slice(&value.to_le_bytes());
        }
    }
    Ok(all)
}

/// Checks what a launch asks for.
fn shape(code: &Code, grid: &Grid) -> Result<Shape> {
    let wrong = |what: String| Error::argument(format!("{}: {what}", code.name));
    let threads: u64 = grid.block.iter().map(|&n| u64::from(n)).product();
    if threads == 0 || grid.grid.contains(&0) || grid.cluster.contains(&0) {
        return Err(wrong("expected at least one block of one thread".into()));
    }
    let most = code.max_threads.unwrap_or(1024).min(1024);
    if threads > u64::from(most) {
        return Err(wrong(format!("expected at most {most} threads in a block, found {threads}")));
    }
    let is_explicit = grid.cluster != [1; 3] || code.cluster.is_some();
    let cluster = if grid.cluster == [1; 3] { code.cluster.unwrap_or(grid.cluster) } else { grid.cluster };
    if code.cluster.is_some_and(|c| c != cluster) {
        return Err(wrong(format!("expected clusters of {:?} blocks, found {cluster:?}", code.cluster)));
    }
    if (0..3).any(|i| !grid.grid[i].is_multiple_of(cluster[i])) || cluster.iter().product::<u32>() > 16 {
        return Err(wrong(format!("a grid of {:?} blocks cannot be cut into clusters of {cluster:?}", grid.grid)));
    }
    let shared = code.dynamic_start as u64 + u64::from(grid.dynamic_shared);
    let most = if code.is_hopper { 227 << 10 } else { 163 << 10 };
    if shared > most {
        return Err(wrong(format!("expected at most {most} bytes of shared memory, found {shared}")));
    }
    if grid.is_cooperative && grid.grid != cluster {
        return Err(wrong("a cooperative launch of several blocks is not emulated".into()));
    }
    Ok(Shape {
        grid: grid.grid,
        block: grid.block,
        cluster,
        is_explicit_cluster: is_explicit,
        dynamic_shared: grid.dynamic_shared,
        budget: grid.budget,
    })
}

/// The parameter space from its arguments.
fn pack(code: &Code, params: &[Vec<u8>]) -> Result<Vec<u8>> {
    if params.len() != code.parameters.len() {
        let (expected, found) = (code.parameters.len(), params.len());
        return Err(Error::argument(format!("{}: expected {expected} arguments, found {found}", code.name)));
    }
    let mut all = vec![0; code.parameter_bytes];
    for (i, (parameter, value)) in code.parameters.iter().zip(params).enumerate() {
        if value.len() != parameter.bytes {
            let (expected, found) = (parameter.bytes, value.len());
            return Err(Error::argument(format!(
                "{}: argument {i}: expected {expected} bytes, found {found}",
                code.name
            )));
        }
        all[parameter.offset..][..parameter.bytes].copy_from_slice(value);
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
