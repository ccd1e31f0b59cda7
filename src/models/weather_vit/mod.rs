//! A vision transformer over a latitude-longitude grid: the weather one step ahead.

pub mod config;

pub use config::WeatherVitConfig;
