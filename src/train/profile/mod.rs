//! What one step spent: by module, room and pass, with the device's time and memory, beside what it could have taken.
//!
//! Counts come from the operators that ran, so they are exact; *executed* FLOPs are there where something counted them. Times
//! are the device's own. [`conventions`] counts the same step by the rules of other tools.

pub mod conventions;
pub mod deepspeed;
pub mod page;
mod tree;

pub use tree::{Node, Sum};

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde::Serialize;
use serde_json::{Value, json};

use crate::backend::{Datasheet, Exec, Timeline};
use crate::cost::{Cost, Flops};
use crate::error::Result;
use crate::models::Model;
use crate::tape::{Profile, Row, RowPass};
use crate::tensor::Spec;

/// A kind of work in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// From state to loss.
    Forward,
    /// From loss to gradients, with what backward methods compute again on purpose.
    Backward,
    /// Forward passes of blocks that ran again.
    Recompute,
    /// Norm and update.
    Optimiser,
}

impl Pass {
    /// As it is written in reports.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
            Pass::Recompute => "recompute",
            Pass::Optimiser => "optimiser",
        }
    }
}

/// One pass of one use of a room in one module.
#[derive(Clone, Debug, PartialEq)]
pub struct PassRow {
    /// Dotted path of the module, empty at the top.
    pub module: String,
    /// The room.
    pub room: &'static str,
    /// What tells this use from others: an activation.
    pub variant: &'static str,
    /// Number type and shape of the result.
    pub result: Spec,
    /// Which pass.
    pub pass: Pass,
    /// How often the module ran it forward.
    pub calls: u64,
    /// The mathematics; none of what is done twice.
    pub model: Flops,
    /// With what is recomputed on purpose.
    pub algorithm: Flops,
    /// What ran on matrix units, where it was counted or stated.
    pub executed: Option<Flops>,
    /// Each input read once, each output written once.
    pub bytes: u128,
    /// Time of the device; 0 in a plan.
    pub seconds: f64,
    /// Bytes in use on the device at most while it ran.
    pub peak_bytes: usize,
    /// Bytes in use afterwards.
    pub live_bytes: usize,
}

impl PassRow {
    /// What the floor is computed from.
    pub fn cost(&self) -> Cost {
        Cost { flops: self.algorithm, bytes: self.bytes }
    }

    /// `matmul gelu`.
    pub fn label(&self) -> String {
        format!("{} {}", self.room, self.variant).trim_end().to_owned()
    }
}

/// What the device reaches and what its vendor promises.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peaks {
    /// Operations a second of a large product of the step's number type, measured.
    pub matmul_flop_per_s: f64,
    /// Bytes read and written a second by a copy, measured.
    pub copy_bytes_per_s: f64,
    /// The vendor's promise, if it is known.
    pub datasheet: Option<Datasheet>,
}

/// A module: a path that operators ran under, or one that leads to such a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Module {
    /// Dotted path, empty for the model.
    pub path: String,
    /// What kind of layer it is.
    pub class: &'static str,
    /// Trainable numbers in it and below.
    pub parameters: u64,
}

/// One step, or the plan of one.
#[derive(Clone, Debug)]
pub struct StepProfile {
    /// Which step, from 1; 0 for a plan.
    pub step: u64,
    /// Steps from it on whose times are here, a part of each.
    pub steps: usize,
    /// The device's own name.
    pub device: String,
    /// Number type of matrix products.
    pub dtype: String,
    /// Trainable numbers.
    pub parameters: u64,
    /// Forward passes of the step.
    pub micro_batches: usize,
    /// Everything that ran.
    pub rows: Vec<PassRow>,
    /// The model's modules, the model first.
    pub modules: Vec<Module>,
    /// Uses of operators, for the rules of other tools.
    pub uses: Vec<Row>,
    /// Time of the device from the first launch to the end of the update; `None` for a plan.
    pub seconds: Option<f64>,
    /// Time of the device outside of operators: copies of inputs, sums of gradients.
    pub between_seconds: f64,
    /// Bytes in use at most.
    pub peak_bytes: usize,
    /// Rates to compare with, where they are known.
    pub peaks: Option<Peaks>,
}

/// Parts of a step: the passes, the norm, the update.
const PARTS: usize = 3;

