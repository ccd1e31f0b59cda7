//! `perfrun ckpt`: what checkpoints hold, whether they are sound, how they differ, and their way in and out.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use perfrun::error::{Error, Faults};
use perfrun::io::atomic::Existing;
use perfrun::train::checkpoint::{self, Checkpoint, CheckpointStore, Contents};
use perfrun::train::system::System;
use perfrun::train::weather::Foreign;
use serde_json::json;

use crate::config::ConfigArgs;
use crate::outcome::Outcome;
use crate::output;

/// What can be done with checkpoints.
#[derive(Debug, Subcommand)]
pub(crate) enum CkptCommand {
    /// The checkpoints of a folder, newest first
    List(ListArgs),
    /// Tensors, counters and configuration of a checkpoint
    Show(ShowArgs),
    /// Compare every hash of checkpoints
    Verify(VerifyArgs),
    /// Compare two checkpoints, tensor by tensor; exit 1 if they differ
    Diff(DiffArgs),
    /// Write a checkpoint as .safetensors, or as PyTorch's .pt
    Export(ExportArgs),
    /// Make a checkpoint of a .pt, a .safetensors or another checkpoint
    Import(ImportArgs),
}

/// Flags of `perfrun ckpt list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Folder of the checkpoints of a run
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Compare every hash, not only the lengths of files
    #[arg(long)]
    verify: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Flags of `perfrun ckpt show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A checkpoint, or a folder of checkpoints whose newest sound one is meant
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Flags of `perfrun ckpt verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Checkpoints
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// One line of JSON for each
    #[arg(long)]
    json: bool,
}

/// Flags of `perfrun ckpt diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A checkpoint
    #[arg(value_name = "FIRST")]
    first: PathBuf,
    /// Another
    #[arg(value_name = "SECOND")]
    second: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Flags of `perfrun ckpt export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A checkpoint, or a folder of checkpoints whose newest sound one is meant
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// File to write; its ending says the format: .safetensors, .pt, .pth or .ckpt
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only the weights: a plain state dict
    #[arg(long)]
    weights_only: bool,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Flags of `perfrun ckpt import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A .pt, .pth, .ckpt or .safetensors file, or a checkpoint
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
    /// Folder of checkpoints to write into; without it, that of the configuration's run
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Name of the checkpoint
    #[arg(long, value_name = "NAME", default_value = "imported")]
    name: String,
    /// Key of the weights in a .pt; without it, the usual ones are tried
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Another beginning for names that begin so; may be repeated, the first that fits is taken
    #[arg(long, value_name = "FROM=TO", value_parser = pair)]
    rename: Vec<(String, String)>,
    /// Leave the optimiser's state and the counters alone: training starts anew from these weights
    #[arg(long)]
    weights_only: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("expected FROM=TO")?;
    Ok((from.to_owned(), to.to_owned()))
}

impl CkptCommand {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        match self {
            CkptCommand::List(args) => args.run(),
            CkptCommand::Show(args) => args.run(),
            CkptCommand::Verify(args) => args.run(),
            CkptCommand::Diff(args) => args.run(),
            CkptCommand::Export(args) => args.run(),
            CkptCommand::Import(args) => args.run(),
        }
    }
}

/// The checkpoint that a path means; what was passed over is said on standard error.
fn resolve(path: &Path) -> perfrun::error::Result<PathBuf> {
    let (found, passed) = checkpoint::resolve(path)?;
    notices(&passed);
    Ok(found)
}

fn notices(lines: &[String]) {
    for line in lines {
        eprintln!("notice: {line}");
    }
}

impl ListArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let report = checkpoint::list(&self.dir, self.verify)?;
        if self.json {
            output::pretty_json(&report)?;
        } else {
            output::line(&report)?;
        }
        Ok(if report.is_sound() { Outcome::Done } else { Outcome::BadInput })
    }
}

impl ShowArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let report = checkpoint::show(&resolve(&self.path)?)?;
        if self.json {
            output::pretty_json(&report)?;
        } else {
            output::line(&report)?;
        }
        Ok(Outcome::Done)
    }
}

impl VerifyArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let mut faults = Faults::new();
        for path in &self.paths {
            let found = checkpoint::verify(path);
            if self.json {
                let faults: Vec<String> = found
                    .as_ref()
                    .err()
                    .map(|e| e.to_string().lines().map(str::to_owned).collect())
                    .unwrap_or_default();
                let step = found.as_ref().ok().map(|v| v.step);
                output::json(&json!({ "path": path, "sound": found.is_ok(), "step": step, "faults": faults }))?;
            }
            match found {
                Ok(v) if !self.json => output::line(format!("{}: {v}", path.display()))?,
                Ok(_) => {}
                Err(e) => faults.absorb(e),
            }
        }
        faults.into_result(Error::Checkpoint)?;
        Ok(Outcome::Done)
    }
}

impl DiffArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let report = checkpoint::diff(&resolve(&self.first)?, &resolve(&self.second)?)?;
        if self.json {
            output::pretty_json(&report)?;
        } else {
            output::line(report.to_string().trim_end())?;
        }
        Ok(if report.is_equal() { Outcome::Done } else { Outcome::Failed })
    }
}

impl ExportArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let contents = if self.weights_only { Contents::Weights } else { Contents::Everything };
        let existing = if self.overwrite { Existing::Replace } else { Existing::Refuse };
        let checkpoint = Checkpoint::open(resolve(&self.path)?)?;
        checkpoint::export(&checkpoint, &self.out, contents, existing)?;
        output::line(format!("wrote {} from {}", self.out.display(), checkpoint.path().display()))?;
        Ok(Outcome::Done)
    }
}

impl ImportArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let config = self.config.load_weather(&[])?;
        let source = if self.source.is_dir() { resolve(&self.source)? } else { self.source };
        let mut store = CheckpointStore::new(self.out.unwrap_or_else(|| config.checkpoint_folder()), 0);
        let foreign = Foreign {
            source: &source,
            key: self.key.as_deref(),
            rename: &self.rename,
            weights_only: self.weights_only,
        };
        let (saved, notes) = foreign.adopt(&config, &mut store, &self.name)?;
        notices(&notes);
        notices(&saved.warnings);
        output::line(format!("wrote {} from {}", saved.path.display(), source.display()))?;
        Ok(Outcome::Done)
    }
}
