//! A run from its configuration: model, data, checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::Exec;
use crate::data::Dataset;
use crate::data::sherlock::{Batch, Part, Recording, Stimulus};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::sherlock::Sherlock;
use crate::nn::Pass;
use crate::tensor::Spec;
use crate::train::budget::{Budget, Clock, Meter};
use crate::train::checkpoint::CheckpointStore;
use crate::train::config::SherlockRun;
use crate::train::observer::{Event, Observer};
use crate::train::resume::{self, Resume};
use crate::train::run::{Outcome, Position, Profiling, Run};
use crate::train::sherlock::evaluate;
use crate::train::stop::Stop;
use crate::train::trainer::{StepPlan, Trainer, plan_step};

/// The samples of a part of the film.
type Samples = Arc<dyn Dataset<Batch = Batch>>;

/// Everything that a training run opens before its first step.
///
/// ```no_run
/// use perfrun::backend::Exec;
/// use perfrun::train::budget::SystemClock;
/// use perfrun::train::config::{ConfigSource, SherlockRun};
/// use perfrun::train::observer::Observers;
/// use perfrun::train::resume::Resume;
/// use perfrun::train::sherlock::Session;
/// use perfrun::train::stop::Stop;
///
/// # fn main() -> perfrun::error::Result<()> {
/// let run = SherlockRun::load(&ConfigSource::Embedded, Some("sherlock-tiny"), &["data_dir=film".into()])?;
/// let session = Session::open(&run, &Exec::cpu(), &Resume::Never)?;
/// let history = session.run(&Stop::new(), Box::new(SystemClock::default()), &mut Observers::new())?;
/// println!("best validation loss: {:?}, after {} epochs", history.best_val_loss, history.train_history.len());
/// # Ok(())
/// # }
/// ```
pub struct Session {
    run: SherlockRun,
    trainer: Trainer<Sherlock>,
    train: Samples,
    valid: Samples,
    store: CheckpointStore,
    position: Position,
    part_seconds: Option<f64>,
    notices: Vec<String>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({}, {:?})", self.run.experiment.name, self.position)
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// Why it ended.
    pub outcome: Outcome,
    /// Of each epoch the means over its steps by name: `total_loss`, `reconstruction_loss`, `video_loss`, `audio_loss`,
    /// `text_loss`, `fmri_loss`, and `lr`.
    pub train_history: Vec<BTreeMap<String, f64>>,
    /// Of each validation the same, and `fmri_correlation`, `fmri_r2`, `fmri_voxel_correlation`.
    pub val_history: Vec<BTreeMap<String, f64>>,
    /// The lowest validation loss; `None` before the first validation.
    pub best_val_loss: Option<f64>,
}

impl Session {
    /// Opens data, model and, if asked, a checkpoint. Nothing is written.
    ///
    /// # Errors
    /// All faults of the data together, as [`Error::Data`]; else as [`Session::with_data`].
    pub fn open(run: &SherlockRun, exec: &Exec, resume: &Resume) -> Result<Session> {
        let recording = Recording::open(&run.data, Some(run.model.sizes()))?;
        let (train, valid) = (recording.part(Part::Train), recording.part(Part::Validation));
        Session::with_data(run, exec, Arc::new(train), Arc::new(valid), resume)
    }

    /// A run on these samples, wherever they come from.
    ///
    /// # Errors
    /// [`Error::Config`] for a model that cannot be; [`Error::Checkpoint`] if there is nothing to resume from, or it does not
    /// fit, or a new run would mix its checkpoints with those of an earlier one.
    pub fn with_data(
        run: &SherlockRun,
        exec: &Exec,
        train: Samples,
        valid: Samples,
        resume: &Resume,
    ) -> Result<Session> {
        let store = CheckpointStore::new(run.training.checkpoint_dir.clone(), run.training.max_checkpoints);
        let resume = match (&run.experiment.resume_from, resume) {
            (Some(path), Resume::Never) => &Resume::From(path.clone()),
            _ => resume,
        };
        let (checkpoint, mut notices) = resume::find_or_fresh(&store, resume)?;
        let mut model = Sherlock::new(&run.model, &run.loss, |layout| exec.arena(layout))?;
        if checkpoint.is_none() {
            model.params_mut().initialise(run.training.seed)?;
        }
        let mut trainer = Trainer::new(model, exec, &run.training)?;
        let mut position = Position::default();
        if let Some(checkpoint) = checkpoint {
            let (at, lines) = resume::go_on(&mut trainer, &checkpoint, &kept(run)?)?;
            notices.extend(lines);
            position = at;
        }
        let run = run.clone();
        Ok(Session { run, trainer, train, valid, store, position, part_seconds: None, notices })
    }

    /// The trainer.
    pub fn trainer(&self) -> &Trainer<Sherlock> {
        &self.trainer
    }

    /// How many samples are trained and validated on.
    pub fn samples(&self) -> [usize; 2] {
        [self.train.len(), self.valid.len()]
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
    pub fn run(mut self, stop: &Stop, clock: Box<dyn Clock>, observer: &mut dyn Observer) -> Result<History> {
        for notice in &self.notices {
            observer.event(&Event::Notice(notice))?;
        }
        let training = &self.run.training;
        let budget = Budget { part_seconds: self.part_seconds, ..Budget::new(training) };
        let step_flops = plan(&self.run)?.cost.model().flops.total() * training.gradient_accumulation as u128;
        let meter = Meter::new(budget, self.position.spent, step_flops, clock);
        let (valid, workers, batch) = (Arc::clone(&self.valid), self.run.data.num_workers, training.batch_size);
        let run = Run {
            trainer: &mut self.trainer,
            data: self.train,
            workers,
            config: training,
            kept_config: kept(&self.run)?,
            name: &self.run.experiment.name,
            store: &mut self.store,
            stop: stop.clone(),
            meter,
            position: self.position,
            observer,
            profiling: Profiling::Ahead,
        };
        // As in the original validation is in f32, whatever training is in.
        let (outcome, position) = run.run(&mut |trainer, progress| {
            evaluate(trainer.model(), trainer.exec(), &Pass::eval(), &valid, batch, workers, progress)
        })?;
        let (mut train_history, mut val_history) = (Vec::new(), Vec::new());
        for record in position.history {
            train_history.push(record.train);
            val_history.extend(record.val);
        }
        Ok(History { outcome, train_history, val_history, best_val_loss: position.best })
    }
}

/// The configuration as checkpoints keep it.
fn kept(run: &SherlockRun) -> Result<serde_json::Value> {
    serde_json::to_value(run).map_err(|e| Error::config(format!("configuration: {e}")))
}

/// What a training step of this configuration costs and needs: no data, no numbers.
///
/// # Errors
/// [`Error::Config`] for a model that cannot be.
pub fn plan(run: &SherlockRun) -> Result<StepPlan> {
    let exec = Exec::plan();
    let model = Sherlock::new(&run.model, &run.loss, |layout| exec.arena(layout))?;
    let (b, sizes) = (run.training.batch_size, run.model.sizes());
    let [video, audio, text] = sizes.stimulus(b)?;
    let input = Stimulus { video: exec.alloc(video)?, audio: exec.alloc(audio)?, text: exec.alloc(text)? };
    let fmri = exec.alloc(Spec::f32([b, sizes.voxels])?)?;
    plan_step(&model, &exec, &Batch { target: input.clone(), input, fmri }, &run.training)
}
