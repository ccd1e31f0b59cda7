//! Whole runs of small models on a CPU.

use std::path::Path;
use std::sync::Arc;

use half::bf16;

use super::*;
use crate::backend::Exec;
use crate::data::Dataset;
use crate::data::sherlock::{Batch, Sizes, Stimulus};
use crate::error::Result;
use crate::io::pt::PtFile;
use crate::models::Model;
use crate::models::sherlock::{LossConfig, Sherlock, SherlockConfig};
use crate::nn::Pass;
use crate::ops::cast::Cast;
use crate::ops::operator::{Forward, Operator};
use crate::rng::Stream;
use crate::tape::{Grads, Tape};
use crate::tensor::{Dtype, Spec, Tensor};
use crate::train::budget::SystemClock;
use crate::train::checkpoint::Checkpoint;
use crate::train::config::{ConfigSource, GradientPrecision, MomentPrecision, Precision, SherlockRun, TrainingConfig};
use crate::train::observer::{Event, Observer, Observers};
use crate::train::resume::Resume;
use crate::train::run::Outcome;
use crate::train::stop::Stop;
use crate::train::trainer::{StepReport, Trainer, plan_step};

/// A film of random stimuli and a brain that is a linear function of the words, so that there is something to learn.
struct Film {
    sizes: Sizes,
    from: u64,
    samples: usize,
}

impl Dataset for Film {
    type Batch = Batch;

    fn len(&self) -> usize {
        self.samples
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let tensor = |spec: &Spec, part: u64| {
            let width = spec.len() / indices.len().max(1);
            let row = |i: &usize| {
                let stream = Stream::of(11, &[part, self.from + *i as u64]);
                (0..width as u64).map(move |k| stream.uniform(k)).collect::<Vec<f32>>()
            };
            Tensor::from_f32(spec.shape(), &indices.iter().flat_map(row).collect::<Vec<_>>())
        };
        let [video, audio, text] = self.sizes.stimulus(indices.len())?;
        let input = Stimulus { video: tensor(&video, 1)?, audio: tensor(&audio, 2)?, text: tensor(&text, 3)? };
        let words = input.text.to_f32()?;
        let brain = words.chunks_exact(self.sizes.text).flat_map(|words| {
            let voxel = |v: usize| {
                let stream = Stream::of(12, &[v as u64]);
                words.iter().zip(0..).map(|(x, k)| x * stream.signed(k)).sum::<f32>()
            };
            (0..self.sizes.voxels).map(voxel).collect::<Vec<_>>()
        });
        let fmri = Tensor::from_f32([indices.len(), self.sizes.voxels], &brain.collect::<Vec<_>>())?;
        Ok(Batch { target: input.clone(), input, fmri })
    }
}

/// `sherlock-tiny` below `folder`, three epochs of four steps.
fn tiny(folder: &Path, more: &[&str]) -> SherlockRun {
    let place = |key: &str| format!("{key}={:?}", folder.join(key).display().to_string());
    let mut overrides = vec![place("checkpoint_dir"), place("log_dir"), "epochs=3".into(), "save_every=1".into()];
    overrides.extend(["batch_size=4", "n_voxels=11", "num_workers=0"].map(str::to_owned));
    overrides.extend(more.iter().map(|s| (*s).to_owned()));
    SherlockRun::load(&ConfigSource::Embedded, Some("sherlock-tiny"), &overrides).unwrap()
}

fn session(run: &SherlockRun, resume: &Resume) -> Result<Session> {
    let film = |from, samples| Arc::new(Film { sizes: run.model.sizes(), from, samples });
    Session::with_data(run, &Exec::cpu(), film(0, 17), film(1000, 6), resume)
}

fn go(run: &SherlockRun, resume: &Resume, stop: &Stop, observer: &mut dyn Observer) -> History {
    let clock = Box::new(SystemClock::default());
    session(run, resume).unwrap().run(stop, clock, observer).unwrap()
}

/// Stops after a step.
struct StopAt(u64, Stop);

impl Observer for StopAt {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        if matches!(event, Event::Step { report, .. } if report.step == self.0) {
            self.1.request();
        }
        Ok(())
    }
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let names = ["model.safetensors", "optimizer.safetensors"];
    names.iter().map(|n| std::fs::read(folder.join("checkpoint_dir/final_checkpoint").join(n)).unwrap()).collect()
}

