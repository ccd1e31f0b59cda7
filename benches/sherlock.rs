//! Training steps of the Sherlock autoencoder: forward, four losses, backward, clip, AdamW, on samples that lie on the device.
//!
//! `cargo bench --bench sherlock -- --device cuda:0 --precision bf16 --batch 64 --steps 20` prints one JSON line; `--watched`
//! adds where the time went, by room; `--gradients pass|factors` and `--stochastic-moments` keep less.
//! `benches/baselines/torch_sherlock.py` does the same in PyTorch. Without a device a small model takes a few steps on the CPU.

use std::collections::BTreeMap;
use std::error::Error;

use perfrun::backend::{Device, Exec};
use perfrun::data::sherlock::{Batch, Stimulus};
use perfrun::models::Model;
use perfrun::models::sherlock::{LossConfig, Sherlock, SherlockConfig};
use perfrun::rng::Stream;
use perfrun::tensor::{Spec, Tensor};
use perfrun::train::config::{
    ConfigSource, GradientPrecision, MomentPrecision, Precision, SherlockRun, TrainingConfig,
};
use perfrun::train::trainer::Trainer;
use serde_json::json;

/// A model for a CPU: every layer, no width.
fn small() -> perfrun::error::Result<SherlockConfig> {
    Ok(SherlockRun::load(&ConfigSource::Embedded, Some("sherlock-tiny"), &[])?.model)
}

/// Random numbers of this shape, `scale·u + shift` with `u` in [−1, 1), on the device.
fn numbers(exec: &Exec, id: u64, spec: Spec, [scale, shift]: [f32; 2]) -> perfrun::error::Result<Tensor> {
    let stream = Stream::new(1, id);
    let numbers: Vec<f32> = (0..spec.len() as u64).map(|i| scale * stream.signed(i) + shift).collect();
    exec.import(&Tensor::from_f32(spec.shape(), &numbers)?)
}

/// A batch as normalised data has it: pixels in [0, 1), dB in [−80, 0), voxels about 0.
fn batch(exec: &Exec, config: &SherlockConfig, b: usize, id: u64) -> perfrun::error::Result<Batch> {
    let sizes = config.sizes();
    let [video, audio, text] = sizes.stimulus(b)?;
    let input = Stimulus {
        video: numbers(exec, 4 * id, video, [0.5, 0.5])?,
        audio: numbers(exec, 4 * id + 1, audio, [40.0, -40.0])?,
        text: numbers(exec, 4 * id + 2, text, [0.05, 0.0])?,
    };
    let fmri = numbers(exec, 4 * id + 3, Spec::f32([b, sizes.voxels])?, [1.7, 0.0])?;
    Ok(Batch { target: input.clone(), input, fmri })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1));
    let number = |flag, other: usize| value(flag).map_or(Ok(other), |n| n.parse());
    let device: Device = value("--device").map_or(Ok(Device::Cpu), |d| d.parse())?;
    let is_whole = device != Device::Cpu;
    let config = if is_whole { SherlockConfig::default() } else { small()? };
    let precision = match value("--precision").map(String::as_str) {
        Some("fp16") => Precision::Fp16,
        Some("fp32") => Precision::Fp32,
        None if !is_whole => Precision::Fp32,
        _ => Precision::Bf16,
    };
    let (b, steps) = (number("--batch", if is_whole { 64 } else { 4 })?, number("--steps", 5)?.max(1));
    let exec = Exec::open(device)?;
    let start = std::time::Instant::now();
    let mut model = Sherlock::new(&config, &LossConfig::default(), |layout| exec.arena(layout))?;
    model.params_mut().initialise(0)?;
    exec.synchronize()?;
    let initialised = start.elapsed().as_secs_f64();
    let is = |flag: &str| args.iter().any(|a| a == flag);
    let training = TrainingConfig {
        precision,
        weight_decay: 1e-5,
        gradients: match value("--gradients").map(String::as_str) {
            Some("pass") => GradientPrecision::Pass,
            Some("factors") => GradientPrecision::Factors,
            _ => GradientPrecision::Fp32,
        },
        moments: if is("--stochastic-moments") { MomentPrecision::Bf16Stochastic } else { MomentPrecision::Fp32 },
        ..TrainingConfig::default()
    };
    let parameters = model.params().count();
    let mut trainer = Trainer::new(model, &exec, &training)?;
    let batches = (0..2).map(|i| batch(&exec, &config, b, i)).collect::<Result<Vec<_>, _>>()?;
    let (mut seconds, mut losses, mut skipped) = (Vec::new(), Vec::new(), 0);
    for i in 0..steps + 3 {
        let report = trainer.step(std::slice::from_ref(&batches[i % 2]), 1e-4)?;
        losses.push(report.loss);
        skipped += usize::from(report.is_skipped);
        if i >= 3 {
            seconds.push(report.seconds);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let mut line = json!({"who": "perfrun", "case": "sherlock", "device": device.to_string(), "name": exec.name(),
        "precision": format!("{precision:?}").to_lowercase(), "batch": b, "parameters": parameters, "steps": steps,
        "median_seconds": seconds[seconds.len() / 2], "least_seconds": seconds[0], "initialised_seconds": initialised,
        "peak_bytes": exec.memory().peak, "first_loss": losses[0], "last_loss": losses[losses.len() - 1],
        "skipped": skipped, "gradients": training.gradients, "moments": training.moments, "noted": trainer.noted()});
    if is("--watched") {
        let (_, profile) = trainer.profiled_step(std::slice::from_ref(&batches[0]), 1e-4)?;
        let mut rooms: BTreeMap<String, f64> = BTreeMap::new();
        for row in &profile.rows {
            *rooms.entry(format!("{}/{}/{:?}", row.module, row.room, row.pass)).or_default() += row.seconds;
        }
        let mut rooms: Vec<(String, f64)> = rooms.into_iter().collect();
        rooms.sort_by(|a, b| b.1.total_cmp(&a.1));
        rooms.truncate(40);
        line["rooms"] = json!(rooms);
    }
    println!("{line}");
    Ok(())
}
