//! A film without a story and brains whose answer to it is known, so that success can be measured.
//!
//! Features z_k(t) in (−1, 1) wander through time. Every frame, spectrum and embedding is a fixed pattern plus a sum of
//! patterns weighted by features; feature k is shown by modality k mod 3 alone, so that a model needs all three. The brain
//! of every subject is `W · (h ∗ z) + noise`, with the causal response h and the same W for all, and noise of its own.
//!
//! # What can be reached
//! In a voxel whose answer s has variance q times that of the noise over the time that is held out, the best prediction of
//! all, s itself, correlates with the scan as `√(q / (1 + q))`. Least squares on p known features and a constant, from the
//! scans X of S subjects, is off by e of variance `g = tr(C (XᵀX)⁻¹) / S` in units of the noise's, C being the covariance
//! of the features over the time that is held out, and correlates as `q / √((q + g)(q + 1))`. X is known before any noise is
//! drawn, so both numbers are derived, not measured. A model that learns features reaches the second one when it has found
//! these and no others; each further direction that it fits to noise adds about 1 / (S·TRs) to g.

use std::f64::consts::TAU;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::config::HrfAlignment;
use super::hrf::Response;
use super::manifest::{MANIFEST, Manifest};
use crate::error::{Error, Faults, Result};
use crate::io::atomic::{Existing, write_atomic};
use crate::io::npy;
use crate::rng::Stream;

/// Separates the streams of synthetic data from other uses of the same seed.
const FEATURES: u64 = 0x4645_4154;
const PATTERNS: u64 = 0x5041_5454;
const WEIGHTS: u64 = 0x5745_4947;
const NOISE: u64 = 0x4E4F_4953;

/// How much of a feature lasts to the next TR.
const MEMORY: f64 = 0.6;
/// Seconds from one volume to the next.
const TR: f64 = 1.5;
/// Part of the time that is trained on, as by default.
const TRAIN: f64 = 0.8;

/// What to write. [`Default`] is small enough to be trained on in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticSherlock {
    /// Rows of a frame.
    pub height: usize,
    /// Columns of a frame.
    pub width: usize,
    /// Mel bands.
    pub mels: usize,
    /// Numbers of an embedding.
    pub text: usize,
    /// Voxels of a brain.
    pub voxels: usize,
    /// Subjects.
    pub subjects: usize,
    /// TRs of the film.
    pub trs: usize,
    /// Features K, at least 3: one a modality.
    pub features: usize,
    /// Variance of a voxel's answer over that of its noise.
    pub snr: f64,
    /// Seed of everything.
    pub seed: u64,
    /// Whether stimuli are written as f16.
    pub half: bool,
    /// Whether files of the same names are replaced.
    pub overwrite: bool,
}

impl Default for SyntheticSherlock {
    fn default() -> SyntheticSherlock {
        SyntheticSherlock {
            height: 16,
            width: 32,
            mels: 32,
            text: 64,
            voxels: 200,
            subjects: 2,
            trs: 500,
            features: 6,
            snr: 1.0,
            seed: 0,
            half: false,
            overwrite: false,
        }
    }
}

/// What a model can reach on the time that is held out, as the mean of all voxels' correlations over time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Attainable {
    /// By the answer without noise: no prediction does better.
    pub ceiling: f64,
    /// By least squares on the true features, from the time that is trained on.
    pub linear: f64,
}

/// What is known of a synthetic data set.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Features convolved with the response, `[TRs, K]`.
    pub features: Vec<f64>,
    /// W, `[K, voxels]`.
    pub weights: Vec<f64>,
    /// Deviation of the noise, `[voxels]`.
    pub noise: Vec<f64>,
    /// What can be reached.
    pub attainable: Attainable,
}

/// The modalities, in the order of features.
#[derive(Clone, Copy)]
enum Modality {
    Video,
    Audio,
    Text,
}

