//! What a tensor is apart from its numbers: number type and shape, and the checks that name an axis when they fail.

use std::fmt;

use crate::error::{Error, Result};

/// Number type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16: f32's exponent, 8 bits of significand.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 32-bit signed integer: indices and labels, never differentiated.
    I32,
}

impl Dtype {
    /// Every floating-point type that operators compute in.
    pub const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }

    /// Whether elements are floating-point numbers.
    pub const fn is_float(self) -> bool {
        !matches!(self, Dtype::I32)
    }

    /// The unit in the last place at 1: the spacing of the type's numbers just above 1.
    pub const fn ulp(self) -> f64 {
        match self {
            Dtype::F32 => f32::EPSILON as f64,
            Dtype::Bf16 => 1.0 / 128.0,
            Dtype::F16 => 1.0 / 1024.0,
            Dtype::I32 => 1.0,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::I32 => "i32",
        })
    }
}

impl std::str::FromStr for Dtype {
    type Err = Error;

    fn from_str(s: &str) -> Result<Dtype> {
        match s {
            "f32" | "fp32" | "float32" => Ok(Dtype::F32),
            "bf16" | "bfloat16" => Ok(Dtype::Bf16),
            "f16" | "fp16" | "float16" | "half" => Ok(Dtype::F16),
            "i32" | "int32" => Ok(Dtype::I32),
            _ => Err(Error::argument(format!("dtype: expected f32, bf16 or f16, found `{s}`"))),
        }
    }
}

/// Number type and shape of a tensor. Tensors are contiguous and row-major: there is nothing else to say.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Spec {
    dtype: Dtype,
    shape: Box<[usize]>,
    len: usize,
}

impl Spec {
    /// A spec of `dtype` and `shape`. An empty shape is a scalar of one element.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the number of bytes does not fit in a `usize`.
    pub fn new(dtype: Dtype, shape: impl Into<Box<[usize]>>) -> Result<Spec> {
        let shape = shape.into();
        // An axis of length 0 must not hide others whose product overflows: operators multiply some axes without it.
        let extent = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d.max(1)));
        let fits = |n: &usize| n.checked_mul(dtype.bytes()).is_some_and(|b| isize::try_from(b).is_ok());
        match extent.filter(fits) {
            Some(_) => Ok(Spec { dtype, len: shape.iter().product(), shape }),
            None => Err(Error::too_large("tensor", "shape", format!("{shape:?}"))),
        }
    }

    /// `new(Dtype::F32, shape)`.
    ///
    /// # Errors
    /// As [`Spec::new`].
    pub fn f32(shape: impl Into<Box<[usize]>>) -> Result<Spec> {
        Spec::new(Dtype::F32, shape)
    }

    /// The number type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The lengths of the axes, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.bytes()
    }

    /// Length of the last axis, 1 for a scalar.
    pub fn last(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The tensor as a matrix: all axes but the last, and the last. A scalar is one row of one column.
    pub fn rows_cols(&self) -> (usize, usize) {
        match self.shape.split_last() {
            Some((&c, rows)) => (rows.iter().product(), c),
            None => (1, 1),
        }
    }

    /// The same shape in another number type.
    #[must_use]
    pub fn with_dtype(&self, dtype: Dtype) -> Spec {
        Spec { dtype, shape: self.shape.clone(), len: self.len }
    }

    /// The same number type in another shape.
    ///
    /// # Errors
    /// As [`Spec::new`].
    pub fn with_shape(&self, shape: impl Into<Box<[usize]>>) -> Result<Spec> {
        Spec::new(self.dtype, shape)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.shape, self.dtype)
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Checks that `input` of `op` has exactly the axes `want`, each with its name and length.
///
/// # Errors
/// [`Error::Shape`] that names the operator, the input, every axis expected and the shape found.
pub fn expect_shape(op: &str, input: &str, found: &Spec, want: &[(&str, usize)]) -> Result<()> {
    if found.rank() == want.len() && found.shape().iter().zip(want).all(|(f, (_, w))| f == w) {
        return Ok(());
    }
    let axes: Vec<String> = want.iter().map(|(name, n)| format!("{name}={n}")).collect();
    Err(Error::shape(format!("{op}: {input}: expected [{}], found {:?}", axes.join(", "), found.shape())))
}

/// Checks that `input` of `op` has `axes.len()` axes and gives their lengths.
///
/// # Errors
/// [`Error::Shape`] that names the operator, the input and the axes expected.
pub fn expect_rank<'a, const N: usize>(
    op: &str,
    input: &str,
    found: &'a Spec,
    axes: [&str; N],
) -> Result<&'a [usize; N]> {
    found.shape().try_into().map_err(|_| {
        Error::shape(format!("{op}: {input}: expected {N} axes [{}], found {:?}", axes.join(", "), found.shape()))
    })
}

/// Checks that `input` of `op` has one of the number types `want`.
///
/// # Errors
/// [`Error::Dtype`] that names the operator, the input, what is accepted and what was found.
pub fn expect_dtype(op: &str, input: &str, found: &Spec, want: &[Dtype]) -> Result<()> {
    if want.contains(&found.dtype()) {
        return Ok(());
    }
    let names: Vec<String> = want.iter().map(Dtype::to_string).collect();
    Err(Error::dtype(format!("{op}: {input}: expected {}, found {found}", names.join(" or "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_too_large_to_address_is_an_error() {
        let e = Spec::f32([usize::MAX, 2]).map(|_| ()).unwrap_err();
        assert!(matches!(e, Error::TooLarge(_)), "{e}");
        assert!(Spec::f32([usize::MAX / 4]).is_err(), "more bytes than an allocation may have");
        assert!(Spec::f32([0, usize::MAX, 2]).is_err(), "an empty tensor whose other axes overflow");
    }

    #[test]
    fn a_scalar_is_one_row_of_one_column() {
        let s = Spec::f32([]).unwrap();
        assert_eq!((s.len(), s.rows_cols(), s.last()), (1, (1, 1), 1));
    }

    #[test]
    fn a_shape_error_names_operator_input_axes_and_what_was_found() {
        let found = Spec::f32([512]).unwrap();
        let e = expect_shape("layer_norm", "gamma", &found, &[("C", 768)]).unwrap_err();
        assert_eq!(e.to_string(), "layer_norm: gamma: expected [C=768], found [512]");
        let e = expect_dtype("add", "x", &found, &[Dtype::Bf16, Dtype::F16]).unwrap_err();
        assert_eq!(e.to_string(), "add: x: expected bf16 or f16, found [512] f32");
        let e = expect_rank("attention", "q", &found, ["B", "N"]).unwrap_err();
        assert_eq!(e.to_string(), "attention: q: expected 2 axes [B, N], found [512]");
    }
}
