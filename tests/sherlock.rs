//! The Sherlock autoencoder: its published shape, what small models do, and what they are trained on.

use perfrun::backend::Exec;
use perfrun::data::sherlock::{Batch, Stimulus};
use perfrun::models::Model;
use perfrun::models::sherlock::loss::{FmriLoss, LossNormalization};
use perfrun::models::sherlock::{LossConfig, Modality, Outputs, Sherlock, SherlockConfig};
use perfrun::nn::{Entry, Init, Params, Pass};
use perfrun::ops::adamw::{AdamW, MomentStorage, Updated};
use perfrun::ops::global_norm::GlobalNorm;
use perfrun::rng::Stream;
use perfrun::tape::{Grads, Tape, Var};
use perfrun::tensor::{Arena, Spec, Tensor, View, ViewMut};
use perfrun::train::config::{ConfigSource, SherlockRun};

/// Every layer, no width.
fn small() -> SherlockConfig {
    SherlockRun::load(&ConfigSource::Embedded, Some("sherlock-tiny"), &[]).unwrap().model
}

fn planned(config: &SherlockConfig) -> Sherlock {
    Sherlock::new(config, &LossConfig::default(), |layout| Ok(Arena::planned(layout))).unwrap()
}

fn made(config: &SherlockConfig, seed: u64) -> Sherlock {
    let mut model = Sherlock::new(config, &LossConfig::default(), |layout| Ok(Arena::zeros(layout))).unwrap();
    model.params_mut().initialise(seed).unwrap();
    model
}

fn batch(config: &SherlockConfig, b: usize) -> Batch {
    let stream = Stream::new(3, 1);
    let tensor = |spec: &Spec, from: u64| {
        let numbers: Vec<f32> = (0..spec.len() as u64).map(|i| stream.uniform(from + i)).collect();
        Tensor::from_f32(spec.shape(), &numbers).unwrap()
    };
    let [video, audio, text] = config.sizes().stimulus(b).unwrap();
    let input = Stimulus { video: tensor(&video, 0), audio: tensor(&audio, 1 << 20), text: tensor(&text, 1 << 21) };
    let fmri = tensor(&Spec::f32([b, config.n_voxels]).unwrap(), 1 << 22);
    Batch { target: input.clone(), input, fmri }
}

fn tape<'p>(exec: &Exec, params: &'p Params) -> Tape<'p> {
    Tape::with_params(exec, params.arena()).with_buffers(params.buffers().arena())
}

#[test]
fn the_published_model_has_as_many_parameters_as_published() {
    let model = planned(&SherlockConfig::default());
    let params = model.params();
    assert_eq!(params.count(), 1_974_067_762);
    let specs = params.arena().layout().specs();
    let of = |prefix: &str| -> usize {
        params.iter().filter(|(_, n)| n.starts_with(prefix)).map(|(p, _)| specs[p.index()].len()).sum()
    };
    assert_eq!((of("encoder."), of("decoder.")), (1_595_910_386, 378_157_376));
    for (part, want) in [
        ("encoder.video_encoder.", 16_119_040),
        ("encoder.audio_encoder.", 556_032),
        ("encoder.text_encoder.", 657_664),
        ("encoder.feature_conv.", 2_363_904),
        ("encoder.to_bottleneck.", 39_095_744),
        ("encoder.bottleneck_to_voxels.", 1_537_118_002),
        ("decoder.layer7.", 16_390_144),
        ("decoder.layer8.", 8_400_896),
        ("decoder.layer9.", 33_579_008),
        ("decoder.layer10_video.", 100_700_160),
        ("decoder.layer10_audio.", 18_883_584),
        ("decoder.layer10_text.", 20_983_808),
        ("decoder.layer11_video.", 176_990_400),
        ("decoder.layer11_audio.", 131_200),
        ("decoder.layer11_text.", 2_098_176),
    ] {
        assert_eq!(of(part), want, "{part}");
    }
}