impl SyntheticSherlock {
    /// The files that [`SyntheticSherlock::write`] writes below `root`, the manifest last.
    pub fn files(&self, root: &Path) -> Vec<PathBuf> {
        let manifest = Manifest::usual(TR, 1..=self.subjects, false);
        let mut names = vec![manifest.video, manifest.audio, manifest.text];
        names.extend(manifest.subjects.into_iter().map(|s| s.fmri));
        names.extend(
            ["truth/features.npy", "truth/weights.npy", "truth/noise.npy", "truth/truth.json", MANIFEST]
                .map(PathBuf::from),
        );
        names.into_iter().map(|name| root.join(name)).collect()
    }

    /// Writes the film, the brains and what is known of them below `root`. The same seed gives the same files.
    ///
    /// # Errors
    /// [`Error::Argument`] if a size cannot be; [`Error::Data`] if a file exists and may not be replaced; [`Error::Io`] if
    /// the system refuses.
    pub fn write(&self, root: &Path, mut progress: impl FnMut(usize, usize, &Path)) -> Result<Truth> {
        self.check()?;
        let files = self.files(root);
        self.check_target(&files)?;
        fs::create_dir_all(root.join("truth")).map_err(Error::io("create", root))?;
        let features = self.wandering();
        let truth = self.truth(&features)?;
        let total = files.len();
        let mut left = files.iter().enumerate();
        let mut next = |write: &mut dyn FnMut(&Path) -> Result<()>| -> Result<()> {
            if let Some((done, path)) = left.next() {
                write(path)?;
                progress(done + 1, total, path);
            }
            Ok(())
        };
        let stimuli = [
            (Modality::Video, vec![self.trs, self.height, self.width, 3]),
            (Modality::Audio, vec![self.trs, self.mels]),
            (Modality::Text, vec![self.trs, self.text]),
        ];
        for (modality, shape) in stimuli {
            let numbers = self.stimulus(modality, &features);
            let write = if self.half { npy::write_f16 } else { npy::write_f32 };
            next(&mut |path| write(path, self.existing(), &shape, &numbers))?;
        }
        for subject in 1..=self.subjects {
            let numbers = self.brain(subject, &truth);
            next(&mut |path| npy::write_f32(path, self.existing(), &[self.trs, self.voxels], &numbers))?;
        }
        let (k, v) = (self.features, self.voxels);
        next(&mut |path| npy::write_f64(path, self.existing(), &[self.trs, k], &truth.features))?;
        next(&mut |path| npy::write_f64(path, self.existing(), &[k, v], &truth.weights))?;
        next(&mut |path| npy::write_f64(path, self.existing(), &[v], &truth.noise))?;
        next(&mut |path| self.write_report(path, truth.attainable))?;
        next(&mut |_| Manifest::usual(TR, 1..=self.subjects, false).write(root, self.existing()))?;
        Ok(truth)
    }

    fn existing(&self) -> Existing {
        if self.overwrite { Existing::Replace } else { Existing::Refuse }
    }

    fn check(&self) -> Result<()> {
        let named = [
            ("height", self.height, 1, 1 << 13),
            ("width", self.width, 1, 1 << 13),
            ("mels", self.mels, 1, 1 << 14),
            ("text", self.text, 1, 1 << 16),
            ("voxels", self.voxels, 1, 1 << 22),
            ("subjects", self.subjects, 1, 1000),
            ("features", self.features, 3, 1000),
            ("trs", self.trs, 2 * self.features.saturating_add(30), 1 << 20),
        ];
        for (name, n, least, most) in named {
            if n < least || n > most {
                return Err(Error::argument(format!(
                    "synthetic sherlock: {name}: expected {least} to {most}, found {n}"
                )));
            }
        }
        if !(self.snr > 0.0 && self.snr <= 1e6) {
            let found = self.snr;
            return Err(Error::argument(format!(
                "synthetic sherlock: snr: expected a number above 0 and at most 1e6, found {found}"
            )));
        }
        let largest = (self.height * self.width * 3).max(self.voxels).max(self.text);
        if self.trs.checked_mul(largest).is_none_or(|n| n > 1 << 32) {
            return Err(Error::argument("synthetic sherlock: expected at most 16 GiB a file, found more"));
        }
        Ok(())
    }

