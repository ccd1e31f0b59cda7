//! The plain text: a row of scores at a time.

use super::{Attention, Geometry, Wanted, cpu};
use crate::ops::operator::{RefBackward, RefForward, RefInput, Reference, ReferenceGrad};
use crate::scalar::{Scalar, sum};
use crate::tensor::Spec;

impl Attention {
    fn geometry<S>(&self, x: &[RefInput<'_, S>]) -> Option<Geometry> {
        let specs: Vec<&Spec> = x.iter().map(|x| x.spec).collect();
        Geometry::of(self, &specs).ok()
    }

    /// 0 or the scale for the keys that query `i` of the `head`-th of all heads sees; nothing without dropout.
    fn factors<S: Scalar>(&self, nq: usize, head: usize, i: usize, seen: &[(usize, usize)]) -> Vec<S> {
        let Some(drop) = self.dropping() else { return Vec::new() };
        seen.iter().map(|&(j, _)| drop.factor(head, nq, i, j)).collect()
    }
}

/// One query of one head: where its vectors and numbers lie.
struct Row<'a, S> {
    g: &'a Geometry,
    x: &'a [RefInput<'a, S>],
    b: usize,
    h: usize,
    i: usize,
    /// Keys that it sees, and where each of them stands in the row of the bias.
    seen: &'a [(usize, usize)],
    /// Its row in the bias, and how long that is.
    place: usize,
    width: usize,
}

impl<S: Scalar> Row<'_, S> {
    /// The head among those of all samples.
    fn head(&self) -> usize {
        self.b * self.g.heads + self.h
    }

    /// Position among all rows.
    fn index(&self) -> usize {
        self.head() * self.g.nq + self.i
    }

    fn q(&self) -> usize {
        let g = self.g;
        g.q.offset + (self.b * g.nq + self.i) * g.q.row + self.h * g.d
    }

    fn y(&self) -> usize {
        ((self.b * self.g.nq + self.i) * self.g.heads + self.h) * self.g.d
    }

    fn key(&self, j: usize) -> usize {
        let g = self.g;
        g.k.offset + (self.b * g.nk + j) * g.k.row + self.h / g.group() * g.d
    }

    fn value(&self, j: usize) -> usize {
        let g = self.g;
        g.v.offset + (self.b * g.nk + j) * g.v.row + self.h / g.group() * g.d
    }

    fn bias(&self, at: usize) -> usize {
        (self.h * self.g.places().0 + self.place) * self.width + at
    }

    fn score(&self, (j, at_bias): (usize, usize)) -> S {
        let g = self.g;
        let (q, k) = (&self.x[g.q.input][self.q()..][..g.d], &self.x[g.k.input][self.key(j)..][..g.d]);
        let s = q.iter().zip(k).fold(S::zero(), |s, (&q, &k)| s.mac(q, k)).stored() * S::of(f64::from(g.scale));
        match g.bias {
            Some(at) => (s.stored() + self.x[at][self.bias(at_bias)]).stored(),
            None => s.stored(),
        }
    }
}

/// Calls `f` for every query that sees a key.
fn each_row<'a, S>(op: &Attention, g: &'a Geometry, x: &'a [RefInput<'a, S>], mut f: impl FnMut(Row<'_, S>)) {
    let width = g.places().1;
    let groups = g.windows.map(|w| w.groups()).unwrap_or_default();
    let all: Vec<(usize, usize)> = (0..g.nk).map(|j| (j, j)).collect();
    for b in 0..g.batch {
        for h in 0..g.heads {
            for seen in &groups {
                seen.iter().for_each(|&(i, place)| f(Row { g, x, b, h, i, seen, place, width }));
            }
            for i in 0..if g.windows.is_none() { g.nq } else { 0 } {
                let seen = &all[g.seen(op, b, i)];
                if !seen.is_empty() {
                    f(Row { g, x, b, h, i, seen, place: i, width });
                }
            }
        }
    }
}

