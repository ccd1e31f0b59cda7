//! Training: how a model is configured, fed, stepped, saved and stopped.

pub mod config;
