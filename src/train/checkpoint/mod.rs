//! Checkpoints: a folder that is whole or does not exist.
//!
//! ```text
//! checkpoints/base/
//!   checkpoint_epoch_5/
//!     model.safetensors       weights, readable by others
//!     optimizer.safetensors   moments, named `<parameter>.exp_avg` and so on
//!     state.json              everything else: step, epoch, position in the shuffled epoch, RNG, schedule, budget, config
//!     manifest.json           the hash of every tensor and file, and of itself
//!   best_checkpoint/ ...
//! ```
//!
//! A save writes a hidden folder beside the others, waits until all of it is on the disk, and publishes it by one rename.
//! Whoever dies in between leaves the hidden folder, which the next save clears away. There is no file that says which
//! checkpoint is the latest: it is found by looking, and only one that verifies counts. Nothing is used before its hash
//! was compared: `open` reads each file once, and what was hashed is what is handed out.
//!
//! The same weights and state give the same bytes: no time, no host and no path is written.

mod diff;
mod export;
mod file_ops;
mod import;
mod manifest;
mod name;
mod open;
mod report;
mod rotate;
mod store;
mod write;

pub use diff::{DiffReport, Difference, diff};
pub use export::{Contents, export};
pub use file_ops::{Disk, DurableFile, FileOps, Kind, Lock};
pub use import::{ImportOptions, Imported, import};
pub use name::CheckpointName;
pub(crate) use open::check_names;
pub use open::{Checkpoint, Verification, verify};
pub use report::{ListReport, Listed, ShowReport, list, resolve, show};
pub use store::{CheckpointStore, Found, Latest, SaveRequest, Saved};

/// The weights' file.
pub const WEIGHTS: &str = "model.safetensors";
/// The optimizer's file.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The file of everything else.
pub const STATE: &str = "state.json";
/// The file of hashes.
pub const MANIFEST: &str = "manifest.json";
/// Every file that a checkpoint has; nothing else in its folder is ever removed.
const FILES: [&str; 4] = [WEIGHTS, OPTIMIZER, STATE, MANIFEST];
