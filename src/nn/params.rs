//! The table of parameters: names, shapes, first values, one arena.

use std::collections::HashSet;

use crate::error::{Error, Faults, Result};
use crate::nn::{Init, Site};
use crate::tape::Param;
use crate::tensor::{Arena, Dtype, Layout, Tensor, View};

/// All parameters of a model, in f32, in one arena.
#[derive(Debug)]
pub struct Params {
    names: Vec<Box<str>>,
    inits: Vec<Init>,
    arena: Arena,
}

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

    /// Draws all parameters anew from `seed`.
    ///
    /// # Errors
    /// [`Error::Argument`] on a device that only plans; what the device reports.
    pub fn initialise(&mut self, seed: u64) -> Result<()> {
        for (i, (name, init)) in self.names.iter().zip(&self.inits).enumerate() {
            if let Some(mut view) = self.arena.view_mut(i) {
                let mut values = vec![0.0; view.spec().len()];
                init.fill(seed, name, &mut values);
                view.write(bytemuck::cast_slice(&values))?;
            }
        }
        Ok(())
    }

    /// Overwrites every parameter with the tensor of its name. Nothing is overwritten unless all fit.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that lists every missing, unexpected and misshaped tensor.
    pub fn load<'t>(&mut self, tensors: impl IntoIterator<Item = (&'t str, &'t Tensor)>) -> Result<()> {
        let mut faults = Faults::new();
        let mut found: Vec<Option<&Tensor>> = vec![None; self.len()];
        for (name, tensor) in tensors {
            let Some(p) = self.find(name) else {
                faults.push(format!("{name}: unexpected: the model has no such parameter"));
                continue;
            };
            let want = &self.arena.layout().specs()[p.index()];
            if want.shape() != tensor.shape() || !tensor.spec().dtype().is_float() {
                faults.push(format!("{name}: expected {want}, found {}", tensor.spec()));
            }
            found[p.index()] = Some(tensor);
        }
        for (name, tensor) in self.names.iter().zip(&found) {
            if tensor.is_none() {
                faults.push(format!("{name}: missing"));
            }
        }
        faults.into_result(Error::Checkpoint)?;
        for (i, tensor) in found.into_iter().enumerate() {
            if let (Some(mut to), Some(from)) = (self.arena.view_mut(i), tensor) {
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
    pub fn build(self, alloc: impl FnOnce(Layout) -> Result<Arena>) -> Result<Params> {
        let arena = alloc(Layout::new(Dtype::F32, self.shapes)?)?;
        Ok(Params { names: self.names, inits: self.inits, arena })
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
        let name: Box<str> = self.join(name).into();
        if !self.builder.taken.insert(name.clone()) {
            return Err(Error::config(format!("{name}: two parameters of this name")));
        }
        let id =
            u32::try_from(self.builder.names.len()).map_err(|_| Error::too_large("params", "parameters", u32::MAX))?;
        self.builder.names.push(name);
        self.builder.shapes.push(shape.into());
        self.builder.inits.push(init);
        Ok(Param(id))
    }

    /// A place that draws random numbers.
    pub fn site(&mut self) -> Site {
        self.builder.sites += 1;
        Site(self.builder.sites)
    }

    fn join(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_string(),
            path => format!("{path}.{name}"),
        }
    }
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
}
