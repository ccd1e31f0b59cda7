//! What the normalisations of rows share on the CPU: the loops over a row, and a backward pass that reads each row once for
//! all gradients.

use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::vector;
use crate::ops::blocks::{Floats, In, Out, TOUCH, map, sum_rows};

/// Numbers of a unit of backward work: its rows add up their own parameter gradients.
const UNIT: usize = 32 * 1024;

/// How many rows of `c` numbers make a unit.
pub(super) fn unit_rows(c: usize) -> usize {
    (UNIT / c.max(1)).clamp(8, 64)
}

wide! {
    /// `y = (x − mean) · rstd · gamma + beta`, `at` being mean and rstd, here and below.
    pub(super) fn normalise<F>(x: &[f32], at: (f32, f32), gamma: &[f32], beta: &[f32], y: &mut [f32]) {
        let (mean, rstd) = at;
        for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = F::fma((x - mean) * rstd, g, b);
        }
    }

    /// `y = x · rstd · weight`.
    pub(super) fn rescale<F>(x: &[f32], rstd: f32, weight: &[f32], y: &mut [f32]) {
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * rstd * w;
        }
    }

    /// (Σ g, Σ g·n) with `g = dy · gamma`, `n = (x − mean) · rstd`, in 32 lanes.
    fn gradient_sums<F>(x: &[f32], dy: &[f32], gamma: &[f32], at: (f32, f32)) -> (f32, f32) {
        let (mean, rstd) = at;
        let (mut g_sums, mut gn_sums) = ([0.0_f32; 32], [0.0_f32; 32]);
        let rows = x.as_chunks::<32>().0.iter().zip(dy.as_chunks::<32>().0).zip(gamma.as_chunks::<32>().0);
        for ((x, dy), gamma) in rows {
            for i in 0..32 {
                let g = dy[i] * gamma[i];
                g_sums[i] += g;
                gn_sums[i] = F::fma(g, (x[i] - mean) * rstd, gn_sums[i]);
            }
        }
        let done = x.len() / 32 * 32;
        for (i, ((&x, &dy), &gamma)) in x[done..].iter().zip(&dy[done..]).zip(&gamma[done..]).enumerate() {
            let g = dy * gamma;
            g_sums[i] += g;
            gn_sums[i] = F::fma(g, (x - mean) * rstd, gn_sums[i]);
        }
        let mut n = 32;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                g_sums[i] += g_sums[i + n];
                gn_sums[i] += gn_sums[i + n];
            }
        }
        (g_sums[0], gn_sums[0])
    }

    /// `dx = (dy · gamma − avg_g − n · avg_gn) · rstd`.
    fn gradient<F>(x: &[f32], dy: &[f32], gamma: &[f32], at: (f32, f32), averages: (f32, f32), dx: &mut [f32]) {
        let ((mean, rstd), (avg_g, avg_gn)) = (at, averages);
        for (((dx, &x), &dy), &g) in dx.iter_mut().zip(x).zip(dy).zip(gamma) {
            let n = (x - mean) * rstd;
            // dy · g is rounded before the average is taken away, as the average was: in a row of one they cancel.
            *dx = F::fma(-n, avg_gn, dy * g - avg_g) * rstd;
        }
    }

    /// `sums = sums + dy · (x − mean) · rstd`.
    fn add_gamma_gradient<F>(x: &[f32], dy: &[f32], at: (f32, f32), sums: &mut [f32]) {
        let (mean, rstd) = at;
        for ((s, &x), &dy) in sums.iter_mut().zip(x).zip(dy) {
            *s = F::fma(dy, (x - mean) * rstd, *s);
        }
    }
}

/// Operands of the backward pass over rows of `c` numbers.
pub(super) struct RowBackward<'a> {
    pub(super) c: usize,
    pub(super) x: Floats<'a>,
    pub(super) dy: Floats<'a>,
    /// Empty unless `dx` is wanted.
    pub(super) gamma: &'a [f32],
    /// `None`: nothing was subtracted, and its gradient does not flow back.
    pub(super) mean: Option<&'a [f32]>,
    pub(super) rstd: &'a [f32],
}

impl RowBackward<'_> {
    /// Computes those gradients that have a place.
    pub(super) fn run(&self, dx: Option<Out<'_>>, dgamma: Option<Out<'_>>, dbeta: Option<Out<'_>>) {
        let (c, rows) = (self.c, self.rstd.len());
        let tall = unit_rows(c);
        let (units, width) = (rows.div_ceil(tall), tall * c);
        let x = || [In::new(self.x, width), In::new(self.dy, width)];
        if dgamma.is_none() && dbeta.is_none() {
            if let Some(dx) = dx {
                map(units, 2 * TOUCH * width, x(), [dx.rows_of(width)], |unit, x, [dx]| {
                    self.rows(unit * tall, x, Some(dx), None);
                });
            }
            return;
        }
        let (mut gamma_sums, mut beta_sums) = (vec![0.0; units * c], vec![0.0; units * c]);
        let sums = [Out::f32(&mut gamma_sums, c), Out::f32(&mut beta_sums, c)];
        match dx {
            Some(dx) => {
                let [gamma, beta] = sums;
                let y = [dx.rows_of(width), gamma, beta];
                map(units, 3 * TOUCH * width, x(), y, |unit, x, [dx, gamma, beta]| {
                    self.rows(unit * tall, x, Some(dx), Some((gamma, beta)));
                });
            }
            None => map(units, 2 * TOUCH * width, x(), sums, |unit, x, [gamma, beta]| {
                self.rows(unit * tall, x, None, Some((gamma, beta)));
            }),
        }
        for (to, sums) in [(dgamma, &gamma_sums), (dbeta, &beta_sums)] {
            if let Some(to) = to {
                sum_rows([Floats::F32(sums)], (units, c), to, |[s], to| vector::add_in_place(s, to));
            }
        }
    }

    /// The rows from `first` on, each visited once: `dx` of a row, and what it adds to its unit's parameter gradients.
    fn rows(&self, first: usize, [x, dy]: [&[f32]; 2], dx: Option<&mut [f32]>, sums: Option<(&mut [f32], &mut [f32])>) {
        let (c, tall) = (self.c, unit_rows(self.c));
        let (mut dx, mut sums) = (dx, sums);
        if let Some((gamma, beta)) = &mut sums {
            gamma.fill(0.0);
            beta.fill(0.0);
        }
        for (r, (x, dy)) in x.chunks(c).zip(dy.chunks(c)).enumerate() {
            let at = (self.mean.map_or(0.0, |m| m[first + r]), self.rstd[first + r]);
            if let Some(dx) = dx.as_deref_mut() {
                let (sum_g, sum_gn) = gradient_sums(x, dy, self.gamma, at);
                let avg_g = if self.mean.is_some() { sum_g / c as f32 } else { 0.0 };
                gradient(x, dy, self.gamma, at, (avg_g, sum_gn / c as f32), &mut dx[r * c..][..c]);
            }
            let Some((gamma, beta)) = &mut sums else { continue };
            let unit = r / tall * c..(r / tall + 1) * c;
            add_gamma_gradient(x, dy, at, &mut gamma[unit.clone()]);
            if self.mean.is_some() {
                vector::add_in_place(dy, &mut beta[unit]);
            }
        }
    }
}
