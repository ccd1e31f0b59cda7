//! What the autoencoder reads and what it is compared with.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::tensor::{Spec, Tensor};

/// How long each part of a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Rows of a frame H.
    pub height: usize,
    /// Columns of a frame W.
    pub width: usize,
    /// Mel bands of the sound.
    pub mels: usize,
    /// Numbers of a text embedding.
    pub text: usize,
    /// Voxels of the mask.
    pub voxels: usize,
}

impl Sizes {
    /// Numbers of a frame, `3·H·W`.
    pub fn pixels(&self) -> usize {
        3 * self.height * self.width
    }

    /// The shapes of a stimulus of `b` samples: video, audio, text.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::error::Error::TooLarge).
    pub fn stimulus(&self, b: usize) -> Result<[Spec; 3]> {
        let video = Spec::f32([b, 3, self.height, self.width])?;
        Ok([video, Spec::f32([b, self.mels])?, Spec::f32([b, self.text])?])
    }
}

/// What somebody sees, hears and is told, one row a sample.
///
/// # Shapes
/// All f32, in the order channel, row, column: files keep frames as row, column, channel.
#[derive(Clone, Debug)]
pub struct Stimulus {
    /// Mean frame of the TR, `[B, 3, H, W]`, red, green, blue in [0, 1].
    pub video: Tensor,
    /// Mel spectrum, `[B, mels]`, in dB below the loudest of the film.
    pub audio: Tensor,
    /// Embedding of the description, `[B, text]`, of length 1.
    pub text: Tensor,
}

/// Some samples.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the encoder reads: convolved with the blood's response where the configuration says so.
    pub input: Stimulus,
    /// What the decoder shall reconstruct: by default the stimulus as it was, which a sigmoid can reach.
    pub target: Stimulus,
    /// What the brain answered, `[B, voxels]`, z-scored over time.
    pub fmri: Tensor,
}
