//! Multi-head self-attention.

use crate::error::Result;
use crate::nn::{Dropout, Init, Linear, Pass, Scope};
use crate::ops::attention::{Attention, ProbabilityDropout};
use crate::ops::matmul::Activation;
use crate::tape::{Tape, Var};

/// Multi-head self-attention over one packed projection, read in place.
///
/// # Shapes
/// `x [B, N, C]` → `[B, N, C]`, with `C = heads · head_dim`.
///
/// # Parameters
/// `qkv.weight [3C, C]`, `qkv.bias [3C]` if asked, `proj.weight [C, C]`, `proj.bias [C]`: `4·(C² + C)` numbers with all
/// biases, named as in the original's checkpoints.
///
/// # Source
/// Vaswani et al. 2017, section 3.2.2; packing `[3][heads][head_dim]` as in alexk101/sci-scaling@7955f59.
#[derive(Clone, Copy, Debug)]
pub struct SelfAttention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
    drop_weights: Dropout,
    drop_out: Dropout,
}

/// What a [`SelfAttention`] is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelfAttentionShape {
    /// Channels C, a multiple of `heads`.
    pub c: usize,
    /// Heads.
    pub heads: usize,
    /// Whether the packed projection has a bias.
    pub has_qkv_bias: bool,
    /// Probability of dropping an attention weight.
    pub weight_dropout: f64,
    /// Probability of dropping a result.
    pub dropout: f64,
}

impl SelfAttention {
    /// Attention of this shape.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn new(scope: &mut Scope<'_>, shape: SelfAttentionShape, init: Init) -> Result<SelfAttention> {
        let c = shape.c;
        Ok(SelfAttention {
            qkv: Linear::new(&mut scope.scope("qkv"), c, 3 * c, shape.has_qkv_bias, init)?,
            proj: Linear::new(&mut scope.scope("proj"), c, c, true, init)?,
            heads: shape.heads,
            drop_weights: Dropout::new(scope, shape.weight_dropout),
            drop_out: Dropout::new(scope, shape.dropout),
        })
    }

    /// Attends.
    ///
    /// # Errors
    /// As [`Linear::forward`] and [`Attention`].
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        let qkv = tape.in_module("qkv", |tape| self.qkv.forward(tape, x, Activation::None, pass))?;
        let p = self.drop_weights.p(pass);
        let dropout = (p > 0.0).then(|| ProbabilityDropout { p, stream: pass.stream(self.drop_weights.site()) });
        let y = tape.apply(Attention { dropout, ..Attention::full(self.heads) }, [qkv])?;
        let y = tape.in_module("proj", |tape| self.proj.forward(tape, y, Activation::None, pass))?;
        self.drop_out.forward(tape, y, pass)
    }
}
