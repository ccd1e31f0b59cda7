//! What `squared_error` and `absolute_error` share: the mean over all numbers of a function of their difference, with
//! optional weights of the rows.

mod launch;

use crate::backend::Exec;
use crate::backend::cpu::threads::reduce;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, In, Out, TOUCH, map, map_flat, no_gradient, sum_flat, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input};
use crate::ops::operator::{
    Backward, Forward, GradSlot, Keeps, Mask, OpFlops, Outputs, RefBackward, RefForward, ReferenceGrad,
};
use crate::scalar::{Scalar, sum};
use crate::tensor::{Dtype, Spec, View, expect_dtype, expect_shape};

pub(crate) use launch::Kernels;

/// One function of the difference. [`mean_error!`] makes an operator of it.
pub(crate) trait MeanError: ReferenceGrad {
    /// The room's name.
    const NAME: &'static str;
    /// What `error` counts.
    const ERROR_FLOPS: u128;
    /// What `pull` counts.
    const PULL_FLOPS: u128;
    /// A constant of the derivative.
    const FACTOR: f64;

    /// Its kernels.
    fn kernels() -> &'static Kernels;
    /// The error of the difference `d`.
    fn error<S: Scalar>(d: S) -> S;
    /// `s` times the derivative of the error at `d`, without the constant.
    fn pull<S: Scalar>(s: S, d: S) -> S;
    /// Σ error(p − y), in f64.
    fn sum_line(p: &[f32], y: &[f32]) -> f64;
    /// `d = pull(s, p − y)` for every number.
    fn pull_line(s: f32, p: &[f32], y: &[f32], d: &mut [f32]);
}

/// Numbers that have one weight: rows of the last axis, or all numbers as one row.
#[derive(Clone, Copy)]
struct Weighting {
    rows: usize,
    width: usize,
    /// How many weights there are; 0 without.
    weights: usize,
}

impl Weighting {
    fn of(p: &Spec, weight: Option<&Spec>) -> Weighting {
        match weight {
            None => Weighting { rows: 1, width: p.len(), weights: 0 },
            Some(w) => {
                let (rows, width) = p.rows_cols();
                Weighting { rows, width, weights: w.len() }
            }
        }
    }
}

pub(crate) fn infer<E: MeanError>(x: &[&Spec]) -> Result<Outputs> {
    let (op, [p, y, weight @ ..]) = (E::NAME, x) else { return Err(wrong_number::<E>(x.len())) };
    if weight.len() > 1 {
        return Err(wrong_number::<E>(x.len()));
    }
    for (name, s) in [("p", p), ("y", y)] {
        expect_dtype(op, name, s, &Dtype::FLOATS)?;
    }
    if p.is_empty() {
        return Err(Error::shape(format!("{op}: p: expected at least one number, found {:?}", p.shape())));
    }
    if p.shape() != y.shape() {
        return Err(Error::shape(format!("{op}: y: expected {:?} like p, found {:?}", p.shape(), y.shape())));
    }
    if let Some(weight) = weight.first() {
        let [.., h, _] = *p.shape() else {
            return Err(Error::shape(format!("{op}: p: expected [.., H, W] with weights, found {:?}", p.shape())));
        };
        expect_dtype(op, "weight", weight, &[Dtype::F32])?;
        expect_shape(op, "weight", weight, &[("H", h)])?;
    }
    Ok(Outputs::one(Spec::f32([])?))
}

fn wrong_number<E: MeanError>(found: usize) -> Error {
    Error::argument(format!("{}: expected 2 inputs, or 3 with weights, found {found}", E::NAME))
}

pub(crate) fn flops<E: MeanError>(x: &[&Spec], wanted: Mask) -> OpFlops {
    let w = Weighting::of(x[0], x.get(2).copied());
    let (n, rows) = (x[0].len() as u128, w.rows as u128);
    let weighted = if w.weights > 0 { rows } else { 0 };
    let line = n * (2 + E::ERROR_FLOPS);
    let pull = if wanted.has(0) || wanted.has(1) { 1 + weighted + n * (1 + E::PULL_FLOPS) } else { 0 };
    let weight = if wanted.has(2) { 1 + line + 2 * rows } else { 0 };
    OpFlops {
        forward: Flops::vector(line + rows + weighted + 1),
        backward: Flops::vector(pull + weight),
        recomputed: Flops::ZERO,
    }
}

