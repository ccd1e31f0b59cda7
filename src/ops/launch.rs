//! What launchers share: how flat tensors, rows and sums over rows are laid over blocks, and how slots become arguments. The
//! numbers here are those of the headers in `kernels/common/`.

use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand};
use crate::backend::gpu::{FLAT_THREADS, Gpu, flat_blocks};
use crate::error::{Error, Result};
use crate::ops::blocks::wrong_operands;
use crate::ops::operator::GradSlot;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

/// Threads of a block of every kernel here.
const THREADS: u32 = 256;

/// A length as an `i64` argument.
pub(super) fn length<'a>(op: &str, axis: &str, n: usize) -> Result<Arg<'a>> {
    i64::try_from(n).map(Arg::I64).map_err(|_| Error::too_large(op, axis, n))
}

/// A length as an `int`.
pub(super) fn short(op: &str, axis: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::too_large(op, axis, n))
}

/// The length of rows as an `int` argument.
pub(super) fn c<'a>(op: &str, c: usize) -> Result<Arg<'a>> {
    Ok(Arg::I32(short(op, "C", c)?))
}

/// A number of blocks.
pub(super) fn blocks(op: &str, axis: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::too_large(op, axis, n))
}

/// The launch of a flat kernel over `n` numbers with `inputs` inputs, the widest type of all its tensors being `widest`.
pub(super) fn flat(op: &str, widest: Dtype, inputs: usize, n: usize) -> Result<Launch> {
    Ok(Launch::linear(flat_blocks(op, widest, inputs, n)?, FLAT_THREADS))
}

/// One thread for each of `n` numbers.
pub(super) fn each(op: &str, axis: &str, n: usize) -> Result<Launch> {
    Ok(Launch::linear(blocks(op, axis, n.div_ceil(THREADS as usize))?, THREADS))
}

/// One warp for each of `n` cells.
pub(super) fn warps(op: &str, gpu: &Gpu, n: usize) -> Result<Launch> {
    Ok(Launch::linear(blocks(op, "cells", n.div_ceil((THREADS / gpu.warp()) as usize))?, THREADS))
}

/// Where a gradient goes and whether it is added, if it is wanted.
pub(super) fn slot<'s, 'a>(slot: &'s mut GradSlot<'a>) -> Option<(&'s mut ViewMut<'a>, i32)> {
    match slot {
        GradSlot::Unwanted => None,
        GradSlot::Set(to) => Some((to, 0)),
        GradSlot::Add(to) => Some((to, 1)),
    }
}

/// Input or result `i` of a backward pass, which `keeps` names.
pub(super) fn kept<'s, 'a>(op: &str, of: &'s [Option<View<'a>>], i: usize) -> Result<&'s View<'a>> {
    of.get(i).and_then(Option::as_ref).ok_or_else(|| wrong_operands(op))
}

/// How a kernel over rows is launched: common/rows.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rows {
    /// Whether a row has a block of its own: the entry with `_wide` in its name.
    pub(super) is_wide: bool,
    /// Blocks and threads.
    pub(super) launch: Launch,
}

impl Rows {
    /// `rows` rows of `c` numbers, of which a thread can hold `held` packs.
    pub(super) fn new(op: &str, gpu: &Gpu, dtype: Dtype, rows: usize, c: usize, held: usize) -> Result<Rows> {
        let is_wide = c > gpu.warp() as usize * held * wide(dtype);
        let each = if is_wide { 1 } else { (THREADS / gpu.warp()) as usize };
        Ok(Rows { is_wide, launch: Launch::linear(blocks(op, "rows", rows.div_ceil(each))?, THREADS) })
    }

    /// The kernel for these rows.
    pub(super) fn pick<'k>(&self, narrow: &'k Kernel, wide: &'k Kernel) -> &'k Kernel {
        if self.is_wide { wide } else { narrow }
    }
}

/// Numbers in 16 bytes.
pub(super) fn wide(dtype: Dtype) -> usize {
    16 / dtype.bytes()
}

