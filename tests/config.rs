//! Configuration as a user meets it: predefined configurations, files, `--set`, the environment, and what they say.

use perfrun::data::weather::config::Crop;
use perfrun::error::{Error, Result};
use perfrun::models::weather_vit::config::Head;
use perfrun::train::config::{self, ConfigSource, LoggingBackend, LrSchedule, Precision, RunConfig, Source};
use proptest::prelude::*;
use serde_json::Value;

/// The name under which messages know the text of a test.
const LABEL: &str = "my.yaml";

fn text(yaml: &str) -> ConfigSource {
    ConfigSource::Text { label: LABEL.to_owned(), text: yaml.to_owned() }
}

fn load(source: &ConfigSource, name: Option<&str>, overrides: &[&str]) -> Result<RunConfig> {
    let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
    RunConfig::load(source, name, &overrides, &|_| None)
}

fn of(yaml: &str) -> RunConfig {
    load(&text(yaml), None, &[]).unwrap_or_else(|e| panic!("{yaml}\n{e}"))
}

fn predefined(name: &str) -> RunConfig {
    load(&ConfigSource::Embedded, Some(name), &[]).unwrap()
}

#[test]
fn every_bad_input_is_answered_with_file_key_expectation_finding_and_mend() {
    let cases = include_str!("golden/config_bad.jsonl");
    assert!(cases.lines().count() >= 200);
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let source = case["yaml"].as_str().map_or(ConfigSource::Embedded, text);
        let overrides: Vec<String> = serde_json::from_value(case["set"].clone()).unwrap_or_default();
        let env = |name: &str| case["env"].as_str().filter(|_| name == "MAX_CHECKPOINTS").map(str::to_owned);
        let found = RunConfig::load(&source, case["name"].as_str(), &overrides, &env);
        let error = found.err().unwrap_or_else(|| panic!("accepted: {line}"));
        assert!(matches!(error, Error::Config(_)) && error.is_bad_input(), "{line}");
        assert_eq!(error.to_string(), case["want"].as_str().unwrap(), "{line}");
    }
}

#[test]
fn a_predefined_configuration_is_what_the_table_says() {
    // name, width, layers, heads, patch, grid, batch, epochs, learning rate
    let table = [
        ("base", 384, 12, 8, 8, [360, 720], 32, 100, 1e-4),
        ("local", 128, 4, 4, 8, [64, 128], 4, 10, 1e-4),
        ("small", 128, 4, 4, 8, [360, 720], 16, 100, 1e-4),
        ("medium", 384, 12, 8, 8, [360, 720], 32, 100, 1e-4),
        ("large", 768, 24, 16, 8, [360, 720], 16, 100, 1e-4),
        ("small_model", 128, 4, 4, 8, [360, 720], 16, 100, 1e-4),
        ("large_model", 768, 24, 16, 8, [360, 720], 16, 100, 1e-4),
        ("cuda_optimized", 384, 12, 8, 8, [64, 128], 64, 50, 2e-4),
        ("mps_optimized", 384, 12, 8, 8, [360, 720], 2, 50, 1e-4),
        ("bs16", 384, 12, 8, 8, [64, 128], 16, 100, 5e-5),
        ("bs32", 384, 12, 8, 8, [64, 128], 32, 100, 1e-4),
        ("bs64", 384, 12, 8, 8, [64, 128], 64, 100, 2e-4),
        ("bs128", 384, 12, 8, 8, [64, 128], 128, 100, 4e-4),
        ("seq4", 384, 12, 8, 8, [360, 720], 32, 100, 1e-4),
        ("seq8", 384, 12, 8, 8, [360, 720], 32, 100, 1e-4),
        ("seq16", 384, 12, 8, 8, [360, 720], 16, 100, 1e-4),
        ("res_1x", 384, 12, 8, 8, [360, 720], 32, 100, 1e-4),
        ("res_2x", 384, 12, 8, 8, [720, 1440], 16, 100, 1e-4),
        ("large_model_high_res", 768, 24, 16, 8, [720, 1440], 8, 100, 1e-4),
        ("time_test", 128, 4, 4, 16, [352, 720], 8, 50, 1e-4),
        ("flops_test", 128, 4, 4, 16, [352, 720], 8, 50, 1e-4),
        ("scaling_tiny_time", 64, 2, 2, 16, [352, 720], 8, 10, 1e-4),
    ];
    let listed: Vec<String> = config::list().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, table.map(|row| row.0));
    for (name, width, layers, heads, patch, grid, batch, epochs, rate) in table {
        let c = predefined(name);
        let (m, t) = (&c.model, &c.training);
        let found = (m.embed_dim, m.num_layers, m.num_heads, m.patch_size, m.img_size);
        assert_eq!(found, (width, layers, heads, patch, grid), "{name}");
        assert_eq!((t.batch_size, t.epochs, t.learning_rate), (batch, epochs, rate), "{name}");
        assert_eq!((m.head, c.experiment.name.as_str()), (Head::Bilinear, name));
        assert!(c.notices.is_empty(), "{name}: {:?}", c.notices);
    }
}

