//! `validate` lists every fault of a data set at once, and the synthetic years have none.

use std::path::Path;

use perfrun::data::weather::synthetic::SyntheticWeather;
use perfrun::data::weather::validate::{Depth, Report, validate};
use perfrun::data::weather::{Split, WeatherDataConfig, WeatherDataset, WeatherGrid};
use perfrun::io::atomic::Existing::Replace;
use perfrun::io::hdf5::{H5File, H5Storage, write_f32};
use perfrun::io::npy;

fn synthetic() -> SyntheticWeather {
    SyntheticWeather { height: 6, width: 8, channels: 2, steps: 20, ..Default::default() }
}

fn write(synthetic: &SyntheticWeather) -> (tempfile::TempDir, WeatherDataConfig) {
    let root = tempfile::tempdir().unwrap();
    synthetic.write(root.path(), |_| {}).unwrap();
    let config = WeatherDataConfig::below(root.path());
    (root, config)
}

fn all(config: &WeatherDataConfig) -> Report {
    validate(config, Depth::Values, |_| {})
}

/// Expects exactly these parts of lines, in this order.
fn assert_lines<'a>(lines: impl Iterator<Item = &'a str>, parts: &[&str]) {
    let lines: Vec<&str> = lines.collect();
    assert_eq!(lines.len(), parts.len(), "{lines:#?}");
    for (line, part) in lines.iter().zip(parts) {
        assert!(line.contains(part), "expected {part}, found {line}");
    }
}

/// Overwrites one file with `values` of shape [20, 2, 6, 8].
fn put(path: &Path, values: &[f32]) {
    write_f32(path, Replace, "fields", &[20, 2, 6, 8], values, &H5Storage::Contiguous).unwrap();
}

#[test]
fn synthetic_years_have_no_fault_in_any_storage_and_hold_the_same_numbers() {
    let mut numbers = Vec::new();
    for (gzip, shuffle, layout) in [
        (None, false, "contiguous"),
        (Some(4), false, "chunks of [1, 2, 6, 8] with gzip"),
        (Some(1), true, "chunks of [1, 2, 6, 8] with shuffle, gzip"),
    ] {
        let (_root, config) = write(&SyntheticWeather { gzip, shuffle, ..synthetic() });
        let report = all(&config);
        assert!(report.faults.is_empty() && report.warnings.is_empty(), "{report:#?}");
        assert_eq!(report.files.len(), 9);
        assert!(report.files.iter().all(|f| f.layout == layout && f.dtype == "f32" && f.shape == [20, 2, 6, 8]));
        assert_eq!(report.channels.len(), 2);
        assert_eq!(report.channels[0].count, 3 * 20 * 48);
        let grid = WeatherGrid { input_channels: 2, output_channels: 2, height: 6, width: 8 };
        for (split, samples) in Split::ALL.into_iter().zip([57, 57, 57]) {
            assert_eq!(perfrun::data::Dataset::len(&WeatherDataset::open(&config, split, grid).unwrap()), samples);
        }
        let file = config.train_data_path.join("weather_2010.h5");
        numbers.push(H5File::open(file).unwrap().dataset("fields").unwrap().read_all().unwrap());
    }
    assert!(numbers[0] == numbers[1] && numbers[1] == numbers[2]);
}

#[test]
fn the_statistics_are_those_of_the_first_training_year() {
    let (_root, config) = write(&synthetic());
    let year = H5File::open(config.train_data_path.join("weather_2010.h5")).unwrap();
    let fields = year.dataset("fields").unwrap().read_all().unwrap();
    let means = npy::read(&config.means_path).unwrap();
    assert_eq!((means.shape.as_slice(), means.dtype), ([1, 2].as_slice(), npy::NpyDtype::F4));
    let own: Vec<f64> = fields.chunks(48).skip(1).step_by(2).flatten().map(|&x| f64::from(x)).collect();
    let mean = own.iter().sum::<f64>() / own.len() as f64;
    approx::assert_relative_eq!(means.to_f64()[1], mean, max_relative = 1e-6);
    let std = (own.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / own.len() as f64).sqrt();
    approx::assert_relative_eq!(npy::read(&config.stds_path).unwrap().to_f64()[1], std, max_relative = 1e-6);
}

#[test]
fn an_empty_root_misses_everything_at_once() {
    let root = tempfile::tempdir().unwrap();
    let report = all(&WeatherDataConfig::below(root.path()));
    let parts = [
        "train: expected a folder of *.h5 files, found nothing there",
        "valid: expected a folder of *.h5 files, found nothing there",
        "global_means.npy: cannot open",
        "global_stds.npy: cannot open",
    ];
    assert_lines(report.faults.lines(), &parts);
    assert_lines(report.warnings.iter().map(String::as_str), &["(only measuring a finished model needs it)"]);
}

