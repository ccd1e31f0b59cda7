//! A decoded kernel.

use std::ops::Range;

use super::hopper_op::Hopper;
use super::long_op::{Bar, MemoryOp};
use super::op::Step;
use super::syntax::Parameter;
use super::unit_op::Unit;
use crate::backend::emulator::counters::Class;

/// A kernel as the executor reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Code {
    pub name: Box<str>,
    pub parameters: Vec<Parameter>,
    pub parameter_bytes: usize,
    pub steps: Vec<Step>,
    /// What reports say of each step.
    pub listings: Vec<Listing>,
    /// The place of each line in the text.
    pub texts: Vec<Range<usize>>,
    pub consts32: Vec<[u32; 32]>,
    pub consts64: Vec<[u64; 32]>,
    pub rows32: usize,
    pub rows64: usize,
    pub predicates: usize,
    pub memory: Vec<MemoryOp>,
    pub units: Vec<Unit>,
    pub hopper: Vec<Hopper>,
    pub bars: Vec<Bar>,
    pub tables: Vec<Vec<u32>>,
    pub static_shared: usize,
    /// Where dynamic shared memory starts.
    pub dynamic_start: usize,
    pub local_bytes: usize,
    pub max_threads: Option<u32>,
    pub cluster: Option<[u32; 3]>,
    /// Whether it is for compute capability 9.
    pub is_hopper: bool,
    /// Whether it updates global memory atomically, so that blocks must run one after the other for the same bits.
    pub has_global_atomics: bool,
}

/// What reports say of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listing {
    /// The line of the entry.
    pub line: u32,
    /// Its class; none for all but the last step of a line.
    pub class: Option<Class>,
    /// FLOPs of a lane.
    pub flops: u32,
}
