//! Matrices as the product sees them: a slice, a size and strides.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::error::{Error, Result};

/// The values of an input; narrow types are widened when they are packed.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// The upper half of single precision.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl<'a> From<&'a [f32]> for Source<'a> {
    fn from(x: &'a [f32]) -> Self {
        Source::F32(x)
    }
}

impl<'a> From<&'a [bf16]> for Source<'a> {
    fn from(x: &'a [bf16]) -> Self {
        Source::Bf16(x)
    }
}

impl<'a> From<&'a [f16]> for Source<'a> {
    fn from(x: &'a [f16]) -> Self {
        Source::F16(x)
    }
}

impl<'a> From<&'a Vec<f32>> for Source<'a> {
    fn from(x: &'a Vec<f32>) -> Self {
        Source::F32(x)
    }
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Source::F32(x) => x.len(),
            Source::Bf16(x) => x.len(),
            Source::F16(x) => x.len(),
        }
    }
}

/// An input matrix: element `[i, j]` is `data[i·row + j·col]`.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    pub(super) data: Source<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row: usize,
    pub(super) col: usize,
}

impl<'a> Mat<'a> {
    /// `data` as a row-major matrix.
    pub fn new(data: impl Into<Source<'a>>, rows: usize, cols: usize) -> Mat<'a> {
        Mat { data: data.into(), rows, cols, row: cols, col: 1 }
    }

    /// `data` as a matrix whose rows begin `row` values apart and whose columns lie `col` values apart.
    pub fn strided(data: impl Into<Source<'a>>, (rows, cols): (usize, usize), (row, col): (usize, usize)) -> Mat<'a> {
        Mat { data: data.into(), rows, cols, row, col }
    }

    /// The transpose of this matrix; nothing moves.
    #[must_use]
    pub fn t(self) -> Mat<'a> {
        Mat { rows: self.cols, cols: self.rows, row: self.col, col: self.row, ..self }
    }

    /// The matrix of the same form that begins `i·step` values later.
    pub(super) fn offset(self, i: usize, step: usize) -> Result<Mat<'a>> {
        let at = i.checked_mul(step).filter(|&at| at <= self.data.len());
        let at = at.ok_or_else(|| Error::shape(format!("gemm: batch {i}: begins after the end of its data")))?;
        let data = match self.data {
            Source::F32(x) => Source::F32(&x[at..]),
            Source::Bf16(x) => Source::Bf16(&x[at..]),
            Source::F16(x) => Source::F16(&x[at..]),
        };
        Ok(Mat { data, ..self })
    }

    pub(super) fn check(&self, name: &str) -> Result<()> {
        span((self.rows, self.row), (self.cols, self.col)).filter(|&n| n <= self.data.len()).map(|_| ()).ok_or_else(
            || {
                let (m, n, len) = (self.rows, self.cols, self.data.len());
                Error::shape(format!(
                    "gemm: {name}: expected data for [{m}, {n}] at strides [{}, {}], found {len} values",
                    self.row, self.col
                ))
            },
        )
    }
}

/// The output matrix: element `[i, j]` is `data[i·stride + j]`.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

impl<'a> MatMut<'a> {
    /// `data` as a row-major matrix.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> MatMut<'a> {
        MatMut { data, rows, cols, stride: cols }
    }

    /// `data` as a matrix whose rows begin `stride` values apart.
    pub fn strided(data: &'a mut [f32], (rows, cols): (usize, usize), stride: usize) -> MatMut<'a> {
        MatMut { data, rows, cols, stride }
    }

    pub(super) fn check(&self) -> Result<()> {
        let (m, n, len) = (self.rows, self.cols, self.data.len());
        if self.stride < n && m > 1 {
            return Err(Error::shape(format!(
                "gemm: c: expected a row stride of at least N={n}, found {}",
                self.stride
            )));
        }
        span((m, self.stride), (n, 1)).filter(|&need| need <= len).map(|_| ()).ok_or_else(|| {
            Error::shape(format!(
                "gemm: c: expected data for [{m}, {n}] at row stride {}, found {len} values",
                self.stride
            ))
        })
    }

    /// Its rows, each on its own.
    pub(super) fn into_rows(self) -> Vec<&'a mut [f32]> {
        if self.cols == 0 {
            return Vec::new();
        }
        let cols = self.cols;
        // A single row may have any stride: it ends where its data ends.
        let stride = self.stride.max(cols);
        self.data.chunks_mut(stride).take(self.rows).map(|r| &mut r[..cols]).collect()
    }
}

/// One past the last index of a matrix; `None` if that is not a number.
fn span((rows, row): (usize, usize), (cols, col): (usize, usize)) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(row)?.checked_add((cols - 1).checked_mul(col)?)?.checked_add(1)
}

/// A type that is packed as f32.
pub(super) trait Widen: Copy {
    fn one(self) -> f32;
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Widen for f32 {
    #[inline(always)]
    fn one(self) -> f32 {
        self
    }
    #[inline(always)]
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Widen for bf16 {
    #[inline(always)]
    fn one(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn widen(from: &[bf16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.one();
        }
    }
}

impl Widen for f16 {
    #[inline(always)]
    fn one(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}
