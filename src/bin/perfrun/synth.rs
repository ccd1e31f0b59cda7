//! `perfrun synth`: synthetic data in a system's own format.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use perfrun::data::weather::synthetic::SyntheticWeather;

use crate::outcome::Outcome;
use crate::output::{self, Progress};

/// Systems that synthetic data can be made for.
#[derive(Debug, Subcommand)]
pub(crate) enum SynthCommand {
    /// Years of a travelling wave with noise, as HDF5 files in train, valid and test, with their statistics
    Weather(WeatherArgs),
}

/// Flags of `perfrun synth weather`.
#[derive(Debug, Args)]
pub(crate) struct WeatherArgs {
    /// Folder to write into; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Rows of the grid
    #[arg(long, value_name = "N", default_value_t = SyntheticWeather::default().height)]
    height: usize,
    /// Columns of the grid
    #[arg(long, value_name = "N", default_value_t = SyntheticWeather::default().width)]
    width: usize,
    /// Channels of a step
    #[arg(long, value_name = "N", default_value_t = SyntheticWeather::default().channels)]
    channels: usize,
    /// Steps of every file
    #[arg(long, value_name = "N", default_value_t = SyntheticWeather::default().steps)]
    steps: usize,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = SyntheticWeather::default().seed)]
    seed: u64,
    /// Write chunks of one step, deflated at this level (0 to 9)
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_missing_value = "4", require_equals = true)]
    gzip: Option<u32>,
    /// Shuffle bytes before they are deflated
    #[arg(long, requires = "gzip")]
    shuffle: bool,
    /// Replace files of the same names
    #[arg(long)]
    overwrite: bool,
}

impl SynthCommand {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        match self {
            SynthCommand::Weather(args) => args.run(),
        }
    }
}

impl WeatherArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let weather = SyntheticWeather {
            height: self.height,
            width: self.width,
            channels: self.channels,
            steps: self.steps,
            seed: self.seed,
            gzip: self.gzip,
            shuffle: self.shuffle,
            overwrite: self.overwrite,
        };
        let mut progress = Progress::new("synth weather");
        let result = weather.write(&self.out, |p| progress.set(p.done, p.total, p.file.display()));
        progress.finish();
        let files = result?;
        output::line(format!(
            "wrote {} files of {} steps of [{}, {}, {}] and their statistics below {}",
            files.len().saturating_sub(2),
            self.steps,
            self.channels,
            self.height,
            self.width,
            self.out.display()
        ))?;
        Ok(Outcome::Done)
    }
}
