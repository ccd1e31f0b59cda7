//! The file that says what a data set consists of.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Faults, Result};
use crate::io::atomic::{Existing, write_atomic};
use crate::io::bytes::read_file;

/// Its name.
pub const MANIFEST: &str = "sherlock.json";

/// What the manifest says of itself.
const FORMAT: &str = "sherlock";
/// The only version so far.
const VERSION: u32 = 1;
/// More subjects are no study, but a mistake.
const MAX_SUBJECTS: usize = 10_000;

/// The parts of a data set, as paths below its folder.
///
/// `.npy` of little-endian f2 or f4, in C order: `video` [T, H, W, 3], red, green and blue in [0, 1]; `audio` [T, mels] in
/// dB below the loudest of the film; `text` [T, dim]; of every subject `fmri` [T, voxels] in the scanner's units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `sherlock`.
    pub format: String,
    /// 1.
    pub version: u32,
    /// Seconds from one volume of the scanner to the next.
    pub tr: f64,
    /// Mean frames.
    pub video: PathBuf,
    /// Mel spectra.
    pub audio: PathBuf,
    /// Embeddings of descriptions.
    pub text: PathBuf,
    /// The brains, in the order of samples.
    pub subjects: Vec<Subject>,
    /// The volume whose non-zero voxels, x slowest, are the columns of `fmri`, as NIfTI: places predictions in the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
}

/// One brain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Number of the subject, from 1.
    pub id: usize,
    /// Its answers.
    pub fmri: PathBuf,
}

impl Manifest {
    /// A manifest with the usual names for subjects of these numbers, and a mask's name if there is one.
    pub fn usual(tr: f64, subjects: impl IntoIterator<Item = usize>, has_mask: bool) -> Manifest {
        let subject = |id| Subject { id, fmri: format!("fmri_s{id}.npy").into() };
        Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            tr,
            video: "video.npy".into(),
            audio: "audio.npy".into(),
            text: "text.npy".into(),
            subjects: subjects.into_iter().map(subject).collect(),
            mask: has_mask.then(|| "mask.nii.gz".into()),
        }
    }

    /// Whether `folder` has a manifest: is a data set of this kind.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(MANIFEST).is_file()
    }

    /// Reads the manifest of a data set.
    ///
    /// # Errors
    /// [`Error::Data`] with all that is wrong with it; [`Error::Io`] if it cannot be read.
    pub fn read(folder: &Path) -> Result<Manifest> {
        let path = folder.join(MANIFEST);
        let show = path.display();
        if !folder.is_dir() {
            let found = if folder.exists() { "a file" } else { "nothing there" };
            return Err(Error::data(format!(
                "{}: expected the folder of a data set, found {found}; `data import` and `synth sherlock` make one",
                folder.display()
            )));
        }
        if !path.exists() {
            return Err(Error::data(format!(
                "{show}: expected the manifest of a data set, found no such file; `data import` and `synth sherlock` \
                 write one"
            )));
        }
        let bytes = read_file(&path)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| Error::data(format!("{show}: malformed manifest: {e}")))?;
        let mut faults = Faults::new();
        manifest.check(&show.to_string(), &mut faults);
        faults.into_result(Error::Data)?;
        Ok(manifest)
    }

    /// Writes the manifest: the last of a data set's files, so that one that has it is complete.
    ///
    /// # Errors
    /// [`Error::Data`] if it exists and must not be replaced; [`Error::Io`] if the system refuses.
    pub fn write(&self, folder: &Path, existing: Existing) -> Result<()> {
        let path = folder.join(MANIFEST);
        write_atomic(&path, existing, |file| {
            serde_json::to_writer_pretty(&mut *file, self)
                .map_err(std::io::Error::from)
                .and_then(|()| std::io::Write::write_all(file, b"\n"))
                .map_err(Error::io("write", &path))
        })
    }

    fn check(&self, label: &str, faults: &mut Faults) {
        if self.format != FORMAT {
            faults.push(format!("{label}: format: expected {FORMAT}, found {}", self.format));
        }
        if self.version != VERSION {
            faults.push(format!("{label}: version: expected {VERSION}, found {}", self.version));
        }
        if !(self.tr > 0.0 && self.tr <= 16.0) {
            let found = self.tr;
            faults.push(format!("{label}: tr: expected seconds above 0 and at most 16, found {found}; 1.5 is usual"));
        }
        if self.subjects.is_empty() || self.subjects.len() > MAX_SUBJECTS {
            let found = self.subjects.len();
            faults.push(format!("{label}: subjects: expected 1 to {MAX_SUBJECTS}, found {found}"));
        }
        let ids: Vec<usize> = self.subjects.iter().map(|s| s.id).collect();
        let mut seen = std::collections::BTreeSet::new();
        if ids.iter().any(|&id| id == 0 || !seen.insert(id)) {
            faults.push(format!("{label}: subjects: expected different numbers from 1, found {ids:?}"));
        }
        let fmri = self.subjects.iter().map(|s| &s.fmri);
        for path in [&self.video, &self.audio, &self.text].into_iter().chain(fmri).chain(&self.mask) {
            let is_below = path.components().all(|c| matches!(c, Component::Normal(_)));
            if !is_below || path.as_os_str().is_empty() {
                faults.push(format!("{label}: expected paths below the data set's folder, found {}", path.display()));
            }
        }
    }
}