/// The names of the original's state, from what its document says of each layer.
fn published_names() -> Vec<String> {
    let mut layers: Vec<(String, bool)> = Vec::new();
    for (part, convs) in [("video", 4), ("audio", 3)] {
        for i in 1..=convs {
            layers.push((format!("encoder.{part}_encoder.conv{i}"), false));
            layers.push((format!("encoder.{part}_encoder.bn{i}"), true));
        }
        layers.push((format!("encoder.{part}_encoder.fc"), false));
    }
    for (fc, bn) in [("fc1", "bn1"), ("fc2", "bn2")] {
        layers.extend([(format!("encoder.text_encoder.{fc}"), false), (format!("encoder.text_encoder.{bn}"), true)]);
    }
    let mut sequence = |path: &str, places: &[(usize, bool)]| {
        layers.extend(places.iter().map(|(place, is_norm)| (format!("{path}.{place}"), *is_norm)));
    };
    let one = [(0, false), (1, true)];
    let two = [(0, false), (1, true), (4, false), (5, true)];
    sequence("encoder.feature_conv", &one);
    sequence("encoder.to_bottleneck", &two);
    sequence("encoder.bottleneck_to_voxels", &[(0, false), (1, true), (4, false)]);
    ["layer7", "layer8", "layer9"].iter().for_each(|l| sequence(&format!("decoder.{l}"), &one));
    ["video", "audio", "text"].iter().for_each(|m| sequence(&format!("decoder.layer10_{m}"), &two));
    sequence("decoder.layer11_video", &[(0, false)]);
    layers.extend(["audio", "text"].map(|m| (format!("decoder.layer11_{m}"), false)));
    let mut out = Vec::new();
    for (path, is_norm) in layers {
        let buffers = ["running_mean", "running_var", "num_batches_tracked"].into_iter().filter(|_| is_norm);
        out.extend(["weight", "bias"].into_iter().chain(buffers).map(|name| format!("{path}.{name}")));
    }
    out
}

#[test]
fn the_state_has_the_published_names_in_their_order() {
    let model = planned(&SherlockConfig::default());
    let names: Vec<&str> = model.params().entries().map(|(n, _)| n).collect();
    assert_eq!(names.len(), 166);
    assert_eq!(names, published_names());
    let counters = model.params().entries().filter(|(_, e)| matches!(e, Entry::Counter(_))).count();
    assert_eq!((model.params().len(), model.params().buffers().len(), counters), (100, 44, 22));
    let channels: usize = model.params().buffers().arena().layout().specs().iter().map(|s| s.len()).sum();
    // Means and variances of 65,280 channels.
    assert_eq!(channels, 2 * 65_280);
}

#[test]
fn encoders_start_below_the_root_of_their_fan_in_and_decoders_normal() {
    let model = made(&small(), 1);
    let values = |name: &str| {
        let params = model.params();
        params.get(params.find(name).unwrap()).unwrap().f32().unwrap().to_vec()
    };
    let bound = |fan_in: f32| 1.0 / fan_in.sqrt();
    for (name, fan_in) in [
        ("encoder.video_encoder.conv1.weight", 27.0),
        ("encoder.video_encoder.conv1.bias", 27.0),
        ("encoder.bottleneck_to_voxels.4.weight", 48.0),
        ("encoder.bottleneck_to_voxels.4.bias", 48.0),
    ] {
        let largest = values(name).iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        assert!(largest <= bound(fan_in) && largest > 0.5 * bound(fan_in), "{name}: {largest}");
    }
    let weight = values("decoder.layer9.0.weight");
    let std = (weight.iter().map(|x| x * x).sum::<f32>() / weight.len() as f32).sqrt();
    let Init::Normal { std: want } = Init::fan_out(64) else { panic!("not normal") };
    assert!((f64::from(std) / want - 1.0).abs() < 0.05, "{std} {want}");
    assert!(values("decoder.layer9.0.bias").iter().all(|x| *x == 0.0));
}

#[test]
fn a_training_pass_gives_every_output_and_a_gradient_to_every_parameter() {
    let (config, exec) = (small(), Exec::cpu());
    let mut model = made(&config, 2);
    let batch = batch(&config, 4);
    let pass = Pass { train: true, ..Pass::eval() };
    let mut tape = tape(&exec, model.params());
    let out = model.forward(&mut tape, &batch.input, &pass).unwrap();
    let shape = |v: Var| tape.spec(v).unwrap().shape().to_vec();
    assert_eq!((shape(out.bottleneck), shape(out.predicted_fmri)), (vec![4, 32], vec![4, 50]));
    assert_eq!(out.reconstruction.map(shape), [vec![4, 1728], vec![4, 16], vec![4, 20]]);
    let video = tape.value(out.reconstruction[0]).unwrap().to_f32().unwrap();
    assert!(video.iter().all(|x| (0.0..=1.0).contains(x)));
    assert!(tape.value(out.bottleneck).unwrap().to_f32().unwrap().iter().all(|x| *x >= 0.0));
    let loss = model.loss_of(&mut tape, &out, &batch).unwrap();
    let noted: Vec<(&str, f32)> = tape.noted().iter().map(|(n, t)| (*n, t.item().unwrap())).collect();
    let get = |name: &str| noted.iter().find(|(n, _)| *n == name).unwrap().1;
    let parts = get("video_loss") + get("audio_loss") + get("text_loss");
    assert!((parts - get("reconstruction_loss")).abs() < 1e-5);
    assert!((get("reconstruction_loss") + get("fmri_loss") - get("total_loss")).abs() < 1e-5);
    let mut grads = Grads::new(&exec, model.params().arena().layout()).unwrap();
    tape.backward(loss, 1.0, &mut grads).unwrap();
    assert!(model.params().iter().all(|(p, _)| grads.get(p).is_some()));
    let renewed = tape.renewed().to_vec();
    drop(tape);
    assert_eq!(renewed.len(), 44);
    model.params_mut().buffers_mut().renew(&renewed).unwrap();
    assert!(model.params().buffers().counters().all(|(_, n)| n == 1));
}

