//! NumPy's `.npy`: arrays of floating-point numbers, read and written.
//!
//! Read: format versions 1 to 3, `f2`, `f4` and `f8` in both byte orders, C and Fortran order (given in C order). Written:
//! version 1, `<f2`, `<f4` and `<f8`, C order.
//!
//! # Source
//! NumPy Enhancement Proposal 1 and the documentation of `numpy.lib.format`.

mod mapped;

use std::fmt;
use std::path::Path;

use half::f16;
use npyz::{DType, Deserialize, NpyFile, NpyHeader, Order, TypeChar, WriterBuilder};

use crate::error::{Error, Result};
use crate::io::atomic::{Existing, write_atomic};
use crate::io::mmap::MappedFile;

pub use mapped::MappedArray;

/// What NumPy itself accepts by default as the longest header.
const MAX_HEADER: usize = 10_000;

/// The number type in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NpyDtype {
    /// IEEE half precision.
    F2,
    /// IEEE single precision.
    F4,
    /// IEEE double precision.
    F8,
}

impl fmt::Display for NpyDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NpyDtype::F2 => "f2",
            NpyDtype::F4 => "f4",
            NpyDtype::F8 => "f8",
        })
    }
}

/// An array that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct NpyArray {
    /// The lengths of the axes, slowest first.
    pub shape: Vec<usize>,
    /// The number type in the file.
    pub dtype: NpyDtype,
    /// The numbers in C order.
    pub values: NpyValues,
}

/// The numbers of an array.
#[derive(Debug, Clone, PartialEq)]
pub enum NpyValues {
    /// From `f4`, and from `f2`, which fits exactly.
    F32(Vec<f32>),
    /// From `f8`.
    F64(Vec<f64>),
}

impl NpyArray {
    /// The numbers in f64, which holds all of them exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.values {
            NpyValues::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            NpyValues::F64(v) => v.clone(),
        }
    }

    /// The numbers in f32; those from `f8` are rounded.
    pub fn into_f32(self) -> Vec<f32> {
        match self.values {
            NpyValues::F32(v) => v,
            NpyValues::F64(v) => v.into_iter().map(|x| x as f32).collect(),
        }
    }
}

/// Reads an array of `f2`, `f4` or `f8`.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened; [`Error::Data`] if it is not such an array, is cut short or has bytes
/// after its end.
pub fn read(path: impl AsRef<Path>) -> Result<NpyArray> {
    let path = path.as_ref();
    let file = MappedFile::open(path)?;
    parse(&file).map_err(|fault| Error::data(format!("{}: {fault}", path.display())))
}

/// Reads an array from the bytes of a file.
///
/// # Errors
/// The fault, without the file's name.
pub fn parse(bytes: &[u8]) -> std::result::Result<NpyArray, String> {
    let (header, shape, dtype, data) = array_of(bytes)?;
    let order = header.order();
    let values = match dtype {
        NpyDtype::F2 => {
            let halves: Vec<f16> = numbers(header, data)?;
            NpyValues::F32(c_order(halves.into_iter().map(f16::to_f32).collect(), &shape, order))
        }
        NpyDtype::F4 => NpyValues::F32(c_order(numbers(header, data)?, &shape, order)),
        NpyDtype::F8 => NpyValues::F64(c_order(numbers(header, data)?, &shape, order)),
    };
    Ok(NpyArray { shape, dtype, values })
}

/// The header, what it says in our words, and exactly the bytes of its numbers.
fn array_of(bytes: &[u8]) -> std::result::Result<(NpyHeader, Vec<usize>, NpyDtype, &[u8]), String> {
    let data = check_header(bytes)?;
    let header = NpyHeader::from_reader(bytes).map_err(|e| malformed(&e))?;
    let (dtype, size) = float_type(&header.dtype())?;
    let shape = header.shape().iter().map(|&n| usize::try_from(n)).collect::<std::result::Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| format!("shape {:?} is too large for this machine", header.shape()))?;
    let needed = shape.iter().try_fold(size, |n, &d| n.checked_mul(d));
    if needed != Some(data.len()) {
        let needed = needed.map_or_else(|| "more than the machine can address".to_owned(), |n| n.to_string());
        return Err(format!(
            "shape {shape:?} of {dtype} needs {needed} bytes of data, found {}: the file is cut short or has foreign bytes \
             at its end",
            data.len()
        ));
    }
    Ok((header, shape, dtype, data))
}

/// The parser's error on one line; it answers text that is no Python with a drawing of several.
fn malformed(error: &std::io::Error) -> String {
    let text = error.to_string();
    let (head, drawing) = text.split_once('\n').unwrap_or((&text, ""));
    match drawing.rsplit_once("= ") {
        Some((_, expected)) => {
            format!("malformed npy header: {}: {expected}", head.split(" -->").next().unwrap_or(head))
        }
        None => format!("malformed npy header: {head}"),
    }
}

