//! What attention's kernels execute on matrix units: whole tiles, products that are made again, what lies beyond the last row. Each
//! function walks the tiles as its kernel does, by the same ranges; on emulated devices the counted FLOPs are equal.

use super::geometry::Geometry;
use super::visible::Reach;
use super::{Attention, Causal};

/// `Seen` of `kernels/common/seen.cuh` for one sample.
struct Seen<'a> {
    op: &'a Attention,
    nq: i64,
    length: i64,
    reach: Reach,
}

fn clamp(n: i64, most: i64) -> i64 {
    n.clamp(0, most.max(0))
}

impl<'a> Seen<'a> {
    fn new(op: &'a Attention, g: &Geometry, sample: usize) -> Seen<'a> {
        let length = op.key_lengths.as_ref().and_then(|l| l.get(sample)).copied().unwrap_or(g.nk);
        let empty = 0..0;
        let reach = match op.sequences {
            Some(_) => op.reach(&empty, &empty),
            None => op.reach(&(0..g.nq), &(0..g.nk)),
        };
        Seen { op, nq: g.nq as i64, length: length as i64, reach }
    }

    /// The range of the other side that `own` of the sequences reaches, `before` and `after` its own place there.
    fn of_sequence(&self, own: i64, is_query: bool, before: i64, after: i64) -> Option<(i64, i64)> {
        let sequences = self.op.sequences.as_ref()?;
        let starts = if is_query { &sequences.queries } else { &sequences.keys };
        let at = starts.partition_point(|&start| start as i64 <= own).clamp(1, starts.len().max(2) - 1);
        let place = |of: &[usize], i: usize| of.get(i).copied().unwrap_or_default() as i64;
        let (q0, q1) = (place(&sequences.queries, at - 1), place(&sequences.queries, at));
        let (k0, k1) = (place(&sequences.keys, at - 1), place(&sequences.keys, at));
        let across = if self.op.causal == Causal::BottomRight { k1 - q1 } else { k0 - q0 };
        let mine = if is_query { own + across } else { own - across };
        let (from, to) = if is_query { (k0, k1) } else { (q0, q1) };
        Some(((mine - before).clamp(from, to), (mine + after).clamp(from, to)))
    }

    fn of_query(&self, i: i64) -> (i64, i64) {
        let Reach { before, after } = self.reach;
        let own = clamp(i, self.nq - 1);
        self.of_sequence(own, true, before, after)
            .unwrap_or((clamp(i - before, self.length), clamp(i + after, self.length)))
    }

    fn first(&self, i: i64) -> i64 {
        self.of_query(i).0
    }

    fn end(&self, i: i64) -> i64 {
        self.of_query(i).1
    }

    fn of_key(&self, j: i64) -> (i64, i64) {
        if j >= self.length {
            return (self.nq, self.nq);
        }
        let Reach { before, after } = self.reach;
        self.of_sequence(j, false, after - 1, before + 1)
            .unwrap_or((clamp(j - after + 1, self.nq), clamp(j + before + 1, self.nq)))
    }

    fn first_query(&self, j: i64) -> i64 {
        self.of_key(j).0
    }

    fn end_query(&self, j: i64) -> i64 {
        self.of_key(j).1
    }
}

/// Starts of tiles of `rows` of `n`.
fn tiles(n: usize, rows: usize) -> impl Iterator<Item = i64> {
    (0..n).step_by(rows.max(1)).map(|at| at as i64)
}

fn div_ceil(n: i64, by: i64) -> i64 {
    if n > 0 { (n - 1) / by + 1 } else { 0 }
}

/// One application and how it is walked.
pub(super) struct Walk<'a> {
    pub(super) op: &'a Attention,
    pub(super) g: &'a Geometry,
}

