//! What a run is: model, data, training and experiment, from YAML, `--set` and the environment.

pub mod training;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::weather::WeatherDataConfig;
use crate::models::weather_vit::WeatherVitConfig;

pub use training::{FlopsProfilerConfig, LoggingBackend, LrSchedule, Precision, TrainingConfig};

/// Everything that decides what a run computes: effective values, defaults filled in.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
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

impl RunConfig {
    /// The network that this run trains: the model, reading `sequence_length` frames stacked on the channels.
    pub fn network(&self) -> WeatherVitConfig {
        let frames = self.data.sequence_length;
        WeatherVitConfig { input_channels: self.model.input_channels.saturating_mul(frames), ..self.model.clone() }
    }
}
