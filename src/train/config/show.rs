//! The effective configuration as YAML, key by key, with where each value comes from.

use std::fmt::Write;

use serde_json::Value;

use super::keys::{KEYS, PROFILER, SECTIONS};
use super::source::EMBEDDED_LABEL;
use super::{RunConfig, Source};

/// The effective configuration as YAML that can be loaded again, each value with where it comes from.
pub fn show(config: &RunConfig) -> String {
    body(config, config.sources.config_name(), |name| Some(origin(config, name)))
}

/// The configuration as YAML under the one key `name`, `comments` above it.
pub fn yaml(config: &RunConfig, name: &str, comments: &[String]) -> String {
    let above: String = comments.iter().map(|c| format!("# {}\n", c.replace('\n', " "))).collect();
    above + &body(config, name, |_| None)
}

fn body(config: &RunConfig, name: &str, note: impl Fn(&str) -> Option<String>) -> String {
    let mut out = format!("{}:\n", scalar(&Value::from(name)));
    for section in SECTIONS {
        out.push_str(&format!("  {section}:\n"));
        let mut in_profiler = false;
        for (name, value) in
            values(config).into_iter().filter(|(key, _)| key.section == section).map(|(k, v)| (k.name, v))
        {
            let block = name.strip_prefix(PROFILER).and_then(|rest| rest.strip_prefix('.'));
            if block.is_some() && !in_profiler {
                let _ = writeln!(out, "    {PROFILER}:");
            }
            in_profiler = block.is_some();
            let line = match block {
                Some(name) => format!("      {name}: {}", scalar(&value)),
                None => format!("    {name}: {}", scalar(&value)),
            };
            let _ = match note(name) {
                Some(note) => writeln!(out, "{line:<44} # {note}"),
                None => writeln!(out, "{line}"),
            };
        }
    }
    out
}

/// A key's default value for a message.
pub(super) fn default_of(name: &str) -> Option<String> {
    let config = RunConfig::default();
    let (_, value) = values(&config).into_iter().find(|(key, _)| key.name == name)?;
    Some(scalar(&value))
}

/// Every key with its value, in order.
pub(super) fn values(config: &RunConfig) -> Vec<(&'static super::keys::Key, Value)> {
    let tree = serde_json::to_value(config).unwrap_or_default();
    KEYS.iter()
        .map(|key| {
            let mut value = tree.get(key.section);
            for part in key.name.split('.') {
                value = value.and_then(|v| v.get(part));
            }
            (key, value.cloned().unwrap_or_default())
        })
        .collect()
}

fn origin(config: &RunConfig, name: &str) -> String {
    let file = config.sources.file();
    match config.sources.of(name) {
        Source::Default => "default".to_owned(),
        Source::File { line } if file == EMBEDDED_LABEL => format!("{file}, line {line}"),
        Source::File { line } => format!("{file}:{line}"),
        Source::Environment(name) => format!("environment {name}"),
        Source::Override(_) => "--set".to_owned(),
        Source::Follows(key) => format!("from {key}"),
    }
}

/// A value on one line, as YAML reads it back.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(scalar).collect::<Vec<_>>().join(", ")),
        // Words that YAML takes for something else, and all that is not a plain word, go into JSON's quotes, which are
        // YAML's too.
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf", "infinity"];
    starts_well
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
        && !words.contains(&text.to_lowercase().as_str())
}

impl RunConfig {
    /// The keys in which `other` differs, a line each: `model.embed_dim: 384 here, 128 there`.
    pub fn differences(&self, other: &RunConfig) -> Vec<String> {
        let pairs = values(self).into_iter().zip(values(other));
        pairs
            .filter(|((_, here), (_, there))| here != there)
            .map(|((key, here), (_, there))| {
                format!("{}.{}: {} here, {} there", key.section, key.name, scalar(&here), scalar(&there))
            })
            .collect()
    }
}
