//! The backward pass: a loop over the nodes from the end. Gradients of values are set by the first contribution and added
//! to by further ones; gradients of parameters go straight into their arena.

use std::ops::Range;

use crate::backend::Exec;
use crate::error::{Error, Result};
use crate::ops::operator::{Backward, Differentiable, Factors, GradSlot, Mask, op_cost};
use crate::tape::profile::At;
use crate::tape::{Home, Kind, Node, Param, Tape, Var, constant, specs_of};
use crate::tensor::{Arena, Layout, Spec, Tensor, View, ViewMut};

/// Gradients of all parameters, in one arena of the parameters' layout: in f32, or in the type of a shadow of the parameters, in
/// which products give them; then what was computed in f32 is rounded once.
///
/// Several backward passes add up until [`clear`](Grads::clear). Weights whose gradient is the product of two matrices may have these
/// [kept](Grads::with_factors) in place of it.
#[derive(Debug)]
pub struct Grads {
    /// Of the parameters.
    layout: Layout,
    arena: Arena,
    written: Vec<bool>,
    /// Of each parameter that is not in the arena.
    pub(super) factors: Vec<Option<Factors>>,
    is_factored: Vec<bool>,
}

/// A part of an update: see [`Grads::parts`].
#[derive(Debug)]
pub enum Part<'g> {
    /// Neighbours whose gradients are neighbours.
    Flat {
        /// Where they lie in the parameters' arena, in elements.
        params: Range<usize>,
        /// Where their gradients lie.
        grads: Range<usize>,
    },
    /// One matrix, whose gradient is a product.
    Product {
        /// Where it lies in the parameters' arena, in elements.
        params: Range<usize>,
        /// What of.
        factors: &'g Factors,
    },
}

impl Grads {
    /// Zero gradients for parameters of this layout.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(exec: &Exec, layout: &Layout) -> Result<Grads> {
        Grads::with_factors(exec, layout, |_| false)
    }

    /// The same, but that nothing is made of the gradients of the weight matrices that `is_factored` names: what they are the product
    /// of is kept until [`clear`](Grads::clear), and an update multiplies it. Each of them may be the weight of one product in one pass.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn with_factors(exec: &Exec, layout: &Layout, is_factored: impl Fn(usize) -> bool) -> Result<Grads> {
        let count = layout.specs().len();
        Ok(Grads {
            arena: exec.arena(layout.without(&is_factored)?)?,
            layout: layout.clone(),
            written: vec![false; count],
            factors: (0..count).map(|_| None).collect(),
            is_factored: (0..count).map(is_factored).collect(),
        })
    }

    /// Forgets all gradients; costs nothing, because the next contribution overwrites.
    pub fn clear(&mut self) {
        self.written.fill(false);
        self.factors.fill(None);
    }

    /// The gradient of a parameter; `None` if nothing has contributed to it, or if its [factors](Grads::factors) are kept.
    pub fn get(&self, p: Param) -> Option<View<'_>> {
        if *self.is_factored.get(p.index())? {
            return None;
        }
        if *self.written.get(p.index())? { self.arena.view(p.index()) } else { None }
    }

    /// What the gradient of a parameter is the product of, if that is kept.
    pub fn factors(&self, p: Param) -> Option<&Factors> {
        self.factors.get(p.index())?.as_ref()
    }

    /// All of them, in the order of the parameters.
    pub fn all_factors(&self) -> Vec<&Factors> {
        self.factors.iter().flatten().collect()
    }

    /// The arena of the gradients that are kept themselves.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What together is all parameters: matrices whose gradient is a product, and what lies between them. Ends where nothing has
    /// contributed to such a matrix: see [`settled`](Grads::settled).
    pub fn parts(&self) -> Vec<Part<'_>> {
        let start = |layout: &Layout, i: usize| layout.range(i).map_or(layout.len(), |r| r.start);
        let (mut parts, mut first) = (Vec::new(), [0, 0]);
        let flat = |parts: &mut Vec<Part<'_>>, first: &mut [usize; 2], i: usize| {
            let [params, grads] = [start(&self.layout, i), start(self.arena.layout(), i)];
            if params > first[0] {
                parts.push(Part::Flat { params: first[0]..params, grads: first[1]..grads });
            }
            *first = [start(&self.layout, i + 1), grads];
        };
        for (i, factors) in self.factors.iter().enumerate() {
            let (Some(factors), Some(params)) = (factors, self.layout.range(i)) else { continue };
            flat(&mut parts, &mut first, i);
            parts.push(Part::Product { params, factors });
        }
        flat(&mut parts, &mut first, self.factors.len());
        parts
    }

    /// The arena, in which the gradients that nothing contributed to are zero; factors that are none are matrices of no row.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; what the device reports.
    pub fn settled(&mut self, exec: &Exec) -> Result<&mut Arena> {
        for (i, factors) in self.factors.iter_mut().enumerate().filter(|(i, _)| self.is_factored[*i]) {
            if let (None, [n, k]) = (&factors, self.layout.specs()[i].shape()) {
                let none = |columns: usize| exec.alloc(Spec::new(self.layout.dtype(), [0, columns])?);
                *factors = Some(Factors { dy: none(*n)?, x: none(*k)? });
            }
            self.written[i] = true;
        }
        for (i, written) in self.written.iter_mut().enumerate() {
            if !*written {
                if let Some(mut v) = self.arena.view_mut(i)
                    && !v.is_planned()
                {
                    v.zero()?;
                }
                *written = true;
            }
        }
        Ok(&mut self.arena)
    }
}

