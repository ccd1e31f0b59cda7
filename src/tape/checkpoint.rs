//! Segments: stretches of the tape whose values are freed at once and computed again in the backward pass. Less memory for
//! a second forward pass; the same bits, because every operator is repeatable.

use std::ops::Range;

use crate::error::Result;
use crate::ops::operator::forward_cost;
use crate::tape::profile::At;
use crate::tape::{Home, Kind, Tape, Var, specs_of};

/// Nodes whose values have been freed.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub nodes: Range<usize>,
    /// Values made inside.
    pub values: Range<usize>,
}

impl<'p> Tape<'p> {
    /// Runs `f`, whose result is the only value that survives it; the others are computed again in the backward pass. On a
    /// tape that does not record they are simply freed. A segment inside a segment is part of it.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn checkpoint(&mut self, f: impl FnOnce(&mut Tape<'p>) -> Result<Var>) -> Result<Var> {
        if self.in_segment {
            return f(self);
        }
        let (first_node, first_value) = (self.nodes.len(), self.values.len());
        self.in_segment = true;
        let result = f(self);
        self.in_segment = false;
        let y = result?;
        self.free_computed(first_value..self.values.len(), y);
        if self.records {
            let segment = Segment { nodes: first_node..self.nodes.len(), values: first_value..self.values.len() };
            if !segment.nodes.is_empty() {
                self.segments.push(segment);
            }
        }
        Ok(y)
    }

    /// Frees the computed values in `range` but `spared`.
    pub(super) fn free_computed(&mut self, range: Range<usize>, spared: Var) {
        for i in range {
            if i != spared.0 as usize && matches!(self.values[i].home, Home::Computed(_)) {
                self.values[i].home = Home::Gone;
            }
        }
    }

    /// Computes the values and the saved tensors of a segment again.
    pub(super) fn rerun(&mut self, segment: &Segment) -> Result<()> {
        for n in segment.nodes.clone() {
            let node = &self.nodes[n];
            let (first, results, module) = (node.y, node.results, node.module);
            if matches!(self.values[first].home, Home::Shadow(_)) {
                continue;
            }
            match &node.kind {
                Kind::Op { op, .. } => {
                    let specs = specs_of(&self.values, &node.x)?;
                    let out = op.infer(&specs)?;
                    let cost = forward_cost(&**op, &specs)?;
                    let keeps_saved = !node.wanted.is_empty();
                    let (y, saved) = self.forward_of(&**op, &node.x, &out.y, &out.saved)?;
                    if let Some(result) = out.y.first() {
                        let at = At { module, op: &**op, result };
                        self.profile.rerun(at, cost, || op.unmasked_flops(&specs, node.wanted))?;
                    }
                    for (i, t) in y.into_iter().enumerate().take(results) {
                        self.values[first + i].home = Home::Computed(t);
                    }
                    if let Kind::Op { saved: slot, .. } = &mut self.nodes[n].kind
                        && keeps_saved
                    {
                        *slot = saved;
                    }
                }
                Kind::Reshape => {
                    let x = self.tensor(node.x[0])?;
                    let t = x.reshape(self.values[first].spec.shape())?;
                    self.values[first].home = Home::Computed(t);
                }
            }
        }
        Ok(())
    }
}
