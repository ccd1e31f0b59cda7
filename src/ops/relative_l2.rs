//! `relative_l2`: the distance of a prediction from its target, in lengths of the target.

use crate::backend::Exec;
use crate::backend::cpu::dispatch::wide;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, Out, TOUCH, map_flat, no_gradient, sum_flat, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::{Scalar, sum};
use crate::tensor::{Dtype, Spec, expect_dtype};

/// Relative 2-norm of the error of each sample, averaged over the samples.
///
/// ```text
/// loss = 1/B · Σ_b ‖p[b] − y[b]‖₂ / ‖y[b]‖₂
/// ```
///
/// There is no epsilon: a target of zeros gives infinity (NaN if the prediction is zero too). A prediction that equals
/// its target has the gradient 0.
///
/// # Shapes
/// `p [B, ..]`, `y [B, ..]` → `loss []` in f32; saves `‖p − y‖`, `‖y‖` `[B]` in f32.
///
/// # Units
/// `loss` is dimensionless; `p` and `y` have the same unit.
///
/// # Cost
/// With n numbers a sample: forward `B·(5n + 2) + 1` vector, `2B` special; backward `3B` vector for either gradient, and of
/// `p` `2nB`, of `y` `B·(4n + 3)`.
///
/// # Errors
/// [`Error::Shape`] unless `p` and `y` have the same shape of at least one axis, with a sample and a number in it;
/// [`Error::Dtype`] unless each is f32, bf16 or f16.
///
/// # Source
/// Li et al. 2021, "Fourier neural operator for parametric partial differential equations", section 5 (relative error).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelativeL2;

impl RelativeL2 {
    /// Samples, and numbers in each.
    fn sizes(p: &Spec) -> (usize, usize) {
        let b = p.shape().first().copied().unwrap_or(1);
        (b, p.len() / b.max(1))
    }
}

impl Arity<2> for RelativeL2 {}

impl Operator for RelativeL2 {
    fn name(&self) -> &'static str {
        "relative_l2"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [p, y] = expect_inputs("relative_l2", x)?;
        for (name, s) in [("p", p), ("y", y)] {
            expect_dtype("relative_l2", name, s, &Dtype::FLOATS)?;
        }
        if p.rank() == 0 || p.is_empty() {
            return Err(Error::shape(format!(
                "relative_l2: p: expected [B, ..] with at least one number, found {:?}",
                p.shape()
            )));
        }
        if p.shape() != y.shape() {
            return Err(Error::shape(format!(
                "relative_l2: y: expected {:?} like p, found {:?}",
                p.shape(),
                y.shape()
            )));
        }
        let b = p.shape()[0];
        Ok(Outputs { y: vec![Spec::f32([])?], saved: vec![Spec::f32([b])?, Spec::f32([b])?] })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let (b, n) = RelativeL2::sizes(x[0]);
        let (b, n) = (b as u128, n as u128);
        let scale = if wanted.has(0) || wanted.has(1) { 3 * b } else { 0 };
        let dp = if wanted.has(0) { 2 * n * b } else { 0 };
        let dy = if wanted.has(1) { b * (4 * n + 3) } else { 0 };
        OpFlops {
            forward: Flops::vector(b * (5 * n + 2) + 1) + Flops::special(2 * b),
            backward: Flops::vector(scale + dp + dy),
            recomputed: Flops::ZERO,
        }
    }

    /// Sums in f64: neither rounding nor overflow of the squares.
    fn forward(&self, _: &Exec, io: Forward<'_>) -> Result<()> {
        let ([p, y], [loss], [error, length]) = (io.x, io.y, io.saved) else {
            return Err(wrong_operands("relative_l2"));
        };
        let (b, n) = RelativeL2::sizes(p.spec());
        let (p, y) = (Floats::of(p)?, Floats::of(y)?);
        let mut total = 0.0;
        for (i, (error, length)) in error.f32()?.iter_mut().zip(length.f32()?).enumerate() {
            let sample = [p, y].map(|x| x.part(i * n..(i + 1) * n));
            let [e, l] = sum_flat(n, TOUCH, sample, |[p, y]| squares(p, y)).map(f64::sqrt);
            (*error, *length) = (e as f32, l as f32);
            total += e / l;
        }
        loss.f32()?.fill((total / b as f64) as f32);
        Ok(())
    }
}

impl Differentiable for RelativeL2 {
    fn keeps(&self, wanted: Mask) -> Keeps {
        Keeps { x: if wanted.is_empty() { Mask::NONE } else { Mask::of([0, 1]) }, y: Mask::NONE }
    }

