//! The loops around the tile: which part of the operands is packed when, and who computes what.
//!
//! B is packed once for a run of K and a range of columns, by all threads. Then tasks, each a range of rows (and of columns
//! if there are too few rows), pack their own rows of A and go through the columns a cache's worth at a time, so that the
//! epilogue finds the sums in the second-level cache.

use std::cell::RefCell;
use std::ops::Range;

use bytemuck::Zeroable;

use crate::backend::cpu::threads;

use super::How;
use super::epilogue::{Activation, finish};
use super::operand::{Mat, MatMut, Source};
use super::tile::{Job, Tile, tile};

/// Longest run of K that a tile sums before it is added to C: an A panel of it fits the first-level cache, and a panel of B
/// streams past it from the second.
const RUN: usize = 512;
/// Longest part of K that is packed at a time, and most columns.
const DEPTH: usize = 2048;
const COLUMNS: usize = 4096;
/// Values of packed A that one task keeps in its second-level cache.
const A_VALUES: usize = 96 * 1024;
/// Values of packed B that exist at a time.
const B_VALUES: usize = 2 * 1024 * 1024;
/// Columns between two epilogues.
const STRIP: usize = 512;
/// Multiply-adds are this much cheaper than the operations that [`threads::PIECE`] counts.
pub(super) const RATE: usize = 8;
/// Up to this many rows, B is read in place where its columns lie side by side.
const FEW_ROWS: usize = 8;

/// Arithmetic of a product.
pub(super) fn flops(m: usize, n: usize, k: usize) -> usize {
    2usize.saturating_mul(m).saturating_mul(n).saturating_mul(k)
}

/// A thread's range of C.
struct Task<'c> {
    row: usize,
    cols: Range<usize>,
    c: Vec<&'c mut [f32]>,
    pre: Vec<&'c mut [f32]>,
}

/// Everything that the tasks of one pass share.
struct Pass<'a> {
    tile: Tile,
    a: Mat<'a>,
    b: PackedB<'a>,
    /// Columns of C that this pass covers.
    cols: Range<usize>,
    /// Runs of K, and whether this pass is the first and the last.
    runs: &'a [Range<usize>],
    first: bool,
    last: bool,
    alpha: f32,
    add: bool,
    bias: Option<&'a [f32]>,
    activation: Activation,
}

/// B as the tiles read it: packed panels, or rows in place and the ragged last panel packed.
#[derive(Clone, Copy)]
enum PackedB<'a> {
    Panels(&'a [f32]),
    Rows { data: &'a [f32], step: usize, ragged: &'a [f32] },
}

pub(super) fn product(a: Mat<'_>, b: Mat<'_>, c: MatMut<'_>, how: How<'_>, spread: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let tile = tile();
    let work = flops(m, n, k) / RATE;
    let spread = spread && threads::worth(work);
    let mut tasks = tasks(tile, (m, n, k), c, how.pre, if spread { threads::count() } else { 1 });
    if k == 0 {
        for t in &mut tasks {
            if !how.add {
                t.c.iter_mut().for_each(|r| r.fill(0.0));
            }
            let (bias, act) = (how.bias.map(|b| &b[t.cols.clone()]), how.activation);
            let width = t.cols.len();
            finish(&mut t.c, &mut t.pre, 0..width, bias, act);
        }
        return;
    }
    let runs = runs(k);
    let run = runs[0].len();
    let width = n.min(COLUMNS);
    let depth = (B_VALUES / (width * run)).clamp(1, DEPTH / run.min(DEPTH));
    let work = if spread { work } else { 0 };
    for from in (0..n).step_by(COLUMNS) {
        let cols = from..(from + COLUMNS).min(n);
        for (i, part) in runs.chunks(depth).enumerate() {
            let ks = part[0].start..part[part.len() - 1].end;
            with_packed_b(tile, b, (m, cols.clone()), part, work, |packed| {
                let pass = Pass {
                    tile,
                    a,
                    b: packed,
                    cols: cols.clone(),
                    runs: part,
                    first: i == 0,
                    last: ks.end == k,
                    alpha: how.alpha,
                    add: how.add,
                    bias: how.bias,
                    activation: how.activation,
                };
                threads::each(work, tasks.iter_mut().collect(), |t| pass.task(t));
            });
        }
    }
}

