//! `batch_norm`: every channel to mean 0 and variance 1 over the batch, then scaled and shifted.

mod cases;
mod cpu;
mod launch;
mod reference;
mod whole;

#[cfg(test)]
mod tests;

use crate::backend::Exec;
use crate::backend::gpu::kernel::Unit;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::contract::Room;
use crate::ops::host;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, expect_inputs,
};
use crate::tensor::{Dtype, Spec, expect_dtype, expect_shape};

/// Batch normalisation over all axes but the second.
///
/// ```text
/// y[b, c, s] = (x[b, c, s] − mean[c]) · rstd[c] · weight[c] + bias[c]        rstd = 1/√(variance + eps)
/// ```
///
/// With [`Statistics::Batch`], mean and (biased) variance are those of the `n = B·S` numbers of a channel, and
///
/// ```text
/// new_mean = (1 − momentum)·running_mean + momentum·mean
/// new_var  = (1 − momentum)·running_var  + momentum·variance·n/(n − 1)
/// ```
///
/// are results too. With [`Statistics::Running`] they are `running_mean` and `running_var`, and `y` is the only result.
///
/// # Shapes
/// `x [B, C, ..]`, `weight [C]`, `bias [C]`, and `running_mean [C]`, `running_var [C]`, which are always f32 → `y` like `x`,
/// with batch statistics also `new_mean [C]`, `new_var [C]` in f32; these save `mean`, `rstd` `[C]`. Every gradient is exact,
/// also that of the running statistics and that which flows to the new ones.
///
/// # Units
/// `y` has the unit of `bias`; `eps` that of `x` squared.
///
/// # Cost
/// For each of the `C` channels of `n` numbers. Batch statistics: forward `7·n + 11` vector, 1 special; backward `n` vector for x
/// or bias, `4·n` for x or weight, `6·n + 10` for x, 1 for each of the running statistics. Running statistics: forward
/// `3·n + 3` vector, 1 special; backward `n` for x, `n` for bias or `running_mean`, `4·n` for weight or `running_var`, 1 for
/// `running_mean`, 3 for `running_var`; recomputed 2 vector and 1 special unless only bias is wanted, 1 vector more for all
/// but weight.
///
/// # Errors
/// [`Error::Shape`] unless `x` has two axes or more and the others are `[C]`, or if batch statistics have fewer than 2 numbers
/// a channel, or there is no channel or no space; [`Error::Dtype`] unless `x`, `weight` and `bias` are the same of f32, bf16 and f16 and the statistics f32;
/// [`Error::Argument`] unless `eps` is positive and `momentum` in [0, 1].
///
/// # Source
/// Ioffe, Szegedy 2015, algorithms 1 and 2; the running variance is unbiased, as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance. Positive.
    pub eps: f32,
    /// Which mean and variance.
    pub statistics: Statistics,
}

/// Where mean and variance come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistics {
    /// From the batch: training.
    Batch {
        /// Weight of the batch in the new running statistics, in [0, 1].
        momentum: f32,
    },
    /// From the running statistics: evaluation.
    Running,
}

impl Arity<5> for BatchNorm {}

/// Sizes of one application: samples, channels, numbers of a channel in a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    batch: usize,
    channels: usize,
    space: usize,
}

impl Size {
    fn of(x: &Spec) -> Size {
        let (batch, channels) = (x.shape().first().copied().unwrap_or(0), x.shape().get(1).copied().unwrap_or(0));
        Size { batch, channels, space: x.shape().iter().skip(2).product() }
    }

    /// Numbers of a channel.
    fn n(self) -> usize {
        self.batch * self.space
    }
}

/// Positions of the inputs.
const X: usize = 0;
const WEIGHT: usize = 1;
const BIAS: usize = 2;
const MEAN: usize = 3;
const VAR: usize = 4;

