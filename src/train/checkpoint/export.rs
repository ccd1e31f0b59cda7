//! Exports: weights as `.safetensors`, weights with optimizer as PyTorch's `.pt`.

use std::path::Path;

use serde_json::Value as Json;

use super::Checkpoint;
use crate::error::{Error, Faults, Result};
use crate::io::atomic::{Existing, write_atomic};
use crate::io::pt::{Key, Value};
use crate::io::safetensors::pt_metadata;
use crate::io::{StoredDtype, TensorView, pt, safetensors};
use crate::train::config::TrainingConfig;
use crate::train::run::Planned;
use crate::train::schedule::{Schedule, SchedulerState};

/// What goes into a `.pt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// The state dict alone, as `model.load_state_dict` takes it.
    Weights,
    /// `epoch`, `global_step`, `model_state_dict`, `optimizer_state_dict`, `config`; where there are any `best_val_loss`,
    /// `val_loss`, `train_history`, `val_history`, `scheduler_state_dict` and `scaler_state_dict`.
    Everything,
}

/// Writes a verified checkpoint to `out`, whose ending says the format: `.safetensors` (weights) or `.pt`, `.pth`,
/// `.ckpt`. The file appears whole or not at all.
///
/// # Errors
/// [`Error::Argument`] for another ending; [`Error::Checkpoint`] with everything that the optimizer's layout of PyTorch
/// needs and the checkpoint has not; [`Error::Data`] if `out` exists and `existing` refuses; [`Error::Io`].
pub fn export(checkpoint: &Checkpoint, out: &Path, contents: Contents, existing: Existing) -> Result<()> {
    let weights = in_order(checkpoint);
    match out.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => {
            write_atomic(out, existing, |file| safetensors::write(file, out, &weights, &pt_metadata()))
        }
        Some("pt" | "pth" | "ckpt") => {
            let step = counted(checkpoint, "/progress/updates").unwrap_or(checkpoint.step()) as f32;
            let step = step.to_le_bytes();
            let root = match contents {
                Contents::Weights => state_dict(&weights),
                Contents::Everything => everything(checkpoint, &weights, &step)?,
            };
            write_atomic(out, existing, |file| pt::write(file, out, &root))
        }
        _ => Err(Error::argument(format!(
            "{}: expected a name that ends in .safetensors, .pt, .pth or .ckpt",
            out.display()
        ))),
    }
}

/// Names that `state.json` lists under `key`.
fn listed<'c>(checkpoint: &'c Checkpoint, key: &str) -> Vec<&'c str> {
    let list = checkpoint.state().get(key).and_then(Json::as_array);
    list.map(|names| names.iter().filter_map(Json::as_str).collect()).unwrap_or_default()
}

/// The weights in the model's order: that of the file, unless the state says another.
fn in_order(checkpoint: &Checkpoint) -> Vec<TensorView<'_>> {
    let order = listed(checkpoint, "entries");
    let place = |t: &TensorView<'_>| order.iter().position(|n| *n == t.name()).unwrap_or(order.len());
    let mut weights: Vec<_> = checkpoint.weights().tensors().collect();
    weights.sort_by_key(place);
    weights
}

fn counted(checkpoint: &Checkpoint, pointer: &str) -> Option<u64> {
    checkpoint.state().pointer(pointer).and_then(Json::as_u64)
}

fn state_dict<'a>(weights: &[TensorView<'a>]) -> Value<'a> {
    Value::Ordered(weights.iter().map(|t| (t.name().to_string(), Value::Tensor(*t))).collect())
}