    fn backward(&self, _: &Exec, io: Backward<'_>) -> Result<()> {
        let ([p, y], [error, length], [dloss], [dp, dy]) = (io.x, io.saved, io.dy, &mut *io.dx) else {
            return Err(wrong_operands("relative_l2"));
        };
        let Some(dloss) = dloss else { return no_gradient(io.dx) };
        let dloss: f64 = dloss.f32()?.iter().map(|&d| f64::from(d)).sum();
        let (b, n) = RelativeL2::sizes(io.specs[0]);
        let (p, y) = (Floats::kept(Some(p))?, Floats::kept(Some(y))?);
        let (mut dp, mut dy) = (Out::slot(dp, 1)?, Out::slot(dy, 1)?);
        for (i, (&e, &l)) in error.f32()?.iter().zip(length.f32()?).enumerate() {
            let (e, l) = (f64::from(e), f64::from(l));
            let s = if e == 0.0 { 0.0 } else { dloss / (e * l * b as f64) };
            let (s, t) = (s as f32, (s * (e / l) * (e / l)) as f32);
            let sample = [p, y].map(|x| x.part(i * n..(i + 1) * n));
            if let Some(dp) = &mut dp {
                map_flat(n, 2 * TOUCH, sample, [dp.front(n)], |_, [p, y], [d]| pull_p(s, p, y, d));
            }
            if let Some(dy) = &mut dy {
                map_flat(n, 2 * TOUCH, sample, [dy.front(n)], |_, [p, y], [d]| pull_y(s, t, p, y, d));
            }
        }
        Ok(())
    }
}

impl Reference for RelativeL2 {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([p, y], [loss], [error, length]) = (io.x, io.y, io.saved) else { return };
        let (b, n) = RelativeL2::sizes(p.spec);
        let mut total = S::zero();
        for i in 0..b {
            let (p, y) = (&p[i * n..][..n], &y[i * n..][..n]);
            error[i] = sum(p.iter().zip(y).map(|(&p, &y)| {
                let d = p - y;
                d * d
            }))
            .sqrt();
            length[i] = sum(y.iter().map(|&y| y * y)).sqrt();
            total = total + error[i] / length[i];
        }
        loss[0] = total / S::count(b);
    }
}

wide! {
    /// Σ (p − y)² and Σ y², in eight interleaved sums each.
    fn squares<F>(p: &[f32], y: &[f32]) -> [f64; 2] {
        const LANES: usize = 8;
        let (mut e, mut l) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        let (p8, p_rest) = p.as_chunks::<LANES>();
        let (y8, y_rest) = y.as_chunks::<LANES>();
        for (p, y) in p8.iter().zip(y8) {
            for k in 0..LANES {
                let (p, y) = (f64::from(p[k]), f64::from(y[k]));
                e[k] += (p - y) * (p - y);
                l[k] += y * y;
            }
        }
        for (k, (&p, &y)) in p_rest.iter().zip(y_rest).enumerate() {
            let (p, y) = (f64::from(p), f64::from(y));
            e[k] += (p - y) * (p - y);
            l[k] += y * y;
        }
        [e.iter().sum(), l.iter().sum()]
    }

    /// `d = s·(p − y)`.
    fn pull_p<F>(s: f32, p: &[f32], y: &[f32], d: &mut [f32]) {
        for (d, (&p, &y)) in d.iter_mut().zip(p.iter().zip(y)) {
            *d = s * (p - y);
        }
    }

    /// `d = −(s·(p − y) + t·y)`.
    fn pull_y<F>(s: f32, t: f32, p: &[f32], y: &[f32], d: &mut [f32]) {
        for (d, (&p, &y)) in d.iter_mut().zip(p.iter().zip(y)) {
            *d = -(s * (p - y) + t * y);
        }
    }
}

