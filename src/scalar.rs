//! The numbers that a reference text is written over.
//!
//! One text serves three readers: [`f32`] is the plain CPU path; [`Counted`] is the oracle, f64 arithmetic that counts its
//! own operations; [`Rounded`] is f32 arithmetic that rounds to a storage type wherever the text says
//! [`stored`](Scalar::stored), and so shows what error that storage type costs.

use std::cell::Cell;
use std::ops::{Add, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use crate::cost::Flops;
use crate::tensor::Dtype;

/// A real number with the operations that are counted (see [`crate::cost`]).
///
/// `+ − × ÷` and [`max`](Scalar::max) count one, [`mac`](Scalar::mac) two in `matmul`, the special functions one `special`
/// each. Negation, comparison, constants and copies count nothing.
pub trait Scalar:
    Copy
    + PartialOrd
    + Default
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// A constant.
    fn of(x: f64) -> Self;
    /// A count as a number.
    fn count(n: usize) -> Self {
        Self::of(n as f64)
    }
    /// 0.
    fn zero() -> Self {
        Self::of(0.0)
    }
    /// 1.
    fn one() -> Self {
        Self::of(1.0)
    }
    /// The value, for comparison and output.
    fn to_f64(self) -> f64;
    /// `self + a·b` inside a matrix product.
    #[must_use]
    fn mac(self, a: Self, b: Self) -> Self;
    /// The larger of both; NaN if either is.
    #[must_use]
    fn max(self, o: Self) -> Self;
    /// e to the power of `self`.
    #[must_use]
    fn exp(self) -> Self;
    /// Natural logarithm.
    #[must_use]
    fn ln(self) -> Self;
    /// Square root.
    #[must_use]
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    #[must_use]
    fn tanh(self) -> Self;
    /// Error function.
    #[must_use]
    fn erf(self) -> Self;
    /// Sine.
    #[must_use]
    fn sin(self) -> Self;
    /// Cosine.
    #[must_use]
    fn cos(self) -> Self;
    /// The value as an unfused implementation would keep it in memory: rounded to the storage type under study. Written in
    /// a reference wherever such an implementation would store a tensor between two kernels.
    #[must_use]
    fn stored(self) -> Self {
        self
    }
}

impl Scalar for f32 {
    #[inline]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline]
    fn mac(self, a: f32, b: f32) -> f32 {
        self + a * b
    }
    #[inline]
    fn max(self, o: f32) -> f32 {
        if self.is_nan() || self > o { self } else { o }
    }
    fn exp(self) -> f32 {
        f32::exp(self)
    }
    fn ln(self) -> f32 {
        f32::ln(self)
    }
    #[inline]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    fn tanh(self) -> f32 {
        f32::tanh(self)
    }
    fn erf(self) -> f32 {
        libm::erff(self)
    }
    fn sin(self) -> f32 {
        f32::sin(self)
    }
    fn cos(self) -> f32 {
        f32::cos(self)
    }
}

thread_local! {
    static COUNT: Cell<Flops> = const { Cell::new(Flops::ZERO) };
    static STORAGE: Cell<Dtype> = const { Cell::new(Dtype::F32) };
}

/// f64 arithmetic that counts its operations, on the thread that performs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Counted(pub f64);

/// The result of `f`, and the operations that [`Counted`] numbers performed in it on this thread.
pub fn counted<T>(f: impl FnOnce() -> T) -> (T, Flops) {
    let outer = COUNT.replace(Flops::ZERO);
    let result = f();
    let inner = COUNT.replace(outer);
    COUNT.set(outer + inner);
    (result, inner)
}

#[inline]
fn tick(f: Flops) {
    COUNT.set(COUNT.get() + f);
}

macro_rules! counted_binary {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl $trait for Counted {
            type Output = Counted;
            #[inline]
            fn $method(self, o: Counted) -> Counted {
                tick(Flops::vector(1));
                Counted(self.0 $op o.0)
            }
        }
    )*};
}
counted_binary!(Add add +, Sub sub -, Mul mul *, Div div /);

impl Neg for Counted {
    type Output = Counted;
    fn neg(self) -> Counted {
        Counted(-self.0)
    }
}

macro_rules! counted_special {
    ($($name:ident => $f:expr),*) => {$(
        fn $name(self) -> Counted {
            tick(Flops::special(1));
            let f: fn(f64) -> f64 = $f;
            Counted(f(self.0))
        }
    )*};
}