#[test]
fn a_run_that_was_stopped_anywhere_and_goes_on_ends_with_the_same_bytes() {
    let kept = ["precision=bf16", "gradients=factors", "moments=bf16_stochastic"];
    for more in [&[][..], &["precision=fp16", "gradient_accumulation=2"], &kept] {
        let whole = tempfile::tempdir().unwrap();
        let want = go(&tiny(whole.path(), more), &Resume::Never, &Stop::new(), &mut Observers::new());
        assert_eq!(want.outcome, Outcome::Finished);
        let steps: u64 = if more.contains(&"gradient_accumulation=2") { 6 } else { 12 };
        for at in [1, steps / 2, steps - 1] {
            let dir = tempfile::tempdir().unwrap();
            let stop = Stop::new();
            let part = go(&tiny(dir.path(), more), &Resume::Never, &stop.clone(), &mut StopAt(at, stop));
            assert!(part.outcome.is_resumable(), "{at}: {:?}", part.outcome);
            let got = go(&tiny(dir.path(), more), &Resume::Latest, &Stop::new(), &mut Observers::new());
            assert_eq!(got, want, "{at}");
            assert!(files(dir.path()) == files(whole.path()), "stopped after step {at}");
        }
    }
}

#[test]
fn a_run_learns_and_its_history_has_every_number() {
    let dir = tempfile::tempdir().unwrap();
    let history = go(&tiny(dir.path(), &["epochs=12"]), &Resume::Never, &Stop::new(), &mut Observers::new());
    assert_eq!((history.train_history.len(), history.val_history.len()), (12, 12));
    let at = |i: usize, name: &str| history.train_history[i][name];
    assert!(at(11, "fmri_loss") < 0.9 * at(0, "fmri_loss"), "{} {}", at(0, "fmri_loss"), at(11, "fmri_loss"));
    for name in ["total_loss", "reconstruction_loss", "video_loss", "audio_loss", "text_loss", "fmri_loss", "lr"] {
        assert!(history.train_history[3][name].is_finite(), "{name}");
    }
    for name in ["loss", "total_loss", "fmri_correlation", "fmri_r2", "fmri_voxel_correlation"] {
        assert!(history.val_history[3][name].is_finite(), "{name}");
    }
    let least = history.val_history.iter().map(|v| v["loss"]).fold(f64::INFINITY, f64::min);
    assert!(history.best_val_loss.unwrap() >= least && history.best_val_loss.unwrap() - least <= 1e-4);
}

#[test]
fn a_run_that_does_not_improve_stops_early_and_its_counter_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    // No improvement is large enough.
    let more = ["early_stopping_delta=1e9", "early_stopping_patience=3", "epochs=9"];
    let stop = Stop::new();
    let run = tiny(dir.path(), &more);
    go(&run, &Resume::Never, &stop.clone(), &mut StopAt(10, stop));
    let again = session(&run, &Resume::Latest).unwrap();
    let first = again.best_val_loss().unwrap();
    let mut log = TrainingLog::open(&run, &again, |_| {}).unwrap();
    let history = again.run(&Stop::new(), Box::new(SystemClock::default()), &mut log).unwrap();
    assert_eq!((history.outcome, history.val_history.len()), (Outcome::EarlyStopped, 4));
    let said = std::fs::read_to_string(dir.path().join("log_dir/training.log")).unwrap();
    assert!(said.contains("\nEarly stopping after 4 epochs: ") && said.contains("Best validation loss: "), "{said}");
    assert_eq!(history.best_val_loss, Some(first));
    let best = Checkpoint::open(dir.path().join("checkpoint_dir/best_checkpoint")).unwrap();
    assert_eq!(best.step(), 4);
}