impl Reference for Attention {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let Some(g) = self.geometry(io.x) else { return };
        let ([y], [lse]) = (io.y, io.saved) else { return };
        lse.fill(S::of(f64::NEG_INFINITY));
        each_row(self, &g, io.x, |row| {
            let s: Vec<S> = row.seen.iter().map(|&key| row.score(key)).collect();
            let top = s.iter().copied().reduce(S::max).unwrap_or_default();
            // Where every score is −∞ all probabilities are 0.
            let top = if top == S::of(f64::NEG_INFINITY) { S::zero() } else { top };
            let e: Vec<S> = s.iter().map(|&s| (s - top).exp()).collect();
            let total = sum(e.iter().copied());
            lse[row.index()] = top + total.ln();
            let total = if total == S::zero() { S::one() } else { total };
            let factors = self.factors::<S>(g.nq, row.head(), row.i, row.seen);
            let y = &mut y[row.y()..][..g.d];
            for (n, (&e, &(j, _))) in e.iter().zip(row.seen).enumerate() {
                let mut p = (e / total).stored();
                if let Some(&factor) = factors.get(n) {
                    p = (p * factor).stored();
                }
                let v = &io.x[g.v.input][row.value(j)..][..g.d];
                y.iter_mut().zip(v).for_each(|(y, &v)| *y = y.mac(p, v));
            }
        });
    }

    fn forward_cpu(&self, io: RefForward<'_, f32>) {
        let Some(g) = self.geometry(io.x) else { return };
        let ([y], [lse]) = (io.y, io.saved) else { return };
        match &g.windows {
            Some(windows) => cpu::forward_windows(self, &g, windows, io.x, (y, lse)),
            None => cpu::forward(self, &g, io.x, y, lse),
        }
    }
}

impl ReferenceGrad for Attention {
    /// With t = Σ dy·y: ds = p·(dp − t), dq = scale·Σ ds·k, dk = scale·Σ ds·q, dv = Σ p·dy.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let Some(g) = self.geometry(io.x) else { return };
        let w = Wanted::of(io.x.len(), io.wanted());
        let ([y], [lse], [dy]) = (io.y, io.saved, io.dy) else { return };
        if !w.any() {
            return;
        }
        let scale = S::of(f64::from(g.scale));
        each_row(self, &g, io.x, |row| {
            let at = lse[row.index()];
            let at = if at == S::of(f64::NEG_INFINITY) { S::zero() } else { at };
            let dy = &dy[row.y()..][..g.d];
            let total = if w.scores() { sum(dy.iter().zip(&y[row.y()..]).map(|(&dy, &y)| dy * y)) } else { S::zero() };
            let factors = self.factors::<S>(g.nq, row.head(), row.i, row.seen);
            for (n, &(j, place)) in row.seen.iter().enumerate() {
                let p = (row.score((j, place)) - at).exp().stored();
                let factor = factors.get(n).copied();
                if w.v
                    && let Some(dv) = &mut io.dx[g.v.input]
                {
                    let p = factor.map_or(p, |f| (p * f).stored());
                    add_scaled(&mut dv[row.value(j)..], p, dy);
                }
                if !w.scores() {
                    continue;
                }
                let v = &io.x[g.v.input][row.value(j)..][..g.d];
                let dp = dy.iter().zip(v).fold(S::zero(), |s, (&dy, &v)| s.mac(dy, v)).stored();
                let dp = factor.map_or(dp, |f| (dp * f).stored());
                let ds = (p * (dp - total)).stored();
                if let Some(dbias) = g.bias.and_then(|at| io.dx[at].as_mut()) {
                    dbias[row.bias(place)] = dbias[row.bias(place)] + ds;
                }
                if !(w.q || w.k) {
                    continue;
                }
                let ds = (ds * scale).stored();
                let (q, k) = (&io.x[g.q.input][row.q()..][..g.d], &io.x[g.k.input][row.key(j)..][..g.d]);
                if let Some(dq) = io.dx[g.q.input].as_mut().filter(|_| w.q) {
                    add_scaled(&mut dq[row.q()..], ds, k);
                }
                if let Some(dk) = io.dx[g.k.input].as_mut().filter(|_| w.k) {
                    add_scaled(&mut dk[row.key(j)..], ds, q);
                }
            }
        });
    }

    fn backward_cpu(&self, io: RefBackward<'_, f32>) {
        let Some(g) = self.geometry(io.x) else { return };
        match &g.windows {
            Some(windows) => cpu::backward_windows(self, &g, windows, io),
            None => cpu::backward(self, &g, io),
        }
    }
}

/// `to += a·x`, inside a matrix product.
fn add_scaled<S: Scalar>(to: &mut [S], a: S, x: &[S]) {
    to.iter_mut().zip(x).for_each(|(to, &x)| *to = to.mac(a, x));
}
