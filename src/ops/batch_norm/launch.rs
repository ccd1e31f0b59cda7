//! The launches.

use super::whole::{self, Whole};
use super::{BIAS, BatchNorm, MEAN, Size, Statistics, VAR, WEIGHT, X};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel};
use crate::error::Result;
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::launch::{self, Pieces};
use crate::ops::operator::{Backward, Forward, GradSlot};
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

pub(super) const OP: &str = "batch_norm";
pub(super) const SOURCE: Source = crate::source!("batch_norm/batch_norm.cu");
static FWD_PARTIAL: Kernel = Kernel::new(SOURCE, "batch_norm_fwd_partial");
static FWD_STATS: Kernel = Kernel::new(SOURCE, "batch_norm_fwd_stats");
static FWD_RUNNING: Kernel = Kernel::new(SOURCE, "batch_norm_fwd_running");
static FWD: Kernel = Kernel::new(SOURCE, "batch_norm_fwd");
static BWD_SUMS: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_sums");
static BWD_SUM: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_sum");
static BWD_TOTAL: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_total");
static BWD_DPARAM: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_dparam");
static BWD_KEPT: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_kept");
static BWD_DMEAN: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_dmean");
static BWD_DVAR: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_dvar");
static BWD_CHANNELS: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_channels");
static BWD_DX: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_dx");
static BWD_DX_RUNNING: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_dx_running");

impl Size {
    /// Of the kernels over pieces: batch, channels, space, pieces.
    fn axes<'a>(self, pieces: &Pieces) -> Result<[Arg<'a>; 4]> {
        let short = |axis, n| launch::short(OP, axis, n).map(Arg::I32);
        Ok([short("B", self.batch)?, short("C", self.channels)?, short("space", self.space)?, pieces.each()])
    }

    /// Of the flat kernels: numbers, channels, space.
    fn flat<'a>(self) -> Result<[Arg<'a>; 3]> {
        let n = launch::length(OP, "elements", self.n() * self.channels)?;
        Ok([n, self.by_channel()?, launch::length(OP, "space", self.space)?])
    }

    fn by_channel<'a>(self) -> Result<Arg<'a>> {
        launch::length(OP, "C", self.channels)
    }

    fn scratch(self, gpu: &Gpu) -> Result<Tensor> {
        gpu.scratch(Spec::f32([self.channels])?)
    }
}

/// Forward.
pub(super) fn forward(op: &BatchNorm, gpu: &Gpu, io: Forward<'_>) -> Result<()> {
    let [x, weight, bias, running_mean, running_var] = io.x else { return Err(wrong_operands(OP)) };
    let (s, dtype) = (Size::of(x.spec()), x.spec().dtype());
    let Statistics::Batch { momentum } = op.statistics else {
        let [y] = io.y else { return Err(wrong_operands(OP)) };
        let rstd = running_rstd(op, gpu, dtype, s, running_var)?;
        return normalise(gpu, s, y, [x, weight, bias], (running_mean, &rstd.view()));
    };
    let ([y, new_mean, new_var], [mean, rstd]) = (io.y, io.saved) else { return Err(wrong_operands(OP)) };
    let (m, n) = (f64::from(momentum), s.n() as f64);
    let rates = [f64::from(op.eps), 1.0 - m, m, m * n / (n - 1.0)].map(|v| Arg::F32(v as f32));
    if let Some(whole) = Whole::of(gpu, s, dtype, 1, &[x, y]) {
        let mut args = vec![Arg::Out(y), Arg::Out(new_mean), Arg::Out(new_var), Arg::Out(mean), Arg::Out(rstd)];
        args.extend([x, weight, bias, running_mean, running_var].map(|x| Arg::In(x)));
        args.extend(whole.args()?.into_iter().chain(rates));
        return whole::FWD.launch(gpu, dtype, whole.launch()?, &mut args);
    }
    let pieces = Pieces::new(OP, dtype, s.channels, s.n())?;
    let (mut means, mut squares) = (pieces.scratch(gpu)?, pieces.scratch(gpu)?);
    let mut args = vec![Arg::Out(&mut means), Arg::Out(&mut squares), Arg::In(x)];
    args.extend(s.axes(&pieces)?);
    FWD_PARTIAL.launch(gpu, dtype, pieces.launch(OP)?, &mut args)?;
    let mut args = vec![Arg::Out(new_mean), Arg::Out(new_var), Arg::Out(&mut *mean), Arg::Out(&mut *rstd)];
    args.extend([Arg::In(running_mean), Arg::In(running_var), Arg::In(&means), Arg::In(&squares)]);
    args.extend([s.by_channel()?, pieces.count(), pieces.each()]);
    args.extend(rates);
    FWD_STATS.launch(gpu, dtype, launch::warps(OP, gpu, s.channels)?, &mut args)?;
    normalise(gpu, s, y, [x, weight, bias], (&mean.as_view(), &rstd.as_view()))
}

