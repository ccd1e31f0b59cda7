//! CPU work over operands of any storage type: rows are widened to f32 a block at a time, worked on while they lie in the
//! cache, and rounded once as they are written or added. In parallel, cut at boundaries that follow from shapes alone.
//!
//! This saves what [`host`](crate::ops::host) costs where an operator is bound by memory: a copy of every 16-bit operand, a
//! pass that zeroes each result, a second buffer for each gradient that is added to.

use std::ops::Range;

use half::{bf16, f16};

use crate::backend::cpu::threads::{self, Parts};
use crate::backend::cpu::vector;
use crate::error::{Error, Result};
use crate::ops::operator::GradSlot;
use crate::tensor::{Dtype, View, ViewMut};

/// Numbers of one block of one operand: small enough that three of them stay in the first-level cache.
const BLOCK: usize = 2048;
/// Rows that are added up before their sum is put aside: sums of sums err less than one long sum.
const SUM: usize = 64;
/// Numbers of a unit of flat work: a multiple of every vector width and of a Philox block.
const UNIT: usize = 64;
/// Work of reading and writing a number, in the measure of [`threads::PIECE`].
pub(crate) const TOUCH: usize = 8;

/// Floating-point numbers as they are stored, for reading.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

fn not_floats() -> Error {
    Error::dtype("expected a floating-point type, found i32")
}

impl<'a> Floats<'a> {
    /// The numbers of `view`.
    pub(crate) fn of(view: &View<'a>) -> Result<Floats<'a>> {
        Ok(match view.spec().dtype() {
            Dtype::F32 => Floats::F32(view.f32()?),
            Dtype::Bf16 => Floats::Bf16(view.bf16()?),
            Dtype::F16 => Floats::F16(view.f16()?),
            Dtype::I32 => return Err(not_floats()),
        })
    }

    /// The numbers of an operand that backward keeps.
    pub(crate) fn kept(view: Option<&Option<View<'a>>>) -> Result<Floats<'a>> {
        match view {
            Some(Some(view)) => Floats::of(view),
            _ => Ok(Floats::F32(&[])),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Floats::F32(v) => v.len(),
            Floats::Bf16(v) => v.len(),
            Floats::F16(v) => v.len(),
        }
    }

    /// The numbers `range`, as far as there are any.
    pub(crate) fn part(self, range: Range<usize>) -> Floats<'a> {
        let end = range.end.min(self.len());
        let range = range.start.min(end)..end;
        match self {
            Floats::F32(v) => Floats::F32(&v[range]),
            Floats::Bf16(v) => Floats::Bf16(&v[range]),
            Floats::F16(v) => Floats::F16(&v[range]),
        }
    }

    /// All of them in f32, in a vector of their own.
    pub(crate) fn widened(self) -> Vec<f32> {
        let mut all = In::new(self, 1);
        all.next(self.len()).to_vec()
    }
}

/// An operand that is read: its rows, widened when their block comes.
pub(crate) struct In<'a> {
    data: Floats<'a>,
    width: usize,
    scratch: Vec<f32>,
}

impl<'a> In<'a> {
    /// `data` as rows of `width` numbers; the last may be short.
    pub(crate) fn new(data: Floats<'a>, width: usize) -> In<'a> {
        In { data, width, scratch: Vec::new() }
    }

    fn take(&mut self, rows: usize) -> In<'a> {
        let (n, len) = (rows.saturating_mul(self.width), self.data.len());
        let head = In::new(self.data.part(0..n), self.width);
        self.data = self.data.part(n..len);
        head
    }

    /// The next `rows` rows.
    pub(crate) fn next(&mut self, rows: usize) -> &[f32] {
        let (n, len) = (rows.saturating_mul(self.width), self.data.len());
        let block = self.data.part(0..n);
        self.data = self.data.part(n..len);
        widen(block, &mut self.scratch)
    }

    /// The numbers `range`.
    fn at(&mut self, range: Range<usize>) -> &[f32] {
        widen(self.data.part(range), &mut self.scratch)
    }
}

fn widen<'s>(data: Floats<'s>, scratch: &'s mut Vec<f32>) -> &'s [f32] {
    match data {
        Floats::F32(v) => v,
        Floats::Bf16(v) => {
            scratch.resize(v.len(), 0.0);
            vector::widen_bf16(v, scratch);
            scratch
        }
        Floats::F16(v) => {
            scratch.resize(v.len(), 0.0);
            vector::widen_f16(v, scratch);
            scratch
        }
    }
}

enum FloatsMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
    F16(&'a mut [f16]),
}

