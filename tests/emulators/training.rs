//! Training on a device that executes compiled kernels: it ends where the CPU ends, and a checkpoint written there goes on
//! anywhere.
//!
//! The CPU's run in f32 stands for the exact one, since its rounding is 2^16 times finer than that of bf16: so the rule of
//! `ops::compare` holds for bf16 as it stands. What f32 may differ by is a small part of that.

use std::path::Path;

use perfrun::backend::Exec;
use perfrun::data::weather::WeatherBatch;
use perfrun::data::weather::synthetic::SyntheticWeather;
use perfrun::models::Model;
use perfrun::models::weather_vit::WeatherVit;
use perfrun::ops::compare::Margin;
use perfrun::tensor::{Dtype, Tensor};
use perfrun::train::budget::SystemClock;
use perfrun::train::checkpoint::Checkpoint;
use perfrun::train::config::{Precision, RunConfig};
use perfrun::train::observer::Event;
use perfrun::train::resume::Resume;
use perfrun::train::run::Outcome;
use perfrun::train::stop::{Stop, StopReason};
use perfrun::train::system::System;
use perfrun::train::trainer::Trainer;
use perfrun::train::weather::Session;

use super::{open, timed};
use crate::train::{At, config};

/// Part of bf16's error that a run in f32 may differ by from the CPU's.
const FINER: f64 = 1.0 / 4096.0;

/// Every tensor of the final checkpoint, then losses and gradient norms.
struct Ended {
    tensors: Vec<(String, Vec<f64>)>,
}

impl Ended {
    fn of(config: &RunConfig, reports: &[[f64; 2]]) -> Ended {
        let checkpoint = Checkpoint::open(config.checkpoint_folder().join("final_checkpoint")).unwrap();
        let numbers = |bytes: &[u8]| -> Vec<f64> {
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        };
        let stored = checkpoint.weights().tensors().chain(checkpoint.optimizer().tensors());
        let mut tensors: Vec<_> = stored.map(|t| (t.name().to_owned(), numbers(t.bytes()))).collect();
        for (i, name) in ["loss", "grad_norm"].into_iter().enumerate() {
            tensors.push((name.into(), reports.iter().map(|r| r[i]).collect()));
        }
        Ended { tensors }
    }
}

/// Two steps of two micro-batches with everything that a step can do: dropout, clipping, weight decay.
fn tiny(root: &Path, name: &str, precision: Precision) -> RunConfig {
    let mut config = config(root, name);
    config.model.num_layers = 1;
    config.training.precision = precision;
    config.training.batch_size = 1;
    config.training.max_steps = Some(2);
    config.training.learning_rate = 1e-2;
    config.training.weight_decay = 0.1;
    config.training.gradient_clipping = 0.1;
    // Else the first step has the size of the learning rate even where a gradient is nothing but rounding.
    config.training.eps = 1e-3;
    config
}

fn small_data(root: &Path) {
    let small = SyntheticWeather { height: 8, width: 16, channels: 2, steps: 3, ..SyntheticWeather::default() };
    small.write(root, |_| {}).unwrap();
    for file in ["train/weather_2012.h5", "valid/weather_2016.h5", "valid/weather_2017.h5"] {
        drop(std::fs::remove_file(root.join(file)));
    }
}

/// Runs on `first` until `stop_after` steps are done, then on `second`.
fn train_on(config: &RunConfig, first: &Exec, second: Option<(u64, &Exec)>) -> Ended {
    let mut reports = Vec::new();
    let mut run = |exec: &Exec, resume: &Resume, stop_after: Option<u64>| {
        let stop = Stop::new();
        let session = Session::open(config, exec, resume).unwrap();
        let mut observer = At(|e: &Event<'_>| {
            if let Event::Step { report, .. } = e {
                reports.push([report.loss, report.grad_norm]);
                if Some(report.step) == stop_after {
                    stop.request();
                }
            }
        });
        session.run(&stop, Box::<SystemClock>::default(), &mut observer).unwrap()
    };
    let outcome = run(first, &Resume::Never, second.map(|s| s.0));
    let outcome = match second {
        None => outcome,
        Some((_, second)) => {
            assert_eq!(outcome, Outcome::Stopped(StopReason::Request));
            run(second, &Resume::Latest, None)
        }
    };
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(reports.len(), 2);
    Ended::of(config, &reports)
}

fn assert_within(what: &str, got: &Ended, want: &Ended, bf16: &Ended, part: f64) {
    assert_eq!(got.tensors.len(), want.tensors.len());
    let mut most = 0.0_f64;
    for (((name, got), (_, want)), (_, base)) in got.tensors.iter().zip(&want.tensors).zip(&bf16.tensors) {
        let margin = Margin::of(base, want);
        let ulp = Dtype::Bf16.ulp();
        let top = want.iter().fold(0.0_f64, |t, x| t.max(x.abs()));
        let length = want.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off = Margin::of(got, want);
        assert!(got.iter().all(|x| x.is_finite()), "{what}: {name}: {got:?}");
        let (max, norm) = (part * (2.0 * margin.max + ulp * top), part * (2.0 * margin.norm + ulp * length));
        assert!(off.max <= max && off.norm <= norm, "{what}: {name}: {off:?}, at most {max:e} and {norm:e}");
        most = most.max(off.max / max).max(off.norm / norm);
    }
    println!("{what}: {:.0} % of what it may differ by", 100.0 * most);
}

