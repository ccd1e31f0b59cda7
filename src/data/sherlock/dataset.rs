//! Samples of a recording: one TR of one subject, or of all together.

use std::ops::Range;
use std::sync::Arc;

use super::config::Reconstruct;
use super::recording::{Brain, Part, Recording};
use super::{Batch, Sizes, Stimulus};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::tensor::{Spec, Tensor};

/// The samples of a part of a recording.
///
/// Sample i of a part of n TRs is TR i mod n of subject i / n; with the mean of all subjects there are n samples.
#[derive(Debug, Clone)]
pub struct SherlockDataset {
    recording: Arc<Recording>,
    trs: Range<usize>,
}

impl SherlockDataset {
    pub(super) fn new(recording: Arc<Recording>, part: Part) -> SherlockDataset {
        let trs = match part {
            Part::Train => 0..recording.train_trs,
            Part::Validation => recording.train_trs..recording.trs,
            Part::All => 0..recording.trs,
        };
        SherlockDataset { recording, trs }
    }

    /// What it is part of.
    pub fn recording(&self) -> &Arc<Recording> {
        &self.recording
    }

    /// The TRs of the recording that it covers.
    pub fn trs(&self) -> Range<usize> {
        self.trs.clone()
    }

    /// Subject (its number; `None` for the mean of all) and TR of sample `index`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such sample.
    pub fn place(&self, index: usize) -> Result<(Option<usize>, usize)> {
        let (subject, tr) = self.locate(index)?;
        let is_one = !self.recording.is_cross_subject();
        Ok((self.recording.brains.get(subject).filter(|_| is_one).map(|b| b.id), tr))
    }

    fn locate(&self, index: usize) -> Result<(usize, usize)> {
        if index >= self.len() {
            let expected = self.len();
            return Err(Error::argument(format!("sample: expected an index below {expected}, found {index}")));
        }
        let n = self.trs.len().max(1);
        Ok((index / n, self.trs.start + index % n))
    }

    /// What the encoder reads, at these TRs of the recording: for stimuli whose answer nobody needs.
    ///
    /// # Errors
    /// [`Error::Argument`] for a TR that there is not; [`Error::Data`] for numbers that are not finite.
    pub fn input(&self, trs: &[usize]) -> Result<Stimulus> {
        self.stimulus(trs, self.recording.convolved.as_ref())
    }

    /// The stimulus at these TRs: convolved, or as it was.
    fn stimulus(&self, trs: &[usize], convolved: Option<&[Vec<f32>; 3]>) -> Result<Stimulus> {
        let recording = &self.recording;
        let Sizes { height, width, .. } = recording.sizes;
        let [video, audio, text] = recording.sizes.stimulus(trs.len())?;
        let mut frame = vec![0.0; recording.sizes.pixels()];
        let read = |modality: usize, tr: usize, out: &mut [f32]| {
            let ready = convolved.and_then(|c| c.get(modality));
            match (ready, recording.stimuli.get(modality)) {
                (Some(all), _) if tr < recording.trs => {
                    let rows = all.chunks_exact(out.len().max(1));
                    rows.skip(tr).take(1).for_each(|row| out.copy_from_slice(row));
                    Ok(())
                }
                (None, Some(aligned)) if tr < recording.trs => {
                    aligned.read(tr, out)?;
                    check_finite(out, || format!("{}: TR {tr}", aligned.array().path().display()))
                }
                _ => Err(Error::argument(format!("TR: expected one below {}, found {tr}", recording.trs))),
            }
        };
        let video = filled(video, trs, |tr, out| {
            read(0, tr, &mut frame)?;
            channels_first(&frame, height * width, out);
            Ok(())
        })?;
        let audio = filled(audio, trs, |tr, out| read(1, tr, out))?;
        let text = filled(text, trs, |tr, out| read(2, tr, out))?;
        Ok(Stimulus { video, audio, text })
    }

    fn fmri(&self, places: &[(usize, usize)]) -> Result<Tensor> {
        let recording = &self.recording;
        let spec = Spec::f32([places.len(), recording.sizes.voxels])?;
        let is_one = !recording.is_cross_subject();
        filled(spec, places, |(subject, tr), out| recording.answer(is_one.then_some(subject), tr, out))
    }
}

