//! `linear_cross_entropy`: the loss of an output head without its logits.

use std::ops::Range;

use crate::backend::Exec;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::cross_entropy::{CrossEntropy, Losses, Scale};
use crate::ops::launch::kept;
use crate::ops::matmul::{Activation, Matmul};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::{Scalar, sum};
use crate::tensor::{Dtype, Spec, Tensor, View, expect_dtype, expect_rank};

/// [`CrossEntropy`] of the logits `x · wᵀ`, which never exist all at once.
///
/// ```text
/// z[r, v] = Σₖ x[r, k] · w[v, k]      loss = 1/m · Σ_{r labelled} (ln Σ_v exp z[r, v] − z[r, label[r]])
/// ```
///
/// Rows come in chunks: a product, then its losses, in the memory of one chunk. The backward pass computes a chunk's logits
/// again, its gradient beside them, and two products from that. A gradient of `w` in 16 bits is rounded once a chunk. The gradient of
/// unlikely logits is small: in f16 what lies below 2^-14 is lost on devices whose products take such numbers for 0 (gfx90a).
///
/// # Shapes
/// `x [.., d]`, `w [V, d]`, `labels [..]` i32 → `loss []` in f32; saves the log-sum-exp `[rows]` in f32, 0 for ignored rows.
///
/// # Units
/// `loss` is in nats.
///
/// # Cost
/// As if every row were labelled: forward `2·rows·V·d` matmul, `rows·(3V + 2) + 1` vector, `rows·(V + 1)` special. Backward
/// `2·rows·V·d` matmul for each of `x` and `w`, `rows·(2V + 1) + 1` vector, `rows·V` special; recomputed `2·rows·V·d` matmul.
///
/// # Errors
/// [`Error::Shape`] unless `w` is a matrix with the `d` of `x`, `labels` has the shape of `x` without its last axis, and V is
/// 1 or more; [`Error::Dtype`] unless `x` is f32, bf16 or f16, `w` the same and `labels` i32; a wrong label as in [`CrossEntropy`].
///
/// # Source
/// Definition; chunks as in Hsu et al. 2024, section 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearCrossEntropy {
    /// The label of rows that take no part; usually -100.
    pub ignore_index: i32,
    /// Rows of a chunk; 0 = as many as have 2^26 logits, a power of two and at least 256.
    pub chunk: usize,
}

const NAME: &str = "linear_cross_entropy";
/// The product that makes logits.
const PRODUCT: Matmul = Matmul { transpose_w: true, activation: Activation::None };
/// Logits of a chunk, about: enough that products run as fast as of all rows.
const LOGITS: usize = 1 << 26;
/// Rows of a chunk at least.
const LEAST_ROWS: usize = 256;

/// Rows, what is summed over, classes.
#[derive(Clone, Copy, Debug)]
struct Size {
    rows: usize,
    d: usize,
    v: usize,
}

impl LinearCrossEntropy {
    fn losses(&self) -> CrossEntropy {
        CrossEntropy { ignore_index: self.ignore_index }
    }

    fn size(x: &[&Spec]) -> Size {
        let (rows, d) = x[0].rows_cols();
        Size { rows, d, v: x[1].shape()[0] }
    }

    /// The rows of each chunk.
    fn chunks(&self, s: Size) -> Vec<Range<usize>> {
        let chosen = (LOGITS / s.v.max(1)).max(LEAST_ROWS);
        let chunk = if self.chunk > 0 { self.chunk } else { 1 << chosen.ilog2() };
        (0..s.rows).step_by(chunk).map(|start| start..s.rows.min(start.saturating_add(chunk))).collect()
    }

    /// Memory for one chunk of logits.
    fn room(exec: &Exec, dtype: Dtype, s: Size, chunks: &[Range<usize>]) -> Result<Tensor> {
        let longest = chunks.first().map_or(0, Range::len);
        exec.alloc(Spec::new(dtype, [longest, s.v])?)
    }
}

/// The logits of some rows of x, in `room`.
fn logits_of(exec: &Exec, x: &View<'_>, w: &View<'_>, v: usize, room: &mut Tensor) -> Result<()> {
    let rows = x.spec().shape()[0];
    let mut whole = room.view_mut().ok_or_else(|| wrong_operands(NAME))?;
    let y = whole.part(0, [rows, v])?;
    PRODUCT.forward(exec, Forward { x: &[x.clone(), w.clone()], y: &mut [y], saved: &mut [] })
}

impl Arity<3> for LinearCrossEntropy {}

