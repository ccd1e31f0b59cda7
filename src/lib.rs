//! GPU kernels first: hand-written kernels behind a small autograd tape, and training systems written against it.
//!
//! ```text
//! data ──batch──▶ model ──records──▶ tape ──runs──▶ ops ──launch──▶ backend ──code──▶ kernels
//!                   ▲                  │
//!                 train ◀──loss, gradients, cost──┘
//! ```
//!
//! Read `ops` for what an operator means, `tape` for how gradients flow, `nn` and `models` for what is built from them,
//! `train` for how it learns, `backend` for how the device is reached. Modules import downwards only; `tests/layers.rs`
//! holds the rule.

pub mod backend;
pub mod cost;
pub mod data;
pub mod error;
pub mod io;
pub mod models;
pub mod nn;
pub mod ops;
pub mod rng;
pub mod scalar;
pub mod tape;
pub mod tensor;
pub mod train;