    fn check_target(&self, files: &[PathBuf]) -> Result<()> {
        let mut faults = Faults::new();
        for file in files.iter().filter(|f| !self.overwrite && f.symlink_metadata().is_ok()) {
            faults.push(format!("{}: exists already; remove it or ask to overwrite it", file.display()));
        }
        faults.into_result(Error::Data)
    }

    /// The features, `[TRs, K]`: tanh of a process that keeps `MEMORY` of itself each TR and has variance 1.
    fn wandering(&self) -> Vec<f64> {
        let mut features = vec![0.0; self.trs * self.features];
        for k in 0..self.features {
            let stream = Stream::of(self.seed, &[FEATURES, k as u64]);
            let mut state = stream.normal(0);
            for (t, z) in features.iter_mut().skip(k).step_by(self.features).enumerate() {
                *z = state.tanh();
                state = MEMORY * state + (1.0 - MEMORY * MEMORY).sqrt() * stream.normal(t as u64 + 1);
            }
        }
        features
    }

    /// Which features a modality shows.
    fn shown(&self, modality: Modality) -> Vec<usize> {
        (modality as usize..self.features).step_by(3).collect()
    }

    /// The frames, spectra or embeddings, `[TRs, ...]`.
    fn stimulus(&self, modality: Modality, features: &[f64]) -> Vec<f32> {
        let shown = self.shown(modality);
        let share = 1.0 / shown.len().max(1) as f64;
        let (width, middle, scale) = match modality {
            // Within [0.05, 0.95], without a clamp, which would not be linear.
            Modality::Video => (self.height * self.width * 3, 0.5, 0.45 * share),
            // From −70 to −10 dB.
            Modality::Audio => (self.mels, -40.0, 30.0 * share),
            Modality::Text => (self.text, 0.0, 0.5 * share),
        };
        let patterns: Vec<Vec<f64>> = shown.iter().map(|&k| self.pattern(modality, k, width)).collect();
        // An embedding of a length of about 1 even where all features are 0.
        let constant = match modality {
            Modality::Text => self.pattern(modality, self.features, width),
            Modality::Video | Modality::Audio => vec![middle; width],
        };
        let mut numbers = vec![0.0_f32; self.trs * width];
        let rows = numbers.par_chunks_mut(width).zip(features.par_chunks(self.features));
        rows.for_each(|(row, z)| {
            for (i, x) in row.iter_mut().enumerate() {
                let at = |list: &Vec<f64>| list.get(i).copied().unwrap_or_default();
                let weighted = |(pattern, &k): (&Vec<f64>, &usize)| at(pattern) * z.get(k).copied().unwrap_or_default();
                *x = (at(&constant) + scale * patterns.iter().zip(&shown).map(weighted).sum::<f64>()) as f32;
            }
        });
        numbers
    }

    /// What feature `k` looks or sounds like: waves for frames and spectra, a random direction for embeddings.
    fn pattern(&self, modality: Modality, k: usize, width: usize) -> Vec<f64> {
        let stream = Stream::of(self.seed, &[PATTERNS, modality as u64, k as u64]);
        let turn = |i: u64| TAU * f64::from(stream.uniform(i));
        let waves = |i: u64, most: u64| stream.below(i, most) as f64 + 1.0;
        match modality {
            Modality::Video => {
                let (down, across) = (waves(8, 3), waves(9, 4));
                let place = |i: usize| (i / 3 / self.width, i / 3 % self.width, (i % 3) as u64);
                let wave = |(y, x, c): (usize, usize, u64)| {
                    (TAU * (down * y as f64 / self.height as f64 + across * x as f64 / self.width as f64) + turn(c))
                        .cos()
                };
                (0..width).map(|i| wave(place(i))).collect()
            }
            Modality::Audio => {
                let (along, start) = (waves(8, 4), turn(0));
                (0..width).map(|i| (TAU * along * i as f64 / width as f64 + start).cos()).collect()
            }
            Modality::Text => {
                let scale = 1.0 / (width as f64).sqrt();
                (0..width).map(|i| scale * stream.normal(16 + i as u64)).collect()
            }
        }
    }

