//! How sure a fit is: the same fit on samples drawn again.

use serde::Serialize;

use crate::rng::Stream;

/// A number with the range in which 95 of 100 fits of samples drawn again lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The fit of the sample itself.
    pub value: f64,
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

impl Interval {
    /// `value`, and the percentiles of `drawn`; the whole line if fewer than 20 fits succeeded.
    pub(super) fn of(value: f64, mut drawn: Vec<f64>) -> Interval {
        drawn.retain(|x| x.is_finite());
        drawn.sort_by(f64::total_cmp);
        let at = |share: f64| drawn.get((share * (drawn.len() - 1) as f64).round() as usize).copied();
        if drawn.len() < 20 {
            return Interval { value, low: f64::NEG_INFINITY, high: f64::INFINITY };
        }
        Interval { value, low: at(0.025).unwrap_or(value), high: at(0.975).unwrap_or(value) }
    }
}

/// `n` indices below `n`, drawn with repetition: always the same for the same `draw`.
pub(super) fn indices(n: usize, draw: u64) -> Vec<usize> {
    let stream = Stream::of(0x5ca1e, &[draw]);
    (0..n as u64).map(|i| stream.below(i, n as u64) as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_ninety_five_of_a_hundred() {
        let found = Interval::of(50.0, (0..=200).map(f64::from).chain([f64::NAN]).collect());
        assert_eq!((found.low, found.high), (5.0, 195.0));
        assert_eq!(Interval::of(1.0, vec![1.0; 19]).high, f64::INFINITY);
    }

    #[test]
    fn draws_repeat_some_and_leave_out_some() {
        let drawn = indices(50, 1);
        let mut distinct = drawn.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(drawn.len() == 50 && (20..45).contains(&distinct.len()), "{}", distinct.len());
        assert!(drawn == indices(50, 1) && drawn != indices(50, 2));
    }
}
