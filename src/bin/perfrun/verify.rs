//! `perfrun verify`: reference cases, run and compared.

use std::path::PathBuf;

use clap::Args;
use perfrun::error::{Error, Faults};
use perfrun::tensor::Dtype;
use perfrun::train::verify::{Case, CaseReport, Summary, verify};
use serde::Serialize;

use crate::device::{DeviceArgs, print_notices};
use crate::outcome::Outcome;
use crate::output::{self, Progress};

/// Flags of `perfrun verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Reference cases, safetensors files of format 1
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// What operators and models compute in: f32, bf16 or f16; optimisers always compute in f32
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = floating)]
    dtype: Dtype,
    /// One JSON object with every case, tensor, error and bound
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    device: &'a str,
    dtype: String,
    cases: &'a [CaseReport],
    /// Faults of files that could not be read.
    unreadable: Vec<&'a str>,
    summary: Summary,
}

fn floating(name: &str) -> Result<Dtype, Error> {
    let dtype: Dtype = name.parse()?;
    if dtype.is_float() {
        Ok(dtype)
    } else {
        Err(Error::argument(format!("expected f32, bf16 or f16, found `{name}`")))
    }
}

impl VerifyArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let exec = self.device.open()?;
        let (mut reports, mut summary, mut unreadable) = (Vec::new(), Summary::default(), Faults::new());
        let mut progress = Progress::new("verify");
        for (done, file) in self.files.iter().enumerate() {
            progress.set(done, self.files.len(), file.display());
            // One file at a time in memory.
            match Case::open(file) {
                Err(e) => unreadable.absorb(e),
                Ok(case) => {
                    let report = verify(&case, &exec, self.dtype);
                    summary.add(&report);
                    reports.push(report);
                }
            }
        }
        progress.finish();
        print_notices(&exec);
        if self.json {
            output::pretty_json(&Document {
                device: &self.device.device,
                dtype: self.dtype.to_string(),
                cases: &reports,
                unreadable: unreadable.lines().collect(),
                summary,
            })?;
        } else {
            for report in &reports {
                print(report)?;
            }
            let Summary { cases, tensors, missed } = summary;
            output::line(format!("{cases} cases, {tensors} tensors, {missed} missed"))?;
        }
        for fault in unreadable.lines() {
            eprintln!("error: {fault}");
        }
        Ok(match (unreadable.is_empty(), summary.missed) {
            (false, _) => Outcome::BadInput,
            (true, 0) => Outcome::Done,
            (true, _) => Outcome::Failed,
        })
    }
}

fn print(report: &CaseReport) -> std::io::Result<()> {
    let CaseReport { file, kind, subject, dtype, .. } = report;
    let subject = if subject.is_empty() { kind.clone() } else { format!("{kind} {subject}") };
    let verdict = if report.passed { "passed" } else { "MISSED" };
    output::line(format!("{file}: {subject}, {dtype}: {verdict}"))?;
    for reason in &report.reasons {
        output::line(format!("  {reason}"))?;
    }
    let width = report.tensors.iter().map(|t| t.name.chars().count()).max().unwrap_or(0);
    let number = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.2e}"));
    for t in &report.tensors {
        let (err, bound) = (number(t.err), number(t.bound));
        let verdict = if t.passed { "" } else { "  MISSED" };
        let reason = t.reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
        output::line(format!("  {:<width$}  err {err:>9}  bound {bound:>9}{verdict}{reason}", t.name))?;
    }
    Ok(())
}
