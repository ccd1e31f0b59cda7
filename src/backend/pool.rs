//! Memory of one device: freed blocks are kept for the next tensor of their size, and the high-water mark is known.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backend::memory;
use crate::error::Result;
use crate::tensor::Recycle;

/// Bytes in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub now: usize,
    /// At most, since the start or the last reset.
    pub peak: usize,
}

/// Blocks below this size come from the allocator each time: it is fast for them.
const SMALL_WORDS: usize = 1 << 12;
/// A kept block may be this much larger than what is asked, so that neighbouring sizes share blocks.
const SLACK: usize = 8;

/// Freed blocks by size, and counters.
pub(crate) struct Pool {
    free: Mutex<BTreeMap<usize, Vec<Vec<u64>>>>,
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Pool {
    pub(crate) fn new() -> Pool {
        Pool { free: Mutex::new(BTreeMap::new()), now: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }

    /// Counts `bytes` that are held outside the pool for good.
    pub(crate) fn count(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    /// Counts a planned tensor.
    pub(crate) fn plan(&self, bytes: usize) {
        self.count(bytes);
    }

    /// A block of at least `bytes`, from the kept ones if one fits closely.
    pub(crate) fn take(&self, bytes: usize) -> Result<Vec<u64>> {
        let words = bytes.div_ceil(8);
        if words >= SMALL_WORDS {
            let mut free = self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let fit = free.range(words..=words + words / SLACK).next().map(|(&size, _)| size);
            if let Some(size) = fit
                && let Some(blocks) = free.get_mut(&size)
                && let Some(block) = blocks.pop()
            {
                if blocks.is_empty() {
                    free.remove(&size);
                }
                drop(free);
                self.count(block.len() * 8);
                return Ok(block);
            }
        }
        memory::check(bytes)?;
        self.count(words * 8);
        Ok(vec![0; words])
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage { now: self.now.load(Ordering::Relaxed), peak: self.peak.load(Ordering::Relaxed) }
    }

    pub(crate) fn reset_peak(&self) -> Usage {
        let now = self.now.load(Ordering::Relaxed);
        Usage { now, peak: self.peak.swap(now, Ordering::Relaxed) }
    }
}

impl Recycle for Pool {
    fn recycle(&self, words: Vec<u64>) {
        self.now.fetch_sub(words.len() * 8, Ordering::Relaxed);
        if words.len() >= SMALL_WORDS {
            let mut free = self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            free.entry(words.len()).or_default().push(words);
        }
    }

    fn forget(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_block_serves_the_next_tensor_of_its_size() {
        let pool = Pool::new();
        let block = pool.take(80_000).unwrap();
        let at = block.as_ptr();
        pool.recycle(block);
        let again = pool.take(79_000).unwrap();
        assert_eq!(again.as_ptr(), at);
        let other = pool.take(79_000).unwrap();
        assert_ne!(other.as_ptr(), at);
        assert!(pool.take(40_000).unwrap().len() < 6_000, "a block much too large is not given away");
    }
}
