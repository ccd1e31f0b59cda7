//! A finished autoencoder at work: the brain and the film that it makes of a film, whole or with a part of it silenced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::backend::Exec;
use crate::data::Dataset;
use crate::data::sherlock::prediction::Prediction;
use crate::data::sherlock::{Batch, Recording, SherlockDataset};
use crate::error::{Error, Faults, Result};
use crate::io::bytes::read_file;
use crate::models::Model;
use crate::models::sherlock::Sherlock;
use crate::nn::Pass;
use crate::tape::Tape;
use crate::tensor::Tensor;
use crate::train::checkpoint::Checkpoint;
use crate::train::config::SherlockRun;
use crate::train::evaluation::Evaluation;
use crate::train::resume::{load_weights, state_of};
use crate::train::sherlock::evaluate;

/// A checkpoint, opened to predict. It computes in f32, as validation does.
#[derive(Debug)]
pub struct Predictor {
    model: Sherlock,
    run: SherlockRun,
    exec: Exec,
    path: PathBuf,
    step: u64,
}

impl Predictor {
    /// Whether the checkpoint in the folder `path` says that it is one of the autoencoder; nothing is verified.
    pub fn is_of(path: &Path) -> bool {
        let state = read_file(&path.join("state.json")).ok();
        let state: Option<Value> = state.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        state.is_some_and(|s| s.pointer("/config/model/bottleneck_dim").is_some())
    }

    /// Opens the checkpoint in the folder `path`, verified. Data is looked for where the run found it, or in `data_dir`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it does not verify, or is not of the autoencoder; [`Error::Config`] for a configuration that
    /// cannot be.
    pub fn open(path: &Path, exec: &Exec, data_dir: Option<&Path>) -> Result<Predictor> {
        let checkpoint = Checkpoint::open(path)?;
        let at = path.display();
        let state = state_of(&checkpoint)?;
        let mut run: SherlockRun = serde_json::from_value(state.config)
            .map_err(|e| Error::checkpoint(format!("{at}: state.json: config: {e}")))?;
        if let Some(dir) = data_dir {
            run.data.data_dir = dir.to_path_buf();
        }
        let mut faults = Faults::new();
        run.data.validate(&mut faults);
        faults.into_result(Error::Config)?;
        let mut model = Sherlock::new(&run.model, &run.loss, |layout| exec.arena(layout))?;
        load_weights(model.params_mut(), &checkpoint)?;
        Ok(Predictor { model, run, exec: exec.clone(), path: path.to_path_buf(), step: checkpoint.step() })
    }

    /// The folder of its checkpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration of its run; data paths as they are read.
    pub fn run(&self) -> &SherlockRun {
        &self.run
    }

    /// Opens its data.
    ///
    /// # Errors
    /// As [`Recording::open`].
    pub fn recording(&self) -> Result<Arc<Recording>> {
        Recording::open(&self.run.data, Some(self.run.model.sizes()))
    }

    /// Steps that were done when it was saved.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Losses and metrics over all samples of `data`, `batch_size` at once, or as many as in training, as validations find
    /// them. `progress` is told how many samples are done, of how many.
    ///
    /// # Errors
    /// As [`evaluate()`].
    pub fn evaluate(
        &self,
        data: SherlockDataset,
        batch_size: Option<usize>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Evaluation> {
        let batch = batch_size.unwrap_or(self.run.training.batch_size);
        let data: Arc<dyn Dataset<Batch = Batch>> = Arc::new(data);
        let found = evaluate(
            &self.model,
            &self.exec,
            &Pass::eval(),
            &data,
            batch,
            self.run.data.num_workers,
            &mut |n, all| {
                progress(n, all);
                Ok(true)
            },
        )?;
        found.ok_or_else(|| Error::argument("evaluation: ended before its last sample"))
    }

    /// Predicts the brain and reconstructs the film at all TRs of `data`, `batch_size` at once, or as many as in training.
    /// `progress` is told how many TRs are done, of how many.
    ///
    /// # Errors
    /// As [`predict`].
    pub fn predict(
        &self,
        data: &SherlockDataset,
        batch_size: Option<usize>,
        lesion: &[usize],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Prediction> {
        let trs: Vec<usize> = data.trs().collect();
        let batch = batch_size.unwrap_or(self.run.training.batch_size);
        predict(&self.model, &self.exec, data, (&trs, batch), lesion, progress)
    }
}

/// Predicts the brain and reconstructs the film at `trs` of a recording, some at once.
///
/// `lesion` names units of the bottleneck, from 0, that are silenced: what they carry is then missing in voxels and film.
///
/// # Errors
/// [`Error::Argument`] if there is no such TR or unit, or if none at once are asked for; [`Error::NonFinite`] if the model
/// gives NaN or infinity; what the data or the device report.
pub fn predict(
    model: &Sherlock,
    exec: &Exec,
    data: &SherlockDataset,
    (trs, at_once): (&[usize], usize),
    lesion: &[usize],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Prediction> {
    let units = model.config().bottleneck_dim;
    if let Some(unit) = lesion.iter().find(|&&u| u >= units) {
        return Err(Error::argument(format!("lesion: expected units below {units}, found {unit}")));
    }
    if at_once == 0 {
        return Err(Error::argument("batch_size: expected at least 1, found 0"));
    }
    let params = model.params();
    let tape = || Tape::with_params(exec, params.arena()).with_buffers(params.buffers().arena()).inference();
    let pass = Pass::eval();
    let mut all = Prediction::default();
    for some in trs.chunks(at_once) {
        let mut encoding = tape();
        let bottleneck = model.encode(&mut encoding, &data.input(some)?, &pass)?;
        let code = silenced(encoding.value(bottleneck)?, lesion)?;
        let mut decoding = tape();
        let bottleneck = decoding.input(&code)?;
        let fmri = model.predict_fmri(&mut decoding, bottleneck, &pass)?;
        let [video, audio, text] = model.decode(&mut decoding, bottleneck, &pass)?;
        for (what, var, out) in [
            ("fmri", fmri, &mut all.fmri),
            ("video", video, &mut all.video),
            ("audio", audio, &mut all.audio),
            ("text", text, &mut all.text),
        ] {
            let numbers = decoding.value(var)?.to_f32()?;
            if numbers.iter().any(|x| !x.is_finite()) {
                return Err(Error::non_finite(format!("predict: {what}: expected finite numbers, found others")));
            }
            out.extend(numbers);
        }
        all.trs.extend(some);
        progress(all.trs.len(), trs.len());
    }
    Ok(all)
}

/// A bottleneck `[B, D]` with these units at 0, on the host.
fn silenced(code: crate::tensor::View<'_>, lesion: &[usize]) -> Result<Tensor> {
    let spec = code.spec().clone();
    let mut numbers = code.to_f32()?;
    for row in numbers.chunks_exact_mut(spec.last().max(1)) {
        for &unit in lesion {
            row[unit] = 0.0;
        }
    }
    Tensor::from_f32_as(spec, &numbers)
}
