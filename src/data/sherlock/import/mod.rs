//! A data set from what a laboratory has: scans, sound, frames, embeddings.
//!
//! # Source
//! ContextLab/giblet-responses@4691d10, `giblet/data/{video,audio,text,fmri}.py`.

mod fmri;
pub mod mel;
mod resample;
mod text;
mod video;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use crate::error::{Error, Faults, Result};
use crate::io::atomic::Existing;
use crate::io::{npy, wav};

pub use fmri::{Mask, shared_mask};
pub use text::{Gap, Overlap, read_segments};
pub use video::Clock;

/// What is imported, and how.
#[derive(Debug, Clone)]
pub struct Import {
    /// Seconds from one volume to the next.
    pub tr: f64,
    /// The frames.
    pub video: Frames,
    /// Rows and columns of the frames that are kept; of an array, those it has.
    pub size: [usize; 2],
    /// The sound: `.wav`, or an array `.npy` [T, mels] of dB.
    pub audio: PathBuf,
    /// Mel bands; of an array, those it has.
    pub mels: usize,
    /// Embeddings `.npy`: of the segments, or of TRs if there are no segments.
    pub text: PathBuf,
    /// Start and end of the segments, `.csv`.
    pub segments: Option<PathBuf>,
    /// What a TR gets that several segments cover, or none.
    pub rule: (Overlap, Gap),
    /// The brains in the order of subjects, all `.nii` or `.nii.gz`, or all arrays `.npy` [T, voxels].
    pub fmri: Vec<PathBuf>,
    /// A mask to use instead of the shared one.
    pub mask: Option<PathBuf>,
    /// Whether files of a data set in the folder are replaced.
    pub overwrite: bool,
}

/// Where the frames come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Frames {
    /// A folder of `.png`, in the order of their names, so many a second.
    Pictures(PathBuf, f64),
    /// Bytes red, green, blue of frames of so many rows and columns, so many a second; from standard input if there is no
    /// file.
    Rgb24(Option<PathBuf>, [usize; 2], f64),
    /// Mean frames of TRs, `.npy` [T, H, W, 3] of 0 to 1.
    Array(PathBuf),
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Shapes of video, audio and text.
    pub stimuli: [Vec<usize>; 3],
    /// TRs of every brain.
    pub brains: Vec<usize>,
    /// Voxels of a brain.
    pub voxels: usize,
}

impl Import {
    /// Writes a data set into `folder`, which is made if it is not there; the manifest comes last. What fails leaves none of
    /// its files.
    ///
    /// # Errors
    /// [`Error::Argument`] for what cannot be asked; [`Error::Data`] for what is wrong with a file, or if a data set is
    /// there already; [`Error::Io`] if the system refuses.
    pub fn write(&self, folder: &Path, mut progress: impl FnMut(usize, usize, &Path)) -> Result<Imported> {
        self.check()?;
        if !self.overwrite && Manifest::is_in(folder) {
            return Err(Error::data(format!(
                "{}: holds a data set already; choose another folder or ask to overwrite it",
                folder.display()
            )));
        }
        let before = names(folder);
        let result = self.write_all(folder, &mut progress);
        if result.is_err() {
            // Files without a manifest are no data set, and would be in the way of the next attempt.
            names(folder).difference(&before).for_each(|name| drop(fs::remove_file(folder.join(name))));
        }
        result
    }

