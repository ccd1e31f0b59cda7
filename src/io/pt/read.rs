//! Reads `.pt` files: tensors by dotted name, plain values beside them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use pytorch_reader::{DType, PickleValue, PytorchReader, Tensor};

use crate::error::{Error, Faults, Result};
use crate::io::stored::{StoredDtype, TensorView, escaped, printable};

/// The keys under which programs keep a model's weights, in the order in which they are looked for.
const WEIGHT_KEYS: [&str; 4] = ["model_state_dict", "state_dict", "model", "module"];

/// A tensor with its own memory.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedTensor {
    /// Its name.
    pub name: String,
    /// Its number type.
    pub dtype: StoredDtype,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row-major.
    pub bytes: Vec<u8>,
}

impl OwnedTensor {
    /// A view of it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the bytes are not as many as the shape says.
    pub fn view(&self) -> Result<TensorView<'_>> {
        TensorView::new(&self.name, self.dtype, &self.shape, &self.bytes)
    }
}

/// A PyTorch file, opened: names, shapes and plain values; bytes are read when they are asked for.
pub struct PtFile {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    root: PickleValue,
}

impl PtFile {
    /// Opens the file at `path`. Nothing in it is executed; objects that are neither tensors nor plain values are
    /// listed by [`PtFile::foreign`].
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Data`] if it is no sound PyTorch file, or holds tensors whose
    /// elements are more than the file has.
    pub fn open(path: &Path) -> Result<PtFile> {
        super::guard::check(path)?;
        let fault =
            |e: pytorch_reader::PytorchError| Error::data(format!("{}: {}", path.display(), escaped(&e.to_string())));
        let reader = PytorchReader::new(path).map_err(fault)?;
        let root = PytorchReader::read_pickle_data(path, None).map_err(fault)?;
        let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        let tensors: BTreeMap<_, _> = reader.into_tensors().into_iter().collect();
        let mut faults = Faults::new();
        for (name, tensor) in &tensors {
            // A view can repeat one element any number of times; torch.save writes none that does.
            if tensor.byte_len() as u64 > size {
                let (name, bytes, at) = (printable(name), tensor.byte_len(), path.display());
                faults.push(format!("{at}: {name}: {bytes} bytes are more than the file's {size}"));
            }
        }
        faults.into_result(Error::Data)?;
        Ok(PtFile { path: path.to_path_buf(), tensors, root })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names, types and shapes of all tensors; names are the keys on the way to it, joined by dots.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, StoredDtype, &[usize])> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), stored(t.dtype()), t.shape()))
    }

    /// Reads the tensor of that name.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none, or if its storage is missing, too short or fails its checksum.
    pub fn read(&self, name: &str) -> Result<OwnedTensor> {
        let at = self.path.display();
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| Error::data(format!("{at}: {}: no tensor of that name", printable(name))))?;
        let bytes = tensor.read().map_err(|e| {
            let text = e.to_string();
            let text = text.strip_prefix(&format!("tensor '{name}': ")).unwrap_or(&text);
            Error::data(format!("{at}: {}: {}", printable(name), escaped(text)))
        })?;
        Ok(OwnedTensor { name: name.into(), dtype: stored(tensor.dtype()), shape: tensor.shape().to_vec(), bytes })
    }

    /// The keys of the outermost dictionary, sorted.
    pub fn keys(&self) -> Vec<&str> {
        let PickleValue::Dict(dict) = &self.root else { return Vec::new() };
        let mut keys: Vec<_> = dict.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    /// The key under which the weights lie: `asked` if given, else the one that programs use; none if the outermost
    /// dictionary is itself the state dict.
    ///
    /// # Errors
    /// [`Error::Data`] if there is no such key, or nothing that can be taken for weights.
    pub fn weights_key(&self, asked: Option<&str>) -> Result<Option<String>> {
        let under = |key: &str| self.under(key).next().is_some();
        let known = |key: &&str| self.child(key).is_some_and(|v| matches!(v, PickleValue::Dict(_))) && under(key);
        let unknown = |what: String| {
            let keys: Vec<_> = self.keys().into_iter().take(20).map(printable).collect();
            Err(Error::data(format!("{}: {what}; the file's keys are {}", self.path.display(), keys.join(", "))))
        };
        match asked {
            Some(key) if under(key) => Ok(Some(key.into())),
            Some(key) => unknown(format!("expected tensors under {:?}, found none", printable(key))),
            None => match WEIGHT_KEYS.iter().find(|key| known(key)) {
                Some(key) => Ok(Some((*key).into())),
                None if self.is_flat() => Ok(None),
                None => unknown("expected a state dict, found none under the usual keys: name its key".into()),
            },
        }
    }

    /// Names of the tensors under a key, without it.
    pub fn under<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let prefix = format!("{key}.");
        self.tensors.keys().filter_map(move |name| name.strip_prefix(&prefix))
    }

    /// Whether the outermost dictionary has tensors for values.
    fn is_flat(&self) -> bool {
        self.keys().iter().any(|key| self.tensors.contains_key(*key))
    }

    fn child(&self, key: &str) -> Option<&PickleValue> {
        match &self.root {
            PickleValue::Dict(dict) => dict.get(key),
            _ => None,
        }
    }

    /// A plain value under the keys of `path`, as JSON; numbers that JSON has not become text. Nothing for tensors and
    /// foreign objects.
    pub fn value(&self, path: &[&str]) -> Option<serde_json::Value> {
        let mut value = &self.root;
        for key in path {
            value = match value {
                PickleValue::Dict(dict) => dict.get(*key)?,
                PickleValue::List(items) => items.get(key.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        json(value)
    }

    /// Paths and Python types of the objects that were not read, because they are neither tensors nor plain values.
    pub fn foreign(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        foreign(&self.root, &mut Vec::new(), &mut found);
        found.sort();
        found
    }
}

impl fmt::Debug for PtFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PtFile({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

fn stored(dtype: DType) -> StoredDtype {
    match dtype {
        DType::F64 => StoredDtype::F64,
        DType::F32 => StoredDtype::F32,
        DType::F16 => StoredDtype::F16,
        DType::BF16 => StoredDtype::Bf16,
        DType::I64 => StoredDtype::I64,
        DType::I32 => StoredDtype::I32,
        DType::I16 => StoredDtype::I16,
        DType::I8 => StoredDtype::I8,
        DType::U64 => StoredDtype::U64,
        DType::U32 => StoredDtype::U32,
        DType::U16 => StoredDtype::U16,
        DType::U8 => StoredDtype::U8,
        DType::Bool => StoredDtype::Bool,
    }
}

fn json(value: &PickleValue) -> Option<serde_json::Value> {
    use serde_json::Value;
    Some(match value {
        PickleValue::None => Value::Null,
        PickleValue::Bool(b) => Value::Bool(*b),
        PickleValue::Int(n) => Value::from(*n),
        PickleValue::Float(x) if x.is_finite() => Value::from(*x),
        PickleValue::Float(x) => Value::from(x.to_string()),
        PickleValue::String(s) => Value::from(s.as_str()),
        PickleValue::List(items) => items.iter().filter_map(json).collect(),
        PickleValue::Dict(dict) => {
            // The reader's dictionaries have no order of their own.
            let sorted: BTreeMap<_, _> = dict.iter().filter_map(|(k, v)| Some((k.clone(), json(v)?))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        PickleValue::Bytes(_) | PickleValue::Unsupported(_) => return None,
    })
}

fn foreign(value: &PickleValue, path: &mut Vec<String>, found: &mut Vec<(String, String)>) {
    match value {
        PickleValue::List(items) => {
            for (i, item) in items.iter().enumerate() {
                path.push(i.to_string());
                foreign(item, path, found);
                path.pop();
            }
        }
        PickleValue::Dict(dict) => {
            for (key, item) in dict {
                path.push(printable(key));
                foreign(item, path, found);
                path.pop();
            }
        }
        PickleValue::Unsupported(kind) if kind != "torch.Tensor" => found.push((path.join("."), printable(kind))),
        _ => {}
    }
}
