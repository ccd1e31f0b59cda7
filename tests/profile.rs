//! What a step is said to cost: published counts of this and of other tools, met exactly; and the profile of steps that ran.

use perfrun::backend::Exec;
use perfrun::cost::Flops;
use perfrun::data::weather::WeatherBatch;
use perfrun::models::weather_vit::WeatherVit;
use perfrun::models::weather_vit::config::{Head, WeatherVitConfig};
use perfrun::ops::attention::{Attention, Causal, SlidingWindow};
use perfrun::ops::operator::{Mask, Operator};
use perfrun::tensor::{Spec, Tensor};
use perfrun::train::config::{FlopsProfilerConfig, LrSchedule, Precision, TrainingConfig};
use perfrun::train::profile::conventions::{Convention, rule};
use perfrun::train::profile::deepspeed::{self, Run};
use perfrun::train::profile::{Pass, Peaks, StepProfile};
use perfrun::train::trainer::{Trainer, plan_step};

/// The original's model: 20 variables in patches of 8, its later head.
fn vit(d: usize, layers: usize, heads: usize, img_size: [usize; 2]) -> WeatherVitConfig {
    WeatherVitConfig {
        embed_dim: d,
        num_layers: layers,
        num_heads: heads,
        img_size,
        patch_size: 8,
        head: Head::Unpatchify,
        ..WeatherVitConfig::default()
    }
}

/// The model whose counts by DeepSpeed were taken from DeepSpeed.
fn tiny() -> WeatherVitConfig {
    WeatherVitConfig { patch_size: 4, input_channels: 3, output_channels: 2, ..vit(16, 2, 4, [8, 12]) }
}

fn training() -> TrainingConfig {
    TrainingConfig {
        learning_rate: 1e-3,
        warmup_steps: 0,
        lr_schedule: LrSchedule::Constant,
        precision: Precision::Fp32,
        ..TrainingConfig::default()
    }
}

fn plan_of(config: &WeatherVitConfig, batch: usize) -> StepProfile {
    let exec = Exec::plan();
    let model = WeatherVit::new(config, |layout| exec.arena(layout)).unwrap();
    let [h, w] = config.img_size;
    let field = |channels| exec.alloc(Spec::f32([batch, channels, h, w]).unwrap()).unwrap();
    let batch = WeatherBatch { state: field(config.input_channels), target: field(config.output_channels) };
    plan_step(&model, &exec, &batch, &training()).unwrap().profile
}

fn counted(profile: &StepProfile, convention: Convention) -> u128 {
    profile.count(convention).unwrap().flops
}

#[test]
fn attention_counts_the_pairs_that_its_mask_lets_through() {
    let none = usize::MAX;
    let band = |left, right| Some(SlidingWindow { left, right });
    let full = (Causal::None, None);
    let (top, bottom) = ((Causal::TopLeft, None), (Causal::BottomRight, None));
    // Queries, keys, mask, pairs.
    let vectors: [(usize, usize, (Causal, Option<SlidingWindow>), u128); 14] = [
        (2048, 2048, full, 4_194_304),
        (2048, 2048, bottom, 2_098_176),
        (512, 2048, full, 1_048_576),
        (512, 2048, bottom, 917_760),
        (512, 2048, top, 131_328),
        (2048, 512, bottom, 131_328),
        (2048, 512, top, 917_760),
        (144, 144, full, 20_736),
        (1, 3, bottom, 3),
        (1, 3, top, 1),
        (3, 1, bottom, 1),
        (3, 1, top, 3),
        (8192, 8192, (Causal::BottomRight, band(1023, none)), 7_864_832),
        (2048, 2048, (Causal::None, band(128, 128)), 509_824),
    ];
    for (nq, nk, (causal, sliding), pairs) in vectors {
        let op = Attention { causal, sliding, ..Attention::full(1) };
        let [q, k] = [nq, nk].map(|n| Spec::f32([1, n, 1, 64]).unwrap());
        let found = op.flops(&[&q, &k, &k], Mask::of([0, 1, 2]));
        let said = [found.forward.matmul, found.backward.matmul, found.backward.matmul + found.recomputed.matmul];
        assert_eq!(said, [256, 512, 640].map(|each| each * pairs), "{nq} x {nk}, {causal:?}, {sliding:?}");
        let unmasked = op.unmasked_flops(&[&q, &k, &k], Mask::of([0, 1, 2]));
        assert_eq!(unmasked.unwrap().forward.matmul, 256 * (nq * nk) as u128, "{nq} x {nk}, {causal:?}, {sliding:?}");
    }
    // A band of 16 keys before and 8 after the one that ends together with the query, 300 queries over 500 keys: the last 300 queries
    // of 500 see what these see.
    let band_of = |nq: usize| {
        let [q, k] = [nq, 500].map(|n| Spec::f32([1, n, 1, 64]).unwrap());
        Attention { sliding: band(16, 8), ..Attention::full(1) }.flops(&[&q, &k, &k], Mask::NONE).forward.matmul
    };
    assert_eq!(band_of(500) - band_of(200), 256 * 7464);
    let q = Spec::f32([1, 64, 12, 64]).unwrap();
    let twelve = Attention::full(12).flops(&[&q, &q, &q], Mask::NONE);
    assert_eq!(twelve.forward.matmul, 12_582_912, "PyTorch's issue 195460");
}

