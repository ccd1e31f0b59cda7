//! The parameters in the number type of the pass: rounded once, then written by every update beside the masters, so that no pass
//! rounds a weight again.

use crate::backend::Exec;
use crate::error::Result;
use crate::ops::cast::Cast;
use crate::ops::operator::{Forward, Operator};
use crate::tensor::{Arena, Dtype, Layout, ViewMut};

/// The parameters in 16 bits.
#[derive(Debug)]
pub(super) struct Shadow {
    arena: Arena,
    is_current: bool,
}

impl Shadow {
    /// Room for the parameters of this layout in `compute`; `None` if they are of that type themselves.
    pub(super) fn new(exec: &Exec, layout: &Layout, compute: Dtype) -> Result<Option<Shadow>> {
        if layout.dtype() == compute {
            return Ok(None);
        }
        Ok(Some(Shadow { arena: exec.arena(layout.beside(compute)?)?, is_current: false }))
    }

    /// The parameters are about to be overwritten by somebody else.
    pub(super) fn forget(&mut self) {
        self.is_current = false;
    }

    /// What `params` are in its type, rounded now unless an update wrote it.
    pub(super) fn of(&mut self, exec: &Exec, params: &Arena) -> Result<&Arena> {
        if !self.is_current && !exec.is_plan() {
            let cast = Cast { to: self.arena.layout().dtype() };
            let y = &mut [self.arena.flat_mut()];
            cast.forward(exec, Forward { x: &[params.flat()], y, saved: &mut [] })?;
        }
        self.is_current = true;
        Ok(&self.arena)
    }

    /// For the update.
    pub(super) fn flat_mut(&mut self) -> ViewMut<'_> {
        self.arena.flat_mut()
    }
}
