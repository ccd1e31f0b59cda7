//! Backward: for a tile of keys, the panels of queries in order; scores are computed again from what forward saved.

use std::ops::Range;

use super::lanes::{MOST, inner, probabilities, score_gradient};
use super::{Panel, Scores, Spoiled, Vectors, Weights, all_seen, carve, lines, spoiled};
use crate::backend::cpu::gemm::{Panels, with_scratch};
use crate::backend::cpu::threads::{self, RowsMut};
use crate::backend::cpu::vector;
use crate::ops::attention::geometry::{Geometry, Place};
use crate::ops::attention::{Attention, Wanted};
use crate::ops::operator::{RefBackward, RefInput};

/// Keys of a tile, a multiple of every panel's height: two tiles of 32 queries take 24 KiB.
const KEYS: usize = 96;
/// Tasks to aim for, whatever the number of threads, and least queries of a task.
const TASKS: usize = 16;
const QUERIES: usize = 256;

/// How the work is cut; follows from the shapes alone.
#[derive(Clone, Copy)]
struct Cut {
    /// Queries of a task, and tasks of a sample's head of keys.
    length: usize,
    parts: usize,
    /// Samples of a task: all where they share the gradient of the bias.
    samples: usize,
    /// Queries of a head, padded to whole panels.
    padded: usize,
}

impl Cut {
    fn new(g: &Geometry, w: Wanted, lanes: usize) -> Cut {
        let samples = if w.bias { g.batch } else { 1 };
        let items = g.batch / samples * g.kv_heads;
        let parts = TASKS.div_ceil(items).clamp(1, g.nq.div_ceil(QUERIES));
        let length = g.nq.div_ceil(parts).next_multiple_of(lanes);
        Cut { length, parts: g.nq.div_ceil(length), samples, padded: g.nq.next_multiple_of(lanes) }
    }
}

/// Inputs and what forward left.
#[derive(Clone, Copy)]
struct Read<'a> {
    op: &'a Attention,
    g: &'a Geometry,
    w: Wanted,
    x: &'a [RefInput<'a, f32>],
    y: &'a [f32],
    dy: &'a [f32],
    lse: &'a [f32],
}

/// A head of keys of some samples, and a range of queries.
struct Task<'a> {
    samples: Range<usize>,
    kv: usize,
    queries: Range<usize>,
    /// For each sample and head of the group `[queries, D]`, padded to whole panels.
    dq: Vec<&'a mut [f32]>,
    /// For each sample `[2, Nk, D]`: what these queries add to the gradients of keys and values.
    dkv: Vec<&'a mut [f32]>,
    /// For each head of the group `[queries, Nk]`.
    dbias: Vec<&'a mut [f32]>,
}

pub(in super::super) fn backward(op: &Attention, g: &Geometry, io: RefBackward<'_, f32>) {
    let w = Wanted::of(io.x.len(), io.wanted());
    let ([y], [lse], [dy]) = (io.y, io.saved, io.dy) else { return };
    if !w.any() || dy.is_empty() {
        return;
    }
    let panels = Panels::new();
    let cut = Cut::new(g, w, panels.lanes());
    let read = Read { op, g, w, x: io.x, y, dy, lse };
    let dq_len = if w.q { g.batch * g.heads * cut.padded * g.d } else { 0 };
    let dkv_len = g.batch * g.kv_heads * cut.parts * 2 * g.nk * g.d;
    with_scratch(lines(dq_len) + dkv_len, |mut rest| {
        let (dq, dkv) = (carve(&mut rest, dq_len), &mut rest[..dkv_len]);
        let dbias = g.bias.filter(|_| w.bias).and_then(|at| io.dx[at].as_deref_mut());
        let tasks = tasks(g, cut, dq, dkv, dbias);
        let pairs = usize::try_from(g.pairs(op).0).unwrap_or(usize::MAX);
        threads::each(pairs.saturating_mul(16 + g.d), tasks, |task| task.run(&read, panels));
        gather(g, w, cut, dq, dkv, io.dx);
    });
}