fn numbers<T: Deserialize>(header: NpyHeader, data: &[u8]) -> std::result::Result<Vec<T>, String> {
    NpyFile::with_header(header, data).into_vec().map_err(|e| format!("cannot decode the data: {e}"))
}

/// Checks what the header's parser would allocate, recurse or multiply over, and gives the bytes after the header.
fn check_header(bytes: &[u8]) -> std::result::Result<&[u8], String> {
    if bytes.get(..6) != Some(b"\x93NUMPY".as_slice()) {
        let hint = match bytes {
            [b'P', b'K', ..] => " (a zip archive: .npz is not read, save one array with numpy.save)",
            [0x80, ..] => " (a pickle, which is never read: save with numpy.save)",
            [] => " (the file is empty)",
            _ => "",
        };
        return Err(format!("expected an npy file, found no npy signature{hint}"));
    }
    let (length, start) = match bytes.get(6..12) {
        Some(&[1, 0, a, b, ..]) => (usize::from(u16::from_le_bytes([a, b])), 10),
        Some(&[2 | 3, 0, a, b, c, d]) => (u32::from_le_bytes([a, b, c, d]) as usize, 12),
        Some(&[major, minor, ..]) => {
            return Err(format!("npy version: expected 1.0, 2.0 or 3.0, found {major}.{minor}"));
        }
        _ => return Err(format!("npy header: expected at least 12 bytes, found {}", bytes.len())),
    };
    if length > MAX_HEADER {
        return Err(format!("npy header: expected at most {MAX_HEADER} bytes, found {length}"));
    }
    let after = bytes.get(start..).unwrap_or(&[]);
    let Some((text, data)) = after.split_at_checked(length) else {
        return Err(format!("npy header: expected {length} bytes, found {}: the file is cut short", after.len()));
    };
    check_nesting_and_size(text, data.len())?;
    Ok(data)
}

