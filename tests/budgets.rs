//! Runs that end by a budget: FLOPs to the step, time to the second, also over several parts.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use perfrun::backend::Exec;
use perfrun::data::weather::synthetic::SyntheticWeather;
use perfrun::rng::Stream;
use perfrun::train::budget::{Exhausted, SystemClock};
use perfrun::train::checkpoint::verify;
use perfrun::train::config::RunConfig;
use perfrun::train::observer::Event;
use perfrun::train::resume::Resume;
use perfrun::train::run::Outcome;
use perfrun::train::stop::Stop;
use perfrun::train::weather::{Session, checkpoint_folder, step_flops};

use crate::train::{At, config, write_data};

/// Runs a part that stops after `steps`, if given, and says how it ended and the FLOPs spent after each step.
fn part(config: &RunConfig, resume: &Resume, steps: Option<usize>) -> (Outcome, Vec<u128>) {
    let (stop, mut seen) = (Stop::new(), Vec::new());
    let asked = stop.clone();
    let session = Session::open(config, &Exec::cpu(), resume).unwrap();
    let outcome = session.run(
        &stop,
        Box::<SystemClock>::default(),
        &mut At(|e: &Event<'_>| {
            if let Event::Step { spent, .. } = e {
                seen.push(spent.flops);
                if Some(seen.len()) == steps {
                    asked.request();
                }
            }
        }),
    );
    (outcome.unwrap(), seen)
}

#[test]
fn a_run_stops_within_one_step_of_any_budget_of_flops_also_in_four_parts() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let pick = Stream::new(3, 0);
    for i in 0..10 {
        let mut config = config(dir.path(), &format!("budget_{i}"));
        (config.training.epochs, config.training.validate_every, config.training.save_every) = (30, 100, 100);
        let step = step_flops(&config).unwrap();
        let budget = step as f64 * (0.2 + 30.0 * f64::from(pick.uniform(i)));
        config.training.flops_budget = Some(budget);
        let want = (budget / step as f64) as usize;
        let mut seen = Vec::new();
        let mut parts = 0;
        let outcome = loop {
            // Three interruptions on the way, where there is a way.
            let stop_after = (parts < 3).then_some(want.div_ceil(4).max(1));
            let (outcome, more) = part(&config, &Resume::LatestIfAny, stop_after);
            seen.extend(more);
            parts += 1;
            if !matches!(outcome, Outcome::Stopped(_)) {
                break outcome;
            }
        };
        assert_eq!(outcome, Outcome::Exhausted(Exhausted::Flops), "budget {i}");
        assert_eq!(seen, (1..=want as u128).map(|n| n * step).collect::<Vec<_>>(), "budget {i} in {parts} parts");
        assert!(parts == 4 || want < 4, "budget {i}: {parts} parts");
        verify(&checkpoint_folder(&config).join("final_checkpoint")).unwrap();
    }
}

#[test]
fn the_earliest_of_epochs_flops_and_time_ends_a_run() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "first");
    let step = step_flops(&config).unwrap() as f64;
    (config.training.flops_budget, config.training.time_budget_hours) = (Some(100.0 * step), Some(1.0));
    assert_eq!(part(&config, &Resume::Never, None).0, Outcome::Finished);
    config.experiment.name = "second".into();
    config.training.flops_budget = Some(2.5 * step);
    assert_eq!(part(&config, &Resume::Never, None).0, Outcome::Exhausted(Exhausted::Flops));
    config.experiment.name = "third".into();
    config.training.time_budget_hours = Some(1e-9);
    assert_eq!(part(&config, &Resume::Never, None), (Outcome::Exhausted(Exhausted::Time), vec![]));
}

/// A configuration that trains for far longer than its budget, and validates and saves at every epoch.
const TIMED: &str = "
timed:
  embed_dim: 16
  num_layers: 2
  num_heads: 2
  img_size: [8, 16]
  patch_size: 4
  input_channels: 2
  output_channels: 2
  batch_size: 2
  epochs: 1000000
  warmup_steps: 3
  precision: fp32
  num_workers: 1
  log_frequency: 1000
";

fn timed_runs(seconds: f64, runs: usize, at_a_time: usize) {
    let dir = tempfile::tempdir().unwrap();
    let small = SyntheticWeather { height: 8, width: 16, channels: 2, steps: 40, ..SyntheticWeather::default() };
    small.write(&dir.path().join("data"), |_| {}).unwrap();
    std::fs::write(dir.path().join("timed.yaml"), TIMED).unwrap();
    let one = |run: usize| {
        let start = Instant::now();
        let name = format!("run_{run}");
        let hours = format!("{:e}", seconds / 3600.0);
        let output = train(dir.path(), &["--run-name", &name, "--time-budget", &hours]);
        (start.elapsed(), output, dir.path().join("checkpoints").join(name).join("final_checkpoint"))
    };
    let mut longest = Duration::ZERO;
    for first in (0..runs).step_by(at_a_time) {
        let ended: Vec<_> = std::thread::scope(|scope| {
            let one = &one;
            let started: Vec<_> = (first..runs.min(first + at_a_time)).map(|i| scope.spawn(move || one(i))).collect();
            started.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for (wall, code, checkpoint) in ended {
            assert_eq!(code, Some(75));
            verify(&checkpoint).unwrap();
            assert!(wall.as_secs_f64() <= seconds, "{wall:?} of {seconds} s");
            assert!(wall.as_secs_f64() >= 0.5 * seconds, "{wall:?} of {seconds} s: far too early");
            longest = longest.max(wall);
        }
    }
    println!("{runs} runs of {seconds} s, the longest took {longest:?}");
}

fn train(dir: &Path, flags: &[&str]) -> Option<i32> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perfrun"));
    command.args(["train", "--config", "timed.yaml"]).args(flags).current_dir(dir);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
}

#[test]
fn twenty_runs_end_within_their_budget_of_time_checkpoint_included() {
    timed_runs(2.5, 20, 10);
}

#[test]
#[ignore = "takes ten minutes"]
fn twenty_runs_of_a_minute_end_within_it() {
    timed_runs(60.0, 20, 2);
}

#[test]
fn a_used_up_budget_is_the_end_of_a_run_where_that_is_said_and_a_moment_ends_only_the_part() {
    let dir = tempfile::tempdir().unwrap();
    let small = SyntheticWeather { height: 8, width: 16, channels: 2, steps: 9, ..SyntheticWeather::default() };
    small.write(&dir.path().join("data"), |_| {}).unwrap();
    std::fs::write(dir.path().join("timed.yaml"), TIMED).unwrap();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let soon = format!("{:.2}", now() + 1.5);
    assert_eq!(train(dir.path(), &["--continue", "--budget-is-end", "--stop-at", &soon]), Some(75));
    assert!(now() < soon.parse().unwrap(), "it ended after the moment");
    assert_eq!(train(dir.path(), &["--stop-at", "5"]), Some(2), "the moment has passed");
    let config: RunConfig =
        RunConfig::load(&perfrun::train::config::ConfigSource::File(dir.path().join("timed.yaml")), None, &[], &|_| {
            None
        })
        .unwrap();
    // The first part took more than that: the run is at its end as soon as it goes on.
    let flops = format!("{:e}", step_flops(&config).unwrap() as f64);
    assert_eq!(train(dir.path(), &["--continue", "--budget-is-end", "--flops-budget", &flops]), Some(0));
    assert_eq!(train(dir.path(), &["--continue", "--flops-budget", &flops]), Some(75));
}
