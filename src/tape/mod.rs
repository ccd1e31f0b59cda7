//! The autograd tape: records what ran, and runs it backwards.
//!
//! A [`Var`] is an index and `Copy`; nodes are plain records in the order of their creation, so the backward pass is a loop
//! from the end: no closures, no reference counts between nodes, no recursion, no hash maps. That makes a step something
//! that can be costed, printed, recomputed in pieces and replayed. The tape knows no operator, an operator knows no tape.
//!
//! Values live until the backward pass, which first frees what no node reads again and then frees each node's results as
//! soon as it has passed it. A [segment](Tape::checkpoint) frees its values at once and computes them again when needed.

mod backward;
mod checkpoint;
mod profile;

pub use backward::{Grads, Part};
pub use profile::{Profile, Row, RowPass, Seen, StepCost};

use std::ops::Range;

use crate::backend::Exec;
use crate::error::{Error, Result};
use crate::ops::operator::{AnyArity, Arity, Differentiable, Forward, Mask, forward_cost};
use crate::tensor::{Arena, Dtype, Spec, Tensor, View, ViewMut};

use checkpoint::Segment;
use profile::At;

/// A value on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var(u32);

/// A parameter: its place in the arena of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Param(pub(crate) u32);

impl Param {
    /// The parameter's place in the arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A buffer: its place in the arena of buffers, numbers that training passes renew and nobody differentiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(pub(crate) u32);

impl Buffer {
    /// The buffer's place in the arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value's numbers are.
#[derive(Debug)]
enum Home {
    /// Computed by a node; freed when no longer needed.
    Computed(Tensor),
    /// Given by the caller; stays.
    Given(Tensor),
    /// In the arena of parameters.
    Param(usize),
    /// In the arena of buffers.
    Buffer(usize),
    /// In the arena of what parameters are in a narrower type.
    Shadow(usize),
    /// Freed.
    Gone,
}

#[derive(Debug)]
struct Value {
    spec: Spec,
    home: Home,
    /// Whether a gradient flows to it.
    wants: bool,
}

#[derive(Debug)]
enum Kind {
    Op { op: Box<dyn Differentiable>, saved: Vec<Tensor> },
    Reshape,
}

#[derive(Debug)]
struct Node {
    kind: Kind,
    x: Vec<Var>,
    /// First result; the others follow.
    y: usize,
    results: usize,
    wanted: Mask,
    module: usize,
}

/// Records operators as they run, and computes gradients.
///
/// ```
/// use perfrun::backend::Exec;
/// use perfrun::ops::layer_norm::LayerNorm;
/// use perfrun::tape::Tape;
/// use perfrun::tensor::Tensor;
///
/// # fn main() -> perfrun::error::Result<()> {
/// let exec = Exec::cpu();
/// let mut tape = Tape::new(&exec);
/// let x = tape.input(&Tensor::from_f32([1, 2], &[1.0, 3.0])?)?;
/// let gamma = tape.input(&Tensor::from_f32([2], &[1.0, 1.0])?)?;
/// let beta = tape.input(&Tensor::from_f32([2], &[0.0, 1.0])?)?;
/// let y = tape.apply(LayerNorm { eps: 1e-5 }, [x, gamma, beta])?;
/// let y = tape.value(y)?.to_f32()?;
/// assert!((y[0] + 1.0).abs() < 1e-4 && (y[1] - 2.0).abs() < 1e-4);
/// # Ok(())
/// # }
/// ```
///
/// A wrong number of inputs does not compile:
///
/// ```compile_fail,E0308
/// # use perfrun::{ops::layer_norm::LayerNorm, tape::{Tape, Var}};
/// # fn f(tape: &mut Tape<'_>, x: Var, gamma: Var) {
/// let y = tape.apply(LayerNorm { eps: 1e-5 }, [x, gamma]);
/// # let _: perfrun::error::Result<Var> = y;
/// # }
/// ```
#[derive(Debug)]
pub struct Tape<'p> {
    exec: Exec,
    params: Option<&'p Arena>,
    /// The parameters rounded to another type.
    shadow: Option<&'p Arena>,
    /// The value of each parameter that has been read.
    param_vars: Vec<Option<Var>>,
    buffers: Option<&'p Arena>,
    /// What buffers shall hold after this pass.
    renewed: Vec<(Buffer, Tensor)>,
    /// Numbers that the caller may want to read beside the loss.
    noted: Vec<(&'static str, Tensor)>,
    values: Vec<Value>,
    nodes: Vec<Node>,
    segments: Vec<Segment>,
    in_segment: bool,
    records: bool,
    module: usize,
    profile: Profile,
}

impl<'p> Tape<'p> {
    /// A tape without parameters that records.
    pub fn new(exec: &Exec) -> Tape<'p> {
        Tape {
            exec: exec.clone(),
            params: None,
            shadow: None,
            param_vars: Vec::new(),
            buffers: None,
            renewed: Vec::new(),
            noted: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            segments: Vec::new(),
            in_segment: false,
            records: true,
            module: 0,
            profile: Profile::new(),
        }
    }

