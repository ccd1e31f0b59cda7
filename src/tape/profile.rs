//! What ran, by module and operator: calls, exact cost, and, where it was asked for, the device's time and memory.

use std::ops::Range;

use crate::backend::{Exec, Timeline};
use crate::cost::{Cost, Flops};
use crate::error::Result;
use crate::ops::operator::{OpCost, OpFlops, Operator};
use crate::tensor::Spec;

/// Cost of everything on a tape, by kind of pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCost {
    /// Forward passes, each once.
    pub forward: Cost,
    /// Backward passes: the mathematics.
    pub backward: Cost,
    /// What backward methods recompute on purpose (a fused attention).
    pub recomputed: Flops,
    /// Forward passes of segments that ran again.
    pub rerun: Cost,
}

impl StepCost {
    /// The mathematics: forward and backward, each once.
    pub fn model(&self) -> Cost {
        self.forward + self.backward
    }

    /// The mathematics and what is recomputed on purpose.
    pub fn algorithm(&self) -> Cost {
        let mut cost = self.model() + self.rerun;
        cost.flops += self.recomputed;
        cost
    }
}

impl std::ops::AddAssign for StepCost {
    fn add_assign(&mut self, o: StepCost) {
        self.forward += o.forward;
        self.backward += o.backward;
        self.recomputed += o.recomputed;
        self.rerun += o.rerun;
    }
}

/// A kind of pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowPass {
    /// Forward.
    Forward,
    /// Backward, with what backward methods recompute.
    Backward,
    /// Forward passes of segments that ran again.
    Rerun,
}

/// What a watched tape saw of one pass of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Time of the device in seconds, of all calls together.
    pub seconds: f64,
    /// Bytes in use at most, of everything on the device.
    pub peak_bytes: usize,
    /// Bytes in use afterwards, the most of all calls.
    pub live_bytes: usize,
    /// What an emulator counted, else what launches state to run on matrix units, tile rounding included.
    pub executed: Option<Flops>,
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, o: Seen) {
        self.seconds += o.seconds;
        self.peak_bytes = self.peak_bytes.max(o.peak_bytes);
        self.live_bytes = self.live_bytes.max(o.live_bytes);
        self.executed = match (self.executed, o.executed) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
    }
}

/// One use of an operator in one module, at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Dotted path of the module, empty at the top.
    pub module: String,
    /// The operator's room.
    pub op: &'static str,
    /// As [`Operator::variant`].
    pub variant: &'static str,
    /// The first result.
    pub result: Spec,
    /// Forward applications.
    pub calls: u64,
    /// Exact cost.
    pub cost: StepCost,
    /// The same FLOPs as if no mask hid anything, without bytes; zero unless the tape was watched.
    pub unmasked: StepCost,
    /// What was seen of forward, backward and rerun; zero unless the tape was watched.
    pub seen: [Seen; 3],
}

impl Row {
    /// What was seen of one kind of pass.
    pub fn seen(&self, pass: RowPass) -> Seen {
        self.seen[pass as usize]
    }

    /// What tells one use from another.
    pub fn identity(&self) -> (&str, &'static str, &'static str, &Spec) {
        (&self.module, self.op, self.variant, &self.result)
    }

    /// Whether both are the same use.
    pub fn is_like(&self, o: &Row) -> bool {
        self.identity() == o.identity()
    }

    /// Adds another one of the same use.
    pub fn absorb(&mut self, o: &Row) {
        self.calls += o.calls;
        self.cost += o.cost;
        self.unmasked += o.unmasked;
        self.seen.iter_mut().zip(o.seen).for_each(|(a, b)| *a += b);
    }
}

#[derive(Debug, Default)]
struct Module {
    path: String,
    children: Vec<usize>,
    /// Rows of this module.
    rows: Vec<usize>,
}

/// What ran on a tape, in the order of first appearance.
#[derive(Debug)]
pub struct Profile {
    modules: Vec<Module>,
    rows: Vec<Row>,
    watch: Option<Watch>,
    between: Seen,
    peak_bytes: usize,
    /// Laps that ended, watched or not.
    ended: usize,
}

