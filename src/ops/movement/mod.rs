//! What the rooms share that only move numbers: `permute`, `concat`, `slice`, `pad`, `roll`, `patchify`, `unpatchify`.
//!
//! Each of them copies boxes of one row-major tensor into boxes of another, every number to at most one place. So the
//! gradient is the same copy backwards, nothing is kept, nothing is computed, and 16-bit numbers move as they are. A room
//! says which boxes ([`Movement::moves`]) and, for the reference, plainly which number goes where ([`Movement::pairs`]);
//! the contract holds one against the other.

pub(super) mod launch;
pub(super) mod patches;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::backend::Exec;
use crate::error::{Error, Result};
use crate::ops::movement::launch::{Kernels, Window};
use crate::ops::operator::{
    Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad,
};
use crate::ops::patchify::Patches;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, View, ViewMut, expect_dtype};

/// An operator that only moves numbers. Whatever implements this is a whole operator with its gradient.
pub trait Movement: std::fmt::Debug + Send + Sync + 'static {
    /// The room's name.
    const NAME: &'static str;

    /// The result's spec, after all checks.
    ///
    /// # Errors
    /// What the room documents.
    fn result(&self, x: &[&Spec]) -> Result<Spec>;

    /// The boxes to copy, with the input each comes from, for inputs that [`result`](Movement::result) accepts.
    fn moves(&self, x: &[&Spec]) -> Vec<(usize, Move)>;

    /// The kernels of the room's moves.
    const KERNELS: Kernels;

    /// The result of the one input as a window, where that is one pass instead of zeros and then boxes.
    fn window(&self, _: &[&Spec]) -> Option<Window> {
        None
    }

    /// The same of the gradient.
    fn window_of_gradient(&self, _: &[&Spec]) -> Option<Window> {
        None
    }

    /// The patches of the one image that is cut or put together, where that is what the room does.
    fn patches(&self, _: &[&Spec]) -> Option<Patches> {
        None
    }

    /// Calls `visit(input, from, to)` for every number that moves: the plain text of the room.
    fn pairs(&self, x: &[&Spec], visit: &mut dyn FnMut(usize, usize, usize));
}

/// One axis of a box: its length, and how far its neighbours lie apart on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Numbers along the axis.
    pub len: usize,
    /// Distance in the tensor that is read.
    pub from: usize,
    /// Distance in the tensor that is written.
    pub to: usize,
}

/// A box of numbers to copy. On both sides it is a box of a row-major tensor: strides nest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Slowest axis of the written side first, none of length 1, merged where two are one on both sides.
    axes: Vec<Axis>,
    from: usize,
    to: usize,
    len: usize,
}

/// Numbers that one thread copies at a time; a box is cut into pieces of about this size.
const GRAIN: usize = 16 * 1024;
/// Least numbers of the reading side's fastest axis that stay in one piece: a cache line of 32-bit numbers.
const LINE: usize = 16;
/// Side of the blocks that are transposed in registers.
const TILE: usize = 8;

impl Move {
    /// Copies the box with these axes from offset `from` to offset `to`.
    pub fn new(axes: impl IntoIterator<Item = Axis>, from: usize, to: usize) -> Move {
        let mut axes: Vec<Axis> = axes.into_iter().collect();
        let len = axes.iter().map(|a| a.len).product();
        axes.retain(|a| a.len != 1);
        axes.sort_by_key(|a| std::cmp::Reverse(a.to));
        let mut merged: Vec<Axis> = Vec::with_capacity(axes.len());
        for a in axes {
            match merged.last_mut() {
                Some(m) if m.from == a.from * a.len && m.to == a.to * a.len => {
                    *m = Axis { len: m.len * a.len, ..a };
                }
                _ => merged.push(a),
            }
        }
        Move { axes: merged, from, to, len }
    }

