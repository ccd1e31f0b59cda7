//! When a run must end: what it may spend, and what it has spent.
//!
//! FLOPs are model FLOPs: forward and backward, matrix products and elementwise operations, each once; what is recomputed
//! to save memory does not count, nor do special functions, norm and update. A run never exceeds a budget: it stops before
//! the step that would. Time runs from the start of the process to its end; what saving costs is measured and kept in hand.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::train::config::TrainingConfig;

/// A source of time, so that a test can hold it.
pub trait Clock: fmt::Debug {
    /// Seconds since this part of the run began; never less than before.
    fn seconds(&self) -> f64;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock of a part that began at `began`: a process counts what it did before its first step.
    pub fn since(began: Instant) -> SystemClock {
        SystemClock(began)
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock(Instant::now())
    }
}

impl Clock for SystemClock {
    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// What a run may spend.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    /// Model FLOPs of all devices together.
    pub flops: Option<f64>,
    /// Wall time in seconds, earlier parts of a resumed run included.
    pub seconds: Option<f64>,
    /// Wall time in seconds of this part alone: what a queue leaves the process.
    pub part_seconds: Option<f64>,
}

impl Budget {
    /// What a configuration allows.
    pub fn new(config: &TrainingConfig) -> Budget {
        let seconds = config.time_budget_hours.map(|h| h * 3600.0);
        Budget { flops: config.flops_budget, seconds, part_seconds: None }
    }

    /// Whether time counts.
    pub fn is_timed(&self) -> bool {
        self.seconds.is_some() || self.part_seconds.is_some()
    }
}

/// What a run has spent, earlier parts of a resumed run included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Model FLOPs.
    pub flops: u128,
    /// Wall time in seconds. Kept in checkpoints only if there is a time budget: otherwise two runs of the same steps
    /// would not leave the same bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Seconds of a slow step, kept under the same condition: what the first step of a resumed run is expected to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
    /// Samples seen.
    pub samples: u64,
}

/// What the budgets and the plan leave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Left {
    /// Steps: those of the plan, or fewer if a budget ends first. An estimate where time decides.
    pub steps: u64,
    /// What they will take in seconds, at the mean pace of recent steps.
    pub seconds: f64,
}

/// Times a save is reserved for: the next one may be slower than any before, and the disk is shared.
const SAVE_MARGIN: f64 = 3.0;

/// Times the longest recent step is reserved for.
const STEP_MARGIN: f64 = 1.5;

/// Seconds for what a process does after its last save.
const END_SECONDS: f64 = 0.1;

/// Follows a budget.
#[derive(Debug)]
pub struct Meter {
    budget: Budget,
    spent: Spent,
    clock: Box<dyn Clock>,
    /// Wall time of earlier parts.
    before: f64,
    /// Steps of this part, and what the first took: it may have compiled kernels, which none after it does.
    steps: u64,
    first_seconds: f64,
    /// The longest recent step and the mean one, without the first; the longest batch of a validation and the longest save.
    step_seconds: f64,
    mean_seconds: f64,
    batch_seconds: f64,
    save_seconds: f64,
    step_flops: u128,
}

/// Which budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// Model FLOPs.
    Flops,
    /// Wall time.
    Time,
    /// Wall time of this part: the run itself may go on.
    PartTime,
}

impl Meter {
    /// Goes on from `spent`. A step costs `step_flops`, as its plan says: so the first one does not exceed a budget either.
    pub fn new(budget: Budget, spent: Spent, step_flops: u128, clock: Box<dyn Clock>) -> Meter {
        let (before, step_seconds) = (spent.seconds.unwrap_or(0.0), spent.step_seconds.unwrap_or(0.0));
        let (mean_seconds, batch_seconds, save_seconds) = (step_seconds, 0.0, 0.0);
        Meter {
            budget,
            spent,
            clock,
            before,
            steps: 0,
            first_seconds: 0.0,
            step_seconds,
            mean_seconds,
            batch_seconds,
            save_seconds,
            step_flops,
        }
    }

    /// The budget.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The clock's reading.
    pub fn now(&self) -> f64 {
        self.clock.seconds()
    }

