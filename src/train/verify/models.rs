//! Model cases: forward, loss, gradients of every parameter, and the losses of some training steps.

use serde::Deserialize;

use super::sherlock::SherlockCase;
use super::{Case, Computed};
use crate::backend::Exec;
use crate::data::weather::WeatherBatch;
use crate::error::{Error, Result};
use crate::io::stored::{TensorView, printable};
use crate::models::Model;
use crate::models::weather_vit::config::{Activation, Head, Normalization};
use crate::models::weather_vit::{WeatherVit, WeatherVitConfig};
use crate::nn::{Params, Pass};
use crate::ops::relative_l2::RelativeL2;
use crate::ops::squared_error::SquaredError;
use crate::tape::{Grads, Tape, Var};
use crate::tensor::{Arena, Dtype, Tensor};
use crate::train::checkpoint::check_names;
use crate::train::config::{Precision, TrainingConfig};
use crate::train::trainer::Trainer;

/// `attrs` of a weather transformer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeatherVitCase {
    #[serde(rename = "model")]
    _model: String,
    b: usize,
    in_channels: usize,
    out_channels: usize,
    height: usize,
    width: usize,
    patch_size: usize,
    embed_dim: usize,
    num_layers: usize,
    num_heads: usize,
    mlp_ratio: f64,
    head: Head,
    loss: Loss,
    #[serde(default)]
    train_steps: usize,
    lr: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Loss {
    L2,
    Mse,
}

/// A weather transformer that trains on the loss of its case.
#[derive(Debug)]
struct CaseModel {
    vit: WeatherVit,
    loss: Loss,
}

pub(super) fn run(case: &Case, exec: &Exec, dtype: Dtype) -> Result<Vec<Computed>> {
    if !matches!(dtype, Dtype::F32 | Dtype::Bf16) {
        return Err(Error::argument(format!("dtype: models are verified in f32 and bf16, found {dtype}")));
    }
    match case.subject() {
        "weather_vit" => case.attrs::<WeatherVitCase>()?.run(case, exec, dtype),
        "sherlock" => case.attrs::<SherlockCase>()?.run(case, exec, dtype),
        model => {
            let found = printable(model);
            Err(Error::argument(format!("attrs: model: expected weather_vit or sherlock, found `{found}`")))
        }
    }
}

impl Model for CaseModel {
    type Batch = WeatherBatch;

    fn params(&self) -> &Params {
        self.vit.params()
    }

    fn params_mut(&mut self) -> &mut Params {
        self.vit.params_mut()
    }

    fn class(&self, module: &str) -> &'static str {
        self.vit.class(module)
    }

    fn loss(&self, tape: &mut Tape<'_>, batch: &WeatherBatch, pass: &Pass) -> Result<Var> {
        let state = tape.input(&batch.state)?;
        let y = self.vit.forward(tape, state, pass)?;
        self.loss_of(tape, y, batch)
    }
}

impl CaseModel {
    fn loss_of(&self, tape: &mut Tape<'_>, y: Var, batch: &WeatherBatch) -> Result<Var> {
        let target = tape.input(&batch.target)?;
        match self.loss {
            Loss::L2 => tape.apply(RelativeL2, [y, target]),
            Loss::Mse => tape.apply(SquaredError, [y, target]),
        }
    }

    /// Output, loss and gradients.
    fn gradients(&self, exec: &Exec, batch: &WeatherBatch, pass: &Pass) -> Result<Vec<Computed>> {
        let mut tape = Tape::with_params(exec, self.params().arena());
        let state = tape.input(&batch.state)?;
        let y = self.vit.forward(&mut tape, state, pass)?;
        let loss = self.loss_of(&mut tape, y, batch)?;
        let mut computed = vec![Computed::of("out.y", &tape.value(y)?)?, Computed::of("out.loss", &tape.value(loss)?)?];
        let mut grads = Grads::new(exec, self.params().arena().layout())?;
        tape.backward(loss, 1.0, &mut grads)?;
        for (p, name) in self.params().iter() {
            let grad = grads.get(p).ok_or_else(|| Error::argument(format!("{name}: nothing flows to it")))?;
            computed.push(Computed::of(format!("grad.{name}"), &grad)?);
        }
        Ok(computed)
    }
}