#[test]
fn the_worked_example_of_an_encoder_has_its_three_counts() {
    // 2048 tokens of 1024 numbers in 24 blocks, one image.
    let mut config = vit(1024, 24, 16, [256, 512]);
    let of_blocks = |config: &WeatherVitConfig| {
        let profile = plan_of(config, 1);
        let tree = profile.tree();
        let sum = tree.children.iter().find(|c| c.path == "blocks").unwrap().sum;
        (sum.model.matmul, sum.algorithm.matmul)
    };
    let forward = 1_649_267_441_664_u128;
    let scores = 206_158_430_208;
    assert_eq!(of_blocks(&config), (3 * forward, 3 * forward + scores));
    config.use_checkpointing = true;
    assert_eq!(of_blocks(&config), (3 * forward, 4 * forward + scores));
}

#[test]
fn parameters_and_flops_of_every_configuration_are_the_published_ones() {
    // Width, layers, heads, patch, grid; parameters, GFLOP of one forward pass: four of them are predefined.
    let published: [(usize, usize, usize, usize, [usize; 2], u64, f64); 9] = [
        (768, 12, 12, 8, [360, 720], 90_133_248, 1308.56),
        (128, 4, 4, 8, [64, 128], 1_137_536, 0.319),
        (768, 12, 12, 8, [64, 128], 87_121_152, 22.85),
        (128, 4, 4, 8, [360, 720], 1_639_552, 42.62),
        (384, 12, 8, 8, [360, 720], 23_832_960, 482.29),
        (768, 24, 16, 8, [360, 720], 175_187_712, 2601.19),
        (768, 12, 12, 8, [720, 1440], 99_464_448, 12_490.2),
        (128, 4, 4, 16, [352, 720], 2_230_912, 6.16),
        (64, 2, 2, 16, [352, 720], 818_880, 1.99),
    ];
    for (d, layers, heads, patch_size, grid, parameters, gflop) in published {
        let profile = plan_of(&WeatherVitConfig { patch_size, ..vit(d, layers, heads, grid) }, 1);
        assert_eq!(profile.parameters, parameters);
        let forward: u128 = profile.rows.iter().filter(|r| r.pass == Pass::Forward).map(|r| r.model.matmul).sum();
        let found = forward as f64 / 1e9;
        // As many places as are published.
        let places = if gflop < 1.0 {
            3
        } else if gflop < 1e4 {
            2
        } else {
            1
        };
        assert_eq!(format!("{found:.places$}"), format!("{gflop:.places$}"), "{d} wide, {layers} layers, {grid:?}");
    }
}

#[test]
fn pytorchs_counter_gives_these_integers_for_the_same_models() {
    // `FlopCounterMode` over forward and backward of the original.
    for (config, batch, want) in [
        (vit(384, 12, 8, [128, 256]), 32, 2_709_050_621_952),
        (vit(768, 24, 16, [128, 256]), 16, 9_512_278_818_816),
        (vit(768, 12, 12, [720, 1440]), 2, 84_551_919_206_400),
    ] {
        assert_eq!(counted(&plan_of(&config, batch), Convention::Pytorch), want);
    }
}

#[test]
fn deepspeeds_profiler_gives_these_counts_for_the_same_models() {
    for (config, batch, parameters, macs, flops) in
        [(tiny(), 2, 7984, 93_696, 194_305), (vit(128, 4, 4, [64, 128]), 1, 1_137_536, 159_383_552, 319_946_712)]
    {
        let profile = plan_of(&config, batch);
        let count = profile.count(Convention::Deepspeed).unwrap();
        let found: u128 = profile.uses.iter().map(|u| rule(u).macs).sum();
        assert_eq!((profile.parameters, found, count.forward), (parameters, macs, flops));
        assert_eq!(count.flops, 3 * flops);
    }
}

