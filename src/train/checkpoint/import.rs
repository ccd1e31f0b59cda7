//! Imports: weights (and AdamW's state) from `.pt`, `.safetensors` and other checkpoints, with their names mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value as Json;

use super::open::check_names;
use super::{Checkpoint, CheckpointStore, SaveRequest, Saved};
use crate::error::{Error, Faults, Result};
use crate::io::TensorView;
use crate::io::pt::{OwnedTensor, PtFile};
use crate::io::safetensors::SafetensorsFile;
use crate::io::stored::printable;

/// The keys under which programs keep the optimizer's state.
const OPTIMIZER_KEYS: [&str; 3] = ["optimizer_state_dict", "optimizer", "optimizer_states.0"];
/// What wrappers put before every name: data parallel, Lightning, the compiler.
const WRAPPERS: [&str; 5] = ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model._orig_mod."];
/// AdamW's tensors of a parameter.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// How to read a foreign file.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions<'a> {
    /// The key of the weights in the file; by default the usual ones are tried.
    pub key: Option<&'a str>,
    /// Beginnings of names and what they become; the first that fits is taken.
    pub rename: &'a [(String, String)],
    /// The parameters that the model has, in its order; without, every tensor is taken.
    pub expected: Option<&'a [(String, Vec<usize>)]>,
    /// Leave an optimizer's state alone.
    pub weights_only: bool,
}

/// What was found in a foreign file.
#[derive(Debug, Clone, Default)]
pub struct Imported {
    /// Parameters, in the model's order if that was given.
    pub weights: Vec<OwnedTensor>,
    /// The optimizer's tensors under our names.
    pub optimizer: Vec<OwnedTensor>,
    /// Steps done, if the file says, as one number or with every parameter of the optimizer.
    pub step: Option<u64>,
    /// Epoch, if the file says.
    pub epoch: Option<u64>,
    /// `state.json`, if it was a checkpoint of ours.
    pub state: Option<Json>,
    /// What was renamed or left out: to be shown.
    pub notes: Vec<String>,
}

impl Imported {
    /// Saves it as a checkpoint.
    ///
    /// # Errors
    /// As [`CheckpointStore::save`].
    pub fn save(&self, store: &mut CheckpointStore, name: &str, state: &Json) -> Result<Saved> {
        let views = |tensors: &'_ [OwnedTensor]| -> Result<()> { tensors.iter().try_for_each(|t| t.view().map(drop)) };
        views(&self.weights).and_then(|()| views(&self.optimizer))?;
        let weights = self.weights.iter().filter_map(|t| t.view().ok()).collect();
        let optimizer = self.optimizer.iter().filter_map(|t| t.view().ok()).collect();
        store.save(name, &SaveRequest { step: self.step.unwrap_or(0), weights, optimizer, state })
    }
}

/// Reads `source`: a checkpoint's folder, a `.safetensors` file, or a PyTorch file.
///
/// # Errors
/// [`Error::Checkpoint`] with every name that is missing, unexpected or of another shape; [`Error::Data`] if the file is
/// not sound; [`Error::Io`] if it cannot be read.
pub fn import(source: &Path, options: &ImportOptions<'_>) -> Result<Imported> {
    let mut imported = if source.is_dir() {
        from_checkpoint(source)?
    } else if source.extension().is_some_and(|e| e == "safetensors") {
        from_safetensors(source)?
    } else {
        from_pt(source, options)?
    };
    map_names(source, options, &mut imported)?;
    if options.weights_only {
        imported.optimizer.clear();
    }
    check_optimizer(source, &imported)?;
    Ok(imported)
}

fn owned(t: TensorView<'_>) -> OwnedTensor {
    OwnedTensor { name: t.name().into(), dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.bytes().to_vec() }
}

fn from_checkpoint(source: &Path) -> Result<Imported> {
    let checkpoint = Checkpoint::open(source)?;
    Ok(Imported {
        weights: checkpoint.weights().tensors().map(owned).collect(),
        optimizer: checkpoint.optimizer().tensors().map(owned).collect(),
        step: Some(checkpoint.step()),
        epoch: checkpoint.state().pointer("/position/epoch").and_then(Json::as_u64),
        state: Some(checkpoint.state().clone()),
        notes: Vec::new(),
    })
}

