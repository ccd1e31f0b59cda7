//! YAML as a tree that remembers where everything stands.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{AliasLimits, Options};
use serde_saphyr::{Budget, DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy, Spanned};

/// Text that is longer is no configuration.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Longest piece of the input that a message repeats, in characters.
pub(super) const MAX_QUOTE: usize = 60;

/// A value and the line on which it is written, from 1; 0 = unknown.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) line: u64,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Line of the key.
    pub(super) line: u64,
    pub(super) node: Node,
    /// How it came here: empty = written here; else the source of every `<<` on the way, the winning one first.
    pub(super) rank: Vec<u16>,
}

impl PartialEq for Node {
    /// Values only: where something stands and how it came there makes no difference.
    fn eq(&self, other: &Node) -> bool {
        match (&self.value, &other.value) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
            (Value::Int(a), Value::Float(b)) | (Value::Float(b), Value::Int(a)) => *a as f64 == *b,
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::List(a), Value::List(b)) => a == b,
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len() && a.iter().all(|e| b.iter().any(|f| e.key == f.key && e.node == f.node))
            }
            _ => false,
        }
    }
}

/// Reads one document. A fault is one line without the file's name: `line 3: ...`.
pub(super) fn parse(text: &str) -> Result<Node, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("expected at most {MAX_BYTES} bytes of YAML, found {}", text.len()));
    }
    serde_saphyr::from_str_with_options(text, options()).map_err(|e| {
        let mut found = quote(&e.without_snippet().to_string(), 300);
        // What the crate says in the words of a Rust program, in the words of YAML.
        for (theirs, ours) in [
            ("Documents {", "expected one document, found a second one; remove the `---`"),
            ("recursive references", "expected an anchor that is closed, found an alias inside it"),
            ("Nodes {", "expected at most 50000 values once aliases are expanded, found more"),
            ("Depth {", "expected at most 32 levels, found more"),
            ("budget breached", "expected a configuration, found a document beyond the reader's limits"),
            ("into string", "expected text as a key, found nothing; put it in quotes"),
            ("expected string scalar", "expected text as a key, found a list or a map"),
            ("unknown anchor", "expected an anchor that is defined above, found an alias to none of that name"),
        ] {
            if found.contains(theirs) {
                found = ours.to_owned();
                break;
            }
        }
        match e.location() {
            // The crate ends its message with the place, with which ours begins.
            Some(at) if at.line() > 0 => {
                let found = found.split(" at line ").next().unwrap_or_default();
                format!("line {}: not YAML: {found} (column {})", at.line(), at.column())
            }
            _ => format!("not YAML: {found}"),
        }
    })
}

fn options() -> Options {
    let mut options = Options::default();
    // Duplicates and merge keys come through as they are written: see `merge`.
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    options.merge_keys = MergeKeyPolicy::AsOrdinary;
    options.non_finite_float_policy = NonFiniteFloatPolicy::PassThrough;
    options.reject_unsupported_tags = true;
    options.leading_zero_numbers_as_strings = true;
    options.with_snippet = false;
    // A configuration file has hundreds of nodes; a bomb has billions.
    let mut budget = Budget::default();
    budget.max_nodes = 50_000;
    budget.max_events = 200_000;
    budget.max_depth = 32;
    budget.max_documents = 1;
    options.budget = Some(budget);
    options.alias_limits = AliasLimits::default();
    options
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        let Spanned { value, defined, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node { value, line: defined.line() })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Value, E> {
        Ok(i128::try_from(v).map_or(Value::Float(v as f64), Value::Int))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.to_owned()))
    }

    fn visit_bytes<E>(self, v: &[u8]) -> Result<Value, E> {
        Ok(Value::Text(String::from_utf8_lossy(v).into_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(Spanned { value: key, defined, .. }) = map.next_key::<Spanned<String>>()? {
            entries.push(Entry { key, line: defined.line(), node: map.next_value()?, rank: Vec::new() });
        }
        Ok(Value::Map(entries))
    }
}

impl Node {
    /// The value for a message: short, on one line, nothing that a terminal would act on.
    pub(super) fn found(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(b) => b.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Float(n) if n.is_nan() => "not a number".to_owned(),
            Value::Float(n) if n.is_infinite() => "infinity".to_owned(),
            Value::Float(n) => format!("{n:?}"),
            Value::Text(t) => format!("the text \"{}\"", quote(t, MAX_QUOTE)),
            Value::List(items) => {
                let items: Vec<String> = items.iter().take(4).map(Node::found).collect();
                let items: Vec<&str> = items.iter().map(|item| item.trim_start_matches("the text ")).collect();
                quote(&format!("the list [{}]", items.join(", ")), 3 * MAX_QUOTE)
            }
            Value::Map(entries) if entries.is_empty() => "an empty map".to_owned(),
            Value::Map(entries) => {
                let keys: Vec<String> = entries.iter().take(3).map(|e| quote(&e.key, MAX_QUOTE)).collect();
                format!("a map with {}", keys.join(", "))
            }
        }
    }

    /// The text, if this is one.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(t) => Some(t),
            _ => None,
        }
    }

    /// The entries, if this is a map.
    pub(super) fn map(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }
}

