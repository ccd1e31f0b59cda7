//! From a stimulus to the bottleneck, and from there to voxels.

use crate::error::Result;
use crate::models::sherlock::SherlockConfig;
use crate::nn::{BatchNorm, Conv1d, Conv2d, ConvShape, Dropout, Linear, Pass, Scope, cast};
use crate::ops::concat::Concat;
use crate::ops::matmul::Activation;
use crate::ops::relu::Relu;
use crate::tape::{Tape, Var};
use crate::tensor::Dtype;

/// A linear map, batch norm, ReLU, dropout: what most of the model is made of.
#[derive(Debug)]
pub(super) struct Stage {
    names: [String; 2],
    linear: Linear,
    norm: BatchNorm,
    drop: Dropout,
}

impl Stage {
    /// Names of map and norm, e.g. `0` and `1` in a sequence; `linear` makes the map in its scope.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        names: [&str; 2],
        n: usize,
        dropout: f64,
        linear: impl FnOnce(&mut Scope<'_>) -> Result<Linear>,
    ) -> Result<Stage> {
        Ok(Stage {
            linear: linear(&mut scope.scope(names[0]))?,
            norm: BatchNorm::new(&mut scope.scope(names[1]), n)?,
            drop: Dropout::new(scope, dropout),
            names: names.map(str::to_owned),
        })
    }

    pub(super) fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        let [linear, norm] = &self.names;
        let x = tape.in_module(linear, |tape| self.linear.forward(tape, x, Activation::None, pass))?;
        let x = tape.in_module(norm, |tape| self.norm.forward(tape, x, pass))?;
        let x = tape.apply(Relu, [x])?;
        self.drop.forward(tape, x, pass)
    }
}

/// A convolution of one of the two kinds.
#[derive(Debug)]
enum Conv {
    Line(Conv1d),
    Plane(Conv2d),
}

/// Convolutions of kernel 3 and stride 2, each with batch norm and ReLU; then all numbers through one linear map, dropout and
/// ReLU, in this order.
#[derive(Debug)]
struct Convolutions {
    convs: Vec<(String, Conv, String, BatchNorm)>,
    fc: Linear,
    drop: Dropout,
}

impl Convolutions {
    /// `input` channels of `space`, which has one or two axes, to `features` numbers.
    fn new(
        scope: &mut Scope<'_>,
        input: usize,
        channels: &[usize],
        space: &[usize],
        features: usize,
        dropout: f64,
    ) -> Result<Convolutions> {
        let (mut convs, mut from) = (Vec::with_capacity(channels.len()), input);
        for (i, &to) in (1..).zip(channels) {
            let shape = ConvShape { input: from, output: to, kernel: 3, stride: 2, padding: 1 };
            let (conv, norm) = (format!("conv{i}"), format!("bn{i}"));
            let layer = match space.len() {
                1 => Conv::Line(Conv1d::new(&mut scope.scope(&conv), shape)?),
                _ => Conv::Plane(Conv2d::new(&mut scope.scope(&conv), shape)?),
            };
            let batch_norm = BatchNorm::new(&mut scope.scope(&norm), to)?;
            convs.push((conv, layer, norm, batch_norm));
            from = to;
        }
        let halved: usize = space.iter().map(|n| n.div_ceil(1 << channels.len())).product();
        let fc = Linear::uniform(&mut scope.scope("fc"), from * halved, features)?;
        Ok(Convolutions { convs, fc, drop: Dropout::new(scope, dropout) })
    }

    fn forward(&self, tape: &mut Tape<'_>, mut x: Var, pass: &Pass) -> Result<Var> {
        for (name, conv, norm_name, norm) in &self.convs {
            x = tape.in_module(name, |tape| match conv {
                Conv::Line(conv) => conv.forward(tape, x, pass),
                Conv::Plane(conv) => conv.forward(tape, x, pass),
            })?;
            x = tape.in_module(norm_name, |tape| norm.forward(tape, x, pass))?;
            x = tape.apply(Relu, [x])?;
        }
        let shape = tape.spec(x)?.shape().to_vec();
        let x = tape.reshape(x, [shape[0], shape.iter().skip(1).product()])?;
        let x = tape.in_module("fc", |tape| self.fc.forward(tape, x, Activation::None, pass))?;
        let x = self.drop.forward(tape, x, pass)?;
        tape.apply(Relu, [x])
    }
}

