//! What shape the Sherlock autoencoder has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::sherlock::Sizes;
use crate::error::Faults;

/// No axis of a model is longer; keeps every product of two axes far from overflow.
const MAX_AXIS: usize = 1 << 22;

/// The shape of the Sherlock autoencoder. [`Default`] is the published one of 1,974,067,762 parameters.
///
/// # Source
/// ContextLab/giblet-responses@4691d10, `examples/train_config.yaml`. Differs on purpose: the original reads the last five of
/// its keys without effect; here every key counts, and the widths that it fixes in its code have names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SherlockConfig {
    /// Rows of a frame H.
    pub video_height: usize,
    /// Columns of a frame W.
    pub video_width: usize,
    /// Mel bands of the sound.
    pub audio_mels: usize,
    /// Numbers of a text embedding.
    pub text_dim: usize,
    /// Voxels that are predicted: as many as the data's mask has.
    pub n_voxels: usize,
    /// Numbers between encoder and decoder.
    pub bottleneck_dim: usize,
    /// What the video encoder gives.
    pub video_features: usize,
    /// What the audio encoder gives.
    pub audio_features: usize,
    /// What the text encoder gives.
    pub text_features: usize,
    /// Channels of the four convolutions over frames.
    pub video_channels: [usize; 4],
    /// Channels of the three convolutions over mel bands.
    pub audio_channels: [usize; 3],
    /// Width inside the text encoder.
    pub text_hidden: usize,
    /// Width before the bottleneck.
    pub bottleneck_hidden: usize,
    /// Width between bottleneck and voxels.
    pub voxel_hidden: usize,
    /// Width h of the decoder, whose layers have h, 2h, 4h and the modalities' h/2, h, 2h, 4h numbers. Even.
    pub decoder_hidden_dim: usize,
    /// Probability of dropping a number in the encoders, the fusion and the bottleneck.
    pub encoder_dropout: f64,
    /// Probability of dropping a number of the layers around the bottleneck.
    pub hidden_dropout: f64,
    /// Probability of dropping a number in the decoder.
    pub decoder_dropout: f64,
}

impl Default for SherlockConfig {
    fn default() -> SherlockConfig {
        SherlockConfig {
            video_height: 90,
            video_width: 160,
            audio_mels: 128,
            text_dim: 1024,
            n_voxels: 85_810,
            bottleneck_dim: 8000,
            video_features: 1024,
            audio_features: 256,
            text_features: 256,
            video_channels: [32, 64, 128, 256],
            audio_channels: [32, 64, 128],
            text_hidden: 512,
            bottleneck_hidden: 4096,
            voxel_hidden: 16_384,
            decoder_hidden_dim: 2048,
            encoder_dropout: 0.2,
            hidden_dropout: 0.3,
            decoder_dropout: 0.3,
        }
    }
}

impl SherlockConfig {
    /// What a sample must look like.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            height: self.video_height,
            width: self.video_width,
            mels: self.audio_mels,
            text: self.text_dim,
            voxels: self.n_voxels,
        }
    }

    /// Numbers of encoded video, audio and text together.
    pub fn features(&self) -> usize {
        self.video_features + self.audio_features + self.text_features
    }

    /// Adds a line to `faults` for everything that no model can be. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        let axes = [
            ("video_height", self.video_height),
            ("video_width", self.video_width),
            ("audio_mels", self.audio_mels),
            ("text_dim", self.text_dim),
            ("n_voxels", self.n_voxels),
            ("bottleneck_dim", self.bottleneck_dim),
            ("video_features", self.video_features),
            ("audio_features", self.audio_features),
            ("text_features", self.text_features),
            ("text_hidden", self.text_hidden),
            ("bottleneck_hidden", self.bottleneck_hidden),
            ("voxel_hidden", self.voxel_hidden),
            ("decoder_hidden_dim", self.decoder_hidden_dim),
        ];
        let channels = |key, list: &[usize]| list.iter().map(|&n| (key, n)).collect::<Vec<_>>();
        let lists =
            [channels("video_channels", &self.video_channels), channels("audio_channels", &self.audio_channels)];
        for (key, n) in axes.into_iter().chain(lists.into_iter().flatten()) {
            if !(1..=MAX_AXIS).contains(&n) {
                faults.push(format!("{key}: expected a whole number from 1 to {MAX_AXIS}, found {n}"));
            }
        }
        if !self.decoder_hidden_dim.is_multiple_of(2) {
            let n = self.decoder_hidden_dim;
            faults.push(format!("decoder_hidden_dim: expected an even number, found {n}; the audio path halves it"));
        }
        for (key, p) in [
            ("encoder_dropout", self.encoder_dropout),
            ("hidden_dropout", self.hidden_dropout),
            ("decoder_dropout", self.decoder_dropout),
        ] {
            if !(0.0..1.0).contains(&p) {
                faults.push(format!("{key}: expected a probability of at least 0 and below 1, found {p}"));
            }
        }
    }
}