    /// How many numbers move.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing moves.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same numbers the other way.
    #[must_use]
    pub fn inverse(&self) -> Move {
        let axes = self.axes.iter().map(|a| Axis { len: a.len, from: a.to, to: a.from });
        Move { len: self.len, ..Move::new(axes, self.to, self.from) }
    }

    fn run<T: Number, P: Put<T>>(&self, from: &[T], to: &mut [T]) {
        if self.is_empty() {
            return;
        }
        let mut pieces = Vec::new();
        split(&self.axes, self.from, &mut to[self.to..], &mut pieces);
        if pieces.len() > 1 && self.len >= 2 * GRAIN {
            pieces.into_par_iter().with_max_len(1).for_each(|piece| piece.copy::<P>(from));
        } else {
            pieces.into_iter().for_each(|piece| piece.copy::<P>(from));
        }
    }
}

/// What moves: plain numbers of any size.
trait Number: Copy + Default + Send + Sync {}
impl Number for f32 {}
impl Number for bf16 {}
impl Number for f16 {}

/// How a number arrives.
trait Put<T> {
    fn put(to: &mut T, x: T);
}

/// It replaces what is there.
struct Set;
/// It is added in f32 and rounded once.
struct Add;

impl<T> Put<T> for Set {
    #[inline(always)]
    fn put(to: &mut T, x: T) {
        *to = x;
    }
}

impl Put<f32> for Add {
    #[inline(always)]
    fn put(to: &mut f32, x: f32) {
        *to += x;
    }
}

impl Put<bf16> for Add {
    #[inline(always)]
    fn put(to: &mut bf16, x: bf16) {
        *to = bf16::from_f32(to.to_f32() + x.to_f32());
    }
}

impl Put<f16> for Add {
    #[inline(always)]
    fn put(to: &mut f16, x: f16) {
        *to = f16::from_f32(to.to_f32() + x.to_f32());
    }
}

/// A part of a box whose written side is a slice of its own.
struct Piece<'t, T> {
    axes: Vec<Axis>,
    from: usize,
    to: &'t mut [T],
}

/// Cuts a box along its slowest written axis until the pieces are small; `to` begins at the box's first number.
fn split<'t, T>(axes: &[Axis], from: usize, to: &'t mut [T], pieces: &mut Vec<Piece<'t, T>>) {
    let len: usize = axes.iter().map(|a| a.len).product();
    let Some((&first, rest)) = axes.split_first().filter(|_| len > GRAIN) else {
        pieces.push(Piece { axes: axes.to_vec(), from, to });
        return;
    };
    let least = if first.from == 1 { LINE } else { 1 };
    let together = (GRAIN / (len / first.len)).max(least);
    let together = first.len.div_ceil(first.len.div_ceil(together));
    for (k, to) in to.chunks_mut(together * first.to).take(first.len.div_ceil(together)).enumerate() {
        let start = k * together;
        let here = together.min(first.len - start);
        let from = from + start * first.from;
        if here == 1 {
            split(rest, from, to, pieces);
        } else {
            let axes = std::iter::once(Axis { len: here, ..first }).chain(rest.iter().copied()).collect();
            pieces.push(Piece { axes, from, to });
        }
    }
}

