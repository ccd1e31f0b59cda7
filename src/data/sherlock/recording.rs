//! An opened data set: one film, aligned with the brains that saw it.

use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::align::Aligned;
use super::config::{All, Mode, Subjects};
use super::dataset::SherlockDataset;
use super::hrf::Response;
use super::import::Mask;
use super::manifest::{MANIFEST, Manifest};
use super::statistics::VoxelStatistics;
use super::{SherlockDataConfig, Sizes};
use crate::error::{Error, Faults, Result};
use crate::io::npy::MappedArray;

/// The shortest modality has at least this part of the longest one's TRs; less is another film, or a scan that was cut.
const LEAST_OVERLAP: f64 = 0.9;

/// A part of the film.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first TRs: what is trained on.
    Train,
    /// The rest: what is validated on.
    Validation,
    /// All TRs.
    All,
}

/// One film and the brains that saw it, on one clock.
///
/// Stimuli lie on the disk once, not once a subject, and brains are mapped. In memory are the convolved stimuli (if the
/// configuration convolves: 4 bytes a number, 163 MB for the published sizes) and mean and deviation of every voxel.
#[derive(Debug)]
pub struct Recording {
    pub(super) config: SherlockDataConfig,
    pub(super) manifest: Manifest,
    pub(super) sizes: Sizes,
    pub(super) trs: usize,
    pub(super) train_trs: usize,
    // Video, audio, text.
    pub(super) stimuli: [Aligned; 3],
    pub(super) convolved: Option<[Vec<f32>; 3]>,
    pub(super) brains: Vec<Brain>,
}

/// One subject.
#[derive(Debug)]
pub(super) struct Brain {
    pub(super) id: usize,
    pub(super) fmri: MappedArray,
    pub(super) statistics: Option<VoxelStatistics>,
}

/// What was opened before it was checked together.
struct Files {
    // Video, audio, text.
    stimuli: [Option<MappedArray>; 3],
    brains: Vec<(usize, MappedArray)>,
}

impl Recording {
    /// Opens a data set, checks it against what a model expects, aligns and convolves the stimuli and measures the voxels.
    ///
    /// The number of TRs is the least of all modalities and subjects: longer stimuli are resampled linearly to it, longer
    /// brains are cut.
    ///
    /// # Errors
    /// [`Error::Data`] with every fault of every file: missing, unreadable, another rank or channel order, sizes other than
    /// `expected` or than the other subjects', no common time, numbers that are not finite, frames outside [0, 1].
    pub fn open(config: &SherlockDataConfig, expected: Option<Sizes>) -> Result<Arc<Recording>> {
        let mut faults = Faults::new();
        config.validate(&mut faults);
        let manifest = match Manifest::read(&config.data_dir) {
            Ok(manifest) => manifest,
            Err(e) => {
                faults.absorb(e);
                return Err(Error::Data(faults));
            }
        };
        let files = Files::open(config, &manifest, &mut faults);
        let sizes = files.check(expected, &mut faults);
        let trs = files.common_trs(config, &mut faults);
        check_mask(config, &manifest, sizes, &mut faults);
        faults.into_result(Error::Data)?;
        let (Some(sizes), [Some(video), Some(audio), Some(text)]) = (sizes, files.stimuli) else {
            // What is missing was a fault.
            return Err(Error::data(format!("{}: the data set cannot be opened", config.data_dir.display())));
        };
        let stimuli = [video, audio, text].map(|array| Aligned::new(array, trs));
        let train_trs = ((config.train_fraction * trs as f64) as usize).clamp(1, trs - 1);
        let convolved = convolved(config, manifest.tr, &stimuli)?;
        let brains = measured(config, files.brains, train_trs)?;
        let config = config.clone();
        Ok(Arc::new(Recording { config, manifest, sizes, trs, train_trs, stimuli, convolved, brains }))
    }

    /// The samples of a part.
    pub fn part(self: &Arc<Recording>, part: Part) -> SherlockDataset {
        SherlockDataset::new(self.clone(), part)
    }

    /// How long each part of a sample is.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Seconds from one volume to the next.
    pub fn tr(&self) -> f64 {
        self.manifest.tr
    }

    /// How many TRs all modalities have.
    pub fn trs(&self) -> usize {
        self.trs
    }

    /// How many of them are trained on: the first ones.
    pub fn train_trs(&self) -> usize {
        self.train_trs
    }

