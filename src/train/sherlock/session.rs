//! A run from its configuration: model, data, checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::Exec;
use crate::data::Dataset;
use crate::data::sherlock::{Batch, Part, Recording, Stimulus};
use crate::error::{Error, Result};
use crate::models::sherlock::Sherlock;
use crate::nn::Pass;
use crate::tensor::Spec;
use crate::train::budget::Clock;
use crate::train::config::{SherlockRun, TrainingConfig};
use crate::train::observer::Observer;
use crate::train::resume::Resume;
use crate::train::run::{Outcome, Progress};
use crate::train::session::Opened;
use crate::train::sherlock::evaluate;
use crate::train::stop::Stop;
use crate::train::system::System;
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
    opened: Opened<Sherlock>,
    train: Samples,
    valid: Samples,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({}, {:?})", self.run.experiment.name, self.opened.position())
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
        let given = run.experiment.resume_from.as_ref();
        let resume = match (resume, given) {
            (Resume::Never, Some(path)) => &Resume::From(folder_of(path)),
            _ => resume,
        };
        let make = || Sherlock::new(&run.model, &run.loss, |layout| exec.arena(layout));
        let opened = Opened::new(run, exec, resume, make)?;
        Ok(Session { run: run.clone(), opened, train, valid })
    }

    /// The trainer.
    pub fn trainer(&self) -> &Trainer<Sherlock> {
        &self.opened.trainer
    }

    /// Epochs that are done.
    pub fn epochs(&self) -> u64 {
        self.opened.position().epoch
    }

    /// The lowest validation loss so far; `None` before the first validation.
    pub fn best_val_loss(&self) -> Option<f64> {
        self.opened.position().best
    }

    /// How many samples are trained and validated on.
    pub fn samples(&self) -> [usize; 2] {
        [self.train.len(), self.valid.len()]
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
    pub fn run(self, stop: &Stop, clock: Box<dyn Clock>, observer: &mut dyn Observer) -> Result<History> {
        let (run, valid) = (self.run, self.valid);
        let (workers, batch) = (run.data.num_workers, run.training.batch_size);
        // As in the original validation is in f32, whatever training is in.
        let validate = &mut |trainer: &Trainer<Sherlock>, progress: &mut Progress<'_>| {
            evaluate(trainer.model(), trainer.exec(), &Pass::eval(), &valid, batch, workers, progress)
        };
        let (outcome, position) = self.opened.run(&run, self.train, (stop, clock), observer, validate)?;
        let (mut train_history, mut val_history) = (Vec::new(), Vec::new());
        for record in position.history {
            train_history.push(record.train);
            val_history.extend(record.val);
        }
        Ok(History { outcome, train_history, val_history, best_val_loss: position.best })
    }
}

/// The folder of the checkpoint that `path` means: beside `checkpoint_epoch_5.pt` lies `checkpoint_epoch_5`.
fn folder_of(path: &Path) -> PathBuf {
    let folder = path.with_extension("");
    if path.extension().is_some_and(|e| e == "pt") && folder.is_dir() { folder } else { path.to_path_buf() }
}

impl System for SherlockRun {
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
        self.training.checkpoint_dir.clone()
    }

    fn log_folder(&self) -> PathBuf {
        self.training.log_dir.clone()
    }

    fn sample(&self) -> String {
        let s = self.model.sizes();
        format!(
            "a frame of {} x {}, {} mel bands, {} numbers of text, {} voxels",
            s.height, s.width, s.mels, s.text, s.voxels
        )
    }

    fn kept(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|e| Error::config(format!("configuration: {e}")))
    }

    fn plan(&self) -> Result<StepPlan> {
        let exec = Exec::plan();
        let model = Sherlock::new(&self.model, &self.loss, |layout| exec.arena(layout))?;
        let (b, sizes) = (self.training.batch_size, self.model.sizes());
        let [video, audio, text] = sizes.stimulus(b)?;
        let input = Stimulus { video: exec.alloc(video)?, audio: exec.alloc(audio)?, text: exec.alloc(text)? };
        let fmri = exec.alloc(Spec::f32([b, sizes.voxels])?)?;
        plan_step(&model, &exec, &Batch { target: input.clone(), input, fmri }, &self.training)
    }

    fn training_samples(&self) -> Result<usize> {
        Ok(Recording::open(&self.data, Some(self.model.sizes()))?.part(Part::Train).len())
    }
}