impl<T: Number> Piece<'_, T> {
    fn copy<P: Put<T>>(self, x: &[T]) {
        let Piece { mut axes, from, to } = self;
        let Some(line) = axes.pop() else { return P::put(&mut to[0], x[from]) };
        if line.to == 1 && line.from == 1 {
            match line.len {
                2 => walk(&axes, from, 0, &mut |f, t| run::<T, P, 2>(x, f, to, t)),
                4 => walk(&axes, from, 0, &mut |f, t| run::<T, P, 4>(x, f, to, t)),
                8 => walk(&axes, from, 0, &mut |f, t| run::<T, P, 8>(x, f, to, t)),
                16 => walk(&axes, from, 0, &mut |f, t| run::<T, P, 16>(x, f, to, t)),
                n => walk(&axes, from, 0, &mut |f, t| put_all::<T, P>(&x[f..f + n], &mut to[t..t + n])),
            }
            return;
        }
        let source_line = axes.iter().position(|a| a.from == 1).filter(|_| line.to == 1);
        if let Some(k) = source_line {
            let across = axes.remove(k);
            // The side with the shorter runs is walked in its order, so that its cache lines are used whole.
            let run = |len, stride, other: usize| if stride == len { len * other } else { len };
            if run(across.len, line.from, line.len) < run(line.len, across.to, across.len) {
                axes.sort_by_key(|a| std::cmp::Reverse(a.from));
            }
            walk(&axes, from, 0, &mut |f, t| transpose::<T, P>(line, across, &x[f..], &mut to[t..]));
            return;
        }
        walk(&axes, from, 0, &mut |f, t| {
            for i in 0..line.len {
                P::put(&mut to[t + i * line.to], x[f + i * line.from]);
            }
        });
    }
}

/// Calls `visit` with both offsets of every index of `axes`, the last axis fastest.
fn walk(axes: &[Axis], from: usize, to: usize, visit: &mut impl FnMut(usize, usize)) {
    match axes {
        [] => visit(from, to),
        [a] => (0..a.len).for_each(|i| visit(from + i * a.from, to + i * a.to)),
        [a, rest @ ..] => (0..a.len).for_each(|i| walk(rest, from + i * a.from, to + i * a.to, visit)),
    }
}

#[inline(always)]
fn put_all<T: Number, P: Put<T>>(x: &[T], to: &mut [T]) {
    for (to, &x) in to.iter_mut().zip(x) {
        P::put(to, x);
    }
}

/// A run of a length that the compiler knows: no call for so few bytes.
#[inline(always)]
fn run<T: Number, P: Put<T>, const N: usize>(x: &[T], from: usize, to: &mut [T], at: usize) {
    if let (Some(x), Some(to)) = (x[from..].first_chunk::<N>(), to[at..].first_chunk_mut::<N>()) {
        for (to, &x) in to.iter_mut().zip(x) {
            P::put(to, x);
        }
    }
}

/// Copies a matrix whose lines are contiguous on one side and whose columns are on the other, in square blocks.
fn transpose<T: Number, P: Put<T>>(line: Axis, across: Axis, x: &[T], to: &mut [T]) {
    let (lines, columns) = (line.len / TILE * TILE, across.len / TILE * TILE);
    for i in (0..lines).step_by(TILE) {
        for j in (0..columns).step_by(TILE) {
            let mut block = [[T::default(); TILE]; TILE];
            for (k, row) in block.iter_mut().enumerate() {
                if let Some(x) = x[(i + k) * line.from + j..].first_chunk() {
                    *row = *x;
                }
            }
            for k in 0..TILE {
                if let Some(to) = to[(j + k) * across.to + i..].first_chunk_mut::<TILE>() {
                    for (to, row) in to.iter_mut().zip(&block) {
                        P::put(to, row[k]);
                    }
                }
            }
        }
    }
    let mut rest = |i: usize, j: usize| P::put(&mut to[j * across.to + i], x[i * line.from + j]);
    (0..lines).for_each(|i| (columns..across.len).for_each(|j| rest(i, j)));
    (lines..line.len).for_each(|i| (0..across.len).for_each(|j| rest(i, j)));
}

fn apply(m: &Move, from: &View<'_>, to: &mut ViewMut<'_>, add: bool) -> Result<()> {
    fn go<T: Number>(m: &Move, from: &[T], to: &mut [T], add: bool)
    where
        Add: Put<T>,
    {
        if add { m.run::<T, Add>(from, to) } else { m.run::<T, Set>(from, to) }
    }
    match to.spec().dtype() {
        Dtype::F32 => go(m, from.f32()?, to.f32()?, add),
        Dtype::Bf16 => go(m, from.bf16()?, to.bf16()?, add),
        Dtype::F16 => go(m, from.f16()?, to.f16()?, add),
        Dtype::I32 => return Err(Error::dtype("movement: expected a floating-point type, found i32")),
    }
    Ok(())
}

