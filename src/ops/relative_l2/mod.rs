//! `relative_l2`: the distance of a prediction from its target, in lengths of the target.

mod cpu;
mod launch;

use crate::backend::Exec;
use crate::backend::gpu::kernel::Unit;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad,
};
use crate::ops::totals::PAIRS;
use crate::scalar::{Scalar, sum};
use crate::tensor::{Dtype, Spec, expect_dtype, expect_shape};

/// Relative 2-norm of the error of each sample, averaged over the samples, with optional weights of the rows.
///
/// ```text
/// loss = 1/B · Σ_b ‖p[b] − y[b]‖₂ / ‖y[b]‖₂        with weights both norms are ‖d‖ = √(Σ weight[h] · d[.., h, w]²)
/// ```
///
/// Weights are used as they are; a common factor of all of them changes nothing.
///
/// There is no epsilon: a target of zeros gives infinity (NaN if the prediction is zero too). A prediction that equals
/// its target has the gradient 0.
///
/// # Shapes
/// `p [B, ..]`, `y [B, ..]` → `loss []` in f32; saves `‖p − y‖`, `‖y‖` `[B]` in f32. With `weight [H]` in f32, `p` and `y`
/// are `[B, .., H, W]`.
///
/// # Units
/// `loss` and weights are dimensionless; `p` and `y` have the same unit.
///
/// # Cost
/// With n numbers a sample: forward `B·(5n + 2) + 1` vector, `2B` special; backward `3B` vector for any gradient, and of `p`
/// `2nB`, of `y` `B·(4n + 3)`. With weights of r rows a sample: forward `4rB` more, of `p` `rB` and of `y` `2rB` more, of the
/// weights `B·(5n + 4r + 5)`.
///
/// # Errors
/// [`Error::Shape`] unless `p` and `y` have the same shape of at least one axis, with a sample and a number in it, and
/// `weight` fits; [`Error::Dtype`] unless `p` and `y` are f32, bf16 or f16 each and `weight` is f32; [`Error::Argument`] for
/// another number of inputs.
///
/// # Source
/// Li et al. 2021, "Fourier neural operator for parametric partial differential equations", section 5 (relative error);
/// weights as in WeatherBench (Rasp et al. 2020), equation 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelativeL2;

/// Lengths: samples, and in each the numbers that share one weight, in rows. Without weights a sample is one row.
#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    rows: usize,
    width: usize,
    /// How many weights there are; 0 without.
    weights: usize,
}

impl Sizes {
    fn of(p: &Spec, weight: Option<&Spec>) -> Sizes {
        let b = p.shape().first().copied().unwrap_or(1).max(1);
        let n = p.len() / b;
        match weight {
            None => Sizes { b, rows: 1, width: n, weights: 0 },
            Some(w) => Sizes { b, rows: n / p.last().max(1), width: p.last(), weights: w.len() },
        }
    }

    /// Numbers in a sample.
    fn n(self) -> usize {
        self.rows * self.width
    }

    /// Where sample `i` lies.
    fn sample(self, i: usize) -> std::ops::Range<usize> {
        i * self.n()..(i + 1) * self.n()
    }

    /// √Σ of `term` over the numbers of a sample, the sum of each row times its weight.
    fn norm<S: Scalar>(self, weight: Option<&[S]>, term: impl Fn(usize) -> S) -> S {
        let line = |r: usize| sum((r * self.width..(r + 1) * self.width).map(&term));
        let total = match weight {
            None => line(0),
            Some(weight) => sum((0..self.rows).map(|r| weight[r % self.weights] * line(r))),
        };
        total.sqrt()
    }
}

impl Arity<2> for RelativeL2 {}
impl Arity<3> for RelativeL2 {}

