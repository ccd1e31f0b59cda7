//! A record: measurements with the machine and the command that they come from.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use perfrun::backend::Exec;
use perfrun::backend::machine::Machine;
use perfrun::error::{Error, Result};
use perfrun::ops::contract::bench::Measurement;
use perfrun::ops::contract::rates::Rates;
use serde_json::{Value, json};

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
    pub(crate) fn write(
        &self,
        machine: &Machine,
        exec: &Exec,
        rates: &Rates,
        all: &[Measurement],
        failed: &[String],
    ) -> anyhow::Result<()> {
        // Where the binary lies is of no interest to who repeats the command.
        let command: Vec<String> = std::iter::once("perfrun".to_owned()).chain(std::env::args().skip(1)).collect();
        let facts = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": commit(),
            "command": command,
            "machine": machine,
            "device": device(exec),
            "rates": rates,
            "failed": failed,
        });
        let lines = all.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        self.file("machine.json", &format!("{}\n", serde_json::to_string_pretty(&facts)?))?;
        self.file("raw.jsonl", &lines.iter().map(|l| format!("{l}\n")).collect::<String>())?;
        self.file("README.md", &summary(&command.join(" "), machine, exec, rates, all, failed))?;
        Ok(())
    }

    fn file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).map_err(Error::io("write", &path))
    }
}

/// What the driver tells of the device, and what its own tool tells of clocks and power; nothing of the CPU.
fn device(exec: &Exec) -> Value {
    let Some(info) = exec.gpu().map(|gpu| gpu.driver().info()) else { return Value::Null };
    json!({
        "device": exec.device().to_string(),
        "name": info.name,
        "arch": info.arch.to_string(),
        "driver": info.driver,
        "processors": info.processors,
        "memory_bytes": info.memory_bytes,
        "cache_bytes": info.cache_bytes,
        "clocks": if exec.is_emulated() { None } else { clocks(exec) },
    })
}

/// Clocks as the vendor's tool prints them right after the measurements, where it is there.
fn clocks(exec: &Exec) -> Option<String> {
    let nvidia =
        "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu";
    let is_nvidia = exec.gpu()?.driver().info().arch.is_nvidia();
    let mut tool = Command::new(if is_nvidia { "nvidia-smi" } else { "rocm-smi" });
    if is_nvidia {
        tool.args(["--format=csv", &format!("--query-gpu={nvidia}")]);
    } else {
        tool.arg("--showclocks");
    }
    let answer = tool.output().ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}

/// The commit of what was measured: that of the working tree that the command ran in, else what lies beside the binary.
fn commit() -> Option<String> {
    of_working_tree().or_else(|| {
        let beside = std::env::current_exe().ok()?.with_file_name("commit");
        Some(std::fs::read_to_string(beside).ok()?.trim().to_owned())
    })
}

fn of_working_tree() -> Option<String> {
    let answer = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=40"]).output().ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}

fn summary(
    command: &str,
    machine: &Machine,
    exec: &Exec,
    rates: &Rates,
    all: &[Measurement],
    failed: &[String],
) -> String {
    let device = exec.gpu().map(|gpu| gpu.driver().info());
    let device = device.map_or_else(String::new, |i| format!("{} ({}), driver {}, on ", i.name, i.arch, i.driver));
    let products: Vec<String> = rates
        .matmul_flop_per_s
        .iter()
        .map(|(dtype, rate)| format!("{} GFLOP/s in {dtype}", three_digits(rate / 1e9)))
        .collect();
    let mut text = format!(
        "# Record\n\n`{command}`, perfrun {}, commit {}.\n\n{device}{}, {} threads, {} last-level cache. Measured rates: a \
         large matrix product {} by {}, {} GB/s in a copy (reads and writes together). The floor of a case is the slower of \
         its matrix FLOPs and its bytes at these rates.\n\n",
        env!("CARGO_PKG_VERSION"),
        commit().as_deref().unwrap_or("unknown"),
        machine.processor.as_deref().unwrap_or(machine.architecture),
        machine.threads,
        bytes(machine.last_level_cache_bytes() as u64),
        products.join(", "),
        rates.matmul_by,
        three_digits(rates.copy_bytes_per_s / 1e9),
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
    for line in failed {
        let _ = writeln!(text, "\nFailed: {line}");
    }
    text
}
