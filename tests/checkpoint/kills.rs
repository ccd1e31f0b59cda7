//! Death and errors at every file operation of a save, and real processes that are killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use perfrun::train::checkpoint::{Checkpoint, CheckpointStore, Disk};

use super::disk::{Fault, FaultyDisk, quick_store};
use super::{Dice, Sample, files};

/// A store's history and the save that is disturbed: each row saves `before`, then `name`.
struct Scene {
    before: &'static [&'static str],
    name: &'static str,
    max: usize,
    exchanges: bool,
}

const SCENES: [Scene; 5] = [
    Scene { before: &["checkpoint_epoch_1"], name: "checkpoint_epoch_2", max: 3, exchanges: true },
    Scene {
        before: &["checkpoint_epoch_1", "checkpoint_epoch_2"],
        name: "checkpoint_epoch_3",
        max: 1,
        exchanges: true,
    },
    Scene { before: &["best_checkpoint"], name: "best_checkpoint", max: 3, exchanges: true },
    Scene { before: &["best_checkpoint"], name: "best_checkpoint", max: 3, exchanges: false },
    Scene { before: &["checkpoint_step_1", "final_checkpoint"], name: "final_checkpoint", max: 1, exchanges: false },
];

impl Scene {
    fn prepare(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (i, name) in self.before.iter().enumerate() {
            Sample::new(i as u64).save(&mut quick_store(dir.path(), 0), name).unwrap();
        }
        dir
    }

    fn disk(&self, fault: Fault) -> FaultyDisk {
        let disk = FaultyDisk::new(fault);
        if self.exchanges { disk } else { disk.without_exchange() }
    }

    /// Runs the save on a disk with a fault; whether it succeeded, and the disk.
    fn run(&self, dir: &Path, fault: Fault) -> (bool, FaultyDisk) {
        let disk = self.disk(fault);
        let mut store = CheckpointStore::on(Arc::new(disk.clone()), dir, self.max);
        (Sample::new(self.before.len() as u64).save(&mut store, self.name).is_ok(), disk)
    }

    /// After whatever happened: every checkpoint verifies and is of its step, the newest is the last or the one before,
    /// and the next save leaves nothing but checkpoints.
    fn check(&self, dir: &Path, context: &str) {
        let last = self.before.len() as u64;
        let store = CheckpointStore::new(dir, self.max);
        let latest = store.latest().unwrap();
        assert!(latest.rejected.is_empty(), "{context}: {:?}", latest.rejected);
        let newest = latest.checkpoint.unwrap_or_else(|| panic!("{context}: no checkpoint"));
        assert!(newest.step() + 1 >= last, "{context}: newest is {}", newest.step());
        for found in store.list().unwrap() {
            let checkpoint = Checkpoint::open(&found.path).unwrap();
            assert!(Sample::new(checkpoint.step()).is(&checkpoint), "{context}: {}", found.path.display());
        }
        let mut store = quick_store(dir, self.max);
        let saved = Sample::new(last + 1).save(&mut store, self.name).unwrap();
        assert!(saved.warnings.is_empty(), "{context}: {:?}", saved.warnings);
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.retain(|n| n.to_string_lossy().starts_with('.'));
        assert_eq!(names, [".lock"], "{context}");
    }
}

#[test]
fn death_at_any_operation_loses_nothing() {
    for (number, scene) in SCENES.iter().enumerate() {
        let undisturbed = scene.prepare();
        let (succeeded, disk) = scene.run(undisturbed.path(), Fault::None);
        assert!(succeeded && disk.done() > 20, "{}", disk.log());
        for at in 0..disk.done() {
            let dir = scene.prepare();
            scene.run(dir.path(), Fault::Die { at });
            scene.check(dir.path(), &format!("scene {number}, death at {at}"));
        }
    }
}

