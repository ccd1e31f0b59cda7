//! One integration binary: one link for all integration tests.

mod checkpoint;
mod data;
//! One integration binary: what concerns more than one module, and the files themselves.

// Clippy knows tests by their attribute; here everything is a test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod layers;
mod rooms;
mod source;
