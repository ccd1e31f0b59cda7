//! What is read of a Sherlock data set, and from where.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Faults;

/// What is read of a Sherlock data set, and from where. [`Default`] reads all subjects below `data/`.
///
/// # Source
/// ContextLab/giblet-responses@4691d10, `giblet/data/dataset.py`: `data_dir`, `subjects`, `apply_hrf`, `mode`. Differs on
/// purpose: the response follows the stimulus (`hrf_alignment`), and what is reconstructed is the stimulus itself
/// (`reconstruct`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SherlockDataConfig {
    /// Root of the data set.
    pub data_dir: PathBuf,
    /// Which subjects: all, or their numbers.
    pub subjects: Subjects,
    /// Whether stimuli are convolved with the haemodynamic response before the encoder reads them.
    pub apply_hrf: bool,
    /// Where the response lies in time.
    pub hrf_alignment: HrfAlignment,
    /// What the decoder is compared with.
    pub reconstruct: Reconstruct,
    /// One sample a TR and subject, or one a TR with the mean of all subjects.
    pub mode: Mode,
    /// Whether every voxel is z-scored by its mean and deviation over the time that is trained on; `false` leaves the
    /// scanner's units, as the original does.
    pub normalize_fmri: bool,
    /// At most so many TRs, the first ones; without it, all.
    pub max_trs: Option<usize>,
    /// Part of the TRs, the first ones, that is trained on; the rest validates.
    pub train_fraction: f64,
    /// Threads that read ahead; 0 reads between the steps.
    pub num_workers: usize,
}

/// Which subjects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Subjects {
    /// `all`.
    All(All),
    /// These numbers, from 1.
    These(Vec<usize>),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum All {
    /// Everybody.
    All,
}

/// Where the haemodynamic response lies in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HrfAlignment {
    /// It follows the stimulus: its peak comes 6 s later.
    Causal,
    /// Its middle lies at the stimulus, so that its peak comes 9 s before it: what the original computes.
    Centered,
}

/// What the decoder is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reconstruct {
    /// The stimulus as it was.
    Stimulus,
    /// What the encoder reads, as in the original: convolved, frames leave [0, 1], which the decoder cannot.
    Input,
}

/// What a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One TR of one subject.
    PerSubject,
    /// One TR, the mean of all subjects.
    CrossSubject,
}

impl Default for SherlockDataConfig {
    fn default() -> SherlockDataConfig {
        SherlockDataConfig {
            data_dir: "data".into(),
            subjects: Subjects::All(All::All),
            apply_hrf: true,
            hrf_alignment: HrfAlignment::Causal,
            reconstruct: Reconstruct::Stimulus,
            mode: Mode::PerSubject,
            normalize_fmri: true,
            max_trs: None,
            train_fraction: 0.8,
            num_workers: 4,
        }
    }
}

impl SherlockDataConfig {
    /// Adds a line to `faults` for everything that cannot be read. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        if self.data_dir.as_os_str().is_empty() {
            faults.push("data_dir: expected a path, found an empty string; leave the key out for its default");
        }
        if let Subjects::These(list) = &self.subjects {
            let mut seen = std::collections::BTreeSet::new();
            if list.is_empty() || list.iter().any(|&s| s == 0 || !seen.insert(s)) {
                faults.push(format!("subjects: expected all, or different numbers from 1, found {list:?}"));
            }
        }
        if !(self.train_fraction > 0.0 && self.train_fraction < 1.0) {
            let found = self.train_fraction;
            faults.push(format!("train_fraction: expected a number above 0 and below 1, found {found}; 0.8 is usual"));
        }
        if self.max_trs.is_some_and(|n| n < 2) {
            faults.push("max_trs: expected at least 2, one to train and one to validate on, found less");
        }
        if self.num_workers > 1024 {
            faults.push(format!("num_workers: expected at most 1024 threads, found {}", self.num_workers));
        }
    }
}
