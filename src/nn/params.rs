//! The table of parameters: names, shapes, first values, one arena.

use std::collections::HashSet;

use crate::error::{Error, Faults, Result};
use crate::nn::buffers::{Buffers, Counter};
use crate::nn::{Init, Site};
use crate::tape::{Buffer, Param};
use crate::tensor::{Arena, Dtype, Layout, Tensor, View};

/// All parameters of a model, in f32, in one arena; and its buffers in another.
#[derive(Debug)]
pub struct Params {
    names: Vec<Box<str>>,
    inits: Vec<Init>,
    arena: Arena,
    buffers: Buffers,
    order: Vec<Entry>,
}

/// What stands at a place of a model's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A parameter.
    Param(Param),
    /// A buffer.
    Buffer(Buffer),
    /// The counter of this number among [`Buffers::counters`].
    Counter(usize),
}

/// Numbers that are drawn before they are written to the device: 64 MiB.
const PIECE: usize = 1 << 24;

impl Params {
    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Number of trainable numbers.
    pub fn count(&self) -> u64 {
        self.arena.layout().specs().iter().map(|s| s.len() as u64).sum()
    }

    /// Names in order, each with its handle.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Param, &str)> {
        self.names.iter().enumerate().map(|(i, n)| (Param(i as u32), &**n))
    }

    /// The parameter of this name.
    pub fn find(&self, name: &str) -> Option<Param> {
        self.names.iter().position(|n| &**n == name).map(|i| Param(i as u32))
    }

    /// The name of a parameter.
    pub fn name(&self, p: Param) -> Option<&str> {
        self.names.get(p.index()).map(|n| &**n)
    }

    /// The values of a parameter.
    pub fn get(&self, p: Param) -> Option<View<'_>> {
        self.arena.view(p.index())
    }

    /// The arena.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The arena, for the optimiser.
    pub fn arena_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// The buffers.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// The buffers, for what a pass found and for loading.
    pub fn buffers_mut(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    /// Parameters, buffers and counters by name, in the order in which the model made them: that of its `state_dict`.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, Entry)> {
        self.order.iter().map(|&entry| {
            let name = match entry {
                Entry::Param(p) => self.name(p),
                Entry::Buffer(b) => self.buffers.names.get(b.index()).map(|n| &**n),
                Entry::Counter(i) => self.buffers.counters.get(i).map(|c| &*c.name),
            };
            (name.unwrap_or_default(), entry)
        })
    }

    /// Draws all parameters anew from `seed`; buffers get their first values.
    ///
    /// # Errors
    /// [`Error::Argument`] on a device that only plans; what the device reports.
    pub fn initialise(&mut self, seed: u64) -> Result<()> {
        let mut values = Vec::new();
        for (i, (name, init)) in self.names.iter().zip(&self.inits).enumerate() {
            let Some(mut view) = self.arena.view_mut(i) else { continue };
            let len = view.spec().len();
            for first in (0..len).step_by(PIECE) {
                values.resize(PIECE.min(len - first), 0.0);
                init.fill(seed, name, first, &mut values);
                view.part(first, [values.len()])?.write(bytemuck::cast_slice(&values))?;
            }
        }
        self.buffers.initialise(seed)
    }

    /// Overwrites every parameter and buffer with the tensor of its name. Nothing is overwritten unless all fit. Counters
    /// stay: a tensor holds no such number.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that lists every missing, unexpected and misshaped tensor.
    pub fn load<'t>(&mut self, tensors: impl IntoIterator<Item = (&'t str, &'t Tensor)>) -> Result<()> {
        let mut faults = Faults::new();
        let parameters = self.len();
        let names: Vec<&str> = self.names.iter().chain(&self.buffers.names).map(|n| &**n).collect();
        let specs = [self.arena.layout().specs(), self.buffers.arena.layout().specs()].concat();
        let mut found: Vec<Option<&Tensor>> = vec![None; names.len()];
        for (name, tensor) in tensors {
            let Some(i) = names.iter().position(|n| *n == name) else {
                faults.push(format!("{name}: unexpected: the model has no such parameter"));
                continue;
            };
            let want = &specs[i];
            if want.shape() != tensor.shape() || !tensor.spec().dtype().is_float() {
                faults.push(format!("{name}: expected {want}, found {}", tensor.spec()));
            }
            found[i] = Some(tensor);
        }
        for (name, tensor) in names.iter().zip(&found) {
            if tensor.is_none() {
                faults.push(format!("{name}: missing"));
            }
        }
        faults.into_result(Error::Checkpoint)?;
        for (i, tensor) in found.into_iter().enumerate() {
            let to = match i.checked_sub(parameters) {
                None => self.arena.view_mut(i),
                Some(buffer) => self.buffers.arena.view_mut(buffer),
            };
            if let (Some(mut to), Some(from)) = (to, tensor) {
                to.write(bytemuck::cast_slice(&from.to_f32()?))?;
            }
        }
        Ok(())
    }
}

