//! Mean and deviation of every voxel over time.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::atomic::Existing;
use crate::io::npy::{self, MappedArray};

/// Mean and standard deviation of every voxel of a subject, over the time that is trained on.
///
/// # Units
/// The scanner's. The deviation is that of the numbers themselves (divided by n); one of 0 is given as 1, so that a silent
/// voxel stays 0 instead of becoming NaN.
#[derive(Debug, Clone, PartialEq)]
pub struct VoxelStatistics {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl VoxelStatistics {
    /// Of the first `trs` rows of `fmri` [T, voxels], in one pass and in f64, around the first row so that no digits are
    /// lost to a large mean.
    ///
    /// # Errors
    /// [`Error::Data`] if a number is NaN or infinite: how many voxels, and the first place.
    pub fn of(fmri: &MappedArray, trs: usize) -> Result<VoxelStatistics> {
        let voxels = fmri.row_len();
        let mut first = vec![0.0_f32; voxels];
        let mut row = vec![0.0_f32; voxels];
        let mut sums = vec![[0.0_f64; 2]; voxels];
        for tr in 0..trs {
            fmri.read(tr..tr + 1, &mut row)?;
            if tr == 0 {
                first.copy_from_slice(&row);
            }
            for ((sum, &x), &origin) in sums.iter_mut().zip(&row).zip(&first) {
                let d = f64::from(x) - f64::from(origin);
                sum[0] += d;
                sum[1] += d * d;
            }
        }
        let bad = sums.iter().filter(|s| !s[1].is_finite()).count();
        if bad > 0 {
            return Err(not_finite(fmri, trs, bad));
        }
        let n = trs.max(1) as f64;
        let parts = sums.iter().zip(&first).map(|(&[sum, squares], &origin)| {
            let shift = sum / n;
            let variance = (squares / n - shift * shift).max(0.0);
            // Differences of equal numbers are exactly 0; what rounding leaves of a constant is no signal either.
            let std = if variance.sqrt() > f64::from(f32::MIN_POSITIVE) { variance.sqrt() } else { 1.0 };
            ((f64::from(origin) + shift) as f32, std as f32)
        });
        let (mean, std) = parts.unzip();
        Ok(VoxelStatistics { mean, std })
    }

    /// Mean of every voxel.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Standard deviation of every voxel, never 0.
    pub fn std(&self) -> &[f32] {
        &self.std
    }

    /// `(x − mean) / std`, voxel by voxel.
    pub fn normalize(&self, row: &mut [f32]) {
        for ((x, mean), std) in row.iter_mut().zip(&self.mean).zip(&self.std) {
            *x = (*x - mean) / std;
        }
    }

    /// `x · std + mean`, voxel by voxel: back to the scanner's units.
    pub fn restore(&self, row: &mut [f32]) {
        for ((x, mean), std) in row.iter_mut().zip(&self.mean).zip(&self.std) {
            *x = x.mul_add(*std, *mean);
        }
    }

    /// Writes `fmri_sID_mean.npy` and `fmri_sID_std.npy` into `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::Data`] if a file exists and must not be replaced; [`Error::Io`] if the system refuses.
    pub fn save(&self, folder: &Path, subject: usize, existing: Existing) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        for (name, numbers) in [("mean", &self.mean), ("std", &self.std)] {
            let path = folder.join(format!("fmri_s{subject}_{name}.npy"));
            npy::write_f32(&path, existing, &[numbers.len()], numbers)?;
        }
        Ok(())
    }
}

/// The error of `bad` voxels with numbers that are not finite; reads again to find the first.
fn not_finite(fmri: &MappedArray, trs: usize, bad: usize) -> Error {
    let show = fmri.path().display();
    let mut row = vec![0.0; fmri.row_len()];
    for tr in 0..trs {
        if fmri.read(tr..tr + 1, &mut row).is_ok()
            && let Some((voxel, x)) = row.iter().enumerate().find(|(_, x)| !x.is_finite())
        {
            return Error::data(format!(
                "{show}: expected finite numbers, found {bad} voxels with others, first {x} in voxel {voxel} at TR {tr}; \
                 leave such voxels out of the mask"
            ));
        }
    }
    Error::data(format!("{show}: expected finite numbers, found {bad} voxels whose squares are not"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[usize], numbers: &[f32]) -> (tempfile::TempDir, MappedArray) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        npy::write_f32(&path, Existing::Replace, shape, numbers).unwrap();
        let array = MappedArray::open(path).unwrap();
        (folder, array)
    }

    #[test]
    fn voxels_have_mean_0_and_deviation_1_over_the_time_that_counts_and_a_silent_one_is_0() {
        // Around 1e6, where sums of squares in f32 would have no digit left.
        let numbers: Vec<f32> =
            (0..8).flat_map(|t| [1e6 + (t * t % 7) as f32, 5.0, t as f32]).chain([9e9, 1.0, 1.0]).collect();
        let (folder, array) = array(&[9, 3], &numbers);
        let statistics = VoxelStatistics::of(&array, 8).unwrap();
        assert_eq!(statistics.std()[1], 1.0);
        let mut sums = [[0.0_f64; 2]; 3];
        for row in numbers.chunks_exact(3).take(8) {
            let mut row = row.to_vec();
            statistics.normalize(&mut row);
            for (s, &x) in sums.iter_mut().zip(&row) {
                *s = [s[0] + f64::from(x), s[1] + f64::from(x).powi(2)];
            }
        }
        for (voxel, expected) in [8.0, 0.0, 8.0].into_iter().enumerate() {
            approx::assert_abs_diff_eq!(sums[voxel][0], 0.0, epsilon = 1e-1);
            approx::assert_abs_diff_eq!(sums[voxel][1], expected, epsilon = 1e-1);
        }
        let mut row = vec![0.5, 0.0, -1.0];
        statistics.normalize(&mut row);
        statistics.restore(&mut row);
        approx::assert_abs_diff_eq!(row[2], -1.0, epsilon = 1e-6);
        statistics.save(&folder.path().join("made"), 3, Existing::Refuse).unwrap();
        let saved = npy::read(folder.path().join("made/fmri_s3_std.npy")).unwrap();
        assert_eq!(saved.into_f32(), statistics.std());
    }

    #[test]
    fn a_voxel_that_is_no_number_is_named_with_its_time() {
        let (_folder, array) = array(&[3, 2], &[0.0, 1.0, 2.0, f32::NAN, f32::INFINITY, 1.0]);
        let error = VoxelStatistics::of(&array, 3).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "found 2 voxels with others, first NaN in voxel 1 at TR 1; leave such voxels out of the mask"
            )
        );
        assert!(VoxelStatistics::of(&array, 1).is_ok());
    }
}
