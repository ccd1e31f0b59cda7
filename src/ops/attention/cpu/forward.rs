//! Forward: for a panel of queries, the tiles of its keys in order, with a running maximum and sum.

use std::ops::Range;

use super::lanes::{Running, weigh};
use super::{Panel, Scores, Vectors, Weights, all_seen, carve, lines, spoiled};
use crate::backend::cpu::gemm::{Panels, with_scratch};
use crate::backend::cpu::{threads, vector};
use crate::ops::attention::Attention;
use crate::ops::attention::geometry::Geometry;
use crate::ops::operator::RefInput;

/// Keys of a tile, a multiple of every panel's height: scores of 32 queries take 24 KiB.
const KEYS: usize = 192;
/// Least panels of a task, so that packing keys and values does not weigh.
const PANELS: usize = 4;

/// A head of keys of one sample and a range of its queries.
struct Task<'a> {
    b: usize,
    kv: usize,
    queries: Range<usize>,
    /// Results, for each query those of the heads that share the keys.
    y: Vec<&'a mut [f32]>,
    /// For each of these heads.
    lse: Vec<&'a mut [f32]>,
}

pub(in super::super) fn forward(op: &Attention, g: &Geometry, x: &[RefInput<'_, f32>], y: &mut [f32], lse: &mut [f32]) {
    if y.is_empty() {
        return;
    }
    let panels = Panels::new();
    let items = g.batch * g.kv_heads;
    let splits = (4 * threads::count()).div_ceil(items).clamp(1, g.nq.div_ceil(PANELS * panels.lanes()));
    let length = g.nq.div_ceil(splits).next_multiple_of(panels.lanes());
    let splits = g.nq.div_ceil(length);
    let mut tasks = Vec::with_capacity(items * splits);
    for item in 0..items {
        for first in (0..g.nq).step_by(length) {
            let queries = first..(first + length).min(g.nq);
            let y = Vec::with_capacity(queries.len() * g.group());
            tasks.push(Task { b: item / g.kv_heads, kv: item % g.kv_heads, queries, y, lse: Vec::new() });
        }
    }
    for (at, y) in y.chunks_mut(g.d).enumerate() {
        let (token, h) = (at / g.heads, at % g.heads);
        let item = token / g.nq * g.kv_heads + h / g.group();
        tasks[item * splits + token % g.nq / length].y.push(y);
    }
    for (row, lse) in lse.chunks_mut(g.nq).enumerate() {
        for (part, lse) in lse.chunks_mut(length).enumerate() {
            tasks[row / g.group() * splits + part].lse.push(lse);
        }
    }
    let pairs = usize::try_from(g.pairs(op).0).unwrap_or(usize::MAX);
    threads::each(pairs.saturating_mul(8 + g.d / 2), tasks, |task| task.run(op, g, panels, x));
}

/// What a task has packed.
struct Packed<'a> {
    /// The first key, and how many there are.
    first: usize,
    keys: usize,
    /// Panels of keys, and of the columns of the values.
    k: &'a [f32],
    v: &'a [f32],
    spoiled: Vec<super::Spoiled>,
}

/// Memory of one panel of queries.
struct Work<'a> {
    q: &'a mut [f32],
    s: &'a mut [f32],
    o: &'a mut [f32],
    factors: &'a mut [f32],
}