#[test]
fn only_what_is_named_after_a_budget_has_one() {
    let budgets = |name: &str| {
        let t = predefined(name).training;
        (t.time_budget_hours, t.flops_budget)
    };
    for (name, _) in config::list().unwrap() {
        let want = match name.as_str() {
            "time_test" => (Some(0.5), None),
            "flops_test" => (None, Some(1e20)),
            "scaling_tiny_time" => (Some(0.25), None),
            _ => (None, None),
        };
        assert_eq!(budgets(&name), want, "{name}");
    }
}

#[test]
fn special_predefined_values_are_kept() {
    assert_eq!(["seq4", "seq8", "seq16"].map(|n| predefined(n).network().input_channels), [80, 160, 320]);
    assert!(predefined("large").model.use_checkpointing && predefined("cuda_optimized").model.use_checkpointing);
    assert_eq!(predefined("mps_optimized").training.precision, Precision::Fp32);
    assert_eq!(predefined("base").training.precision, Precision::Bf16);
    assert_eq!(predefined("large_model_high_res").training.max_checkpoints, 2);
    assert_eq!(predefined("time_test").data.crop, Crop::TopLeft);
    assert!(predefined("local").training.warmup_steps < 100);
}

#[test]
fn every_predefined_configuration_has_a_description_of_one_line() {
    for (name, description) in config::list().unwrap() {
        assert!(!description.is_empty() && !description.contains('\n'), "{name}");
    }
}

#[test]
fn the_documents_flat_example_loads() {
    let yaml = "base: &base\n  embed_dim: 384\n  num_layers: 12\n  num_heads: 8\n  batch_size: 32\n  learning_rate: 1e-4\n\
                small_model:\n  <<: *base\n  embed_dim: 128\n  num_layers: 4\n  num_heads: 4\n  batch_size: 16\n\
                my_custom_config:\n  <<: *base\n  num_layers: 8\n  embed_dim: 256\n  batch_size: 24\n  \
                name: \"my_experiment\"\n  description: \"My custom experiment configuration\"\n";
    let c = load(&text(yaml), Some("my_custom_config"), &[]).unwrap();
    assert_eq!((c.model.embed_dim, c.model.num_layers, c.model.num_heads), (256, 8, 8));
    assert_eq!((c.training.batch_size, c.training.learning_rate), (24, 1e-4));
    assert_eq!(c.experiment.name, "my_experiment");
    assert_eq!(load(&text(yaml), None, &[]).unwrap().experiment.name, "base", "base is the default of several");
}

