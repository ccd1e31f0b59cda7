//! What a checkpoint foretells: metrics over a split, and forecasts of several steps in the units of the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::session::{evaluate, grid_of, last_frame};
use super::{Scores, plot};
use crate::backend::Exec;
use crate::data::Dataset;
use crate::data::weather::{FIELDS, Split, Statistics, WeatherDataConfig, WeatherDataset, WeatherGrid};
use crate::error::{Error, Faults, Result};
use crate::io::atomic::Existing;
use crate::io::hdf5::{self, H5Storage};
use crate::io::npy;
use crate::models::Model;
use crate::models::weather_vit::WeatherVit;
use crate::nn::Pass;
use crate::tape::Tape;
use crate::tensor::{Spec, Tensor};
use crate::train::checkpoint::Checkpoint;
use crate::train::config::RunConfig;
use crate::train::evaluation::Evaluation;
use crate::train::resume::{load_weights, state_of};
use crate::train::trainer::compute_dtype;

/// No forecast is longer.
const MAX_STEPS: usize = 100_000;

/// A trained model with the configuration that it was trained under.
#[derive(Debug)]
pub struct Forecaster {
    model: WeatherVit,
    config: RunConfig,
    exec: Exec,
    path: PathBuf,
    step: u64,
}

/// A forecast, in the units of the files.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// Channels, rows, columns.
    pub grid: WeatherGrid,
    /// Rows of the files, of which the first are read; gives rows their latitude.
    pub file_rows: usize,
    /// Columns of the files, of which the first are read; gives columns their longitude.
    pub file_columns: usize,
    /// The file that it starts from.
    pub file: PathBuf,
    /// The row of its last input frame.
    pub first_row: usize,
    /// The steps, each `dt` rows after the one before.
    pub steps: Vec<ForecastStep>,
}

/// One step of a forecast.
#[derive(Clone, Debug)]
pub struct ForecastStep {
    /// Hours after the last input frame.
    pub lead_time_h: f64,
    /// The forecast, `[C, H, W]`.
    pub fields: Vec<f32>,
    /// What came, `[C, H, W]`; `None` beyond the end of the file.
    pub target: Option<Vec<f32>>,
    /// Latitude-weighted RMSE of every channel; empty without a target.
    pub rmse: Vec<f64>,
    /// The same of the forecast that the weather stays; empty without a target or if the input lacks a channel.
    pub persistence_rmse: Vec<f64>,
}

impl Forecaster {
    /// Opens the checkpoint in the folder `path`, verified. Data is looked for where the run found it, or below `data_dir`:
    /// its statistics too.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it does not verify, or is of another program; as [`WeatherVit::new`].
    pub fn open(path: &Path, exec: &Exec, data_dir: Option<&Path>) -> Result<Forecaster> {
        let checkpoint = Checkpoint::open(path)?;
        let at = path.display();
        let state = state_of(&checkpoint)?;
        let mut config: RunConfig = serde_json::from_value(state.config)
            .map_err(|e| Error::checkpoint(format!("{at}: state.json: config: {e}")))?;
        if let Some(dir) = data_dir {
            config.data = moved(config.data, dir);
        }
        let mut faults = Faults::new();
        config.validate(&mut faults);
        faults.into_result(Error::Config)?;
        let mut model = WeatherVit::new(&config.network(), |layout| exec.arena(layout))?;
        load_weights(model.params_mut(), &checkpoint)?;
        Ok(Forecaster { model, config, exec: exec.clone(), path: path.to_path_buf(), step: checkpoint.step() })
    }

    /// The configuration of its run; data paths as they are read.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The folder of its checkpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Optimiser steps that it was trained for.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Opens a split of its data.
    ///
    /// # Errors
    /// As [`WeatherDataset::open`].
    pub fn dataset(&self, split: Split) -> Result<WeatherDataset> {
        WeatherDataset::open(&self.config.data, split, grid_of(&self.config))
    }

    fn pass(&self) -> Pass {
        Pass { compute: compute_dtype(self.config.training.precision), ..Pass::eval() }
    }

