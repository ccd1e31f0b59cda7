//! Gridded weather: folders of HDF5 files, one or several years each.
//!
//! ```text
//! ROOT/train/*.h5  ROOT/valid/*.h5  ROOT/test/*.h5      `fields` [time, channels, latitude, longitude]
//! ROOT/stats/global_means.npy  ROOT/stats/global_stds.npy
//! ```

pub mod config;
mod dataset;
mod files;
pub mod grid;
mod moments;
mod statistics;
pub mod synthetic;
pub mod validate;

pub use config::WeatherDataConfig;
pub use dataset::{Origin, WeatherBatch, WeatherDataset, WeatherGrid};
pub use files::{FIELDS, Split};
pub use moments::{Moments, Place};
pub use statistics::Statistics;
