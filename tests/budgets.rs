//! Runs that end by a budget: FLOPs to the step, time to the second, also over several parts.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use perfrun::backend::Exec;
use perfrun::rng::Stream;
use perfrun::train::budget::{Exhausted, SystemClock};
use perfrun::train::checkpoint::verify;
use perfrun::train::config::RunConfig;
use perfrun::train::observer::Event;
use perfrun::train::resume::Resume;
use perfrun::train::run::Outcome;
use perfrun::train::stop::Stop;
use perfrun::train::system::System;
use perfrun::train::weather::Session;

use crate::perfrun::{perfrun, text};
use crate::tiny;
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
        let step = config.step_flops().unwrap();
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
        verify(config.checkpoint_folder().join("final_checkpoint")).unwrap();
    }
}

#[test]
fn the_earliest_of_epochs_flops_and_time_ends_a_run() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"));
    let mut config = config(dir.path(), "first");
    let step = config.step_flops().unwrap() as f64;
    (config.training.flops_budget, config.training.time_budget_hours) = (Some(100.0 * step), Some(1.0));
    assert_eq!(part(&config, &Resume::Never, None).0, Outcome::Finished);
    config.experiment.name = "second".into();
    config.training.flops_budget = Some(2.5 * step);
    assert_eq!(part(&config, &Resume::Never, None).0, Outcome::Exhausted(Exhausted::Flops));
    config.experiment.name = "third".into();
    config.training.time_budget_hours = Some(1e-9);
    assert_eq!(part(&config, &Resume::Never, None), (Outcome::Exhausted(Exhausted::Time), vec![]));
}

/// A run that takes far longer than its budget, and validates and saves at every epoch.
fn write_timed(folder: &Path, steps: usize) {
    tiny::write_data(folder, steps);
    tiny::write_config(folder, "timed", &["epochs: 1000000", "log_frequency: 1000"]);
}

