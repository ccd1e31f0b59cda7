//! What a model keeps beside its parameters: numbers that training passes renew and that nobody differentiates.

use crate::error::{Error, Result};
use crate::nn::Init;
use crate::tape::Buffer;
use crate::tensor::{Arena, Tensor, View};

/// All buffers of a model, f32 in one arena, and the counters beside them.
///
/// They belong to the model's state: checkpoints hold them under the names that PyTorch's `state_dict` gives them.
#[derive(Debug)]
pub struct Buffers {
    pub(super) names: Vec<Box<str>>,
    pub(super) inits: Vec<Init>,
    pub(super) arena: Arena,
    pub(super) counters: Vec<Counter>,
}

/// How often a buffer has been renewed: a whole number of its own name.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) name: Box<str>,
    pub(super) of: Buffer,
    pub(super) count: u64,
}

impl Buffers {
    /// Number of tensors, counters not among them.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Names in order, each with its handle.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Buffer, &str)> {
        self.names.iter().enumerate().map(|(i, n)| (Buffer(i as u32), &**n))
    }

    /// The values of a buffer.
    pub fn get(&self, b: Buffer) -> Option<View<'_>> {
        self.arena.view(b.index())
    }

    /// The arena.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The arena, for loading.
    pub fn arena_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// The counters, by name.
    pub fn counters(&self) -> impl ExactSizeIterator<Item = (&str, u64)> {
        self.counters.iter().map(|c| (&*c.name, c.count))
    }

    /// Sets a counter.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is none of this name.
    pub fn set_counter(&mut self, name: &str, count: u64) -> Result<()> {
        let counter = self.counters.iter_mut().find(|c| &*c.name == name);
        counter.ok_or_else(|| Error::argument(format!("{name}: the model has no such counter")))?.count = count;
        Ok(())
    }

    /// Takes over what a pass found, in the order in which it found it, and counts.
    ///
    /// # Errors
    /// [`Error::Argument`] if a buffer is not the model's; what the device reports.
    pub fn renew(&mut self, renewed: &[(Buffer, Tensor)]) -> Result<()> {
        for (buffer, value) in renewed {
            let name = self.names.get(buffer.index()).cloned().unwrap_or_default();
            let to = self.arena.view_mut(buffer.index());
            let mut to = to.ok_or_else(|| Error::argument(format!("buffers: no buffer {}", buffer.index())))?;
            if to.spec() != value.spec() {
                return Err(Error::shape(format!("{name}: expected {}, found {}", to.spec(), value.spec())));
            }
            to.copy_from(&value.view())?;
            self.counters.iter_mut().filter(|c| c.of == *buffer).for_each(|c| c.count += 1);
        }
        Ok(())
    }

    /// Sets all to their first values.
    pub(super) fn initialise(&mut self, seed: u64) -> Result<()> {
        for (i, (name, init)) in self.names.iter().zip(&self.inits).enumerate() {
            if let Some(mut view) = self.arena.view_mut(i) {
                let mut values = vec![0.0; view.spec().len()];
                init.fill(seed, name, 0, &mut values);
                view.write(bytemuck::cast_slice(&values))?;
            }
        }
        self.counters.iter_mut().for_each(|c| c.count = 0);
        Ok(())
    }
}
