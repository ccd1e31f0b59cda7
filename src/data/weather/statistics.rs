//! Mean and standard deviation of every channel.

use std::path::Path;

use crate::error::{Error, Faults, Result};
use crate::io::npy;

/// Mean and standard deviation of every channel, for x ↦ (x − mean) / std.
///
/// # Shapes
/// The files hold `[C]`, `[1, C]`, `[C, 1, 1]` or `[1, C, 1, 1]`, of `f4` or `f8`.
///
/// # Units
/// Those of the channels.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    means: Vec<f64>,
    stds: Vec<f64>,
}

impl Statistics {
    /// Statistics of these numbers.
    ///
    /// # Errors
    /// [`Error::Data`] if the lengths differ, a number is not finite or a standard deviation is not above 0; all faults
    /// at once.
    pub fn new(means: Vec<f64>, stds: Vec<f64>) -> Result<Statistics> {
        let mut faults = Faults::new();
        check_values("means", &means, false, &mut faults);
        check_values("stds", &stds, true, &mut faults);
        if means.len() != stds.len() {
            faults.push(format!("stds: expected {} channels like the means, found {}", means.len(), stds.len()));
        }
        faults.into_result(Error::Data)?;
        Ok(Statistics { means, stds })
    }

    /// Reads the two files.
    ///
    /// # Errors
    /// [`Error::Data`] with the faults of both files: missing, unreadable, of another shape, not finite, a standard
    /// deviation that is not above 0.
    pub fn load(means: &Path, stds: &Path) -> Result<Statistics> {
        let mut faults = Faults::new();
        let mut load = |path: &Path, is_std: bool| match read_vector(path) {
            Ok(values) => {
                check_values(&path.display().to_string(), &values, is_std, &mut faults);
                Some(values)
            }
            Err(e) => {
                faults.absorb(e);
                None
            }
        };
        let (m, s) = (load(means, false), load(stds, true));
        if let (Some(m), Some(s)) = (&m, &s)
            && m.len() != s.len()
        {
            faults.push(format!(
                "{}: expected {} channels like {}, found {}",
                stds.display(),
                m.len(),
                means.display(),
                s.len()
            ));
        }
        faults.into_result(Error::Data)?;
        Ok(Statistics { means: m.unwrap_or_default(), stds: s.unwrap_or_default() })
    }

    /// How many channels there are.
    pub fn channels(&self) -> usize {
        self.means.len()
    }

    /// The means.
    pub fn means(&self) -> &[f64] {
        &self.means
    }

    /// The standard deviations, all above 0.
    pub fn stds(&self) -> &[f64] {
        &self.stds
    }

    /// Normalises `fields`, row-major `[…, channels, area]` with the first `channels` of these: (x − mean) / std in f32.
    pub fn normalize(&self, fields: &mut [f32], channels: usize, area: usize) {
        self.each_channel(fields, channels, area, |x, mean, std| (x - mean) / std);
    }

    /// Turns normalised `fields` back into physical units, x · std + mean; layout as [`Statistics::normalize`].
    pub fn denormalize(&self, fields: &mut [f32], channels: usize, area: usize) {
        self.each_channel(fields, channels, area, |x, mean, std| x * std + mean);
    }

    fn each_channel(&self, fields: &mut [f32], channels: usize, area: usize, f: impl Fn(f32, f32, f32) -> f32) {
        for frame in fields.chunks_mut((channels * area).max(1)) {
            for (plane, (&mean, &std)) in frame.chunks_mut(area.max(1)).zip(self.means.iter().zip(&self.stds)) {
                let (mean, std) = (mean as f32, std as f32);
                plane.iter_mut().for_each(|x| *x = f(*x, mean, std));
            }
        }
    }
}

/// The values of a file that holds one number a channel.
fn read_vector(path: &Path) -> Result<Vec<f64>> {
    let array = npy::read(path)?;
    let fits = match array.shape[..] {
        [c] | [1, c] | [c, 1, 1] | [1, c, 1, 1] => c > 0,
        _ => false,
    };
    if !fits {
        return Err(Error::data(format!(
            "{}: expected one number a channel in a shape [C], [1, C], [C, 1, 1] or [1, C, 1, 1], found {:?}",
            path.display(),
            array.shape
        )));
    }
    Ok(array.to_f64())
}

fn check_values(name: &str, values: &[f64], is_std: bool, faults: &mut Faults) {
    let what = if is_std { "a standard deviation above 0" } else { "a finite mean" };
    for (channel, &value) in values.iter().enumerate() {
        // In f32, in which it is used: what underflows there would divide by zero.
        let value_f32 = value as f32;
        if !value_f32.is_finite() || (is_std && value_f32 <= 0.0) {
            faults.push(format!("{name}: channel {channel}: expected {what}, found {value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::atomic::Existing::Replace;

    #[test]
    fn every_documented_shape_is_read_in_both_types() {
        let folder = tempfile::tempdir().unwrap();
        let (m, s) = (folder.path().join("m.npy"), folder.path().join("s.npy"));
        for shape in [vec![3], vec![1, 3], vec![3, 1, 1], vec![1, 3, 1, 1]] {
            npy::write_f32(&m, Replace, &shape, &[1.0, -2.0, 3.5]).unwrap();
            npy::write_f64(&s, Replace, &shape, &[0.1, 0.2, 1e5]).unwrap();
            let statistics = Statistics::load(&m, &s).unwrap();
            assert_eq!(statistics, Statistics::new(vec![1.0, -2.0, 3.5], vec![0.1, 0.2, 1e5]).unwrap());
        }
        npy::write_f32(&m, Replace, &[2, 3], &[0.0; 6]).unwrap();
        let error = Statistics::load(&m, &s).unwrap_err().to_string();
        assert!(error.ends_with(
            "expected one number a channel in a shape [C], [1, C], [C, 1, 1] or [1, C, 1, 1], found [2, 3]"
        ));
    }

    #[test]
    fn all_bad_numbers_are_listed_with_their_channels() {
        let faults = Statistics::new(vec![f64::NAN, 0.0, f64::INFINITY, 1e300], vec![0.0, -1.0, f64::NAN, 1e-60, 1.0]);
        let text = faults.unwrap_err().to_string();
        let starts: Vec<&str> = text.lines().filter_map(|l| l.split(": expected").next()).collect();
        let means = ["means: channel 0", "means: channel 2", "means: channel 3"];
        let stds = ["stds: channel 0", "stds: channel 1", "stds: channel 2", "stds: channel 3", "stds"];
        assert_eq!(starts, [means.as_slice(), &stds].concat());
    }

    #[test]
    fn normalising_and_back_is_the_identity_on_several_frames() {
        let statistics = Statistics::new(vec![10.0, -4.0], vec![2.0, 0.5]).unwrap();
        let mut fields: Vec<f32> = (0..12).map(|k| k as f32).collect();
        statistics.normalize(&mut fields, 2, 3);
        assert_eq!(fields[..6], [-5.0, -4.5, -4.0, 14.0, 16.0, 18.0]);
        assert_eq!(fields[6], -2.0);
        statistics.denormalize(&mut fields, 2, 3);
        assert_eq!(fields, (0..12).map(|k| k as f32).collect::<Vec<_>>());
    }
}
