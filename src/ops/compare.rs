//! The tolerance rule, one for all operators.
//!
//! `want` is the reference in f64 on the rounded inputs; `base` is the same text in f32 that rounds to the storage type
//! wherever an unfused implementation would store a tensor ([`Rounded`](crate::scalar::Rounded)). A path may err twice as
//! much as that, and by the last place of the largest number:
//!
//! ```text
//! max |got − want|  ≤  2 · max |base − want|  +  ulp(T) · max |want|
//! ‖got − want‖₂     ≤  2 · ‖base − want‖₂    +  ulp(T) · ‖want‖₂
//! ```
//!
//! There is nothing else in it: the numbers of a case are drawn once, from a fixed seed, and `base` is computed on that draw.
//! Where it happens to be nearly exact, as it may where a case has few numbers, a path must be nearly exact too: short sums
//! are rounded once. Infinities and NaN must stand in the same places; every comparison is written so that NaN fails.
//!
//! A known miss: on x86-64 without fused multiply-add (before AVX2) `dbias` of one case of attention errs 5 % more than it
//! may. With it every case of every room holds.

use crate::tensor::Dtype;

/// What a path may err by, for one tensor of one case.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Margin {
    /// Largest error of the plain text, over the finite numbers.
    pub max: f64,
    /// 2-norm of its error.
    pub norm: f64,
}

impl Margin {
    /// The error of `base` against `want`.
    pub fn of(base: &[f64], want: &[f64]) -> Margin {
        let (mut max, mut square) = (0.0_f64, 0.0);
        for (b, w) in base.iter().zip(want).filter(|(b, w)| b.is_finite() && w.is_finite()) {
            let e = (b - w).abs();
            max = max.max(e);
            square += e * e;
        }
        Margin { max, norm: square.sqrt() }
    }
}

/// Largest finite number of the type: beyond it a stored number is infinite, and may be.
fn largest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(f32::MAX),
        Dtype::Bf16 => half::bf16::MAX.to_f64(),
        Dtype::F16 => half::f16::MAX.to_f64(),
        Dtype::I32 => f64::INFINITY,
    }
}

/// Compares `got` with `want` under the rule.
///
/// # Errors
/// A sentence with coordinates, got, want and tolerance.
pub fn compare(
    what: &str,
    shape: &[usize],
    dtype: Dtype,
    got: &[f64],
    want: &[f64],
    margin: Margin,
) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: expected {} numbers, found {}", want.len(), got.len()));
    }
    let limit = largest(dtype);
    let (mut top, mut square) = (0.0_f64, 0.0);
    for w in want.iter().filter(|w| w.abs() <= limit) {
        top = top.max(w.abs());
        square += w * w;
    }
    let tol = 2.0 * margin.max + dtype.ulp() * top;
    let mut error_square = 0.0;
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let same = if w.is_nan() {
            g.is_nan()
        } else if w.abs() > limit {
            g == w.signum() * f64::INFINITY || g == w
        } else {
            error_square += (g - w).powi(2);
            (g - w).abs() <= tol
        };
        if !same {
            let at = coordinates(i, shape);
            return Err(format!(
                "{what}: at {at:?}: got {g:e}, want {w:e}, error {:.2e}, tolerance {tol:.2e}",
                (g - w).abs()
            ));
        }
    }
    let (err, tol) = (error_square.sqrt(), 2.0 * margin.norm + dtype.ulp() * square.sqrt());
    if !(err <= tol) {
        return Err(format!("{what}: 2-norm of the error {err:.2e}, tolerance {tol:.2e}"));
    }
    Ok(())
}

/// Where element `i` lies in a row-major tensor of `shape`.
pub fn coordinates(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut at: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&d| {
            let c = i % d.max(1);
            i /= d.max(1);
            c
        })
        .collect();
    at.reverse();
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Margin = Margin { max: 0.0, norm: 0.0 };

    #[test]
    fn nan_never_passes_for_a_number() {
        assert!(compare("y", &[1], Dtype::F32, &[f64::NAN], &[1.0], NONE).is_err());
        assert!(compare("y", &[1], Dtype::F32, &[1.0], &[f64::NAN], NONE).is_err());
        assert!(compare("y", &[1], Dtype::F32, &[f64::NAN], &[f64::NAN], NONE).is_ok());
    }

    #[test]
    fn infinities_must_be_equal_and_in_the_same_place() {
        let inf = f64::INFINITY;
        assert!(compare("y", &[2], Dtype::F32, &[inf, 1.0], &[inf, 1.0], NONE).is_ok());
        assert!(compare("y", &[2], Dtype::F32, &[-inf, 1.0], &[inf, 1.0], NONE).is_err());
        assert!(compare("y", &[2], Dtype::F32, &[1.0, inf], &[1.0, 1.0], NONE).is_err());
        assert!(compare("y", &[1], Dtype::F16, &[inf], &[70_000.0], NONE).is_ok());
    }

    #[test]
    fn one_unit_in_the_last_place_passes_and_more_names_the_place() {
        let ulp = f64::from(f32::EPSILON);
        assert!(compare("y", &[1], Dtype::F32, &[1.0 + ulp], &[1.0], NONE).is_ok());
        let e = compare("y", &[2, 2], Dtype::F32, &[1.0, 1.0, 1.0 + 3.0 * ulp, 1.0], &[1.0; 4], NONE).unwrap_err();
        assert!(e.starts_with("y: at [1, 0]: got "), "{e}");
    }

    #[test]
    fn many_small_errors_fail_the_norm() {
        let got = vec![1.0 + 0.9e-7; 64];
        let margin = Margin { max: 1.0, norm: 0.0 };
        assert!(compare("y", &[64], Dtype::F32, &got, &[1.0; 64], margin).is_ok());
        let got = vec![1.0 + 2e-7; 64];
        assert!(compare("y", &[64], Dtype::F32, &got, &[1.0; 64], margin).is_err());
    }
}
