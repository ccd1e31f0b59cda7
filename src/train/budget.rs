//! When a run must end: what it may spend, and what it has spent.
//!
//! FLOPs are model FLOPs: forward and backward, matrix products and elementwise operations, each once; what is recomputed
//! to save memory does not count, nor do special functions, norm and update. A run never exceeds a budget: it stops before
//! the step that would.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::train::config::TrainingConfig;

/// A source of time, so that a test can hold it.
pub trait Clock: fmt::Debug {
    /// Seconds since some moment; never less than before.
    fn seconds(&self) -> f64;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

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
    /// Model FLOPs.
    pub flops: Option<f64>,
    /// Wall time.
    pub seconds: Option<f64>,
}

impl Budget {
    /// What a configuration allows.
    pub fn new(config: &TrainingConfig) -> Budget {
        Budget { flops: config.flops_budget, seconds: config.time_budget_hours.map(|h| h * 3600.0) }
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
    /// Samples seen.
    pub samples: u64,
}

/// Follows a budget.
#[derive(Debug)]
pub struct Meter {
    budget: Budget,
    spent: Spent,
    clock: Box<dyn Clock>,
    /// Wall time of earlier parts, less the clock's reading when this part began.
    origin: f64,
    /// The longest recent step and the longest save: what must be left in hand.
    step_seconds: f64,
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
}

impl Meter {
    /// Goes on from `spent`.
    pub fn new(budget: Budget, spent: Spent, clock: Box<dyn Clock>) -> Meter {
        let origin = spent.seconds.unwrap_or(0.0) - clock.seconds();
        Meter { budget, spent, clock, origin, step_seconds: 0.0, save_seconds: 0.0, step_flops: 0 }
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
        // A slow step is remembered for a while.
        self.step_seconds = (self.now() - began).max(0.95 * self.step_seconds);
    }

    /// Takes note of a save that began at the reading `began`.
    pub fn saved(&mut self, began: f64) {
        self.save_seconds = self.save_seconds.max(self.now() - began);
    }

    /// What has been spent so far.
    pub fn spent(&self) -> Spent {
        Spent { seconds: Some(self.origin + self.now()), ..self.spent }
    }

    /// What a checkpoint keeps.
    pub fn kept(&self) -> Spent {
        if self.budget.seconds.is_some() { self.spent() } else { Spent { seconds: None, ..self.spent } }
    }

    /// The budget that another step would exceed, if there is one. Time reserves what a save takes.
    pub fn exhausted(&self) -> Option<Exhausted> {
        if self.budget.flops.is_some_and(|b| (self.spent.flops + self.step_flops) as f64 > b) {
            return Some(Exhausted::Flops);
        }
        let needed = self.origin + self.now() + self.step_seconds + self.save_seconds;
        self.budget.seconds.is_some_and(|b| needed > b).then_some(Exhausted::Time)
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

    #[test]
    fn flops_stop_before_the_step_that_would_exceed_them() {
        let budget = Budget { flops: Some(35.0), seconds: None };
        let mut meter = Meter::new(budget, Spent::default(), Box::<SystemClock>::default());
        for _ in 0..3 {
            assert_eq!(meter.exhausted(), None);
            let began = meter.now();
            meter.step(10, 4, began);
        }
        assert_eq!(meter.exhausted(), Some(Exhausted::Flops));
        assert_eq!((meter.kept().flops, meter.kept().samples, meter.kept().seconds), (30, 12, None));
        let meter = Meter::new(budget, meter.kept(), Box::<SystemClock>::default());
        assert_eq!(meter.exhausted(), None, "the size of a step is known only after one");
    }

    #[test]
    fn time_reserves_a_step_and_a_save_and_is_carried_over() {
        let hand = Rc::new(Cell::new(100.0));
        let budget = Budget { flops: None, seconds: Some(10.0) };
        let mut meter = Meter::new(budget, Spent::default(), Box::new(Hand(hand.clone())));
        let tick = |meter: &mut Meter, seconds: f64| {
            let began = meter.now();
            hand.set(hand.get() + seconds);
            meter.step(1, 1, began);
        };
        tick(&mut meter, 2.0);
        let began = meter.now();
        hand.set(hand.get() + 3.0);
        meter.saved(began);
        assert_eq!(meter.exhausted(), None, "5 spent, 2 and 3 in hand make 10");
        hand.set(hand.get() + 0.5);
        assert_eq!(meter.exhausted(), Some(Exhausted::Time));
        let kept = meter.kept();
        assert_eq!(kept.seconds, Some(5.5));
        hand.set(7.0);
        let resumed = Meter::new(budget, kept, Box::new(Hand(hand.clone())));
        assert_eq!(resumed.spent().seconds, Some(5.5));
    }
}
