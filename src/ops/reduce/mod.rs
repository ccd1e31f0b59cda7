//! `reduce`: the sum or the mean over some axes.

mod launch;

use rayon::prelude::*;

use crate::backend::Exec;
use crate::backend::cpu::threads::{RowsMut, rows};
use crate::backend::gpu::kernel::Unit;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, In, Out, TOUCH, map, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::host;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::ops::totals::Dim;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype};

/// What a [`Reduce`] makes of the numbers along its axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Their sum, 0 of none.
    Sum,
    /// Their sum over their number.
    Mean,
}

/// Sum or mean over named axes, which disappear.
///
/// ```text
/// y[kept] = Σ_reduced x[kept, reduced]      divided by the number of terms for a mean
/// ```
///
/// # Shapes
/// `x [d0, d1, ..]` → `y` with the axes that are not in `axes`, in their order; `[]` if none is left.
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// With n numbers in, m out: forward `n` vector, for a mean `m` more; backward nothing, for a mean `m` vector.
///
/// # Errors
/// [`Error::Argument`] if `x` lacks an axis or one is named twice; [`Error::Shape`] for a mean of no numbers;
/// [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// Definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduce {
    /// Which axes, from 0, in any order.
    pub axes: Vec<usize>,
    /// Sum or mean.
    pub reduction: Reduction,
}

/// Numbers that one thread sums at a time, at least.
const CHUNK: usize = 16 * 1024;

impl Reduce {
    fn keeps_axis(&self, axis: usize) -> bool {
        !self.axes.contains(&axis)
    }

    /// How many numbers go into one.
    fn terms(&self, x: &Spec) -> usize {
        self.axes.iter().map(|&a| x.shape()[a]).product()
    }

    fn kept(&self, x: &Spec) -> usize {
        (0..x.rank()).filter(|&a| self.keeps_axis(a)).map(|a| x.shape()[a]).product()
    }

    fn dims(&self, x: &Spec) -> Vec<Dim> {
        let mut dims: Vec<Dim> = Vec::new();
        for (a, &d) in x.shape().iter().enumerate().filter(|(_, d)| **d != 1) {
            match dims.last_mut() {
                Some((len, kept)) if *kept == self.keeps_axis(a) => *len *= d,
                _ => dims.push((d, self.keeps_axis(a))),
            }
        }
        dims
    }

    /// Where each number of `x` goes.
    fn targets(&self, x: &Spec) -> Vec<usize> {
        let target = |from: usize| {
            let (mut rest, mut stride, mut to) = (from, 1, 0);
            for (a, &d) in x.shape().iter().enumerate().rev() {
                if self.keeps_axis(a) {
                    to += rest % d * stride;
                    stride *= d;
                }
                rest /= d;
            }
            to
        };
        (0..x.len()).map(target).collect()
    }
}

impl Arity<1> for Reduce {}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x] = expect_inputs("reduce", x)?;
        expect_dtype("reduce", "x", x, &Dtype::FLOATS)?;
        let mut axes = self.axes.clone();
        axes.sort_unstable();
        if axes.windows(2).any(|w| w[0] == w[1]) || axes.last().is_some_and(|&a| a >= x.rank()) {
            return Err(Error::argument(format!(
                "reduce: axes: expected some of the {} axes of x {:?}, each once, found {:?}",
                x.rank(),
                x.shape(),
                self.axes
            )));
        }
        if self.reduction == Reduction::Mean && self.terms(x) == 0 {
            return Err(Error::shape(format!(
                "reduce: x: expected a number along axes {:?} for a mean, found {:?}",
                self.axes,
                x.shape()
            )));
        }
        let kept = (0..x.rank()).filter(|&a| self.keeps_axis(a)).map(|a| x.shape()[a]);
        Ok(Outputs::one(x.with_shape(kept.collect::<Vec<_>>())?))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let divisions = if self.reduction == Reduction::Mean { self.kept(x[0]) as u128 } else { 0 };
        OpFlops {
            forward: Flops::vector(x[0].len() as u128 + divisions),
            backward: Flops::vector(if wanted.has(0) { divisions } else { 0 }),
            recomputed: Flops::ZERO,
        }
    }

    /// Sums in f64.
    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands("reduce")) };
        let dims = self.dims(x.spec());
        let terms = if self.reduction == Reduction::Mean { self.terms(x.spec()) } else { 1 };
        if let Some(gpu) = exec.gpu() {
            return launch::forward(gpu, x, y, &dims, terms);
        }
        let x = Floats::of(x)?;
        host::write(exec, y, |y| {
            reduce(x, y, &dims, terms as f64);
            Ok(())
        })
    }
}