/// Equal runs that cover `0..k`; they follow from `k` alone, because they decide how sums are rounded.
fn runs(k: usize) -> Vec<Range<usize>> {
    let len = k.div_ceil(k.div_ceil(RUN)).next_multiple_of(8);
    (0..k).step_by(len).map(|s| s..(s + len).min(k)).collect()
}

/// Cuts C into tasks: a few for each thread, small enough that packed A stays in the cache.
fn tasks<'c>(
    tile: Tile,
    (m, n, k): (usize, usize, usize),
    c: MatMut<'c>,
    pre: Option<MatMut<'c>>,
    threads: usize,
) -> Vec<Task<'c>> {
    let tiles = m.div_ceil(tile.mr);
    let fits = (A_VALUES / (k.clamp(1, DEPTH) * tile.mr)).max(1);
    // As many bands as keep packed A in the cache, and two for each thread, of equal height but for one tile.
    let wanted = if threads > 1 {
        tiles.div_ceil(fits).max(2).next_multiple_of(threads).max(2 * threads)
    } else {
        tiles.div_ceil(fits)
    };
    let bands = wanted.min(tiles);
    // Few tiles cannot be shared out evenly: the columns are cut too.
    let parts = if threads > 1 && tiles < 8 * threads { (4 * threads).div_ceil(bands).max(2) } else { 1 };
    let width = n.div_ceil(parts).next_multiple_of(2 * tile.nr);
    let mut c = c.into_rows().into_iter();
    let mut pre = pre.map(MatMut::into_rows).unwrap_or_default().into_iter();
    let mut tasks = Vec::with_capacity(bands * n.div_ceil(width));
    for band in 0..bands {
        let row = band * tiles / bands * tile.mr;
        let height = ((band + 1) * tiles / bands * tile.mr).min(m) - row;
        let mut band_c: Vec<&mut [f32]> = c.by_ref().take(height).collect();
        let mut band_pre: Vec<&mut [f32]> = pre.by_ref().take(height).collect();
        for from in (0..n).step_by(width) {
            let cols = from..(from + width).min(n);
            let (c, pre) = (cut(&mut band_c, cols.len()), cut(&mut band_pre, cols.len()));
            tasks.push(Task { row, cols, c, pre });
        }
    }
    tasks
}

/// Takes the first `width` values of every row away from `rows`.
fn cut<'c>(rows: &mut [&'c mut [f32]], width: usize) -> Vec<&'c mut [f32]> {
    rows.iter_mut()
        .map(|r| {
            let (head, tail) = std::mem::take(r).split_at_mut(width);
            *r = tail;
            head
        })
        .collect()
}