    /// Loss and metrics over all samples of `data`, `batch_size` at a time or as many as in training. `progress` is told
    /// how many are done, of how many.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn evaluate(
        &self,
        data: &Arc<WeatherDataset>,
        batch_size: Option<usize>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Evaluation> {
        let batch = batch_size.unwrap_or(self.config.training.batch_size);
        let progress = &mut |done, total| {
            progress(done, total);
            Ok(true)
        };
        let workers = self.config.data.num_workers;
        let found = evaluate(&self.model, &self.exec, &self.pass(), data, batch, workers, progress)?;
        found.ok_or_else(|| Error::argument("evaluate: ended before all samples were seen"))
    }

    /// Forecasts `steps` steps from sample `index` of `data` on: each step is the input of the next.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such sample, or more than one step is asked of a model whose output is not its
    /// next input: other channels, or several frames that lie closer together than it forecasts;
    /// [`Error::NonFinite`] if a forecast is not finite; [`Error::Data`] if the files are at fault.
    pub fn forecast(&self, data: &WeatherDataset, index: usize, steps: usize) -> Result<Forecast> {
        self.check_steps(steps)?;
        let (grid, config) = (data.grid(), &self.config.data);
        let origin = data.origin(index)?;
        let first = data.batch(&[index])?;
        let now = last_frame(&first.state, grid)?;
        let spec = first.target.spec().clone();
        let scores = |p: &[f32], y: &[f32]| weighted_rmse(&spec, p, y, data);
        let mut state = first.state.to_f32()?;
        let mut done = Vec::new();
        for step in 0..steps {
            let input = Tensor::from_f32(first.state.shape(), &state)?;
            let fields = self.one(&input, grid, step)?;
            let target = self.target(data, index, step)?;
            let (rmse, persistence_rmse) = match (&target, &now) {
                (Some(y), Some(now)) => (scores(&fields, y)?, scores(now, y)?),
                (Some(y), None) => (scores(&fields, y)?, Vec::new()),
                (None, _) => (Vec::new(), Vec::new()),
            };
            if step + 1 < steps {
                // The oldest frame leaves, the forecast is the newest.
                state.drain(..fields.len().min(state.len()));
                state.extend_from_slice(&fields);
            }
            let units = |x| in_units(x, grid, data.statistics());
            done.push(ForecastStep {
                lead_time_h: config.lead_time_h() * (step + 1) as f64,
                fields: units(fields),
                target: target.map(units),
                rmse,
                persistence_rmse,
            });
        }
        Ok(Forecast {
            grid,
            file_rows: data.file_rows(),
            file_columns: data.file_columns(),
            file: origin.file.to_path_buf(),
            first_row: origin.first_step + config.sequence_length - 1,
            steps: done,
        })
    }

    fn check_steps(&self, steps: usize) -> Result<()> {
        let (model, data) = (&self.config.model, &self.config.data);
        if !(1..=MAX_STEPS).contains(&steps) {
            return Err(Error::argument(format!("steps: expected 1 to {MAX_STEPS}, found {steps}")));
        }
        if steps == 1 {
            return Ok(());
        }
        let (cin, cout) = (model.input_channels, model.output_channels);
        if cin != cout {
            return Err(Error::argument(format!(
                "steps: expected 1 of a model that reads {cin} channels and forecasts {cout}, found {steps}"
            )));
        }
        if data.sequence_length > 1 && data.dt > 1 {
            return Err(Error::argument(format!(
                "steps: expected 1 of a model that reads {} neighbouring rows and forecasts {} rows ahead, found {steps}",
                data.sequence_length, data.dt
            )));
        }
        Ok(())
    }

    /// One step, normalised.
    fn one(&self, state: &Tensor, grid: WeatherGrid, step: usize) -> Result<Vec<f32>> {
        let mut tape = Tape::with_params(&self.exec, self.model.params().arena()).inference();
        let state = tape.input(state)?;
        let y = self.model.forward(&mut tape, state, &self.pass())?;
        let fields = tape.value(y)?.to_f32()?;
        match fields.iter().position(|x| !x.is_finite()) {
            None => Ok(fields),
            Some(at) => Err(Error::non_finite(format!(
                "forecast: step {}: channel {}: expected finite numbers, found {}; ask for fewer steps",
                step + 1,
                at / (grid.height * grid.width).max(1),
                fields[at]
            ))),
        }
    }