    /// Convolved features, W, and noise that makes the answer `snr` times as strong.
    fn truth(&self, features: &[f64]) -> Result<Truth> {
        let response = Response::new(TR, HrfAlignment::Causal);
        let convolved = response.convolve_f64(features, self.features);
        let stream = Stream::of(self.seed, &[WEIGHTS]);
        let weights: Vec<f64> = (0..self.features * self.voxels).map(|i| stream.normal(i as u64)).collect();
        let noise: Vec<f64> = (0..self.voxels)
            .map(|v| {
                let answer = self.answer(&convolved, &weights, v);
                (variance(&answer) / self.snr).sqrt()
            })
            .collect();
        let attainable = self.attainable(&convolved, &weights, &noise)?;
        Ok(Truth { features: convolved, weights, noise, attainable })
    }

    /// The answer of a voxel without noise, over all time.
    fn answer(&self, features: &[f64], weights: &[f64], voxel: usize) -> Vec<f64> {
        let column: Vec<f64> = weights.iter().skip(voxel).step_by(self.voxels).copied().collect();
        features.chunks_exact(self.features).map(|z| z.iter().zip(&column).map(|(z, w)| z * w).sum()).collect()
    }

    fn attainable(&self, features: &[f64], weights: &[f64], noise: &[f64]) -> Result<Attainable> {
        let train = (TRAIN * self.trs as f64) as usize;
        let excess = excess(features, self.features, train)? / self.subjects as f64;
        let (mut ceiling, mut linear) = (0.0, 0.0);
        for (v, std) in noise.iter().enumerate() {
            let answer = self.answer(features, weights, v);
            let q = variance(answer.get(train..).unwrap_or_default()) / (std * std);
            ceiling += (q / (1.0 + q)).sqrt();
            linear += q / ((q + excess) * (q + 1.0)).sqrt();
        }
        let n = self.voxels as f64;
        Ok(Attainable { ceiling: ceiling / n, linear: linear / n })
    }

    /// The scans of a subject, `[TRs, voxels]`: about 1000, as a scanner's numbers are.
    fn brain(&self, subject: usize, truth: &Truth) -> Vec<f32> {
        let stream = Stream::of(self.seed, &[NOISE, subject as u64]);
        let mut numbers = vec![0.0_f32; self.trs * self.voxels];
        let rows = numbers.par_chunks_mut(self.voxels).zip(truth.features.par_chunks(self.features)).enumerate();
        rows.for_each(|(t, (row, z))| {
            for (v, (x, std)) in row.iter_mut().zip(&truth.noise).enumerate() {
                let column = truth.weights.iter().skip(v).step_by(self.voxels);
                let answer: f64 = column.zip(z).map(|(w, z)| w * z).sum();
                let noise = std * stream.normal((t * self.voxels + v) as u64);
                *x = (1000.0 + (v % 100) as f64 + 10.0 * (answer + noise)) as f32;
            }
        });
        numbers
    }

    fn write_report(&self, path: &Path, attainable: Attainable) -> Result<()> {
        let report = serde_json::json!({
            "features": self.features,
            "snr": self.snr,
            "seed": self.seed,
            "train_fraction": TRAIN,
            "attainable": attainable,
        });
        write_atomic(path, self.existing(), |file| {
            serde_json::to_writer_pretty(&mut *file, &report)
                .map_err(std::io::Error::from)
                .map_err(Error::io("write", path))
        })
    }
}

/// The variance of the numbers themselves.
fn variance(numbers: &[f64]) -> f64 {
    let n = numbers.len().max(1) as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n
}

