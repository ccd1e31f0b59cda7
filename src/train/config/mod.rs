//! What a run is: model, data, training and experiment, from YAML, `--set` and the environment.
//!
//! Precedence: `--set key=value`, then the environment variable `MAX_CHECKPOINTS`, then the YAML file, then the default.
//! A key may stand in its block, in another block or without one: names are unique. Unknown keys are errors, all faults
//! of a configuration are listed at once, and what the original accepts without effect gives a notice.

mod convert;
mod keys;
mod load;
mod merge;
mod schema;
mod sherlock;
mod show;
mod source;
pub mod training;
mod validation;
mod value;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::weather::WeatherDataConfig;
use crate::error::{Faults, Result};
use crate::models::weather_vit::WeatherVitConfig;

pub use schema::schema;
pub use sherlock::{MonitorConfig, SherlockExperiment, SherlockRun};
pub use show::{show, yaml};
pub use source::ConfigSource;
pub use training::{
    FlopsProfilerConfig, GradientPrecision, LoggingBackend, LrSchedule, MomentPrecision, Precision, TrainingConfig,
};
pub use validation::{Validation, validate};

/// Everything that decides what a run computes: effective values, defaults filled in.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The model's shape.
    pub model: WeatherVitConfig,
    /// What is read, and from where.
    pub data: WeatherDataConfig,
    /// How it is trained.
    pub training: TrainingConfig,
    /// What the run is called and where it runs.
    pub experiment: ExperimentConfig,
    /// What the caller should print: values that are accepted and mean something else than one may expect.
    #[serde(skip)]
    pub notices: Vec<String>,
    /// Where each value comes from.
    #[serde(skip)]
    pub sources: Sources,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody gave it.
    Default,
    /// The YAML file.
    File {
        /// From 1; 0 = unknown.
        line: u64,
    },
    /// This environment variable.
    Environment(&'static str),
    /// `--set` with this text.
    Override(String),
    /// It follows from this key.
    Follows(&'static str),
}

/// Where each value of a configuration comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    file: String,
    config_name: String,
    by_key: BTreeMap<&'static str, Source>,
}

impl Sources {
    /// The file, as messages name it; `predefined` for the binary's own; empty if none was loaded.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The configuration's name in that file.
    pub fn config_name(&self) -> &str {
        if self.config_name.is_empty() { "base" } else { &self.config_name }
    }

    /// Where the value of `key` (without its block) comes from.
    pub fn of(&self, key: &str) -> &Source {
        self.by_key.get(key).unwrap_or(&Source::Default)
    }
}

/// What the run is called and where it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExperimentConfig {
    /// Name of the run: its folder below `checkpoint_dir` and `log_dir`. Default: the configuration's name.
    pub name: String,
    /// One line about the run.
    pub description: String,
    /// How devices share the work. With one device there is nothing to share.
    pub strategy: Strategy,
    /// Devices of one node. This version runs on 1.
    pub num_gpus: usize,
    /// Nodes. This version runs on 1.
    pub num_nodes: usize,
}

/// How devices share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// One device.
    Single,
    /// Every device has a copy of the model.
    Ddp,
    /// Optimiser state, gradients and weights are spread.
    Fsdp,
    /// As `zero3`, under the name of the library that introduced it.
    Deepspeed,
    /// Optimiser state is spread.
    Zero1,
    /// Optimiser state and gradients are spread.
    Zero2,
    /// Optimiser state, gradients and weights are spread.
    Zero3,
}

impl Default for ExperimentConfig {
    fn default() -> ExperimentConfig {
        ExperimentConfig {
            name: "base".to_owned(),
            description: String::new(),
            strategy: Strategy::Single,
            num_gpus: 1,
            num_nodes: 1,
        }
    }
}

impl PartialEq for RunConfig {
    /// The same run: notices and sources make no difference.
    fn eq(&self, other: &RunConfig) -> bool {
        self.model == other.model
            && self.data == other.data
            && self.training == other.training
            && self.experiment == other.experiment
    }
}

