//! How long, how fast and how precisely a run trains, and what it leaves behind.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Faults;

/// How a run trains. [`Default`] is the configuration `base`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Samples in one forward pass. A step sees `gradient_accumulation` times as many.
    pub batch_size: usize,
    /// Passes over the training samples, at most: budgets and `max_steps` end a run earlier.
    pub epochs: usize,
    /// Optimiser steps, at most; null = as many as `epochs` gives.
    pub max_steps: Option<u64>,
    /// Highest learning rate, reached after `warmup_steps`.
    pub learning_rate: f64,
    /// Decoupled weight decay of AdamW, on every tensor, per unit of learning rate.
    pub weight_decay: f64,
    /// Decay of AdamW's first and second moment per step.
    pub betas: [f64; 2],
    /// Added to the root of AdamW's second moment.
    pub eps: f64,
    /// What AdamW's moments are kept in.
    pub moments: MomentPrecision,
    /// What gradients are kept in between the passes and the update.
    pub gradients: GradientPrecision,
    /// How the learning rate moves after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Epochs between two drops of the schedule `step`.
    pub lr_step_epochs: usize,
    /// Factor of one drop of the schedule `step`.
    pub lr_step_factor: f64,
    /// Steps over which the learning rate rises from 0 in a straight line; 0 = none.
    pub warmup_steps: u64,
    /// The same in epochs, which add to those steps.
    pub warmup_epochs: usize,
    /// Part of `learning_rate` at which the warm-up starts; null = its first step is one part of its length.
    pub warmup_start_factor: Option<f64>,
    /// Where a cosine ends.
    pub min_lr: f64,
    /// Largest 2-norm of all gradients together; longer ones are scaled down. 0 = no clipping.
    pub gradient_clipping: f64,
    /// Forward and backward passes whose gradients are averaged into one step.
    pub gradient_accumulation: usize,
    /// Number type of weights in the forward pass and of activations. Masters, norms, softmax, sums and losses are fp32.
    pub precision: Precision,
    /// Whether fp32 products may be rounded to TF32 where the device has it.
    pub allow_tf32: bool,
    /// First loss scale with fp16; other precisions use none.
    pub loss_scale_init: f64,
    /// Whether the loss scale moves: halved at an overflow, doubled after `loss_scale_window` good steps.
    pub loss_scale_dynamic: bool,
    /// Good steps before a dynamic loss scale doubles.
    pub loss_scale_window: u64,
    /// A dynamic loss scale never falls below this; an overflow there is an error. 0 = none, as in PyTorch.
    pub loss_scale_min: f64,
    /// Which overflow lowers a dynamic loss scale: 1 = the first, as in PyTorch; DeepSpeed's is 2.
    pub loss_scale_hysteresis: u64,
    /// Whether every good step starts the count of overflows anew, instead of only those that raise the loss scale.
    pub loss_scale_consecutive_hysteresis: bool,
    /// Seed of initialisation, shuffling, dropout and drop path.
    pub seed: u64,
    /// Epochs between two validations.
    pub validate_every: usize,
    /// Validations without improvement after which a run stops; null = never.
    pub early_stopping_patience: Option<u64>,
    /// How much lower the validation loss must be to count as an improvement.
    pub early_stopping_min_delta: f64,
    /// A run stops before it would exceed this many model FLOPs (forward and backward); null = no budget.
    pub flops_budget: Option<f64>,
    /// A run stops before it would exceed this many hours; null = no budget. A resumed run carries what it spent.
    pub time_budget_hours: Option<f64>,
    /// Epochs between two checkpoints.
    pub save_every: usize,
    /// Newest checkpoints that are kept; 0 = all. The last good one is never deleted.
    pub max_checkpoints: usize,
    /// Checkpoints go to the folder of this name, below it a folder of the experiment's name.
    pub checkpoint_dir: PathBuf,
    /// Logs go to the folder of this name, below it a folder of the experiment's name.
    pub log_dir: PathBuf,
    /// Steps between two lines of the log.
    pub log_frequency: u64,
    /// What is written besides `metrics.jsonl`.
    pub logging_backend: LoggingBackend,
    /// A one-step report of FLOPs by module.
    pub flops_profiler: FlopsProfilerConfig,
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Stays.
    Constant,
    /// Half a cosine to `min_lr` at the last planned step.
    Cosine,
    /// Multiplied by `lr_step_factor` every `lr_step_epochs` epochs.
    Step,
    /// The cosine of the Sherlock original: warm-up and cosine are as long as the run has steps and move once an epoch, so
    /// that `learning_rate` is never reached. For comparison only.
    CosinePerEpoch,
}

/// Number type of weights in the forward pass and of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats throughout.
    Fp32,
    /// bfloat16 with fp32 masters.
    Bf16,
    /// half precision with fp32 masters and a loss scale.
    Fp16,
}

