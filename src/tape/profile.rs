//! What ran, by module and operator: calls, exact cost, and wall time where it was asked for.

use crate::cost::{Cost, Flops};

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

/// One operator in one module.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Dotted path of the module, empty at the top.
    pub module: String,
    /// The operator's room.
    pub op: &'static str,
    /// Forward applications.
    pub calls: u64,
    /// Exact cost.
    pub cost: StepCost,
    /// Wall time of forward passes in seconds; 0 unless the tape was timed.
    pub forward_seconds: f64,
    /// Wall time of backward passes in seconds, reruns included; 0 unless the tape was timed.
    pub backward_seconds: f64,
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
}

impl Profile {
    pub(super) fn new() -> Profile {
        Profile { modules: vec![Module::default()], rows: Vec::new() }
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The sum over all rows.
    pub fn total(&self) -> StepCost {
        self.rows.iter().fold(StepCost::default(), |mut sum, row| {
            sum += row.cost;
            sum
        })
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

    fn row(&mut self, module: usize, op: &'static str) -> &mut Row {
        let known = self.modules[module].rows.iter().copied().find(|&r| self.rows[r].op == op);
        let id = known.unwrap_or_else(|| {
            let path = self.modules[module].path.clone();
            let cost = StepCost::default();
            self.rows.push(Row { module: path, op, calls: 0, cost, forward_seconds: 0.0, backward_seconds: 0.0 });
            self.modules[module].rows.push(self.rows.len() - 1);
            self.rows.len() - 1
        });
        &mut self.rows[id]
    }

    pub(super) fn forward(&mut self, module: usize, op: &'static str, cost: Cost, seconds: f64) {
        let row = self.row(module, op);
        row.calls += 1;
        row.cost.forward += cost;
        row.forward_seconds += seconds;
    }

    pub(super) fn rerun(&mut self, module: usize, op: &'static str, cost: Cost, seconds: f64) {
        let row = self.row(module, op);
        row.cost.rerun += cost;
        row.backward_seconds += seconds;
    }

    pub(super) fn backward(&mut self, module: usize, op: &'static str, cost: Cost, recomputed: Flops, seconds: f64) {
        let row = self.row(module, op);
        row.cost.backward += cost;
        row.cost.recomputed += recomputed;
        row.backward_seconds += seconds;
    }
}