#[test]
fn deepspeeds_text_has_its_lines_and_obeys_its_keys() {
    let profile = plan_of(&tiny(), 2);
    let run = Run { batch_size: 2, step_seconds: 0.5 };
    let text = |config: &FlopsProfilerConfig| deepspeed::text(&profile, config, run);
    let all = text(&FlopsProfilerConfig { top_modules: 3, ..FlopsProfilerConfig::default() });
    let line = |key: &str, value: &str| format!("{key:<70}  {value:<8}\n");
    for wanted in [
        "-------------------------- DeepSpeed Flops Profiler --------------------------\nProfile Summary at step 0:\n"
            .into(),
        line("params per GPU:", "7.98 K"),
        line("fwd MACs per GPU:", "93.7 KMACs"),
        line("fwd flops per GPU:", "194.31 K"),
        line("batch size per GPU:", "2"),
        line("samples/second:", "4.00"),
        "    params      - {'ModuleList': '6.56 K', 'PatchEmbed': '784', 'Linear': '512'}\n".into(),
        "    MACs        - {'ModuleList': '78.34 KMACs', 'PatchEmbed': '9.22 KMACs', 'Linear': '6.14 KMACs'}\n".into(),
        "    params      - {'TransformerBlock': '6.56 K', 'Conv2d': '784'}\n".into(),
        "    MACs        - {'Sequential': '49.15 KMACs', 'CustomAttention': '29.18 KMACs', ".into(),
        "(0): TransformerBlock(\n      3.28 K = 41.08% Params, 39.17 KMACs = 41.8% MACs, ".into(),
    ] {
        assert!(all.contains(&wanted), "{wanted}\nis not in\n{all}");
    }
    let short = text(&FlopsProfilerConfig { module_depth: 1, detailed: false, ..FlopsProfilerConfig::default() });
    assert!(short.contains("Top 1 modules") && short.contains("depth 0:") && !short.contains("depth 1:"), "{short}");
    assert!(!short.contains("Detailed Profile") && all.contains("Detailed Profile"));
    let flat = text(&FlopsProfilerConfig { module_depth: 1, ..FlopsProfilerConfig::default() });
    assert!(flat.contains("(blocks): ModuleList(") && !flat.contains("TransformerBlock("), "{flat}");
}

#[test]
fn the_reasons_for_which_a_count_differs_add_up_to_the_difference() {
    let mut configs = vec![tiny(), vit(32, 2, 2, [16, 24])];
    configs.extend([Head::Bilinear, Head::Unpatchify].map(|head| WeatherVitConfig {
        head,
        use_checkpointing: true,
        ..vit(32, 3, 4, [24, 40])
    }));
    for config in configs {
        let profile = plan_of(&config, 3);
        let exact = counted(&profile, Convention::Exact);
        assert_eq!(exact, profile.totals().model.total());
        for convention in Convention::ALL {
            let count = profile.count(convention).unwrap();
            let why: i128 = count.differences.iter().map(|d| d.flops).sum();
            assert_eq!(exact as i128 + why, count.flops as i128, "{convention}: {:?}", count.differences);
        }
    }
}

#[test]
fn palms_rule_counts_six_for_each_parameter_and_full_squares() {
    let config = vit(32, 2, 2, [16, 24]);
    let profile = plan_of(&config, 3);
    let (tokens, n) = (3 * 6, 6);
    let attention = 12 * 2 * 32 * n * tokens;
    assert_eq!(counted(&profile, Convention::Palm), 6 * u128::from(profile.parameters) * tokens + attention);
}

fn batch(config: &WeatherVitConfig, b: usize, offset: usize) -> WeatherBatch {
    let [h, w] = config.img_size;
    let field = |channels: usize| {
        let n = b * channels * h * w;
        let values: Vec<f32> = (0..n).map(|i| ((i + offset) as f32 * 0.37).sin()).collect();
        Tensor::from_f32([b, channels, h, w], &values).unwrap()
    };
    WeatherBatch { state: field(config.input_channels), target: field(config.output_channels) }
}

fn trainer(config: &WeatherVitConfig) -> Trainer<WeatherVit> {
    let exec = Exec::cpu();
    let mut model = WeatherVit::new(config, |layout| exec.arena(layout)).unwrap();
    perfrun::models::Model::params_mut(&mut model).initialise(1).unwrap();
    Trainer::new(model, &exec, &training()).unwrap()
}

