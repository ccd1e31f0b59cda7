//! Scans as rows of the voxels that most brains share.

use std::path::{Path, PathBuf};

use crate::error::{Error, Faults, Result};
use crate::io::atomic::Existing;
use crate::io::nifti::{self, Geometry, NiftiReader};
use crate::io::npy;

/// Volumes that the mask looks at.
const MASK_VOLUMES: usize = 200;
/// Voxels whose deviation over time is below this part of those that move at all are air.
const QUANTILE: f64 = 0.1;
/// Part of the subjects that must have a voxel.
const VOTES: f64 = 0.5;

/// The voxels that are kept, and where they lie.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Voxels along x, y and z.
    pub axes: [usize; 3],
    /// Where they lie in the head: the first subject's.
    pub geometry: Geometry,
    // Of every column its place in a volume of the file, where x is fastest; columns run with z fastest.
    places: Vec<usize>,
}

impl Mask {
    /// How many voxels are kept.
    pub fn voxels(&self) -> usize {
        self.places.len()
    }

    /// Where the voxel of a column lies, along x, y and z; `None` if there is no such column.
    pub fn place(&self, column: usize) -> Option<[usize; 3]> {
        let [nx, ny, _] = self.axes;
        self.places.get(column).map(|at| [at % nx, at / nx % ny, at / nx / ny])
    }

    /// The voxels for which `keep` holds, asked by their place in a file, x fastest.
    fn of(axes: [usize; 3], geometry: Geometry, keep: impl Fn(usize) -> bool) -> Mask {
        let [nx, ny, nz] = axes;
        let all = (0..nx).flat_map(|x| (0..ny).flat_map(move |y| (0..nz).map(move |z| x + nx * (y + ny * z))));
        Mask { axes, geometry, places: all.filter(|&place| keep(place)).collect() }
    }

    /// Reads a mask: one volume, whose voxels that are not 0 are kept.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] if it cannot be read or keeps nothing.
    pub fn read(path: &Path) -> Result<Mask> {
        let mut reader = NiftiReader::open(path)?;
        let header = reader.header().clone();
        if header.volumes != 1 {
            let found = header.volumes;
            return Err(Error::data(format!("{}: expected a mask of one volume, found {found}", path.display())));
        }
        let mut volume = vec![0.0; header.voxels()];
        reader.next(&mut volume)?;
        let mask = Mask::of(header.axes, header.geometry, |at| volume.get(at).is_some_and(|&x| x != 0.0));
        if mask.voxels() == 0 {
            return Err(Error::data(format!("{}: expected voxels that are not 0, found none", path.display())));
        }
        Ok(mask)
    }

    /// Writes the mask as a volume of zeros and ones.
    ///
    /// # Errors
    /// As [`nifti::write`].
    pub fn write(&self, path: &Path, existing: Existing) -> Result<()> {
        let ones = vec![1.0; self.voxels()];
        nifti::write(path, existing, self.axes, 1, &self.geometry, |_, volume| {
            self.scatter(&ones, volume);
            Ok(())
        })
    }

    /// Writes rows of voxels as volumes, 0 outside the mask.
    ///
    /// # Errors
    /// [`Error::Shape`] if `rows` are not whole rows; as [`nifti::write`].
    pub fn write_rows(&self, path: &Path, existing: Existing, rows: &[f32], tr: f64) -> Result<()> {
        let voxels = self.voxels().max(1);
        if !rows.len().is_multiple_of(voxels) {
            let found = rows.len();
            return Err(Error::shape(format!("mask: expected rows of {voxels} voxels, found {found} numbers")));
        }
        let mut geometry = self.geometry.clone();
        geometry.steps[4] = tr as f32;
        nifti::write(path, existing, self.axes, rows.len() / voxels, &geometry, |t, volume| {
            volume.fill(0.0);
            self.scatter(rows.get(t * voxels..(t + 1) * voxels).unwrap_or_default(), volume);
            Ok(())
        })
    }

    fn gather(&self, volume: &[f32], row: &mut [f32]) {
        for (x, &place) in row.iter_mut().zip(&self.places) {
            *x = volume.get(place).copied().unwrap_or_default();
        }
    }

    fn scatter(&self, row: &[f32], volume: &mut [f32]) {
        for (&x, &place) in row.iter().zip(&self.places) {
            if let Some(out) = volume.get_mut(place) {
                *out = x;
            }
        }
    }
}