impl Operator for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let [x, weight, bias, mean, var] = expect_inputs("batch_norm", inputs)?;
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(Error::argument(format!("batch_norm: eps: expected a positive number, found {}", self.eps)));
        }
        expect_dtype("batch_norm", "x", x, &Dtype::FLOATS)?;
        if x.rank() < 2 {
            return Err(Error::shape(format!("batch_norm: x: expected [B, C, ..], found {:?}", x.shape())));
        }
        let s = Size::of(x);
        if s.channels == 0 || s.space == 0 {
            let found = x.shape();
            return Err(Error::shape(format!("batch_norm: x: expected C and space of 1 or more, found {found:?}")));
        }
        for (name, spec) in [("weight", weight), ("bias", bias)] {
            expect_dtype("batch_norm", name, spec, &[x.dtype()])?;
            expect_shape("batch_norm", name, spec, &[("C", s.channels)])?;
        }
        for (name, spec) in [("running_mean", mean), ("running_var", var)] {
            expect_dtype("batch_norm", name, spec, &[Dtype::F32])?;
            expect_shape("batch_norm", name, spec, &[("C", s.channels)])?;
        }
        let y = (*x).clone();
        match self.statistics {
            Statistics::Running => Ok(Outputs::one(y)),
            Statistics::Batch { momentum } if !(0.0..=1.0).contains(&momentum) => {
                Err(Error::argument(format!("batch_norm: momentum: expected a number in [0, 1], found {momentum}")))
            }
            Statistics::Batch { .. } if s.n() < 2 => {
                let found = x.shape();
                Err(Error::shape(format!(
                    "batch_norm: x: batch statistics need 2 numbers a channel or more, found {found:?}"
                )))
            }
            Statistics::Batch { .. } => {
                let channel = Spec::f32([s.channels])?;
                Ok(Outputs { y: vec![y, channel.clone(), channel.clone()], saved: vec![channel.clone(), channel] })
            }
        }
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let s = Size::of(x[X]);
        let (n, c) = (s.n() as u128, s.channels as u128);
        let any = |inputs: &[usize], vector: u128| if inputs.iter().any(|&i| wanted.has(i)) { vector } else { 0 };
        let sums = |shift: usize, scale: usize| any(&[shift, BIAS], n) + any(&[scale, WEIGHT], 4 * n);
        let (forward, backward, recomputed) = match self.statistics {
            Statistics::Batch { .. } => {
                let backward = sums(X, X) + any(&[X], 6 * n + 10) + any(&[MEAN], 1) + any(&[VAR], 1);
                (7 * n + 11, backward, Flops::ZERO)
            }
            Statistics::Running => {
                let backward = sums(MEAN, VAR) + any(&[X], n) + any(&[MEAN], 1) + any(&[VAR], 3);
                let recomputed = any(&[X, WEIGHT, MEAN, VAR], 2) + any(&[X, MEAN, VAR], 1);
                let special = any(&[X, WEIGHT, MEAN, VAR], 1);
                (3 * n + 3, backward, Flops::vector(recomputed) + Flops::special(special))
            }
        };
        OpFlops {
            forward: (Flops::vector(forward) + Flops::special(1)) * c,
            backward: Flops::vector(backward) * c,
            recomputed: recomputed * c,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::forward(self, gpu, io);
        }
        host::forward(self, io)
    }
}

impl Differentiable for BatchNorm {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let any = |inputs: &[usize]| inputs.iter().any(|&i| wanted.has(i));
        let read = match self.statistics {
            Statistics::Batch { .. } => [any(&[X, WEIGHT]), any(&[X]), false, false, false],
            Statistics::Running => {
                let products = any(&[WEIGHT, VAR]);
                [products, any(&[X, MEAN, VAR]), false, products, products || any(&[X, MEAN])]
            }
        };
        let x = (0..5).filter(|&i| read[i]).fold(Mask::NONE, Mask::with);
        Keeps { x, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::backward(self, gpu, io);
        }
        host::backward(self, io)
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "batch_norm",
    about: "every channel to mean 0 and variance 1 over the batch, scaled and shifted",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(launch::SOURCE), Unit::floats(whole::SOURCE)],
    cases: cases::cases,
    bad_cases: cases::bad_cases,
    bench_cases: cases::bench_cases,
};
