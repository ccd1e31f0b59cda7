//! From the bottleneck back to the stimulus.

use crate::error::Result;
use crate::models::sherlock::encoder::{Stage, through};
use crate::models::sherlock::{Modality, SherlockConfig};
use crate::nn::{Init, Linear, Pass, Scope, cast};
use crate::ops::matmul::Activation;
use crate::ops::sigmoid::Sigmoid;
use crate::tape::{Tape, Var};
use crate::tensor::Dtype;

/// A shared trunk, then two stages and a linear map a modality.
#[derive(Debug)]
pub(super) struct Decoder {
    trunk: [(&'static str, Stage); 3],
    branches: [Branch; 3],
}

/// What a modality does not share.
#[derive(Debug)]
struct Branch {
    modality: Modality,
    stages: [Stage; 2],
    head: Linear,
}

impl Decoder {
    pub(super) fn new(scope: &mut Scope<'_>, c: &SherlockConfig) -> Result<Decoder> {
        let (h, p) = (c.decoder_hidden_dim, c.decoder_dropout);
        let mut stage = |name: &'static str, k: usize, n: usize| {
            Ok::<_, crate::error::Error>((name, Stage::new(&mut scope.scope(name), ["0", "1"], n, p, map(k, n))?))
        };
        let trunk = [stage("layer7", c.bottleneck_dim, h)?, stage("layer8", h, 2 * h)?, stage("layer9", 2 * h, 4 * h)?];
        let widths = [[4 * h, 2 * h], [h, h / 2], [h, h]];
        let mut pairs = Vec::with_capacity(3);
        for (modality, [first, second]) in Modality::ALL.into_iter().zip(widths) {
            let mut at = scope.scope(modality.branch());
            pairs.push([
                Stage::new(&mut at, ["0", "1"], first, p, map(4 * h, first))?,
                Stage::new(&mut at, ["4", "5"], second, p, map(first, second))?,
            ]);
        }
        let mut pairs = pairs.into_iter();
        let mut branch = |modality: Modality, k: usize, n: usize| {
            let head = map(k, n)(&mut scope.scope(modality.head()))?;
            let stages = pairs.next().unwrap_or_else(|| unreachable!("as many pairs as modalities"));
            Ok::<_, crate::error::Error>(Branch { modality, stages, head })
        };
        let sizes = c.sizes();
        let branches = [
            branch(Modality::Video, 2 * h, sizes.pixels())?,
            branch(Modality::Audio, h / 2, sizes.mels)?,
            branch(Modality::Text, h, sizes.text)?,
        ];
        Ok(Decoder { trunk, branches })
    }

    /// What all modalities are made from, `[B, 4h]`.
    pub(super) fn trunk(&self, tape: &mut Tape<'_>, bottleneck: Var, pass: &Pass) -> Result<Var> {
        let mut x = bottleneck;
        for (name, stage) in &self.trunk {
            x = tape.in_module(name, |tape| stage.forward(tape, x, pass))?;
        }
        Ok(x)
    }

    /// One modality, in f32.
    pub(super) fn modality(&self, tape: &mut Tape<'_>, trunk: Var, which: Modality, pass: &Pass) -> Result<Var> {
        let [video, audio, text] = &self.branches;
        let branch = match which {
            Modality::Video => video,
            Modality::Audio => audio,
            Modality::Text => text,
        };
        let x = tape.in_module(branch.modality.branch(), |tape| through(&branch.stages, tape, trunk, pass))?;
        tape.in_module(branch.modality.head(), |tape| {
            let x = branch.head.forward(tape, x, Activation::None, pass)?;
            let x = cast(tape, x, Dtype::F32)?;
            if which == Modality::Video { tape.apply(Sigmoid, [x]) } else { Ok(x) }
        })
    }
}

/// A map that starts as Kaiming's normal over its results, with bias 0.
fn map(k: usize, n: usize) -> impl Fn(&mut Scope<'_>) -> Result<Linear> {
    move |scope| Linear::new(scope, k, n, true, Init::fan_out(n))
}
