//! `gelu`: the input times the normal distribution's probability of being below it.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::elementwise::{Elementwise, Reads, elementwise};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Which of the two functions that go by the name; the names are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Approximate {
    /// The definition, with the error function.
    None,
    /// The approximation with tanh, which differs from the definition by up to 5e-4.
    Tanh,
}

/// Gaussian error linear unit.
///
/// ```text
/// None:  y = x · Φ(x),  Φ(x) = (1 + erf(x/√2)) / 2        dx = dy · (Φ(x) + x · exp(−x²/2) / √(2π))
/// Tanh:  y = x · (1 + t) / 2,  t = tanh(u),  u = √(2/π) · (x + 0.044715 x³)
///        dx = dy · ((1 + t) + x · (1 − t²) · u′) / 2,  u′ = √(2/π) · (1 + 3 · 0.044715 x²)
/// ```
///
/// −∞ gives NaN, as the formulae do.
///
/// # Shapes
/// `x` of any shape → `y` of the same; backward reads `x`.
///
/// # Units
/// `x` and `y` are dimensionless.
///
/// # Cost
/// An element: `None` forward 4 vector and 1 special, backward 9 vector and 2 special; `Tanh` forward 7 vector and 1
/// special, backward 14 vector and 1 special.
///
/// # Errors
/// [`Error::Dtype`](crate::error::Error::Dtype) unless f32, bf16 or f16.
///
/// # Source
/// Hendrycks, Gimpel 2016, sections 2 and 4. Gradients by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gelu {
    /// Which function.
    pub approximate: Approximate,
}

/// √(2/π).
const INNER: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
const CUBE: f64 = 0.044_715 * INNER;
/// 1/√(2π).
const DENSITY: f64 = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

/// Φ(x): 3 vector, 1 special.
fn probability<S: Scalar>(x: S) -> S {
    let half = S::of(0.5);
    half + half * (x * S::of(FRAC_1_SQRT_2)).erf()
}

/// (x², tanh u): 4 vector, 1 special.
fn tanh_of_inner<S: Scalar>(x: S) -> (S, S) {
    let square = x * x;
    (square, (x * (S::of(INNER) + S::of(CUBE) * square)).tanh())
}

const SOURCE: Source = crate::source!("gelu/gelu.cu");

elementwise!(Gelu);

impl Elementwise for Gelu {
    const NAME: &'static str = "gelu";
    const READS: Reads = Reads::Input;

    fn value_flops(self) -> Flops {
        let vector = match self.approximate {
            Approximate::None => 4,
            Approximate::Tanh => 7,
        };
        Flops::vector(vector) + Flops::special(1)
    }

    fn gradient_flops(self) -> Flops {
        match self.approximate {
            Approximate::None => Flops::vector(9) + Flops::special(2),
            Approximate::Tanh => Flops::vector(14) + Flops::special(1),
        }
    }

    fn value<S: Scalar>(self, x: S) -> S {
        match self.approximate {
            Approximate::None => x * probability(x),
            Approximate::Tanh => S::of(0.5) * x * (S::one() + tanh_of_inner(x).1),
        }
    }

    fn gradient<S: Scalar>(self, x: S, dy: S) -> S {
        match self.approximate {
            Approximate::None => {
                let density = S::of(DENSITY) * (S::of(-0.5) * (x * x)).exp();
                dy * (probability(x) + x * density)
            }
            Approximate::Tanh => {
                let (square, t) = tanh_of_inner(x);
                let slope = S::of(INNER) + S::of(3.0 * CUBE) * square;
                dy * (S::of(0.5) * ((S::one() + t) + x * (S::one() - t * t) * slope))
            }
        }
    }

    const WORK: usize = 48;

    fn values(self, x: &[f32], y: &mut [f32]) {
        match self.approximate {
            Approximate::None => vector::gelu(x, y),
            Approximate::Tanh => vector::gelu_tanh(x, y),
        }
    }

    fn gradients(self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        match self.approximate {
            Approximate::None => vector::gelu_backward(x, dy, dx, false),
            Approximate::Tanh => vector::gelu_tanh_backward(x, dy, dx, false),
        }
    }

    const FWD: Kernel = Kernel::new(SOURCE, "gelu_fwd");
    const BWD: Kernel = Kernel::new(SOURCE, "gelu_bwd_dx");

    fn numbers<'a>(self) -> Vec<Arg<'a>> {
        vec![Arg::I32(i32::from(self.approximate == Approximate::Tanh))]
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "gelu",
    about: "the input times the normal probability of being below it",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

const BOTH: [Gelu; 2] = [Gelu { approximate: Approximate::None }, Gelu { approximate: Approximate::Tanh }];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for op in BOTH {
        for n in [1, 7, 8, 9, 31, 32, 33, 1009] {
            cases.push(Case::new(op, [Input::new("x", [n]).fill(Fill::Uniform(-6.0, 6.0))]));
        }
        // Both tails, and the neighbourhood of 0 where the function is odd to first order.
        cases.push(Case::new(op, [Input::new("x", [2, 129]).fill(Fill::Uniform(-40.0, 40.0))]));
        cases.push(Case::new(op, [Input::new("x", [3, 65]).fill(Fill::Uniform(-1e-3, 1e-3))]));
        cases.push(Case::new(op, [Input::new("x", [2, 1536])]));
    }
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(BOTH[0], &[&[4], &[4]], "gelu: expected 1 inputs, found 2"),
        BadCase::of_specs(BOTH[1], vec![ints], "gelu: x: expected f32 or bf16 or f16, found [4] i32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let shape = |op, rows, c| Case::new(op, [Input::new("x", [rows, c])]);
    vec![
        shape(BOTH[0], 4050, 1536),
        shape(BOTH[1], 4050, 1536),
        shape(BOTH[0], 512, 1536),
        shape(BOTH[0], 512, 512),
        shape(BOTH[0], 32_768, 3072),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn large_inputs_pass_or_vanish_and_nan_stays() {
        for op in BOTH {
            let y = forward(&op, &[(&[5], &[200.0, f32::INFINITY, -200.0, f32::NEG_INFINITY, f32::NAN])]);
            assert_eq!(y[..3], [200.0, f32::INFINITY, 0.0], "{op:?}");
            assert!(y[3].is_nan() && y[4].is_nan(), "{op:?}");
        }
    }

    #[test]
    fn the_gradient_of_large_inputs_is_one_or_zero() {
        for op in BOTH {
            let dx = backward(&op, &[(&[5], &[200.0, -200.0, 0.0, 1e30, -1e30])], Some(&[1.0; 5]));
            assert_eq!(dx, [[1.0, 0.0, 0.5, 1.0, 0.0]], "{op:?}");
        }
    }

    #[test]
    fn the_left_tail_keeps_its_relative_accuracy() {
        // x Φ(x) at −5 and −10 from the complementary error function in f64.
        for x in [-5.0_f32, -10.0] {
            let want = 0.5 * f64::from(x) * libm::erfc(-f64::from(x) * FRAC_1_SQRT_2);
            let got = f64::from(forward(&BOTH[0], &[(&[1], &[x])])[0]);
            assert!(((got - want) / want).abs() < 1e-6, "{x}: {got:e} {want:e}");
        }
    }
}
