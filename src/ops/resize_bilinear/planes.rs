//! Bilinear interpolation of a plane on the CPU, and as plain loops: what the rooms `resize_bilinear` and `resize_tokens` share.

use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::vector;
use crate::scalar::Scalar;

/// The two inputs that make an output, and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tap {
    at: [usize; 2],
    weight: [f64; 2],
}

/// One tap an output along an axis of `n` inputs and `m` outputs; both are 1 or more.
fn taps(n: usize, m: usize, align_corners: bool) -> Vec<Tap> {
    let (wide_n, wide_m) = (n as i128, m as i128);
    let tap = |o: usize| {
        // The place as a fraction, so that its whole part is exact.
        let (above, below) = match (align_corners, m) {
            (true, 1) => (0, 1),
            (true, _) => (o as i128 * (wide_n - 1), wide_m - 1),
            (false, _) => (((2 * o as i128 + 1) * wide_n - wide_m).max(0), 2 * wide_m),
        };
        let low = ((above / below) as usize).min(n - 1);
        let part = (above % below) as f64 / below as f64;
        Tap { at: [low, (low + 1).min(n - 1)], weight: [1.0 - part, part] }
    };
    (0..m).map(tap).collect()
}

/// What one input sends: to outputs from `first` on, with these weights.
#[derive(Clone, Debug, Default, PartialEq)]
struct Reach {
    first: usize,
    weights: Vec<f32>,
}

/// The same weights seen from the inputs. The outputs of an input follow one another, because taps ascend.
fn reaches(taps: &[Tap], n: usize) -> Vec<Reach> {
    let mut all = vec![Reach::default(); n];
    for (o, tap) in taps.iter().enumerate() {
        for k in 0..2 {
            let reach = &mut all[tap.at[k]];
            if reach.weights.is_empty() {
                reach.first = o;
            }
            reach.weights.resize(o + 1 - reach.first, 0.0);
            reach.weights[o - reach.first] += tap.weight[k] as f32;
        }
    }
    all
}

/// How planes of one size are made of planes of another.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Planes {
    from: [usize; 2],
    to: [usize; 2],
    /// Of the rows and of the columns of the result.
    taps: [Vec<Tap>; 2],
}

impl Planes {
    /// From planes of `from` to planes of `to` rows and columns, all 1 or more.
    pub(in crate::ops) fn new(from: [usize; 2], to: [usize; 2], align_corners: bool) -> Planes {
        Planes { from, to, taps: [0, 1].map(|axis| taps(from[axis], to[axis], align_corners)) }
    }

    /// Every plane of `x` to its plane of `y`.
    pub(in crate::ops) fn forward(&self, x: &[f32], y: &mut [f32]) {
        let ([h, w], [to_h, to_w], [down, across]) = (self.from, self.to, &self.taps);
        let mut wide = Vec::with_capacity(h * to_w);
        for (y, x) in y.chunks_exact_mut(to_h * to_w).zip(x.chunks_exact(h * w)) {
            wide.clear();
            for x in x.chunks_exact(w) {
                wide.extend(across.iter().map(|t| {
                    let [wa, wb] = t.weight.map(|w| w as f32);
                    wa * x[t.at[0]] + wb * x[t.at[1]]
                }));
            }
            for (y, t) in y.chunks_exact_mut(to_w).zip(down) {
                let [a, b] = t.at.map(|i| &wide[i * to_w..][..to_w]);
                between(t.weight.map(|w| w as f32), a, b, y);
            }
        }
    }

    /// The gradient of every plane of x from that of its plane of y: what [`Sent::backward`] does.
    pub(in crate::ops) fn sent(&self) -> Sent {
        let of = |axis: usize| reaches(&self.taps[axis], self.from[axis]);
        Sent { from: self.from, to: self.to, reaches: [of(0), of(1)] }
    }

