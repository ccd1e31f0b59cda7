//! A case as its file holds it.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::safetensors::SafetensorsFile;
use crate::io::stored::{StoredDtype, TensorView, printable};
use crate::tensor::{Dtype, Spec, Tensor};

/// The only layout of cases that there is.
const FORMAT: u64 = 1;

/// A case, read from its file.
#[derive(Debug)]
pub struct Case {
    file: SafetensorsFile,
    header: Map<String, Value>,
}

impl Case {
    /// Reads a case.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Data`] if it is not safetensors or holds no case. What the case
    /// says is looked at when it is run: a case of another format or kind can be opened.
    pub fn open(path: &Path) -> Result<Case> {
        Case::of(SafetensorsFile::open(path)?)
    }

    /// Takes over the bytes of a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Case::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Case> {
        Case::of(SafetensorsFile::from_bytes(path, bytes)?)
    }

    fn of(file: SafetensorsFile) -> Result<Case> {
        let at = file.path().display();
        let Some(text) = file.metadata().get("case") else {
            return Err(Error::data(format!("{at}: expected an entry `case` in __metadata__, found none: not a case")));
        };
        match serde_json::from_str(&without_special_numbers(text)) {
            Ok(header) => Ok(Case { header, file }),
            Err(e) => Err(Error::data(format!("{at}: case: expected a JSON object: {e}"))),
        }
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn text(&self, key: &str) -> &str {
        self.header.get(key).and_then(Value::as_str).unwrap_or("")
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// `op`, `optimizer`, `model`, or whatever the file says.
    pub fn kind(&self) -> &str {
        self.text("kind")
    }

    /// Which operator or model is run; empty for an optimiser.
    pub fn subject(&self) -> &str {
        let key = if self.kind() == "model" { "model" } else { "op" };
        self.header.get("attrs").and_then(|a| a.get(key)).and_then(Value::as_str).unwrap_or("")
    }

    /// Fails for every format but the one there is.
    pub(super) fn check_format(&self) -> Result<()> {
        let found = self.header.get("format").unwrap_or(&Value::Null);
        if found.as_u64() == Some(FORMAT) {
            return Ok(());
        }
        Err(Error::argument(format!("format: expected {FORMAT}, found {}", printable(&found.to_string()))))
    }

    /// The parameters, every one known.
    pub(super) fn attrs<T: DeserializeOwned>(&self) -> Result<T> {
        let attrs = self.header.get("attrs").cloned().unwrap_or_default();
        serde_json::from_value(attrs).map_err(|e| Error::argument(format!("attrs: {}", printable(&e.to_string()))))
    }

    /// What the other implementation's error was in `dtype` for `key`; `None` if it had none to tell.
    pub(super) fn half_error(&self, dtype: Dtype, key: &str) -> Option<f64> {
        let name = match dtype {
            Dtype::Bf16 => "bfloat16",
            Dtype::F16 => "float16",
            Dtype::F32 | Dtype::I32 => return None,
        };
        let key = key.strip_prefix("out.").unwrap_or(key);
        self.header.get("half_error")?.get(name)?.get(key)?.as_f64()
    }

    /// The tensor under `key`, if there is one.
    pub(super) fn get(&self, key: &str) -> Option<TensorView<'_>> {
        self.file.get(key)
    }

    fn expect(&self, key: &str) -> Result<TensorView<'_>> {
        self.get(key).ok_or_else(|| Error::argument(format!("{key}: expected a tensor of this name, found none")))
    }

    /// All tensors, in the order of the file.
    pub(super) fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.file.tensors()
    }

    /// The f32 tensor under `key`, each number rounded to `dtype`; it must have `shape`.
    pub(super) fn floats(&self, key: &str, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        let view = self.expect(key)?;
        if view.dtype() != StoredDtype::F32 || view.shape() != shape {
            return Err(unfit(key, "F32", shape, &view));
        }
        let tensor = Tensor::from_bytes(Spec::f32(shape)?, view.bytes())?;
        if dtype == Dtype::F32 {
            return Ok(tensor);
        }
        Tensor::from_f32_as(Spec::new(dtype, shape)?, &tensor.to_f32()?)
    }

    /// The integers under `key`.
    pub(super) fn integers(&self, key: &str, shape: &[usize]) -> Result<Vec<i64>> {
        let view = self.expect(key)?;
        let is_integer = matches!(view.dtype(), StoredDtype::I64 | StoredDtype::I32);
        if !is_integer || view.shape() != shape {
            return Err(unfit(key, "I64", shape, &view));
        }
        // Exact up to 2^53, and nothing larger is an index.
        Ok(view.to_f64().map(|x| x as i64).collect())
    }
}

fn unfit(key: &str, dtype: &str, shape: &[usize], found: &TensorView<'_>) -> Error {
    Error::shape(format!("{key}: expected {dtype} {shape:?} as attrs say, found {} {:?}", found.dtype(), found.shape()))
}

/// Python writes numbers that JSON does not have; here they are null, which is what an unknown error is.
fn without_special_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        let special = ["-Infinity", "Infinity", "NaN"].into_iter().find(|s| !in_string && rest.starts_with(s));
        if let Some(word) = special {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        let mut taken = c.len_utf8();
        match c {
            '"' => in_string = !in_string,
            '\\' => taken += rest.chars().nth(1).map_or(0, char::len_utf8),
            _ => {}
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_are_null_outside_of_strings() {
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity, -1.5], "NaN \" é": "Infinity\\"}"#;
        let want = r#"{"a": null, "b": [null, null, -1.5], "NaN \" é": "Infinity\\"}"#;
        assert_eq!(without_special_numbers(text), want);
    }
}
