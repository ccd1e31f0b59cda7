//! The launches.

use super::Sizes;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Variant};
use crate::error::Result;
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::launch::{self, length};
use crate::ops::operator::{Backward, Forward, GradSlot};
use crate::ops::totals::{self, Numbers, RowTeams, SumKernels};
use crate::tensor::{Dtype, Spec, Tensor, View};

const OP: &str = "relative_l2";
pub(super) const SOURCE: Source = crate::source!("relative_l2/relative_l2.cu");
static FWD_SUMS: Kernel = Kernel::new(SOURCE, "relative_l2_fwd_sums");
static FWD_NORMS: Kernel = Kernel::new(SOURCE, "relative_l2_fwd_norms");
static FWD: Kernel = Kernel::new(SOURCE, "relative_l2_fwd");
static BWD_SCALES: Kernel = Kernel::new(SOURCE, "relative_l2_bwd_scales");
static BWD_DP: Kernel = Kernel::new(SOURCE, "relative_l2_bwd_dp");
static BWD_DY: Kernel = Kernel::new(SOURCE, "relative_l2_bwd_dy");
static BWD_DWEIGHT: Kernel = Kernel::new(SOURCE, "relative_l2_bwd_dweight");
static BWD_DWEIGHT_ROWS: Kernel = Kernel::new(SOURCE, "relative_l2_bwd_dweight_rows");
static BWD_DWEIGHT_AXIS: Kernel = Kernel::new(SOURCE, "relative_l2_bwd_dweight_axis");

fn variant(p: &View<'_>, y: &View<'_>) -> (Variant, Dtype) {
    let (p, y) = (p.spec().dtype(), y.spec().dtype());
    (Variant::of(p).with_type("TARGET", y), totals::widest(p, y))
}

fn operand<'a>(x: Option<&'a View<'_>>) -> Arg<'a> {
    x.map_or(Arg::Null, |x| Arg::In(x))
}

/// Forward.
pub(super) fn forward(gpu: &Gpu, io: Forward<'_>) -> Result<()> {
    let ([p, y, weight @ ..], [loss], [error, norm]) = (io.x, io.y, io.saved) else {
        return Err(wrong_operands(OP));
    };
    let (s, (variant, widest)) = (Sizes::of(p.spec(), weight.first().map(View::spec)), variant(p, y));
    let teams = RowTeams::new(gpu, Numbers::Of(widest), s.b, s.n());
    let squares = totals::sums(gpu, 2 * teams.items())?;
    let mut args = vec![Arg::Out(&squares), Arg::In(p), Arg::In(y), operand(weight.first())];
    args.extend([length(OP, "W", s.width)?, length(OP, "H", s.weights.max(1))?]);
    args.extend(teams.args(OP)?);
    FWD_SUMS.launch_as(gpu, &variant, teams.launch(OP)?, &mut args)?;
    let ratios = totals::sums(gpu, s.b)?;
    let pairs = RowTeams::new(gpu, Numbers::Sums, s.b, teams.stretches());
    let mut args = vec![Arg::Out(error), Arg::Out(norm), Arg::Out(&ratios), Arg::In(&squares)];
    args.extend([length(OP, "B", s.b)?, length(OP, "stretches", teams.stretches())?, pairs.lanes(OP)?]);
    FWD_NORMS.launch_as(gpu, &variant, pairs.launch(OP)?, &mut args)?;
    let kernels = SumKernels { rows: &FWD, axis: &FWD, rows_again: &FWD, axis_again: &FWD };
    let tail = || Ok(vec![length(OP, "B", s.b)?]);
    totals::reduce(gpu, OP, kernels, &variant, Numbers::Sums, (loss, &ratios), &[(s.b, false)], tail)
}

/// Backward.
pub(super) fn backward(gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([error, norm], [dloss], [dp, dy, dweight @ ..]) = (io.saved, io.dy, &mut *io.dx) else {
        return Err(wrong_operands(OP));
    };
    let Some(dloss) = dloss else { return no_gradient(io.dx) };
    let (p, y) = (launch::kept(OP, io.x, 0)?, launch::kept(OP, io.x, 1)?);
    let weight = io.x.get(2).and_then(Option::as_ref);
    let (s, (variant, widest)) = (Sizes::of(io.specs[0], io.specs.get(2).copied()), variant(p, y));
    let scales = gpu.scratch(Spec::new(Dtype::I32, [s.b, 4])?)?;
    let args = &mut [Arg::Out(&scales), Arg::In(error), Arg::In(norm), Arg::In(dloss), length(OP, "B", s.b)?];
    BWD_SCALES.launch_as(gpu, &variant, launch::each(OP, "B", s.b)?, args)?;
    for (slot, kernel) in [(dp, &BWD_DP), (dy, &BWD_DY)] {
        let Some((d, add)) = launch::slot(slot) else { continue };
        let mut args = vec![Arg::Out(d), Arg::In(p), Arg::In(y), operand(weight), Arg::In(&scales)];
        let n = p.spec().len();
        for (axis, n) in [("elements", n), ("W", s.width), ("rows", s.rows), ("H", s.weights.max(1))] {
            args.push(length(OP, axis, n)?);
        }
        args.push(Arg::I32(add));
        kernel.launch_as(gpu, &variant, launch::flat(OP, widest, 2, n)?, &mut args)?;
    }
    match dweight {
        [slot] => weight_gradient(gpu, s, (p, y), &scales, slot),
        _ => Ok(()),
    }
}

fn weight_gradient(
    gpu: &Gpu,
    s: Sizes,
    (p, y): (&View<'_>, &View<'_>),
    scales: &Tensor,
    slot: &mut GradSlot<'_>,
) -> Result<()> {
    let Some((to, add)) = launch::slot(slot) else { return Ok(()) };
    let ((variant, widest), rows) = (variant(p, y), s.b * s.rows);
    let teams = RowTeams::new(gpu, Numbers::Of(widest), rows, s.width);
    let sums = totals::sums(gpu, teams.items())?;
    let mut args = vec![Arg::Out(&sums), Arg::In(p), Arg::In(y), Arg::In(scales), length(OP, "rows", s.rows)?];
    args.extend(teams.args(OP)?);
    BWD_DWEIGHT.launch_as(gpu, &variant, teams.launch(OP)?, &mut args)?;
    let (rows_of, axis_of) = (&BWD_DWEIGHT_ROWS, &BWD_DWEIGHT_AXIS);
    let kernels = SumKernels { rows: rows_of, axis: axis_of, rows_again: rows_of, axis_again: axis_of };
    let dims = totals::of_rows(rows, s.weights, teams.stretches());
    totals::reduce(gpu, OP, kernels, &variant, Numbers::Sums, (to, &sums), &dims, || Ok(vec![Arg::I32(add)]))
}