fn tasks<'a>(
    g: &Geometry,
    cut: Cut,
    dq: &'a mut [f32],
    dkv: &'a mut [f32],
    dbias: Option<&'a mut [f32]>,
) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    for first in (0..g.batch).step_by(cut.samples) {
        for kv in 0..g.kv_heads {
            for query in (0..g.nq).step_by(cut.length) {
                let queries = query..(query + cut.length).min(g.nq);
                let samples = first..first + cut.samples;
                tasks.push(Task { samples, kv, queries, dq: Vec::new(), dkv: Vec::new(), dbias: Vec::new() });
            }
        }
    }
    let task = |b: usize, kv: usize, part: usize| (b / cut.samples * g.kv_heads + kv) * cut.parts + part;
    for (row, dq) in dq.chunks_mut(cut.padded * g.d).enumerate() {
        for (part, dq) in dq.chunks_mut(cut.length * g.d).enumerate() {
            tasks[task(row / g.heads, row % g.heads / g.group(), part)].dq.push(dq);
        }
    }
    for (at, dkv) in dkv.chunks_mut((2 * g.nk * g.d).max(1)).enumerate() {
        let item = at / cut.parts;
        tasks[task(item / g.kv_heads, item % g.kv_heads, at % cut.parts)].dkv.push(dkv);
    }
    if let Some(dbias) = dbias {
        for (h, dbias) in dbias.chunks_mut((g.nq * g.nk).max(1)).enumerate() {
            for (part, dbias) in dbias.chunks_mut((cut.length * g.nk).max(1)).enumerate() {
                tasks[task(0, h / g.group(), part)].dbias.push(dbias);
            }
        }
    }
    tasks
}

/// Writes the gradient of (sample, head, token) into its place.
type Fetch<'a> = dyn Fn(usize, usize, usize, &mut [f32]) + Sync + 'a;

/// Brings the gradients of q, k and v to where the inputs have their tokens; adds up the parts in their order.
fn gather(g: &Geometry, w: Wanted, cut: Cut, dq: &[f32], dkv: &[f32], dx: &mut [Option<&mut [f32]>]) {
    let mut place = |place: Place, n: usize, heads: usize, of: &Fetch<'_>| {
        let Some(dx) = dx[place.input].as_deref_mut() else { return };
        threads::rows(g.batch * n, 8 * heads * g.d, RowsMut::new(dx, place.row), |first, rows| {
            for (token, row) in (first..).zip(rows.data.chunks_mut(place.row)) {
                for (h, to) in row[place.offset..].chunks_mut(g.d).enumerate().take(heads) {
                    of(token / n, h, token % n, to);
                }
            }
        });
    };
    if w.q {
        place(g.q, g.nq, g.heads, &|b, h, i, to| {
            to.copy_from_slice(&dq[((b * g.heads + h) * cut.padded + i) * g.d..][..g.d]);
        });
    }
    let part = |b: usize, kv: usize, part: usize, which: usize, j: usize| {
        let at = (((b * g.kv_heads + kv) * cut.parts + part) * 2 + which) * g.nk + j;
        &dkv[at * g.d..][..g.d]
    };
    for (which, at, wanted) in [(0, g.k, w.k), (1, g.v, w.v)] {
        if wanted {
            place(at, g.nk, g.kv_heads, &|b, kv, j, to| {
                to.copy_from_slice(part(b, kv, 0, which, j));
                (1..cut.parts).for_each(|p| vector::add_in_place(part(b, kv, p, which, j), to));
            });
        }
    }
}

/// Keys and values of a sample's head as the products want them.
struct Keys<'a> {
    /// Keys that any query of the task sees: the first, and how many.
    first: usize,
    n: usize,
    k: &'a mut [f32],
    v: &'a mut [f32],
    k_columns: &'a mut [f32],
    spoiled: Vec<Spoiled>,
}

/// Queries of a head as the products want them, panel after panel.
struct Queries<'a> {
    panels: Vec<Lanes>,
    q: &'a mut [f32],
    dy: &'a mut [f32],
    q_columns: &'a mut [f32],
    dy_columns: &'a mut [f32],
}

/// One panel of queries.
struct Lanes {
    panel: Panel,
    lse: [f32; MOST],
    /// Σ dy·y.
    total: [f32; MOST],
    q_spoiled: Vec<Spoiled>,
    dy_spoiled: Vec<Spoiled>,
}

/// Memory of one tile.
struct Tile<'a> {
    p: &'a mut [f32],
    dp: &'a mut [f32],
    factors: &'a mut [f32],
}