    /// A tape over these parameters that records.
    pub fn with_params(exec: &Exec, params: &'p Arena) -> Tape<'p> {
        let mut tape = Tape::new(exec);
        tape.param_vars = vec![None; params.layout().specs().len()];
        tape.params = Some(params);
        tape
    }

    /// The same tape over these buffers too.
    #[must_use]
    pub fn with_buffers(mut self, buffers: &'p Arena) -> Tape<'p> {
        self.buffers = Some(buffers);
        self
    }

    /// The same tape, with the parameters in another type beside them: [`apply_or_recall`](Tape::apply_or_recall) takes what is
    /// there instead of computing it.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `shadow` has the shapes of the parameters.
    pub fn with_shadow(mut self, shadow: &'p Arena) -> Result<Tape<'p>> {
        let shapes = |arena: &Arena| arena.layout().specs().iter().map(|s| s.shape().to_vec()).collect::<Vec<_>>();
        if self.params.map(shapes) != Some(shapes(shadow)) {
            return Err(Error::argument("tape: the shadow is not of these parameters"));
        }
        self.shadow = Some(shadow);
        Ok(self)
    }

    /// The same tape without recording: no gradient can be asked for, and nothing is kept for one.
    #[must_use]
    pub fn inference(mut self) -> Tape<'p> {
        self.records = false;
        self
    }

    /// The same tape, with the device's time and memory in its [`profile`](Tape::profile); times are there after
    /// [`Profile::settle`]. Starts the device's high-water mark of memory anew. Times are taken of the laps `timed` alone, of
    /// all that there are ([`Profile::laps`]): to mark the end of one may take longer than to start it. These are about `about`,
    /// 0 if that is not known.
    ///
    /// # Errors
    /// What the device reports.
    pub fn watched(mut self, timed: Range<usize>, about: usize) -> Result<Tape<'p>> {
        self.profile.watch(&self.exec, timed, about)?;
        Ok(self)
    }

    /// Whether gradients can be asked for.
    pub fn is_recording(&self) -> bool {
        self.records
    }

    /// The device.
    pub fn exec(&self) -> &Exec {
        &self.exec
    }

    /// A value without a gradient.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor on a device that computes; [`Error::OutOfMemory`].
    pub fn input(&mut self, x: &Tensor) -> Result<Var> {
        let home = Home::Given(self.exec.import(x)?);
        self.profile.lap(None)?;
        self.push_value(x.spec().clone(), home, false)
    }

    /// A value whose gradient can be asked for.
    ///
    /// # Errors
    /// As [`Tape::input`]; [`Error::Dtype`] for integers.
    pub fn variable(&mut self, x: &Tensor) -> Result<Var> {
        if !x.spec().dtype().is_float() {
            return Err(Error::dtype(format!("tape: variable: expected a floating-point type, found {}", x.spec())));
        }
        let home = Home::Given(self.exec.import(x)?);
        self.push_value(x.spec().clone(), home, self.records)
    }

    /// The value of a parameter.
    ///
    /// # Errors
    /// [`Error::Argument`] if the tape's arena has no such parameter.
    pub fn param(&mut self, p: Param) -> Result<Var> {
        let i = p.index();
        match self.param_vars.get(i) {
            Some(Some(var)) => return Ok(*var),
            Some(None) => {}
            None => return Err(Error::argument(format!("tape: no parameter {i} among {}", self.param_vars.len()))),
        }
        let spec = self.params.and_then(|a| a.layout().specs().get(i)).cloned();
        let spec = spec.ok_or_else(|| Error::argument(format!("tape: no parameter {i}")))?;
        let var = self.push_value(spec, Home::Param(i), self.records)?;
        self.param_vars[i] = Some(var);
        Ok(var)
    }

    /// The value of a buffer.
    ///
    /// # Errors
    /// [`Error::Argument`] if the tape has no such buffer.
    pub fn buffer(&mut self, b: Buffer) -> Result<Var> {
        let i = b.index();
        let spec = self.buffers.and_then(|a| a.layout().specs().get(i)).cloned();
        let spec = spec.ok_or_else(|| Error::argument(format!("tape: no buffer {i}")))?;
        self.push_value(spec, Home::Buffer(i), false)
    }

    /// Asks that the buffer hold `x` after this pass: whoever owns it reads [`Tape::renewed`].
    ///
    /// # Errors
    /// As [`Tape::tensor`].
    pub fn renew(&mut self, b: Buffer, x: Var) -> Result<()> {
        let value = self.tensor(x)?;
        self.renewed.push((b, value));
        Ok(())
    }

    /// What buffers shall hold after this pass.
    pub fn renewed(&self) -> &[(Buffer, Tensor)] {
        &self.renewed
    }

    /// Keeps the scalar `x` under `name` for whoever reports on the pass; it outlives the backward pass.
    ///
    /// # Errors
    /// As [`Tape::tensor`].
    pub fn note(&mut self, name: &'static str, x: Var) -> Result<()> {
        let value = self.tensor(x)?;
        self.noted.push((name, value));
        Ok(())
    }

    /// The numbers that were noted, in order.
    pub fn noted(&self) -> &[(&'static str, Tensor)] {
        &self.noted
    }

    /// Runs `op` on `x` and records it.
    ///
    /// The number of inputs is part of the operator's type, so a missing input does not compile; neither does an operator
    /// without a gradient.
    ///
    /// # Errors
    /// Whatever [`Operator::infer`](crate::ops::operator::Operator::infer) rejects, before anything is allocated; then
    /// what the device reports.
    pub fn apply<const IN: usize>(&mut self, op: impl Differentiable + Arity<IN>, x: [Var; IN]) -> Result<Var> {
        self.record(Box::new(op), &x)
    }

    /// Runs `op`, which rounds a value to another type, unless `x` is a parameter and its [shadow](Tape::with_shadow) holds the
    /// result already. Then only its gradient costs something.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn apply_or_recall(&mut self, op: impl Differentiable + Arity<1>, x: Var) -> Result<Var> {
        let result = op.infer(&[self.spec(x)?])?.y;
        let i = if let Home::Param(i) = self.value_of(x)?.home { i } else { return self.apply(op, [x]) };
        let held = self.shadow.and_then(|s| s.layout().specs().get(i));
        let (Some(held), [result]) = (held, &result[..]) else { return self.apply(op, [x]) };
        if held != result {
            return self.apply(op, [x]);
        }
        let y = self.push_value(held.clone(), Home::Shadow(i), self.records)?;
        if self.records {
            let kind = Kind::Op { op: Box::new(op), saved: Vec::new() };
            let wanted = Mask::of([0]);
            self.nodes.push(Node { kind, x: vec![x], y: y.0 as usize, results: 1, wanted, module: self.module });
        }
        Ok(y)
    }

    /// Runs an operator that takes any number of inputs.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn apply_to_many(&mut self, op: impl Differentiable + AnyArity, x: &[Var]) -> Result<Var> {
        self.record(Box::new(op), x)
    }

