//! What happens to a tile of scores between two products: rows are keys, lanes side by side are queries.

use crate::backend::cpu::dispatch::{Arith, wide};
use crate::backend::cpu::vector::math;

/// Most lanes that any instruction set has.
pub(super) const MOST: usize = 32;
/// Rows that are summed in f32 before their sum goes to f64: the error does not grow with the number of keys.
const SUMMED: usize = 16;

/// What each lane of a tile sees: lane `l` sees key `first + j` from `from[l]` up to and without `to[l]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Horizon {
    pub(super) from: [u32; MOST],
    pub(super) to: [u32; MOST],
    /// Key of the tile's first row.
    pub(super) first: u32,
}

/// Running softmax of each lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    /// Largest score so far, −∞ before the first.
    pub(super) top: [f32; MOST],
    /// Σ exp(score − top).
    pub(super) total: [f64; MOST],
    /// What sums over earlier tiles must be multiplied by.
    pub(super) fade: [f32; MOST],
}

impl Running {
    pub(super) fn new() -> Running {
        Running { top: [f32::NEG_INFINITY; MOST], total: [0.0; MOST], fade: [1.0; MOST] }
    }
}

/// Calls `$f::<F, L>` for the number of lanes.
macro_rules! with_lanes {
    ($lanes:expr, $f:ident($($arg:expr),*)) => {
        match $lanes {
            32 => $f::<F, 32>($($arg),*),
            16 => $f::<F, 16>($($arg),*),
            _ => $f::<F, 8>($($arg),*),
        }
    };
}

wide! {
    /// `s = exp(s − top)` with the largest score so far; sums and what earlier tiles must be multiplied by are in `running`.
    pub(super) fn weigh<F>(s: &mut [f32], lanes: usize, horizon: Option<&Horizon>, running: &mut Running) {
        with_lanes!(lanes, weigh_lanes(s, horizon, running));
    }

    /// `s = exp(s − lse)`, 0 beyond the horizon.
    pub(super) fn probabilities<F>(s: &mut [f32], lanes: usize, horizon: Option<&Horizon>, lse: &[f32; MOST]) {
        with_lanes!(lanes, probabilities_of(s, horizon, lse));
    }

    /// `dp = p·(dp − total)`, 0 beyond the horizon.
    pub(super) fn score_gradient<F>(
        p: &[f32], dp: &mut [f32], lanes: usize, horizon: Option<&Horizon>, total: &[f32; MOST],
    ) {
        with_lanes!(lanes, gradient_of(p, dp, horizon, total));
    }

    /// `out[i] = Σ x[i, ·]·y[i, ·]` for rows of `d` numbers that lie `x_row` and `y_row` apart, each summed in the order of a
    /// product: with a single key it cancels exactly against the gradient of its probability.
    pub(super) fn inner<F>(x: &[f32], x_row: usize, y: &[f32], y_row: usize, d: usize, out: &mut [f32]) {
        // Eight rows side by side hide the latency of one sum.
        for (at, out) in out.chunks_mut(8).enumerate() {
            let rows: [(&[f32], &[f32]); 8] = std::array::from_fn(|i| {
                let row = at * 8 + i.min(out.len() - 1);
                (&x[row * x_row..][..d], &y[row * y_row..][..d])
            });
            let mut sums = [0.0; 8];
            for c in 0..d {
                for (sum, (x, y)) in sums.iter_mut().zip(&rows) {
                    *sum = F::mac(x[c], y[c], *sum);
                }
            }
            out.copy_from_slice(&sums[..out.len()]);
        }
    }
}

/// The first `L` lanes.
#[inline(always)]
fn take<T: Copy, const L: usize>(x: &[T; MOST]) -> [T; L] {
    std::array::from_fn(|l| x[l])
}

/// Where all scores so far are −∞, the shift is 0, so that no difference of infinities arises.
#[inline(always)]
fn shift(top: f32) -> f32 {
    if top == f32::NEG_INFINITY { 0.0 } else { top }
}

#[inline(always)]
fn weigh_lanes<F: Arith, const L: usize>(s: &mut [f32], horizon: Option<&Horizon>, running: &mut Running) {
    let (s, _) = s.as_chunks_mut::<L>();
    if let Some(h) = horizon {
        hide(s, h, f32::NEG_INFINITY);
    }
    let before: [f32; L] = take(&running.top);
    let mut top = before;
    for row in s.iter() {
        for l in 0..L {
            // A NaN is not larger; it comes through with the exponential.
            top[l] = if row[l] > top[l] { row[l] } else { top[l] };
        }
    }
    let by: [f32; L] = std::array::from_fn(|l| shift(top[l]));
    let mut total: [f64; L] = take(&running.total);
    for l in 0..L {
        // Before the first finite score all sums are 0, and stay so.
        let fade = if before[l] == f32::NEG_INFINITY { 1.0 } else { math::exp::<F>(before[l] - by[l]) };
        running.fade[l] = fade;
        total[l] *= f64::from(fade);
        running.top[l] = top[l];
    }
    for rows in s.chunks_mut(SUMMED) {
        let mut sum = [0.0f32; L];
        for row in rows {
            for l in 0..L {
                row[l] = math::exp::<F>(row[l] - by[l]);
                sum[l] += row[l];
            }
        }
        for l in 0..L {
            total[l] += f64::from(sum[l]);
        }
    }
    running.total[..L].copy_from_slice(&total);
}

#[inline(always)]
fn probabilities_of<F: Arith, const L: usize>(s: &mut [f32], horizon: Option<&Horizon>, lse: &[f32; MOST]) {
    let by: [f32; L] = std::array::from_fn(|l| shift(lse[l]));
    let (s, _) = s.as_chunks_mut::<L>();
    for row in s.iter_mut() {
        for l in 0..L {
            row[l] = math::exp::<F>(row[l] - by[l]);
        }
    }
    if let Some(h) = horizon {
        hide(s, h, 0.0);
    }
}

// The macro names the arithmetic of each level; this product needs none of its own.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
fn gradient_of<F: Arith, const L: usize>(p: &[f32], dp: &mut [f32], horizon: Option<&Horizon>, total: &[f32; MOST]) {
    let total: [f32; L] = take(total);
    let ((p, _), (dp, _)) = (p.as_chunks::<L>(), dp.as_chunks_mut::<L>());
    for (p, dp) in p.iter().zip(dp.iter_mut()) {
        for l in 0..L {
            dp[l] = p[l] * (dp[l] - total[l]);
        }
    }
    if let Some(h) = horizon {
        hide(dp, h, 0.0);
    }
}

/// `hidden` where a lane does not see: chosen, not multiplied, so that what is hidden may be NaN.
#[inline(always)]
fn hide<const L: usize>(rows: &mut [[f32; L]], h: &Horizon, hidden: f32) {
    let (from, to): ([u32; L], [u32; L]) = (take(&h.from), take(&h.to));
    for (j, row) in rows.iter_mut().enumerate() {
        let key = h.first + j as u32;
        for l in 0..L {
            row[l] = if from[l] <= key && key < to[l] { row[l] } else { hidden };
        }
    }
}