impl Task<'_> {
    fn run(mut self, read: &Read<'_>, panels: Panels) {
        let (g, lanes) = (read.g, panels.lanes());
        let d = g.d;
        let count = self.queries.len().div_ceil(lanes);
        let dropping = if read.op.dropping().is_some() { KEYS } else { 0 };
        let keys = lines(panels.rows_len(g.nk, d)) * 2 + lines(panels.columns_len(g.nk, d));
        let queries = lines(count * d * lanes) + lines(count * panels.columns_len(lanes, d));
        let tiles = 2 * lines(KEYS * lanes) + lines(dropping * lanes);
        with_scratch(keys + 2 * queries + tiles, |mut rest| {
            let mut keys = Keys {
                first: 0,
                n: 0,
                k: carve(&mut rest, panels.rows_len(g.nk, d)),
                v: carve(&mut rest, panels.rows_len(g.nk, d)),
                k_columns: carve(&mut rest, panels.columns_len(g.nk, d)),
                spoiled: Vec::new(),
            };
            let mut queries = Queries {
                panels: Vec::with_capacity(count),
                q: carve(&mut rest, count * d * lanes),
                dy: carve(&mut rest, count * d * lanes),
                q_columns: carve(&mut rest, count * panels.columns_len(lanes, d)),
                dy_columns: carve(&mut rest, count * panels.columns_len(lanes, d)),
            };
            let mut tile = Tile {
                p: carve(&mut rest, KEYS * lanes),
                dp: carve(&mut rest, KEYS * lanes),
                factors: carve(&mut rest, dropping * lanes),
            };
            self.dq.iter_mut().chain(&mut self.dkv).for_each(|x| x.fill(0.0));
            for (sample, b) in self.samples.clone().enumerate() {
                keys.pack(read, panels, b, self.kv, &self.queries);
                for head in 0..g.group() {
                    let h = self.kv * g.group() + head;
                    queries.pack(read, panels, b, h, &self.queries);
                    let scores = Scores { op: read.op, g, bias: g.bias.map(|i| &*read.x[i]), lanes, b, h };
                    let dq = self.dq.get_mut(sample * g.group() + head);
                    let (dk, dv) =
                        self.dkv.get_mut(sample).map_or((&mut [][..], &mut [][..]), |x| x.split_at_mut(g.nk * d));
                    let dbias = self.dbias.get_mut(head);
                    let (dq, dbias, start) = (dq.map(|x| &mut **x), dbias.map(|x| &mut **x), self.queries.start);
                    let mut to = Gradients { dq, dk, dv, dbias, start };
                    for first in (keys.first..keys.first + keys.n).step_by(KEYS) {
                        for at in 0..queries.panels.len() {
                            let seen = &queries.panels[at].panel.any;
                            if seen.start < first + KEYS && first < seen.end {
                                to.add(read, panels, &scores, (&keys, first), (&queries, at), &mut tile);
                            }
                        }
                    }
                }
            }
        });
    }
}

impl Keys<'_> {
    fn pack(&mut self, read: &Read<'_>, panels: Panels, b: usize, kv: usize, queries: &Range<usize>) {
        let g = read.g;
        let seen = all_seen(read.op, g, b, queries);
        (self.first, self.n) = (seen.start, seen.len());
        let k = Vectors::of(&read.x[g.k.input], g.k, kv, g.d, b * g.nk + self.first, self.n);
        let v = Vectors::of(&read.x[g.v.input], g.v, kv, g.d, b * g.nk + self.first, self.n);
        panels.pack_rows(k.matrix(), self.k);
        if read.w.scores() {
            panels.pack_rows(v.matrix(), self.v);
        }
        if read.w.q {
            let columns = &mut self.k_columns[..panels.columns_len(self.n, g.d)];
            panels.pack_columns(k.matrix(), self.n, columns);
            self.spoiled = spoiled(read.op, k, self.first, columns);
        }
    }
}

impl Queries<'_> {
    fn pack(&mut self, read: &Read<'_>, panels: Panels, b: usize, h: usize, queries: &Range<usize>) {
        let (g, lanes) = (read.g, panels.lanes());
        let (d, wide) = (g.d, panels.columns_len(lanes, g.d));
        let token = b * g.nq + queries.start;
        let result = Place { input: 0, offset: 0, row: g.heads * d };
        let all = |x, place| Vectors::of(x, place, h, d, token, queries.len());
        let (q, dy, y) = (all(&read.x[g.q.input], g.q), all(read.dy, result), all(read.y, result));
        let lse = &read.lse[(b * g.heads + h) * g.nq + queries.start..];
        self.panels.clear();
        for (at, first) in (0..queries.len()).step_by(lanes).enumerate() {
            // Lanes without a query see nothing: their probabilities are 0.
            let panel = Panel::new(read.op, g, b, queries.start + first, lanes);
            let valid = panel.valid;
            let mut to = Lanes { panel, lse: [0.0; MOST], total: [0.0; MOST], q_spoiled: vec![], dy_spoiled: vec![] };
            let [q, dy, y] = [q, dy, y].map(|x| x.skip(first).take(valid));
            to.lse[..valid].copy_from_slice(&lse[first..][..valid]);
            panels.pack_columns(q.matrix().t(), d, &mut self.q[at * d * lanes..][..d * lanes]);
            if read.w.scores() {
                panels.pack_columns(dy.matrix().t(), d, &mut self.dy[at * d * lanes..][..d * lanes]);
                inner(dy.x, dy.row, y.x, y.row, d, &mut to.total[..valid]);
            }
            if read.w.k {
                let columns = &mut self.q_columns[at * wide..][..wide];
                panels.pack_columns(q.matrix(), lanes, columns);
                to.q_spoiled = spoiled(read.op, q, 0, columns);
            }
            if read.w.v {
                let columns = &mut self.dy_columns[at * wide..][..wide];
                panels.pack_columns(dy.matrix(), lanes, columns);
                to.dy_spoiled = spoiled(read.op, dy, 0, columns);
            }
            self.panels.push(to);
        }
    }
}