/// What gradients are kept in between the passes and the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GradientPrecision {
    /// 32-bit floats.
    Fp32,
    /// The type of the pass, in which matrix products give them: the same numbers in half the memory, but for those of norms and
    /// other f32 arithmetic, which are rounded. Not with several micro-batches a step, whose sum would be.
    Pass,
    /// 32-bit floats; those of weight matrices not at all: the two matrices that such a gradient is the product of are kept, and
    /// norm and update multiply them, in f32, where they need the gradient. For batches of fewer samples than weights have rows.
    /// Not with several micro-batches a step.
    Factors,
}

/// What AdamW's moments are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MomentPrecision {
    /// 32-bit floats.
    Fp32,
    /// bfloat16, rounded up or down at random with the probability of what is cut off: half the memory and a third less to move.
    Bf16Stochastic,
}

/// What is written besides `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoggingBackend {
    /// Event files that TensorBoard reads.
    Tensorboard,
    /// Nothing.
    None,
}

/// The block `flops_profiler` of a DeepSpeed configuration.
///
/// # Source
/// deepspeedai/DeepSpeed, `deepspeed/profiling/config.py`: names and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlopsProfilerConfig {
    /// Whether the report is written.
    pub enabled: bool,
    /// Step that is profiled, from 1.
    pub profile_step: u64,
    /// Depth of the module tree that is printed; -1 = all.
    pub module_depth: i64,
    /// Modules that are listed at every depth.
    pub top_modules: usize,
    /// Whether the module tree is printed.
    pub detailed: bool,
    /// Share of the forward pass that is computed again in the backward pass.
    pub recompute_fwd_factor: f64,
    /// File of the report; null = the log.
    pub output_file: Option<PathBuf>,
}

impl Default for FlopsProfilerConfig {
    fn default() -> FlopsProfilerConfig {
        FlopsProfilerConfig {
            enabled: false,
            profile_step: 1,
            module_depth: -1,
            top_modules: 1,
            detailed: true,
            recompute_fwd_factor: 0.0,
            output_file: None,
        }
    }
}

impl Default for TrainingConfig {
    fn default() -> TrainingConfig {
        TrainingConfig {
            batch_size: 32,
            epochs: 100,
            max_steps: None,
            learning_rate: 1e-4,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            eps: 1e-8,
            moments: MomentPrecision::Fp32,
            gradients: GradientPrecision::Fp32,
            lr_schedule: LrSchedule::Cosine,
            lr_step_epochs: 30,
            lr_step_factor: 0.1,
            warmup_steps: 1000,
            warmup_epochs: 0,
            warmup_start_factor: None,
            min_lr: 0.0,
            gradient_clipping: 1.0,
            gradient_accumulation: 1,
            precision: Precision::Bf16,
            allow_tf32: false,
            loss_scale_init: 65536.0,
            loss_scale_dynamic: true,
            loss_scale_window: 2000,
            loss_scale_min: 1.0,
            loss_scale_hysteresis: 1,
            loss_scale_consecutive_hysteresis: false,
            seed: 0,
            validate_every: 1,
            early_stopping_patience: None,
            early_stopping_min_delta: 0.0,
            flops_budget: None,
            time_budget_hours: None,
            save_every: 1,
            max_checkpoints: 3,
            checkpoint_dir: "checkpoints".into(),
            log_dir: "logs".into(),
            log_frequency: 100,
            logging_backend: LoggingBackend::Tensorboard,
            flops_profiler: FlopsProfilerConfig::default(),
        }
    }
}

