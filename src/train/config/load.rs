//! From a document to the effective configuration, with every fault at once.

use std::collections::{BTreeMap, HashSet};

use super::keys::{self, Key, NoField, PROFILER, SECTIONS};
use super::merge::{merge, sources};
use super::source::{ConfigSource, Document, EMBEDDED_LABEL, Named, place};
use super::value::{Entry, Node, Value, parse, quote};
use super::{Precision, RunConfig, Source, Sources, Strategy};
use crate::data::weather::WeatherDataConfig;
use crate::error::{Error, Faults, Result};

/// The environment variable that sets `max_checkpoints`.
pub(super) const MAX_CHECKPOINTS: &str = "MAX_CHECKPOINTS";

/// Unknown keys beyond so many faults are only counted: nobody reads them, and each costs a search for what was meant.
const MAX_FAULTS: usize = 100;

/// What a given key is.
#[derive(Clone, Copy)]
enum What {
    Field(&'static Key),
    NoField(&'static NoField),
}

impl What {
    fn find(name: &str) -> Option<What> {
        keys::find(name).map(What::Field).or_else(|| keys::find_no_field(name).map(What::NoField))
    }

    fn name(self) -> &'static str {
        match self {
            What::Field(key) => key.name,
            What::NoField(key) => key.name,
        }
    }
}

/// One key with its value, as given somewhere.
struct Given {
    what: What,
    spelled: String,
    /// How far away: see `Entry::rank`.
    rank: Vec<u16>,
    source: Source,
    node: Node,
}

/// Everything that loading one configuration needs at hand.
struct Loader {
    file: String,
    config_name: String,
    given: BTreeMap<&'static str, Given>,
    failed: HashSet<&'static str>,
    faults: Faults,
    more_faults: usize,
    notices: Vec<String>,
}

/// Resolves `name` of `source` with `overrides` and `env`.
pub(super) fn load(
    source: &ConfigSource,
    name: Option<&str>,
    overrides: &[String],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<RunConfig> {
    let document = Document::read(source)?;
    load_one(&document, document.select(name)?, overrides, env)
}

/// Resolves one configuration of `document`.
pub(super) fn load_one(
    document: &Document,
    named: &Named,
    overrides: &[String],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<RunConfig> {
    let mut loader = Loader {
        file: document.label.clone(),
        config_name: named.name.clone(),
        given: BTreeMap::new(),
        failed: HashSet::new(),
        faults: Faults::new(),
        more_faults: 0,
        notices: Vec::new(),
    };
    loader.read_file(&named.node);
    if let Some(text) = env(MAX_CHECKPOINTS) {
        loader.give(MAX_CHECKPOINTS, "max_checkpoints", &text, Source::Environment(MAX_CHECKPOINTS));
    }
    for text in overrides {
        loader.read_override(text);
    }
    loader.finish()
}

impl Loader {
    fn read_file(&mut self, node: &Node) {
        let mut faults = Faults::new();
        let merged = merge(node.clone(), &mut faults);
        let mut seen = HashSet::new();
        for fault in faults.lines().filter(|f| seen.insert(f.to_string())) {
            self.faults.push(place(&self.file, &self.in_config(fault)));
        }
        let Value::Map(entries) = merged.value else {
            self.fault(node.line, "", &format!("expected a map of keys, found {}", node.found()));
            return;
        };
        self.notice_replaced_blocks(node, &entries);
        let mut given = Vec::new();
        self.flatten(entries, None, &[], &mut given);
        given.sort_by(|a, b| (a.what.name(), &a.rank).cmp(&(b.what.name(), &b.rank)));
        for next in given {
            match self.given.get(next.what.name()) {
                // Sorted: what comes first is nearest.
                Some(first) if first.rank == next.rank && first.node != next.node => self.conflict(next),
                Some(_) => {}
                None => {
                    self.given.insert(next.what.name(), next);
                }
            }
        }
    }

    /// Puts every key of a configuration into `out`; `block` is the block that `entries` stand in.
    fn flatten(&mut self, entries: Vec<Entry>, block: Option<&str>, outer: &[u16], out: &mut Vec<Given>) {
        for Entry { key, line, node, rank } in entries {
            let rank = [outer, &rank].concat();
            let plain = bare(&key);
            let spelled = match block {
                Some(PROFILER) => format!("{PROFILER}.{plain}"),
                _ => plain.to_owned(),
            };
            let is_block = plain == PROFILER && block != Some(PROFILER) || SECTIONS.contains(&plain) && block.is_none();
            if is_block {
                match node.value {
                    Value::Map(inner) => self.flatten(inner, Some(plain), &rank, out),
                    Value::Null => {}
                    _ => self.fault(line, plain, &format!("expected a block of keys, found {}", node.found())),
                }
            } else if let Some(what) = What::find(&spelled) {
                out.push(Given { what, spelled, rank, source: Source::File { line }, node });
            } else if let Some(block) = block.filter(|_| SECTIONS.contains(&plain)) {
                let text = format!("a block inside the block {block}; move it out, to the same depth as {block}");
                self.fault(line, plain, &text);
            } else if self.faults.len() >= MAX_FAULTS {
                self.more_faults += 1;
            } else {
                let path = block.map_or(quote(&key, 60), |b| format!("{b}.{}", quote(&key, 60)));
                self.fault(line, &path, &format!("unknown key; {}", keys::mend_unknown(&spelled)));
            }
        }
    }

    /// Two values for one key, equally near.
    fn conflict(&mut self, next: Given) {
        let Some(first) = self.given.get(next.what.name()) else { return };
        let line = |g: &Given| match g.source {
            Source::File { line } => line,
            _ => 0,
        };
        if first.what.name() == "save_every" && first.spelled != next.spelled {
            // The original's own file gives both and reads the first.
            let (counts, other) = if first.spelled == "save_every" { (first, &next) } else { (&next, first) };
            let (counts, other) = (counts.node.found(), other.node.found());
            self.notice("save_every", format!("{counts} counts, as in the original; save_frequency {other} does not"));
            if next.spelled == "save_every" {
                self.given.insert("save_every", next);
            }
            return;
        }
        let (a, b) = (format!("{} (line {})", first.node.found(), line(first)), line(&next));
        let names = if first.spelled == next.spelled { String::new() } else { format!(", as {}", next.spelled) };
        let text = format!("given twice: {a} and {} (line {b}{names}); keep one", next.node.found());
        let name = next.what.name();
        self.failed.insert(name);
        self.fault(b, name, &text);
    }

    /// Says when a block drops or changes what an inherited block of that name says: merging is shallow.
    fn notice_replaced_blocks(&mut self, node: &Node, merged: &[Entry]) {
        let merges: Vec<Entry> = node.map().unwrap_or_default().iter().filter(|e| e.key == "<<").cloned().collect();
        for old in sources(merges, &mut Faults::new()).iter().flatten() {
            let new = merged.iter().find(|e| e.key == old.key);
            let (Some(old_keys), Some(new)) = (old.node.map(), new) else { continue };
            let Some(new_keys) = new.node.map() else { continue };
            let changes: Vec<String> = old_keys
                .iter()
                .filter_map(|was| match new_keys.iter().find(|e| e.key == was.key) {
                    None => Some(format!("{} falls back to its default", quote(&was.key, 60))),
                    // A key that the new block itself writes is meant.
                    Some(now) if !now.rank.is_empty() && now.node != was.node => {
                        Some(format!("{} is {}, not {}", quote(&was.key, 60), now.node.found(), was.node.found()))
                    }
                    Some(_) => None,
                })
                .collect();
            if !changes.is_empty() {
                let place = format!("{}:{}: {}: {}", self.file, new.line, quote(&self.config_name, 60), old.key);
                self.notices.push(format!(
                    "{place}: this block replaces the one of line {} as a whole: {}; to keep its values, merge that \
                     block inside this one or write the keys without a block",
                    old.line,
                    changes.join(", ")
                ));
            }
        }
    }

    fn read_override(&mut self, text: &str) {
        let shown = quote(text, 80);
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                self.give(&format!("--set {shown}"), key.trim(), value, Source::Override(shown.clone()));
            }
            _ => self
                .faults
                .push(format!("--set {shown}: expected key=value, found \"{shown}\"; write e.g. batch_size=8")),
        }
    }

    /// A value from outside the file; it replaces what is given so far.
    fn give(&mut self, place: &str, name: &str, text: &str, source: Source) {
        let plain = bare(name);
        let Some(what) = What::find(plain) else {
            let name = quote(name, 60);
            self.faults.push(format!("{place}: {name}: unknown key; {}", keys::mend_unknown(plain)));
            return;
        };
        match parse(text) {
            Ok(node) => {
                let given = Given { what, spelled: plain.to_owned(), rank: Vec::new(), source, node };
                self.given.insert(what.name(), given);
            }
            Err(fault) => {
                let fault = fault.split_once("line 1: ").map_or(fault.as_str(), |(_, rest)| rest);
                self.faults.push(format!("{place}: {}: {fault}", what.name()));
            }
        }
    }

    fn finish(mut self) -> Result<RunConfig> {
        if self.more_faults > 0 {
            let text = format!("and {} more unknown keys", self.more_faults);
            self.fault(0, "", &text);
        }
        let mut config = RunConfig::default();
        config.experiment.name = self.config_name.clone();
        let given = std::mem::take(&mut self.given);
        for (name, Given { what, source, node, .. }) in &given {
            let (section, wrong) = match what {
                What::Field(key) => (Some(key.section), (key.set)(&mut config, node).err()),
                What::NoField(key) => match (key.judge)(node) {
                    Ok(notice) => {
                        if let Some(notice) = notice {
                            self.notices.push(format!("{}: {name}: {notice}", self.at(source)));
                        }
                        (None, None)
                    }
                    Err(wrong) => (None, Some(wrong)),
                },
            };
            let Some(wrong) = wrong else { continue };
            self.failed.insert(name);
            let path = section.map_or(String::new(), |s| format!("{s}."));
            let mend = wrong.mend.or_else(|| super::show::default_of(name).map(|d| format!("the default is {d}")));
            let mend = mend.map_or(String::new(), |m| format!("; {m}"));
            let place = self.at(source);
            self.faults.push(format!(
                "{place}: {path}{name}: expected {}, found {}{mend}",
                wrong.expected,
                node.found()
            ));
        }
        self.given = given;
        let mut by_key: BTreeMap<&'static str, Source> =
            self.given.iter().map(|(name, given)| (*name, given.source.clone())).collect();
        self.follow_data_dir(&mut config.data, &mut by_key);
        self.validate(&config, &by_key);
        self.notice_values(&config);
        config.sources = Sources { file: self.file, config_name: self.config_name, by_key };
        config.notices = self.notices;
        self.faults.into_result(Error::Config)?;
        Ok(config)
    }

    /// Paths that are not given lie below `data_dir`; so do those of the file when `data_dir` comes from outside it.
    fn follow_data_dir(&mut self, data: &mut WeatherDataConfig, by_key: &mut BTreeMap<&'static str, Source>) {
        let below = WeatherDataConfig::below(&data.data_dir);
        let from_outside = matches!(by_key.get("data_dir"), Some(Source::Override(_)));
        for (name, path, default) in [
            ("train_data_path", &mut data.train_data_path, below.train_data_path),
            ("valid_data_path", &mut data.valid_data_path, below.valid_data_path),
            ("test_data_path", &mut data.test_data_path, below.test_data_path),
            ("means_path", &mut data.means_path, below.means_path),
            ("stds_path", &mut data.stds_path, below.stds_path),
        ] {
            let source = by_key.get(name);
            if from_outside && matches!(source, Some(Source::File { .. })) && *path != default {
                let (new, old) = (quote(&default.display().to_string(), 80), quote(&path.display().to_string(), 80));
                self.notices.push(format!("--set data_dir: {name} is {new}, not {old} as the file says"));
            } else if source.is_some() {
                continue;
            }
            *path = default;
            by_key.insert(name, Source::Follows("data_dir"));
        }
    }

    fn validate(&mut self, config: &RunConfig, by_key: &BTreeMap<&'static str, Source>) {
        let mut faults = Faults::new();
        config.validate(&mut faults);
        for line in faults.lines() {
            let name = line.split(':').next().unwrap_or_default();
            // A rule over several keys says nothing while one of them could not be read.
            let is_word = |w: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == w);
            if self.failed.iter().any(|key| *key == name || is_word(key)) {
                continue;
            }
            let place = self.at(by_key.get(name).unwrap_or(&Source::Default));
            let section = keys::find(name).map_or(String::new(), |k| format!("{}.", k.section));
            self.faults.push(format!("{place}: {section}{line}"));
        }
    }

