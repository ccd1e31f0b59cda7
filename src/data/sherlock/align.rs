//! One clock for all modalities: stimuli are stretched to the number of TRs, brains are cut to it.
//!
//! # Source
//! ContextLab/giblet-responses@4691d10 `giblet/alignment/sync.py`: `numpy.interp` over `numpy.linspace(0, n − 1, trs)`.

use crate::error::Result;
use crate::io::npy::MappedArray;

/// A stimulus of as many rows as there are TRs, whatever the file has.
#[derive(Debug)]
pub(super) struct Aligned {
    array: MappedArray,
    trs: usize,
}

impl Aligned {
    /// The rows of `array`, of which there is at least one, stretched or squeezed to `trs` rows.
    pub(super) fn new(array: MappedArray, trs: usize) -> Aligned {
        Aligned { array, trs }
    }

    /// The file.
    pub(super) fn array(&self) -> &MappedArray {
        &self.array
    }

    /// Reads row `tr` into `out`: a row of the file, or the line between two neighbours.
    pub(super) fn read(&self, tr: usize, out: &mut [f32]) -> Result<()> {
        let (row, share) = place(tr, self.trs, self.array.rows());
        self.array.read(row..row + 1, out)?;
        if share > 0.0 {
            let mut next = vec![0.0; out.len()];
            self.array.read(row + 1..row + 2, &mut next)?;
            for (x, &y) in out.iter_mut().zip(&next) {
                let (from, to) = (f64::from(*x), f64::from(y));
                *x = ((to - from) * share + from) as f32;
            }
        }
        Ok(())
    }

    /// All rows.
    pub(super) fn read_all(&self) -> Result<Vec<f32>> {
        let width = self.array.row_len().max(1);
        let mut all = vec![0.0; self.trs * width];
        for (tr, row) in all.chunks_exact_mut(width).enumerate() {
            self.read(tr, row)?;
        }
        Ok(all)
    }
}

/// Where TR `tr` of `trs` lies among `rows` rows: the row before it and the share of the next one.
pub(super) fn place(tr: usize, trs: usize, rows: usize) -> (usize, f64) {
    let last = rows.saturating_sub(1);
    if trs == rows || trs < 2 {
        return (tr.min(last), 0.0);
    }
    if tr + 1 >= trs {
        return (last, 0.0);
    }
    let at = tr as f64 * (last as f64 / (trs - 1) as f64);
    let row = (at as usize).min(last);
    if row == last { (last, 0.0) } else { (row, at - row as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::atomic::Existing;
    use crate::io::npy;

    #[test]
    fn places_are_those_of_linspace() {
        // numpy.linspace(0, 949, 920)[[1, 460, 918]] = 1.0326442, 475.0163221, 947.9673558.
        for (tr, at) in [(0, 0.0), (1, 1.032_644_2), (460, 475.016_322_1), (918, 947.967_355_8), (919, 949.0)] {
            let (row, share) = place(tr, 920, 950);
            approx::assert_abs_diff_eq!(row as f64 + share, at, epsilon = 1e-6);
        }
        assert_eq!((0..7).map(|t| place(t, 7, 7)).collect::<Vec<_>>(), (0..7).map(|t| (t, 0.0)).collect::<Vec<_>>());
        assert_eq!(place(0, 1, 5), (0, 0.0));
        assert_eq!((place(0, 3, 1), place(2, 3, 1)), ((0, 0.0), (0, 0.0)));
    }

    #[test]
    fn rows_between_two_rows_lie_on_the_line_between_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        npy::write_f32(&path, Existing::Replace, &[3, 2], &[0.0, 10.0, 4.0, 20.0, 8.0, 40.0]).unwrap();
        let aligned = Aligned::new(MappedArray::open(&path).unwrap(), 5);
        let all = aligned.read_all().unwrap();
        assert_eq!(all, [0.0, 10.0, 2.0, 15.0, 4.0, 20.0, 6.0, 30.0, 8.0, 40.0]);
        assert_eq!(aligned.array().rows(), 3);
    }
}