/// rstd of the running statistics.
fn running_rstd(op: &BatchNorm, gpu: &Gpu, dtype: Dtype, s: Size, var: &View<'_>) -> Result<Tensor> {
    let mut rstd = s.scratch(gpu)?;
    let args = &mut [Arg::Out(&mut rstd), Arg::In(var), s.by_channel()?, Arg::F32(op.eps)];
    FWD_RUNNING.launch(gpu, dtype, launch::each(OP, "C", s.channels)?, args)?;
    Ok(rstd)
}

fn normalise(
    gpu: &Gpu,
    s: Size,
    y: &mut ViewMut<'_>,
    [x, weight, bias]: [&View<'_>; 3],
    (mean, rstd): (&View<'_>, &View<'_>),
) -> Result<()> {
    let dtype = x.spec().dtype();
    let mut args = vec![Arg::Out(y), Arg::In(x), Arg::In(weight), Arg::In(bias), Arg::In(mean), Arg::In(rstd)];
    args.extend(s.flat()?);
    FWD.launch(gpu, dtype, launch::flat(OP, dtype, 1, x.spec().len())?, &mut args)
}

/// What every gradient of a backward pass shares.
struct Pass<'a> {
    gpu: &'a Gpu,
    s: Size,
    dtype: Dtype,
    dy: View<'a>,
    mean: Option<View<'a>>,
    rstd: Option<View<'a>>,
}

/// Backward.
pub(super) fn backward(op: &BatchNorm, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    if io.dy.iter().all(Option::is_none) {
        return no_gradient(io.dx);
    }
    let [x, ..] = io.specs else { return Err(wrong_operands(OP)) };
    let (s, dtype) = (Size::of(x), x.dtype());
    // Only the new statistics have a gradient: that of y is zero.
    let zeros = if io.dy.first().is_some_and(Option::is_none) { Some(zeros(gpu, x)?) } else { None };
    let dy = io.dy.first().and_then(Option::as_ref).cloned().or(zeros.as_ref().map(Tensor::view));
    let dy = dy.ok_or_else(|| wrong_operands(OP))?;
    let kept = |i: usize| io.x.get(i).and_then(Option::as_ref);
    let computed = match (op.statistics, kept(VAR)) {
        (Statistics::Running, Some(var)) => Some(running_rstd(op, gpu, dtype, s, var)?),
        _ => None,
    };
    let (mean, rstd) = match (op.statistics, io.saved) {
        (Statistics::Batch { .. }, [mean, rstd]) => (Some(mean.clone()), Some(rstd.clone())),
        _ => (kept(MEAN).cloned(), computed.as_ref().map(Tensor::view)),
    };
    let pass = Pass { gpu, s, dtype, dy, mean, rstd };
    if let (Statistics::Batch { momentum }, [GradSlot::Set(_) | GradSlot::Add(_), ..]) = (op.statistics, &*io.dx) {
        let (Some(x), Some(weight)) = (kept(X), kept(WEIGHT)) else { return Err(wrong_operands(OP)) };
        return pass.batch(io.dx, (x, weight), [1, 2].map(|i| io.dy.get(i).and_then(Option::as_ref)), momentum);
    }
    let wanted: Vec<bool> = io.dx.iter().map(GradSlot::is_wanted).collect();
    let any = |inputs: &[usize]| inputs.iter().any(|&i| wanted.get(i).copied().unwrap_or(false));
    let is_batch = matches!(op.statistics, Statistics::Batch { .. });
    let needs_products = any(if is_batch { &[WEIGHT] } else { &[VAR, WEIGHT] });
    let needs_sums = any(if is_batch { &[BIAS] } else { &[MEAN, BIAS] });
    let (sum, product) = match (needs_products, needs_sums) {
        (false, false) => (None, None),
        (false, true) => (Some(pass.sum()?), None),
        (true, _) => {
            let (sum, product) = pass.sums(kept(X).ok_or_else(|| wrong_operands(OP))?)?;
            (Some(sum), Some(product))
        }
    };
    let (sum, product) = (sum.as_ref(), product.as_ref());
    let [dx, dweight, dbias, dmean, dvar] = &mut *io.dx else { return Err(wrong_operands(OP)) };
    pass.param(dweight, product)?;
    pass.param(dbias, sum)?;
    match op.statistics {
        Statistics::Batch { momentum } => {
            let new = |i: usize| io.dy.get(i).and_then(Option::as_ref);
            pass.kept(dmean, new(1), momentum)?;
            pass.kept(dvar, new(2), momentum)
        }
        Statistics::Running => {
            pass.running(dmean, &BWD_DMEAN, kept(WEIGHT), sum)?;
            pass.running(dvar, &BWD_DVAR, kept(WEIGHT), product)?;
            let (Some((dx, add)), Some(weight), Some(rstd)) = (launch::slot(dx), kept(WEIGHT), &pass.rstd) else {
                return Ok(());
            };
            let mut args = vec![Arg::Out(dx), Arg::In(weight), Arg::In(rstd), Arg::In(&pass.dy)];
            args.extend(s.flat()?.into_iter().chain([Arg::I32(add)]));
            BWD_DX_RUNNING.launch(gpu, dtype, launch::flat(OP, dtype, 1, x.len())?, &mut args)
        }
    }
}

