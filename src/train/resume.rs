//! What a run leaves in a checkpoint, and how it goes on from one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Faults, Result};
use crate::io::{StoredDtype, TensorView};
use crate::models::Model;
use crate::nn::{Entry, Params};
use crate::tensor::{Arena, Dtype};
use crate::train::checkpoint::{Checkpoint, CheckpointStore, SaveRequest, Saved};
use crate::train::loss_scale::LossScale;
use crate::train::run::Position;
use crate::train::trainer::{Moments, Progress, Trainer};

/// Layout of `state.json`; raised when a reader of an older one would misread it.
pub(super) const FORMAT: u64 = 1;

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Layout of this file.
    pub format: u64,
    /// Version of perfrun that wrote it.
    pub perfrun: String,
    /// The trainer's counters.
    pub progress: Progress,
    /// Where the run is.
    pub position: Position,
    /// The loss scale.
    pub loss_scale: LossScale,
    /// The configuration of the run.
    pub config: Value,
    /// All names of the model's state in its own order, if some are not parameters: the file of weights sorts by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<String>,
    /// Those of them that nobody trains: running statistics and counters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buffers: Vec<String>,
}

/// Where to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// From nothing.
    Never,
    /// From the newest checkpoint of the run that verifies; it is an error if there is none.
    Latest,
    /// The same, or from nothing if the run has none yet: what a job does that a queue starts again and again.
    LatestIfAny,
    /// From this checkpoint.
    From(PathBuf),
}

/// The names of AdamW's moments behind a parameter's name.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// The same type in a file.
fn stored(dtype: Dtype) -> StoredDtype {
    match dtype {
        Dtype::F32 => StoredDtype::F32,
        Dtype::Bf16 => StoredDtype::Bf16,
        Dtype::F16 => StoredDtype::F16,
        Dtype::I32 => StoredDtype::I32,
    }
}

fn tensors<'a>(arena: &'a Arena, names: &'a [String]) -> Result<Vec<TensorView<'a>>> {
    let mut out = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        let view = arena.view(i).ok_or_else(|| Error::argument(format!("{name}: no such tensor in the arena")))?;
        let shape = arena.layout().specs()[i].shape();
        out.push(TensorView::new(name, stored(arena.layout().dtype()), shape, view.bytes()?)?);
    }
    Ok(out)
}

/// What a model's state looks like: every name with its shape, in order.
pub(super) fn shapes(params: &Params) -> Vec<(String, Vec<usize>)> {
    let (own, buffers) = (params.arena().layout().specs(), params.buffers().arena().layout().specs());
    let shape = |entry| match entry {
        Entry::Param(p) => own[p.index()].shape().to_vec(),
        Entry::Buffer(b) => buffers[b.index()].shape().to_vec(),
        Entry::Counter(_) => Vec::new(),
    };
    params.entries().map(|(name, entry)| (name.to_owned(), shape(entry))).collect()
}

/// A model's state in host memory.
struct HostState {
    params: Option<Arena>,
    buffers: Option<Arena>,
    /// Counters as they are stored.
    counters: Vec<u8>,
}

impl HostState {
    fn of(params: &Params) -> Result<HostState> {
        let buffers = params.buffers();
        let counters = buffers.counters().flat_map(|(_, n)| n.to_le_bytes()).collect();
        Ok(HostState {
            params: params.arena().copied_to_host()?,
            buffers: if buffers.is_empty() { None } else { buffers.arena().copied_to_host()? },
            counters,
        })
    }

