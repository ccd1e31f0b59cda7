//! What a step spent, as it is shown: a tree on the terminal, JSON, a page, DeepSpeed's text.

use std::path::{Path, PathBuf};

use clap::Args;
use perfrun::backend::Exec;
use perfrun::error::{Error, Result};
use perfrun::ops::contract::rates::Rates;
use perfrun::train::config::{FlopsProfilerConfig, Precision};
use perfrun::train::observer::{Event, Observer};
use perfrun::train::profile::conventions::{Convention, Count};
use perfrun::train::profile::deepspeed::{self, Run};
use perfrun::train::profile::{Node, Peaks, StepProfile, Sum};
use perfrun::train::system::System;
use perfrun::train::trainer::{StepReport, compute_dtype};
use serde_json::Value;

use crate::output;
use crate::units::{bytes, flops, seconds, three_digits};

/// Flags that say how FLOPs are shown.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ProfileArgs {
    /// Count the step by these rules too, and say how they differ: deepspeed, pytorch, palm, exact
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) convention: Vec<Convention>,
    /// Write the report as one HTML file that needs no network
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

impl ProfileArgs {
    /// The step by each of the rules that were asked for.
    pub(crate) fn counts(&self, profile: &StepProfile) -> Result<Vec<Count>> {
        self.convention.iter().map(|c| profile.count(*c)).collect()
    }
}

/// The profile and the counts as one object.
pub(crate) fn json(profile: &StepProfile, counts: &[Count]) -> Value {
    let mut all = profile.json();
    all["conventions"] = counts.iter().map(Count::json).collect();
    all
}

/// Writes the page of a profile.
pub(crate) fn write_page(profile: &StepProfile, title: &str, path: &Path) -> Result<()> {
    write(path, &profile.page(title))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    std::fs::write(path, text).map_err(Error::io("write", path))
}

/// The rates of `exec` for products in `precision`; `None` where they mean nothing or there is no room to measure.
pub(crate) fn peaks(exec: &Exec, precision: Precision) -> Option<Peaks> {
    let dtype = compute_dtype(precision);
    if exec.is_emulated() {
        return None;
    }
    match Rates::measure(exec, &[dtype]) {
        Ok(rates) => Some(Peaks {
            matmul_flop_per_s: rates.flops(dtype),
            copy_bytes_per_s: rates.copy_bytes_per_s,
            datasheet: exec.datasheet(dtype),
        }),
        Err(e) => {
            eprintln!("notice: the device's rates could not be measured: {e}; there is no floor and no MFU");
            None
        }
    }
}

/// Shows the profiled step of a run, and hands every event on.
pub(crate) struct Profiler<O> {
    to: O,
    name: String,
    folder: PathBuf,
    batch_size: usize,
    config: FlopsProfilerConfig,
    args: ProfileArgs,
    as_json: bool,
    peaks: Option<Peaks>,
}

impl<O: Observer> Observer for Profiler<O> {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Profiled { profile, report } = event {
            let profile = StepProfile { peaks: self.peaks.clone(), ..(*profile).clone() };
            self.show(&profile, report)?;
        }
        self.to.event(event)
    }
}

impl<O: Observer> Profiler<O> {
    /// Of a run of `system`, as `args` say.
    pub(crate) fn new(
        to: O,
        system: &dyn System,
        args: ProfileArgs,
        as_json: bool,
        peaks: Option<Peaks>,
    ) -> Profiler<O> {
        let training = system.training();
        let (batch_size, config) = (training.batch_size, training.flops_profiler.clone());
        let (name, folder) = (system.name().to_owned(), system.log_folder());
        Profiler { to, name, folder, batch_size, config, args, as_json, peaks }
    }

    fn show(&mut self, profile: &StepProfile, report: &StepReport) -> Result<()> {
        let config = &self.config;
        let counts = self.args.counts(profile)?;
        let file = |name: &str| self.folder.join(format!("flops_profile.{name}"));
        let page = self.args.html.clone().unwrap_or_else(|| file("html"));
        let title = format!("{}: what {} spent", self.name, profile.when());
        write_page(profile, &title, &page)?;
        let run = Run { batch_size: self.batch_size, step_seconds: report.seconds };
        let text = config.output_file.clone().unwrap_or_else(|| file("txt"));
        write(&text, &deepspeed::text(profile, config, run))?;
        let json = json(profile, &counts);
        let said = format!("{json:#}\n");
        write(&file("json"), &said)?;
        let shown = if self.as_json {
            output::line(json)
        } else {
            let depth = usize::try_from(config.module_depth).unwrap_or(TERMINAL_DEPTH);
            print(profile, &counts, depth)
        };
        shown.map_err(Error::io("write", Path::new("standard output")))?;
        let files = [&page, &text, &file("json")].map(|p| p.display().to_string()).join(", ");
        self.to.event(&Event::Notice(&format!("profile of {}: {files}", profile.when())))?;
        if profile.step == 1 && profile.steps == 1 {
            let say = "step 1 is a cold one: --flops-profile=3 has the times of a warm step";
            self.to.event(&Event::Notice(say))?;
        }
        Ok(())
    }
}