impl Differentiable for Reduce {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps::default()
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([x], [dy], [dx]) = (io.specs, io.dy, &mut *io.dx) else { return Err(wrong_operands("reduce")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let terms = if self.reduction == Reduction::Mean { self.terms(x) } else { 1 };
        if let Some(gpu) = exec.gpu() {
            return launch::backward(gpu, dy, dx, &self.dims(x), terms);
        }
        let mut share = Floats::of(dy)?.widened();
        share.iter_mut().for_each(|dy| *dy /= terms as f32);
        if x.is_empty() {
            return Ok(());
        }
        let dims = self.dims(x);
        let (&(n, kept), rest) = dims.split_first().unwrap_or((&(1, true), &[]));
        let (inner, out) = (x.len() / n, if kept { share.len() / n } else { 0 });
        let Some(dx) = Out::slot(dx, inner)? else { return Ok(()) };
        map(n, TOUCH * inner, [], [dx], |first, [], [dx]| {
            for (i, dx) in dx.chunks_mut(inner).enumerate() {
                let share = if kept { &share[(first + i) * out..][..out] } else { &share };
                spread(dx, share, rest);
            }
        });
        Ok(())
    }
}

impl Reference for Reduce {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x], [y]) = (io.x, io.y) else { return };
        for (&x, to) in x.iter().zip(self.targets(x.spec)) {
            y[to] = y[to] + x;
        }
        if self.reduction == Reduction::Mean {
            let terms = S::count(self.terms(x.spec));
            y.iter_mut().for_each(|y| *y = *y / terms);
        }
    }
}

/// `y` is the sums of `x` with axes `dims`, over `divisor`.
fn reduce(x: Floats<'_>, y: &mut [f32], dims: &[Dim], divisor: f64) {
    let len = x.len();
    match dims.split_first() {
        _ if len == 0 => y.fill(0.0),
        Some((&(n, true), rest)) => {
            let (inner, out) = (len / n, y.len() / n);
            rows(n, TOUCH * inner, RowsMut::new(y, out), |first, y| {
                let here = y.data.len() / out;
                let x = x.part(first * inner..(first + here) * inner);
                store(y.data, &sum_of(y.data.len(), x, &[&[(here, true)], rest].concat()), divisor);
            });
        }
        Some((&(n, false), rest)) if len >= 2 * CHUNK => {
            // Partial sums of stretches long enough that adding these up costs little.
            let inner = len / n;
            let together = (CHUNK.max(4 * y.len()) / inner).max(1);
            let part = |i: usize| {
                let at = i * together..n.min((i + 1) * together);
                let x = x.part(at.start * inner..at.end * inner);
                sum_of(y.len(), x, &[&[(at.len(), false)], rest].concat())
            };
            let parts: Vec<Vec<f64>> = (0..n.div_ceil(together)).into_par_iter().map(part).collect();
            let mut sums = vec![0.0; y.len()];
            for part in parts {
                sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
            }
            store(y, &sums, divisor);
        }
        _ => store(y, &sum_of(y.len(), x, dims), divisor),
    }
}

fn store(y: &mut [f32], sums: &[f64], divisor: f64) {
    for (y, s) in y.iter_mut().zip(sums) {
        *y = (s / divisor) as f32;
    }
}

fn sum_of(len: usize, x: Floats<'_>, dims: &[Dim]) -> Vec<f64> {
    let mut sums = vec![0.0; len];
    let n = x.len();
    add(&mut sums, In::new(x, 1).next(n), dims);
    sums
}

/// Adds `x` with axes `dims` to the sums of its kept axes.
fn add(sums: &mut [f64], x: &[f32], dims: &[Dim]) {
    match *dims {
        [] | [(_, true)] => sums.iter_mut().zip(x).for_each(|(s, &x)| *s += f64::from(x)),
        [(_, false)] => sums.iter_mut().for_each(|s| *s += line(x)),
        [(n, true), ref rest @ ..] => {
            let pieces = sums.chunks_exact_mut(sums.len() / n).zip(x.chunks_exact(x.len() / n));
            pieces.for_each(|(sums, x)| add(sums, x, rest));
        }
        [(n, false), ref rest @ ..] => x.chunks_exact(x.len() / n).for_each(|x| add(sums, x, rest)),
    }
}