impl ExperimentConfig {
    /// Adds a line to `faults` for everything that cannot be run. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        let name = value::quote(&self.name, 60);
        let is_odd = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
        if self.name.is_empty()
            || self.name.len() > 128
            || self.name.starts_with(['.', '-'])
            || self.name.contains(is_odd)
        {
            faults.push(format!(
                "name: expected the name of a folder (1 to 128 bytes, no / \\ : * ? \" < > |, no dot or dash in front), \
                 found \"{name}\"; write e.g. my_run"
            ));
        }
        for (key, n, what) in [("num_gpus", self.num_gpus, "device"), ("num_nodes", self.num_nodes, "node")] {
            if n != 1 {
                faults.push(format!("{key}: expected 1, found {n}; this version runs on one {what}: --set {key}=1"));
            }
        }
    }
}

impl RunConfig {
    /// Reads the configuration `name` of `source`; without a name its only one, else `base`. `overrides` are texts
    /// `key=value`, later ones win; `env` looks up environment variables (see [`environment`]).
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) with every fault: unknown keys, types, ranges, what does not fit
    /// together. [`Error::Io`](crate::error::Error::Io) if the file cannot be read.
    pub fn load(
        source: &ConfigSource,
        name: Option<&str>,
        overrides: &[String],
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<RunConfig> {
        load::load(source, name, overrides, env)
    }

    /// Adds a line to `faults` for everything that cannot be run. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        self.model.validate(faults);
        self.data.validate(faults);
        self.training.validate(faults);
        if self.training.gradients == GradientPrecision::Factors {
            faults.push(
                "gradients: expected fp32 or pass, found factors: a sample of a field is many tokens, each a row of the product"
                    .to_owned(),
            );
        }
        self.experiment.validate(faults);
        let channels = self.network().input_channels;
        if channels > 1 << 20 && self.data.sequence_length <= 1 << 12 {
            faults.push(format!(
                "sequence_length: expected at most {} stacked channels, found {} frames of {}",
                1 << 20,
                self.data.sequence_length,
                self.model.input_channels
            ));
        }
    }

    /// The network that this run trains: the model, reading `sequence_length` frames stacked on the channels.
    pub fn network(&self) -> WeatherVitConfig {
        let frames = self.data.sequence_length;
        WeatherVitConfig { input_channels: self.model.input_channels.saturating_mul(frames), ..self.model.clone() }
    }
}

/// The environment of this process, for [`RunConfig::load`].
pub fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Name and one-line description of every predefined configuration, in the order of the file.
///
/// # Errors
/// None for the configurations that this binary holds; the signature is that of [`list_of`].
pub fn list() -> Result<Vec<(String, String)>> {
    list_of(&ConfigSource::Embedded)
}

/// Name and one-line description of every configuration of `source`. Faults inside a configuration do not matter here.
///
/// # Errors
/// [`Error::Config`](crate::error::Error::Config) if `source` is not YAML with configurations;
/// [`Error::Io`](crate::error::Error::Io) if it cannot be read.
pub fn list_of(source: &ConfigSource) -> Result<Vec<(String, String)>> {
    let document = source::Document::read(source)?;
    let describe = |config: &source::Named| {
        let loaded = load::load_one(&document, config, &[], &|_| None);
        (config.name.clone(), loaded.map(|c| c.experiment.description).unwrap_or_default())
    };
    Ok(document.configs.iter().map(describe).collect())
}

/// The candidate that `word` most likely means, if one is near.
fn suggest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Distances cost the product of the lengths, and no key is that long.
    if word.len() > 64 {
        return None;
    }
    let near = candidates.filter_map(|candidate| {
        let edits = strsim::damerau_levenshtein(word, candidate);
        let is_near =
            edits <= 2 && 2 * edits < word.chars().count().max(2) || strsim::jaro_winkler(word, candidate) >= 0.9;
        is_near.then_some((edits, candidate))
    });
    near.min_by_key(|(edits, _)| *edits).map(|(_, candidate)| candidate)
}
