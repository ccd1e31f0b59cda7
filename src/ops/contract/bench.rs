//! Times an operator: the one text that `cargo bench` and `perfrun bench` run.
//!
//! Buffers rotate, so that no run finds the operands of the last one in a cache; nothing is allocated here between runs; the
//! median is reported with its 10th and 90th percentile. The floor is what the machine's measured rates allow for the
//! exact cost.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::backend::Exec;
use crate::cost::Cost;
use crate::error::{Error, Result};
use crate::ops::contract::cases::drawn;
use crate::ops::contract::{Case, Room};
use crate::ops::operator::{Backward, Forward, GradSlot, Mask, forward_cost, op_cost};
use crate::rng::Stream;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

/// Which way an operator is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// Results from inputs.
    Forward,
    /// Gradients of the inputs from gradients of the results.
    Backward,
}

impl Pass {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        }
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Seconds that are run and not counted, so that clocks and caches settle.
    pub warm_up_seconds: f64,
    /// Seconds to measure for.
    pub seconds: f64,
    /// Runs to measure however long they take.
    pub least_runs: usize,
    /// Runs to measure at most.
    pub most_runs: usize,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { warm_up_seconds: 0.1, seconds: 0.5, least_runs: 10, most_runs: 10_000 }
    }
}

/// Median and spread of the measured runs, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Seconds {
    /// Half of the runs are faster.
    pub median: f64,
    /// A tenth of the runs is faster.
    pub p10: f64,
    /// Nine tenths of the runs are faster.
    pub p90: f64,
}

/// One line of a record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// The room.
    pub room: &'static str,
    /// The operator with its parameters, and the shapes of its inputs.
    pub case: String,
    /// Storage type.
    pub dtype: String,
    /// Which way.
    pub pass: Pass,
    /// The device, as `--device` names it.
    pub device: String,
    /// Runs measured.
    pub runs: usize,
    /// Time of one run.
    pub seconds: Seconds,
    /// FLOPs and bytes of one run: the mathematics, what is recomputed on purpose not counted.
    pub cost: Cost,
    /// Most bytes of memory that a run had besides its operands.
    pub workspace_bytes: usize,
    /// Bytes moved a second in units of 1e9, at the median.
    pub gbytes_per_s: f64,
    /// Operations (matrix and elementwise) a second in units of 1e9, at the median.
    pub gflop_per_s: f64,
    /// The floor as a percentage of the median: 100 is as fast as the machine was measured to be.
    pub percent_of_floor: f64,
}

/// One set of operands. All sets of a case hold the same numbers in different memory.
struct Operands {
    x: Vec<Tensor>,
    y: Vec<Tensor>,
    saved: Vec<Tensor>,
    dy: Vec<Tensor>,
    /// A gradient for each input; empty where there is none.
    dx: Vec<Option<Tensor>>,
}

/// A case that is ready to be timed.
pub struct Bench<'a> {
    room: &'static str,
    case: &'a Case,
    dtype: Dtype,
    exec: Exec,
    wanted: Mask,
    sets: Vec<Operands>,
    next: usize,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bench({}: {}, {}, {} sets)", self.room, self.case.label, self.dtype, self.sets.len())
    }
}

