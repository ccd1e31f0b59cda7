//! File formats: bounds-checked, without tensor logic.
//!
//! Every reader treats its file as written by a stranger: lengths and offsets are checked before they are used, nothing is
//! allocated that the file cannot justify, and a fault names the file, what was expected and what was found.

#![warn(clippy::indexing_slicing)]

pub mod atomic;
pub mod hdf5;
pub mod mmap;
pub mod npy;
//! File formats, bounds-checked, without tensor logic: bytes in, named and typed views out.
//!
//! Every length and offset that a file declares is compared with the file's own size before it sizes an allocation,
//! so a hostile file costs no more memory than its own bytes and a fault is a message, never a panic.

#![warn(clippy::indexing_slicing)]

pub mod bytes;
pub mod safetensors;
pub mod stored;

pub use stored::{StoredDtype, TensorView};