pub(crate) fn keeps(wanted: Mask) -> Keeps {
    let mut x = if wanted.is_empty() { Mask::NONE } else { Mask::of([0, 1]) };
    if wanted.has(0) || wanted.has(1) {
        x = x.with(2);
    }
    Keeps { x, y: Mask::NONE }
}

pub(crate) fn forward_ref<E: MeanError, S: Scalar>(io: RefForward<'_, S>) {
    let ([p, y, weight @ ..], [loss]) = (io.x, io.y) else { return };
    let w = Weighting::of(p.spec, weight.first().map(|w| w.spec));
    let mut total = S::zero();
    for r in 0..w.rows {
        let (p, y) = (&p[r * w.width..][..w.width], &y[r * w.width..][..w.width]);
        let line = sum(p.iter().zip(y).map(|(&p, &y)| E::error(p - y)));
        total = total + weight.first().map_or(line, |weight| weight[r % w.weights] * line);
    }
    loss[0] = total / S::count(p.len());
}

/// Sums in f64.
pub(crate) fn forward<E: MeanError>(exec: &Exec, io: Forward<'_>) -> Result<()> {
    if let Some(gpu) = exec.gpu() {
        return launch::forward::<E>(gpu, io);
    }
    let ([p, y, weight @ ..], [loss]) = (io.x, io.y) else { return Err(wrong_operands(E::NAME)) };
    let n = p.spec().len();
    let w = Weighting::of(p.spec(), weight.first().map(View::spec));
    let (p, y) = (Floats::of(p)?, Floats::of(y)?);
    let total = match weight.first() {
        None => sum_flat(n, TOUCH, [p, y], |[p, y]| [E::sum_line(p, y)])[0],
        Some(weight) => {
            let weight = weight.f32()?;
            lines::<E>(w, p, y, |r, line| f64::from(weight[r % w.weights]) * line)
        }
    };
    loss.f32()?.fill((total / n as f64) as f32);
    Ok(())
}

/// The sum over all rows of `f(row, its error)`, in their order.
fn lines<E: MeanError>(w: Weighting, p: Floats<'_>, y: Floats<'_>, f: impl Fn(usize, f64) -> f64 + Sync) -> f64 {
    let piece = |at: std::ops::Range<usize>| {
        let all = at.start * w.width..at.end * w.width;
        let [mut p, mut y] = [p, y].map(|x| In::new(x.part(all.clone()), w.width));
        at.map(|r| f(r, E::sum_line(p.next(1), y.next(1)))).sum::<f64>()
    };
    reduce(w.rows, TOUCH * w.width, piece, |a, b| a + b).unwrap_or(0.0)
}

pub(crate) fn backward_ref<E: MeanError, S: Scalar>(io: RefBackward<'_, S>) {
    let ([p, y, weight @ ..], [dloss], [dp, dy, dweight @ ..]) = (io.x, io.dy, io.dx) else { return };
    let w = Weighting::of(p.spec, weight.first().map(|w| w.spec));
    let n = p.spec.len();
    if dp.is_some() || dy.is_some() {
        let scale = S::of(E::FACTOR / n as f64) * dloss[0];
        for r in 0..w.rows {
            let scale = weight.first().map_or(scale, |weight| weight[r % w.weights] * scale);
            for k in r * w.width..(r + 1) * w.width {
                let d = E::pull(scale, p[k] - y[k]);
                if let Some(dp) = dp {
                    dp[k] = d;
                }
                if let Some(dy) = dy {
                    dy[k] = -d;
                }
            }
        }
    }
    if let [Some(dweight)] = dweight {
        let share = dloss[0] / S::count(n);
        for r in 0..w.rows {
            let (p, y) = (&p[r * w.width..][..w.width], &y[r * w.width..][..w.width]);
            let line = sum(p.iter().zip(y).map(|(&p, &y)| E::error(p - y)));
            dweight[r % w.weights] = dweight[r % w.weights] + line * share;
        }
    }
}

