//! A run from its configuration: model, data, checkpoints.

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::Exec;
use crate::data::weather::{Split, WeatherBatch, WeatherDataset, WeatherGrid};
use crate::data::{Batches, Dataset, Prefetch};
use crate::error::{Error, Faults, Result};
use crate::models::Model;
use crate::models::weather_vit::WeatherVit;
use crate::tape::Tape;
use crate::tensor::{Spec, Tensor};
use crate::train::budget::Clock;
use crate::train::config::{RunConfig, TrainingConfig};
use crate::train::evaluation::Evaluation;
use crate::train::observer::Observer;
use crate::train::resume::Resume;
use crate::train::run::Outcome;
use crate::train::session::Opened;
use crate::train::stop::Stop;
use crate::train::system::System;
use crate::train::trainer::{StepPlan, Trainer, plan_step};
use crate::train::weather::Scores;

/// Everything that a training run opens before its first step.
#[derive(Debug)]
pub struct Session {
    config: RunConfig,
    opened: Opened<WeatherVit>,
    train: Arc<WeatherDataset>,
    valid: Arc<WeatherDataset>,
}

/// What a model of this configuration reads from the files.
pub fn grid_of(config: &RunConfig) -> WeatherGrid {
    let m = &config.model;
    WeatherGrid {
        input_channels: m.input_channels,
        output_channels: m.output_channels,
        height: m.img_size[0],
        width: m.img_size[1],
    }
}

impl System for RunConfig {
    fn name(&self) -> &str {
        &self.experiment.name
    }

    fn training(&self) -> &TrainingConfig {
        &self.training
    }

    fn workers(&self) -> usize {
        self.data.num_workers
    }

    fn checkpoint_folder(&self) -> PathBuf {
        self.training.checkpoint_dir.join(&self.experiment.name)
    }

    fn log_folder(&self) -> PathBuf {
        self.training.log_dir.join(&self.experiment.name)
    }

    fn sample(&self) -> String {
        format!("{} tokens", self.model.tokens())
    }

    fn kept(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|e| Error::config(format!("configuration: {e}")))
    }

    fn plan(&self) -> Result<StepPlan> {
        let exec = Exec::plan();
        let network = self.network();
        let model = WeatherVit::new(&network, |layout| exec.arena(layout))?;
        let [h, w] = network.img_size;
        let b = self.training.batch_size;
        let batch = WeatherBatch {
            state: exec.alloc(Spec::f32([b, network.input_channels, h, w])?)?,
            target: exec.alloc(Spec::f32([b, network.output_channels, h, w])?)?,
        };
        plan_step(&model, &exec, &batch, &self.training)
    }

    fn training_samples(&self) -> Result<usize> {
        Ok(WeatherDataset::open(&self.data, Split::Train, grid_of(self))?.len())
    }
}

impl Session {
    /// Opens data, model and, if asked, a checkpoint. Nothing is written.
    ///
    /// # Errors
    /// All faults of the data together, as [`Error::Data`]; [`Error::Config`] for a model that cannot be;
    /// [`Error::Checkpoint`] if there is nothing to resume from, or it does not fit; [`Error::Checkpoint`] too if a new run
    /// would mix its checkpoints with those of an earlier one.
    pub fn open(config: &RunConfig, exec: &Exec, resume: &Resume) -> Result<Session> {
        let mut faults = Faults::new();
        let open = |split, faults: &mut Faults| {
            WeatherDataset::open(&config.data, split, grid_of(config)).map_err(|e| faults.absorb(e)).ok()
        };
        let train = open(Split::Train, &mut faults);
        let valid = open(Split::Valid, &mut faults);
        let (Some(train), Some(valid)) = (train, valid) else { return Err(Error::Data(faults)) };
        let make = || WeatherVit::new(&config.network(), |layout| exec.arena(layout));
        let opened = Opened::new(config, exec, resume, make)?;
        Ok(Session { config: config.clone(), opened, train: Arc::new(train), valid: Arc::new(valid) })
    }

