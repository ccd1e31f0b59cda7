//! Forecasts of a checkpoint: they agree with its metrics, each step is the input of the next, and what is drawn says what
//! it shows.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use perfrun::backend::Exec;
use perfrun::data::Dataset as _;
use perfrun::data::weather::synthetic::SyntheticWeather;
use perfrun::data::weather::{Split, WeatherDataConfig, WeatherDataset, WeatherGrid};
use perfrun::error::Result;
use perfrun::io::atomic::Existing::{Refuse, Replace};
use perfrun::io::hdf5::{H5File, H5Storage, write_f32};
use perfrun::io::npy;
use perfrun::models::weather_vit::config::{Head, WeatherVitConfig};
use perfrun::train::budget::SystemClock;
use perfrun::train::config::{Precision, RunConfig, TrainingConfig};
use perfrun::train::evaluation::Evaluation;
use perfrun::train::observer::{Event, Observer};
use perfrun::train::resume::Resume;
use perfrun::train::stop::Stop;
use perfrun::train::system::System;
use perfrun::train::weather::{Forecast, ForecastStep, Forecaster, Session};

const SHAPE: [usize; 3] = [2, 8, 16];

/// Keeps the last validation.
#[derive(Default)]
struct Validated(Option<Evaluation>);

impl Observer for Validated {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Validated { evaluation, .. } = event {
            self.0 = Some((*evaluation).clone());
        }
        Ok(())
    }
}

/// A run of a few steps on small files.
struct Trained {
    root: tempfile::TempDir,
    config: RunConfig,
    validated: Evaluation,
}

fn train(change: impl FnOnce(&mut RunConfig)) -> Trained {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let [channels, height, width] = SHAPE;
    SyntheticWeather { height, width, channels, steps: 9, ..Default::default() }.write(&data, |_| {}).unwrap();
    let mut config = RunConfig {
        model: WeatherVitConfig {
            embed_dim: 16,
            num_layers: 1,
            num_heads: 2,
            img_size: [height, width],
            patch_size: 4,
            input_channels: channels,
            output_channels: channels,
            head: Head::Unpatchify,
            ..WeatherVitConfig::default()
        },
        data: WeatherDataConfig { num_workers: 1, ..WeatherDataConfig::below(&data) },
        training: TrainingConfig {
            batch_size: 3,
            max_steps: Some(3),
            learning_rate: 1e-2,
            warmup_steps: 0,
            precision: Precision::Fp32,
            checkpoint_dir: root.path().join("checkpoints"),
            log_dir: root.path().join("logs"),
            ..TrainingConfig::default()
        },
        ..RunConfig::default()
    };
    config.experiment.name = "small".into();
    change(&mut config);
    let mut validated = Validated::default();
    let session = Session::open(&config, &Exec::cpu(), &Resume::Never).unwrap();
    session.run(&Stop::new(), Box::<SystemClock>::default(), &mut validated).unwrap();
    Trained { root, config, validated: validated.0.unwrap() }
}

impl Trained {
    fn checkpoint(&self) -> PathBuf {
        self.config.checkpoint_folder().join("final_checkpoint")
    }

    fn open(&self, data: Option<&Path>) -> Forecaster {
        Forecaster::open(&self.checkpoint(), &Exec::cpu(), data).unwrap()
    }

    fn perfrun(&self, args: &[&str]) -> Output {
        let checkpoint = self.config.checkpoint_folder();
        let mut command = Command::new(env!("CARGO_BIN_EXE_perfrun"));
        command.current_dir(self.root.path()).arg(args[0]).arg("--checkpoint").arg(checkpoint).args(&args[1..]);
        command.output().unwrap()
    }
}

#[test]
fn an_evaluation_of_the_checkpoint_is_the_runs_last_validation() {
    let trained = train(|_| ());
    let forecaster = trained.open(None);
    assert_eq!(forecaster.step(), 3);
    let data = Arc::new(forecaster.dataset(Split::Valid).unwrap());
    let mut seen = (0, 0);
    let found = forecaster.evaluate(&data, None, &mut |done, total| seen = (done, total)).unwrap();
    assert_eq!(found, trained.validated);
    assert_eq!(seen, (data.len(), data.len()));
}

#[test]
fn errors_of_all_forecasts_average_to_the_metrics() {
    let trained = train(|_| ());
    let forecaster = trained.open(None);
    let data = Arc::new(forecaster.dataset(Split::Test).unwrap());
    let metrics = forecaster.evaluate(&data, Some(5), &mut |_, _| ()).unwrap();
    let all: Vec<Forecast> = (0..data.len()).map(|i| forecaster.forecast(&data, i, 1).unwrap()).collect();
    let mean = |f: &dyn Fn(&ForecastStep) -> f64| all.iter().map(|a| f(&a.steps[0])).sum::<f64>() / all.len() as f64;
    for c in 0..SHAPE[0] {
        let want = metrics.get(&format!("physical/weighted_rmse_ch{c}")).unwrap();
        approx::assert_relative_eq!(mean(&|s| s.rmse[c]), want, max_relative = 1e-6);
    }
    let stds = data.statistics().unwrap().stds().to_vec();
    let still =
        mean(&|s| s.persistence_rmse.iter().zip(&stds).map(|(e, std)| e / std).sum::<f64>() / stds.len() as f64);
    approx::assert_relative_eq!(still, metrics.get("persistence_weighted_rmse").unwrap(), max_relative = 1e-6);
}