    /// The tensors of `params`, whose state this is, under `entries`, their names and shapes.
    fn tensors<'a>(&'a self, params: &'a Params, entries: &'a [(String, Vec<usize>)]) -> Result<Vec<TensorView<'a>>> {
        let own = self.params.as_ref().unwrap_or(params.arena());
        let buffers = self.buffers.as_ref().unwrap_or(params.buffers().arena());
        let missing = |name: &str| Error::argument(format!("{name}: no such tensor in the arena"));
        let mut out = Vec::with_capacity(entries.len());
        for ((name, shape), (_, entry)) in entries.iter().zip(params.entries()) {
            let view = match entry {
                Entry::Param(p) => own.view(p.index()),
                Entry::Buffer(b) => buffers.view(b.index()),
                Entry::Counter(i) => {
                    let bytes = self.counters.get(8 * i..8 * i + 8).ok_or_else(|| missing(name))?;
                    out.push(TensorView::new(name, StoredDtype::I64, shape, bytes)?);
                    continue;
                }
            };
            let view = view.ok_or_else(|| missing(name))?;
            out.push(TensorView::new(name, StoredDtype::F32, shape, view.bytes()?)?);
        }
        Ok(out)
    }
}

/// Saves trainer and position under `name`.
///
/// # Errors
/// As [`CheckpointStore::save`].
pub fn save<M: Model>(
    store: &mut CheckpointStore,
    name: &str,
    trainer: &Trainer<M>,
    position: &Position,
    config: &Value,
) -> Result<Saved> {
    let params = trainer.model().params();
    let names: Vec<String> = params.iter().map(|(_, n)| n.to_owned()).collect();
    let moment_names = |m: &str| names.iter().map(|n| format!("{n}.{m}")).collect::<Vec<_>>();
    let (first, second) = (moment_names(MOMENTS[0]), moment_names(MOMENTS[1]));
    let Moments { exp_avg, exp_avg_sq } = trainer.moments();
    let (exp_avg_host, exp_avg_sq_host) = (exp_avg.copied_to_host()?, exp_avg_sq.copied_to_host()?);
    let host = HostState::of(params)?;
    let entries = shapes(params);
    let mut optimizer = tensors(exp_avg_host.as_ref().unwrap_or(exp_avg), &first)?;
    optimizer.extend(tensors(exp_avg_sq_host.as_ref().unwrap_or(exp_avg_sq), &second)?);
    let is_param = |(_, entry): &(&str, Entry)| matches!(entry, Entry::Param(_));
    let buffers: Vec<String> = params.entries().filter(|e| !is_param(e)).map(|(n, _)| n.to_owned()).collect();
    let state = RunState {
        format: FORMAT,
        perfrun: env!("CARGO_PKG_VERSION").to_owned(),
        progress: trainer.progress(),
        position: position.clone(),
        loss_scale: trainer.loss_scale(),
        config: config.clone(),
        entries: if buffers.is_empty() { Vec::new() } else { entries.iter().map(|(n, _)| n.clone()).collect() },
        buffers,
    };
    let state = serde_json::to_value(&state).map_err(|e| Error::checkpoint(format!("state.json: {e}")))?;
    let weights = host.tensors(params, &entries)?;
    store.save(name, &SaveRequest { step: trainer.progress().step, weights, optimizer, state: &state })
}

/// The state of a verified checkpoint.
///
/// # Errors
/// [`Error::Checkpoint`] if `state.json` is not of this program.
pub fn state_of(checkpoint: &Checkpoint) -> Result<RunState> {
    let at = checkpoint.path().display();
    let found = checkpoint.state().get("format").and_then(Value::as_u64);
    if found != Some(FORMAT) {
        return Err(Error::checkpoint(format!("{at}: state.json: expected format {FORMAT}, found {found:?}")));
    }
    serde_json::from_value(checkpoint.state().clone()).map_err(|e| Error::checkpoint(format!("{at}: state.json: {e}")))
}