    /// One plane as plain loops.
    pub(in crate::ops) fn forward_ref<S: Scalar>(&self, x: &[S], y: &mut [S]) {
        let ([h, w], [_, to_w], [rows, columns]) = (self.from, self.to, &self.taps);
        let between = |t: &Tap, a: S, b: S| S::of(t.weight[0]) * a + S::of(t.weight[1]) * b;
        let mut wide = vec![S::zero(); h * to_w];
        for i in 0..h {
            for (j, t) in columns.iter().enumerate() {
                wide[i * to_w + j] = between(t, x[i * w + t.at[0]], x[i * w + t.at[1]]);
            }
        }
        for (i, t) in rows.iter().enumerate() {
            for j in 0..to_w {
                y[i * to_w + j] = between(t, wide[t.at[0] * to_w + j], wide[t.at[1] * to_w + j]);
            }
        }
    }

    /// Adds to the gradient of one plane as plain loops, the transposed weights: every input sums what it sent, rows first.
    pub(in crate::ops) fn backward_ref<S: Scalar>(&self, dy: &[S], dx: &mut [S]) {
        let ([h, w], [_, to_w], [rows, columns]) = (self.from, self.to, &self.taps);
        let mut wide = vec![S::zero(); h * to_w];
        for (i, t) in rows.iter().enumerate() {
            for (a, weight) in t.at.into_iter().zip(t.weight) {
                for j in 0..to_w {
                    let sum = &mut wide[a * to_w + j];
                    *sum = *sum + S::of(weight) * dy[i * to_w + j];
                }
            }
        }
        for i in 0..h {
            for (j, t) in columns.iter().enumerate() {
                for (a, weight) in t.at.into_iter().zip(t.weight) {
                    let sum = &mut dx[i * w + a];
                    *sum = *sum + S::of(weight) * wide[i * to_w + j];
                }
            }
        }
    }
}

/// What the inputs of [`Planes`] send.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Sent {
    from: [usize; 2],
    to: [usize; 2],
    reaches: [Vec<Reach>; 2],
}

impl Sent {
    /// The gradient of every plane of x from its plane of `dy`.
    pub(in crate::ops) fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        let ([h, w], [to_h, to_w], [down, across]) = (self.from, self.to, &self.reaches);
        let mut wide = vec![0.0; to_w];
        for (dx, dy) in dx.chunks_exact_mut(h * w).zip(dy.chunks_exact(to_h * to_w)) {
            for (dx, reach) in dx.chunks_exact_mut(w).zip(down) {
                wide.fill(0.0);
                for (dy, &weight) in dy.chunks_exact(to_w).skip(reach.first).zip(&reach.weights) {
                    vector::axpy(weight, dy, &mut wide);
                }
                for (dx, reach) in dx.iter_mut().zip(across) {
                    let wide = &wide[reach.first..][..reach.weights.len()];
                    *dx = wide.iter().zip(&reach.weights).map(|(&d, &weight)| d * weight).sum();
                }
            }
        }
    }
}

wide! {
    /// `y = weight₀·a + weight₁·b`.
    fn between<F>(weight: [f32; 2], a: &[f32], b: &[f32], y: &mut [f32]) {
        for (y, (&a, &b)) in y.iter_mut().zip(a.iter().zip(b)) {
            *y = weight[0] * a + weight[1] * b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_a_partition_of_one_and_stay_inside() {
        for (n, m) in [(1, 9), (9, 1), (45, 360), (90, 720), (721, 37), (3, 3)] {
            for align_corners in [false, true] {
                for t in taps(n, m, align_corners) {
                    assert!(t.weight[0] + t.weight[1] == 1.0 && t.weight[0] > 0.0 && t.weight[1] >= 0.0);
                    assert!(t.at[1] < n && t.at[0] <= t.at[1]);
                }
                let sent: f32 = reaches(&taps(n, m, align_corners), n).iter().flat_map(|r| &r.weights).sum();
                assert!((sent - m as f32).abs() <= 1e-5 * m as f32, "{n} to {m}: {sent}");
            }
        }
    }
}
