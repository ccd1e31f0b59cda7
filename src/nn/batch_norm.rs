//! Batch normalisation, which remembers what it has seen.

use crate::error::Result;
use crate::nn::{Init, Pass, Scope, cast};
use crate::ops::batch_norm::{BatchNorm as BatchNormOp, Statistics};
use crate::tape::{Buffer, Param, Tape, Var};
use crate::tensor::Dtype;

/// Added to every variance.
const EPS: f32 = 1e-5;
/// Weight of a batch in the running statistics.
const MOMENTUM: f32 = 0.1;

/// Every channel to mean 0 and variance 1 over the batch, then scaled and shifted, in f32 whatever the pass computes in.
/// Training passes normalise by the batch and renew the running statistics; others normalise by those.
///
/// # Shapes
/// `x [B, C, ..]` → the same, in f32. Training needs 2 numbers a channel or more.
///
/// # Parameters
/// `weight [C]` starting at 1, `bias [C]` starting at 0; buffers `running_mean [C]` starting at 0, `running_var [C]` starting
/// at 1, and the counter `num_batches_tracked`.
///
/// # Source
/// PyTorch's `torch.nn.BatchNorm1d` and `BatchNorm2d`: names, eps 1e-5, momentum 0.1, running variance unbiased.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    weight: Param,
    bias: Param,
    mean: Buffer,
    variance: Buffer,
}

impl BatchNorm {
    /// A norm of `c` channels.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn new(scope: &mut Scope<'_>, c: usize) -> Result<BatchNorm> {
        let weight = scope.param("weight", [c], Init::Ones)?;
        let bias = scope.param("bias", [c], Init::Zeros)?;
        let mean = scope.buffer("running_mean", [c], Init::Zeros)?;
        let variance = scope.buffer("running_var", [c], Init::Ones)?;
        scope.counter("num_batches_tracked", variance)?;
        Ok(BatchNorm { weight, bias, mean, variance })
    }

    /// Normalises.
    ///
    /// # Errors
    /// As the operator.
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        let x = cast(tape, x, Dtype::F32)?;
        let (weight, bias) = (tape.param(self.weight)?, tape.param(self.bias)?);
        let inputs = [x, weight, bias, tape.buffer(self.mean)?, tape.buffer(self.variance)?];
        if !pass.train {
            return tape.apply(BatchNormOp { eps: EPS, statistics: Statistics::Running }, inputs);
        }
        let op = BatchNormOp { eps: EPS, statistics: Statistics::Batch { momentum: MOMENTUM } };
        let results = tape.apply_all(op, inputs)?;
        for (buffer, new) in [self.mean, self.variance].into_iter().zip(results.iter().skip(1)) {
            tape.renew(buffer, *new)?;
        }
        Ok(results.first().copied().unwrap_or(x))
    }
}