pub(crate) fn backward<E: MeanError>(exec: &Exec, io: Backward<'_>) -> Result<()> {
    if let Some(gpu) = exec.gpu() {
        return launch::backward::<E>(gpu, io);
    }
    let ([p, y, weight @ ..], [dloss], [dp, dy, dweight @ ..]) = (io.x, io.dy, &mut *io.dx) else {
        return Err(wrong_operands(E::NAME));
    };
    let Some(dloss) = dloss else { return no_gradient(io.dx) };
    let dloss = dloss.f32()?.iter().sum::<f32>();
    let (w, n) = (Weighting::of(io.specs[0], io.specs.get(2).copied()), io.specs[0].len());
    let (p, y) = (Floats::kept(Some(p))?, Floats::kept(Some(y))?);
    let scale = (E::FACTOR / n as f64) as f32 * dloss;
    // The gradient of y is that of p with the other sign.
    for (slot, scale) in [(dp, scale), (dy, -scale)] {
        let Some(d) = Out::slot(slot, w.width)? else { continue };
        match weight.first() {
            None => map_flat(n, 2 * TOUCH, [p, y], [d], |_, [p, y], [d]| E::pull_line(scale, p, y, d)),
            Some(weight) => {
                let weight = Floats::kept(Some(weight))?.widened();
                let x = [p, y].map(|x| In::new(x, w.width));
                map(w.rows, 2 * TOUCH * w.width, x, [d], |first, [p, y], [d]| {
                    let rows = d.chunks_mut(w.width).zip(p.chunks(w.width).zip(y.chunks(w.width)));
                    for (r, (d, (p, y))) in rows.enumerate() {
                        E::pull_line(weight[(first + r) % w.weights] * scale, p, y, d);
                    }
                });
            }
        }
    }
    if let [slot @ (GradSlot::Set(_) | GradSlot::Add(_))] = dweight
        && let Some(to) = Out::slot(slot, 1)?
    {
        let share = f64::from(dloss) / n as f64;
        map(w.weights, 2 * TOUCH * (n / w.weights), [], [to], |first, [], [to]| {
            for (h, to) in to.iter_mut().enumerate() {
                let rows = (first + h..w.rows).step_by(w.weights).map(|r| r * w.width..(r + 1) * w.width);
                let line = |at: std::ops::Range<usize>| {
                    let [mut p, mut y] = [p, y].map(|x| In::new(x.part(at.clone()), w.width));
                    E::sum_line(p.next(1), y.next(1))
                };
                *to = (rows.map(line).sum::<f64>() * share) as f32;
            }
        });
    }
    Ok(())
}

/// Σ f(p − y) in eight interleaved f64 sums.
#[inline(always)]
pub(crate) fn lanes(p: &[f32], y: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (p8, p_rest) = p.as_chunks::<LANES>();
    let (y8, y_rest) = y.as_chunks::<LANES>();
    for (p, y) in p8.iter().zip(y8) {
        for k in 0..LANES {
            sums[k] += f64::from(f(p[k] - y[k]));
        }
    }
    for (s, (&p, &y)) in sums.iter_mut().zip(p_rest.iter().zip(y_rest)) {
        *s += f64::from(f(p - y));
    }
    sums.iter().sum()
}

