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
use crate::train::budget::{Budget, Clock, Meter};
use crate::train::checkpoint::CheckpointStore;
use crate::train::config::RunConfig;
use crate::train::evaluation::Evaluation;
use crate::train::observer::{Event, Observer};
use crate::train::resume::{self, Resume};
use crate::train::run::{Outcome, Position, Profiling, Run};
use crate::train::stop::Stop;
use crate::train::trainer::{StepPlan, Trainer, plan_step};
use crate::train::weather::Scores;

/// Everything that a training run opens before its first step.
#[derive(Debug)]
pub struct Session {
    config: RunConfig,
    trainer: Trainer<WeatherVit>,
    train: Arc<WeatherDataset>,
    valid: Arc<WeatherDataset>,
    store: CheckpointStore,
    position: Position,
    part_seconds: Option<f64>,
    notices: Vec<String>,
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

/// The folder of the checkpoints of a configuration.
pub fn checkpoint_folder(config: &RunConfig) -> PathBuf {
    config.training.checkpoint_dir.join(&config.experiment.name)
}

/// The folder of its logs.
pub fn log_folder(config: &RunConfig) -> PathBuf {
    config.training.log_dir.join(&config.experiment.name)
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
        let store = CheckpointStore::new(checkpoint_folder(config), config.training.max_checkpoints);
        let (checkpoint, mut notices) = resume::find_or_fresh(&store, resume)?;
        let mut model = WeatherVit::new(&config.network(), |layout| exec.arena(layout))?;
        model.params_mut().initialise(config.training.seed)?;
        let mut trainer = Trainer::new(model, exec, &config.training)?;
        let mut position = Position::default();
        if let Some(checkpoint) = checkpoint {
            let (at, lines) = resume::go_on(&mut trainer, &checkpoint, &kept(config)?)?;
            notices.extend(lines);
            position = at;
        }
        Ok(Session {
            config: config.clone(),
            trainer,
            train: Arc::new(train),
            valid: Arc::new(valid),
            store,
            position,
            part_seconds: None,
            notices,
        })
    }

    /// The trainer.
    pub fn trainer(&self) -> &Trainer<WeatherVit> {
        &self.trainer
    }

    /// Ends this part of the run, with a checkpoint, before its clock reads `seconds`.
    #[must_use]
    pub fn within(mut self, seconds: f64) -> Session {
        self.part_seconds = Some(seconds);
        self
    }

    /// Runs to the end, whichever comes first.
    ///
    /// # Errors
    /// As [`Run::run`].
    pub fn run(mut self, stop: &Stop, clock: Box<dyn Clock>, observer: &mut dyn Observer) -> Result<Outcome> {
        for notice in &self.notices {
            observer.event(&Event::Notice(notice))?;
        }
        let budget = Budget { part_seconds: self.part_seconds, ..Budget::new(&self.config.training) };
        let step_flops = step_flops(&self.config)?;
        let meter = Meter::new(budget, self.position.spent, step_flops, clock);
        let (valid, workers, batch) =
            (Arc::clone(&self.valid), self.config.data.num_workers, self.config.training.batch_size);
        let run = Run {
            trainer: &mut self.trainer,
            data: self.train,
            workers,
            config: &self.config.training,
            kept_config: kept(&self.config)?,
            name: &self.config.experiment.name,
            store: &mut self.store,
            stop: stop.clone(),
            meter,
            position: self.position,
            observer,
            profiling: Profiling::Ahead,
        };
        let (outcome, _) = run.run(&mut |trainer, progress| {
            evaluate(trainer.model(), trainer.exec(), &trainer.eval_pass(), &valid, batch, workers, progress)
        })?;
        Ok(outcome)
    }
}

/// The configuration as checkpoints keep it.
pub(super) fn kept(config: &RunConfig) -> Result<serde_json::Value> {
    serde_json::to_value(config).map_err(|e| Error::config(format!("configuration: {e}")))
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

/// Model FLOPs of one optimiser step of this configuration, forward and backward: what a FLOPs budget counts.
///
/// # Errors
/// As [`plan`].
pub fn step_flops(config: &RunConfig) -> Result<u128> {
    Ok(plan(config)?.cost.model().flops.total() * config.training.gradient_accumulation as u128)
}

/// What a training step of this configuration costs and needs: no data, no numbers.
///
/// # Errors
/// [`Error::Config`] for a model that cannot be.
pub fn plan(config: &RunConfig) -> Result<StepPlan> {
    let exec = Exec::plan();
    let network = config.network();
    let model = WeatherVit::new(&network, |layout| exec.arena(layout))?;
    let [h, w] = network.img_size;
    let b = config.training.batch_size;
    let batch = WeatherBatch {
        state: exec.alloc(Spec::f32([b, network.input_channels, h, w])?)?,
        target: exec.alloc(Spec::f32([b, network.output_channels, h, w])?)?,
    };
    plan_step(&model, &exec, &batch, &config.training)
}
