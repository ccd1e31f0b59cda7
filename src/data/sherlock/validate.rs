//! Everything that is wrong with a data set, at once, and what its numbers look like.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::manifest::Manifest;
use super::recording::Recording;
use super::{SherlockDataConfig, Sizes};
use crate::data::weather::Moments;
use crate::error::Faults;
use crate::io::npy::MappedArray;

/// TRs that are read at once: enough for all cores, little enough memory.
const BLOCK: usize = 16;

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What keeps the data set from being trained on. None: it is sound.
    #[serde(serialize_with = "lines")]
    pub faults: Faults,
    /// What may be meant so, but often is not.
    pub warnings: Vec<String>,
    /// Every array that could be opened: the modalities, then the subjects.
    pub arrays: Vec<ArrayReport>,
    /// TRs that all have in common, and how many of them are trained on; `None` unless the data set can be opened.
    pub trs: Option<[usize; 2]>,
    /// How long each part of a sample is.
    pub sizes: Option<Sizes>,
}

/// One modality or subject.
#[derive(Debug, Clone, Serialize)]
pub struct ArrayReport {
    /// `video`, `audio`, `text` or `subject 3`.
    pub what: String,
    /// Where it is.
    pub path: PathBuf,
    /// TRs first.
    pub shape: Vec<usize>,
    /// The number type.
    pub dtype: String,
    /// Mean, deviation, range and what is not finite; empty counts unless values were read.
    pub numbers: Moments,
    /// Columns that never change; 0 unless values were read.
    pub constant_columns: usize,
}

fn lines<S: serde::Serializer>(faults: &Faults, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(faults.lines())
}

/// Checks a data set: manifest, arrays, shapes, TRs, and with `values` every number. Never fails: what is wrong is in the
/// report.
pub fn validate(config: &SherlockDataConfig, values: bool, mut progress: impl FnMut(usize, usize, &Path)) -> Report {
    let mut report = Report { faults: Faults::new(), warnings: Vec::new(), arrays: Vec::new(), trs: None, sizes: None };
    // Numbers are read below, once, and told with their counts.
    let quick = SherlockDataConfig { apply_hrf: false, normalize_fmri: false, ..config.clone() };
    match Recording::open(&quick, None) {
        Ok(recording) => {
            report.trs = Some([recording.trs(), recording.train_trs()]);
            report.sizes = Some(recording.sizes());
        }
        Err(e) => report.faults.absorb(e),
    }
    let Ok(manifest) = Manifest::read(&config.data_dir) else { return report };
    let modalities = [("video", &manifest.video), ("audio", &manifest.audio), ("text", &manifest.text)];
    let mut named: Vec<(String, &PathBuf)> = modalities.map(|(what, path)| (what.to_owned(), path)).into();
    named.extend(manifest.subjects.iter().map(|s| (format!("subject {}", s.id), &s.fmri)));
    let total = named.len();
    for (done, (what, path)) in named.into_iter().enumerate() {
        // Those that cannot be opened are faults already.
        let Ok(array) = MappedArray::open(config.data_dir.join(path)) else { continue };
        progress(done, total, array.path());
        let mut one = ArrayReport {
            what,
            path: array.path().to_path_buf(),
            shape: array.shape().to_vec(),
            dtype: array.dtype().to_string(),
            numbers: Moments::default(),
            constant_columns: 0,
        };
        if values {
            (one.numbers, one.constant_columns) = read(&array);
            judge(&one, &array, &mut report);
        }
        report.arrays.push(one);
    }
    different_times(&mut report);
    report
}

/// Moments of all numbers, and how many columns never change; blocks in parallel, joined in order.
fn read(array: &MappedArray) -> (Moments, usize) {
    let (rows, width) = (array.rows(), array.row_len());
    let mut all = Moments::default();
    let mut ranges: Vec<[f32; 2]> = vec![[f32::INFINITY, f32::NEG_INFINITY]; width];
    let starts: Vec<usize> = (0..rows).step_by(BLOCK).collect();
    for group in starts.chunks(8) {
        let blocks: Vec<Vec<f32>> = group
            .par_iter()
            .map(|&start| {
                let end = (start + BLOCK).min(rows);
                let mut block = vec![0.0; (end - start) * width];
                // The rows are there: the header was checked against the file.
                array.read(start..end, &mut block).map(|()| block).unwrap_or_default()
            })
            .collect();
        for (block, &start) in blocks.iter().zip(group) {
            for (i, row) in block.chunks_exact(width.max(1)).enumerate() {
                all.merge(&Moments::of_plane(row, start + i, 0));
                for (range, &x) in ranges.iter_mut().zip(row) {
                    *range = [range[0].min(x), range[1].max(x)];
                }
            }
        }
    }
    let constant = ranges.iter().filter(|[low, high]| low == high).count();
    (all, constant)
}

/// What the numbers of an array say about it.
fn judge(one: &ArrayReport, array: &MappedArray, report: &mut Report) {
    let show = array.path().display();
    if let Some(place) = one.numbers.first_not_finite {
        report.faults.push(format!(
            "{show}: expected finite numbers, found {} that are not, first {} at TR {}, place {}",
            one.numbers.not_finite, place.value, place.step, place.index
        ));
    }
    if one.numbers.count == 0 {
        return;
    }
    let (low, high) = (one.numbers.min, one.numbers.max);
    match one.what.as_str() {
        "video" if low < -0.01 || high > 1.01 => {
            let hint = if high > 2.0 { "; divide bytes by 255" } else { "" };
            report.faults.push(format!("{show}: expected colours from 0 to 1, found {low} to {high}{hint}"));
        }
        "audio" if high > 1e-3 => report.warnings.push(format!(
            "{show}: expected dB below the loudest, 0 at most, found up to {high}: is it the power itself?"
        )),
        "text" => {
            // The mean square of the numbers of vectors of length 1 is one over how many they are.
            let square = one.numbers.mean.powi(2) + one.numbers.std().powi(2);
            let length = (square * array.row_len() as f64).sqrt();
            if !(0.3..=3.0).contains(&length) {
                report.warnings.push(format!("{show}: expected embeddings of length about 1, found about {length:.3}"));
            }
        }
        _ => {}
    }
    if one.constant_columns > 0 && array.rows() > 1 {
        let of = array.row_len();
        report.warnings.push(format!("{show}: {} of {of} columns never change", one.constant_columns));
    }
}

/// Stimuli that are stretched and brains that are cut are named.
fn different_times(report: &mut Report) {
    let Some([trs, _]) = report.trs else { return };
    for one in &report.arrays {
        let Some(&found) = one.shape.first().filter(|&&n| n != trs) else { continue };
        let what = if one.what.starts_with("subject") { "cut" } else { "squeezed" };
        report.warnings.push(format!("{}: {found} TRs will be {what} to the {trs} that all have", one.path.display()));
    }
}
