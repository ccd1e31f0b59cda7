//! Training: how a model is configured, fed, stepped, saved and stopped.

pub mod budget;
pub mod checkpoint;
pub mod config;
pub mod evaluation;
pub mod log;
pub mod loss_scale;
pub mod observer;
pub mod profile;
pub mod resume;
pub mod run;
pub mod scaling;
pub mod schedule;
mod session;
mod shadow;
pub mod sherlock;
pub mod stop;
pub mod system;
pub mod trainer;
pub mod verify;
pub mod wandb;
pub mod weather;
