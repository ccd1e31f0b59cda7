//! The launches.

use super::ResizeBilinear;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::launch;
use crate::ops::operator::{Backward, Forward};
use crate::tensor::{Dtype, Spec};

const OP: &str = "resize_bilinear";
const SOURCE: Source = crate::source!("resize_bilinear/resize_bilinear.cu");
static FWD: Kernel = Kernel::new(SOURCE, "resize_bilinear_fwd");
static BWD_DX: Kernel = Kernel::new(SOURCE, "resize_bilinear_bwd_dx");
static FWD_WHOLE: Kernel = Kernel::new(SOURCE, "resize_bilinear_fwd_whole");
static BWD_DX_WHOLE: Kernel = Kernel::new(SOURCE, "resize_bilinear_bwd_dx_whole");
static FWD_DOUBLED: Kernel = Kernel::new(SOURCE, "resize_bilinear_fwd_doubled");
static BWD_DX_DOUBLED: Kernel = Kernel::new(SOURCE, "resize_bilinear_bwd_dx_doubled");
static BWD_DX_ANY: Kernel = Kernel::new(SOURCE, "resize_bilinear_bwd_dx_any");

pub(super) const KERNELS: &[Unit] = &[Unit::floats(SOURCE)];

const THREADS: usize = 128;
/// Runs of columns of a lane, forward.
const SEGMENTS: usize = 4;
/// Columns of the gradient of the result that a lane has, and most columns of that of the input that a warp has.
const LANE_COLUMNS: usize = 8;
const MOST_INPUTS: usize = 512;
/// Places along an axis are fractions of 32-bit integers: inputs times outputs stay below this.
const MOST_PLACES: usize = 1 << 30;
/// Warps a processor: so many that the last ones do not count, and so few that it is hardly busy.
const MANY_WARPS: usize = 96;
const FEW_WARPS: usize = 16;
/// More than there are chunks: however many there are, none has more rows than it must.
const EVERY_CHUNK: usize = 1 << 20;

/// Columns of dy that a lane has where they grew by a whole number or shrank to half: common/bilinear_whole.cuh. Forward it has those
/// of 16 bytes.
const WHOLE_COLUMNS: usize = 8;

/// Rows of the input that a warp has where both axes grow twice, forward also four times.
const DOUBLED_ROWS: usize = 2;

/// Sizes as the kernels have them, of this room and of `resize_tokens`.
pub(in crate::ops) struct Plan<'a> {
    op: &'static str,
    gpu: &'a Gpu,
    planes: usize,
    from: [usize; 2],
    to: [usize; 2],
    aligned: bool,
}

/// How the planes are cut: columns of a tile, how many tiles, rows of a chunk, how many chunks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::ops) struct Cut {
    tile: usize,
    tiles: usize,
    chunk: usize,
    chunks: usize,
}

impl Cut {
    /// As the last arguments of a forward kernel.
    pub(in crate::ops) fn forward_args<'v>(&self) -> Result<[Arg<'v>; 3]> {
        numbers([self.tiles, self.chunk, self.chunks])
    }

    /// As those of a backward kernel.
    pub(in crate::ops) fn backward_args<'v>(&self) -> Result<[Arg<'v>; 4]> {
        numbers([self.tile, self.tiles, self.chunk, self.chunks])
    }
}

