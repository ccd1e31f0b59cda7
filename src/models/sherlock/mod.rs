//! An autoencoder of a film and of the brain that watches it: stimulus to bottleneck to voxels, and back to the stimulus.

pub mod config;
mod decoder;
mod encoder;
pub mod loss;

pub use config::SherlockConfig;
pub use loss::LossConfig;

use crate::data::sherlock::{Batch, Stimulus};
use crate::error::{Error, Faults, Result};
use crate::models::Model;
use crate::nn::{Builder, Params, Pass};
use crate::tape::{Tape, Var};
use crate::tensor::{Arena, Layout, Spec};
use decoder::Decoder;
use encoder::Encoder;

/// Predicts the brain's answer to a stimulus, and the stimulus from what lies between.
///
/// # Shapes
/// video `[B, 3, H, W]`, audio `[B, mels]`, text `[B, dim]` → bottleneck `[B, D]`, voxels `[B, voxels]`, and the stimulus
/// again, video as `[B, 3·H·W]`; all in f32. Training needs `B` of 2 or more: batch norm has nothing else to compare with.
///
/// # Units
/// video in [0, 1] (a sigmoid's range), audio in dB, text without unit, voxels in standard deviations over time.
///
/// # Parameters
/// 1,974,067,762 at the published configuration: 1,595,910,386 of the encoder, 378,157,376 of the decoder. 166 state entries
/// under the original's names.
///
/// # Source
/// ContextLab/giblet-responses@4691d10, `giblet/models/{encoder,decoder,autoencoder}.py`. Differs on purpose: what the
/// configuration says of widths and dropout counts.
#[derive(Debug)]
pub struct Sherlock {
    config: SherlockConfig,
    loss: LossConfig,
    params: Params,
    encoder: Encoder,
    decoder: Decoder,
}

/// A part of the stimulus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Modality {
    /// Frames.
    Video,
    /// Sound.
    Audio,
    /// Words.
    Text,
}

impl Modality {
    /// All, in the order of the model.
    pub const ALL: [Modality; 3] = [Modality::Video, Modality::Audio, Modality::Text];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Modality::Video => "video",
            Modality::Audio => "audio",
            Modality::Text => "text",
        }
    }

    fn branch(self) -> &'static str {
        match self {
            Modality::Video => "layer10_video",
            Modality::Audio => "layer10_audio",
            Modality::Text => "layer10_text",
        }
    }

    /// The video's map stands in a sequence with its sigmoid.
    fn head(self) -> &'static str {
        match self {
            Modality::Video => "layer11_video.0",
            Modality::Audio => "layer11_audio",
            Modality::Text => "layer11_text",
        }
    }
}

/// What a pass of the whole model gives.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    /// `[B, D]`, not negative.
    pub bottleneck: Var,
    /// `[B, voxels]`.
    pub predicted_fmri: Var,
    /// Video `[B, 3·H·W]` in the order channel, row, column, audio `[B, mels]`, text `[B, dim]`.
    pub reconstruction: [Var; 3],
}

impl Sherlock {
    /// A model of this shape, its parameters in the arena that `alloc` gives (`|layout| exec.arena(layout)`), all zero:
    /// [`Params::initialise`] or [`Params::load`] fills them. It trains on `loss`.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault of the configuration; what `alloc` returns.
    pub fn new(
        config: &SherlockConfig,
        loss: &LossConfig,
        alloc: impl Fn(Layout) -> Result<Arena>,
    ) -> Result<Sherlock> {
        let mut faults = Faults::new();
        config.validate(&mut faults);
        loss.validate(&mut faults);
        faults.into_result(Error::Config)?;
        let mut builder = Builder::new();
        let mut root = builder.root();
        let encoder = Encoder::new(&mut root.scope("encoder"), config)?;
        let decoder = Decoder::new(&mut root.scope("decoder"), config)?;
        Ok(Sherlock { config: config.clone(), loss: *loss, params: builder.build(alloc)?, encoder, decoder })
    }

    /// The shape.
    pub fn config(&self) -> &SherlockConfig {
        &self.config
    }

    /// What it trains on.
    pub fn loss_config(&self) -> &LossConfig {
        &self.loss
    }

    /// Bottleneck `[B, D]` of a stimulus.
    ///
    /// # Errors
    /// [`Error::Shape`] if the stimulus is not the model's; what the device reports.
    pub fn encode(&self, tape: &mut Tape<'_>, stimulus: &Stimulus, pass: &Pass) -> Result<Var> {
        let parts = [("video", &stimulus.video), ("audio", &stimulus.audio), ("text", &stimulus.text)];
        let b = stimulus.video.shape().first().copied().unwrap_or(0);
        for ((name, part), want) in parts.iter().zip(self.config.sizes().stimulus(b)?) {
            expect(name, &want, part.spec())?;
        }
        let mut inputs = Vec::with_capacity(3);
        for (_, part) in parts {
            inputs.push(tape.input(part)?);
        }
        let [video, audio, text] = inputs[..] else { return Err(Error::shape("sherlock: stimulus: expected 3 parts")) };
        tape.in_module("encoder", |tape| self.encoder.bottleneck(tape, [video, audio, text], pass))
    }

