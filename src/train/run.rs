//! A whole run: epochs of steps, validations, checkpoints, and the ways to end. Every decision is taken between steps and
//! is a function of what a checkpoint keeps, so a run that was stopped anywhere and goes on ends with the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::{Batches, Dataset, Prefetch, Shuffle};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::train::budget::{Exhausted, Meter, Spent};
use crate::train::checkpoint::CheckpointStore;
use crate::train::config::TrainingConfig;
use crate::train::evaluation::Evaluation;
use crate::train::observer::{Event, Observer};
use crate::train::profile::Watch;
use crate::train::resume;
use crate::train::schedule::Schedule;
use crate::train::stop::{Stop, StopReason};
use crate::train::trainer::{StepReport, Trainer};

/// The size of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunShape {
    /// Its name.
    pub name: String,
    /// Trainable numbers.
    pub parameters: u64,
    /// Samples of the training set.
    pub samples: usize,
    /// Samples of one step.
    pub samples_per_step: usize,
    /// Steps of one epoch.
    pub steps_per_epoch: u64,
    /// Steps in total, unless something ends the run earlier.
    pub total_steps: u64,
    /// Epochs in total.
    pub epochs: u64,
}

/// Where a run is: with the trainer's own state, everything that its continuation depends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch that is going on, from 0.
    pub epoch: u64,
    /// Micro-batches of it that are done.
    pub batch: u64,
    /// The lowest validation loss so far.
    pub best: Option<f64>,
    /// Validations since then.
    pub since_best: u64,
    /// Budgets.
    pub spent: Spent,
    /// Whether all planned steps and the last validation are done.
    pub is_finished: bool,
    /// What the steps of the epoch that is going on found.
    #[serde(default)]
    pub sums: Sums,
    /// The epochs that are done.
    #[serde(default)]
    pub history: Vec<EpochRecord>,
    /// What the schedule of the learning rate was made for; `None` before the first step.
    #[serde(default)]
    pub planned: Option<Planned>,
}

/// The length of a run, as far as its schedule depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Steps of one epoch.
    pub steps_per_epoch: u64,
    /// Steps in total.
    pub total_steps: u64,
}

/// Sums over the steps of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Steps.
    pub steps: u64,
    /// By name, in the order of the first step.
    pub sums: Vec<(String, f64)>,
}

/// What an epoch came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Epochs done with it.
    pub epoch: u64,
    /// Means over its steps by name, the loss among them, and `lr`, the learning rate after it.
    pub train: BTreeMap<String, f64>,
    /// What the validation after it found by name; `None` if there was none.
    pub val: Option<BTreeMap<String, f64>>,
}

impl Sums {
    /// Takes note of a step: of what its model noted, else of its loss.
    fn add(&mut self, noted: &[(&'static str, f64)], loss: f64) {
        let alone = [("loss", loss)];
        let noted = if noted.is_empty() { &alone } else { noted };
        // A number that no file can hold stays out.
        for (name, value) in noted.iter().filter(|(_, v)| v.is_finite()) {
            match self.sums.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum += value,
                None => self.sums.push(((*name).to_owned(), *value)),
            }
        }
        self.steps += 1;
    }

    fn means(&self) -> BTreeMap<String, f64> {
        let steps = self.steps.max(1) as f64;
        self.sums.iter().map(|(name, sum)| (name.clone(), sum / steps)).collect()
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Validation stopped improving.
    EarlyStopped,
    /// A budget is used up; the final checkpoint resumes with a larger one.
    Exhausted(Exhausted),
    /// It was asked to stop; the final checkpoint resumes.
    Stopped(StopReason),
}

impl Outcome {
    /// Whether the run could go on from its final checkpoint: the exit code is then 75.
    pub fn is_resumable(&self) -> bool {
        matches!(self, Outcome::Exhausted(_) | Outcome::Stopped(_))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Finished => f.write_str("finished"),
            Outcome::EarlyStopped => f.write_str("finished: validation stopped improving"),
            Outcome::Exhausted(Exhausted::Flops) => f.write_str("stopped: the FLOPs budget is used up"),
            Outcome::Exhausted(Exhausted::Time) => f.write_str("stopped: the time budget is used up"),
            Outcome::Exhausted(Exhausted::PartTime) => f.write_str("stopped: the time of this process is used up"),
            Outcome::Stopped(reason) => write!(f, "stopped by {reason}"),
        }
    }
}

/// Told how many samples of how many are done; says whether to go on.
pub type Progress<'a> = dyn FnMut(usize, usize) -> Result<bool> + 'a;

/// A validation: the evaluation, or `None` if it was interrupted.
pub type Validate<'a, M> = dyn FnMut(&Trainer<M>, &mut Progress<'_>) -> Result<Option<Evaluation>> + 'a;

