//! What launchers share: how flat tensors, rows and sums over rows are laid over blocks, and how slots become arguments. The
//! numbers here are those of the headers in `kernels/common/`.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit, Variant};
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

/// Whether products of this type go through matrix units, as `HAS_MATRIX_UNIT` of the kernels: NVIDIA's would round f32.
pub(super) fn has_matrix_unit(gpu: &Gpu, dtype: Dtype) -> bool {
    dtype != Dtype::F32 || gpu.warp() == 64
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
        ColumnSums::with_blocks(gpu, 4, dtype, matrices, rows, width)
    }

    /// The same with about `each` blocks for every processor: a multiple of those that it has at once.
    pub(super) fn with_blocks(
        gpu: &Gpu,
        each: usize,
        dtype: Dtype,
        matrices: usize,
        rows: usize,
        width: usize,
    ) -> ColumnSums {
        ColumnSums::over(gpu.driver().info().processors as usize * each, dtype, matrices, rows, width)
    }

    fn over(blocks: usize, dtype: Dtype, matrices: usize, rows: usize, width: usize) -> ColumnSums {
        let lanes = side(dtype, rows, width);
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

    /// The same for kernels that need none where there is one stretch.
    pub(super) fn partial(&self, gpu: &Gpu) -> Result<Option<Tensor>> {
        (self.stretches > 1).then(|| self.scratch(gpu)).transpose()
    }

    /// The first stage.
    pub(super) fn launch(&self, op: &str) -> Result<Launch> {
        grid(op, self.lanes * wide(self.dtype), [self.matrices, self.width, self.stretches])
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
        let mut args = vec![Arg::Out(to), Arg::In(partial)];
        args.extend(self.total_args(op)?.into_iter().chain(add.map(Arg::I32)));
        kernel.launch(gpu, dtype, self.total_launch(op, 1)?, &mut args)
    }

    /// Lengths of the second stage: stretches, width, lanes.
    pub(super) fn total_args<'a>(&self, op: &str) -> Result<[Arg<'a>; 3]> {
        let lanes = Arg::I32(short(op, "lanes", total_lanes(self.width))?);
        Ok([length(op, "rows", self.stretches)?, length(op, "width", self.width)?, lanes])
    }

    /// The second stage of `quantities` sums, which lie along the second axis of the grid.
    pub(super) fn total_launch(&self, op: &str, quantities: usize) -> Result<Launch> {
        grid(op, total_lanes(self.width) * wide(Dtype::F32), [self.matrices, self.width, quantities])
    }

    /// The second stage alone: sums over `rows` rows of one f32 matrix of `width` numbers each.
    pub(super) fn of_rows(rows: usize, width: usize) -> ColumnSums {
        let lanes = lanes(Dtype::F32, width);
        ColumnSums { rows, width, matrices: 1, stretch: 1, stretches: rows, lanes, dtype: Dtype::F32 }
    }
}

/// Threads side by side over the columns: where there are more than a warp's, as many as leave fewest without a column.
fn lanes(dtype: Dtype, width: usize) -> usize {
    let packs = width.div_ceil(wide(dtype)).max(1);
    if packs <= 32 {
        return packs.next_power_of_two();
    }
    [32, 16, 8].into_iter().min_by_key(|lanes| packs.next_multiple_of(*lanes)).unwrap_or(32)
}

/// The same of the first stage: more where there are not rows for all that would lie below them.
fn side(dtype: Dtype, rows: usize, width: usize) -> usize {
    let (mut lanes, packs, threads) = (lanes(dtype, width), width.div_ceil(wide(dtype)), THREADS as usize);
    while lanes < threads && 2 * rows < threads / lanes * LEAST_ROWS && packs >= 2 * lanes {
        lanes *= 2;
    }
    lanes
}

/// The same of the second stage: lines of 64 bytes, so that the threads of a block read many stretches at once.
fn total_lanes(width: usize) -> usize {
    lanes(Dtype::F32, width).min(4)
}

/// Blocks for tiles of `tile` columns.
fn grid(op: &str, tile: usize, [matrices, width, stretches]: [usize; 3]) -> Result<Launch> {
    let tiles = width.div_ceil(tile);
    let grid = [blocks(op, "width", tiles)?, blocks(op, "rows", stretches)?, blocks(op, "samples", matrices)?];
    Ok(Launch::grid(grid, [THREADS, 1, 1]))
}

/// Teams that hold rows in registers, and backward walk many of them: common/held.cuh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Held {
    /// Packs of a row that a thread has: the constant `PACKS`.
    packs: i64,
    /// Threads of a team.
    lanes: usize,
    /// Threads of a block.
    threads: u32,
    /// How many blocks.
    blocks: usize,
    /// Rows that all blocks take at once, if they take more than one turn.
    step: Option<usize>,
    /// Bytes of shared memory for the rows that are under way.
    shared: u32,
    dtype: Dtype,
    rows: usize,
    c: usize,
}