/// The gradient of one input while its node runs backwards.
enum Held {
    Unwanted,
    /// Goes into the parameters' arena at this place.
    Param {
        index: usize,
        add: bool,
    },
    /// Goes to this value.
    Value {
        tensor: Tensor,
        add: bool,
    },
    /// The same input stands twice among the node's inputs: added to it afterwards.
    Twice {
        tensor: Tensor,
    },
}

impl Tape<'_> {
    /// Adds the gradients of the scalar `loss`, times `seed`, to `grads`. Afterwards only `loss` and what the caller gave
    /// can be read.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `loss` is one number; [`Error::Argument`] if the tape does not record, or `grads` is of
    /// another layout; what the device reports.
    pub fn backward(&mut self, loss: Var, seed: f32, grads: &mut Grads) -> Result<()> {
        let spec = self.spec(loss)?.clone();
        if spec.len() != 1 {
            return Err(Error::shape(format!("tape: backward: loss: expected one number, found {spec}")));
        }
        let seed =
            if self.exec.is_plan() { self.exec.alloc(spec)? } else { self.exec.import(&constant(&spec, seed)?)? };
        self.backward_from(vec![(loss, seed)], Some(grads), &[]).map(drop)
    }

    /// The general backward pass: from gradients of any values to the gradients of parameters (added to `grads`) and of
    /// the variables `keep`, in their order; `None` where nothing flows.
    ///
    /// # Errors
    /// As [`Tape::backward`]; [`Error::Shape`] if a seed's spec is not its value's.
    pub fn backward_from(
        &mut self,
        seeds: Vec<(Var, Tensor)>,
        mut grads: Option<&mut Grads>,
        keep: &[Var],
    ) -> Result<Vec<Option<Tensor>>> {
        if !self.records {
            return Err(Error::argument("tape: backward: the tape was made for inference and has recorded nothing"));
        }
        if let (Some(g), Some(p)) = (&grads, self.params)
            && ![Some(p), self.shadow].into_iter().flatten().any(|of| g.layout == *of.layout())
        {
            return Err(Error::argument("tape: backward: the gradients are not of these parameters"));
        }
        let mut flow: Vec<Option<Tensor>> = (0..self.values.len()).map(|_| None).collect();
        let spared = seeds.first().map_or(Var(u32::MAX), |s| s.0);
        for (var, seed) in seeds {
            let spec = self.spec(var)?;
            if spec != seed.spec() {
                return Err(Error::shape(format!("tape: backward: seed: expected {spec}, found {}", seed.spec())));
            }
            let seed = self.exec.import(&seed)?;
            self.receive(&mut flow, var, seed)?;
        }
        self.profile.lap(None)?;
        self.free_unread(spared);
        let segments = std::mem::take(&mut self.segments);
        let mut segments = segments.iter().rev().peekable();
        while let Some(n) = self.nodes.len().checked_sub(1) {
            if let Some(segment) = segments.next_if(|s| s.nodes.end == n + 1) {
                self.rerun(segment)?;
            }
            let Some(node) = self.nodes.pop() else { break };
            let dy: Vec<Option<Tensor>> =
                (node.y..node.y + node.results).map(|i| flow[i].take_unless(keep, i)).collect();
            if dy.iter().any(Option::is_some) && !node.wanted.is_empty() {
                self.pass(&node, &dy, &mut flow, grads.as_deref_mut())?;
            }
            self.free_computed(node.y..node.y + node.results, spared);
        }
        if let Some(grads) = grads {
            self.settle_wide(&mut flow, grads)?;
        }
        Ok(keep.iter().map(|v| flow.get_mut(v.0 as usize).and_then(Option::take)).collect())
    }

    /// Frees every value that no node reads again.
    fn free_unread(&mut self, spared: Var) {
        let mut read = vec![false; self.values.len()];
        for (n, node) in self.nodes.iter().enumerate() {
            if let Some(segment) = self.segments.iter().find(|s| s.nodes.contains(&n)) {
                // To run it again takes all its inputs from outside.
                node.x
                    .iter()
                    .filter(|v| !segment.values.contains(&(v.0 as usize)))
                    .for_each(|v| read[v.0 as usize] = true);
                continue;
            }
            let Kind::Op { op, .. } = &node.kind else { continue };
            let keeps = op.keeps(node.wanted);
            node.x.iter().enumerate().filter(|(i, _)| keeps.x.has(*i)).for_each(|(_, v)| read[v.0 as usize] = true);
            (0..node.results).filter(|&i| keeps.y.has(i)).for_each(|i| read[node.y + i] = true);
        }
        for (i, read) in read.into_iter().enumerate() {
            if !read {
                self.free_computed(i..i + 1, spared);
            }
        }
    }

    /// Hands gradients of parameters that were computed in another type than the arena's to it.
    fn settle_wide(&mut self, flow: &mut [Option<Tensor>], grads: &mut Grads) -> Result<()> {
        for var in self.param_vars.iter().flatten() {
            let Home::Param(index) = self.value_of(*var)?.home else { continue };
            let Some(dx) = flow.get_mut(var.0 as usize).and_then(Option::take) else { continue };
            if let Some(mut to) = grads.arena.view_mut(index) {
                self.exec.narrow(&mut to, &dx.view(), grads.written[index])?;
            }
            grads.written[index] = true;
            self.profile.lap(None)?;
        }
        Ok(())
    }

    /// Adds a finished gradient to what flows to `var`.
    fn receive(&mut self, flow: &mut [Option<Tensor>], var: Var, gradient: Tensor) -> Result<()> {
        let slot = &mut flow[var.0 as usize];
        match slot.take() {
            None => *slot = Some(gradient),
            Some(mut sum) => {
                if sum.view_mut().is_none() {
                    sum = self.own(&sum)?;
                }
                if let Some(mut to) = sum.view_mut() {
                    self.exec.accumulate(&mut to, &gradient.view())?;
                }
                self.profile.lap(None)?;
                *slot = Some(sum);
            }
        }
        Ok(())
    }

    /// A copy that nobody shares.
    fn own(&self, x: &Tensor) -> Result<Tensor> {
        self.exec.copy(&x.view())
    }

    /// Runs one node backwards.
    fn pass(
        &mut self,
        node: &Node,
        dy: &[Option<Tensor>],
        flow: &mut [Option<Tensor>],
        mut grads: Option<&mut Grads>,
    ) -> Result<()> {
        let Kind::Op { op, saved } = &node.kind else {
            let (Some(Some(dy)), Some(&x)) = (dy.first(), node.x.first()) else { return Ok(()) };
            let dx = dy.reshape(self.spec(x)?.shape())?;
            return self.deliver(x, dx, flow, grads);
        };
        let specs = specs_of(&self.values, &node.x)?;
        let factored = match grads.as_deref_mut() {
            Some(grads) => self.keep_factors(node, &**op, dy, grads)?,
            None => Mask::NONE,
        };
        let asked = node.wanted.without(factored);
        let mut cost = op_cost(&**op, &specs, asked)?;
        // Whoever makes a gradient of factors: it is the model's arithmetic.
        cost.backward.flops = op_cost(&**op, &specs, node.wanted)?.backward.flops;
        let wanted = self.reachable(node, grads.is_some()).without(factored);
        let mut held = self.hold(node, wanted, flow, grads.as_deref())?;
        if !self.exec.is_plan() {
            let keeps = op.keeps(wanted);
            let kept = |on: bool, v: Var| if on { self.value(v).map(Some) } else { Ok(None) };
            let x = node.x.iter().enumerate().map(|(i, &v)| kept(keeps.x.has(i), v)).collect::<Result<Vec<_>>>()?;
            let result = |i: usize| kept(keeps.y.has(i), Var((node.y + i) as u32));
            let y = (0..node.results).map(result).collect::<Result<Vec<_>>>()?;
            let saved: Vec<View<'_>> = saved.iter().map(Tensor::view).collect();
            let dy: Vec<Option<View<'_>>> = dy.iter().map(|d| d.as_ref().map(Tensor::view)).collect();
            let mut dx = slots(&mut held, grads.as_deref_mut())?;
            op.backward(&self.exec, Backward { specs: &specs, x: &x, y: &y, saved: &saved, dy: &dy, dx: &mut dx })?;
        }
        let at = At { module: node.module, op: &**op, result: &self.values[node.y].spec };
        self.profile.backward(at, &cost, || op.unmasked_flops(&specs, node.wanted))?;
        for (i, held) in held.into_iter().enumerate() {
            match held {
                Held::Unwanted => {}
                Held::Param { index, .. } => {
                    if let Some(g) = grads.as_deref_mut() {
                        g.written[index] = true;
                    }
                }
                Held::Value { tensor, .. } => flow[node.x[i].0 as usize] = Some(tensor),
                Held::Twice { tensor } => self.deliver(node.x[i], tensor, flow, grads.as_deref_mut())?,
            }
        }
        Ok(())
    }

    /// Keeps what the gradients of weights are the product of, where that is asked for; of which inputs.
    fn keep_factors(
        &self,
        node: &Node,
        op: &dyn Differentiable,
        dy: &[Option<Tensor>],
        grads: &mut Grads,
    ) -> Result<Mask> {
        let mut kept = Mask::NONE;
        for (i, v) in node.x.iter().enumerate().filter(|(i, _)| node.wanted.has(*i)) {
            let (Home::Param(index) | Home::Shadow(index)) = self.value_of(*v)?.home else { continue };
            if !grads.is_factored.get(index).is_some_and(|is| *is) {
                continue;
            }
            let (Some(other), [Some(dy)], None) = (op.gradient_factor(i), dy, &grads.factors[index]) else {
                return Err(Error::argument(format!(
                    "tape: backward: parameter {index}: expected the weight of one product a step, whose factors are kept; \
                     found it in {} too",
                    op.name()
                )));
            };
            grads.factors[index] = Some(Factors { dy: dy.clone(), x: self.tensor(node.x[other])? });
            grads.written[index] = true;
            kept = kept.with(i);
        }
        Ok(kept)
    }

    /// The wanted inputs whose gradient has somewhere to go.
    fn reachable(&self, node: &Node, has_grads: bool) -> Mask {
        let mut mask = Mask::NONE;
        for (i, v) in node.x.iter().enumerate().filter(|(i, _)| node.wanted.has(*i)) {
            if has_grads || !matches!(self.values[v.0 as usize].home, Home::Param(_)) {
                mask = mask.with(i);
            }
        }
        mask
    }

    /// Finds or makes room for the gradient of each input.
    fn hold(&self, node: &Node, wanted: Mask, flow: &mut [Option<Tensor>], grads: Option<&Grads>) -> Result<Vec<Held>> {
        let mut held = Vec::with_capacity(node.x.len());
        for (i, &v) in node.x.iter().enumerate() {
            let value = self.value_of(v)?;
            if !wanted.has(i) {
                held.push(Held::Unwanted);
            } else if node.x[..i].iter().enumerate().any(|(k, o)| *o == v && wanted.has(k)) {
                held.push(Held::Twice { tensor: self.exec.alloc(value.spec.clone())? });
            } else if let (Home::Param(index) | Home::Shadow(index), Some(g)) = (&value.home, grads)
                && g.arena.layout().dtype() == value.spec.dtype()
            {
                held.push(Held::Param { index: *index, add: g.written.get(*index).copied().unwrap_or(false) });
            } else {
                held.push(match flow[v.0 as usize].take() {
                    Some(mut tensor) => {
                        if tensor.view_mut().is_none() {
                            tensor = self.own(&tensor)?;
                        }
                        Held::Value { tensor, add: true }
                    }
                    None => Held::Value { tensor: self.exec.alloc(value.spec.clone())?, add: false },
                });
            }
        }
        Ok(held)
    }

    /// Hands a finished gradient to a value or to a parameter.
    fn deliver(&mut self, x: Var, dx: Tensor, flow: &mut [Option<Tensor>], grads: Option<&mut Grads>) -> Result<()> {
        let (Home::Param(index) | Home::Shadow(index)) = self.value_of(x)?.home else {
            return self.receive(flow, x, dx);
        };
        let Some(grads) = grads else { return Ok(()) };
        if grads.arena.layout().dtype() != dx.spec().dtype() {
            return self.receive(flow, x, dx);
        }
        if let Some(mut to) = grads.arena.view_mut(index)
            && !to.is_planned()
        {
            if grads.written[index] {
                self.exec.accumulate(&mut to, &dx.view())?;
            } else {
                to.copy_from(&dx.view())?;
            }
            self.profile.lap(None)?;
        }
        grads.written[index] = true;
        Ok(())
    }
}

