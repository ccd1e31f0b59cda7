//! `sigmoid`: the logistic function.

use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::cost::Flops;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::elementwise::{Elementwise, Reads, elementwise};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Logistic function.
///
/// ```text
/// y = 1 / (1 + exp(−x))        dx = dy · y · (1 − y)
/// ```
///
/// # Shapes
/// `x` of any shape → `y` of the same; backward reads `y`.
///
/// # Units
/// `x` and `y` are dimensionless.
///
/// # Cost
/// forward 2 vector and 1 special an element, backward 3 vector.
///
/// # Errors
/// [`Error::Dtype`](crate::error::Error::Dtype) unless f32, bf16 or f16.
///
/// # Source
/// The definition; the gradient is the chain rule, written with `y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sigmoid;

const SOURCE: Source = crate::source!("sigmoid/sigmoid.cu");

elementwise!(Sigmoid);

impl Elementwise for Sigmoid {
    const NAME: &'static str = "sigmoid";
    const READS: Reads = Reads::Result;

    fn value_flops(self) -> Flops {
        Flops::vector(2) + Flops::special(1)
    }

    fn gradient_flops(self) -> Flops {
        Flops::vector(3)
    }

    fn value<S: Scalar>(self, x: S) -> S {
        sigmoid(x)
    }

    fn gradient<S: Scalar>(self, y: S, dy: S) -> S {
        dy * y * (S::one() - y)
    }

    const WORK: usize = 32;

    fn values(self, x: &[f32], y: &mut [f32]) {
        vector::sigmoid(x, y);
    }

    fn gradients(self, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        slope_of_result(y, dy, dx);
    }

    const FWD: Kernel = Kernel::new(SOURCE, "sigmoid_fwd");
    const BWD: Kernel = Kernel::new(SOURCE, "sigmoid_bwd_dx");
}

/// 1 / (1 + exp(−x)): 2 vector, 1 special.
pub(super) fn sigmoid<S: Scalar>(x: S) -> S {
    S::one() / (S::one() + (-x).exp())
}

wide! {
    fn slope_of_result<F>(y: &[f32], dy: &[f32], dx: &mut [f32]) {
        for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
            *dx = dy * y * (1.0 - y);
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "sigmoid",
    about: "the logistic function",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    let wide = |n| Input::new("x", [n]).fill(Fill::Uniform(-6.0, 6.0));
    let mut cases: Vec<Case> = [1, 7, 8, 9, 31, 32, 33, 1009].map(|n| Case::new(Sigmoid, [wide(n)])).to_vec();
    cases.push(Case::new(Sigmoid, [Input::new("x", [3, 65]).fill(Fill::Uniform(-40.0, 40.0))]));
    cases.push(Case::new(Sigmoid, [Input::new("x", [2, 1536])]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(Sigmoid, &[], "sigmoid: expected 1 inputs, found 0"),
        BadCase::of_specs(Sigmoid, vec![ints], "sigmoid: x: expected f32 or bf16 or f16, found [4] i32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![Case::new(Sigmoid, [Input::new("x", [4050, 1536])])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn the_ends_are_zero_and_one_and_nan_stays() {
        let y = forward(&Sigmoid, &[(&[5], &[f32::NEG_INFINITY, -200.0, f32::INFINITY, 200.0, f32::NAN])]);
        assert_eq!(y[..4], [0.0, 0.0, 1.0, 1.0]);
        assert!(y[4].is_nan());
    }

    #[test]
    fn the_gradient_vanishes_at_both_ends() {
        let dx = backward(&Sigmoid, &[(&[3], &[f32::NEG_INFINITY, 0.0, f32::INFINITY])], Some(&[1.0; 3]));
        assert_eq!(dx, [[0.0, 0.25, 0.0]]);
    }
}
