//! `perfrun data`: what is in a data set, and all that is wrong with it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use perfrun::data::weather::validate::{Depth, Report, validate};

use crate::config::ConfigArgs;
use crate::outcome::Outcome;
use crate::output::{self, Progress};
use crate::units::bytes;

/// What can be done with a data set.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// List every fault of a weather data set: folders, files, shapes, numbers, statistics
    Validate(ValidateArgs),
}

/// Flags of `perfrun data validate`.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Folder with train, valid, test and stats, as --data DIR
    #[arg(value_name = "DIR", conflicts_with = "data")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Read headers and statistics only, not every number
    #[arg(long)]
    headers: bool,
    /// One JSON object with faults, warnings, files and channels
    #[arg(long)]
    json: bool,
}

impl DataCommand {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        match self {
            DataCommand::Validate(args) => args.run(),
        }
    }
}

impl ValidateArgs {
    fn run(mut self) -> anyhow::Result<Outcome> {
        let depth = if self.headers { Depth::Headers } else { Depth::Values };
        self.config.data = self.config.data.or(self.folder);
        let config = self.config.load()?.data;
        let mut progress = Progress::new("data validate");
        let report = validate(&config, depth, |p| progress.set(p.done, p.total, p.file.display()));
        progress.finish();
        let is_sound = report.faults.is_empty();
        if self.json {
            output::pretty_json(&report)?;
        } else {
            print(&report)?;
        }
        Ok(if is_sound { Outcome::Done } else { Outcome::BadInput })
    }
}

fn print(report: &Report) -> std::io::Result<()> {
    for f in &report.files {
        output::line(format!("{}: {} {:?} {} {}", f.path.display(), f.split, f.shape, f.dtype, f.layout))?;
    }
    if !report.channels.is_empty() {
        output::line("channel        mean         std         min         max   (training files)")?;
    }
    for (i, c) in report.channels.iter().enumerate() {
        output::line(format!("{i:>7} {:>11.4e} {:>11.4e} {:>11.4e} {:>11.4e}", c.mean, c.std(), c.min, c.max))?;
    }
    for warning in &report.warnings {
        output::line(format!("warning: {warning}"))?;
    }
    for fault in report.faults.lines() {
        output::line(format!("fault: {fault}"))?;
    }
    let size: u64 = report.files.iter().map(|f| f.shape.iter().map(|&n| n as u64).product::<u64>() * 4).sum();
    output::line(format!(
        "{} files, {} as f32: {} faults, {} warnings",
        report.files.len(),
        bytes(size),
        report.faults.len(),
        report.warnings.len()
    ))
}