/// The layout of the original's own file: blocks with anchors of their own, two merge keys in one map.
const NESTED: &str = r#"
base: &base
  model: &base_model
    embed_dim: 768
    num_heads: 12
    mixed_precision: "bf16-mixed"
    use_flash_attention: true
  training: &base_training
    batch_size: 32
    learning_rate: 1e-4
    flops_budget: 1e18
    save_every: 1
    save_frequency: 10
    temporal_coverage: "1y"
    sequence_length: 4
    use_wandb: false
  experiment: &base_experiment
    name: "weather_transformer"
large: &large
  <<: *base
  model:
    <<: *base_model
    num_layers: 24
fine: &fine
  <<: *base
  model:
    <<: *base_model
    img_size: [720, 1440]
both:
  <<: *large
  <<: *fine
  model:
    <<: *base_model
    img_size: [720, 1440]
  training:
    <<: *base_training
    save_frequency: 5
flat_over_nested:
  <<: *base
  batch_size: 8
  model: {embed_dim: 96}
"#;

#[test]
fn a_nested_file_loads_and_says_what_means_something_else_here() {
    let c = load(&text(NESTED), Some("base"), &[]).unwrap();
    assert_eq!((c.model.embed_dim, c.training.precision), (768, Precision::Bf16));
    assert_eq!((c.training.flops_budget, c.training.save_every, c.data.sequence_length), (Some(1e18), 1, 4));
    assert_eq!(
        c.notices,
        [
            "my.yaml:12: base: save_every: 1 counts, as in the original; save_frequency 10 does not",
            "my.yaml:14: base: temporal_coverage: has no effect, as in the original; data_subset says how much is read",
            "my.yaml:15: base: sequence_length: 4 frames are stacked on the channels of the input; \
             the original reads 1 whatever this says",
        ]
    );
}

#[test]
fn what_is_written_nearer_counts_and_a_replaced_block_is_noticed() {
    let both = load(&text(NESTED), Some("both"), &[]).unwrap();
    assert_eq!((both.model.num_layers, both.training.save_every), (12, 5));
    assert_eq!(
        both.notices[0],
        "my.yaml:32: both: model: this block replaces the one of line 21 as a whole: num_layers falls back to its default; \
         to keep its values, merge that block inside this one or write the keys without a block"
    );
    let flat = load(&text(NESTED), Some("flat_over_nested"), &[]).unwrap();
    assert_eq!((flat.training.batch_size, flat.model.embed_dim, flat.model.num_heads), (8, 96, 8));
    assert!(flat.notices[0].contains(
        "41: flat_over_nested: model: this block replaces the one of line 3 as a whole: num_heads falls back to its \
         default, mixed_precision falls back to its default, use_flash_attention falls back to its default; "
    ));
    let lost = "large: &large {model: &m {num_layers: 24, embed_dim: 96}}\nsmall: &s {num_layers: 2}\n\
                x:\n  <<: *large\n  model: {<<: *s, embed_dim: 64}\n";
    let notices = load(&text(lost), Some("x"), &[]).unwrap().notices;
    assert!(notices.len() == 1 && notices[0].contains("num_layers is 2, not 24"), "{notices:?}");
}