#[test]
fn an_error_at_any_operation_is_reported_and_loses_nothing() {
    const EIO: i32 = 5;
    const EROFS: i32 = 30;
    const ENOSPC: i32 = 28;
    for (number, scene) in SCENES.iter().enumerate() {
        let undisturbed = scene.prepare();
        let (_, disk) = scene.run(undisturbed.path(), Fault::None);
        let log = disk.log();
        let published = log.lines().position(|l| l == format!("rename {}", scene.name)).unwrap_or(usize::MAX);
        let exchanged = log.lines().position(|l| l == format!("exchange {}", scene.name)).unwrap_or(usize::MAX);
        for at in 0..disk.done() {
            let errno = [EIO, ENOSPC, EROFS][at % 3];
            let dir = scene.prepare();
            let (succeeded, _) = scene.run(dir.path(), Fault::Fail { at, errno });
            let what = log.lines().nth(at).unwrap();
            // One listing (that of leftovers) and everything up to the folder's sync after the rename must succeed.
            let must_fail = at <= published.min(exchanged) + 1;
            assert!(!(must_fail && succeeded), "scene {number}: error at {at} ({what}) was not reported");
            scene.check(dir.path(), &format!("scene {number}, errno {errno} at {at} ({what})"));
        }
    }
}

#[test]
fn a_failed_save_leaves_every_byte_of_the_earlier_checkpoints() {
    let scene = &SCENES[2];
    let undisturbed = scene.prepare();
    let before: Vec<_> = files(&undisturbed.path().join("best_checkpoint")).into_iter().map(|f| f.1).collect();
    let (_, disk) = scene.run(undisturbed.path(), Fault::None);
    let writes: Vec<_> = disk.log().lines().enumerate().filter(|(_, l)| l.starts_with("write ")).map(|l| l.0).collect();
    assert!(writes.len() >= 12);
    for at in writes {
        let dir = scene.prepare();
        let (succeeded, _) = scene.run(dir.path(), Fault::Fail { at, errno: 28 });
        assert!(!succeeded);
        let after: Vec<_> = files(&dir.path().join("best_checkpoint")).into_iter().map(|f| f.1).collect();
        assert_eq!(after, before);
    }
}

#[test]
fn everything_is_on_the_disk_before_the_one_rename_and_the_rename_before_the_end() {
    let scene = &SCENES[0];
    let dir = scene.prepare();
    let (_, disk) = scene.run(dir.path(), Fault::None);
    let log = disk.log();
    let lines: Vec<_> = log.lines().collect();
    let at = |line: &str| lines.iter().position(|l| *l == line).unwrap_or_else(|| panic!("{line} not in\n{log}"));
    let publish = at("rename checkpoint_epoch_2");
    for file in ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"] {
        let last_write = lines.iter().rposition(|l| *l == format!("write {file}")).unwrap();
        assert!(last_write < at(&format!("sync {file}")) && at(&format!("sync {file}")) < publish, "{log}");
    }
    assert!(lines[..publish].iter().any(|l| l.starts_with("sync_folder .saving-")), "{log}");
    assert!(lines[publish + 1].starts_with("sync_folder"), "{log}");
    assert_eq!(lines.iter().filter(|l| l.starts_with("rename")).count(), 1, "{log}");
}

#[test]
fn the_folder_of_the_store_is_on_the_disk_with_all_that_lead_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Fault::None);
    let mut store = CheckpointStore::on(Arc::new(disk.clone()), dir.path().join("runs/base"), 3);
    Sample::new(0).save(&mut store, "checkpoint_epoch_1").unwrap();
    let log = disk.log();
    let top = dir.path().file_name().unwrap().to_string_lossy().into_owned();
    let expected = format!("create_folders base\nsync_folder runs\nsync_folder {top}\n");
    assert!(log.contains(&expected), "{log}");
    Sample::new(1).save(&mut store, "checkpoint_epoch_2").unwrap();
    assert_eq!(disk.log().matches("create_folders").count(), 1);
}

#[test]
fn a_full_disk_is_refused_before_the_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Fault::None).full();
    let mut store = CheckpointStore::on(Arc::new(disk.clone()), dir.path(), 3);
    let error = Sample::new(0).save(&mut store, "checkpoint_epoch_1").unwrap_err().to_string();
    assert!(error.contains("bytes are needed, 1000 are free: free some, lower max_checkpoints"), "{error}");
    assert!(!disk.log().contains("create_file"), "{}", disk.log());
}

#[test]
fn two_runs_cannot_save_into_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = CheckpointStore::new(dir.path(), 3);
    Sample::new(0).save(&mut first, "checkpoint_epoch_1").unwrap();
    let mut second = CheckpointStore::new(dir.path(), 3);
    let error = Sample::new(1).save(&mut second, "checkpoint_epoch_2").unwrap_err().to_string();
    assert!(error.contains(&format!("process {} on ", std::process::id())), "{error}");
    assert!(error.ends_with("give this run another checkpoint_dir, or stop that one"), "{error}");
    drop(first);
    Sample::new(1).save(&mut second, "checkpoint_epoch_2").unwrap();
}

