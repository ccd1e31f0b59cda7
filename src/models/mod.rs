//! The models: what is built from layers, and what each one needs to know to be built.

pub mod sherlock;
pub mod weather_vit;

use crate::error::Result;
use crate::nn::{Params, Pass};
use crate::tape::{Tape, Var};

/// What the trainer needs to know of a model. The loss belongs to the model, because models train on other targets than
/// they predict.
pub trait Model {
    /// What one forward pass consumes; defined in [`data`](crate::data).
    type Batch;

    /// The parameters.
    fn params(&self) -> &Params;

    /// The parameters, for the optimiser and for loading.
    fn params_mut(&mut self) -> &mut Params;

    /// What kind of layer the module of this path is, in reports; the model itself has the empty path.
    fn class(&self, module: &str) -> &'static str;

    /// Records the loss of `batch`, a scalar in f32: the mean over its samples.
    ///
    /// # Errors
    /// If the batch does not fit the model; what the device reports.
    fn loss(&self, tape: &mut Tape<'_>, batch: &Self::Batch, pass: &Pass) -> Result<Var>;
}
