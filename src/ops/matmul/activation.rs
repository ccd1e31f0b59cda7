//! The functions that a matrix product may apply before it stores: their text, derivative and cost.

use crate::cost::Flops;
use crate::scalar::Scalar;

/// An elementwise function of the product, applied before it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`.
    #[default]
    None,
    /// `x·Φ(x)`, with the error function.
    Gelu,
    /// `x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2`.
    GeluTanh,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `x/(1 + exp(−x))`.
    Silu,
}

/// √(2/π).
const ROOT: f64 = 0.797_884_560_802_865_4;
/// The cubic term of the tanh form.
const CUBIC: f64 = 0.044_715;
/// 1/√(2π).
const DENSITY: f64 = 0.398_942_280_401_432_7;

impl Activation {
    /// Whether backward reads the value before the function: it is then saved. `Relu` reads its result instead.
    pub fn keeps_input(self) -> bool {
        matches!(self, Activation::Gelu | Activation::GeluTanh | Activation::Silu)
    }

    /// The function of one number.
    pub fn of<S: Scalar>(self, x: S) -> S {
        let half = S::of(0.5);
        match self {
            Activation::None => x,
            Activation::Gelu => half * x * (S::one() + (x * S::of(std::f64::consts::FRAC_1_SQRT_2)).erf()),
            Activation::GeluTanh => {
                let inner = (x + x * x * x * S::of(CUBIC)) * S::of(ROOT);
                half * x * (S::one() + inner.tanh())
            }
            Activation::Relu => x.max(S::zero()),
            Activation::Silu => x / (S::one() + (-x).exp()),
        }
    }

    /// `dy` times the derivative. `x` is the function's argument where [`keeps_input`](Activation::keeps_input), else its
    /// result.
    pub fn gradient<S: Scalar>(self, x: S, dy: S) -> S {
        let (half, one) = (S::of(0.5), S::one());
        match self {
            Activation::None => dy,
            Activation::Gelu => {
                let below = half * (one + (x * S::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
                let density = (x * x * S::of(-0.5)).exp() * S::of(DENSITY);
                dy * (below + x * density)
            }
            Activation::GeluTanh => {
                let square = x * x;
                let t = ((x + square * x * S::of(CUBIC)) * S::of(ROOT)).tanh();
                let slope = (one + square * S::of(3.0 * CUBIC)) * S::of(0.5 * ROOT);
                dy * (half * (one + t) + x * (one - t * t) * slope)
            }
            Activation::Relu => {
                if x > S::zero() {
                    dy
                } else if x <= S::zero() {
                    S::zero()
                } else {
                    x
                }
            }
            Activation::Silu => {
                let s = one / (one + (-x).exp());
                dy * (s * (one + x * (one - s)))
            }
        }
    }

    /// FLOPs of [`of`](Activation::of) for `n` numbers.
    pub fn flops(self, n: u128) -> Flops {
        let (vector, special) = match self {
            Activation::None => (0, 0),
            Activation::Gelu => (4, 1),
            Activation::GeluTanh => (8, 1),
            Activation::Relu => (1, 0),
            Activation::Silu => (2, 1),
        };
        Flops::vector(vector * n) + Flops::special(special * n)
    }

    /// FLOPs of [`gradient`](Activation::gradient) for `n` numbers.
    pub fn gradient_flops(self, n: u128) -> Flops {
        let (vector, special) = match self {
            Activation::None | Activation::Relu => (0, 0),
            Activation::Gelu => (9, 2),
            Activation::GeluTanh => (16, 1),
            Activation::Silu => (7, 1),
        };
        Flops::vector(vector * n) + Flops::special(special * n)
    }
}