impl Operator for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let [x, w, labels] = expect_inputs(NAME, inputs)?;
        expect_dtype(NAME, "x", x, &Dtype::FLOATS)?;
        expect_dtype(NAME, "w", w, &[x.dtype()])?;
        expect_dtype(NAME, "labels", labels, &[Dtype::I32])?;
        let [v, d] = *expect_rank(NAME, "w", w, ["V", "d"])?;
        let Some((_, outer)) = x.shape().split_last().filter(|(last, _)| **last == d) else {
            return Err(Error::shape(format!("{NAME}: x: expected [.., d={d}] as w, found {:?}", x.shape())));
        };
        if v == 0 {
            return Err(Error::shape(format!("{NAME}: w: expected [V, d] with V of 1 or more, found {:?}", w.shape())));
        }
        if labels.shape() != outer {
            return Err(Error::shape(format!(
                "{NAME}: labels: expected {outer:?} like x without d={d}, found {:?}",
                labels.shape()
            )));
        }
        Ok(Outputs { y: vec![Spec::f32([])?], saved: vec![Spec::f32([labels.len()])?] })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let Size { rows, d, v } = Self::size(x);
        let (rows, d, v) = (rows as u128, d as u128, v as u128);
        let product = Flops::matmul(2 * rows * d * v);
        let forward = product + Flops::vector(rows * (3 * v + 2) + 1) + Flops::special(rows * (v + 1));
        let wanted = (0..2).filter(|i| wanted.has(*i)).count();
        if wanted == 0 {
            return OpFlops { forward, ..OpFlops::default() };
        }
        let products: Flops = std::iter::repeat_n(product, wanted).sum();
        let backward = products + Flops::vector(rows * (2 * v + 1) + 1) + Flops::special(rows * v);
        OpFlops { forward, backward, recomputed: product }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, w, labels], [loss], [lse]) = (io.x, io.y, io.saved) else { return Err(wrong_operands(NAME)) };
        let s = Self::size(&[x.spec(), w.spec()]);
        let (op, chunks) = (self.losses(), self.chunks(s));
        let mut room = Self::room(exec, x.spec().dtype(), s, &chunks)?;
        let pieces: Vec<usize> = chunks.iter().map(Range::len).collect();
        let mut losses = Losses::new(&op, exec, labels, s.v, &pieces)?;
        for at in chunks {
            let n = at.len();
            logits_of(exec, &x.part(at.start * s.d, [n, s.d])?, w, s.v, &mut room)?;
            let logits = room.view().part(0, [n, s.v])?;
            losses.add(&logits, &labels.part(at.start, [n])?, &mut lse.part(at.start, [n])?)?;
        }
        losses.total(labels, loss)
    }
}

impl Differentiable for LinearCrossEntropy {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let x = if wanted.has(0) || wanted.has(1) { Mask::of([0, 1, 2]) } else { Mask::NONE };
        Keeps { x, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([lse], [dloss]) = (io.saved, io.dy) else { return Err(wrong_operands(NAME)) };
        let s = Self::size(io.specs);
        let (Some(dloss), true) = (dloss, s.rows > 0) else { return no_gradient(io.dx) };
        let [dx, dw, _] = io.dx else { return Err(wrong_operands(NAME)) };
        if !dx.is_wanted() && !dw.is_wanted() {
            return Ok(());
        }
        let (x, w, labels) = (kept(NAME, io.x, 0)?, kept(NAME, io.x, 1)?, kept(NAME, io.x, 2)?);
        let (op, chunks) = (self.losses(), self.chunks(s));
        let scale = Scale::new(&op, exec, labels, dloss)?;
        let dtype = x.spec().dtype();
        let mut room = Self::room(exec, dtype, s, &chunks)?;
        let mut slopes = Self::room(exec, dtype, s, &chunks)?;
        // What is added to something is summed over the chunks first.
        let mut sum = match dw {
            GradSlot::Add(_) if chunks.len() > 1 => Some(exec.alloc(w.spec().clone())?),
            _ => None,
        };
        for at in chunks {
            let n = at.len();
            let (rows, labels) = (x.part(at.start * s.d, [n, s.d])?, labels.part(at.start, [n])?);
            logits_of(exec, &rows, w, s.v, &mut room)?;
            let mut whole = slopes.view_mut().ok_or_else(|| wrong_operands(NAME))?;
            let mut slot = GradSlot::Set(whole.part(0, [n, s.v])?);
            let logits = room.view().part(0, [n, s.v])?;
            op.derive(exec, &logits, &labels, &lse.part(at.start, [n])?, &scale, &mut slot)?;
            let dx = dx.part(at.start * s.d, [n, s.d])?;
            let is_first = at.start == 0;
            let dw = match (&mut *dw, &mut sum) {
                (GradSlot::Unwanted, _) => GradSlot::Unwanted,
                (GradSlot::Add(dw), None) => GradSlot::Add(dw.reborrow()),
                (GradSlot::Set(dw), _) if is_first => GradSlot::Set(dw.reborrow()),
                (GradSlot::Set(dw), _) => GradSlot::Add(dw.reborrow()),
                (GradSlot::Add(_), Some(sum)) => {
                    let sum = sum.view_mut().ok_or_else(|| wrong_operands(NAME))?;
                    if is_first { GradSlot::Set(sum) } else { GradSlot::Add(sum) }
                }
            };
            let slopes = slopes.view().part(0, [n, s.v])?;
            let io = Backward {
                specs: &[rows.spec(), w.spec()],
                x: &[Some(rows.clone()), Some(w.clone())],
                y: &[None],
                saved: &[],
                dy: &[Some(slopes)],
                dx: &mut [dx, dw],
            };
            PRODUCT.backward(exec, io)?;
        }
        match (dw, sum) {
            (GradSlot::Add(dw), Some(sum)) => exec.accumulate(dw, &sum.view()),
            _ => Ok(()),
        }
    }
}

