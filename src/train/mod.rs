//! Training: how a model is configured, fed, stepped, saved and stopped.

pub mod config;
//! How a model learns, stops and goes on.

pub mod checkpoint;
