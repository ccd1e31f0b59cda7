//! `perfrun predict` of a Sherlock checkpoint: brains and films, whole or with units of the bottleneck silenced.

use std::path::Path;

use perfrun::data::sherlock::Part;
use perfrun::data::sherlock::prediction::write_map;
use perfrun::data::weather::Split;
use perfrun::error::Error;
use perfrun::io::atomic::Existing;
use perfrun::train::sherlock::Predictor;
use serde_json::json;

use crate::outcome::Outcome;
use crate::output::{self, Progress};

/// What is asked for.
pub(crate) struct Reconstruct<'a> {
    /// Folder to write into; without it, only correlations are told.
    pub(crate) out: Option<&'a Path>,
    /// Units to silence.
    pub(crate) lesion: &'a [usize],
    /// The subject whose units and brain are meant; without it, standard deviations and the mean of all.
    pub(crate) subject: Option<usize>,
    pub(crate) split: Split,
    pub(crate) overwrite: bool,
    pub(crate) json: bool,
}

impl Reconstruct<'_> {
    pub(crate) fn run(&self, predictor: &Predictor) -> anyhow::Result<Outcome> {
        let existing = if self.overwrite { Existing::Replace } else { Existing::Refuse };
        if let Some(folder) = self.out.filter(|f| f.is_file()) {
            let show = folder.display();
            return Err(Error::argument(format!("{show}: expected a folder to write into, found a file")).into());
        }
        let recording = predictor.recording()?;
        let part = match self.split {
            Split::Train => Part::Train,
            Split::Valid | Split::Test => Part::Validation,
        };
        let data = recording.part(part);
        let mut progress = Progress::new("predict");
        let result = predictor.predict(&data, None, self.lesion, &mut |done, all| progress.set(done, all, "TRs"));
        progress.finish();
        let prediction = result?;
        let map = prediction.voxel_correlation(&recording, self.subject)?;
        let mean = map.iter().sum::<f64>() / map.len().max(1) as f64;
        let best = map.iter().fold(f64::NEG_INFINITY, |m, &r| m.max(r));
        let mut written = Vec::new();
        if let Some(folder) = self.out {
            written = prediction.write(&recording, folder, existing, self.subject)?;
            written.extend(write_map(&recording, folder, "voxel_correlation", existing, &map)?);
        }
        let whom = self.subject.map_or_else(|| "the mean of all subjects".to_owned(), |s| format!("subject {s}"));
        if self.json {
            output::pretty_json(&json!({
                "trs": [data.trs().start, data.trs().end],
                "voxels": map.len(),
                "subject": self.subject,
                "lesion": self.lesion,
                "voxel_correlation": { "mean": mean, "max": best },
                "files": written,
            }))?;
        } else {
            let (trs, voxels) = (data.trs(), map.len());
            output::line(format!(
                "TRs {} to {} of {whom}: correlation over time, mean of {voxels} voxels {mean:.4}, best {best:.4}",
                trs.start,
                trs.end.saturating_sub(1)
            ))?;
            if let Some(folder) = self.out {
                output::line(format!("wrote {} files to {}", written.len(), folder.display()))?;
            }
        }
        Ok(Outcome::Done)
    }
}
