//! Synthetic years in the data set's own format, to try a training system without data.
//!
//! # Source
//! The documented generator of the weather transformer (`create_test_data`), whose formula, names and sizes these are. It
//! draws its noise without a seed and writes no `test/`; here the noise has a seed and `test/` is written, since a finished
//! model is measured on it.

use std::f64::consts::TAU;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::files::FIELDS;
use super::{Split, WeatherDataConfig};
use crate::error::{Error, Faults, Result};
use crate::io::atomic::Existing;
use crate::io::hdf5::{H5Storage, write_f32};
use crate::io::npy;
use crate::rng::Stream;

/// Separates the streams of synthetic noise from other uses of the same seed.
const NOISE: u64 = 0x4E4F_4953;

/// What to write. [`Default`] is what the document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticWeather {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// Steps of every file.
    pub steps: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Deflate's level, 0 to 9, for chunks of one step; `None` writes contiguous files.
    pub gzip: Option<u32>,
    /// Whether bytes are shuffled before they are deflated.
    pub shuffle: bool,
    /// Whether files of the same names are replaced.
    pub overwrite: bool,
}

impl Default for SyntheticWeather {
    fn default() -> SyntheticWeather {
        SyntheticWeather {
            height: 64,
            width: 128,
            channels: 20,
            steps: 50,
            seed: 0,
            gzip: None,
            shuffle: false,
            overwrite: false,
        }
    }
}

/// How far the writing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticProgress {
    /// The file that was written last.
    pub file: PathBuf,
    /// How many files are written.
    pub done: usize,
    /// How many files there will be.
    pub total: usize,
}

impl SyntheticWeather {
    /// The years of a split: three each.
    pub fn years(split: Split) -> Range<u32> {
        match split {
            Split::Train => 2010..2013,
            Split::Valid => 2015..2018,
            Split::Test => 2018..2021,
        }
    }

    /// The files that [`SyntheticWeather::write`] writes below `root`, the statistics last.
    pub fn files(root: &Path) -> Vec<PathBuf> {
        let config = WeatherDataConfig::below(root);
        let years = Split::ALL.into_iter().flat_map(|split| {
            let folder = split.folder(&config).to_path_buf();
            SyntheticWeather::years(split).map(move |year| folder.join(format!("weather_{year}.h5")))
        });
        years.chain([config.means_path.clone(), config.stds_path.clone()]).collect()
    }