impl Walk<'_> {
    /// Sum over the samples of `count`.
    fn samples(&self, count: impl Fn(&Seen<'_>) -> i64) -> u128 {
        // Without lengths all samples are alike.
        let Some(_) = &self.op.key_lengths else {
            return count(&Seen::new(self.op, self.g, 0)) as u128 * self.g.batch as u128;
        };
        (0..self.g.batch).map(|sample| count(&Seen::new(self.op, self.g, sample)) as u128).sum()
    }

    /// Steps of `columns` keys that tiles of `rows` queries of a head take, in all samples: at least `least` a tile.
    fn key_steps(&self, rows: usize, columns: i64, least: i64) -> u128 {
        let nq = self.g.nq as i64;
        self.samples(|seen| {
            tiles(self.g.nq, rows)
                .map(|r0| {
                    let low = seen.first(r0) / columns;
                    (div_ceil(seen.end(nq.min(r0 + rows as i64) - 1), columns) - low).max(least)
                })
                .sum()
        })
    }

    /// Steps of `columns` queries that tiles of `rows` keys of a head take, in all samples.
    fn query_steps(&self, rows: usize, columns: i64) -> u128 {
        let nk = self.g.nk as i64;
        self.samples(|seen| {
            tiles(self.g.nk, rows)
                .filter(|&r0| r0 < seen.length)
                .map(|r0| {
                    let (from, to) = (seen.first_query(r0), seen.end_query(nk.min(r0 + rows as i64) - 1));
                    (div_ceil(to, columns) - from / columns).max(0)
                })
                .sum()
        })
    }

    fn heads(&self) -> u128 {
        self.g.heads as u128
    }
}

/// The general kernels: tiles of `rows` by `columns`, a head in stages of 64 numbers, results of `wide` numbers a block.
pub(super) struct General<'a> {
    pub(super) walk: Walk<'a>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) wide: usize,
    /// Whether zeros behind a head's numbers are left out: on NVIDIA.
    pub(super) skips_zeros: bool,
}

impl General<'_> {
    fn whole(&self, d: usize, most: usize) -> u128 {
        (if self.skips_zeros { d.next_multiple_of(16).min(most) } else { most }) as u128
    }

    /// FLOPs of a tile's step: `scores` products of both sides, and with `adds` the weighted sums, of all blocks side by side.
    fn step(&self, scores: u128, adds: bool) -> u128 {
        let d = self.walk.g.d;
        let depth: u128 = (0..d).step_by(64).map(|c| self.whole(d - c, 64)).sum();
        let sums = |out: usize| if adds { self.whole(d - out, self.wide) } else { 0 };
        let all: u128 = (0..d).step_by(self.wide).map(|out| scores * depth + sums(out)).sum();
        2 * (self.rows * self.columns) as u128 * all
    }

    fn over_keys(&self) -> u128 {
        self.walk.heads() * self.walk.key_steps(self.rows, self.columns as i64, 0)
    }

    pub(super) fn forward(&self) -> u128 {
        self.over_keys() * self.step(1, true)
    }

    /// What f32 needs of every query.
    pub(super) fn rows(&self) -> u128 {
        let d = self.walk.g.d;
        let depth: u128 = (0..d).step_by(64).map(|c| self.whole(d - c, 64)).sum();
        self.over_keys() * 4 * (self.rows * self.columns) as u128 * depth
    }

    pub(super) fn dq(&self) -> u128 {
        self.over_keys() * self.step(2, true)
    }

    pub(super) fn dkv(&self, is_value: bool) -> u128 {
        let steps = self.walk.heads() * self.walk.query_steps(self.rows, self.columns as i64);
        steps * self.step(if is_value { 1 } else { 2 }, true)
    }

    pub(super) fn dbias(&self) -> u128 {
        let d = self.walk.g.d;
        let depth: u128 = (0..d).step_by(64).map(|c| self.whole(d - c, 64)).sum();
        let panes = panes(&self.walk, self.rows, self.columns);
        self.walk.heads() * panes * 4 * (self.rows * self.columns) as u128 * depth
    }
}

/// Tiles of `rows` queries by `columns` keys that somebody sees, of a head in all samples.
fn panes(walk: &Walk<'_>, rows: usize, columns: usize) -> u128 {
    let nq = walk.g.nq as i64;
    walk.samples(|seen| {
        tiles(walk.g.nq, rows)
            .map(|r0| {
                let (first, end) = (seen.first(r0), seen.end(nq.min(r0 + rows as i64) - 1));
                tiles(walk.g.nk, columns).filter(|&c0| c0 + columns as i64 > first && c0 < end).count() as i64
            })
            .sum()
    })
}

/// `kernels/attention/long.cu`: blocks of `block` rows, of which a warp has `own`; steps of `step` rows of the other side; `d`
/// numbers of a head.
pub(super) struct Long<'a> {
    pub(super) walk: Walk<'a>,
    pub(super) own: usize,
    pub(super) block: usize,
    pub(super) step: usize,
    pub(super) d: usize,
}

