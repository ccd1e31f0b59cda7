//! What a run tells while it goes: events, and whoever listens. The run itself prints and writes nothing.

use std::path::Path;

use crate::error::Result;
use crate::train::budget::{Left, Spent};
use crate::train::evaluation::Evaluation;
use crate::train::profile::StepProfile;
use crate::train::run::{EpochRecord, Outcome, RunShape};
use crate::train::trainer::StepReport;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The run begins or goes on.
    Started {
        /// Its size.
        shape: &'a RunShape,
        /// Steps done before.
        done: u64,
    },
    /// Something that the user should know: a key that does nothing, a checkpoint that was passed over.
    Notice(&'a str),
    /// A step has been done.
    Step {
        /// What it did.
        report: &'a StepReport,
        /// What the model noted beside its loss, by name.
        noted: &'a [(&'static str, f64)],
        /// The epoch it belongs to, from 0.
        epoch: u64,
        /// Budgets.
        spent: &'a Spent,
        /// What plan and budgets leave after it.
        left: Left,
    },
    /// The steps before were watched; the last one's [`Event::Step`] comes next.
    Profiled {
        /// What each spent.
        profile: &'a StepProfile,
        /// What the last one did.
        report: &'a StepReport,
    },
    /// A validation goes on.
    Validating {
        /// Samples done.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// A validation has ended.
    Validated {
        /// Steps done.
        step: u64,
        /// Epochs done.
        epoch: u64,
        /// What it found.
        evaluation: &'a Evaluation,
        /// Whether no earlier validation was better.
        is_best: bool,
    },
    /// An epoch has ended, after its validation if it has one; nothing of it is saved yet.
    EpochEnded {
        /// What it came to.
        record: &'a EpochRecord,
        /// The run's size.
        shape: &'a RunShape,
    },
    /// A checkpoint has been published and verified.
    Saved {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: &'a Path,
    },
    /// The run has ended.
    Ended {
        /// Why.
        outcome: &'a Outcome,
        /// Budgets.
        spent: &'a Spent,
    },
}

/// Whoever listens to a run: a progress bar, a log, a test.
pub trait Observer {
    /// Takes note of an event.
    ///
    /// # Errors
    /// If it cannot be noted (a full disk); the run then ends with that error, its last checkpoint being whole.
    fn event(&mut self, event: &Event<'_>) -> Result<()>;
}

/// Several listeners, in order.
#[derive(Default)]
pub struct Observers(Vec<Box<dyn Observer>>);

impl Observers {
    /// Nobody.
    pub fn new() -> Observers {
        Observers::default()
    }

    /// One more.
    pub fn push(&mut self, observer: impl Observer + 'static) {
        self.0.push(Box::new(observer));
    }
}

impl std::fmt::Debug for Observers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Observers({})", self.0.len())
    }
}

impl Observer for Observers {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        self.0.iter_mut().try_for_each(|o| o.event(event))
    }
}