/// `text` on one line, without control characters, cut after `max` characters.
pub(super) fn quote(text: &str, max: usize) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == max {
            out.push('…');
            break;
        }
        // Characters that reorder a line's text are as dangerous to a terminal as control characters.
        if c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numbers_in_every_usual_spelling() {
        for (text, want) in [
            ("1e-4", 1e-4),
            ("5e-5", 5e-5),
            ("1e20", 1e20),
            ("1E-4", 1e-4),
            ("1.e-4", 1e-4),
            (".1e-3", 1e-4),
            ("+1e-4", 1e-4),
            ("1e+20", 1e20),
        ] {
            let Value::Float(n) = parse(text).unwrap().value else { panic!("{text} is not a float") };
            assert_eq!(n, want, "{text}");
        }
        assert!(matches!(parse("017").unwrap().value, Value::Text(_)), "8, 15 or 17: readers differ");
        assert!(matches!(parse("1_000").unwrap().value, Value::Int(1000)));
        assert!(matches!(parse("99999999999999999999999999999999999999999999").unwrap().value, Value::Float(_)));
    }

    #[test]
    fn what_is_not_one_yaml_document_says_where() {
        for (text, want) in [
            ("a: 1\nb: [1, 2", "line 2: not YAML: unclosed bracket '['"),
            ("a: b: c", "line 1: not YAML: mapping values are not allowed"),
            ("a: *b", "line 1: not YAML: expected an anchor that is defined above"),
            ("a: &a [*a]", "line 1: not YAML: expected an anchor that is closed"),
            ("a: !!python/object:os.system x", "line 1: not YAML: unsupported tag"),
            ("--- 1\n--- 2", "line 2: not YAML: expected one document, found a second one; remove the `---`"),
            ("a: \0", "line 1: not YAML: unexpected character"),
        ] {
            let found = parse(text).unwrap_err();
            assert!(found.starts_with(want) && !found.contains('\n'), "{text:?}: {found}");
        }
    }

    #[test]
    fn bombs_and_towers_are_refused() {
        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, last) in ('b'..'k').zip('a'..) {
            bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 10].join(", "));
        }
        assert!(parse(&bomb).unwrap_err().contains("expected at most 50000 values once aliases are expanded"));
        assert!(parse(&"[".repeat(100_000)).unwrap_err().contains("not YAML"));
        assert!(parse(&"- ".repeat(100_000)).unwrap_err().contains("expected at most 32 levels, found more"));
        assert!(parse(&format!("{}a: 1", "? ".repeat(100_000))).is_err());
        assert!(parse(&"x".repeat(MAX_BYTES + 1)).unwrap_err().starts_with("expected at most 1048576 bytes"));
    }

    #[test]
    fn a_quoted_piece_of_input_is_short_and_harmless() {
        assert_eq!(quote("a\u{1b}[31m\n\u{202e}", 20), "a\\u{1b}[31m\\n\\u{202e}");
        assert_eq!(parse(&format!("\"{}\"", "x".repeat(1000))).unwrap().found().chars().count(), 72);
    }
}