    /// Writes the years of all splits and the statistics of the first training year below `root`.
    ///
    /// With X_j = 2πj/(W−1), Y_i = 2πi/(H−1), φ_c = 2πc/C and φ_t = 2πt/T, the field at step t, channel c, row i, column j
    /// is sin(X_j + φ_c)·cos(Y_i + φ_c)·sin(φ_t + φ_c) plus normal noise of standard deviation 0.1. The same seed gives
    /// the same files. Each file is written whole or not at all; the statistics come last, so that a data set that has
    /// them is complete.
    ///
    /// # Errors
    /// [`Error::Argument`] if a size cannot be; [`Error::Data`] if a file exists and may not be replaced, or if there are
    /// other data files, among which synthetic ones must not be mixed; [`Error::Io`] if the system refuses.
    pub fn write(&self, root: &Path, mut progress: impl FnMut(SyntheticProgress)) -> Result<Vec<PathBuf>> {
        self.check_sizes()?;
        self.check_target(root)?;
        let config = WeatherDataConfig::below(root);
        let files = SyntheticWeather::files(root);
        let total = files.len();
        let mut done = 0;
        let mut report = |file: &Path| {
            done += 1;
            progress(SyntheticProgress { file: file.to_path_buf(), done, total });
        };
        let mut statistics = None;
        for split in Split::ALL {
            let folder = split.folder(&config);
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            for year in SyntheticWeather::years(split) {
                let path = folder.join(format!("weather_{year}.h5"));
                let fields = self.year(year);
                if statistics.is_none() {
                    statistics = Some(self.statistics(&fields));
                }
                write_f32(&path, self.existing(), FIELDS, &self.shape(), &fields, &self.storage())?;
                report(&path);
            }
        }
        let (means, stds) = statistics.unwrap_or_default();
        for (path, values) in [(&config.means_path, means), (&config.stds_path, stds)] {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            }
            npy::write_f32(path, self.existing(), &[1, self.channels], &values)?;
            report(path);
        }
        Ok(files)
    }

    fn shape(&self) -> [usize; 4] {
        [self.steps, self.channels, self.height, self.width]
    }

    fn storage(&self) -> H5Storage {
        match self.gzip {
            Some(level) => {
                let chunk = vec![1, self.channels, self.height, self.width];
                H5Storage::Gzip { chunk, level, shuffle: self.shuffle }
            }
            None => H5Storage::Contiguous,
        }
    }

    fn existing(&self) -> Existing {
        if self.overwrite { Existing::Replace } else { Existing::Refuse }
    }

    fn check_sizes(&self) -> Result<()> {
        let named =
            [("steps", self.steps), ("channels", self.channels), ("height", self.height), ("width", self.width)];
        for (name, n) in named {
            let least = if name == "steps" { 2 } else { 1 };
            if n < least {
                return Err(Error::argument(format!(
                    "synthetic weather: {name}: expected at least {least}, found {n}"
                )));
            }
        }
        if self.gzip.is_some_and(|level| level > 9) {
            return Err(Error::argument("synthetic weather: gzip: expected a level of 0 to 9"));
        }
        if self.shuffle && self.gzip.is_none() {
            return Err(Error::argument("synthetic weather: shuffle: expected gzip with it, which it is for"));
        }
        let bytes = self.shape().iter().try_fold(size_of::<f32>(), |n, &d| n.checked_mul(d));
        match bytes {
            // A chunk's size is 32 bits in the format, and a file is planned in memory.
            Some(n) if n <= 1 << 34 && n / self.steps < 1 << 32 => Ok(()),
            _ => Err(Error::argument(format!(
                "synthetic weather: expected at most 16 GiB a file and 4 GiB a step, found the shape {:?}",
                self.shape()
            ))),
        }
    }

    /// Refuses to overwrite, unless asked, and to mix synthetic years with other files, also when asked.
    fn check_target(&self, root: &Path) -> Result<()> {
        let mut faults = Faults::new();
        let ours = SyntheticWeather::files(root);
        if !self.overwrite {
            for file in ours.iter().filter(|f| f.symlink_metadata().is_ok()) {
                faults.push(format!("{}: exists already; remove it or ask to overwrite it", file.display()));
            }
        }
        let config = WeatherDataConfig::below(root);
        for split in Split::ALL {
            let folder = split.folder(&config);
            let Ok(entries) = folder.read_dir() else { continue };
            for path in entries.filter_map(|e| e.ok().map(|e| e.path())) {
                if path.extension().is_some_and(|e| e == "h5") && !ours.contains(&path) {
                    faults.push(format!(
                        "{}: is none of the synthetic files, which must not be mixed with it; choose an empty folder",
                        path.display()
                    ));
                }
            }
        }
        faults.into_result(Error::Data)
    }

    /// The fields of a year, row-major `[steps, channels, height, width]`.
    fn year(&self, year: u32) -> Vec<f32> {
        let area = self.height * self.width;
        let noise = Stream::of(self.seed, &[NOISE, u64::from(year)]);
        let mut fields = vec![0.0_f32; self.steps * self.channels * area];
        // A plane's numbers depend on its place alone, so threads change nothing.
        fields.par_chunks_mut(area).enumerate().for_each(|(plane, out)| {
            let (step, channel) = (plane / self.channels, plane % self.channels);
            let phase = TAU * channel as f64 / self.channels as f64;
            let in_time = (TAU * step as f64 / self.steps as f64 + phase).sin();
            let along: Vec<f64> = (0..self.width).map(|j| (linspace(j, self.width) + phase).sin()).collect();
            for (i, row) in out.chunks_exact_mut(self.width).enumerate() {
                let across = (linspace(i, self.height) + phase).cos() * in_time;
                for (j, (x, wave)) in row.iter_mut().zip(&along).enumerate() {
                    let place = (plane * area + i * self.width + j) as u64;
                    *x = (wave * across + 0.1 * noise.normal(place)) as f32;
                }
            }
        });
        fields
    }

    /// Mean and standard deviation of every channel over time and area.
    fn statistics(&self, fields: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let area = self.height * self.width;
        let count = (self.steps * area) as f64;
        let channel =
            |c: usize| fields.chunks_exact(area).skip(c).step_by(self.channels).flatten().map(|&x| f64::from(x));
        (0..self.channels)
            .map(|c| {
                let mean = channel(c).sum::<f64>() / count;
                let variance = channel(c).map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                (mean as f32, variance.sqrt() as f32)
            })
            .unzip()
    }
}

