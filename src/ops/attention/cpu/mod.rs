//! The CPU path: tiles of keys by a panel of queries, scores never leave the cache.
//!
//! A tile of scores is computed as its transpose, rows are keys and lanes side by side are queries. So softmax runs down the
//! rows in vector registers, without a sum across lanes, and the tile is at once an operand of the next product: exp(s)·v,
//! ds·k, dsᵀ·q, pᵀ·dy. Keys and values are packed once for a task, which is a head of a sample and a range of its queries.
//!
//! Memory beyond the results is proportional to the number of tokens. Bits do not depend on the number of threads: forward,
//! a query is summed over its keys in order by whoever does it; backward, the cut into tasks follows from shapes alone, and
//! what several tasks found for one key is added in their order.
//!
//! A mask that ends inside a tile hides by choice, not by arithmetic. In products a hidden weight is 0 and would turn an
//! infinite or NaN operand into NaN, so such numbers are packed as 0 and added one by one where they are seen
//! ([`Spoiled`]).

mod backward;
mod forward;
mod lanes;
mod windows;

pub(super) use backward::backward;
pub(super) use forward::forward;
pub(super) use windows::{backward_windows, forward_windows};

use std::ops::Range;

use lanes::{Horizon, MOST};

use super::Attention;
use super::geometry::{Geometry, Place};
use crate::backend::cpu::gemm::Mat;
use crate::backend::cpu::vector;

/// A head's vectors in an input: rows of `D` numbers, `row` numbers apart.
#[derive(Clone, Copy)]
struct Vectors<'a> {
    x: &'a [f32],
    row: usize,
    rows: usize,
    d: usize,
}

impl<'a> Vectors<'a> {
    /// `rows` vectors of head `h`, from token `first` on, counted over the batch.
    fn of(x: &'a [f32], place: Place, h: usize, d: usize, first: usize, rows: usize) -> Vectors<'a> {
        let x = x.get(place.offset + first * place.row + h * d..).unwrap_or(&[]);
        Vectors { x, row: place.row, rows, d }
    }

    fn vector(self, i: usize) -> &'a [f32] {
        &self.x[i * self.row..][..self.d]
    }

    fn matrix(self) -> Mat<'a> {
        Mat::strided(self.x, (self.rows, self.d), (self.row, 1))
    }

    fn skip(self, rows: usize) -> Vectors<'a> {
        let x = self.x.get(rows * self.row..).unwrap_or(&[]);
        Vectors { x, rows: self.rows.saturating_sub(rows), ..self }
    }

    fn take(self, rows: usize) -> Vectors<'a> {
        Vectors { rows: self.rows.min(rows), ..self }
    }
}

/// A number that is infinite or NaN.
#[derive(Clone, Copy)]
struct Spoiled {
    /// Which vector, and which of its numbers.
    row: usize,
    col: usize,
    value: f32,
}

/// Replaces infinite and NaN numbers of `packed` by 0 and lists those of `from`, whose first vector counts as `first`. Only where
/// something is hidden from some queries and not from others.
fn spoiled(op: &Attention, from: Vectors<'_>, first: usize, packed: &mut [f32]) -> Vec<Spoiled> {
    if op.is_even() || vector::all_finite(packed) {
        return Vec::new();
    }
    packed.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 0.0);
    let row = |row| {
        let bad = from.vector(row).iter().enumerate().filter(|(_, x)| !x.is_finite());
        bad.map(move |(col, &value)| Spoiled { row: first + row, col, value })
    };
    (0..from.rows).flat_map(row).collect()
}

/// As many queries side by side as the instruction set has lanes.
#[derive(Clone)]
struct Panel {
    /// First query, and how many there are.
    first: usize,
    valid: usize,
    /// The keys that each lane sees, those that any of them sees, and those that all of them do.
    from: [u32; MOST],
    to: [u32; MOST],
    any: Range<usize>,
    all: Range<usize>,
}

impl Panel {
    /// The panel of sample `b` that begins at query `first`. Lanes without a query see nothing.
    fn new(op: &Attention, g: &Geometry, b: usize, first: usize, lanes: usize) -> Panel {
        let valid = lanes.min(g.nq - first);
        let all = if valid < lanes { 0..0 } else { 0..usize::MAX };
        let mut panel = Panel {
            first,
            valid,
            from: [0; MOST],
            to: [0; MOST],
            any: std::ops::Range { start: usize::MAX, end: 0 },
            all,
        };
        for (l, (from, to)) in panel.from.iter_mut().zip(&mut panel.to).enumerate().take(valid) {
            let seen = g.seen(op, b, first + l);
            // More keys than that do not fit in memory.
            let short = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            (*from, *to) = (short(seen.start), short(seen.end));
            panel.any = panel.any.start.min(seen.start)..panel.any.end.max(seen.end);
            panel.all = panel.all.start.max(seen.start)..panel.all.end.min(seen.end);
        }
        panel
    }

