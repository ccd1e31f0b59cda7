//! The launches.

use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel};
use crate::error::Result;
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::group_norm::{Axes, GroupNorm};
use crate::ops::launch::{self, ColumnSums, Pieces};
use crate::ops::operator::{Backward, Forward};
use crate::tensor::{Dtype, Spec, Tensor, View};

const OP: &str = "group_norm";
pub(super) const SOURCE: Source = crate::source!("group_norm/group_norm.cu");
static FWD_PARTIAL: Kernel = Kernel::new(SOURCE, "group_norm_fwd_partial");
static FWD_STATS: Kernel = Kernel::new(SOURCE, "group_norm_fwd_stats");
static FWD: Kernel = Kernel::new(SOURCE, "group_norm_fwd");
static BWD_SUMS: Kernel = Kernel::new(SOURCE, "group_norm_bwd_sums");
static BWD_TOTALS: Kernel = Kernel::new(SOURCE, "group_norm_bwd_totals");
static BWD_DPARAMS: Kernel = Kernel::new(SOURCE, "group_norm_bwd_dparams");
static BWD_TERMS: Kernel = Kernel::new(SOURCE, "group_norm_bwd_terms");
static BWD_DX: Kernel = Kernel::new(SOURCE, "group_norm_bwd_dx");
static BWD_DPARAM: Kernel = Kernel::new(SOURCE, "group_norm_bwd_dparam");
static BWD_DBETA: Kernel = Kernel::new(SOURCE, "group_norm_bwd_dbeta");

impl Axes {
    /// Every group of every sample.
    fn cells(self) -> usize {
        self.b * self.groups
    }

    /// The last lengths of the flat kernels: numbers, numbers of a sample, channels, groups.
    fn flat<'a>(self) -> Result<[Arg<'a>; 4]> {
        let sample = self.n * self.c;
        let [c, groups] = self.channels()?;
        Ok([launch::length(OP, "elements", self.b * sample)?, launch::length(OP, "sample", sample)?, c, groups])
    }

    fn channels<'a>(self) -> Result<[Arg<'a>; 2]> {
        Ok([launch::c(OP, self.c)?, Arg::I32(launch::short(OP, "groups", self.groups)?)])
    }
}

/// Forward.
pub(super) fn forward(op: &GroupNorm, gpu: &Gpu, io: Forward<'_>) -> Result<()> {
    let ([x, gamma, beta], [y], [mean, rstd]) = (io.x, io.y, io.saved) else { return Err(wrong_operands(OP)) };
    let (axes, dtype) = (op.axes(x.spec()), x.spec().dtype());
    let pieces = Pieces::new(OP, dtype, axes.cells(), axes.count())?;
    let (mut means, mut squares) = (pieces.scratch(gpu)?, pieces.scratch(gpu)?);
    let mut args = vec![Arg::Out(&mut means), Arg::Out(&mut squares), Arg::In(x)];
    args.push(Arg::I32(launch::short(OP, "tokens", axes.n)?));
    args.extend(axes.channels()?.into_iter().chain([pieces.each()]));
    FWD_PARTIAL.launch(gpu, dtype, pieces.launch(OP)?, &mut args)?;
    let mut args = vec![Arg::Out(&mut *mean), Arg::Out(&mut *rstd), Arg::In(&means), Arg::In(&squares)];
    args.extend([launch::length(OP, "groups", axes.cells())?, pieces.count(), pieces.each(), Arg::F32(op.eps)]);
    FWD_STATS.launch(gpu, dtype, launch::warps(OP, gpu, axes.cells())?, &mut args)?;
    let (mean, rstd) = (mean.as_view(), rstd.as_view());
    let mut args = vec![Arg::Out(y), Arg::In(x), Arg::In(gamma), Arg::In(beta), Arg::In(&mean), Arg::In(&rstd)];
    args.extend(axes.flat()?);
    FWD.launch(gpu, dtype, launch::flat(OP, dtype, 1, x.spec().len())?, &mut args)
}

