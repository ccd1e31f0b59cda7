//! A run of the Sherlock autoencoder from YAML and `--set`, under the original's keys.

use std::collections::BTreeSet;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::convert::{FromNode, Wrong};
use super::keys::PROFILER;
use super::merge::merge;
use super::source::{Document, Named, place};
use super::training::{LoggingBackend, LrSchedule, Precision, TrainingConfig};
use super::value::{Entry, Node, Value, parse, quote};
use super::{ConfigSource, suggest};
use crate::data::sherlock::SherlockDataConfig;
use crate::error::{Error, Faults, Result};
use crate::models::sherlock::{LossConfig, SherlockConfig};

/// The predefined configurations.
static EMBEDDED: &str = include_str!("sherlock.yaml");

/// Everything that decides what a run of the Sherlock autoencoder computes: effective values, defaults filled in.
///
/// ```
/// use perfrun::train::config::{ConfigSource, SherlockRun};
///
/// let run = SherlockRun::load(&ConfigSource::Embedded, Some("sherlock"), &["num_epochs=2".into()])?;
/// assert_eq!((run.training.epochs, run.training.batch_size, run.model.n_voxels), (2, 64, 85_810));
/// # Ok::<(), perfrun::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SherlockRun {
    /// The model's shape.
    pub model: SherlockConfig,
    /// What is read, and from where.
    pub data: SherlockDataConfig,
    /// What it trains on.
    pub loss: LossConfig,
    /// How it is trained.
    pub training: TrainingConfig,
    /// What it is called.
    pub experiment: SherlockExperiment,
    /// Who is told.
    pub monitor: MonitorConfig,
    /// What the caller should print: keys that are accepted and do nothing.
    #[serde(skip)]
    pub notices: Vec<String>,
}

/// What a run is called, and where it goes on from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SherlockExperiment {
    /// Name of the run. Default: the configuration's name.
    pub name: String,
    /// One line about the run.
    pub description: String,
    /// The checkpoint that the run goes on from, a folder of ours; null = from the beginning.
    pub resume_from: Option<PathBuf>,
}

/// Who is told of a run, besides the console, `training.log` and `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorConfig {
    /// Event files for TensorBoard, in `log_dir`.
    pub use_tensorboard: bool,
    /// An offline run for Weights & Biases, below `log_dir`: `wandb sync` sends it.
    pub use_wandb: bool,
    /// The project of that run.
    pub wandb_project: String,
    /// Whether every checkpoint is also written as the original's `.pt`, beside its folder.
    pub save_pt: bool,
}

impl Default for MonitorConfig {
    fn default() -> MonitorConfig {
        MonitorConfig {
            use_tensorboard: true,
            use_wandb: false,
            wandb_project: "sherlock-autoencoder".into(),
            save_pt: false,
        }
    }
}

impl Default for SherlockRun {
    fn default() -> SherlockRun {
        SherlockRun {
            model: SherlockConfig::default(),
            data: SherlockDataConfig::default(),
            loss: LossConfig::default(),
            training: TrainingConfig {
                batch_size: 64,
                weight_decay: 1e-5,
                warmup_steps: 0,
                warmup_epochs: 5,
                warmup_start_factor: Some(0.1),
                min_lr: 1e-6,
                precision: Precision::Fp16,
                // As in PyTorch: there is no lowest scale.
                loss_scale_min: 0.0,
                early_stopping_patience: Some(10),
                early_stopping_min_delta: 1e-4,
                save_every: 5,
                log_frequency: 10,
                ..TrainingConfig::default()
            },
            experiment: SherlockExperiment::default(),
            monitor: MonitorConfig::default(),
            notices: Vec::new(),
        }
    }
}

/// A key that sets something.
struct Key {
    name: &'static str,
    /// The original's names for it.
    aliases: &'static [&'static str],
    set: fn(&mut SherlockRun, &Node) -> Result<(), Wrong>,
}

macro_rules! keys {
    ($($section:ident { $($name:ident $(.$inner:ident)? $([$($alias:literal),*])?;)* })*) => {
        /// The blocks of a nested configuration. A key is known in any of them, and without one.
        const SECTIONS: &[&str] = &[$(stringify!($section)),*];
        /// Every key that sets a field.
        static KEYS: &[Key] = &[$($(Key {
            name: concat!(stringify!($name) $(, ".", stringify!($inner))?),
            aliases: &[$($($alias),*)?],
            set: |run, node| {
                run.$section.$name$(.$inner)? = FromNode::from_node(node)?;
                Ok(())
            },
        }),*),*];
    };
}

