//! File formats: bounds-checked, without tensor logic.
//!
//! Every reader treats its file as written by a stranger: lengths and offsets are checked before they are used, nothing is
//! allocated that the file cannot justify, and a fault names the file, what was expected and what was found.

#![warn(clippy::indexing_slicing)]

pub mod atomic;
pub mod bytes;
pub mod hdf5;
pub mod mmap;
pub mod nifti;
pub mod npy;
pub mod page;
pub mod png;
pub mod pt;
pub mod safetensors;
pub mod stored;
pub mod wav;

pub use stored::{StoredDtype, TensorView};
