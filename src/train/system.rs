//! What the configurations of all systems can say of their runs, whichever model they train.

use std::path::PathBuf;

use serde_json::Value;

use crate::error::Result;
use crate::train::config::TrainingConfig;
use crate::train::trainer::StepPlan;

/// A configuration of a run.
pub trait System {
    /// Name of the run.
    fn name(&self) -> &str;

    /// How it is trained.
    fn training(&self) -> &TrainingConfig;

    /// Threads that read ahead.
    fn workers(&self) -> usize;

    /// The folder of its checkpoints.
    fn checkpoint_folder(&self) -> PathBuf;

    /// The folder of its logs.
    fn log_folder(&self) -> PathBuf;

    /// What one sample is, in a few words.
    fn sample(&self) -> String;

    /// The configuration as checkpoints keep it.
    ///
    /// # Errors
    /// None: every value has a form.
    fn kept(&self) -> Result<Value>;

    /// What a training step costs and needs: no data, no numbers.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) for a model that cannot be.
    fn plan(&self) -> Result<StepPlan>;

    /// Training samples, counted in the data set.
    ///
    /// # Errors
    /// As opening the data set.
    fn training_samples(&self) -> Result<usize>;

    /// Model FLOPs of one optimiser step, forward and backward: what a FLOPs budget counts.
    ///
    /// # Errors
    /// As [`plan`](System::plan).
    fn step_flops(&self) -> Result<u128> {
        Ok(self.plan()?.cost.model().flops.total() * self.training().gradient_accumulation as u128)
    }
}
