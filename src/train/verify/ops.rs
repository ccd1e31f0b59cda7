//! Operator cases: forward from the inputs, backward from the gradients of the outputs.

use serde::Deserialize;

use super::attention::AttentionCase;
use super::convolution::{BatchNormCase, ConvCase};
use super::{Case, Computed};
use crate::backend::Exec;
use crate::error::{Error, Result};
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::gelu::{Approximate, Gelu};
use crate::ops::layer_norm::LayerNorm;
use crate::ops::matmul::{self, Matmul};
use crate::ops::patchify::{FeatureOrder, Patchify};
use crate::ops::relu::Relu;
use crate::ops::resize_bilinear::ResizeBilinear;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::rope::{Llama3Scaling, Pairs, Rope};
use crate::ops::sigmoid::Sigmoid;
use crate::ops::silu::Silu;
use crate::ops::swiglu::Swiglu;
use crate::ops::unpatchify::Unpatchify;
use crate::tape::{Tape, Var};
use crate::tensor::{Dtype, Spec, Tensor};

/// `attrs` of an operator case, every key known.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum OpCase {
    Attention(AttentionCase),
    Norm(NormCase),
    Activation(ActivationCase),
    Linear(LinearCase),
    PatchEmbed(PatchCase),
    PatchUnembed(PatchCase),
    Bilinear(BilinearCase),
    CrossEntropy(CrossEntropyCase),
    Rope(RopeCase),
    BatchNorm(BatchNormCase),
    Conv(ConvCase),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NormCase {
    norm: NormName,
    rows: usize,
    dim: usize,
    eps: f32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum NormName {
    Layer,
    Rms,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActivationCase {
    act: ActivationName,
    rows: usize,
    dim: usize,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ActivationName {
    Gelu,
    GeluTanh,
    Silu,
    Relu,
    Sigmoid,
    Swiglu,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinearCase {
    rows: usize,
    #[serde(rename = "in")]
    k: usize,
    out: usize,
    #[serde(default)]
    act: LinearActivation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LinearActivation {
    #[default]
    None,
    Gelu,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchCase {
    b: usize,
    channels: usize,
    height: usize,
    width: usize,
    patch: usize,
    embed: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BilinearCase {
    b: usize,
    channels: usize,
    height: usize,
    width: usize,
    out_height: usize,
    out_width: usize,
    align_corners: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CrossEntropyCase {
    rows: usize,
    vocab: usize,
    /// How the generator chose the rows without a label; the labels tell.
    #[serde(rename = "ignore_every")]
    _ignore_every: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RopeCase {
    b: usize,
    len: usize,
    heads: usize,
    head_dim: usize,
    theta: f64,
    #[serde(default)]
    start: usize,
    llama3: Option<ScalingCase>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScalingCase {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

/// The label of rows that take no part.
const IGNORE: i32 = -100;

pub(super) fn run(case: &Case, exec: &Exec, dtype: Dtype) -> Result<Vec<Computed>> {
    let attrs: OpCase = case.attrs()?;
    let run = OpRun { case, tape: Tape::new(exec), dtype, leaves: Vec::new() };
    match attrs {
        OpCase::Attention(a) => a.run(run),
        OpCase::Norm(a) => a.run(run),
        OpCase::Activation(a) => a.run(run),
        OpCase::Linear(a) => a.run(run),
        OpCase::PatchEmbed(a) => a.embed(run),
        OpCase::PatchUnembed(a) => a.unembed(run),
        OpCase::Bilinear(a) => a.run(run),
        OpCase::CrossEntropy(a) => a.run(run),
        OpCase::Rope(a) => a.run(run),
        OpCase::BatchNorm(a) => a.run(run),
        OpCase::Conv(a) => a.run(run),
    }
}

/// One operator case while it runs.
pub(super) struct OpRun<'c> {
    pub(super) case: &'c Case,
    pub(super) tape: Tape<'static>,
    dtype: Dtype,
    /// Inputs whose gradients are compared.
    leaves: Vec<(String, Var)>,
}

impl OpRun<'_> {
    /// Input `in.NAME`, whose gradient is compared.
    pub(super) fn variable(&mut self, name: &str, shape: &[usize]) -> Result<Var> {
        self.leaf(name, shape, self.dtype)
    }

    /// As [`variable`](OpRun::variable), for an input that is f32 whatever the others are.
    pub(super) fn variable_in_f32(&mut self, name: &str, shape: &[usize]) -> Result<Var> {
        self.leaf(name, shape, Dtype::F32)
    }

    /// Input `in.NAME` in f32, whose gradient is not asked for.
    pub(super) fn constant(&mut self, name: &str, shape: &[usize]) -> Result<Var> {
        self.tape.input(&self.case.floats(&format!("in.{name}"), shape, Dtype::F32)?)
    }

    fn leaf(&mut self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Var> {
        let var = self.tape.variable(&self.case.floats(&format!("in.{name}"), shape, dtype)?)?;
        self.leaves.push((format!("grad.{name}"), var));
        Ok(var)
    }

    /// Reads the outputs, runs backward from `gradout.NAME` of those in `outputs`, reads the gradients. `others` are
    /// outputs without a gradient.
    pub(super) fn finish(mut self, outputs: &[(&str, Var)], others: &[(&str, Var)]) -> Result<Vec<Computed>> {
        let mut computed = Vec::new();
        for (name, var) in outputs.iter().chain(others) {
            computed.push(Computed::of(format!("out.{name}"), &self.tape.value(*var)?)?);
        }
        let mut seeds = Vec::new();
        for (name, var) in outputs {
            let spec = self.tape.spec(*var)?.clone();
            seeds.push((*var, self.seed(&format!("gradout.{name}"), &spec)?));
        }
        let vars: Vec<Var> = self.leaves.iter().map(|l| l.1).collect();
        let grads = self.tape.backward_from(seeds, None, &vars)?;
        for ((key, _), grad) in self.leaves.iter().zip(grads) {
            let grad = grad.ok_or_else(|| Error::argument(format!("{key}: nothing flows to this input")))?;
            computed.push(Computed::of(key, &grad.view())?);
        }
        Ok(computed)
    }

    /// The gradient of an output, in the output's type; a single number may be written as `[]` or `[1]`.
    fn seed(&self, key: &str, spec: &Spec) -> Result<Tensor> {
        let shape = match self.case.get(key) {
            Some(found) if spec.len() == 1 && found.shape() == [1] => &[1][..],
            _ => spec.shape(),
        };
        self.case.floats(key, shape, spec.dtype())?.reshape(spec.shape())
    }
}

impl NormCase {
    fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let x = run.variable("x", &[self.rows, self.dim])?;
        let weight = run.variable("weight", &[self.dim])?;
        let y = match self.norm {
            NormName::Layer => {
                let bias = run.variable("bias", &[self.dim])?;
                run.tape.apply(LayerNorm { eps: self.eps }, [x, weight, bias])?
            }
            NormName::Rms => run.tape.apply(RmsNorm { eps: self.eps }, [x, weight])?,
        };
        run.finish(&[("y", y)], &[])
    }
}

impl ActivationCase {
    fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let shape = [self.rows, self.dim];
        if let ActivationName::Swiglu = self.act {
            let gate = run.variable("gate", &shape)?;
            let up = run.variable("up", &shape)?;
            let y = run.tape.apply(Swiglu, [gate, up])?;
            return run.finish(&[("y", y)], &[]);
        }
        let x = run.variable("x", &shape)?;
        let y = match self.act {
            ActivationName::Gelu => run.tape.apply(Gelu { approximate: Approximate::None }, [x])?,
            ActivationName::GeluTanh => run.tape.apply(Gelu { approximate: Approximate::Tanh }, [x])?,
            ActivationName::Silu => run.tape.apply(Silu, [x])?,
            ActivationName::Relu => run.tape.apply(Relu, [x])?,
            ActivationName::Sigmoid | ActivationName::Swiglu => run.tape.apply(Sigmoid, [x])?,
        };
        run.finish(&[("y", y)], &[])
    }
}

impl LinearCase {
    fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let x = run.variable("x", &[self.rows, self.k])?;
        let weight = run.variable("weight", &[self.out, self.k])?;
        let bias = run.variable("bias", &[self.out])?;
        let activation = match self.act {
            LinearActivation::None => matmul::Activation::None,
            LinearActivation::Gelu => matmul::Activation::Gelu,
        };
        let y = run.tape.apply(Matmul { transpose_w: true, activation }, [x, weight, bias])?;
        run.finish(&[("y", y)], &[])
    }
}

/// A linear map whose weight has a row an output.
const LINEAR: Matmul = Matmul { transpose_w: true, activation: matmul::Activation::None };

impl PatchCase {
    fn embed(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let PatchCase { b, channels: c, height, width, patch: p, embed } = *self;
        let x = run.variable("x", &[b, c, height, width])?;
        let weight = run.variable("weight", &[embed, c, p, p])?;
        let bias = run.variable("bias", &[embed])?;
        let patches = run.tape.apply(Patchify { patch: [p; 2], order: FeatureOrder::ChannelRowColumn }, [x])?;
        let weight = run.tape.reshape(weight, [embed, c * p * p])?;
        let y = run.tape.apply(LINEAR, [patches, weight, bias])?;
        run.finish(&[("y", y)], &[])
    }

    fn unembed(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let PatchCase { b, channels: c, height, width, patch: p, embed } = *self;
        if p == 0 {
            return Err(Error::argument("attrs: patch: expected 1 or more, found 0"));
        }
        let (grid, size) = ([height / p, width / p], |n: &[usize]| n.iter().fold(1_usize, |a, b| a.saturating_mul(*b)));
        let (tokens, features) = (size(&grid), size(&[p, p, c]));
        let x = run.variable("x", &[b, tokens, embed])?;
        let weight = run.variable("weight", &[features, embed])?;
        let bias = run.variable("bias", &[features])?;
        let patches = run.tape.apply(LINEAR, [x, weight, bias])?;
        let y = run.tape.apply(Unpatchify { grid, patch: [p; 2], order: FeatureOrder::RowColumnChannel }, [patches])?;
        run.finish(&[("y", y)], &[])
    }
}

impl BilinearCase {
    fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let x = run.variable("x", &[self.b, self.channels, self.height, self.width])?;
        let op = ResizeBilinear { size: [self.out_height, self.out_width], align_corners: self.align_corners };
        let y = run.tape.apply(op, [x])?;
        run.finish(&[("y", y)], &[])
    }
}

impl CrossEntropyCase {
    fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let logits = run.variable("logits", &[self.rows, self.vocab])?;
        let label = |n: i64| {
            i32::try_from(n).map_err(|_| Error::argument(format!("in.target: expected a label or {IGNORE}, found {n}")))
        };
        let target =
            run.case.integers("in.target", &[self.rows])?.into_iter().map(label).collect::<Result<Vec<_>>>()?;
        let target = run.tape.input(&Tensor::from_i32([self.rows], &target)?)?;
        let loss = run.tape.apply(CrossEntropy { ignore_index: IGNORE }, [logits, target])?;
        run.finish(&[("loss", loss)], &[])
    }
}

impl RopeCase {
    fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let x = run.variable("x", &[self.b, self.len, self.heads, self.head_dim])?;
        let scaling = self.llama3.as_ref().map(|s| Llama3Scaling {
            factor: s.factor,
            low_freq_factor: s.low,
            high_freq_factor: s.high,
            original_len: s.original,
        });
        let op = Rope { pairs: Pairs::Halves, theta: self.theta, start: self.start, scaling };
        let y = run.tape.apply(op, [x])?;
        run.finish(&[("y", y)], &[])
    }
}