impl<'a> Plan<'a> {
    /// Of `planes` planes of `from` to those of `resize`, for the operator of this name.
    pub(in crate::ops) fn new(
        op: &'static str,
        resize: &ResizeBilinear,
        gpu: &'a Gpu,
        planes: usize,
        from: [usize; 2],
    ) -> Result<Plan<'a>> {
        for (axis, from, to) in [("H", from[0], resize.size[0]), ("W", from[1], resize.size[1])] {
            if from.saturating_mul(to) >= MOST_PLACES {
                return Err(Error::too_large(op, axis, format!("{from} to {to}")));
            }
        }
        Ok(Plan { op, gpu, planes, from, to: resize.size, aligned: resize.align_corners })
    }

    fn of_images(op: &ResizeBilinear, gpu: &'a Gpu, x: &Spec) -> Result<Plan<'a>> {
        let (planes, h, w) = ResizeBilinear::sizes(x);
        Plan::new(OP, op, gpu, planes, [h, w])
    }

    /// Forward, for lanes of `lane` columns.
    pub(in crate::ops) fn cut_forward(&self, lane: usize) -> Cut {
        self.cut(self.to, lane * self.gpu.warp() as usize, 32)
    }

    /// Backward, for packs of `wide` columns; `None` where an input goes to more columns than a warp has.
    pub(in crate::ops) fn cut_backward(&self, wide: usize) -> Option<Cut> {
        let tile = self.tile(wide);
        (tile > 0).then(|| self.cut(self.from, tile, 8))
    }

    /// Cuts planes of `rows` rows into tiles of at most `tile` of `columns` columns, and so many chunks of at least `least` rows
    /// (a quarter of them where there is little to do) that the device is busy.
    fn cut(&self, size: [usize; 2], tile: usize, least: usize) -> Cut {
        self.cut_for(MANY_WARPS, size, tile, least)
    }

    fn cut_for(&self, many: usize, [rows, columns]: [usize; 2], tile: usize, least: usize) -> Cut {
        let tiles = columns.div_ceil(tile).max(1);
        let processors = self.gpu.driver().info().processors as usize;
        let chunks = |warps: usize, least: usize| {
            (processors * warps).div_ceil((self.planes * tiles).max(1)).min(rows.div_ceil(least))
        };
        let chunks = chunks(many, least).max(chunks(FEW_WARPS, least / 4)).max(1);
        let chunk = rows.div_ceil(chunks);
        Cut { tile: columns.div_ceil(tiles), tiles, chunk, chunks: rows.div_ceil(chunk) }
    }

    /// The columns of the input that a warp can have backward: those that take something of the columns of the result that it has.
    fn tile(&self, wide: usize) -> usize {
        let ([_, w], [_, to_w]) = (self.from, self.to);
        let span = LANE_COLUMNS * self.gpu.warp() as usize;
        if to_w <= span && w <= MOST_INPUTS {
            return w;
        }
        let (step, below) = if self.aligned { (w - 1, to_w - 1) } else { (w, to_w) };
        // One input more takes part in the first column, and packs begin before it.
        let inputs = (span - wide - 2) * step / below.max(1);
        inputs.saturating_sub(1).min(MOST_INPUTS).min(w)
    }

    /// How many times the columns grow, 0 where they shrink to half, if a kernel knows that ratio: pixels are areas, and every run of
    /// columns that a lane moves begins at a multiple of 16 bytes of `operands`.
    fn ratio(&self, dtype: Dtype, operands: [Option<u64>; 2]) -> Option<usize> {
        let ([_, w], [_, to_w]) = (self.from, self.to);
        let is_aligned = operands.iter().all(|at| at.is_some_and(|at| at % 16 == 0));
        let grows = [2, 4, 8].into_iter().find(|ratio| w * ratio == to_w && to_w.is_multiple_of(WHOLE_COLUMNS));
        let shrinks = (w == 2 * to_w && w.is_multiple_of(launch::wide(dtype))).then_some(0);
        grows.or(shrinks).filter(|_| is_aligned && !self.aligned)
    }

    /// The same cut into chunks of `least` rows for columns of the result of which a warp has `tile` at once, `halo` of them together
    /// with its neighbour.
    fn cut_whole(&self, rows: usize, [tile, halo]: [usize; 2], least: usize) -> Cut {
        let columns = self.to[1].saturating_sub(halo).max(1);
        self.cut_for(EVERY_CHUNK, [rows, columns], tile - halo, least)
    }

    /// A warp for each tile of each chunk of each plane.
    pub(in crate::ops) fn launch(&self, cut: Cut) -> Result<Launch> {
        let warps = self.planes.saturating_mul(cut.tiles).saturating_mul(cut.chunks);
        let each = THREADS / self.gpu.warp() as usize;
        Ok(Launch::linear(launch::blocks(self.op, "tiles", warps.div_ceil(each))?, THREADS as u32))
    }

    /// Launches `kernel` over warps that know the ratio of the columns.
    fn launch_whole<'v>(
        &self,
        kernel: &Kernel,
        dtype: Dtype,
        operands: [Arg<'v>; 2],
        ratio: usize,
        cut: Cut,
        add: Option<i32>,
    ) -> Result<()> {
        let mut args: Vec<Arg<'v>> = operands.into();
        let [planes, h, w, to_h, to_w, _] = self.args()?;
        args.extend([planes, h, w, to_h, to_w]);
        args.extend(numbers([ratio, cut.tiles, cut.chunk, cut.chunks])?.into_iter().chain(add.map(Arg::I32)));
        kernel.launch(self.gpu, dtype, self.launch(cut)?, &mut args)
    }

    /// Whether both axes grow by one of these ratios, the columns by one that kernels know.
    fn grows_both(&self, ratio: usize, known: &[usize]) -> bool {
        known.contains(&ratio) && self.to[0] == ratio * self.from[0]
    }

    /// Launches `kernel`, which takes the ratio if it knows several, over warps of [`DOUBLED_ROWS`] rows of the input each.
    fn launch_doubled<'v>(
        &self,
        kernel: &Kernel,
        dtype: Dtype,
        operands: [Arg<'v>; 2],
        [tile, halo]: [usize; 2],
        ratio: Option<usize>,
        add: Option<i32>,
    ) -> Result<()> {
        let tiles = self.to[1].saturating_sub(halo).max(1).div_ceil(tile - halo);
        let cut = Cut { tile, tiles, chunk: DOUBLED_ROWS, chunks: self.from[0].div_ceil(DOUBLED_ROWS) };
        let mut args: Vec<Arg<'v>> = operands.into();
        let [planes, h, w, ..] = self.args()?;
        args.extend([planes, h, w]);
        args.extend(ratio.map(|ratio| numbers([ratio])).transpose()?.into_iter().flatten());
        args.extend(numbers([cut.tiles, cut.chunks])?.into_iter().chain(add.map(Arg::I32)));
        kernel.launch(self.gpu, dtype, self.launch(cut)?, &mut args)
    }

    /// A thread for each number of the input.
    pub(in crate::ops) fn launch_numbers(&self) -> Result<Launch> {
        let numbers = self.planes * self.from[0] * self.from[1];
        Ok(Launch::linear(launch::blocks(self.op, "x", numbers.div_ceil(THREADS))?, THREADS as u32))
    }

    /// Planes, sizes, and whether corners are aligned.
    pub(in crate::ops) fn args<'v>(&self) -> Result<[Arg<'v>; 6]> {
        let [h, w, to_h, to_w] = numbers([self.from[0], self.from[1], self.to[0], self.to[1]])?;
        Ok([launch::length(self.op, "planes", self.planes)?, h, w, to_h, to_w, Arg::I32(self.aligned.into())])
    }
}