/// The shared mask of some scans: a voxel counts for a subject if its deviation over the first 200 volumes is above the 10th
/// percentile of those that are not 0, and is kept if at least half the subjects count it.
///
/// # Errors
/// [`Error::Data`] if a scan cannot be read, has another shape than the first, or if no voxel is left.
pub fn shared_mask(scans: &[PathBuf], mut progress: impl FnMut(usize, usize, &Path)) -> Result<Mask> {
    let mut shared: Option<([usize; 3], Geometry, Vec<u32>)> = None;
    let mut faults = Faults::new();
    for (done, scan) in scans.iter().enumerate() {
        progress(done, scans.len(), scan);
        let mut reader = NiftiReader::open(scan)?;
        let header = reader.header().clone();
        let (axes, _, votes) =
            shared.get_or_insert_with(|| (header.axes, header.geometry.clone(), vec![0; header.voxels()]));
        if *axes != header.axes {
            faults.push(format!(
                "{}: expected {axes:?} voxels like the first scan, found {:?}; bring all scans into one space",
                scan.display(),
                header.axes
            ));
            continue;
        }
        let deviations = deviations(&mut reader)?;
        let least = threshold(&deviations);
        votes.iter_mut().zip(&deviations).for_each(|(vote, &d)| *vote += u32::from(d > least));
    }
    faults.into_result(Error::Data)?;
    let Some((axes, geometry, votes)) = shared else {
        return Err(Error::data("fmri: expected at least one scan, found none"));
    };
    let needed = (scans.len() as f64 * VOTES).ceil() as u32;
    let mask = Mask::of(axes, geometry, |at| votes.get(at).is_some_and(|&v| v >= needed));
    if mask.voxels() == 0 {
        return Err(Error::data(format!(
            "{}: expected voxels that change over time in half the subjects, found none",
            scans.first().map(|s| s.display().to_string()).unwrap_or_default()
        )));
    }
    Ok(mask)
}

/// The deviation of every voxel over the first volumes, around the first volume, so that no digits are lost.
fn deviations(reader: &mut NiftiReader) -> Result<Vec<f64>> {
    let count = reader.header().volumes.min(MASK_VOLUMES);
    let mut volume = vec![0.0_f32; reader.header().voxels()];
    let mut first = volume.clone();
    let mut sums = vec![[0.0_f64; 2]; volume.len()];
    for t in 0..count {
        reader.next(&mut volume)?;
        if t == 0 {
            first.copy_from_slice(&volume);
        }
        for ((sum, &x), &origin) in sums.iter_mut().zip(&volume).zip(&first) {
            let d = f64::from(x) - f64::from(origin);
            *sum = [sum[0] + d, sum[1] + d * d];
        }
    }
    let n = count.max(1) as f64;
    let deviation = |[sum, squares]: [f64; 2]| (squares / n - (sum / n).powi(2)).max(0.0).sqrt();
    // A voxel with NaN in it has no deviation, and is kept by nobody.
    Ok(sums.into_iter().map(deviation).map(|d| if d.is_finite() { d } else { 0.0 }).collect())
}

/// The 10th percentile of those that are not 0, on the line between two neighbours.
fn threshold(deviations: &[f64]) -> f64 {
    let mut moving: Vec<f64> = deviations.iter().copied().filter(|&d| d > 0.0).collect();
    moving.sort_unstable_by(f64::total_cmp);
    let at = QUANTILE * moving.len().saturating_sub(1) as f64;
    let (low, share) = (at as usize, at.fract());
    let value = |i: usize| moving.get(i).or(moving.last()).copied().unwrap_or(0.0);
    value(low) + (value(low + 1) - value(low)) * share
}

