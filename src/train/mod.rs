//! Training: how a model is configured, fed, stepped, saved and stopped.

pub mod checkpoint;
pub mod config;
pub mod loss_scale;
pub mod schedule;
pub mod trainer;