impl Scalar for Counted {
    fn of(x: f64) -> Counted {
        Counted(x)
    }
    fn to_f64(self) -> f64 {
        self.0
    }
    #[inline]
    fn mac(self, a: Counted, b: Counted) -> Counted {
        tick(Flops::matmul(2));
        Counted(self.0 + a.0 * b.0)
    }
    fn max(self, o: Counted) -> Counted {
        tick(Flops::vector(1));
        if self.0.is_nan() || self.0 > o.0 { self } else { o }
    }
    counted_special!(exp => f64::exp, ln => f64::ln, sqrt => f64::sqrt, tanh => f64::tanh, erf => libm::erf,
        sin => f64::sin, cos => f64::cos);
}

/// f32 arithmetic that rounds to the storage type of [`rounding_to`] at [`stored`](Scalar::stored).
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Rounded(pub f32);

/// Runs `f` with [`Rounded`] numbers that are stored as `dtype` on this thread.
pub fn rounding_to<T>(dtype: Dtype, f: impl FnOnce() -> T) -> T {
    let outer = STORAGE.replace(dtype);
    let result = f();
    STORAGE.set(outer);
    result
}

/// `x` rounded to `dtype` and widened again.
pub fn round_to(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::F32 | Dtype::I32 => x,
    }
}

macro_rules! rounded_binary {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl $trait for Rounded {
            type Output = Rounded;
            #[inline]
            fn $method(self, o: Rounded) -> Rounded {
                Rounded(self.0 $op o.0)
            }
        }
    )*};
}
rounded_binary!(Add add +, Sub sub -, Mul mul *, Div div /);

impl Neg for Rounded {
    type Output = Rounded;
    fn neg(self) -> Rounded {
        Rounded(-self.0)
    }
}

macro_rules! rounded_special {
    ($($name:ident),*) => {$(
        fn $name(self) -> Rounded {
            Rounded(Scalar::$name(self.0))
        }
    )*};
}

impl Scalar for Rounded {
    fn of(x: f64) -> Rounded {
        Rounded(x as f32)
    }
    fn to_f64(self) -> f64 {
        f64::from(self.0)
    }
    #[inline]
    fn mac(self, a: Rounded, b: Rounded) -> Rounded {
        Rounded(self.0 + a.0 * b.0)
    }
    fn max(self, o: Rounded) -> Rounded {
        Rounded(Scalar::max(self.0, o.0))
    }
    rounded_special!(exp, ln, sqrt, tanh, erf, sin, cos);
    fn stored(self) -> Rounded {
        Rounded(round_to(STORAGE.get(), self.0))
    }
}

/// The sum, starting from zero: counts one addition for each number.
pub fn sum<S: Scalar>(numbers: impl IntoIterator<Item = S>) -> S {
    numbers.into_iter().fold(S::zero(), |acc, x| acc + x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counted_operation_counts_as_documented() {
        let (a, b) = (Counted(2.0), Counted(3.0));
        let (_, n) = counted(|| (a + b, a - b, a * b, a / b, a.max(b), -a, a < b));
        assert_eq!(n, Flops::vector(5));
        let (y, n) = counted(|| a.mac(a, b));
        assert_eq!((y.0, n), (8.0, Flops::matmul(2)));
        let (_, n) = counted(|| (a.exp(), a.ln(), a.sqrt(), a.tanh(), a.erf(), a.sin(), a.cos()));
        assert_eq!(n, Flops::special(7));
        let (_, n) = counted(|| sum([a, b, a]));
        assert_eq!(n, Flops::vector(3));
    }

    #[test]
    fn counts_nest() {
        let (inner, outer) = counted(|| {
            let _ = Counted(1.0) + Counted(1.0);
            counted(|| Counted(1.0) * Counted(1.0)).1
        });
        assert_eq!((inner, outer), (Flops::vector(1), Flops::vector(2)));
    }

    #[test]
    fn rounding_happens_only_where_a_value_is_stored() {
        let x = Rounded(1.0 + 1.0 / 1024.0);
        let (free, kept) = rounding_to(Dtype::Bf16, || ((x + x).0, (x + x).stored().0));
        assert_eq!((free, kept), (2.0 + 2.0 / 1024.0, 2.0));
        assert_eq!((x + x).stored().0, free);
    }

    #[test]
    fn the_larger_of_nan_and_anything_is_nan() {
        assert!(Scalar::max(f32::NAN, 1.0).is_nan() && Scalar::max(1.0, f32::NAN).is_nan());
        assert!(Counted(f64::NAN).max(Counted(1.0)).0.is_nan() && Counted(1.0).max(Counted(f64::NAN)).0.is_nan());
    }
}
