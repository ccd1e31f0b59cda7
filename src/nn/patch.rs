//! Between a grid and tokens: patch embedding, and the two heads that lead back.

use crate::error::Result;
use crate::nn::linear::cast;
use crate::nn::{Init, Linear, Pass, Scope};
use crate::ops;
use crate::ops::matmul::Activation;
use crate::ops::patchify::FeatureOrder;
use crate::ops::resize_tokens::ResizeTokens;
use crate::ops::unpatchify::Unpatchify;
use crate::tape::{Param, Tape, Var};
use crate::tensor::Dtype;

/// Non-overlapping patches through one linear map: a convolution whose stride is its kernel.
///
/// # Shapes
/// `x [B, C, H, W]` → `[B, N, D]`, tokens row by row; `H`, `W` multiples of the patch.
///
/// # Parameters
/// `proj.weight [D, C, P, P]`, `proj.bias [D]`: `D·C·P² + D` numbers, uniform in ±1/√(C·P²) as PyTorch's convolution starts.
///
/// # Source
/// Dosovitskiy et al. 2021, section 3.1.
#[derive(Clone, Copy, Debug)]
pub struct PatchEmbed {
    weight: Param,
    bias: Param,
}

impl PatchEmbed {
    /// Patches of `patch × patch` cells and `channels` variables to tokens of `dim` numbers.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn new(scope: &mut Scope<'_>, channels: usize, patch: usize, dim: usize) -> Result<PatchEmbed> {
        let mut proj = scope.scope("proj");
        let bound = 1.0 / ((channels * patch * patch) as f64).sqrt();
        let weight = proj.param("weight", [dim, channels, patch, patch], Init::Uniform { bound })?;
        let bias = proj.param("bias", [dim], Init::Uniform { bound })?;
        Ok(PatchEmbed { weight, bias })
    }

    /// Embeds.
    ///
    /// # Errors
    /// As the operator [`PatchEmbed`](ops::patch_embed::PatchEmbed).
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        tape.in_module("proj", |tape| {
            let w = tape.param(self.weight)?;
            let w = cast(tape, w, pass.compute)?;
            let bias = tape.param(self.bias)?;
            let bias = cast(tape, bias, pass.compute)?;
            tape.apply(ops::patch_embed::PatchEmbed, [x, w, bias])
        })
    }
}

/// Tokens back to a grid.
#[derive(Clone, Copy, Debug)]
pub enum GridHead {
    /// One number a token and variable, then bilinear resize (half-pixel centres, edges clamped).
    ///
    /// Parameters `weight [C, D]`, `bias [C]`.
    Bilinear {
        /// To the variables.
        proj: Linear,
        /// Rows and columns of tokens.
        tokens: [usize; 2],
        /// Rows and columns of the grid.
        grid: [usize; 2],
    },
    /// A patch of numbers a token and variable, put in place; features ordered `[row in patch][column in patch][variable]`.
    ///
    /// Parameters `weight [C·P², D]`.
    Unpatchify {
        /// To the numbers of a patch.
        proj: Linear,
        /// Rows and columns of tokens.
        tokens: [usize; 2],
        /// Edge of a patch.
        patch: usize,
    },
}

impl GridHead {
    /// Puts tokens `[B, N, D]` onto the grid, `[B, C, H, W]` in f32.
    ///
    /// # Errors
    /// As the operators.
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        match *self {
            GridHead::Bilinear { proj, tokens: grid, grid: size } => {
                let x = proj.forward(tape, x, Activation::None, pass)?;
                tape.apply(ResizeTokens { grid, size, align_corners: false }, [x])
            }
            GridHead::Unpatchify { proj, tokens: grid, patch } => {
                let x = proj.forward(tape, x, Activation::None, pass)?;
                let x = cast(tape, x, Dtype::F32)?;
                tape.apply(Unpatchify { grid, patch: [patch; 2], order: FeatureOrder::RowColumnChannel }, [x])
            }
        }
    }
}
