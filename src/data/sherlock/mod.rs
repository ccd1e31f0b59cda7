//! One film, several viewers: frames, sound and words, and the brain's answer to them, one sample a TR and subject.
//!
//! ```text
//! ROOT/sherlock.json                    what there is
//! ROOT/video.npy [T, H, W, 3]           mean frame of a TR, 0 to 1
//! ROOT/audio.npy [T, mels]              mel spectrum in dB below the loudest
//! ROOT/text.npy  [T, dim]               embedding of the description
//! ROOT/fmri_s1.npy [T, voxels] ...      one brain each, in the scanner's units
//! ROOT/mask.nii.gz                      where the voxels lie, if known
//! ```

mod align;
mod batch;
pub mod config;
mod dataset;
pub mod hrf;
pub mod import;
mod manifest;
pub mod prediction;
mod recording;
mod statistics;
pub mod synthetic;
pub mod validate;

pub use batch::{Batch, Sizes, Stimulus};
pub use config::SherlockDataConfig;
pub use dataset::SherlockDataset;
pub use manifest::{MANIFEST, Manifest, Subject};
pub use recording::{Part, Recording};
pub use statistics::VoxelStatistics;
