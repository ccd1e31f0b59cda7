//! Whether the machine has the memory, asked before it is taken: an allocation that the kernel grants and cannot keep ends
//! the process without a word.

use crate::error::{Error, Result};

/// Below this size the question costs more than it saves.
const WORTH_ASKING_BYTES: usize = 64 << 20;

/// Bytes that can be taken without swapping, where the system tells.
pub(crate) fn available_bytes() -> Option<usize> {
    meminfo("MemAvailable:")
}

/// Bytes of memory, where the system tells.
pub(crate) fn total_bytes() -> Option<usize> {
    meminfo("MemTotal:")
}

fn meminfo(field: &str) -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Whether `bytes` can be had.
pub(crate) fn check(bytes: usize) -> Result<()> {
    if bytes < WORTH_ASKING_BYTES {
        return Ok(());
    }
    match available_bytes() {
        Some(free) if free < bytes => Err(Error::OutOfMemory(
            format!("out of memory: asked {bytes} bytes, available {free}; use a smaller batch or checkpointing")
                .into(),
        )),
        _ => Ok(()),
    }
}
