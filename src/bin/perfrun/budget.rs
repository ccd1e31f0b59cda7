//! `perfrun budget`: epochs, hours and nodes from one another, before anything is queued.
//!
//! # Source
//! The weather transformer's `budget_calculator.py`: names of the commands and flags, and the formulas where the minutes of
//! an epoch are given. Where they are not, the original has a constant of its own; here a log or the FLOPs say it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use perfrun::error::{Error, Result};
use serde_json::json;

use crate::config::{ConfigArgs, SourceArgs};
use crate::device::DeviceArgs;
use crate::outcome::Outcome;
use crate::output;
use crate::pace::{Basis, Pace};
use crate::slurm::{Site, quoted};
use crate::units::{flops, three_digits};

/// Flags of `perfrun budget`.
#[derive(Debug, Args)]
pub(crate) struct BudgetArgs {
    #[command(subcommand)]
    command: BudgetCommand,
    /// YAML file with configurations; without it, those that are predefined in the binary
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Name of the configuration; without it, the only one of the file, or base
    #[arg(long, value_name = "NAME", global = true)]
    config_name: Option<String>,
    /// Give a key another value; may be repeated, the last one counts
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    overrides: Vec<String>,
    /// Folder of the data set, whose training samples are counted
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// Training samples, instead of counting them in the data set
    #[arg(long, value_name = "N", global = true)]
    samples: Option<usize>,
    /// Nodes that an estimate is divided by
    #[arg(long, value_name = "N", default_value_t = 1, global = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    num_nodes: u32,
    /// Devices of a node that an estimate is divided by
    #[arg(long, value_name = "N", default_value_t = 1, global = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    devices_per_node: u32,
    /// The device whose rates an estimate is made from: cpu, cuda[:N], hip[:N]
    #[arg(long, value_name = "DEVICE", default_value = "cpu", global = true)]
    device: String,
    /// One JSON object
    #[arg(long, global = true)]
    json: bool,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
enum BudgetCommand {
    /// How many epochs fit into some hours
    #[command(name = "time-to-epochs", alias = "time_to_epochs")]
    TimeToEpochs {
        /// Hours
        #[arg(long, value_name = "HOURS", value_parser = positive)]
        hours: f64,
        #[command(flatten)]
        pace: PaceArgs,
    },
    /// How many hours some epochs take
    #[command(name = "epochs-to-time", alias = "epochs_to_time")]
    EpochsToTime {
        /// Epochs
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        epochs: u64,
        #[command(flatten)]
        pace: PaceArgs,
    },
    /// How many epochs fit, by nodes and hours: a table in Markdown
    #[command(name = "budget-table", alias = "budget_table")]
    BudgetTable {
        /// Fewest nodes
        #[arg(long, value_name = "N", default_value_t = 1)]
        min_nodes: u32,
        /// Most nodes
        #[arg(long, value_name = "N", default_value_t = 32)]
        max_nodes: u32,
        /// Hours, with commas between
        #[arg(long, value_name = "HOURS", value_delimiter = ',', default_value = "0.5,1,2,4,8,24", value_parser = positive)]
        time_budgets: Vec<f64>,
        #[command(flatten)]
        pace: PaceArgs,
    },
    /// Nodes, time limit and budget of a job, and how to submit it
    #[command(name = "slurm-settings", alias = "slurm_settings")]
    SlurmSettings {
        /// Hours to train for
        #[arg(long, value_name = "HOURS", value_parser = positive)]
        hours: f64,
        /// Nodes
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        nodes: u32,
        #[command(flatten)]
        pace: PaceArgs,
        /// How much longer than the epochs the time limit is
        #[arg(long, value_name = "FACTOR", default_value_t = 1.2, value_parser = positive)]
        buffer_factor: f64,
    },
}

/// How long an epoch takes.
#[derive(Debug, Args)]
struct PaceArgs {
    /// Minutes of an epoch; on one node, where the answer depends on nodes. Without it they are estimated
    #[arg(long, value_name = "MINUTES", value_parser = positive)]
    minutes_per_epoch: Option<f64>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a number above 0".into()),
    }
}