fn from_safetensors(source: &Path) -> Result<Imported> {
    let file = SafetensorsFile::open(source)?;
    Ok(Imported { weights: file.tensors().map(owned).collect(), ..Imported::default() })
}

fn from_pt(source: &Path, options: &ImportOptions<'_>) -> Result<Imported> {
    let file = PtFile::open(source)?;
    let key = file.weights_key(options.key)?;
    let prefix = key.as_ref().map_or(String::new(), |k| format!("{k}."));
    let mut imported = Imported::default();
    for (name, ..) in file.tensors() {
        if let Some(short) = name.strip_prefix(&prefix) {
            imported.weights.push(OwnedTensor { name: short.into(), ..file.read(name)? });
        }
    }
    let number = |keys: &[&str]| keys.iter().find_map(|k| file.value(&[k])?.as_u64());
    imported.epoch = number(&["epoch"]);
    imported.step = number(&["global_step", "step"]);
    imported.notes.extend(key.map(|k| format!("weights: taken from {:?}", printable(&k))));
    for (path, kind) in file.foreign() {
        imported.notes.push(format!("{path}: left out: a {kind}, which is neither a tensor nor a plain value"));
    }
    if !options.weights_only {
        optimizer_of(&file, options, &mut imported)?;
        if imported.step.is_none() {
            imported.step = step_of_states(&file)?;
        }
    }
    Ok(imported)
}

/// The key of the optimizer's state, if there is one.
fn optimizer_key(file: &PtFile) -> Option<&'static str> {
    OPTIMIZER_KEYS.into_iter().find(|key| file.under(&format!("{key}.state")).next().is_some())
}

/// The number of steps as PyTorch keeps it: with each parameter, as a tensor or, before version 1.12, as a number. Where a
/// file gives one for all, that one counts.
fn step_of_states(file: &PtFile) -> Result<Option<u64>> {
    let Some(key) = optimizer_key(file) else { return Ok(None) };
    let prefix = format!("{key}.state");
    let indices: BTreeSet<&str> = file.under(&prefix).filter_map(|entry| Some(entry.split_once('.')?.0)).collect();
    let mut steps = BTreeSet::new();
    for (index, name) in indices.iter().map(|i| (i, format!("{prefix}.{i}.step"))) {
        let path: Vec<&str> = key.split('.').chain(["state", index, "step"]).collect();
        let plain = file.value(&path).and_then(|v| v.as_f64());
        let number = match plain {
            None if file.tensors().any(|(tensor, ..)| tensor == name) => {
                let tensor = file.read(&name)?;
                let number = tensor.view()?.to_f64().next();
                number.filter(|_| tensor.shape.iter().product::<usize>() == 1)
            }
            None => continue,
            plain => plain,
        };
        match number.filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n)) {
            Some(number) => drop(steps.insert(number as u64)),
            None => {
                let at = file.path().display();
                return Err(Error::checkpoint(format!("{at}: {name}: expected a whole number of steps")));
            }
        }
    }
    match (steps.first(), steps.last()) {
        (Some(least), Some(most)) if least != most => Err(Error::checkpoint(format!(
            "{}: {prefix}: expected one number of steps for all parameters, found {least} to {most}; import with \
             --weights-only",
            file.path().display()
        ))),
        (step, _) => Ok(step.copied()),
    }
}

/// AdamW's state: PyTorch counts the parameters, so their names come from the file or from the model's order.
fn optimizer_of(file: &PtFile, options: &ImportOptions<'_>, imported: &mut Imported) -> Result<()> {
    let Some(key) = optimizer_key(file) else { return Ok(()) };
    let base: Vec<&str> = key.split('.').collect();
    let names = parameter_names(file, &base).or_else(|| {
        let expected = options.expected?;
        Some(expected.iter().enumerate().map(|(i, (name, _))| (i as u64, name.clone())).collect())
    });
    let Some(names) = names else {
        return Err(Error::checkpoint(format!(
            "{}: {key}: its states are counted, not named: name the model (--config-name), or import with --weights-only",
            file.path().display()
        )));
    };
    let mut faults = Faults::new();
    let prefix = format!("{key}.state");
    let mut left_out = BTreeSet::new();
    for entry in file.under(&prefix) {
        let (index, kind) = entry.split_once('.').unwrap_or((entry, ""));
        if !MOMENTS.contains(&kind) {
            left_out.insert(kind.to_string());
            continue;
        }
        match index.parse().ok().and_then(|i: u64| names.get(&i)) {
            Some(name) => {
                let tensor = file.read(&format!("{prefix}.{entry}"))?;
                imported.optimizer.push(OwnedTensor { name: format!("{name}.{kind}"), ..tensor });
            }
            None => faults.push(format!(
                "{}: {prefix}.{entry}: expected at most {} parameters",
                file.path().display(),
                names.len()
            )),
        }
    }
    // `step` is one number for all parameters here and stands in `state.json`.
    left_out.remove("step");
    imported.notes.extend(left_out.into_iter().map(|kind| format!("{key}: left out: {}", printable(&kind))));
    faults.into_result(Error::Checkpoint)
}

