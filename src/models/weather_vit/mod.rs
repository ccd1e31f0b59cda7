//! A vision transformer over a latitude-longitude grid: the weather one step ahead.

pub mod config;

pub use config::WeatherVitConfig;

use crate::data::weather::WeatherBatch;
use crate::error::{Error, Faults, Result};
use crate::models::Model;
use crate::nn::{
    Between, Builder, DropPath, Dropout, GridHead, Init, Linear, Mlp, Norm, NormKind, Params, Pass, PatchEmbed, Scope,
    SelfAttention, SelfAttentionShape,
};
use crate::ops::add::Add;
use crate::ops::matmul::Activation as MatmulActivation;
use crate::ops::relative_l2::RelativeL2;
use crate::tape::{Param, Tape, Var};
use crate::tensor::{Arena, Dtype, Layout, expect_shape};
use config::{Activation, Head, NORM_GROUPS, Normalization};

use crate::nn::cast;

/// How all linear maps and the position embedding start: normal with standard deviation 0.02, cut at ±2.
const LINEAR_INIT: Init = Init::TruncatedNormal { std: 0.02, cut: 2.0 };

/// Predicts the normalised atmospheric state one step ahead with a vision transformer.
///
/// # Shapes
/// state `[B, V_in, H, W]` → `[B, V_out, H, W]` in f32; `H`, `W` multiples of the patch.
///
/// # Units
/// Normalised: `(x − mean_v) / std_v` per variable; rows from north to south, columns from the prime meridian eastwards.
///
/// # Parameters
/// 23,349,140 at `base` with the head `bilinear` (D 384, L 12, 360×720, patch 8, 20 variables); the general count is
/// [`WeatherVit::parameter_count`].
///
/// # Source
/// alexk101/sci-scaling@7955f59, `models/weather_transformer.py`, and its document. Differs on purpose: attention runs over
/// tokens on every path (the original's flash path runs over heads); the default head is the document's.
#[derive(Debug)]
pub struct WeatherVit {
    config: WeatherVitConfig,
    params: Params,
    embed: PatchEmbed,
    position: Param,
    drop: Dropout,
    blocks: Vec<Block>,
    norm: Norm,
    head: GridHead,
}

#[derive(Debug)]
struct Block {
    norm1: Norm,
    attn: SelfAttention,
    norm2: Norm,
    mlp: Mlp,
    drop_path1: DropPath,
    drop_path2: DropPath,
    name: String,
    is_pre_norm: bool,
    is_parallel: bool,
}

impl WeatherVit {
    /// A model of this shape, its parameters in the arena that `alloc` gives (`|layout| exec.arena(layout)`), all zero:
    /// [`Params::initialise`] or [`Params::load`] fills them.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault of the configuration; what `alloc` returns.
    pub fn new(config: &WeatherVitConfig, alloc: impl Fn(Layout) -> Result<Arena>) -> Result<WeatherVit> {
        let mut faults = Faults::new();
        config.validate(&mut faults);
        faults.into_result(Error::Config)?;
        let mut builder = Builder::new();
        let mut root = builder.root();
        let d = config.embed_dim;
        let kind = norm_kind(config.normalization_type);
        let position = root.param("pos_embed", [1, config.tokens(), d], LINEAR_INIT)?;
        let embed = PatchEmbed::new(&mut root.scope("patch_embed"), config.input_channels, config.patch_size, d)?;
        let drop = Dropout::new(&mut root, config.dropout);
        let mut blocks = Vec::with_capacity(config.num_layers);
        for i in 0..config.num_layers {
            blocks.push(Block::new(&mut root.scope(format!("blocks.{i}")), config, i)?);
        }
        let norm = Norm::new(&mut root.scope("norm.norm"), kind, d)?;
        let head = head(&mut root.scope("head"), config)?;
        let params = builder.build(alloc)?;
        Ok(WeatherVit { config: config.clone(), params, embed, position, drop, blocks, norm, head })
    }

    /// The shape.
    pub fn config(&self) -> &WeatherVitConfig {
        &self.config
    }

