//! `group_norm`: every group of channels of a sample to mean 0 and variance 1, then scaled and shifted per channel.

mod cpu;
mod launch;

use crate::backend::Exec;
use crate::backend::gpu::kernel::Unit;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype, expect_shape};

/// Group normalisation over tokens and channels, channels last.
///
/// ```text
/// y[b, n, c] = (x[b, n, c] − mean[b, g]) · rstd[b, g] · gamma[c] + beta[c],  g = ⌊c · groups / C⌋
/// ```
///
/// where `mean` and the variance are those of the `N · C/groups` numbers of one group of one sample: statistics run across
/// tokens.
///
/// # Shapes
/// `x [B, .., C]`, the axes between being the tokens `N`, `gamma [C]`, `beta [C]` → `y` like `x`; saves `mean`, `rstd`
/// `[B, groups]` in f32. Backward reads `x`, and `gamma` for `dx`.
///
/// # Units
/// `y` is dimensionless up to the unit of `beta`; `eps` has the unit of `x` squared.
///
/// # Cost
/// forward `8·B·N·C + 4·B·groups` vector, `B·groups` special; backward of `x` `12·B·N·C + 2·B·groups` vector, of `gamma`
/// `4·B·N·C`, of `beta` `B·N·C`.
///
/// # Errors
/// [`Error::Shape`] if `x` has fewer than two axes or no token or channel, if `gamma` or `beta` is not `[C]`, or if `groups`
/// does not divide `C`; [`Error::Dtype`] unless all are f32, all bf16 or all f16; [`Error::Argument`] unless `eps` is
/// positive and finite and `groups` is 1 or more.
///
/// # Source
/// Wu, He 2018, section 3. Gradient by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// How many groups the channels are in. Divides their number.
    pub groups: usize,
    /// Added to the variance. Positive.
    pub eps: f32,
}

/// Lengths of the axes.
#[derive(Clone, Copy)]
struct Axes {
    b: usize,
    n: usize,
    c: usize,
    groups: usize,
}

impl Axes {
    /// Channels in a group.
    fn wide(self) -> usize {
        self.c / self.groups
    }

    /// Numbers in a group of a sample.
    fn count(self) -> usize {
        self.n * self.wide()
    }

    /// Where the numbers of group `g` of sample `b` lie, with their channels.
    fn members(self, b: usize, g: usize) -> impl Iterator<Item = (usize, usize)> {
        let channels = g * self.wide()..(g + 1) * self.wide();
        (0..self.n).flat_map(move |n| channels.clone().map(move |c| ((b * self.n + n) * self.c + c, c)))
    }
}

impl GroupNorm {
    fn axes(&self, x: &Spec) -> Axes {
        match x.shape() {
            [b, tokens @ .., c] => Axes { b: *b, n: tokens.iter().product(), c: *c, groups: self.groups },
            _ => Axes { b: 0, n: 0, c: 0, groups: self.groups },
        }
    }
}

impl Arity<3> for GroupNorm {}

impl Operator for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x, gamma, beta] = expect_inputs("group_norm", x)?;
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(Error::argument(format!("group_norm: eps: expected a positive number, found {}", self.eps)));
        }
        if self.groups == 0 {
            return Err(Error::argument("group_norm: groups: expected 1 or more, found 0"));
        }
        expect_dtype("group_norm", "x", x, &Dtype::FLOATS)?;
        if x.rank() < 2 || x.shape()[1..].contains(&0) {
            return Err(Error::shape(format!(
                "group_norm: x: expected [B, .., C] with a token and a channel or more, found {:?}",
                x.shape()
            )));
        }
        let c = x.last();
        if !c.is_multiple_of(self.groups) {
            return Err(Error::shape(format!(
                "group_norm: x: expected C to be a multiple of {} groups, found C={c}",
                self.groups
            )));
        }
        for (name, s) in [("gamma", gamma), ("beta", beta)] {
            expect_dtype("group_norm", name, s, &[x.dtype()])?;
            expect_shape("group_norm", name, s, &[("C", c)])?;
        }
        let saved = Spec::f32([self.axes(x).b, self.groups])?;
        Ok(Outputs { y: vec![(*x).clone()], saved: vec![saved.clone(), saved] })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let groups = self.axes(x[0]).b as u128 * self.groups as u128;
        let n = x[0].len() as u128;
        let dx = if wanted.has(0) { 12 * n + 2 * groups } else { 0 };
        let dgamma = if wanted.has(1) { 4 * n } else { 0 };
        let dbeta = if wanted.has(2) { n } else { 0 };
        OpFlops {
            forward: Flops::vector(8 * n + 4 * groups) + Flops::special(groups),
            backward: Flops::vector(dx + dgamma + dbeta),
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::forward(self, gpu, io);
        }
        cpu::forward(self, io)
    }
}