impl Task<'_> {
    fn run(mut self, op: &Attention, g: &Geometry, panels: Panels, x: &[RefInput<'_, f32>]) {
        let (d, lanes) = (g.d, panels.lanes());
        let seen = all_seen(op, g, self.b, &self.queries);
        let (first, keys) = (seen.start, seen.len());
        let k = Vectors::of(&x[g.k.input], g.k, self.kv, d, self.b * g.nk + first, keys);
        let v = Vectors::of(&x[g.v.input], g.v, self.kv, d, self.b * g.nk + first, keys);
        let (k_len, v_len) = (panels.rows_len(keys, d), panels.columns_len(keys, d));
        let dropping = if op.dropping().is_some() { KEYS } else { 0 };
        let tiles = lines(KEYS * lanes) + lines(dropping * lanes) + 2 * lines(d * lanes);
        with_scratch(lines(k_len) + lines(v_len) + tiles, |mut rest| {
            let (kp, vp) = (carve(&mut rest, k_len), carve(&mut rest, v_len));
            panels.pack_rows(k.matrix(), kp);
            panels.pack_columns(v.matrix(), keys, vp);
            let packed = Packed { first, keys, spoiled: spoiled(op, v, first, vp), k: kp, v: vp };
            let mut work = Work {
                q: carve(&mut rest, d * lanes),
                o: carve(&mut rest, d * lanes),
                s: carve(&mut rest, KEYS * lanes),
                factors: carve(&mut rest, dropping * lanes),
            };
            for head in 0..g.group() {
                let h = self.kv * g.group() + head;
                let bias = g.bias.map(|i| &*x[i]);
                let scores = Scores { op, g, bias, lanes, b: self.b, h };
                for first in self.queries.clone().step_by(lanes) {
                    let panel = Panel::new(op, g, self.b, first, lanes);
                    let q = Vectors::of(&x[g.q.input], g.q, h, d, self.b * g.nq + first, panel.valid);
                    panels.pack_columns(q.matrix().t(), d, work.q);
                    let running = attend(&scores, panels, &panel, &packed, &mut work);
                    self.store(g, head, &panel, &running, work.o);
                }
            }
        });
    }

    /// Divides by the sum, and keeps its logarithm.
    fn store(&mut self, g: &Geometry, head: usize, panel: &Panel, running: &Running, o: &[f32]) {
        let from = panel.first - self.queries.start;
        for l in 0..panel.valid {
            let y = &mut self.y[(from + l) * g.group() + head];
            let (top, total) = (running.top[l], running.total[l]);
            // Without a key, or with none but those of bias −∞.
            if top == f32::NEG_INFINITY && total == 0.0 {
                y.fill(0.0);
                self.lse[head][from + l] = f32::NEG_INFINITY;
                continue;
            }
            // In f64: the rounding of the sum would be an error that all of y shares, and Σ dy·y would add up.
            let share = 1.0 / total;
            y.iter_mut().zip(&o[l * g.d..]).for_each(|(y, &o)| *y = (f64::from(o) * share) as f32);
            self.lse[head][from + l] = (f64::from(top) + total.ln()) as f32;
        }
    }
}

/// Leaves Σ exp(s − top)·v in `work.o`.
fn attend(scores: &Scores<'_>, panels: Panels, panel: &Panel, packed: &Packed<'_>, work: &mut Work<'_>) -> Running {
    let (d, lanes) = (scores.g.d, scores.lanes);
    let mut running = Running::new();
    // Tiles begin where those of the packed keys do.
    let start = panel.any.start - (panel.any.start - packed.first) % KEYS;
    for first in (start..panel.any.end).step_by(KEYS) {
        let (end, at) = ((first + KEYS).min(panel.any.end), first - packed.first);
        let s = &mut work.s[..(end - first) * lanes];
        panels.by_panels(&packed.k[at * d..], work.q, end - first, scores.g.scale, s);
        scores.add_bias(panel, first, s);
        let horizon = panel.horizon(first, end);
        weigh(s, lanes, horizon.as_ref(), &mut running);
        if first > start && running.fade[..lanes].iter().any(|&f| f != 1.0) {
            for (o, &fade) in work.o.chunks_mut(d).zip(&running.fade) {
                vector::scale_in_place(fade, o);
            }
        }
        let factors = &mut work.factors[..if scores.op.dropping().is_some() { s.len() } else { 0 }];
        if scores.drop_factors(panel, first, factors) {
            vector::mul_in_place(factors, s);
        }
        panels.by_lanes(s, (&packed.v[at * lanes..], packed.keys * lanes), d, (1.0, first > start), work.o);
        if !packed.spoiled.is_empty() {
            let weights = Weights { tile: s, lanes, first, horizon: horizon.as_ref(), alpha: 1.0 };
            weights.mend_lanes(&packed.spoiled, d, work.o);
        }
    }
    running
}