    /// The horizon of the tile of keys `first..end`, if a query of the panel does not see all of them.
    fn horizon(&self, first: usize, end: usize) -> Option<Horizon> {
        let first_key = u32::try_from(first).unwrap_or(u32::MAX);
        let is_clear = self.all.start <= first && end <= self.all.end;
        (!is_clear).then_some(Horizon { from: self.from, to: self.to, first: first_key })
    }
}

/// The keys from the first to the last that any of `queries` sees; those before them back to a multiple of 4, as random numbers are
/// made.
fn all_seen(op: &Attention, g: &Geometry, b: usize, queries: &Range<usize>) -> Range<usize> {
    let seen = |i: usize| g.seen(op, b, i);
    if queries.is_empty() { 0..0 } else { seen(queries.start).start / 4 * 4..seen(queries.end - 1).end }
}

/// What all tiles of a head share.
struct Scores<'a> {
    op: &'a Attention,
    g: &'a Geometry,
    bias: Option<&'a [f32]>,
    lanes: usize,
    b: usize,
    h: usize,
}

impl Scores<'_> {
    /// Adds the bias to a tile that begins at key `first`.
    fn add_bias(&self, panel: &Panel, first: usize, s: &mut [f32]) {
        let Some(bias) = self.bias else { return };
        let keys = s.len() / self.lanes;
        for l in 0..panel.valid {
            let row = &bias[(self.h * self.g.nq + panel.first + l) * self.g.nk + first..][..keys];
            for (s, &bias) in s[l..].iter_mut().step_by(self.lanes).zip(row) {
                *s += bias;
            }
        }
    }

    /// Fills a tile with the factors of dropout; false without dropout.
    fn drop_factors(&self, panel: &Panel, first: usize, factors: &mut [f32]) -> bool {
        let Some(drop) = self.op.dropping() else { return false };
        let head = (self.b * self.g.heads + self.h, self.g.nq);
        drop.fill(head, (panel.first, panel.valid), first, self.lanes, factors);
        true
    }
}

/// A tile of weights: rows are keys from `first` on.
struct Weights<'a> {
    tile: &'a [f32],
    lanes: usize,
    first: usize,
    horizon: Option<&'a Horizon>,
    alpha: f32,
}

impl Weights<'_> {
    /// The weight of key `first + j` for lane `l`, if the lane sees it.
    fn seen(&self, j: usize, l: usize) -> Option<f32> {
        let sees = self.horizon.is_none_or(|h| {
            let key = h.first as usize + j;
            h.from[l] as usize <= key && key < h.to[l] as usize
        });
        sees.then(|| self.alpha * self.tile[j * self.lanes + l])
    }

    /// `to[l] += weight·value` for every spoiled key of the tile, where `l` sees it.
    fn mend_lanes(&self, keys: &[Spoiled], d: usize, to: &mut [f32]) {
        let end = self.first + self.tile.len() / self.lanes;
        for bad in keys.iter().filter(|k| (self.first..end).contains(&k.row)) {
            for l in 0..self.lanes {
                if let Some(weight) = self.seen(bad.row - self.first, l) {
                    to[l * d + bad.col] += weight * bad.value;
                }
            }
        }
    }

    /// `to[j] += weight·value` for every spoiled lane and the keys of the tile that it sees.
    fn mend_keys(&self, lanes: &[Spoiled], d: usize, to: &mut [f32]) {
        for bad in lanes {
            for j in 0..self.tile.len() / self.lanes {
                if let Some(weight) = self.seen(j, bad.row) {
                    to[j * d + bad.col] += weight * bad.value;
                }
            }
        }
    }
}

/// The first `len` numbers of `rest`, which goes on at the next cache line.
fn carve<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (head, tail) = std::mem::take(rest).split_at_mut(lines(len));
    *rest = tail;
    &mut head[..len]
}

/// `len` rounded up to whole cache lines.
fn lines(len: usize) -> usize {
    len.next_multiple_of(16)
}
