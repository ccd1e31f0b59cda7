//! Verification of gridded forecasts: MSE, MAE, RMSE, latitude-weighted RMSE and anomaly correlation, per channel.
//!
//! ```text
//! weighted_rmse = mean over samples of sqrt(mean over h, w of weight[h] · (p − y)²)
//! acc           = mean over samples of Σ weight·p·y / sqrt(Σ weight·p² · Σ weight·y²)
//! rmse          = sqrt(mse)                                  mse, mae: means over samples, h, w
//! ```
//!
//! Fields are normalised, so an anomaly is the difference from the mean of the training years. In physical units errors are
//! those of the normalised fields times the standard deviation of the channel.
//!
//! # Source
//! alexk101/sci-scaling@7955f59, `utils/metrics.py`, and NVlabs/FourCastNet, `utils/weighted_acc_rmse.py`; averaged over
//! samples, where the original sums them.

use rayon::prelude::*;

use crate::data::weather::Statistics;
use crate::data::weather::grid::latitude_weights;
use crate::error::{Error, Result};
use crate::tensor::Spec;
use crate::train::evaluation::Evaluation;

/// Sums over samples for one channel.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    mse: f64,
    mae: f64,
    weighted_rmse: f64,
    acc: f64,
}

impl Sums {
    fn add(&mut self, o: Sums) {
        self.mse += o.mse;
        self.mae += o.mae;
        self.weighted_rmse += o.weighted_rmse;
        self.acc += o.acc;
    }
}

/// Collects the metrics of forecasts, and of persistence beside them.
#[derive(Debug)]
pub struct Scores {
    weights: Vec<f64>,
    forecast: Vec<Sums>,
    persistence: Option<Vec<Sums>>,
    loss: f64,
    samples: usize,
}

impl Scores {
    /// For fields of `channels` on the first `rows` rows of files of `file_rows`: a cropped grid keeps the latitudes of its
    /// files, and weights of mean 1.
    pub fn new(channels: usize, rows: usize, file_rows: usize) -> Scores {
        let none = vec![Sums::default(); channels];
        let mut weights = latitude_weights(file_rows.max(rows));
        weights.truncate(rows);
        let mean = weights.iter().sum::<f64>() / rows.max(1) as f64;
        weights.iter_mut().for_each(|w| *w /= mean);
        Scores { weights, forecast: none.clone(), persistence: Some(none), loss: 0.0, samples: 0 }
    }

    /// Adds a batch: forecast and target `[B, C, H, W]`, and the last frame of the input, `[B, C', H, W]`, as the forecast
    /// that the weather stays; `loss` is the batch's mean. Persistence is left out if the input has fewer channels.
    ///
    /// # Errors
    /// [`Error::Shape`] if forecast and target differ.
    pub fn add(&mut self, spec: &Spec, forecast: &[f32], target: &[f32], now: Option<&[f32]>, loss: f64) -> Result<()> {
        let &[b, c, h, w] = spec.shape() else {
            return Err(Error::shape(format!("scores: forecast: expected [B, C, H, W], found {spec}")));
        };
        if forecast.len() != target.len() || c != self.forecast.len() || h != self.weights.len() {
            return Err(Error::shape(format!("scores: target: expected {spec}, found {} numbers", target.len())));
        }
        self.loss += loss * b as f64;
        self.samples += b;
        let area = h * w;
        let planes = |p: &[f32]| -> Vec<Sums> {
            let pairs = p.par_chunks_exact(area.max(1)).zip(target.par_chunks_exact(area.max(1)));
            pairs.map(|(p, y)| plane(p, y, &self.weights)).collect()
        };
        let scores = planes(forecast);
        let still = now.filter(|n| n.len() == target.len()).map(planes);
        scores.iter().enumerate().for_each(|(i, s)| self.forecast[i % c].add(*s));
        match (&mut self.persistence, still) {
            (Some(sums), Some(still)) => still.iter().enumerate().for_each(|(i, s)| sums[i % c].add(*s)),
            (sums, None) => *sums = None,
            (None, Some(_)) => {}
        }
        Ok(())
    }

