//! One training step of each model: forward, loss, backward, clip, AdamW.
//!
//! `cargo bench --bench models` times them with criterion. `--steps N --case NAME` prints one JSON line instead, which
//! `benches/compare-cpu` sets beside PyTorch's; drops are off in both, because PyTorch's fused attention on a CPU has none.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use criterion::Criterion;
use perfrun::backend::Exec;
use perfrun::data::weather::WeatherBatch;
use perfrun::models::Model;
use perfrun::models::weather_vit::WeatherVit;
use perfrun::models::weather_vit::config::WeatherVitConfig;
use perfrun::rng::Stream;
use perfrun::tensor::Tensor;
use perfrun::train::config::{Precision, TrainingConfig};
use perfrun::train::trainer::Trainer;
use serde_json::json;

/// Cases: the configuration `local`, and `base` (384 wide, 12 deep, 8 heads) on the same grid.
const CASES: [(&str, [usize; 3]); 2] = [("local", [128, 4, 4]), ("base384", [384, 12, 8])];

const BATCH: usize = 4;

fn config(shape: [usize; 3]) -> WeatherVitConfig {
    let [embed_dim, num_layers, num_heads] = shape;
    WeatherVitConfig {
        embed_dim,
        num_layers,
        num_heads,
        img_size: [64, 128],
        dropout: 0.0,
        attention_dropout: 0.0,
        stochastic_depth: 0.0,
        ..WeatherVitConfig::default()
    }
}

/// Random normal fields, as normalised weather has them.
fn fields(id: u64) -> Result<Tensor, perfrun::error::Error> {
    let stream = Stream::new(1, id);
    let n = BATCH * 20 * 64 * 128;
    let numbers: Vec<f32> = (0..n as u64).map(|i| stream.normal(i) as f32).collect();
    Tensor::from_f32([BATCH, 20, 64, 128], &numbers)
}

struct Step {
    trainer: Trainer<WeatherVit>,
    batches: Vec<WeatherBatch>,
    next: usize,
}

impl Step {
    fn new(shape: [usize; 3]) -> Result<Step, Box<dyn Error>> {
        let exec = Exec::cpu();
        let mut model = WeatherVit::new(&config(shape), |layout| exec.arena(layout))?;
        model.params_mut().initialise(0)?;
        let training = TrainingConfig { precision: Precision::Fp32, ..TrainingConfig::default() };
        let trainer = Trainer::new(model, &exec, &training)?;
        let batch =
            |i: u64| Ok::<_, perfrun::error::Error>(WeatherBatch { state: fields(2 * i)?, target: fields(2 * i + 1)? });
        Ok(Step { trainer, batches: (0..4).map(batch).collect::<Result<_, _>>()?, next: 0 })
    }

    fn run(&mut self) -> Result<f64, perfrun::error::Error> {
        let i = self.next % self.batches.len();
        self.next += 1;
        Ok(self.trainer.step(std::slice::from_ref(&self.batches[i]), 1e-4)?.loss)
    }
}

/// Largest resident memory of this process so far, in bytes.
fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn one(name: &str, steps: usize) -> Result<(), Box<dyn Error>> {
    let (_, shape) = CASES.into_iter().find(|c| c.0 == name).ok_or_else(|| format!("--case: no case {name}"))?;
    let mut step = Step::new(shape)?;
    for _ in 0..3 {
        step.run()?;
    }
    let mut times = Vec::with_capacity(steps);
    for _ in 0..steps.max(1) {
        let start = Instant::now();
        black_box(step.run()?);
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let line = json!({"who": "perfrun", "case": name, "steps": steps, "median_seconds": times[times.len() / 2],
        "least_seconds": times[0], "peak_bytes": peak_resident()});
    println!("{line}");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1));
    if let Some(name) = value("--case") {
        return one(name, value("--steps").map_or(Ok(20), |n| n.parse())?);
    }
    let mut c = Criterion::default().configure_from_args();
    let once = args.iter().any(|a| a == "--test") || !args.iter().any(|a| a == "--bench");
    // To see that it runs, the small one is enough.
    for (name, shape) in CASES.into_iter().take(if once { 1 } else { CASES.len() }) {
        let mut step = Step::new(shape)?;
        let mut failure = None;
        let mut group = c.benchmark_group("train_step");
        group.sample_size(10);
        group.bench_function(name, |b| b.iter(|| step.run().map_err(|e| failure = Some(e)).is_ok()));
        group.finish();
        if let Some(e) = failure {
            return Err(e.into());
        }
    }
    c.final_summary();
    Ok(())
}
