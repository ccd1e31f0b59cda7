//! One film, several viewers: frames, sound and words, and the brain's answer to them, one sample a TR and subject.

mod batch;
pub mod config;

pub use batch::{Batch, Sizes, Stimulus};
pub use config::SherlockDataConfig;