    /// Trainable numbers of a model of this shape, without building it.
    pub fn parameter_count(config: &WeatherVitConfig) -> u64 {
        let [d, l, p, n, m] =
            [config.embed_dim, config.num_layers, config.patch_size, config.tokens(), config.mlp_dim()]
                .map(|x| x as u64);
        let (cin, cout) = (config.input_channels as u64, config.output_channels as u64);
        let norm = match config.normalization_type {
            Normalization::Layer | Normalization::Group => 2 * d,
            Normalization::Rms => d,
            Normalization::Instance => 0,
        };
        let qkv_bias = if config.qkv_bias { 3 * d } else { 0 };
        let block = 2 * norm + 3 * d * d + qkv_bias + d * d + d + 2 * d * m + m + d;
        let head = match config.head {
            Head::Bilinear => d * cout + cout,
            Head::Unpatchify => d * cout * p * p,
        };
        d * cin * p * p + d + n * d + l * block + norm + head
    }

    /// The forecast for `state`, a value on `tape`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `state` is not the model's `[B, V_in, H, W]`; what the device reports.
    pub fn forward(&self, tape: &mut Tape<'_>, state: Var, pass: &Pass) -> Result<Var> {
        let c = &self.config;
        let spec = tape.spec(state)?;
        let b = spec.shape().first().copied().unwrap_or(0);
        let axes = [("B", b), ("V_in", c.input_channels), ("H", c.img_size[0]), ("W", c.img_size[1])];
        expect_shape("weather_vit", "state", spec, &axes)?;
        let mut x = tape.in_module("patch_embed", |tape| {
            let x = self.embed.forward(tape, state, pass)?;
            let x = cast(tape, x, Dtype::F32)?;
            let position = tape.param(self.position)?;
            let position = tape.reshape(position, [c.tokens(), c.embed_dim])?;
            let x = tape.apply(Add, [x, position])?;
            self.drop.forward(tape, x, pass)
        })?;
        for block in &self.blocks {
            let run = |tape: &mut Tape<'_>| tape.in_module(&block.name, |tape| block.forward(tape, x, pass));
            // Without recording a segment frees what is inside; with it, only if recomputing was asked for.
            x = if c.use_checkpointing || !tape.is_recording() { tape.checkpoint(run)? } else { run(tape)? };
        }
        let x = tape.in_module("norm", |tape| self.norm.forward(tape, x))?;
        tape.in_module("head", |tape| self.head.forward(tape, x, pass))
    }
}

impl Model for WeatherVit {
    type Batch = WeatherBatch;

    fn params(&self) -> &Params {
        &self.params
    }

    fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// The names of PyTorch's layers, and of the original's.
    fn class(&self, module: &str) -> &'static str {
        let parts: Vec<&str> = module.split('.').collect();
        match parts.as_slice() {
            [""] => "WeatherTransformer",
            ["patch_embed"] => "PatchEmbed",
            ["patch_embed", "proj"] => "Conv2d",
            ["blocks"] => "ModuleList",
            ["blocks", _] => "TransformerBlock",
            ["blocks", _, "attn"] => "CustomAttention",
            ["blocks", _, "mlp"] => "Sequential",
            ["norm"] | ["blocks", _, "norm1" | "norm2"] => match self.config.normalization_type {
                Normalization::Layer => "LayerNorm",
                Normalization::Rms => "RMSNorm",
                Normalization::Group => "GroupNorm",
                Normalization::Instance => "InstanceNorm1d",
            },
            ["loss"] => "RelativeL2",
            _ => "Linear",
        }
    }

    /// Mean over samples of ‖forecast − target‖₂ / ‖target‖₂.
    fn loss(&self, tape: &mut Tape<'_>, batch: &WeatherBatch, pass: &Pass) -> Result<Var> {
        let state = tape.input(&batch.state)?;
        let y = self.forward(tape, state, pass)?;
        let target = tape.input(&batch.target)?;
        tape.in_module("loss", |tape| tape.apply(RelativeL2, [y, target]))
    }
}