#[test]
fn what_is_no_checkpoint_is_neither_replaced_nor_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = CheckpointStore::new(dir.path(), 1);
    let mine = dir.path().join("best_checkpoint");
    std::fs::create_dir(&mine).unwrap();
    std::fs::write(mine.join("thesis.tex"), "years").unwrap();
    let error = Sample::new(0).save(&mut store, "best_checkpoint").unwrap_err().to_string();
    assert!(error.ends_with("found a folder with \"thesis.tex\" in it: move it away"), "{error}");
    std::fs::write(dir.path().join("final_checkpoint"), "a file").unwrap();
    let error = Sample::new(0).save(&mut store, "final_checkpoint").unwrap_err().to_string();
    assert!(error.ends_with("found a file: move it away"), "{error}");
    std::os::unix::fs::symlink(&mine, dir.path().join("checkpoint_epoch_1")).unwrap();
    let error = Sample::new(0).save(&mut store, "checkpoint_epoch_1").unwrap_err().to_string();
    assert!(error.ends_with("found a link or device: move it away"), "{error}");
    assert_eq!(std::fs::read_to_string(mine.join("thesis.tex")).unwrap(), "years");
}

/// The folder that the child process saves into, and how it is told.
const FOLDER: &str = "PERFRUN_TEST_CHECKPOINT_FOLDER";

#[test]
#[ignore = "run as a child process by two_hundred_random_kills_lose_nothing"]
fn child_that_saves_until_it_is_killed() {
    let dir = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let mut step = CheckpointStore::new(&dir, 2).latest().unwrap().checkpoint.unwrap().step();
    loop {
        step += 1;
        let disk = super::disk::Reporting(Disk);
        let mut store = CheckpointStore::on(Arc::new(disk), &dir, 2);
        let name =
            ["final_checkpoint", "best_checkpoint", &format!("checkpoint_step_{step}")][step as usize % 3].to_string();
        Sample::new(step).save(&mut store, &name).unwrap();
        println!("\nsaved {step}");
    }
}

/// Starts the child, waits until it has reported `operations`, kills it; the last save that it reported as done.
fn start_and_kill(dir: &Path, operations: usize) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "checkpoint::kills::child_that_saves_until_it_is_killed"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut seen, mut saved) = (0, 0);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut note = |line: &str| {
        if let Some(step) = line.strip_prefix("saved ") {
            saved = step.parse().unwrap();
        }
    };
    while seen < operations {
        let line = lines.next().expect("the child ended by itself");
        seen += usize::from(line.starts_with("op "));
        note(&line);
    }
    child.kill().unwrap();
    lines.for_each(|line| note(&line));
    child.wait().unwrap();
    saved
}

#[test]
fn two_hundred_random_kills_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    Sample::new(0).save(&mut CheckpointStore::new(dir.path(), 2), "final_checkpoint").unwrap();
    let mut dice = Dice::new(20);
    let mut newest = 0;
    for kill in 0..200 {
        let saved = start_and_kill(dir.path(), 1 + dice.below(90));
        let latest = CheckpointStore::new(dir.path(), 2).latest().unwrap();
        assert!(latest.rejected.is_empty(), "kill {kill}: {:?}", latest.rejected);
        let checkpoint = latest.checkpoint.unwrap();
        assert!(Sample::new(checkpoint.step()).is(&checkpoint), "kill {kill}");
        newest = saved.max(newest);
        assert!(checkpoint.step() >= newest, "kill {kill}: {newest} was reported, {} is there", checkpoint.step());
        newest = checkpoint.step();
    }
    let last = newest + 1;
    let mut store = CheckpointStore::new(dir.path(), 2);
    let saved = Sample::new(last).save(&mut store, &format!("checkpoint_step_{last}")).unwrap();
    assert!(saved.warnings.is_empty(), "{:?}", saved.warnings);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    let hidden = left.iter().filter(|n| n.to_string_lossy().starts_with('.')).count();
    assert!(hidden == 1 && left.len() <= 1 + 2 + 2, "{left:?}");
}
