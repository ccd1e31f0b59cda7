//! `squared_error`: the mean of squared differences.

use crate::backend::Exec;
use crate::backend::cpu::dispatch::wide;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::error::Result;
use crate::ops::contract::{BadCase, Case, Room};
use crate::ops::mean_error::{self, mean_error};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad,
};
use crate::ops::totals::PAIRS;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Mean squared error, with optional weights of the rows.
///
/// ```text
/// loss = 1/n · Σ (p − y)²      with weights: 1/n · Σ weight[h] · (p[.., h, w] − y[.., h, w])²
/// ```
///
/// Weights are used as they are: the mean divides by the number of numbers, so weights of mean 1 keep the scale.
///
/// # Shapes
/// `p [..]`, `y [..]` → `loss []` in f32; with `weight [H]` in f32, `p` and `y` are `[.., H, W]`.
///
/// # Units
/// `loss` has the unit of `p` squared; weights are dimensionless.
///
/// # Cost
/// With n numbers in r rows: forward `3n + 2` vector, with weights `3n + 2r + 1`; backward of `p` and `y` together `2n + 1`,
/// with weights `r` more, of the weights `3n + 2r + 1`.
///
/// # Errors
/// [`Error::Shape`] unless `p` and `y` have one shape with a number in it, and `weight` fits; [`Error::Dtype`] unless `p`
/// and `y` are f32, bf16 or f16 each and `weight` is f32; [`Error::Argument`] for another number of inputs.
///
/// # Source
/// Definition; weights as in WeatherBench (Rasp et al. 2020), equation 2.
///
/// [`Error::Shape`]: crate::error::Error::Shape
/// [`Error::Dtype`]: crate::error::Error::Dtype
/// [`Error::Argument`]: crate::error::Error::Argument
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SquaredError;

const SOURCE: Source = crate::source!("squared_error/squared_error.cu");

mean_error!(SquaredError, "squared_error", error: 1 |d| d * d, pull: 2.0 1 |s, d| s * d);

/// The room.
pub static ROOM: Room = Room {
    name: "squared_error",
    about: "the mean of squared differences",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit { types: PAIRS, ..Unit::floats(SOURCE) }],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    mean_error::cases(SquaredError)
}

fn bad_cases() -> Vec<BadCase> {
    mean_error::bad_cases(SquaredError)
}

fn bench_cases() -> Vec<Case> {
    mean_error::bench_cases(SquaredError)
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);

    #[test]
    fn tensors_of_many_pieces_have_the_error_of_the_text() {
        mean_error::holds_at_size(&SquaredError);
    }
}
