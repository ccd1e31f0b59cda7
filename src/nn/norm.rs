//! Normalisation layers, chosen by configuration.

use crate::error::Result;
use crate::nn::linear::cast;
use crate::nn::{Init, Scope};
use crate::ops::group_norm::GroupNorm;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::rms_norm::RmsNorm;
use crate::tape::{Param, Tape, Var};
use crate::tensor::Dtype;

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// Over the last axis, with mean.
    Layer,
    /// Over the last axis, without mean and bias.
    Rms,
    /// Over all tokens of a sample, in this many groups of channels.
    Group(usize),
}

/// A norm with learned scale (and shift), in f32 whatever the pass computes in.
///
/// # Shapes
/// `x [B, N, C]` → the same.
///
/// # Parameters
/// `weight [C]` starting at 1, `bias [C]` starting at 0 (not for [`NormKind::Rms`]).
///
/// # Source
/// eps 1e-5, as in alexk101/sci-scaling@7955f59.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    kind: NormKind,
    weight: Param,
    bias: Option<Param>,
}

/// Added to the variance.
const EPS: f32 = 1e-5;

impl Norm {
    /// A norm of `c` channels.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn new(scope: &mut Scope<'_>, kind: NormKind, c: usize) -> Result<Norm> {
        let weight = scope.param("weight", [c], Init::Ones)?;
        let bias = if kind == NormKind::Rms { None } else { Some(scope.param("bias", [c], Init::Zeros)?) };
        Ok(Norm { kind, weight, bias })
    }

    /// Normalises.
    ///
    /// # Errors
    /// As the operator.
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var) -> Result<Var> {
        let x = cast(tape, x, Dtype::F32)?;
        let weight = tape.param(self.weight)?;
        let Some(bias) = self.bias else { return tape.apply(RmsNorm { eps: EPS }, [x, weight]) };
        let bias = tape.param(bias)?;
        match self.kind {
            NormKind::Group(groups) => tape.apply(GroupNorm { groups, eps: EPS }, [x, weight, bias]),
            NormKind::Layer | NormKind::Rms => tape.apply(LayerNorm { eps: EPS }, [x, weight, bias]),
        }
    }
}