/// Zeros, unless the moves write every number anyway.
fn clear(to: &mut ViewMut<'_>, moved: usize) -> Result<()> {
    if moved < to.spec().len() {
        to.bytes()?.fill(0);
    }
    Ok(())
}

impl<M: Movement> Operator for M {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        Ok(Outputs::one(self.result(x)?))
    }

    fn flops(&self, _: &[&Spec], _: Mask) -> OpFlops {
        OpFlops::default()
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::forward(self, gpu, io);
        }
        let [y] = io.y else { return Ok(()) };
        let specs: Vec<&Spec> = io.x.iter().map(View::spec).collect();
        let moves = self.moves(&specs);
        clear(y, moves.iter().map(|(_, m)| m.len()).sum())?;
        moves.iter().try_for_each(|(i, m)| apply(m, &io.x[*i], y, false))
    }
}

impl<M: Movement> Differentiable for M {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps::default()
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::backward(self, gpu, io);
        }
        let moves = self.moves(io.specs);
        let dy = io.dy.first().and_then(Option::as_ref);
        for (i, slot) in io.dx.iter_mut().enumerate() {
            let here = || moves.iter().filter(|(input, _)| *input == i).map(|(_, m)| m);
            let (dx, add) = match slot {
                GradSlot::Unwanted => continue,
                GradSlot::Set(dx) => {
                    clear(dx, if dy.is_some() { here().map(Move::len).sum() } else { 0 })?;
                    (dx, false)
                }
                GradSlot::Add(dx) => (dx, true),
            };
            let Some(dy) = dy else { continue };
            here().try_for_each(|m| apply(&m.inverse(), dy, dx, add))?;
        }
        Ok(())
    }
}

impl<M: Movement> Reference for M {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let [y] = io.y else { return };
        let specs: Vec<&Spec> = io.x.iter().map(|x| x.spec).collect();
        self.pairs(&specs, &mut |input, from, to| y[to] = io.x[input][from]);
    }
}

impl<M: Movement> ReferenceGrad for M {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let [dy] = io.dy else { return };
        let specs: Vec<&Spec> = io.x.iter().map(|x| x.spec).collect();
        self.pairs(&specs, &mut |input, from, to| {
            if let Some(dx) = &mut io.dx[input] {
                dx[from] = dy[to];
            }
        });
    }
}

/// Checks that there is one input of a floating-point type, and gives it.
pub(crate) fn expect_one<'a>(op: &str, x: &[&'a Spec]) -> Result<&'a Spec> {
    let [x] = crate::ops::operator::expect_inputs(op, x)?;
    expect_dtype(op, "x", x, &Dtype::FLOATS)?;
    Ok(x)
}

/// Distance between neighbours along each axis of a row-major tensor of this shape.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut stride = 1;
    let mut all: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&d| {
            let here = stride;
            stride *= d;
            here
        })
        .collect();
    all.reverse();
    all
}

