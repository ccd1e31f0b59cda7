//! Runs from configuration to final checkpoint, on small files: what they end with, and that nothing depends on where they
//! were interrupted. Time is held by the tests.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use perfrun::backend::Exec;
use perfrun::data::weather::WeatherDataConfig;
use perfrun::data::weather::synthetic::SyntheticWeather;
use perfrun::error::Result;
use perfrun::models::weather_vit::config::{Head, WeatherVitConfig};
use perfrun::train::budget::{Clock, Exhausted, SystemClock};
use perfrun::train::config::{LrSchedule, MomentPrecision, Precision, RunConfig, TrainingConfig};
use perfrun::train::observer::{Event, Observer};
use perfrun::train::resume::Resume;
use perfrun::train::run::Outcome;
use perfrun::train::stop::{Stop, StopReason};
use perfrun::train::system::System;
use perfrun::train::weather::Session;

/// Two training files of 9 steps make 16 samples: 8 batches of 2, 4 steps of 2 micro-batches an epoch.
pub(crate) fn write_data(root: &Path) {
    let small = SyntheticWeather { height: 8, width: 16, channels: 2, steps: 9, ..SyntheticWeather::default() };
    small.write(root, |_| {}).unwrap();
    std::fs::remove_file(root.join("train/weather_2012.h5")).unwrap();
}

pub(crate) fn config(root: &Path, name: &str) -> RunConfig {
    let mut config = RunConfig {
        model: WeatherVitConfig {
            embed_dim: 16,
            num_layers: 2,
            num_heads: 2,
            img_size: [8, 16],
            patch_size: 4,
            input_channels: 2,
            output_channels: 2,
            ..WeatherVitConfig::default()
        },
        data: WeatherDataConfig { num_workers: 1, ..WeatherDataConfig::below(root.join("data")) },
        training: TrainingConfig {
            batch_size: 2,
            gradient_accumulation: 2,
            epochs: 3,
            learning_rate: 1e-3,
            warmup_steps: 2,
            lr_schedule: LrSchedule::Cosine,
            precision: Precision::Fp32,
            checkpoint_dir: root.join("checkpoints"),
            log_dir: root.join("logs"),
            max_checkpoints: 0,
            ..TrainingConfig::default()
        },
        ..RunConfig::default()
    };
    config.experiment.name = name.into();
    config
}

/// Does something at an event.
pub(crate) struct At<F>(pub(crate) F);

impl<F: FnMut(&Event<'_>)> Observer for At<F> {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        (self.0)(event);
        Ok(())
    }
}

fn run_with(config: &RunConfig, resume: &Resume, stop: &Stop, f: impl FnMut(&Event<'_>)) -> Result<Outcome> {
    let session = Session::open(config, &Exec::cpu(), resume)?;
    session.run(stop, Box::<SystemClock>::default(), &mut At(f))
}

fn run(config: &RunConfig) -> Vec<f64> {
    let mut losses = Vec::new();
    let outcome = run_with(config, &Resume::Never, &Stop::new(), |e| {
        if let Event::Step { report, .. } = e {
            losses.push(report.loss);
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    losses
}

/// Every file of a checkpoint.
fn bytes_of(config: &RunConfig, name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = config.checkpoint_folder().join(name);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.iter().map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap())).collect()
}

#[test]
fn the_loss_falls_by_a_third_in_a_hundred_and_twenty_steps() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "falls");
    config.model.head = Head::Unpatchify;
    (config.model.dropout, config.model.attention_dropout, config.model.stochastic_depth) = (0.0, 0.0, 0.0);
    config.training.epochs = 30;
    config.training.learning_rate = 1e-2;
    let losses = run(&config);
    assert_eq!(losses.len(), 120);
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    let (first, last) = (mean(&losses[..4]), mean(&losses[100..]));
    assert!(last < first / 1.5, "{first} fell to {last} only");
}

#[test]
fn a_run_stopped_after_any_step_and_resumed_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    resumes_with_the_same_bytes(&config(dir.path(), "same"), 0..12);
}