    /// The numbers of the subjects, in the order of samples.
    pub fn subjects(&self) -> Vec<usize> {
        self.brains.iter().map(|b| b.id).collect()
    }

    /// Mean and deviation of the voxels of a subject; `None` if they are not normalised, or if there is no such subject.
    pub fn statistics(&self, subject: usize) -> Option<&VoxelStatistics> {
        self.brains.iter().find(|b| b.id == subject)?.statistics.as_ref()
    }

    /// The volume that places voxels in the head, if the data set has one.
    pub fn mask(&self) -> Option<PathBuf> {
        self.manifest.mask.as_ref().map(|m| self.config.data_dir.join(m))
    }
}

impl Files {
    fn open(config: &SherlockDataConfig, manifest: &Manifest, faults: &mut Faults) -> Files {
        let mut open =
            |path: &PathBuf| MappedArray::open(config.data_dir.join(path)).map_err(|e| faults.absorb(e)).ok();
        let stimuli = [&manifest.video, &manifest.audio, &manifest.text].map(&mut open);
        let is_chosen = |id: usize| match &config.subjects {
            Subjects::All(All::All) => true,
            Subjects::These(list) => list.contains(&id),
        };
        let chosen = manifest.subjects.iter().filter(|s| is_chosen(s.id));
        let brains = chosen.filter_map(|s| open(&s.fmri).map(|a| (s.id, a))).collect();
        if let Subjects::These(list) = &config.subjects {
            let there: Vec<usize> = manifest.subjects.iter().map(|s| s.id).collect();
            for id in list.iter().filter(|id| !there.contains(id)) {
                let file = config.data_dir.join(MANIFEST);
                faults.push(format!("{}: subjects: expected subject {id}, found {there:?}", file.display()));
            }
        }
        Files { stimuli, brains }
    }

    /// Ranks, lengths of all axes but time, and what the model expects of them.
    fn check(&self, expected: Option<Sizes>, faults: &mut Faults) -> Option<Sizes> {
        let before = faults.len();
        let [video, audio, text] = &self.stimuli;
        for array in video.iter() {
            check_video(array, faults);
        }
        let matrices = [(audio, "mels"), (text, "numbers of an embedding")];
        let stimuli = matrices.iter().filter_map(|(array, what)| array.as_ref().map(|a| (a, *what)));
        for (array, what) in stimuli.chain(self.brains.iter().map(|(_, a)| (a, "voxels"))) {
            check_matrix(array, what, faults);
        }
        let (_, first) = self.brains.first()?;
        for (_, other) in self.brains.iter().skip(1).filter(|(_, a)| a.row_len() != first.row_len()) {
            faults.push(format!(
                "{}: expected {} voxels like {}, found {}; all subjects share one mask",
                other.path().display(),
                first.row_len(),
                first.path().display(),
                other.row_len()
            ));
        }
        let (video, audio, text) = (video.as_ref()?, audio.as_ref()?, text.as_ref()?);
        if faults.len() > before {
            return None;
        }
        let &[_, height, width, _] = video.shape() else { return None };
        let sizes = Sizes { height, width, mels: audio.row_len(), text: text.row_len(), voxels: first.row_len() };
        let Some(e) = expected else { return Some(sizes) };
        for (key, array, expected, found) in [
            ("video_height", video, e.height, sizes.height),
            ("video_width", video, e.width, sizes.width),
            ("audio_mels", audio, e.mels, sizes.mels),
            ("text_dim", text, e.text, sizes.text),
            ("n_voxels", first, e.voxels, sizes.voxels),
        ] {
            if expected != found {
                let file = array.path().display();
                faults.push(format!(
                    "{file}: expected {expected} as {key} says, found {found}; set {key} to what the data have"
                ));
            }
        }
        Some(sizes)
    }

    /// The least number of TRs; 2 at least.
    fn common_trs(&self, config: &SherlockDataConfig, faults: &mut Faults) -> usize {
        let arrays: Vec<&MappedArray> =
            self.stimuli.iter().flatten().chain(self.brains.iter().map(|(_, a)| a)).collect();
        let (Some(least), Some(most)) =
            (arrays.iter().min_by_key(|a| a.rows()), arrays.iter().max_by_key(|a| a.rows()))
        else {
            return 2;
        };
        let (shortest, longest) = (least.path().display(), most.path().display());
        if least.rows() < 2 {
            faults.push(format!("{shortest}: expected at least 2 TRs, found {}", least.rows()));
        } else if (least.rows() as f64) < LEAST_OVERLAP * most.rows() as f64 {
            faults.push(format!(
                "{shortest}: expected about {} TRs like {longest}, found {}; all would be cut or squeezed to the shortest",
                most.rows(),
                least.rows()
            ));
        }
        config.max_trs.map_or(least.rows(), |n| n.min(least.rows())).max(2)
    }
}