/// Place `i` of `n` from 0 to 2π, both included.
fn linspace(i: usize, n: usize) -> f64 {
    TAU * i as f64 / (n.max(2) - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> SyntheticWeather {
        SyntheticWeather { height: 6, width: 8, channels: 3, steps: 5, ..Default::default() }
    }

    #[test]
    fn the_field_is_the_documented_formula_plus_small_noise() {
        let s = SyntheticWeather { steps: 10, height: 16, width: 16, ..small() };
        let fields = s.year(2010);
        let mut squares = 0.0;
        for (k, &x) in fields.iter().enumerate() {
            let (t, c, i, j) = (k / 768, k / 256 % 3, k / 16 % 16, k % 16);
            let (pc, pt) = (TAU * c as f64 / 3.0, TAU * t as f64 / 10.0);
            let (lon, lat) = (TAU * j as f64 / 15.0, TAU * i as f64 / 15.0);
            let clean = (lon + pc).sin() * (lat + pc).cos() * (pt + pc).sin();
            squares += (f64::from(x) - clean).powi(2);
        }
        // 7680 draws: the standard error of the deviation is 0.0008.
        approx::assert_abs_diff_eq!((squares / fields.len() as f64).sqrt(), 0.1, epsilon = 0.004);
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_year_or_seed_others() {
        assert_eq!(small().year(2010), small().year(2010));
        assert_ne!(small().year(2010), small().year(2011));
        assert_ne!(small().year(2010), SyntheticWeather { seed: 1, ..small() }.year(2010));
    }

    #[test]
    fn existing_files_are_kept_and_foreign_ones_never_mixed() {
        let root = tempfile::tempdir().unwrap();
        let written = small().write(root.path(), |_| {}).unwrap();
        assert_eq!(written.len(), 11);
        let error = small().write(root.path(), |_| {}).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 11, "{error}");
        assert!(error.lines().all(|l| l.ends_with("exists already; remove it or ask to overwrite it")), "{error}");
        let force = SyntheticWeather { overwrite: true, ..small() };
        force.write(root.path(), |_| {}).unwrap();
        fs::write(root.path().join("train/1979.h5"), b"real").unwrap();
        let error = force.write(root.path(), |_| {}).unwrap_err().to_string();
        assert!(error.ends_with(
            "1979.h5: is none of the synthetic files, which must not be mixed with it; choose an empty folder"
        ));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        for (bad, part) in [
            (SyntheticWeather { steps: 1, ..small() }, "steps: expected at least 2, found 1"),
            (SyntheticWeather { channels: 0, ..small() }, "channels: expected at least 1, found 0"),
            (SyntheticWeather { gzip: Some(10), ..small() }, "gzip: expected a level of 0 to 9"),
            (SyntheticWeather { shuffle: true, ..small() }, "shuffle: expected gzip with it"),
            (SyntheticWeather { height: 1 << 40, width: 1 << 40, ..small() }, "expected at most 16 GiB a file"),
        ] {
            let error = bad.write(root.path(), |_| {}).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(root.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn progress_names_every_file_once() {
        let root = tempfile::tempdir().unwrap();
        let mut seen = Vec::new();
        let files = small().write(root.path(), |p| seen.push((p.done, p.total, p.file))).unwrap();
        let expected: Vec<_> = files.into_iter().enumerate().map(|(i, f)| (i + 1, 11, f)).collect();
        assert_eq!(seen, expected);
    }
}