#[test]
fn a_file_may_be_one_configuration_with_or_without_blocks() {
    for yaml in ["embed_dim: 96\nnum_heads: 4\n", "model:\n  embed_dim: 96\n  num_heads: 4\ntraining:\n"] {
        let c = of(yaml);
        assert_eq!((c.model.embed_dim, c.model.num_heads), (96, 4));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trial.yaml");
    std::fs::write(&path, "embed_dim: 96\n").unwrap();
    let c = load(&ConfigSource::File(path), None, &[]).unwrap();
    assert_eq!(c.experiment.name, "trial");
}

#[test]
fn keys_have_other_names_and_may_stand_in_any_block() {
    let c = of("r: {model: {precision: 32-true}, training: {save_frequency: 5, val_frequency: 2}, devices: 1}");
    assert_eq!((c.training.precision, c.training.save_every, c.training.validate_every), (Precision::Fp32, 5, 2));
    let c = of("r: {lr_schedule: Constant, logging_backend: none, betas: [0.8, 9e-1], early_stopping_patience: 3}");
    assert_eq!((c.training.lr_schedule, c.training.logging_backend), (LrSchedule::Constant, LoggingBackend::None));
    assert_eq!((c.training.betas, c.training.early_stopping_patience), ([0.8, 0.9], Some(3)));
}

#[test]
fn keys_without_effect_give_a_notice_each() {
    let c = of(
        "r:\n  use_wandb: true\n  wandb_project: p\n  memory_optimization_level: 1\n  deepspeed_config: ds.yaml\n  \
                strategy: fsdp\n  precision: bf16-true\n  use_flash_attention: false\n  quantization_bits: 8\n  \
                max_steps: 10\n",
    );
    let mut keys: Vec<&str> = c.notices.iter().filter_map(|n| n.split(": ").nth(2)).collect();
    keys.sort_unstable();
    let want = [
        "deepspeed_config",
        "memory_optimization_level",
        "precision",
        "quantization_bits",
        "strategy",
        "use_flash_attention",
        "use_wandb",
        "wandb_project",
        "warmup_steps",
    ];
    assert_eq!(keys, want, "{:#?}", c.notices);
    assert_eq!(of("r: {use_wandb: false, use_kv_cache: false, attention_type: standard}").notices, [""; 0]);
}

#[test]
fn set_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let yaml = text("r:\n  max_checkpoints: 5\n");
    let kept = |set: &[&str], env: Option<&str>| {
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        let env = |name: &str| env.filter(|_| name == "MAX_CHECKPOINTS").map(str::to_owned);
        let c = RunConfig::load(&yaml, None, &set, &env).unwrap();
        (c.training.max_checkpoints, c.sources.of("max_checkpoints").clone())
    };
    assert_eq!(of("r: {epochs: 2}").training.max_checkpoints, 3);
    assert_eq!(kept(&[], None), (5, Source::File { line: 2 }));
    assert_eq!(kept(&[], Some("7")), (7, Source::Environment("MAX_CHECKPOINTS")));
    let set = kept(&["training.max_checkpoints=8", "max_checkpoints=0"], Some("7"));
    assert_eq!(set, (0, Source::Override("max_checkpoints=0".to_owned())));
}

#[test]
fn a_data_folder_from_outside_moves_every_path_and_says_so() {
    let yaml = text("r: {train_data_path: /a/train, stds_path: s.npy}");
    let c = load(&yaml, None, &[]).unwrap();
    assert_eq!(
        (c.data.train_data_path.to_str(), c.data.valid_data_path.to_str()),
        (Some("/a/train"), Some("data/valid"))
    );
    let c = load(&yaml, None, &["data_dir=/b", "stds_path=t.npy"]).unwrap();
    assert_eq!((c.data.train_data_path.to_str(), c.data.stds_path.to_str()), (Some("/b/train"), Some("t.npy")));
    assert_eq!(c.notices, ["--set data_dir: train_data_path is /b/train, not /a/train as the file says"]);
    assert_eq!(c.sources.of("valid_data_path"), &Source::Follows("data_dir"));
}

#[test]
fn what_is_shown_loads_again_to_the_same_run() {
    for (name, _) in config::list().unwrap() {
        let c = load(&ConfigSource::Embedded, Some(&name), &["description=it's \"odd\": #1", "name=on"]);
        assert!(c.is_err(), "`on` is a boolean to YAML");
        let set = ["description=\"it's odd: #1 [x]\"", "name='on'", "flops_profiler.output_file=a b", "seed=7"];
        let c = load(&ConfigSource::Embedded, Some(&name), &set).unwrap();
        let shown = config::show(&c);
        let again = load(&text(&shown), Some(&name), &[]).unwrap_or_else(|e| panic!("{shown}\n{e}"));
        assert_eq!(again, c, "{shown}");
        assert!(again.differences(&c).is_empty());
    }
}

