//! Weather data sets: what is enumerated, read, stacked, normalised and refused.

use std::path::Path;
use std::sync::Arc;

use perfrun::data::weather::config::Crop;
use perfrun::data::weather::{Split, WeatherDataConfig, WeatherDataset, WeatherGrid};
use perfrun::data::{Batches, Dataset, Prefetch, Shuffle};
use perfrun::error::Error;
use perfrun::io::atomic::Existing::Replace;
use perfrun::io::hdf5::{H5Storage, write_f32};
use perfrun::io::npy;

const GRID: WeatherGrid = WeatherGrid { input_channels: 2, output_channels: 2, height: 3, width: 4 };

/// The value at a place, exact in f32: every place of every file has another.
fn value(file: usize, step: usize, channel: usize, row: usize, column: usize) -> f32 {
    (((file * 50 + step) * 8 + channel) * 8 + row) as f32 * 8.0 + column as f32
}

/// Writes file number `file` of shape `[steps, channels, height, width]`.
fn write(folder: &Path, name: &str, file: usize, shape: [usize; 4]) {
    std::fs::create_dir_all(folder).unwrap();
    let [steps, channels, height, width] = shape;
    let mut values = Vec::new();
    for (t, c) in (0..steps).flat_map(|t| (0..channels).map(move |c| (t, c))) {
        for y in 0..height {
            values.extend((0..width).map(|x| value(file, t, c, y, x)));
        }
    }
    // Both layouts in turn, so that every test reads both.
    let gzip = H5Storage::Gzip { chunk: vec![2, 1, height, width], level: 1, shuffle: true };
    let storage = if file.is_multiple_of(2) { H5Storage::Contiguous } else { gzip };
    write_f32(&folder.join(name), Replace, "fields", &shape, &values, &storage).unwrap();
}

/// Two training files of 5 and 7 steps, a validation file of 4, statistics 0 and 1.
fn root() -> (tempfile::TempDir, WeatherDataConfig) {
    let root = tempfile::tempdir().unwrap();
    let config = WeatherDataConfig { num_workers: 2, ..WeatherDataConfig::below(root.path()) };
    write(&config.train_data_path, "2010.h5", 0, [5, 2, 3, 4]);
    write(&config.train_data_path, "2011.h5", 1, [7, 2, 3, 4]);
    write(&config.valid_data_path, "2015.h5", 2, [4, 2, 3, 4]);
    std::fs::create_dir(root.path().join("stats")).unwrap();
    npy::write_f32(&config.means_path, Replace, &[1, 2], &[0.0, 0.0]).unwrap();
    npy::write_f32(&config.stds_path, Replace, &[1, 2], &[1.0, 1.0]).unwrap();
    (root, config)
}

fn open(config: &WeatherDataConfig) -> WeatherDataset {
    WeatherDataset::open(config, Split::Train, GRID).unwrap()
}

fn faults(config: &WeatherDataConfig, grid: WeatherGrid) -> Vec<String> {
    match WeatherDataset::open(config, Split::Train, grid) {
        Err(Error::Data(f)) => f.lines().map(str::to_owned).collect(),
        other => panic!("expected faults, found {other:?}"),
    }
}

#[test]
fn every_pair_of_steps_is_a_sample_once_and_none_spans_two_files() {
    let (_root, mut config) = root();
    for (dt, expected) in [(1, 4 + 6), (2, 3 + 5), (4, 1 + 3)] {
        config.dt = dt;
        let data = open(&config);
        assert_eq!(data.len(), expected, "dt {dt}");
        let mut seen = Vec::new();
        for i in 0..data.len() {
            let origin = data.origin(i).unwrap();
            assert_eq!(origin.target_step, origin.first_step + dt);
            let file = usize::from(origin.file.ends_with("2011.h5"));
            let batch = data.batch(&[i]).unwrap();
            assert_eq!(batch.state.to_f32().unwrap()[0], value(file, origin.first_step, 0, 0, 0));
            assert_eq!(batch.target.to_f32().unwrap()[23], value(file, origin.target_step, 1, 2, 3));
            seen.push((file, origin.first_step));
        }
        let sorted = seen.clone();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, sorted, "in time, and none twice");
    }
    assert!(open(&config).origin(4).is_err_and(|e| e.to_string().ends_with("expected an index below 4, found 4")));
}

#[test]
fn frames_are_stacked_on_the_channels_oldest_first() {
    let (_root, mut config) = root();
    (config.sequence_length, config.dt) = (3, 2);
    let data = open(&config);
    assert_eq!(data.len(), 1 + 3);
    let batch = data.batch(&[2, 0]).unwrap();
    assert_eq!((batch.state.shape(), batch.target.shape()), ([2, 6, 3, 4].as_slice(), [2, 2, 3, 4].as_slice()));
    let state = batch.state.to_f32().unwrap();
    // Sample 2 starts at step 1 of the second file.
    for frame in 0..3 {
        assert_eq!(state[(frame * 2 + 1) * 12 + 5], value(1, 1 + frame, 1, 1, 1), "frame {frame}");
    }
    assert_eq!(state[72], value(0, 0, 0, 0, 0));
    assert_eq!(batch.target.to_f32().unwrap()[0], value(1, 1 + 2 + 2, 0, 0, 0));
}

#[test]
fn fewer_channels_than_the_files_have_are_the_first_ones() {
    let (_root, config) = root();
    let grid = WeatherGrid { input_channels: 1, ..GRID };
    let batch = WeatherDataset::open(&config, Split::Train, grid).unwrap().batch(&[0]).unwrap();
    assert_eq!((batch.state.shape(), batch.target.shape()), ([1, 1, 3, 4].as_slice(), [1, 2, 3, 4].as_slice()));
    assert_eq!(batch.state.to_f32().unwrap()[11], value(0, 0, 0, 2, 3));
}

