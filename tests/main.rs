//! One integration binary: one link for all integration tests.

// Clippy knows tests by their attribute; here everything is a test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backends;
mod budgets;
mod checkpoint;
mod config;
mod data;
mod emulators;
mod forecast;
mod formats;
mod kernels;
mod layers;
mod malformed_data;
mod models;
mod perfrun;
mod planted_faults;
mod profile;
mod rooms;
mod scale;
mod sherlock;
mod sherlock_data;
mod sherlock_import;
mod sherlock_learns;
mod sherlock_malformed;
mod signals;
mod slurm;
mod source;
mod tiny;
mod train;
mod validate;
mod verify;
