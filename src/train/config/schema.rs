//! The JSON schema of a configuration file, from the structs that hold it.

use serde_json::{Map, Value, json};

use super::RunConfig;
use super::convert::all_names;
use super::keys::{KEYS, NO_FIELD, PROFILER, SECTIONS};

/// The JSON schema of a configuration file, for editors: configurations by name, or one configuration.
pub fn schema() -> Value {
    let mut run = serde_json::to_value(schemars::schema_for!(RunConfig)).unwrap_or_default();
    let mut defs = take(&mut run, "$defs");
    for (name, names) in all_names() {
        // Names beside a choice's own are accepted too, so the list replaces the derived one.
        let description = defs.get(name).and_then(|d| d.get("description")).cloned().unwrap_or_default();
        defs.insert(name.to_owned(), json!({ "description": description, "enum": names }));
    }
    let mut keys = Map::new();
    let sections = take(&mut run, "properties");
    for section in SECTIONS {
        let def = sections.get(section).and_then(|s| s.get("$ref")).and_then(Value::as_str).unwrap_or_default();
        let def = defs.get(def.trim_start_matches("#/$defs/")).cloned().unwrap_or_default();
        keys.extend(def.get("properties").and_then(Value::as_object).cloned().unwrap_or_default());
    }
    for key in KEYS {
        for alias in key.aliases {
            if let Some(property) = keys.get(key.name).cloned() {
                keys.insert((*alias).to_owned(), property);
            }
        }
    }
    for key in NO_FIELD {
        keys.insert(
            key.name.to_owned(),
            json!({ "description": "Accepted for the original's files; see the notice." }),
        );
    }
    keys.insert("<<".to_owned(), json!({ "description": "Maps whose keys are inherited." }));
    let block = json!({ "type": ["object", "null"], "properties": keys, "additionalProperties": false });
    for section in SECTIONS {
        keys.insert(section.to_owned(), json!({ "$ref": "#/$defs/Block" }));
    }
    debug_assert!(keys.contains_key(PROFILER), "the profiler's block is a field of the training section");
    defs.insert("Block".to_owned(), block);
    let configuration = json!({ "type": "object", "properties": keys, "additionalProperties": false });
    defs.insert("Configuration".to_owned(), configuration);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configurations of perfrun",
        "anyOf": [
            { "type": "object", "additionalProperties": { "$ref": "#/$defs/Configuration" } },
            { "$ref": "#/$defs/Configuration" },
        ],
        "$defs": defs,
    })
}

fn take(value: &mut Value, key: &str) -> Map<String, Value> {
    match value.get_mut(key).map(Value::take) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}
