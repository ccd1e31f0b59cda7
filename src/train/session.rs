//! What the sessions of all systems do in the same way: a trainer at the place where its run goes on, and the run.

use std::sync::Arc;

use crate::backend::Exec;
use crate::data::Dataset;
use crate::error::Result;
use crate::models::Model;
use crate::train::budget::{Budget, Clock, Meter};
use crate::train::checkpoint::CheckpointStore;
use crate::train::observer::{Event, Observer};
use crate::train::resume::{self, Resume};
use crate::train::run::{Outcome, Position, Profiling, Run, Validate};
use crate::train::stop::Stop;
use crate::train::system::System;
use crate::train::trainer::Trainer;

/// A run before its first step.
#[derive(Debug)]
pub(super) struct Opened<M> {
    pub(super) trainer: Trainer<M>,
    store: CheckpointStore,
    position: Position,
    /// When the clock of this part of the run ends it.
    pub(super) part_seconds: Option<f64>,
    notices: Vec<String>,
}

impl<M: Model> Opened<M>
where
    M::Batch: Send + 'static,
{
    /// The model that `make` gives, initialised or as a checkpoint has it. Nothing is written.
    pub(super) fn new(
        system: &dyn System,
        exec: &Exec,
        resume: &Resume,
        make: impl FnOnce() -> Result<M>,
    ) -> Result<Opened<M>> {
        let training = system.training();
        let store = CheckpointStore::new(system.checkpoint_folder(), training.max_checkpoints);
        let (checkpoint, mut notices) = resume::find_or_fresh(&store, resume)?;
        let mut model = make()?;
        if checkpoint.is_none() {
            model.params_mut().initialise(training.seed)?;
        }
        let mut trainer = Trainer::new(model, exec, training)?;
        let mut position = Position::default();
        if let Some(checkpoint) = checkpoint {
            let (at, lines) = resume::go_on(&mut trainer, &checkpoint, &system.kept()?)?;
            notices.extend(lines);
            position = at;
        }
        Ok(Opened { trainer, store, position, part_seconds: None, notices })
    }

    /// The place that the run is at.
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// Runs on `data` to the end, whichever comes first.
    pub(super) fn run(
        mut self,
        system: &dyn System,
        data: Arc<dyn Dataset<Batch = M::Batch>>,
        (stop, clock): (&Stop, Box<dyn Clock>),
        observer: &mut dyn Observer,
        validate: &mut Validate<'_, M>,
    ) -> Result<(Outcome, Position)> {
        self.notices.iter().try_for_each(|notice| observer.event(&Event::Notice(notice)))?;
        let training = system.training();
        let budget = Budget { part_seconds: self.part_seconds, ..Budget::new(training) };
        let meter = Meter::new(budget, self.position.spent, system.step_flops()?, clock);
        let run = Run {
            trainer: &mut self.trainer,
            data,
            workers: system.workers(),
            config: training,
            kept_config: system.kept()?,
            name: system.name(),
            store: &mut self.store,
            stop: stop.clone(),
            meter,
            position: self.position,
            observer,
            profiling: Profiling::Ahead,
        };
        run.run(validate)
    }
}