impl Operator for RelativeL2 {
    fn name(&self) -> &'static str {
        "relative_l2"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let (p, y, weight) = match *x {
            [p, y] => (p, y, None),
            [p, y, weight] => (p, y, Some(weight)),
            _ => {
                let found = x.len();
                return Err(Error::argument(format!(
                    "relative_l2: expected 2 inputs, or 3 with weights, found {found}"
                )));
            }
        };
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
        if let Some(weight) = weight {
            let [_, .., h, _] = *p.shape() else {
                return Err(Error::shape(format!(
                    "relative_l2: p: expected [B, .., H, W] with weights, found {:?}",
                    p.shape()
                )));
            };
            expect_dtype("relative_l2", "weight", weight, &[Dtype::F32])?;
            expect_shape("relative_l2", "weight", weight, &[("H", h)])?;
        }
        let b = p.shape()[0];
        Ok(Outputs { y: vec![Spec::f32([])?], saved: vec![Spec::f32([b])?, Spec::f32([b])?] })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let sizes = Sizes::of(x[0], x.get(2).copied());
        let (b, n) = (sizes.b as u128, sizes.n() as u128);
        let r = if sizes.weights > 0 { sizes.rows as u128 } else { 0 };
        let of = |i: usize, count: u128| if wanted.has(i) { b * count } else { 0 };
        let scale = if wanted.is_empty() { 0 } else { 3 * b };
        OpFlops {
            forward: Flops::vector(b * (5 * n + 4 * r + 2) + 1) + Flops::special(2 * b),
            backward: Flops::vector(scale + of(0, 2 * n + r) + of(1, 4 * n + 2 * r + 3) + of(2, 5 * n + 4 * r + 5)),
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::forward(gpu, io);
        }
        cpu::forward(io)
    }
}

impl Differentiable for RelativeL2 {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let x = if wanted.is_empty() { Mask::NONE } else { Mask::of([0, 1]) };
        Keeps { x: if wanted.has(0) || wanted.has(1) { x.with(2) } else { x }, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::backward(gpu, io);
        }
        cpu::backward(io)
    }
}

impl Reference for RelativeL2 {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([p, y, weight @ ..], [loss], [error, length]) = (io.x, io.y, io.saved) else { return };
        let sizes = Sizes::of(p.spec, weight.first().map(|w| w.spec));
        let weight = weight.first().map(|w| w.v);
        let mut total = S::zero();
        for i in 0..sizes.b {
            let (p, y) = (&p[sizes.sample(i)], &y[sizes.sample(i)]);
            error[i] = sizes.norm(weight, |k| {
                let d = p[k] - y[k];
                d * d
            });
            length[i] = sizes.norm(weight, |k| y[k] * y[k]);
            total = total + error[i] / length[i];
        }
        loss[0] = total / S::count(sizes.b);
    }
}

