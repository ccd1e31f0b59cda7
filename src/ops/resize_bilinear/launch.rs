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
use crate::tensor::Spec;

const OP: &str = "resize_bilinear";
const SOURCE: Source = crate::source!("resize_bilinear/resize_bilinear.cu");
static FWD: Kernel = Kernel::new(SOURCE, "resize_bilinear_fwd");
static BWD_ROWS: Kernel = Kernel::new(SOURCE, "resize_bilinear_bwd_rows");
static BWD_DX: Kernel = Kernel::new(SOURCE, "resize_bilinear_bwd_dx");

pub(super) const KERNELS: &[Unit] = &[Unit::floats(SOURCE)];

const THREADS: usize = 128;
/// Columns of a thread.
const RUN: usize = 4;
/// Planes for which a thread uses the weights that it has computed, if there are so many.
const PLANES: usize = 4;
/// Most blocks along the second axis of a grid.
const MOST_ALONG_Y: usize = 65_535;
/// Places along an axis are fractions of 32-bit integers: inputs times outputs stay below this.
const MOST_PLACES: usize = 1 << 30;

/// Sizes as the kernels have them.
struct Plan {
    planes: usize,
    from: [usize; 2],
    to: [usize; 2],
    aligned: Arg<'static>,
}

fn blocks(axis: &str, threads: usize) -> Result<u32> {
    launch::blocks(OP, axis, threads.div_ceil(THREADS))
}

impl Plan {
    fn new(op: &ResizeBilinear, x: &Spec) -> Result<Plan> {
        let (planes, h, w) = ResizeBilinear::sizes(x);
        for (axis, from, to) in [("H", h, op.size[0]), ("W", w, op.size[1])] {
            if from.saturating_mul(to) >= MOST_PLACES {
                return Err(Error::too_large(OP, axis, format!("{from} to {to}")));
            }
        }
        Ok(Plan { planes, from: [h, w], to: op.size, aligned: Arg::I32(op.align_corners.into()) })
    }

    /// Runs of columns of one row of the result.
    fn runs(&self) -> usize {
        self.to[1].div_ceil(RUN)
    }
}

/// Forward.
pub(super) fn forward(op: &ResizeBilinear, gpu: &Gpu, io: Forward<'_>) -> Result<()> {
    let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands(OP)) };
    let (plan, dtype) = (Plan::new(op, x.spec())?, x.spec().dtype());
    let each = PLANES.max(plan.planes.div_ceil(MOST_ALONG_Y));
    let along_y = launch::blocks(OP, "planes", plan.planes.div_ceil(each))?;
    let grid = [blocks("H", plan.to[0] * plan.runs())?, along_y, 1];
    let mut args = vec![Arg::Out(y), Arg::In(x), launch::length(OP, "planes", plan.planes)?];
    for n in plan.from.into_iter().chain(plan.to) {
        args.push(Arg::I32(launch::short(OP, "size", n)?));
    }
    args.extend([plan.aligned, launch::length(OP, "planes", each)?]);
    FWD.launch(gpu, dtype, Launch::grid(grid, [THREADS as u32, 1, 1]), &mut args)
}

/// Backward: first rows are gathered, then columns.
pub(super) fn backward(op: &ResizeBilinear, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([x], [dy], [dx]) = (io.specs, io.dy, &mut *io.dx) else { return Err(wrong_operands(OP)) };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
    let (plan, dtype) = (Plan::new(op, x)?, x.dtype());
    let (lines, [_, w], [_, to_w]) = (plan.planes * plan.from[0], plan.from, plan.to);
    let mut wide = gpu.scratch(Spec::f32([lines, to_w])?)?;
    let short = |n: usize| Ok::<_, Error>(Arg::I32(launch::short(OP, "size", n)?));
    let mut args = vec![Arg::Out(&mut wide), Arg::In(dy), launch::length(OP, "planes", plan.planes)?];
    args.extend([short(plan.from[0])?, short(plan.to[0])?, short(to_w)?, Arg::I32(op.align_corners.into())]);
    let rows = Launch::linear(blocks("h", lines * plan.runs())?, THREADS as u32);
    BWD_ROWS.launch(gpu, dtype, rows, &mut args)?;
    let mut args = vec![Arg::Out(dx), Arg::In(&wide), launch::length(OP, "rows", lines)?];
    args.extend([short(w)?, short(to_w)?, plan.aligned, Arg::I32(add)]);
    BWD_DX.launch(gpu, dtype, Launch::linear(blocks("x", lines * w)?, THREADS as u32), &mut args)
}