/// The sum of a line, in eight interleaved sums.
fn line(x: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    let (eights, rest) = x.as_chunks::<8>();
    for x in eights {
        sums.iter_mut().zip(x).for_each(|(s, &x)| *s += f64::from(x));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
}

/// Writes every gradient to all numbers that went into its sum.
fn spread(dx: &mut [f32], dy: &[f32], dims: &[Dim]) {
    match *dims {
        [] | [(_, true)] => dx.copy_from_slice(dy),
        [(_, false)] => dx.fill(dy[0]),
        [(n, true), ref rest @ ..] => {
            let pieces = dx.chunks_exact_mut(dx.len() / n).zip(dy.chunks_exact(dy.len() / n));
            pieces.for_each(|(dx, dy)| spread(dx, dy, rest));
        }
        [(n, false), ref rest @ ..] => dx.chunks_exact_mut(dx.len() / n).for_each(|dx| spread(dx, dy, rest)),
    }
}

impl ReferenceGrad for Reduce {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x], [dy], [Some(dx)]) = (io.x, io.dy, io.dx) else { return };
        let terms = S::count(self.terms(x.spec));
        let share: Vec<S> =
            dy.iter().map(|&dy| if self.reduction == Reduction::Mean { dy / terms } else { dy }).collect();
        for (dx, to) in dx.iter_mut().zip(self.targets(x.spec)) {
            *dx = share[to];
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "reduce",
    about: "the sum or the mean over some axes",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(launch::SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case<const N: usize>(shape: [usize; N], axes: &[usize], reduction: Reduction) -> Case {
    Case::new(Reduce { axes: axes.to_vec(), reduction }, [Input::new("x", shape)])
}

fn cases() -> Vec<Case> {
    use Reduction::{Mean, Sum};
    vec![
        case([], &[], Sum),
        case([1], &[0], Mean),
        case([7], &[0], Sum),
        case([7], &[], Mean),
        case([0, 3], &[0], Sum),
        case([0, 3], &[1], Mean),
        case([3, 5], &[0], Mean),
        case([3, 5], &[1], Sum),
        case([3, 5], &[1, 0], Mean),
        case([2, 8, 9], &[1], Mean),
        case([4, 3, 17], &[0, 2], Sum),
        case([2, 3, 5, 7], &[3, 1], Mean),
        case([2, 3, 5, 7], &[0, 2], Sum),
        case([2, 1, 5, 1], &[0, 1], Mean),
        case([257, 33], &[0], Sum),
        case([33, 257], &[1], Mean),
        case([35_000], &[0], Sum),
        case([7, 5000], &[1], Mean),
        case([5000, 7], &[0], Mean),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op = |axes: &[usize], reduction| Reduce { axes: axes.to_vec(), reduction };
    let i32s = || Spec::new(Dtype::I32, [7]).into_iter().collect::<Vec<_>>();
    vec![
        BadCase::new(op(&[2], Reduction::Sum), &[&[3, 4]], "axes: expected some of the 2 axes of x [3, 4], each once"),
        BadCase::new(op(&[1, 1], Reduction::Sum), &[&[3, 4]], "each once, found [1, 1]"),
        BadCase::new(
            op(&[0], Reduction::Mean),
            &[&[0, 4]],
            "x: expected a number along axes [0] for a mean, found [0, 4]",
        ),
        BadCase::new(op(&[0], Reduction::Sum), &[], "expected 1 inputs, found 0"),
        BadCase::of_specs(op(&[0], Reduction::Sum), i32s(), "x: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![
        case([16_200, 384], &[0], Reduction::Sum),
        case([4, 4050, 384], &[1], Reduction::Mean),
        case([16_200, 384], &[1], Reduction::Mean),
        // More than caches hold.
        case([131_072, 1024], &[0], Reduction::Sum),
        case([131_072, 1024], &[1], Reduction::Mean),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::operator::RefInput;
    use crate::ops::trial::{backward_on, device, forward_on};

    crate::room_tests!(ROOM);

    #[test]
    fn tensors_of_many_pieces_are_reduced_like_small_ones() {
        holds_at_size(&Exec::cpu());
    }

    mod with_compilers {
        use super::*;

        #[test]
        #[ignore = "needs NVRTC and clang-19: see ci/install"]
        fn tensors_of_many_pieces_are_reduced_like_small_ones_on_devices() {
            for exec in ["emu:sm_90a", "emu:gfx942"].map(device) {
                holds_at_size(&exec);
            }
        }
    }

    fn holds_at_size(exec: &Exec) {
        for axes in [vec![0], vec![1], vec![2], vec![0, 2], vec![0, 1], vec![1, 2]] {
            let op = Reduce { axes, reduction: Reduction::Mean };
            let spec = Spec::f32([13, 71, 101]).unwrap();
            let x: Vec<f32> = (0..spec.len()).map(|i| (i * 7919 % 64) as f32).collect();
            let out = op.infer(&[&spec]).unwrap().y.remove(0);
            let input = RefInput { spec: &spec, v: &x, ints: &[] };
            let mut want = vec![0.0; out.len()];
            op.forward_ref(RefForward { x: &[input], y: &mut [&mut want], saved: &mut [] });
            // Sums of small integers are exact either way.
            assert_eq!(forward_on(exec, &op, &[(spec.shape(), &x)]), want, "{op:?}");
            let mut dwant = vec![0.0; x.len()];
            op.backward_ref(RefBackward { x: &[input], y: &[], saved: &[], dy: &[&want], dx: &mut [Some(&mut dwant)] });
            assert_eq!(backward_on(exec, &op, &[(spec.shape(), &x)], Some(&want)), [dwant], "{op:?}");
            assert_eq!(backward_on(exec, &op, &[(spec.shape(), &x)], None), [vec![0.0; x.len()]], "{op:?}");
        }
    }
}
