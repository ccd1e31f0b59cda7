//! Tensors as files hold them: a name, a number type, a shape and bytes.

use std::fmt;

use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// Number types that tensor files hold. More than the library computes with: a checkpoint keeps counters as integers
/// and foreign files hold what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredDtype {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte an element, 0 or 1.
    Bool,
}

impl StoredDtype {
    /// All of them, with the names that safetensors gives them.
    pub const NAMES: [(StoredDtype, &'static str); 13] = [
        (StoredDtype::F64, "F64"),
        (StoredDtype::F32, "F32"),
        (StoredDtype::F16, "F16"),
        (StoredDtype::Bf16, "BF16"),
        (StoredDtype::I64, "I64"),
        (StoredDtype::I32, "I32"),
        (StoredDtype::I16, "I16"),
        (StoredDtype::I8, "I8"),
        (StoredDtype::U64, "U64"),
        (StoredDtype::U32, "U32"),
        (StoredDtype::U16, "U16"),
        (StoredDtype::U8, "U8"),
        (StoredDtype::Bool, "BOOL"),
    ];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            StoredDtype::F64 | StoredDtype::I64 | StoredDtype::U64 => 8,
            StoredDtype::F32 | StoredDtype::I32 | StoredDtype::U32 => 4,
            StoredDtype::F16 | StoredDtype::Bf16 | StoredDtype::I16 | StoredDtype::U16 => 2,
            StoredDtype::I8 | StoredDtype::U8 | StoredDtype::Bool => 1,
        }
    }

    /// The name that safetensors gives it.
    pub fn name(self) -> &'static str {
        StoredDtype::NAMES.iter().find(|(d, _)| *d == self).map_or("", |(_, name)| name)
    }

    /// The type of a safetensors name.
    pub fn from_name(name: &str) -> Option<StoredDtype> {
        StoredDtype::NAMES.iter().find(|(_, n)| *n == name).map(|(d, _)| *d)
    }
}

impl From<Dtype> for StoredDtype {
    fn from(dtype: Dtype) -> StoredDtype {
        match dtype {
            Dtype::F32 => StoredDtype::F32,
            Dtype::Bf16 => StoredDtype::Bf16,
            Dtype::F16 => StoredDtype::F16,
            Dtype::I32 => StoredDtype::I32,
        }
    }
}

