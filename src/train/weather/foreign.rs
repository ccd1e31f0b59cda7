//! Weights from other programs as a checkpoint that runs go on from and that forecasts are made with.

use std::path::Path;

use half::bf16;

use crate::backend::Exec;
use crate::error::{Error, Faults, Result};
use crate::io::StoredDtype;
use crate::io::pt::OwnedTensor;
use crate::models::Model;
use crate::models::weather_vit::WeatherVit;
use crate::train::checkpoint::{CheckpointStore, ImportOptions, Imported, Saved, import};
use crate::train::config::{MomentPrecision, RunConfig};
use crate::train::loss_scale::LossScale;
use crate::train::resume::{FORMAT, RunState};
use crate::train::run::Position;
use crate::train::system::System;
use crate::train::trainer::Progress;

/// A file of another program and how to read it.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a> {
    /// A `.pt` or `.safetensors` file, or the folder of a checkpoint.
    pub source: &'a Path,
    /// The key of the weights in a `.pt`; by default the usual ones are tried.
    pub key: Option<&'a str>,
    /// Beginnings of names and what they become.
    pub rename: &'a [(String, String)],
    /// Leave the optimiser's state and the counters of steps alone: training starts anew from these weights.
    pub weights_only: bool,
}

impl Foreign<'_> {
    /// Saves the weights as the checkpoint `name` of `store`, for the model of `config`. Every tensor of the model must
    /// be there with its shape, and no other. Returned lines say what was renamed, converted or left out.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with every tensor that is missing, unexpected or of another shape, and if the file has moments
    /// but not the number of steps; [`Error::Argument`] if `name` exists; as [`CheckpointStore::save`].
    pub fn adopt(&self, config: &RunConfig, store: &mut CheckpointStore, name: &str) -> Result<(Saved, Vec<String>)> {
        let at = store.dir().join(name);
        if at.exists() {
            return Err(Error::argument(format!("{}: exists already; choose another --name", at.display())));
        }
        let expected = expected(config)?;
        let (key, rename, weights_only) = (self.key, self.rename, self.weights_only);
        let mut found = import(self.source, &ImportOptions { key, rename, expected: Some(&expected), weights_only })?;
        let mut notes = std::mem::take(&mut found.notes);
        let moments = match config.training.moments {
            MomentPrecision::Fp32 => StoredDtype::F32,
            MomentPrecision::Bf16Stochastic => StoredDtype::Bf16,
        };
        for tensor in &mut found.weights {
            notes.extend(convert(tensor, StoredDtype::F32)?);
        }
        for tensor in &mut found.optimizer {
            notes.extend(convert(tensor, moments)?);
        }
        let progress = self.progress(config, &found, &mut notes)?;
        if found.optimizer.is_empty() {
            found.optimizer = zero_moments(&expected, moments);
            notes.push("optimizer: nothing taken: the moments of AdamW start at zero".to_owned());
        } else {
            self.all_moments(&expected, &found)?;
        }
        let epoch = if weights_only { 0 } else { found.epoch.unwrap_or(0) };
        if epoch > 0 {
            notes.push(format!("epoch: {epoch} epochs count as done; a run goes on at the start of the next"));
        }
        let state = RunState {
            format: FORMAT,
            perfrun: env!("CARGO_PKG_VERSION").to_owned(),
            progress,
            position: Position { epoch, ..Position::default() },
            loss_scale: LossScale::new(&config.training),
            config: config.kept()?,
            entries: Vec::new(),
            buffers: Vec::new(),
        };
        let state = serde_json::to_value(&state).map_err(|e| Error::checkpoint(format!("state.json: {e}")))?;
        found.step = Some(progress.step);
        Ok((found.save(store, name, &state)?, notes))
    }

    /// The counters of steps: AdamW's correction of its moments depends on them.
    fn progress(&self, config: &RunConfig, found: &Imported, notes: &mut Vec<String>) -> Result<Progress> {
        if self.weights_only || found.optimizer.is_empty() {
            if let Some(step) = found.step.filter(|_| !self.weights_only) {
                notes.push(format!("step: {step} steps are not counted, since there are no moments to go on with"));
            }
            return Ok(Progress::default());
        }
        let Some(step) = found.step else {
            return Err(Error::checkpoint(format!(
                "{}: has AdamW's moments but not the number of steps they were made in (global_step, or step with every \
                 parameter); import with --weights-only",
                self.source.display()
            )));
        };
        let micro_batches = config.training.gradient_accumulation.max(1) as u64;
        Ok(Progress { step, updates: step, passes: step.saturating_mul(micro_batches) })
    }

    fn all_moments(&self, expected: &[(String, Vec<usize>)], found: &Imported) -> Result<()> {
        let mut faults = Faults::new();
        let has = |name: &str| found.optimizer.iter().any(|t| t.name == name);
        for name in moment_names(expected).filter(|name| !has(name)) {
            faults.push(format!("{}: optimizer: {name}: missing; import with --weights-only", self.source.display()));
        }
        faults.into_result(Error::Checkpoint)
    }
}

/// Names and shapes of the model's parameters, in its order.
fn expected(config: &RunConfig) -> Result<Vec<(String, Vec<usize>)>> {
    let exec = Exec::plan();
    let model = WeatherVit::new(&config.network(), |layout| exec.arena(layout))?;
    let specs = model.params().arena().layout().specs();
    let pairs = model.params().iter().zip(specs);
    Ok(pairs.map(|((_, name), spec)| (name.to_owned(), spec.shape().to_vec())).collect())
}

