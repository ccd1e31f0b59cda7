//! `selu`: linear above zero, a scaled exponential below.

use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::cost::Flops;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::elementwise::{Elementwise, Reads, elementwise};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Scaled exponential linear unit.
///
/// ```text
/// y = λx  for x > 0,  λα(exp(x) − 1)  else        dx = dy · λ  for x > 0,  dy · λα·exp(x)  else
/// α = 1.6732632423543772, λ = 1.0507009873554805
/// ```
///
/// With these constants numbers of mean 0 and variance 1 keep both from layer to layer. −∞ gives −λα, and the gradient at 0
/// is that of the lower half.
///
/// # Shapes
/// `x` of any shape → `y` of the same; backward reads `x`.
///
/// # Units
/// `x` and `y` are dimensionless.
///
/// # Cost
/// forward 3 vector and 1 special an element, backward 2 vector and 1 special: both halves are computed, then one is taken.
///
/// # Errors
/// [`Error::Dtype`](crate::error::Error::Dtype) unless f32, bf16 or f16.
///
/// # Source
/// Klambauer, Unterthiner, Mayr, Hochreiter 2017, equation 2. Gradient by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selu;

/// λ.
const ABOVE: f64 = 1.050_700_987_355_480_5;
/// λα.
const BELOW: f64 = ABOVE * 1.673_263_242_354_377_2;

const SOURCE: Source = crate::source!("selu/selu.cu");

elementwise!(Selu);

impl Elementwise for Selu {
    const NAME: &'static str = "selu";
    const READS: Reads = Reads::Input;

    fn value_flops(self) -> Flops {
        Flops::vector(3) + Flops::special(1)
    }

    fn gradient_flops(self) -> Flops {
        Flops::vector(2) + Flops::special(1)
    }

    fn value<S: Scalar>(self, x: S) -> S {
        let (above, below) = (S::of(ABOVE) * x, S::of(BELOW) * (x.exp() - S::one()));
        if x > S::zero() { above } else { below }
    }

    fn gradient<S: Scalar>(self, x: S, dy: S) -> S {
        let below = S::of(BELOW) * x.exp();
        dy * if x > S::zero() { S::of(ABOVE) } else { below }
    }

    const WORK: usize = 32;

    fn values(self, x: &[f32], y: &mut [f32]) {
        vector::selu(x, y);
    }

    fn gradients(self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        vector::selu_backward(x, dy, dx, false);
    }

    const FWD: Kernel = Kernel::new(SOURCE, "selu_fwd");
    const BWD: Kernel = Kernel::new(SOURCE, "selu_bwd_dx");
}

/// The room.
pub static ROOM: Room = Room {
    name: "selu",
    about: "linear above zero, a scaled exponential below",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    let wide = |n| Input::new("x", [n]).fill(Fill::Uniform(-6.0, 6.0));
    let mut cases: Vec<Case> = [1, 7, 8, 9, 31, 32, 33, 1009].map(|n| Case::new(Selu, [wide(n)])).to_vec();
    // Where exp overflows on the side that is not taken, and where exp(x) − 1 cancels.
    cases.push(Case::new(Selu, [Input::new("x", [3, 65]).fill(Fill::Uniform(-120.0, 120.0))]));
    cases.push(Case::new(Selu, [Input::new("x", [2, 129]).fill(Fill::Uniform(-1e-3, 1e-3))]));
    cases.push(Case::new(Selu, [Input::new("x", [2, 1536])]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(Selu, &[], "selu: expected 1 inputs, found 0"),
        BadCase::of_specs(Selu, vec![ints], "selu: x: expected f32 or bf16 or f16, found [4] i32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![Case::new(Selu, [Input::new("x", [4050, 1536])]), Case::new(Selu, [Input::new("x", [512, 1536])])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn large_inputs_are_scaled_or_saturate_and_nan_stays() {
        let y = forward(&Selu, &[(&[5], &[200.0, f32::INFINITY, -200.0, f32::NEG_INFINITY, f32::NAN])]);
        assert_eq!(y[..4], [200.0 * ABOVE as f32, f32::INFINITY, -BELOW as f32, -BELOW as f32]);
        assert!(y[4].is_nan());
    }

    #[test]
    fn the_gradient_is_constant_above_zero_and_vanishes_far_below() {
        let dx = backward(&Selu, &[(&[4], &[200.0, 1e-30, 0.0, -200.0])], Some(&[1.0; 4]));
        assert_eq!(dx, [[ABOVE as f32, ABOVE as f32, BELOW as f32, 0.0]]);
    }

    #[test]
    fn numbers_just_below_zero_keep_their_relative_accuracy() {
        for x in [-1e-6_f32, -1e-12] {
            let (got, want) = (f64::from(forward(&Selu, &[(&[1], &[x])])[0]), BELOW * f64::from(x).exp_m1());
            assert!(((got - want) / want).abs() < 3e-7, "{x}: {got:e} {want:e}");
        }
    }
}