impl LinearCrossEntropy {
    /// The logits of a row, stored as an unfused product stores them.
    fn logits<S: Scalar>(x: &[S], w: &[S]) -> Vec<S> {
        let row = |w: &[S]| x.iter().zip(w).fold(S::zero(), |z, (&x, &w)| z.mac(x, w)).stored();
        w.chunks(x.len()).map(row).collect()
    }

    fn label(&self, label: i32) -> Option<usize> {
        usize::try_from(label).ok().filter(|_| label != self.ignore_index)
    }

    fn labelled(&self, labels: &[i32]) -> usize {
        labels.iter().filter(|l| self.label(**l).is_some()).count()
    }
}

impl Reference for LinearCrossEntropy {
    /// Rows without a label are computed with label 0 and dropped, so that the cost does not depend on the labels.
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, w, labels], [loss], [lse]) = (io.x, io.y, io.saved) else { return };
        let s = Self::size(&[x.spec, w.spec]);
        let mut total = S::zero();
        for r in 0..s.rows {
            let z = Self::logits(&x[r * s.d..][..s.d], w);
            let top = z[1..].iter().fold(z[0], |top, &z| top.max(z));
            let all = top + sum(z.iter().map(|&z| (z - top).exp())).ln();
            let label = self.label(labels.ints[r]);
            let one = all - z[label.unwrap_or(0)];
            total = total + if label.is_some() { one } else { S::zero() };
            lse[r] = if label.is_some() { all } else { S::zero() };
        }
        loss[0] = total / S::count(self.labelled(labels.ints));
    }
}

impl ReferenceGrad for LinearCrossEntropy {
    /// dz = (softmax − one at the label) · dloss / m; dx = dz · w; dw = dzᵀ · x.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, w, labels], [lse], [dloss], [dx, dw, ..]) = (io.x, io.saved, io.dy, io.dx) else { return };
        if dx.is_none() && dw.is_none() {
            return;
        }
        let s = Self::size(&[x.spec, w.spec]);
        let scale = dloss[0] / S::count(self.labelled(labels.ints));
        for r in 0..s.rows {
            let row = &x[r * s.d..][..s.d];
            let label = self.label(labels.ints[r]);
            for (v, z) in Self::logits(row, w).into_iter().enumerate() {
                let p = (z - lse[r]).exp();
                let p = if v == label.unwrap_or(0) { p - S::one() } else { p };
                let d = p * scale;
                let d = if label.is_some() { d.stored() } else { S::zero() };
                for k in 0..s.d {
                    if let Some(dx) = dx {
                        dx[r * s.d + k] = dx[r * s.d + k].mac(d, w[v * s.d + k]);
                    }
                    if let Some(dw) = dw {
                        dw[v * s.d + k] = dw[v * s.d + k].mac(d, row[k]);
                    }
                }
            }
        }
    }
}

/// The room. Its kernels are those of `matmul` and `cross_entropy`.
pub static ROOM: Room = Room {
    name: NAME,
    about: "the loss of an output head without its logits",
    dtypes: &Dtype::FLOATS,
    kernels: &[],
    cases,
    bad_cases,
    bench_cases,
};

const OP: LinearCrossEntropy = LinearCrossEntropy { ignore_index: -100, chunk: 0 };

fn case([n, d, v]: [usize; 3], chunk: usize, labels: Fill) -> Case {
    let x = [
        Input::new("x", [n, d]),
        Input::new("w", [v, d]).fill(Fill::Uniform(-0.5, 0.5)),
        Input::ints("labels", [n], labels),
    ];
    Case::new(LinearCrossEntropy { chunk, ..OP }, x)
}

