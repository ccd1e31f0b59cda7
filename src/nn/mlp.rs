//! The feed-forward half of a transformer block.

use crate::error::Result;
use crate::nn::{Dropout, Init, Linear, Pass, Scope};
use crate::ops::matmul::Activation;
use crate::ops::mish::Mish;
use crate::ops::selu::Selu;
use crate::tape::{Tape, Var};

/// The function between the two maps of an [`Mlp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// One that the first map applies before it stores.
    Fused(Activation),
    /// Scaled exponential linear unit, an operator of its own.
    Selu,
    /// Mish, an operator of its own.
    Mish,
}

/// Two linear maps with an activation between them, dropout after each.
///
/// # Shapes
/// `x [.., C]` → `[.., C]`, hidden `[.., M]`.
///
/// # Parameters
/// `0.weight [M, C]`, `0.bias [M]`, `3.weight [C, M]`, `3.bias [C]`: `2·C·M + C + M` numbers; the names are the places in
/// the original's sequence of modules.
///
/// # Source
/// alexk101/sci-scaling@7955f59, `models/architecture.py`.
#[derive(Clone, Copy, Debug)]
pub struct Mlp {
    up: Linear,
    down: Linear,
    between: Between,
    drop_hidden: Dropout,
    drop_out: Dropout,
}

impl Mlp {
    /// An MLP of width `c` with `hidden` numbers inside.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn new(
        scope: &mut Scope<'_>,
        c: usize,
        hidden: usize,
        between: Between,
        dropout: f64,
        init: Init,
    ) -> Result<Mlp> {
        Ok(Mlp {
            up: Linear::new(&mut scope.scope("0"), c, hidden, true, init)?,
            down: Linear::new(&mut scope.scope("3"), hidden, c, true, init)?,
            between,
            drop_hidden: Dropout::new(scope, dropout),
            drop_out: Dropout::new(scope, dropout),
        })
    }

    /// Applies the MLP.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        let fused = if let Between::Fused(activation) = self.between { activation } else { Activation::None };
        let x = tape.in_module("0", |tape| self.up.forward(tape, x, fused, pass))?;
        let x = match self.between {
            Between::Fused(_) => x,
            Between::Selu => tape.apply(Selu, [x])?,
            Between::Mish => tape.apply(Mish, [x])?,
        };
        let x = self.drop_hidden.forward(tape, x, pass)?;
        let x = tape.in_module("3", |tape| self.down.forward(tape, x, Activation::None, pass))?;
        self.drop_out.forward(tape, x, pass)
    }
}