/// `tr(C (XᵀX)⁻¹)`: X the first `train` rows of `[1, features]`, C the covariance of the other rows.
fn excess(features: &[f64], k: usize, train: usize) -> Result<f64> {
    let p = k + 1;
    let rows: Vec<Vec<f64>> =
        features.chunks_exact(k).map(|z| [1.0].into_iter().chain(z.iter().copied()).collect()).collect();
    let (seen, held) = rows.split_at(train.min(rows.len()));
    let product = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
        let entry = |i: usize, j: usize| rows.iter().filter_map(|r| Some(r.get(i)? * r.get(j)?)).sum();
        (0..p).map(|i| (0..p).map(|j| entry(i, j)).collect()).collect()
    };
    let mean: Vec<f64> =
        (0..p).map(|i| held.iter().filter_map(|r| r.get(i)).sum::<f64>() / held.len().max(1) as f64).collect();
    let centred: Vec<Vec<f64>> = held.iter().map(|r| r.iter().zip(&mean).map(|(x, m)| x - m).collect()).collect();
    let solved = solve(product(seen), product(&centred)).ok_or_else(|| {
        Error::argument("synthetic sherlock: features: expected fewer than there are TRs to learn them")
    })?;
    let trace: f64 = solved.iter().enumerate().filter_map(|(i, row)| row.get(i)).sum();
    Ok(trace / held.len().max(1) as f64)
}