    /// Voxels `[B, voxels]` of a bottleneck.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not `[B, D]`; what the device reports.
    pub fn predict_fmri(&self, tape: &mut Tape<'_>, bottleneck: Var, pass: &Pass) -> Result<Var> {
        self.expect_bottleneck(tape, bottleneck)?;
        tape.in_module("encoder", |tape| self.encoder.voxels(tape, bottleneck, pass))
    }

    /// The whole stimulus of a bottleneck: video `[B, 3·H·W]`, audio `[B, mels]`, text `[B, dim]`.
    ///
    /// # Errors
    /// As [`predict_fmri`](Sherlock::predict_fmri).
    pub fn decode(&self, tape: &mut Tape<'_>, bottleneck: Var, pass: &Pass) -> Result<[Var; 3]> {
        self.expect_bottleneck(tape, bottleneck)?;
        tape.in_module("decoder", |tape| {
            let trunk = self.decoder.trunk(tape, bottleneck, pass)?;
            let [video, audio, text] = Modality::ALL.map(|m| self.decoder.modality(tape, trunk, m, pass));
            Ok([video?, audio?, text?])
        })
    }

    /// One modality of a bottleneck, without the work of the others.
    ///
    /// # Errors
    /// As [`predict_fmri`](Sherlock::predict_fmri).
    pub fn decode_one(&self, tape: &mut Tape<'_>, bottleneck: Var, which: Modality, pass: &Pass) -> Result<Var> {
        self.expect_bottleneck(tape, bottleneck)?;
        tape.in_module("decoder", |tape| {
            let trunk = self.decoder.trunk(tape, bottleneck, pass)?;
            self.decoder.modality(tape, trunk, which, pass)
        })
    }

    /// Everything.
    ///
    /// # Errors
    /// As [`encode`](Sherlock::encode).
    pub fn forward(&self, tape: &mut Tape<'_>, stimulus: &Stimulus, pass: &Pass) -> Result<Outputs> {
        let bottleneck = self.encode(tape, stimulus, pass)?;
        let predicted_fmri = self.predict_fmri(tape, bottleneck, pass)?;
        Ok(Outputs { bottleneck, predicted_fmri, reconstruction: self.decode(tape, bottleneck, pass)? })
    }

    /// The loss of what a pass gave, a scalar; its parts are noted.
    ///
    /// # Errors
    /// [`Error::Shape`] if the targets are not the model's; what the device reports.
    pub fn loss_of(&self, tape: &mut Tape<'_>, out: &Outputs, batch: &Batch) -> Result<Var> {
        tape.in_module("loss", |tape| self.loss.record(tape, out, batch))
    }

    fn expect_bottleneck(&self, tape: &Tape<'_>, bottleneck: Var) -> Result<()> {
        let found = tape.spec(bottleneck)?;
        let b = found.shape().first().copied().unwrap_or(0);
        expect("bottleneck", &Spec::f32([b, self.config.bottleneck_dim])?, found)
    }
}

fn expect(name: &str, want: &Spec, found: &Spec) -> Result<()> {
    if want == found {
        return Ok(());
    }
    Err(Error::shape(format!("sherlock: {name}: expected {want}, found {found}; the configuration says what it is")))
}

impl Model for Sherlock {
    type Batch = Batch;

    fn params(&self) -> &Params {
        &self.params
    }

    fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// The names of PyTorch's layers, and of the original's.
    fn class(&self, module: &str) -> &'static str {
        let parts: Vec<&str> = module.split('.').collect();
        let last = parts.last().copied().unwrap_or_default();
        match parts.as_slice() {
            [""] => "MultimodalAutoencoder",
            ["encoder"] => "MultimodalEncoder",
            ["decoder"] => "MultimodalDecoder",
            ["encoder", "video_encoder"] => "VideoEncoder",
            ["encoder", "audio_encoder"] => "AudioEncoder",
            ["encoder", "text_encoder"] => "TextEncoder",
            ["loss"] => "CombinedAutoEncoderLoss",
            ["decoder", "layer11_audio" | "layer11_text"] => "Linear",
            [_, _] => "Sequential",
            [_, "video_encoder", _] if last.starts_with("conv") => "Conv2d",
            [_, "audio_encoder", _] if last.starts_with("conv") => "Conv1d",
            [_, "video_encoder", _] if last.starts_with("bn") => "BatchNorm2d",
            [_, _, "1" | "5"] => "BatchNorm1d",
            _ if last.starts_with("bn") => "BatchNorm1d",
            _ => "Linear",
        }
    }

    /// The weighted sum that [`LossConfig`] says; its parts are noted.
    fn loss(&self, tape: &mut Tape<'_>, batch: &Batch, pass: &Pass) -> Result<Var> {
        let out = self.forward(tape, &batch.input, pass)?;
        self.loss_of(tape, &out, batch)
    }
}
