//! Everything that is wrong with a data set, at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::files::{self, FIELDS, Fields};
use super::moments::{Moments, Place};
use super::{Split, Statistics, WeatherDataConfig};
use crate::error::Faults;

/// Steps that are read at once: enough for all cores, little enough memory.
const BLOCK: usize = 16;

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The files' headers and the statistics: instant.
    Headers,
    /// Every number too.
    Values,
}

/// How far the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidateProgress<'a> {
    /// The file that is being read.
    pub file: &'a Path,
    /// Steps read, of all files.
    pub done: usize,
    /// Steps of all files.
    pub total: usize,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What keeps the data set from being trained on. None: it is sound.
    #[serde(serialize_with = "lines")]
    pub faults: Faults,
    /// What may be meant so, but often is not.
    pub warnings: Vec<String>,
    /// Every file that could be opened.
    pub files: Vec<FileReport>,
    /// Mean, deviation and range of every channel over the training files; empty unless values were read.
    pub channels: Vec<Moments>,
}

/// One file.
#[derive(Debug, Clone, Serialize)]
pub struct FileReport {
    /// Where it is.
    pub path: PathBuf,
    /// The split it belongs to.
    #[serde(serialize_with = "shown")]
    pub split: Split,
    /// Time, channels, rows, columns.
    pub shape: [usize; 4],
    /// The number type, as `f32`.
    pub dtype: String,
    /// How the numbers lie in it.
    pub layout: String,
    /// Mean, deviation and range of every channel; empty unless values were read.
    pub channels: Vec<Moments>,
}

fn lines<S: serde::Serializer>(faults: &Faults, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(faults.lines())
}

