//! A save that is killed at every system call which changes a file: what is on the disk by then is all that is left.

use std::path::{Path, PathBuf};
use std::process::Command;

use perfrun::train::checkpoint::CheckpointStore;

use super::Sample;

/// The folder that the child saves into, and how it is told.
const FOLDER: &str = "PERFRUN_TEST_TRACED_FOLDER";

/// System calls that change files, folders or what of them is on the disk; those that a kernel does not know are ignored.
const CALLS: [&str; 19] = [
    "openat",
    "creat",
    "mkdir",
    "mkdirat",
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "syncfs",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
];

fn store(dir: &Path) -> CheckpointStore {
    CheckpointStore::new(dir, 1)
}

#[test]
#[ignore = "run as a child process by the other test of this file"]
fn child_that_saves_once() {
    let dir = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    // Epoch 1 is there; room is for one, so this save writes, publishes and removes.
    Sample::new(2).save(&mut store(&dir), "checkpoint_epoch_2").unwrap();
}

/// Runs the child under strace; whether it came to its end.
fn save(dir: &Path, injection: Option<(&str, usize)>) -> bool {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null"]);
    if let Some((call, when)) = injection {
        command.arg("-e").arg(format!("inject=?{call}:signal=SIGKILL:when={when}"));
    }
    command.arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "checkpoint::traced::child_that_saves_once"]);
    let output = command.env(FOLDER, dir).output().expect("strace is installed");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(injection.is_some() || output.status.success(), "strace cannot run the child: {text}");
    output.status.success()
}

#[test]
#[ignore = "needs strace; ci/run runs it"]
fn a_save_killed_at_any_system_call_leaves_the_old_or_the_new_checkpoint() {
    let untouched = tempfile::tempdir().unwrap();
    Sample::new(1).save(&mut store(untouched.path()), "checkpoint_epoch_1").unwrap();
    save(untouched.path(), None);
    let (mut kills, mut old) = (0, 0);
    for call in CALLS {
        for when in 1.. {
            let dir = tempfile::tempdir().unwrap();
            Sample::new(1).save(&mut store(dir.path()), "checkpoint_epoch_1").unwrap();
            let survived = save(dir.path(), Some((call, when)));
            let latest = store(dir.path()).latest().unwrap();
            assert!(latest.rejected.is_empty(), "{call} {when}: {:?}", latest.rejected);
            let checkpoint = latest.checkpoint.unwrap_or_else(|| panic!("{call} {when}: nothing is left"));
            let step = checkpoint.step();
            assert!(Sample::new(step).is(&checkpoint), "{call} {when}: step {step} has other numbers");
            // The next save finds its way past whatever lies around.
            Sample::new(3).save(&mut store(dir.path()), "checkpoint_epoch_3").unwrap();
            let next = store(dir.path()).latest().unwrap().checkpoint.unwrap();
            assert!(Sample::new(3).is(&next), "{call} {when}");
            if survived {
                assert_eq!(step, 2, "{call} {when}: the save came to its end");
                break;
            }
            kills += 1;
            old += usize::from(step == 1);
        }
    }
    println!("{kills} kills, {old} of them before the new checkpoint was published");
    assert!(old > 0 && kills > old, "{kills} kills, {old} before the new checkpoint was published");
}
