//! Loss scaling for 16-bit floats with a short exponent: gradients are computed times the scale, a step whose gradients
//! overflow is skipped.

use serde::{Deserialize, Serialize};

use crate::train::config::{Precision, TrainingConfig};

/// The loss scale and how it moves.
///
/// With the default patience an overflow lowers the scale at once: PyTorch's rule. With `hysteresis` above 1 the scale
/// stays for that many overflows less one: DeepSpeed's. Both grow after `window` good steps in a row and start the window
/// anew at an overflow and after having grown.
///
/// # Source
/// PyTorch, `torch.amp.GradScaler` and `_amp_update_scale_` (scales are f32; one that would be infinite is not taken);
/// DeepSpeed, `runtime/fp16/loss_scaler.py`, `DynamicLossScaler` (hysteresis, window, minimum).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the loss is multiplied by.
    pub scale: f64,
    /// Good steps since the scale last grew or gradients last overflowed.
    pub good_steps: u64,
    /// Factor at an overflow.
    pub backoff: f64,
    /// Factor after `window` good steps.
    pub growth: f64,
    /// Good steps before the scale grows; 0 = it never moves.
    pub window: u64,
    /// The scale never falls below this, and an overflow there is an error. 0 = it may fall to nothing, as PyTorch's.
    pub min: f64,
    /// How many overflows it takes to lower the scale.
    #[serde(default)]
    pub hysteresis: Hysteresis,
}

/// Overflows that pass before the scale falls.
///
/// # Source
/// DeepSpeed's `hysteresis` (`delayed_shift`) and `consecutive_hysteresis`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hysteresis {
    /// The overflow of this number lowers the scale, and so does every one after it.
    pub overflows: u64,
    /// What is left of that; 1 or 0: the next one lowers it.
    pub left: u64,
    /// Whether any good step starts the count anew, instead of only those at which the scale grows.
    pub is_consecutive: bool,
}

impl Hysteresis {
    /// The overflow of number `overflows` lowers the scale.
    pub fn new(overflows: u64, is_consecutive: bool) -> Hysteresis {
        Hysteresis { overflows, left: overflows, is_consecutive }
    }
}

impl Default for Hysteresis {
    /// The first overflow lowers the scale.
    fn default() -> Hysteresis {
        Hysteresis::new(1, false)
    }
}

impl LossScale {
    /// No scaling: what f32 and bf16 use.
    pub const NONE: LossScale = LossScale {
        scale: 1.0,
        good_steps: 0,
        backoff: 1.0,
        growth: 1.0,
        window: 0,
        min: 1.0,
        hysteresis: Hysteresis { overflows: 1, left: 1, is_consecutive: false },
    };

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
            hysteresis: Hysteresis::new(config.loss_scale_hysteresis, config.loss_scale_consecutive_hysteresis),
        }
    }

    /// Whether a step whose gradients overflow is skipped instead of being an error.
    pub fn skips(&self) -> bool {
        *self != LossScale::NONE
    }

    /// Takes note of a step. `false` if gradients overflow at the minimum already: then smaller steps do not help.
    #[must_use]
    pub fn update(&mut self, overflowed: bool) -> bool {
        if self.window == 0 {
            return !overflowed;
        }
        if overflowed {
            self.good_steps = 0;
            return self.overflow();
        }
        if self.hysteresis.is_consecutive {
            self.hysteresis.left = self.hysteresis.overflows;
        }
        self.good_steps += 1;
        if self.good_steps >= self.window {
            self.good_steps = 0;
            self.hysteresis.left = self.hysteresis.overflows;
            let higher = rounded(self.scale * self.growth);
            if higher.is_finite() {
                self.scale = higher;
            }
        }
        true
    }

    /// The count falls first, then the scale.
    fn overflow(&mut self) -> bool {
        if self.hysteresis.left > 1 {
            self.hysteresis.left -= 1;
            return true;
        }
        if self.scale <= self.min {
            return false;
        }
        self.scale = rounded(self.scale * self.backoff).max(self.min);
        true
    }
}

