//! Sherlock cases: outputs, loss, gradients of every parameter, and what a training pass leaves in the buffers.

use serde::Deserialize;

use super::{Case, Computed};
use crate::backend::Exec;
use crate::data::sherlock::{Batch, Stimulus};
use crate::error::{Error, Result};
use crate::io::stored::TensorView;
use crate::models::Model;
use crate::models::sherlock::loss::FmriLoss;
use crate::models::sherlock::{LossConfig, Outputs, Sherlock, SherlockConfig};
use crate::nn::{Entry, Pass};
use crate::tape::{Grads, Tape};
use crate::tensor::{Arena, Dtype, Tensor};
use crate::train::checkpoint::check_names;
use crate::train::resume::shapes;

/// `attrs` of a Sherlock autoencoder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SherlockCase {
    #[serde(rename = "model")]
    _model: String,
    b: usize,
    training: bool,
    fmri_loss: FmriLoss,
    video: [usize; 2],
    video_channels: [usize; 4],
    video_features: usize,
    mels: usize,
    audio_channels: [usize; 3],
    audio_features: usize,
    text: usize,
    text_hidden: usize,
    text_features: usize,
    pre_bottleneck: usize,
    bottleneck: usize,
    pre_voxels: usize,
    voxels: usize,
    decoder_hidden: usize,
}

const PREFIX: &str = "weight.";

impl SherlockCase {
    fn config(&self) -> SherlockConfig {
        SherlockConfig {
            video_height: self.video[0],
            video_width: self.video[1],
            audio_mels: self.mels,
            text_dim: self.text,
            n_voxels: self.voxels,
            bottleneck_dim: self.bottleneck,
            video_features: self.video_features,
            audio_features: self.audio_features,
            text_features: self.text_features,
            video_channels: self.video_channels,
            audio_channels: self.audio_channels,
            text_hidden: self.text_hidden,
            bottleneck_hidden: self.pre_bottleneck,
            voxel_hidden: self.pre_voxels,
            decoder_hidden_dim: self.decoder_hidden,
            encoder_dropout: 0.0,
            hidden_dropout: 0.0,
            decoder_dropout: 0.0,
        }
    }

    pub(super) fn run(&self, case: &Case, exec: &Exec, dtype: Dtype) -> Result<Vec<Computed>> {
        let sizes = self.config().sizes();
        let [video, audio, text] = sizes.stimulus(self.b)?;
        let input = Stimulus {
            video: case.floats("in.video", video.shape(), Dtype::F32)?,
            audio: case.floats("in.audio", audio.shape(), Dtype::F32)?,
            text: case.floats("in.text", text.shape(), Dtype::F32)?,
        };
        let fmri = case.floats("in.fmri", &[self.b, self.voxels], Dtype::F32)?;
        let batch = Batch { target: input.clone(), input, fmri };
        let mut model = self.model(case, exec)?;
        let pass = Pass { train: self.training, compute: dtype, ..Pass::eval() };
        let mut computed = outputs_and_gradients(&mut model, exec, &batch, &pass)?;
        if self.training {
            let buffers = model.params().buffers();
            for (buffer, name) in buffers.iter() {
                let view = buffers.get(buffer).ok_or_else(|| Error::argument(format!("{name}: no such buffer")))?;
                computed.push(Computed::of(format!("out.buffer.{name}"), &view)?);
            }
        }
        Ok(computed)
    }

    /// The model with the weights of the case.
    fn model(&self, case: &Case, exec: &Exec) -> Result<Sherlock> {
        let loss = LossConfig { fmri_loss_type: self.fmri_loss, ..LossConfig::default() };
        let weights: Vec<TensorView<'_>> = case.tensors().filter(|t| t.name().starts_with(PREFIX)).collect();
        // Nothing is allocated before names and shapes have been compared.
        let planned = Sherlock::new(&self.config(), &loss, |layout| Ok(Arena::planned(layout)))?;
        let expected = shapes(planned.params());
        let named: Vec<(String, &[usize])> =
            expected.iter().map(|(name, shape)| (format!("{PREFIX}{name}"), shape.as_slice())).collect();
        check_names(case.name(), weights, named.iter().map(|(n, s)| (n.as_str(), *s)))?;
        let mut model = Sherlock::new(&self.config(), &loss, |layout| exec.arena(layout))?;
        let mut tensors: Vec<(&str, Tensor)> = Vec::new();
        for ((name, entry), (key, shape)) in planned.params().entries().zip(&named) {
            match entry {
                Entry::Counter(_) => {
                    let count = case.integers(key, shape)?.first().copied().unwrap_or(0);
                    let count = u64::try_from(count)
                        .map_err(|_| Error::argument(format!("{key}: expected a count, found {count}")))?;
                    model.params_mut().buffers_mut().set_counter(name, count)?;
                }
                Entry::Param(_) | Entry::Buffer(_) => tensors.push((name, case.floats(key, shape, Dtype::F32)?)),
            }
        }
        model.params_mut().load(tensors.iter().map(|(n, t)| (*n, t)))?;
        Ok(model)
    }
}

fn outputs_and_gradients(model: &mut Sherlock, exec: &Exec, batch: &Batch, pass: &Pass) -> Result<Vec<Computed>> {
    let params = model.params();
    let mut tape = Tape::with_params(exec, params.arena()).with_buffers(params.buffers().arena());
    let out = model.forward(&mut tape, &batch.input, pass)?;
    let loss = model.loss_of(&mut tape, &out, batch)?;
    let Outputs { bottleneck, predicted_fmri, reconstruction: [video, audio, text] } = out;
    let named = [
        ("bottleneck", bottleneck),
        ("predicted_fmri", predicted_fmri),
        ("video_recon", video),
        ("audio_recon", audio),
        ("text_recon", text),
        ("loss", loss),
    ];
    let mut computed = Vec::with_capacity(named.len() + params.len());
    for (name, var) in named {
        computed.push(Computed::of(format!("out.{name}"), &tape.value(var)?)?);
    }
    let mut grads = Grads::new(exec, params.arena().layout())?;
    tape.backward(loss, 1.0, &mut grads)?;
    for (p, name) in params.iter() {
        let grad = grads.get(p).ok_or_else(|| Error::argument(format!("{name}: nothing flows to it")))?;
        computed.push(Computed::of(format!("grad.{name}"), &grad)?);
    }
    let renewed = tape.renewed().to_vec();
    drop(tape);
    model.params_mut().buffers_mut().renew(&renewed)?;
    Ok(computed)
}
