//! Normalisation layers, chosen by configuration.

use crate::error::Result;
use crate::nn::linear::cast;
use crate::nn::{Init, Scope};
use crate::ops::group_norm::GroupNorm;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::rms_norm::RmsNorm;
use crate::tape::{Param, Tape, Var};
use crate::tensor::{Dtype, Tensor};

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// Over the last axis, with mean.
    Layer,
    /// Over the last axis, without mean and bias.
    Rms,
    /// Over all tokens of a sample, in this many groups of channels.
    Group(usize),
    /// Over all tokens of a sample, each channel alone; nothing is learned.
    Instance,
}

/// A norm with learned scale (and shift), in f32 whatever the pass computes in.
///
/// # Shapes
/// `x [B, N, C]` → the same.
///
/// # Parameters
/// `weight [C]` starting at 1, `bias [C]` starting at 0 (not for [`NormKind::Rms`]); none for [`NormKind::Instance`].
///
/// # Source
/// eps 1e-5, as in alexk101/sci-scaling@7955f59; there instance norm is PyTorch's `InstanceNorm1d`, without scale and
/// shift by default.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    kind: NormKind,
    weight: Option<Param>,
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
        let (has_weight, has_bias) = (kind != NormKind::Instance, !matches!(kind, NormKind::Rms | NormKind::Instance));
        let weight = has_weight.then(|| scope.param("weight", [c], Init::Ones)).transpose()?;
        let bias = has_bias.then(|| scope.param("bias", [c], Init::Zeros)).transpose()?;
        Ok(Norm { kind, weight, bias })
    }

    /// Normalises.
    ///
    /// # Errors
    /// As the operator.
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var) -> Result<Var> {
        let x = cast(tape, x, Dtype::F32)?;
        let c = tape.spec(x)?.last();
        let weight = learned(tape, self.weight, c, 1.0)?;
        if self.kind == NormKind::Rms {
            return tape.apply(RmsNorm { eps: EPS }, [x, weight]);
        }
        let bias = learned(tape, self.bias, c, 0.0)?;
        match self.kind {
            NormKind::Group(groups) => tape.apply(GroupNorm { groups, eps: EPS }, [x, weight, bias]),
            NormKind::Instance => tape.apply(GroupNorm { groups: c, eps: EPS }, [x, weight, bias]),
            NormKind::Layer | NormKind::Rms => tape.apply(LayerNorm { eps: EPS }, [x, weight, bias]),
        }
    }
}

/// The parameter, or the constant that stands for it where nothing is learned.
fn learned(tape: &mut Tape<'_>, param: Option<Param>, c: usize, constant: f32) -> Result<Var> {
    match param {
        Some(param) => tape.param(param),
        None => tape.input(&Tensor::from_f32([c], &vec![constant; c])?),
    }
}
