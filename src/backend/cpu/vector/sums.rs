//! Sums, maxima and what is made of them. The order is fixed: 32 lanes side by side, folded in halves, and blocks of
//! 4096 values added up in f64, so that the error does not grow with the length.

use super::math;
use crate::backend::cpu::dispatch::wide;

const LANES: usize = 32;
const BLOCK: usize = 4096;

/// Folds lanes in halves.
#[inline(always)]
fn fold<const N: usize>(mut lanes: [f32; N], op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = N;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] = op(lanes[i], lanes[i + n]);
        }
    }
    lanes[0]
}

/// The sum of `f(x, y)` over one block.
#[inline(always)]
fn block(x: &[f32], y: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((xs, x_end), (ys, y_end)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] = f(x[i], y[i], lanes[i]);
        }
    }
    for ((l, &x), &y) in lanes.iter_mut().zip(x_end).zip(y_end) {
        *l = f(x, y, *l);
    }
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
fn blocks(x: &[f32], y: &[f32], f: impl Fn(f32, f32, f32) -> f32 + Copy) -> f32 {
    let n = x.len().min(y.len());
    if n <= BLOCK {
        return block(&x[..n], &y[..n], f);
    }
    x[..n].chunks(BLOCK).zip(y[..n].chunks(BLOCK)).map(|(x, y)| f64::from(block(x, y, f))).sum::<f64>() as f32
}

/// The maximum; NaN if there is one. −∞ of nothing.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    // A NaN on either side wins: the comparison with it is false.
    let larger = |a: f32, b: f32| if a > b || a.is_nan() { a } else { b };
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
    fold(lanes, larger)
}

wide! {
    /// Σ x.
    pub fn sum<F>(x: &[f32]) -> f32 {
        blocks(x, x, |x, _, s| s + x)
    }

    /// Σ x y.
    pub fn dot<F>(x: &[f32], y: &[f32]) -> f32 {
        blocks(x, y, F::fma)
    }

    /// Σ (x − `mean`)²: the second pass of a variance.
    pub fn sum_squared_deviations<F>(x: &[f32], mean: f32) -> f32 {
        blocks(x, x, |x, _, s| F::fma(x - mean, x - mean, s))
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

    /// The largest value: NaN if there is one, −∞ of nothing.
    pub fn max<F>(x: &[f32]) -> f32 {
        maximum(x)
    }

    /// `x = exp(x − shift)`; returns their sum.
    pub fn exp_shifted<F>(x: &mut [f32], shift: f32) -> f32 {
        for x in x.iter_mut() {
            *x = math::exp::<F>(*x - shift);
        }
        blocks(x, x, |x, _, s| s + x)
    }

    /// Softmax over each row of `width` values, in place: `exp(x − max) / Σ`. A row of −∞ alone gives NaN.
    pub fn softmax_rows<F>(x: &mut [f32], width: usize) {
        for row in x.chunks_mut(width.max(1)) {
            let shift = maximum(row);
            for x in row.iter_mut() {
                *x = math::exp::<F>(*x - shift);
            }
            let scale = 1.0 / blocks(row, row, |x, _, s| s + x);
            for x in row.iter_mut() {
                *x *= scale;
            }
        }
    }

    /// Gradient of softmax over each row of `width` values: `dx = y (dy − Σ y dy)`, or added to `dx`.
    pub fn softmax_rows_backward<F>(y: &[f32], dy: &[f32], dx: &mut [f32], width: usize, add: bool) {
        let width = width.max(1);
        for ((y, dy), dx) in y.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width)) {
            let inner = blocks(y, dy, F::fma);
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
