//! How long an epoch of a configuration takes: from the log of an earlier run, or from its FLOPs and measured rates.

use std::fmt;
use std::path::{Path, PathBuf};

use perfrun::backend::Exec;
use perfrun::error::{Error, Result};
use perfrun::ops::contract::rates::Rates;
use perfrun::train::system::System;
use perfrun::train::trainer::compute_dtype;
use serde_json::Value;

/// How long an epoch takes, and why that is believed.
#[derive(Debug)]
pub(crate) struct Pace {
    pub(crate) minutes: f64,
    pub(crate) basis: Basis,
    /// Model FLOPs of an epoch, where the configuration was looked at.
    pub(crate) epoch_flops: Option<f64>,
}

/// Where the minutes of an epoch come from.
#[derive(Debug)]
pub(crate) enum Basis {
    /// The user.
    Given,
    /// Steps of an earlier run, and devices that they are divided by.
    Log { path: PathBuf, steps: usize, seconds: f64, devices: u64 },
    /// FLOPs, bytes and the rates of a device.
    Rates { device: String, flops: f64, matmul: f64, copy: f64, devices: u64 },
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = |f: &mut fmt::Formatter<'_>, devices: &u64| match devices {
            1 => Ok(()),
            n => write!(f, ", divided by {n} devices as if nothing were lost between them"),
        };
        match self {
            Basis::Given => f.write_str("as given"),
            Basis::Log { path, steps, seconds, devices } => {
                write!(f, "measured, the median of {steps} steps in {} is {seconds:.4} s", path.display())?;
                shared(f, devices)
            }
            Basis::Rates { device, flops, matmul, copy, devices } => {
                write!(
                    f,
                    "estimated, at best: {} model FLOPs a step on {device}, which was measured to reach {}FLOP/s in matrix \
                     products and {}B/s in copies",
                    crate::units::flops(*flops),
                    crate::units::flops(*matmul),
                    crate::units::flops(*copy)
                )?;
                shared(f, devices)?;
                f.write_str("; a short run leaves a log that says it better")
            }
        }
    }
}

impl Pace {
    /// From the log of a run of this name, else from FLOPs and the measured rates of `exec`. Without `samples` the training
    /// samples are counted in the data set.
    pub(crate) fn estimate(system: &dyn System, exec: &Exec, samples: Option<usize>, devices: u64) -> Result<Pace> {
        let (flops, training) = (system.step_flops()? as f64, system.training());
        let steps = steps_per_epoch(system, samples)?;
        let per_step = |seconds: f64| steps as f64 * seconds / 60.0 / devices as f64;
        let epoch_flops = Some(steps as f64 * flops);
        let path = system.log_folder().join("metrics.jsonl");
        if let Some((steps, seconds)) = logged(&path, flops) {
            let basis = Basis::Log { path, steps, seconds, devices };
            return Ok(Pace { minutes: per_step(seconds), basis, epoch_flops });
        }
        let dtype = compute_dtype(training.precision);
        let rates = Rates::measure(exec, &[dtype])?;
        let (matmul, copy) = (rates.flops(dtype), rates.copy_bytes_per_s);
        let seconds = system.plan()?.floor_seconds(training.gradient_accumulation, matmul, copy);
        let basis = Basis::Rates { device: exec.device().to_string(), flops, matmul, copy, devices };
        Ok(Pace { minutes: per_step(seconds), basis, epoch_flops })
    }
}

fn steps_per_epoch(system: &dyn System, samples: Option<usize>) -> Result<usize> {
    let of_step = system.training().samples_per_step();
    let samples = match samples {
        Some(n) => n,
        None => system.training_samples().map_err(|e| {
            let why = e.to_string();
            let first = why.lines().next().unwrap_or_default();
            Error::argument(format!("samples: expected --samples N, or a data set to count them in; {first}"))
        })?,
    };
    match samples / of_step.max(1) {
        0 => Err(Error::argument(format!("samples: expected at least {of_step}, those of a step, found {samples}"))),
        steps => Ok(steps),
    }
}

/// How many steps a log has, and the median of their seconds: of steps that cost `flops`, without the first after each start.
fn logged(path: &Path, flops: f64) -> Option<(usize, f64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut seconds = Vec::new();
    let mut is_first = true;
    for line in text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
        match line["event"].as_str() {
            Some("start") => is_first = true,
            Some("step") => {
                // The log of another configuration under the same name says nothing about this one.
                let is_same = line["model_flops"].as_f64().is_some_and(|f| (f - flops).abs() <= 1e-6 * flops);
                if let (Some(s), true, false) = (line["seconds"].as_f64(), is_same, is_first) {
                    seconds.push(s);
                }
                is_first = false;
            }
            _ => {}
        }
    }
    seconds.sort_by(f64::total_cmp);
    Some((seconds.len(), *seconds.get(seconds.len() / 2)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gives_the_median_of_steps_that_cost_the_same_without_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let step = |seconds: f64, flops: f64| {
            format!("{{\"event\":\"step\",\"seconds\":{seconds},\"model_flops\":{flops}}}\n")
        };
        let start = "{\"event\":\"start\"}\n".to_owned();
        let lines = [start.clone(), step(9.0, 10.0), step(1.0, 10.0), step(3.0, 10.0), start, step(8.0, 10.0)];
        std::fs::write(&path, lines.concat() + &step(2.0, 10.0) + &step(7.0, 11.0) + "{half a li").unwrap();
        assert_eq!(logged(&path, 10.0), Some((3, 2.0)));
        assert_eq!((logged(&path, 12.0), logged(&dir.path().join("none"), 10.0)), (None, None));
    }
}
