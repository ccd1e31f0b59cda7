//! The launches: forward a pass for every axis that is summed, the innermost first; backward the outermost first.

use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Variant};
use crate::error::Result;
use crate::ops::launch;
use crate::ops::operator::GradSlot;
use crate::ops::reduce::Dim;
use crate::ops::totals::{self, Numbers, SumKernels};
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

const OP: &str = "reduce";
pub(super) const SOURCE: Source = crate::source!("reduce/reduce.cu");
static FWD_ROWS: Kernel = Kernel::new(SOURCE, "reduce_fwd_rows");
static FWD_ROWS_AGAIN: Kernel = Kernel::new(SOURCE, "reduce_fwd_rows_again");
static FWD_AXIS: Kernel = Kernel::new(SOURCE, "reduce_fwd_axis");
static FWD_AXIS_AGAIN: Kernel = Kernel::new(SOURCE, "reduce_fwd_axis_again");
static BWD_DX: Kernel = Kernel::new(SOURCE, "reduce_bwd_dx");
static BWD_DX_FIRST: Kernel = Kernel::new(SOURCE, "reduce_bwd_dx_first");
static BWD_DX_NEXT: Kernel = Kernel::new(SOURCE, "reduce_bwd_dx_next");
static BWD_DX_LAST: Kernel = Kernel::new(SOURCE, "reduce_bwd_dx_last");
const FWD: SumKernels =
    SumKernels { rows: &FWD_ROWS, axis: &FWD_AXIS, rows_again: &FWD_ROWS_AGAIN, axis_again: &FWD_AXIS_AGAIN };

/// `y` is the sums of `x` with axes `dims`, over `terms`.
pub(super) fn forward(gpu: &Gpu, x: &View<'_>, y: &mut ViewMut<'_>, dims: &[Dim], terms: usize) -> Result<()> {
    if x.spec().is_empty() {
        return y.zero();
    }
    let dtype = x.spec().dtype();
    let tail = || Ok(vec![launch::length(OP, "terms", terms)?]);
    totals::reduce(gpu, OP, FWD, &Variant::of(dtype), Numbers::Of(dtype), (y, x), dims, tail)
}

/// Spreads `dy` over axes `dims`, divided by `terms`.
pub(super) fn backward(gpu: &Gpu, dy: &View<'_>, dx: &mut GradSlot<'_>, dims: &[Dim], terms: usize) -> Result<()> {
    let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
    let dtype = dy.spec().dtype();
    let summed: Vec<usize> = (0..dims.len()).filter(|&i| !dims[i].1).collect();
    let steps: Vec<[usize; 3]> = summed.iter().map(|&at| step(dims, at)).collect();
    let (last, before) = match steps.split_last() {
        Some((last, before)) => (*last, before),
        None => ([1, 1, dx.spec().len()], &[][..]),
    };
    let mut terms = terms as f32;
    let mut share: Option<Tensor> = None;
    for &step in before {
        let to = gpu.scratch(Spec::f32([step.iter().product()])?)?;
        let (kernel, from): (_, &dyn Operand) = share.as_ref().map_or((&BWD_DX_FIRST, dy as _), |s| (&BWD_DX_NEXT, s));
        let mut args = vec![Arg::Out(&to), Arg::In(from)];
        args.extend(lengths(step)?.into_iter().chain([Arg::F32(terms)]));
        kernel.launch(gpu, dtype, launch::flat(OP, Dtype::F32, 0, to.spec().len())?, &mut args)?;
        drop(args);
        (share, terms) = (Some(to), 1.0);
    }
    let (kernel, from): (_, &dyn Operand) = share.as_ref().map_or((&BWD_DX, dy as _), |s| (&BWD_DX_LAST, s));
    let blocks = launch::flat(OP, dtype, 0, dx.spec().len())?;
    let mut args = vec![Arg::Out(dx), Arg::In(from)];
    args.extend(lengths(last)?.into_iter().chain([Arg::F32(terms), Arg::I32(add)]));
    kernel.launch(gpu, dtype, blocks, &mut args)
}

/// What the pass that spreads over axis `at` makes: all axes before it, its own length, and those behind it that are kept.
fn step(dims: &[Dim], at: usize) -> [usize; 3] {
    let product = |dims: &[Dim], all: bool| dims.iter().filter(|d| all || d.1).map(|d| d.0).product();
    [product(&dims[..at], true), dims[at].0, product(&dims[at + 1..], false)]
}

/// All numbers, those of the axis, those of the axes behind it.
fn lengths<'a>([outer, n, inner]: [usize; 3]) -> Result<[Arg<'a>; 3]> {
    let length = |n| launch::length(OP, "elements", n);
    Ok([length(outer * n * inner)?, length(n)?, length(inner)?])
}
