//! Sums, maxima and what is made of them. The order is fixed: 16 lanes side by side, folded in halves, and blocks of
//! 4096 values added up in f64, so that the error does not grow with the length.

use super::math;
use crate::backend::cpu::dispatch::wide;

const LANES: usize = 16;
const BLOCK: usize = 4096;

/// Folds lanes in halves. A macro, as all here: a closure would be compiled for the baseline, where it is not inlined.
macro_rules! fold {
    ($lanes:ident, $a:ident, $b:ident; $op:expr) => {{
        let mut n = $lanes.len();
        while n > 1 {
            n /= 2;
            for i in 0..n {
                let ($a, $b) = ($lanes[i], $lanes[i + n]);
                $lanes[i] = $op;
            }
        }
        $lanes[0]
    }};
}

/// The sum of terms over one block: `LANES` sums side by side.
macro_rules! lanes {
    ($sum:ident, $($x:ident in $slice:expr),+; $term:expr) => {{
        let mut lanes = [0.0f32; LANES];
        let n = [$($slice.len()),+].into_iter().min().unwrap_or(0);
        let mut at = 0;
        while at + LANES <= n {
            $(let Some($x) = $slice[at..].first_chunk::<LANES>() else { break };)+
            for i in 0..LANES {
                let $sum = lanes[i];
                $(let $x = $x[i];)+
                lanes[i] = $term;
            }
            at += LANES;
        }
        for i in at..n {
            let $sum = lanes[i - at];
            $(let $x = $slice[i];)+
            lanes[i - at] = $term;
        }
        fold!(lanes, a, b; a + b)
    }};
}

/// The sum of terms over slices of any length.
macro_rules! total {
    ($sum:ident, $($x:ident in $slice:expr),+; $term:expr) => {{
        let n = [$($slice.len()),+].into_iter().min().unwrap_or(0);
        if n <= BLOCK {
            lanes!($sum, $($x in $slice[..n]),+; $term)
        } else {
            let (mut total, mut at) = (0.0f64, 0);
            while at < n {
                let end = (at + BLOCK).min(n);
                total += f64::from(lanes!($sum, $($x in $slice[at..end]),+; $term));
                at = end;
            }
            total as f32
        }
    }};
}

/// The larger of two; a NaN on either side wins, because the comparison with it is false.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// The maximum; NaN if there is one. −∞ of nothing.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (xs, end) = x.as_chunks::<LANES>();
    for x in xs {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], x[i]);
        }
    }
    for (l, &x) in lanes.iter_mut().zip(end) {
        *l = larger(*l, x);
    }
    fold!(lanes, a, b; larger(a, b))
}

wide! {
    /// Σ x.
    pub fn sum<F>(x: &[f32]) -> f32 {
        total!(s, x in x; s + x)
    }

    /// Σ x y.
    pub fn dot<F>(x: &[f32], y: &[f32]) -> f32 {
        total!(s, x in x, y in y; F::fma(x, y, s))
    }

    /// Σ (x − `mean`)²: the second pass of a variance.
    pub fn sum_squared_deviations<F>(x: &[f32], mean: f32) -> f32 {
        total!(s, x in x; F::fma(x - mean, x - mean, s))
    }

    /// Σ x² in f64, where no square of an f32 overflows: the sum is infinite or NaN exactly if an `x` is.
    pub fn sum_squares<F>(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        let (xs, end) = x.as_chunks::<16>();
        for x in xs {
            for i in 0..16 {
                lanes[i] += f64::from(x[i]) * f64::from(x[i]);
            }
        }
        for (l, &x) in lanes.iter_mut().zip(end) {
            *l += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }

    /// Whether every number is finite.
    pub fn all_finite<F>(x: &[f32]) -> bool {
        x.iter().fold(true, |all, x| all & (x.abs() < f32::INFINITY))
    }

    /// The largest value: NaN if there is one, −∞ of nothing.
    pub fn max<F>(x: &[f32]) -> f32 {
        maximum(x)
    }

    /// `x = exp(x − shift)`; returns their sum.
    pub fn exp_shifted<F>(x: &mut [f32], shift: f32) -> f32 {
        for x in x.iter_mut() {
            *x = math::exp::<F>(*x - shift);
        }
        total!(s, x in x; s + x)
    }

    /// Softmax over each row of `width` values, in place: `exp(x − max) / Σ`. A row of −∞ alone gives NaN.
    pub fn softmax_rows<F>(x: &mut [f32], width: usize) {
        for row in x.chunks_mut(width.max(1)) {
            let shift = maximum(row);
            for x in row.iter_mut() {
                *x = math::exp::<F>(*x - shift);
            }
            let scale = 1.0 / total!(s, x in row; s + x);
            for x in row.iter_mut() {
                *x *= scale;
            }
        }
    }

    /// Gradient of softmax over each row of `width` values: `dx = y (dy − Σ y dy)`, or added to `dx`.
    pub fn softmax_rows_backward<F>(y: &[f32], dy: &[f32], dx: &mut [f32], width: usize, add: bool) {
        let width = width.max(1);
        for ((y, dy), dx) in y.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width)) {
            let inner = total!(s, y in y, dy in dy; F::fma(y, dy, s));
            for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
                let g = y * (dy - inner);
                *dx = if add { *dx + g } else { g };
            }
        }
    }

    /// `out[j] = Σ rows[i][from + j]` over rows of `width` values, or added to `out`: a strip of columns as long as `out`.
    pub fn column_sums<F>(rows: &[f32], width: usize, from: usize, out: &mut [f32], add: bool) {
        if !add {
            out.fill(0.0);
        }
        if width == 0 {
            return;
        }
        let mut from = from;
        for out in out.chunks_mut(64) {
            // Partial sums over 64 rows, so that the error does not grow with their number.
            for rows in rows.chunks(64 * width) {
                let mut sums = [0.0f32; 64];
                for row in rows.chunks_exact(width) {
                    let row = &row[from.min(width)..];
                    if let Some(row) = row.first_chunk::<64>() {
                        for i in 0..64 {
                            sums[i] += row[i];
                        }
                    } else {
                        for (s, &x) in sums.iter_mut().zip(row) {
                            *s += x;
                        }
                    }
                }
                for (out, s) in out.iter_mut().zip(sums) {
                    *out += s;
                }
            }
            from += out.len();
        }
    }
}
