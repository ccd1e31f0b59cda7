//! Gridded weather: folders of HDF5 files, one or several years each.

pub mod config;

pub use config::WeatherDataConfig;
