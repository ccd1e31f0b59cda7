//! The learning rate of each step: a straight warm-up, then constant, cosine or steps.

use crate::train::config::{LrSchedule, TrainingConfig};

/// Learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    kind: LrSchedule,
    peak: f64,
    warmup: u64,
    total: u64,
    /// Steps between two drops, and the factor of one.
    drop: (u64, f64),
}

impl Schedule {
    /// The schedule of a run of `total` steps, `steps_per_epoch` of them in an epoch.
    pub fn new(config: &TrainingConfig, total: u64, steps_per_epoch: u64) -> Schedule {
        Schedule {
            kind: config.lr_schedule,
            peak: config.learning_rate,
            warmup: config.warmup_steps,
            total,
            drop: (steps_per_epoch.max(1).saturating_mul(config.lr_step_epochs as u64).max(1), config.lr_step_factor),
        }
    }

    /// Steps of the warm-up; shorter than planned if the run is.
    pub fn warmup(&self) -> u64 {
        self.warmup.min(self.total)
    }

    /// The learning rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        match self.kind {
            LrSchedule::Constant => self.peak,
            LrSchedule::Cosine => {
                let span = self.total.saturating_sub(self.warmup).max(1);
                let done = (step - self.warmup).min(span) as f64 / span as f64;
                0.5 * self.peak * (1.0 + (std::f64::consts::PI * done).cos())
            }
            LrSchedule::Step => {
                let drops = i32::try_from(step / self.drop.0).unwrap_or(i32::MAX);
                self.peak * self.drop.1.powi(drops)
            }
        }
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
}
