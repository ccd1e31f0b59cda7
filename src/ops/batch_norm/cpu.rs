//! The CPU path: sums of each channel first, channels in parallel, then all numbers, rows in parallel.
//!
//! Partial sums are short or in f64, and added in the order of the samples.

use super::{BIAS, BatchNorm, MEAN, Size, Statistics, VAR, WEIGHT, X};
use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::threads::{self, Rows, RowsMut};
use crate::backend::cpu::vector;
use crate::ops::operator::{RefBackward, RefForward};

wide! {
    /// Σ dy·(x − mean).
    fn centred<F>(dy: &[f32], x: &[f32], mean: f32) -> f64 {
        let mut total = 0.0_f64;
        for (dy, x) in dy.chunks(4096).zip(x.chunks(4096)) {
            let mut sums = [0.0_f32; 32];
            let ((dys, dy_end), (xs, x_end)) = (dy.as_chunks::<32>(), x.as_chunks::<32>());
            for (dy, x) in dys.iter().zip(xs) {
                for l in 0..32 {
                    sums[l] = F::fma(dy[l], x[l] - mean, sums[l]);
                }
            }
            for ((s, &dy), &x) in sums.iter_mut().zip(dy_end).zip(x_end) {
                *s = F::fma(dy, x - mean, *s);
            }
            total += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
        }
        total
    }

    /// `to[c] += x[c]`.
    fn add_columns<F>(x: &[f32], to: &mut [f64]) {
        for (to, &x) in to.iter_mut().zip(x) {
            *to += f64::from(x);
        }
    }

    /// `to[c] += (x[c] − mean[c])²`.
    fn add_squares<F>(x: &[f32], mean: &[f64], to: &mut [f64]) {
        for ((to, &x), &mean) in to.iter_mut().zip(x).zip(mean) {
            let d = f64::from(x) - mean;
            *to += d * d;
        }
    }

    /// `to[c] += dy[c]·(x[c] − mean[c])`.
    fn add_products<F>(dy: &[f32], x: &[f32], mean: &[f32], to: &mut [f64]) {
        for (((to, &dy), &x), &mean) in to.iter_mut().zip(dy).zip(x).zip(mean) {
            *to += f64::from(dy) * (f64::from(x) - f64::from(mean));
        }
    }

    /// `y = (x − mean)·scale + bias` over one channel.
    fn affine<F>(x: &[f32], mean: f32, scale: f32, bias: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = F::fma(x - mean, scale, bias);
        }
    }

    /// The same where every number is of another channel.
    fn affine_columns<F>(x: &[f32], mean: &[f32], scale: &[f32], bias: &[f32], y: &mut [f32]) {
        for ((((y, &x), &mean), &scale), &bias) in y.iter_mut().zip(x).zip(mean).zip(scale).zip(bias) {
            *y = F::fma(x - mean, scale, bias);
        }
    }

    /// `dx = dy·k − shift − (x − mean)·slope` over one channel.
    fn gradient<F>(dy: &[f32], x: &[f32], constants: [f32; 4], dx: &mut [f32]) {
        let [mean, k, shift, slope] = constants;
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = F::fma(mean - x, slope, F::fma(dy, k, -shift));
        }
    }
}

/// Numbers of a channel range, sample after sample: `f(slice, sums)` where a slice holds `space` numbers for each channel.
fn each_sample(s: Size, first: usize, count: usize, mut f: impl FnMut(std::ops::Range<usize>)) {
    for b in 0..s.batch {
        let from = (b * s.channels + first) * s.space;
        f(from..from + count * s.space);
    }
}

/// Mean and biased variance of every channel.
fn statistics(s: Size, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (mut mean, mut variance) = (vec![0.0_f64; s.channels], vec![0.0_f64; s.channels]);
    let parts = (RowsMut::new(&mut mean, 1), RowsMut::new(&mut variance, 1));
    threads::rows(s.channels, 16 * s.n(), parts, |first, (mean, variance)| {
        let (mean, variance, n) = (mean.data, variance.data, s.n() as f64);
        each_sample(s, first, mean.len(), |at| {
            if s.space == 1 {
                return add_columns(&x[at], mean);
            }
            for (mean, x) in mean.iter_mut().zip(x[at].chunks(s.space)) {
                *mean += f64::from(vector::sum(x));
            }
        });
        mean.iter_mut().for_each(|m| *m /= n);
        each_sample(s, first, mean.len(), |at| {
            if s.space == 1 {
                return add_squares(&x[at], mean, variance);
            }
            for ((variance, &mean), x) in variance.iter_mut().zip(&*mean).zip(x[at].chunks(s.space)) {
                *variance += f64::from(vector::sum_squared_deviations(x, mean as f32));
            }
        });
        variance.iter_mut().for_each(|v| *v /= n);
    });
    (mean, variance)
}