impl<'a> Bench<'a> {
    /// Makes operands for `case`: sets of together at least `rotate` bytes, one at least. Twice the last-level cache is
    /// enough for every run to find its operands in memory; 0 is enough to see that it runs.
    ///
    /// # Errors
    /// Whatever [`Operator::infer`](crate::ops::operator::Operator::infer) rejects; [`Error::OutOfMemory`].
    pub fn prepare(room: &Room, case: &'a Case, dtype: Dtype, exec: &Exec, rotate: usize) -> Result<Bench<'a>> {
        let specs = case.specs(dtype);
        let (exec, wanted) = (exec.clone(), case.wanted());
        let mut bench = Bench { room: room.name, case, dtype, exec, wanted, sets: Vec::new(), next: 0 };
        let first = bench.operands(&specs)?;
        let bytes = first.bytes().max(1);
        bench.sets.push(first);
        while bench.sets.len().saturating_mul(bytes) < rotate {
            let copy = bench.sets.first().map(|s| s.copy(&bench.exec)).transpose()?;
            bench.sets.extend(copy);
        }
        // Backward reads what forward left in each set.
        for _ in 0..bench.sets.len() {
            bench.run(Pass::Forward)?;
        }
        Ok(bench)
    }

    fn operands(&self, specs: &[Spec]) -> Result<Operands> {
        let out = self.case.operator().infer(&specs.iter().collect::<Vec<_>>())?;
        let inputs = self.case.x.iter().enumerate();
        let x = inputs.map(|(i, input)| self.exec.import(&input.tensor(self.dtype, 0, i)?)).collect::<Result<_>>()?;
        // There, and not copied from here: results may be gigabytes.
        let zeros = |s: &Spec| -> Result<Tensor> {
            let mut zeros = self.exec.alloc(s.clone())?;
            zeros.view_mut().map_or(Ok(()), |mut view| view.zero())?;
            Ok(zeros)
        };
        let random = |(i, s): (usize, &Spec)| {
            let stream = Stream::of(0xd1, &[0, i as u64]);
            let numbers = drawn(s.len(), |k| stream.signed(k));
            self.exec.import(&Tensor::from_f32_as(s.clone(), &numbers)?)
        };
        let backward = self.case.subject.differentiable().is_some() && !self.wanted.is_empty();
        let dy = if backward { out.y.iter().enumerate().map(random).collect::<Result<_>>()? } else { Vec::new() };
        let slot = |(i, s): (usize, &Spec)| self.wanted.has(i).then(|| zeros(s)).transpose();
        Ok(Operands {
            x,
            y: out.y.iter().map(zeros).collect::<Result<_>>()?,
            saved: out.saved.iter().map(zeros).collect::<Result<_>>()?,
            dy,
            dx: specs.iter().enumerate().map(slot).collect::<Result<_>>()?,
        })
    }

    /// Runs once, on the next set of operands.
    ///
    /// # Errors
    /// What the device reports; [`Error::Argument`] for the backward pass of an operator without one.
    pub fn run(&mut self, pass: Pass) -> Result<()> {
        let at = self.next;
        self.next = (at + 1) % self.sets.len();
        let Some(set) = self.sets.get_mut(at) else { return Ok(()) };
        let x: Vec<View<'_>> = set.x.iter().map(Tensor::view).collect();
        if pass == Pass::Forward {
            let (mut y, mut saved) = (writable(&mut set.y), writable(&mut set.saved));
            return self.case.operator().forward(&self.exec, Forward { x: &x, y: &mut y, saved: &mut saved });
        }
        let Some(op) = self.case.subject.differentiable() else {
            return Err(Error::argument(format!("{}: has no backward pass", self.room)));
        };
        let keeps = op.keeps(self.wanted);
        let specs: Vec<&Spec> = set.x.iter().map(Tensor::spec).collect();
        let x: Vec<Option<View<'_>>> = x.into_iter().enumerate().map(|(i, v)| keeps.x.has(i).then_some(v)).collect();
        let y: Vec<Option<View<'_>>> =
            set.y.iter().enumerate().map(|(i, t)| keeps.y.has(i).then(|| t.view())).collect();
        let saved: Vec<View<'_>> = set.saved.iter().map(Tensor::view).collect();
        let dy: Vec<Option<View<'_>>> = set.dy.iter().map(|t| Some(t.view())).collect();
        let views = set.dx.iter_mut().map(|t| t.as_mut().and_then(Tensor::view_mut));
        let mut dx: Vec<GradSlot<'_>> = views.map(|v| v.map_or(GradSlot::Unwanted, GradSlot::Set)).collect();
        op.backward(&self.exec, Backward { specs: &specs, x: &x, y: &y, saved: &saved, dy: &dy, dx: &mut dx })
    }

    /// Most bytes of memory in use during a run, above what was in use before.
    fn workspace(&mut self, pass: Pass) -> Result<usize> {
        let before = self.exec.memory().now;
        self.exec.reset_peak();
        self.run(pass)?;
        Ok(self.exec.memory().peak.saturating_sub(before))
    }

    /// Times one pass: on a device between events of its stream, on the CPU by the clock. The floor follows from
    /// `matmul_rate` (FLOP/s) and `copy_rate` (bytes/s, reads and writes together).
    ///
    /// # Errors
    /// As [`run`](Bench::run).
    pub fn measure(&mut self, pass: Pass, effort: Effort, matmul_rate: f64, copy_rate: f64) -> Result<Measurement> {
        let (start, exec) = (Instant::now(), self.exec.clone());
        let times = match exec.gpu() {
            Some(gpu) => sample_queued(effort, &mut |runs| gpu.time(runs, &mut || self.run(pass)))?,
            None => sample(effort, &mut || start.elapsed().as_secs_f64(), &mut || self.run(pass))?,
        };
        let workspace_bytes = self.workspace(pass)?;
        let (runs, seconds, cost) = (times.len(), spread(times), cost(self.case, self.dtype, pass)?);
        Ok(Measurement {
            room: self.room,
            case: self.case.label.clone(),
            dtype: self.dtype.to_string(),
            pass,
            device: self.exec.device().to_string(),
            runs,
            seconds,
            cost,
            workspace_bytes,
            gbytes_per_s: cost.bytes as f64 / seconds.median / 1e9,
            gflop_per_s: cost.flops.total() as f64 / seconds.median / 1e9,
            percent_of_floor: 100.0 * cost.floor_seconds(matmul_rate, copy_rate) / seconds.median,
        })
    }
}

/// FLOPs and bytes of one run.
///
/// # Errors
/// Whatever [`Operator::infer`](crate::ops::operator::Operator::infer) rejects.
pub fn cost(case: &Case, dtype: Dtype, pass: Pass) -> Result<Cost> {
    let specs = case.specs(dtype);
    let specs: Vec<&Spec> = specs.iter().collect();
    match (pass, case.subject.differentiable()) {
        (Pass::Backward, Some(op)) => Ok(op_cost(op, &specs, case.wanted())?.backward),
        _ => forward_cost(case.operator(), &specs),
    }
}

/// The passes that `case` has.
pub fn passes(case: &Case) -> &'static [Pass] {
    if case.wanted().is_empty() { &[Pass::Forward] } else { &[Pass::Forward, Pass::Backward] }
}

