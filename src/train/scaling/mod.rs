//! Scaling experiments: what is scaled by what, and the laws that are fitted to what came out.
//!
//! # Source
//! The weather transformer's `run_scaling_experiments.py`: the types, their factors and the names of the files. Differs on
//! purpose: the scaled values reach the run (the original writes them where nobody reads them), the number of devices stays that
//! of a node, and what a factor cannot give is said instead of rounded in silence.

mod isoflop;
mod law;
mod minimise;
mod resample;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::weather::config::Crop;
use crate::error::{Error, Faults, Result};
use crate::train::config::{Precision, RunConfig};

pub use isoflop::{IsoFlop, Parabola, isoflop};
pub use law::{Law, Point, Term, fit};
pub use resample::Interval;

/// What an experiment scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Layers and heads.
    Model,
    /// The width of a token.
    Embedding,
    /// Frames of the input.
    Sequence,
    /// Rows and columns of the grid.
    Resolution,
    /// Samples of a step; the learning rate grows with the root of the factor.
    Batch,
    /// The part of the training samples that is used, at most all of them.
    Data,
    /// The number type: the factor is 0 for fp32, 1 for fp16, 2 for bf16.
    Precision,
    /// Nodes: the factor is their number. On more than one an experiment is written, but does not run in this version.
    Node,
}

impl Scale {
    /// All of them.
    pub const ALL: [Scale; 8] = [
        Scale::Model,
        Scale::Embedding,
        Scale::Sequence,
        Scale::Resolution,
        Scale::Batch,
        Scale::Data,
        Scale::Precision,
        Scale::Node,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Scale::Model => "model",
            Scale::Embedding => "embedding",
            Scale::Sequence => "sequence",
            Scale::Resolution => "resolution",
            Scale::Batch => "batch",
            Scale::Data => "data",
            Scale::Precision => "precision",
            Scale::Node => "node",
        }
    }

    /// Whether runs of this type differ in parameters and data alone, so that one law can describe them.
    pub fn is_of_the_law(self) -> bool {
        matches!(self, Scale::Model | Scale::Embedding | Scale::Data)
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scale {
    type Err = Error;

    fn from_str(text: &str) -> Result<Scale> {
        let found = Scale::ALL.into_iter().find(|s| s.name() == text);
        found.ok_or_else(|| {
            let names = Scale::ALL.map(Scale::name).join(", ");
            Error::argument(format!("scale type: expected one of {names}, found `{text}`"))
        })
    }
}

/// A configuration that was scaled.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// What was scaled.
    pub scale: Scale,
    /// By what.
    pub factor: f64,
    /// The FLOPs budget, if the sweep has several.
    pub flops_budget: Option<f64>,
    /// The configuration, under the experiment's name.
    pub config: RunConfig,
    /// What differs from the plain product.
    pub notes: Vec<String>,
}

impl Experiment {
    /// `base` scaled: `{type}_scale_{factor}`, its factor written with a point as in `model_scale_2.0`.
    ///
    /// # Errors
    /// [`Error::Config`] if the factor gives nothing that can be trained, with why.
    pub fn new(base: &RunConfig, scale: Scale, factor: f64) -> Result<Experiment> {
        let mut config = base.clone();
        config.experiment.name = format!("{scale}_scale_{factor:?}");
        config.experiment.description = format!("{}: {scale} x {factor:?}", base.experiment.name);
        let mut notes = Vec::new();
        let wrong = |why: String| Error::config(format!("{scale}_scale_{factor:?}: {why}"));
        if !(factor.is_finite() && (factor > 0.0 || scale == Scale::Precision)) {
            return Err(wrong(format!("factor: expected a number above 0, found {factor}")));
        }
        let mut times = |key: &str, n: usize| whole(key, n, factor, &mut notes).map_err(&wrong);
        let (model, training) = (&mut config.model, &mut config.training);
        match scale {
            Scale::Model => {
                model.num_layers = times("num_layers", model.num_layers)?;
                model.num_heads = times("num_heads", model.num_heads)?;
            }
            Scale::Embedding => model.embed_dim = times("embed_dim", model.embed_dim)?,
            Scale::Sequence => config.data.sequence_length = times("sequence_length", config.data.sequence_length)?,
            Scale::Resolution => {
                for n in &mut model.img_size {
                    // Whole patches.
                    let patches = *n as f64 * factor / model.patch_size.max(1) as f64;
                    if patches < 1.0 {
                        return Err(wrong(format!("img_size: {n} x {factor} is less than a patch")));
                    }
                    let scaled = patches as usize * model.patch_size;
                    if scaled as f64 != *n as f64 * factor {
                        notes.push(format!("img_size: {scaled} for {n} x {factor}, a multiple of patch_size"));
                    }
                    *n = scaled;
                }
                if factor < 1.0 && config.data.crop == Crop::None {
                    config.data.crop = Crop::TopLeft;
                    notes.push("crop: top_left, since the files have the larger grid".into());
                }
            }
            Scale::Batch => {
                training.batch_size = times("batch_size", training.batch_size)?;
                training.learning_rate *= factor.sqrt();
            }
            Scale::Data => config.data.data_subset = (config.data.data_subset * factor).min(1.0),
            Scale::Precision => {
                training.precision = match factor {
                    0.0 => Precision::Fp32,
                    1.0 => Precision::Fp16,
                    2.0 => Precision::Bf16,
                    _ => return Err(wrong(format!("expected 0 for fp32, 1 for fp16 or 2 for bf16, found {factor}"))),
                };
            }
            Scale::Node => config.experiment.num_nodes = whole("num_nodes", 1, factor, &mut notes).map_err(&wrong)?,
        }
        if let Some(first) = faults_of(&config).lines().next() {
            return Err(wrong(first.to_owned()));
        }
        Ok(Experiment { scale, factor, flops_budget: None, config, notes })
    }