/// Follows the device while a tape runs on it.
#[derive(Debug)]
struct Watch {
    exec: Exec,
    /// The laps whose times are taken, and about how many these are.
    timed: Range<usize>,
    about: usize,
    timeline: Option<Timeline>,
    /// Whose each of them was; `None` if it was no operator's.
    laps: Vec<Option<(usize, RowPass)>>,
}

impl Profile {
    pub(super) fn new() -> Profile {
        let modules = vec![Module::default()];
        Profile { modules, rows: Vec::new(), watch: None, between: Seen::default(), peak_bytes: 0, ended: 0 }
    }

    pub(super) fn watch(&mut self, exec: &Exec, timed: Range<usize>, about: usize) -> Result<()> {
        exec.reset_peak();
        // What was executed before is nobody's here.
        exec.take_executed();
        exec.count_stated(true);
        let timeline = if timed.start == 0 { Some(Timeline::start(exec, about)?) } else { None };
        self.watch = Some(Watch { exec: exec.clone(), timed, about, timeline, laps: Vec::with_capacity(about) });
        Ok(())
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What a watched tape did outside of operators: copies of inputs, sums of gradients.
    pub fn between(&self) -> Seen {
        self.between
    }

    /// How many things ran one after the other, operators and what is between them: what a watched tape tells apart.
    pub fn laps(&self) -> usize {
        self.ended
    }

    /// Bytes in use at most while the tape was watched.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// The sum over all rows.
    pub fn total(&self) -> StepCost {
        self.rows.iter().fold(StepCost::default(), |mut sum, row| {
            sum += row.cost;
            sum
        })
    }

    /// Reads the times of a tape that was watched; waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn settle(&mut self) -> Result<()> {
        let Some(watch) = self.watch.take() else { return Ok(()) };
        watch.exec.count_stated(false);
        let seconds = watch.timeline.map_or(Ok(Vec::new()), Timeline::seconds)?;
        for (lap, seconds) in watch.laps.into_iter().zip(seconds) {
            match lap {
                Some((row, pass)) => self.rows[row].seen[pass as usize].seconds += seconds,
                None => self.between.seconds += seconds,
            }
        }
        Ok(())
    }

    /// Adds the times of another tape that ran the same, of laps that were not timed on this one.
    pub fn add_times(&mut self, other: &Profile) {
        for (i, theirs) in other.rows.iter().enumerate() {
            let is_its = self.rows.get(i).is_some_and(|row| row.is_like(theirs));
            let row = if is_its { self.rows.get_mut(i) } else { self.rows.iter_mut().find(|row| row.is_like(theirs)) };
            let Some(row) = row else { continue };
            row.seen.iter_mut().zip(&theirs.seen).for_each(|(mine, theirs)| mine.seconds += theirs.seconds);
        }
        self.between.seconds += other.between.seconds;
    }

    /// The module `name` inside module `parent`.
    pub(super) fn enter(&mut self, parent: usize, name: &str) -> usize {
        let path = match self.modules[parent].path.as_str() {
            "" => name.to_string(),
            outer => format!("{outer}.{name}"),
        };
        let known = self.modules[parent].children.iter().copied().find(|&c| self.modules[c].path == path);
        known.unwrap_or_else(|| {
            self.modules.push(Module { path, ..Module::default() });
            let id = self.modules.len() - 1;
            self.modules[parent].children.push(id);
            id
        })
    }

    /// The row of this use of `op`.
    fn row(&mut self, module: usize, op: &dyn Operator, result: &Spec) -> usize {
        let (name, variant) = (op.name(), op.variant());
        let is_it = |row: &Row| row.op == name && row.variant == variant && row.result == *result;
        let known = self.modules[module].rows.iter().copied().find(|&r| is_it(&self.rows[r]));
        known.unwrap_or_else(|| {
            self.rows.push(Row {
                module: self.modules[module].path.clone(),
                op: name,
                variant,
                result: result.clone(),
                calls: 0,
                cost: StepCost::default(),
                unmasked: StepCost::default(),
                seen: [Seen::default(); 3],
            });
            self.modules[module].rows.push(self.rows.len() - 1);
            self.rows.len() - 1
        })
    }