fn below(v: i32) -> Fill {
    Fill::IntsIn(0, v)
}

fn cases() -> Vec<Case> {
    let batches = [
        Input::new("x", [2, 3, 5]),
        Input::new("w", [7, 5]),
        Input::ints("labels", [2, 3], Fill::Ints(vec![6, 0, -100, 3, 3, 1])),
    ];
    vec![
        case([1, 1, 1], 0, below(1)),
        case([7, 5, 13], 3, below(13)),
        case([5, 8, 1], 2, below(1)),
        case([9, 3, 130], 4, Fill::Ints(vec![129, -100, -100])),
        case([33, 16, 40], 16, Fill::Ints(vec![3, -100, -100, -100, 39, -100, -100, -100])),
        case([6, 24, 17], 1, Fill::Ints(vec![-100, 16, 2])),
        case([3, 64, 72], 0, below(72)),
        case([3, 4, 33], 100, below(33)),
        Case::new(OP, batches),
        Case::new(LinearCrossEntropy { ignore_index: 2, chunk: 2 }, case([5, 4, 3], 0, below(3)).x),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let specs = |x: &[usize], w: &[usize], labels: &[usize]| {
        [Spec::f32(x), Spec::f32(w), Spec::new(Dtype::I32, labels)].into_iter().flatten().collect::<Vec<_>>()
    };
    vec![
        BadCase::of_specs(OP, specs(&[4, 8], &[5, 7], &[4]), "x: expected [.., d=7] as w, found [4, 8]"),
        BadCase::of_specs(OP, specs(&[4, 8], &[5, 8], &[5]), "labels: expected [4] like x without d=8, found [5]"),
        BadCase::of_specs(OP, specs(&[4, 8], &[0, 8], &[4]), "w: expected [V, d] with V of 1 or more, found [0, 8]"),
        BadCase::of_specs(OP, specs(&[4, 8], &[8], &[4]), "w: expected 2 axes [V, d], found [8]"),
        BadCase::of_specs(OP, specs(&[], &[5, 8], &[]), "x: expected [.., d=8] as w, found []"),
        BadCase::new(OP, &[&[4, 8], &[5, 8], &[4]], "labels: expected i32, found [4] f32"),
        BadCase::new(OP, &[&[4, 8], &[5, 8]], "expected 3 inputs, found 2"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let case = |n, d, v: i32| case([n, d, v as usize], 0, below(v));
    vec![case(2048, 1024, 32_000), case(8192, 4096, 32_000)]
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);

    #[test]
    fn chunks_cover_every_row_once_and_are_chosen_by_the_classes_alone() {
        let chunks = |rows, v| OP.chunks(Size { rows, d: 1, v });
        assert_eq!(chunks(5000, 32_000), [0..2048, 2048..4096, 4096..5000]);
        assert_eq!(chunks(300, 1 << 40), [0..256, 256..300]);
        assert_eq!(chunks(0, 7), []);
        assert!(matches!(chunks(9, 7).as_slice(), [all] if *all == (0..9)));
    }

    #[test]
    fn rows_in_chunks_have_the_loss_and_the_memory_of_their_logits_says_so() {
        let (n, d, v) = (64, 8, 1000);
        let numbers = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        let (x, w) = (Tensor::from_f32([n, d], &numbers(n * d, 0.3)), Tensor::from_f32([v, d], &numbers(v * d, 0.7)));
        let labels = Tensor::from_i32([n], &(0..n as i32).map(|i| i * 13 % v as i32).collect::<Vec<_>>()).unwrap();
        let (x, w) = (x.unwrap(), w.unwrap());
        let run = |chunk: usize| {
            let exec = Exec::cpu();
            let (mut y, mut lse) =
                (exec.alloc(Spec::f32([]).unwrap()).unwrap(), exec.alloc(Spec::f32([n]).unwrap()).unwrap());
            exec.reset_peak();
            let io = Forward {
                x: &[x.view(), w.view(), labels.view()],
                y: &mut [y.view_mut().unwrap()],
                saved: &mut [lse.view_mut().unwrap()],
            };
            LinearCrossEntropy { chunk, ..OP }.forward(&exec, io).unwrap();
            (y.item().unwrap(), exec.memory().peak)
        };
        let (whole, small) = (run(64), run(4));
        assert_eq!(whole.0, small.0, "every row is computed alone");
        assert!(whole.1 >= n * v * 4 && small.1 < n * v, "{} and {} bytes", whole.1, small.1);
    }
}
