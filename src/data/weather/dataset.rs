//! Samples of a split: the frames of now and the frame of `dt` later.

use std::path::Path;

use super::config::Crop;
use super::files::{self, FIELDS, Fields};
use super::{Split, Statistics, WeatherDataConfig};
use crate::data::Dataset;
use crate::error::{Error, Faults, Result};
use crate::tensor::{Spec, Tensor};

/// What a model reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeatherGrid {
    /// Channels of one input frame: the first ones of the files.
    pub input_channels: usize,
    /// Channels of the target: the first ones of the files.
    pub output_channels: usize,
    /// Rows, from north to south.
    pub height: usize,
    /// Columns, from the prime meridian eastwards.
    pub width: usize,
}

/// Several samples.
///
/// # Shapes
/// `state` [B, S·Cin, H, W], the oldest of S frames first; `target` [B, Cout, H, W]; both f32.
///
/// # Units
/// Normalised, or those of the files if the configuration says `normalize: false`.
#[derive(Debug, Clone)]
pub struct WeatherBatch {
    /// The frames that the forecast starts from.
    pub state: Tensor,
    /// The frame that it should become.
    pub target: Tensor,
}

/// Where a sample lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The file.
    pub file: &'a Path,
    /// The row of its first input frame.
    pub first_step: usize,
    /// The row of its target.
    pub target_step: usize,
}

/// The samples of a split, in time: for every file, sorted by name, those whose frames and target all lie in it.
///
/// A file of T steps gives T − (S − 1) − dt samples for S = `sequence_length`: sample i has the frames i to i + S − 1 and
/// the target i + S − 1 + dt. Nothing is repeated, nothing wraps around, files may differ in length. Files are read when a
/// batch asks for them.
#[derive(Debug)]
pub struct WeatherDataset {
    split: Split,
    grid: WeatherGrid,
    sequence_length: usize,
    dt: usize,
    len: usize,
    files: Vec<Samples>,
    file_rows: usize,
    file_columns: usize,
    statistics: Option<Statistics>,
}

#[derive(Debug)]
struct Samples {
    fields: Fields,
    // The index of its first sample.
    first: usize,
}

impl WeatherDataset {
    /// Opens the files of a split and checks them against `grid`.
    ///
    /// # Errors
    /// [`Error::Data`] with every fault of every file: missing, unreadable, another rank, too few channels, another grid
    /// than the model's or than the other files', too few steps for one sample, statistics that do not fit.
    pub fn open(config: &WeatherDataConfig, split: Split, grid: WeatherGrid) -> Result<WeatherDataset> {
        let mut faults = Faults::new();
        config.validate(&mut faults);
        if [grid.input_channels, grid.output_channels, grid.height, grid.width].contains(&0) {
            faults.push(format!("{split}: expected at least one channel, row and column to read, found {grid:?}"));
        }
        let statistics = if config.normalize {
            Statistics::load(&config.means_path, &config.stds_path).map_err(|e| faults.absorb(e)).ok()
        } else {
            None
        };
        let paths = files::list(split.folder(config)).map_err(|e| faults.absorb(e)).unwrap_or_default();
        let mut files: Vec<Samples> = Vec::with_capacity(paths.len());
        let mut first = 0_usize;
        let span = config.sequence_length.saturating_add(config.dt);
        for path in paths {
            let fields = match Fields::open(&path) {
                Ok(f) => f,
                Err(e) => {
                    faults.absorb(e);
                    continue;
                }
            };
            check_file(&fields, files.first().map(|s| &s.fields), config.crop, grid, span, &mut faults);
            let samples = (fields.shape[0] + 1).saturating_sub(span);
            files.push(Samples { fields, first });
            first = first.saturating_add(samples);
        }
        if let (Some(s), Some(f)) = (&statistics, files.first()) {
            check_statistics(s, &f.fields, config, grid, &mut faults);
        }
        faults.into_result(Error::Data)?;
        let len = match split {
            // At least one: `data_subset` is above 0, and a data set of nothing is no data set.
            Split::Train => ((first as f64 * config.data_subset) as usize).clamp(1, first.max(1)),
            Split::Valid | Split::Test => first,
        };
        let [_, _, file_rows, file_columns] = files.first().map_or([0; 4], |s| s.fields.shape);
        let (sequence_length, dt) = (config.sequence_length, config.dt);
        Ok(WeatherDataset { split, grid, sequence_length, dt, len, files, file_rows, file_columns, statistics })
    }

    /// Which part of the data set it is.
    pub fn split(&self) -> Split {
        self.split
    }

    /// What a model reads and writes.
    pub fn grid(&self) -> WeatherGrid {
        self.grid
    }

    /// Rows of the files, of which the first `grid().height` are read: row j lies at 90 − 180·j / (rows − 1) degrees north.
    pub fn file_rows(&self) -> usize {
        self.file_rows
    }

    /// Columns of the files, of which the first `grid().width` are read: column k lies at 360·k / columns degrees east.
    pub fn file_columns(&self) -> usize {
        self.file_columns
    }

    /// How fields were normalised; `None` if they were not.
    pub fn statistics(&self) -> Option<&Statistics> {
        self.statistics.as_ref()
    }

