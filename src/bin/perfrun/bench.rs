//! `perfrun bench`: times of rooms against what this machine was measured to reach.

use std::path::PathBuf;

use clap::Args;
use perfrun::backend::Exec;
use perfrun::backend::cpu::rates::{Rates, rates};
use perfrun::backend::machine::Machine;
use perfrun::error::Error;
use perfrun::ops::contract::bench::{Bench, Effort, Measurement, passes};
use perfrun::ops::contract::{Case, Room};
use perfrun::tensor::Dtype;

use crate::check::{chosen, names};
use crate::device::DeviceArgs;
use crate::outcome::Outcome;
use crate::output;
use crate::record::Record;
use crate::units::{seconds, three_digits};

/// Flags of `perfrun bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Rooms to time; all of them if none is named
    #[arg(value_name = "ROOM", value_parser = names(), hide_possible_values = true)]
    rooms: Vec<String>,
    /// Only cases whose description contains this text, as `[2048, 768]`
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Only this storage type: f32, bf16 or f16
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Dtype>,
    /// Seconds to measure each pass for
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, value_parser = positive)]
    seconds: f64,
    /// Print the cases that would be timed
    #[arg(long, conflicts_with_all = ["once", "json", "record"])]
    list: bool,
    /// Run each pass once after one warm run, without a report: what a profiler wants
    #[arg(long, conflicts_with_all = ["json", "record"])]
    once: bool,
    /// One line of JSON for each measurement
    #[arg(long)]
    json: bool,
    /// Write a record into this new folder: machine, command, raw lines and a summary
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 3600.0 => Ok(x),
        _ => Err("expected a number above 0, 3600 at most".into()),
    }
}

/// What one case of one room in one type is timed with.
struct Setting {
    exec: Exec,
    effort: Effort,
    rates: Rates,
    rotate: usize,
}

impl BenchArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let exec = self.device.open()?;
        let cases = self.cases()?;
        if self.list {
            for (room, case, _) in &cases {
                output::line(format!("{}: {}", room.name, case.label))?;
            }
            return Ok(Outcome::Done);
        }
        let record = self.record.as_deref().map(Record::create).transpose()?;
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        pool.install(|| {
            if self.once {
                return once(&cases, &exec);
            }
            let machine = Machine::here();
            let rotate = 2 * machine.last_level_cache_bytes();
            let effort = Effort { seconds: self.seconds, warm_up_seconds: self.seconds / 5.0, ..Effort::default() };
            let setting = Setting { exec, effort, rates: rates(), rotate };
            let mut all = Vec::new();
            for (room, case, dtypes) in &cases {
                if !self.json {
                    output::line(format!("{}: {}", room.name, case.label))?;
                }
                for &dtype in dtypes {
                    all.extend(self.measure(&setting, room, case, dtype)?);
                }
            }
            if let Some(record) = record {
                record.write(&machine, setting.rates, &all)?;
            }
            Ok(Outcome::Done)
        })
    }

    /// What the flags choose. Nothing chosen is a mistake.
    fn cases(&self) -> anyhow::Result<Vec<(&'static Room, Case, Vec<Dtype>)>> {
        let mut found = Vec::new();
        for room in chosen(&self.rooms) {
            let dtypes: Vec<Dtype> =
                room.dtypes.iter().copied().filter(|d| self.dtype.is_none_or(|only| only == *d)).collect();
            let fits = |c: &Case| self.case.as_ref().is_none_or(|text| c.label.contains(text.as_str()));
            found.extend((room.bench_cases)().into_iter().filter(fits).map(|c| (room, c, dtypes.clone())));
        }
        found.retain(|(_, _, dtypes)| !dtypes.is_empty());
        if found.is_empty() {
            let text = "bench: no case fits the room, --case and --dtype; see them with `perfrun bench --list`";
            return Err(Error::argument(text).into());
        }
        Ok(found)
    }

    fn measure(&self, s: &Setting, room: &Room, case: &Case, dtype: Dtype) -> anyhow::Result<Vec<Measurement>> {
        let mut bench = Bench::prepare(room, case, dtype, &s.exec, s.rotate)?;
        let mut found = Vec::new();
        for &pass in passes(case) {
            let m = bench.measure(pass, s.effort, s.rates.flops, s.rates.bytes)?;
            if self.json {
                output::json(&m)?;
            } else {
                output::line(row(&m))?;
            }
            found.push(m);
        }
        Ok(found)
    }
}

fn once(cases: &[(&'static Room, Case, Vec<Dtype>)], exec: &Exec) -> anyhow::Result<Outcome> {
    for (room, case, dtypes) in cases {
        for &dtype in dtypes {
            let mut bench = Bench::prepare(room, case, dtype, exec, 0)?;
            for &pass in passes(case) {
                bench.run(pass)?;
                bench.run(pass)?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn row(m: &Measurement) -> String {
    format!(
        "  {:<4} {:<8} {:>8} ({} .. {})  {:>6} GB/s  {:>6} GFLOP/s  {:>4} % of floor",
        m.dtype,
        m.pass.name(),
        seconds(m.seconds.median),
        seconds(m.seconds.p10),
        seconds(m.seconds.p90),
        three_digits(m.gbytes_per_s),
        three_digits(m.gflop_per_s),
        three_digits(m.percent_of_floor),
    )
}