/// Steps over which times are taken where a mark takes time: each then has so few that it is hardly slower than others.
const MOST_PARTS: u64 = 8;

/// Follows steps while they run. Counts are those of each; of its times each step tells a part.
#[derive(Debug)]
pub struct Watch {
    parts: usize,
    /// Laps of a pass, as far as they are known.
    laps: usize,
    passes: usize,
    steps: Vec<Watched>,
}

/// What is seen of one step.
#[derive(Debug)]
struct Watched {
    timeline: Timeline,
    passes: Vec<Profile>,
}

impl Watch {
    /// Prepares to follow `parts` steps of `passes` tapes of about `laps` laps each: what they need is made here and not in them.
    ///
    /// # Errors
    /// What the device reports.
    pub fn start(exec: &Exec, passes: usize, laps: usize, parts: usize) -> Result<Watch> {
        let parts = parts.max(1);
        Timeline::reserve(exec, parts * (1 + passes), parts * PARTS + passes * laps)?;
        Ok(Watch { parts, laps, passes, steps: Vec::with_capacity(parts) })
    }

    /// How many steps to follow on this device, of those that are left, if passes have about `laps` laps.
    pub fn parts(exec: &Exec, laps: usize, steps: u64) -> usize {
        if laps > 0 && Timeline::takes_time(exec) { steps.clamp(1, MOST_PARTS) as usize } else { 1 }
    }

    /// Begins a step.
    ///
    /// # Errors
    /// What the device reports.
    pub fn begin(&mut self, exec: &Exec) -> Result<()> {
        let timeline = Timeline::start(exec, PARTS)?;
        self.steps.push(Watched { timeline, passes: Vec::with_capacity(self.passes) });
        Ok(())
    }

    /// The laps whose times this step tells, and about how many these are.
    pub fn timed(&self) -> (Range<usize>, usize) {
        let part = self.steps.len().saturating_sub(1);
        let [first, end] = [part, part + 1].map(|n| self.laps * n / self.parts);
        (first..if part + 1 < self.parts { end } else { usize::MAX }, end - first)
    }

    /// Takes note of a micro-batch.
    pub fn pass(&mut self, profile: Profile) {
        if let Some(step) = self.steps.last_mut() {
            step.passes.push(profile);
        }
    }

    /// Ends a part of the step: the passes, the norm, the update.
    ///
    /// # Errors
    /// What the device reports.
    pub fn lap(&mut self) -> Result<()> {
        self.steps.last_mut().map_or(Ok(()), |step| step.timeline.lap())
    }

    /// Whether all steps are over.
    pub fn is_done(&self) -> bool {
        self.steps.len() >= self.parts
    }

    /// What was seen, when the last step, number `step`, is over. The time of the step is the mean of all.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish<M: Model>(self, model: &M, exec: &Exec, step: u64, update: [Cost; 2]) -> Result<StepProfile> {
        let count = self.steps.len();
        let (mut laps, mut passes) = ([0.0; PARTS], Vec::<Profile>::new());
        for watched in self.steps {
            let seconds = watched.timeline.seconds()?;
            laps.iter_mut().zip(seconds).for_each(|(sum, s)| *sum += s / count as f64);
            let mut seen = watched.passes;
            seen.iter_mut().try_for_each(Profile::settle)?;
            // Counts and memory are those of the last; times are of all.
            passes.iter().zip(&mut seen).for_each(|(earlier, pass)| pass.add_times(earlier));
            passes = seen;
        }
        let mut profile = StepProfile::of(model, exec, &passes);
        (profile.step, profile.steps) = ((step + 1).saturating_sub(count as u64), count);
        profile.seconds = (!exec.is_plan()).then(|| laps.iter().sum());
        let usage = exec.memory();
        let flat = Spec::f32([usize::try_from(profile.parameters).unwrap_or(usize::MAX)])?;
        for (i, (room, cost)) in ["global_norm", "adamw"].into_iter().zip(update).enumerate() {
            profile.rows.push(PassRow {
                module: String::new(),
                room,
                variant: "",
                result: flat.clone(),
                pass: Pass::Optimiser,
                calls: 1,
                model: cost.flops,
                algorithm: cost.flops,
                executed: None,
                bytes: cost.bytes,
                seconds: laps[i + 1],
                peak_bytes: usage.peak,
                live_bytes: usage.now,
            });
        }
        profile.peak_bytes = profile.peak_bytes.max(usage.peak);
        Ok(profile)
    }
}