    /// Its name: that of its file, of its folders and of its line in the results.
    pub fn name(&self) -> &str {
        &self.config.experiment.name
    }

    /// Nodes that it runs on: more than one are for a job of its own.
    pub fn nodes(&self) -> usize {
        self.config.experiment.num_nodes
    }

    /// The same with a FLOPs budget that its schedule knows: the learning rate ends where the budget does. A step costs
    /// `step_flops`.
    ///
    /// # Errors
    /// [`Error::Config`] if the budget holds no step.
    pub fn within(mut self, budget: f64, step_flops: u128) -> Result<Experiment> {
        let steps = (budget / step_flops.max(1) as f64) as u64;
        let name = format!("{}_flops_{budget:e}", self.name());
        if steps == 0 {
            let text =
                format!("{name}: flops_budget: expected at least {step_flops}, those of a step, found {budget:e}");
            return Err(Error::config(text));
        }
        self.config.experiment.name = name;
        self.flops_budget = Some(budget);
        let training = &mut self.config.training;
        training.flops_budget = Some(budget);
        training.max_steps = Some(training.max_steps.map_or(steps, |m| m.min(steps)));
        // An epoch has a step or more, so these are enough.
        training.epochs = training.epochs.max(steps.min(u64::from(u32::MAX)) as usize);
        faults_of(&self.config).into_result(Error::Config)?;
        Ok(self)
    }

    /// Whether `other` trains the same thing under another name.
    pub fn is_same_run(&self, other: &Experiment) -> bool {
        let mut config = other.config.clone();
        config.experiment = self.config.experiment.clone();
        config.experiment.num_nodes = other.config.experiment.num_nodes;
        config == self.config
    }
}

/// What cannot be run of a configuration, on however many nodes.
fn faults_of(config: &RunConfig) -> Faults {
    let mut on_one = config.clone();
    on_one.experiment.num_nodes = 1;
    let mut faults = Faults::new();
    on_one.validate(&mut faults);
    faults
}

/// `n` times `factor`, cut to a whole number as the original does; what was cut is noted.
fn whole(key: &str, n: usize, factor: f64, notes: &mut Vec<String>) -> Result<usize, String> {
    let exact = n as f64 * factor;
    let cut = exact as usize;
    if cut == 0 {
        return Err(format!("{key}: {n} x {factor} is less than 1"));
    }
    if cut as f64 != exact {
        notes.push(format!("{key}: {cut} for {n} x {factor}"));
    }
    Ok(cut)
}

