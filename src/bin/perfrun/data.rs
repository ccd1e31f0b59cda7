//! `perfrun data`: what is in a data set, and all that is wrong with it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use perfrun::data::sherlock;
use perfrun::data::weather::validate::{Depth, Report, validate};

use crate::config::ConfigArgs;
use crate::import::ImportArgs;
use crate::outcome::Outcome;
use crate::output::{self, Progress};
use crate::units::bytes;

/// What can be done with a data set.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// List every fault of a data set: files, shapes, numbers, statistics; a folder with sherlock.json is a Sherlock data
    /// set, others are weather
    Validate(ValidateArgs),
    /// Make a Sherlock data set from scans, sound, frames and embeddings
    Import(Box<ImportArgs>),
}

/// Flags of `perfrun data validate`.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Folder of the data set, as --data DIR
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
            DataCommand::Import(args) => args.run(),
        }
    }
}

impl ValidateArgs {
    fn run(mut self) -> anyhow::Result<Outcome> {
        let folder = self.folder.as_ref().or(self.config.data.as_ref());
        if let Some(folder) = folder.filter(|f| sherlock::Manifest::is_in(f)) {
            let config = sherlock::SherlockDataConfig { data_dir: folder.clone(), ..Default::default() };
            return self.run_sherlock(&config);
        }
        let depth = if self.headers { Depth::Headers } else { Depth::Values };
        self.config.data = self.config.data.or(self.folder);
        let config = self.config.load_weather(&[])?.data;
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

impl ValidateArgs {
    fn run_sherlock(&self, config: &sherlock::SherlockDataConfig) -> anyhow::Result<Outcome> {
        let mut progress = Progress::new("data validate");
        let report = sherlock::validate::validate(config, !self.headers, |done, all, file| {
            progress.set(done, all, file.display())
        });
        progress.finish();
        let is_sound = report.faults.is_empty();
        if self.json {
            output::pretty_json(&report)?
        } else {
            print_sherlock(&report)?
        }
        Ok(if is_sound { Outcome::Done } else { Outcome::BadInput })
    }
}

fn print_sherlock(report: &sherlock::validate::Report) -> std::io::Result<()> {
    output::line("                       mean         std         min         max  not finite  shape")?;
    for a in &report.arrays {
        let n = &a.numbers;
        let numbers = if n.count == 0 {
            format!("{:>59}", "not read")
        } else {
            format!("{:>11.4e} {:>11.4e} {:>11.4e} {:>11.4e} {:>11}", n.mean, n.std(), n.min, n.max, n.not_finite)
        };
        output::line(format!("{:<15} {numbers}  {:?} {}", a.what, a.shape, a.dtype))?;
    }
    if let Some([trs, train]) = report.trs {
        output::line(format!("{trs} TRs that all have: {train} to train on, {} to validate on", trs - train))?;
    }
    for warning in &report.warnings {
        output::line(format!("warning: {warning}"))?;
    }
    for fault in report.faults.lines() {
        output::line(format!("fault: {fault}"))?;
    }
    let (arrays, faults) = (report.arrays.len(), report.faults.len());
    output::line(format!("{arrays} arrays: {faults} faults, {} warnings", report.warnings.len()))
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