/// Nodes that a table has rows for.
const NODES: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];

impl BudgetArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        match &self.command {
            BudgetCommand::TimeToEpochs { hours, pace } => {
                let pace = self.pace(pace, self.num_nodes)?;
                let epochs = epochs_in(*hours, pace.minutes);
                let text = format!("{epochs} epochs in {hours} hours\n{}", self.basis(&pace, epochs));
                self.print(json!({"hours": hours, "epochs": epochs}), &pace, &text)
            }
            BudgetCommand::EpochsToTime { epochs, pace } => {
                let pace = self.pace(pace, self.num_nodes)?;
                let hours = *epochs as f64 * pace.minutes / 60.0;
                let text = format!("{} hours for {epochs} epochs\n{}", hours_text(hours), self.basis(&pace, *epochs));
                self.print(json!({"hours": hours, "epochs": epochs}), &pace, &text)
            }
            BudgetCommand::BudgetTable { min_nodes, max_nodes, time_budgets, pace } => {
                let pace = self.pace(pace, 1)?;
                let nodes: Vec<u32> = NODES.into_iter().filter(|n| (*min_nodes..=*max_nodes).contains(n)).collect();
                if nodes.is_empty() {
                    let text =
                        format!("nodes: expected a range with one of {NODES:?}, found {min_nodes} to {max_nodes}");
                    return Err(Error::argument(text).into());
                }
                let rows = nodes.iter().map(|&n| {
                    let epochs = time_budgets.iter().map(|&h| epochs_in(h, pace.minutes / f64::from(n)));
                    (n, epochs.collect::<Vec<u64>>())
                });
                let rows: Vec<(u32, Vec<u64>)> = rows.collect();
                let text = format!("{}\n{}", table(time_budgets, &rows), self.basis(&pace, 1));
                self.print(json!({"hours": time_budgets, "epochs_by_nodes": rows}), &pace, &text)
            }
            BudgetCommand::SlurmSettings { hours, nodes, pace, buffer_factor } => {
                let pace = self.pace(pace, 1)?;
                let minutes = pace.minutes / f64::from(*nodes);
                let epochs = epochs_in(*hours, minutes);
                if epochs == 0 {
                    let text = format!(
                        "hours: expected at least {:.2}, what an epoch takes on {nodes} nodes, found {hours}",
                        minutes / 60.0
                    );
                    return Err(Error::argument(text).into());
                }
                let limit = limit_hours(minutes, epochs, *buffer_factor);
                let text = self.settings(*hours, *nodes, &pace, epochs, limit);
                let of = json!({"hours": hours, "nodes": nodes, "epochs": epochs, "limit_hours": limit});
                self.print(of, &pace, &text)
            }
        }
    }

    fn settings(&self, hours: f64, nodes: u32, pace: &Pace, epochs: u64, limit: u64) -> String {
        let file = self.config.as_ref().map(|f| format!(" --config {}", quoted(&f.to_string_lossy())));
        let name = self.config_name.as_deref().unwrap_or("base");
        let which = format!("{} --config-name {}", file.unwrap_or_default(), quoted(name));
        let longest = Site::Frontier.longest(nodes, None).map_or(u64::MAX, |(seconds, _)| seconds / 3600);
        let time = format!("{:02}:00:00", limit.min(longest));
        let jobs = match limit.div_ceil(longest.max(1)) {
            0 | 1 => String::new(),
            n => format!(
                "\nFrontier gives {nodes} nodes {time} at most: the job is requeued and goes on, {n} times in all"
            ),
        };
        format!(
            "{epochs} epochs on {nodes} nodes in {hours} hours, time limit {limit} hours\n{}{jobs}\n\n\
             perfrun slurm --site frontier --nodes {nodes} --time {time} --time-budget {hours}{which} --out \
             submit_frontier.sh\n\
             sbatch -N {nodes} -t {time} submit_frontier.sh{which} --time-budget {hours}",
            self.basis(pace, epochs)
        )
    }

    fn print(&self, mut answer: serde_json::Value, pace: &Pace, text: &str) -> anyhow::Result<Outcome> {
        if self.json {
            answer["minutes_per_epoch"] = json!(pace.minutes);
            answer["basis"] = json!(pace.basis.to_string());
            answer["flops_per_epoch"] = json!(pace.epoch_flops);
            output::pretty_json(&answer)?;
        } else {
            output::line(text)?;
        }
        Ok(Outcome::Done)
    }

    /// What the answer rests on.
    fn basis(&self, pace: &Pace, epochs: u64) -> String {
        let mut text = format!("{} minutes an epoch: {}", three_digits(pace.minutes), pace.basis);
        if let Some(f) = pace.epoch_flops {
            text += &format!(
                "\n{} model FLOPs an epoch; {} of them are --flops-budget {:e}",
                flops(f),
                epochs.max(1),
                f * epochs.max(1) as f64
            );
        }
        text
    }

    /// The minutes of an epoch on `nodes` nodes.
    fn pace(&self, args: &PaceArgs, nodes: u32) -> anyhow::Result<Pace> {
        if let Some(minutes) = args.minutes_per_epoch {
            return Ok(Pace { minutes, basis: Basis::Given, epoch_flops: None });
        }
        let config = ConfigArgs {
            source: SourceArgs { config: self.config.clone() },
            config_name: self.config_name.clone(),
            overrides: self.overrides.clone(),
            data: self.data.clone(),
        }
        .load(&[])?;
        let exec = DeviceArgs { device: self.device.clone() }.open()?;
        let devices = u64::from(nodes) * u64::from(self.devices_per_node);
        Ok(Pace::estimate(config.system(), &exec, self.samples, devices)?)
    }
}