impl Operands {
    fn all(&self) -> impl Iterator<Item = &Tensor> {
        let tensors = self.x.iter().chain(&self.y).chain(&self.saved).chain(&self.dy);
        tensors.chain(self.dx.iter().flatten())
    }

    fn bytes(&self) -> usize {
        self.all().map(|t| t.spec().bytes()).sum()
    }

    fn copy(&self, exec: &Exec) -> Result<Operands> {
        let one = |t: &Tensor| exec.copy(&t.view());
        let list = |t: &[Tensor]| t.iter().map(one).collect::<Result<Vec<_>>>();
        Ok(Operands {
            x: list(&self.x)?,
            y: list(&self.y)?,
            saved: list(&self.saved)?,
            dy: list(&self.dy)?,
            dx: self.dx.iter().map(|t| t.as_ref().map(one).transpose()).collect::<Result<_>>()?,
        })
    }
}

fn writable(x: &mut [Tensor]) -> Vec<ViewMut<'_>> {
    x.iter_mut().filter_map(Tensor::view_mut).collect()
}

/// Runs until the effort is made; the times of the runs that count, by a clock in seconds.
fn sample(effort: Effort, clock: &mut dyn FnMut() -> f64, run: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut now = clock();
    let warm = now + effort.warm_up_seconds;
    while now < warm {
        run()?;
        now = clock();
    }
    let (end, mut times) = (now + effort.seconds, Vec::new());
    while times.len() < effort.least_runs.max(1) || (now < end && times.len() < effort.most_runs) {
        let before = clock();
        run()?;
        now = clock();
        times.push(now - before);
    }
    Ok(times)
}

/// Seconds of runs that are queued at once: long enough that the device does not wait for the host, short enough to stop in time.
const QUEUED_SECONDS: f64 = 0.02;
/// Most runs that are queued at once.
const QUEUED_RUNS: usize = 64;

/// The same where `series` queues that many runs and gives the time of each.
fn sample_queued(effort: Effort, series: &mut dyn FnMut(usize) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    let mut queue = |seconds: f64, least: usize, most: usize| -> Result<Vec<f64>> {
        let (mut times, mut spent) = (Vec::new(), 0.0);
        while times.len() < least || (spent < seconds && times.len() < most) {
            let runs = times.last().map_or(1.0, |last| QUEUED_SECONDS / f64::max(*last, 1e-9));
            let runs = (runs as usize).clamp(1, QUEUED_RUNS);
            let new = series(runs)?;
            spent += new.iter().sum::<f64>();
            times.extend(new);
        }
        Ok(times)
    };
    queue(effort.warm_up_seconds, 1, effort.most_runs)?;
    queue(effort.seconds, effort.least_runs.max(1), effort.most_runs)
}