    /// What is accepted and means something else than a reader may expect.
    fn notice_values(&mut self, config: &RunConfig) {
        let text = |name: &str| self.given.get(name).and_then(|g| g.node.text()).unwrap_or_default().to_lowercase();
        let precision = text("precision");
        let mut notices = Vec::new();
        if precision.ends_with("-true") && config.training.precision != Precision::Fp32 {
            let say = "weights, optimiser state and sums stay in fp32; the forward pass is as the name asks";
            notices.push(("precision", format!("{precision}: {say}")));
        }
        if config.experiment.strategy != Strategy::Single {
            let strategy = text("strategy");
            notices.push(("strategy", format!("{strategy}: has no effect on one device: there is nothing to share")));
        }
        let frames = config.data.sequence_length;
        if frames > 1 && self.file != EMBEDDED_LABEL {
            let say = "frames are stacked on the channels of the input; the original reads 1 whatever this says";
            notices.push(("sequence_length", format!("{frames} {say}")));
        }
        let warmup = config.training.warmup_steps;
        if let Some(steps) = config.training.max_steps.filter(|steps| *steps <= warmup) {
            let say =
                format!("{warmup} steps of warm-up do not end before max_steps {steps}: learning_rate is not reached");
            notices.push(("warmup_steps", say));
        }
        for (name, text) in notices {
            self.notice(name, text);
        }
    }