fn two_steps_are_those_of_the_cpu_on(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    small_data(&dir.path().join("data"));
    let (cpu, device) = (Exec::cpu(), open(name));
    let named = |name, precision| tiny(dir.path(), name, precision);
    let want = train_on(&named("cpu_f32", Precision::Fp32), &cpu, None);
    let base = train_on(&named("cpu_bf16", Precision::Bf16), &cpu, None);
    let got = timed(&format!("{name} bf16"), || train_on(&named("device_bf16", Precision::Bf16), &device, None));
    // The plan does not count what kernels keep between two launches.
    let (peak, planned) = (device.memory().peak, named("planned", Precision::Bf16).plan().unwrap().peak_bytes);
    assert!(peak >= planned && peak - planned <= planned / 100, "peak of {peak} bytes, planned {planned}");
    assert_within("bf16", &got, &want, &base, 1.0);
    let f32 = || train_on(&named("device_f32", Precision::Fp32), &device, Some((1, &cpu)));
    let got = timed(&format!("{name} f32"), f32);
    assert_within("f32, the second step on the CPU", &got, &want, &base, FINER);
    assert_eq!(device.memory().now, 0, "everything has been given back");
}

macro_rules! on_all {
    ($what:ident: $($test:ident $device:literal),*) => {$(
        #[test]
        #[ignore = "needs NVRTC and clang-19: see ci/install"]
        fn $test() {
            $what($device);
        }
    )*};
}

on_all!(two_steps_are_those_of_the_cpu_on:
    two_steps_on_sm_80_are_those_of_the_cpu "emu:sm_80",
    two_steps_on_sm_90a_are_those_of_the_cpu "emu:sm_90a",
    two_steps_on_gfx90a_are_those_of_the_cpu "emu:gfx90a",
    two_steps_on_gfx942_are_those_of_the_cpu "emu:gfx942"
);

/// A step of a model with all that a step can do, one block of it run twice: what its launches state to execute on matrix
/// units, and what was counted there, over the whole step and by the profile.
fn a_step_executes_what_it_states_on(name: &str) {
    for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp16] {
        let exec = open(name);
        let mut config = tiny(Path::new("unread"), "stated", precision);
        config.model.use_checkpointing = true;
        // 32 tokens of 3 heads of 8: no tile is full.
        (config.model.img_size, config.model.embed_dim, config.model.num_heads) = ([16, 32], 24, 3);
        let mut model = WeatherVit::new(&config.network(), |layout| exec.arena(layout)).unwrap();
        model.params_mut().initialise(1).unwrap();
        let mut trainer = Trainer::new(model, &exec, &config.training).unwrap();
        let fields = |phase: f32| {
            let numbers: Vec<f32> = (0..2 * 16 * 32).map(|i| (i as f32 * 0.37 + phase).sin()).collect();
            Tensor::from_f32([1, 2, 16, 32], &numbers).unwrap()
        };
        let micro = [WeatherBatch { state: fields(0.0), target: fields(0.5) }];
        let counted = || exec.take_executed().unwrap().matrix_flops.values().map(|n| u128::from(*n)).sum::<u128>();
        counted();
        exec.count_stated(true);
        let report = timed(&format!("{name} {precision:?}"), || trainer.step(&micro, 1e-3).unwrap());
        let (stated, executed) = (exec.count_stated(false), counted());
        assert_eq!(stated, Some(executed), "{precision:?}");
        assert!(!report.is_skipped);
        if precision != Precision::Fp32 {
            let least = report.cost.algorithm().flops.matmul;
            assert!(executed >= least, "{precision:?}: {executed}, the mathematics {least}");
        }
        let (_, profile) = trainer.profiled_step(&micro, 1e-3).unwrap();
        assert_eq!(
            profile.totals().executed.map(|f| f.matmul),
            Some(executed),
            "{precision:?}: another step of its kind"
        );
    }
}

on_all!(a_step_executes_what_it_states_on:
    a_step_on_sm_80_executes_what_it_states "emu:sm_80",
    a_step_on_sm_90a_executes_what_it_states "emu:sm_90a",
    a_step_on_gfx90a_executes_what_it_states "emu:gfx90a",
    a_step_on_gfx942_executes_what_it_states "emu:gfx942"
);

#[test]
#[ignore = "needs NVRTC and clang-19: see ci/install"]
fn a_model_that_a_device_cannot_hold_is_refused_with_its_memory_and_a_smaller_one_trains_there() {
    let dir = tempfile::tempdir().unwrap();
    small_data(&dir.path().join("data"));
    let device = open("emu:gfx90a");
    let mut large = tiny(dir.path(), "large", Precision::Fp32);
    // 12 D^2 numbers a block: 12 GiB.
    (large.model.embed_dim, large.model.num_heads) = (16_384, 128);
    let text = Session::open(&large, &device, &Resume::Never).unwrap_err().to_string();
    assert!(text.contains("out of memory: asked 1") && !text.contains('\n'), "{text}");
    for part in ["free", "8589934592", "in use 0", "high-water mark 0; use a smaller batch"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!large.checkpoint_folder().exists());
    train_on(&tiny(dir.path(), "small", Precision::Fp32), &device, None);
}