#[test]
fn a_modality_alone_is_what_all_together_give() {
    let (config, exec) = (small(), Exec::cpu());
    let model = made(&config, 4);
    let batch = batch(&config, 3);
    let mut tape = tape(&exec, model.params()).inference();
    let bottleneck = model.encode(&mut tape, &batch.input, &Pass::eval()).unwrap();
    let all = model.decode(&mut tape, bottleneck, &Pass::eval()).unwrap();
    for (which, together) in Modality::ALL.into_iter().zip(all) {
        let alone = model.decode_one(&mut tape, bottleneck, which, &Pass::eval()).unwrap();
        let numbers = |v: Var| tape.value(v).unwrap().to_f32().unwrap();
        assert_eq!(numbers(alone), numbers(together), "{}", which.name());
    }
}

#[test]
fn what_is_not_the_model_s_is_refused_by_name() {
    let (config, exec) = (small(), Exec::cpu());
    let model = made(&config, 5);
    let mut tape = tape(&exec, model.params());
    let other = batch(&SherlockConfig { audio_mels: 17, ..config.clone() }, 2);
    let e = model.encode(&mut tape, &other.input, &Pass::eval()).unwrap_err().to_string();
    assert!(e.starts_with("sherlock: audio: expected [2, 16] f32, found [2, 17] f32"), "{e}");
    let one = batch(&config, 1);
    let pass = Pass { train: true, ..Pass::eval() };
    assert!(model.forward(&mut tape, &one.input, &pass).unwrap_err().to_string().contains("batch_norm"));
    let odd = SherlockConfig { decoder_hidden_dim: 3, hidden_dropout: 1.0, ..config };
    let e = Sherlock::new(&odd, &LossConfig::default(), |l| Ok(Arena::planned(l))).unwrap_err().to_string();
    assert_eq!(e.lines().count(), 2, "{e}");
}

/// The losses of a small model for voxels `predicted` against `measured`, two samples, by name; the rest of it is random.
fn losses(loss: LossConfig, predicted: &[f32], measured: &[f32]) -> Vec<(&'static str, f64)> {
    let exec = Exec::cpu();
    let voxels = predicted.len() / 2;
    let config = SherlockConfig { n_voxels: voxels, ..small() };
    let model = Sherlock::new(&config, &loss, |layout| Ok(Arena::zeros(layout))).unwrap();
    let fmri = Tensor::from_f32([2, voxels], measured).unwrap();
    let batch = Batch { fmri, ..batch(&config, 2) };
    let mut tape = tape(&exec, model.params());
    let given = |x: &Tensor, shape: [usize; 2]| Tensor::from_f32(shape, &x.to_f32().unwrap()).unwrap();
    let predicted = Tensor::from_f32([2, voxels], predicted).unwrap();
    let mut variable = |x: &Tensor| tape.variable(x).unwrap();
    let reconstruction = [
        variable(&given(&batch.target.video, [2, 1728])),
        variable(&given(&batch.target.audio, [2, 16])),
        variable(&given(&batch.target.text, [2, 20])),
    ];
    let out = Outputs { bottleneck: reconstruction[1], predicted_fmri: variable(&predicted), reconstruction };
    model.loss_of(&mut tape, &out, &batch).unwrap();
    tape.noted().iter().map(|(name, value)| (*name, f64::from(value.item().unwrap()))).collect()
}

fn fmri(kind: FmriLoss, predicted: &[f32], measured: &[f32]) -> f64 {
    let loss = LossConfig { fmri_loss_type: kind, ..LossConfig::default() };
    losses(loss, predicted, measured).into_iter().find(|(n, _)| *n == "fmri_loss").unwrap().1
}