pub(super) fn forward(op: &BatchNorm, io: RefForward<'_, f32>) {
    let ([x, weight, bias, running_mean, running_var], [y, new @ ..]) = (io.x, io.y) else { return };
    let s = Size::of(x.spec);
    let eps = f64::from(op.eps);
    let (mean, rstd): (Vec<f32>, Vec<f32>) = match op.statistics {
        Statistics::Running => {
            let rstd = running_var.iter().map(|&v| (1.0 / (f64::from(v) + eps).sqrt()) as f32).collect();
            (running_mean.to_vec(), rstd)
        }
        Statistics::Batch { momentum } => {
            let (mean, variance) = statistics(s, x);
            let m = f64::from(momentum);
            let unbiased = s.n() as f64 / (s.n() as f64 - 1.0);
            if let ([new_mean, new_var], [saved_mean, saved_rstd]) = (new, io.saved) {
                for c in 0..s.channels {
                    new_mean[c] = (f64::from(running_mean[c]) * (1.0 - m) + mean[c] * m) as f32;
                    new_var[c] = (f64::from(running_var[c]) * (1.0 - m) + variance[c] * (m * unbiased)) as f32;
                    saved_mean[c] = mean[c] as f32;
                    saved_rstd[c] = (1.0 / (variance[c] + eps).sqrt()) as f32;
                }
                (saved_mean.to_vec(), saved_rstd.to_vec())
            } else {
                return;
            }
        }
    };
    let scale: Vec<f32> = weight.iter().zip(&rstd).map(|(w, r)| w * r).collect();
    if s.space == 1 {
        let parts = (Rows::new(x, s.channels), RowsMut::new(y, s.channels));
        threads::rows(s.batch, 16 * s.channels, parts, |_, (x, y)| {
            for (x, y) in x.data.chunks(s.channels).zip(y.data.chunks_mut(s.channels)) {
                affine_columns(x, &mean, &scale, bias, y);
            }
        });
        return;
    }
    let parts = (Rows::new(x, s.space), RowsMut::new(y, s.space));
    threads::rows(s.batch * s.channels, 16 * s.space, parts, |first, (x, y)| {
        let width = s.space.max(1);
        for (row, (x, y)) in (first..).zip(x.data.chunks(width).zip(y.data.chunks_mut(width))) {
            let c = row % s.channels;
            affine(x, mean[c], scale[c], bias[c], y);
        }
    });
}

/// Σ dy and Σ dy·(x − mean) of every channel; the second only if x is there.
fn gradient_sums(s: Size, dy: &[f32], x: &[f32], mean: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (mut plain, mut product) = (vec![0.0_f64; s.channels], vec![0.0_f64; s.channels]);
    let parts = (RowsMut::new(&mut plain, 1), RowsMut::new(&mut product, 1), Rows::new(mean, 1));
    threads::rows(s.channels, 16 * s.n(), parts, |first, (plain, product, mean)| {
        let (plain, product) = (plain.data, product.data);
        each_sample(s, first, plain.len(), |at| {
            if s.space == 1 {
                add_columns(&dy[at.clone()], plain);
                if !x.is_empty() {
                    add_products(&dy[at.clone()], &x[at], mean.data, product);
                }
                return;
            }
            for (plain, dy) in plain.iter_mut().zip(dy[at.clone()].chunks(s.space)) {
                *plain += f64::from(vector::sum(dy));
            }
            if x.is_empty() {
                return;
            }
            let slices = dy[at.clone()].chunks(s.space).zip(x[at].chunks(s.space));
            for ((product, &mean), (dy, x)) in product.iter_mut().zip(mean.data).zip(slices) {
                *product += centred(dy, x, mean);
            }
        });
    });
    (plain, product)
}