    /// Takes note of a step that began at the reading `began`.
    pub fn step(&mut self, flops: u128, samples: u64, began: f64) {
        self.spent.flops += flops;
        self.spent.samples += samples;
        self.step_flops = flops;
        let seconds = self.now() - began;
        self.steps += 1;
        if self.steps == 1 {
            self.first_seconds = seconds;
            return;
        }
        self.mean_seconds = if self.mean_seconds > 0.0 { 0.9 * self.mean_seconds + 0.1 * seconds } else { seconds };
        // A slow step is remembered for a while.
        self.step_seconds = seconds.max(0.95 * self.step_seconds);
    }

    /// What the next step is expected to take at most: what the first one took, until another tells.
    fn next_seconds(&self) -> f64 {
        if self.step_seconds > 0.0 { self.step_seconds } else { self.first_seconds }
    }

    /// Takes note of a batch of a validation that began at the reading `began`.
    pub fn batch(&mut self, began: f64) {
        self.batch_seconds = self.batch_seconds.max(self.now() - began);
    }

    /// Takes note of a save that began at the reading `began`, or of what one is expected to take.
    pub fn saved(&mut self, began: f64) {
        self.expect_save(self.now() - began);
    }

    /// Expects a save to take `seconds`, unless one took longer.
    pub fn expect_save(&mut self, seconds: f64) {
        self.save_seconds = self.save_seconds.max(seconds);
    }

    /// What has been spent so far.
    pub fn spent(&self) -> Spent {
        let step_seconds = (self.step_seconds > 0.0).then_some(self.step_seconds);
        Spent { seconds: Some(self.before + self.now()), step_seconds, ..self.spent }
    }

    /// What a checkpoint keeps.
    pub fn kept(&self) -> Spent {
        if self.budget.seconds.is_some() {
            self.spent()
        } else {
            Spent { seconds: None, step_seconds: None, ..self.spent }
        }
    }

    /// The budget that another step would exceed, if there is one. Time reserves what the last save takes.
    pub fn exhausted(&self) -> Option<Exhausted> {
        if self.budget.flops.is_some_and(|b| (self.spent.flops + self.step_flops) as f64 > b) {
            return Some(Exhausted::Flops);
        }
        self.lacks_time(STEP_MARGIN * self.next_seconds(), 1)
    }

    /// The time that another batch of a validation and `saves` after it would exceed.
    pub fn lacks_time_to_validate(&self, saves: u32) -> Option<Exhausted> {
        self.lacks_time(STEP_MARGIN * self.batch_seconds.max(self.next_seconds()), saves)
    }

    /// The time that `saves` would exceed.
    pub fn lacks_time_to_save(&self, saves: u32) -> Option<Exhausted> {
        self.lacks_time(0.0, saves)
    }

    fn lacks_time(&self, seconds: f64, saves: u32) -> Option<Exhausted> {
        let (left, which) = self.time_left()?;
        (seconds + self.reserved(saves) > left).then_some(which)
    }

    fn reserved(&self, saves: u32) -> f64 {
        SAVE_MARGIN * self.save_seconds * f64::from(saves) + END_SECONDS
    }

    /// Seconds until the first of the two ends of time.
    fn time_left(&self) -> Option<(f64, Exhausted)> {
        let now = self.now();
        let whole = self.budget.seconds.map(|b| (b - self.before - now, Exhausted::Time));
        let part = self.budget.part_seconds.map(|b| (b - now, Exhausted::PartTime));
        match (whole, part) {
            (Some(w), Some(p)) => Some(if p.0 < w.0 { p } else { w }),
            (w, p) => w.or(p),
        }
    }

