//! Data sets: what is read, in which order, and how it becomes a batch.
//!
//! A [`Dataset`] reads the samples it is asked for, [`Shuffle`] says in which order an epoch visits them, [`Batches`] cuts
//! the order into batches, and [`Prefetch`] reads them ahead on threads. None of them keeps a position: batch `i` of epoch
//! `e` is a function of the seed, so a run that resumes inside an epoch goes on with the very next batch.
#![warn(clippy::indexing_slicing)]

mod prefetch;
pub mod sherlock;
mod shuffle;
pub mod weather;

pub use prefetch::Prefetch;
pub use shuffle::{Batches, Shuffle};

use crate::error::Result;

/// Samples that can be read in any order, by several threads at once.
pub trait Dataset: Send + Sync {
    /// What several samples together become.
    type Batch: Send;

    /// How many samples there are.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads these samples, in this order, into one batch.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::error::Error::Argument) for an index that is not below [`Dataset::len`];
    /// [`Error::Data`](crate::error::Error::Data) if the files are at fault, naming the place.
    fn batch(&self, indices: &[usize]) -> Result<Self::Batch>;
}
