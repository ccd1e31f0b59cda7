//! Loss scaling for 16-bit floats with a short exponent: gradients are computed times the scale, a step whose gradients
//! overflow is skipped.

use serde::{Deserialize, Serialize};

use crate::train::config::{Precision, TrainingConfig};

/// The loss scale and how it moves.
///
/// # Source
/// The rules of PyTorch's `torch.amp.GradScaler`: halve at an overflow, double after a window of good steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the loss is multiplied by.
    pub scale: f64,
    /// Good steps since the scale last moved.
    pub good_steps: u64,
    /// Factor at an overflow.
    pub backoff: f64,
    /// Factor after `window` good steps.
    pub growth: f64,
    /// Good steps before the scale grows; 0 = it never moves.
    pub window: u64,
    /// The scale never falls below this.
    pub min: f64,
}

impl LossScale {
    /// No scaling: what f32 and bf16 use.
    pub const NONE: LossScale = LossScale { scale: 1.0, good_steps: 0, backoff: 1.0, growth: 1.0, window: 0, min: 1.0 };

    /// The scaling that a configuration asks for.
    pub fn new(config: &TrainingConfig) -> LossScale {
        if config.precision != Precision::Fp16 {
            return LossScale::NONE;
        }
        let window = if config.loss_scale_dynamic { config.loss_scale_window } else { 0 };
        LossScale {
            scale: config.loss_scale_init,
            good_steps: 0,
            backoff: 0.5,
            growth: 2.0,
            window,
            min: config.loss_scale_min,
        }
    }

    /// Whether a step whose gradients overflow is skipped instead of being an error.
    pub fn skips(&self) -> bool {
        *self != LossScale::NONE
    }

    /// Takes note of a step. `false` if the scale would have to fall below its minimum: then smaller steps do not help.
    #[must_use]
    pub fn update(&mut self, overflowed: bool) -> bool {
        if self.window == 0 {
            return !overflowed;
        }
        if overflowed {
            self.good_steps = 0;
            let lower = self.scale * self.backoff;
            let possible = lower >= self.min;
            self.scale = lower.max(self.min);
            return possible;
        }
        self.good_steps += 1;
        if self.good_steps >= self.window {
            self.good_steps = 0;
            self.scale = (self.scale * self.growth).min(f64::from(f32::MAX));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale() -> LossScale {
        LossScale { scale: 8.0, good_steps: 0, backoff: 0.5, growth: 2.0, window: 2, min: 2.0 }
    }

    #[test]
    fn the_scale_halves_at_an_overflow_and_doubles_after_the_window() {
        let mut s = scale();
        assert!(s.update(false) && s.scale == 8.0);
        assert!(s.update(false) && s.scale == 16.0);
        assert!(s.update(false) && s.update(true) && s.scale == 8.0);
        assert!(s.update(false) && s.scale == 8.0, "an overflow starts the window anew");
    }

    #[test]
    fn the_scale_stays_at_its_minimum_and_says_so() {
        let mut s = scale();
        assert!(s.update(true) && s.update(true) && s.scale == 2.0);
        assert!(!s.update(true) && s.scale == 2.0);
    }

    #[test]
    fn without_scaling_nothing_moves() {
        let mut s = LossScale::NONE;
        assert!(!s.skips() && s.update(false) && s.scale == 1.0);
        assert!(!s.update(true));
    }
}
