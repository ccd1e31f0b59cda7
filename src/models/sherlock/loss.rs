//! What the autoencoder trains on: how far reconstruction and predicted voxels are from what was.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::sherlock::Batch;
use crate::error::{Faults, Result};
use crate::models::sherlock::Outputs;
use crate::ops::absolute_error::AbsoluteError;
use crate::ops::add::Add;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::mul::Mul;
use crate::ops::reduce::{Reduce, Reduction};
use crate::ops::rms_norm::RmsNorm;
use crate::ops::scale::Scale;
use crate::ops::squared_error::SquaredError;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Weights and kinds of the losses. [`Default`] is the sum of four mean squared errors.
///
/// ```text
/// total = reconstruction_weight · (video_weight·video + audio_weight·audio + text_weight·text) + fmri_weight · fmri
/// ```
///
/// # Source
/// ContextLab/giblet-responses@4691d10, `giblet/training/losses.py`. Differs on purpose: `pearson` and `loss_normalization`
/// are new.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Weight of the three reconstructions together.
    pub reconstruction_weight: f64,
    /// Weight of the voxels.
    pub fmri_weight: f64,
    /// Weight of the frames among the reconstructions.
    pub video_weight: f64,
    /// Weight of the sound among the reconstructions.
    pub audio_weight: f64,
    /// Weight of the words among the reconstructions.
    pub text_weight: f64,
    /// How far predicted voxels are from measured ones.
    pub fmri_loss_type: FmriLoss,
    /// What each modality's error is divided by, so that dB, pixels and voxels weigh alike.
    pub loss_normalization: LossNormalization,
}

/// How far predicted voxels are from measured ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FmriLoss {
    /// Mean squared difference.
    Mse,
    /// Mean absolute difference.
    Mae,
    /// One minus the cosine of the angle between a sample's voxels, which the original calls correlation: nothing is centred.
    Correlation,
    /// One minus Pearson's correlation over a sample's voxels.
    Pearson,
}

/// What an error is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossNormalization {
    /// Nothing.
    None,
    /// The standard deviation (n − 1) of the target's numbers in the batch, as in the original's later code.
    Std,
    /// Their variance: the result has no unit.
    Variance,
}

/// Added to what an error is divided by.
const EPS: f64 = 1e-8;
/// Keeps a row of zeros finite; the original's least norm is 1e-12, and this is below its square per voxel.
const ROW_EPS: f32 = 1e-30;

impl Default for LossConfig {
    fn default() -> LossConfig {
        LossConfig {
            reconstruction_weight: 1.0,
            fmri_weight: 1.0,
            video_weight: 1.0,
            audio_weight: 1.0,
            text_weight: 1.0,
            fmri_loss_type: FmriLoss::Mse,
            loss_normalization: LossNormalization::None,
        }
    }
}

