//! Validation: the losses, and how well voxels are predicted, in space and in time.

use std::sync::Arc;

use crate::backend::Exec;
use crate::data::sherlock::Batch;
use crate::data::{Batches, Dataset, Prefetch};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::sherlock::Sherlock;
use crate::nn::Pass;
use crate::tape::Tape;
use crate::train::evaluation::Evaluation;

/// Added to every divisor, as in the original.
const EPS: f64 = 1e-8;

/// Sums over samples of voxels predicted and measured.
///
/// ```text
/// correlation = mean over samples of Σ(p − p̄)(t − t̄) / (√Σ(p − p̄)²·√Σ(t − t̄)² + 1e-8)       sums over voxels
/// r2          = mean over samples of 1 − Σ(t − p)² / (Σ(t − t̄)² + 1e-8)
/// voxel_correlation = mean over voxels of the correlation over all samples: over time
/// ```
///
/// # Source
/// The first two: ContextLab/giblet-responses@4691d10, `giblet/training/losses.py`. The third is what encoding models are
/// judged by; the original has no such number.
#[derive(Debug, Clone)]
pub struct Brains {
    voxels: usize,
    samples: usize,
    correlation: f64,
    r2: f64,
    /// Σp, Σt, Σp², Σt², Σpt of each voxel.
    sums: Vec<[f64; 5]>,
}

impl Brains {
    /// No sample yet, of so many voxels.
    pub fn new(voxels: usize) -> Brains {
        Brains { voxels, samples: 0, correlation: 0.0, r2: 0.0, sums: vec![[0.0; 5]; voxels] }
    }

    /// Takes note of samples, one after the other.
    ///
    /// # Errors
    /// [`Error::Shape`] unless both are whole samples of the same number.
    pub fn add(&mut self, predicted: &[f32], measured: &[f32]) -> Result<()> {
        let voxels = self.voxels.max(1);
        if predicted.len() != measured.len() || !predicted.len().is_multiple_of(voxels) {
            let (p, t) = (predicted.len(), measured.len());
            return Err(Error::shape(format!("fmri: expected samples of {voxels} voxels, found {p} and {t} numbers")));
        }
        for (p, t) in predicted.chunks_exact(voxels).zip(measured.chunks_exact(voxels)) {
            let mean = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>() / voxels as f64;
            let (p_mean, t_mean) = (mean(p), mean(t));
            let [mut pp, mut tt, mut pt, mut rest] = [0.0; 4];
            for ((&p, &t), sums) in p.iter().zip(t).zip(&mut self.sums) {
                let (p, t) = (f64::from(p), f64::from(t));
                let (pc, tc) = (p - p_mean, t - t_mean);
                pp += pc * pc;
                tt += tc * tc;
                pt += pc * tc;
                rest += (t - p) * (t - p);
                for (sum, x) in sums.iter_mut().zip([p, t, p * p, t * t, p * t]) {
                    *sum += x;
                }
            }
            self.correlation += pt / (pp.sqrt() * tt.sqrt() + EPS);
            self.r2 += 1.0 - rest / (tt + EPS);
            self.samples += 1;
        }
        Ok(())
    }

    /// The correlation of each voxel over all samples; 0 where nothing varies.
    pub fn voxel_correlations(&self) -> Vec<f64> {
        let n = self.samples.max(1) as f64;
        let of = |&[p, t, pp, tt, pt]: &[f64; 5]| {
            let (var_p, var_t) = ((pp / n - (p / n).powi(2)).max(0.0), (tt / n - (t / n).powi(2)).max(0.0));
            (pt / n - p / n * (t / n)) / (var_p.sqrt() * var_t.sqrt() + EPS)
        };
        self.sums.iter().map(of).collect()
    }

    /// `fmri_correlation`, `fmri_r2` and `fmri_voxel_correlation`.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        let n = self.samples.max(1) as f64;
        let over_time = self.voxel_correlations().iter().sum::<f64>() / self.voxels.max(1) as f64;
        let named = [
            ("fmri_correlation", self.correlation / n),
            ("fmri_r2", self.r2 / n),
            ("fmri_voxel_correlation", over_time),
        ];
        named.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }
}

