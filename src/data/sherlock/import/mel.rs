//! Mel spectra in dB, as the original's tool computes them.
//!
//! # Source
//! Slaney 1998, "Auditory Toolbox", for scale and areas of the bands; the defaults of librosa's `melspectrogram` and
//! `power_to_db` with `n_fft` 1024 and `hop_length` 256.

use std::f64::consts::TAU;

use rayon::prelude::*;

/// Samples a second of the sound that is analysed.
pub const RATE: u32 = 22_050;
/// Samples of a frame.
const FRAME: usize = 1024;
/// Samples from one frame to the next.
const HOP: usize = 256;
/// Frequencies of a frame, 0 to half the rate.
const BINS: usize = FRAME / 2 + 1;
/// Powers below are taken as this.
const LEAST_POWER: f64 = 1e-10;
/// What is quieter than the loudest by more is cut off, in dB.
const RANGE_DB: f64 = 80.0;

/// Hertz as mel: linear below 1000 Hz, logarithmic above.
fn mel(hz: f64) -> f64 {
    if hz < 1000.0 { 3.0 * hz / 200.0 } else { 15.0 + 27.0 * (hz / 1000.0).ln() / 6.4_f64.ln() }
}

fn hertz(mel: f64) -> f64 {
    if mel < 15.0 { 200.0 * mel / 3.0 } else { 1000.0 * (6.4_f64.ln() * (mel - 15.0) / 27.0).exp() }
}

/// The weights of `bands` triangles of equal area over the frequencies of a frame, `[bands, 513]`.
pub fn filterbank(bands: usize) -> Vec<f32> {
    let highest = mel(f64::from(RATE) / 2.0);
    let points: Vec<f64> = (0..bands + 2).map(|i| hertz(highest * i as f64 / (bands + 1) as f64)).collect();
    let mut weights = Vec::with_capacity(bands * BINS);
    for triangle in points.array_windows::<3>() {
        let [low, centre, high] = *triangle;
        weights.extend((0..BINS).map(|bin| {
            let hz = f64::from(RATE) * bin as f64 / FRAME as f64;
            let rise = (hz - low) / (centre - low);
            let fall = (high - hz) / (high - centre);
            (rise.min(fall).max(0.0) * 2.0 / (high - low)) as f32
        }));
    }
    weights
}

/// The spectrum of a sound of [`RATE`] samples a second in `bands` mel bands, `[columns, bands]`, in dB below the loudest: one
/// column every 256 samples, in the middle of a frame of 1024, with silence before and after the sound.
pub fn spectrum_db(sound: &[f32], bands: usize) -> Vec<f32> {
    let columns = 1 + sound.len() / HOP;
    let window: Vec<f64> = (0..FRAME).map(|i| 0.5 - 0.5 * (TAU * i as f64 / FRAME as f64).cos()).collect();
    let bank = Bank::new(bands);
    let fourier = Fourier::new(FRAME);
    let mut power = vec![0.0_f32; columns * bands];
    // Two frames share one complex transform.
    power.par_chunks_mut(2 * bands).enumerate().for_each(|(pair, out)| {
        let sample = |column: usize, i: usize| {
            let at = (column * HOP + i).checked_sub(FRAME / 2);
            at.and_then(|at| sound.get(at)).map_or(0.0, |&x| f64::from(x))
        };
        let framed = window.iter().enumerate().map(|(i, w)| [w * sample(2 * pair, i), w * sample(2 * pair + 1, i)]);
        let spectrum = fourier.transform(framed.collect());
        for (second, row) in out.chunks_exact_mut(bands).enumerate() {
            bank.apply(&powers(&spectrum, second == 1), row);
        }
    });
    decibels(&mut power);
    power
}

/// The bands' weights without the zeros: first frequency and weights of every band.
struct Bank(Vec<(usize, Vec<f64>)>);

impl Bank {
    fn new(bands: usize) -> Bank {
        let all = filterbank(bands);
        let rows = all.chunks_exact(BINS).map(|row| {
            let first = row.iter().position(|&w| w > 0.0).unwrap_or(0);
            let weights = row.iter().skip(first).take_while(|&&w| w > 0.0).map(|&w| f64::from(w)).collect();
            (first, weights)
        });
        Bank(rows.collect())
    }

    fn apply(&self, powers: &[f64], out: &mut [f32]) {
        for (x, (first, weights)) in out.iter_mut().zip(&self.0) {
            *x = powers.iter().skip(*first).zip(weights).map(|(p, w)| p * w).sum::<f64>() as f32;
        }
    }
}

/// Power at every frequency of the first or the second of two real signals that were transformed as one complex one.
fn powers(spectrum: &[[f64; 2]], second: bool) -> Vec<f64> {
    let n = spectrum.len();
    let at = |i: usize| spectrum.get(i % n).copied().unwrap_or_default();
    (0..=n / 2)
        .map(|i| {
            let ([a, b], [c, d]) = (at(i), at(n - i));
            let [re, im] = if second { [b + d, c - a] } else { [a + c, b - d] };
            (re * re + im * im) / 4.0
        })
        .collect()
}

/// Powers as dB below the greatest, at least −80.
fn decibels(power: &mut [f32]) {
    let db = |x: f64| 10.0 * x.max(LEAST_POWER).log10();
    let loudest = db(power.iter().fold(0.0_f64, |m, &x| m.max(f64::from(x))));
    power.iter_mut().for_each(|x| *x = (db(f64::from(*x)) - loudest).max(-RANGE_DB) as f32);
}