    /// The trainer.
    pub fn trainer(&self) -> &Trainer<WeatherVit> {
        &self.opened.trainer
    }

    /// Ends this part of the run, with a checkpoint, before its clock reads `seconds`.
    #[must_use]
    pub fn within(mut self, seconds: f64) -> Session {
        self.opened.part_seconds = Some(seconds);
        self
    }

    /// Runs to the end, whichever comes first.
    ///
    /// # Errors
    /// As [`Run::run`](crate::train::run::Run::run).
    pub fn run(self, stop: &Stop, clock: Box<dyn Clock>, observer: &mut dyn Observer) -> Result<Outcome> {
        let (config, valid) = (self.config, self.valid);
        let (workers, batch) = (config.data.num_workers, config.training.batch_size);
        let (outcome, _) =
            self.opened.run(&config, self.train, (stop, clock), observer, &mut |trainer, progress| {
                evaluate(trainer.model(), trainer.exec(), &trainer.eval_pass(), &valid, batch, workers, progress)
            })?;
        Ok(outcome)
    }
}

/// Loss and metrics of `model` over all samples of `data`, in order. `progress` is told of each batch and may end it: then
/// there is no result.
///
/// # Errors
/// If a sample cannot be read or does not fit; whatever `progress` returns.
pub fn evaluate(
    model: &WeatherVit,
    exec: &Exec,
    pass: &crate::nn::Pass,
    data: &Arc<WeatherDataset>,
    batch_size: usize,
    workers: usize,
    progress: &mut dyn FnMut(usize, usize) -> Result<bool>,
) -> Result<Option<Evaluation>> {
    let total = data.len();
    let batches = Batches::new(total, batch_size.min(total.max(1)), false, None)?;
    let grid = data.grid();
    let mut scores = Scores::new(grid.output_channels, grid.height, data.file_rows());
    let mut done = 0;
    for batch in Prefetch::new(Arc::clone(data), batches, 0, workers)? {
        if !progress(done, total)? {
            return Ok(None);
        }
        let batch = batch?;
        done += score(model, exec, pass, &batch, grid, &mut scores)?;
    }
    progress(done, total)?;
    Ok(Some(scores.finish(data.statistics())))
}

/// Scores one batch; how many samples it had.
fn score(
    model: &WeatherVit,
    exec: &Exec,
    pass: &crate::nn::Pass,
    batch: &WeatherBatch,
    grid: WeatherGrid,
    scores: &mut Scores,
) -> Result<usize> {
    let mut tape = Tape::with_params(exec, model.params().arena()).inference();
    let state = tape.input(&batch.state)?;
    let forecast = model.forward(&mut tape, state, pass)?;
    let target = tape.input(&batch.target)?;
    let loss = tape.apply(crate::ops::relative_l2::RelativeL2, [forecast, target])?;
    let loss = f64::from(tape.tensor(loss)?.item()?);
    let forecast = tape.value(forecast)?;
    let now = last_frame(&batch.state, grid)?;
    scores.add(forecast.spec(), &forecast.to_f32()?, &batch.target.to_f32()?, now.as_deref(), loss)?;
    Ok(forecast.spec().shape().first().copied().unwrap_or(0))
}

/// The channels of the last input frame that are predicted; `None` if some are not among the input's.
pub(super) fn last_frame(state: &Tensor, grid: WeatherGrid) -> Result<Option<Vec<f32>>> {
    if grid.output_channels > grid.input_channels {
        return Ok(None);
    }
    let all = state.to_f32()?;
    let area = grid.height * grid.width;
    let channels = state.shape().get(1).copied().unwrap_or(0);
    let first = channels.saturating_sub(grid.input_channels) * area;
    let wanted = grid.output_channels * area;
    let samples = all.chunks_exact((channels * area).max(1));
    Ok(Some(samples.flat_map(|s| s.iter().skip(first).take(wanted).copied()).collect()))
}
