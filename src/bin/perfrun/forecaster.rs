//! The flags by which `eval` and `predict` open a checkpoint and its data.

use std::path::PathBuf;

use clap::Args;
use perfrun::backend::Exec;
use perfrun::data::weather::Split;
use perfrun::error::{Error, Result};
use perfrun::train::checkpoint;
use perfrun::train::sherlock::Predictor;
use perfrun::train::weather::Forecaster;

use crate::device::DeviceArgs;

/// Which checkpoint, on which data.
#[derive(Debug, Args)]
pub(crate) struct ForecasterArgs {
    /// The checkpoint, or a folder of checkpoints: then its newest one that verifies
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Folder of the data set, statistics included; without it, the paths of the checkpoint's configuration
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Part of the data set: train, valid or test
    #[arg(long, value_name = "SPLIT", default_value = "test", value_parser = split)]
    pub(crate) split: Split,
    #[command(flatten)]
    device: DeviceArgs,
}

fn split(name: &str) -> Result<Split> {
    let found = Split::ALL.into_iter().find(|s| s.to_string() == name);
    found.ok_or_else(|| Error::argument(format!("expected train, valid or test, found `{name}`")))
}

impl ForecasterArgs {
    pub(crate) fn open(&self) -> Result<Forecaster> {
        let (path, exec) = self.found()?;
        Forecaster::open(&path, &exec, self.data.as_deref())
    }

    /// The autoencoder of films, if the checkpoint is one. What cannot be found is told by [`open`](Self::open).
    pub(crate) fn open_sherlock(&self) -> Result<Option<Predictor>> {
        match checkpoint::resolve(&self.checkpoint) {
            Ok((path, _)) if Predictor::is_of(&path) => {
                let (path, exec) = self.found()?;
                Predictor::open(&path, &exec, self.data.as_deref()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The checkpoint's folder and the device.
    fn found(&self) -> Result<(PathBuf, Exec)> {
        let exec = self.device.open_to_compute()?;
        let (path, passed_over) = checkpoint::resolve(&self.checkpoint)?;
        for line in passed_over {
            eprintln!("notice: {line}");
        }
        Ok((path, exec))
    }
}