impl Recording {
    /// The answer of a subject at `tr`, or the mean of all; z-scored if the recording is.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such subject or TR, or if `out` does not hold a voxel each; [`Error::Data`] for
    /// numbers that are not finite.
    pub fn brain(&self, subject: Option<usize>, tr: usize, out: &mut [f32]) -> Result<()> {
        let place = |id: usize| {
            self.brains
                .iter()
                .position(|b| b.id == id)
                .ok_or_else(|| Error::argument(format!("subject: expected one of {:?}, found {id}", self.subjects())))
        };
        self.answer(subject.map(place).transpose()?, tr, out)
    }

    /// As [`brain`](Recording::brain), the subject by its place.
    fn answer(&self, subject: Option<usize>, tr: usize, out: &mut [f32]) -> Result<()> {
        if let Some(subject) = subject {
            return self.brains.get(subject).map_or(Ok(()), |brain| brain.read(tr, out));
        }
        let mut sums = vec![0.0_f64; out.len()];
        for brain in &self.brains {
            brain.read(tr, out)?;
            sums.iter_mut().zip(&*out).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let n = self.brains.len().max(1) as f64;
        out.iter_mut().zip(&sums).for_each(|(x, sum)| *x = (sum / n) as f32);
        Ok(())
    }
}

impl Brain {
    /// The answer at `tr`, z-scored if the recording is.
    fn read(&self, tr: usize, out: &mut [f32]) -> Result<()> {
        self.fmri.read(tr..tr + 1, out)?;
        check_finite(out, || format!("{}: TR {tr}", self.fmri.path().display()))?;
        if let Some(statistics) = &self.statistics {
            statistics.normalize(out);
        }
        Ok(())
    }
}

impl Dataset for SherlockDataset {
    type Batch = Batch;

    fn len(&self) -> usize {
        let subjects = if self.recording.is_cross_subject() { 1 } else { self.recording.brains.len() };
        self.trs.len() * subjects
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let places = indices.iter().map(|&i| self.locate(i)).collect::<Result<Vec<_>>>()?;
        let trs: Vec<usize> = places.iter().map(|&(_, tr)| tr).collect();
        let input = self.input(&trs)?;
        let is_same = self.recording.convolved.is_none() || self.recording.config.reconstruct == Reconstruct::Input;
        // Tensors share their numbers.
        let target = if is_same { input.clone() } else { self.stimulus(&trs, None)? };
        Ok(Batch { input, target, fmri: self.fmri(&places)? })
    }
}

/// A new tensor, one row a place.
fn filled<P: Copy>(spec: Spec, places: &[P], mut fill: impl FnMut(P, &mut [f32]) -> Result<()>) -> Result<Tensor> {
    let row = (spec.len() / places.len().max(1)).max(1);
    let mut numbers = vec![0.0_f32; spec.len()];
    for (&place, out) in places.iter().zip(numbers.chunks_exact_mut(row)) {
        fill(place, out)?;
    }
    Tensor::from_f32_as(spec, &numbers)
}

/// Rows of [pixel, channel] as [channel, pixel].
fn channels_first(frame: &[f32], pixels: usize, out: &mut [f32]) {
    for (channel, plane) in out.chunks_exact_mut(pixels.max(1)).enumerate() {
        for (x, pixel) in plane.iter_mut().zip(frame.as_chunks::<3>().0) {
            *x = pixel.get(channel).copied().unwrap_or_default();
        }
    }
}

/// A NaN in one sample would make the whole model NaN a step later, so it is refused where it is read.
fn check_finite(numbers: &[f32], place: impl FnOnce() -> String) -> Result<()> {
    // An exponent of all ones is NaN or infinity; a maximum over integers is vectorised, a search is not.
    const EXPONENT: u32 = 0x7F80_0000;
    if numbers.iter().fold(0, |m, x| m.max(x.to_bits() & EXPONENT)) != EXPONENT {
        return Ok(());
    }
    let (at, x) = numbers.iter().enumerate().find(|(_, x)| !x.is_finite()).unwrap_or((0, &f32::NAN));
    Err(Error::data(format!("{}: place {at}: expected a finite number, found {x}; mend it before training", place())))
}
