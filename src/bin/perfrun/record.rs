//! A record: measurements with the machine and the command that they come from.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use perfrun::backend::cpu::rates::Rates;
use perfrun::backend::machine::Machine;
use perfrun::error::{Error, Result};
use perfrun::ops::contract::bench::Measurement;
use serde_json::json;

use crate::units::{bytes, seconds, three_digits};

/// A folder that did not exist before.
pub(crate) struct Record {
    folder: PathBuf,
}

impl Record {
    /// Creates the folder. Done before measuring, so that a wrong path costs no time.
    pub(crate) fn create(folder: &Path) -> Result<Record> {
        if folder.exists() {
            let text = format!("{}: record: exists already; name a new folder", folder.display());
            return Err(Error::argument(text));
        }
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Ok(Record { folder: folder.to_path_buf() })
    }

    /// Writes `machine.json`, `raw.jsonl` and `README.md`.
    pub(crate) fn write(&self, machine: &Machine, rates: Rates, all: &[Measurement]) -> anyhow::Result<()> {
        // Where the binary lies is of no interest to who repeats the command.
        let command: Vec<String> = std::iter::once("perfrun".to_owned()).chain(std::env::args().skip(1)).collect();
        let facts = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": commit(),
            "command": command,
            "machine": machine,
            "rates": { "matmul_flop_per_s": rates.flops, "copy_bytes_per_s": rates.bytes },
        });
        let lines = all.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        self.file("machine.json", &format!("{}\n", serde_json::to_string_pretty(&facts)?))?;
        self.file("raw.jsonl", &lines.iter().map(|l| format!("{l}\n")).collect::<String>())?;
        self.file("README.md", &summary(&command.join(" "), machine, rates, all))?;
        Ok(())
    }

    fn file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).map_err(Error::io("write", &path))
    }
}

/// The commit of the working tree that the command ran in, where there is one and git is there to ask.
fn commit() -> Option<String> {
    let answer = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=40"]).output().ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}

fn summary(command: &str, machine: &Machine, rates: Rates, all: &[Measurement]) -> String {
    let mut text = format!(
        "# Record\n\n`{command}`, perfrun {}, commit {}.\n\n{}, {} threads, {} last-level cache. Measured rates: {} GFLOP/s in a \
         large f32 matrix product, {} GB/s in a copy (reads and writes together). The floor of a case is the slower of its \
         matrix FLOPs and its bytes at these rates.\n\n",
        env!("CARGO_PKG_VERSION"),
        commit().as_deref().unwrap_or("unknown"),
        machine.processor.as_deref().unwrap_or(machine.architecture),
        machine.threads,
        bytes(machine.last_level_cache_bytes() as u64),
        three_digits(rates.flops / 1e9),
        three_digits(rates.bytes / 1e9),
    );
    text.push_str("| room | case | type | pass | median | 10 % | 90 % | GB/s | GFLOP/s | % of floor |\n");
    text.push_str("|---|---|---|---|--:|--:|--:|--:|--:|--:|\n");
    for m in all {
        let _ = writeln!(
            text,
            "| {} | `{}` | {} | {} | {} | {} | {} | {} | {} | {} |",
            m.room,
            m.case,
            m.dtype,
            m.pass.name(),
            seconds(m.seconds.median),
            seconds(m.seconds.p10),
            seconds(m.seconds.p90),
            three_digits(m.gbytes_per_s),
            three_digits(m.gflop_per_s),
            three_digits(m.percent_of_floor),
        );
    }
    text
}
