//! `relu`: the positive part.

use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::cost::Flops;
use crate::ops::blocks::TOUCH;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::elementwise::{Elementwise, Reads, elementwise};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Rectified linear unit.
///
/// ```text
/// y = max(x, 0)        dx = dy where y > 0, else 0
/// ```
///
/// At 0 the gradient is 0. NaN stays NaN, and its gradient is `dy`.
///
/// # Shapes
/// `x` of any shape → `y` of the same; backward reads `y`.
///
/// # Units
/// Those of `x`.
///
/// # Cost
/// forward 1 vector an element, backward nothing: it selects.
///
/// # Errors
/// [`Error::Dtype`](crate::error::Error::Dtype) unless f32, bf16 or f16.
///
/// # Source
/// Nair, Hinton 2010.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relu;

const SOURCE: Source = crate::source!("relu/relu.cu");

elementwise!(Relu);

impl Elementwise for Relu {
    const NAME: &'static str = "relu";
    const READS: Reads = Reads::Result;

    fn value_flops(self) -> Flops {
        Flops::vector(1)
    }

    fn gradient_flops(self) -> Flops {
        Flops::ZERO
    }

    fn value<S: Scalar>(self, x: S) -> S {
        x.max(S::zero())
    }

    fn gradient<S: Scalar>(self, y: S, dy: S) -> S {
        if y <= S::zero() { S::zero() } else { dy }
    }

    const WORK: usize = 2 * TOUCH;

    fn values(self, x: &[f32], y: &mut [f32]) {
        vector::relu(x, y);
    }

    fn gradients(self, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        select_positive(y, dy, dx);
    }

    const FWD: Kernel = Kernel::new(SOURCE, "relu_fwd");
    const BWD: Kernel = Kernel::new(SOURCE, "relu_bwd_dx");
}

wide! {
    /// The gradient, selected and not multiplied: an infinite `dy` must not become NaN where `y` is 0.
    fn select_positive<F>(y: &[f32], dy: &[f32], dx: &mut [f32]) {
        for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
            *dx = if y <= 0.0 { 0.0 } else { dy };
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "relu",
    about: "the positive part",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [1, 7, 8, 9, 31, 32, 33, 1009].map(|n| Case::new(Relu, [Input::new("x", [n])])).to_vec();
    cases.push(Case::new(Relu, [Input::new("x", [2, 3, 5])]));
    cases.push(Case::new(Relu, [Input::new("x", [3, 1536]).fill(Fill::Uniform(-6.0, 6.0))]));
    cases.push(Case::new(Relu, [Input::new("x", [20_011])]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(Relu, &[&[4], &[4]], "relu: expected 1 inputs, found 2"),
        BadCase::of_specs(Relu, vec![ints], "relu: x: expected f32 or bf16 or f16, found [4] i32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![Case::new(Relu, [Input::new("x", [4050, 1536])]), Case::new(Relu, [Input::new("x", [512, 1536])])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    const INF: f32 = f32::INFINITY;

    #[test]
    fn nan_stays_and_infinity_passes_on_the_positive_side_only() {
        let x = [f32::NAN, INF, -INF, 0.0, -0.0, 1e-45];
        let y = forward(&Relu, &[(&[6], &x)]);
        assert!(y[0].is_nan());
        assert_eq!(y[1..], [INF, 0.0, 0.0, 0.0, 1e-45]);
    }

    #[test]
    fn the_gradient_at_zero_is_zero_even_of_infinity() {
        let dx = backward(&Relu, &[(&[4], &[0.0, -1.0, 2.0, f32::NAN])], Some(&[INF, INF, INF, 3.0]));
        assert_eq!(dx, [[0.0, 0.0, INF, 3.0]]);
    }

    #[test]
    fn no_incoming_gradient_means_zero_and_an_empty_input_is_fine() {
        assert_eq!(backward(&Relu, &[(&[2], &[1.0, 2.0])], None), [[0.0, 0.0]]);
        assert!(forward(&Relu, &[(&[0, 3], &[])]).is_empty());
    }
}