#[test]
fn the_log_has_the_header_and_a_line_an_epoch_and_the_pt_file_every_entry() {
    let dir = tempfile::tempdir().unwrap();
    let run = tiny(dir.path(), &["precision=fp16", "epochs=2"]);
    let session = session(&run, &Resume::Never).unwrap();
    let mut observers = Observers::new();
    observers.push(TrainingLog::open(&run, &session, |_| {}).unwrap());
    observers.push(PtFiles::default());
    session.run(&Stop::new(), Box::new(SystemClock::default()), &mut observers).unwrap();
    let log = std::fs::read_to_string(dir.path().join("log_dir/training.log")).unwrap();
    let bar = "=".repeat(80);
    let head =
        format!("{bar}\nStarting training\n{bar}\nDevice: cpu\nDistributed: False\nWorld size: 1\nModel parameters: ");
    assert!(log.starts_with(&head), "{log}");
    assert!(log.contains("Train samples: 17\nVal samples: 6\nBatch size: 4\nLearning rate: 0.001\n"), "{log}");
    assert!(log.contains("\nEpoch 2/2 | Train Loss: ") && log.contains("checkpoint_epoch_2\n"), "{log}");
    assert!(log.contains("\nTraining complete!\nBest validation loss: "), "{log}");
    let file = PtFile::open(&dir.path().join("checkpoint_dir/checkpoint_epoch_2.pt")).unwrap();
    let tensors: Vec<&str> = file.tensors().map(|(name, ..)| name).collect();
    let of = |prefix: &str| tensors.iter().filter(|n| n.starts_with(prefix)).count();
    assert_eq!((of("model_state_dict."), of("optimizer_state_dict.state.")), (166, 300));
    assert!(tensors.contains(&"model_state_dict.encoder.video_encoder.bn1.num_batches_tracked"));
    assert_eq!(file.value(&["epoch"]).and_then(|v| v.as_u64()), Some(2));
    assert_eq!(file.value(&["scaler_state_dict", "growth_interval"]).and_then(|v| v.as_u64()), Some(2000));
    let rate = |key: &str| file.value(&["scheduler_state_dict", key]).and_then(|v| v.as_u64());
    // Both epochs are warm-up: the cosine has not begun.
    assert_eq!((rate("T_max"), rate("last_epoch"), rate("_step_count")), (Some(1), Some(0), Some(1)));
    assert!(file.value(&["val_loss"]).is_some());
    assert!(file.value(&["best_val_loss"]).is_some() && file.value(&["config", "model", "n_voxels"]).is_some());
}

