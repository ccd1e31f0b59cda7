//! Job scripts, run by a simulated queue: `srun`, `scontrol`, `module` and `sbcast` are scripts of a few lines, signals and kills
//! are real.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::perfrun::{perfrun, text};
use crate::tiny;

/// More than a thousand steps: enough to be interrupted many times.
const LONG: &[&str] = &["epochs: 48", "log_frequency: 1"];

const SRUN: &str = r#"#!/bin/bash
echo "srun $*" >> "$SIM/calls"
while [[ ${1-} == --* ]]; do shift; done
"$@" &
task=$!
echo "$task" > "$SIM/task"
trap 'kill -TERM "$task"' TERM
wait "$task"; code=$?
while kill -0 "$task" 2>/dev/null; do wait "$task"; code=$?; done
exit "$code"
"#;

const SCONTROL: &str = r#"#!/bin/bash
echo "scontrol $*" >> "$SIM/calls"
case $1 in
    requeue) [[ $2 == "$SLURM_JOB_ID" ]] && touch "$SIM/requeued" ;;
    show) printf 'node1\nnode2\n' ;;
esac
"#;

const MODULE: &str = "#!/bin/bash\necho \"module $*\" >> \"$SIM/calls\"\n";

/// What happens to a job.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Nothing.
    Runs,
    /// The step gets USR1 after so many of its steps, as `--signal` sends it.
    Warned(usize),
    /// The shell gets TERM, and everything KILL after the grace.
    Preempted(usize),
    /// Everything gets KILL: the node dies.
    Dies(usize),
    /// The limit comes after so many seconds.
    Limited(u64),
}