fn timed_runs(seconds: f64, runs: usize, at_a_time: usize) {
    let dir = tempfile::tempdir().unwrap();
    write_timed(dir.path(), 40);
    let one = |run: usize| {
        let start = Instant::now();
        let name = format!("run_{run}");
        let hours = format!("{:e}", seconds / 3600.0);
        let output = train(dir.path(), &["--run-name", &name, "--time-budget", &hours]);
        let log = dir.path().join("logs").join(&name).join("metrics.jsonl");
        (start.elapsed(), output, dir.path().join("checkpoints").join(name).join("final_checkpoint"), log)
    };
    let mut longest = Duration::ZERO;
    for first in (0..runs).step_by(at_a_time) {
        let ended: Vec<_> = std::thread::scope(|scope| {
            let one = &one;
            let started: Vec<_> = (first..runs.min(first + at_a_time)).map(|i| scope.spawn(move || one(i))).collect();
            started.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for (wall, code, checkpoint, log) in ended {
            assert_eq!(code, Some(75));
            verify(&checkpoint).unwrap();
            assert!(wall.as_secs_f64() <= seconds, "{wall:?} of {seconds} s");
            // How early depends on what a save takes, which a busy disk decides; but it has trained.
            let log = std::fs::read_to_string(log).unwrap();
            let end: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
            assert!(end["spent_samples"].as_u64() > Some(0), "{end}");
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
    write_timed(dir.path(), 9);
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
    let flops = format!("{:e}", config.step_flops().unwrap() as f64);
    assert_eq!(train(dir.path(), &["--continue", "--budget-is-end", "--flops-budget", &flops]), Some(0));
    assert_eq!(train(dir.path(), &["--continue", "--flops-budget", &flops]), Some(75));
}

/// What `perfrun budget` says, and its exit code.
fn budget(dir: &Path, line: &str) -> (Option<i32>, String) {
    let output = perfrun(dir, &format!("budget {line}"));
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn the_calculator_answers_as_documented_in_both_spellings() {
    let dir = tempfile::tempdir().unwrap();
    for (line, first) in [
        ("time_to_epochs --hours 4 --minutes_per_epoch 10", "24 epochs in 4 hours\n10.0 minutes an epoch: as given\n"),
        ("time-to-epochs --hours 0.1 --minutes-per-epoch 10", "0 epochs in 0.1 hours\n"),
        ("epochs_to_time --epochs 50 --minutes_per_epoch 10", "8.33 hours for 50 epochs\n"),
        (
            "budget_table --min_nodes 2 --max_nodes 5 --minutes_per_epoch 30",
            "| nodes | 30.0m | 1.0h | 2.0h | 4.0h | 8.0h | 1.0d |\n|--:|--:|--:|--:|--:|--:|--:|\n\
             | 2 | 2 | 4 | 8 | 16 | 32 | 96 |\n| 4 | 4 | 8 | 16 | 32 | 64 | 192 |\n",
        ),
        (
            "slurm_settings --hours 8 --nodes 4 --minutes_per_epoch 30",
            "64 epochs on 4 nodes in 8 hours, time limit 10 hours\n30.0 minutes an epoch: as given\n\
             Frontier gives 4 nodes 02:00:00 at most: the job is requeued and goes on, 5 times in all\n",
        ),
    ] {
        let (code, said) = budget(dir.path(), line);
        assert!(code == Some(0) && said.starts_with(first), "{line}: {said}");
    }
    let (_, said) = budget(dir.path(), "slurm-settings --hours 1.5 --nodes 4 --minutes-per-epoch 30");
    let submit = "sbatch -N 4 -t 02:00:00 submit_frontier.sh --config-name base --time-budget 1.5\n";
    assert!(said.ends_with(submit), "{said}");
    // What it suggests is accepted.
    let line = said.lines().find_map(|l| l.strip_prefix("perfrun ")).unwrap().to_owned();
    let output = perfrun(dir.path(), &line);
    assert_eq!(output.status.code(), Some(0), "{line}: {}", text(&output.stderr));
}

#[test]
fn the_calculator_says_what_it_lacks_and_what_an_estimate_rests_on() {
    let dir = tempfile::tempdir().unwrap();
    for (line, why) in [
        ("time-to-epochs --hours 0 --minutes-per-epoch 10", "expected a number above 0"),
        ("time-to-epochs --hours 4", "expected --samples N, or a data set to count them in"),
        ("time-to-epochs --hours 4 --config-name local --samples 3", "expected at least 4, those of a step, found 3"),
        ("slurm-settings --hours 0.1 --nodes 2 --minutes-per-epoch 30", "expected at least 0.25"),
        ("budget-table --min-nodes 40 --max-nodes 50 --minutes-per-epoch 3", "nodes: expected a range"),
    ] {
        let (code, said) = budget(dir.path(), line);
        assert!(code == Some(2) && said.contains(why), "{line}: {said}");
    }
    let hours = |line: &str| -> serde_json::Value {
        let (code, said) = budget(dir.path(), &format!("--config-name local epochs-to-time --epochs 8 {line} --json"));
        assert_eq!(code, Some(0), "{line}: {said}");
        serde_json::from_str(&said).unwrap()
    };
    let config =
        RunConfig::load(&perfrun::train::config::ConfigSource::Embedded, Some("local"), &[], &|_| None).unwrap();
    let step = config.step_flops().unwrap() as f64;
    let estimated = hours("--samples 400");
    assert!(estimated["basis"].as_str().unwrap().starts_with("estimated, at best"), "{estimated}");
    assert_eq!(estimated["flops_per_epoch"].as_f64(), Some(100.0 * step));
    // An earlier run of 2 s a step: 100 steps an epoch, 8 epochs.
    let log = dir.path().join("logs/local");
    std::fs::create_dir_all(&log).unwrap();
    let line = format!("{{\"event\":\"step\",\"seconds\":2.0,\"model_flops\":{step}}}\n");
    std::fs::write(log.join("metrics.jsonl"), line.repeat(5) + "{\"event\":\"start\"}\n" + &line.repeat(3)).unwrap();
    let measured = hours("--samples 400");
    assert!(measured["basis"].as_str().unwrap().starts_with("measured, the median of 6 steps"), "{measured}");
    assert!((measured["hours"].as_f64().unwrap() - 1600.0 / 3600.0).abs() < 1e-9, "{measured}");
    let shared = hours("--samples 400 --devices-per-node 4");
    assert!((shared["hours"].as_f64().unwrap() - 400.0 / 3600.0).abs() < 1e-9, "{shared}");
    assert!(shared["basis"].as_str().unwrap().contains("divided by 4 devices"), "{shared}");
}
