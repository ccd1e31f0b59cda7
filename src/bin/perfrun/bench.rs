//! `perfrun bench`: times of rooms against what this machine was measured to reach.

use std::path::PathBuf;

use clap::Args;
use perfrun::backend::Exec;
use perfrun::backend::emulator::Counters;
use perfrun::backend::machine::Machine;
use perfrun::cost::Cost;
use perfrun::error::Error;
use perfrun::ops::contract::bench::{Bench, Effort, Measurement, Pass, cost as bench_cost, passes};
use perfrun::ops::contract::rates::Rates;
use perfrun::ops::contract::{Case, Room};
use perfrun::tensor::Dtype;
use serde::Serialize;

use crate::check::{chosen, names, words};
use crate::device::{DeviceArgs, print_notices};
use crate::outcome::Outcome;
use crate::output;
use crate::record::Record;
use crate::requests;
use crate::units::{flops, seconds, three_digits};

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
    /// Print the cases that would be timed; with --json a line for each type and pass, with its FLOPs and bytes
    #[arg(long, conflicts_with_all = ["once", "record"])]
    list: bool,
    /// Run each pass once after one warm run, without times: what a profiler wants. An emulator says what the run executed
    #[arg(long, conflicts_with = "record")]
    once: bool,
    /// One line of JSON for each measurement
    #[arg(long)]
    json: bool,
    /// Time what each line of standard input asks for, as it comes, and answer in JSON: so another program can measure in
    /// turns with this one. A line is `{"room": .., "case": .., "dtype": .., "pass": "forward" | "backward", "seconds": ..}`,
    /// its case as --list prints it
    #[arg(long, conflicts_with_all = ["list", "once", "json", "record"])]
    requests: bool,
    /// Write a record into this new folder: machine, command, raw lines and a summary
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Flags of `perfrun record`.
#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// New folder to write: machine and device, command, raw lines and a summary
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Room to time, as often as wanted; all of them if none is named
    #[arg(long = "room", value_name = "ROOM", value_parser = names(), hide_possible_values = true)]
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
    #[command(flatten)]
    device: DeviceArgs,
}

impl RecordArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let RecordArgs { folder, rooms, case, dtype, seconds, device } = self;
        let record = Some(folder);
        BenchArgs {
            rooms,
            case,
            dtype,
            seconds,
            list: false,
            once: false,
            json: false,
            requests: false,
            record,
            device,
        }
        .run()
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 3600.0 => Ok(x),
        _ => Err("expected a number above 0, 3600 at most".into()),
    }
}

/// What one run of a case costs.
#[derive(Serialize)]
struct Listed<'a> {
    room: &'a str,
    case: &'a str,
    dtype: String,
    pass: Pass,
    cost: Cost,
}

/// What one run of a case executed.
#[derive(Serialize)]
struct Executed<'a> {
    room: &'a str,
    case: &'a str,
    dtype: String,
    pass: Pass,
    device: &'a str,
    cost: Cost,
    /// FLOPs that the launches state for the matrix units.
    matrix_flops: u128,
    /// What an emulated device counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    executed: Option<Counters>,
}

/// What one case of one room in one type is timed with.
pub(crate) struct Setting {
    pub(crate) exec: Exec,
    pub(crate) effort: Effort,
    pub(crate) rates: Rates,
    pub(crate) rotate: usize,
}