/// Whole epochs of `minutes` in `hours`.
fn epochs_in(hours: f64, minutes: f64) -> u64 {
    (60.0 * hours / minutes) as u64
}

/// Whole hours that hold the epochs and what they may take longer.
fn limit_hours(minutes: f64, epochs: u64, buffer: f64) -> u64 {
    ((minutes * epochs as f64 * buffer / 60.0).ceil() as u64).max(1)
}

fn hours_text(hours: f64) -> String {
    if hours < 0.1 { format!("{hours:.4}") } else { format!("{hours:.2}") }
}

fn table(budgets: &[f64], rows: &[(u32, Vec<u64>)]) -> String {
    let head = |h: &f64| match *h {
        h if h < 1.0 => format!("{:.1}m", 60.0 * h),
        h if h < 24.0 => format!("{h:.1}h"),
        h => format!("{:.1}d", h / 24.0),
    };
    let heads: Vec<String> = budgets.iter().map(head).collect();
    let mut text = format!("| nodes | {} |\n|--:|{}", heads.join(" | "), "--:|".repeat(heads.len()));
    for (nodes, epochs) in rows {
        let cells: Vec<String> = epochs.iter().map(u64::to_string).collect();
        text += &format!("\n| {nodes} | {} |", cells.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_whole_and_limits_are_whole_hours() {
        assert_eq!((epochs_in(4.0, 10.0), epochs_in(0.1, 10.0), epochs_in(8.0, 30.0 / 4.0)), (24, 0, 64));
        // 64 epochs of 7.5 minutes are 8 hours, a fifth more 9.6.
        assert_eq!((limit_hours(7.5, 64, 1.2), limit_hours(0.1, 1, 1.2)), (10, 1));
    }

    #[test]
    fn a_table_has_its_budgets_in_minutes_hours_and_days() {
        let text = table(&[0.5, 4.0, 24.0], &[(1, vec![1, 8, 48])]);
        assert_eq!(text, "| nodes | 30.0m | 4.0h | 1.0d |\n|--:|--:|--:|--:|\n| 1 | 1 | 8 | 48 |");
    }
}