fn zeros(gpu: &Gpu, spec: &Spec) -> Result<Tensor> {
    let mut zeros = gpu.scratch(spec.clone())?;
    match zeros.view_mut() {
        Some(mut view) => view.zero()?,
        None => unreachable!("a tensor that was just allocated is not shared"),
    }
    Ok(zeros)
}

impl Pass<'_> {
    fn pieces(&self) -> Result<Pieces> {
        Pieces::new(OP, self.dtype, self.s.channels, self.s.n())
    }

    fn statistics(&self) -> Result<(&View<'_>, &View<'_>)> {
        self.mean.as_ref().zip(self.rstd.as_ref()).ok_or_else(|| wrong_operands(OP))
    }

    /// Σ dy of every channel.
    fn sum(&self) -> Result<Tensor> {
        let pieces = self.pieces()?;
        let mut partial = pieces.scratch(self.gpu)?;
        let mut args = vec![Arg::Out(&mut partial), Arg::In(&self.dy)];
        args.extend(self.s.axes(&pieces)?);
        BWD_SUM.launch(self.gpu, self.dtype, pieces.launch(OP)?, &mut args)?;
        self.total(&partial, &pieces)
    }

    /// Σ dy and Σ dy · z of every channel.
    fn sums(&self, x: &View<'_>) -> Result<(Tensor, Tensor)> {
        let (pieces, [sums, products]) = self.sums_of_pieces(x)?;
        Ok((self.total(&sums, &pieces)?, self.total(&products, &pieces)?))
    }

    /// The same of every piece.
    fn sums_of_pieces(&self, x: &View<'_>) -> Result<(Pieces, [Tensor; 2])> {
        let (pieces, (mean, rstd)) = (self.pieces()?, self.statistics()?);
        let (mut sums, mut products) = (pieces.scratch(self.gpu)?, pieces.scratch(self.gpu)?);
        let mut args = vec![Arg::Out(&mut sums), Arg::Out(&mut products), Arg::In(x)];
        args.extend([Arg::In(mean), Arg::In(rstd), Arg::In(&self.dy)]);
        args.extend(self.s.axes(&pieces)?);
        BWD_SUMS.launch(self.gpu, self.dtype, pieces.launch(OP)?, &mut args)?;
        Ok((pieces, [sums, products]))
    }

    fn total(&self, partial: &Tensor, pieces: &Pieces) -> Result<Tensor> {
        let mut total = self.s.scratch(self.gpu)?;
        let args = &mut [Arg::Out(&mut total), Arg::In(partial), self.s.by_channel()?, pieces.each()];
        BWD_TOTAL.launch(self.gpu, self.dtype, launch::warps(OP, self.gpu, self.s.channels)?, args)?;
        Ok(total)
    }

    /// A total as the gradient of weight or bias.
    fn param(&self, slot: &mut GradSlot<'_>, total: Option<&Tensor>) -> Result<()> {
        let (Some((d, add)), Some(total)) = (launch::slot(slot), total) else { return Ok(()) };
        let args = &mut [Arg::Out(d), Arg::In(total), self.s.by_channel()?, Arg::I32(add)];
        BWD_DPARAM.launch(self.gpu, self.dtype, launch::each(OP, "C", self.s.channels)?, args)
    }

    /// What of the gradient of a new statistic is the old one's.
    fn kept(&self, slot: &mut GradSlot<'_>, new: Option<&View<'_>>, momentum: f32) -> Result<()> {
        let Some(new) = new else { return no_gradient(std::slice::from_mut(slot)) };
        let Some((d, add)) = launch::slot(slot) else { return Ok(()) };
        let share = Arg::F32((1.0 - f64::from(momentum)) as f32);
        let args = &mut [Arg::Out(d), Arg::In(new), self.s.by_channel()?, share, Arg::I32(add)];
        BWD_KEPT.launch(self.gpu, self.dtype, launch::each(OP, "C", self.s.channels)?, args)
    }

    /// The gradient of a running statistic that y was computed with.
    fn running(
        &self,
        slot: &mut GradSlot<'_>,
        kernel: &Kernel,
        weight: Option<&View<'_>>,
        total: Option<&Tensor>,
    ) -> Result<()> {
        let (Some((d, add)), Some(weight), Some(total), Some(rstd)) = (launch::slot(slot), weight, total, &self.rstd)
        else {
            return Ok(());
        };
        let args =
            &mut [Arg::Out(d), Arg::In(weight), Arg::In(rstd), Arg::In(total), self.s.by_channel()?, Arg::I32(add)];
        kernel.launch(self.gpu, self.dtype, launch::each(OP, "C", self.s.channels)?, args)
    }

    /// All gradients under batch statistics, that of x among them.
    fn batch(
        &self,
        dx: &mut [GradSlot<'_>],
        (x, weight): (&View<'_>, &View<'_>),
        [d_mean, d_var]: [Option<&View<'_>>; 2],
        momentum: f32,
    ) -> Result<()> {
        let [dx, dweight, dbias, old_mean, old_var] = dx else { return Err(wrong_operands(OP)) };
        self.kept(old_mean, d_mean, momentum)?;
        self.kept(old_var, d_var, momentum)?;
        let Some((dx, add)) = launch::slot(dx) else { return Err(wrong_operands(OP)) };
        let (mean, rstd) = self.statistics()?;
        let (m, n) = (f64::from(momentum), self.s.n() as f64);
        let shares = [n, m / n, 2.0 * m / (n - 1.0)].map(|v| Arg::F32(v as f32));
        let (mut args, mut adds) = (Vec::new(), Vec::new());
        for to in [launch::slot(dweight), launch::slot(dbias)] {
            adds.push(Arg::I32(to.as_ref().map_or(0, |(_, add)| *add)));
            args.push(to.map_or(Arg::Null, |(to, _)| Arg::Out(to)));
        }
        if let Some(whole) = Whole::of(self.gpu, self.s, self.dtype, 2, &[x, &self.dy, &*dx]) {
            args.insert(0, Arg::Out(dx));
            args.extend([x, weight, mean, rstd, &self.dy].map(|x| Arg::In(x)));
            args.extend([d_mean, d_var].map(|d| d.map_or(Arg::Null, |d| Arg::In(d))));
            args.extend(whole.args()?.into_iter().chain(shares).chain([Arg::I32(add)]).chain(adds));
            return whole::BWD.launch(self.gpu, self.dtype, whole.launch()?, &mut args);
        }
        let (pieces, [sums, products]) = self.sums_of_pieces(x)?;
        let (mut shift, mut slope) = (self.s.scratch(self.gpu)?, self.s.scratch(self.gpu)?);
        args.extend([Arg::Out(&mut shift), Arg::Out(&mut slope), Arg::In(&sums), Arg::In(&products)]);
        args.extend([Arg::In(weight), Arg::In(rstd)]);
        args.extend([d_mean, d_var].map(|d| d.map_or(Arg::Null, |d| Arg::In(d))));
        args.extend([self.s.by_channel()?, pieces.each()]);
        args.extend(shares);
        args.extend(adds);
        BWD_CHANNELS.launch(self.gpu, self.dtype, launch::warps(OP, self.gpu, self.s.channels)?, &mut args)?;
        let mut args = vec![Arg::Out(dx), Arg::In(x), Arg::In(weight), Arg::In(mean), Arg::In(rstd)];
        args.extend([Arg::In(&shift), Arg::In(&slope), Arg::In(&self.dy)]);
        args.extend(self.s.flat()?.into_iter().chain([Arg::I32(add)]));
        BWD_DX.launch(self.gpu, self.dtype, launch::flat(OP, self.dtype, 2, x.spec().len())?, &mut args)
    }
}
