//! `scale`: every element times one constant.

use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::TOUCH;
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::elementwise::{Elementwise, Reads, elementwise};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Multiplication by a constant.
///
/// ```text
/// y = factor · x        dx = factor · dy
/// ```
///
/// # Shapes
/// `x` of any shape → `y` of the same; backward reads nothing.
///
/// # Units
/// `y` has the unit of `factor` times that of `x`.
///
/// # Cost
/// 1 vector an element, forward and backward.
///
/// # Errors
/// [`Error::Dtype`] unless f32, bf16 or f16; [`Error::Argument`] unless `factor` is finite.
///
/// # Source
/// The definition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The constant. Finite.
    pub factor: f32,
}

const SOURCE: Source = crate::source!("scale/scale.cu");

elementwise!(Scale);

impl Elementwise for Scale {
    const NAME: &'static str = "scale";
    const READS: Reads = Reads::Nothing;

    fn check(self) -> Result<()> {
        if self.factor.is_finite() {
            return Ok(());
        }
        Err(Error::argument(format!("scale: factor: expected a finite number, found {}", self.factor)))
    }

    fn value_flops(self) -> Flops {
        Flops::vector(1)
    }

    fn gradient_flops(self) -> Flops {
        Flops::vector(1)
    }

    fn value<S: Scalar>(self, x: S) -> S {
        S::of(f64::from(self.factor)) * x
    }

    fn gradient<S: Scalar>(self, _: S, dy: S) -> S {
        self.value(dy)
    }

    const WORK: usize = 2 * TOUCH;

    fn values(self, x: &[f32], y: &mut [f32]) {
        vector::scale(self.factor, x, y);
    }

    fn gradients(self, _: &[f32], dy: &[f32], dx: &mut [f32]) {
        vector::scale(self.factor, dy, dx);
    }

    const FWD: Kernel = Kernel::new(SOURCE, "scale_fwd");
    const BWD: Kernel = Kernel::new(SOURCE, "scale_bwd_dx");

    fn numbers<'a>(self) -> Vec<Arg<'a>> {
        vec![Arg::F32(self.factor)]
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "scale",
    about: "every element times one constant",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    let op = Scale { factor: -0.7 };
    let mut cases: Vec<Case> = [1, 7, 8, 9, 31, 32, 33, 1009].map(|n| Case::new(op, [Input::new("x", [n])])).to_vec();
    cases.push(Case::new(Scale { factor: 0.0 }, [Input::new("x", [2, 3, 5])]));
    cases.push(Case::new(Scale { factor: 1e-3 }, [Input::new("x", [3, 768])]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    let op = Scale { factor: 2.0 };
    vec![
        BadCase::new(op, &[&[4], &[4]], "scale: expected 1 inputs, found 2"),
        BadCase::of_specs(op, vec![ints], "scale: x: expected f32 or bf16 or f16, found [4] i32"),
        BadCase::new(Scale { factor: f32::NAN }, &[&[4]], "scale: factor: expected a finite number, found NaN"),
        BadCase::new(Scale { factor: f32::INFINITY }, &[&[4]], "scale: factor: expected a finite number, found inf"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![Case::new(Scale { factor: 0.5 }, [Input::new("x", [4050, 384])])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn nan_and_infinity_pass() {
        let y = forward(&Scale { factor: -2.0 }, &[(&[3], &[f32::INFINITY, f32::NAN, 1e38])]);
        assert_eq!((y[0], y[2]), (f32::NEG_INFINITY, -2e38));
        assert!(y[1].is_nan());
    }

    #[test]
    fn zero_hides_neither_nan_nor_infinity() {
        let y = forward(&Scale { factor: 0.0 }, &[(&[2], &[f32::INFINITY, f32::NAN])]);
        assert!(y.iter().all(|y| y.is_nan()));
    }

    #[test]
    fn no_incoming_gradient_means_zero() {
        assert_eq!(backward(&Scale { factor: 3.0 }, &[(&[2], &[1.0, 2.0])], None), [[0.0, 0.0]]);
    }
}