impl Differentiable for GroupNorm {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let x = match (wanted.has(0), wanted.has(1)) {
            (true, _) => Mask::of([0, 1]),
            (false, true) => Mask::of([0]),
            (false, false) => Mask::NONE,
        };
        Keeps { x, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::backward(self, gpu, io);
        }
        cpu::backward(self, io)
    }
}

impl Reference for GroupNorm {
    /// Two passes, plain sums.
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, gamma, beta], [y], [mean, rstd]) = (io.x, io.y, io.saved) else { return };
        let axes = self.axes(x.spec);
        for b in 0..axes.b {
            for g in 0..axes.groups {
                let mut total = S::zero();
                for (i, _) in axes.members(b, g) {
                    total = total + x[i];
                }
                let m = total / S::count(axes.count());
                let mut squares = S::zero();
                for (i, _) in axes.members(b, g) {
                    let d = x[i] - m;
                    squares = squares + d * d;
                }
                let variance = squares / S::count(axes.count());
                let s = S::one() / (variance + S::of(f64::from(self.eps))).sqrt();
                for (i, c) in axes.members(b, g) {
                    y[i] = (x[i] - m) * s * gamma[c] + beta[c];
                }
                (mean[b * axes.groups + g], rstd[b * axes.groups + g]) = (m, s);
            }
        }
    }
}