/// What one pass in bf16 gives, by name, where gradients are kept in `dtype`.
fn gradients(run: &SherlockRun, dtype: Dtype) -> Vec<(String, Vec<f32>)> {
    let exec = Exec::cpu();
    let mut model = Sherlock::new(&run.model, &run.loss, |layout| exec.arena(layout)).unwrap();
    model.params_mut().initialise(3).unwrap();
    let params = model.params();
    let layout = params.arena().layout();
    let mut shadow = exec.arena(layout.beside(Dtype::Bf16).unwrap()).unwrap();
    let io = Forward { x: &[params.arena().flat()], y: &mut [shadow.flat_mut()], saved: &mut [] };
    Cast { to: Dtype::Bf16 }.forward(&exec, io).unwrap();
    let batch = Film { sizes: run.model.sizes(), from: 0, samples: 8 }.batch(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    let tape = Tape::with_params(&exec, params.arena()).with_buffers(params.buffers().arena());
    let mut tape = tape.with_shadow(&shadow).unwrap();
    let loss = model.loss(&mut tape, &batch, &Pass { train: true, compute: Dtype::Bf16, seed: 1, number: 0 }).unwrap();
    let mut grads = Grads::new(&exec, &layout.beside(dtype).unwrap()).unwrap();
    tape.backward(loss, 1.0, &mut grads).unwrap();
    params.iter().map(|(p, name)| (name.to_owned(), grads.get(p).unwrap().to_f32().unwrap())).collect()
}

#[test]
fn gradients_in_the_type_of_the_pass_are_those_in_f32_rounded_once() {
    let dir = tempfile::tempdir().unwrap();
    let run = tiny(dir.path(), &[]);
    let (wide, narrow) = (gradients(&run, Dtype::F32), gradients(&run, Dtype::Bf16));
    let mut rounded = 0;
    for ((name, wide), (_, narrow)) in wide.iter().zip(&narrow) {
        for (i, (w, n)) in wide.iter().zip(narrow).enumerate() {
            assert_eq!(bf16::from_f32(*w).to_f32().to_bits(), n.to_bits(), "{name}[{i}]: {w} {n}");
            rounded += usize::from(w != n);
        }
    }
    // Those of norms; all others are products, which have 16 bits already.
    assert!(rounded > 0);
}

/// A trainer of the model after one step, and what the step told.
fn stepped(run: &SherlockRun) -> (Trainer<Sherlock>, StepReport) {
    let exec = Exec::cpu();
    let mut model = Sherlock::new(&run.model, &run.loss, |layout| exec.arena(layout)).unwrap();
    model.params_mut().initialise(3).unwrap();
    let mut trainer = Trainer::new(model, &exec, &run.training).unwrap();
    let batch = Film { sizes: run.model.sizes(), from: 0, samples: 8 }.batch(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    let report = trainer.step(&[batch], 1e-3).unwrap();
    (trainer, report)
}

#[test]
fn gradients_that_are_kept_as_factors_are_those_that_are_kept_themselves() {
    // What a number may be off by, of itself and of the largest beside it: products in bf16 are rounded where they are stored.
    for (precision, own, largest) in [("fp32", 0.0, 1e-5), ("bf16", 2f32.powi(-7), 1e-5)] {
        let dir = tempfile::tempdir().unwrap();
        let run = |more: &str| tiny(dir.path(), &[&format!("precision={precision}"), more]);
        let (stored, want) = stepped(&run("gradients=fp32"));
        let (trainer, got) = stepped(&run("gradients=factors"));
        assert_eq!(got.loss, want.loss, "{precision}");
        let (a, b) = (got.grad_norm, want.grad_norm);
        assert!((a / b - 1.0).abs() < f64::from(own + largest), "{precision}: {a} {b}");
        for (p, name) in trainer.model().params().iter() {
            let mean = |t: &Trainer<Sherlock>| t.moments().exp_avg.view(p.index()).unwrap().to_f32().unwrap();
            let (got, want) = (mean(&trainer), mean(&stored));
            let most = want.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((g - w).abs() <= own * w.abs() + largest * most + 1e-9, "{precision}: {name}[{i}]: {g} {w}");
            }
        }
        // Made twice: once in place of what a pass makes, and once more.
        assert_eq!(got.cost.model().flops, want.cost.model().flops, "{precision}");
        assert!(got.update.flops.matmul > 0 && want.update.flops.matmul == 0, "{precision}");
    }
}

/// Bytes that a step of the published model on 64 samples needs at its worst moment.
fn planned(precision: Precision, gradients: GradientPrecision, moments: MomentPrecision) -> usize {
    let (exec, config) = (Exec::plan(), SherlockConfig::default());
    let model = Sherlock::new(&config, &LossConfig::default(), |layout| exec.arena(layout)).unwrap();
    let sizes = config.sizes();
    let [video, audio, text] = sizes.stimulus(64).unwrap().map(|spec| exec.alloc(spec).unwrap());
    let input = Stimulus { video, audio, text };
    let fmri = exec.alloc(Spec::f32([64, sizes.voxels]).unwrap()).unwrap();
    let training = TrainingConfig { precision, gradients, moments, ..TrainingConfig::default() };
    plan_step(&model, &exec, &Batch { target: input.clone(), input, fmri }, &training).unwrap().peak_bytes
}

#[test]
fn the_published_model_needs_the_bytes_a_parameter_that_each_way_of_keeping_says_and_little_more() {
    use GradientPrecision::{Factors, Fp32, Pass};
    let (wide, narrow) = (MomentPrecision::Fp32, MomentPrecision::Bf16Stochastic);
    let parameters = 1_974_067_762;
    // Weights 4, moments 8 or 4, the weights of a pass in 16 bits 2, gradients 4, 2 or none; in f32 that of the largest matrix lies in
    // 16 bits beside its place, too. Activations and what is kept of them are less than 1 GB.
    let largest = 2 * 16_384 * 85_810;
    for (precision, gradients, moments, bytes, more) in [
        (Precision::Fp32, Fp32, wide, 16, 0),
        (Precision::Bf16, Fp32, wide, 18, largest),
        (Precision::Bf16, Pass, wide, 16, 0),
        (Precision::Bf16, Factors, wide, 14, 0),
        (Precision::Fp16, Factors, wide, 14, 0),
        (Precision::Bf16, Factors, narrow, 10, 0),
    ] {
        let (peak, least) = (planned(precision, gradients, moments), parameters * bytes + more);
        println!("{precision:?} {gradients:?} {moments:?} {peak}");
        assert!(
            (least..least + 1_000_000_000).contains(&peak),
            "{precision:?} {gradients:?} {moments:?}: {peak} {least}"
        );
    }
    // PyTorch's fused step on an H200 at its worst moment: benches/baselines/torch_sherlock.py, in bf16, eager.
    let torch = 34_131_336_704.0;
    let ours = planned(Precision::Bf16, Factors, wide) as f64;
    assert!(ours < 0.85 * torch, "{ours}");
}