/// Refuses deep brackets, on which the parser would recurse, and shapes whose product overflows.
fn check_nesting_and_size(text: &[u8], available: usize) -> std::result::Result<(), String> {
    let mut depth = 0_u32;
    let mut quote = None;
    let mut product = 1_u64;
    let mut number: Option<u64> = None;
    for &b in text.iter().chain(b" ") {
        if quote.is_none() && b.is_ascii_digit() {
            let digit = u64::from(b - b'0');
            let grown = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
            number = Some(grown.ok_or("npy header: a number in it does not fit 64 bits")?);
            continue;
        }
        if let Some(n) = number.take() {
            // A product with a zero length in it is zero, but its prefixes are not: count the zero as one.
            product = product.checked_mul(n.max(1)).filter(|&p| p <= 1 << 48).ok_or_else(|| {
                format!("npy header: the shape has more elements than the {available} bytes of data can hold")
            })?;
        }
        match b {
            b'\'' | b'"' if quote.is_none() => quote = Some(b),
            _ if Some(b) == quote => quote = None,
            b'(' | b'[' | b'{' if quote.is_none() => depth += 1,
            b')' | b']' | b'}' if quote.is_none() => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > 8 {
            return Err("npy header: brackets are nested deeper than in any array description".to_owned());
        }
    }
    Ok(())
}

fn float_type(dtype: &DType) -> std::result::Result<(NpyDtype, usize), String> {
    let DType::Plain(plain) = dtype else {
        return Err(format!("expected numbers of type f4 or f8, found a structured type {}", dtype.descr()));
    };
    match (plain.type_char(), plain.size_field()) {
        (TypeChar::Float, 2) => Ok((NpyDtype::F2, 2)),
        (TypeChar::Float, 4) => Ok((NpyDtype::F4, 4)),
        (TypeChar::Float, 8) => Ok((NpyDtype::F8, 8)),
        (TypeChar::Object, _) => {
            Err("expected numbers of type f4 or f8, found Python objects: they are pickled, and never read".to_owned())
        }
        _ => Err(format!("expected numbers of type f4 or f8, found {plain}: convert with array.astype('f4')")),
    }
}

/// The same array with the last axis fastest.
fn c_order<T: Copy>(values: Vec<T>, shape: &[usize], order: Order) -> Vec<T> {
    if order == Order::C || shape.len() < 2 || values.is_empty() {
        return values;
    }
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1_usize;
    for &d in shape {
        strides.push(stride);
        stride = stride.saturating_mul(d);
    }
    let mut index = vec![0_usize; shape.len()];
    let mut out = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        let at: usize = index.iter().zip(&strides).map(|(&i, &s)| i * s).sum();
        out.extend(values.get(at).copied());
        for (i, &d) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// Writes an array of `<f4`, whole or not at all.
///
/// # Errors
/// [`Error::Shape`] if there are more or fewer numbers than `shape` says; [`Error::Data`] if the file exists and must not
/// be replaced; [`Error::Io`] if the system refuses.
pub fn write_f32(path: &Path, existing: Existing, shape: &[usize], values: &[f32]) -> Result<()> {
    write(path, existing, shape, values)
}

/// Writes an array of `<f2`, whole or not at all: numbers are rounded to nearest, those past f16 become infinite.
///
/// # Errors
/// As [`write_f32`].
pub fn write_f16(path: &Path, existing: Existing, shape: &[usize], values: &[f32]) -> Result<()> {
    let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    write(path, existing, shape, &halves)
}

/// Writes an array of `<f8`, whole or not at all.
///
/// # Errors
/// As [`write_f32`].
pub fn write_f64(path: &Path, existing: Existing, shape: &[usize], values: &[f64]) -> Result<()> {
    write(path, existing, shape, values)
}

/// Writes an array of `<f4` row by row, so that it need not fit in memory: `fill` makes the next place of the first axis.
///
/// # Errors
/// [`Error::Shape`] if `shape` has no axis or is too large; as [`write_f32`]; the error of `fill`.
pub fn write_rows(
    path: &Path,
    existing: Existing,
    shape: &[usize],
    mut fill: impl FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let fits = shape.iter().try_fold(size_of::<f32>(), |n, &d| n.checked_mul(d)).is_some();
    let Some((&rows, inner)) = shape.split_first().filter(|_| fits) else {
        return Err(Error::shape(format!("{}: expected axes that fit this machine, found {shape:?}", path.display())));
    };
    let lengths: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    let mut row = vec![0.0_f32; inner.iter().product()];
    write_atomic(path, existing, |file| {
        let options = npyz::WriteOptions::new().default_dtype().shape(&lengths).writer(file);
        let mut writer = options.begin_nd().map_err(Error::io("write", path))?;
        for i in 0..rows {
            fill(i, &mut row)?;
            writer.extend(row.iter().copied()).map_err(Error::io("write", path))?;
        }
        writer.finish().map_err(Error::io("write", path))
    })
}

fn write<T: npyz::AutoSerialize + Copy>(path: &Path, existing: Existing, shape: &[usize], values: &[T]) -> Result<()> {
    let expected = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    if expected != Some(values.len()) {
        return Err(Error::shape(format!(
            "{}: shape {shape:?} does not hold the {} numbers given",
            path.display(),
            values.len()
        )));
    }
    let lengths: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    write_atomic(path, existing, |file| {
        let options = npyz::WriteOptions::new().default_dtype().shape(&lengths).writer(file);
        let mut writer = options.begin_nd().map_err(Error::io("write", path))?;
        writer.extend(values.iter().copied()).map_err(Error::io("write", path))?;
        writer.finish().map_err(Error::io("write", path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version-1 file with this header dictionary and data.
    fn npy(dict: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn floats(v: &[f32]) -> Vec<u8> {
        v.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        write_f32(&path, Existing::Refuse, &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.5]).unwrap();
        let array = read(&path).unwrap();
        assert_eq!((array.shape.as_slice(), array.dtype), ([2, 3].as_slice(), NpyDtype::F4));
        assert_eq!(array.into_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.5]);
        write_f64(&path, Existing::Replace, &[], &[0.1]).unwrap();
        assert_eq!(read(&path).unwrap().to_f64(), [0.1]);
        assert_eq!(std::fs::read(&path).unwrap().len() % 64, 8);
        let counted = |i: usize, row: &mut [f32]| {
            row.fill(i as f32);
            Ok(())
        };
        write_rows(&path, Existing::Replace, &[2, 3], counted).unwrap();
        assert_eq!(read(&path).unwrap().into_f32(), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert!(write_rows(&path, Existing::Replace, &[], counted).is_err());
    }

    #[test]
    fn fortran_order_is_turned_into_c_order() {
        let data = floats(&[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let bytes = npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", &data);
        assert_eq!(parse(&bytes).unwrap().into_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn a_shape_that_disagrees_with_the_numbers_is_not_written() {
        let error = write_f32(Path::new("/nonexistent/a.npy"), Existing::Refuse, &[2, 2], &[1.0]).unwrap_err();
        assert!(error.to_string().contains("shape [2, 2] does not hold the 1 numbers"), "{error}");
    }

    #[test]
    fn a_shape_whose_product_overflows_is_refused_before_it_is_multiplied() {
        for shape in ["(4294967296, 4294967296)", "(0, 9223372036854775808, 4)", "(99999999999999999999999,)"] {
            let bytes = npy(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"), &[]);
            let fault = parse(&bytes).unwrap_err();
            assert!(fault.starts_with("npy header: "), "{shape}: {fault}");
        }
    }

    #[test]
    fn brackets_nested_a_thousand_deep_are_refused_without_recursion() {
        let fault = parse(&npy(&"(".repeat(5000), &[])).unwrap_err();
        assert!(fault.contains("nested deeper"), "{fault}");
    }
}