fn everything<'a>(checkpoint: &'a Checkpoint, weights: &[TensorView<'a>], step: &'a [u8]) -> Result<Value<'a>> {
    let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let mut entries = Vec::new();
    if let Some(epoch) = counted(checkpoint, "/position/epoch") {
        entries.push((Key::from("epoch"), int(epoch)));
    }
    entries.push((Key::from("global_step"), int(checkpoint.step())));
    entries.push((Key::from("model_state_dict"), state_dict(weights)));
    if !checkpoint.optimizer().is_empty() {
        entries.push((Key::from("optimizer_state_dict"), adamw(checkpoint, weights, step)?));
    }
    if let Some(config) = checkpoint.state().get("config") {
        entries.push((Key::from("config"), plain(config)));
    }
    let at = |pointer: &str| checkpoint.state().pointer(pointer).filter(|v| !v.is_null());
    if let Some(best) = at("/position/best") {
        entries.push((Key::from("best_val_loss"), plain(best)));
    }
    if let Some(history) = at("/position/history").and_then(Json::as_array) {
        for (key, part) in [("train_history", "train"), ("val_history", "val")] {
            let epochs = history.iter().filter_map(|epoch| epoch.get(part)).filter(|v| !v.is_null());
            entries.push((Key::from(key), Value::List(epochs.map(plain).collect())));
        }
    }
    if let Some(loss) = at("/position/history").and_then(Json::as_array).and_then(|h| h.last()?.pointer("/val/loss")) {
        entries.push((Key::from("val_loss"), plain(loss)));
    }
    if let Some(scheduler) = Rates::of(checkpoint).and_then(|rates| rates.state_dict()) {
        entries.push((Key::from("scheduler_state_dict"), scheduler));
    }
    if at("/loss_scale/window").and_then(Json::as_u64).is_some_and(|window| window > 0) {
        entries.push((Key::from("scaler_state_dict"), scaler(checkpoint)));
    }
    Ok(Value::Dict(entries))
}

/// The learning rate of a run: as configured, and where it is.
struct Rates {
    base: f64,
    now: f64,
    state: Option<SchedulerState>,
}

impl Rates {
    /// Of a checkpoint that knows how long its run is.
    fn of(checkpoint: &Checkpoint) -> Option<Rates> {
        let of = |pointer: &str| checkpoint.state().pointer(pointer).cloned();
        let planned: Planned = serde_json::from_value(of("/position/planned")?).ok()?;
        let training: TrainingConfig = serde_json::from_value(of("/config/training")?).ok()?;
        let schedule = Schedule::new(&training, planned.total_steps, planned.steps_per_epoch);
        let step = checkpoint.step();
        Some(Rates { base: training.learning_rate, now: schedule.rate(step), state: schedule.scheduler_state(step) })
    }

    /// The state dict of `CosineAnnealingLR`, which follows the warm-up, or of `StepLR`; none for a rate that stays.
    fn state_dict<'a>(&self) -> Option<Value<'a>> {
        let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let (mut entries, done) = match self.state? {
            SchedulerState::Cosine { span, floor, done } => {
                (vec![("T_max".into(), int(span)), ("eta_min".into(), Value::Float(floor))], done)
            }
            SchedulerState::Step { epochs, factor, done } => {
                (vec![("step_size".into(), int(epochs)), ("gamma".into(), Value::Float(factor))], done)
            }
        };
        entries.extend([
            ("base_lrs".into(), Value::List(vec![Value::Float(self.base)])),
            ("last_epoch".into(), int(done)),
            ("_step_count".into(), int(done + 1)),
            ("_get_lr_called_within_step".into(), Value::Bool(false)),
            ("_last_lr".into(), Value::List(vec![Value::Float(self.now)])),
        ]);
        Some(dict(entries))
    }
}

/// The state dict of `torch.amp.GradScaler`.
fn scaler<'a>(checkpoint: &Checkpoint) -> Value<'a> {
    let number = |key: &str| checkpoint.state().pointer(&format!("/loss_scale/{key}")).and_then(Json::as_f64);
    let float = |key: &str| Value::Float(number(key).unwrap_or(f64::NAN));
    let int = |key: &str| Value::Int(number(key).unwrap_or(0.0) as i64);
    dict(vec![
        ("scale".into(), float("scale")),
        ("growth_factor".into(), float("growth")),
        ("backoff_factor".into(), float("backoff")),
        ("growth_interval".into(), int("window")),
        ("_growth_tracker".into(), int("good_steps")),
    ])
}