keys! {
    model {
        video_height; video_width; audio_mels; text_dim; n_voxels; bottleneck_dim; video_features; audio_features;
        text_features; video_channels; audio_channels; text_hidden; bottleneck_hidden; voxel_hidden;
        decoder_hidden_dim; encoder_dropout; hidden_dropout; decoder_dropout;
    }
    data {
        data_dir; subjects; apply_hrf; hrf_alignment; reconstruct; mode; normalize_fmri; max_trs; train_fraction; num_workers;
    }
    loss {
        reconstruction_weight; fmri_weight; video_weight; audio_weight; text_weight; fmri_loss_type; loss_normalization;
    }
    training {
        batch_size; epochs ["num_epochs"]; max_steps; learning_rate; weight_decay; betas; eps;
        lr_schedule ["scheduler_type"]; lr_step_epochs; lr_step_factor; warmup_steps; warmup_epochs; warmup_start_factor;
        min_lr; gradient_clipping ["gradient_clip_val"]; gradient_accumulation ["gradient_accumulation_steps"]; precision;
        allow_tf32; moments; gradients; loss_scale_init; loss_scale_dynamic; loss_scale_window; loss_scale_min; seed; validate_every;
        early_stopping_patience; early_stopping_min_delta ["early_stopping_delta"]; flops_budget;
        time_budget_hours ["time_budget"]; save_every; max_checkpoints; checkpoint_dir; log_dir; log_frequency;
        flops_profiler.enabled; flops_profiler.profile_step; flops_profiler.module_depth; flops_profiler.top_modules;
        flops_profiler.detailed; flops_profiler.recompute_fwd_factor; flops_profiler.output_file;
    }
    experiment {
        name; description; resume_from;
    }
    monitor {
        use_tensorboard; use_wandb; wandb_project; save_pt;
    }
}

/// Keys of the original that do nothing here, with the reason.
const NO_EFFECT: [(&str, &str); 10] = [
    ("pin_memory", "has no effect: batches are copied from where they are read"),
    ("train_split", "has no effect: train_fraction says where training ends"),
    ("val_split", "has no effect: train_fraction says where validation begins"),
    ("enabled", "has no effect: this version runs on one device"),
    ("backend", "has no effect: this version runs on one device"),
    ("world_size", "has no effect: this version runs on one device"),
    ("master_addr", "has no effect: this version runs on one device"),
    ("master_port", "has no effect: this version runs on one device"),
    ("local_rank", "has no effect: this version runs on one device"),
    ("strategy", "has no effect: with one device there is nothing to share"),
];

/// How many devices and nodes there are: 1.
const COUNTS: [&str; 3] = ["num_gpus", "devices", "num_nodes"];

/// The other systems' name for `use_tensorboard`.
const LOGGING: &str = "logging_backend";

/// The block of the original whose keys are all among [`NO_EFFECT`].
const DISTRIBUTED: &str = "distributed";

/// Whether mixed precision is used: the original's switch between fp16 and fp32.
const MIXED: &str = "use_mixed_precision";

fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name || k.aliases.contains(&name))
}

/// Keys that no other system has: one of them makes a configuration Sherlock's.
fn is_own(name: &str) -> bool {
    super::keys::find(name).is_none()
        && super::keys::find_no_field(name).is_none()
        && (name == MIXED || find(name).is_some())
}

/// A value with where it was written: a line of the file, or nothing for `--set`.
struct Given {
    at: String,
    spelled: String,
    node: Node,
}

