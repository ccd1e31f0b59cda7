//! Sound at another rate.
//!
//! # Source
//! Smith, "Digital Audio Resampling": a windowed sinc, read at the places of the new samples. Kaiser's window with β 14.77,
//! 64 zero crossings each side, cut at 0.9476 of half the lower rate: what falls into the band that is kept from above it is
//! more than 100 dB down.

use std::f64::consts::PI;

use rayon::prelude::*;

/// Zero crossings of the sinc each side.
const CROSSINGS: f64 = 64.0;
/// Kaiser's β.
const BETA: f64 = 14.769_656_459_379_492;
/// Where the band ends, as a part of half the lower rate.
const ROLLOFF: f64 = 0.947_593_709_269_054_2;

/// `sound` of `from` samples a second at `to` samples a second: ⌈n·to/from⌉ samples, the first at the same time.
pub(super) fn resample(sound: &[f32], from: u32, to: u32) -> Vec<f32> {
    if from == to || from == 0 || to == 0 {
        return sound.to_vec();
    }
    let common = gcd(from, to);
    let (up, down) = ((to / common) as usize, (from / common) as usize);
    let count = (sound.len() * up).div_ceil(down);
    // Below 1 the new rate's band is the narrower one.
    let scale = (up as f64 / down as f64).min(1.0) * ROLLOFF;
    let reach = (CROSSINGS / scale).ceil() as usize;
    let taps = 2 * reach;
    // New sample n lies at n·down/up: its fraction repeats after `up` samples.
    let phases: Vec<Vec<f64>> = (0..up)
        .into_par_iter()
        .map(|phase| {
            let fraction = phase as f64 / up as f64;
            (0..taps).map(|k| tap(k as f64 - (reach - 1) as f64 - fraction, scale)).collect()
        })
        .collect();
    (0..count)
        .into_par_iter()
        .map(|n| {
            let (whole, phase) = (n * down / up, n * down % up);
            let weights = phases.get(phase).map_or(&[] as &[f64], Vec::as_slice);
            // The first tap belongs to the sample `reach − 1` before.
            let skipped = (reach - 1).saturating_sub(whole);
            let first = (whole + skipped + 1).saturating_sub(reach);
            let samples = sound.iter().skip(first);
            weights.iter().skip(skipped).zip(samples).map(|(w, &x)| w * f64::from(x)).sum::<f64>() as f32
        })
        .collect()
}

/// The windowed sinc `x` samples from its middle.
fn tap(x: f64, scale: f64) -> f64 {
    let place = x * scale / CROSSINGS;
    if place.abs() >= 1.0 {
        return 0.0;
    }
    let turn = PI * x * scale;
    let sinc = if turn == 0.0 { 1.0 } else { turn.sin() / turn };
    scale * sinc * bessel(BETA * (1.0 - place * place).sqrt()) / bessel(BETA)
}

/// The modified Bessel function of order 0, by its series.
fn bessel(x: f64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    let mut k = 1.0;
    while term > 1e-17 * sum {
        term *= (x / (2.0 * k)).powi(2);
        sum += term;
        k += 1.0;
    }
    sum
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f64, rate: u32, samples: usize) -> Vec<f32> {
        (0..samples).map(|i| (2.0 * PI * hz * i as f64 / f64::from(rate)).sin() as f32).collect()
    }

    #[test]
    fn a_tone_is_the_same_tone_at_the_other_rate() {
        for from in [8000, 16_000, 22_050, 44_100, 48_000] {
            let out = resample(&tone(440.0, from, from as usize), from, 22_050);
            assert_eq!(out.len(), 22_050, "{from}");
            let expected = tone(440.0, 22_050, 22_050);
            for i in 500..21_500 {
                assert!((out[i] - expected[i]).abs() < 2e-5, "{from}, {i}: {} {}", out[i], expected[i]);
            }
        }
    }

    #[test]
    fn what_the_new_rate_cannot_hold_is_gone() {
        let out = resample(&tone(15_000.0, 48_000, 48_000), 48_000, 22_050);
        assert!(out[500..21_500].iter().all(|x| x.abs() < 1e-5));
        assert!(resample(&[], 48_000, 22_050).is_empty());
    }
}