    /// Runs an operator with several results and gives all of them.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn apply_all<const IN: usize>(
        &mut self,
        op: impl Differentiable + Arity<IN>,
        x: [Var; IN],
    ) -> Result<Vec<Var>> {
        let first = self.record(Box::new(op), &x)?;
        Ok((first.0..self.values.len() as u32).map(Var).collect())
    }

    /// The same numbers under another shape of the same length; costs nothing.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements differs.
    pub fn reshape(&mut self, x: Var, shape: impl Into<Box<[usize]>>) -> Result<Var> {
        let tensor = match &self.value_of(x)?.home {
            Home::Computed(t) | Home::Given(t) => t.reshape(shape)?,
            Home::Param(_) | Home::Shadow(_) => {
                let view = self.value(x)?;
                let spec = view.reshape(shape)?.spec().clone();
                // The arena is borrowed, not shared, so a parameter's reshape is a copy.
                self.exec.copy(&view.reshape(spec.shape())?)?
            }
            Home::Buffer(_) => self.exec.copy(&self.value(x)?.reshape(shape)?)?,
            Home::Gone => return Err(gone(x)),
        };
        let wants = self.value_of(x)?.wants;
        let y = self.push_value(tensor.spec().clone(), Home::Computed(tensor), wants)?;
        if wants || (self.records && self.in_segment) {
            let wanted = if wants { Mask::of([0]) } else { Mask::NONE };
            let node =
                Node { kind: Kind::Reshape, x: vec![x], y: y.0 as usize, results: 1, wanted, module: self.module };
            self.nodes.push(node);
        }
        Ok(y)
    }

