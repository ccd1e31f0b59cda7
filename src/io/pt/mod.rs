//! PyTorch's `.pt`, `.pth` and `.ckpt`: a pickle and storages in a zip archive.
//!
//! Reading never executes anything: the `pytorch-reader` crate builds tensors and plain values and leaves every other
//! object opaque, and nothing here can call what a pickle names. Before it sees a file, `guard` walks through archive and
//! pickle and refuses what would cost more memory than the file's size can justify.

mod guard;
mod pickle;
mod read;
mod write;

pub use pickle::{Key, Value};
pub use read::{OwnedTensor, PtFile};
pub use write::write;