/// Packs for which files with `common/held.cuh` are specialised, the last for 16-bit types alone.
const HELD_PACKS: [usize; 5] = [1, 2, 3, 4, 6];

/// A file with `common/held.cuh`: its specialisations for f32, then those for 16-bit types.
pub(super) const fn held_units(source: Source) -> [Unit; 2] {
    let narrow: &[&[_]] = &[&[("T", Dtype::Bf16)], &[("T", Dtype::F16)]];
    [
        Unit {
            source,
            types: &[&[("T", Dtype::F32)]],
            constants: &[&[("PACKS", 1)], &[("PACKS", 2)], &[("PACKS", 3)], &[("PACKS", 4)]],
        },
        Unit {
            source,
            types: narrow,
            constants: &[&[("PACKS", 1)], &[("PACKS", 2)], &[("PACKS", 3)], &[("PACKS", 4)], &[("PACKS", 6)]],
        },
    ]
}

/// Threads of a block at least, forward.
const FEW_THREADS: usize = 64;

/// Rows that a team walks at least, where there are so many: fewer do not pay for what a block does once.
const LEAST_WALK: usize = 2;

/// Rows of a team from which on a walk is a long one.
const LONG_WALK: usize = 16;

fn begin_at_packs(operands: &[&dyn Operand]) -> bool {
    operands.iter().all(|o| o.address().is_some_and(|at| at % 16 == 0))
}

/// The packs and lanes that leave fewest places of a team without a number, of those the least by `key`; `None` if no team can hold
/// a row.
fn team<K: Ord>(dtype: Dtype, [rows, c]: [usize; 2], key: impl Fn(&(usize, usize)) -> K) -> Option<(usize, usize)> {
    let packs = c / wide(dtype);
    if !c.is_multiple_of(wide(dtype)) || rows == 0 {
        return None;
    }
    let shape = |each: usize| (each, packs.div_ceil(each).next_power_of_two());
    let fits = HELD_PACKS.iter().filter(|each| **each < 6 || dtype != Dtype::F32).map(|each| shape(*each));
    let fits = fits.filter(|(_, lanes)| *lanes <= THREADS as usize);
    fits.min_by_key(|shape| (shape.0 * shape.1, key(shape)))
}

impl Held {
    /// Forward over `rows` rows of `c` numbers, which each team has at once; `None` if a team cannot hold a row or an operand does
    /// not begin at a pack.
    pub(super) fn forward(gpu: &Gpu, dtype: Dtype, size: [usize; 2], operands: &[&dyn Operand]) -> Option<Held> {
        if !begin_at_packs(operands) {
            return None;
        }
        Held::at_once(gpu.warp() as usize, dtype, size)
    }

    /// The same backward, where each team walks many rows.
    pub(super) fn backward(gpu: &Gpu, dtype: Dtype, size: [usize; 2], operands: &[&dyn Operand]) -> Option<Held> {
        if !begin_at_packs(operands) {
            return None;
        }
        Held::walking([gpu.driver().info().processors as usize, gpu.warp() as usize], dtype, size)
    }

    fn at_once(warp: usize, dtype: Dtype, [rows, c]: [usize; 2]) -> Option<Held> {
        // Where warps wait for each other as few as can be.
        let (packs, lanes) =
            team(dtype, [rows, c], |&(each, lanes)| if lanes > warp { (true, 6 - each) } else { (false, each) })?;
        let threads = lanes.max(FEW_THREADS);
        let blocks = rows.div_ceil(threads / lanes * (4 / packs).max(1));
        Some(Held {
            packs: packs as i64,
            lanes,
            threads: threads as u32,
            blocks,
            step: None,
            shared: 0,
            dtype,
            rows,
            c,
        })
    }

    fn walking([processors, warp]: [usize; 2], dtype: Dtype, [rows, c]: [usize; 2]) -> Option<Held> {
        // Sums of more than 3 packs leave room for one block alone; one pack a thread is too little between two barriers.
        let (packs, lanes) = team(dtype, [rows, c], |&(each, lanes)| (each > 3, lanes > warp && each == 1, each))?;
        let teams = THREADS as usize / lanes;
        let resident = match packs {
            // A fourth block costs long walks a twentieth (Hopper, 128 columns) and saves short ones a turn.
            1 if dtype.bytes() == 2 && rows < LONG_WALK * teams * 4 * processors => 4,
            1 => 3,
            2 | 3 => 2,
            _ => 1,
        };
        let blocks = rows.div_ceil(teams * LEAST_WALK).min(processors.max(1) * resident);
        // The next turn of x and dy; two of them where a thread has one pack alone. AMD has them in registers.
        let turns = if packs == 1 { 3 } else { 2 };
        let shared = if warp == 32 { (turns * 2 * packs * 16) as u32 * THREADS } else { 0 };
        let step = Some(blocks * teams);
        Some(Held { packs: packs as i64, lanes, threads: THREADS, blocks, step, shared, dtype, rows, c })
    }