    /// Number type and shape of a value.
    ///
    /// # Errors
    /// [`Error::Argument`] if the value is of another tape.
    pub fn spec(&self, x: Var) -> Result<&Spec> {
        Ok(&self.value_of(x)?.spec)
    }

    /// The value, for reading.
    ///
    /// # Errors
    /// [`Error::Argument`] if the value is of another tape, or has been freed (by a backward pass or inside a segment).
    pub fn value(&self, x: Var) -> Result<View<'_>> {
        match &self.value_of(x)?.home {
            Home::Computed(t) | Home::Given(t) => Ok(t.view()),
            Home::Param(i) => self.params.and_then(|p| p.view(*i)).ok_or_else(|| gone(x)),
            Home::Buffer(i) => self.buffers.and_then(|p| p.view(*i)).ok_or_else(|| gone(x)),
            Home::Shadow(i) => self.shadow.and_then(|s| s.view(*i)).ok_or_else(|| gone(x)),
            Home::Gone => Err(gone(x)),
        }
    }

    /// The value as a tensor of its own that outlives the tape; shared, not copied, unless it is a parameter.
    ///
    /// # Errors
    /// As [`Tape::value`].
    pub fn tensor(&self, x: Var) -> Result<Tensor> {
        match &self.value_of(x)?.home {
            Home::Computed(t) | Home::Given(t) => Ok(t.clone()),
            _ => {
                let view = self.value(x)?;
                self.exec.copy(&view)
            }
        }
    }

    /// Runs `f` with `name` appended to the module path under which costs are listed.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn in_module<T>(&mut self, name: &str, f: impl FnOnce(&mut Tape<'p>) -> Result<T>) -> Result<T> {
        let outer = self.module;
        self.module = self.profile.enter(outer, name);
        let result = f(self);
        self.module = outer;
        result
    }

    /// Exact cost of what has run so far.
    pub fn cost(&self) -> StepCost {
        self.profile.total()
    }

    /// What ran, when the tape is done with.
    pub fn into_profile(self) -> Profile {
        self.profile
    }

    /// The same by module and operator.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    fn value_of(&self, x: Var) -> Result<&Value> {
        self.values.get(x.0 as usize).ok_or_else(|| foreign(x))
    }

    fn push_value(&mut self, spec: Spec, home: Home, wants: bool) -> Result<Var> {
        let id = u32::try_from(self.values.len()).map_err(|_| Error::too_large("tape", "values", self.values.len()))?;
        self.values.push(Value { spec, home, wants });
        Ok(Var(id))
    }

    fn record(&mut self, op: Box<dyn Differentiable>, x: &[Var]) -> Result<Var> {
        let specs = specs_of(&self.values, x)?;
        let out = op.infer(&specs)?;
        let mut wanted = Mask::NONE;
        for (i, &v) in x.iter().enumerate() {
            if self.records && self.value_of(v)?.wants {
                wanted = wanted.with(i);
            }
        }
        let cost = forward_cost(&*op, &specs)?;
        let (y, mut saved) = self.forward_of(&*op, x, &out.y, &out.saved)?;
        if let Some(result) = out.y.first() {
            let at = At { module: self.module, op: &*op, result };
            self.profile.forward(at, cost, || op.unmasked_flops(&specs, wanted))?;
        }
        if wanted.is_empty() || self.in_segment {
            saved.clear();
        }
        let first = self.values.len();
        let results = y.len();
        for t in y {
            self.push_value(t.spec().clone(), Home::Computed(t), !wanted.is_empty())?;
        }
        if !wanted.is_empty() || (self.records && self.in_segment) {
            let kind = Kind::Op { op, saved };
            self.nodes.push(Node { kind, x: x.to_vec(), y: first, results, wanted, module: self.module });
        }
        Ok(Var(first as u32))
    }

    /// Allocates results and runs the forward pass.
    fn forward_of(
        &self,
        op: &dyn Differentiable,
        x: &[Var],
        y: &[Spec],
        saved: &[Spec],
    ) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let alloc = |specs: &[Spec]| specs.iter().map(|s| self.exec.alloc(s.clone())).collect::<Result<Vec<_>>>();
        let (mut y, mut saved) = (alloc(y)?, alloc(saved)?);
        if self.exec.is_plan() {
            // Freed values are an error on every device.
            x.iter().try_for_each(|&v| self.value(v).map(drop))?;
            return Ok((y, saved));
        }
        let views = x.iter().map(|&v| self.value(v)).collect::<Result<Vec<_>>>()?;
        op.forward(&self.exec, Forward { x: &views, y: &mut writable(&mut y), saved: &mut writable(&mut saved) })?;
        Ok((y, saved))
    }
}

fn writable(tensors: &mut [Tensor]) -> Vec<ViewMut<'_>> {
    // Freshly allocated, so nobody shares them.
    tensors.iter_mut().filter_map(Tensor::view_mut).collect()
}

/// Specs of some values: borrows the values alone.
fn specs_of<'v>(values: &'v [Value], x: &[Var]) -> Result<Vec<&'v Spec>> {
    x.iter().map(|v| values.get(v.0 as usize).map(|value| &value.spec).ok_or_else(|| foreign(*v))).collect()
}

fn foreign(x: Var) -> Error {
    Error::argument(format!("tape: no value {}; is it of another tape?", x.0))
}

fn gone(x: Var) -> Error {
    Error::argument(format!(
        "tape: value {} has been freed: read it before the backward pass, and outside of the segment that made it",
        x.0
    ))
}

/// A tensor of one number in each element, for seeds.
fn constant(spec: &Spec, value: f32) -> Result<Tensor> {
    if spec.dtype() == Dtype::I32 {
        return Err(Error::dtype(format!("tape: backward: expected a floating-point value, found {spec}")));
    }
    Tensor::from_f32_as(spec.clone(), &vec![value; spec.len()])
}

#[cfg(test)]
mod tests;
