//! Layers: parameters with names, and forward passes composed of operators.
//!
//! A layer owns handles of parameters, not tensors. The tensors lie in one arena of [`Params`], named by the path of the
//! scope that asked for them (`blocks.3.attn.qkv.weight`, the published name), so loading, counting and optimising are
//! loops over one table.

mod attention;
mod batch_norm;
mod buffers;
mod conv;
mod dropout;
mod init;
mod linear;
mod mlp;
mod norm;
mod params;
mod patch;

pub use attention::{SelfAttention, SelfAttentionShape};
pub use batch_norm::BatchNorm;
pub use buffers::Buffers;
pub use conv::{Conv1d, Conv2d, ConvShape};
pub use dropout::{DropPath, Dropout};
pub use init::Init;
pub use linear::{Linear, cast};
pub use mlp::{Between, Mlp};
pub use norm::{Norm, NormKind};
pub use params::{Builder, Entry, Params, Scope};
pub use patch::{GridHead, PatchEmbed};

use crate::rng::Stream;
use crate::tensor::Dtype;

/// How one forward pass runs: for training or not, in which number type, with which random numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Whether dropout and drop path are on.
    pub train: bool,
    /// Number type of matrix products; norms, softmax, losses and the residual stream stay in f32.
    pub compute: Dtype,
    /// Seed of the run.
    pub seed: u64,
    /// Which pass of the run: the same number draws the same masks.
    pub number: u64,
}

impl Pass {
    /// A pass that drops nothing, in f32.
    pub const fn eval() -> Pass {
        Pass { train: false, compute: Dtype::F32, seed: 0, number: 0 }
    }

    /// The random numbers of the layer at `site` in this pass.
    pub fn stream(&self, site: Site) -> Stream {
        Stream::of(self.seed, &[0xd20b, self.number, site.0])
    }
}

/// A place in a model that draws random numbers; no two places share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site(pub(crate) u64);