#[test]
fn moments_that_are_rounded_at_random_are_resumed_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let (mut narrow, mut wide) = (config(dir.path(), "narrow"), config(dir.path(), "wide"));
    narrow.training.precision = Precision::Bf16;
    wide.training.precision = Precision::Bf16;
    narrow.training.moments = MomentPrecision::Bf16Stochastic;
    resumes_with_the_same_bytes(&narrow, [1, 6]);
    for (a, b) in run(&narrow).iter().zip(run(&wide)) {
        assert!((a - b).abs() < 0.02 * b, "{a} with narrow moments, {b} with wide ones");
    }
    let mut changed = narrow;
    changed.training.moments = MomentPrecision::Fp32;
    let error = run_with(&changed, &Resume::Latest, &Stop::new(), |_| {}).unwrap_err().to_string();
    assert!(error.contains("set training.moments as it was"), "{error}");
}

fn resumes_with_the_same_bytes(whole: &RunConfig, stops: impl IntoIterator<Item = u64>) {
    run(whole);
    let want = bytes_of(whole, "final_checkpoint");
    std::fs::remove_dir_all(whole.checkpoint_folder()).unwrap();
    for at in stops {
        let stop = Stop::new();
        let outcome = run_with(whole, &Resume::Never, &stop, |e| match e {
            Event::Started { .. } if at == 0 => stop.request(),
            Event::Step { report, .. } if report.step == at => stop.request(),
            _ => {}
        });
        assert_eq!(outcome.unwrap(), Outcome::Stopped(StopReason::Request), "at step {at}");
        let outcome = run_with(whole, &Resume::Latest, &Stop::new(), |_| {});
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        let got = bytes_of(whole, "final_checkpoint");
        assert!(got == want, "stopped after step {at}: the final checkpoint differs");
        std::fs::remove_dir_all(whole.checkpoint_folder()).unwrap();
    }
}

#[test]
fn a_stop_inside_a_validation_leaves_it_to_the_resumed_run() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let config = config(dir.path(), "inside");
    let validations = |resume: &Resume, stop: Stop, interrupt: bool| {
        let mut found = Vec::new();
        let asked = stop.clone();
        let outcome = run_with(&config, resume, &stop, |e| match e {
            Event::Validating { done, .. } if interrupt && *done == 2 => asked.request(),
            Event::Validated { epoch, evaluation, .. } => found.push((*epoch, (*evaluation).clone())),
            _ => {}
        });
        (outcome.unwrap(), found)
    };
    let (_, want) = validations(&Resume::Never, Stop::new(), false);
    let bytes = bytes_of(&config, "final_checkpoint");
    std::fs::remove_dir_all(config.checkpoint_folder()).unwrap();
    let (outcome, none) = validations(&Resume::Never, Stop::new(), true);
    assert!(outcome.is_resumable() && none.is_empty());
    let (outcome, all) = validations(&Resume::Latest, Stop::new(), false);
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(all, want);
    assert!(bytes_of(&config, "final_checkpoint") == bytes);
}

#[test]
fn a_finished_run_that_is_resumed_does_nothing_and_a_longer_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "longer");
    config.training.lr_schedule = LrSchedule::Constant;
    run(&config);
    let before = bytes_of(&config, "final_checkpoint");
    let mut steps = 0;
    let mut count = |e: &Event<'_>| steps += usize::from(matches!(e, Event::Step { .. }));
    assert_eq!(run_with(&config, &Resume::Latest, &Stop::new(), &mut count).unwrap(), Outcome::Finished);
    assert!(bytes_of(&config, "final_checkpoint") == before);
    config.training.epochs = 4;
    assert_eq!(run_with(&config, &Resume::Latest, &Stop::new(), &mut count).unwrap(), Outcome::Finished);
    assert_eq!(steps, 4);
}