impl ReferenceGrad for RelativeL2 {
    /// With e = ‖p − y‖, l = ‖y‖, s = dloss/(e·l·B), t = s·(e/l)² and a row's weight w: dp = w·s·(p − y), dy = −dp − w·t·y,
    /// dw = Σ (s·(p − y)² − t·y²)/2.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([p, y, weight @ ..], [error, length]) = (io.x, io.saved) else { return };
        let ([dloss], [dp, dy, dweight @ ..]) = (io.dy, io.dx) else { return };
        let sizes = Sizes::of(p.spec, weight.first().map(|w| w.spec));
        let mut dweight = dweight.first_mut().and_then(|d| d.as_deref_mut());
        if dp.is_none() && dy.is_none() && dweight.is_none() {
            return;
        }
        let row_weight = |r: usize, s: S| weight.first().map_or(s, |w| w[r % sizes.weights] * s);
        for i in 0..sizes.b {
            let scale = dloss[0] / (error[i] * length[i] * S::count(sizes.b));
            // At zero error every direction leads up equally; the gradient in the middle is none.
            let s = if error[i] == S::zero() { S::zero() } else { scale };
            let t = || {
                let q = error[i] / length[i];
                s * q * q
            };
            let rows = |r: usize| sizes.sample(i).skip(r * sizes.width).take(sizes.width);
            if let Some(dp) = dp {
                for r in 0..sizes.rows {
                    let s = row_weight(r, s);
                    rows(r).for_each(|k| dp[k] = s * (p[k] - y[k]));
                }
            }
            if let Some(dy) = dy {
                let t = t();
                for r in 0..sizes.rows {
                    let (s, t) = (row_weight(r, s), row_weight(r, t));
                    rows(r).for_each(|k| dy[k] = -(s * (p[k] - y[k]) + t * y[k]));
                }
            }
            if let Some(dweight) = dweight.as_deref_mut() {
                let (half_s, half_t) = (S::of(0.5) * s, S::of(0.5) * t());
                for r in 0..sizes.rows {
                    let errors = sum(rows(r).map(|k| {
                        let d = p[k] - y[k];
                        d * d
                    }));
                    let lengths = sum(rows(r).map(|k| y[k] * y[k]));
                    let h = r % sizes.weights;
                    dweight[h] = dweight[h] + (half_s * errors - half_t * lengths);
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
    kernels: &[Unit { types: PAIRS, ..Unit::floats(launch::SOURCE) }],
    cases,
    bad_cases,
    bench_cases,
};

fn case<const N: usize>(shape: [usize; N]) -> Case {
    Case::new(RelativeL2, [Input::new("p", shape), Input::new("y", shape).fill(Fill::Uniform(-1.5, 1.0))])
}

fn weighted<const N: usize>(shape: [usize; N]) -> Case {
    let weight = Input::new("weight", [shape[N - 2]]).always_f32().fill(Fill::Uniform(0.5, 2.0));
    Case::new(RelativeL2, [Input::new("p", shape), Input::new("y", shape).fill(Fill::Uniform(-1.5, 1.0)), weight])
}

fn constant_weight(x: Input) -> Input {
    if x.name == "weight" { x.constant() } else { x }
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
        // The gradient of a lone weight is 0 whatever the numbers are: there is nothing to compare it with.
        Case { x: weighted([1, 1, 1]).x.into_iter().map(constant_weight).collect(), ..weighted([1, 1, 1]) },
        weighted([2, 5, 3]),
        weighted([3, 2, 7, 9]),
        weighted([2, 3, 31, 17]),
        weighted([1, 2, 3, 64, 33]),
        weighted([1, 3, 5000]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let i32s = || [Spec::new(Dtype::I32, [4, 2]), Spec::f32([4, 2])].into_iter().flatten().collect::<Vec<_>>();
    let grids = || [Spec::f32([2, 4, 8]), Spec::f32([2, 4, 8]), Spec::new(Dtype::Bf16, [4])];
    let narrow_weight = grids().into_iter().flatten().collect();
    vec![
        BadCase::new(RelativeL2, &[&[4, 20, 8], &[4, 8, 20]], "y: expected [4, 20, 8] like p, found [4, 8, 20]"),
        BadCase::new(RelativeL2, &[&[], &[]], "p: expected [B, ..] with at least one number, found []"),
        BadCase::new(RelativeL2, &[&[0, 3], &[0, 3]], "expected [B, ..] with at least one number, found [0, 3]"),
        BadCase::new(RelativeL2, &[&[3, 0], &[3, 0]], "found [3, 0]"),
        BadCase::new(RelativeL2, &[&[4, 20]], "expected 2 inputs, or 3 with weights, found 1"),
        BadCase::new(RelativeL2, &[&[4], &[4], &[4], &[4]], "expected 2 inputs, or 3 with weights, found 4"),
        BadCase::new(RelativeL2, &[&[4, 8], &[4, 8], &[4]], "p: expected [B, .., H, W] with weights, found [4, 8]"),
        BadCase::new(RelativeL2, &[&[2, 4, 8], &[2, 4, 8], &[8]], "weight: expected [H=4], found [8]"),
        BadCase::of_specs(RelativeL2, narrow_weight, "weight: expected f32, found [4] bf16"),
        BadCase::of_specs(RelativeL2, i32s(), "p: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case([4, 20, 64, 128]), case([1, 20, 360, 720]), weighted([1, 20, 360, 720])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, device, forward, forward_on};

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

    mod with_compilers {
        use super::*;

        #[test]
        #[ignore = "needs NVRTC and clang-19: see ci/install"]
        fn squares_that_overflow_f32_and_targets_of_zeros_are_on_devices_what_they_are_on_the_cpu() {
            for exec in ["emu:sm_80", "emu:gfx90a"].map(device) {
                let loss = |p: &[f32], y: &[f32]| forward_on(&exec, &RelativeL2, &[(&[1, 2], p), (&[1, 2], y)])[0];
                assert!((loss(&[3e30, 0.0], &[0.0, 4e30]) - 1.25).abs() <= f32::EPSILON);
                assert_eq!(loss(&[1.0, 2.0], &[0.0, 0.0]), f32::INFINITY);
                assert!(loss(&[0.0, 0.0], &[0.0, 0.0]).is_nan());
                assert_eq!(loss(&[1.0, -2.0], &[1.0, -2.0]), 0.0);
            }
        }
    }

    #[test]
    fn a_sample_of_many_pieces_sums_all_of_them() {
        let n = 100_003;
        let (loss, gradient) = loss_and_gradient(&vec![3.0; n], &vec![2.0; n]);
        assert_eq!(loss, 0.5);
        let want = 1.0 / (2.0 * n as f32);
        assert!(gradient.iter().all(|g| (g - want).abs() <= 2.0 * f32::EPSILON * want));
    }

    #[test]
    fn weights_of_one_change_nothing_and_a_common_factor_neither() {
        let numbers = |k: usize| (0..2 * 3 * 40 * 50).map(|i| (i * k % 23) as f32 - 7.0).collect::<Vec<f32>>();
        let (p, y, shape) = (numbers(5), numbers(7), &[2, 3, 40, 50][..]);
        let plain = [(shape, &p[..]), (shape, &y[..])];
        let (loss, gradients) = (forward(&RelativeL2, &plain)[0], backward(&RelativeL2, &plain, Some(&[1.0])));
        for weight in [1.0, 4.0] {
            let weighted = [plain[0], plain[1], (&[40][..], &[weight; 40][..])];
            assert!((forward(&RelativeL2, &weighted)[0] - loss).abs() <= 2.0 * f32::EPSILON * loss);
            let got = backward(&RelativeL2, &weighted, Some(&[1.0]));
            for (got, want) in got.iter().zip(&gradients) {
                assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-6 * w.abs().max(1e-4)), "{weight}");
            }
            // Along the common factor the loss does not change.
            let along: f64 = got[2].iter().map(|&g| f64::from(g * weight)).sum();
            assert!(along.abs() <= 1e-6 * f64::from(loss), "{along:e}");
        }
    }

    #[test]
    fn a_row_of_weight_zero_counts_nowhere() {
        let y = [3.0, 4.0, 100.0, -7.0];
        let x = [(&[1, 2, 2][..], &[3.0, 5.0, 0.0, 0.0][..]), (&[1, 2, 2][..], &y[..]), (&[2][..], &[2.0, 0.0][..])];
        assert!((forward(&RelativeL2, &x)[0] - 0.2).abs() <= f32::EPSILON);
        let dx = backward(&RelativeL2, &x, Some(&[1.0]));
        assert_eq!((&dx[0][2..], &dx[1][2..]), (&[0.0, 0.0][..], &[0.0, 0.0][..]));
        assert!((dx[0][1] - 0.2).abs() <= f32::EPSILON && dx[0][0] == 0.0, "{dx:?}");
    }
}