impl TrainingConfig {
    /// Samples that one optimiser step sees.
    pub fn samples_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation)
    }

    /// Adds a line to `faults` for everything that cannot be trained with. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        for (key, n) in [
            ("batch_size", self.batch_size as u64),
            ("epochs", self.epochs as u64),
            ("gradient_accumulation", self.gradient_accumulation as u64),
            ("lr_step_epochs", self.lr_step_epochs as u64),
            ("validate_every", self.validate_every as u64),
            ("save_every", self.save_every as u64),
            ("log_frequency", self.log_frequency),
            ("loss_scale_window", self.loss_scale_window),
            ("loss_scale_hysteresis", self.loss_scale_hysteresis),
            ("max_steps", self.max_steps.unwrap_or(1)),
            ("early_stopping_patience", self.early_stopping_patience.unwrap_or(1)),
            ("flops_profiler.profile_step", self.flops_profiler.profile_step),
        ] {
            if !(1..=u64::from(u32::MAX)).contains(&n) {
                faults.push(format!("{key}: expected a whole number from 1 to {}, found {n}", u32::MAX));
            }
        }
        self.validate_numbers(faults);
        let n = self.gradient_accumulation;
        let why = match self.gradients {
            GradientPrecision::Pass => Some("pass: sums would be rounded"),
            GradientPrecision::Factors => Some("factors: these are of one micro-batch"),
            GradientPrecision::Fp32 => None,
        };
        if let Some(why) = why.filter(|_| n > 1) {
            faults.push(format!("gradients: expected fp32 with gradient_accumulation {n}, found {why}"));
        }
        for (key, path) in [("checkpoint_dir", &self.checkpoint_dir), ("log_dir", &self.log_dir)] {
            if path.as_os_str().is_empty() {
                faults
                    .push(format!("{key}: expected a path, found an empty string; leave the key out for its default"));
            }
        }
    }

    fn validate_numbers(&self, faults: &mut Faults) {
        for (key, n, is_sound, expected) in self.ranges() {
            if !is_sound {
                let (expected, mend) = expected.split_once("; ").unwrap_or((expected, ""));
                let mend = if mend.is_empty() { String::new() } else { format!("; {mend}") };
                // 1e18 is easier to read than its 19 digits.
                let n = if n.abs() >= 1e7 { format!("{n:e}") } else { n.to_string() };
                faults.push(format!("{key}: expected {expected}, found {n}{mend}"));
            }
        }
    }

    /// Of every number with a range: key, value, whether it lies inside, and what is expected; how to mend it.
    fn ranges(&self) -> [(&'static str, f64, bool, &'static str); 14] {
        let above_zero = |n: f64| n > 0.0 && n.is_finite();
        let from_zero = |n: f64| n >= 0.0 && n.is_finite();
        let below_one = |n: f64| (0.0..1.0).contains(&n);
        let [beta1, beta2] = self.betas;
        [
            ("learning_rate", self.learning_rate, above_zero(self.learning_rate), "a number above 0; 1e-4 is usual"),
            ("weight_decay", self.weight_decay, from_zero(self.weight_decay), "a number of at least 0; 0.01 is usual"),
            ("betas", beta1, below_one(beta1), "numbers of at least 0 and below 1; [0.9, 0.999] is usual"),
            ("betas", beta2, below_one(beta2), "numbers of at least 0 and below 1; [0.9, 0.999] is usual"),
            ("eps", self.eps, above_zero(self.eps), "a number above 0; 1e-8 is usual"),
            (
                "lr_step_factor",
                self.lr_step_factor,
                self.lr_step_factor > 0.0 && self.lr_step_factor <= 1.0,
                "a factor above 0 and at most 1; 0.1 is usual",
            ),
            (
                "warmup_start_factor",
                self.warmup_start_factor.unwrap_or(0.0),
                self.warmup_start_factor.is_none_or(|n| (0.0..=1.0).contains(&n)),
                "a factor from 0 to 1; null starts with one part of the warm-up",
            ),
            (
                "min_lr",
                self.min_lr,
                from_zero(self.min_lr) && !(self.learning_rate > 0.0 && self.min_lr > self.learning_rate),
                "a number of at least 0 and at most learning_rate; 0 is usual",
            ),
            (
                "gradient_clipping",
                self.gradient_clipping,
                from_zero(self.gradient_clipping),
                "a number of at least 0; 0 turns it off",
            ),
            (
                "loss_scale_init",
                self.loss_scale_init,
                above_zero(self.loss_scale_init) && self.loss_scale_init <= 2f64.powi(32),
                "a number above 0 and at most 2^32; 65536 is usual",
            ),
            (
                "loss_scale_min",
                self.loss_scale_min,
                from_zero(self.loss_scale_min) && self.loss_scale_min <= self.loss_scale_init,
                "a number of at least 0 and at most loss_scale_init; 1 is usual",
            ),
            (
                "early_stopping_min_delta",
                self.early_stopping_min_delta,
                from_zero(self.early_stopping_min_delta),
                "a number of at least 0",
            ),
            (
                "flops_budget",
                self.flops_budget.unwrap_or(1.0),
                self.flops_budget.is_none_or(above_zero),
                "a number of FLOPs above 0, e.g. 1e18; null means no budget",
            ),
            (
                "time_budget_hours",
                self.time_budget_hours.unwrap_or(1.0),
                self.time_budget_hours.is_none_or(above_zero),
                "a number of hours above 0; null means no budget",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_has_no_budget() {
        let mut faults = Faults::new();
        let c = TrainingConfig::default();
        c.validate(&mut faults);
        assert_eq!(faults.to_string(), "");
        assert_eq!((c.batch_size, c.learning_rate, c.flops_budget, c.time_budget_hours), (32, 1e-4, None, None));
    }

    #[test]
    fn every_number_out_of_range_is_listed_and_nan_is_out_of_range() {
        let nan = f64::NAN;
        let mut faults = Faults::new();
        TrainingConfig {
            batch_size: 0,
            max_steps: Some(0),
            learning_rate: nan,
            weight_decay: nan,
            betas: [nan, 1.0],
            eps: 0.0,
            lr_step_factor: nan,
            gradient_clipping: nan,
            loss_scale_init: nan,
            early_stopping_min_delta: nan,
            flops_budget: Some(0.0),
            time_budget_hours: Some(nan),
            checkpoint_dir: "".into(),
            ..Default::default()
        }
        .validate(&mut faults);
        let keys: Vec<&str> = faults.lines().filter_map(|l| l.split(':').next()).collect();
        let want = [
            "batch_size",
            "max_steps",
            "learning_rate",
            "weight_decay",
            "betas",
            "betas",
            "eps",
            "lr_step_factor",
            "gradient_clipping",
            "loss_scale_init",
            "loss_scale_min",
            "early_stopping_min_delta",
            "flops_budget",
            "time_budget_hours",
            "checkpoint_dir",
        ];
        assert_eq!(keys, want, "{faults}");
    }
}