/// What came out of one run of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The experiment's name.
    pub name: String,
    /// What was scaled.
    pub scale: Scale,
    /// By what.
    pub factor: f64,
    /// The FLOPs budget, if the sweep has several.
    pub flops_budget: Option<f64>,
    /// The experiment that trained the same, whose result this is.
    pub same_as: Option<String>,
    /// Trainable numbers.
    pub parameters: u64,
    /// Tokens seen in training: samples times tokens of a sample.
    pub tokens: f64,
    /// Samples seen in training.
    pub samples: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Model FLOPs, forward and backward.
    pub flops: f64,
    /// Validation loss at the end.
    pub final_loss: f64,
    /// Seconds of all steps.
    pub step_seconds: f64,
    /// FLOPs of matrix products a second, over what the device was measured to reach in a large product.
    pub mfu: Option<f64>,
    /// Energy in joules, where the machine tells.
    pub energy_joules: Option<f64>,
    /// How it ended.
    pub outcome: String,
    /// Hash of the configuration.
    pub config_hash: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> RunConfig {
        let mut config = RunConfig::default();
        (config.model.num_layers, config.model.num_heads, config.model.embed_dim) = (4, 4, 128);
        config.model.img_size = [64, 128];
        config.training.batch_size = 4;
        config
    }

    fn of(scale: Scale, factor: f64) -> Experiment {
        Experiment::new(&local(), scale, factor).unwrap()
    }

    #[test]
    fn every_type_scales_what_its_name_says_and_nothing_else() {
        let base = local();
        let changes = |scale, factor| {
            let mut config = of(scale, factor).config;
            config.experiment.name = base.experiment.name.clone();
            config.experiment.description = base.experiment.description.clone();
            base.differences(&config)
        };
        assert_eq!(
            changes(Scale::Model, 2.0),
            ["model.num_layers: 4 here, 8 there", "model.num_heads: 4 here, 8 there"]
        );
        assert_eq!(changes(Scale::Embedding, 0.5), ["model.embed_dim: 128 here, 64 there"]);
        assert_eq!(changes(Scale::Sequence, 4.0), ["data.sequence_length: 1 here, 4 there"]);
        assert_eq!(changes(Scale::Resolution, 2.0), ["model.img_size: [64, 128] here, [128, 256] there"]);
        let batch = changes(Scale::Batch, 4.0);
        assert_eq!(
            batch,
            ["training.batch_size: 4 here, 16 there", "training.learning_rate: 0.0001 here, 0.0002 there"]
        );
        assert_eq!(changes(Scale::Data, 0.25), ["data.data_subset: 1.0 here, 0.25 there"]);
        assert!(changes(Scale::Data, 4.0).is_empty(), "there is no more data than all of it");
        assert_eq!(changes(Scale::Precision, 0.0), ["training.precision: bf16 here, fp32 there"]);
        assert_eq!(of(Scale::Precision, 1.0).config.training.precision, Precision::Fp16);
        assert!(changes(Scale::Node, 1.0).is_empty());
        assert_eq!(of(Scale::Node, 4.0).nodes(), 4);
        assert_eq!(of(Scale::Model, 0.5).name(), "model_scale_0.5");
        assert_eq!(of(Scale::Model, 2.0).name(), "model_scale_2.0");
    }

    #[test]
    fn what_a_factor_cannot_give_is_an_error_or_a_note() {
        for (scale, factor, why) in [
            (Scale::Sequence, 0.5, "sequence_scale_0.5: sequence_length: 1 x 0.5 is less than 1"),
            (Scale::Embedding, 0.99, "embedding_scale_0.99: "),
            (Scale::Precision, 3.0, "expected 0 for fp32"),
            (Scale::Node, 0.5, "node_scale_0.5: num_nodes: 1 x 0.5 is less than 1"),
            (Scale::Batch, f64::NAN, "expected a number above 0"),
            (Scale::Batch, -1.0, "expected a number above 0"),
            (Scale::Resolution, 0.05, "less than a patch"),
        ] {
            let e = Experiment::new(&local(), scale, factor).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
        assert_eq!(of(Scale::Batch, 0.3).notes, ["batch_size: 1 for 4 x 0.3"]);
        let half = of(Scale::Resolution, 0.4);
        assert_eq!((half.config.model.img_size, half.config.data.crop), ([24, 48], Crop::TopLeft));
        assert_eq!(half.notes.len(), 3, "{:?}", half.notes);
    }

    #[test]
    fn a_budget_gives_a_run_its_last_step() {
        let e = of(Scale::Model, 1.0).within(1e6, 300_000).unwrap();
        assert_eq!((e.name(), e.config.training.max_steps), ("model_scale_1.0_flops_1e6", Some(3)));
        assert!(of(Scale::Model, 1.0).within(1e5, 300_000).unwrap_err().to_string().contains("at least 300000"));
    }

    #[test]
    fn experiments_at_factor_one_are_one_run() {
        assert!(of(Scale::Model, 1.0).is_same_run(&of(Scale::Batch, 1.0)));
        assert!(of(Scale::Data, 4.0).is_same_run(&of(Scale::Batch, 1.0)));
        assert!(!of(Scale::Model, 1.0).is_same_run(&of(Scale::Model, 2.0)));
        assert!(!of(Scale::Model, 1.0).is_same_run(&of(Scale::Node, 2.0)));
    }
}