impl WeatherVitCase {
    fn config(&self) -> WeatherVitConfig {
        WeatherVitConfig {
            embed_dim: self.embed_dim,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            img_size: [self.height, self.width],
            patch_size: self.patch_size,
            input_channels: self.in_channels,
            output_channels: self.out_channels,
            qkv_bias: true,
            dropout: 0.0,
            attention_dropout: 0.0,
            stochastic_depth: 0.0,
            use_checkpointing: false,
            mlp_ratio: self.mlp_ratio,
            head: self.head,
            activation_type: Activation::Gelu,
            normalization_type: Normalization::Layer,
            use_pre_norm: true,
            use_parallel_attention: false,
        }
    }

    fn run(&self, case: &Case, exec: &Exec, dtype: Dtype) -> Result<Vec<Computed>> {
        let grid = |key: &str, c: usize| case.floats(key, &[self.b, c, self.height, self.width], Dtype::F32);
        let batch =
            WeatherBatch { state: grid("in.x", self.in_channels)?, target: grid("in.target", self.out_channels)? };
        let model = CaseModel { vit: self.model(case, exec)?, loss: self.loss };
        let pass = Pass { compute: dtype, ..Pass::eval() };
        let mut computed = model.gradients(exec, &batch, &pass)?;
        if self.train_steps > 0 {
            let losses = self.train(model, exec, &batch, dtype)?;
            computed.push(Computed::new("out.train_losses", &[losses.len()], losses));
        }
        Ok(computed)
    }

    /// The model with the weights of the case.
    fn model(&self, case: &Case, exec: &Exec) -> Result<WeatherVit> {
        const PREFIX: &str = "weight.";
        let weights: Vec<TensorView<'_>> = case.tensors().filter(|t| t.name().starts_with(PREFIX)).collect();
        if self.num_layers > weights.len() {
            return Err(Error::argument(format!(
                "attrs: num_layers: expected at most the {} weights of the file, found {}",
                weights.len(),
                self.num_layers
            )));
        }
        let config = self.config();
        // Nothing is allocated before names and shapes have been compared.
        let planned = WeatherVit::new(&config, |layout| Ok(Arena::planned(layout)))?;
        let specs = planned.params().arena().layout().specs();
        let expected: Vec<(String, &[usize])> =
            planned.params().iter().zip(specs).map(|((_, n), s)| (format!("{PREFIX}{n}"), s.shape())).collect();
        check_names(case.name(), weights, expected.iter().map(|(n, s)| (n.as_str(), *s)))?;
        let read = |(key, shape): &(String, &[usize])| {
            let name = key.strip_prefix(PREFIX).unwrap_or(key).to_owned();
            Ok((name, case.floats(key, shape, Dtype::F32)?))
        };
        let tensors = expected.iter().map(read).collect::<Result<Vec<(String, Tensor)>>>()?;
        let mut model = WeatherVit::new(&config, |layout| exec.arena(layout))?;
        model.params_mut().load(tensors.iter().map(|(n, t)| (n.as_str(), t)))?;
        Ok(model)
    }

    /// The losses before each of the steps that the format describes: AdamW, norm clipped to 1, always the same batch.
    fn train(&self, model: CaseModel, exec: &Exec, batch: &WeatherBatch, dtype: Dtype) -> Result<Vec<f64>> {
        let lr = self.lr.ok_or_else(|| Error::argument("attrs: expected lr beside train_steps, found none"))?;
        let config = TrainingConfig {
            learning_rate: lr,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            eps: 1e-8,
            gradient_clipping: 1.0,
            precision: if dtype == Dtype::F32 { Precision::Fp32 } else { Precision::Bf16 },
            ..TrainingConfig::default()
        };
        let mut trainer = Trainer::new(model, exec, &config)?;
        let micro_batches = [batch.clone()];
        (0..self.train_steps).map(|_| Ok(trainer.step(&micro_batches, lr)?.loss)).collect()
    }
}