    /// The forward FLOPs with the counts of masks left out, if somebody asks for them.
    fn unmasked(&self, cost: Cost, flops: impl FnOnce() -> Option<OpFlops>) -> Cost {
        let flops = if self.watch.is_some() { flops().map_or(cost.flops, |f| f.forward) } else { Flops::ZERO };
        Cost { flops, bytes: 0 }
    }

    pub(super) fn forward(&mut self, at: At<'_>, cost: Cost, unmasked: impl FnOnce() -> Option<OpFlops>) -> Result<()> {
        let unmasked = self.unmasked(cost, unmasked);
        let id = self.row(at.module, at.op, at.result);
        let row = &mut self.rows[id];
        row.calls += 1;
        row.cost.forward += cost;
        row.unmasked.forward += unmasked;
        self.lap(Some((id, RowPass::Forward)))
    }

    pub(super) fn rerun(&mut self, at: At<'_>, cost: Cost, unmasked: impl FnOnce() -> Option<OpFlops>) -> Result<()> {
        let unmasked = self.unmasked(cost, unmasked);
        let id = self.row(at.module, at.op, at.result);
        self.rows[id].cost.rerun += cost;
        self.rows[id].unmasked.rerun += unmasked;
        self.lap(Some((id, RowPass::Rerun)))
    }

    pub(super) fn backward(
        &mut self,
        at: At<'_>,
        cost: &OpCost,
        unmasked: impl FnOnce() -> Option<OpFlops>,
    ) -> Result<()> {
        let masked = OpFlops { forward: Flops::ZERO, backward: cost.backward.flops, recomputed: cost.recomputed };
        let unmasked = if self.watch.is_some() { unmasked().unwrap_or(masked) } else { OpFlops::default() };
        let id = self.row(at.module, at.op, at.result);
        let row = &mut self.rows[id];
        row.cost.backward += cost.backward;
        row.cost.recomputed += cost.recomputed;
        row.unmasked.backward += Cost { flops: unmasked.backward, bytes: 0 };
        row.unmasked.recomputed += unmasked.recomputed;
        self.lap(Some((id, RowPass::Backward)))
    }

    /// Ends a lap of a watched tape: what ran since the last one was of this row, or of no operator.
    pub(super) fn lap(&mut self, whose: Option<(usize, RowPass)>) -> Result<()> {
        let lap = self.ended;
        self.ended += 1;
        let Some(watch) = &mut self.watch else { return Ok(()) };
        if lap + 1 == watch.timed.start {
            watch.timeline = Some(Timeline::start(&watch.exec, watch.about)?);
        }
        if watch.timed.contains(&lap)
            && let Some(timeline) = &mut watch.timeline
        {
            timeline.lap()?;
            watch.laps.push(whose);
        }
        let memory = watch.exec.reset_peak();
        let counted = watch.exec.take_executed().map(|c| Flops {
            matmul: c.matrix_flops.values().map(|n| u128::from(*n)).sum(),
            vector: c.lane_flops.into(),
            special: 0,
        });
        let stated = watch.exec.count_stated(true).map(Flops::matmul);
        let executed = counted.or(stated);
        let seen = Seen { seconds: 0.0, peak_bytes: memory.peak, live_bytes: memory.now, executed };
        self.peak_bytes = self.peak_bytes.max(memory.peak);
        match whose {
            Some((row, pass)) => self.rows[row].seen[pass as usize] += seen,
            None => self.between += seen,
        }
        Ok(())
    }
}

/// Which use of which operator.
pub(super) struct At<'a> {
    pub module: usize,
    pub op: &'a dyn Operator,
    pub result: &'a Spec,
}
