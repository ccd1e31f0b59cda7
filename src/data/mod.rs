//! Data sets: what is read, in which order, and how it becomes a batch.
#![warn(clippy::indexing_slicing)]

pub mod weather;