/// From a stimulus to the bottleneck, and from there to voxels.
#[derive(Debug)]
pub(super) struct Encoder {
    video: Convolutions,
    audio: Convolutions,
    text: [Stage; 2],
    fusion: Stage,
    to_bottleneck: [Stage; 2],
    to_voxels: Stage,
    voxels: Linear,
}

impl Encoder {
    pub(super) fn new(scope: &mut Scope<'_>, c: &SherlockConfig) -> Result<Encoder> {
        let (drop, more) = (c.encoder_dropout, c.hidden_dropout);
        let frame = [c.video_height, c.video_width];
        let map = |k: usize, n: usize| move |scope: &mut Scope<'_>| Linear::uniform(scope, k, n);
        let mut at = scope.scope("video_encoder");
        let video = Convolutions::new(&mut at, 3, &c.video_channels, &frame, c.video_features, drop)?;
        let mut at = scope.scope("audio_encoder");
        let audio = Convolutions::new(&mut at, 1, &c.audio_channels, &[c.audio_mels], c.audio_features, drop)?;
        let (mut at, hidden) = (scope.scope("text_encoder"), c.text_hidden);
        let first = Stage::new(&mut at, ["fc1", "bn1"], hidden, drop, map(c.text_dim, hidden))?;
        let second = Stage::new(&mut at, ["fc2", "bn2"], c.text_features, drop, map(hidden, c.text_features))?;
        let text = [first, second];
        let f = c.features();
        let fusion = Stage::new(&mut scope.scope("feature_conv"), ["0", "1"], f, drop, map(f, f))?;
        let (mut at, hidden) = (scope.scope("to_bottleneck"), c.bottleneck_hidden);
        let first = Stage::new(&mut at, ["0", "1"], hidden, more, map(f, hidden))?;
        let second = Stage::new(&mut at, ["4", "5"], c.bottleneck_dim, drop, map(hidden, c.bottleneck_dim))?;
        let to_bottleneck = [first, second];
        let (mut at, hidden) = (scope.scope("bottleneck_to_voxels"), c.voxel_hidden);
        let to_voxels = Stage::new(&mut at, ["0", "1"], hidden, more, map(c.bottleneck_dim, hidden))?;
        let voxels = Linear::uniform(&mut at.scope("4"), hidden, c.n_voxels)?;
        Ok(Encoder { video, audio, text, fusion, to_bottleneck, to_voxels, voxels })
    }

    /// The bottleneck `[B, D]` of a stimulus: video `[B, 3, H, W]`, audio `[B, mels]`, text `[B, dim]`.
    pub(super) fn bottleneck(&self, tape: &mut Tape<'_>, [video, audio, text]: [Var; 3], pass: &Pass) -> Result<Var> {
        let video = tape.in_module("video_encoder", |tape| self.video.forward(tape, video, pass))?;
        let audio = tape.in_module("audio_encoder", |tape| {
            let [b, mels] = *tape.spec(audio)?.shape() else { return Ok(audio) };
            let line = tape.reshape(audio, [b, 1, mels])?;
            self.audio.forward(tape, line, pass)
        })?;
        let text = tape.in_module("text_encoder", |tape| through(&self.text, tape, text, pass))?;
        // A convolution's map gives the number type of the pass, a norm gives f32.
        let parts = [video, audio, text].map(|part| cast(tape, part, Dtype::F32));
        let [video, audio, text] = parts;
        let x = tape.apply_to_many(Concat { axis: 1 }, &[video?, audio?, text?])?;
        let x = tape.in_module("feature_conv", |tape| self.fusion.forward(tape, x, pass))?;
        tape.in_module("to_bottleneck", |tape| through(&self.to_bottleneck, tape, x, pass))
    }

    /// The voxels `[B, voxels]` of a bottleneck, in f32.
    pub(super) fn voxels(&self, tape: &mut Tape<'_>, bottleneck: Var, pass: &Pass) -> Result<Var> {
        tape.in_module("bottleneck_to_voxels", |tape| {
            let x = self.to_voxels.forward(tape, bottleneck, pass)?;
            let x = tape.in_module("4", |tape| self.voxels.forward(tape, x, Activation::None, pass))?;
            cast(tape, x, Dtype::F32)
        })
    }
}

/// One stage after the other.
pub(super) fn through(stages: &[Stage], tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
    stages.iter().try_fold(x, |x, stage| stage.forward(tape, x, pass))
}