/// Where the gradients of one head go.
struct Gradients<'a> {
    dq: Option<&'a mut [f32]>,
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    dbias: Option<&'a mut [f32]>,
    /// The first query of `dbias`.
    start: usize,
}

impl Gradients<'_> {
    /// Adds what the tile of keys from `first` on and the panel `at` of queries contribute.
    fn add(
        &mut self,
        read: &Read<'_>,
        panels: Panels,
        scores: &Scores<'_>,
        (keys, first): (&Keys<'_>, usize),
        (queries, at): (&Queries<'_>, usize),
        tile: &mut Tile<'_>,
    ) {
        let (g, w, lanes) = (read.g, read.w, scores.lanes);
        let (d, of) = (g.d, &queries.panels[at]);
        let (end, from) = ((first + KEYS).min(of.panel.any.end), first - keys.first);
        let horizon = of.panel.horizon(first, end);
        let horizon = horizon.as_ref();
        let len = (end - first) * lanes;
        let (p, dp) = (&mut tile.p[..len], &mut tile.dp[..len]);
        let each = at * d * lanes..(at + 1) * d * lanes;
        panels.by_panels(&keys.k[from * d..], &queries.q[each.clone()], end - first, g.scale, p);
        scores.add_bias(&of.panel, first, p);
        probabilities(p, lanes, horizon, &of.lse);
        let factors = &mut tile.factors[..if scores.op.dropping().is_some() { len } else { 0 }];
        let drops = scores.drop_factors(&of.panel, first, factors);
        let wide = panels.columns_len(lanes, d);
        let columns = at * wide..(at + 1) * wide;
        if w.scores() {
            panels.by_panels(&keys.v[from * d..], &queries.dy[each], end - first, 1.0, dp);
            if drops {
                vector::mul_in_place(factors, dp);
            }
            score_gradient(p, dp, lanes, horizon, &of.total);
            self.add_bias(g, &of.panel, first, lanes, dp);
            let weights = Weights { tile: dp, lanes, first, horizon, alpha: g.scale };
            if let Some(dq) = &mut self.dq {
                let dq = &mut dq[at * lanes * d..][..lanes * d];
                panels.by_lanes(dp, (&keys.k_columns[from * lanes..], keys.n * lanes), d, (g.scale, true), dq);
                weights.mend_lanes(&keys.spoiled, d, dq);
            }
            if w.k {
                let dk = &mut self.dk[first * d..];
                panels.by_rows(dp, &queries.q_columns[columns.clone()], d, g.scale, dk);
                weights.mend_keys(&of.q_spoiled, d, dk);
            }
        }
        if w.v {
            if drops {
                vector::mul_in_place(factors, p);
            }
            let dv = &mut self.dv[first * d..];
            panels.by_rows(p, &queries.dy_columns[columns], d, 1.0, dv);
            Weights { tile: p, lanes, first, horizon, alpha: 1.0 }.mend_keys(&of.dy_spoiled, d, dv);
        }
    }

    /// The gradient of the bias is that of the scores.
    fn add_bias(&mut self, g: &Geometry, panel: &Panel, first: usize, lanes: usize, ds: &[f32]) {
        let Some(dbias) = &mut self.dbias else { return };
        for l in 0..panel.valid {
            let row = &mut dbias[(panel.first - self.start + l) * g.nk + first..][..ds.len() / lanes];
            row.iter_mut().zip(ds[l..].iter().step_by(lanes)).for_each(|(to, &ds)| *to += ds);
        }
    }
}