impl SherlockRun {
    /// Whether the configuration `name` of `source` is one of this system: its own, or a file's that has `system: sherlock` or
    /// a key that no other system has. Not if it cannot be read: whoever loads it says why.
    pub fn is_meant(source: &ConfigSource, name: Option<&str>) -> bool {
        let Ok(document) = document(source) else { return false };
        if *source == ConfigSource::Embedded {
            return document.configs.iter().any(|c| Some(c.name.as_str()) == name);
        }
        let Ok(named) = document.select(name) else { return false };
        let is_sherlock = |e: &Entry| is_own(&e.key) || e.key == "system" && e.node.text() == Some("sherlock");
        let Value::Map(entries) = merge(named.node.clone(), &mut Faults::new()).value else { return false };
        entries.iter().any(|e| is_sherlock(e) || e.node.map().is_some_and(|inner| inner.iter().any(is_sherlock)))
    }

    /// Name and one-line description of the predefined configurations.
    ///
    /// # Errors
    /// None for those that this binary holds.
    pub fn list() -> Result<Vec<(String, String)>> {
        let document = document(&ConfigSource::Embedded)?;
        let describe = |named: &Named| {
            let run = load(&document.label, named, &[]);
            (named.name.clone(), run.map(|r| r.experiment.description).unwrap_or_default())
        };
        Ok(document.configs.iter().map(describe).collect())
    }

    /// Reads the configuration `name` of `source`; without a name its only one. `overrides` are texts `key=value`, later ones
    /// win.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault: unknown keys, types, ranges. [`Error::Io`] if the file cannot be read.
    pub fn load(source: &ConfigSource, name: Option<&str>, overrides: &[String]) -> Result<SherlockRun> {
        let document = document(source)?;
        let default = (*source == ConfigSource::Embedded && name.is_none()).then_some("sherlock");
        load(&document.label, document.select(name.or(default))?, overrides)
    }

    /// Adds a line to `faults` for everything that cannot be run. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        self.model.validate(faults);
        self.data.validate(faults);
        self.loss.validate(faults);
        self.training.validate(faults);
        if self.training.batch_size == 1 {
            faults.push("batch_size: expected 2 or more, found 1: batch norm compares samples with one another");
        }
    }

    /// The configuration as YAML that can be loaded again.
    ///
    /// # Errors
    /// None: every value has a form.
    pub fn yaml(&self) -> Result<String> {
        let tree = serde_json::to_value(self).map_err(|e| Error::config(e.to_string()))?;
        let mut out = format!("{}:\n", self.experiment.name);
        for (section, keys) in tree.as_object().into_iter().flatten() {
            out.push_str(&format!("  {section}:\n"));
            for (key, value) in keys.as_object().into_iter().flatten() {
                if find(key).is_some() {
                    out.push_str(&format!("    {key}: {}\n", super::show::scalar(value)));
                }
                // Only the profiler's block is a map.
                for (inner, value) in value.as_object().into_iter().flatten() {
                    out.push_str(&format!("    {key}.{inner}: {}\n", super::show::scalar(value)));
                }
            }
        }
        Ok(out)
    }
}

fn document(source: &ConfigSource) -> Result<Document> {
    let own = ConfigSource::Text { label: super::source::EMBEDDED_LABEL.into(), text: EMBEDDED.into() };
    Document::read(if *source == ConfigSource::Embedded { &own } else { source })
}

fn load(label: &str, named: &Named, overrides: &[String]) -> Result<SherlockRun> {
    let mut faults = Faults::new();
    let mut given: Vec<Given> = Vec::new();
    let mut merging = Faults::new();
    let merged = merge(named.node.clone(), &mut merging);
    merging.lines().for_each(|fault| faults.push(place(label, fault)));
    match merged.value {
        Value::Map(entries) => flatten(label, entries, &mut given),
        _ => faults.push(format!("{label}: {}: expected a map of keys, found {}", named.name, named.node.found())),
    }
    for text in overrides {
        let shown = quote(text, 80);
        let Some((key, value)) = text.split_once('=') else {
            faults.push(format!("--set {shown}: expected key=value; write e.g. batch_size=8"));
            continue;
        };
        let key = key.trim();
        let bare = key.split_once('.').filter(|(block, _)| SECTIONS.contains(block)).map_or(key, |(_, rest)| rest);
        match parse(value) {
            Ok(node) => {
                let name = find(bare).map_or(bare, |k| k.name);
                given.retain(|g| find(&g.spelled).map_or(g.spelled.as_str(), |k| k.name) != name);
                given.push(Given { at: format!("--set {shown}"), spelled: bare.to_owned(), node });
            }
            Err(fault) => faults.push(format!("--set {shown}: {fault}")),
        }
    }
    let mut run = SherlockRun::default();
    run.experiment.name = named.name.clone();
    apply(&mut run, &given, &mut faults);
    let mut ranges = Faults::new();
    run.validate(&mut ranges);
    ranges.lines().for_each(|line| faults.push(format!("{label}: {}: {line}", named.name)));
    faults.into_result(Error::Config)?;
    Ok(run)
}