/// Sums over the rows of each of several matrices, in two stages: common/columns.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ColumnSums {
    rows: usize,
    width: usize,
    matrices: usize,
    /// Rows of a stretch, and how many there are.
    stretch: usize,
    stretches: usize,
    /// Threads side by side.
    lanes: usize,
    dtype: Dtype,
}

/// Rows that a thread adds at least, where there are so many: fewer are not worth a block.
const LEAST_ROWS: usize = 8;
/// Most stretches: the limit of a grid's second axis.
const MOST_STRETCHES: usize = 65_535;

impl ColumnSums {
    /// Over `rows` rows of `width` numbers in `dtype`, for each of `matrices` matrices.
    pub(super) fn new(gpu: &Gpu, dtype: Dtype, matrices: usize, rows: usize, width: usize) -> ColumnSums {
        // Four blocks for every processor keep it busy.
        ColumnSums::over(gpu.driver().info().processors as usize * 4, dtype, matrices, rows, width)
    }

    fn over(blocks: usize, dtype: Dtype, matrices: usize, rows: usize, width: usize) -> ColumnSums {
        let lanes = lanes(dtype, width);
        let others = width.div_ceil(lanes * wide(dtype)).max(1) * matrices.max(1);
        let worth = rows.div_ceil(THREADS as usize / lanes * LEAST_ROWS).max(1);
        let stretches = blocks.div_ceil(others).min(worth).min(MOST_STRETCHES);
        let stretch = rows.div_ceil(stretches).max(1);
        ColumnSums { rows, width, matrices, stretch, stretches: rows.div_ceil(stretch).max(1), lanes, dtype }
    }

    /// Memory for the sums of one quantity over the stretches.
    pub(super) fn scratch(&self, gpu: &Gpu) -> Result<Tensor> {
        gpu.scratch(Spec::f32([self.matrices, self.stretches, self.width])?)
    }

    /// The first stage.
    pub(super) fn launch(&self, op: &str) -> Result<Launch> {
        grid(op, self.dtype, self.matrices, self.width, self.stretches)
    }

    /// The last arguments of the first stage: stretch, stretches, lanes.
    pub(super) fn stretch_args<'a>(&self, op: &str) -> Result<[Arg<'a>; 3]> {
        let stretches = Arg::I32(short(op, "stretches", self.stretches)?);
        Ok([length(op, "rows", self.stretch)?, stretches, Arg::I32(short(op, "lanes", self.lanes)?)])
    }

    /// All lengths of the first stage: rows, width, stretch, stretches, lanes.
    pub(super) fn args<'a>(&self, op: &str) -> Result<[Arg<'a>; 5]> {
        let [stretch, stretches, lanes] = self.stretch_args(op)?;
        Ok([length(op, "rows", self.rows)?, length(op, "width", self.width)?, stretch, stretches, lanes])
    }

    /// The second stage by `kernel`, compiled for `dtype`: adds the stretches of every matrix into `to`. The flag goes to kernels
    /// that set or add.
    #[allow(clippy::too_many_arguments, reason = "a launch has as many")]
    pub(super) fn total(
        &self,
        gpu: &Gpu,
        op: &str,
        kernel: &Kernel,
        dtype: Dtype,
        to: &mut dyn Operand,
        partial: &dyn Operand,
        add: Option<i32>,
    ) -> Result<()> {
        let lanes = Arg::I32(short(op, "lanes", lanes(Dtype::F32, self.width))?);
        let lengths = [length(op, "rows", self.stretches)?, length(op, "width", self.width)?, lanes];
        let mut args = vec![Arg::Out(to), Arg::In(partial)];
        args.extend(lengths.into_iter().chain(add.map(Arg::I32)));
        kernel.launch(gpu, dtype, grid(op, Dtype::F32, self.matrices, self.width, 1)?, &mut args)
    }

    /// The second stage alone: sums over `rows` rows of one f32 matrix of `width` numbers each.
    pub(super) fn of_rows(rows: usize, width: usize) -> ColumnSums {
        let lanes = lanes(Dtype::F32, width);
        ColumnSums { rows, width, matrices: 1, stretch: 1, stretches: rows, lanes, dtype: Dtype::F32 }
    }
}

