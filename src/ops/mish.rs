//! `mish`: the input times the hyperbolic tangent of its softplus.

use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::cost::Flops;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::elementwise::{Elementwise, Reads, elementwise};
use crate::ops::sigmoid::sigmoid;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Mish, a smooth self-gated activation.
///
/// ```text
/// y = x · t,  t = tanh(ln(1 + exp(x)))        dx = dy · (t + x · (1 − t²) / (1 + exp(−x)))
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
/// forward 2 vector and 3 special an element, backward 9 vector and 4 special.
///
/// # Errors
/// [`Error::Dtype`](crate::error::Error::Dtype) unless f32, bf16 or f16.
///
/// # Source
/// Misra 2019, section 2. Gradient by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mish;

/// tanh(ln(1 + exp(x))): 1 vector, 3 special.
fn gate<S: Scalar>(x: S) -> S {
    (S::one() + x.exp()).ln().tanh()
}

const SOURCE: Source = crate::source!("mish/mish.cu");

elementwise!(Mish);

impl Elementwise for Mish {
    const NAME: &'static str = "mish";
    const READS: Reads = Reads::Input;

    fn value_flops(self) -> Flops {
        Flops::vector(2) + Flops::special(3)
    }

    fn gradient_flops(self) -> Flops {
        Flops::vector(9) + Flops::special(4)
    }

    fn value<S: Scalar>(self, x: S) -> S {
        x * gate(x)
    }

    fn gradient<S: Scalar>(self, x: S, dy: S) -> S {
        let t = gate(x);
        dy * (t + x * (S::one() - t * t) * sigmoid(x))
    }

    const WORK: usize = 32;

    fn values(self, x: &[f32], y: &mut [f32]) {
        vector::mish(x, y);
    }

    fn gradients(self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        vector::mish_backward(x, dy, dx, false);
    }

    const FWD: Kernel = Kernel::new(SOURCE, "mish_fwd");
    const BWD: Kernel = Kernel::new(SOURCE, "mish_bwd_dx");
}

/// The room.
pub static ROOM: Room = Room {
    name: "mish",
    about: "the input times the hyperbolic tangent of its softplus",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    let wide = |n| Input::new("x", [n]).fill(Fill::Uniform(-6.0, 6.0));
    let mut cases: Vec<Case> = [1, 7, 8, 9, 31, 32, 33, 1009].map(|n| Case::new(Mish, [wide(n)])).to_vec();
    // Both tails, beyond where exp overflows.
    cases.push(Case::new(Mish, [Input::new("x", [3, 65]).fill(Fill::Uniform(-120.0, 120.0))]));
    cases.push(Case::new(Mish, [Input::new("x", [2, 1536])]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(Mish, &[&[4], &[4]], "mish: expected 1 inputs, found 2"),
        BadCase::of_specs(Mish, vec![ints], "mish: x: expected f32 or bf16 or f16, found [4] i32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![Case::new(Mish, [Input::new("x", [4050, 1536])]), Case::new(Mish, [Input::new("x", [512, 1536])])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn large_inputs_pass_or_vanish_and_nan_stays() {
        let y = forward(&Mish, &[(&[5], &[200.0, f32::INFINITY, -200.0, f32::NEG_INFINITY, f32::NAN])]);
        assert_eq!(y[..3], [200.0, f32::INFINITY, 0.0]);
        assert!(y[3].is_nan() && y[4].is_nan());
    }

    #[test]
    fn the_gradient_of_large_inputs_is_one_or_zero() {
        let dx = backward(&Mish, &[(&[5], &[200.0, -200.0, 0.0, 1e30, -1e30])], Some(&[1.0; 5]));
        assert!((dx[0][2] - 0.6).abs() < 1e-7, "{dx:?}");
        assert_eq!((&dx[0][..2], &dx[0][3..]), (&[1.0, 0.0][..], &[1.0, 0.0][..]));
    }

    #[test]
    fn the_left_tail_keeps_its_relative_accuracy() {
        for x in [-20.0_f32, -60.0] {
            let want = f64::from(x) * f64::from(x).exp().ln_1p().tanh();
            let got = f64::from(forward(&Mish, &[(&[1], &[x])])[0]);
            assert!(((got - want) / want).abs() < 1e-6, "{x}: {got:e} {want:e}");
        }
    }
}