#[test]
fn each_step_is_the_input_of_the_next_and_a_written_forecast_is_a_data_set() {
    for frames in [1, 2] {
        let trained = train(|c| c.data.sequence_length = frames);
        let forecaster = trained.open(None);
        let data = forecaster.dataset(Split::Test).unwrap();
        let forecast = forecaster.forecast(&data, 1, 3).unwrap();
        assert_eq!((forecast.first_row, forecast.shape()), (frames, [3, SHAPE[0], SHAPE[1], SHAPE[2]]));
        assert_eq!(forecast.steps[1].lead_time_h, 12.0);
        assert_eq!(forecast.steps[0].fields, forecaster.forecast(&data, 1, 1).unwrap().steps[0].fields);
        let later = forecaster.forecast(&data, 2, 1).unwrap();
        assert_eq!(forecast.steps[1].target, later.steps[0].target);
        // The last frame of the input, if two are read, then what was forecast.
        let area: usize = SHAPE.iter().product();
        let rows = H5File::open(&forecast.file).unwrap().dataset("fields").unwrap().read_all().unwrap();
        let mut fields = rows[forecast.first_row * area..][..(frames - 1) * area].to_vec();
        forecast.steps.iter().for_each(|s| fields.extend(&s.fields));
        let other = trained.root.path().join("other");
        std::fs::create_dir_all(other.join("test")).unwrap();
        std::fs::create_dir_all(other.join("stats")).unwrap();
        for file in ["stats/global_means.npy", "stats/global_stds.npy"] {
            std::fs::copy(trained.root.path().join("data").join(file), other.join(file)).unwrap();
        }
        let shape = [fields.len() / area, SHAPE[0], SHAPE[1], SHAPE[2]];
        write_f32(&other.join("test/a.h5"), Refuse, "fields", &shape, &fields, &H5Storage::Contiguous).unwrap();
        let moved = trained.open(Some(&other));
        let again = moved.forecast(&moved.dataset(Split::Test).unwrap(), 0, 1).unwrap();
        let stds = data.statistics().unwrap().stds();
        for (i, (a, b)) in again.steps[0].fields.iter().zip(&forecast.steps[1].fields).enumerate() {
            let std = stds[i / (SHAPE[1] * SHAPE[2])];
            assert!(f64::from((a - b).abs()) <= 1e-4 * std, "element {i}: {a}, {b}");
        }
    }
}

#[test]
fn beyond_the_end_of_the_file_there_is_a_forecast_and_no_target() {
    let trained = train(|_| ());
    let forecaster = trained.open(None);
    let data = forecaster.dataset(Split::Test).unwrap();
    // The last sample of a file has the last row as its target.
    let forecast = forecaster.forecast(&data, data.len() - 1, 2).unwrap();
    assert!(forecast.steps[0].target.is_some() && forecast.steps[0].rmse.len() == SHAPE[0]);
    assert!(forecast.steps[1].target.is_none() && forecast.steps[1].rmse.is_empty());
    let svg = forecast.svg(2, 0).unwrap();
    assert!(svg.contains("no target") && !svg.contains("forecast − target"));
}

#[test]
fn what_cannot_be_forecast_is_refused_with_its_reason() {
    let fault = |trained: &Trained, index: usize, steps: usize| {
        let forecaster = trained.open(None);
        let data = forecaster.dataset(Split::Test).unwrap();
        forecaster.forecast(&data, index, steps).unwrap_err().to_string()
    };
    let narrow = train(|c| c.model.output_channels = 1);
    assert!(fault(&narrow, 0, 2).contains("reads 2 channels and forecasts 1"));
    // Three files of 9 rows.
    assert_eq!(fault(&narrow, 24, 1), "sample: expected an index below 24, found 24");
    assert!(fault(&narrow, 0, 0).starts_with("steps: expected 1 to"));
    let sparse = train(|c| (c.data.sequence_length, c.data.dt) = (2, 2));
    assert!(fault(&sparse, 0, 2).contains("2 neighbouring rows and forecasts 2 rows ahead"));
    assert!(Forecaster::open(narrow.root.path(), &Exec::cpu(), None).unwrap_err().is_bad_input());
}

/// A forecast of a wave, made by hand.
fn wave(height: usize, width: usize) -> Forecast {
    let field = |shift: f32| -> Vec<f32> {
        (0..height * width).map(|i| ((i % width) as f32 * 0.1 + shift).sin() * 20.0 + 280.0).collect()
    };
    let step = ForecastStep {
        lead_time_h: 6.0,
        fields: field(0.1),
        target: Some(field(0.0)),
        rmse: vec![1.25],
        persistence_rmse: vec![2.5],
    };
    Forecast {
        grid: WeatherGrid { input_channels: 1, output_channels: 1, height, width },
        file_rows: height,
        file_columns: width,
        file: "2018 <a&b>.h5".into(),
        first_row: 7,
        steps: vec![step],
    }
}