/// Threads side by side over the columns.
fn lanes(dtype: Dtype, width: usize) -> usize {
    width.div_ceil(wide(dtype)).max(1).next_power_of_two().min(32)
}

fn grid(op: &str, dtype: Dtype, matrices: usize, width: usize, stretches: usize) -> Result<Launch> {
    let tiles = width.div_ceil(lanes(dtype, width) * wide(dtype));
    let grid = [blocks(op, "width", tiles)?, blocks(op, "rows", stretches)?, blocks(op, "samples", matrices)?];
    Ok(Launch::grid(grid, [THREADS, 1, 1]))
}

/// Sums over all but a middle axis, in pieces that a block holds in registers: common/groups.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pieces {
    cells: usize,
    count: i32,
    each: i32,
}

impl Pieces {
    /// For `cells` sums over `count` numbers each, in `dtype`.
    pub(super) fn new(op: &str, dtype: Dtype, cells: usize, count: usize) -> Result<Pieces> {
        let piece = THREADS as usize * 4 * wide(dtype);
        let each = short(op, "pieces", count.div_ceil(piece).max(1))?;
        Ok(Pieces { cells, count: short(op, "numbers of a mean", count)?, each })
    }

    /// The pieces of a sum, as an argument.
    pub(super) fn each<'a>(&self) -> Arg<'a> {
        Arg::I32(self.each)
    }

    /// The numbers of a sum, as an argument.
    pub(super) fn count<'a>(&self) -> Arg<'a> {
        Arg::I32(self.count)
    }

    /// Memory for one quantity of every piece.
    pub(super) fn scratch(&self, gpu: &Gpu) -> Result<Tensor> {
        gpu.scratch(Spec::f32([self.cells, self.each.unsigned_abs() as usize])?)
    }

    /// A block for every piece.
    pub(super) fn launch(&self, op: &str) -> Result<Launch> {
        let all = self.cells.saturating_mul(self.each.unsigned_abs() as usize);
        Ok(Launch::linear(blocks(op, "pieces", all)?, THREADS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_cover_every_row_once_and_none_is_empty() {
        for (rows, width) in [(0, 5), (1, 1), (7, 3), (130, 3), (100_000, 1), (16_200, 384), (3, 2053), (1 << 20, 4096)]
        {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let sums = ColumnSums::over(528, dtype, 1, rows, width);
                assert!(sums.stretches * sums.stretch >= rows && sums.stretches <= MOST_STRETCHES, "{sums:?}");
                assert!((sums.stretches - 1) * sums.stretch < rows.max(1), "{sums:?}");
                assert!(sums.lanes.is_power_of_two() && sums.lanes <= 32, "{sums:?}");
            }
        }
    }

    #[test]
    fn narrow_and_wide_matrices_keep_the_device_busy() {
        let blocks = |rows, width| ColumnSums::over(528, Dtype::F32, 1, rows, width).launch("op").unwrap().blocks();
        assert!(blocks(16_200, 384) >= 528 - 3 && blocks(1 << 20, 1) >= 500 && blocks(64, 1 << 20) >= 528);
    }

    #[test]
    fn a_sum_of_nothing_is_launched_where_there_are_columns() {
        let sums = ColumnSums::over(528, Dtype::F32, 1, 0, 4);
        assert_eq!((sums.launch("op").unwrap().blocks(), sums.stretches), (1, 1));
    }

    #[test]
    fn lengths_beyond_an_argument_are_refused_by_name() {
        let e = short("softmax", "C", 1 << 31).unwrap_err();
        assert!(e.to_string().starts_with("softmax: C: "), "{e}");
    }
}
