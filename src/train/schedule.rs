//! The learning rate of each step: a straight warm-up, then constant, cosine or steps.

use crate::train::config::{LrSchedule, TrainingConfig};

/// Learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    kind: LrSchedule,
    peak: f64,
    /// Where a cosine ends.
    floor: f64,
    warmup: u64,
    /// Part of the peak at which the warm-up starts; without, its first step is one part of it.
    start: Option<f64>,
    total: u64,
    steps_per_epoch: u64,
    /// Steps between two drops, and the factor of one.
    drop: (u64, f64),
}

/// What a scheduler of the usual kinds is and where it is, in the units in which it is stepped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SchedulerState {
    /// Down a cosine of `span` steps to `floor`, after the warm-up.
    Cosine {
        /// Steps of the whole way.
        span: u64,
        /// Where it ends.
        floor: f64,
        /// Steps done.
        done: u64,
    },
    /// Multiplied by `factor` every so many epochs.
    Step {
        /// Epochs between two drops.
        epochs: u64,
        /// Factor of one drop.
        factor: f64,
        /// Epochs done.
        done: u64,
    },
}

impl Schedule {
    /// The schedule of a run of `total` steps, `steps_per_epoch` of them in an epoch.
    pub fn new(config: &TrainingConfig, total: u64, steps_per_epoch: u64) -> Schedule {
        let steps_per_epoch = steps_per_epoch.max(1);
        let epochs = steps_per_epoch.saturating_mul(config.warmup_epochs as u64);
        Schedule {
            kind: config.lr_schedule,
            peak: config.learning_rate,
            floor: config.min_lr,
            warmup: config.warmup_steps.saturating_add(epochs),
            start: config.warmup_start_factor,
            total,
            steps_per_epoch,
            drop: (steps_per_epoch.saturating_mul(config.lr_step_epochs as u64).max(1), config.lr_step_factor),
        }
    }

    /// Steps of the warm-up; shorter than planned if the run is.
    pub fn warmup(&self) -> u64 {
        self.warmup.min(self.total)
    }

    /// Where PyTorch's scheduler of the same kind would be before step `step`; `None` for a rate that stays.
    pub fn scheduler_state(&self, step: u64) -> Option<SchedulerState> {
        let after_warmup = step.saturating_sub(self.warmup);
        match self.kind {
            LrSchedule::Constant => None,
            LrSchedule::Cosine => Some(SchedulerState::Cosine {
                span: self.total.saturating_sub(self.warmup).max(1),
                floor: self.floor,
                done: after_warmup,
            }),
            LrSchedule::CosinePerEpoch => Some(SchedulerState::Cosine {
                span: self.total.saturating_sub(self.warmup).max(1),
                floor: self.floor,
                done: after_warmup / self.steps_per_epoch,
            }),
            LrSchedule::Step => Some(SchedulerState::Step {
                epochs: self.drop.0 / self.steps_per_epoch,
                factor: self.drop.1,
                done: step / self.steps_per_epoch,
            }),
        }
    }

