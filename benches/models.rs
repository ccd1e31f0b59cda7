//! One training step of each model: forward, loss, backward, clip, AdamW.
//!
//! `cargo bench --bench models` times them with criterion. `--steps N --case NAME` prints one JSON line instead, which
//! `benches/compare-cpu` sets beside PyTorch's; drops are off in both, because PyTorch's fused attention on a CPU has none.
//! `--watched NAME --steps N` prints what it costs to watch a step and to count it, with `--device`, `--precision`, `--batch`,
//! `--height` and `--width` for other steps than those of the CPU.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use criterion::Criterion;
use perfrun::backend::{Device, Exec};
use perfrun::data::weather::WeatherBatch;
use perfrun::models::Model;
use perfrun::models::weather_vit::WeatherVit;
use perfrun::models::weather_vit::config::WeatherVitConfig;
use perfrun::rng::Stream;
use perfrun::tensor::Tensor;
use perfrun::train::config::{Precision, TrainingConfig};
use perfrun::train::profile::Watch;
use perfrun::train::trainer::{StepReport, Trainer, plan_step};
use serde_json::json;

/// Cases: the configuration `local`, and `base` (384 wide, 12 deep, 8 heads) on the same grid.
const CASES: [(&str, [usize; 3]); 2] = [("local", [128, 4, 4]), ("base384", [384, 12, 8])];

/// What a step is of, and where it runs.
#[derive(Clone, Copy)]
struct Setup {
    shape: [usize; 3],
    grid: [usize; 2],
    batch: usize,
    device: Device,
    precision: Precision,
}

impl Setup {
    fn new(shape: [usize; 3]) -> Setup {
        Setup { shape, grid: [64, 128], batch: 4, device: Device::Cpu, precision: Precision::Fp32 }
    }

    fn config(&self) -> WeatherVitConfig {
        let [embed_dim, num_layers, num_heads] = self.shape;
        WeatherVitConfig {
            embed_dim,
            num_layers,
            num_heads,
            img_size: self.grid,
            dropout: 0.0,
            attention_dropout: 0.0,
            stochastic_depth: 0.0,
            ..WeatherVitConfig::default()
        }
    }

    fn training(&self) -> TrainingConfig {
        TrainingConfig { precision: self.precision, ..TrainingConfig::default() }
    }

    /// Random normal fields, as normalised weather has them.
    fn fields(&self, id: u64) -> Result<Tensor, perfrun::error::Error> {
        let stream = Stream::new(1, id);
        let shape = [self.batch, 20, self.grid[0], self.grid[1]];
        let n: usize = shape.iter().product();
        let numbers: Vec<f32> = (0..n as u64).map(|i| stream.normal(i) as f32).collect();
        Tensor::from_f32(shape, &numbers)
    }
}

struct Step {
    trainer: Trainer<WeatherVit>,
    batches: Vec<WeatherBatch>,
    next: usize,
    watch: Option<Watch>,
}

impl Step {
    fn new(setup: &Setup) -> Result<Step, Box<dyn Error>> {
        let exec = Exec::open(setup.device)?;
        let mut model = WeatherVit::new(&setup.config(), |layout| exec.arena(layout))?;
        model.params_mut().initialise(0)?;
        let trainer = Trainer::new(model, &exec, &setup.training())?;
        let batch = |i: u64| {
            Ok::<_, perfrun::error::Error>(WeatherBatch {
                state: setup.fields(2 * i)?,
                target: setup.fields(2 * i + 1)?,
            })
        };
        Ok(Step { trainer, batches: (0..2).map(batch).collect::<Result<_, _>>()?, next: 0, watch: None })
    }

    fn batch(&mut self) -> usize {
        self.next += 1;
        (self.next - 1) % self.batches.len()
    }

    fn run(&mut self) -> Result<StepReport, perfrun::error::Error> {
        let i = self.batch();
        self.trainer.step(std::slice::from_ref(&self.batches[i]), 1e-4)
    }

    /// The same, watched as training does.
    fn run_watched(&mut self) -> Result<StepReport, perfrun::error::Error> {
        let i = self.batch();
        let mut watch = self.watch.take().map_or_else(|| self.trainer.watch(1, u64::MAX), Ok)?;
        let report = self.trainer.watched_step(std::slice::from_ref(&self.batches[i]), 1e-4, &mut watch)?;
        if watch.is_done() {
            black_box(self.trainer.profile(watch, &report)?);
        } else {
            self.watch = Some(watch);
        }
        Ok(report)
    }
}

/// The middle one and the quartiles around it.
fn quartiles(times: &mut [f64]) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| times[times.len() * quarter / 4])
}

/// Steps plain and watched in turns, and the plan of a step: all that counting does, and nothing else.
fn watched(setup: &Setup, steps: usize) -> Result<(), Box<dyn Error>> {
    let mut step = Step::new(setup)?;
    for _ in 0..3 {
        step.run()?;
        step.run_watched()?;
    }
    let (mut plain, mut watched, mut counted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..steps.max(1) {
        // Of both what the step itself says: what reads a profile afterwards is no part of it.
        plain.push(step.run()?.seconds);
        watched.push(step.run_watched()?.seconds);
        let exec = Exec::plan();
        let model = WeatherVit::new(&setup.config(), |layout| exec.arena(layout))?;
        let [state, target] = [0, 1].map(|_| exec.alloc(step.batches[0].state.spec().clone()));
        let batch = WeatherBatch { state: state?, target: target? };
        let start = Instant::now();
        black_box(plan_step(&model, &exec, &batch, &setup.training())?);
        counted.push(start.elapsed().as_secs_f64());
    }
    let [plain, watched, counted] = [&mut plain, &mut watched, &mut counted].map(|times| quartiles(times));
    let line = json!({"device": setup.device.to_string(), "shape": setup.shape, "grid": setup.grid, "batch": setup.batch,
        "steps": steps, "plain_quartiles": plain, "watched_quartiles": watched, "watching": watched[1] / plain[1] - 1.0,
        "planning_quartiles": counted, "planning": counted[1] / plain[1]});
    println!("{line}");
    Ok(())
}

/// Largest resident memory of this process so far, in bytes.
fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn shape(name: &str) -> Result<[usize; 3], String> {
    CASES.into_iter().find(|c| c.0 == name).map(|c| c.1).ok_or_else(|| format!("no case {name}"))
}

fn one(name: &str, steps: usize) -> Result<(), Box<dyn Error>> {
    let shape = shape(name)?;
    let mut step = Step::new(&Setup::new(shape))?;
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
    if let Some(name) = value("--watched") {
        let mut setup = Setup::new(shape(name)?);
        let number = |flag, other: usize| value(flag).map_or(Ok(other), |n| n.parse());
        setup.device = value("--device").map_or(Ok(Device::Cpu), |d| d.parse())?;
        setup.grid = [number("--height", 64)?, number("--width", 128)?];
        setup.batch = number("--batch", 4)?;
        if value("--precision").is_some_and(|p| p == "bf16") {
            setup.precision = Precision::Bf16;
        }
        return watched(&setup, number("--steps", 20)?);
    }
    let mut c = Criterion::default().configure_from_args();
    let once = args.iter().any(|a| a == "--test") || !args.iter().any(|a| a == "--bench");
    // To see that it runs, the small one is enough.
    for (name, shape) in CASES.into_iter().take(if once { 1 } else { CASES.len() }) {
        let mut step = Step::new(&Setup::new(shape))?;
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