/// Packs the columns `cols` of the runs `runs` of B, if it must be packed, and hands it to `f`.
fn with_packed_b(
    tile: Tile,
    b: Mat<'_>,
    (m, cols): (usize, Range<usize>),
    runs: &[Range<usize>],
    work: usize,
    f: impl FnOnce(PackedB<'_>),
) {
    let nr = tile.nr;
    let start = runs[0].start;
    let depth = runs[runs.len() - 1].end - start;
    let pack = |from: usize, buffer: &mut [f32]| {
        let panels = (cols.end - from).div_ceil(nr);
        let mut rest = buffer;
        let mut jobs = Vec::new();
        for ks in runs {
            for p in 0..panels {
                let (panel, tail) = rest.split_at_mut(nr * ks.len());
                rest = tail;
                jobs.push((ks, from + p * nr, panel));
            }
        }
        // Two values of packing cost about one operation as threads count them.
        let jobs_work = if work == 0 { 0 } else { depth * panels * nr / 2 };
        threads::each(jobs_work, jobs, |(ks, j, panel)| {
            (tile.pack_b)(b.t(), j, nr.min(cols.end - j), ks.clone(), panel);
        });
    };
    match b.data {
        Source::F32(data) if m <= FEW_ROWS && b.col == 1 && b.row >= nr => {
            let whole = cols.start + cols.len() / nr * nr;
            with_scratch(nr * depth * usize::from(whole < cols.end), |ragged| {
                if whole < cols.end {
                    pack(whole, ragged);
                }
                f(PackedB::Rows { data: &data[start * b.row..], step: b.row, ragged });
            });
        }
        _ => with_scratch(cols.len().next_multiple_of(nr) * depth, |buffer| {
            pack(cols.start, buffer);
            f(PackedB::Panels(buffer));
        }),
    }
}

impl Pass<'_> {
    /// One task's part of this pass.
    fn task(&self, t: &mut Task<'_>) {
        let cols = t.cols.start.max(self.cols.start)..t.cols.end.min(self.cols.end);
        if cols.is_empty() {
            return;
        }
        let (mr, nr) = (self.tile.mr, self.tile.nr);
        let start = self.runs[0].start;
        let depth = self.runs[self.runs.len() - 1].end - start;
        let height = t.c.len();
        let padded = height.next_multiple_of(mr);
        with_scratch(padded * depth, |packed| {
            let mut rest = &mut *packed;
            for ks in self.runs {
                for i in (0..height).step_by(mr) {
                    let (panel, tail) = rest.split_at_mut(mr * ks.len());
                    rest = tail;
                    (self.tile.pack_a)(self.a, t.row + i, mr.min(height - i), ks.clone(), panel);
                }
            }
            for from in cols.clone().step_by(STRIP) {
                let strip = from..(from + STRIP).min(cols.end);
                for ks in self.runs {
                    let a = &packed[padded * (ks.start - start)..][..padded * ks.len()];
                    let add = self.add || !self.first || ks.start > start;
                    for j in strip.clone().step_by(nr) {
                        let (b, b_step) = self.b_panel(j, ks, start);
                        for (a, c) in a.chunks_exact(mr * ks.len()).zip(t.c.chunks_mut(mr)) {
                            let (col, width) = (j - t.cols.start, nr.min(strip.end - j));
                            (self.tile.run)(Job { a, b, b_step, c, col, width, alpha: self.alpha, add });
                        }
                    }
                }
                if self.last {
                    let bias = self.bias.map(|b| &b[t.cols.clone()]);
                    let strip = strip.start - t.cols.start..strip.end - t.cols.start;
                    finish(&mut t.c, &mut t.pre, strip, bias, self.activation);
                }
            }
        });
    }

    /// The panel of B that begins at column `j`, for the run `ks`, and the distance of its rows.
    fn b_panel(&self, j: usize, ks: &Range<usize>, start: usize) -> (&[f32], usize) {
        let nr = self.tile.nr;
        let done = ks.start - start;
        match self.b {
            PackedB::Panels(data) => {
                let panels = self.cols.len().div_ceil(nr);
                let at = panels * nr * done + (j - self.cols.start) * ks.len();
                (&data[at..at + nr * ks.len()], nr)
            }
            PackedB::Rows { ragged, .. } if j + nr > self.cols.end => (&ragged[nr * done..][..nr * ks.len()], nr),
            PackedB::Rows { data, step, .. } => (&data[done * step + j..], step),
        }
    }
}

/// A cache line, so that packed panels are aligned to one.
#[derive(Clone, Copy, bytemuck::Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// Buffers that the thread's earlier products have left behind.
    static SCRATCH: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Hands `len` values with any content to `f`. The buffer is taken off the list while `f` runs, because a thread that
/// waits inside `f` may be given a task of another product.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = SCRATCH.with_borrow_mut(|list| {
        // The smallest that is large enough, else the largest, which then grows.
        let fit = (0..list.len()).filter(|&i| list[i].len() * 16 >= len).min_by_key(|&i| list[i].len());
        let fit = fit.or_else(|| (0..list.len()).max_by_key(|&i| list[i].len()));
        fit.map(|i| list.swap_remove(i)).unwrap_or_default()
    });
    if lines.len() * 16 < len {
        lines.resize(len.div_ceil(16), Line::zeroed());
    }
    let result = f(&mut bytemuck::cast_slice_mut::<Line, f32>(&mut lines)[..len]);
    SCRATCH.with_borrow_mut(|list| {
        if list.len() < 4 {
            list.push(lines);
        }
    });
    result
}