/// Sums over a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Forward and backward, each once.
    pub model: Flops,
    /// With what is recomputed on purpose.
    pub algorithm: Flops,
    /// What ran on matrix units; `None` if some of it was not counted.
    pub executed: Option<Flops>,
    /// Norm and update.
    pub optimiser: Flops,
    /// Of everything.
    pub bytes: u128,
}

impl StepProfile {
    /// Of the passes of one step, without norm and update.
    fn of<M: Model>(model: &M, exec: &Exec, passes: &[Profile]) -> StepProfile {
        let mut uses: Vec<Row> = Vec::new();
        let mut places: HashMap<_, usize> = HashMap::new();
        for row in passes.iter().flat_map(Profile::rows) {
            match places.entry(row.identity()) {
                Entry::Occupied(known) => uses[*known.get()].absorb(row),
                Entry::Vacant(unknown) => {
                    unknown.insert(uses.len());
                    uses.push(row.clone());
                }
            }
        }
        // The type that most products are computed in.
        let heaviest = uses.iter().max_by_key(|u| u.cost.forward.flops.matmul);
        StepProfile {
            step: 0,
            steps: 1,
            device: exec.name(),
            dtype: heaviest.map_or(String::new(), |u| u.result.dtype().to_string()),
            parameters: model.params().count(),
            micro_batches: passes.len(),
            rows: uses.iter().flat_map(pass_rows).collect(),
            modules: modules(model, &uses),
            seconds: None,
            between_seconds: passes.iter().map(|p| p.between().seconds).sum(),
            peak_bytes: passes.iter().map(Profile::peak_bytes).max().unwrap_or(0),
            uses,
            peaks: None,
        }
    }

    /// `step 9`, or `steps 9 to 16`.
    pub fn when(&self) -> String {
        match self.steps {
            0 | 1 => format!("step {}", self.step),
            n => format!("steps {} to {}", self.step, self.step + n as u64 - 1),
        }
    }

    /// Sums over the step.
    pub fn totals(&self) -> Totals {
        let mut sum = Totals { executed: Some(Flops::ZERO), ..Totals::default() };
        for row in &self.rows {
            sum.bytes += row.bytes;
            if row.pass == Pass::Optimiser {
                sum.optimiser += row.algorithm;
                continue;
            }
            sum.model += row.model;
            sum.algorithm += row.algorithm;
            sum.executed = sum.executed.zip(row.executed).map(|(a, b)| a + b);
        }
        sum.executed = sum.executed.filter(|_| !self.rows.is_empty());
        sum
    }

    /// The share of `rate` that `flops` are over the step's time.
    fn utilisation(&self, flops: Flops, rate: Option<f64>) -> Option<f64> {
        Some(flops.matmul as f64 / (self.seconds.filter(|s| *s > 0.0)? * rate.filter(|r| *r > 0.0)?))
    }

    /// Matrix FLOPs of the mathematics over what the step's time would have allowed: at the measured rate, and at the
    /// datasheet's.
    pub fn mfu(&self) -> [Option<f64>; 2] {
        self.rates().map(|rate| self.utilisation(self.totals().model, rate))
    }

    /// The same with what is recomputed.
    pub fn hfu(&self) -> [Option<f64>; 2] {
        self.rates().map(|rate| self.utilisation(self.totals().algorithm, rate))
    }

    fn rates(&self) -> [Option<f64>; 2] {
        let peaks = self.peaks.as_ref();
        [peaks.map(|p| p.matmul_flop_per_s), peaks.and_then(|p| p.datasheet).map(|d| d.flop_per_s)]
    }

    /// The least time of a row on this device; `None` if its rates are not known.
    pub fn floor(&self, cost: Cost) -> Option<f64> {
        self.peaks.as_ref().map(|p| cost.floor_seconds(p.matmul_flop_per_s, p.copy_bytes_per_s))
    }

