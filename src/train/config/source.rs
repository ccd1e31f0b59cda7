//! Where configurations come from: the binary, a file, a text.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::keys;
use super::suggest;
use super::value::{Entry, MAX_BYTES, Node, Value, parse, quote};
use crate::error::{Error, Faults, Result};

/// The predefined configurations.
static EMBEDDED: &str = include_str!("configs.yaml");

/// What messages call the predefined configurations.
pub(super) const EMBEDDED_LABEL: &str = "predefined";

/// Where a configuration is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// The predefined configurations in the binary.
    Embedded,
    /// A YAML file: configurations by name, or one configuration.
    File(PathBuf),
    /// YAML that is already in memory, with the name that messages give it.
    Text {
        /// What messages call it.
        label: String,
        /// The YAML.
        text: String,
    },
}

/// The configurations of one source, unresolved.
pub(super) struct Document {
    /// The file's name in messages.
    pub(super) label: String,
    /// Configurations in the order of the file.
    pub(super) configs: Vec<Named>,
    /// Whether the file is one configuration without a name of its own.
    is_single: bool,
}

/// One configuration of a document, unresolved.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) node: Node,
}

impl Document {
    /// Reads and parses `source`.
    pub(super) fn read(source: &ConfigSource) -> Result<Document> {
        let (label, stem, text) = match source {
            ConfigSource::Embedded => (EMBEDDED_LABEL.to_owned(), "base".to_owned(), EMBEDDED.to_owned()),
            ConfigSource::Text { label, text } => (label.clone(), label.clone(), text.clone()),
            ConfigSource::File(path) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                (quote(&path.display().to_string(), 200), stem, read_text(path)?)
            }
        };
        let root = parse(&text).map_err(|fault| Error::config(place(&label, &fault)))?;
        Document::split(label, &stem, root).map_err(Error::Config)
    }

    fn split(label: String, stem: &str, root: Node) -> Result<Document, Faults> {
        let entries = match root.value {
            Value::Map(entries) => entries,
            _ => {
                let found = if matches!(root.value, Value::Null) { "nothing".to_owned() } else { root.found() };
                return Err(Faults::from(format!(
                    "{label}: expected configurations by name, found {found}; write e.g. `my_run: {{embed_dim: 128}}`"
                )));
            }
        };
        if is_one_configuration(&entries) {
            let node = Node { value: Value::Map(entries), line: root.line };
            return Ok(Document { label, configs: vec![Named { name: stem.to_owned(), node }], is_single: true });
        }
        let mut faults = Faults::new();
        let mut configs: Vec<Named> = Vec::new();
        for Entry { key, line, node, .. } in entries {
            let shown = quote(&key, 60);
            let fault = if key == "<<" {
                "<<: expected inside a configuration, found beside them; move it into the one that inherits".to_owned()
            } else if configs.iter().any(|c| c.name == key) {
                format!("{shown}: given twice; rename one of the configurations")
            } else if matches!(node.value, Value::Map(_)) {
                configs.push(Named { name: key, node });
                continue;
            } else if is_template(&key) {
                continue;
            } else {
                format!(
                    "{shown}: expected a configuration (a map of keys), found {}; \
                     values that are only there to be reused go under a name that starts with a dot",
                    node.found()
                )
            };
            faults.push(format!("{label}:{line}: {fault}"));
        }
        configs.retain(|c| !is_template(&c.name));
        if configs.is_empty() && faults.is_empty() {
            faults
                .push(format!("{label}: expected at least one configuration, found only names that start with a dot"));
        }
        if faults.is_empty() { Ok(Document { label, configs, is_single: false }) } else { Err(faults) }
    }

    /// The configuration `name`; without a name the only one, else `base`.
    pub(super) fn select(&self, name: Option<&str>) -> Result<&Named> {
        let names: Vec<&str> = self.configs.iter().map(|c| c.name.as_str()).collect();
        let listed = quote(&names.join(", "), 600);
        let wanted = match (name, self.configs.as_slice()) {
            (None, [only]) => return Ok(only),
            (name, _) => name.unwrap_or("base"),
        };
        if let Some(found) = self.configs.iter().find(|c| c.name == wanted) {
            return Ok(found);
        }
        let (label, shown) = (&self.label, format!("\"{}\"", quote(wanted, 60)));
        Err(Error::config(match name {
            None => format!("{label}: expected the name of a configuration, found none; choose one of {listed}"),
            Some(_) if self.is_single => format!(
                "{label}: expected a file with a configuration {shown}, found one configuration without a name; \
                 leave --config-name out"
            ),
            Some(_) => match suggest(wanted, names.iter().copied()) {
                Some(near) => format!("{label}: no configuration {shown}; did you mean {near}? There are {listed}"),
                None => format!("{label}: no configuration {shown}; there are {listed}"),
            },
        }))
    }
}

/// `label:3: rest` of `line 3: rest`.
pub(super) fn place(label: &str, fault: &str) -> String {
    let with_line = fault.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
    match with_line.filter(|(line, _)| line.bytes().all(|b| b.is_ascii_digit())) {
        Some((line, rest)) => format!("{label}:{line}: {rest}"),
        None => format!("{label}: {fault}"),
    }
}

/// Whether a map at the top of a file is one configuration rather than configurations by name.
fn is_one_configuration(entries: &[Entry]) -> bool {
    let is_map = |e: &Entry| matches!(e.node.value, Value::Map(_));
    let is_key = |e: &Entry| {
        keys::is_block(&e.key, &e.node)
            || !is_map(e) && (keys::find(&e.key).is_some() || keys::find_no_field(&e.key).is_some())
    };
    entries.iter().any(is_key) || !entries.is_empty() && !entries.iter().any(is_map)
}

/// Names that hold what others inherit and are no configurations themselves.
fn is_template(name: &str) -> bool {
    name.starts_with('.') || name.starts_with("x-")
}

fn read_text(path: &Path) -> Result<String> {
    let label = quote(&path.display().to_string(), 200);
    let kind = std::fs::metadata(path).map_err(Error::io("read", path))?;
    // A pipe without a writer would block for ever, and a device never ends.
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "something that is not a plain file" };
        return Err(Error::config(format!("{label}: expected a YAML file, found {found}")));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() > MAX_BYTES {
        return Err(Error::config(format!("{label}: expected at most {MAX_BYTES} bytes of YAML, found more")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let found = match e.as_bytes() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16".to_owned(),
            _ => format!("a byte that is not, at offset {at}"),
        };
        Error::config(format!("{label}: expected UTF-8, found {found}; save the file as UTF-8"))
    })
}