#[test]
fn what_is_shown_says_where_every_value_comes_from() {
    let shown = config::show(&load(&ConfigSource::Embedded, Some("local"), &["data_dir=/x", "epochs=2"]).unwrap());
    let line = |key: &str| shown.lines().find(|l| l.trim_start().starts_with(key)).unwrap_or_default().to_owned();
    assert!(shown.starts_with("local:\n  model:\n    embed_dim: 128 "), "{shown}");
    assert!(line("embed_dim").contains("# predefined, line "), "{shown}");
    assert!(line("epochs: 2").ends_with("# --set"), "{shown}");
    assert!(line("eps").ends_with("# default"), "{shown}");
    assert!(line("means_path: /x/stats/global_means.npy").ends_with("# from data_dir"), "{shown}");
}

#[test]
fn two_runs_differ_in_the_keys_that_differ() {
    let (a, b) = (predefined("small"), predefined("small_model"));
    assert_eq!(
        a.differences(&b),
        [
            "experiment.name: small here, small_model there",
            "experiment.description: \"4 layers of 128\" here, \"the same as small\" there",
        ]
    );
}

#[test]
fn a_run_survives_json_and_json_knows_every_key() {
    let c = predefined("flops_test");
    let json = serde_json::to_string(&c).unwrap();
    assert_eq!(serde_json::from_str::<RunConfig>(&json).unwrap(), c);
    assert!(serde_json::from_str::<RunConfig>(&json.replace("embed_dim", "embed_dims")).is_err());
}

#[test]
fn validation_looks_at_every_configuration_of_a_file() {
    let found = config::validate(&ConfigSource::Embedded, None, &[], &|_| None).unwrap();
    assert_eq!((found.names.len(), found.faults.len()), (22, 0), "{}", found.faults);
    let bad = text("a: {epochs: 0}\nb: {epochs: 2}\nc: {epoch: 2, dropout: 2}\n");
    let found = config::validate(&bad, None, &[], &|_| None).unwrap();
    assert_eq!((found.names.len(), found.faults.len()), (3, 3), "{}", found.faults);
    assert_eq!(config::validate(&bad, Some("b"), &[], &|_| None).unwrap().faults.len(), 0);
    assert_eq!(config::validate(&bad, Some("d"), &[], &|_| None).unwrap().faults.len(), 1);
    assert_eq!(config::validate(&text("["), None, &[], &|_| None).unwrap().faults.len(), 1);
}

#[test]
fn the_schema_knows_every_key_and_every_name() {
    let schema = config::schema();
    let keys = &schema["$defs"]["Configuration"]["properties"];
    for key in ["embed_dim", "save_frequency", "use_wandb", "flops_profiler", "model", "<<", "temporal_resolution"] {
        assert!(keys[key].is_object(), "{key}");
    }
    assert_eq!(schema["$defs"]["Configuration"]["additionalProperties"], false);
    assert!(schema["$defs"]["Precision"]["enum"].as_array().unwrap().contains(&"bf16-mixed".into()));
    assert!(keys["embed_dim"]["description"].as_str().unwrap().contains("Width"), "{}", keys["embed_dim"]);
    let references = schema.to_string();
    for part in references.split("\"#/$defs/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schema["$defs"][name].is_object(), "{name} is referred to and not defined");
    }
}

