//! `absolute_error`: the mean of absolute differences.

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

/// Mean absolute error, with optional weights of the rows.
///
/// ```text
/// loss = 1/n · Σ |p − y|      with weights: 1/n · Σ weight[h] · |p[.., h, w] − y[.., h, w]|
/// ```
///
/// Where `p` equals `y` the gradient is 0. Weights are used as they are: the mean divides by the number of numbers.
///
/// # Shapes
/// `p [..]`, `y [..]` → `loss []` in f32; with `weight [H]` in f32, `p` and `y` are `[.., H, W]`.
///
/// # Units
/// `loss` has the unit of `p`; weights are dimensionless.
///
/// # Cost
/// With n numbers in r rows: forward `2n + 2` vector, with weights `2n + 2r + 1`; backward of `p` and `y` together `n + 1`,
/// with weights `r` more, of the weights `2n + 2r + 1`.
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
pub struct AbsoluteError;

const SOURCE: Source = crate::source!("absolute_error/absolute_error.cu");

mean_error!(AbsoluteError, "absolute_error", error: 0 |d| if d < S::zero() { -d } else { d }, pull: 1.0 0 sign);

/// `s` with the sign of `d`; 0 at 0; NaN of NaN.
#[inline(always)]
fn sign<S: Scalar>(s: S, d: S) -> S {
    if d > S::zero() {
        s
    } else if d < S::zero() {
        -s
    } else {
        d
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "absolute_error",
    about: "the mean of absolute differences",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit { types: PAIRS, ..Unit::floats(SOURCE) }],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    mean_error::cases(AbsoluteError)
}

fn bad_cases() -> Vec<BadCase> {
    mean_error::bad_cases(AbsoluteError)
}

fn bench_cases() -> Vec<Case> {
    mean_error::bench_cases(AbsoluteError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::mean_error::MeanError;

    crate::room_tests!(ROOM);

    #[test]
    fn tensors_of_many_pieces_have_the_error_of_the_text() {
        mean_error::holds_at_size(&AbsoluteError);
    }

    #[test]
    fn nan_stays_nan_in_loss_and_gradient() {
        assert!(AbsoluteError::sum_line(&[f32::NAN, 1.0], &[0.0, 0.0]).is_nan());
        let mut d = [1.0; 3];
        AbsoluteError::pull_line(0.5, &[f32::NAN, 1.0, -0.0], &[0.0; 3], &mut d);
        assert!(d[0].is_nan());
        assert_eq!(d[1..], [0.5, 0.0]);
    }
}
