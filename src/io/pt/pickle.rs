//! Writes pickles of plain values and tensors, with the opcodes that `torch.load(weights_only=True)` accepts.

use crate::error::{Error, Result};
use crate::io::stored::{StoredDtype, TensorView};

/// A value of a `.pt` file. Only what a restricted unpickler accepts: nothing that names a class of ours.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number, also infinite or NaN.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Value<'a>>),
    /// A tuple.
    Tuple(Vec<Value<'a>>),
    /// A dictionary.
    Dict(Vec<(Key, Value<'a>)>),
    /// A `collections.OrderedDict` with text keys: what `state_dict()` gives.
    Ordered(Vec<(String, Value<'a>)>),
    /// A tensor.
    Tensor(TensorView<'a>),
}

/// A dictionary's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A text.
    Text(String),
    /// An integer: the optimizer's states are counted.
    Int(i64),
}

impl From<&str> for Key {
    fn from(text: &str) -> Key {
        Key::Text(text.into())
    }
}

/// Deepest nesting that is written: Python's own unpickler gives up at about a thousand.
const MAX_DEPTH: usize = 200;

/// The pickle of `root`, and its tensors in the order of their storage keys.
pub(super) fn encode<'a>(root: &Value<'a>) -> Result<(Vec<u8>, Vec<TensorView<'a>>)> {
    let mut out = Pickle { bytes: vec![0x80, 2], tensors: Vec::new() };
    out.value(root, 0)?;
    out.bytes.push(b'.');
    Ok((out.bytes, out.tensors))
}

struct Pickle<'a> {
    bytes: Vec<u8>,
    tensors: Vec<TensorView<'a>>,
}

impl<'a> Pickle<'a> {
    fn value(&mut self, value: &Value<'a>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::argument(format!("pt: values are nested deeper than {MAX_DEPTH}")));
        }
        match value {
            Value::None => self.bytes.push(b'N'),
            Value::Bool(b) => self.bytes.push(if *b { 0x88 } else { 0x89 }),
            Value::Int(n) => self.int(*n),
            Value::Float(x) => {
                self.bytes.push(b'G');
                self.bytes.extend_from_slice(&x.to_be_bytes());
            }
            Value::Text(text) => self.text(text)?,
            Value::List(items) => {
                self.bytes.extend_from_slice(b"](");
                items.iter().try_for_each(|item| self.value(item, depth + 1))?;
                self.bytes.push(b'e');
            }
            Value::Tuple(items) => {
                self.bytes.push(b'(');
                items.iter().try_for_each(|item| self.value(item, depth + 1))?;
                self.bytes.push(b't');
            }
            Value::Dict(items) => {
                self.bytes.extend_from_slice(b"}(");
                for (key, item) in items {
                    match key {
                        Key::Text(text) => self.text(text)?,
                        Key::Int(n) => self.int(*n),
                    }
                    self.value(item, depth + 1)?;
                }
                self.bytes.push(b'u');
            }
            Value::Ordered(items) => {
                self.bytes.extend_from_slice(b"ccollections\nOrderedDict\n)R(");
                for (key, item) in items {
                    self.text(key)?;
                    self.value(item, depth + 1)?;
                }
                self.bytes.push(b'u');
            }
            Value::Tensor(tensor) => self.tensor(*tensor)?,
        }
        Ok(())
    }

    fn int(&mut self, n: i64) {
        if let Ok(small) = u8::try_from(n) {
            self.bytes.extend_from_slice(&[b'K', small]);
        } else if let Ok(medium) = i32::try_from(n) {
            self.bytes.push(b'J');
            self.bytes.extend_from_slice(&medium.to_le_bytes());
        } else {
            self.bytes.extend_from_slice(&[0x8a, 8]);
            self.bytes.extend_from_slice(&n.to_le_bytes());
        }
    }

    fn text(&mut self, text: &str) -> Result<()> {
        let len = u32::try_from(text.len()).map_err(|_| Error::too_large("pt", "text", text.len()))?;
        self.bytes.push(b'X');
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, 0, shape, strides, requires_grad=False, hooks=OrderedDict())`, the storage a
    /// persistent id that names an entry of the archive.
    fn tensor(&mut self, tensor: TensorView<'a>) -> Result<()> {
        let storage = storage_class(tensor.dtype()).ok_or_else(|| {
            let (name, dtype) = (tensor.name(), tensor.dtype());
            Error::dtype(format!("pt: {name}: PyTorch has no typed storage for {dtype}: export to .safetensors"))
        })?;
        let int = |n: usize| i64::try_from(n).map_err(|_| Error::too_large("pt", tensor.name(), n));
        self.bytes.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage")?;
        self.bytes.extend_from_slice(format!("ctorch\n{storage}\n").as_bytes());
        self.text(&self.tensors.len().to_string())?;
        self.text("cpu")?;
        self.int(int(tensor.len())?);
        self.bytes.extend_from_slice(b"tQK\0(");
        for &axis in tensor.shape() {
            self.int(int(axis)?);
        }
        self.bytes.extend_from_slice(b"t(");
        for stride in strides(tensor.shape()) {
            self.int(int(stride)?);
        }
        self.bytes.extend_from_slice(b"t\x89ccollections\nOrderedDict\n)RtR");
        self.tensors.push(tensor);
        Ok(())
    }
}

/// Row-major strides, in elements; an axis of length 0 counts as 1, as PyTorch has it.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides: Vec<usize> = shape
        .iter()
        .rev()
        .scan(1usize, |next, &axis| {
            let stride = *next;
            *next = next.saturating_mul(axis.max(1));
            Some(stride)
        })
        .collect();
    strides.reverse();
    strides
}

fn storage_class(dtype: StoredDtype) -> Option<&'static str> {
    match dtype {
        StoredDtype::F64 => Some("DoubleStorage"),
        StoredDtype::F32 => Some("FloatStorage"),
        StoredDtype::F16 => Some("HalfStorage"),
        StoredDtype::Bf16 => Some("BFloat16Storage"),
        StoredDtype::I64 => Some("LongStorage"),
        StoredDtype::I32 => Some("IntStorage"),
        StoredDtype::I16 => Some("ShortStorage"),
        StoredDtype::I8 => Some("CharStorage"),
        StoredDtype::U8 => Some("ByteStorage"),
        StoredDtype::Bool => Some("BoolStorage"),
        StoredDtype::U64 | StoredDtype::U32 | StoredDtype::U16 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pickle of `OrderedDict(w=f32[2, 3])` that real readers accept.
    const GOLDEN: &str = "800263636f6c6c656374696f6e730a4f726465726564446963740a29522858010000007763746f7263682e5f7574696c730a5f72656275696c645f74656e736f725f76320a2828580700000073746f7261676563746f7263680a466c6f617453746f726167650a58010000003058030000006370754b0674514b00284b024b0374284b034b01748963636f6c6c656374696f6e730a4f726465726564446963740a29527452752e";

    #[test]
    fn the_pickle_of_a_state_dict_is_the_one_that_readers_accept() {
        let bytes = [0; 24];
        let w = TensorView::new("w", StoredDtype::F32, &[2, 3], &bytes).unwrap();
        let (pickle, tensors) = encode(&Value::Ordered(vec![("w".into(), Value::Tensor(w))])).unwrap();
        let hex: String = pickle.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        assert_eq!(tensors, [w]);
    }

    #[test]
    fn integers_take_the_shortest_form_that_holds_them() {
        let bytes = |n| encode(&Value::Int(n)).unwrap().0;
        assert_eq!(bytes(255), [0x80, 2, b'K', 255, b'.']);
        assert_eq!(bytes(256), [0x80, 2, b'J', 0, 1, 0, 0, b'.']);
        assert_eq!(bytes(-1), [0x80, 2, b'J', 255, 255, 255, 255, b'.']);
        assert_eq!(bytes(1 << 40), [0x80, 2, 0x8a, 8, 0, 0, 0, 0, 0, 1, 0, 0, b'.']);
    }

    #[test]
    fn what_torch_cannot_hold_is_refused() {
        let t = TensorView::new("ids", StoredDtype::U32, &[1], &[0; 4]).unwrap();
        let error = encode(&Value::Tensor(t)).unwrap_err().to_string();
        assert_eq!(error, "pt: ids: PyTorch has no typed storage for U32: export to .safetensors");
        let deep = (0..300).fold(Value::None, |v, _| Value::List(vec![v]));
        assert!(encode(&deep).is_err());
        assert_eq!(strides(&[2, 0, 3]), [3, 3, 1]);
        assert!(strides(&[]).is_empty());
    }
}
