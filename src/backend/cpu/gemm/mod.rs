//! Matrix products: packed panels, a register tile for each instruction set, bias and activation at the last pass.
//!
//! ```
//! use perfrun::backend::cpu::gemm::{How, Mat, MatMut, matmul};
//! let (x, w) = (vec![1.0f32; 2 * 3], vec![0.5f32; 4 * 3]);
//! let mut y = vec![0.0f32; 2 * 4];
//! // y [2, 4] = x [2, 3] · transpose of w [4, 3] + bias
//! let how = How { bias: Some(&[1.0, 2.0, 3.0, 4.0]), ..How::default() };
//! matmul(Mat::new(&x, 2, 3), Mat::new(&w, 4, 3).t(), MatMut::new(&mut y, 2, 4), how)?;
//! assert_eq!(y, [2.5, 3.5, 4.5, 5.5, 2.5, 3.5, 4.5, 5.5]);
//! # Ok::<(), perfrun::error::Error>(())
//! ```
//!
//! The inputs may be f32, bf16 or f16 with any strides, the result is f32. Every element is summed over K in ascending
//! order, in runs whose length follows from K alone: the bits of a row do not depend on the number of threads, nor on how
//! many other rows or columns there are.

mod block;
mod epilogue;
mod operand;
mod pack;
mod panels;
mod tile;

#[cfg(test)]
mod tests;

pub use epilogue::Activation;
pub use operand::{Mat, MatMut, Source};

pub(crate) use block::with_scratch;
pub(crate) use panels::Panels;

use rayon::prelude::*;

use crate::backend::cpu::threads;
use crate::error::{Error, Result};

/// What is done besides `A·B`.
#[derive(Debug)]
pub struct How<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// Whether the product is added to what `c` holds; else `c` is overwritten and may hold anything, also NaN.
    pub add: bool,
    /// Added to every row: a value a column.
    pub bias: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Activation,
    /// Where the value before the activation goes, of the size of `c`.
    pub pre: Option<MatMut<'a>>,
}

impl Default for How<'_> {
    fn default() -> Self {
        How { alpha: 1.0, add: false, bias: None, activation: Activation::None, pre: None }
    }
}

/// `c = activation(alpha·A·B [+ c] [+ bias])` on the threads of the current pool.
///
/// # Errors
/// `Error::Shape` if the sizes of the operands do not match or a slice is shorter than its size and strides say.
pub fn matmul(a: Mat<'_>, b: Mat<'_>, c: MatMut<'_>, how: How<'_>) -> Result<()> {
    check(&a, &b, &c, &how)?;
    block::product(a, b, c, how, true);
    Ok(())
}

/// [`matmul`] on the calling thread alone: for callers that already work in parallel. The same bits.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_here(a: Mat<'_>, b: Mat<'_>, c: MatMut<'_>, how: How<'_>) -> Result<()> {
    check(&a, &b, &c, &how)?;
    block::product(a, b, c, how, false);
    Ok(())
}

/// A product for each `i` in `0..batch`: `c[i] = alpha·A[i]·B[i] [+ c[i]]`. The data of `A[i]` begins `i·a_step` values
/// after that of `a` (0: the same for all), that of `B[i]` `i·b_step` after `b`'s, and `c` holds the results one after
/// the other, `batch·m` rows.
///
/// # Errors
/// As [`matmul`], and if `c` does not have `batch` times the rows of `a`.
pub fn matmul_batch(
    batch: usize,
    (a, a_step): (Mat<'_>, usize),
    (b, b_step): (Mat<'_>, usize),
    mut c: MatMut<'_>,
    (alpha, add): (f32, bool),
) -> Result<()> {
    if Some(c.rows) != a.rows.checked_mul(batch) {
        return Err(Error::shape(format!("gemm: c: expected {batch} times {} rows, found {}", a.rows, c.rows)));
    }
    if batch == 0 || a.rows == 0 {
        return Ok(());
    }
    c.check()?;
    let span = a.rows * c.stride;
    let one = |i: usize, data: &mut [f32], here: bool| -> Result<()> {
        let (a, b) = (a.offset(i, a_step)?, b.offset(i, b_step)?);
        let c = MatMut { data, rows: a.rows, cols: c.cols, stride: c.stride };
        let how = How { alpha, add, ..How::default() };
        if here { matmul_here(a, b, c, how) } else { matmul(a, b, c, how) }
    };
    let flops = block::flops(a.rows, b.cols, a.cols);
    let data = std::mem::take(&mut c.data);
    if batch >= 2 * threads::count() && threads::worth(flops.saturating_mul(batch) / block::RATE) {
        data.par_chunks_mut(span).take(batch).enumerate().try_for_each(|(i, data)| one(i, data, true))
    } else {
        data.chunks_mut(span).take(batch).enumerate().try_for_each(|(i, data)| one(i, data, false))
    }
}

fn check(a: &Mat<'_>, b: &Mat<'_>, c: &MatMut<'_>, how: &How<'_>) -> Result<()> {
    a.check("a")?;
    b.check("b")?;
    c.check()?;
    let (m, k, n) = (a.rows, a.cols, b.cols);
    if b.rows != k {
        return Err(Error::shape(format!("gemm: b: expected [K={k}, N], found [{}, {n}] (a is [{m}, {k}])", b.rows)));
    }
    if (c.rows, c.cols) != (m, n) {
        return Err(Error::shape(format!("gemm: c: expected [M={m}, N={n}], found [{}, {}]", c.rows, c.cols)));
    }
    if let Some(bias) = how.bias
        && bias.len() != n
    {
        return Err(Error::shape(format!("gemm: bias: expected [N={n}], found [{}]", bias.len())));
    }
    if let Some(pre) = &how.pre {
        pre.check()?;
        if (pre.rows, pre.cols) != (m, n) {
            let found = format!("[{}, {}]", pre.rows, pre.cols);
            return Err(Error::shape(format!("gemm: pre: expected [M={m}, N={n}], found {found}")));
        }
    }
    Ok(())
}
