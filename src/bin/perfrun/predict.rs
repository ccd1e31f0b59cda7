//! `perfrun predict`: a forecast of a checkpoint, as numbers and as maps.

use std::path::{Path, PathBuf};

use clap::Args;
use perfrun::error::{Error, Faults};
use perfrun::io::atomic::{Existing, write_atomic};
use perfrun::train::weather::{Forecast, ForecastFormat};
use serde_json::json;

use crate::forecaster::ForecasterArgs;
use crate::outcome::Outcome;
use crate::output;
use crate::reconstruct::Reconstruct;

/// Flags of `perfrun predict`.
#[derive(Debug, Args)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    source: ForecasterArgs,
    /// Sample to start from, from 0
    #[arg(long, value_name = "I", default_value_t = 0)]
    index: usize,
    /// Steps to forecast, each from the one before
    #[arg(long, value_name = "N", default_value_t = 1)]
    steps: usize,
    /// Write all steps and channels, in the units of the files: .h5 with `fields`, or .npy; of a Sherlock checkpoint, the
    /// folder of predicted voxels (.npy, and .nii.gz where the data set has a mask), spectra, frames, and
    /// voxel_correlation.html
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Draw forecast, target and error of one channel as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Channel to draw
    #[arg(long, value_name = "C", default_value_t = 0)]
    channel: usize,
    /// Step to draw, from 1; without it, the last
    #[arg(long, value_name = "K")]
    plot_step: Option<usize>,
    /// Replace the files if they exist
    #[arg(long)]
    overwrite: bool,
    /// One JSON object with the errors of every step and channel
    #[arg(long)]
    json: bool,
    /// Of a Sherlock checkpoint: silence these units of the bottleneck, from 0
    #[arg(long, value_name = "UNITS", value_delimiter = ',')]
    lesion: Vec<usize>,
    /// Of a Sherlock checkpoint: give this subject's scanner's units, and compare with its brain
    #[arg(long, value_name = "N")]
    subject: Option<usize>,
}

impl PredictArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        if let Some(predictor) = self.source.open_sherlock()? {
            return self.reconstruct().run(&predictor);
        }
        self.check()?;
        let forecaster = self.source.open()?;
        let channels = forecaster.config().model.output_channels;
        if self.channel >= channels {
            let found = self.channel;
            return Err(Error::argument(format!("channel: expected a number below {channels}, found {found}")).into());
        }
        let data = forecaster.dataset(self.source.split)?;
        let forecast = forecaster.forecast(&data, self.index, self.steps)?;
        let existing = if self.overwrite { Existing::Replace } else { Existing::Refuse };
        if let Some(path) = &self.out {
            forecast.write(path, existing)?;
        }
        if let Some(path) = &self.plot {
            let svg = forecast.svg(self.plot_step.unwrap_or(self.steps), self.channel)?;
            write_atomic(path, existing, |file: &mut std::io::BufWriter<std::fs::File>| {
                std::io::Write::write_all(file, svg.as_bytes()).map_err(Error::io("write", path))
            })?;
        }
        if self.json {
            self.print_json(&forecast)?
        } else {
            self.print(&forecast)?
        }
        Ok(Outcome::Done)
    }

    fn reconstruct(&self) -> Reconstruct<'_> {
        Reconstruct {
            out: self.out.as_deref(),
            lesion: &self.lesion,
            subject: self.subject,
            split: self.source.split,
            overwrite: self.overwrite,
            json: self.json,
        }
    }

    /// What can be said before anything is computed, all of it.
    fn check(&self) -> Result<(), Error> {
        let mut faults = Faults::new();
        if let Some(path) = &self.out {
            ForecastFormat::of(path).map(drop).unwrap_or_else(|e| faults.absorb(e));
        }
        let svg = self.plot.as_ref().filter(|p| p.extension().is_none_or(|e| e != "svg"));
        if let Some(path) = svg {
            faults.push(format!("{}: expected a name that ends in .svg", path.display()));
        }
        if let Some(step) = self.plot_step.filter(|s| !(1..=self.steps).contains(s)) {
            faults.push(format!("plot-step: expected 1 to {} (--steps), found {step}", self.steps));
        }
        for path in [&self.out, &self.plot].into_iter().flatten().filter(|p| !self.overwrite && p.exists()) {
            faults.push(format!("{}: expected no such file, found one; --overwrite replaces it", path.display()));
        }
        faults.into_result(|f| Error::argument(f.to_string()))
    }

    fn print_json(&self, forecast: &Forecast) -> anyhow::Result<()> {
        let steps: Vec<_> = forecast
            .steps
            .iter()
            .enumerate()
            .map(|(i, s)| {
                json!({
                    "step": i + 1,
                    "lead_time_h": s.lead_time_h,
                    "weighted_rmse": s.rmse,
                    "persistence_weighted_rmse": s.persistence_rmse,
                    "has_target": s.target.is_some(),
                })
            })
            .collect();
        output::pretty_json(&json!({
            "file": forecast.file,
            "row": forecast.first_row,
            "shape": forecast.shape(),
            "out": self.out,
            "plot": self.plot,
            "steps": steps,
        }))
    }

    fn print(&self, forecast: &Forecast) -> std::io::Result<()> {
        let (file, row) = (forecast.file.display(), forecast.first_row);
        output::line(format!("from row {row} of {file}, RMSE weighted by area in the units of the files"))?;
        output::line("step   lead h  channel          rmse   persistence    ratio")?;
        for (i, step) in forecast.steps.iter().enumerate() {
            let (n, lead) = (i + 1, step.lead_time_h);
            if step.target.is_none() {
                output::line(format!("{n:>4} {lead:>8}  beyond the end of the file: no target"))?;
            }
            for (c, rmse) in step.rmse.iter().enumerate() {
                let still = step.persistence_rmse.get(c);
                let (still, ratio) = match still {
                    Some(s) => (format!("{s:.5e}"), format!("{:.4}", rmse / s)),
                    None => ("-".to_owned(), "-".to_owned()),
                };
                output::line(format!("{n:>4} {lead:>8} {c:>8} {rmse:>13.5e} {still:>13} {ratio:>8}"))?;
            }
        }
        let wrote = |path: &Path, what: String| output::line(format!("wrote {what} to {}", path.display()));
        if let Some(path) = &self.out {
            wrote(path, format!("fields {:?}", forecast.shape()))?;
        }
        if let Some(path) = &self.plot {
            let step = self.plot_step.unwrap_or(self.steps);
            wrote(path, format!("the maps of channel {} at step {step}", self.channel))?;
        }
        Ok(())
    }
}