    fn write_all(&self, folder: &Path, progress: &mut dyn FnMut(usize, usize, &Path)) -> Result<Imported> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let is_scanned = self.fmri.iter().all(|f| !is_npy(f));
        let manifest = Manifest::usual(self.tr, 1..=self.fmri.len(), is_scanned);
        let total = 3 + self.fmri.len() * if is_scanned { 2 } else { 1 };
        let existing = if self.overwrite { Existing::Replace } else { Existing::Refuse };
        let put = |name: &Path, shape: &[usize], numbers: &[f32]| {
            npy::write_f32(&folder.join(name), existing, shape, numbers)
        };
        progress(0, total, &self.audio);
        let (shape, numbers) = self.sound()?;
        put(&manifest.audio, &shape, &numbers)?;
        let audio = shape;
        progress(1, total, folder);
        let (shape, numbers) = self.frames()?;
        put(&manifest.video, &shape, &numbers)?;
        let video = shape;
        progress(2, total, &self.text);
        let trs = video.first().copied().unwrap_or(0);
        let (shape, numbers) = self.words(trs)?;
        put(&manifest.text, &shape, &numbers)?;
        let mask = match (&self.mask, is_scanned) {
            (_, false) => None,
            (Some(path), true) => Some(Mask::read(path)?),
            (None, true) => Some(shared_mask(&self.fmri, |done, _, path| progress(3 + done, total, path))?),
        };
        let (mut brains, mut voxels) = (Vec::new(), 0);
        for (i, (file, subject)) in self.fmri.iter().zip(&manifest.subjects).enumerate() {
            progress(total - self.fmri.len() + i, total, file);
            let to = folder.join(&subject.fmri);
            if let Some(mask) = &mask {
                voxels = mask.voxels();
                brains.push(fmri::write_scan(file, mask, &to, existing)?);
            } else {
                let (shape, numbers) = array(file, 2, "[TRs, voxels]")?;
                voxels = shape.last().copied().unwrap_or(0);
                brains.push(shape.first().copied().unwrap_or(0));
                npy::write_f32(&to, existing, &shape, &numbers)?;
            }
        }
        if let (Some(mask), Some(name)) = (&mask, &manifest.mask) {
            mask.write(&folder.join(name), existing)?;
        }
        manifest.write(folder, existing)?;
        Ok(Imported { stimuli: [video, audio, shape], brains, voxels })
    }

    /// What can be said before anything is read.
    fn check(&self) -> Result<()> {
        let mut faults = Faults::new();
        if !(self.tr > 0.0 && self.tr <= 16.0) {
            faults.push(format!("tr: expected seconds above 0 and at most 16, found {}", self.tr));
        }
        if self.size.iter().any(|n| !(1..=1 << 13).contains(n)) {
            let [height, width] = self.size;
            faults.push(format!("size: expected 1 to 8192 rows and columns, found {width} x {height}"));
        }
        if !(1..=4096).contains(&self.mels) {
            faults.push(format!("mels: expected 1 to 4096 bands, found {}", self.mels));
        }
        if self.fmri.is_empty() {
            faults.push("fmri: expected at least one brain, found none");
        }
        if self.fmri.iter().any(|f| is_npy(f)) && !self.fmri.iter().all(|f| is_npy(f)) {
            faults.push("fmri: expected all scans as .nii or .nii.gz, or all as .npy, found both");
        }
        if let Frames::Pictures(_, fps) | Frames::Rgb24(_, _, fps) = self.video {
            (Clock { fps, tr: self.tr }).check().unwrap_or_else(|e| faults.absorb(e));
        }
        faults.into_result(|f| Error::argument(f.to_string()))
    }

    fn frames(&self) -> Result<(Vec<usize>, Vec<f32>)> {
        let clock = |fps| Clock { fps, tr: self.tr };
        let numbers = match &self.video {
            Frames::Array(path) => return array(path, 4, "[TRs, rows, columns, 3]"),
            Frames::Pictures(folder, fps) => video::from_pictures(folder, clock(*fps), self.size)?,
            Frames::Rgb24(Some(path), frame, fps) => {
                let file = File::open(path).map_err(Error::io("open", path))?;
                let label = path.display().to_string();
                video::from_bytes(&mut BufReader::new(file), &label, *frame, clock(*fps), self.size)?
            }
            Frames::Rgb24(None, frame, fps) => {
                video::from_bytes(&mut std::io::stdin().lock(), "standard input", *frame, clock(*fps), self.size)?
            }
        };
        let [height, width] = self.size;
        let trs = numbers.len() / (height * width * 3);
        if trs == 0 {
            return Err(Error::data("video: expected frames for at least one TR, found fewer"));
        }
        Ok((vec![trs, height, width, 3], numbers))
    }

    fn sound(&self) -> Result<(Vec<usize>, Vec<f32>)> {
        if is_npy(&self.audio) {
            return array(&self.audio, 2, "[TRs, mels]");
        }
        let sound = wav::read(&self.audio)?;
        if !(1000..=384_000).contains(&sound.rate) {
            return Err(Error::data(format!(
                "{}: expected 1,000 to 384,000 samples a second, found {}",
                self.audio.display(),
                sound.rate
            )));
        }
        let samples = resample::resample(&sound.samples, sound.rate, mel::RATE);
        let spectrum = mel::spectrum_db(&samples, self.mels);
        let numbers = mel::by_tr(&spectrum, self.mels, samples.len(), self.tr);
        let trs = numbers.len() / self.mels;
        if trs == 0 {
            let seconds = samples.len() as f64 / f64::from(mel::RATE);
            return Err(Error::data(format!(
                "{}: expected at least one TR of {} s, found {seconds:.2} s of sound",
                self.audio.display(),
                self.tr
            )));
        }
        Ok((vec![trs, self.mels], numbers))
    }

    fn words(&self, trs: usize) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, numbers) = array(&self.text, 2, "[segments, numbers of an embedding]")?;
        let Some(path) = &self.segments else { return Ok((shape, numbers)) };
        let segments = read_segments(path)?;
        let &[rows, dim] = shape.as_slice() else { return Ok((shape, numbers)) };
        if rows != segments.len() {
            return Err(Error::data(format!(
                "{}: expected {} embeddings, one a segment of {}, found {rows}",
                self.text.display(),
                segments.len(),
                path.display()
            )));
        }
        Ok((vec![trs, dim], text::by_tr(&segments, &numbers, dim, (trs, self.tr), self.rule)))
    }
}

/// Names of what is in a folder; none if it cannot be listed.
fn names(folder: &Path) -> BTreeSet<OsString> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|e| e.ok().map(|e| e.file_name())).collect()
}

fn is_npy(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "npy")
}

/// An array of that many axes, none of them empty, with finite numbers.
fn array(path: &Path, rank: usize, expected: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let array = npy::read(path)?;
    let shape = array.shape.clone();
    if shape.len() != rank || shape.contains(&0) || (rank == 4 && shape.last() != Some(&3)) {
        return Err(Error::data(format!(
            "{}: expected {expected} with no empty axis, found {shape:?}",
            path.display()
        )));
    }
    let numbers = array.into_f32();
    if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
        let width = shape.iter().skip(1).product::<usize>().max(1);
        return Err(Error::data(format!(
            "{}: expected finite numbers, found another at TR {}, place {}",
            path.display(),
            at / width,
            at % width
        )));
    }
    Ok((shape, numbers))
}