impl BenchArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let cases = self.cases()?;
        if self.list {
            return self.print_cases(&cases);
        }
        let exec = self.device.open()?;
        let record = self.record.as_deref().map(Record::create).transpose()?;
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        pool.install(|| {
            if self.once {
                return self.once(&cases, &exec);
            }
            let (machine, effort) = (Machine::here(), Effort { seconds: self.seconds, ..Effort::default() });
            let effort = Effort { warm_up_seconds: self.seconds / 5.0, ..effort };
            let rates = Rates::measure(&exec, &types(&cases))?;
            let setting = Setting { effort, rates, rotate: rotated_bytes(&exec, &machine), exec };
            if self.requests {
                return requests::answer(&setting, &cases);
            }
            let (mut all, mut failed) = (Vec::new(), Vec::new());
            for (room, case, dtypes) in &cases {
                if !self.json {
                    output::line(format!("{}: {}", room.name, case.label))?;
                }
                for &dtype in dtypes {
                    match self.measure(&setting, room, case, dtype)? {
                        Ok(found) => all.extend(found),
                        // What fails is told, and the rest is measured: a record of many rooms takes minutes.
                        Err(why) => failed.push(format!("{}: {}: {dtype}: {why}", room.name, case.label)),
                    }
                }
            }
            print_notices(&setting.exec);
            failed.iter().for_each(|line| eprintln!("error: {line}"));
            if let Some(record) = record {
                record.write(&machine, &setting.exec, &setting.rates, &all, &failed)?;
            }
            Ok(if failed.is_empty() { Outcome::Done } else { Outcome::Failed })
        })
    }

    /// What the flags choose. Nothing chosen is a mistake.
    fn cases(&self) -> anyhow::Result<Vec<(&'static Room, Case, Vec<Dtype>)>> {
        let mut found: Vec<(&'static Room, Case, Vec<Dtype>)> = Vec::new();
        for room in chosen(&self.rooms) {
            let asked = |d: &Dtype| self.dtype.is_none_or(|only| only == *d);
            let fits = |c: &Case| self.case.as_ref().is_none_or(|text| c.label.contains(text.as_str()));
            for case in (room.bench_cases)().into_iter().filter(fits) {
                let dtypes = room.timed_dtypes(&case).filter(asked).collect();
                found.push((room, case, dtypes));
            }
        }
        found.retain(|(_, _, dtypes)| !dtypes.is_empty());
        if found.is_empty() {
            let text = "bench: no case fits the room, --case and --dtype; see them with `perfrun bench --list`";
            return Err(Error::argument(text).into());
        }
        Ok(found)
    }

    fn print_cases(&self, cases: &[(&'static Room, Case, Vec<Dtype>)]) -> anyhow::Result<Outcome> {
        for (room, case, dtypes) in cases {
            if !self.json {
                output::line(format!("{}: {}", room.name, case.label))?;
                continue;
            }
            for &dtype in dtypes {
                for &pass in passes(case) {
                    let (cost, dtype) = (bench_cost(case, dtype, pass)?, dtype.to_string());
                    output::json(&Listed { room: room.name, case: &case.label, dtype, pass, cost })?;
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// Times every pass and prints what was found; the inner error is of the operator or the device.
    fn measure(
        &self,
        s: &Setting,
        room: &Room,
        case: &Case,
        dtype: Dtype,
    ) -> anyhow::Result<Result<Vec<Measurement>, Error>> {
        let measured = || -> Result<Vec<Measurement>, Error> {
            let mut bench = Bench::prepare(room, case, dtype, &s.exec, s.rotate)?;
            let one = |&pass| bench.measure(pass, s.effort, s.rates.flops(dtype), s.rates.copy_bytes_per_s);
            passes(case).iter().map(one).collect()
        };
        let found = measured();
        for m in found.iter().flatten() {
            if self.json {
                output::json(m)?;
            } else {
                output::line(row(m))?;
            }
        }
        Ok(found)
    }

    fn once(&self, cases: &[(&'static Room, Case, Vec<Dtype>)], exec: &Exec) -> anyhow::Result<Outcome> {
        for (room, case, dtypes) in cases {
            for &dtype in dtypes {
                let mut bench = Bench::prepare(room, case, dtype, exec, 0)?;
                for &pass in passes(case) {
                    bench.run(pass)?;
                    exec.take_executed();
                    exec.count_stated(true);
                    bench.run(pass)?;
                    let (stated, executed) = (exec.count_stated(false), exec.take_executed());
                    let Some(matrix_flops) = stated else { continue };
                    let cost = bench_cost(case, dtype, pass)?;
                    if self.json {
                        let (room, case, dtype) = (room.name, &case.label, dtype.to_string());
                        let device = &self.device.device;
                        output::json(&Executed { room, case, dtype, pass, device, cost, matrix_flops, executed })?;
                        continue;
                    }
                    output::line(format!("{}: {}, {dtype}, {}", room.name, case.label, pass.name()))?;
                    let (whole, asked) = (flops(matrix_flops as f64), flops(cost.flops.matmul as f64));
                    output::line(format!("  {whole}FLOPs on matrix units, tiles whole; {asked}FLOPs in products"))?;
                    for line in executed.iter().flat_map(words) {
                        output::line(format!("  executed: {line}"))?;
                    }
                }
            }
        }
        Ok(Outcome::Done)
    }
}

/// The types of all cases, each once.
fn types(cases: &[(&'static Room, Case, Vec<Dtype>)]) -> Vec<Dtype> {
    let asked = |d: &Dtype| cases.iter().any(|(_, _, dtypes)| dtypes.contains(d));
    Dtype::FLOATS.into_iter().filter(asked).collect()
}

/// Bytes that the operands of a case rotate over, so that no run finds them in a cache. What is emulated has none.
fn rotated_bytes(exec: &Exec, machine: &Machine) -> usize {
    match exec.gpu() {
        None => 2 * machine.last_level_cache_bytes(),
        Some(_) if exec.is_emulated() => 0,
        Some(gpu) => usize::try_from(2 * gpu.driver().info().cache_bytes).unwrap_or(usize::MAX),
    }
}

fn row(m: &Measurement) -> String {
    format!(
        "  {:<4} {:<8} {:>8} ({} .. {})  {:>6} GB/s  {:>8}FLOP/s  {:>4} % of floor",
        m.dtype,
        m.pass.name(),
        seconds(m.seconds.median),
        seconds(m.seconds.p10),
        seconds(m.seconds.p90),
        three_digits(m.gbytes_per_s),
        flops(m.gflop_per_s * 1e9),
        three_digits(m.percent_of_floor),
    )
}
