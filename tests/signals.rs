//! Training as a process: signals, kills and the stop file, and what a resumed process leaves.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use perfrun::data::sherlock::synthetic::SyntheticSherlock;
use perfrun::rng::Stream;
use perfrun::train::checkpoint::Checkpoint;
use perfrun::train::config::{ConfigSource, SherlockRun};
use perfrun::train::resume::state_of;
use rustix::process::{Pid, Signal, kill_process};

use crate::tiny;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        // 16 training samples, 8 steps of 2 an epoch.
        tiny::write_data(dir.path(), 9);
        std::fs::remove_file(dir.path().join("data/train/weather_2012.h5")).unwrap();
        tiny::write_config(dir.path(), "run", &["epochs: 4", "log_frequency: 1", "max_checkpoints: 2"]);
        Place(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn train(&self, name: &str, more: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_perfrun"))
            .args(["train", "--config", "run.yaml", "--run-name", name])
            .args(more)
            .current_dir(self.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn checkpoint(&self, name: &str) -> PathBuf {
        self.path().join("checkpoints").join(name).join("final_checkpoint")
    }
}

/// Reads the process's lines until one begins with `prefix`; `false` if it ends before.
fn wait_for(lines: &mut impl Iterator<Item = std::io::Result<String>>, prefix: &str) -> bool {
    lines.by_ref().map_while(Result::ok).any(|l| l.starts_with(prefix))
}

fn weights(path: &Path) -> Vec<Vec<u8>> {
    ["model.safetensors", "optimizer.safetensors"].map(|f| std::fs::read(path.join(f)).unwrap()).to_vec()
}

/// Lets the process go on to its end and gives the exit code.
fn finish(mut child: Child, lines: impl Iterator<Item = std::io::Result<String>>) -> Option<i32> {
    lines.for_each(drop);
    child.wait().unwrap().code()
}

#[test]
fn a_run_that_is_killed_and_stopped_at_random_ends_with_the_bytes_of_one_that_was_not() {
    let place = Place::new();
    let mut whole = place.train("whole", &[]);
    let lines = BufReader::new(whole.stderr.take().unwrap()).lines();
    assert_eq!(finish(whole, lines), Some(0));
    let want = weights(&place.checkpoint("whole"));
    let pick = Stream::new(7, 11);
    let signals = [Signal::TERM, Signal::KILL, Signal::INT, Signal::USR1];
    let mut resumable = false;
    for (i, signal) in signals.into_iter().chain(signals).enumerate() {
        let more: &[&str] = if resumable { &["--resume"] } else { &[] };
        let mut child = place.train("broken", more);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Two to five steps further, so that a run of 32 steps lives long enough for eight interruptions.
        let mut alive = true;
        for _ in 0..2 + pick.below(i as u64, 4) {
            alive &= wait_for(&mut lines, "step ");
        }
        if alive {
            let _ = kill_process(Pid::from_child(&child), signal);
        }
        let code = finish(child, lines);
        let expected = if signal == Signal::KILL { None } else { Some(75) };
        assert!(code == expected || code == Some(0), "{signal:?} ended with {code:?}");
        // A kill before the first checkpoint leaves nothing to resume.
        resumable |= has_checkpoint(&place.path().join("checkpoints/broken"));
    }
    let more: &[&str] = if resumable { &["--resume"] } else { &[] };
    let mut last = place.train("broken", more);
    let lines = BufReader::new(last.stderr.take().unwrap()).lines();
    assert_eq!(finish(last, lines), Some(0));
    assert!(weights(&place.checkpoint("broken")) == want, "the interrupted run ends with other weights");
}

fn has_checkpoint(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.filter_map(Result::ok).any(|e| !e.file_name().to_string_lossy().starts_with('.'))
}

/// A run of the autoencoder in `dir`, 60 epochs of 2 steps, each with a checkpoint; it lives long enough for ten kills.
fn autoencoder(dir: &Path, name: &str, resume: bool) -> Child {
    let place = |key: &str| format!("{key}={name}/{key}");
    Command::new(env!("CARGO_BIN_EXE_perfrun"))
        .args([
            "train",
            "sherlock-tiny",
            "--data",
            "film",
            "--set",
            &place("checkpoint_dir"),
            "--set",
            &place("log_dir"),
        ])
        .args(["--set", "num_epochs=60", "--set", "save_every=1", "--set", "log_frequency=1", "--set", "num_workers=1"])
        .args(["--set", "batch_size=32"])
        .args(["--set", "early_stopping_patience=100", "--max-checkpoints", "2"])
        .args(if resume { &["--continue"][..] } else { &[] })
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn an_autoencoder_that_is_killed_at_ten_random_moments_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = SherlockRun::load(&ConfigSource::Embedded, Some("sherlock-tiny"), &[]).unwrap().model.sizes();
    let (height, width, mels, text, voxels) = (sizes.height, sizes.width, sizes.mels, sizes.text, sizes.voxels);
    let film = SyntheticSherlock { height, width, mels, text, voxels, subjects: 1, trs: 80, ..Default::default() };
    film.write(&dir.path().join("film"), |_, _, _| {}).unwrap();
    let mut whole = autoencoder(dir.path(), "whole", false);
    let lines = BufReader::new(whole.stderr.take().unwrap()).lines();
    assert_eq!(finish(whole, lines), Some(0));
    let seed = 2310;
    let pick = Stream::new(seed, 5);
    let mut moments = Vec::new();
    for kill in 0..10 {
        let mut child = autoencoder(dir.path(), "broken", true);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // So many lines (steps, validations, saves), then a moment between two of them.
        let (seen, micros) = (1 + pick.below(2 * kill, 12), pick.below(2 * kill + 1, 20_000));
        let alive = (0..seen).all(|_| lines.next().is_some_and(|line| line.is_ok()));
        std::thread::sleep(std::time::Duration::from_micros(micros));
        let _ = kill_process(Pid::from_child(&child), Signal::KILL);
        assert!(alive && finish(child, lines).is_none(), "seed {seed}: kill {kill} found no run after {moments:?}");
        moments.push((seen, micros));
    }
    let mut last = autoencoder(dir.path(), "broken", true);
    let lines = BufReader::new(last.stderr.take().unwrap()).lines();
    assert_eq!(finish(last, lines), Some(0));
    println!("seed {seed}, killed after lines and microseconds {moments:?}");
    let ends = ["whole", "broken"].map(|name| dir.path().join(name).join("checkpoint_dir/final_checkpoint"));
    assert!(weights(&ends[0]) == weights(&ends[1]), "seed {seed}: other weights, killed at {moments:?}");
    let [whole, broken] = ends.map(|path| state_of(&Checkpoint::open(path).unwrap()).unwrap());
    assert_eq!((whole.position.history.len(), whole.progress), (60, broken.progress), "seed {seed}");
    assert_eq!(whole.position.history, broken.position.history, "seed {seed}: {moments:?}");
    assert_eq!(whole.position.since_best, broken.position.since_best, "seed {seed}: {moments:?}");
}

#[test]
fn a_stop_file_ends_a_run_in_a_verified_checkpoint() {
    let place = Place::new();
    let mut child = place.train("file", &["--stop-file", "enough"]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(wait_for(&mut lines, "step 3/"));
    std::fs::write(place.path().join("enough"), "").unwrap();
    assert_eq!(finish(child, lines), Some(75));
    let path = place.checkpoint("file");
    perfrun::train::checkpoint::verify(&path).unwrap();
    let mut again = place.train("file", &["--resume", "--stop-file", "enough"]);
    let lines = BufReader::new(again.stderr.take().unwrap()).lines();
    assert_eq!(finish(again, lines), Some(2), "a stop file that is there already is said, not obeyed");
}

#[test]
fn a_dry_run_writes_nothing() {
    let place = Place::new();
    let mut child = place.train("dry", &["--dry-run"]);
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(finish(child, lines), Some(0));
    assert!(!place.path().join("checkpoints").exists() && !place.path().join("logs").exists());
}