#[test]
fn correlation_is_the_cosine_and_pearson_forgets_the_mean() {
    let (x, y) = ([1.0, 2.0, 4.0, -1.0, 0.5, 3.0], [11.0, 12.0, 14.0, -1.0, 0.5, 3.0]);
    let cosine = (11.0 + 24.0 + 56.0) / (21.0_f64.sqrt() * (121.0_f64 + 144.0 + 196.0).sqrt());
    assert!((fmri(FmriLoss::Correlation, &x, &y) - (1.0 - cosine) / 2.0).abs() < 1e-6);
    assert!(fmri(FmriLoss::Pearson, &x, &y).abs() < 1e-6);
    let turned: Vec<f32> = x.iter().map(|v| -v).collect();
    assert!((fmri(FmriLoss::Pearson, &x, &turned) - 2.0).abs() < 1e-6);
}

#[test]
fn a_prediction_of_zeros_is_as_far_as_a_right_angle() {
    let y = [1.0, -2.0, 0.5, 1.0];
    for kind in [FmriLoss::Correlation, FmriLoss::Pearson] {
        assert!((fmri(kind, &[0.0; 4], &y) - 1.0).abs() < 1e-6, "{kind:?}");
    }
    assert!((fmri(FmriLoss::Mae, &[0.0; 4], &y) - 1.125).abs() < 1e-6);
    assert!((fmri(FmriLoss::Mse, &[0.0; 4], &y) - 1.5625).abs() < 1e-6);
}

#[test]
fn a_perfect_reconstruction_costs_nothing_and_weights_count() {
    let loss = LossConfig { fmri_weight: 0.25, reconstruction_weight: 3.0, ..LossConfig::default() };
    let found = losses(loss, &[0.0; 4], &[1.0, -2.0, 0.5, 1.0]);
    let get = |name: &str| found.iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!(
        (get("video_loss"), get("audio_loss"), get("text_loss"), get("reconstruction_loss")),
        (0.0, 0.0, 0.0, 0.0)
    );
    assert!((get("total_loss") - 0.25 * 1.5625).abs() < 1e-6);
}

#[test]
fn a_normalised_loss_is_divided_by_the_spread_of_its_target() {
    let y = [1.0, 3.0, 5.0, 7.0];
    // Predictions of 0: mean square 21, variance 20/3.
    for (kind, by) in [(LossNormalization::Std, (20.0_f64 / 3.0).sqrt()), (LossNormalization::Variance, 20.0 / 3.0)] {
        let loss = LossConfig { loss_normalization: kind, ..LossConfig::default() };
        let found = losses(loss, &[0.0; 4], &y).into_iter().find(|(n, _)| *n == "fmri_loss").unwrap().1;
        assert!((found - 21.0 / by).abs() < 1e-5, "{kind:?}: {found}");
    }
}

#[test]
fn a_loss_of_nothing_is_refused() {
    let loss = LossConfig { reconstruction_weight: 0.0, fmri_weight: 0.0, video_weight: -1.0, ..LossConfig::default() };
    let e = Sherlock::new(&small(), &loss, |l| Ok(Arena::planned(l))).unwrap_err().to_string();
    assert_eq!(e.lines().count(), 2, "{e}");
}

#[test]
fn a_gradient_is_clipped_and_a_weight_moved_as_in_the_original() {
    let exec = Exec::cpu();
    let grad = Tensor::from_f32([3], &[10.0; 3]).unwrap();
    let found = GlobalNorm { loss_scale: 1.0, max_norm: Some(1.0) }.find(&exec, &grad.view()).unwrap().read().unwrap();
    assert!((found.norm - 17.3205).abs() < 1e-4 && (10.0 * found.factor - 0.57735).abs() < 1e-6, "{found:?}");
    let spec = Spec::f32([1]).unwrap();
    let [mut p, mut m, mut v] = [[1.0_f32], [0.0], [0.0]];
    let rule = AdamW {
        lr: 1e-4,
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 1e-5,
        step: 1,
        gradient_factor: 1.0,
        undecayed: [].into(),
        moments: MomentStorage::F32,
        shadow: None,
    };
    let write = |x| ViewMut::of_f32(spec.clone(), x).unwrap();
    let to = Updated { param: write(&mut p), m: write(&mut m), v: write(&mut v), shadow: None };
    rule.update(&exec, View::of_f32(spec.clone(), &[0.3]).unwrap(), to).unwrap();
    // 1·(1 − 1e-9) − 1e-4: 0.999899999, rounded to f32.
    assert!((f64::from(p[0]) - 0.999_899_999).abs() < 6e-8, "{}", p[0]);
}