impl ReferenceGrad for RelativeL2 {
    /// With e = ‖p − y‖, l = ‖y‖, s = dloss/(e·l·B): dp = s·(p − y), dy = −dp − s·(e/l)²·y.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([p, y], [error, length], [dloss], [dp, dy]) = (io.x, io.saved, io.dy, io.dx) else { return };
        let (b, n) = RelativeL2::sizes(p.spec);
        for i in 0..if dp.is_some() || dy.is_some() { b } else { 0 } {
            let scale = dloss[0] / (error[i] * length[i] * S::count(b));
            // At zero error every direction leads up equally; the gradient in the middle is none.
            let s = if error[i] == S::zero() { S::zero() } else { scale };
            if let Some(dp) = dp {
                for k in i * n..(i + 1) * n {
                    dp[k] = s * (p[k] - y[k]);
                }
            }
            if let Some(dy) = dy {
                let q = error[i] / length[i];
                let t = s * q * q;
                for k in i * n..(i + 1) * n {
                    dy[k] = -(s * (p[k] - y[k]) + t * y[k]);
                }
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "relative_l2",
    about: "distance of a prediction from its target, in lengths of the target",
    dtypes: &Dtype::FLOATS,
    kernels: &[],
    cases,
    bad_cases,
    bench_cases,
};

fn case<const N: usize>(shape: [usize; N]) -> Case {
    Case::new(RelativeL2, [Input::new("p", shape), Input::new("y", shape).fill(Fill::Uniform(-1.5, 1.0))])
}

fn cases() -> Vec<Case> {
    let target_in_f32 = [Input::new("p", [3, 5, 7]), Input::new("y", [3, 5, 7]).always_f32().constant()];
    vec![
        case([1]),
        case([5]),
        case([1, 1, 1]),
        case([3, 7]),
        case([2, 8]),
        case([2, 3, 5, 3]),
        case([257, 3]),
        case([1, 2, 31, 33]),
        case([4, 1025]),
        Case::new(RelativeL2, target_in_f32),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let i32s = || [Spec::new(Dtype::I32, [4, 2]), Spec::f32([4, 2])].into_iter().flatten().collect::<Vec<_>>();
    vec![
        BadCase::new(RelativeL2, &[&[4, 20, 8], &[4, 8, 20]], "y: expected [4, 20, 8] like p, found [4, 8, 20]"),
        BadCase::new(RelativeL2, &[&[], &[]], "p: expected [B, ..] with at least one number, found []"),
        BadCase::new(RelativeL2, &[&[0, 3], &[0, 3]], "expected [B, ..] with at least one number, found [0, 3]"),
        BadCase::new(RelativeL2, &[&[3, 0], &[3, 0]], "found [3, 0]"),
        BadCase::new(RelativeL2, &[&[4, 20]], "expected 2 inputs, found 1"),
        BadCase::of_specs(RelativeL2, i32s(), "p: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case([4, 20, 64, 128]), case([1, 20, 360, 720])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    fn loss_and_gradient(p: &[f32], y: &[f32]) -> (f32, Vec<f32>) {
        let x = [(&[1, p.len()][..], p), (&[1, y.len()][..], y)];
        (forward(&RelativeL2, &x)[0], backward(&RelativeL2, &x, Some(&[1.0])).remove(0))
    }

    #[test]
    fn no_gradient_of_the_loss_is_none_of_the_inputs() {
        let x = [(&[1, 2][..], &[1.0, 2.0][..]), (&[1, 2][..], &[3.0, 4.0][..])];
        assert_eq!(backward(&RelativeL2, &x, None), [[0.0; 2], [0.0; 2]]);
    }

    #[test]
    fn a_target_of_zeros_gives_infinity_and_never_a_small_number() {
        assert_eq!(loss_and_gradient(&[1.0, 2.0], &[0.0, 0.0]).0, f32::INFINITY);
        assert!(loss_and_gradient(&[0.0, 0.0], &[0.0, 0.0]).0.is_nan());
        assert!(loss_and_gradient(&[f32::NAN, 1.0], &[1.0, 1.0]).0.is_nan());
    }

    #[test]
    fn an_exact_prediction_has_loss_and_gradient_zero() {
        assert_eq!(loss_and_gradient(&[1.0, -2.0], &[1.0, -2.0]), (0.0, vec![0.0, 0.0]));
    }

    #[test]
    fn squares_that_overflow_f32_do_not() {
        let (loss, gradient) = loss_and_gradient(&[3e30, 0.0], &[0.0, 4e30]);
        assert!((loss - 1.25).abs() <= f32::EPSILON, "{loss}");
        assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
    }

    #[test]
    fn a_sample_of_many_pieces_sums_all_of_them() {
        let n = 100_003;
        let (loss, gradient) = loss_and_gradient(&vec![3.0; n], &vec![2.0; n]);
        assert_eq!(loss, 0.5);
        let want = 1.0 / (2.0 * n as f32);
        assert!(gradient.iter().all(|g| (g - want).abs() <= 2.0 * f32::EPSILON * want));
    }
}
