//! What is read of a weather data set, and from where.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Faults;

/// What is read of a weather data set, and from where. [`Default`] reads `data/`.
///
/// Paths are effective: those that a configuration leaves out follow from `data_dir`.
///
/// # Units
/// `dt` counts rows of a file, `temporal_resolution` is the time between two rows in hours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WeatherDataConfig {
    /// Root of the data set: holds `train/`, `valid/`, `test/` and `stats/`.
    pub data_dir: PathBuf,
    /// Folder of the training files `*.h5`. Default: `train` below `data_dir`.
    pub train_data_path: PathBuf,
    /// Folder of the validation files. Default: `valid` below `data_dir`.
    pub valid_data_path: PathBuf,
    /// Folder of the test files. Default: `test` below `data_dir`.
    pub test_data_path: PathBuf,
    /// Mean of every variable, `.npy`. Default: `stats/global_means.npy` below `data_dir`.
    pub means_path: PathBuf,
    /// Standard deviation of every variable, `.npy`. Default: `stats/global_stds.npy` below `data_dir`.
    pub stds_path: PathBuf,
    /// Whether fields are normalised, `(x - mean) / std`, with the two files above.
    pub normalize: bool,
    /// Fraction of the training samples that is used, above 0 and at most 1: the first ones in time.
    pub data_subset: f64,
    /// Frames that are stacked on the channels of the input; the next frame is predicted.
    pub sequence_length: usize,
    /// How many rows of a file ahead is predicted.
    pub dt: usize,
    /// Time between two rows of a file, with its unit: `6h`, `30m`, `1d`. Gives forecasts their lead time.
    pub temporal_resolution: Hours,
    /// What is done when a file has more rows or columns than `img_size`: `none` refuses it.
    pub crop: Crop,
    /// Threads that read ahead; 0 reads between the steps.
    pub num_workers: usize,
}

/// What is done when a file's grid is larger than the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Crop {
    /// Such a file is an error.
    None,
    /// The first rows and columns are read, as the original does without saying so.
    TopLeft,
}

/// A length of time in hours, written with its unit: `6h`, `30m`, `1d`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hours(pub f64);

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}h", self.0)
    }
}

impl FromStr for Hours {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Hours, &'static str> {
        let text = text.trim();
        let split = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e').unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(split).ok_or("a number and a unit")?;
        let scale = match unit.trim() {
            "s" => 1.0 / 3600.0,
            "m" | "min" => 1.0 / 60.0,
            "" | "h" | "hour" | "hours" => 1.0,
            "d" | "day" | "days" => 24.0,
            _ => return Err("one of the units s, m, h, d"),
        };
        let hours = number.trim().parse::<f64>().map_err(|_| "a number before the unit")? * scale;
        if hours.is_finite() && hours > 0.0 { Ok(Hours(hours)) } else { Err("a time above 0") }
    }
}

impl Serialize for Hours {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hours, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Hours {
    fn schema_name() -> Cow<'static, str> {
        "Hours".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9.eE+-]+ *(s|m|min|h|hours?|d|days?)?$" })
    }
}

impl Default for WeatherDataConfig {
    fn default() -> WeatherDataConfig {
        WeatherDataConfig::below("data")
    }
}

impl WeatherDataConfig {
    /// The defaults, with every path below `dir`.
    pub fn below(dir: impl AsRef<Path>) -> WeatherDataConfig {
        let dir = dir.as_ref();
        WeatherDataConfig {
            data_dir: dir.to_path_buf(),
            train_data_path: dir.join("train"),
            valid_data_path: dir.join("valid"),
            test_data_path: dir.join("test"),
            means_path: dir.join("stats/global_means.npy"),
            stds_path: dir.join("stats/global_stds.npy"),
            normalize: true,
            data_subset: 1.0,
            sequence_length: 1,
            dt: 1,
            temporal_resolution: Hours(6.0),
            crop: Crop::None,
            num_workers: 4,
        }
    }

    /// How far ahead a forecast looks, in hours: `dt` rows of `temporal_resolution` each.
    pub fn lead_time_h(&self) -> f64 {
        self.dt as f64 * self.temporal_resolution.0
    }

    /// Adds a line to `faults` for everything that cannot be read so. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        if !(self.data_subset > 0.0 && self.data_subset <= 1.0) {
            faults.push(format!(
                "data_subset: expected a fraction above 0 and at most 1, found {}; 1 reads everything",
                self.data_subset
            ));
        }
        for (key, n, max) in [("sequence_length", self.sequence_length, 1 << 12), ("dt", self.dt, 1 << 20)] {
            if !(1..=max).contains(&n) {
                faults.push(format!("{key}: expected a whole number from 1 to {max}, found {n}"));
            }
        }
        if self.num_workers > 1024 {
            faults.push(format!("num_workers: expected at most 1024 threads, found {}; 4 is plenty", self.num_workers));
        }
        for (key, path) in [
            ("data_dir", &self.data_dir),
            ("train_data_path", &self.train_data_path),
            ("valid_data_path", &self.valid_data_path),
            ("test_data_path", &self.test_data_path),
            ("means_path", &self.means_path),
            ("stds_path", &self.stds_path),
        ] {
            if path.as_os_str().is_empty() {
                faults
                    .push(format!("{key}: expected a path, found an empty string; leave the key out for its default"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_read_in_every_unit_and_written_back() {
        for (text, hours) in [("6h", 6.0), ("30m", 0.5), ("1d", 24.0), ("6", 6.0), (" 1.5 hours ", 1.5), ("90min", 1.5)]
        {
            assert_eq!(text.parse::<Hours>().unwrap(), Hours(hours), "{text}");
        }
        for text in ["", "h", "-6h", "0h", "6 parsecs", "nan", "1e999h", "6h6", "é"] {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
        assert_eq!(serde_json::to_string(&Hours(6.0)).unwrap(), "\"6h\"");
        assert_eq!(serde_json::from_str::<Hours>("\"0.5h\"").unwrap(), Hours(0.5));
    }

    #[test]
    fn paths_follow_the_data_folder() {
        let c = WeatherDataConfig::below("/x");
        assert_eq!(c.stds_path, Path::new("/x/stats/global_stds.npy"));
        assert_eq!(WeatherDataConfig { dt: 4, ..c }.lead_time_h(), 24.0);
    }

    #[test]
    fn what_cannot_be_read_is_listed_by_key() {
        let mut faults = Faults::new();
        WeatherDataConfig {
            data_subset: f64::NAN,
            sequence_length: 0,
            dt: 0,
            num_workers: 9999,
            means_path: PathBuf::new(),
            ..Default::default()
        }
        .validate(&mut faults);
        let keys: Vec<&str> = faults.lines().filter_map(|l| l.split(':').next()).collect();
        assert_eq!(keys, ["data_subset", "sequence_length", "dt", "num_workers", "means_path"]);
    }
}