/// Sizes as arguments.
pub(in crate::ops) fn numbers<'v, const N: usize>(n: [usize; N]) -> Result<[Arg<'v>; N]> {
    let mut all = [const { Arg::I32(0) }; N];
    for (arg, n) in all.iter_mut().zip(n) {
        *arg = Arg::I32(launch::short(OP, "size", n)?);
    }
    Ok(all)
}

/// Forward.
pub(super) fn forward(op: &ResizeBilinear, gpu: &Gpu, io: Forward<'_>) -> Result<()> {
    let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands(OP)) };
    let (plan, dtype) = (Plan::of_images(op, gpu, x.spec())?, x.spec().dtype());
    if let Some(ratio) = plan.ratio(dtype, [x.address(), y.address()]) {
        if plan.grows_both(ratio, &[2, 4]) {
            let tile = [launch::wide(dtype) * gpu.warp() as usize, 0];
            return plan.launch_doubled(&FWD_DOUBLED, dtype, [Arg::Out(y), Arg::In(x)], tile, Some(ratio), None);
        }
        let cut = plan.cut_whole(plan.to[0], [launch::wide(dtype) * gpu.warp() as usize, 0], 16);
        return plan.launch_whole(&FWD_WHOLE, dtype, [Arg::Out(y), Arg::In(x)], ratio, cut, None);
    }
    let is_paired = dtype.bytes() == 2 && plan.to[1].is_multiple_of(2) && y.address().is_some_and(|at| at % 4 == 0);
    let each = if is_paired { 2 } else { 1 };
    let cut = plan.cut_forward(SEGMENTS * each);
    let mut args = vec![Arg::Out(y), Arg::In(x)];
    args.extend(plan.args()?.into_iter().chain(numbers([each])?).chain(cut.forward_args()?));
    FWD.launch(gpu, dtype, plan.launch(cut)?, &mut args)
}

/// Backward: every number of dy is read once but for the edges of tiles and chunks.
pub(super) fn backward(op: &ResizeBilinear, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([x], [dy], [dx]) = (io.specs, io.dy, &mut *io.dx) else { return Err(wrong_operands(OP)) };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
    let (plan, dtype) = (Plan::of_images(op, gpu, x)?, x.dtype());
    if let Some(ratio) = plan.ratio(dtype, [dx.address(), dy.address()]) {
        if plan.grows_both(ratio, &[2]) {
            let tile = [WHOLE_COLUMNS * gpu.warp() as usize, 2 * WHOLE_COLUMNS];
            let operands = [Arg::Out(dx), Arg::In(dy)];
            return plan.launch_doubled(&BWD_DX_DOUBLED, dtype, operands, tile, None, Some(add));
        }
        let (halo, least) = if ratio == 0 { (0, 8) } else { (2 * WHOLE_COLUMNS, 32) };
        let cut = plan.cut_whole(plan.from[0], [WHOLE_COLUMNS * gpu.warp() as usize, halo], least);
        return plan.launch_whole(&BWD_DX_WHOLE, dtype, [Arg::Out(dx), Arg::In(dy)], ratio, cut, Some(add));
    }
    let mut args = vec![Arg::Out(dx), Arg::In(dy)];
    args.extend(plan.args()?);
    let Some(cut) = plan.cut_backward(launch::wide(dtype)) else {
        args.push(Arg::I32(add));
        return BWD_DX_ANY.launch(gpu, dtype, plan.launch_numbers()?, &mut args);
    };
    args.extend(cut.backward_args()?.into_iter().chain([Arg::I32(add)]));
    BWD_DX.launch(gpu, dtype, plan.launch(cut)?, &mut args)
}