    /// The metrics: means over channels first, then per channel; in physical units too if the statistics are known.
    pub fn finish(&self, statistics: Option<&Statistics>) -> Evaluation {
        let n = self.samples.max(1) as f64;
        let mean = |sums: &[Sums], f: fn(&Sums) -> f64| sums.iter().map(f).sum::<f64>() / n / sums.len().max(1) as f64;
        let all = &self.forecast;
        let mut metrics: Vec<(String, f64)> = vec![
            ("mse".into(), mean(all, |s| s.mse)),
            ("mae".into(), mean(all, |s| s.mae)),
            ("rmse".into(), mean(all, |s| s.mse).sqrt()),
            ("weighted_rmse".into(), mean(all, |s| s.weighted_rmse)),
            ("acc".into(), mean(all, |s| s.acc)),
        ];
        if let Some(still) = &self.persistence {
            let rmse = mean(still, |s| s.weighted_rmse);
            metrics.push(("persistence_weighted_rmse".into(), rmse));
            metrics.push(("ratio_to_persistence".into(), mean(all, |s| s.weighted_rmse) / rmse));
        }
        for (i, s) in all.iter().enumerate() {
            metrics.push((format!("weighted_rmse_ch{i}"), s.weighted_rmse / n));
            metrics.push((format!("acc_ch{i}"), s.acc / n));
            metrics.push((format!("mse_ch{i}"), s.mse / n));
            metrics.push((format!("mae_ch{i}"), s.mae / n));
            metrics.push((format!("rmse_ch{i}"), (s.mse / n).sqrt()));
        }
        for (i, (s, std)) in all.iter().zip(statistics.map_or(&[][..], Statistics::stds)).enumerate() {
            metrics.push((format!("physical/weighted_rmse_ch{i}"), std * s.weighted_rmse / n));
            metrics.push((format!("physical/mse_ch{i}"), std * std * s.mse / n));
            metrics.push((format!("physical/mae_ch{i}"), std * s.mae / n));
            metrics.push((format!("physical/rmse_ch{i}"), std * (s.mse / n).sqrt()));
        }
        Evaluation { loss: self.loss / n, samples: self.samples, metrics }
    }
}

/// The scores of one field.
fn plane(p: &[f32], y: &[f32], weights: &[f64]) -> Sums {
    let (mut square, mut absolute, mut weighted) = (0.0, 0.0, 0.0);
    let (mut py, mut pp, mut yy) = (0.0, 0.0, 0.0);
    let columns = p.len() / weights.len().max(1);
    for ((p, y), weight) in p.chunks(columns.max(1)).zip(y.chunks(columns.max(1))).zip(weights) {
        for (p, y) in p.iter().zip(y) {
            let (p, y) = (f64::from(*p), f64::from(*y));
            let e = p - y;
            square += e * e;
            absolute += e.abs();
            weighted += weight * e * e;
            py += weight * p * y;
            pp += weight * p * p;
            yy += weight * y * y;
        }
    }
    let area = p.len().max(1) as f64;
    let scale = (pp * yy).sqrt();
    // A field of zeros has no anomaly to correlate with.
    let acc = if scale == 0.0 { 0.0 } else { py / scale };
    Sums { mse: square / area, mae: absolute / area, weighted_rmse: (weighted / area).sqrt(), acc }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_forecast_has_no_error_and_correlates_fully() {
        let spec = Spec::f32([2, 1, 3, 2]).unwrap();
        let y: Vec<f32> = (0..12).map(|i| i as f32 - 5.5).collect();
        let mut scores = Scores::new(1, 3, 3);
        scores.add(&spec, &y, &y, None, 0.25).unwrap();
        let e = scores.finish(None);
        assert_eq!((e.samples, e.loss, e.get("mse"), e.get("weighted_rmse")), (2, 0.25, Some(0.0), Some(0.0)));
        assert!((e.get("acc").unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(e.get("ratio_to_persistence"), None);
    }

    #[test]
    fn errors_at_the_equator_weigh_more_than_at_the_poles() {
        let spec = Spec::f32([1, 1, 3, 1]).unwrap();
        let score = |row: usize| {
            let mut p = [0.0_f32; 3];
            p[row] = 1.0;
            let mut scores = Scores::new(1, 3, 3);
            scores.add(&spec, &p, &[0.0; 3], Some(&[2.0; 3]), 1.0).unwrap();
            scores.finish(Some(&Statistics::new(vec![0.0], vec![10.0]).unwrap()))
        };
        let (pole, equator) = (score(0), score(1));
        assert!(pole.get("weighted_rmse").unwrap() < 1e-6);
        assert!((equator.get("weighted_rmse").unwrap() - 1.0).abs() < 1e-12, "the only row that weighs");
        assert_eq!(pole.get("mse"), equator.get("mse"));
        assert!((equator.get("physical/weighted_rmse_ch0").unwrap() - 10.0).abs() < 1e-9);
        assert!((equator.get("ratio_to_persistence").unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_cropped_grid_keeps_the_latitudes_of_its_files() {
        // 5 rows: 90, 45, 0, -45, -90 degrees; the first four weigh 0, √½, 1, √½ before their mean is made 1.
        let scores = Scores::new(1, 4, 5);
        let mean = (1.0 + 2.0 * 0.5_f64.sqrt()) / 4.0;
        for (got, want) in scores.weights.iter().zip([0.0, 0.5_f64.sqrt() / mean, 1.0 / mean, 0.5_f64.sqrt() / mean]) {
            assert!((got - want).abs() < 1e-12, "{got} is not {want}");
        }
    }

    #[test]
    fn an_unfit_target_is_refused() {
        let spec = Spec::f32([1, 1, 2, 2]).unwrap();
        assert!(Scores::new(1, 2, 2).add(&spec, &[0.0; 4], &[0.0; 3], None, 0.0).is_err());
        assert!(Scores::new(2, 2, 2).add(&spec, &[0.0; 4], &[0.0; 4], None, 0.0).is_err());
    }
}
