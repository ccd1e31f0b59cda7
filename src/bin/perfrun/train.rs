//! `perfrun train`: the trainer, with everything that a queue and a person need around it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use perfrun::backend::Exec;
use perfrun::error::Error;
use perfrun::train::budget::{Exhausted, SystemClock};
use perfrun::train::observer::{Event, Observer, Observers};
use perfrun::train::resume::Resume;
use perfrun::train::run::Outcome as End;
use perfrun::train::stop::Stop;

use crate::config::NamedConfigArgs;
use crate::device::DeviceArgs;
use crate::outcome::Outcome;
use crate::profile::{self, ProfileArgs, Profiler};

/// Flags of `perfrun train`.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    config: NamedConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Make the documented synthetic data first if the data folder is empty
    #[arg(long)]
    synth: bool,
    /// Number type of matrix products: fp32, bf16, fp16, 32-true, bf16-mixed, ...
    #[arg(long, value_name = "NAME")]
    precision: Option<String>,
    /// How devices share the work; this version runs on one
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Devices of a node; this version runs on one
    #[arg(long, value_name = "N", overrides_with = "devices")]
    devices: Option<usize>,
    /// Nodes; this version runs on one
    #[arg(long, value_name = "N", overrides_with = "num_nodes")]
    num_nodes: Option<usize>,
    /// Go on from this checkpoint, or without a path from the newest one that verifies
    #[arg(long, value_name = "PATH", num_args = 0..=1, alias = "resume-from-checkpoint", alias = "resume-from")]
    resume: Option<Option<PathBuf>>,
    /// Go on from the newest checkpoint that verifies, or start a run that has none yet: for jobs that a queue restarts
    #[arg(long = "continue", conflicts_with = "resume")]
    go_on: bool,
    /// Stop before this many model FLOPs, forward and backward, would be exceeded
    #[arg(long, value_name = "FLOPS")]
    flops_budget: Option<f64>,
    /// Stop before this many hours would be exceeded, checkpoint included; those of earlier parts count
    #[arg(long, value_name = "HOURS")]
    time_budget: Option<f64>,
    /// A budget that is used up is the end of the run: exit 0 then, not 75; for jobs that are requeued at 75
    #[arg(long)]
    budget_is_end: bool,
    /// Stop, with a checkpoint, before this moment in seconds since 1970, as SLURM_JOB_END_TIME says it
    #[arg(long, value_name = "SECONDS")]
    stop_at: Option<f64>,
    /// Newest checkpoints to keep; 0 = all
    #[arg(long, value_name = "N")]
    max_checkpoints: Option<usize>,
    /// Seed of initialisation, shuffling, dropout and drop path
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Name of the run: its folder below the checkpoint and log folders
    #[arg(long, value_name = "NAME")]
    run_name: Option<String>,
    /// What is written besides metrics.jsonl: tensorboard or none
    #[arg(long, value_name = "NAME")]
    logging_backend: Option<String>,
    /// Stop, with a checkpoint, when this file appears
    #[arg(long, value_name = "FILE")]
    stop_file: Option<PathBuf>,
    /// Say what a step spent: FLOPs, bytes, time and memory by module and room; step 1 or the one that is named
    #[arg(long, value_name = "STEP", num_args = 0..=1, require_equals = true)]
    flops_profile: Option<Option<u64>>,
    #[command(flatten)]
    profile: ProfileArgs,
    /// Print the profile as one JSON object
    #[arg(long)]
    json: bool,
    /// Open everything, print what would run, and stop before the first step
    #[arg(long)]
    dry_run: bool,
}

