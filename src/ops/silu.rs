//! `silu`: the input times its logistic function, also known as swish.

use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::cost::Flops;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::elementwise::{Elementwise, Reads, elementwise};
use crate::ops::sigmoid::sigmoid;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Sigmoid linear unit (swish with β = 1).
///
/// ```text
/// y = x / (1 + exp(−x))        dx = dy · s · (1 + x · (1 − s)),  s = 1 / (1 + exp(−x))
/// ```
///
/// −∞ gives NaN, as the formula does.
///
/// # Shapes
/// `x` of any shape → `y` of the same; backward reads `x`.
///
/// # Units
/// `x` and `y` are dimensionless.
///
/// # Cost
/// forward 2 vector and 1 special an element, backward 7 vector and 1 special.
///
/// # Errors
/// [`Error::Dtype`](crate::error::Error::Dtype) unless f32, bf16 or f16.
///
/// # Source
/// Hendrycks, Gimpel 2016; Ramachandran, Zoph, Le 2017. Gradient by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silu;

const SOURCE: Source = crate::source!("silu/silu.cu");

elementwise!(Silu);

impl Elementwise for Silu {
    const NAME: &'static str = "silu";
    const READS: Reads = Reads::Input;

    fn value_flops(self) -> Flops {
        Flops::vector(2) + Flops::special(1)
    }

    fn gradient_flops(self) -> Flops {
        Flops::vector(7) + Flops::special(1)
    }

    fn value<S: Scalar>(self, x: S) -> S {
        x / (S::one() + (-x).exp())
    }

    fn gradient<S: Scalar>(self, x: S, dy: S) -> S {
        let s = sigmoid(x);
        dy * s * (S::one() + x * (S::one() - s))
    }

    const WORK: usize = 32;

    fn values(self, x: &[f32], y: &mut [f32]) {
        vector::silu(x, y);
    }

    fn gradients(self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        vector::silu_backward(x, dy, dx, false);
    }

    const FWD: Kernel = Kernel::new(SOURCE, "silu_fwd");
    const BWD: Kernel = Kernel::new(SOURCE, "silu_bwd_dx");
}

/// The room.
pub static ROOM: Room = Room {
    name: "silu",
    about: "the input times its logistic function",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    let wide = |n| Input::new("x", [n]).fill(Fill::Uniform(-6.0, 6.0));
    let mut cases: Vec<Case> = [1, 7, 8, 9, 31, 32, 33, 1009].map(|n| Case::new(Silu, [wide(n)])).to_vec();
    cases.push(Case::new(Silu, [Input::new("x", [3, 65]).fill(Fill::Uniform(-40.0, 40.0))]));
    cases.push(Case::new(Silu, [Input::new("x", [2, 1536])]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(Silu, &[], "silu: expected 1 inputs, found 0"),
        BadCase::of_specs(Silu, vec![ints], "silu: x: expected f32 or bf16 or f16, found [4] i32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![Case::new(Silu, [Input::new("x", [4050, 1536])]), Case::new(Silu, [Input::new("x", [512, 1536])])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn large_inputs_pass_or_vanish_and_nan_stays() {
        let y = forward(&Silu, &[(&[5], &[200.0, f32::INFINITY, -200.0, f32::NEG_INFINITY, f32::NAN])]);
        assert_eq!(y[..3], [200.0, f32::INFINITY, 0.0]);
        assert!(y[3].is_nan() && y[4].is_nan());
    }

    #[test]
    fn the_gradient_of_large_inputs_is_one_or_zero() {
        let dx = backward(&Silu, &[(&[3], &[200.0, -200.0, 0.0])], Some(&[1.0; 3]));
        assert_eq!(dx, [[1.0, 0.0, 0.5]]);
    }
}
