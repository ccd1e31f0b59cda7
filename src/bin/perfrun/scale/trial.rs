//! One experiment: trained from nothing or from where it was broken off, to its result.

use std::sync::Arc;
use std::time::Instant;

use perfrun::backend::Exec;
use perfrun::data::weather::Split;
use perfrun::ops::contract::rates::Rates;
use perfrun::train::budget::{Exhausted, SystemClock};
use perfrun::train::config::LoggingBackend;
use perfrun::train::observer::{Event, Observer, Observers};
use perfrun::train::resume::Resume;
use perfrun::train::run::Outcome;
use perfrun::train::scaling::{Experiment, RunResult};
use perfrun::train::stop::Stop;
use perfrun::train::system::System;
use perfrun::train::trainer::compute_dtype;
use perfrun::train::weather::{Forecaster, Session};

use super::energy::Energy;
use crate::device::print_notices;
use crate::system::usual;

/// What is seen of a run.
struct Witness {
    to: Observers,
    parameters: u64,
    first_step: u64,
    step: u64,
    samples: u64,
    flops: f64,
    /// Of the steps of this process, without its first, which may compile.
    matmul_flops: f64,
    timed_seconds: f64,
    step_seconds: f64,
    /// Step and loss of the last validation.
    validated: Option<(u64, f64)>,
    energy: Option<Energy>,
    joules: Option<f64>,
    exec: Exec,
}

impl Observer for Witness {
    fn event(&mut self, event: &Event<'_>) -> perfrun::error::Result<()> {
        match event {
            Event::Started { shape, done } => {
                (self.parameters, self.first_step, self.step) = (shape.parameters, *done, *done);
                self.energy = Energy::start(&self.exec);
            }
            Event::Step { report, .. } => {
                if self.step > self.first_step {
                    self.matmul_flops += report.cost.model().flops.matmul as f64;
                    self.timed_seconds += report.seconds;
                }
                self.step_seconds += report.seconds;
                self.step = report.step;
                if let Some(energy) = &mut self.energy {
                    energy.read();
                }
            }
            Event::Validated { step, evaluation, .. } => self.validated = Some((*step, evaluation.loss)),
            Event::Ended { spent, .. } => {
                (self.samples, self.flops) = (spent.samples, spent.flops as f64);
                // What an earlier process used is not known.
                let is_whole = self.first_step == 0 && self.step > 0;
                self.joules = self.energy.as_ref().filter(|_| is_whole).map(Energy::joules);
            }
            _ => {}
        }
        self.to.event(event)
    }
}

/// Trains one experiment; `None` if it was asked to stop, or its time has come.
pub(super) fn run(
    e: &Experiment,
    exec: &Exec,
    stop: &Stop,
    limit: Option<f64>,
    hash: &str,
) -> anyhow::Result<Option<RunResult>> {
    let config = &e.config;
    let start = Instant::now();
    let mut session = Session::open(config, exec, &Resume::LatestIfAny)?;
    if let Some(limit) = limit {
        session = session.within(limit);
    }
    let mut witness = Witness {
        to: usual(config, config.training.logging_backend == LoggingBackend::Tensorboard)?,
        parameters: 0,
        first_step: 0,
        step: 0,
        samples: 0,
        flops: 0.0,
        matmul_flops: 0.0,
        timed_seconds: 0.0,
        step_seconds: 0.0,
        validated: None,
        energy: None,
        joules: None,
        exec: exec.clone(),
    };
    let outcome = session.run(stop, Box::new(SystemClock::since(start)), &mut witness)?;
    print_notices(exec);
    if matches!(outcome, Outcome::Stopped(_) | Outcome::Exhausted(Exhausted::PartTime)) {
        return Ok(None);
    }
    let final_loss = match witness.validated {
        Some((step, loss)) if step == witness.step => loss,
        // A budget ended it between two validations.
        _ => validate(e, exec)?,
    };
    let dtype = compute_dtype(config.training.precision);
    let mfu = if witness.timed_seconds > 0.0 {
        let rate = Rates::measure(exec, &[dtype])?.flops(dtype);
        Some(witness.matmul_flops / witness.timed_seconds / rate)
    } else {
        None
    };
    Ok(Some(RunResult {
        name: e.name().to_owned(),
        scale: e.scale,
        factor: e.factor,
        flops_budget: e.flops_budget,
        same_as: None,
        parameters: witness.parameters,
        tokens: witness.samples as f64 * config.model.tokens() as f64,
        samples: witness.samples,
        steps: witness.step,
        flops: witness.flops,
        final_loss,
        step_seconds: witness.step_seconds,
        mfu,
        energy_joules: witness.joules,
        outcome: outcome.to_string(),
        config_hash: hash.to_owned(),
    }))
}

/// The loss of the final checkpoint over the validation split.
fn validate(e: &Experiment, exec: &Exec) -> anyhow::Result<f64> {
    let path = e.config.checkpoint_folder().join("final_checkpoint");
    let forecaster = Forecaster::open(&path, exec, None)?;
    let data = Arc::new(forecaster.dataset(Split::Valid)?);
    Ok(forecaster.evaluate(&data, None, &mut |_, _| {})?.loss)
}
