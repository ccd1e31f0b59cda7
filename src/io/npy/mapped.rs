//! Arrays that stay on the disk: rows of the first axis are read when they are asked for.

use std::ops::Range;
use std::path::Path;

use bytemuck::try_cast_slice;
use half::f16;
use npyz::{NpyHeader, Order, TypeChar};

use super::{NpyDtype, array_of};
use crate::error::{Error, Result};
use crate::io::mmap::MappedFile;

/// An array of `f2` or `f4` in C order, mapped: opening it costs a header, reading a row costs that row.
#[derive(Debug)]
pub struct MappedArray {
    file: MappedFile,
    shape: Vec<usize>,
    dtype: NpyDtype,
    // Where the numbers start.
    start: usize,
    // Numbers of one place of the first axis.
    row: usize,
}

impl MappedArray {
    /// Maps an array and checks its header against the file's length.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened; [`Error::Data`] if it is no array of little-endian `f2` or `f4` in C
    /// order, has no axis, or is cut short.
    pub fn open(path: impl AsRef<Path>) -> Result<MappedArray> {
        let path = path.as_ref();
        let file = MappedFile::open(path)?;
        let parsed = header(&file).map_err(|fault| Error::data(format!("{}: {fault}", path.display())))?;
        let (shape, dtype, start) = parsed;
        let row = shape.iter().skip(1).product();
        Ok(MappedArray { file, shape, dtype, start, row })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The lengths of the axes, slowest first; at least one.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number type in the file.
    pub fn dtype(&self) -> NpyDtype {
        self.dtype
    }

    /// The length of the first axis.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// How many numbers one place of the first axis holds.
    pub fn row_len(&self) -> usize {
        self.row
    }

    /// Reads rows of the first axis into `out`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are no such rows, or if `out` does not hold exactly them.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let size = match self.dtype {
            NpyDtype::F2 => 2,
            NpyDtype::F4 | NpyDtype::F8 => 4,
        };
        let count = rows.len().saturating_mul(self.row);
        let first = rows.start.saturating_mul(self.row).saturating_mul(size).saturating_add(self.start);
        let bytes = self.file.get(first..first.saturating_add(count.saturating_mul(size)));
        let Some(bytes) = bytes.filter(|_| rows.end <= self.rows() && out.len() == count) else {
            return Err(Error::argument(format!(
                "{}: expected rows below {} and room for {count} numbers, found rows {rows:?} and room for {}",
                self.path().display(),
                self.rows(),
                out.len()
            )));
        };
        match self.dtype {
            NpyDtype::F2 => widen(bytes, out),
            NpyDtype::F4 | NpyDtype::F8 => copy(bytes, out),
        }
        Ok(())
    }
}

/// Headers that NumPy writes end at a multiple of 64 bytes, so that the numbers are aligned; other headers are read too.
fn copy(bytes: &[u8], out: &mut [f32]) {
    match try_cast_slice::<u8, f32>(bytes) {
        Ok(numbers) if cfg!(target_endian = "little") => out.copy_from_slice(numbers),
        _ => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
    }
}

fn widen(bytes: &[u8], out: &mut [f32]) {
    for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *x = f16::from_le_bytes(*b).to_f32();
    }
}

/// Shape, number type and the offset of the numbers.
fn header(bytes: &[u8]) -> std::result::Result<(Vec<usize>, NpyDtype, usize), String> {
    let (header, shape, dtype, data): (NpyHeader, _, _, _) = array_of(bytes)?;
    let known = match (header.dtype(), dtype) {
        (npyz::DType::Plain(plain), NpyDtype::F2 | NpyDtype::F4) => {
            plain.type_char() == TypeChar::Float && plain.to_string().starts_with('<')
        }
        _ => false,
    };
    if !known {
        return Err(format!(
            "expected little-endian numbers of type f2 or f4, which can be mapped, found {}: convert with array.astype('<f4')",
            header.dtype().descr()
        ));
    }
    if header.order() != Order::C && shape.iter().filter(|&&d| d > 1).count() > 1 {
        return Err("expected C order, which can be mapped, found Fortran order: convert with \
                    numpy.ascontiguousarray(array)"
            .to_owned());
    }
    if shape.is_empty() {
        return Err("expected at least one axis, found a single number".to_owned());
    }
    Ok((shape, dtype, bytes.len() - data.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::atomic::Existing;

    #[test]
    fn rows_of_a_mapped_array_are_those_of_the_array_in_both_types() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let numbers: Vec<f32> = (0..30).map(|k| k as f32 / 4.0).collect();
        for half in [false, true] {
            match half {
                false => super::super::write_f32(&path, Existing::Replace, &[5, 2, 3], &numbers).unwrap(),
                true => super::super::write_f16(&path, Existing::Replace, &[5, 2, 3], &numbers).unwrap(),
            }
            let array = MappedArray::open(&path).unwrap();
            assert_eq!((array.rows(), array.row_len(), array.shape()), (5, 6, [5, 2, 3].as_slice()));
            let mut out = [0.0; 12];
            array.read(2..4, &mut out).unwrap();
            assert_eq!(out, numbers[12..24], "half {half}");
            for rows in [4..6, 5..7, usize::MAX - 1..usize::MAX] {
                assert!(array.read(rows, &mut out).is_err());
            }
            assert!(array.read(0..1, &mut out).is_err());
        }
    }

    #[test]
    fn what_cannot_be_mapped_says_how_to_convert_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        super::super::write_f64(&path, Existing::Replace, &[2], &[1.0, 2.0]).unwrap();
        let error = MappedArray::open(&path).unwrap_err().to_string();
        assert!(error.contains("convert with array.astype('<f4')"), "{error}");
        let dict = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }\n";
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend([0; 16]);
        std::fs::write(&path, &bytes).unwrap();
        let error = MappedArray::open(&path).unwrap_err().to_string();
        assert!(error.contains("numpy.ascontiguousarray(array)"), "{error}");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(MappedArray::open(&path).unwrap_err().to_string().contains("cut short"));
    }
}
