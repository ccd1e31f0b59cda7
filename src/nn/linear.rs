//! `y = x·wᵀ + b`, in the number type of the pass.

use crate::error::Result;
use crate::nn::{Init, Pass, Scope};
use crate::ops::cast::Cast;
use crate::ops::matmul::{Activation, Matmul};
use crate::tape::{Param, Tape, Var};
use crate::tensor::Dtype;

/// Linear map over the last axis.
///
/// # Shapes
/// `x [.., K]` → `[.., N]`, in the number type of the pass.
///
/// # Parameters
/// `weight [N, K]`, `bias [N]` if asked: `N·K + N` numbers.
///
/// # Source
/// PyTorch's `torch.nn.Linear`: names and layout.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
}

impl Linear {
    /// A linear map from `k` to `n` numbers; the bias starts at zero.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn new(scope: &mut Scope<'_>, k: usize, n: usize, has_bias: bool, init: Init) -> Result<Linear> {
        let weight = scope.param("weight", [n, k], init)?;
        let bias = if has_bias { Some(scope.param("bias", [n], Init::Zeros)?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// A linear map from `k` to `n` numbers with bias, both starting as PyTorch's do: uniform below `1/√k`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn uniform(scope: &mut Scope<'_>, k: usize, n: usize) -> Result<Linear> {
        let weight = scope.param("weight", [n, k], Init::fan_in(k))?;
        let bias = scope.param("bias", [n], Init::fan_in(k))?;
        Ok(Linear { weight, bias: Some(bias) })
    }

    /// Applies the map, then `activation`.
    ///
    /// # Errors
    /// As [`Matmul`].
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, activation: Activation, pass: &Pass) -> Result<Var> {
        let op = Matmul { transpose_w: true, activation };
        let x = cast(tape, x, pass.compute)?;
        let w = tape.param(self.weight)?;
        let w = cast(tape, w, pass.compute)?;
        match self.bias {
            None => tape.apply(op, [x, w]),
            Some(bias) => {
                let bias = tape.param(bias)?;
                let bias = cast(tape, bias, pass.compute)?;
                tape.apply(op, [x, w, bias])
            }
        }
    }
}

/// `x` in another number type; itself if it has that type. What the tape knows of a parameter in that type is not computed again.
///
/// # Errors
/// As [`Cast`].
pub fn cast(tape: &mut Tape<'_>, x: Var, to: Dtype) -> Result<Var> {
    if tape.spec(x)?.dtype() == to { Ok(x) } else { tape.apply_or_recall(Cast { to }, x) }
}