    /// One object with everything.
    pub fn json(&self) -> Value {
        let totals = self.totals();
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        let [mfu, mfu_datasheet] = self.mfu();
        let [hfu, hfu_datasheet] = self.hfu();
        json!({
            "step": self.step, "steps": self.steps, "device": self.device, "dtype": self.dtype, "parameters": self.parameters,
            "micro_batches": self.micro_batches, "model": flops_json(totals.model),
            "algorithm": flops_json(totals.algorithm), "executed": totals.executed.map(flops_json),
            "optimiser": flops_json(totals.optimiser), "bytes": number(totals.bytes), "seconds": self.seconds,
            "between_seconds": self.between_seconds, "peak_bytes": self.peak_bytes, "peaks": self.peaks,
            "mfu": mfu, "hfu": hfu, "mfu_datasheet": mfu_datasheet, "hfu_datasheet": hfu_datasheet,
            "modules": self.modules, "rows": rows,
        })
    }

    fn row_json(&self, row: &PassRow) -> Value {
        let floor = self.floor(row.cost());
        json!({
            "module": row.module, "room": row.room, "variant": row.variant, "result": row.result.to_string(),
            "pass": row.pass, "calls": row.calls, "model": flops_json(row.model),
            "algorithm": flops_json(row.algorithm), "executed": row.executed.map(flops_json),
            "bytes": number(row.bytes), "intensity": finite(row.cost().intensity()), "seconds": row.seconds,
            "floor_seconds": floor,
            "percent_of_floor": floor.and_then(|f| finite(100.0 * f / row.seconds)),
            "peak_bytes": row.peak_bytes, "live_bytes": row.live_bytes,
        })
    }
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// An exact integer, as long as JSON's readers have one.
fn number(n: u128) -> Value {
    u64::try_from(n).map_or_else(|_| json!(n as f64), |n| json!(n))
}

fn flops_json(f: Flops) -> Value {
    json!({"matmul": number(f.matmul), "vector": number(f.vector), "special": number(f.special)})
}

/// The passes of one use, those that ran.
fn pass_rows(row: &Row) -> Vec<PassRow> {
    let parts = [
        (Pass::Forward, RowPass::Forward, row.cost.forward, Flops::ZERO),
        (Pass::Backward, RowPass::Backward, row.cost.backward, row.cost.recomputed),
        (Pass::Recompute, RowPass::Rerun, row.cost.rerun, Flops::ZERO),
    ];
    // The forward pass of what was recalled from the shadow did not run: there is its backward pass alone.
    let is_recalled = row.cost.forward == Cost::ZERO && row.cost.backward != Cost::ZERO;
    let ran = |pass, cost: Cost| (pass == Pass::Forward && !is_recalled) || cost != Cost::ZERO;
    parts
        .into_iter()
        .filter(|(pass, _, cost, _)| ran(*pass, *cost))
        .map(|(pass, seen, cost, again)| {
            let seen = row.seen(seen);
            PassRow {
                module: row.module.clone(),
                room: row.op,
                variant: row.variant,
                result: row.result.clone(),
                pass,
                calls: row.calls,
                model: if pass == Pass::Recompute { Flops::ZERO } else { cost.flops },
                algorithm: cost.flops + again,
                executed: seen.executed,
                bytes: cost.bytes,
                seconds: seen.seconds,
                peak_bytes: seen.peak_bytes,
                live_bytes: seen.live_bytes,
            }
        })
        .collect()
}

/// Every module that something ran in, and those around it, with its parameters.
fn modules<M: Model>(model: &M, uses: &[Row]) -> Vec<Module> {
    let (mut paths, mut seen) = (vec![""], HashSet::from([""]));
    for path in uses.iter().flat_map(|u| with_outer(&u.module)) {
        if seen.insert(path) {
            paths.push(path);
        }
    }
    let mut parameters: HashMap<&str, u64> = HashMap::new();
    for ((_, name), spec) in model.params().iter().zip(model.params().arena().layout().specs()) {
        for path in with_outer(name) {
            *parameters.entry(path).or_default() += spec.len() as u64;
        }
    }
    let module = |path: &str| Module {
        class: model.class(path),
        parameters: parameters.get(path).copied().unwrap_or(0),
        path: path.to_owned(),
    };
    paths.into_iter().map(module).collect()
}

/// A dotted path and what it lies in: of `a.b.c` the empty one, `a`, `a.b` and itself.
fn with_outer(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('.').map(|(i, _)| i).chain([path.len()]);
    [""].into_iter().chain(ends.map(|end| &path[..end]).filter(|p| !p.is_empty()))
}