/// Backward.
pub(super) fn backward(op: &GroupNorm, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([dy], [x, ..], [mean, rstd], [dx, dgamma, dbeta]) = (io.dy, io.specs, io.saved, &mut *io.dx) else {
        return Err(wrong_operands(OP));
    };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let (axes, dtype) = (op.axes(x), dy.spec().dtype());
    let (dx, dgamma, dbeta) = (launch::slot(dx), launch::slot(dgamma), launch::slot(dbeta));
    if dx.is_none() && dgamma.is_none() {
        let Some((dbeta, add)) = dbeta else { return Ok(()) };
        let sums = ColumnSums::new(gpu, dtype, 1, axes.b * axes.n, axes.c);
        let mut partial = sums.scratch(gpu)?;
        let mut args = vec![Arg::Out(&mut partial), Arg::In(dy)];
        args.extend(sums.args(OP)?);
        BWD_DBETA.launch(gpu, dtype, sums.launch(OP)?, &mut args)?;
        return sums.total(gpu, OP, &BWD_DPARAM, dtype, dbeta, &partial, Some(add));
    }
    let x = launch::kept(OP, io.x, 0)?;
    let (products, sums) = sample_sums(axes, gpu, (x, dy), (mean, rstd))?;
    if let Some((dx, add)) = dx {
        let gamma = launch::kept(OP, io.x, 1)?;
        let cells = || gpu.scratch(Spec::f32([axes.cells()])?);
        let (mut avg_h, mut avg_hn) = (cells()?, cells()?);
        let mut args =
            vec![Arg::Out(&mut avg_h), Arg::Out(&mut avg_hn), Arg::In(gamma), Arg::In(&products), Arg::In(&sums)];
        args.push(launch::length(OP, "groups", axes.cells())?);
        args.push(Arg::I32(launch::short(OP, "a group", axes.count())?));
        args.extend(axes.channels()?);
        BWD_TERMS.launch(gpu, dtype, launch::warps(OP, gpu, axes.cells())?, &mut args)?;
        let mut args = vec![Arg::Out(dx), Arg::In(x), Arg::In(gamma), Arg::In(mean), Arg::In(rstd)];
        args.extend([Arg::In(&avg_h), Arg::In(&avg_hn), Arg::In(dy)]);
        args.extend(axes.flat()?.into_iter().chain([Arg::I32(add)]));
        BWD_DX.launch(gpu, dtype, launch::flat(OP, dtype, 2, dy.spec().len())?, &mut args)?;
    }
    let (dgamma, dbeta) = match (dgamma, dbeta) {
        (Some((dgamma, add_dgamma)), Some((dbeta, add_dbeta))) => {
            let by_sample = ColumnSums::of_rows(axes.b, axes.c);
            let mut args = vec![Arg::Out(dgamma), Arg::Out(dbeta), Arg::In(&products), Arg::In(&sums)];
            args.extend(by_sample.total_args(OP)?.into_iter().chain([add_dgamma, add_dbeta].map(Arg::I32)));
            return BWD_DPARAMS.launch(gpu, dtype, by_sample.total_launch(OP, 2)?, &mut args);
        }
        one => one,
    };
    for (to, by_sample) in [(dgamma, &products), (dbeta, &sums)] {
        if let Some((to, add)) = to {
            let sums = ColumnSums::of_rows(axes.b, axes.c);
            sums.total(gpu, OP, &BWD_DPARAM, dtype, to, by_sample, Some(add))?;
        }
    }
    Ok(())
}

/// By sample and channel: Σ dy · n and Σ dy over tokens.
fn sample_sums(
    axes: Axes,
    gpu: &Gpu,
    (x, dy): (&View<'_>, &View<'_>),
    (mean, rstd): (&View<'_>, &View<'_>),
) -> Result<(Tensor, Tensor)> {
    let sums = ColumnSums::new(gpu, dy.spec().dtype(), axes.b, axes.n, axes.c);
    let (mut a, mut b) = (sums.scratch(gpu)?, sums.scratch(gpu)?);
    let mut args = vec![Arg::Out(&mut a), Arg::Out(&mut b), Arg::In(x), Arg::In(mean), Arg::In(rstd), Arg::In(dy)];
    args.push(launch::length(OP, "tokens", axes.n)?);
    args.extend(axes.channels()?.into_iter().chain(sums.stretch_args(OP)?));
    BWD_SUMS.launch(gpu, dy.spec().dtype(), sums.launch(OP)?, &mut args)?;
    let by_sample = || gpu.scratch(Spec::f32([axes.b, axes.c])?);
    let (mut products, mut plain) = (by_sample()?, by_sample()?);
    let mut args = vec![Arg::Out(&mut products), Arg::Out(&mut plain), Arg::In(&a), Arg::In(&b)];
    args.extend(sums.total_args(OP)?);
    BWD_TOTALS.launch(gpu, Dtype::F32, sums.total_launch(OP, 2)?, &mut args)?;
    Ok((products, plain))
}
