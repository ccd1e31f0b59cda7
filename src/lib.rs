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
//!
//! # In another program
//!
//! A room on one's own numbers: recorded on a tape, run backwards, counted. `Exec::open` takes another device, `cuda:0`, `hip:0`
//! or an emulated one, and nothing else changes.
//!
//! ```
//! use perfrun::backend::Exec;
//! use perfrun::ops::softmax::Softmax;
//! use perfrun::tape::Tape;
//! use perfrun::tensor::Tensor;
//!
//! # fn main() -> perfrun::error::Result<()> {
//! let exec = Exec::cpu();
//! let mut tape = Tape::new(&exec);
//! let x = tape.variable(&Tensor::from_f32([2, 3], &[1.0, 2.0, 3.0, 1.0, 1.0, 1.0])?)?;
//! let y = tape.apply(Softmax, [x])?;
//! let shares = tape.tensor(y)?.to_f32()?;
//! assert!((shares[3] - 1.0 / 3.0).abs() < 1e-6);
//! assert_eq!(tape.cost().forward.flops.special, 6); // an exponential a number
//!
//! // dy is 1 for the first number; what a row's shares change by sums to nothing.
//! let dy = Tensor::from_f32([2, 3], &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0])?;
//! if let [Some(dx)] = tape.backward_from(vec![(y, dy)], None, &[x])?.as_slice() {
//!     let dx = dx.to_f32()?;
//!     assert!(dx[0] > 0.0 && dx[..3].iter().sum::<f32>().abs() < 1e-6);
//! #   return Ok(());
//! }
//! # unreachable!("x was not reached")
//! # }
//! ```
//!
//! A model of one's own, trained by the trainer that trains the systems:
//!
//! ```
//! use perfrun::backend::Exec;
//! use perfrun::error::Result;
//! use perfrun::models::Model;
//! use perfrun::nn::{Builder, Linear, Params, Pass};
//! use perfrun::ops::matmul::Activation;
//! use perfrun::ops::squared_error::SquaredError;
//! use perfrun::tape::{Tape, Var};
//! use perfrun::tensor::Tensor;
//! use perfrun::train::config::TrainingConfig;
//! use perfrun::train::trainer::Trainer;
//!
//! struct Line {
//!     params: Params,
//!     slope: Linear,
//! }
//!
//! impl Model for Line {
//!     type Batch = [Tensor; 2];
//!
//!     fn params(&self) -> &Params {
//!         &self.params
//!     }
//!
//!     fn params_mut(&mut self) -> &mut Params {
//!         &mut self.params
//!     }
//!
//!     fn class(&self, _module: &str) -> &'static str {
//!         "Line"
//!     }
//!
//!     fn loss(&self, tape: &mut Tape<'_>, [x, y]: &[Tensor; 2], pass: &Pass) -> Result<Var> {
//!         let (x, y) = (tape.input(x)?, tape.input(y)?);
//!         let found = self.slope.forward(tape, x, Activation::None, pass)?;
//!         tape.apply(SquaredError, [found, y])
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let exec = Exec::cpu();
//! let mut builder = Builder::new();
//! let slope = Linear::uniform(&mut builder.root(), 1, 1)?;
//! let mut model = Line { params: builder.build(|layout| exec.arena(layout))?, slope };
//! model.params_mut().initialise(0)?;
//!
//! let config = TrainingConfig { weight_decay: 0.0, ..TrainingConfig::default() };
//! let mut trainer = Trainer::new(model, &exec, &config)?;
//! let x = Tensor::from_f32([4, 1], &[-1.0, 0.0, 1.0, 2.0])?;
//! let y = Tensor::from_f32([4, 1], &[-4.0, -1.0, 2.0, 5.0])?; // 3x − 1
//! let first = trainer.step(&[[x.clone(), y.clone()]], 0.05)?;
//! for _ in 0..400 {
//!     trainer.step(&[[x.clone(), y.clone()]], 0.05)?;
//! }
//! let last = trainer.step(&[[x, y]], 0.05)?;
//! assert!(last.loss < 1e-3 * first.loss, "{} after {}", last.loss, first.loss);
//! assert_eq!(last.cost.forward.flops.matmul, 2 * 4); // 2·B·K·N
//! # Ok(())
//! # }
//! ```

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