/// Overwrites the parameters of a model with a checkpoint's.
///
/// # Errors
/// [`Error::Checkpoint`] with every tensor that is missing, unexpected or of another shape; nothing is overwritten then.
pub fn load_weights(params: &mut Params, checkpoint: &Checkpoint) -> Result<()> {
    let entries = shapes(params);
    checkpoint.check_weights(entries.iter().map(|(n, s)| (n.as_str(), s.as_slice())))?;
    let counters: Vec<String> = params.buffers().counters().map(|(n, _)| n.to_owned()).collect();
    let mut counts = Vec::with_capacity(counters.len());
    for name in counters {
        let found = checkpoint.weights().get(&name);
        let count = found.filter(|t| t.dtype() == StoredDtype::I64).and_then(|t| t.to_f64().next());
        let count = count.filter(|n| (0.0..9e15).contains(n)).ok_or_else(|| {
            Error::checkpoint(format!("{}: {name}: expected a count, an I64", checkpoint.path().display()))
        })?;
        counts.push((name, count as u64));
    }
    let names: Vec<String> = params.iter().map(|(_, n)| n.to_owned()).collect();
    fill(params.arena_mut(), checkpoint.weights(), &names, checkpoint.path())?;
    let names: Vec<String> = params.buffers().iter().map(|(_, n)| n.to_owned()).collect();
    fill(params.buffers_mut().arena_mut(), checkpoint.weights(), &names, checkpoint.path())?;
    counts.into_iter().try_for_each(|(name, count)| params.buffers_mut().set_counter(&name, count))
}

/// Restores a trainer from a checkpoint and says where its run is.
///
/// # Errors
/// [`Error::Checkpoint`] if tensors or state do not fit.
pub fn restore<M: Model>(trainer: &mut Trainer<M>, checkpoint: &Checkpoint) -> Result<RunState> {
    let state = state_of(checkpoint)?;
    let names: Vec<String> = trainer.model().params().iter().map(|(_, n)| n.to_owned()).collect();
    let (model, moments) = trainer.state_mut();
    load_weights(model.params_mut(), checkpoint)?;
    for (arena, m) in [(&mut moments.exp_avg, MOMENTS[0]), (&mut moments.exp_avg_sq, MOMENTS[1])] {
        let names: Vec<String> = names.iter().map(|n| format!("{n}.{m}")).collect();
        fill(arena, checkpoint.optimizer(), &names, checkpoint.path())?;
    }
    trainer.resume(state.progress, state.loss_scale);
    Ok(state)
}

fn fill(arena: &mut Arena, file: &crate::io::safetensors::SafetensorsFile, names: &[String], at: &Path) -> Result<()> {
    let mut faults = Faults::new();
    for (i, name) in names.iter().enumerate() {
        let Some(tensor) = file.get(name) else {
            faults.push(format!("{}: {name}: missing", at.display()));
            continue;
        };
        let spec = arena.layout().specs()[i].clone();
        if tensor.dtype() != stored(spec.dtype()) || tensor.shape() != spec.shape() {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            let mend = if tensor.shape() == spec.shape() { "; set training.moments as it was" } else { "" };
            faults.push(format!("{}: {name}: expected {spec}, found {shape:?} {dtype:?}{mend}", at.display()));
            continue;
        }
        if let Some(mut view) = arena.view_mut(i) {
            view.write(tensor.bytes())?;
        }
    }
    faults.into_result(Error::Checkpoint)
}

/// The checkpoint to go on from, and lines about those that were passed over.
///
/// # Errors
/// [`Error::Checkpoint`] if the one asked for does not verify, or `Latest` finds none.
pub fn find(store: &CheckpointStore, resume: &Resume) -> Result<(Option<Checkpoint>, Vec<String>)> {
    match resume {
        Resume::Never => Ok((None, Vec::new())),
        Resume::From(path) => Ok((Some(Checkpoint::open(path)?), Vec::new())),
        Resume::LatestIfAny if !store.dir().exists() || store.list()?.is_empty() => Ok((None, Vec::new())),
        Resume::Latest | Resume::LatestIfAny => {
            let latest = store.latest()?;
            let passed: Vec<String> =
                latest.rejected.iter().map(|(p, why)| format!("{}: passed over: {why}", p.display())).collect();
            match latest.checkpoint {
                Some(checkpoint) => Ok((Some(checkpoint), passed)),
                None => {
                    let mut faults = Faults::new();
                    passed.into_iter().for_each(|p| faults.push(p));
                    let dir = store.dir().display();
                    faults.push(format!("{dir}: no checkpoint to resume from; start without --resume, or name one"));
                    Err(Error::Checkpoint(faults))
                }
            }
        }
    }
}