pub(super) fn backward(op: &BatchNorm, io: RefBackward<'_, f32>) {
    let w = io.wanted();
    let ([x, weight, _, running_mean, running_var], [dy, new @ ..]) = (io.x, io.dy) else { return };
    let s = Size::of(x.spec);
    let (eps, n) = (f64::from(op.eps), s.n() as f64);
    let zeros = vec![0.0_f32; s.channels];
    let (mean, rstd): (&[f32], Vec<f64>) = match (op.statistics, io.saved) {
        (Statistics::Batch { .. }, [mean, rstd]) => (mean, rstd.iter().map(|&r| f64::from(r)).collect()),
        _ => {
            let mean = if running_mean.is_empty() { &zeros[..] } else { running_mean };
            (mean, running_var.iter().map(|&v| 1.0 / (f64::from(v) + eps).sqrt()).collect())
        }
    };
    let batch = match op.statistics {
        Statistics::Batch { momentum } => Some(f64::from(momentum)),
        Statistics::Running => None,
    };
    let needs_sums =
        [WEIGHT, BIAS].iter().any(|&i| w.has(i)) || if batch.is_some() { w.has(X) } else { w.has(MEAN) || w.has(VAR) };
    let (plain, product) = if needs_sums { gradient_sums(s, dy, x, mean) } else { Default::default() };
    let channel = |i: usize, value: &dyn Fn(usize) -> f64, dx: &mut [Option<&mut [f32]>]| {
        if let Some(d) = &mut dx[i] {
            d.iter_mut().enumerate().for_each(|(c, d)| *d = value(c) as f32);
        }
    };
    let k = |c: usize| f64::from(weight[c]) * rstd[c];
    channel(WEIGHT, &|c| product[c] * rstd[c], io.dx);
    channel(BIAS, &|c| plain[c], io.dx);
    match (batch, new) {
        (Some(m), [g_mean, g_var]) => {
            channel(MEAN, &|c| f64::from(g_mean[c]) * (1.0 - m), io.dx);
            channel(VAR, &|c| f64::from(g_var[c]) * (1.0 - m), io.dx);
            let Some(dx) = &mut io.dx[X] else { return };
            let constants: Vec<[f32; 4]> = (0..s.channels)
                .map(|c| {
                    let shift = (k(c) * plain[c] - m * f64::from(g_mean[c])) / n;
                    let slope = k(c) * product[c] * rstd[c] * rstd[c] / n - f64::from(g_var[c]) * 2.0 * m / (n - 1.0);
                    [mean[c], k(c) as f32, shift as f32, slope as f32]
                })
                .collect();
            spread(s, dy, x, &constants, dx);
        }
        _ => {
            channel(MEAN, &|c| -k(c) * plain[c], io.dx);
            channel(VAR, &|c| -0.5 * k(c) * rstd[c] * rstd[c] * product[c], io.dx);
            let Some(dx) = &mut io.dx[X] else { return };
            let constants: Vec<[f32; 4]> = (0..s.channels).map(|c| [0.0, k(c) as f32, 0.0, 0.0]).collect();
            spread(s, dy, &[], &constants, dx);
        }
    }
}

/// Every number's gradient from its channel's constants.
fn spread(s: Size, dy: &[f32], x: &[f32], constants: &[[f32; 4]], dx: &mut [f32]) {
    let row = s.channels * s.space;
    threads::rows(s.batch, 16 * row, (Rows::new(dy, row), RowsMut::new(dx, row)), |first, (dy, dx)| {
        let width = s.space.max(1);
        let slices = dy.data.chunks(width).zip(dx.data.chunks_mut(width));
        for (at, (dy, dx)) in (first * s.channels..).zip(slices) {
            let constants = constants[at % s.channels];
            match x.get(at * s.space..(at + 1) * s.space) {
                Some(x) if s.space > 1 => gradient(dy, x, constants, dx),
                Some(x) => {
                    let [mean, k, shift, slope] = constants;
                    dx.iter_mut().zip(dy).zip(x).for_each(|((dx, dy), x)| *dx = dy * k - shift - (x - mean) * slope);
                }
                None => dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy * constants[1]),
            }
        }
    });
}
