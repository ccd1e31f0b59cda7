//! What the Hopper launches of both directions share: which operands they take, and the tensor maps through which these are read.

use super::Plan;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::{Arch, MapType, Swizzle, TENSOR_MAP_BYTES, TensorMapSpec};
use crate::backend::gpu::kernel::{Arg, Operand};
use crate::error::{Error, Result};
use crate::ops::attention::geometry::Place;
use crate::tensor::{Dtype, Tensor};

/// Whether operands and sizes are such as Hopper's kernels take for heads of up to `most` numbers: `tensors` are all that is read or
/// written 16 bytes at a time.
pub(super) fn operands_fit(plan: &Plan<'_>, gpu: &Gpu, tensors: &[&dyn Operand], most: usize) -> bool {
    let g = &plan.g;
    let is_wide = |p: &Place| p.offset.is_multiple_of(8) && p.row.is_multiple_of(8);
    gpu.driver().info().arch == Arch::SM_90A
        && tensors.iter().all(|t| t.spec().dtype() != Dtype::F32 && t.address().is_none_or(|at| at.is_multiple_of(16)))
        && g.d.is_multiple_of(8)
        && (16..=most).contains(&g.d)
        && [g.q, g.k, g.v].iter().all(is_wide)
        && g.nq.max(g.nk) <= 1 << 24
        && g.nq.min(g.nk) > 0
}

/// Where vectors of one operand lie, for boxes of `rows` tokens of a head.
pub(super) struct Vectors<'a> {
    of: &'a dyn Operand,
    offset: usize,
    row: usize,
    heads: usize,
    tokens: usize,
    rows: usize,
}

impl<'a> Vectors<'a> {
    /// Of `heads` heads of `tokens` tokens a sample, the first at `offset`, `row` numbers apart.
    pub(super) fn new(
        of: &'a dyn Operand,
        offset: usize,
        row: usize,
        heads: usize,
        tokens: usize,
        rows: usize,
    ) -> Self {
        Vectors { of, offset, row, heads, tokens, rows }
    }

    /// Axes numbers, heads, tokens, samples; 64 numbers of one head a box, zeros beyond the head's size and the last token.
    pub(super) fn map(&self, gpu: &Gpu, batch: usize, d: usize) -> Result<[u8; TENSOR_MAP_BYTES]> {
        let dtype = if self.of.spec().dtype() == Dtype::F16 { MapType::F16 } else { MapType::Bf16 };
        let start =
            self.of.address().ok_or_else(|| Error::argument("attention: a tensor outside the device's memory"))?;
        let bytes = |numbers: usize| 2 * numbers as u64;
        gpu.driver().tensor_map(&TensorMapSpec {
            dtype,
            address: start + bytes(self.offset),
            dims: [d, self.heads, self.tokens, batch].map(|n| n as u64).to_vec(),
            strides: vec![bytes(d), bytes(self.row), bytes(self.tokens * self.row)],
            box_dims: vec![64, 1, self.rows as u32, 1],
            swizzle: Swizzle::B128,
            is_nan_filled: false,
        })
    }
}

/// Memory between launches, where there is some.
pub(super) fn maybe(t: Option<&Tensor>) -> Arg<'_> {
    t.map_or(Arg::Null, Arg::Scratch)
}
