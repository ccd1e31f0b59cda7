//! The text of a job script.
//!
//! What it does about time and signals. Before the limit Slurm sends USR1 to the steps (`--signal` without `B:`), and perfrun
//! watches the limit itself; either way it saves, ends with 75, and the script puts the job back into the queue. A preemption
//! sends TERM to the shell: that is handed to the step, and the shell then stays until Slurm takes it, because a job that ends
//! by itself is not requeued. A node that dies is requeued by Slurm (`--requeue`). What fails is never requeued.

use std::fmt::Write;

use super::QueueArgs;
use super::site::clock;

/// A job.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its name.
    pub(crate) name: String,
    /// Flags of `perfrun train` where the script's user gives none.
    pub(crate) words: Vec<String>,
    /// Several jobs at once, instead.
    pub(crate) array: Option<Array>,
    /// What is asked of the queue.
    pub(crate) queue: QueueArgs,
}

/// An array of jobs: one experiment of a sweep each.
#[derive(Debug)]
pub(crate) struct Array {
    /// The experiments' names.
    pub(crate) names: Vec<String>,
    /// What runs one: the words of perfrun before its name.
    pub(crate) command: Vec<String>,
}

/// `text` as a shell reads it back: in single quotes, unless it is plain.
pub(crate) fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn words(words: &[String]) -> String {
    words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ")
}

/// The script.
pub(crate) fn render(job: &Job) -> String {
    let mut text = header(job);
    text += &environment(job);
    text += &command(job);
    text += &ending(job.queue.requeues);
    text
}

fn header(job: &Job) -> String {
    let q = &job.queue;
    let mut lines = vec![format!("--job-name={}", job.name), format!("--nodes={}", q.nodes)];
    lines.push(format!("--ntasks-per-node={}", q.layout.tasks(q)));
    lines.extend(q.site.cores(q).map(|c| format!("--cpus-per-task={c}")));
    lines.push(format!("--time={}", clock(q.time)));
    lines.extend(q.account.as_ref().map(|a| format!("--account={a}")));
    lines.extend(q.site.options(q));
    lines.push(format!("--signal=USR1@{}", q.warn_seconds));
    lines.push(if q.requeues > 0 { "--requeue".into() } else { "--no-requeue".into() });
    lines.push("--open-mode=append".into());
    match &job.array {
        Some(array) => {
            lines.push(format!("--array=0-{}", array.names.len().saturating_sub(1)));
            lines.push("--output=%x-%A_%a.out".into());
        }
        None => lines.push("--output=%x-%j.out".into()),
    }
    let mut text = "#!/bin/bash\n".to_owned();
    for line in lines {
        let _ = writeln!(text, "#SBATCH {line}");
    }
    text
}

fn environment(job: &Job) -> String {
    let q = &job.queue;
    let mut text = "\nset -uo pipefail\n\n".to_owned();
    let modules = q.site.modules(q);
    if !modules.is_empty() {
        text += "# Modules\n";
        for module in &modules {
            let _ = writeln!(text, "module load {module}");
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "# Compiled kernels are kept on the node's own disk: the home folder is slow there, or cannot be written.\n\
         local_disk={}/perfrun-$SLURM_JOB_ID\n\
         export XDG_CACHE_HOME=$local_disk/cache\n\
         srun --ntasks=\"$SLURM_JOB_NUM_NODES\" --ntasks-per-node=1 mkdir -p \"$XDG_CACHE_HOME\" || exit 1\n\n",
        q.site.local_disk()
    );
    if q.nodes > 1 {
        text += "# The network between nodes\n\
                 MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)\n\
                 export MASTER_ADDR MASTER_PORT=3442\n";
        for variable in q.site.network() {
            let _ = writeln!(text, "export {variable}");
        }
        text.push('\n');
    }
    text
}

fn command(job: &Job) -> String {
    let q = &job.queue;
    let mut step = format!("srun --ntasks-per-node={}", q.layout.tasks(q));
    if let Some(cores) = q.site.cores(q) {
        let _ = write!(step, " --cpus-per-task={cores}");
    }
    let _ = write!(step, " {}", q.site.binding(q.layout, q.layout.devices(q)));
    // A task that ends with 75 must not take others with it that are still saving.
    step += " --kill-on-bad-exit=0 --wait=600";
    let mut text = String::new();
    let program = quoted(&q.program);
    let run = match &job.array {
        Some(array) => {
            let names: Vec<String> = array.names.iter().map(|n| quoted(n)).collect();
            let _ = writeln!(text, "names=({})", names.join(" "));
            format!("{program} {} \"${{names[$SLURM_ARRAY_TASK_ID]}}\"", words(&array.command))
        }
        None => {
            let devices = q.layout.tasks(q) * q.layout.devices(q);
            text += "# Flags of perfrun train that are given to this script replace these.\n";
            let _ = writeln!(text, "(($#)) || set -- {}", words(&job.words));
            let device = q.site.device().map_or(String::new(), |d| format!("--device {d} "));
            let spread = if devices * q.nodes > 1 {
                format!("--devices {devices} --num-nodes {} ", q.nodes)
            } else {
                String::new()
            };
            format!("{program} train {device}{spread}--continue --budget-is-end \"$@\"")
        }
    };
    let trap = if q.requeues > 0 { "preempted=1; " } else { "" };
    let flag = if q.requeues > 0 { "preempted=0\n" } else { "" };
    let _ = write!(
        text,
        "\n# The end that Slurm knows; where it does not tell, that of the limit above.\n\
         stop_at=${{SLURM_JOB_END_TIME:-$(($(date +%s) + {}))}}\n\n\
         {flag}{step} \\\n    {run} --stop-at \"$stop_at\" &\n\
         step=$!\n\
         trap '{trap}kill -TERM \"$step\" 2>/dev/null' TERM\n",
        q.time
    );
    text
}

/// What follows the step: `wait` returns early at each signal, so it waits until the step is gone.
fn ending(requeues: u32) -> String {
    let stay = "if ((preempted && code != 0)); then\n    \
                # Slurm requeues what it takes itself, not what ends: so stay until it does.\n    \
                echo \"preempted: saved, waiting to be requeued\"\n    \
                while :; do sleep 1; done\n\
                fi\n";
    let requeue = format!(
        "if ((code == 75 && ${{SLURM_RESTART_COUNT:-0}} < {requeues})); then\n    \
         echo \"not at its end: requeued\"\n    \
         scontrol requeue \"$SLURM_JOB_ID\" && exit 0\n\
         fi\n"
    );
    format!(
        "while :; do\n    wait \"$step\"\n    code=$?\n    kill -0 \"$step\" 2>/dev/null || break\ndone\n\n{}exit \"$code\"\n",
        if requeues > 0 { format!("{stay}{requeue}") } else { String::new() }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_read_otherwise_is_quoted() {
        assert_eq!(quoted("a-b_c/d.yaml"), "a-b_c/d.yaml");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $(here)\n"), "'it'\\''s $(here)\n'");
    }
}