fn moment_names(expected: &[(String, Vec<usize>)]) -> impl Iterator<Item = String> {
    expected.iter().flat_map(|(name, _)| ["exp_avg", "exp_avg_sq"].map(|m| format!("{name}.{m}")))
}

fn zero_moments(expected: &[(String, Vec<usize>)], dtype: StoredDtype) -> Vec<OwnedTensor> {
    let shapes = expected.iter().flat_map(|(_, shape)| [shape, shape]);
    let zero = |(name, shape): (String, &Vec<usize>)| {
        let bytes = vec![0; dtype.size() * shape.iter().product::<usize>()];
        OwnedTensor { name, dtype, shape: shape.clone(), bytes }
    };
    moment_names(expected).zip(shapes).map(zero).collect()
}

/// Converts a tensor to f32, which masters are, or to bf16; a line if there was something to convert.
fn convert(tensor: &mut OwnedTensor, to: StoredDtype) -> Result<Option<String>> {
    if tensor.dtype == to {
        return Ok(None);
    }
    let (numbers, is_narrow) = (tensor.view()?, to == StoredDtype::Bf16);
    let bytes: Vec<u8> = match is_narrow {
        true => numbers.to_f64().flat_map(|x| bf16::from_f32(x as f32).to_le_bytes()).collect(),
        false => numbers.to_f64().flat_map(|x| (x as f32).to_le_bytes()).collect(),
    };
    let name = crate::io::stored::printable(&tensor.name);
    let note = format!("{name}: {} rounded to {}", tensor.dtype, if is_narrow { "bf16" } else { "f32" });
    (tensor.bytes, tensor.dtype) = (bytes, to);
    Ok(Some(note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::checkpoint::{Checkpoint, Contents, export};
    use crate::train::config::ConfigSource;
    use crate::train::resume::state_of;

    const TINY: &str = "tiny: {embed_dim: 8, num_layers: 1, num_heads: 2, img_size: [8, 8], patch_size: 4, \
                        input_channels: 1, output_channels: 1}";

    fn config() -> RunConfig {
        let text = ConfigSource::Text { label: "tiny.yaml".into(), text: TINY.into() };
        RunConfig::load(&text, None, &[], &|_| None).unwrap()
    }

    /// A safetensors file of the model, in number type and bytes of the caller.
    fn weights(path: &Path, dtype: StoredDtype, element: &[u8], skip: &str) {
        let all = expected(&config()).unwrap();
        let tensors: Vec<OwnedTensor> = all
            .into_iter()
            .filter(|(name, _)| name != skip)
            .map(|(name, shape)| {
                let bytes = element.repeat(shape.iter().product());
                OwnedTensor { name, dtype, shape, bytes }
            })
            .collect();
        let views: Vec<_> = tensors.iter().map(|t| t.view().unwrap()).collect();
        let mut file = Vec::new();
        crate::io::safetensors::write(&mut file, path, &views, &Default::default()).unwrap();
        std::fs::write(path, file).unwrap();
    }

    fn adopt(source: &Path, weights_only: bool, dir: &Path, name: &str) -> Result<(Saved, Vec<String>)> {
        let foreign = Foreign { source, key: None, rename: &[], weights_only };
        foreign.adopt(&config(), &mut CheckpointStore::new(dir, 0), name)
    }

    #[test]
    fn weights_become_a_checkpoint_with_fresh_moments_and_every_change_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.safetensors");
        weights(&file, StoredDtype::Bf16, &[0x80, 0x3f], "");
        let (saved, notes) = adopt(&file, false, dir.path(), "imported").unwrap();
        let checkpoint = Checkpoint::open(&saved.path).unwrap();
        assert_eq!(checkpoint.step(), 0);
        assert!(checkpoint.weights().tensors().all(|t| t.to_f64().all(|x| x == 1.0)));
        assert_eq!(checkpoint.optimizer().len(), 2 * checkpoint.weights().len());
        assert_eq!(state_of(&checkpoint).unwrap().progress, Progress::default());
        assert_eq!(notes.iter().filter(|n| n.ends_with("rounded to f32")).count(), checkpoint.weights().len());
        assert!(notes.last().is_some_and(|n| n.contains("start at zero")), "{notes:?}");
        let again = adopt(&file, false, dir.path(), "imported").unwrap_err().to_string();
        assert!(again.ends_with("exists already; choose another --name"), "{again}");
    }

    #[test]
    fn what_is_exported_with_its_moments_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.safetensors");
        weights(&file, StoredDtype::F32, &1f32.to_le_bytes(), "");
        let (saved, _) = adopt(&file, false, dir.path(), "first").unwrap();
        let pt = dir.path().join("all.pt");
        let checkpoint = Checkpoint::open(&saved.path).unwrap();
        export(&checkpoint, &pt, Contents::Everything, crate::io::atomic::Existing::Refuse).unwrap();
        let (saved, notes) = adopt(&pt, false, dir.path(), "second").unwrap();
        let again = Checkpoint::open(&saved.path).unwrap();
        assert!(!notes.iter().any(|n| n.contains("start at zero")), "{notes:?}");
        assert_eq!(again.optimizer().len(), checkpoint.optimizer().len());
        let (_, notes) = adopt(&pt, true, dir.path(), "third").unwrap();
        assert!(notes.iter().any(|n| n.contains("start at zero")), "{notes:?}");
    }

    #[test]
    fn a_tensor_that_is_missing_is_named_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.safetensors");
        let name = expected(&config()).unwrap()[1].0.clone();
        weights(&file, StoredDtype::F32, &1f32.to_le_bytes(), &name);
        let error = adopt(&file, false, dir.path(), "imported").unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
        assert!(!dir.path().join("imported").exists());
    }
}