    /// Where sample `index` lies.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such sample.
    pub fn origin(&self, index: usize) -> Result<Origin<'_>> {
        let (fields, first_step) = self.locate(index)?;
        let target_step = first_step + self.sequence_length - 1 + self.dt;
        Ok(Origin { file: &fields.path, first_step, target_step })
    }

    fn locate(&self, index: usize) -> Result<(&Fields, usize)> {
        let after = self.files.partition_point(|s| s.first <= index);
        match after.checked_sub(1).and_then(|i| self.files.get(i)) {
            Some(s) if index < self.len => Ok((&s.fields, index - s.first)),
            _ => Err(Error::argument(format!("sample: expected an index below {}, found {index}", self.len))),
        }
    }

    /// Reads `steps` frames from row `from` on into `out`, checked and normalised.
    fn read_frames(&self, fields: &Fields, from: usize, steps: usize, channels: usize, out: &mut [f32]) -> Result<()> {
        let WeatherGrid { height, width, .. } = self.grid;
        fields.data.read(&[from..from + steps, 0..channels, 0..height, 0..width], out)?;
        check_finite(fields, from, channels, self.grid, out)?;
        if let Some(statistics) = &self.statistics {
            statistics.normalize(out, channels, height * width);
        }
        Ok(())
    }
}

impl Dataset for WeatherDataset {
    type Batch = WeatherBatch;

    fn len(&self) -> usize {
        self.len
    }

    fn batch(&self, indices: &[usize]) -> Result<WeatherBatch> {
        let WeatherGrid { input_channels, output_channels, height, width } = self.grid;
        let (count, frames) = (indices.len(), self.sequence_length);
        let mut state = Tensor::zeros(Spec::f32([count, frames * input_channels, height, width])?);
        let mut target = Tensor::zeros(Spec::f32([count, output_channels, height, width])?);
        let (Some(mut states), Some(mut targets)) = (state.view_mut(), target.view_mut()) else {
            // Both were made here and are shared with nobody.
            return Err(Error::argument("batch: a fresh tensor cannot be written"));
        };
        let state_len = (frames * input_channels * height * width).max(1);
        let target_len = (output_channels * height * width).max(1);
        let parts = states.f32()?.chunks_exact_mut(state_len).zip(targets.f32()?.chunks_exact_mut(target_len));
        for (&index, (s, t)) in indices.iter().zip(parts) {
            let (fields, step) = self.locate(index)?;
            self.read_frames(fields, step, frames, input_channels, s)?;
            self.read_frames(fields, step + frames - 1 + self.dt, 1, output_channels, t)?;
        }
        Ok(WeatherBatch { state, target })
    }
}

/// Everything about a file that a model's grid and the first file ask for.
fn check_file(
    fields: &Fields,
    first: Option<&Fields>,
    crop: Crop,
    grid: WeatherGrid,
    span: usize,
    faults: &mut Faults,
) {
    let label = format!("{}: {FIELDS}", fields.path.display());
    let [time, channels, height, width] = fields.shape;
    let needed = grid.input_channels.max(grid.output_channels);
    if channels < needed {
        faults.push(format!("{label}: expected at least {needed} channels, found {channels}"));
    }
    let (rows, columns) = (grid.height, grid.width);
    let found = format!("found {height} x {width}");
    if height < rows || width < columns {
        faults.push(format!("{label}: expected a grid of {rows} x {columns} as img_size says, {found}"));
    } else if (height, width) != (rows, columns) && crop == Crop::None {
        faults.push(format!(
            "{label}: expected a grid of {rows} x {columns} as img_size says, {found}; with `crop: top_left` the first \
             rows and columns are read"
        ));
    }
    if time < span {
        faults.push(format!("{label}: expected at least {span} steps (sequence_length + dt), found {time}"));
    }
    if let Some(first) = first
        && first.shape[1..] != fields.shape[1..]
    {
        faults.push(format!(
            "{label}: expected [time, {}, {}, {}] like {}, found {:?}",
            first.shape[1],
            first.shape[2],
            first.shape[3],
            first.path.display(),
            fields.shape
        ));
    }
}

/// Statistics belong to the channels of the files, or to those of them that are used.
fn check_statistics(
    statistics: &Statistics,
    fields: &Fields,
    config: &WeatherDataConfig,
    grid: WeatherGrid,
    faults: &mut Faults,
) {
    let [_, channels, _, _] = fields.shape;
    let used = grid.input_channels.max(grid.output_channels);
    if statistics.channels() != channels && statistics.channels() != used {
        faults.push(format!(
            "{}: expected {channels} channels like {}, found {}",
            config.means_path.display(),
            fields.path.display(),
            statistics.channels()
        ));
    }
}

/// A NaN in one frame would make the whole model NaN a step later, so it is refused where it is read.
fn check_finite(fields: &Fields, from: usize, channels: usize, grid: WeatherGrid, values: &[f32]) -> Result<()> {
    // An exponent of all ones is NaN or infinity; a maximum over integers is vectorised, a search is not.
    const EXPONENT: u32 = 0x7F80_0000;
    if values.iter().fold(0, |m, x| m.max(x.to_bits() & EXPONENT)) != EXPONENT {
        return Ok(());
    }
    let (at, value) = values.iter().enumerate().find(|(_, x)| !x.is_finite()).unwrap_or((0, &f32::NAN));
    let (width, height) = (grid.width.max(1), grid.height.max(1));
    let plane = at / (width * height);
    Err(Error::data(format!(
        "{}: {FIELDS}: step {}, channel {}, row {}, column {}: expected a finite number, found {value}; fill such values \
         before training",
        fields.path.display(),
        from + plane / channels.max(1),
        plane % channels.max(1),
        at / width % height,
        at % width
    )))
}