    fn notice(&mut self, name: &'static str, text: String) {
        let place = self.given.get(name).map_or_else(|| self.at(&Source::Default), |g| self.at(&g.source));
        self.notices.push(format!("{place}: {name}: {text}"));
    }

    fn fault(&mut self, line: u64, key: &str, text: &str) {
        let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
        let place = self.at(&Source::File { line });
        self.faults.push(format!("{place}: {key}{text}"));
    }

    /// Where a value comes from, as messages begin: `my.yaml:3: base` or `--set x=1: base`.
    fn at(&self, source: &Source) -> String {
        let (file, config) = (&self.file, quote(&self.config_name, 60));
        match source {
            Source::File { line: 0 } | Source::Default | Source::Follows(_) => format!("{file}: {config}"),
            Source::File { line } => format!("{file}:{line}: {config}"),
            Source::Environment(name) => format!("environment {name}: {config}"),
            Source::Override(text) => format!("--set {text}: {config}"),
        }
    }

    /// `line 3: base: rest` of `line 3: rest`.
    fn in_config(&self, fault: &str) -> String {
        let config = quote(&self.config_name, 60);
        match fault.split_once(": ") {
            Some((line, rest)) if line.starts_with("line ") => format!("{line}: {config}: {rest}"),
            _ => format!("{config}: {fault}"),
        }
    }
}

/// The key without its block: `embed_dim` of `model.embed_dim`.
fn bare(key: &str) -> &str {
    let key = key.trim();
    match key.split_once('.') {
        Some((section, rest)) if SECTIONS.contains(&section) => rest,
        _ => key,
    }
}