    /// The learning rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if self.kind == LrSchedule::CosinePerEpoch {
            return self.rate_per_epoch(step / self.steps_per_epoch);
        }
        if step < self.warmup {
            return self.rising(step);
        }
        match self.kind {
            LrSchedule::Constant => self.peak,
            LrSchedule::Cosine | LrSchedule::CosinePerEpoch => self.falling(self.peak, step - self.warmup),
            LrSchedule::Step => {
                let drops = i32::try_from(step / self.drop.0).unwrap_or(i32::MAX);
                self.peak * self.drop.1.powi(drops)
            }
        }
    }

    /// Step `step` of the warm-up.
    fn rising(&self, step: u64) -> f64 {
        let warmup = self.warmup.max(1) as f64;
        match self.start {
            None => self.peak * (step + 1) as f64 / warmup,
            Some(start) => self.peak * (start + (1.0 - start) * step as f64 / warmup),
        }
    }

    /// `done` steps down the cosine from `top`.
    fn falling(&self, top: f64, done: u64) -> f64 {
        let span = self.total.saturating_sub(self.warmup).max(1);
        let done = done.min(span) as f64 / span as f64;
        self.floor + 0.5 * (top - self.floor) * (1.0 + (std::f64::consts::PI * done).cos())
    }

    /// Warm-up and cosine moved by a step each epoch, although they are as long as the run has steps.
    fn rate_per_epoch(&self, epoch: u64) -> f64 {
        let warmup = self.warmup.div_ceil(self.steps_per_epoch);
        if epoch < warmup {
            return self.rising(epoch);
        }
        let reached = if warmup == 0 { self.peak } else { self.rising(warmup) };
        self.falling(reached, epoch - warmup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: LrSchedule) -> Schedule {
        let config = TrainingConfig {
            lr_schedule: kind,
            learning_rate: 2.0,
            warmup_steps: 4,
            lr_step_epochs: 2,
            lr_step_factor: 0.5,
            ..TrainingConfig::default()
        };
        Schedule::new(&config, 12, 3)
    }

    #[test]
    fn the_warm_up_is_straight_and_ends_at_the_peak() {
        for kind in [LrSchedule::Constant, LrSchedule::Cosine] {
            let rates: Vec<f64> = (0..5).map(|s| schedule(kind).rate(s)).collect();
            assert_eq!(rates, [0.5, 1.0, 1.5, 2.0, 2.0]);
        }
    }

    #[test]
    fn a_cosine_is_half_way_down_in_the_middle_and_zero_at_the_end() {
        let s = schedule(LrSchedule::Cosine);
        assert!((s.rate(8) - 1.0).abs() < 1e-12);
        assert!(s.rate(12).abs() < 1e-12 && s.rate(1000).abs() < 1e-12);
    }

    #[test]
    fn steps_halve_every_two_epochs_of_three() {
        let s = schedule(LrSchedule::Step);
        assert_eq!((s.rate(5), s.rate(6), s.rate(12)), (2.0, 1.0, 0.5));
    }

    /// 195 steps an epoch, 5 epochs of warm-up, 100 epochs: the Sherlock trainer's own numbers.
    fn sherlock(kind: LrSchedule) -> Schedule {
        let config = TrainingConfig {
            lr_schedule: kind,
            learning_rate: 1e-4,
            warmup_steps: 0,
            warmup_epochs: 5,
            warmup_start_factor: Some(0.1),
            min_lr: 1e-6,
            ..TrainingConfig::default()
        };
        Schedule::new(&config, 19_500, 195)
    }

    #[test]
    fn a_warm_up_of_epochs_starts_at_its_factor_and_the_cosine_ends_at_its_floor() {
        let s = sherlock(LrSchedule::Cosine);
        assert_eq!(s.warmup(), 975);
        for (step, want) in [(0, 1e-5), (1, 1.009_230_769e-5), (195, 2.8e-5), (975, 1e-4), (19_500, 1e-6)] {
            let got = s.rate(step);
            assert!((got - want).abs() < 1e-14, "{step}: {got:e}");
        }
    }

    #[test]
    fn another_program_s_scheduler_is_as_far_as_ours() {
        let at = |kind, step| sherlock(kind).scheduler_state(step);
        let cosine = |done| Some(SchedulerState::Cosine { span: 18_525, floor: 1e-6, done });
        assert_eq!((at(LrSchedule::Cosine, 7), at(LrSchedule::Cosine, 1000)), (cosine(0), cosine(25)));
        assert_eq!(at(LrSchedule::CosinePerEpoch, 975 + 2 * 195), cosine(2));
        assert_eq!(at(LrSchedule::Step, 40 * 195), Some(SchedulerState::Step { epochs: 30, factor: 0.1, done: 40 }));
        assert_eq!(at(LrSchedule::Constant, 7), None);
    }

    #[test]
    fn a_cosine_that_moves_once_an_epoch_never_leaves_its_warm_up() {
        let s = sherlock(LrSchedule::CosinePerEpoch);
        for (epoch, want) in [(0, 1e-5), (1, 1.009_230_769e-5), (5, 1.046_153_8e-5), (99, 1.046e-5)] {
            let got = s.rate(195 * epoch + 7);
            assert!((got - want).abs() < 2e-9, "{epoch}: {got:e}");
        }
    }
}