impl StoredDtype {
    /// The type that the library computes with, if it is one.
    pub fn computed(self) -> Option<Dtype> {
        match self {
            StoredDtype::F32 => Some(Dtype::F32),
            StoredDtype::Bf16 => Some(Dtype::Bf16),
            StoredDtype::F16 => Some(Dtype::F16),
            StoredDtype::I32 => Some(Dtype::I32),
            _ => None,
        }
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name from a file as it may be printed: control characters escaped, long names cut.
pub fn printable(name: &str) -> String {
    let mut text: String = name.chars().take(200).flat_map(char::escape_debug).collect();
    if name.chars().nth(200).is_some() {
        text.push('…');
    }
    text
}

/// A foreign message as it may be printed: one line, control characters escaped.
pub fn escaped(message: &str) -> String {
    let one = |c: char| if c.is_control() { c.escape_debug().collect() } else { c.to_string() };
    message.chars().take(600).map(one).collect()
}

/// Bytes that `shape` elements of `dtype` take; none if the product does not fit an integer.
pub fn byte_len(dtype: StoredDtype, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |n, &axis| n.checked_mul(axis))
}

/// A tensor in somebody's memory: little-endian, row-major, contiguous. The length of the bytes agrees with the shape.
#[derive(Clone, Copy, PartialEq)]
pub struct TensorView<'a> {
    name: &'a str,
    dtype: StoredDtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// A view of `bytes`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the bytes are not as many as `shape` and `dtype` say.
    pub fn new(name: &'a str, dtype: StoredDtype, shape: &'a [usize], bytes: &'a [u8]) -> Result<TensorView<'a>> {
        match byte_len(dtype, shape) {
            Some(n) if n == bytes.len() => Ok(TensorView { name, dtype, shape, bytes }),
            Some(n) => {
                Err(Error::shape(format!("{name}: expected {n} bytes for {dtype} {shape:?}, found {}", bytes.len())))
            }
            None => Err(Error::too_large(name, "elements", format!("{shape:?}"))),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Its number type.
    pub fn dtype(&self) -> StoredDtype {
        self.dtype
    }

    /// Its axes, outermost first; none for a scalar.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its elements, little-endian, row-major.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its elements as `f64`, whatever the stored type; 64-bit integers beyond 2^53 are rounded.
    pub fn to_f64(&self) -> impl ExactSizeIterator<Item = f64> + use<'a> {
        let dtype = self.dtype;
        self.bytes.chunks_exact(dtype.size()).map(move |b| element(dtype, b))
    }
}

/// One element; `b` has the type's size.
fn element(dtype: StoredDtype, b: &[u8]) -> f64 {
    fn le<const N: usize>(b: &[u8]) -> [u8; N] {
        let mut raw = [0; N];
        raw.iter_mut().zip(b).for_each(|(to, from)| *to = *from);
        raw
    }
    match dtype {
        StoredDtype::F64 => f64::from_le_bytes(le(b)),
        StoredDtype::F32 => f32::from_le_bytes(le(b)).into(),
        StoredDtype::F16 => half::f16::from_le_bytes(le(b)).into(),
        StoredDtype::Bf16 => half::bf16::from_le_bytes(le(b)).into(),
        StoredDtype::I64 => i64::from_le_bytes(le(b)) as f64,
        StoredDtype::I32 => i32::from_le_bytes(le(b)).into(),
        StoredDtype::I16 => i16::from_le_bytes(le(b)).into(),
        StoredDtype::I8 => i8::from_le_bytes(le(b)).into(),
        StoredDtype::U64 => u64::from_le_bytes(le(b)) as f64,
        StoredDtype::U32 => u32::from_le_bytes(le(b)).into(),
        StoredDtype::U16 => u16::from_le_bytes(le(b)).into(),
        StoredDtype::U8 | StoredDtype::Bool => u8::from_le_bytes(le(b)).into(),
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_has_as_many_bytes_as_its_shape_says() {
        assert_eq!(TensorView::new("w", StoredDtype::Bf16, &[2, 3], &[0; 12]).unwrap().len(), 6);
        let short = TensorView::new("w", StoredDtype::F32, &[2, 3], &[0; 23]).unwrap_err();
        assert_eq!(short.to_string(), "w: expected 24 bytes for F32 [2, 3], found 23");
        assert!(TensorView::new("w", StoredDtype::F32, &[usize::MAX, 2], &[]).is_err());
        assert_eq!(TensorView::new("s", StoredDtype::F64, &[], &[0; 8]).unwrap().len(), 1);
    }

    #[test]
    fn every_type_reads_back_its_own_numbers() {
        let of = |dtype, bytes: &[u8]| TensorView::new("x", dtype, &[1], bytes).unwrap().to_f64().next().unwrap();
        assert_eq!(of(StoredDtype::F64, &(-2.5f64).to_le_bytes()), -2.5);
        assert_eq!(of(StoredDtype::F32, &1.5f32.to_le_bytes()), 1.5);
        assert_eq!(of(StoredDtype::F16, &half::f16::from_f32(0.25).to_le_bytes()), 0.25);
        assert_eq!(of(StoredDtype::Bf16, &half::bf16::from_f32(-3.0).to_le_bytes()), -3.0);
        assert_eq!(of(StoredDtype::I64, &(-7i64).to_le_bytes()), -7.0);
        assert_eq!(of(StoredDtype::I32, &(-7i32).to_le_bytes()), -7.0);
        assert_eq!(of(StoredDtype::I16, &(-7i16).to_le_bytes()), -7.0);
        assert_eq!(of(StoredDtype::I8, &(-7i8).to_le_bytes()), -7.0);
        assert_eq!(of(StoredDtype::U64, &7u64.to_le_bytes()), 7.0);
        assert_eq!(of(StoredDtype::U32, &7u32.to_le_bytes()), 7.0);
        assert_eq!(of(StoredDtype::U16, &7u16.to_le_bytes()), 7.0);
        assert_eq!(of(StoredDtype::Bool, &[1]), 1.0);
        for (dtype, name) in StoredDtype::NAMES {
            assert_eq!(StoredDtype::from_name(name), Some(dtype));
        }
    }
}