/// The first `n` of `all`, which keeps the others.
fn front<'a, T>(all: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let n = n.min(all.len());
    let (head, rest) = std::mem::take(all).split_at_mut(n);
    *all = rest;
    head
}

/// An operand that is written, or added to: its rows, rounded when their block is done.
pub(crate) struct Out<'a> {
    data: FloatsMut<'a>,
    width: usize,
    add: bool,
    scratch: Vec<f32>,
}

impl<'a> Out<'a> {
    fn new(data: FloatsMut<'a>, width: usize, add: bool) -> Out<'a> {
        Out { data, width, add, scratch: Vec::new() }
    }

    /// `view` as rows of `width` numbers, overwritten.
    pub(crate) fn of(view: &'a mut ViewMut<'_>, width: usize) -> Result<Out<'a>> {
        let data = match view.spec().dtype() {
            Dtype::F32 => FloatsMut::F32(view.f32()?),
            Dtype::Bf16 => FloatsMut::Bf16(view.bf16()?),
            Dtype::F16 => FloatsMut::F16(view.f16()?),
            Dtype::I32 => return Err(not_floats()),
        };
        Ok(Out::new(data, width, false))
    }

    /// A gradient as rows of `width` numbers, set or added as its slot says; `None` where it is not wanted.
    pub(crate) fn slot(slot: &'a mut GradSlot<'_>, width: usize) -> Result<Option<Out<'a>>> {
        match slot {
            GradSlot::Unwanted => Ok(None),
            GradSlot::Set(view) => Out::of(view, width).map(Some),
            GradSlot::Add(view) => Ok(Some(Out { add: true, ..Out::of(view, width)? })),
        }
    }

    /// f32 numbers as rows of `width`, overwritten.
    pub(crate) fn f32(data: &'a mut [f32], width: usize) -> Out<'a> {
        Out::new(FloatsMut::F32(data), width, false)
    }

    /// The same operand under another row width.
    pub(crate) fn rows_of(self, width: usize) -> Out<'a> {
        Out { width, ..self }
    }

    fn len(&self) -> usize {
        match &self.data {
            FloatsMut::F32(v) => v.len(),
            FloatsMut::Bf16(v) => v.len(),
            FloatsMut::F16(v) => v.len(),
        }
    }

    /// The first `n` numbers; the others stay.
    pub(crate) fn front(&mut self, n: usize) -> Out<'a> {
        let data = match &mut self.data {
            FloatsMut::F32(v) => FloatsMut::F32(front(v, n)),
            FloatsMut::Bf16(v) => FloatsMut::Bf16(front(v, n)),
            FloatsMut::F16(v) => FloatsMut::F16(front(v, n)),
        };
        Out::new(data, self.width, self.add)
    }

    /// Where the next `rows` rows are to be computed; what is there before is unspecified.
    fn begin(&mut self, rows: usize) -> &mut [f32] {
        let n = rows.saturating_mul(self.width).min(self.len());
        match &mut self.data {
            FloatsMut::F32(v) if !self.add => &mut v[..n],
            _ => {
                self.scratch.resize(n, 0.0);
                &mut self.scratch
            }
        }
    }

    /// Stores what was computed since [`begin`](Out::begin), rounded once.
    fn end(&mut self, rows: usize) {
        let n = rows.saturating_mul(self.width);
        let (add, computed) = (self.add, &mut self.scratch);
        match &mut self.data {
            FloatsMut::F32(v) => {
                let to = front(v, n);
                if add {
                    vector::add_in_place(computed, to);
                }
            }
            FloatsMut::Bf16(v) => {
                let to = front(v, n);
                if add {
                    computed.iter_mut().zip(&*to).for_each(|(c, t)| *c += t.to_f32());
                }
                vector::narrow_bf16(computed, to);
            }
            FloatsMut::F16(v) => {
                let to = front(v, n);
                if add {
                    computed.iter_mut().zip(&*to).for_each(|(c, t)| *c += t.to_f32());
                }
                vector::narrow_f16(computed, to);
            }
        }
    }
}

struct Operands<'a, const N: usize, const M: usize> {
    rows: usize,
    x: [In<'a>; N],
    y: [Out<'a>; M],
}

impl<const N: usize, const M: usize> Parts for Operands<'_, N, M> {
    fn cut(mut self, row: usize) -> (Self, Self) {
        let rows = row.min(self.rows);
        let x = self.x.each_mut().map(|x| x.take(rows));
        let y = self.y.each_mut().map(|y| y.front(rows.saturating_mul(y.width)));
        self.rows -= rows;
        (Operands { rows, x, y }, self)
    }
}