/// Puts the programs of the queue into `bin`.
pub(crate) fn install(bin: &Path) {
    for (name, text) in [("srun", SRUN), ("scontrol", SCONTROL), ("module", MODULE)] {
        let path = bin.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

struct Queue(tempfile::TempDir);

impl Queue {
    fn new() -> Queue {
        let dir = tempfile::tempdir().unwrap();
        tiny::write_data(dir.path(), 40);
        tiny::write_config(dir.path(), "job", LONG);
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        install(&dir.path().join("bin"));
        Queue(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The file of a script that perfrun writes for these flags.
    fn script(&self, flags: &str) -> PathBuf {
        let program = env!("CARGO_BIN_EXE_perfrun");
        let _ = std::fs::remove_file(self.path().join("job.sh"));
        let output = perfrun(self.path(), &format!("slurm --program {program} --out job.sh {flags}"));
        assert_eq!(output.status.code(), Some(0), "{flags}: {}", text(&output.stderr));
        let path = self.path().join("job.sh");
        let is_sound = Command::new("bash").arg("-n").arg(&path).status().unwrap().success();
        assert!(is_sound, "{flags}: bash does not read {}", std::fs::read_to_string(&path).unwrap());
        path
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    fn start(&self, script: &Path, words: &[&str], restarts: usize, limit: Option<u64>) -> Child {
        let out = std::fs::OpenOptions::new().create(true).append(true).open(self.path().join("job.out")).unwrap();
        let search = format!("{}:{}", self.path().join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(script).args(words).current_dir(self.path()).process_group(0).stdin(Stdio::null());
        command.stdout(out.try_clone().unwrap()).stderr(out).env("PATH", search).env("SIM", self.path());
        command.env("SLURM_JOB_ID", "77").env("SLURM_JOB_NUM_NODES", "1").env("SLURM_JOB_NODELIST", "node[1-2]");
        command.env("TMPDIR", self.path()).env_remove("SLURM_JOB_END_TIME").env_remove("SLURM_RESTART_COUNT");
        if restarts > 0 {
            command.env("SLURM_RESTART_COUNT", restarts.to_string());
        }
        if let Some(limit) = limit {
            let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + limit;
            command.env("SLURM_JOB_END_TIME", end.to_string());
        }
        command.spawn().unwrap()
    }

    /// Waits until the job's output has `lines` more lines that begin with `prefix` than `before`; `false` if it ends first.
    fn wait_for(&self, child: &mut Child, prefix: &str, lines: usize) -> bool {
        loop {
            let found = self.read("job.out").lines().filter(|l| l.starts_with(prefix)).count();
            if found >= lines {
                return true;
            }
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Submits a job that the queue starts again as it is asked to, with a fate each time and none after those. The exit code
    /// of the last start, and how often it was started.
    fn submit(&self, script: &Path, words: &[&str], fates: &[Fate]) -> (Option<i32>, usize) {
        let requeues_itself = std::fs::read_to_string(script).unwrap().contains("#SBATCH --requeue");
        for restarts in 0.. {
            assert!(restarts < 20, "{}", self.read("job.out"));
            let fate = fates.get(restarts).copied().unwrap_or(Fate::Runs);
            let steps = |n: usize| n + self.read("job.out").lines().filter(|l| l.starts_with("step ")).count();
            let stops_at = match fate {
                Fate::Warned(n) | Fate::Preempted(n) | Fate::Dies(n) => Some(steps(n)),
                _ => None,
            };
            let limit = if let Fate::Limited(seconds) = fate { Some(seconds) } else { None };
            let mut child = self.start(script, words, restarts, limit);
            let group = Pid::from_child(&child);
            let is_alive = stops_at.is_some_and(|n| self.wait_for(&mut child, "step ", n));
            let mut is_taken = false;
            if is_alive {
                match fate {
                    Fate::Warned(_) => {
                        let task = self.read("task").trim().parse().unwrap();
                        let _ = kill_process(Pid::from_raw(task).unwrap(), Signal::USR1);
                    }
                    Fate::Preempted(_) => {
                        kill_process(group, Signal::TERM).unwrap();
                        is_taken = self.wait_for(
                            &mut child,
                            "preempted: saved",
                            1 + restarts_of(&self.read("job.out"), "preempted"),
                        );
                        let _ = kill_process_group(group, Signal::KILL);
                    }
                    _ => {
                        is_taken = true;
                        let _ = kill_process_group(group, Signal::KILL);
                    }
                }
            }
            let status = child.wait().unwrap();
            let asked = std::fs::remove_file(self.path().join("requeued")).is_ok();
            if !(asked || is_taken && requeues_itself) {
                return (status.code().or(status.signal()), restarts + 1);
            }
        }
        unreachable!("the loop returns")
    }

    fn weights(&self, folder: &str) -> Vec<Vec<u8>> {
        let at = self.path().join(folder).join("final_checkpoint");
        perfrun::train::checkpoint::verify(&at).unwrap();
        ["model.safetensors", "optimizer.safetensors"].map(|f| std::fs::read(at.join(f)).unwrap()).to_vec()
    }
}

fn restarts_of(out: &str, prefix: &str) -> usize {
    out.lines().filter(|l| l.starts_with(prefix)).count()
}

#[test]
fn a_job_that_is_warned_preempted_killed_and_limited_ends_with_the_bytes_of_one_that_is_not() {
    let queue = Queue::new();
    let whole = perfrun(queue.path(), "train --config job.yaml --run-name whole");
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stderr));
    let script = queue.script("--config job.yaml --config-name job --warn-seconds 30");
    let fates = [
        Fate::Warned(10),
        Fate::Preempted(20),
        Fate::Dies(70),
        Fate::Dies(15),
        Fate::Preempted(3),
        Fate::Warned(1),
        // The last: a fast machine may be done before the limit comes.
        Fate::Limited(1),
    ];
    let (code, starts) = queue.submit(&script, &[], &fates);
    assert_eq!(code, Some(0), "{}", queue.read("job.out"));
    assert!(starts >= fates.len(), "{starts} starts");
    assert!(queue.weights("checkpoints/job") == queue.weights("checkpoints/whole"), "the job ends with other weights");
    let asked = restarts_of(&queue.read("calls"), "scontrol requeue 77");
    // A preempted or dead job is Slurm's to requeue.
    assert!(asked >= 2 && asked + 4 <= starts, "{asked} of {starts}: {}", queue.read("calls"));
    assert_eq!(restarts_of(&queue.read("job.out"), "preempted: saved"), 2);
}

#[test]
fn what_fails_is_not_requeued_nor_what_has_used_its_budget_nor_what_was_requeued_too_often() {
    let queue = Queue::new();
    let script = queue.script("--config job.yaml --config-name job --warn-seconds 30 --requeues 2");
    let (code, starts) = queue.submit(&script, &["--config", "missing.yaml"], &[]);
    assert_eq!((code, starts), (Some(2), 1), "{}", queue.read("job.out"));
    let words = ["--config", "job.yaml", "--config_name", "job"];
    let budget = [&words[..], &["--flops_budget", "1e8"]].concat();
    let (code, starts) = queue.submit(&script, &budget, &[Fate::Warned(2)]);
    assert_eq!(code, Some(0), "{}", queue.read("job.out"));
    assert!(starts <= 2 && queue.read("job.out").contains("the FLOPs budget is used up"), "{}", queue.read("job.out"));
    let often = [&words[..], &["--run-name", "often"]].concat();
    let (code, starts) = queue.submit(&script, &often, &[Fate::Warned(1), Fate::Warned(1), Fate::Warned(1)]);
    assert_eq!((code, starts), (Some(75), 3), "{}", queue.read("job.out"));
}

#[test]
fn scripts_of_every_site_are_read_by_bash_and_say_what_the_site_wants() {
    let queue = Queue::new();
    for (flags, wanted) in [
        (
            "--site frontier --nodes 4 --account abc123",
            &[
                "#SBATCH --nodes=4",
                "#SBATCH --ntasks-per-node=1",
                "#SBATCH --cpus-per-task=56",
                "#SBATCH --account=abc123",
                "#SBATCH --core-spec=8",
                "#SBATCH --network=disable_rdzv_get",
                "#SBATCH --signal=USR1@300",
                "#SBATCH --requeue",
                "#SBATCH --open-mode=append",
                "module load rocm",
                "module load rccl-net-plugin",
                "local_disk=/mnt/bb/$USER/perfrun-$SLURM_JOB_ID",
                "export FI_MR_CACHE_MONITOR=kdreg2",
                "export FI_CXI_RDZV_PROTO=alt_read",
                "srun --ntasks-per-node=1 --cpus-per-task=56 --gpus-per-task=8",
                "train --device hip --devices 8 --num-nodes 4 --continue --budget-is-end \"$@\" --stop-at \"$stop_at\"",
            ][..],
        ),
        (
            "--site frontier --layout device",
            &[
                "#SBATCH --ntasks-per-node=8",
                "srun --ntasks-per-node=8 --cpus-per-task=7 --gpus-per-task=1 --gpu-bind=closest",
                "train --device hip --devices 8 --num-nodes 1 ",
            ],
        ),
        ("--site frontier --layout single", &["#SBATCH --cpus-per-task=7", "train --device hip --continue"]),
        (
            "--site perlmutter --account m1234_g --layout device --constraint gpu&hbm80g",
            &[
                "#SBATCH --ntasks-per-node=4",
                "#SBATCH --cpus-per-task=32",
                "#SBATCH --constraint=gpu&hbm80g",
                "#SBATCH --gpus-per-node=4",
                "--gpu-bind=none",
                "module load cudatoolkit",
                "train --device cuda --devices 4 ",
            ],
        ),
        ("--devices-per-node 2 --module none --requeues 0", &["#SBATCH --gpus-per-node=2", "#SBATCH --no-requeue"]),
    ] {
        let script = std::fs::read_to_string(queue.script(flags)).unwrap();
        for line in wanted {
            assert!(script.contains(line), "{flags}: no `{line}` in\n{script}");
        }
        assert_eq!(script.contains("scontrol requeue"), !flags.contains("--requeues 0"), "{flags}");
        assert!(!script.contains("--signal=B:"), "{flags}: the shell would get the signal, and the steps not");
    }
}

#[test]
fn what_a_site_refuses_is_refused_before_and_no_word_reaches_a_shell() {
    let queue = Queue::new();
    for (flags, why) in [
        ("--site frontier --time 02:00:01", "expected at most 02:00:00 in batch, up to 91 nodes, found 02:00:01"),
        ("--site frontier --nodes 184 --time 13:00:00", "expected at most 12:00:00"),
        ("--site frontier --nodes 65 --partition extended", "64 nodes at most"),
        ("--site perlmutter --account m1234", "ends in _g"),
        ("--layout single --nodes 2", "nodes: expected 1"),
        ("--time 00:05:00", "warn-seconds: expected at most half"),
        ("--account $(here)", "letters, digits"),
        ("--time 2", "HH:MM:SS"),
    ] {
        let output = perfrun(queue.path(), &format!("slurm {flags}"));
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(why), "{flags}: {said}");
    }
    let hostile = "it's $(touch hacked) `touch hacked`\n;touch hacked";
    let program = env!("CARGO_BIN_EXE_perfrun");
    let mut command = Command::new(program);
    command.args(["slurm", "--program", program, "--warn-seconds", "30", "--out", "hostile.sh"]);
    let output = command.args(["--config-name", hostile]).current_dir(queue.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (code, _) = queue.submit(&queue.path().join("hostile.sh"), &[], &[]);
    assert_eq!(code, Some(2), "no such configuration: {}", queue.read("job.out"));
    assert!(!queue.path().join("hacked").exists());
}
