//! `perfrun predict` of a Sherlock checkpoint: brains and films, whole or with units of the bottleneck silenced.

use std::path::{Path, PathBuf};

use perfrun::data::sherlock::Part;
use perfrun::data::sherlock::prediction::write_map;
use perfrun::data::weather::Split;
use perfrun::error::Error;
use perfrun::io::atomic::{Existing, write_atomic};
use perfrun::train::sherlock::{BrainMap, Correlations, Predictor};
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
        let data = recording.part(part_of(self.split));
        let mut progress = Progress::new("predict");
        let result = predictor.predict(&data, None, self.lesion, &mut |done, all| progress.set(done, all, "TRs"));
        progress.finish();
        let prediction = result?;
        let correlations = Correlations::of(&prediction, &recording, self.subject)?;
        let Some(shown) = correlations.maps.first() else { return Ok(Outcome::Failed) };
        let mut written = Vec::new();
        if let Some(folder) = self.out {
            written = prediction.write(&recording, folder, existing, self.subject)?;
            written.extend(write_map(&recording, folder, "voxel_correlation", existing, &shown.voxels)?);
            written.push(self.write_page(predictor, &correlations, folder, existing)?);
        }
        if self.json {
            let brain = |b: &BrainMap| {
                json!({ "whom": b.whom, "mean": b.mean(), "median": b.median(), "max": b.best(),
                    "above_chance": b.above(correlations.chance()) })
            };
            output::pretty_json(&json!({
                "trs": [data.trs().start, data.trs().end],
                "voxels": shown.voxels.len(),
                "subject": self.subject,
                "lesion": self.lesion,
                "voxel_correlation": { "mean": shown.mean(), "max": shown.best() },
                "brains": correlations.maps.iter().map(brain).collect::<Vec<_>>(),
                "files": written,
            }))?;
            return Ok(Outcome::Done);
        }
        let (trs, voxels) = (data.trs(), shown.voxels.len());
        let last = trs.end.saturating_sub(1);
        output::line(format!("TRs {} to {last}: correlation over time of {voxels} voxels", trs.start))?;
        output::line("                                mean     median       best")?;
        for b in &correlations.maps {
            output::line(format!("{:<26}{:>10.4} {:>10.4} {:>10.4}", b.whom, b.mean(), b.median(), b.best()))?;
        }
        if let Some(folder) = self.out {
            let page = folder.join(PAGE);
            output::line(format!("wrote {} files to {}; look at {}", written.len(), folder.display(), page.display()))?;
        }
        Ok(Outcome::Done)
    }

    fn write_page(
        &self,
        predictor: &Predictor,
        correlations: &Correlations,
        folder: &Path,
        existing: Existing,
    ) -> perfrun::error::Result<PathBuf> {
        let lesion = match self.lesion {
            [] => "none".to_owned(),
            units => format!("units {}", units.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
        };
        let checkpoint = predictor.path().display().to_string();
        let facts = [("checkpoint", checkpoint), ("part", self.split.to_string()), ("silenced", lesion)];
        let title = format!("{}: predicted and measured brains", predictor.run().experiment.name);
        let (page, path) = (correlations.page(&title, &facts)?, folder.join(PAGE));
        write_atomic(&path, existing, |file| {
            std::io::Write::write_all(file, page.as_bytes()).map_err(Error::io("write", &path))
        })?;
        Ok(path)
    }
}

/// The file that people look at.
const PAGE: &str = "voxel_correlation.html";

/// What a split is of a film, which has no third part.
pub(crate) fn part_of(split: Split) -> Part {
    match split {
        Split::Train => Part::Train,
        Split::Valid | Split::Test => Part::Validation,
    }
}
