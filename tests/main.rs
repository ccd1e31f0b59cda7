//! One integration binary: one link for all integration tests.

mod checkpoint;
mod data;
