//! The plain text: two passes over each channel.

use super::{BIAS, BatchNorm, MEAN, Size, Statistics, VAR, WEIGHT, X, cpu};
use crate::ops::operator::{RefBackward, RefForward, Reference, ReferenceGrad};
use crate::scalar::{Scalar, sum};

/// Places of the numbers of channel `c`.
fn channel(s: Size, c: usize) -> impl Iterator<Item = usize> + Clone {
    (0..s.batch).flat_map(move |b| (0..s.space).map(move |i| (b * s.channels + c) * s.space + i))
}

impl BatchNorm {
    fn rstd<S: Scalar>(&self, variance: S) -> S {
        S::one() / (variance + S::of(f64::from(self.eps))).sqrt()
    }
}

impl Reference for BatchNorm {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let [x, weight, bias, running_mean, running_var] = io.x else { return };
        let s = Size::of(x.spec);
        for c in 0..s.channels {
            let (mean, rstd) = match self.statistics {
                Statistics::Running => (running_mean[c], self.rstd(running_var[c])),
                Statistics::Batch { momentum } => {
                    let n = S::count(s.n());
                    let mean = sum(channel(s, c).map(|i| x[i])) / n;
                    let square = |i: usize| {
                        let d = x[i] - mean;
                        d * d
                    };
                    let variance = sum(channel(s, c).map(square)) / n;
                    let m = f64::from(momentum);
                    let unbiased = s.n() as f64 / (s.n() as f64 - 1.0);
                    io.y[1][c] = running_mean[c] * S::of(1.0 - m) + mean * S::of(m);
                    io.y[2][c] = running_var[c] * S::of(1.0 - m) + variance * S::of(m * unbiased);
                    let rstd = self.rstd(variance);
                    (io.saved[0][c], io.saved[1][c]) = (mean, rstd);
                    (mean, rstd)
                }
            };
            let scale = weight[c] * rstd;
            for i in channel(s, c) {
                io.y[0][i] = (x[i] - mean) * scale + bias[c];
            }
        }
    }

    fn forward_cpu(&self, io: RefForward<'_, f32>) {
        cpu::forward(self, io);
    }
}

impl ReferenceGrad for BatchNorm {
    /// With z = (x − mean)·rstd, of the batch: dx = weight·rstd·(dy − avg(dy) − z·avg(dy·z)) and what the new statistics add.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, weight, _, running_mean, running_var], w) = (io.x, io.wanted()) else { return };
        let s = Size::of(x.spec);
        let n = S::count(s.n());
        let any = |inputs: &[usize]| inputs.iter().any(|&i| w.has(i));
        let batch = matches!(self.statistics, Statistics::Batch { .. });
        for c in 0..s.channels {
            let (mean, rstd) = match self.statistics {
                Statistics::Batch { .. } => (io.saved[0][c], io.saved[1][c]),
                Statistics::Running if any(&[X, WEIGHT, MEAN, VAR]) => {
                    (running_mean.get(c).copied().unwrap_or_default(), self.rstd(running_var[c]))
                }
                Statistics::Running => (S::zero(), S::zero()),
            };
            let z = |i: usize| (x[i] - mean) * rstd;
            let (shift, scale) = if batch { (X, X) } else { (MEAN, VAR) };
            let sum_dy = if any(&[shift, BIAS]) { sum(channel(s, c).map(|i| io.dy[0][i])) } else { S::zero() };
            let products = || sum(channel(s, c).map(|i| io.dy[0][i] * z(i)));
            let sum_dyz = any(&[scale, WEIGHT]).then(products).unwrap_or_default();
            let k = if any(if batch { &[X] } else { &[X, MEAN, VAR] }) { weight[c] * rstd } else { S::zero() };
            let [dx, dweight, dbias, dmean, dvar] = &mut *io.dx else { return };
            if let Some(d) = dweight {
                d[c] = sum_dyz;
            }
            if let Some(d) = dbias {
                d[c] = sum_dy;
            }
            if let Statistics::Batch { momentum } = self.statistics {
                let m = f64::from(momentum);
                let (g_mean, g_var) = (io.dy[1][c], io.dy[2][c]);
                if let Some(d) = dmean {
                    d[c] = g_mean * S::of(1.0 - m);
                }
                if let Some(d) = dvar {
                    d[c] = g_var * S::of(1.0 - m);
                }
                if let Some(dx) = dx {
                    let shift = k * sum_dy / n - g_mean * S::of(m / s.n() as f64);
                    let slope = k * sum_dyz / n - g_var * S::of(2.0 * m / (s.n() as f64 - 1.0)) / rstd;
                    channel(s, c).for_each(|i| dx[i] = io.dy[0][i] * k - shift - z(i) * slope);
                }
                continue;
            }
            if let Some(d) = dmean {
                d[c] = -(k * sum_dy);
            }
            if let Some(d) = dvar {
                d[c] = k * rstd * S::of(-0.5) * sum_dyz;
            }
            if let Some(dx) = dx {
                channel(s, c).for_each(|i| dx[i] = io.dy[0][i] * k);
            }
        }
    }

    fn backward_cpu(&self, io: RefBackward<'_, f32>) {
        cpu::backward(self, io);
    }
}