/// Every key with its value, blocks opened.
fn flatten(label: &str, entries: Vec<Entry>, given: &mut Vec<Given>) {
    for Entry { key, line, node, .. } in entries {
        match node.value {
            Value::Map(inner) if SECTIONS.contains(&key.as_str()) || key == DISTRIBUTED => flatten(label, inner, given),
            Value::Map(inner) if key == PROFILER => {
                let inside = |e: Entry| Entry { key: format!("{PROFILER}.{}", e.key), ..e };
                flatten(label, inner.into_iter().map(inside).collect(), given);
            }
            Value::Null if SECTIONS.contains(&key.as_str()) => {}
            _ if key == "system" => {}
            _ => given.push(Given { at: format!("{label}:{line}"), spelled: key, node }),
        }
    }
}

fn apply(run: &mut SherlockRun, given: &[Given], faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    let wrong = |g: &Given, wrong: Wrong| {
        let mend = wrong.mend.map_or(String::new(), |m| format!("; {m}"));
        format!("{}: {}: expected {}, found {}{mend}", g.at, g.spelled, wrong.expected, g.node.found())
    };
    // The switch first: a precision by name says more.
    for g in given.iter().filter(|g| g.spelled == MIXED) {
        match bool::from_node(&g.node) {
            Ok(mixed) => run.training.precision = if mixed { Precision::Fp16 } else { Precision::Fp32 },
            Err(e) => faults.push(wrong(g, e)),
        }
    }
    for g in given.iter().filter(|g| g.spelled != MIXED) {
        if let Some((_, why)) = NO_EFFECT.iter().find(|(name, _)| *name == g.spelled) {
            run.notices.push(format!("{}: {}: {why}", g.at, g.spelled));
        } else if COUNTS.contains(&g.spelled.as_str()) {
            if !matches!(usize::from_node(&g.node), Ok(1)) {
                let found = g.node.found();
                faults.push(format!("{}: {}: expected 1, found {found}; this version runs on one", g.at, g.spelled));
            }
        } else if g.spelled == LOGGING {
            match LoggingBackend::from_node(&g.node) {
                Ok(backend) => run.monitor.use_tensorboard = backend == LoggingBackend::Tensorboard,
                Err(e) => faults.push(wrong(g, e)),
            }
        } else if let Some(key) = find(&g.spelled) {
            if !seen.insert(key.name) {
                faults.push(format!("{}: {}: given twice; keep one", g.at, key.name));
            } else if let Err(e) = (key.set)(run, &g.node) {
                faults.push(wrong(g, e));
            }
        } else {
            let names = KEYS.iter().flat_map(|k| std::iter::once(k.name).chain(k.aliases.iter().copied()));
            let near = suggest(&g.spelled.to_lowercase(), names.chain([MIXED, LOGGING]));
            let mend = near.map_or("remove it".into(), |near| format!("did you mean {near}?"));
            faults.push(format!("{}: {}: unknown key; {mend}", g.at, quote(&g.spelled, 60)));
        }
    }
    let is_cosine = matches!(run.training.lr_schedule, LrSchedule::Cosine | LrSchedule::CosinePerEpoch);
    if !is_cosine && !seen.contains("warmup_epochs") {
        // As in the original: only the cosine warms up.
        run.training.warmup_epochs = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<SherlockRun> {
        SherlockRun::load(&ConfigSource::Text { label: "my.yaml".into(), text: text.into() }, None, &[])
    }

    #[test]
    fn the_original_file_is_read_and_what_does_nothing_is_told() {
        let text = "learning_rate: 1.0e-4\nbatch_size: 64\nnum_epochs: 100\nweight_decay: 1.0e-5\nreconstruction_weight: 1.0\n\
                    fmri_weight: 1.0\nscheduler_type: 'cosine'\nwarmup_epochs: 5\nmin_lr: 1.0e-6\ngradient_clip_val: 1.0\n\
                    use_mixed_precision: true\nnum_workers: 4\npin_memory: true\ncheckpoint_dir: 'checkpoints'\n\
                    save_every: 5\nearly_stopping_patience: 10\nearly_stopping_delta: 1e-4\nfmri_loss_type: 'mse'\n\
                    resume_from: null\ndata:\n  data_dir: 'data/'\n  subjects: 'all'\n  apply_hrf: true\n  mode: per_subject\n\
                    model:\n  video_height: 90\n  n_voxels: 85810\ndistributed:\n  enabled: false\n";
        let run = of(text).unwrap();
        let want = SherlockRun {
            notices: run.notices.clone(),
            experiment: run.experiment.clone(),
            data: SherlockDataConfig { data_dir: "data/".into(), ..SherlockDataConfig::default() },
            ..SherlockRun::default()
        };
        assert_eq!(run, want);
        assert_eq!(run.notices.len(), 2, "{:?}", run.notices);
        let source = ConfigSource::Text { label: "my.yaml".into(), text: text.into() };
        assert!(SherlockRun::is_meant(&source, None));
        let weather = ConfigSource::Text { label: "w.yaml".into(), text: "embed_dim: 8\nbatch_size: 2\n".into() };
        assert!(!SherlockRun::is_meant(&weather, None));
    }

    #[test]
    fn every_fault_is_listed_with_what_was_meant() {
        let text =
            "fmri_weight: heavy\nbatch_size: 1\nvideo_hight: 9\nprecision: fp8\nvideo_channels: [1, 2]\nmode: both\n";
        let faults = of(text).unwrap_err().to_string();
        for want in [
            "my.yaml:1: fmri_weight: expected a finite number, found the text \"heavy\"",
            "batch_size: expected 2 or more, found 1",
            "my.yaml:3: video_hight: unknown key; did you mean video_height?",
            "my.yaml:4: precision: expected fp32, bf16 or fp16",
            "my.yaml:5: video_channels: expected a list of four numbers",
            "my.yaml:6: mode: expected per_subject or cross_subject",
        ] {
            assert!(faults.contains(want), "{want}\n{faults}");
        }
        assert_eq!(faults.lines().filter(|l| l.contains("my.yaml")).count(), 6, "{faults}");
    }

    #[test]
    fn the_profiler_s_block_is_read_and_more_than_one_device_is_refused() {
        let run = of("n_voxels: 7\nflops_profiler: {enabled: true, profile_step: 3}\nlogging_backend: none\n").unwrap();
        assert_eq!((run.training.flops_profiler.enabled, run.training.flops_profiler.profile_step), (true, 3));
        assert!(!run.monitor.use_tensorboard);
        assert_eq!(of("n_voxels: 7\ndevices: 1\nnum_nodes: 1\nstrategy: ddp\n").unwrap().notices.len(), 1);
        let faults = of("n_voxels: 7\ndevices: 8\nflops_profiler: {enable: true}\n").unwrap_err().to_string();
        assert!(faults.contains("my.yaml:2: devices: expected 1, found 8"), "{faults}");
        assert!(
            faults.contains("flops_profiler.enable: unknown key; did you mean flops_profiler.enabled?"),
            "{faults}"
        );
    }

    #[test]
    fn only_a_cosine_warms_up_and_a_precision_says_more_than_the_switch() {
        let run = of("fmri_weight: 1\nscheduler_type: none\nuse_mixed_precision: true\nprecision: bf16\n").unwrap();
        assert_eq!((run.training.warmup_epochs, run.training.precision), (0, Precision::Bf16));
        assert_eq!(of("scheduler_type: step\nwarmup_epochs: 3\nn_voxels: 7\n").unwrap().training.warmup_epochs, 3);
    }

    #[test]
    fn the_predefined_ones_load_and_what_is_shown_loads_again() {
        for (name, description) in SherlockRun::list().unwrap() {
            let run = SherlockRun::load(&ConfigSource::Embedded, Some(&name), &["subjects=[1, 3]".into()]).unwrap();
            assert!(!description.is_empty());
            let again = of(&run.yaml().unwrap()).unwrap();
            assert_eq!(again, run);
        }
    }
}
