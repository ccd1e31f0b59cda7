//! `perfrun slurm`: job scripts that survive their queue.

mod script;
mod site;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use perfrun::error::{Error, Faults, Result};
use perfrun::io::atomic::{Existing, write_atomic};

use crate::outcome::Outcome;
use crate::output;

pub(crate) use script::{Array, Job, quoted};
pub(crate) use site::{Layout, Site};

/// What is asked of the queue, for every command that writes a job script.
#[derive(Debug, Clone, Args)]
pub(crate) struct QueueArgs {
    /// Where the job runs: its nodes, modules and rules
    #[arg(long, value_enum, default_value_t = Site::Generic)]
    pub(crate) site: Site,
    /// Nodes
    #[arg(long, value_name = "N", alias = "num-nodes", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) nodes: u32,
    /// Tasks of a node and the devices that each drives: one task with all devices, a task a device, or one device in all
    #[arg(long, value_enum, default_value_t = Layout::Node)]
    pub(crate) layout: Layout,
    /// Time limit: HH:MM:SS, HH:MM or D-HH:MM:SS
    #[arg(long, value_name = "TIME", default_value = "02:00:00", value_parser = site::time)]
    pub(crate) time: u64,
    /// Account that is charged; without it, the user's default
    #[arg(long, value_name = "NAME", value_parser = word)]
    pub(crate) account: Option<String>,
    /// Partition; without it, the site's usual one
    #[arg(long, value_name = "NAME", value_parser = word)]
    pub(crate) partition: Option<String>,
    /// Quality of service; without it, the site's usual one
    #[arg(long, value_name = "NAME", value_parser = word)]
    pub(crate) qos: Option<String>,
    /// Constraint on nodes, as gpu&hbm80g; without it, the site's usual one
    #[arg(long, value_name = "TEXT", value_parser = word)]
    pub(crate) constraint: Option<String>,
    /// Devices of a node, where the site does not say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) devices_per_node: Option<u32>,
    /// Cores of a task, where the site does not say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) cpus_per_task: Option<u32>,
    /// Module to load, as often as wanted, instead of the site's usual ones; none = no modules
    #[arg(long = "module", value_name = "NAME", value_parser = word)]
    pub(crate) modules: Vec<String>,
    /// Seconds before the limit at which the queue sends USR1
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=43_200))]
    pub(crate) warn_seconds: u32,
    /// How often the job may be put back into the queue; 0 = never
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) requeues: u32,
    /// The program, as the nodes find it
    #[arg(long, value_name = "PATH", default_value = "perfrun")]
    pub(crate) program: String,
}

impl QueueArgs {
    /// The flags that say the same again, but for nodes and layout.
    pub(crate) fn words(&self) -> Vec<String> {
        let site = self.site.to_possible_value().map(|v| v.get_name().to_owned());
        let number = |n: Option<u32>| n.map(|n| n.to_string());
        let flags = [
            ("site", site),
            ("time", Some(site::clock(self.time))),
            ("account", self.account.clone()),
            ("partition", self.partition.clone()),
            ("qos", self.qos.clone()),
            ("constraint", self.constraint.clone()),
            ("devices-per-node", number(self.devices_per_node)),
            ("cpus-per-task", number(self.cpus_per_task)),
            ("warn-seconds", Some(self.warn_seconds.to_string())),
            ("requeues", Some(self.requeues.to_string())),
            ("program", Some(self.program.clone())),
        ];
        let modules = self.modules.iter().map(|m| ("module", Some(m.clone())));
        let given = flags.into_iter().chain(modules).filter_map(|(name, value)| Some([format!("--{name}"), value?]));
        given.flatten().collect()
    }
}

/// Flags of `perfrun slurm`.
#[derive(Debug, Args)]
pub(crate) struct SlurmArgs {
    #[command(flatten)]
    queue: QueueArgs,
    /// Name of the job; without it, the configuration's
    #[arg(long, value_name = "NAME", value_parser = word)]
    job_name: Option<String>,
    /// YAML file with configurations
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the configuration
    #[arg(long, value_name = "NAME", default_value = "base")]
    config_name: String,
    /// Stop before this many model FLOPs would be exceeded, all jobs together
    #[arg(long, value_name = "FLOPS")]
    flops_budget: Option<f64>,
    /// Stop before this many hours would be exceeded, all jobs together
    #[arg(long, value_name = "HOURS")]
    time_budget: Option<f64>,
    /// Write the script to this new file instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Further flags of `perfrun train`, after --
    #[arg(last = true, value_name = "FLAGS")]
    train: Vec<String>,
}

impl SlurmArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let job = Job {
            name: self.job_name.clone().unwrap_or_else(|| {
                let plain = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
                self.config_name.chars().take(64).map(plain).collect::<String>().trim_start_matches('-').to_owned()
            }),
            words: self.words(),
            array: None,
            queue: self.queue.clone(),
        };
        word(&job.name).map_err(|e| Error::argument(format!("job-name: {e}")))?;
        publish(&job, self.out.as_deref())?;
        Ok(Outcome::Done)
    }

    /// What the script gives to `perfrun train` where its user gives nothing else.
    fn words(&self) -> Vec<String> {
        let flag = |name: &str, value: Option<String>| value.map(|v| [format!("--{name}"), v]);
        let flags = [
            flag("config", self.config.as_ref().map(|p| p.to_string_lossy().into_owned())),
            flag("config-name", Some(self.config_name.clone())),
            flag("flops-budget", self.flops_budget.map(|f| format!("{f:e}"))),
            flag("time-budget", self.time_budget.map(|h| h.to_string())),
        ];
        flags.into_iter().flatten().flatten().chain(self.train.iter().cloned()).collect()
    }
}

/// Checks a job against its site and writes its script to a new file or to standard output.
pub(crate) fn publish(job: &Job, out: Option<&Path>) -> anyhow::Result<()> {
    let mut faults = Faults::new();
    site::check(&job.queue, &mut faults);
    faults.into_result(Error::Config)?;
    let devices = job.queue.layout.tasks(&job.queue) * job.queue.layout.devices(&job.queue) * job.queue.nodes;
    if devices > 1 && job.array.is_none() {
        eprintln!(
            "notice: the job asks for {devices} devices; this version trains on one and says so: --layout single"
        );
    }
    let text = script::render(job);
    let Some(path) = out else {
        output::line(text.trim_end())?;
        return Ok(());
    };
    write_atomic(path, Existing::Refuse, |file| {
        std::io::Write::write_all(file, text.as_bytes()).map_err(Error::io("write", path))
    })?;
    eprintln!("wrote {}: sbatch {}", path.display(), quoted(&path.to_string_lossy()));
    Ok(())
}

/// A word that may stand in a `#SBATCH` line, which no shell reads and no quote protects.
pub(crate) fn word(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.+/:@%&|,=".contains(c);
    if !text.is_empty() && text.len() <= 128 && !text.starts_with('-') && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 128 letters, digits or _ - . + / : @ % & | , =, no dash in front".into())
}