#[test]
fn every_kind_of_fault_is_found_in_one_pass() {
    let (_root, config) = write(&synthetic());
    let train = &config.train_data_path;
    let good = H5File::open(train.join("weather_2010.h5")).unwrap().dataset("fields").unwrap().read_all().unwrap();
    // Two numbers that are not finite, the first at step 3, channel 1, row 2, column 5.
    let mut holes = good.clone();
    holes[3 * 96 + 48 + 2 * 8 + 5] = f32::NAN;
    holes[9 * 96] = f32::INFINITY;
    put(&train.join("weather_2011.h5"), &holes);
    let contiguous = H5Storage::Contiguous;
    write_f32(&train.join("weather_2012.h5"), Replace, "field", &[2, 2, 6, 8], &[0.0; 192], &contiguous).unwrap();
    std::fs::write(train.join("weather_2013.h5"), b"").unwrap();
    write_f32(&train.join("weather_2014.h5"), Replace, "fields", &[2, 12, 8], &[0.5; 192], &contiguous).unwrap();
    write_f32(&train.join("weather_2016.h5"), Replace, "fields", &[1, 2, 6, 7], &[0.5; 84], &contiguous).unwrap();
    let whole = std::fs::read(train.join("weather_2010.h5")).unwrap();
    std::fs::write(train.join("weather_2017.h5"), &whole[..whole.len() / 2]).unwrap();
    npy::write_f32(&config.stds_path, Replace, &[2], &[0.0, f32::NAN]).unwrap();
    let report = all(&config);
    let parts = [
        "weather_2012.h5: fields: no such dataset; the file has field",
        "weather_2013.h5: expected an HDF5 file, found no HDF5 signature",
        "weather_2014.h5: fields: expected the four axes [time, channels, latitude, longitude], found the shape [2, 12, 8]",
        "weather_2016.h5: fields: expected at least 2 steps (sequence_length + dt), found 1",
        "weather_2016.h5: fields: expected [time, 2, 6, 8] like ",
        "weather_2017.h5: ",
        "weather_2011.h5: fields: expected finite numbers, found 2 that are not, first NaN at step 3, channel 1, row 2, \
         column 5; fill them before training",
        "global_stds.npy: channel 0: expected a standard deviation above 0, found 0",
        "global_stds.npy: channel 1: expected a standard deviation above 0, found NaN",
    ];
    assert_lines(report.faults.lines(), &parts);
    let warnings = ["weather_2016.h5: is in train and in valid", "2 of 2 fields are the same number everywhere"];
    assert_lines(report.warnings.iter().map(String::as_str), &warnings);
}

#[test]
fn statistics_of_other_data_are_recognised() {
    let (_root, config) = write(&synthetic());
    npy::write_f32(&config.means_path, Replace, &[2], &[5.0, 0.0]).unwrap();
    npy::write_f32(&config.stds_path, Replace, &[2], &[0.5, 30.0]).unwrap();
    let parts =
        ["global_means.npy: channel 0: expected about the training data's mean", "global_stds.npy: channel 1: "];
    assert_lines(all(&config).faults.lines(), &parts);
    npy::write_f32(&config.means_path, Replace, &[3], &[0.0; 3]).unwrap();
    npy::write_f32(&config.stds_path, Replace, &[3], &[1.0; 3]).unwrap();
    assert_lines(all(&config).faults.lines(), &["global_means.npy: expected 2 channels like "]);
    let unnormalised = WeatherDataConfig { normalize: false, ..config };
    assert!(all(&unnormalised).faults.is_empty());
}

#[test]
fn a_damaged_chunk_is_found_only_when_values_are_read() {
    let (_root, config) = write(&SyntheticWeather { gzip: Some(4), ..synthetic() });
    let path = config.valid_data_path.join("weather_2016.h5");
    let mut bytes = std::fs::read(&path).unwrap();
    // Deflated chunks fill the file from its first chunk on; none of them survives this.
    let (from, to) = (bytes.len() / 3, bytes.len() / 3 + 2000);
    bytes[from..to].fill(0xFF);
    std::fs::write(&path, bytes).unwrap();
    assert!(validate(&config, Depth::Headers, |_| {}).faults.is_empty());
    let report = all(&config);
    assert_lines(report.faults.lines(), &["of 20 steps cannot be read)"]);
}

#[test]
fn progress_counts_every_step_once() {
    let (_root, config) = write(&synthetic());
    let mut last = (0, 0);
    validate(&config, Depth::Values, |p| {
        assert!(p.done > last.0 && p.done <= p.total);
        last = (p.done, p.total);
    });
    assert_eq!(last, (180, 180));
}

#[test]
fn a_report_is_json_with_its_faults_as_lines() {
    let root = tempfile::tempdir().unwrap();
    let json = serde_json::to_value(all(&WeatherDataConfig::below(root.path()))).unwrap();
    assert_eq!(json["faults"].as_array().unwrap().len(), 4);
    assert!(json["faults"][0].as_str().unwrap().ends_with("found nothing there"));
}
