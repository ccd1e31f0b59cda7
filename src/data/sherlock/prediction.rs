//! What a model makes of a film: brains and stimuli, as files.

use std::fs;
use std::path::{Path, PathBuf};

use super::import::Mask;
use super::recording::Recording;
use crate::error::{Error, Result};
use crate::io::atomic::Existing;
use crate::io::npy;
use crate::io::png::{self, Picture};

/// Predicted brains and reconstructed stimuli of some TRs.
///
/// # Shapes
/// `fmri` [TRs, voxels], `video` [TRs, 3, H, W], `audio` [TRs, mels], `text` [TRs, dim].
///
/// # Units
/// Those of the model: voxels in standard deviations (if the recording is normalised), colours from 0 to 1, dB.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prediction {
    /// The TRs of the recording.
    pub trs: Vec<usize>,
    /// Voxels.
    pub fmri: Vec<f32>,
    /// Frames, channels first.
    pub video: Vec<f32>,
    /// Mel spectra.
    pub audio: Vec<f32>,
    /// Embeddings.
    pub text: Vec<f32>,
}

impl Prediction {
    /// Correlation over time of every voxel with the brain of `subject`, or with the mean of all; 0 where one of the two never
    /// changes.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such subject; [`Error::Shape`] if `fmri` is not as long as `trs` says; as
    /// [`Dataset::batch`](crate::data::Dataset::batch).
    pub fn voxel_correlation(&self, recording: &Recording, subject: Option<usize>) -> Result<Vec<f64>> {
        let voxels = recording.sizes().voxels;
        self.check(recording)?;
        // Sums of x, y, x², y² and x·y.
        let mut sums = vec![[0.0_f64; 5]; voxels];
        let mut measured = vec![0.0_f32; voxels];
        for (&tr, row) in self.trs.iter().zip(self.fmri.chunks_exact(voxels.max(1))) {
            recording.brain(subject, tr, &mut measured)?;
            for ((sum, &x), &y) in sums.iter_mut().zip(row).zip(&measured) {
                let (x, y) = (f64::from(x), f64::from(y));
                for (s, term) in sum.iter_mut().zip([x, y, x * x, y * y, x * y]) {
                    *s += term;
                }
            }
        }
        let n = self.trs.len().max(1) as f64;
        let correlation = |[x, y, xx, yy, xy]: [f64; 5]| {
            let (vx, vy) = ((xx - x * x / n).max(0.0), (yy - y * y / n).max(0.0));
            // What rounding leaves of a constant is no signal.
            if vx <= 1e-12 * xx || vy <= 1e-12 * yy { 0.0 } else { (xy - x * y / n) / (vx * vy).sqrt() }
        };
        Ok(sums.into_iter().map(correlation).collect())
    }

    /// Writes `fmri.npy`, `audio.npy`, `text.npy`, `video/tr00000.png` and so on, and `fmri.nii.gz` if the recording has a
    /// mask, into `folder`; returns what was written, frames last. With a `subject`, voxels are given in that subject's
    /// scanner's units instead of standard deviations.
    ///
    /// # Errors
    /// [`Error::Argument`] if the subject has no statistics; [`Error::Shape`] if a part is not as long as `trs` says;
    /// [`Error::Data`] if a file exists and must not be replaced; [`Error::Io`] if the system refuses.
    pub fn write(
        &self,
        recording: &Recording,
        folder: &Path,
        existing: Existing,
        subject: Option<usize>,
    ) -> Result<Vec<PathBuf>> {
        self.check(recording)?;
        let sizes = recording.sizes();
        let fmri = match subject {
            None => self.fmri.clone(),
            Some(id) => restored(recording, id, &self.fmri)?,
        };
        let frames = folder.join("video");
        fs::create_dir_all(&frames).map_err(Error::io("create", &frames))?;
        let n = self.trs.len();
        let mut written = Vec::new();
        for (name, numbers, width) in [
            ("fmri.npy", &fmri, sizes.voxels),
            ("audio.npy", &self.audio, sizes.mels),
            ("text.npy", &self.text, sizes.text),
        ] {
            let path = folder.join(name);
            npy::write_f32(&path, existing, &[n, width], numbers)?;
            written.push(path);
        }
        if let Some(mask) = recording.mask() {
            let mask = Mask::read(&mask)?;
            let path = folder.join("fmri.nii.gz");
            mask.write_rows(&path, existing, &fmri, recording.tr())?;
            written.push(path);
        }
        for (&tr, frame) in self.trs.iter().zip(self.video.chunks_exact(sizes.pixels().max(1))) {
            let path = frames.join(format!("tr{tr:05}.png"));
            png::write(&path, existing, &picture(frame, sizes.height, sizes.width))?;
            written.push(path);
        }
        Ok(written)
    }

    fn check(&self, recording: &Recording) -> Result<()> {
        let (sizes, n) = (recording.sizes(), self.trs.len());
        for (what, found, width) in [
            ("fmri", self.fmri.len(), sizes.voxels),
            ("video", self.video.len(), sizes.pixels()),
            ("audio", self.audio.len(), sizes.mels),
            ("text", self.text.len(), sizes.text),
        ] {
            if found != n * width {
                return Err(Error::shape(format!(
                    "prediction: {what}: expected {n} TRs of {width} numbers, found {found} numbers"
                )));
            }
        }
        Ok(())
    }
}

/// Rows in the scanner's units of a subject.
fn restored(recording: &Recording, subject: usize, fmri: &[f32]) -> Result<Vec<f32>> {
    let Some(statistics) = recording.statistics(subject) else {
        let there = recording.subjects();
        return Err(Error::argument(format!(
            "subject: expected one of {there:?} of a recording that is normalised, found {subject}"
        )));
    };
    let mut rows = fmri.to_vec();
    rows.chunks_exact_mut(recording.sizes().voxels.max(1)).for_each(|row| statistics.restore(row));
    Ok(rows)
}

/// A frame of planes as a picture of pixels; what lies outside 0 to 1 is cut off.
fn picture(frame: &[f32], height: usize, width: usize) -> Picture {
    let area = height * width;
    let byte = |i: usize| (frame.get(i).copied().unwrap_or_default().clamp(0.0, 1.0) * 255.0).round() as u8;
    let rgb = (0..area).flat_map(|pixel| [0, 1, 2].map(|channel| byte(channel * area + pixel))).collect();
    Picture { height, width, rgb }
}

/// Writes one number a voxel, such as a correlation: `NAME.npy`, and `NAME.nii.gz` if the recording has a mask.
///
/// # Errors
/// [`Error::Shape`] if there is not one number a voxel; as [`Prediction::write`].
pub fn write_map(
    recording: &Recording,
    folder: &Path,
    name: &str,
    existing: Existing,
    numbers: &[f64],
) -> Result<Vec<PathBuf>> {
    let expected = recording.sizes().voxels;
    if numbers.len() != expected {
        let found = numbers.len();
        return Err(Error::shape(format!("map: expected one number for each of {expected} voxels, found {found}")));
    }
    let numbers: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
    let path = folder.join(format!("{name}.npy"));
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    npy::write_f32(&path, existing, &[numbers.len()], &numbers)?;
    let mut written = vec![path];
    if let Some(mask) = recording.mask() {
        let path = folder.join(format!("{name}.nii.gz"));
        Mask::read(&mask)?.write_rows(&path, existing, &numbers, recording.tr())?;
        written.push(path);
    }
    Ok(written)
}