#[test]
fn the_maps_say_what_they_show() {
    let svg = wave(64, 128).svg(1, 0).unwrap();
    for part in [
        "channel 0, step 1, 6 h ahead: RMSE 1.2500, persistence 2.5000",
        "from row 7 of 2018 &lt;a&amp;b&gt;.h5",
        ">\nforecast\n<",
        ">\ntarget\n<",
        ">\nforecast − target\n<",
        "60°N",
        "30°S",
        "180°E",
        "260",
    ] {
        assert!(svg.contains(part), "{part}");
    }
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
    assert!(wave(64, 128).svg(2, 0).unwrap_err().to_string().contains("step: expected 1 to 1, found 2"));
    assert!(wave(64, 128).svg(1, 1).unwrap_err().to_string().contains("channel: expected a number below 1, found 1"));
}

#[test]
fn maps_of_large_grids_are_small_files_that_say_so() {
    let svg = wave(360, 720).svg(1, 0).unwrap();
    assert!(svg.contains("drawn as means of 4 x 4 cells"));
    assert!(svg.len() < 4_000_000, "{} bytes", svg.len());
}

#[test]
fn a_grid_of_one_cell_and_a_constant_field_are_drawn() {
    let mut forecast = wave(1, 1);
    forecast.steps[0].target = Some(forecast.steps[0].fields.clone());
    assert!(!forecast.svg(1, 0).unwrap().contains("NaN"));
}

#[test]
fn forecasts_are_written_in_both_formats_and_replace_nothing_unasked() {
    let (dir, forecast) = (tempfile::tempdir().unwrap(), wave(4, 6));
    let (h5, npy_file) = (dir.path().join("a.h5"), dir.path().join("a.npy"));
    for path in [&h5, &npy_file] {
        forecast.write(path, Refuse).unwrap();
        assert!(forecast.write(path, Refuse).unwrap_err().is_bad_input());
        forecast.write(path, Replace).unwrap();
    }
    let fields = H5File::open(&h5).unwrap().dataset("fields").unwrap();
    assert_eq!(
        (fields.shape(), fields.read_all().unwrap()),
        ([1, 1, 4, 6].as_slice(), forecast.steps[0].fields.clone())
    );
    assert_eq!(npy::read(&npy_file).unwrap().shape, [1, 1, 4, 6]);
    assert!(
        forecast.write(&dir.path().join("a.grib"), Refuse).unwrap_err().to_string().contains("ends in .h5 or .npy")
    );
}

#[test]
fn eval_and_predict_answer_on_the_command_line() {
    let trained = train(|_| ());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let eval = trained.perfrun(&["eval", "--split", "valid", "--json"]);
    assert_eq!(eval.status.code(), Some(0), "{}", text(&eval.stderr));
    let found: serde_json::Value = serde_json::from_slice(&eval.stdout).unwrap();
    assert_eq!(found["metrics"]["weighted_rmse_ch1"].as_f64(), trained.validated.get("weighted_rmse_ch1"));
    let table = text(&trained.perfrun(&["eval", "--split", "valid"]).stdout);
    assert!(table.contains("in the units of the files") && table.contains("persistence: weighted_rmse"), "{table}");
    let flags = ["predict", "--steps", "2", "--out", "f.h5", "--plot", "f.svg", "--channel", "1"];
    let first = trained.perfrun(&flags);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    assert!(text(&first.stdout).contains("wrote fields [2, 2, 8, 16] to f.h5"));
    let written = H5File::open(trained.root.path().join("f.h5")).unwrap().dataset("fields").unwrap();
    assert_eq!(written.shape(), [2, 2, 8, 16]);
    let again = trained.perfrun(&flags);
    assert_eq!((again.status.code(), text(&again.stderr).matches("--overwrite replaces it").count()), (Some(2), 2));
    for bad in [
        &["predict", "--out", "f.grib"][..],
        &["predict", "--channel", "2"],
        &["predict", "--index", "24"],
        &["predict", "--steps", "2", "--plot-step", "3"],
        &["eval", "--split", "holdout"],
        &["eval", "--data", "nowhere"],
        &["eval", "--batch-size", "0"],
    ] {
        let out = trained.perfrun(bad);
        assert_eq!(out.status.code(), Some(2), "{bad:?}: {}", text(&out.stderr));
    }
}

#[test]
fn data_of_another_grid_is_refused_where_it_is_opened() {
    let trained = train(|_| ());
    let other = trained.root.path().join("other");
    SyntheticWeather { height: 4, width: 8, channels: 2, steps: 9, ..Default::default() }
        .write(&other, |_| {})
        .unwrap();
    let e = trained.open(Some(&other)).dataset(Split::Test).unwrap_err().to_string();
    assert!(e.contains("expected a grid of 8 x 16"), "{e}");
    let at = WeatherDataset::open(
        &trained.config.data,
        Split::Test,
        trained.open(None).dataset(Split::Test).unwrap().grid(),
    );
    assert_eq!(at.unwrap().file_columns(), 16);
}
