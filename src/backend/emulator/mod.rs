//! Devices that are executed rather than opened: what the compilers printed for a GPU, run on this machine.
//!
//! The parts that every target shares are here: global [`memory`], the [`schedule`] that decides what the programming
//! model leaves open, the [`fault`] that a wrong kernel ends with, and [`counters`] of what ran.

pub mod cdna;
pub mod counters;
pub mod fault;
pub mod memory;
pub mod ptx;
pub mod schedule;

pub use counters::Counters;
pub use fault::Fault;
pub use memory::Memory;
pub use schedule::Schedule;