#[test]
fn a_new_run_does_not_mix_with_an_earlier_one_and_a_changed_seed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "mix");
    config.training.max_steps = Some(1);
    run(&config);
    let e = run_with(&config, &Resume::Never, &Stop::new(), |_| {}).unwrap_err().to_string();
    assert!(e.contains("earlier run") && e.contains("--resume"), "{e}");
    config.training.seed = 1;
    config.model.embed_dim = 32;
    let e = run_with(&config, &Resume::Latest, &Stop::new(), |_| {}).unwrap_err().to_string();
    assert!(e.contains("expected"), "{e}");
    config.model.embed_dim = 16;
    let e = run_with(&config, &Resume::Latest, &Stop::new(), |_| {}).unwrap_err().to_string();
    assert!(e.contains("training.seed: expected 0 as in the checkpoint, found 1"), "{e}");
    config.experiment.name = "nothing".into();
    let e = run_with(&config, &Resume::Latest, &Stop::new(), |_| {}).unwrap_err().to_string();
    assert!(e.contains("no checkpoint to resume from"), "{e}");
}

#[test]
fn a_budget_of_flops_is_never_exceeded_and_is_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "flops");
    let step = 2 * config.plan().unwrap().cost.model().flops.total();
    config.training.flops_budget = Some(step as f64 * 5.5);
    let mut seen = Vec::new();
    let mut note = |e: &Event<'_>| {
        if let Event::Step { spent, .. } = e {
            seen.push(spent.flops);
        }
    };
    let outcome = run_with(&config, &Resume::Never, &Stop::new(), &mut note).unwrap();
    assert_eq!(outcome, Outcome::Exhausted(Exhausted::Flops));
    config.training.flops_budget = Some(step as f64 * 7.0);
    run_with(&config, &Resume::Latest, &Stop::new(), &mut note).unwrap();
    assert_eq!(seen, (1..=7).map(|n| n * step).collect::<Vec<u128>>());
}

#[derive(Debug)]
struct Hand(Rc<Cell<f64>>);

impl Clock for Hand {
    fn seconds(&self) -> f64 {
        self.0.get()
    }
}

#[test]
fn a_budget_of_time_ends_the_run_in_time_and_is_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "time");
    config.training.save_every = 100;
    config.training.validate_every = 100;
    config.training.time_budget_hours = Some(10.5 / 3600.0);
    // The test's clock moves by one second when a step is reported, which is after the run has read it; so it sees steps
    // of no length and stops when the budget itself has passed.
    let part = |config: &RunConfig, resume: &Resume| {
        let hand = Rc::new(Cell::new(0.0));
        let (clock, mut steps) = (Hand(Rc::clone(&hand)), 0);
        let session = Session::open(config, &Exec::cpu(), resume).unwrap();
        let outcome = session.run(
            &Stop::new(),
            Box::new(clock),
            &mut At(|e: &Event<'_>| {
                if matches!(e, Event::Step { .. }) {
                    steps += 1;
                    hand.set(hand.get() + 1.0);
                }
            }),
        );
        (outcome.unwrap(), steps)
    };
    assert_eq!(part(&config, &Resume::Never), (Outcome::Exhausted(Exhausted::Time), 11));
    assert_eq!(part(&config, &Resume::Latest), (Outcome::Exhausted(Exhausted::Time), 0));
    config.training.time_budget_hours = Some(1.0);
    assert_eq!(part(&config, &Resume::Latest), (Outcome::Finished, 1));
}

#[test]
fn early_stopping_ends_the_run_after_the_patience() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "early");
    config.training.epochs = 20;
    config.training.early_stopping_patience = Some(2);
    // Nothing is an improvement after the first.
    config.training.early_stopping_min_delta = 1e6;
    let mut validations = 0;
    let outcome = run_with(&config, &Resume::Never, &Stop::new(), |e| {
        validations += usize::from(matches!(e, Event::Validated { .. }));
    });
    assert_eq!((outcome.unwrap(), validations), (Outcome::EarlyStopped, 3));
    let again = run_with(&config, &Resume::Latest, &Stop::new(), |e| assert!(!matches!(e, Event::Step { .. })));
    assert_eq!(again.unwrap(), Outcome::EarlyStopped);
}

