//! Memory of one device: freed blocks are kept for the next tensor of their size, in the order of the stream, and the
//! high-water mark is known.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::Usage;
use crate::backend::gpu::driver::{Driver, Stream};
use crate::error::{Error, Result};

/// Every block is a multiple of this.
const GRANULE: usize = 512;
/// Sizes are rounded up by at most one part in this many, so that neighbouring sizes share blocks.
const STEPS: usize = 8;

/// Blocks of one device.
#[derive(Debug)]
pub(crate) struct DevicePool {
    driver: Arc<dyn Driver>,
    stream: Stream,
    /// Whether every block is as long as what was asked and goes straight back: so that a device which checks bounds checks
    /// those of the tensor.
    is_exact: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Freed blocks by their size.
    free: BTreeMap<usize, Vec<u64>>,
    now: usize,
    peak: usize,
}

/// The size of the block that serves `bytes`.
fn class(bytes: usize) -> usize {
    let step = (bytes.checked_next_power_of_two().unwrap_or(bytes) / (2 * STEPS)).max(GRANULE);
    bytes.checked_next_multiple_of(step).unwrap_or(bytes)
}

impl DevicePool {
    /// Blocks of sizes that are shared.
    pub(crate) fn new(driver: Arc<dyn Driver>, stream: Stream) -> DevicePool {
        DevicePool { driver, stream, is_exact: false, state: Mutex::default() }
    }

    /// Blocks as long as what was asked.
    pub(crate) fn exact(driver: Arc<dyn Driver>, stream: Stream) -> DevicePool {
        DevicePool { is_exact: true, ..DevicePool::new(driver, stream) }
    }

    /// The size of the block that serves `bytes`.
    fn size(&self, bytes: usize) -> usize {
        if self.is_exact { bytes } else { class(bytes) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of at least `bytes`, more than none.
    pub(crate) fn take(&self, bytes: usize) -> Result<u64> {
        let size = self.size(bytes);
        let kept = self.state().free.get_mut(&size).and_then(Vec::pop);
        let at = match kept {
            Some(at) => at,
            None => self.fresh(size)?,
        };
        let mut state = self.state();
        state.now += size;
        state.peak = state.peak.max(state.now);
        Ok(at)
    }

    /// A block of the driver; what is kept goes back first if there is none.
    fn fresh(&self, size: usize) -> Result<u64> {
        let first = match self.driver.alloc(size, self.stream) {
            Err(Error::OutOfMemory(_)) => self.trim().and_then(|()| self.driver.alloc(size, self.stream)),
            other => other,
        };
        first.map_err(|e| match e {
            Error::OutOfMemory(words) => {
                let Usage { now, peak } = self.usage();
                Error::out_of_memory(format!(
                    "{words}, in use {now}, high-water mark {peak}; use a smaller batch or checkpointing"
                ))
            }
            other => other,
        })
    }

    /// Gives every kept block back to the driver.
    pub(crate) fn trim(&self) -> Result<()> {
        let free = std::mem::take(&mut self.state().free);
        free.into_values().flatten().try_for_each(|at| self.driver.free(at, self.stream))?;
        self.driver.synchronize(self.stream)?;
        self.driver.trim()
    }

    /// The block of `bytes` at `at` is free again: the stream orders its next use after its last.
    pub(crate) fn give(&self, at: u64, bytes: usize) {
        let size = self.size(bytes);
        self.state().now -= size;
        if self.is_exact {
            // It was this driver's own, so there is nothing that could be told.
            drop(self.driver.free(at, self.stream));
        } else {
            self.state().free.entry(size).or_default().push(at);
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let state = self.state();
        Usage { now: state.now, peak: state.peak }
    }

    pub(crate) fn reset_peak(&self) -> Usage {
        let mut state = self.state();
        let until_now = Usage { now: state.now, peak: state.peak };
        state.peak = state.now;
        until_now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::gpu::driver::Arch;
    use crate::backend::gpu::dry::Dry;

    /// 64 GB.
    fn pool() -> DevicePool {
        DevicePool::new(Arc::new(Dry::new(Arch::GFX90A).unwrap()), Stream::DEFAULT)
    }

    #[test]
    fn a_freed_block_serves_the_next_of_its_size_and_the_mark_stays() {
        let pool = pool();
        let (a, b) = (pool.take(100_000).unwrap(), pool.take(100_000).unwrap());
        assert_ne!(a, b);
        let two = pool.usage();
        pool.give(a, 100_000);
        assert_eq!(pool.take(99_000).unwrap(), a);
        assert_eq!(pool.usage(), two);
        pool.give(a, 99_000);
        pool.give(b, 100_000);
        assert_eq!(pool.usage(), Usage { now: 0, peak: two.peak });
        pool.reset_peak();
        assert_eq!(pool.usage().peak, 0);
    }

    #[test]
    fn what_is_kept_goes_back_before_memory_is_said_to_be_out() {
        let pool = pool();
        let large = pool.take(40_000_000_000).unwrap();
        pool.give(large, 40_000_000_000);
        let other = pool.take(50_000_000_000).unwrap();
        let text = pool.take(20_000_000_000).unwrap_err().to_string();
        assert!(text.starts_with("dry:gfx90a: out of memory: asked 2"), "{text}");
        assert!(text.contains(" of 64000000000, in use 5") && text.contains(", high-water mark 5"), "{text}");
        pool.give(other, 50_000_000_000);
        pool.take(20_000_000_000).unwrap();
    }

    #[test]
    fn a_block_is_at_most_an_eighth_larger_than_what_is_asked_and_its_size_is_its_own_class() {
        for bytes in (1..5000).chain([1 << 20, (1 << 20) + 1, 123_456_789, 4_000_000_001]) {
            let size = class(bytes);
            assert!(size >= bytes && size <= (bytes + bytes / STEPS).max(bytes.next_multiple_of(GRANULE)), "{bytes}");
            assert_eq!(class(size), size, "{bytes}");
        }
    }
}
