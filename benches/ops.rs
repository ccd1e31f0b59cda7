//! Every operator on the shapes it is timed on: `cargo bench --bench ops`, one of them with `cargo bench --bench ops -- layer_norm`.
//!
//! Criterion keeps and compares the times; what runs is the library's own [`Bench`], as in `perfrun bench`. Under `cargo
//! test --benches` (and with `--test`) each runs once, in one storage type, on one set of operands, unless it moves more than
//! [`ONCE_BYTES`]: these are counted at the end.

use std::error::Error;
use std::time::Instant;

use criterion::{Criterion, Throughput};
use perfrun::backend::Exec;
use perfrun::backend::machine::Machine;
use perfrun::ops::ROOMS;
use perfrun::ops::contract::bench::{Bench, Pass, cost, passes};
use perfrun::ops::contract::{Case, Room};
use perfrun::tensor::Dtype;

/// Most bytes that a pass moves when benches only run once: larger ones time GPUs, and take minutes here.
const ONCE_BYTES: u128 = 128 << 20;

/// What is the same for every case.
struct Setting {
    exec: Exec,
    /// Bytes that the operands of one case rotate over.
    rotate: usize,
}

fn bench(c: &mut Criterion, setting: &Setting, room: &Room, case: &Case, dtype: Dtype) -> Result<(), Box<dyn Error>> {
    // Operands are made when the first pass is not filtered out, and serve both.
    let mut made: Option<Bench<'_>> = None;
    let mut failure = None;
    for &pass in passes(case) {
        let mut group = c.benchmark_group(room.name);
        // Elements are FLOPs: the throughput of a matrix product is its rate.
        let cost = cost(case, dtype, pass)?;
        group.throughput(Throughput::ElementsAndBytes {
            elements: cost.flops.total().try_into()?,
            bytes: cost.bytes.try_into()?,
        });
        group.sample_size(10);
        group.bench_function(format!("{}/{dtype}/{}", pass.name(), case.label), |b| {
            b.iter_custom(|n| {
                let start = time(&mut made, setting, room, case, dtype, pass, n);
                start.unwrap_or_else(|e| {
                    failure = Some(e);
                    std::time::Duration::from_nanos(1)
                })
            });
        });
        if let Some(e) = failure.take() {
            return Err(format!("{}: {}: {dtype}: {}: {e}", room.name, case.label, pass.name()).into());
        }
    }
    Ok(())
}

/// Time of `n` runs, operands made before if there are none yet.
fn time<'a>(
    made: &mut Option<Bench<'a>>,
    setting: &Setting,
    room: &Room,
    case: &'a Case,
    dtype: Dtype,
    pass: Pass,
    n: u64,
) -> perfrun::error::Result<std::time::Duration> {
    let ready = match made.take() {
        Some(ready) => ready,
        None => Bench::prepare(room, case, dtype, &setting.exec, setting.rotate)?,
    };
    let ready = made.insert(ready);
    let start = Instant::now();
    for _ in 0..n {
        ready.run(pass)?;
    }
    Ok(start.elapsed())
}

fn all() -> Result<(), Box<dyn Error>> {
    let mut c = Criterion::default().configure_from_args();
    let args: Vec<String> = std::env::args().collect();
    let once = args.iter().any(|a| a == "--test") || !args.iter().any(|a| a == "--bench");
    let rotate = if once { 0 } else { 2 * Machine::here().last_level_cache_bytes() };
    let setting = Setting { exec: Exec::cpu(), rotate };
    let mut left_out = 0;
    for room in ROOMS {
        for case in (room.bench_cases)() {
            if once && cost(&case, room.dtypes[0], Pass::Forward)?.bytes > ONCE_BYTES {
                left_out += 1;
                continue;
            }
            for dtype in room.timed_dtypes(&case).take(if once { 1 } else { usize::MAX }) {
                bench(&mut c, &setting, room, &case, dtype)?;
            }
        }
    }
    if left_out > 0 {
        println!("{left_out} cases move more than {} MiB: `cargo bench` runs them", ONCE_BYTES >> 20);
    }
    c.final_summary();
    Ok(())
}

fn main() -> Result<(), String> {
    // Inside the pool: a worker splits work at once, another thread has to wake one first.
    let mut result = Ok(());
    rayon::scope(|_| result = all().map_err(|e| e.to_string()));
    result
}