/// Collects parameters while a model is constructed.
#[derive(Debug, Default)]
pub struct Builder {
    names: Vec<Box<str>>,
    taken: HashSet<Box<str>>,
    shapes: Vec<Box<[usize]>>,
    inits: Vec<Init>,
    buffers: Vec<(Box<str>, Box<[usize]>, Init)>,
    counters: Vec<Counter>,
    order: Vec<Entry>,
    sites: u64,
}

impl Builder {
    /// No parameter yet.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// The scope at the top.
    pub fn root(&mut self) -> Scope<'_> {
        Scope { builder: self, path: String::new() }
    }

    /// The table over the arena that `alloc` gives, all values zero: [`Params::initialise`] or [`Params::load`] fills
    /// them.
    ///
    /// # Errors
    /// What `alloc` returns; [`Error::TooLarge`].
    pub fn build(self, alloc: impl Fn(Layout) -> Result<Arena>) -> Result<Params> {
        let arena = alloc(Layout::new(Dtype::F32, self.shapes)?)?;
        let (mut names, mut inits, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        for (name, shape, init) in self.buffers {
            names.push(name);
            shapes.push(shape);
            inits.push(init);
        }
        let layout = Layout::new(Dtype::F32, shapes)?;
        let buffers = if layout.is_empty() { Arena::zeros(layout) } else { alloc(layout)? };
        let buffers = Buffers { names, inits, arena: buffers, counters: self.counters };
        Ok(Params { names: self.names, inits: self.inits, arena, buffers, order: self.order })
    }
}

/// A place in the tree of names.
#[derive(Debug)]
pub struct Scope<'b> {
    builder: &'b mut Builder,
    path: String,
}

impl Scope<'_> {
    /// The scope `name` inside this one.
    pub fn scope(&mut self, name: impl AsRef<str>) -> Scope<'_> {
        let path = self.join(name.as_ref());
        Scope { builder: self.builder, path }
    }

    /// A parameter of this scope.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is taken.
    pub fn param(&mut self, name: &str, shape: impl Into<Box<[usize]>>, init: Init) -> Result<Param> {
        let name = self.take(name)?;
        let id = u32_of("parameters", self.builder.names.len())?;
        self.builder.names.push(name);
        self.builder.shapes.push(shape.into());
        self.builder.inits.push(init);
        self.builder.order.push(Entry::Param(Param(id)));
        Ok(Param(id))
    }

    /// A buffer of this scope: f32, not trained, renewed by training passes.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is taken.
    pub fn buffer(&mut self, name: &str, shape: impl Into<Box<[usize]>>, init: Init) -> Result<Buffer> {
        let name = self.take(name)?;
        let id = u32_of("buffers", self.builder.buffers.len())?;
        self.builder.buffers.push((name, shape.into(), init));
        self.builder.order.push(Entry::Buffer(Buffer(id)));
        Ok(Buffer(id))
    }

    /// A whole number of this scope that counts how often `of` is renewed.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is taken.
    pub fn counter(&mut self, name: &str, of: Buffer) -> Result<()> {
        let name = self.take(name)?;
        self.builder.order.push(Entry::Counter(self.builder.counters.len()));
        self.builder.counters.push(Counter { name, of, count: 0 });
        Ok(())
    }

    /// A place that draws random numbers.
    pub fn site(&mut self) -> Site {
        self.builder.sites += 1;
        Site(self.builder.sites)
    }

    /// The name's path, which nobody else may have.
    fn take(&mut self, name: &str) -> Result<Box<str>> {
        let name: Box<str> = self.join(name).into();
        if !self.builder.taken.insert(name.clone()) {
            return Err(Error::config(format!("{name}: two parameters of this name")));
        }
        Ok(name)
    }

    fn join(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_string(),
            path => format!("{path}.{name}"),
        }
    }
}