/// The tensor around one axis: how many indices all axes before it have together, its length, and how many numbers one
/// of its indices holds.
pub(crate) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// Checks that `input` has the axis that `op`'s parameter names.
pub(crate) fn expect_axis(op: &str, input: &str, x: &Spec, axis: usize) -> Result<()> {
    if axis < x.rank() {
        return Ok(());
    }
    Err(Error::argument(format!(
        "{op}: axis: expected one of the {} axes of {input} {:?}, found {axis}",
        x.rank(),
        x.shape()
    )))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tensor::Tensor;

    /// The fast path and the plain text move the same bits, forward and backward, in f32 and bf16.
    pub(crate) fn holds_at_size<M: Movement>(op: &M, shapes: &[&[usize]]) {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let specs: Vec<Spec> = shapes.iter().map(|&s| Spec::new(dtype, s).unwrap()).collect();
            let specs: Vec<&Spec> = specs.iter().collect();
            // Small enough to be exact in bf16.
            let number = |i: usize, k: usize| (i * 5 + k % 241) as f32;
            let numbers = |i: usize, s: &Spec| (0..s.len()).map(|k| number(i, k)).collect::<Vec<f32>>();
            let x: Vec<Tensor> = specs
                .iter()
                .enumerate()
                .map(|(i, &s)| Tensor::from_f32_as(s.clone(), &numbers(i, s)).unwrap())
                .collect();
            let out = op.infer(&specs).unwrap().y.remove(0);
            let mut y = Tensor::from_f32_as(out.clone(), &vec![f32::NAN; out.len()]).unwrap();
            let views: Vec<View<'_>> = x.iter().map(Tensor::view).collect();
            let exec = Exec::cpu();
            op.forward(&exec, Forward { x: &views, y: &mut [y.view_mut().unwrap()], saved: &mut [] }).unwrap();
            let mut want = vec![0.0; out.len()];
            op.pairs(&specs, &mut |i, from, to| want[to] = number(i, from));
            assert!(y.to_f32().unwrap() == want, "{dtype} forward of {op:?}");
            let mut dx: Vec<Tensor> =
                x.iter().map(|x| Tensor::from_bytes(x.spec().clone(), x.bytes()).unwrap()).collect();
            let mut slots: Vec<GradSlot<'_>> = dx.iter_mut().map(|d| GradSlot::Set(d.view_mut().unwrap())).collect();
            let io = Backward {
                specs: &specs,
                x: &vec![None; x.len()],
                y: &[None],
                saved: &[],
                dy: &[Some(y.view())],
                dx: &mut slots,
            };
            op.backward(&exec, io).unwrap();
            for (i, dx) in dx.iter().enumerate() {
                let mut want = vec![0.0; dx.spec().len()];
                op.pairs(&specs, &mut |input, from, _| {
                    if input == i {
                        want[from] = number(i, from);
                    }
                });
                assert!(dx.to_f32().unwrap() == want, "{dtype} gradient {i} of {op:?}");
            }
        }
    }

    #[test]
    fn axes_that_are_one_on_both_sides_are_merged() {
        let axis = |len, from, to| Axis { len, from, to };
        let m = Move::new([axis(2, 60, 60), axis(1, 7, 7), axis(3, 20, 20), axis(20, 1, 1)], 0, 0);
        assert_eq!(m.axes, [axis(120, 1, 1)]);
        let m = Move::new([axis(3, 1, 8), axis(4, 6, 2), axis(2, 3, 1)], 5, 7);
        assert_eq!(m.axes, [axis(3, 1, 8), axis(8, 3, 1)]);
        assert_eq!(m.inverse().inverse(), m);
    }

    #[test]
    fn a_box_of_length_zero_moves_nothing() {
        let m = Move::new([Axis { len: 0, from: 1, to: 1 }, Axis { len: 5, from: 1, to: 1 }], 9, 9);
        let mut to = [1.0_f32; 2];
        m.run::<f32, Set>(&[], &mut to);
        assert_eq!(to, [1.0; 2]);
    }

    #[test]
    fn a_missing_gradient_is_zero_when_set_and_nothing_when_added() {
        let op = crate::ops::permute::Permute { axes: vec![1, 0] };
        let spec = Spec::f32([2, 2]).unwrap();
        for (add, want) in [(false, 0.0), (true, 3.0)] {
            let mut dx = Tensor::from_f32([2, 2], &[3.0; 4]).unwrap();
            let view = dx.view_mut().unwrap();
            let mut slots = [if add { GradSlot::Add(view) } else { GradSlot::Set(view) }];
            let io = Backward { specs: &[&spec], x: &[None], y: &[None], saved: &[], dy: &[None], dx: &mut slots };
            op.backward(&Exec::cpu(), io).unwrap();
            assert_eq!(dx.to_f32().unwrap(), [want; 4]);
        }
    }
}