/// Calls `f(first row, inputs, results)` for blocks that together cover `rows` rows; each result is written completely by
/// `f`. `work` is that of one row, as [`threads::rows`] counts it.
pub(crate) fn map<const N: usize, const M: usize>(
    rows: usize,
    work: usize,
    x: [In<'_>; N],
    y: [Out<'_>; M],
    f: impl Fn(usize, [&[f32]; N], [&mut [f32]; M]) + Sync,
) {
    let width = x.iter().map(|x| x.width).chain(y.iter().map(|y| y.width)).max().unwrap_or(1);
    let block = (BLOCK / width.max(1)).max(1);
    threads::rows(rows, work, Operands { rows, x, y }, |first, mut part| {
        let mut done = 0;
        while done < part.rows {
            let n = block.min(part.rows - done);
            f(first + done, part.x.each_mut().map(|x| x.next(n)), part.y.each_mut().map(|y| y.begin(n)));
            part.y.iter_mut().for_each(|y| y.end(n));
            done += n;
        }
    });
}

/// Calls `f(first element, inputs, results)` for blocks of operands of the same `len`; `work` is that of one element.
pub(crate) fn map_flat<const N: usize, const M: usize>(
    len: usize,
    work: usize,
    x: [Floats<'_>; N],
    y: [Out<'_>; M],
    f: impl Fn(usize, [&[f32]; N], [&mut [f32]; M]) + Sync,
) {
    let x = x.map(|x| In::new(x, UNIT));
    let y = y.map(|y| y.rows_of(UNIT));
    map(len.div_ceil(UNIT), work * UNIT, x, y, |first, x, y| f(first * UNIT, x, y));
}

/// The sums, block after block, of what `f` gives for each block of operands of the same `len`; `work` is that of one
/// element.
pub(crate) fn sum_flat<const N: usize, const K: usize>(
    len: usize,
    work: usize,
    x: [Floats<'_>; N],
    f: impl Fn([&[f32]; N]) -> [f64; K] + Sync,
) -> [f64; K] {
    let add = |a: [f64; K], b: [f64; K]| std::array::from_fn(|k| a[k] + b[k]);
    let piece = |at: Range<usize>| {
        let mut readers = x.map(|x| In::new(x.part(at.clone()), 1));
        (0..at.len()).step_by(BLOCK).fold([0.0; K], |sums, start| {
            let n = BLOCK.min(at.len() - start);
            add(sums, f(readers.each_mut().map(|r| r.next(n))))
        })
    };
    threads::reduce(len, work, piece, add).unwrap_or([0.0; K])
}

/// `to[c] = Σ_r term(x[r, c])` for `x` of `rows` rows of `width`: `term` adds what a stretch of one row gives to a stretch of
/// sums.
pub(crate) fn sum_rows<const N: usize>(
    x: [Floats<'_>; N],
    (rows, width): (usize, usize),
    to: Out<'_>,
    term: impl Fn([&[f32]; N], &mut [f32]) + Sync + Copy,
) {
    // Narrow rows are added side by side: `side` of them are one wide row.
    let side = UNIT / width.max(1);
    if side > 1 && rows < 2 * side {
        return sum_few(x, (rows, width), to, term);
    }
    let groups = rows.div_ceil(SUM);
    if groups <= 1 {
        return sum_groups(x, (rows, width), to, term);
    }
    if side > 1 {
        let (wide, rest) = (rows / side, rows % side);
        let (done, end) = (wide * side * width, rows * width);
        let mut sums = vec![0.0; (side + rest) * width];
        let (beside, over) = sums.split_at_mut(side * width);
        sum_rows(x.map(|x| x.part(0..done)), (wide, side * width), Out::f32(beside, 1), term);
        term(x.map(|x| In::new(x, 1)).each_mut().map(|x| x.at(done..end)), over);
        return sum_rows([Floats::F32(&sums)], (side + rest, width), to, add_up);
    }
    let mut partial = vec![0.0; groups * width];
    sum_groups(x, (rows, width), Out::f32(&mut partial, 1), term);
    sum_rows([Floats::F32(&partial)], (groups, width), to, add_up);
}

/// The same for a few numbers, exactly in f64 and rounded once: what a short sum of narrow rows errs is not hidden by others.
fn sum_few<const N: usize>(
    x: [Floats<'_>; N],
    (rows, width): (usize, usize),
    to: Out<'_>,
    term: impl Fn([&[f32]; N], &mut [f32]) + Sync,
) {
    let mut x = x.map(|x| In::new(x, 1));
    let mut add_terms = |to: &mut [f32]| term(x.each_mut().map(|x| x.at(0..rows * width)), to);
    let mut terms = vec![0.0; rows * width];
    add_terms(&mut terms);
    // Added to the negative of its rounded self, a term leaves what the rounding took.
    let mut lost: Vec<f32> = terms.iter().map(|t| -t).collect();
    add_terms(&mut lost);
    let exact = |(&t, &lost): (&f32, &f32)| f64::from(t) + if t.is_finite() { f64::from(lost) } else { 0.0 };
    let terms: Vec<f64> = terms.iter().zip(&lost).map(exact).collect();
    map(to.len(), rows * TOUCH, [], [to.rows_of(1)], |first, [], [sums]| {
        for (column, sum) in (first..).zip(sums) {
            *sum = terms.iter().skip(column).step_by(width).sum::<f64>() as f32;
        }
    });
}

fn add_up([x]: [&[f32]; 1], sums: &mut [f32]) {
    vector::add_in_place(x, sums);
}

/// Row `g` of `to` is the sum of rows `g·SUM ..` of `x`, at most `SUM` of them.
fn sum_groups<const N: usize>(
    x: [Floats<'_>; N],
    (rows, width): (usize, usize),
    to: Out<'_>,
    term: impl Fn([&[f32]; N], &mut [f32]) + Sync,
) {
    map(to.len(), SUM * TOUCH, [], [to.rows_of(1)], |first, [], [sums]| {
        sums.fill(0.0);
        let mut readers = x.map(|x| In::new(x, 1));
        let mut at = 0;
        while at < sums.len() {
            let (group, column) = ((first + at) / width, (first + at) % width);
            let n = (width - column).min(sums.len() - at);
            for row in group * SUM..((group + 1) * SUM).min(rows) {
                let start = row * width + column;
                term(readers.each_mut().map(|r| r.at(start..start + n)), &mut sums[at..at + n]);
            }
            at += n;
        }
    });
}

/// Sets each wanted gradient to zero, or leaves it where it is added to: what backward does where no gradient comes in.
pub(crate) fn no_gradient(dx: &mut [GradSlot<'_>]) -> Result<()> {
    for slot in dx {
        if let GradSlot::Set(view) = slot {
            view.zero()?;
        }
    }
    Ok(())
}

/// The error for a call with other operands than the operator has.
pub(crate) fn wrong_operands(op: &str) -> Error {
    Error::argument(format!("{op}: expected the inputs and results that infer gave"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Spec, Tensor};

    #[test]
    fn every_number_is_visited_once_in_every_storage_type() {
        for len in [0, 1, 63, 64, 65, 5000, 40_000] {
            let x: Vec<f32> = (0..len).map(|i| (i % 251) as f32).collect();
            for dtype in Dtype::FLOATS {
                let spec = Spec::new(dtype, [len]).unwrap();
                let x = Tensor::from_f32_as(spec.clone(), &x).unwrap();
                let mut y = Tensor::from_f32_as(spec.clone(), &vec![1.0; len]).unwrap();
                for add in [false, true] {
                    let view = y.view_mut().unwrap();
                    let mut slot = if add { GradSlot::Add(view) } else { GradSlot::Set(view) };
                    let to = Out::slot(&mut slot, 1).unwrap().unwrap();
                    map_flat(len, TOUCH, [Floats::of(&x.view()).unwrap()], [to], |first, [x], [y]| {
                        for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
                            *y = x + ((first + i) % 2) as f32;
                        }
                    });
                }
                let got = y.to_f32().unwrap();
                let want = |i: usize| 2.0 * ((i % 251) as f32 + (i % 2) as f32);
                for (i, g) in got.iter().enumerate() {
                    assert!((g - want(i)).abs() <= want(i) / 128.0, "{dtype} {i}: {g}");
                }
            }
        }
    }

    #[test]
    fn sums_over_rows_are_those_of_the_columns() {
        for (rows, width) in [(0, 3), (1, 1), (64, 5), (65, 7), (4200, 3), (3, 5000), (1000, 1), (70, 40)] {
            let x: Vec<f32> = (0..rows * width).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut got = vec![f32::NAN; width];
            sum_rows([Floats::F32(&x), Floats::F32(&x)], (rows, width), Out::f32(&mut got, 1), |[x, z], s| {
                vector::mul_add(x, z, s);
            });
            for (c, g) in got.iter().enumerate() {
                let want: f32 = (0..rows).map(|r| x[r * width + c].powi(2)).sum();
                assert_eq!(*g, want, "[{rows}, {width}] column {c}");
            }
        }
    }
}
