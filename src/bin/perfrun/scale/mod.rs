//! `perfrun scale`: scaling experiments, one after another or as a job array, to the laws that they show.

mod energy;
mod report;
mod sweep;
mod trial;

use std::path::{Path, PathBuf};

use clap::Args;
use perfrun::error::{Error, Faults, Result};
use perfrun::train::config::RunConfig;
use perfrun::train::scaling::{Experiment, Scale};
use perfrun::train::stop::Stop;
use perfrun::train::system::System;

use crate::config::{ConfigArgs, SourceArgs};
use crate::device::DeviceArgs;
use crate::outcome::Outcome;
use crate::output;
use crate::slurm::{Array, Job, Layout, QueueArgs, publish, quoted};
use sweep::{State, Sweep};

/// Flags of `perfrun scale`.
#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// YAML file with the configuration that is scaled; without it, those that are predefined in the binary
    #[arg(long, value_name = "FILE", alias = "config")]
    base_config: Option<PathBuf>,
    /// Name of the configuration that is scaled; without it, the only one of the file, or base
    #[arg(long, value_name = "NAME", alias = "config-name")]
    base_config_name: Option<String>,
    /// What is scaled: model, embedding, sequence, resolution, batch, data, precision, node
    #[arg(long, value_name = "TYPE", num_args = 1.., default_values = ["model", "embedding", "sequence", "batch"])]
    scale_types: Vec<Scale>,
    /// By what; of precision 0 is fp32, 1 fp16, 2 bf16, of node it is the number of nodes
    #[arg(long, value_name = "FACTOR", num_args = 1.., default_values = ["0.5", "1.0", "2.0", "4.0"])]
    scale_factors: Vec<f64>,
    /// Every experiment within each of these budgets of model FLOPs: what parabolas of equal FLOPs are fitted to
    #[arg(long, value_name = "FLOPS", num_args = 1..)]
    flops_budgets: Vec<f64>,
    /// Give a key of the base another value; may be repeated, the last one counts
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder of the data set, as --set data_dir=DIR
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How devices share the work; this version runs on one
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Folder of the experiments: configurations, checkpoints, logs, results, report
    #[arg(long, value_name = "DIR", default_value = "experiments")]
    out: PathBuf,
    /// Run only the experiment of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Run nothing: write the configurations and say what would run
    #[arg(long)]
    dry_run: bool,
    /// Run nothing: collect results, fit and report what there is
    #[arg(long, conflicts_with = "dry_run")]
    collect: bool,
    /// Run nothing: write the script of a job array into this new file, one experiment a job
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "collect", "only"])]
    job_array: Option<PathBuf>,
    /// Stop, with a checkpoint, before this moment in seconds since 1970, as SLURM_JOB_END_TIME says it
    #[arg(long, value_name = "SECONDS")]
    stop_at: Option<f64>,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl ScaleArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let base = self.base()?;
        let (experiments, left_out) = self.experiments(&base)?;
        left_out.iter().for_each(|line| eprintln!("notice: left out: {line}"));
        let sweep = Sweep::open(&self.out, experiments, left_out)?;
        if let Some(script) = &self.job_array {
            return self.write_array(&sweep, script);
        }
        if self.dry_run {
            for (experiment, state) in sweep.states()? {
                output::line(format!("{} {state}", sweep.file_of(experiment.name()).display()))?;
                experiment.notes.iter().try_for_each(|n| output::line(format!("    {n}")))?;
            }
            self.print_jobs(&sweep)?;
            return Ok(Outcome::Done);
        }
        for (experiment, state) in sweep.states()?.iter().filter(|(_, s)| matches!(s, State::OnNodes(_))) {
            eprintln!("notice: {}: {state}; --job-array and --dry-run print its job", experiment.name());
        }
        let mut outcome = Outcome::Done;
        if !self.collect {
            let stop = Stop::new().on_signals()?;
            let limit = self.stop_at.map(crate::train::seconds_until).transpose()?;
            outcome = sweep.run(&self.only, &self.device.open_to_compute()?, &stop, limit)?;
        }
        sweep.collect()?;
        Ok(outcome)
    }

    /// The configuration that is scaled.
    fn base(&self) -> Result<RunConfig> {
        let mut more = Vec::new();
        more.extend(self.strategy.as_ref().map(|s| format!("strategy={s}")));
        if self.job_array.is_none() {
            more.extend(self.queue.devices_per_node.map(|n| format!("num_gpus={n}")));
            more.extend((self.queue.nodes > 1).then(|| format!("num_nodes={}", self.queue.nodes)));
        }
        ConfigArgs {
            source: SourceArgs { config: self.base_config.clone() },
            config_name: self.base_config_name.clone(),
            overrides: self.overrides.clone(),
            data: self.data.clone(),
        }
        .load_weather(&more)
    }

    /// The experiments in the order in which they run, and what cannot be one, with why.
    fn experiments(&self, base: &RunConfig) -> Result<(Vec<Experiment>, Vec<String>)> {
        let mut base = base.clone();
        // A sweep is one folder, unless its base says otherwise.
        let is_given = |key| *base.sources.of(key) != perfrun::train::config::Source::Default;
        if !is_given("checkpoint_dir") {
            base.training.checkpoint_dir = self.out.join("checkpoints");
        }
        if !is_given("log_dir") {
            base.training.log_dir = self.out.join("logs");
        }
        let (mut experiments, mut left_out): (Vec<Experiment>, Vec<String>) = (Vec::new(), Vec::new());
        let mut push = |made: Result<Experiment>| match made {
            Ok(e) if experiments.iter().all(|known: &Experiment| known.name() != e.name()) => experiments.push(e),
            Ok(_) => {}
            Err(e) => left_out.push(e.to_string()),
        };
        for &scale in &self.scale_types {
            for &factor in &self.scale_factors {
                let made = Experiment::new(&base, scale, factor);
                match (&made, self.flops_budgets.as_slice()) {
                    (Ok(e), [_, ..]) => {
                        let step = e.config.step_flops()?;
                        self.flops_budgets.iter().for_each(|&b| push(e.clone().within(b, step)));
                    }
                    _ => push(made),
                }
            }
        }
        if experiments.is_empty() {
            let mut faults = Faults::new();
            left_out.into_iter().for_each(|line| faults.push(line));
            return Err(Error::Config(faults));
        }
        Ok((experiments, left_out))
    }

    fn write_array(&self, sweep: &Sweep, script: &Path) -> anyhow::Result<Outcome> {
        let names = sweep.to_run()?;
        if names.is_empty() {
            output::line("every experiment of one node has its result: perfrun scale --collect")?;
            self.print_jobs(sweep)?;
            return Ok(Outcome::Done);
        }
        let job = Job {
            name: "scale".into(),
            words: Vec::new(),
            array: Some(Array { names, command: self.command_of_one() }),
            queue: QueueArgs { layout: Layout::Single, ..self.queue.clone() },
        };
        publish(&job, Some(script))?;
        self.print_jobs(sweep)?;
        Ok(Outcome::Done)
    }

    /// Prints what writes the job of each experiment that is for several nodes: jobs of one array have as many nodes each.
    fn print_jobs(&self, sweep: &Sweep) -> anyhow::Result<()> {
        for (experiment, state) in sweep.states()? {
            let State::OnNodes(nodes) = state else { continue };
            let name = experiment.name();
            let mut words = self.queue.words();
            words.extend(["--nodes".to_owned(), nodes.to_string(), "--job-name".into(), name.to_owned()]);
            words.extend(["--config".into(), sweep.file_of(name).to_string_lossy().into_owned()]);
            words.extend(["--config-name".into(), name.to_owned(), "--out".into(), format!("{name}.sh")]);
            let line = words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ");
            output::line(format!("perfrun slurm {line}"))?;
        }
        Ok(())
    }

    /// The words that run one experiment of this sweep, before its name.
    fn command_of_one(&self) -> Vec<String> {
        let text = |p: &PathBuf| p.to_string_lossy().into_owned();
        let mut words = vec!["scale".to_owned()];
        let mut flag = |name: &str, values: Vec<String>| {
            if !values.is_empty() {
                words.push(format!("--{name}"));
                words.extend(values);
            }
        };
        flag("base-config", self.base_config.iter().map(text).collect());
        flag("base-config-name", self.base_config_name.iter().cloned().collect());
        flag("scale-types", self.scale_types.iter().map(Scale::to_string).collect());
        flag("scale-factors", self.scale_factors.iter().map(|f| format!("{f:?}")).collect());
        flag("flops-budgets", self.flops_budgets.iter().map(|f| format!("{f:e}")).collect());
        self.overrides.iter().for_each(|o| flag("set", vec![o.clone()]));
        flag("data", self.data.iter().map(text).collect());
        flag("strategy", self.strategy.iter().cloned().collect());
        flag("out", vec![text(&self.out)]);
        let usual = self.queue.site.device().filter(|_| self.device.device == "cpu");
        flag("device", vec![usual.unwrap_or(&self.device.device).to_owned()]);
        words.push("--only".into());
        words
    }
}