/// The mean spectrum of every TR of `tr` seconds, `[TRs, bands]`: of the columns from ⌊t₀·rate⌋ / 256 to ⌊t₁·rate⌋ / 256,
/// whole divisions. The last TR that is not full is left out.
pub fn by_tr(spectrum: &[f32], bands: usize, samples: usize, tr: f64) -> Vec<f32> {
    let trs = (samples as f64 / f64::from(RATE) / tr) as usize;
    let column = |i: usize| (i as f64 * tr * f64::from(RATE)) as usize / HOP;
    let mut out = Vec::with_capacity(trs * bands);
    for i in 0..trs {
        let (from, to) = (column(i), column(i + 1).max(column(i) + 1));
        let rows = spectrum.chunks_exact(bands).skip(from).take(to - from);
        let mut sums = vec![0.0_f64; bands];
        let mut count = 0.0_f64;
        for row in rows {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            count += 1.0;
        }
        out.extend(sums.iter().map(|sum| (sum / count.max(1.0)) as f32));
    }
    out
}

/// The discrete Fourier transform of a power of two of complex numbers `[re, im]`.
struct Fourier {
    // e^(−2πik/n) for k below n/2.
    turns: Vec<[f64; 2]>,
}

impl Fourier {
    fn new(n: usize) -> Fourier {
        let turn = |k: usize| {
            let (sin, cos) = (TAU * k as f64 / n as f64).sin_cos();
            [cos, -sin]
        };
        Fourier { turns: (0..n / 2).map(turn).collect() }
    }

    /// Cooley and Tukey's, radix 2.
    fn transform(&self, mut x: Vec<[f64; 2]>) -> Vec<[f64; 2]> {
        let n = x.len();
        let bits = n.trailing_zeros();
        for i in 0..n {
            let j = i.reverse_bits() >> (usize::BITS - bits);
            if i < j {
                x.swap(i, j);
            }
        }
        let mut half = 1;
        while half < n {
            let step = n / (2 * half);
            for block in x.chunks_exact_mut(2 * half) {
                let (low, high) = block.split_at_mut(half);
                for ((a, b), [c, s]) in low.iter_mut().zip(high).zip(self.turns.iter().step_by(step)) {
                    let turned = [b[0] * c - b[1] * s, b[0] * s + b[1] * c];
                    *b = [a[0] - turned[0], a[1] - turned[1]];
                    *a = [a[0] + turned[0], a[1] + turned[1]];
                }
            }
            half *= 2;
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filterbank_is_the_published_one() {
        let bank = filterbank(128);
        assert_eq!(bank.len(), 128 * 513);
        approx::assert_abs_diff_eq!(bank.iter().map(|&x| f64::from(x)).sum::<f64>(), 5.9417, epsilon = 5e-5);
        for (found, expected) in bank.iter().zip([0.0, 0.032_365_71, 0.012_807_24, 0.0]) {
            approx::assert_abs_diff_eq!(*found, expected, epsilon = 1e-7);
        }
        assert!(bank.chunks_exact(513).all(|row| row.iter().any(|&w| w > 0.0)), "no band of 128 is empty");
    }

    #[test]
    fn two_frames_in_one_transform_have_the_powers_of_each() {
        let (n, fourier) = (16, Fourier::new(16));
        let signals: Vec<[f64; 2]> = (0..n).map(|i| [(i * i % 7) as f64, (i * 5 % 11) as f64 - 4.0]).collect();
        let spectrum = fourier.transform(signals.clone());
        for which in 0..2 {
            let found = powers(&spectrum, which == 1);
            for (k, &power) in found.iter().enumerate() {
                let part = |f: fn(f64) -> f64| {
                    (0..n).map(|i| signals[i][which] * f(TAU * (i * k) as f64 / n as f64)).sum::<f64>()
                };
                let expected = part(f64::cos).powi(2) + part(f64::sin).powi(2);
                approx::assert_abs_diff_eq!(power, expected, epsilon = 1e-9);
            }
        }
    }

    #[test]
    fn a_tone_is_loudest_in_its_band_and_nothing_is_more_than_80_db_below() {
        let tone: Vec<f32> =
            (0..RATE as usize * 4).map(|i| (TAU * 1000.0 * i as f64 / f64::from(RATE)).sin() as f32).collect();
        let spectrum = spectrum_db(&tone, 128);
        assert_eq!(spectrum.len(), 128 * (1 + tone.len() / 256));
        let column = &spectrum[100 * 128..101 * 128];
        let loudest = (0..128).max_by(|&a, &b| column[a].total_cmp(&column[b])).unwrap();
        let highest = mel(11_025.0);
        let centre = hertz(highest * (loudest + 1) as f64 / 129.0);
        assert!((centre - 1000.0).abs() < 30.0, "{centre}");
        assert!(column[loudest] > -0.5 && column[127] < -60.0, "{} {}", column[loudest], column[127]);
        assert!(spectrum.iter().all(|x| (-80.0..=0.0).contains(x)));
        let trs = by_tr(&spectrum, 128, tone.len(), 1.5);
        assert_eq!(trs.len(), 2 * 128);
        approx::assert_abs_diff_eq!(trs[128 + loudest], column[loudest], epsilon = 0.1);
    }

    #[test]
    fn silence_is_0_db_below_itself_and_a_sound_shorter_than_a_tr_has_none() {
        assert!(spectrum_db(&[0.0; 1000], 8).iter().all(|&x| x == 0.0));
        assert!(by_tr(&[0.0; 8], 8, 1000, 1.5).is_empty());
        // The published TR has 129 columns.
        let column = |i: usize| (i as f64 * 1.5 * 22_050.0) as usize / 256;
        assert_eq!((column(1) - column(0), column(4) - column(3)), (129, 129));
    }
}