#[test]
fn only_the_newest_checkpoints_are_kept_beside_the_best_and_the_last() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "rotate");
    config.training.epochs = 4;
    config.training.max_checkpoints = 2;
    run(&config);
    let mut names: Vec<String> = std::fs::read_dir(config.checkpoint_folder())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| !n.starts_with('.'))
        .collect();
    names.sort();
    assert_eq!(names, ["best_checkpoint", "checkpoint_epoch_3", "checkpoint_epoch_4", "final_checkpoint"]);
}

#[test]
fn accumulation_equals_the_large_batch() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let weights = |name: &str, batch: usize, accumulation: usize| {
        let mut config = config(dir.path(), name);
        config.model.dropout = 0.0;
        config.model.attention_dropout = 0.0;
        config.model.stochastic_depth = 0.0;
        config.training.batch_size = batch;
        config.training.gradient_accumulation = accumulation;
        (run(&config), config)
    };
    let ((large, _), (small, _)) = (weights("large", 4, 1), weights("small", 1, 4));
    assert_eq!(large.len(), 12);
    for (l, s) in large.iter().zip(&small) {
        // The same sums in another order, in f32.
        assert!((l - s).abs() <= 2e-5 * l.abs(), "{l} and {s}");
    }
}

#[test]
fn recomputed_segments_change_no_bit_and_cost_algorithm_flops() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut stored = config(dir.path(), "stored");
    stored.training.max_steps = Some(3);
    let mut again = stored.clone();
    again.experiment.name = "again".into();
    again.model.use_checkpointing = true;
    assert_eq!(run(&stored), run(&again));
    let weights = |c| bytes_of(c, "final_checkpoint").into_iter().filter(|(n, _)| n.ends_with("safetensors"));
    assert!(weights(&stored).eq(weights(&again)));
    let (s, a) = (stored.plan().unwrap(), again.plan().unwrap());
    assert_eq!(s.cost.model(), a.cost.model());
    assert!(a.cost.rerun.flops.matmul > 0 && s.cost.rerun.flops.matmul == 0);
    assert!(a.peak_bytes < s.peak_bytes, "{} is not below {}", a.peak_bytes, s.peak_bytes);
}

#[test]
fn sixteen_bit_runs_train_and_an_overflow_skips_the_step_and_halves_the_scale() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut bf16 = config(dir.path(), "bf16");
    bf16.training.precision = Precision::Bf16;
    let losses = run(&bf16);
    let fp32 = run(&config(dir.path(), "fp32"));
    // bf16 has 8 bits: 2^-8 in a number, more after a few layers.
    assert!((losses[0] - fp32[0]).abs() < 0.02 * fp32[0], "{} against {}", losses[0], fp32[0]);
    let mut fp16 = config(dir.path(), "fp16");
    fp16.training.precision = Precision::Fp16;
    fp16.training.loss_scale_init = 2.0_f64.powi(30);
    fp16.training.epochs = 10;
    let mut reports = Vec::new();
    let outcome = run_with(&fp16, &Resume::Never, &Stop::new(), |e| {
        if let Event::Step { report, .. } = e {
            reports.push((report.is_skipped, report.loss_scale));
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let skipped = reports.iter().take_while(|r| r.0).count();
    assert!(skipped > 0, "a scale of 2^30 overflows f16");
    assert_eq!(reports[skipped].1, 2.0_f64.powi(30 - skipped as i32));
    assert!(!reports[reports.len() - 1].0);
}

#[test]
fn what_is_not_finite_is_named_before_a_weight_changes() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "nan");
    config.training.gradient_clipping = 0.0;
    config.training.warmup_steps = 0;
    config.training.learning_rate = 1e30;
    let e = run_with(&config, &Resume::Never, &Stop::new(), |_| {}).unwrap_err();
    let text = e.to_string();
    assert!(matches!(e, perfrun::error::Error::NonFinite(_)) && text.contains("nothing has been updated"), "{text}");
}
