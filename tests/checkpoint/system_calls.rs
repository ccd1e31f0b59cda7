//! Death at every system call of a save, by strace's fault injection. `ci/strace-checkpoint` runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use perfrun::train::checkpoint::{Checkpoint, CheckpointStore};

use super::Sample;
use super::disk::quick_store;

/// The calls that a save is made of.
const CALLS: [&str; 13] = [
    "mkdir",
    "openat",
    "write",
    "fsync",
    "close",
    "renameat2",
    "unlink",
    "rmdir",
    "flock",
    "ftruncate",
    "statfs",
    "statx",
    "getdents64",
];
/// The folder that the child process saves into.
const FOLDER: &str = "PERFRUN_TEST_CHECKPOINT_FOLDER";

#[test]
#[ignore = "run as a child process by death_at_any_system_call_loses_nothing"]
fn child_that_saves_once() {
    let dir = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    Sample::new(3).save(&mut CheckpointStore::new(dir, 1), "checkpoint_step_3").unwrap();
}

/// Whether the child was killed at its `when`-th call of `call`.
fn killed_at(call: &str, when: usize, dir: &Path) -> bool {
    let status = Command::new("strace")
        // `?`: some machines have no call of that name (mkdir is mkdirat on aarch64).
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace=?{call}")])
        .args(["-e", &format!("inject=?{call}:signal=KILL:when={when}"), "--"])
        .arg(std::env::current_exe().unwrap())
        // One test thread runs on the main thread, so there is one count of calls.
        .args(["--ignored", "--exact", "--test-threads=1", "checkpoint::system_calls::child_that_saves_once"])
        .env(FOLDER, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("strace is not there");
    !status.success()
}

#[test]
#[ignore = "needs strace: ci/strace-checkpoint runs it"]
fn death_at_any_system_call_loses_nothing() {
    let (mut kills, mut during, mut published) = (0, 0, 0);
    for call in CALLS {
        for when in 1.. {
            assert!(when < 1000, "{call}: the child never ends by itself; may strace be used here?");
            let dir = tempfile::tempdir().unwrap();
            for step in [1, 2] {
                Sample::new(step).save(&mut quick_store(dir.path(), 0), &format!("checkpoint_step_{step}")).unwrap();
            }
            let killed = killed_at(call, when, dir.path());
            let context = format!("killed at {call} number {when}");
            let latest = CheckpointStore::new(dir.path(), 1).latest().unwrap();
            assert!(latest.rejected.is_empty(), "{context}: {:?}", latest.rejected);
            let newest = latest.checkpoint.unwrap_or_else(|| panic!("{context}: nothing left"));
            assert!(newest.step() >= 2 && Sample::new(newest.step()).is(&newest), "{context}");
            if !killed {
                assert_eq!(newest.step(), 3, "{context}: the child failed");
                break;
            }
            kills += 1;
            during += usize::from(names(dir.path()).iter().any(|n| n.starts_with(".saving-")));
            published += usize::from(newest.step() == 3);
            let mut store = quick_store(dir.path(), 1);
            let saved = Sample::new(4).save(&mut store, "checkpoint_step_4").unwrap();
            assert!(Sample::new(4).is(&Checkpoint::open(saved.path).unwrap()), "{context}");
            assert_eq!(names(dir.path()), [".lock", "checkpoint_step_4"], "{context}");
        }
    }
    println!("{kills} kills, {during} while writing, {published} after the rename, 0 checkpoints lost");
    assert!(during >= 20 && published >= 5, "{kills} kills, {during} while writing, {published} after the rename");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