/// As [`find`]; and a new run finds no checkpoints of an earlier one.
///
/// # Errors
/// As [`find`]; [`Error::Checkpoint`] if a new run would mix its checkpoints with those of an earlier one.
pub fn find_or_fresh(store: &CheckpointStore, resume: &Resume) -> Result<(Option<Checkpoint>, Vec<String>)> {
    let found = find(store, resume)?;
    if found.0.is_none() && store.dir().exists() && !store.list()?.is_empty() {
        return Err(Error::checkpoint(format!(
            "{}: holds checkpoints of an earlier run; continue it with --resume, or choose another --run-name",
            store.dir().display()
        )));
    }
    Ok(found)
}

/// Restores a trainer from a checkpoint under the configuration `kept`: where its run is, and lines about what has changed.
///
/// # Errors
/// As [`restore`] and [`compare_configs`].
pub fn go_on<M: Model>(
    trainer: &mut Trainer<M>,
    checkpoint: &Checkpoint,
    kept: &Value,
) -> Result<(Position, Vec<String>)> {
    let RunState { config: old, position, .. } = restore(trainer, checkpoint)?;
    let mut notices = vec![format!("{}: resumed after step {}", checkpoint.path().display(), trainer.progress().step)];
    notices.extend(compare_configs(&old, kept)?);
    Ok((position, notices))
}

/// Keys whose change makes a resumed run another run: its checkpoints would mean something else.
const FIXED: [&str; 18] = [
    "/model",
    "/loss",
    "/data/subjects",
    "/data/apply_hrf",
    "/data/hrf_alignment",
    "/data/reconstruct",
    "/data/normalize_fmri",
    "/data/max_trs",
    "/data/train_fraction",
    "/data/sequence_length",
    "/data/dt",
    "/data/data_subset",
    "/data/normalize",
    "/data/crop",
    "/training/seed",
    "/training/batch_size",
    "/training/gradient_accumulation",
    "/training/precision",
];

/// Compares the configuration of a checkpoint with the one it is resumed under: a line for each change that is allowed.
///
/// # Errors
/// [`Error::Config`] with every change that is not.
pub fn compare_configs(old: &Value, new: &Value) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    differences("", old, new, &mut changes);
    let (mut faults, mut notes) = (Faults::new(), Vec::new());
    for (key, was, is) in changes {
        let dotted = key.trim_start_matches('/').replace('/', ".");
        if FIXED.iter().any(|f| key == *f || key.starts_with(&format!("{f}/"))) {
            faults.push(format!(
                "{dotted}: expected {was} as in the checkpoint, found {is}; start a new run to change it"
            ));
        } else {
            notes.push(format!("{dotted}: {was} in the checkpoint, {is} from here on"));
        }
    }
    faults.into_result(Error::Config)?;
    Ok(notes)
}

fn differences(path: &str, old: &Value, new: &Value, out: &mut Vec<(String, Value, Value)>) {
    if let (Value::Object(a), Value::Object(b)) = (old, new) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let at = format!("{path}/{key}");
            differences(&at, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), out);
        }
    } else if old != new {
        out.push((path.to_owned(), old.clone(), new.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_makes_another_run_is_refused_and_the_rest_is_noted() {
        let old = json!({"model": {"embed_dim": 8}, "training": {"seed": 1, "epochs": 3}});
        let new = json!({"model": {"embed_dim": 8}, "training": {"seed": 1, "epochs": 5}});
        assert_eq!(compare_configs(&old, &new).unwrap(), ["training.epochs: 3 in the checkpoint, 5 from here on"]);
        let other = json!({"model": {"embed_dim": 16}, "training": {"seed": 2, "epochs": 3}});
        let e = compare_configs(&old, &other).unwrap_err().to_string();
        assert_eq!(e.lines().count(), 2, "{e}");
        assert!(e.contains("model.embed_dim: expected 8 as in the checkpoint, found 16"));
    }
}
