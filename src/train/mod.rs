//! Training: how a model is configured, fed, stepped, saved and stopped.

pub mod checkpoint;
pub mod config;