/// Names of the optimizer's parameters by their count, if every group names its own.
fn parameter_names(file: &PtFile, base: &[&str]) -> Option<BTreeMap<u64, String>> {
    let at = |rest: &[&str]| file.value(&[base, rest].concat());
    let mut names = BTreeMap::new();
    for group in at(&["param_groups"])?.as_array()? {
        let (params, named) = (group.get("params")?.as_array()?, group.get("param_names")?.as_array()?);
        if params.len() != named.len() {
            return None;
        }
        for (index, name) in params.iter().zip(named) {
            names.insert(index.as_u64()?, name.as_str()?.to_string());
        }
    }
    (!names.is_empty()).then_some(names)
}

/// Renames weights, and the moments with them; then compares with what is expected.
fn map_names(source: &Path, options: &ImportOptions<'_>, imported: &mut Imported) -> Result<()> {
    let renamed = |name: &str| {
        let rule =
            options.rename.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from.as_str())?)));
        rule.unwrap_or_else(|| name.to_string())
    };
    let mut wrapper = "";
    if let Some(expected) = options.expected {
        let names: BTreeSet<String> = imported.weights.iter().map(|t| renamed(&t.name)).collect();
        let all_under = |prefix: &str| expected.iter().all(|(name, _)| names.contains(&format!("{prefix}{name}")));
        if !all_under("") {
            wrapper = WRAPPERS.into_iter().find(|prefix| all_under(prefix)).unwrap_or("");
        }
    }
    if !wrapper.is_empty() {
        imported.notes.push(format!("names: {wrapper:?} removed from their beginnings"));
    }
    let mut seen = BTreeSet::new();
    let mut faults = Faults::new();
    for tensor in imported.weights.iter_mut().chain(&mut imported.optimizer) {
        let name = renamed(&tensor.name);
        tensor.name = name.strip_prefix(wrapper).unwrap_or(&name).to_string();
        if !seen.insert(tensor.name.clone()) {
            faults.push(format!("{}: {}: two tensors get this name", source.display(), printable(&tensor.name)));
        }
    }
    faults.into_result(Error::Checkpoint)?;
    let Some(expected) = options.expected else { return Ok(()) };
    let views = imported.weights.iter().filter_map(|t| t.view().ok());
    let shapes = expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    check_names(&source.display().to_string(), views, shapes)?;
    let order: BTreeMap<&str, usize> = expected.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
    imported.weights.sort_by_key(|t| order.get(t.name.as_str()).copied());
    Ok(())
}

/// Every moment belongs to a weight of its shape.
fn check_optimizer(source: &Path, imported: &Imported) -> Result<()> {
    let shapes: BTreeMap<&str, &[usize]> =
        imported.weights.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    let mut faults = Faults::new();
    for tensor in &imported.optimizer {
        let parameter = MOMENTS.iter().find_map(|kind| tensor.name.strip_suffix(kind)?.strip_suffix('.'));
        match parameter.and_then(|p| shapes.get(p)) {
            Some(shape) if **shape == *tensor.shape => {}
            Some(shape) => {
                let (at, name, found) = (source.display(), printable(&tensor.name), &tensor.shape);
                faults.push(format!("{at}: optimizer: {name}: expected {shape:?}, found {found:?}"));
            }
            None => {
                let (at, name) = (source.display(), printable(&tensor.name));
                faults.push(format!("{at}: optimizer: {name}: belongs to no weight"));
            }
        }
    }
    faults.into_result(Error::Checkpoint)
}
