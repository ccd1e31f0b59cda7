//! `perfrun plan`: what a run would cost and need. Opens no data and computes nothing.

use clap::Args;
use perfrun::backend::cpu::rates::rates;
use perfrun::tape::Row;
use perfrun::train::config::RunConfig;
use perfrun::train::trainer::StepPlan;
use perfrun::train::weather;
use serde_json::{Value, json};

use crate::config::ConfigArgs;
use crate::outcome::Outcome;
use crate::output;
use crate::units::{bytes, flops, seconds};

/// Flags of `perfrun plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Name of the configuration; the same as --config-name
    #[arg(value_name = "NAME", conflicts_with = "config_name")]
    name: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// FLOP/s of matrix products, instead of measuring this machine
    #[arg(long, value_name = "FLOPS")]
    matmul_rate: Option<f64>,
    /// Bytes/s of a copy, reads and writes together, instead of measuring this machine
    #[arg(long, value_name = "BYTES")]
    copy_rate: Option<f64>,
}

impl PlanArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let mut args = self.config.clone();
        if let Some(name) = &self.name {
            args.config_name = Some(name.clone());
        }
        let positive = |what: &str, rate: Option<f64>| match rate {
            Some(r) if !(r > 0.0 && r.is_finite()) => {
                Err(perfrun::error::Error::argument(format!("{what}: expected a rate above 0, found {r}")))
            }
            rate => Ok(rate),
        };
        let given = (positive("--matmul-rate", self.matmul_rate)?, positive("--copy-rate", self.copy_rate)?);
        let config = args.load()?;
        show(&config, self.json, given)
    }
}

/// Rates for the floor, and whether they were measured here.
fn floor_rates(given: (Option<f64>, Option<f64>)) -> (f64, f64) {
    match given {
        (Some(m), Some(c)) => (m, c),
        (m, c) => {
            let measured = rates();
            (m.unwrap_or(measured.flops), c.unwrap_or(measured.bytes))
        }
    }
}

/// Prints the plan of a training step of `config`.
pub(crate) fn show(config: &RunConfig, as_json: bool, given: (Option<f64>, Option<f64>)) -> anyhow::Result<Outcome> {
    let plan = weather::plan(config)?;
    let (matmul, copy) = floor_rates(given);
    let step_floor = plan.floor_seconds(config.training.gradient_accumulation, matmul, copy);
    if as_json {
        output::pretty_json(&report(config, &plan, step_floor, matmul, copy))?;
        return Ok(Outcome::Done);
    }
    let batch = config.training.batch_size as f64;
    let (model, algorithm) = (plan.cost.model(), plan.cost.algorithm());
    output::line(format!("configuration   {}", config.experiment.name))?;
    output::line(format!("parameters      {}", plan.parameters))?;
    output::line(format!("tokens          {} a sample", config.model.tokens()))?;
    output::line(format!(
        "matrix FLOPs    forward {} a sample, forward and backward {} a micro-batch of {batch}",
        flops(plan.cost.forward.flops.matmul as f64 / batch),
        flops(model.flops.matmul as f64)
    ))?;
    output::line(format!(
        "model FLOPs     {} and {} special; with what is recomputed {}",
        flops(model.flops.total() as f64),
        flops(model.flops.special as f64),
        flops(algorithm.flops.total() as f64)
    ))?;
    output::line(format!("memory          {} at most, data and code not counted", bytes(plan.peak_bytes as u64)))?;
    output::line(format!(
        "floor           {} a step ({}FLOP/s, {}B/s)",
        seconds(step_floor),
        flops(matmul),
        flops(copy)
    ))?;
    output::line("")?;
    output::line(format!(
        "{:<16}{:>8}{:>14}{:>14}{:>14}{:>12}",
        "room", "calls", "forward", "backward", "again", "bytes"
    ))?;
    for row in by_room(&plan) {
        output::line(format!(
            "{:<16}{:>8}{:>14}{:>14}{:>14}{:>12}",
            row.op,
            row.calls,
            flops(row.cost.forward.flops.total() as f64),
            flops(row.cost.backward.flops.total() as f64),
            flops((row.cost.rerun.flops + row.cost.recomputed).total() as f64),
            bytes(u64::try_from(row.cost.algorithm().bytes).unwrap_or(u64::MAX))
        ))?;
    }
    Ok(Outcome::Done)
}

/// The profile by operator, the most expensive first.
fn by_room(plan: &StepPlan) -> Vec<Row> {
    let mut rooms: Vec<Row> = Vec::new();
    for row in plan.profile.rows() {
        match rooms.iter_mut().find(|r| r.op == row.op) {
            Some(sum) => {
                sum.calls += row.calls;
                sum.cost += row.cost;
            }
            None => rooms.push(Row { module: String::new(), ..row.clone() }),
        }
    }
    rooms.sort_by_key(|r| std::cmp::Reverse(r.cost.model().flops.total()));
    rooms
}

fn report(config: &RunConfig, plan: &StepPlan, floor: f64, matmul: f64, copy: f64) -> Value {
    let cost = |c: perfrun::cost::Cost| {
        json!({"matmul": c.flops.matmul as f64, "vector": c.flops.vector as f64, "special": c.flops.special as f64,
               "bytes": c.bytes as f64})
    };
    let rows: Vec<Value> = plan
        .profile
        .rows()
        .iter()
        .map(|r| {
            json!({"module": r.module, "room": r.op, "calls": r.calls, "forward": cost(r.cost.forward),
                   "backward": cost(r.cost.backward), "rerun": cost(r.cost.rerun)})
        })
        .collect();
    json!({
        "configuration": config.experiment.name, "parameters": plan.parameters,
        "batch_size": config.training.batch_size, "model": cost(plan.cost.model()),
        "algorithm": cost(plan.cost.algorithm()), "update": cost(plan.update), "peak_bytes": plan.peak_bytes,
        "matmul_rate": matmul, "copy_rate": copy, "floor_seconds": floor, "rows": rows,
    })
}