/// Everything that a run works with.
pub struct Run<'a, M: Model> {
    /// The trainer, at `position`.
    pub trainer: &'a mut Trainer<M>,
    /// Training samples.
    pub data: Arc<dyn Dataset<Batch = M::Batch>>,
    /// Threads that read ahead.
    pub workers: usize,
    /// How to train.
    pub config: &'a TrainingConfig,
    /// The whole configuration, as checkpoints keep it.
    pub kept_config: serde_json::Value,
    /// The run's name.
    pub name: &'a str,
    /// Where checkpoints go.
    pub store: &'a mut CheckpointStore,
    /// Whether to stop.
    pub stop: Stop,
    /// Budgets.
    pub meter: Meter,
    /// Where the run is.
    pub position: Position,
    /// Who listens.
    pub observer: &'a mut dyn Observer,
    /// Who follows the steps that are to be watched.
    pub profiling: Profiling,
}

impl<M: Model> std::fmt::Debug for Run<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run({}, {:?})", self.name, self.position)
    }
}

/// How far the profile of a run is.
#[derive(Debug, Default)]
pub enum Profiling {
    /// It has not begun, if there will be one.
    #[default]
    Ahead,
    /// Some of its steps are over.
    Begun(Box<Watch>),
    /// It has been shown.
    Done,
}

/// Whether to go on after a part of a run.
enum Next {
    GoOn,
    End(Outcome),
}