    /// What is left of `planned` steps.
    pub fn left(&self, planned: u64) -> Left {
        let mut steps = planned;
        if let (Some(b), true) = (self.budget.flops, self.step_flops > 0) {
            steps = steps.min(((b - self.spent.flops as f64) / self.step_flops as f64).max(0.0) as u64);
        }
        let pace = if self.mean_seconds > 0.0 { self.mean_seconds } else { self.first_seconds };
        if let (Some((left, _)), true) = (self.time_left(), pace > 0.0) {
            steps = steps.min(((left - self.reserved(1)) / pace).max(0.0) as u64);
        }
        Left { steps, seconds: steps as f64 * pace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[derive(Debug)]
    struct Hand(Rc<Cell<f64>>);

    impl Clock for Hand {
        fn seconds(&self) -> f64 {
            self.0.get()
        }
    }

    fn meter(budget: Budget, spent: Spent, step_flops: u128, hand: &Rc<Cell<f64>>) -> Meter {
        Meter::new(budget, spent, step_flops, Box::new(Hand(Rc::clone(hand))))
    }

    #[test]
    fn flops_stop_before_the_step_that_would_exceed_them_and_be_it_the_first() {
        let (budget, hand) = (Budget { flops: Some(35.0), ..Budget::default() }, Rc::new(Cell::new(0.0)));
        let mut meter = meter(budget, Spent::default(), 10, &hand);
        for left in [3, 2, 1] {
            assert_eq!((meter.exhausted(), meter.left(100).steps), (None, left));
            meter.step(10, 4, 0.0);
        }
        assert_eq!((meter.exhausted(), meter.left(100).steps), (Some(Exhausted::Flops), 0));
        assert_eq!((meter.kept().flops, meter.kept().samples, meter.kept().seconds), (30, 12, None));
        let resumed = super::tests::meter(budget, meter.kept(), 10, &hand);
        assert_eq!(resumed.exhausted(), Some(Exhausted::Flops));
        let never = super::tests::meter(budget, Spent::default(), 36, &hand);
        assert_eq!(never.exhausted(), Some(Exhausted::Flops), "the first step would be too much");
    }

    #[test]
    fn time_reserves_a_step_and_a_save_and_is_carried_over() {
        let hand = Rc::new(Cell::new(0.0));
        let budget = Budget { seconds: Some(25.0), ..Budget::default() };
        let mut meter = meter(budget, Spent::default(), 1, &hand);
        hand.set(5.0);
        meter.step(1, 1, 0.0);
        assert_eq!(meter.kept().step_seconds, None, "what a first step takes is not what steps take");
        hand.set(18.0);
        assert_eq!(meter.exhausted(), Some(Exhausted::Time), "but until another is known it is expected again");
        hand.set(7.0);
        meter.step(1, 1, 5.0);
        hand.set(10.0);
        meter.saved(7.0);
        assert_eq!(meter.left(100).steps, 2, "of 15 seconds, 9.1 are kept for a save");
        hand.set(12.8);
        assert_eq!(
            meter.exhausted(),
            None,
            "12.2 are left: a step of 2 half as long again, a save of 3 thrice, the end"
        );
        hand.set(13.0);
        assert_eq!(meter.exhausted(), Some(Exhausted::Time));
        assert_eq!((meter.lacks_time_to_save(1), meter.lacks_time_to_save(2)), (None, Some(Exhausted::Time)));
        let kept = meter.kept();
        assert_eq!((kept.seconds, kept.step_seconds), (Some(13.0), Some(2.0)));
        hand.set(0.0);
        let resumed = super::tests::meter(budget, kept, 1, &hand);
        assert_eq!(resumed.spent().seconds, Some(13.0));
        hand.set(10.0);
        assert_eq!(
            resumed.exhausted(),
            Some(Exhausted::Time),
            "its first step is expected to take what the last ones took"
        );
    }

    #[test]
    fn the_time_of_a_part_ends_the_part_and_not_the_run() {
        let hand = Rc::new(Cell::new(0.0));
        let budget = Budget { seconds: Some(100.0), part_seconds: Some(10.0), ..Budget::default() };
        let spent = Spent { seconds: Some(50.0), ..Spent::default() };
        let meter = meter(budget, spent, 1, &hand);
        hand.set(9.8);
        assert_eq!(meter.exhausted(), None);
        hand.set(9.95);
        assert_eq!(meter.exhausted(), Some(Exhausted::PartTime));
        let late = Spent { seconds: Some(95.0), ..Spent::default() };
        hand.set(4.95);
        assert_eq!(super::tests::meter(budget, late, 1, &hand).exhausted(), Some(Exhausted::Time));
    }
}