/// Makes an operator of a unit struct: the name, the error with what it counts, and its derivative as a constant, what it
/// counts and a function of a factor and the difference. The module needs `wide!` and `Kernel` in scope, and `SOURCE`.
macro_rules! mean_error {
    ($op:ident, $name:literal, error: $error_flops:literal $error:expr, pull: $factor:literal $pull_flops:literal $pull:expr) => {
        impl $crate::ops::mean_error::MeanError for $op {
            const NAME: &'static str = $name;
            const ERROR_FLOPS: u128 = $error_flops;
            const PULL_FLOPS: u128 = $pull_flops;
            const FACTOR: f64 = $factor;

            fn kernels() -> &'static mean_error::Kernels {
                static KERNELS: mean_error::Kernels = mean_error::Kernels {
                    sums: Kernel::new(SOURCE, concat!($name, "_fwd_sums")),
                    fwd: Kernel::new(SOURCE, concat!($name, "_fwd")),
                    dp: Kernel::new(SOURCE, concat!($name, "_bwd_dp")),
                    dy: Kernel::new(SOURCE, concat!($name, "_bwd_dy")),
                    dweight_rows: Kernel::new(SOURCE, concat!($name, "_bwd_dweight_rows")),
                    dweight_axis: Kernel::new(SOURCE, concat!($name, "_bwd_dweight_axis")),
                };
                &KERNELS
            }

            #[inline(always)]
            fn error<S: Scalar>(d: S) -> S {
                let f: fn(S) -> S = $error;
                f(d)
            }

            #[inline(always)]
            fn pull<S: Scalar>(s: S, d: S) -> S {
                let f: fn(S, S) -> S = $pull;
                f(s, d)
            }

            fn sum_line(p: &[f32], y: &[f32]) -> f64 {
                sum_line(p, y)
            }

            fn pull_line(s: f32, p: &[f32], y: &[f32], d: &mut [f32]) {
                pull_line(s, p, y, d);
            }
        }

        wide! {
            fn sum_line<F>(p: &[f32], y: &[f32]) -> f64 {
                mean_error::lanes(p, y, <$op as mean_error::MeanError>::error)
            }

            fn pull_line<F>(s: f32, p: &[f32], y: &[f32], d: &mut [f32]) {
                for (d, (&p, &y)) in d.iter_mut().zip(p.iter().zip(y)) {
                    *d = <$op as mean_error::MeanError>::pull(s, p - y);
                }
            }
        }

        impl Arity<2> for $op {}
        impl Arity<3> for $op {}

        impl Operator for $op {
            fn name(&self) -> &'static str {
                $name
            }

            fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
                mean_error::infer::<$op>(x)
            }

            fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
                mean_error::flops::<$op>(x, wanted)
            }

            fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
                mean_error::forward::<$op>(exec, io)
            }
        }

        impl Differentiable for $op {
            fn keeps(&self, wanted: Mask) -> Keeps {
                mean_error::keeps(wanted)
            }

            fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
                mean_error::backward::<$op>(exec, io)
            }
        }

        impl Reference for $op {
            fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
                mean_error::forward_ref::<$op, S>(io);
            }
        }

        impl ReferenceGrad for $op {
            fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
                mean_error::backward_ref::<$op, S>(io);
            }
        }
    };
}
pub(crate) use mean_error;

/// Numbers whose differences stay away from 0, where the absolute error has no derivative, or are exactly 0.
fn input<const N: usize>(name: &'static str, shape: [usize; N]) -> Input {
    let values = if name == "p" {
        vec![0.5, -0.75, 1.0, -0.125, 0.25, -1.5, 0.875]
    } else {
        vec![0.625, -0.25, 1.0, -1.125, 0.375]
    };
    Input::new(name, shape).fill(Fill::Values(values))
}

fn plain<E: MeanError, const N: usize>(op: E, shape: [usize; N]) -> Case {
    Case::new(op, [input("p", shape), input("y", shape)])
}

fn weighted<E: MeanError, const N: usize>(op: E, shape: [usize; N]) -> Case {
    let weight = Input::new("weight", [shape[N - 2]]).always_f32().fill(Fill::Uniform(0.0, 2.0));
    Case::new(op, [input("p", shape), input("y", shape), weight])
}