impl TrainArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let loaded = self.config.config().load(&self.overrides())?;
        let system = loaded.system();
        let exec = self.device.open_to_compute()?;
        if self.synth {
            loaded.synthesise()?;
        }
        // Before the model fills the device's memory.
        let profiler = &system.training().flops_profiler;
        let peaks = if profiler.enabled { profile::peaks(&exec, system.training().precision) } else { None };
        let session = loaded.open(&exec, &self.resume(), self.limit(start)?)?;
        if self.dry_run {
            return crate::plan::show(system, self.json, (None, None), &self.profile);
        }
        let stop = self.stop(&system.log_folder())?;
        let observers = FirstUse { to: loaded.observers(&session)?, exec: exec.clone(), start, is_said: false };
        let mut observers = Profiler::new(observers, system, self.profile, self.json, peaks);
        let outcome = session.run(&stop, Box::new(SystemClock::since(start)), &mut observers)?;
        let is_end = self.budget_is_end && matches!(outcome, End::Exhausted(Exhausted::Flops | Exhausted::Time));
        Ok(if outcome.is_resumable() && !is_end { Outcome::Stopped } else { Outcome::Done })
    }

    fn resume(&self) -> Resume {
        match &self.resume {
            None if self.go_on => Resume::LatestIfAny,
            None => Resume::Never,
            Some(None) => Resume::Latest,
            Some(Some(path)) => Resume::From(path.clone()),
        }
    }

    /// What a queue leaves this process, counted from `start`.
    fn limit(&self, start: Instant) -> anyhow::Result<Option<Duration>> {
        let left = self.stop_at.map(seconds_until).transpose()?;
        Ok(left.map(|left| Duration::from_secs_f64(left) + start.elapsed()))
    }

    /// Signals and the stop file, by default in the folder of the logs.
    fn stop(&self, logs: &Path) -> anyhow::Result<Stop> {
        let stop_file = self.stop_file.clone().unwrap_or_else(|| logs.join("stop"));
        if stop_file.exists() {
            let file = stop_file.display();
            return Err(Error::argument(format!("{file}: the stop file exists already; remove it to train")).into());
        }
        Ok(Stop::new().on_file(stop_file).on_signals()?)
    }

    /// Flags that stand for keys of the configuration; the flag wins.
    fn overrides(&self) -> Vec<String> {
        let text = |key: &str, value: &Option<String>| value.as_ref().map(|v| format!("{key}={v}"));
        let count = |key: &str, value: Option<u64>| value.map(|v| format!("{key}={v}"));
        let real = |key: &str, value: Option<f64>| value.map(|v| format!("{key}={v:e}"));
        [
            text("precision", &self.precision),
            text("strategy", &self.strategy),
            count("num_gpus", self.devices.map(|n| n as u64)),
            count("num_nodes", self.num_nodes.map(|n| n as u64)),
            real("flops_budget", self.flops_budget),
            real("time_budget_hours", self.time_budget),
            count("max_checkpoints", self.max_checkpoints.map(|n| n as u64)),
            count("seed", self.seed),
            text("experiment.name", &self.run_name),
            text("logging_backend", &self.logging_backend),
            self.flops_profile.map(|_| "flops_profiler.enabled=true".into()),
            count("flops_profiler.profile_step", self.flops_profile.flatten()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// How long ago the end of a job may be that still counts as its end: a program may start in the second in which it comes.
const LATE_SECONDS: f64 = 60.0;

/// Seconds from now to a moment in seconds since 1970; none where it has just been.
pub(crate) fn seconds_until(moment: f64) -> anyhow::Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    if moment > now - LATE_SECONDS {
        return Ok((moment - now).max(0.0));
    }
    let text = format!("stop-at: expected a moment after now, {now:.0}, found {moment}; leave it out for no limit");
    Err(Error::argument(text).into())
}

/// Hands events on; says after the first step what the device had to load for it, and what it finds worth telling.
struct FirstUse {
    to: Observers,
    exec: Exec,
    start: Instant,
    is_said: bool,
}

impl Observer for FirstUse {
    fn event(&mut self, event: &Event<'_>) -> perfrun::error::Result<()> {
        self.to.event(event)?;
        if let (Event::Step { report, .. }, false, Some(loaded)) = (event, self.is_said, self.exec.first_use()) {
            self.is_said = true;
            let before = (self.start.elapsed().as_secs_f64() - report.seconds).max(0.0);
            let text = format!(
                "the first step began {before:.2} s after the start and took {:.2} s; {loaded}",
                report.seconds
            );
            self.to.event(&Event::Notice(&text))?;
        }
        self.exec.take_notices().iter().try_for_each(|line| self.to.event(&Event::Notice(line)))
    }
}
