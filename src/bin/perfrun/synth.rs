//! `perfrun synth`: synthetic data in a system's own format.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use perfrun::data::sherlock::synthetic::SyntheticSherlock;
use perfrun::data::weather::synthetic::SyntheticWeather;

use crate::outcome::Outcome;
use crate::output::{self, Progress};

/// Systems that synthetic data can be made for.
#[derive(Debug, Subcommand)]
pub(crate) enum SynthCommand {
    /// Years of a travelling wave with noise, as HDF5 files in train, valid and test, with their statistics
    Weather(WeatherArgs),
    /// A film of wandering patterns and brains whose answer to it is known, with what a model can reach on them
    Sherlock(SherlockArgs),
}

/// Flags of `perfrun synth sherlock`.
#[derive(Debug, Args)]
pub(crate) struct SherlockArgs {
    /// Folder to write into; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Rows of a frame
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().height)]
    height: usize,
    /// Columns of a frame
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().width)]
    width: usize,
    /// Mel bands
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().mels)]
    mels: usize,
    /// Numbers of an embedding
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().text)]
    text: usize,
    /// Voxels of a brain
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().voxels)]
    voxels: usize,
    /// Brains
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().subjects)]
    subjects: usize,
    /// TRs of 1.5 s
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().trs)]
    trs: usize,
    /// Features that the film shows and the brains answer to, at least 3
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().features)]
    features: usize,
    /// Variance of a voxel's answer over that of its noise
    #[arg(long, value_name = "X", default_value_t = SyntheticSherlock::default().snr)]
    snr: f64,
    /// Seed of everything
    #[arg(long, value_name = "N", default_value_t = SyntheticSherlock::default().seed)]
    seed: u64,
    /// Write stimuli as f16
    #[arg(long)]
    half: bool,
    /// Replace files of the same names
    #[arg(long)]
    overwrite: bool,
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
            SynthCommand::Sherlock(args) => args.run(),
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

impl SherlockArgs {
    fn run(self) -> anyhow::Result<Outcome> {
        let film = SyntheticSherlock {
            height: self.height,
            width: self.width,
            mels: self.mels,
            text: self.text,
            voxels: self.voxels,
            subjects: self.subjects,
            trs: self.trs,
            features: self.features,
            snr: self.snr,
            seed: self.seed,
            half: self.half,
            overwrite: self.overwrite,
        };
        let mut progress = Progress::new("synth sherlock");
        let result = film.write(&self.out, |done, total, file| progress.set(done, total, file.display()));
        progress.finish();
        let attainable = result?.attainable;
        output::line(format!(
            "wrote {} TRs of [{}, {}, 3] frames, {} mel bands, {} text numbers and {} brains of {} voxels below {}",
            self.trs,
            self.height,
            self.width,
            self.mels,
            self.text,
            self.subjects,
            self.voxels,
            self.out.display()
        ))?;
        output::line(format!(
            "voxel correlation on the held-out fifth of the time: {:.4} at most (the noise's ceiling), {:.4} by least squares \
             on the {} true features",
            attainable.ceiling, attainable.linear, self.features
        ))?;
        Ok(Outcome::Done)
    }
}
