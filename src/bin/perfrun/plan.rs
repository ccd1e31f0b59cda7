//! `perfrun plan`: what a run would cost and need. Opens no data and computes nothing.

use clap::Args;
use perfrun::backend::cpu::rates::rates;
use perfrun::train::profile::conventions::Count;
use perfrun::train::profile::{Pass, Peaks, StepProfile};
use perfrun::train::system::System;
use perfrun::train::trainer::StepPlan;
use serde_json::{Value, json};

use crate::config::NamedConfigArgs;
use crate::outcome::Outcome;
use crate::output;
use crate::profile::{self, ProfileArgs};
use crate::units::{bytes, flops, seconds};

/// Flags of `perfrun plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    config: NamedConfigArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// FLOP/s of matrix products, instead of measuring this machine
    #[arg(long, value_name = "FLOPS")]
    matmul_rate: Option<f64>,
    /// Bytes/s of a copy, reads and writes together, instead of measuring this machine
    #[arg(long, value_name = "BYTES")]
    copy_rate: Option<f64>,
    #[command(flatten)]
    profile: ProfileArgs,
}

impl PlanArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let args = self.config.config();
        let positive = |what: &str, rate: Option<f64>| match rate {
            Some(r) if !(r > 0.0 && r.is_finite()) => {
                Err(perfrun::error::Error::argument(format!("{what}: expected a rate above 0, found {r}")))
            }
            rate => Ok(rate),
        };
        let given = (positive("--matmul-rate", self.matmul_rate)?, positive("--copy-rate", self.copy_rate)?);
        show(args.load(&[])?.system(), self.json, given, &self.profile)
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

/// Prints the plan of a training step of `system`.
pub(crate) fn show(
    system: &dyn System,
    as_json: bool,
    given: (Option<f64>, Option<f64>),
    profile: &ProfileArgs,
) -> anyhow::Result<Outcome> {
    let mut plan = system.plan()?;
    let (matmul, copy) = floor_rates(given);
    plan.profile.peaks = Some(Peaks { matmul_flop_per_s: matmul, copy_bytes_per_s: copy, datasheet: None });
    let counts = profile.counts(&plan.profile)?;
    if let Some(path) = &profile.html {
        let title = format!("{}: the plan of a step", system.name());
        profile::write_page(&plan.profile, &title, path)?;
    }
    let step_floor = plan.floor_seconds(system.training().gradient_accumulation, matmul, copy);
    if as_json {
        output::pretty_json(&report(system, &plan, step_floor, &counts))?;
        return Ok(Outcome::Done);
    }
    let batch = system.training().batch_size as f64;
    let (model, algorithm) = (plan.cost.model(), plan.cost.algorithm());
    output::line(format!("configuration   {}", system.name()))?;
    output::line(format!("parameters      {}", plan.parameters))?;
    output::line(format!("sample          {}", system.sample()))?;
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
    for room in rooms(&plan.profile) {
        output::line(format!(
            "{:<16}{:>8}{:>14}{:>14}{:>14}{:>12}",
            room.name,
            room.calls,
            flops(room.forward as f64),
            flops(room.backward as f64),
            flops(room.again as f64),
            bytes(u64::try_from(room.bytes).unwrap_or(u64::MAX))
        ))?;
    }
    profile::print_counts(&counts)?;
    Ok(Outcome::Done)
}

/// FLOPs and bytes of a room.
struct RoomSum {
    name: &'static str,
    calls: u64,
    forward: u128,
    backward: u128,
    again: u128,
    bytes: u128,
}

/// The passes by room, the most expensive first.
fn rooms(profile: &StepProfile) -> Vec<RoomSum> {
    let mut rooms: Vec<RoomSum> = Vec::new();
    for row in profile.rows.iter().filter(|r| r.pass != Pass::Optimiser) {
        let at = rooms.iter().position(|r| r.name == row.room).unwrap_or_else(|| {
            rooms.push(RoomSum { name: row.room, calls: 0, forward: 0, backward: 0, again: 0, bytes: 0 });
            rooms.len() - 1
        });
        let room = &mut rooms[at];
        let model = row.model.total();
        room.again += row.algorithm.total() - model;
        room.bytes += row.bytes;
        match row.pass {
            Pass::Forward => {
                room.calls += row.calls;
                room.forward += model;
            }
            _ => room.backward += model,
        }
    }
    rooms.sort_by_key(|r| std::cmp::Reverse(r.forward + r.backward));
    rooms
}

fn report(system: &dyn System, plan: &StepPlan, floor: f64, counts: &[Count]) -> Value {
    let mut all = profile::json(&plan.profile, counts);
    let more = json!({
        "configuration": system.name(), "batch_size": system.training().batch_size,
        "peak_bytes": plan.peak_bytes, "floor_seconds": floor,
        "matmul_rate": plan.profile.peaks.as_ref().map(|p| p.matmul_flop_per_s),
        "copy_rate": plan.profile.peaks.as_ref().map(|p| p.copy_bytes_per_s),
    });
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
    }
    all
}