#[test]
fn a_larger_grid_is_refused_unless_the_crop_is_asked_for() {
    let (_root, mut config) = root();
    let grid = WeatherGrid { height: 2, width: 3, ..GRID };
    let found = faults(&config, grid);
    assert_eq!(found.len(), 2);
    assert!(found[0].ends_with(
        "2010.h5: fields: expected a grid of 2 x 3 as img_size says, found 3 x 4; with `crop: top_left` the first rows \
         and columns are read"
    ));
    config.crop = Crop::TopLeft;
    let data = WeatherDataset::open(&config, Split::Train, grid).unwrap();
    assert_eq!(data.file_rows(), 3);
    let state = data.batch(&[5]).unwrap().state.to_f32().unwrap();
    assert_eq!(state[..6], [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)].map(|(y, x)| value(1, 1, 0, y, x)));
    let larger = faults(&config, WeatherGrid { height: 4, ..GRID });
    assert!(larger[1].ends_with("expected a grid of 4 x 4 as img_size says, found 3 x 4"), "{larger:?}");
}

#[test]
fn the_subset_is_the_first_fraction_of_the_training_samples_only() {
    let (_root, mut config) = root();
    for (fraction, expected) in [(1.0, 10), (0.5, 5), (0.59, 5), (0.01, 1)] {
        config.data_subset = fraction;
        let data = open(&config);
        assert_eq!(data.len(), expected, "{fraction}");
        assert_eq!(data.origin(expected - 1).unwrap().first_step, if expected == 10 { 5 } else { (expected - 1) % 4 });
        assert_eq!(WeatherDataset::open(&config, Split::Valid, GRID).unwrap().len(), 3);
    }
}

#[test]
fn state_and_target_are_normalised_by_channel_and_can_be_left_alone() {
    let (_root, mut config) = root();
    npy::write_f64(&config.means_path, Replace, &[1, 2, 1, 1], &[10.0, 20.0]).unwrap();
    npy::write_f64(&config.stds_path, Replace, &[2, 1, 1], &[2.0, 4.0]).unwrap();
    let batch = open(&config).batch(&[0]).unwrap();
    let state = batch.state.to_f32().unwrap();
    assert_eq!((state[1], state[12]), ((value(0, 0, 0, 0, 1) - 10.0) / 2.0, (value(0, 0, 1, 0, 0) - 20.0) / 4.0));
    assert_eq!(batch.target.to_f32().unwrap()[12], (value(0, 1, 1, 0, 0) - 20.0) / 4.0);
    config.normalize = false;
    std::fs::remove_file(&config.means_path).unwrap();
    let data = open(&config);
    assert!(data.statistics().is_none());
    assert_eq!(data.batch(&[0]).unwrap().state.to_f32().unwrap()[1], value(0, 0, 0, 0, 1));
}

#[test]
fn all_faults_of_a_split_are_listed_at_once() {
    let (_root, config) = root();
    let train = &config.train_data_path;
    write(train, "2012.h5", 3, [1, 2, 3, 4]);
    write(train, "2013.h5", 4, [5, 1, 3, 4]);
    write(train, "2014.h5", 5, [5, 2, 3, 5]);
    std::fs::write(train.join("2015.h5"), b"not hdf5").unwrap();
    npy::write_f32(&config.means_path, Replace, &[3], &[0.0; 3]).unwrap();
    npy::write_f32(&config.stds_path, Replace, &[3], &[1.0; 3]).unwrap();
    let found = faults(&config, GRID);
    let expected = [
        "2012.h5: fields: expected at least 2 steps (sequence_length + dt), found 1",
        "2013.h5: fields: expected at least 2 channels, found 1",
        "2013.h5: fields: expected [time, 2, 3, 4] like ",
        "2014.h5: fields: expected a grid of 3 x 4 as img_size says, found 3 x 5; with `crop: top_left`",
        "2014.h5: fields: expected [time, 2, 3, 4] like ",
        "2015.h5: expected an HDF5 file, found no HDF5 signature",
        "global_means.npy: expected 2 channels like ",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (line, part) in found.iter().zip(expected) {
        assert!(line.contains(part), "expected {part}, found {line}");
    }
}

#[test]
fn a_value_that_is_not_finite_is_named_with_its_place() {
    let (_root, config) = root();
    let mut values = vec![1.0; 5 * 24];
    values[3 * 24 + 12 + 4 + 2] = f32::NEG_INFINITY;
    let path = config.train_data_path.join("2010.h5");
    write_f32(&path, Replace, "fields", &[5, 2, 3, 4], &values, &H5Storage::Contiguous).unwrap();
    let data = open(&config);
    data.batch(&[0, 1]).unwrap();
    let error = data.batch(&[2]).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "2010.h5: fields: step 3, channel 1, row 1, column 2: expected a finite number, found -inf; fill such values \
             before training"
        ),
        "{error}"
    );
}

#[test]
fn reading_ahead_gives_the_same_batches_for_every_number_of_threads() {
    let (_root, config) = root();
    let data = Arc::new(open(&config));
    let read = |workers| -> Vec<Vec<f32>> {
        let batches = Batches::new(data.len(), 3, false, Some((Shuffle::new(5), 2))).unwrap();
        let ahead = Prefetch::new(Arc::clone(&data), batches, 0, workers).unwrap();
        ahead.map(|b| b.unwrap()).map(|b| [b.state.to_f32().unwrap(), b.target.to_f32().unwrap()].concat()).collect()
    };
    let direct = read(0);
    assert_eq!(direct.len(), 4);
    assert_eq!(direct, read(1));
    assert_eq!(direct, read(3));
}