impl LossConfig {
    /// Adds a line to `faults` for everything that cannot be trained on. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        let weights = [
            ("reconstruction_weight", self.reconstruction_weight),
            ("fmri_weight", self.fmri_weight),
            ("video_weight", self.video_weight),
            ("audio_weight", self.audio_weight),
            ("text_weight", self.text_weight),
        ];
        for (key, weight) in weights {
            if !(0.0..=f64::from(f32::MAX)).contains(&weight) {
                faults.push(format!("{key}: expected a finite number of at least 0, found {weight}"));
            }
        }
        if self.reconstruction_weight * (self.video_weight + self.audio_weight + self.text_weight) == 0.0
            && self.fmri_weight == 0.0
        {
            faults.push("fmri_weight: expected a weight above 0 somewhere, found none: there is nothing to learn");
        }
    }

    /// Records the loss of `out`; its parts are noted under the original's names.
    pub(super) fn record(&self, tape: &mut Tape<'_>, out: &Outputs, batch: &Batch) -> Result<Var> {
        let target = &batch.target;
        let [video, audio, text] = out.reconstruction;
        let parts = [
            ("video_loss", video, &target.video, self.video_weight),
            ("audio_loss", audio, &target.audio, self.audio_weight),
            ("text_loss", text, &target.text, self.text_weight),
        ];
        let mut reconstruction = None;
        for (name, x, target, weight) in parts {
            let y = tape.input(target)?;
            let shape = tape.spec(x)?.shape().to_vec();
            let y = tape.reshape(y, shape)?;
            let loss = tape.apply(SquaredError, [x, y])?;
            let loss = self.normalised(tape, loss, target)?;
            tape.note(name, loss)?;
            reconstruction = sum(tape, reconstruction, loss, weight)?;
        }
        if let Some(reconstruction) = reconstruction {
            tape.note("reconstruction_loss", reconstruction)?;
        }
        let fmri = self.fmri(tape, out.predicted_fmri, &batch.fmri)?;
        tape.note("fmri_loss", fmri)?;
        let total = match reconstruction {
            Some(x) => sum(tape, None, x, self.reconstruction_weight)?,
            None => None,
        };
        let total = sum(tape, total, fmri, self.fmri_weight)?.unwrap_or(fmri);
        tape.note("total_loss", total)?;
        Ok(total)
    }

    /// The loss of predicted voxels `[B, voxels]`.
    fn fmri(&self, tape: &mut Tape<'_>, x: Var, target: &Tensor) -> Result<Var> {
        let y = tape.input(target)?;
        match self.fmri_loss_type {
            FmriLoss::Mse => {
                let loss = tape.apply(SquaredError, [x, y])?;
                self.normalised(tape, loss, target)
            }
            FmriLoss::Mae => {
                let loss = tape.apply(AbsoluteError, [x, y])?;
                self.normalised(tape, loss, target)
            }
            FmriLoss::Correlation => {
                let ones = row(tape, x, 1.0)?;
                let op = RmsNorm { eps: ROW_EPS };
                let (x, y) = (tape.apply(op, [x, ones])?, tape.apply(op, [y, ones])?);
                one_minus_mean_product(tape, x, y)
            }
            FmriLoss::Pearson => {
                let (ones, zeros) = (row(tape, x, 1.0)?, row(tape, x, 0.0)?);
                let op = LayerNorm { eps: ROW_EPS };
                let (x, y) = (tape.apply(op, [x, ones, zeros])?, tape.apply(op, [y, ones, zeros])?);
                one_minus_mean_product(tape, x, y)
            }
        }
    }

    /// `loss` over the spread of `target`.
    fn normalised(&self, tape: &mut Tape<'_>, loss: Var, target: &Tensor) -> Result<Var> {
        if self.loss_normalization == LossNormalization::None {
            return Ok(loss);
        }
        // A plan has no numbers, and costs the same.
        let variance = if target.is_planned() { 1.0 } else { variance(&target.to_f32()?) };
        let by = if self.loss_normalization == LossNormalization::Std { variance.sqrt() } else { variance };
        tape.apply(Scale { factor: (1.0 / (by + EPS)) as f32 }, [loss])
    }
}

/// Variance of some numbers, by n − 1; 0 of fewer than two.
fn variance(numbers: &[f32]) -> f64 {
    let n = numbers.len() as f64;
    let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares: f64 = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    if n < 2.0 { 0.0 } else { squares / (n - 1.0) }
}

/// `so_far + weight·x`; `None` of nothing.
fn sum(tape: &mut Tape<'_>, so_far: Option<Var>, x: Var, weight: f64) -> Result<Option<Var>> {
    if weight == 0.0 {
        return Ok(so_far);
    }
    let x = if weight == 1.0 { x } else { tape.apply(Scale { factor: weight as f32 }, [x])? };
    Ok(Some(match so_far {
        None => x,
        Some(sum) => tape.apply(Add, [sum, x])?,
    }))
}

/// A row of one number, as long as those of `x`.
fn row(tape: &mut Tape<'_>, x: Var, number: f32) -> Result<Var> {
    let c = tape.spec(x)?.last();
    tape.input(&Tensor::from_f32([c], &vec![number; c])?)
}

/// One minus the mean of the products of all numbers: of rows of length 1 (times the root of their number) it is the mean over
/// rows of one minus their cosine.
fn one_minus_mean_product(tape: &mut Tape<'_>, x: Var, y: Var) -> Result<Var> {
    let product = tape.apply(Mul, [x, y])?;
    let mean = tape.apply(Reduce { axes: vec![0, 1], reduction: Reduction::Mean }, [product])?;
    let negative = tape.apply(Scale { factor: -1.0 }, [mean])?;
    let one = tape.input(&Tensor::from_f32([], &[1.0])?)?;
    tape.apply(Add, [negative, one])
}