/// Median and tenths of at least one time.
fn spread(mut times: Vec<f64>) -> Seconds {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize];
    Seconds { median: at(0.5), p10: at(0.1), p90: at(0.9) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::layer_norm;

    #[test]
    fn warm_up_is_not_counted_and_the_effort_is_bounded() {
        let seconds = std::cell::Cell::new(0.0);
        let mut runs = 0;
        let mut one = || {
            runs += 1;
            seconds.set(seconds.get() + 1.0);
            Ok(())
        };
        let effort = Effort { warm_up_seconds: 3.0, seconds: 5.0, least_runs: 2, most_runs: 100 };
        let times = sample(effort, &mut || seconds.get(), &mut one).unwrap();
        assert_eq!(times, [1.0; 5]);
        let short = Effort { warm_up_seconds: 0.0, seconds: 0.0, ..effort };
        assert_eq!(sample(short, &mut || seconds.get(), &mut one).unwrap().len(), 2);
        let most = Effort { most_runs: 4, ..effort };
        assert_eq!(sample(most, &mut || seconds.get(), &mut one).unwrap().len(), 4);
        assert_eq!(runs, 3 + 5 + 2 + 3 + 4);
    }

    #[test]
    fn queued_runs_grow_until_the_effort_is_made() {
        let mut asked = Vec::new();
        let effort = Effort { warm_up_seconds: 0.0, seconds: 0.1, least_runs: 2, most_runs: 1000 };
        let times = sample_queued(effort, &mut |runs| {
            asked.push(runs);
            Ok(vec![1e-3; runs])
        });
        assert_eq!((times.unwrap().len(), asked), (101, vec![1, 1, 20, 20, 20, 20, 20]));
        let slow = sample_queued(effort, &mut |runs| Ok(vec![1.0; runs])).unwrap();
        assert_eq!(slow.len(), 2);
    }

    #[test]
    fn a_device_is_timed_by_its_own_events() {
        let (room, exec) = (&layer_norm::ROOM, Exec::open("dry:sm_90a".parse().unwrap()).unwrap());
        let case = &(room.cases)()[1];
        let mut bench = Bench::prepare(room, case, Dtype::F32, &exec, 2000).unwrap();
        assert!(bench.sets.len() > 1 && !bench.sets[0].x[0].shares_with(&bench.sets[1].x[0]));
        let effort = Effort { warm_up_seconds: 0.0, seconds: 0.0, least_runs: 3, most_runs: 9 };
        let m = bench.measure(Pass::Forward, effort, 1e9, 1e9).unwrap();
        // A device that only checks takes no time.
        assert_eq!((m.runs >= 3, m.seconds.median, m.device.as_str()), (true, 0.0, "dry:sm_90a"));
    }

    #[test]
    fn the_spread_is_of_sorted_times() {
        let s = spread((0..=10).rev().map(f64::from).collect());
        assert_eq!((s.p10, s.median, s.p90), (1.0, 5.0, 9.0));
        assert_eq!(spread(vec![7.0]), Seconds { median: 7.0, p10: 7.0, p90: 7.0 });
    }

    #[test]
    fn every_set_has_memory_of_its_own_and_the_runs_go_round() {
        let room = &layer_norm::ROOM;
        let case = &(room.cases)()[1];
        let mut bench = Bench::prepare(room, case, Dtype::F32, &Exec::cpu(), 2000).unwrap();
        assert!(bench.sets.len() > 1);
        assert!(!bench.sets[0].x[0].shares_with(&bench.sets[1].x[0]));
        assert_eq!(bench.sets[0].y[0].to_f32().unwrap(), bench.sets[1].y[0].to_f32().unwrap());
        assert!(bench.sets[1].y[0].to_f32().unwrap().iter().any(|&y| y != 0.0), "every set was run forward");
        for _ in 0..=bench.sets.len() {
            bench.run(Pass::Backward).unwrap();
        }
        assert_eq!(bench.next, 1);
        assert!(bench.sets[1].dx[0].as_ref().is_some_and(|t| t.to_f32().unwrap().iter().any(|&d| d != 0.0)));
    }

    #[test]
    fn a_measurement_is_a_line_of_json_with_its_cost() {
        let room = &layer_norm::ROOM;
        let case = &(room.cases)()[0];
        let mut bench = Bench::prepare(room, case, Dtype::Bf16, &Exec::cpu(), 0).unwrap();
        let effort = Effort { warm_up_seconds: 0.0, seconds: 0.0, least_runs: 1, most_runs: 1 };
        let m = bench.measure(Pass::Backward, effort, 1e9, 1e9).unwrap();
        let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&m).unwrap()).unwrap();
        assert_eq!(
            (&json["room"], &json["pass"], &json["dtype"]),
            (&"layer_norm".into(), &"backward".into(), &"bf16".into())
        );
        assert_eq!(json["cost"]["bytes"], cost(case, Dtype::Bf16, Pass::Backward).unwrap().bytes as u64);
        assert!(json["percent_of_floor"].as_f64().is_some_and(|p| p >= 0.0));
    }
}