/// The cases of both rooms.
pub(crate) fn cases<E: MeanError + Copy>(op: E) -> Vec<Case> {
    let target_in_f32 = [input("p", [3, 5, 7]), input("y", [3, 5, 7]).always_f32().constant()];
    vec![
        plain(op, []),
        plain(op, [1]),
        plain(op, [7]),
        plain(op, [3, 5]),
        plain(op, [2, 33]),
        plain(op, [2, 3, 31, 17]),
        plain(op, [20_001]),
        Case::new(op, target_in_f32),
        weighted(op, [1, 1]),
        weighted(op, [5, 3]),
        weighted(op, [2, 3, 31, 17]),
        weighted(op, [4, 8, 16]),
        weighted(op, [1, 3, 5000]),
    ]
}

/// What both rooms refuse.
pub(crate) fn bad_cases<E: MeanError + Copy>(op: E) -> Vec<BadCase> {
    let narrow_weight = [Spec::f32([4, 8]), Spec::f32([4, 8]), Spec::new(Dtype::Bf16, [4])];
    let i32s = [Spec::new(Dtype::I32, [4]), Spec::f32([4])];
    vec![
        BadCase::new(op, &[&[4]], "expected 2 inputs, or 3 with weights, found 1"),
        BadCase::new(op, &[&[4], &[4], &[4], &[4]], "expected 2 inputs, or 3 with weights, found 4"),
        BadCase::new(op, &[&[4, 8], &[8, 4]], "y: expected [4, 8] like p, found [8, 4]"),
        BadCase::new(op, &[&[0, 8], &[0, 8]], "p: expected at least one number, found [0, 8]"),
        BadCase::new(op, &[&[8], &[8], &[8]], "p: expected [.., H, W] with weights, found [8]"),
        BadCase::new(op, &[&[2, 4, 8], &[2, 4, 8], &[8]], "weight: expected [H=4], found [8]"),
        BadCase::of_specs(op, narrow_weight.into_iter().flatten().collect(), "weight: expected f32, found [4] bf16"),
        BadCase::of_specs(op, i32s.into_iter().flatten().collect(), "p: expected f32 or bf16 or f16"),
    ]
}

/// What both rooms are timed on.
pub(crate) fn bench_cases<E: MeanError + Copy>(op: E) -> Vec<Case> {
    vec![plain(op, [4, 20, 64, 128]), weighted(op, [1, 20, 360, 720])]
}

/// The CPU's path and the plain text agree on a tensor of many pieces, forward and for every gradient.
#[cfg(test)]
pub(crate) fn holds_at_size<E: MeanError>(op: &E) {
    use crate::ops::operator::RefInput;
    use crate::ops::trial;
    let specs = [Spec::f32([6, 50, 130]).unwrap(), Spec::f32([6, 50, 130]).unwrap(), Spec::f32([50]).unwrap()];
    let numbers = |s: &Spec, k: usize| (0..s.len()).map(|i| (i * k % 16) as f32).collect::<Vec<f32>>();
    let v: Vec<Vec<f32>> = specs.iter().zip([7, 5, 3]).map(|(s, k)| numbers(s, k)).collect();
    for inputs in [2, 3] {
        let x: Vec<RefInput<'_, f32>> =
            specs.iter().zip(&v).map(|(spec, v)| RefInput { spec, v, ints: &[] }).take(inputs).collect();
        let mut loss = [0.0];
        op.forward_ref(RefForward { x: &x, y: &mut [&mut loss], saved: &mut [] });
        let mut want: Vec<Vec<f32>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
        let mut slots: Vec<Option<&mut [f32]>> = want.iter_mut().map(|d| Some(&mut d[..])).collect();
        op.backward_ref(RefBackward { x: &x, y: &[], saved: &[], dy: &[&[4096.0]], dx: &mut slots });
        want.push(loss.to_vec());
        let numbers: Vec<trial::Numbers<'_>> = x.iter().map(|x| (x.spec.shape(), x.v)).collect();
        let mut got = trial::backward(op, &numbers, Some(&[4096.0]));
        got.push(trial::forward(op, &numbers));
        for (got, want) in got.iter().zip(want) {
            // Small integers: only the divisions round, and long f32 sums.
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs()), "{inputs} inputs");
        }
        assert!(trial::backward(op, &numbers, None).iter().flatten().all(|&d| d == 0.0));
    }
}