/// A⁻¹ B by elimination with the largest pivot of each column; `None` if A has none.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let n = a.len();
    for column in 0..n {
        let size = |row: &Vec<f64>| row.get(column).map_or(0.0, |x| x.abs());
        let pivot = (column..n).max_by(|&i, &j| a.get(i).map_or(0.0, size).total_cmp(&a.get(j).map_or(0.0, size)))?;
        a.swap(column, pivot);
        b.swap(column, pivot);
        let (head, from) = (a.get(column)?.clone(), b.get(column)?.clone());
        let scale = *head.get(column)?;
        if scale.abs() < 1e-12 {
            return None;
        }
        for (i, (row, right)) in a.iter_mut().zip(&mut b).enumerate() {
            let factor = row.get(column)? / scale;
            let factor = if i == column { 1.0 - 1.0 / scale } else { factor };
            row.iter_mut().zip(&head).for_each(|(x, h)| *x -= factor * h);
            right.iter_mut().zip(&from).for_each(|(x, h)| *x -= factor * h);
        }
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elimination_solves_a_system_that_needs_its_rows_exchanged() {
        let a = vec![vec![0.0, 2.0, 1.0], vec![1.0, 0.0, 0.0], vec![3.0, 0.0, 4.0]];
        let x = solve(a.clone(), vec![vec![8.0], vec![1.0], vec![15.0]]).unwrap();
        for (row, expected) in x.iter().zip([1.0, 2.5, 3.0]) {
            approx::assert_relative_eq!(row[0], expected, max_relative = 1e-12);
        }
        assert!(solve(vec![vec![1.0, 2.0], vec![2.0, 4.0]], a).is_none());
    }

    #[test]
    fn the_excess_of_white_features_is_their_number_over_the_time() {
        let stream = Stream::of(3, &[1]);
        let features: Vec<f64> = (0..5000 * 4).map(|i| stream.normal(i)).collect();
        // Four features and a constant, whose covariance is 0: 4 / 4000, the sample's deviation about 5 %.
        approx::assert_relative_eq!(excess(&features, 4, 4000).unwrap(), 1e-3, max_relative = 0.15);
    }

    #[test]
    fn least_squares_on_the_true_features_reaches_what_was_derived() {
        let film = SyntheticSherlock { voxels: 300, trs: 400, snr: 0.5, ..Default::default() };
        let truth = film.truth(&film.wandering()).unwrap();
        let (k, train) = (film.features, 320);
        let design = |t: usize| [1.0].into_iter().chain(truth.features[t * k..(t + 1) * k].iter().copied());
        let brains: Vec<Vec<f32>> = (1..=film.subjects).map(|s| film.brain(s, &truth)).collect();
        let mut gram = vec![vec![0.0; k + 1]; k + 1];
        for t in 0..train {
            let x: Vec<f64> = design(t).collect();
            (0..=k).for_each(|i| (0..=k).for_each(|j| gram[i][j] += 2.0 * x[i] * x[j]));
        }
        let mut moments = vec![vec![0.0; film.voxels]; k + 1];
        for (t, brain) in (0..train).flat_map(|t| brains.iter().map(move |b| (t, b))) {
            for (row, x) in moments.iter_mut().zip(design(t)) {
                row.iter_mut().zip(&brain[t * film.voxels..]).for_each(|(m, &y)| *m += x * f64::from(y));
            }
        }
        let beta = solve(gram, moments).unwrap();
        let mut mean = 0.0;
        for (v, brain) in (0..film.voxels).flat_map(|v| brains.iter().map(move |b| (v, b))) {
            let pairs: Vec<(f64, f64)> = (train..film.trs)
                .map(|t| {
                    let predicted = design(t).zip(&beta).map(|(x, b)| x * b[v]).sum();
                    (predicted, f64::from(brain[t * film.voxels + v]))
                })
                .collect();
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let centre = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
            let (ma, mb) = (centre(&a), centre(&b));
            let joint: f64 = a.iter().zip(&b).map(|(a, b)| (a - ma) * (b - mb)).sum::<f64>() / a.len() as f64;
            mean += joint / (variance(&a) * variance(&b)).sqrt();
        }
        mean /= (film.voxels * film.subjects) as f64;
        let Attainable { ceiling, linear } = truth.attainable;
        assert!(linear < ceiling && ceiling < 0.65, "{:?}", truth.attainable);
        // 600 correlations over 80 TRs: a standard error of about 0.004.
        approx::assert_abs_diff_eq!(mean, linear, epsilon = 0.015);
    }

    #[test]
    fn frames_are_colours_and_the_same_seed_gives_the_same_film() {
        let film = SyntheticSherlock { trs: 80, ..Default::default() };
        let z = film.wandering();
        let video = film.stimulus(Modality::Video, &z);
        assert!(video.iter().all(|x| (0.0..=1.0).contains(x)));
        assert!(variance(&video.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()) > 0.002);
        assert_eq!(video, film.stimulus(Modality::Video, &film.wandering()));
        let other = SyntheticSherlock { seed: 1, ..film.clone() };
        assert_ne!(video, other.stimulus(Modality::Video, &other.wandering()));
        let audio = film.stimulus(Modality::Audio, &z);
        assert!(audio.iter().all(|x| (-80.0..=0.0).contains(x)));
    }

    #[test]
    fn sizes_that_cannot_be_and_files_that_exist_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let small = SyntheticSherlock { trs: 80, voxels: 3, ..Default::default() };
        for (bad, part) in [
            (SyntheticSherlock { features: 2, ..small.clone() }, "features: expected 3 to 1000, found 2"),
            (SyntheticSherlock { trs: 10, ..small.clone() }, "trs: expected 72 to 1048576, found 10"),
            (SyntheticSherlock { snr: f64::NAN, ..small.clone() }, "snr: expected a number above 0"),
            (SyntheticSherlock { voxels: 0, ..small.clone() }, "voxels: expected 1 to"),
        ] {
            let error = bad.write(root.path(), |_, _, _| {}).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(root.path().read_dir().unwrap().count(), 0);
        let mut seen = 0;
        small.write(root.path(), |done, total, _| seen += usize::from(done <= total)).unwrap();
        assert_eq!(seen, small.files(root.path()).len());
        assert!(small.files(root.path()).iter().all(|f| f.is_file()));
        let error = small.write(root.path(), |_, _, _| {}).unwrap_err().to_string();
        assert!(error.lines().all(|l| l.ends_with("exists already; remove it or ask to overwrite it")), "{error}");
        SyntheticSherlock { overwrite: true, half: true, ..small }.write(root.path(), |_, _, _| {}).unwrap();
    }
}
