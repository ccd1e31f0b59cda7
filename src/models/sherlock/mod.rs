//! An autoencoder of a film and of the brain that watches it: stimulus to bottleneck to voxels, and back to the stimulus.

pub mod config;

pub use config::SherlockConfig;