fn shown<S: serde::Serializer>(value: &Split, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Checks a data set: folders, files, shapes, numbers and statistics. Never fails: what is wrong is in the report.
///
/// A missing folder `test` is a warning, since training does not need it.
pub fn validate(config: &WeatherDataConfig, depth: Depth, mut progress: impl FnMut(ValidateProgress<'_>)) -> Report {
    let mut report = Report { faults: Faults::new(), warnings: Vec::new(), files: Vec::new(), channels: Vec::new() };
    config.validate(&mut report.faults);
    let open = open_all(config, &mut report);
    same_name_in_two_splits(&open, &mut report.warnings);
    let total = open.iter().map(|(_, f)| f.shape[0]).sum();
    let mut done = 0;
    for (split, fields) in &open {
        let mut file = FileReport {
            path: fields.path.clone(),
            split: *split,
            shape: fields.shape,
            dtype: fields.data.dtype().to_string(),
            layout: fields.data.layout().to_string(),
            channels: Vec::new(),
        };
        if depth == Depth::Values {
            file.channels = read_values(fields, &mut report, |steps| {
                done += steps;
                progress(ValidateProgress { file: &fields.path, done, total });
            });
            if *split == Split::Train {
                merge_channels(&mut report.channels, &file.channels);
            }
        }
        report.files.push(file);
    }
    if config.normalize {
        check_statistics(config, &open, &mut report);
    }
    report
}

/// Opens every file of every split; those that cannot be used are faults.
fn open_all(config: &WeatherDataConfig, report: &mut Report) -> Vec<(Split, Fields)> {
    let mut open: Vec<(Split, Fields)> = Vec::new();
    let span = config.sequence_length.saturating_add(config.dt);
    for split in Split::ALL {
        let paths = match files::list(split.folder(config)) {
            Ok(paths) => paths,
            Err(e) if split == Split::Test => {
                report.warnings.push(format!("{e} (only measuring a finished model needs it)"));
                continue;
            }
            Err(e) => {
                report.faults.absorb(e);
                continue;
            }
        };
        for path in paths {
            match Fields::open(&path) {
                Ok(fields) => {
                    check_shape(&fields, open.first().map(|(_, f)| f), span, &mut report.faults);
                    open.push((split, fields));
                }
                Err(e) => report.faults.absorb(e),
            }
        }
    }
    open
}

fn check_shape(fields: &Fields, first: Option<&Fields>, span: usize, faults: &mut Faults) {
    let label = format!("{}: {FIELDS}", fields.path.display());
    let [time, channels, height, width] = fields.shape;
    if time < span {
        faults.push(format!("{label}: expected at least {span} steps (sequence_length + dt), found {time}"));
    }
    if [channels, height, width].contains(&0) {
        faults.push(format!("{label}: expected no axis of length 0, found {:?}", fields.shape));
    }
    if let Some(first) = first {
        let [_, c, h, w] = first.shape;
        if (c, h, w) != (channels, height, width) {
            faults.push(format!(
                "{label}: expected [time, {c}, {h}, {w}] like {}, found {:?}",
                first.path.display(),
                fields.shape
            ));
        }
    }
}

/// A year that is trained on and validated on makes the validation worthless.
fn same_name_in_two_splits(open: &[(Split, Fields)], warnings: &mut Vec<String>) {
    let mut seen: BTreeMap<OsString, Split> = BTreeMap::new();
    for (split, fields) in open {
        let name = fields.path.file_name().unwrap_or_default().to_os_string();
        let shown = name.to_string_lossy().into_owned();
        match seen.insert(name, *split) {
            Some(other) if other != *split => {
                warnings.push(format!("{shown}: is in {other} and in {split}: is the same year in both?"))
            }
            _ => {}
        }
    }
}

/// What one step of a file holds.
enum Step {
    Read(Vec<Moments>),
    Broken(String),
}

/// Reads every number of a file, some steps at once, and joins them in order, so that threads change nothing.
fn read_values(fields: &Fields, report: &mut Report, mut progress: impl FnMut(usize)) -> Vec<Moments> {
    let [time, channels, height, width] = fields.shape;
    let label = format!("{}: {FIELDS}", fields.path.display());
    let mut all: Vec<Moments> = vec![Moments::default(); channels];
    let mut broken: Option<(usize, String)> = None;
    for start in (0..time).step_by(BLOCK) {
        let steps: Vec<Step> =
            (start..(start + BLOCK).min(time)).into_par_iter().map(|t| read_step(fields, t)).collect();
        progress(steps.len());
        for step in steps {
            match (step, &mut broken) {
                (Step::Read(channels), _) => all.iter_mut().zip(&channels).for_each(|(a, c)| a.merge(c)),
                (Step::Broken(_), Some((count, _))) => *count += 1,
                (Step::Broken(why), none) => *none = Some((1, why)),
            }
        }
    }
    if let Some((count, why)) = broken {
        report.faults.push(format!("{why} ({count} of {time} steps cannot be read)"));
    }
    let bad: u64 = all.iter().map(|m| m.not_finite).sum();
    if let Some(Place { step, channel, index, value }) =
        all.iter().filter_map(|m| m.first_not_finite).min_by_key(|p| p.step)
    {
        let (row, column) = (index / width.max(1), index % width.max(1));
        report.faults.push(format!(
            "{label}: expected finite numbers, found {bad} that are not, first {value} at step {step}, channel {channel}, \
             row {row}, column {column}; fill them before training"
        ));
    }
    let constant: u64 = all.iter().map(|m| m.constant_planes).sum();
    if constant > 0 && height * width > 1 {
        report.warnings.push(format!(
            "{label}: {constant} of {} fields are the same number everywhere: were their chunks never written?",
            time * channels
        ));
    }
    all
}

fn read_step(fields: &Fields, step: usize) -> Step {
    let [_, channels, height, width] = fields.shape;
    let mut values = vec![0.0_f32; channels * height * width];
    match fields.data.read(&[step..step + 1, 0..channels, 0..height, 0..width], &mut values) {
        Ok(()) => {
            let planes = values.chunks_exact((height * width).max(1)).enumerate();
            Step::Read(planes.map(|(channel, plane)| Moments::of_plane(plane, step, channel)).collect())
        }
        Err(e) => Step::Broken(format!("{e} at step {step}")),
    }
}

fn merge_channels(all: &mut Vec<Moments>, more: &[Moments]) {
    if all.len() < more.len() {
        all.resize(more.len(), Moments::default());
    }
    all.iter_mut().zip(more).for_each(|(a, m)| a.merge(m));
}

/// The statistics' own faults, their number of channels, and whether they can be of these data.
fn check_statistics(config: &WeatherDataConfig, open: &[(Split, Fields)], report: &mut Report) {
    let statistics = match Statistics::load(&config.means_path, &config.stds_path) {
        Ok(s) => s,
        Err(e) => return report.faults.absorb(e),
    };
    if let Some((_, first)) = open.first()
        && statistics.channels() != first.shape[1]
    {
        let [_, channels, ..] = first.shape;
        report.faults.push(format!(
            "{}: expected {channels} channels like {}, found {}",
            config.means_path.display(),
            first.path.display(),
            statistics.channels()
        ));
        return;
    }
    let numbers = statistics.means().iter().zip(statistics.stds()).zip(&report.channels);
    let mut swapped = 0;
    for (channel, ((&mean, &std), own)) in numbers.enumerate() {
        let own_std = own.std();
        if own.count == 0 || own_std == 0.0 {
            continue;
        }
        let far = |a: f64, b: f64| (a - b).abs() > own_std;
        if far(mean, own.mean) {
            swapped += usize::from(!far(mean, own_std) && !far(std, own.mean));
            report.faults.push(format!(
                "{}: channel {channel}: expected about the training data's mean {:.6}, found {mean:.6}, which is more than \
                 their standard deviation {own_std:.6} away",
                config.means_path.display(),
                own.mean
            ));
        }
        if !(0.5..=2.0).contains(&(std / own_std)) {
            report.faults.push(format!(
                "{}: channel {channel}: expected about the training data's standard deviation {own_std:.6}, found {std:.6}",
                config.stds_path.display()
            ));
        }
    }
    if swapped > 0 && swapped == report.channels.len() {
        report.faults.push(format!(
            "{} and {}: seem to be exchanged",
            config.means_path.display(),
            config.stds_path.display()
        ));
    }
}