/// A scale as both peers' kernels multiply by it.
fn rounded(scale: f64) -> f64 {
    f64::from(scale as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale() -> LossScale {
        LossScale { scale: 8.0, growth: 2.0, backoff: 0.5, window: 2, min: 2.0, ..LossScale::NONE }
    }

    /// DeepSpeed's scaler: from 2^16, halved by the second overflow, doubled after three good steps, never below 1.
    fn patient(is_consecutive: bool) -> LossScale {
        LossScale { scale: 65536.0, window: 3, min: 1.0, hysteresis: Hysteresis::new(2, is_consecutive), ..scale() }
    }

    /// The scale after each step; `o` overflows, `.` does not.
    fn scales(mut of: LossScale, steps: &str) -> Vec<f64> {
        let mut after = |step: char| {
            assert!(of.update(step == 'o'), "{of:?}");
            of.scale
        };
        steps.chars().map(&mut after).collect()
    }

    #[test]
    fn the_scale_halves_at_an_overflow_and_doubles_after_the_window() {
        assert_eq!(scales(scale(), "...o.o."), [8.0, 16.0, 16.0, 8.0, 8.0, 4.0, 4.0]);
        assert_eq!(scales(scale(), "o...."), [4.0, 4.0, 8.0, 8.0, 16.0], "an overflow starts the window anew");
    }

    #[test]
    fn the_scale_stays_at_its_minimum_and_says_so() {
        let mut s = scale();
        assert!(s.update(true) && s.update(true) && s.scale == 2.0);
        assert!(!s.update(true) && s.scale == 2.0);
        let mut s = LossScale { scale: 3.0, ..scale() };
        assert!(s.update(true) && s.scale == 2.0, "what would fall below it stops there");
    }

    #[test]
    fn without_a_minimum_the_scale_falls_to_nothing_as_pytorchs() {
        let mut s = LossScale { scale: 1e-45_f32.into(), min: 0.0, ..scale() };
        assert!(s.update(true) && s.scale == 0.0);
    }

    #[test]
    fn a_scale_that_would_be_infinite_is_not_taken() {
        let top = 2.0_f64.powi(127);
        assert_eq!(scales(LossScale { scale: top, ..scale() }, "..o.."), [top, top, top / 2.0, top / 2.0, top]);
    }

    #[test]
    fn scales_are_rounded_to_f32_as_pytorchs_kernel_rounds_them() {
        let s = LossScale { scale: 1.0, growth: 1.1, window: 1, ..scale() };
        let want = [f64::from(1.1_f32), f64::from((f64::from(1.1_f32) * 1.1) as f32)];
        assert_eq!(scales(s, ".."), want);
        assert_ne!(want[1], 1.1 * 1.1);
    }

    #[test]
    fn deepspeeds_first_overflow_is_forgiven_and_the_next_ones_are_not() {
        let [a, b, c] = [65536.0, 32768.0, 16384.0];
        // Good steps between do not give the patience back; only one at which the scale grows does.
        assert_eq!(scales(patient(false), "o.o.o"), [a, a, b, b, c]);
        assert_eq!(scales(patient(false), "oo...oo"), [a, b, b, b, a, a, b]);
        assert_eq!(scales(patient(false), "o...o"), [a, a, a, 2.0 * a, 2.0 * a]);
    }

    #[test]
    fn deepspeeds_consecutive_hysteresis_asks_for_overflows_in_a_row() {
        let [a, b] = [65536.0, 32768.0];
        assert_eq!(scales(patient(true), "o.o.oo.o"), [a, a, a, a, a, b, b, b]);
    }

    #[test]
    fn deepspeeds_window_counts_from_the_last_overflow_even_if_it_was_forgiven() {
        let a = 65536.0;
        assert_eq!(scales(patient(false), "..o...."), [a, a, a, a, a, 2.0 * a, 2.0 * a]);
        assert_eq!(scales(patient(false), "......"), [a, a, 2.0 * a, 2.0 * a, 2.0 * a, 4.0 * a]);
    }

    #[test]
    fn an_overflow_at_the_minimum_is_forgiven_as_long_as_there_is_patience() {
        let mut s = LossScale { scale: 1.0, ..patient(false) };
        assert!(s.update(true) && s.scale == 1.0);
        assert!(!s.update(true) && s.scale == 1.0);
    }

    #[test]
    fn without_scaling_nothing_moves() {
        let mut s = LossScale::NONE;
        assert!(!s.skips() && s.update(false) && s.scale == 1.0);
        assert!(!s.update(true));
    }

    #[test]
    fn a_state_that_was_kept_before_there_was_hysteresis_is_read_as_pytorchs() {
        let kept = r#"{"scale":8.0,"good_steps":1,"backoff":0.5,"growth":2.0,"window":2,"min":2.0}"#;
        let read: LossScale = serde_json::from_str(kept).unwrap();
        assert_eq!(read, LossScale { good_steps: 1, ..scale() });
    }
}
