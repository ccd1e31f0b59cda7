//! Mean, deviation and range of a channel, joined from parts.

use serde::Serialize;

/// A number that is not finite, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Place {
    /// Row of the file.
    pub step: usize,
    /// Channel.
    pub channel: usize,
    /// Place within the channel's field, row-major.
    pub index: usize,
    /// NaN or an infinity.
    pub value: f32,
}

/// Mean, deviation and range of the finite numbers of a channel, and what is odd about the others.
///
/// # Source
/// The parts are joined by the formula of Chan, Golub and LeVeque 1979, which loses no digits to a large mean.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moments {
    /// How many finite numbers there are.
    pub count: u64,
    /// Their mean; 0 if there are none.
    pub mean: f64,
    /// The least; infinite if there are none.
    pub min: f32,
    /// The greatest; negative infinite if there are none.
    pub max: f32,
    /// How many are NaN or infinite.
    pub not_finite: u64,
    /// The first of those.
    pub first_not_finite: Option<Place>,
    /// How many fields are one number everywhere.
    pub constant_planes: u64,
    // Sum of squared distances from the mean.
    #[serde(skip)]
    squares: f64,
}

impl Default for Moments {
    fn default() -> Moments {
        Moments {
            count: 0,
            mean: 0.0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            not_finite: 0,
            first_not_finite: None,
            constant_planes: 0,
            squares: 0.0,
        }
    }
}

impl Moments {
    /// Of one channel at one step.
    pub(in crate::data) fn of_plane(plane: &[f32], step: usize, channel: usize) -> Moments {
        let mut m = Moments::default();
        let finite = || plane.iter().copied().filter(|x| x.is_finite());
        let sum: f64 = finite().map(f64::from).sum();
        m.count = finite().count() as u64;
        m.not_finite = plane.len() as u64 - m.count;
        if m.not_finite > 0 {
            let first = plane.iter().enumerate().find(|(_, x)| !x.is_finite());
            m.first_not_finite = first.map(|(index, &value)| Place { step, channel, index, value });
        }
        if m.count > 0 {
            m.mean = sum / m.count as f64;
            m.squares = finite().map(|x| (f64::from(x) - m.mean).powi(2)).sum();
            m.min = finite().fold(m.min, f32::min);
            m.max = finite().fold(m.max, f32::max);
        }
        m.constant_planes = u64::from(m.not_finite == 0 && m.min == m.max);
        m
    }

    /// Adds what comes after.
    pub(in crate::data) fn merge(&mut self, after: &Moments) {
        let total = self.count + after.count;
        if after.count > 0 {
            let distance = after.mean - self.mean;
            let share = after.count as f64 / total as f64;
            self.squares += after.squares + distance * distance * self.count as f64 * share;
            self.mean += distance * share;
        }
        self.count = total;
        self.min = self.min.min(after.min);
        self.max = self.max.max(after.max);
        self.not_finite += after.not_finite;
        self.first_not_finite = self.first_not_finite.or(after.first_not_finite);
        self.constant_planes += after.constant_planes;
    }

    /// The standard deviation (of the numbers themselves, not of a sample of them).
    pub fn std(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.squares / self.count as f64).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_parts_are_the_moments_of_the_whole() {
        let numbers: Vec<f32> = (0..60).map(|k| 1e5 + ((k * 37) % 60) as f32).collect();
        let whole = Moments::of_plane(&numbers, 0, 0);
        for cut in [0, 1, 7, 59, 60] {
            let (a, b) = numbers.split_at(cut);
            let mut joined = Moments::default();
            joined.merge(&Moments::of_plane(a, 0, 0));
            joined.merge(&Moments::of_plane(b, 1, 0));
            assert_eq!((joined.count, joined.min, joined.max), (60, 1e5, 1e5 + 59.0));
            approx::assert_relative_eq!(joined.mean, whole.mean, max_relative = 1e-14);
            approx::assert_relative_eq!(joined.std(), whole.std(), max_relative = 1e-12);
        }
        // The numbers 0 to 59: variance (60² − 1)/12.
        approx::assert_relative_eq!(whole.std(), (3599.0_f64 / 12.0).sqrt(), max_relative = 1e-12);
    }

    #[test]
    fn what_is_not_finite_is_counted_apart_and_the_first_is_kept() {
        let mut m = Moments::of_plane(&[1.0, 3.0], 0, 4);
        m.merge(&Moments::of_plane(&[f32::NAN, f32::INFINITY], 1, 4));
        m.merge(&Moments::of_plane(&[5.0, f32::NEG_INFINITY], 2, 4));
        assert_eq!((m.count, m.mean, m.min, m.max, m.not_finite), (3, 3.0, 1.0, 5.0, 3));
        let first = m.first_not_finite.unwrap();
        assert_eq!((first.step, first.channel, first.index, first.value.is_nan()), (1, 4, 0, true));
        assert_eq!(m.constant_planes, 0);
        assert_eq!(Moments::of_plane(&[2.0, 2.0], 0, 0).constant_planes, 1);
    }
}