    /// What came `step` forecasts after the first, normalised; `None` beyond the end of the file.
    fn target(&self, data: &WeatherDataset, index: usize, step: usize) -> Result<Option<Vec<f32>>> {
        let start = data.origin(index)?;
        let ahead = step.saturating_mul(self.config.data.dt);
        let Some(later) = index.checked_add(ahead).filter(|i| *i < data.len()) else { return Ok(None) };
        let there = data.origin(later)?;
        if there.file != start.file || there.target_step != start.target_step + ahead {
            return Ok(None);
        }
        data.batch(&[later])?.target.to_f32().map(Some)
    }
}

/// The same data set at another place.
fn moved(config: WeatherDataConfig, dir: &Path) -> WeatherDataConfig {
    let WeatherDataConfig {
        normalize, data_subset, sequence_length, dt, temporal_resolution, crop, num_workers, ..
    } = config;
    WeatherDataConfig {
        normalize,
        data_subset,
        sequence_length,
        dt,
        temporal_resolution,
        crop,
        num_workers,
        ..WeatherDataConfig::below(dir)
    }
}

/// Latitude-weighted RMSE of every channel, in the units of the files.
fn weighted_rmse(spec: &Spec, p: &[f32], y: &[f32], data: &WeatherDataset) -> Result<Vec<f64>> {
    let (channels, rows) = (spec.shape().get(1).copied().unwrap_or(0), spec.shape().get(2).copied().unwrap_or(0));
    let statistics = data.statistics();
    let mut scores = Scores::new(channels, rows, data.file_rows());
    scores.add(spec, p, y, None, 0.0)?;
    let found = scores.finish(statistics);
    let prefix = if statistics.is_some() { "physical/" } else { "" };
    let name = |c: usize| format!("{prefix}weighted_rmse_ch{c}");
    let missing = |c| Error::argument(format!("{}: no such metric", name(c)));
    (0..channels).map(|c| found.get(&name(c)).ok_or_else(|| missing(c))).collect()
}

fn in_units(mut fields: Vec<f32>, grid: WeatherGrid, statistics: Option<&Statistics>) -> Vec<f32> {
    if let Some(s) = statistics {
        s.denormalize(&mut fields, grid.output_channels, grid.height * grid.width);
    }
    fields
}

/// The formats that a forecast is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForecastFormat {
    /// HDF5 with the dataset `fields`, as the data that models are trained on.
    Hdf5,
    /// One array of `<f4`.
    Npy,
}

impl ForecastFormat {
    /// The format that a file's name asks for.
    ///
    /// # Errors
    /// [`Error::Argument`] for an ending that none has.
    pub fn of(path: &Path) -> Result<ForecastFormat> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("h5" | "hdf5") => Ok(ForecastFormat::Hdf5),
            Some("npy") => Ok(ForecastFormat::Npy),
            _ => Err(Error::argument(format!("{}: expected a name that ends in .h5 or .npy", path.display()))),
        }
    }
}

impl Forecast {
    /// `[steps, channels, height, width]`.
    pub fn shape(&self) -> [usize; 4] {
        [self.steps.len(), self.grid.output_channels, self.grid.height, self.grid.width]
    }

    /// Writes all steps, `[steps, channels, height, width]`, whole or not at all.
    ///
    /// # Errors
    /// As [`ForecastFormat::of`]; [`Error::Data`] if the file exists and must not be replaced; [`Error::Io`].
    pub fn write(&self, path: &Path, existing: Existing) -> Result<()> {
        let format = ForecastFormat::of(path)?;
        let values: Vec<f32> = self.steps.iter().flat_map(|s| s.fields.iter().copied()).collect();
        match format {
            ForecastFormat::Hdf5 => {
                hdf5::write_f32(path, existing, FIELDS, &self.shape(), &values, &H5Storage::Contiguous)
            }
            ForecastFormat::Npy => npy::write_f32(path, existing, &self.shape(), &values),
        }
    }

    /// Forecast, target and error of one channel at one step (from 1) as an SVG document.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such step or channel.
    pub fn svg(&self, step: usize, channel: usize) -> Result<String> {
        plot::svg(self, step, channel)
    }
}