fn u32_of(what: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::too_large("params", what, n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build() -> (Params, Param) {
        let mut builder = Builder::new();
        let mut root = builder.root();
        let w = root.scope("blocks.0").scope("mlp").param("weight", [2, 3], Init::Ones).unwrap();
        root.param("bias", [3], Init::Zeros).unwrap();
        let mut params = builder.build(|layout| Ok(Arena::zeros(layout))).unwrap();
        params.initialise(1).unwrap();
        (params, w)
    }

    #[test]
    fn names_are_paths_and_are_taken_once() {
        let (params, w) = build();
        assert_eq!(params.name(w), Some("blocks.0.mlp.weight"));
        assert_eq!(params.find("bias").map(Param::index), Some(1));
        assert_eq!(params.count(), 9);
        let mut builder = Builder::new();
        builder.root().param("w", [1], Init::Ones).unwrap();
        assert!(builder.root().param("w", [1], Init::Ones).is_err());
    }

    #[test]
    fn loading_lists_every_fault_and_changes_nothing_unless_all_fit() {
        let (mut params, w) = build();
        let bad = Tensor::from_f32([3, 2], &[5.0; 6]).unwrap();
        let other = Tensor::from_f32([1], &[5.0]).unwrap();
        let e = params.load([("blocks.0.mlp.weight", &bad), ("extra", &other)]).unwrap_err().to_string();
        assert_eq!(e.lines().count(), 3, "{e}");
        assert!(
            e.contains("expected [2, 3] f32, found [3, 2] f32")
                && e.contains("extra: unexpected")
                && e.contains("bias: missing")
        );
        assert_eq!(params.get(w).unwrap().f32().unwrap(), [1.0; 6]);
        let (good, bias) = (Tensor::from_f32([2, 3], &[5.0; 6]).unwrap(), Tensor::from_f32([3], &[2.0; 3]).unwrap());
        params.load([("bias", &bias), ("blocks.0.mlp.weight", &good)]).unwrap();
        assert_eq!(params.get(w).unwrap().f32().unwrap(), [5.0; 6]);
    }

    #[test]
    fn buffers_stand_among_the_parameters_and_what_renews_them_is_counted() {
        let mut builder = Builder::new();
        let mut root = builder.root();
        let mut bn = root.scope("bn");
        bn.param("weight", [2], Init::Ones).unwrap();
        let mean = bn.buffer("running_mean", [2], Init::Ones).unwrap();
        bn.counter("num_batches_tracked", mean).unwrap();
        root.param("w", [1], Init::Zeros).unwrap();
        let mut params = builder.build(|layout| Ok(Arena::zeros(layout))).unwrap();
        params.initialise(1).unwrap();
        let names: Vec<&str> = params.entries().map(|(n, _)| n).collect();
        assert_eq!(names, ["bn.weight", "bn.running_mean", "bn.num_batches_tracked", "w"]);
        assert_eq!((params.len(), params.count(), params.buffers().len()), (2, 3, 1));
        assert_eq!(params.buffers().get(mean).unwrap().f32().unwrap(), [1.0; 2]);
        let new = Tensor::from_f32([2], &[3.0, 4.0]).unwrap();
        params.buffers_mut().renew(&[(mean, new)]).unwrap();
        assert_eq!(params.buffers().get(mean).unwrap().f32().unwrap(), [3.0, 4.0]);
        assert_eq!(params.buffers().counters().collect::<Vec<_>>(), [("bn.num_batches_tracked", 1)]);
        let wrong = Tensor::from_f32([1], &[3.0]).unwrap();
        assert!(params.buffers_mut().renew(&[(mean, wrong)]).is_err());
    }
}