    /// The same for kernels that read one more tensor of rows backward.
    pub(super) fn with_one_more(self) -> Held {
        Held { shared: self.shared / 2 * 3, ..self }
    }

    /// The storage type and the packs.
    pub(super) fn variant(&self) -> Variant {
        Variant::of(self.dtype).with("PACKS", self.packs)
    }

    /// The blocks.
    pub(super) fn launch(&self, op: &str) -> Result<Launch> {
        Ok(Launch::linear(blocks(op, "rows", self.blocks)?, self.threads).with_shared(self.shared))
    }

    /// The last arguments: rows, step if there is one, lanes, C.
    pub(super) fn args<'a>(&self, op: &str) -> Result<Vec<Arg<'a>>> {
        let mut args = vec![length(op, "rows", self.rows)?];
        args.extend(self.step.map(|step| length(op, "rows", step)).transpose()?);
        args.extend([Arg::I32(short(op, "lanes", self.lanes)?), c(op, self.c)?]);
        Ok(args)
    }

    /// Memory for the sums of one quantity over the rows of each block.
    pub(super) fn scratch(&self, gpu: &Gpu) -> Result<Tensor> {
        gpu.scratch(Spec::f32([self.blocks, self.c])?)
    }

    /// The sums of the blocks as sums over columns: their second stage.
    pub(super) fn sums(&self) -> ColumnSums {
        ColumnSums::of_rows(self.blocks, self.c)
    }
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
                assert!(sums.lanes.is_power_of_two() && sums.lanes <= 256, "{sums:?}");
            }
        }
    }

    #[test]
    fn narrow_and_wide_matrices_keep_the_device_busy() {
        let blocks = |rows, width| ColumnSums::over(528, Dtype::F32, 1, rows, width).launch("op").unwrap().blocks();
        assert!(blocks(16_200, 384) >= 528 - 3 && blocks(1 << 20, 1) >= 500 && blocks(64, 1 << 20) >= 528);
    }

    #[test]
    fn teams_hold_a_row_and_their_blocks_cover_all_rows() {
        for (rows, c) in [(1, 8), (3, 24), (5, 768), (16_200, 384), (7, 1032), (8192, 12_288), (1 << 20, 128)] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let both = [Held::at_once(32, dtype, [rows, c]), Held::walking([132, 32], dtype, [rows, c])];
                if both.iter().any(Option::is_none) {
                    assert!(c * dtype.bytes() > 16_384 && both == [None, None], "{c} {dtype}");
                    continue;
                }
                for held in both.into_iter().flatten() {
                    assert!(held.lanes * held.packs as usize * wide(dtype) >= c && held.lanes <= 256, "{held:?}");
                    let once = held.threads as usize / held.lanes * held.blocks;
                    let turn = held.step.unwrap_or(once * (4 / held.packs as usize).max(1));
                    assert!(held.step.is_none_or(|step| step == once), "{held:?}");
                    assert!(held.step.is_some() || turn >= rows, "{held:?}");
                    assert!((held.blocks - 1) * (turn / held.blocks) < rows, "{held:?}");
                }
            }
        }
        assert_eq!(Held::walking([132, 32], Dtype::Bf16, [4, 12]), None, "12 numbers are no whole packs");
        assert_eq!(Held::at_once(32, Dtype::Bf16, [4, 12_296]), None, "more than a block holds");
    }

    #[test]
    fn teams_of_the_shapes_that_are_timed() {
        let shapes = |c| {
            let both = [Held::at_once(32, Dtype::Bf16, [8192, c]), Held::walking([132, 32], Dtype::Bf16, [8192, c])];
            both.map(|held| held.map(|h| (h.packs, h.lanes)))
        };
        assert_eq!(shapes(128), [Some((1, 16)), Some((1, 16))]);
        assert_eq!(shapes(768), [Some((3, 32)), Some((3, 32))]);
        assert_eq!(shapes(1024), [Some((4, 32)), Some((2, 64))]);
        assert_eq!(shapes(4096), [Some((4, 128)), Some((2, 256))]);
        assert_eq!(shapes(12_288), [Some((6, 256)), Some((6, 256))]);
    }

    #[test]
    fn short_rows_have_a_block_less_where_every_team_walks_many() {
        let blocks = |rows| Held::walking([132, 32], Dtype::Bf16, [rows, 128]).unwrap().blocks;
        assert_eq!([blocks(1 << 20), blocks(100_000), blocks(512)], [396, 528, 16]);
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