#[test]
fn only_a_plain_file_of_utf_8_and_bounded_size_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let read = |path: &std::path::Path| load(&ConfigSource::File(path.to_owned()), None, &[]).unwrap_err();
    let missing = read(&folder.path().join("none.yaml"));
    assert!(matches!(missing, Error::Io { .. }) && missing.is_bad_input());
    assert!(read(folder.path()).to_string().ends_with("expected a YAML file, found a folder"));
    for (name, bytes, want) in [
        ("utf16.yaml", b"\xff\xfea\0:\0".to_vec(), "expected UTF-8, found UTF-16; save the file as UTF-8"),
        ("latin.yaml", b"name: caf\xe9".to_vec(), "found a byte that is not, at offset 9; save the file as UTF-8"),
        ("long.yaml", vec![b'#'; (1 << 20) + 1], "expected at most 1048576 bytes of YAML, found more"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let found = read(&path).to_string();
        assert!(found.ends_with(want) && found.contains(name), "{found}");
    }
    #[cfg(target_os = "linux")]
    assert!(read("/dev/zero".as_ref()).to_string().ends_with("found something that is not a plain file"));
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_no_faults() {
    let c = of("\u{feff}r:\r\n  embed_dim: 96\r\n  learning_rate: 5e-5\r\n");
    assert_eq!((c.model.embed_dim, c.training.learning_rate), (96, 5e-5));
}

#[test]
fn a_thousand_unknown_keys_are_counted_and_a_hundred_named() {
    let keys: Vec<String> = (0..1000).map(|i| format!("k{i}: 1")).collect();
    let error = load(&text(&format!("r: {{{}}}", keys.join(", "))), None, &[]).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 101);
    assert_eq!(error.lines().last(), Some("my.yaml: r: and 900 more unknown keys"));
}

#[test]
fn a_cut_or_flipped_file_is_loaded_or_refused_in_lines() {
    let whole = config::show(&predefined("time_test")).into_bytes();
    let cuts = (0..64).map(|i| whole[..whole.len() * i / 64].to_vec());
    // A fixed stride through all bits of the file.
    let flips = (0..300).map(|i| {
        let (mut bytes, bit) = (whole.clone(), i * 7919 % (8 * whole.len()));
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    let mut refused = 0;
    for bytes in cuts.chain(flips) {
        if let Err(e) = load(&text(&String::from_utf8_lossy(&bytes)), Some("time_test"), &[]) {
            assert!(e.to_string().lines().all(|l| l.starts_with(LABEL)), "{e}");
            refused += 1;
        }
    }
    assert!(refused > 50, "only {refused} of 364 were noticed");
}

/// Pieces of configurations, so that a generated text gets past the parser more often than noise does.
const PIECES: &[&str] = &[
    "base: &base\n",
    "  <<: *base\n",
    "r:\n",
    "  model: {",
    "}",
    "embed_dim: ",
    "  num_heads: 7\n",
    "[",
    "]",
    ", ",
    "- ",
    "1e-4",
    "~",
    "\n",
    "  ",
    "\"",
    "'",
    ": ",
    "learning_rate: 1e400",
    "flops_profiler: ",
    "*base",
    "&x ",
    "!!str ",
    "---\n",
    "#",
    "<<: [*base, {a: 1}]",
    ".nan",
    "\t",
    "precision: ",
    "é",
    "\u{0}",
    "img_size: [64, 128]",
    "{",
    "? ",
    "|\n",
    ">-\n",
    "%YAML",
    "-1",
    "99999999999999999999999",
    "on",
    "crop: top_left\n",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_loaded_or_refused_in_lines(yaml in ".{0,200}", set in "[a-z_.]{0,20}=?.{0,20}") {
        if let Err(e) = load(&text(&yaml), None, &[&set]) {
            let message = e.to_string();
            prop_assert!(!message.is_empty() && !message.chars().any(|c| c.is_control() && c != '\n'), "{:?}", message);
        }
    }

    #[test]
    fn pieces_of_configurations_are_loaded_or_refused_in_lines(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..30),
    ) {
        if let Err(e) = load(&text(&pieces.concat()), Some("r"), &[]) {
            let message = e.to_string();
            prop_assert!(!message.is_empty() && message.lines().all(|l| l.starts_with(LABEL)), "{:?}", message);
        }
    }
}