impl Long<'_> {
    /// Own rows are queries, and a step has `products`.
    pub(super) fn over_keys(&self, products: u128) -> u128 {
        let (own, block, step) = (self.own as i64, self.block as i64, self.step as i64);
        let nq = self.walk.g.nq as i64;
        let steps = self.walk.samples(|seen| {
            let of_block = |q0: i64| -> i64 {
                let (begin, end) = (seen.first(q0) / step, div_ceil(seen.end(nq.min(q0 + block) - 1), step));
                let of_warp = |first: i64| {
                    let (from, to) = (seen.first(first), seen.end(first + own - 1));
                    (begin..end).filter(|s| s * step < to && (s + 1) * step > from).count() as i64
                };
                (0..block / own).map(|w| of_warp(q0 + w * own)).sum()
            };
            tiles(self.walk.g.nq, self.block).map(of_block).sum()
        });
        self.walk.heads() * steps * self.flops(products)
    }

    /// Own rows are keys.
    pub(super) fn over_queries(&self, products: u128) -> u128 {
        let (own, block, step) = (self.own as i64, self.block as i64, self.step as i64);
        let steps = self.walk.samples(|seen| {
            let of_block = |k0: i64| -> i64 {
                let (from, to) = (seen.first_query(k0), seen.end_query(seen.length.min(k0 + block) - 1));
                let steps = if from < to { from / step..div_ceil(to, step) } else { 0..0 };
                let is_met = |first: i64, s: i64| {
                    let (low, high) = (seen.first(s * step), seen.end((s + 1) * step - 1));
                    first < high && first + own > low
                };
                let of_warp = |first: i64| steps.clone().filter(|&s| is_met(first, s)).count() as i64;
                (0..block / own).map(|w| of_warp(k0 + w * own)).sum()
            };
            tiles(self.walk.g.nk, self.block).map(of_block).sum()
        });
        self.walk.heads() * steps * self.flops(products)
    }

    fn flops(&self, products: u128) -> u128 {
        2 * products * (self.own * self.step * self.d) as u128
    }
}

/// Forward on Hopper: tiles of `rows` queries, blocks of `keys`. A warpgroup has 64 of the queries, begins with the tile's first block; of
/// those behind its own last one it leaves out fewer than are on their way.
pub(super) fn forward_sm90(walk: &Walk<'_>, rows: usize, keys: usize) -> u128 {
    const SLAB: i64 = 64;
    let (d, nq, columns) = (walk.g.d, walk.g.nq as i64, keys as i64);
    let ahead = if d <= 64 { 4 } else { 2 };
    let blocks = walk.samples(|seen| {
        let slabs = |r0: i64| {
            let low = seen.first(r0) / columns;
            let blocks = (div_ceil(seen.end(nq.min(r0 + rows as i64) - 1), columns) - low).max(1);
            let count = move |first: i64| {
                let end = if first < nq { seen.end(nq.min(first + SLAB) - 1) } else { 0 };
                blocks - (blocks - (div_ceil(end, columns) - low).max(1)).min(ahead - 1)
            };
            (0..rows as i64 / SLAB).map(move |slab| count(r0 + slab * SLAB)).sum::<i64>()
        };
        tiles(walk.g.nq, rows).map(slabs).sum()
    });
    2 * walk.heads() * blocks * (SLAB * columns) as u128 * (d.next_multiple_of(16) + d) as u128
}

/// Backward on Hopper: blocks of `keys`, tiles of 64 queries; five products a step, and the scores of the last step once more.
pub(super) fn backward_sm90(walk: &Walk<'_>, keys: usize, queries: usize) -> u128 {
    let (d, depth) = (walk.g.d as u128, walk.g.d.next_multiple_of(16) as u128);
    let (group, nk) = (walk.g.group() as i64, walk.g.nk as i64);
    // Steps, and blocks that have any.
    let count = |again: bool| {
        walk.samples(|seen| {
            tiles(walk.g.nk, keys)
                .map(|k0| {
                    let (from, to) = (seen.first_query(k0), seen.end_query(nk.min(k0 + keys as i64) - 1));
                    let steps = if from < to { div_ceil(to, queries as i64) - from / queries as i64 } else { 0 };
                    if again { i64::from(steps > 0) } else { steps * group }
                })
                .sum()
        })
    };
    let tile = 2 * (keys * queries) as u128 * walk.g.kv_heads as u128;
    tile * (count(false) * (2 * depth + 3 * d) + count(true) * depth)
}

/// The gradient of a bias on Hopper: both products of scores of every pane that is seen.
pub(super) fn bias_sm90(walk: &Walk<'_>, keys: usize, queries: usize) -> u128 {
    let panes = walk.heads() * panes(walk, queries, keys);
    4 * panes * (keys * queries) as u128 * walk.g.d.next_multiple_of(16) as u128
}
