//! Devices that are executed rather than opened: what the compilers printed for a GPU, run on this machine.
//!
//! The parts that every target shares are here: global [`memory`], the [`schedule`] that decides what the programming
//! model leaves open, the [`fault`] that a wrong kernel ends with, and [`counters`] of what ran.

pub mod cdna;
pub mod counters;
pub(crate) mod device;
pub mod fault;
pub mod memory;
pub mod ptx;
pub mod schedule;

pub use counters::Counters;
pub use fault::Fault;
pub use memory::Memory;
pub use schedule::Schedule;

use std::sync::Arc;

use crate::backend::gpu::driver::Arch;
use crate::error::{Error, Result};

/// PTX text, ready to execute.
///
/// # Errors
/// [`Error::Driver`] if an instruction is not known, by its name.
pub(crate) fn load_ptx(code: &[u8], arch: Arch) -> Result<Arc<dyn device::Code>> {
    // The compiler ends its text with a zero.
    let text = std::str::from_utf8(code.strip_suffix(&[0]).unwrap_or(code));
    let text = text.map_err(|_| Error::driver(format!("emu:{arch}: expected PTX text, found other bytes")))?;
    Ok(Arc::new(ptx::Module::parse(text)?))
}

/// An AMD code object, ready to execute.
///
/// # Errors
/// [`Error::Driver`] if it is damaged, or an instruction is not known.
pub(crate) fn load_code_object(elf: &[u8], arch: Arch) -> Result<Arc<dyn device::Code>> {
    Ok(Arc::new(cdna::Module::load(elf, arch)?))
}