impl ReferenceGrad for GroupNorm {
    /// With n = (x − mean)·rstd and h = dy·gamma: dx = rstd·(h − avg(h) − n·avg(h·n)) over each group.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, gamma, _], [mean, rstd], [dy]) = (io.x, io.saved, io.dy) else { return };
        let [dx, dgamma, dbeta] = io.dx else { return };
        let axes = self.axes(x.spec);
        for b in 0..axes.b {
            for g in 0..axes.groups {
                let (m, s) = (mean[b * axes.groups + g], rstd[b * axes.groups + g]);
                if let Some(dx) = dx {
                    let (mut sum_h, mut sum_hn) = (S::zero(), S::zero());
                    for (i, c) in axes.members(b, g) {
                        // Kept for the second pass: dx holds h meanwhile.
                        dx[i] = dy[i] * gamma[c];
                        sum_h = sum_h + dx[i];
                        sum_hn = sum_hn + dx[i] * ((x[i] - m) * s);
                    }
                    let (avg_h, avg_hn) = (sum_h / S::count(axes.count()), sum_hn / S::count(axes.count()));
                    for (i, _) in axes.members(b, g) {
                        dx[i] = (dx[i] - avg_h - (x[i] - m) * s * avg_hn) * s;
                    }
                }
                for (i, c) in axes.members(b, g) {
                    if let Some(dgamma) = dgamma {
                        dgamma[c] = dgamma[c] + dy[i] * ((x[i] - m) * s);
                    }
                    if let Some(dbeta) = dbeta {
                        dbeta[c] = dbeta[c] + dy[i];
                    }
                }
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "group_norm",
    about: "every group of channels of a sample to mean 0 and variance 1, scaled and shifted per channel",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(launch::SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case(b: usize, n: usize, c: usize, groups: usize) -> Case {
    let gamma = Input::new("gamma", [c]).fill(Fill::Uniform(0.5, 1.5));
    Case::new(GroupNorm { groups, eps: 1e-5 }, [Input::new("x", [b, n, c]), gamma, Input::new("beta", [c])])
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(1, 1, 1, 1),
        case(2, 3, 7, 7),
        case(3, 5, 14, 2),
        case(2, 6, 16, 8),
        case(1, 9, 31, 1),
        case(1, 7, 32, 8),
        case(2, 3, 66, 3),
        case(1, 2, 384, 8),
        case(5, 1, 128, 8),
        case(1, 515, 8, 4),
        case(2, 1100, 8, 8),
        case(0, 3, 4, 2),
    ];
    // Statistics of a large mean and a small spread.
    let far = Input::new("x", [2, 13, 8]).fill(Fill::Uniform(9.0, 9.5));
    let one = |name| Input::new(name, [8]);
    cases.push(Case::new(GroupNorm { groups: 2, eps: 1e-5 }, [far, one("gamma"), one("beta")]));
    let four = Input::new("x", [2, 3, 2, 6]);
    let six = |name| Input::new(name, [6]);
    cases.push(Case::new(GroupNorm { groups: 3, eps: 1e-3 }, [four, six("gamma"), six("beta")]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let op = GroupNorm { groups: 8, eps: 1e-5 };
    let spec =
        |dtype, shape: &[usize]| Spec::new(dtype, shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    let of = |dtype, other| vec![spec(dtype, &[2, 3, 8]), spec(other, &[8]), spec(other, &[8])];
    vec![
        BadCase::new(op, &[&[2, 3, 8]], "group_norm: expected 3 inputs, found 1"),
        BadCase::new(op, &[&[8], &[8], &[8]], "group_norm: x: expected [B, .., C] with a token and a channel or more"),
        BadCase::new(op, &[&[2, 0, 8], &[8], &[8]], "a token and a channel or more, found [2, 0, 8]"),
        BadCase::new(op, &[&[2, 3, 0], &[0], &[0]], "a token and a channel or more, found [2, 3, 0]"),
        BadCase::new(op, &[&[2, 3, 12], &[12], &[12]], "expected C to be a multiple of 8 groups, found C=12"),
        BadCase::new(op, &[&[2, 3, 8], &[4], &[8]], "group_norm: gamma: expected [C=8], found [4]"),
        BadCase::new(op, &[&[2, 3, 8], &[8], &[1, 8]], "group_norm: beta: expected [C=8], found [1, 8]"),
        BadCase::of_specs(op, of(Dtype::F16, Dtype::F32), "group_norm: gamma: expected f16, found [8] f32"),
        BadCase::of_specs(op, of(Dtype::I32, Dtype::I32), "group_norm: x: expected f32 or bf16 or f16"),
        BadCase::new(GroupNorm { groups: 0, ..op }, &[&[2, 3, 8], &[8], &[8]], "groups: expected 1 or more, found 0"),
        BadCase::new(GroupNorm { eps: -1.0, ..op }, &[&[2, 3, 8], &[8], &[8]], "eps: expected a positive number"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case(4, 4050, 384, 8), case(16, 4096, 768, 32), case(4, 128, 384, 8), case(4, 128, 128, 8)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn a_group_of_one_value_gives_beta_and_a_finite_gradient() {
        let op = GroupNorm { groups: 2, eps: 1e-5 };
        let x: [(&[usize], &[f32]); 3] = [(&[1, 2, 2], &[7.0, 1.0, 7.0, 2.0]), (&[2], &[2.0; 2]), (&[2], &[0.1, 0.2])];
        let y = forward(&op, &x);
        assert_eq!((y[0], y[2]), (0.1, 0.1));
        assert!((y[1] - (0.2 - 2.0)).abs() < 1e-3 && (y[3] - (0.2 + 2.0)).abs() < 1e-3, "{y:?}");
        assert!(backward(&op, &x, Some(&[1.0, 0.0, 0.0, 1.0])).iter().flatten().all(|g| g.is_finite()));
    }

    #[test]
    fn a_nan_stays_in_its_sample_and_group() {
        let op = GroupNorm { groups: 2, eps: 1e-5 };
        let mut x = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0];
        x[2] = f32::NAN;
        let y = forward(&op, &[(&[2, 2, 2], &x), (&[2], &[1.0; 2]), (&[2], &[0.0; 2])]);
        assert!(y[0].is_nan() && y[2].is_nan());
        assert!([1, 3, 4, 5, 6, 7].iter().all(|&i: &usize| y[i].is_finite()), "{y:?}");
    }

    #[test]
    fn a_mean_far_above_the_spread_keeps_the_spread() {
        // Cut into several pieces of work whose statistics are merged.
        let (n, c) = (5000, 8);
        let x: Vec<f32> = (0..n * c).map(|i| if i / c % 2 == 0 { 1000.0 } else { 1002.0 }).collect();
        let y = forward(
            &GroupNorm { groups: 4, eps: 1e-12 },
            &[(&[1, n, c], &x), (&[c], &vec![1.0; c]), (&[c], &vec![0.0; c])],
        );
        assert!(y.iter().zip(&x).all(|(y, x)| (y - (x - 1001.0)).abs() < 1e-4));
    }
}