/// A mask places as many voxels as the brains have.
fn check_mask(config: &SherlockDataConfig, manifest: &Manifest, sizes: Option<Sizes>, faults: &mut Faults) {
    let (Some(name), Some(sizes)) = (&manifest.mask, sizes) else { return };
    let path = config.data_dir.join(name);
    match Mask::read(&path) {
        Ok(mask) if mask.voxels() == sizes.voxels => {}
        Ok(mask) => faults.push(format!(
            "{}: expected {} voxels that are not 0, one a column of the brains, found {}",
            path.display(),
            sizes.voxels,
            mask.voxels()
        )),
        Err(e) => faults.absorb(e),
    }
}

fn check_video(array: &MappedArray, faults: &mut Faults) {
    let show = array.path().display();
    match array.shape() {
        &[_, height, width, 3] if height > 0 && width > 0 => {}
        shape @ &[_, 3, _, _] => faults.push(format!(
            "{show}: expected [TRs, rows, columns, 3], found {shape:?}: are the channels first? \
             array.transpose(0, 2, 3, 1) puts them last"
        )),
        shape => faults.push(format!("{show}: expected [TRs, rows, columns, 3] with no empty axis, found {shape:?}")),
    }
}

fn check_matrix(array: &MappedArray, what: &str, faults: &mut Faults) {
    match array.shape() {
        &[_, columns] if columns > 0 => {}
        shape => faults.push(format!(
            "{}: expected [TRs, {what}] with at least one column, found {shape:?}",
            array.path().display()
        )),
    }
}

/// The stimuli as the encoder reads them, if they are convolved; checked meanwhile.
fn convolved(config: &SherlockDataConfig, tr: f64, stimuli: &[Aligned; 3]) -> Result<Option<[Vec<f32>; 3]>> {
    if !config.apply_hrf {
        return Ok(None);
    }
    let response = Response::new(tr, config.hrf_alignment);
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    let mut faults = Faults::new();
    for (modality, (aligned, out)) in stimuli.iter().zip(&mut all).enumerate() {
        let numbers = aligned.read_all()?;
        let width = aligned.array().row_len();
        let is_fine = |x: f32| x.is_finite() && (modality > 0 || (-0.01..=1.01).contains(&x));
        if let Some((at, x)) = numbers.iter().enumerate().find(|(_, x)| !is_fine(**x)) {
            let expected = if modality > 0 { "finite numbers" } else { "colours from 0 to 1" };
            faults.push(format!(
                "{}: expected {expected}, found {x} at TR {}, place {}",
                aligned.array().path().display(),
                at / width.max(1),
                at % width.max(1)
            ));
            continue;
        }
        *out = response.convolve(&numbers, width);
    }
    faults.into_result(Error::Data)?;
    Ok(Some(all))
}

/// The brains with mean and deviation of their voxels, subjects in parallel.
fn measured(config: &SherlockDataConfig, brains: Vec<(usize, MappedArray)>, train_trs: usize) -> Result<Vec<Brain>> {
    let measure = |(id, fmri): (usize, MappedArray)| {
        let statistics = config.normalize_fmri.then(|| VoxelStatistics::of(&fmri, train_trs)).transpose()?;
        Ok(Brain { id, fmri, statistics })
    };
    let mut faults = Faults::new();
    let mut measured = Vec::with_capacity(brains.len());
    for brain in brains.into_par_iter().map(measure).collect::<Vec<Result<Brain>>>() {
        match brain {
            Ok(brain) => measured.push(brain),
            Err(e) => faults.absorb(e),
        }
    }
    faults.into_result(Error::Data)?;
    Ok(measured)
}

impl Recording {
    /// Whether a sample is one TR of all subjects together.
    pub(super) fn is_cross_subject(&self) -> bool {
        self.config.mode == Mode::CrossSubject
    }
}