/// The slots that an operator writes to.
fn slots<'a>(held: &'a mut [Held], grads: Option<&'a mut Grads>) -> Result<Vec<GradSlot<'a>>> {
    let params: Vec<usize> =
        held.iter().filter_map(|h| if let Held::Param { index, .. } = h { Some(*index) } else { None }).collect();
    let views: Vec<ViewMut<'a>> = match grads {
        Some(g) => g.arena.views_mut(&params)?,
        None => Vec::new(),
    };
    let mut views = views.into_iter();
    let shared = || Error::argument("tape: a gradient is shared");
    held.iter_mut()
        .map(|h| {
            Ok(match h {
                Held::Unwanted => GradSlot::Unwanted,
                Held::Param { add, .. } => {
                    let view = views.next().ok_or_else(shared)?;
                    if *add { GradSlot::Add(view) } else { GradSlot::Set(view) }
                }
                Held::Value { tensor, add } => {
                    let view = tensor.view_mut().ok_or_else(shared)?;
                    if *add { GradSlot::Add(view) } else { GradSlot::Set(view) }
                }
                Held::Twice { tensor } => GradSlot::Set(tensor.view_mut().ok_or_else(shared)?),
            })
        })
        .collect()
}

trait TakeUnless {
    fn take_unless(&mut self, keep: &[Var], i: usize) -> Option<Tensor>;
}

impl TakeUnless for Option<Tensor> {
    /// The gradient, moved out unless the caller asked to keep it.
    fn take_unless(&mut self, keep: &[Var], i: usize) -> Option<Tensor> {
        if keep.iter().any(|v| v.0 as usize == i) { self.clone() } else { self.take() }
    }
}