impl Block {
    fn new(scope: &mut Scope<'_>, config: &WeatherVitConfig, i: usize) -> Result<Block> {
        let (d, kind) = (config.embed_dim, norm_kind(config.normalization_type));
        let shape = SelfAttentionShape {
            c: d,
            heads: config.num_heads,
            has_qkv_bias: config.qkv_bias,
            weight_dropout: config.attention_dropout,
            dropout: config.dropout,
        };
        let between = match config.activation_type {
            Activation::Gelu => Between::Fused(MatmulActivation::Gelu),
            Activation::GeluTanh => Between::Fused(MatmulActivation::GeluTanh),
            Activation::Relu => Between::Fused(MatmulActivation::Relu),
            Activation::Silu => Between::Fused(MatmulActivation::Silu),
            Activation::Selu => Between::Selu,
            Activation::Mish => Between::Mish,
        };
        Ok(Block {
            norm1: Norm::new(&mut scope.scope("norm1.norm"), kind, d)?,
            attn: SelfAttention::new(&mut scope.scope("attn"), shape, LINEAR_INIT)?,
            norm2: Norm::new(&mut scope.scope("norm2.norm"), kind, d)?,
            mlp: Mlp::new(&mut scope.scope("mlp"), d, config.mlp_dim(), between, config.dropout, LINEAR_INIT)?,
            drop_path1: DropPath::new(scope, config.drop_path(i)),
            drop_path2: DropPath::new(scope, config.drop_path(i)),
            name: format!("blocks.{i}"),
            is_pre_norm: config.use_pre_norm,
            is_parallel: config.use_parallel_attention,
        })
    }

    fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        if self.is_pre_norm {
            let a = self.attention(tape, Some(&self.norm1), x, pass)?;
            let sum = tape.apply(Add, [x, a])?;
            let m = self.feed_forward(tape, Some(&self.norm2), if self.is_parallel { x } else { sum }, pass)?;
            return tape.apply(Add, [sum, m]);
        }
        let a = self.attention(tape, None, x, pass)?;
        let x = tape.apply(Add, [x, a])?;
        let x = self.norm1.forward(tape, x)?;
        let m = self.feed_forward(tape, None, x, pass)?;
        let x = tape.apply(Add, [x, m])?;
        self.norm2.forward(tape, x)
    }

    fn attention(&self, tape: &mut Tape<'_>, norm: Option<&Norm>, x: Var, pass: &Pass) -> Result<Var> {
        let x = norm.map_or(Ok(x), |n| tape.in_module("norm1", |tape| n.forward(tape, x)))?;
        let a = tape.in_module("attn", |tape| self.attn.forward(tape, x, pass))?;
        let a = cast(tape, a, Dtype::F32)?;
        self.drop_path1.forward(tape, a, pass)
    }

    fn feed_forward(&self, tape: &mut Tape<'_>, norm: Option<&Norm>, x: Var, pass: &Pass) -> Result<Var> {
        let x = norm.map_or(Ok(x), |n| tape.in_module("norm2", |tape| n.forward(tape, x)))?;
        let m = tape.in_module("mlp", |tape| self.mlp.forward(tape, x, pass))?;
        let m = cast(tape, m, Dtype::F32)?;
        self.drop_path2.forward(tape, m, pass)
    }
}

fn norm_kind(kind: Normalization) -> NormKind {
    match kind {
        Normalization::Layer => NormKind::Layer,
        Normalization::Rms => NormKind::Rms,
        Normalization::Group => NormKind::Group(NORM_GROUPS),
        Normalization::Instance => NormKind::Instance,
    }
}

fn head(scope: &mut Scope<'_>, config: &WeatherVitConfig) -> Result<GridHead> {
    let (d, c, tokens) = (config.embed_dim, config.output_channels, config.token_grid());
    Ok(match config.head {
        Head::Bilinear => {
            GridHead::Bilinear { proj: Linear::new(scope, d, c, true, LINEAR_INIT)?, tokens, grid: config.img_size }
        }
        Head::Unpatchify => {
            let patch = config.patch_size;
            GridHead::Unpatchify { proj: Linear::new(scope, d, c * patch * patch, false, LINEAR_INIT)?, tokens, patch }
        }
    })
}