#[test]
fn a_step_that_is_watched_does_the_same_and_says_where_its_time_went() {
    let config = WeatherVitConfig { use_checkpointing: true, ..tiny() };
    let micro = [batch(&config, 2, 0), batch(&config, 2, 7)];
    let (mut plain, mut watched) = (trainer(&config), trainer(&config));
    let want = plain.step(&micro, 1e-3).unwrap();
    let (report, mut profile) = watched.profiled_step(&micro, 1e-3).unwrap();
    assert_eq!((report.loss, report.grad_norm, report.cost), (want.loss, want.grad_norm, want.cost));
    let flat = |t: &Trainer<WeatherVit>| perfrun::models::Model::params(t.model()).arena().flat().to_f32().unwrap();
    assert_eq!(flat(&plain), flat(&watched));

    let totals = profile.totals();
    assert_eq!(totals.model, want.cost.model().flops);
    assert_eq!(totals.algorithm, want.cost.algorithm().flops);
    assert_eq!(totals.optimiser, want.update.flops);
    assert_eq!((totals.executed, profile.micro_batches, profile.step), (None, 2, 1));
    let seconds = profile.seconds.unwrap();
    let parts: f64 = profile.rows.iter().map(|r| r.seconds).sum::<f64>() + profile.between_seconds;
    assert!(profile.rows.iter().all(|r| r.seconds > 0.0), "every row was timed");
    assert!(parts <= seconds && seconds <= report.seconds + 1e-3, "{parts} of {seconds} of {}", report.seconds);
    let passes = [Pass::Forward, Pass::Backward, Pass::Recompute, Pass::Optimiser];
    assert!(passes.iter().all(|p| profile.rows.iter().any(|r| r.pass == *p)));
    assert!(profile.rows.iter().all(|r| r.pass != Pass::Recompute || r.model == Flops::ZERO));
    assert!(profile.rows.iter().all(|r| r.peak_bytes <= profile.peak_bytes && r.live_bytes <= r.peak_bytes));

    profile.peaks = Some(Peaks { matmul_flop_per_s: 1e9, copy_bytes_per_s: 1e9, datasheet: None });
    let ([Some(mfu), None], [Some(hfu), None]) = (profile.mfu(), profile.hfu()) else { panic!("{:?}", profile.mfu()) };
    assert_eq!(mfu, totals.model.matmul as f64 / (seconds * 1e9));
    assert!(hfu > mfu, "blocks ran again");
    let tree = profile.tree();
    assert_eq!(tree.sum.algorithm, totals.algorithm + totals.optimiser);
    assert!((tree.sum.seconds - (parts - profile.between_seconds)).abs() < 1e-9);
    let json = profile.json();
    assert_eq!(json["model"]["matmul"].as_u64().map(u128::from), Some(totals.model.matmul));
    assert_eq!(json["rows"].as_array().unwrap().len(), profile.rows.len());
    assert!(profile.page("a step").contains("Roofline"));
}

#[test]
fn times_of_several_steps_make_one_profile_with_the_counts_of_one() {
    let config = tiny();
    let micro = [batch(&config, 2, 0), batch(&config, 2, 7)];
    let (mut trainer, mut other) = (trainer(&config), trainer(&config));
    // Laps are known of a step that was.
    let first = [trainer.step(&micro, 1e-3).unwrap(), other.step(&micro, 1e-3).unwrap()];
    assert_eq!(first[0].loss, first[1].loss);
    let mut watch = trainer.watch_over(2, 3).unwrap();
    let mut last = None;
    for number in 2..5 {
        assert!(!watch.is_done(), "before step {number}");
        let report = trainer.watched_step(&micro, 1e-3, &mut watch).unwrap();
        let plain = other.step(&micro, 1e-3).unwrap();
        assert_eq!((report.step, report.loss, report.grad_norm), (number, plain.loss, plain.grad_norm));
        last = Some(report);
    }
    assert!(watch.is_done());
    let profile = trainer.profile(watch, &last.unwrap()).unwrap();
    assert_eq!((profile.step, profile.steps, profile.when().as_str()), (2, 3, "steps 2 to 4"));
    assert!(profile.rows.iter().all(|r| r.seconds > 0.0), "every row was timed in one of the steps");
    let (report, whole) = other.profiled_step(&micro, 1e-3).unwrap();
    assert_eq!((whole.steps, whole.when()), (1, format!("step {}", report.step)));
    assert_eq!(profile.totals(), whole.totals());
    let counts = |p: &StepProfile| -> Vec<_> {
        p.rows.iter().map(|r| (r.module.clone(), r.room, r.pass, r.calls, r.model, r.bytes)).collect()
    };
    assert_eq!(counts(&profile), counts(&whole));
    // A CPU's clock costs nothing: all times are of one step.
    assert!({
        let mut watch = trainer.watch(2, 100).unwrap();
        trainer.watched_step(&micro, 1e-3, &mut watch).unwrap();
        watch.is_done()
    });
}

#[test]
fn two_profiles_in_one_process_say_the_same() {
    // The original counts attention twice the second time.
    let config = tiny();
    let mut trainer = trainer(&config);
    let micro = [batch(&config, 2, 0)];
    let mut counts = Vec::new();
    for _ in 0..3 {
        let (_, profile) = trainer.profiled_step(&micro, 1e-3).unwrap();
        counts.push(Convention::ALL.map(|c| counted(&profile, c)));
    }
    assert!(counts.windows(2).all(|w| w[0] == w[1]), "{counts:?}");
    assert_eq!(counts[0], Convention::ALL.map(|c| counted(&plan_of(&config, 2), c)), "a plan counts what a step does");
}