impl<M: Model> Run<'_, M>
where
    M::Batch: Send + 'static,
{
    /// The run's size.
    ///
    /// # Errors
    /// [`Error::Config`] if the training set does not fill one step.
    pub fn shape(&self) -> Result<RunShape> {
        let c = self.config;
        let batches = self.batches(0)?.len() as u64;
        let steps_per_epoch = batches / c.gradient_accumulation as u64;
        if steps_per_epoch == 0 {
            return Err(Error::config(format!(
                "gradient_accumulation: expected at most the {batches} batches of an epoch, found {}",
                c.gradient_accumulation
            )));
        }
        let all = steps_per_epoch.saturating_mul(c.epochs as u64);
        let total_steps = c.max_steps.map_or(all, |m| m.min(all));
        Ok(RunShape {
            name: self.name.to_owned(),
            parameters: self.trainer.model().params().count(),
            samples: self.data.len(),
            samples_per_step: c.samples_per_step(),
            steps_per_epoch,
            total_steps,
            epochs: total_steps.div_ceil(steps_per_epoch),
        })
    }

    /// Runs to the end, whichever comes first, and leaves a `final_checkpoint`. Says how and where it ended.
    ///
    /// # Errors
    /// Whatever a step, a validation or a save reports; checkpoints made before stay whole.
    pub fn run(mut self, validate: &mut Validate<'_, M>) -> Result<(Outcome, Position)> {
        let shape = self.shape()?;
        let schedule = Schedule::new(self.config, shape.total_steps, shape.steps_per_epoch);
        let (steps_per_epoch, total_steps) = (shape.steps_per_epoch, shape.total_steps);
        self.position.planned = Some(Planned { steps_per_epoch, total_steps });
        self.observer.event(&Event::Started { shape: &shape, done: self.trainer.progress().step })?;
        if let Some(outcome) = self.is_over(&shape) {
            self.observer.event(&Event::Notice("nothing is left to do: raise epochs or max_steps to go on"))?;
            self.observer.event(&Event::Ended { outcome: &outcome, spent: &self.meter.spent() })?;
            return Ok((outcome, self.position));
        }
        self.position.is_finished = false;
        if self.meter.budget().is_timed() {
            self.expect_save()?;
        }
        let outcome = loop {
            if let Next::End(outcome) = self.epoch(&shape, &schedule)? {
                break outcome;
            }
            if let Next::End(outcome) = self.end_of_epoch(&shape, &schedule, validate)? {
                break outcome;
            }
        };
        if let Profiling::Begun(_) = self.profiling {
            let say = "the run ended before the steps of its profile: --flops-profile=STEP may name an earlier one";
            self.observer.event(&Event::Notice(say))?;
        }
        self.position.is_finished = outcome == Outcome::Finished;
        self.save("final_checkpoint")?;
        self.observer.event(&Event::Ended { outcome: &outcome, spent: &self.meter.spent() })?;
        Ok((outcome, self.position))
    }

    /// Whether the checkpoint that the run goes on from was its end.
    fn is_over(&self, shape: &RunShape) -> Option<Outcome> {
        if self.position.is_finished && self.trainer.progress().step >= shape.total_steps {
            return Some(Outcome::Finished);
        }
        self.is_stale().then_some(Outcome::EarlyStopped)
    }

    /// Whether validation has stopped improving.
    fn is_stale(&self) -> bool {
        self.config.early_stopping_patience.is_some_and(|p| self.position.since_best >= p)
    }

    fn batches(&self, epoch: u64) -> Result<Batches> {
        let shuffle = Some((Shuffle::new(self.config.seed), epoch));
        Batches::new(self.data.len(), self.config.batch_size, true, shuffle)
            .map_err(|e| Error::config(format!("{e} of the training set; lower batch_size")))
    }

    /// The rest of the epoch that is going on.
    fn epoch(&mut self, shape: &RunShape, schedule: &Schedule) -> Result<Next> {
        let accumulation = self.config.gradient_accumulation as u64;
        let end = shape.steps_per_epoch * accumulation;
        if self.position.batch >= end {
            return Ok(Next::GoOn);
        }
        let start = self.position.batch as usize;
        let mut batches =
            Prefetch::new(Arc::clone(&self.data), self.batches(self.position.epoch)?, start, self.workers)?;
        while self.position.batch < end {
            if self.trainer.progress().step >= shape.total_steps {
                return Ok(Next::GoOn);
            }
            if let Some(reason) = self.stop.reason() {
                return Ok(Next::End(Outcome::Stopped(reason)));
            }
            if let Some(budget) = self.meter.exhausted() {
                return Ok(Next::End(Outcome::Exhausted(budget)));
            }
            let began = self.meter.now();
            let mut micro = Vec::with_capacity(accumulation as usize);
            for batch in batches.by_ref().take(accumulation as usize) {
                micro.push(batch?);
            }
            let rate = schedule.rate(self.trainer.progress().step);
            let left = shape.total_steps.saturating_sub(self.trainer.progress().step);
            let report = self.step(&micro, rate, left)?;
            self.position.batch += accumulation;
            self.meter.step(report.cost.model().flops.total(), shape.samples_per_step as u64, began);
            let (epoch, spent) = (self.position.epoch, self.meter.spent());
            let left = self.meter.left(shape.total_steps.saturating_sub(report.step));
            let noted = self.trainer.noted();
            self.position.sums.add(noted, report.loss);
            self.observer.event(&Event::Step { report: &report, noted, epoch, spent: &spent, left })?;
        }
        Ok(Next::GoOn)
    }

    /// One step, of `left`; those from the one on that the configuration names, or the first after it, are watched.
    fn step(&mut self, micro: &[M::Batch], rate: f64, left: u64) -> Result<StepReport> {
        let profiler = &self.config.flops_profiler;
        let is_due = self.trainer.progress().step + 1 >= profiler.profile_step;
        let mut watch = match std::mem::replace(&mut self.profiling, Profiling::Done) {
            Profiling::Begun(watch) => watch,
            Profiling::Ahead if profiler.enabled && is_due => Box::new(self.trainer.watch(micro.len(), left)?),
            other => {
                self.profiling = other;
                return self.trainer.step(micro, rate);
            }
        };
        let report = self.trainer.watched_step(micro, rate, &mut watch)?;
        if watch.is_done() {
            let profile = self.trainer.profile(*watch, &report)?;
            self.observer.event(&Event::Profiled { profile: &profile, report: &report })?;
        } else {
            self.profiling = Profiling::Begun(watch);
        }
        Ok(report)
    }

    /// Validation, early stopping, checkpoints; then the next epoch, or the end.
    fn end_of_epoch(&mut self, shape: &RunShape, schedule: &Schedule, validate: &mut Validate<'_, M>) -> Result<Next> {
        let epochs_done = self.position.epoch + 1;
        let step = self.trainer.progress().step;
        let is_last = step >= shape.total_steps;
        let (mut is_best, mut found) = (false, None);
        let due = |every: usize| is_last || epochs_done.is_multiple_of(every as u64);
        if due(self.config.validate_every) {
            // After it come the last save and perhaps those of the epoch and of the best.
            let saves = 2 + u32::from(due(self.config.save_every));
            let Some(evaluation) = self.validation(validate, saves)? else {
                let ended = self.meter.lacks_time_to_validate(saves).map(Outcome::Exhausted);
                let reason = || Outcome::Stopped(self.stop.reason().unwrap_or(StopReason::Request));
                return Ok(Next::End(ended.unwrap_or_else(reason)));
            };
            let threshold = self.position.best.map(|b| b - self.config.early_stopping_min_delta);
            is_best = !evaluation.loss.is_nan() && threshold.is_none_or(|t| evaluation.loss < t);
            if is_best {
                self.position.best = Some(evaluation.loss);
                self.position.since_best = 0;
            } else {
                self.position.since_best += 1;
            }
            let event = Event::Validated { step, epoch: epochs_done, evaluation: &evaluation, is_best };
            self.observer.event(&event)?;
            found = Some(evaluation);
        }
        self.record(shape, schedule.rate(step), found)?;
        // `max_steps` may end a run inside an epoch: that epoch is not done.
        let is_whole = self.position.batch >= shape.steps_per_epoch * self.config.gradient_accumulation as u64;
        if is_whole {
            self.position.epoch = epochs_done;
            self.position.batch = 0;
            // The last save comes first where there is time for one only.
            if due(self.config.save_every) && self.meter.lacks_time_to_save(2).is_none() {
                self.save(&format!("checkpoint_epoch_{epochs_done}"))?;
            }
        }
        if is_best {
            self.save("best_checkpoint")?;
        }
        if is_last {
            return Ok(Next::End(Outcome::Finished));
        }
        if self.is_stale() {
            return Ok(Next::End(Outcome::EarlyStopped));
        }
        Ok(Next::GoOn)
    }

    /// Closes the book of an epoch, the last one perhaps before its end.
    fn record(&mut self, shape: &RunShape, lr: f64, evaluation: Option<Evaluation>) -> Result<()> {
        let sums = std::mem::take(&mut self.position.sums);
        let mut train = sums.means();
        train.insert("lr".to_owned(), lr);
        let val = evaluation.map(|found| {
            let loss = std::iter::once(("loss".to_owned(), found.loss));
            loss.chain(found.metrics).filter(|(_, v)| v.is_finite()).collect()
        });
        let record = EpochRecord { epoch: self.position.epoch + 1, train, val };
        self.observer.event(&Event::EpochEnded { record: &record, shape })?;
        self.position.history.push(record);
        Ok(())
    }

    /// A validation; `None` if it was interrupted: it then belongs to the run that goes on from here, the position stays.
    /// It leaves time for `saves`.
    fn validation(&mut self, validate: &mut Validate<'_, M>, saves: u32) -> Result<Option<Evaluation>> {
        let (meter, observer, stop) = (&mut self.meter, &mut *self.observer, &self.stop);
        let mut began = None;
        validate(self.trainer, &mut |done, total| {
            if let Some(began) = began {
                meter.batch(began);
            }
            began = Some(meter.now());
            observer.event(&Event::Validating { done, total })?;
            Ok(done == total || stop.reason().is_none() && meter.lacks_time_to_validate(saves).is_none())
        })
    }

    /// What the first save will take, from its bytes and a measured write to the same folder.
    fn expect_save(&mut self) -> Result<()> {
        let bytes = 4 * self.trainer.model().params().count() + self.trainer.moments().bytes() as u64;
        let began = self.meter.now();
        let written = self.store.rehearse(bytes)?;
        let seconds = self.meter.now() - began;
        self.meter.expect_save(seconds * bytes as f64 / written.max(1) as f64);
        Ok(())
    }

    fn save(&mut self, name: &str) -> Result<()> {
        let began = self.meter.now();
        self.position.spent = self.meter.kept();
        let saved = resume::save(self.store, name, self.trainer, &self.position, &self.kept_config)?;
        self.meter.saved(began);
        for warning in &saved.warnings {
            self.observer.event(&Event::Notice(warning))?;
        }
        self.observer.event(&Event::Saved { step: self.trainer.progress().step, path: &saved.path })
    }
}