/// Depth of the tree on a terminal where nobody asks for another: the blocks; the page and the JSON have all.
const TERMINAL_DEPTH: usize = 2;

/// Prints a profile: sums, the tree of modules, rooms, counts by other rules.
pub(crate) fn print(profile: &StepProfile, counts: &[Count], depth: usize) -> std::io::Result<()> {
    let totals = profile.totals();
    let took = profile.seconds.map_or(String::new(), |s| format!(", {}", seconds(s)));
    output::line(format!("{} on {}, products in {}{took}", profile.when(), profile.device, profile.dtype))?;
    output::line(format!(
        "model FLOPs     {} ({} in products) and {} special; with what is recomputed {}",
        flops(totals.model.total() as f64),
        flops(totals.model.matmul as f64),
        flops(totals.model.special as f64),
        flops(totals.algorithm.total() as f64)
    ))?;
    if let Some(executed) = totals.executed {
        output::line(format!("executed        {} on matrix units", flops(executed.matmul as f64)))?;
    }
    utilisations(profile)?;
    output::line(format!("memory          {} at most", bytes(profile.peak_bytes as u64)))?;
    output::line("")?;
    heading("module", "parameters")?;
    branch(profile, &profile.tree(), depth)?;
    output::line("")?;
    heading("room", "calls")?;
    for (label, pass, calls, sum) in profile.by_room() {
        entry(profile, &format!("{label}, {}", pass.name()), &calls.to_string(), &sum)?;
    }
    if profile.between_seconds > 0.0 {
        output::line(format!("{:<34}{:>87}", "copies and sums between", seconds(profile.between_seconds)))?;
    }
    print_counts(counts)
}

fn utilisations(profile: &StepProfile) -> std::io::Result<()> {
    let Some(peaks) = &profile.peaks else { return Ok(()) };
    let ([mfu, mfu_sheet], [hfu, hfu_sheet]) = (profile.mfu(), profile.hfu());
    let line = |mfu: Option<f64>, hfu: Option<f64>, of: String| match (mfu, hfu) {
        (Some(mfu), Some(hfu)) => {
            output::line(format!("MFU, HFU        {:.1} %, {:.1} % of {of}", 100.0 * mfu, 100.0 * hfu))
        }
        _ => Ok(()),
    };
    line(mfu, hfu, format!("{}FLOP/s, measured", flops(peaks.matmul_flop_per_s)))?;
    let sheet = peaks.datasheet.map(|d| format!("{}FLOP/s, dense, datasheet of {}", flops(d.flop_per_s), d.device));
    line(mfu_sheet, hfu_sheet, sheet.unwrap_or_default())
}

fn heading(first: &str, second: &str) -> std::io::Result<()> {
    output::line(format!(
        "{first:<34}{second:>11}{:>10}{:>11}{:>10}{:>11}{:>9}{:>12}{:>8}{:>9}{:>12}",
        "model", "algorithm", "executed", "bytes", "FLOP/B", "time", "share", "of floor", "memory"
    ))
}

/// One line of the tree or of the rooms.
fn entry(profile: &StepProfile, name: &str, second: &str, sum: &Sum) -> std::io::Result<()> {
    let maybe = |x: Option<String>| x.unwrap_or_else(|| "-".into());
    let step = profile.seconds.filter(|s| *s > 0.0);
    output::line(format!(
        "{name:<34}{second:>11}{:>10}{:>11}{:>10}{:>11}{:>9}{:>12}{:>8}{:>9}{:>12}",
        flops(sum.model.total() as f64),
        flops(sum.algorithm.total() as f64),
        maybe(sum.executed.map(|e| flops(e.matmul as f64))),
        bytes(u64::try_from(sum.bytes).unwrap_or(u64::MAX)),
        maybe(sum.intensity().map(three_digits)),
        maybe(step.map(|_| seconds(sum.seconds))),
        maybe(step.map(|s| format!("{:.1} %", 100.0 * sum.seconds / s))),
        maybe(sum.percent_of_floor().map(|p| format!("{p:.0} %"))),
        bytes(sum.peak_bytes as u64)
    ))
}

fn branch(profile: &StepProfile, node: &Node<'_>, depth: usize) -> std::io::Result<()> {
    let name = if node.path.is_empty() { node.class } else { node.name };
    let indented = format!("{}{name}", "  ".repeat(node.depth));
    entry(profile, &indented, &flops(node.parameters as f64), &node.sum)?;
    if node.depth < depth {
        node.children.iter().try_for_each(|child| branch(profile, child, depth))?;
    }
    Ok(())
}

/// Prints counts by other rules, each with the reasons for which it is not the exact one.
pub(crate) fn print_counts(counts: &[Count]) -> std::io::Result<()> {
    for count in counts {
        output::line("")?;
        output::line(format!("{:<12}{:>28} FLOPs, {} forward", count.convention, count.flops, count.forward))?;
        for d in &count.differences {
            output::line(format!("{:>40} {}", format!("{:+}", d.flops), d.reason))?;
        }
    }
    Ok(())
}