/// Writes the masked rows of a scan as `[T, voxels]`; returns T.
///
/// # Errors
/// As [`NiftiReader`] and [`npy::write_rows`]; [`Error::Data`] if the scan has another shape than the mask.
pub(super) fn write_scan(scan: &Path, mask: &Mask, to: &Path, existing: Existing) -> Result<usize> {
    let mut reader = NiftiReader::open(scan)?;
    let (axes, trs) = (reader.header().axes, reader.header().volumes);
    if axes != mask.axes {
        return Err(Error::data(format!(
            "{}: expected {:?} voxels like the mask, found {axes:?}",
            scan.display(),
            mask.axes
        )));
    }
    let mut volume = vec![0.0; reader.header().voxels()];
    npy::write_rows(to, existing, &[trs, mask.voxels()], |_, row| {
        reader.next(&mut volume)?;
        mask.gather(&volume, row);
        Ok(())
    })?;
    // The checksum of a packed file comes after its last volume.
    reader.next(&mut volume)?;
    Ok(trs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scan of 3 x 2 x 2 voxels whose voxel i swings by `swing(i)`.
    fn scan(path: &Path, swing: impl Fn(usize) -> f32) {
        nifti::write(path, Existing::Replace, [3, 2, 2], 4, &Geometry::default(), |t, volume| {
            let sign = if t % 2 == 0 { 1.0 } else { -1.0 };
            volume.iter_mut().enumerate().for_each(|(i, x)| *x = 100.0 + sign * swing(i));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn the_threshold_is_numpys_percentile_of_what_moves() {
        // numpy.percentile([1, 2, 4, 8], 10) = 1.3.
        approx::assert_abs_diff_eq!(threshold(&[0.0, 8.0, 1.0, 0.0, 4.0, 2.0]), 1.3, epsilon = 1e-12);
        assert_eq!((threshold(&[]), threshold(&[0.0, 5.0])), (0.0, 5.0));
    }

    #[test]
    fn voxels_that_half_the_subjects_have_are_kept_in_the_order_z_fastest() {
        let folder = tempfile::tempdir().unwrap();
        let scans: Vec<PathBuf> = (0..3).map(|i| folder.path().join(format!("s{i}.nii.gz"))).collect();
        // Voxel 11 moves in one subject only, voxel 0 in none, voxel 1 least of all.
        scan(&scans[0], |i| if i == 0 { 0.0 } else { i as f32 });
        scan(&scans[1], |i| if i == 0 || i == 11 { 0.0 } else { i as f32 });
        scan(&scans[2], |i| if i == 0 || i == 11 { 0.0 } else { i as f32 });
        let mask = shared_mask(&scans, |_, _, _| {}).unwrap();
        // x, then y, then z: in the file x is fastest, so z steps by 6 and y by 3.
        assert_eq!(mask.places, [6, 3, 9, 7, 4, 10, 2, 8, 5]);
        assert_eq!((mask.place(0), mask.place(5), mask.place(9)), (Some([0, 0, 1]), Some([1, 1, 1]), None));
        let path = folder.path().join("mask.nii");
        mask.write(&path, Existing::Refuse).unwrap();
        assert_eq!(Mask::read(&path).unwrap(), mask);
        let rows = folder.path().join("rows.npy");
        assert_eq!(write_scan(&scans[0], &mask, &rows, Existing::Refuse).unwrap(), 4);
        let array = npy::read(&rows).unwrap();
        assert_eq!(array.shape, [4, 9]);
        let numbers = array.into_f32();
        assert_eq!(numbers[..3], [106.0, 103.0, 109.0]);
        let back = folder.path().join("back.nii.gz");
        mask.write_rows(&back, Existing::Refuse, &numbers, 1.5).unwrap();
        let mut reader = NiftiReader::open(&back).unwrap();
        let mut volume = vec![0.0; 12];
        reader.next(&mut volume).unwrap();
        assert_eq!((volume[0], volume[1], volume[2], volume[10]), (0.0, 0.0, 102.0, 110.0));
        assert_eq!(reader.header().geometry.steps[4], 1.5);
    }

    #[test]
    fn scans_of_other_shapes_and_scans_that_never_change_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("a.nii"), folder.path().join("b.nii"));
        scan(&one, |_| 0.0);
        let error = shared_mask(std::slice::from_ref(&one), |_, _, _| {}).unwrap_err().to_string();
        assert!(error.ends_with("expected voxels that change over time in half the subjects, found none"), "{error}");
        nifti::write(&other, Existing::Replace, [2, 2, 2], 1, &Geometry::default(), |_, _| Ok(())).unwrap();
        let error = shared_mask(&[one, other.clone()], |_, _, _| {}).unwrap_err().to_string();
        assert!(error.contains("expected [3, 2, 2] voxels like the first scan, found [2, 2, 2]"), "{error}");
        assert!(Mask::read(&other).unwrap_err().to_string().ends_with("expected voxels that are not 0, found none"));
    }
}
