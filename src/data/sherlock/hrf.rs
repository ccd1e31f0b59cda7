//! The haemodynamic response: how blood answers a moment of activity, and stimuli convolved with it.
//!
//! # Source
//! Glover 1999, "Deconvolution of impulse response in event-related BOLD fMRI", in the form of
//! ContextLab/giblet-responses@4691d10 `giblet/alignment/hrf.py`, scaled to a peak of 1.

use std::ops::Range;

use rayon::prelude::*;

use super::config::HrfAlignment;

/// How long the response lasts, in seconds.
const LENGTH_S: f64 = 32.0;

/// The response at every TR from the stimulus on, its largest number 1: two gamma densities, the second subtracted.
///
/// With N = round(32 s / `tr`) samples, h(t) = g(t; 6/0.9) − 0.48·g(t; 12/0.9) at t = 32·k/(N − 1), where g is the gamma
/// density of scale 0.9 that starts at `tr`. For 1.5 s: 21 samples, the peak at the fourth TR after the stimulus. At least
/// two samples.
pub fn glover(tr: f64) -> Vec<f64> {
    let samples = ((LENGTH_S / tr).round() as usize).max(2);
    let mut h: Vec<f64> = (0..samples)
        .map(|k| {
            let t = LENGTH_S * k as f64 / (samples - 1) as f64;
            gamma_density(t - tr, 6.0 / 0.9) - 0.48 * gamma_density(t - tr, 12.0 / 0.9)
        })
        .collect();
    let peak = h.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    if peak > 0.0 {
        h.iter_mut().for_each(|x| *x /= peak);
    }
    h
}

/// The gamma density of shape `a` and scale 0.9.
fn gamma_density(t: f64, a: f64) -> f64 {
    if t <= 0.0 {
        return 0.0;
    }
    let x = t / 0.9;
    ((a - 1.0) * x.ln() - x - libm::lgamma(a)).exp() / 0.9
}

/// The response, laid out in time.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    taps: Vec<f64>,
    // Tap j of the answer at TR t belongs to the stimulus at TR t + lead − j.
    lead: usize,
}

impl Response {
    /// The response of Glover at this TR (in seconds), with its place in time.
    pub fn new(tr: f64, alignment: HrfAlignment) -> Response {
        let taps = glover(tr);
        let lead = match alignment {
            HrfAlignment::Causal => 0,
            HrfAlignment::Centered => taps.len() / 2,
        };
        Response { taps, lead }
    }

    /// How many TRs of stimulus decide about one TR of the answer.
    pub fn len(&self) -> usize {
        self.taps.len()
    }

    /// Whether there is none: never.
    pub fn is_empty(&self) -> bool {
        self.taps.is_empty()
    }

    /// The taps that fall on the TRs `0..rows` for the answer at `t`: which TR, and its weight.
    fn places(&self, t: usize, rows: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        let ahead = t + self.lead;
        self.taps.iter().enumerate().filter_map(move |(j, &h)| {
            let at = ahead.checked_sub(j)?;
            (at < rows).then_some((at, h))
        })
    }

    /// Convolves `rows` of `width` numbers with the response along time; before and after them there is silence.
    ///
    /// Sums in f64, in the order of the taps, so that threads change nothing.
    pub fn convolve(&self, stimulus: &[f32], width: usize) -> Vec<f32> {
        let width = width.max(1);
        let rows = stimulus.len() / width;
        let mut out = vec![0.0_f32; rows * width];
        out.par_chunks_mut(width).enumerate().for_each(|(t, row)| self.convolve_row(stimulus, width, t, rows, row));
        out
    }

    /// As [`convolve`](Response::convolve), from f64 to f64.
    pub(super) fn convolve_f64(&self, stimulus: &[f64], width: usize) -> Vec<f64> {
        let rows = stimulus.len() / width.max(1);
        let mut out = vec![0.0; stimulus.len()];
        for (t, row) in out.chunks_exact_mut(width.max(1)).enumerate() {
            for (at, h) in self.places(t, rows) {
                row.iter_mut().zip(stimulus.iter().skip(at * width)).for_each(|(y, x)| *y += h * x);
            }
        }
        out
    }

    fn convolve_row(&self, stimulus: &[f32], width: usize, t: usize, rows: usize, out: &mut [f32]) {
        // Few numbers at once, so that the sums stay in the nearest cache while the taps pass over them.
        const BLOCK: usize = 512;
        for start in (0..width).step_by(BLOCK) {
            let columns: Range<usize> = start..(start + BLOCK).min(width);
            let mut sums = [0.0_f64; BLOCK];
            for (at, h) in self.places(t, rows) {
                let row = stimulus.get(at * width + columns.start..at * width + columns.end).unwrap_or_default();
                for (sum, &x) in sums.iter_mut().zip(row) {
                    *sum += h * f64::from(x);
                }
            }
            for (y, sum) in out.iter_mut().skip(columns.start).zip(&sums).take(columns.len()) {
                *y = *sum as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_response_at_the_published_tr_is_the_published_table() {
        let table = [
            0.0,
            5.55e-8,
            0.088_066_9,
            0.637_804,
            1.0,
            0.774_262,
            0.307_552,
            -0.065_416_4,
            -0.239_095,
            -0.254_706,
            -0.195_108,
            -0.123_318,
            -0.067_915_8,
            -0.033_586_1,
            -0.015_209_4,
            -0.006_396_46,
            -0.002_525_10,
            -9.435_66e-4,
            -3.360_16e-4,
            -1.146_72e-4,
            -3.767_68e-5,
        ];
        let h = glover(1.5);
        assert_eq!(h.len(), table.len());
        for (k, (found, expected)) in h.iter().zip(table).enumerate() {
            approx::assert_relative_eq!(*found, expected, max_relative = 2e-3, epsilon = 1e-12);
            if k > 1 {
                approx::assert_relative_eq!(*found, expected, max_relative = 5e-6);
            }
        }
        approx::assert_abs_diff_eq!(h.iter().sum::<f64>(), 1.80298, epsilon = 1e-5);
        assert_eq!(glover(100.0).len(), 2);
    }

    #[test]
    fn the_response_follows_the_stimulus_by_six_seconds_or_precedes_it_when_centred() {
        let mut impulse = vec![0.0; 2 * 100];
        impulse[2 * 50 + 1] = 1.0;
        for (alignment, peak) in [(HrfAlignment::Causal, 54), (HrfAlignment::Centered, 44)] {
            let out = Response::new(1.5, alignment).convolve(&impulse, 2);
            let at = (0..100).max_by(|&a, &b| out[2 * a + 1].total_cmp(&out[2 * b + 1])).unwrap();
            assert_eq!((at, out[2 * at + 1]), (peak, 1.0), "{alignment:?}");
            assert!(out.iter().step_by(2).all(|&x| x == 0.0), "the other column stays silent");
        }
    }

    #[test]
    fn a_constant_stimulus_settles_at_the_sum_of_the_response() {
        // More columns than a block, so that both kinds of block are seen.
        let out = Response::new(1.5, HrfAlignment::Causal).convolve(&vec![2.0; 40 * 700], 700);
        assert_eq!(out[..700], [0.0; 700]);
        assert!(out[30 * 700..].iter().all(|&x| (x - 2.0 * 1.80298).abs() < 1e-4));
        assert!(Response::new(1.5, HrfAlignment::Causal).convolve(&[], 3).is_empty());
    }
}
