//! Merge keys: what `<<` brings into a map.
//!
//! The crate reads anchors, aliases, scalars and positions. Merge keys are resolved here and not there, because three
//! things must be known that a merged tree no longer tells: whether a key is a configuration's own or inherited (a flat
//! `batch_size` beats an inherited `training: {batch_size: ..}`), which inherited block another block replaces, and that
//! two `<<` in one map mean what they mean to PyYAML.

use std::collections::HashMap;

use super::value::{Entry, MAX_QUOTE, Node, Value, quote};
use crate::error::Faults;

/// Resolves every `<<` in `node`. A fault's text starts with `line n: `.
///
/// As in PyYAML: own keys win; of a list of sources the first wins; of two `<<` in one map the later wins. Merging is
/// shallow: a block that is written replaces the inherited block of that name.
pub(super) fn merge(node: Node, faults: &mut Faults) -> Node {
    let line = node.line;
    let value = match node.value {
        Value::Map(entries) => Value::Map(merge_map(entries, faults)),
        Value::List(items) => Value::List(items.into_iter().map(|n| merge(n, faults)).collect()),
        other => other,
    };
    Node { value, line }
}

fn merge_map(entries: Vec<Entry>, faults: &mut Faults) -> Vec<Entry> {
    let (merges, own): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|e| e.key == "<<");
    let mut out: Vec<Entry> = Vec::new();
    let mut seen: HashMap<String, u64> = HashMap::new();
    for entry in own {
        if let Some(first) = seen.insert(entry.key.clone(), entry.line) {
            let (line, key) = (entry.line, quote(&entry.key, MAX_QUOTE));
            faults.push(format!("line {line}: {key}: given twice, the first time on line {first}; remove one"));
        } else {
            out.push(Entry { node: merge(entry.node, faults), ..entry });
        }
    }
    for (i, source) in sources(merges, faults).into_iter().enumerate() {
        for entry in source {
            if seen.insert(entry.key.clone(), entry.line).is_none() {
                let mut rank = vec![u16::try_from(i + 1).unwrap_or(u16::MAX)];
                rank.extend(&entry.rank);
                out.push(Entry { rank, ..entry });
            }
        }
    }
    out
}

/// The resolved maps that the `<<` entries of one map bring in, the winning one first.
pub(super) fn sources(merges: Vec<Entry>, faults: &mut Faults) -> Vec<Vec<Entry>> {
    let mut sources = Vec::new();
    for entry in merges.into_iter().rev() {
        match merge(entry.node, faults) {
            Node { value: Value::Map(source), .. } => sources.push(source),
            Node { value: Value::List(items), line } => {
                for item in items {
                    match item.value {
                        Value::Map(source) => sources.push(source),
                        _ => faults.push(not_a_source(line, &item)),
                    }
                }
            }
            other => faults.push(not_a_source(entry.line, &other)),
        }
    }
    sources
}

fn not_a_source(line: u64, node: &Node) -> String {
    format!("line {line}: <<: expected a map or a list of maps, found {}; write e.g. `<<: *base`", node.found())
}

#[cfg(test)]
mod tests {
    use super::super::value::parse;
    use super::*;

    fn faults_of(text: &str) -> String {
        let mut faults = Faults::new();
        merge(parse(text).unwrap(), &mut faults);
        faults.to_string()
    }

    #[test]
    fn a_repeated_key_names_both_lines_and_a_merge_needs_a_map() {
        assert_eq!(faults_of("a: 1\nb: 2\na: 3"), "line 3: a: given twice, the first time on line 1; remove one");
        assert_eq!(
            faults_of("x:\n  <<: base"),
            "line 2: <<: expected a map or a list of maps, found the text \"base\"; write e.g. `<<: *base`"
        );
        assert!(faults_of("<<: [{a: 1}, 5]").contains("found 5"));
    }

    #[test]
    fn a_rank_tells_own_from_inherited_and_near_from_far() {
        let node = merge(parse("{<<: [{a: 1, <<: {b: 2}}, {b: 3, c: 4}], d: 5}").unwrap(), &mut Faults::new());
        let mut ranks: Vec<(&str, &[u16])> =
            node.map().unwrap().iter().map(|e| (e.key.as_str(), e.rank.as_slice())).collect();
        ranks.sort();
        assert_eq!(ranks, [("a", &[1][..]), ("b", &[1, 1]), ("c", &[2]), ("d", &[])]);
    }

    /// A tree as JSON, to be held against what PyYAML made of it.
    fn json(node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(n) => i64::try_from(*n).unwrap().into(),
            Value::Float(n) => (*n).into(),
            Value::Text(t) => t.as_str().into(),
            Value::List(items) => items.iter().map(json).collect(),
            Value::Map(entries) => {
                serde_json::Value::Object(entries.iter().map(|e| (e.key.clone(), json(&e.node))).collect())
            }
        }
    }

    #[test]
    fn merges_are_those_of_pyyaml() {
        let cases = include_str!("../../../tests/golden/yaml_merges.jsonl");
        assert!(cases.lines().count() > 70);
        for line in cases.lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = case["yaml"].as_str().unwrap();
            let mut faults = Faults::new();
            let found = json(&merge(parse(text).unwrap(), &mut faults));
            assert_eq!(faults.to_string(), "", "{text}");
            assert_eq!(found, case["want"], "{text}");
        }
    }
}