/// The state dict of `torch.optim.AdamW` over the parameters in the model's order.
fn adamw<'a>(checkpoint: &'a Checkpoint, weights: &[TensorView<'a>], step: &'a [u8]) -> Result<Value<'a>> {
    let mut faults = Faults::new();
    let at = checkpoint.path().display();
    let buffers = listed(checkpoint, "buffers");
    let weights: Vec<_> = weights.iter().filter(|w| !buffers.contains(&w.name())).collect();
    let mut states = Vec::new();
    for (index, weight) in weights.iter().enumerate() {
        let mut moment = |kind: &str| {
            let name = format!("{}.{kind}", weight.name());
            let found = checkpoint.optimizer().get(&name).filter(|t| t.shape() == weight.shape());
            if found.is_none() {
                faults.push(format!("{at}: {name}: expected {:?} among the optimizer's tensors", weight.shape()));
            }
            found.map(Value::Tensor)
        };
        if let (Some(first), Some(second)) = (moment("exp_avg"), moment("exp_avg_sq")) {
            let step = Value::Tensor(TensorView::new("step", StoredDtype::F32, &[], step)?);
            let state = vec![("step".into(), step), ("exp_avg".into(), first), ("exp_avg_sq".into(), second)];
            states.push((Key::Int(index as i64), dict(state)));
        }
    }
    let mut setting = |name: &str| {
        let found = checkpoint.state().pointer(&format!("/config/training/{name}")).cloned();
        if found.is_none() {
            faults.push(format!("{at}: state.json: config.training.{name}: missing; export the weights alone"));
        }
        found.unwrap_or_default()
    };
    let number = |v: Json| Value::Float(v.as_f64().unwrap_or(f64::NAN));
    let betas = setting("betas").as_array().cloned().unwrap_or_default().into_iter().map(number).collect();
    let (base, rates) = (number(setting("learning_rate")), Rates::of(checkpoint));
    let names = weights.iter().map(|w| Value::Text(w.name().into())).collect();
    let group = vec![
        ("param_names".into(), Value::List(names)),
        ("lr".into(), rates.as_ref().map_or(base.clone(), |rates| Value::Float(rates.now))),
        ("initial_lr".into(), base),
        ("betas".into(), Value::Tuple(betas)),
        ("eps".into(), number(setting("eps"))),
        ("weight_decay".into(), number(setting("weight_decay"))),
        ("amsgrad".into(), Value::Bool(false)),
        ("maximize".into(), Value::Bool(false)),
        ("foreach".into(), Value::None),
        ("capturable".into(), Value::Bool(false)),
        ("differentiable".into(), Value::Bool(false)),
        ("fused".into(), Value::None),
        ("decoupled_weight_decay".into(), Value::Bool(true)),
        ("params".into(), Value::List((0..weights.len() as i64).map(Value::Int).collect())),
    ];
    faults.into_result(Error::Checkpoint)?;
    Ok(dict(vec![("state".into(), Value::Dict(states)), ("param_groups".into(), Value::List(vec![dict(group)]))]))
}

fn dict(entries: Vec<(String, Value<'_>)>) -> Value<'_> {
    Value::Dict(entries.into_iter().map(|(k, v)| (Key::Text(k), v)).collect())
}

/// JSON as plain Python values.
fn plain<'a>(json: &Json) -> Value<'a> {
    match json {
        Json::Null => Value::None,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match n.as_i64() {
            Some(int) => Value::Int(int),
            None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::Text(s.clone()),
        Json::Array(items) => Value::List(items.iter().map(plain).collect()),
        Json::Object(map) => Value::Dict(map.iter().map(|(k, v)| (Key::Text(k.clone()), plain(v))).collect()),
    }
}