/// Losses and metrics of `model` over all samples of `data`, in order, each sample with the same weight. `progress` is told of
/// each batch and may end it: then there is no result.
///
/// # Errors
/// If a sample cannot be read or does not fit; whatever `progress` returns.
pub fn evaluate(
    model: &Sherlock,
    exec: &Exec,
    pass: &Pass,
    data: &Arc<dyn Dataset<Batch = Batch>>,
    batch_size: usize,
    workers: usize,
    progress: &mut dyn FnMut(usize, usize) -> Result<bool>,
) -> Result<Option<Evaluation>> {
    let total = data.len();
    let batches = Batches::new(total, batch_size.min(total.max(1)), false, None)?;
    let mut brains = Brains::new(model.config().n_voxels);
    let (mut done, mut sums) = (0, Vec::<(&'static str, f64)>::new());
    for batch in Prefetch::new(Arc::clone(data), batches, 0, workers)? {
        if !progress(done, total)? {
            return Ok(None);
        }
        let batch = batch?;
        let params = model.params();
        let mut tape = Tape::with_params(exec, params.arena()).with_buffers(params.buffers().arena()).inference();
        let out = model.forward(&mut tape, &batch.input, pass)?;
        model.loss_of(&mut tape, &out, &batch)?;
        brains.add(&tape.value(out.predicted_fmri)?.to_f32()?, &batch.fmri.to_f32()?)?;
        let samples = batch.fmri.shape().first().copied().unwrap_or(0);
        for (name, value) in tape.noted() {
            let value = f64::from(value.item()?) * samples as f64;
            match sums.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            }
        }
        done += samples;
    }
    progress(done, total)?;
    let n = done.max(1) as f64;
    let mut metrics: Vec<(String, f64)> = sums.iter().map(|(name, sum)| ((*name).to_owned(), sum / n)).collect();
    let loss = metrics.iter().find(|(name, _)| name == "total_loss").map_or(f64::NAN, |(_, loss)| *loss);
    metrics.extend(brains.metrics());
    Ok(Some(Evaluation { loss, samples: done, metrics }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(brains: &Brains, name: &str) -> f64 {
        brains.metrics().iter().find(|(n, _)| n == name).unwrap().1
    }

    #[test]
    fn a_brain_that_is_right_up_to_scale_correlates_and_explains_less() {
        let measured = [1.0, 2.0, 4.0, 3.0, -1.0, 2.0];
        let predicted = measured.map(|x| 0.5 * x);
        let mut brains = Brains::new(3);
        brains.add(&predicted, &measured).unwrap();
        assert!((metric(&brains, "fmri_correlation") - 1.0).abs() < 1e-6);
        // Per sample 1 − Σ(t/2)²/Σ(t − t̄)²: 1 − 5.25/(14/3) and 1 − 3.5/(26/3).
        let want = ((1.0 - 5.25 * 3.0 / 14.0) + (1.0 - 3.5 * 3.0 / 26.0)) / 2.0;
        assert!((metric(&brains, "fmri_r2") - want).abs() < 1e-6);
        assert!(brains.voxel_correlations().iter().all(|r| (r - 1.0).abs() < 1e-6));
    }

    #[test]
    fn time_and_space_are_different_axes() {
        // Over voxels always right, over time always wrong.
        let mut brains = Brains::new(2);
        brains.add(&[0.0, 1.0, -1.0, 2.0], &[0.0, 1.0, 0.2, 0.8]).unwrap();
        assert!((metric(&brains, "fmri_correlation") - 1.0).abs() < 1e-6);
        assert!((metric(&brains, "fmri_voxel_correlation") + 1.0).abs() < 1e-5);
    }

    #[test]
    fn voxels_that_do_not_vary_count_as_nothing_and_other_lengths_are_refused() {
        let mut brains = Brains::new(2);
        brains.add(&[1.0, 1.0, 1.0, 1.0], &[2.0, 2.0, 2.0, 2.0]).unwrap();
        assert!(brains.metrics().iter().take(1).all(|(_, v)| v.abs() < 1e-6));
        assert!(brains.voxel_correlations().iter().all(|r| r.abs() < 1e-6));
        assert!(brains.add(&[1.0], &[1.0]).is_err());
    }
}
