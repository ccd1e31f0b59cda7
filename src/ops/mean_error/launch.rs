//! The launches of both rooms: `kernels/common/mean_error.cuh`.

use super::{MeanError, Weighting};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Variant};
use crate::error::Result;
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::launch::{self, length};
use crate::ops::operator::{Backward, Forward};
use crate::ops::totals::{self, Numbers, RowTeams, SumKernels, THREADS};
use crate::tensor::{Dtype, Tensor, View};

/// The kernels of a room.
#[derive(Debug)]
pub(crate) struct Kernels {
    pub(crate) sums: Kernel,
    pub(crate) fwd: Kernel,
    pub(crate) dp: Kernel,
    pub(crate) dy: Kernel,
    pub(crate) dweight_rows: Kernel,
    pub(crate) dweight_axis: Kernel,
}

/// Prediction, target, and how they are weighted.
struct Operands<'s, 'a> {
    p: &'s View<'a>,
    y: &'s View<'a>,
    weight: Option<&'s View<'a>>,
    weighting: Weighting,
    variant: Variant,
}

impl<'s, 'a> Operands<'s, 'a> {
    fn new(p: &'s View<'a>, y: &'s View<'a>, weight: Option<&'s View<'a>>, weighting: Weighting) -> Self {
        let variant = Variant::of(p.spec().dtype()).with_type("TARGET", y.spec().dtype());
        Operands { p, y, weight, weighting, variant }
    }

    fn n(&self) -> usize {
        self.p.spec().len()
    }

    fn widest(&self) -> Dtype {
        totals::widest(self.p.spec().dtype(), self.y.spec().dtype())
    }

    /// Sums of the stretches of `rows` rows, of each number times its weight, or without.
    fn sums<E: MeanError>(&self, gpu: &Gpu, rows: usize, is_weighted: bool) -> Result<(RowTeams, Tensor)> {
        let teams = RowTeams::new(gpu, Numbers::Of(self.widest()), rows, self.n() / rows);
        let to = totals::sums(gpu, teams.items())?;
        let weight = self.weight.filter(|_| is_weighted);
        let (width, weights) = weight.map_or((self.n(), 1), |w| (self.weighting.width, w.spec().len()));
        let mut args = vec![Arg::Out(&to), Arg::In(self.p), Arg::In(self.y), operand(weight)];
        args.extend([length(E::NAME, "W", width)?, length(E::NAME, "H", weights)?]);
        args.extend(teams.args(E::NAME)?);
        E::kernels().sums.launch_as(gpu, &self.variant, teams.launch(E::NAME)?, &mut args)?;
        drop(args);
        Ok((teams, to))
    }
}

fn operand<'a>(x: Option<&'a View<'_>>) -> Arg<'a> {
    x.map_or(Arg::Null, |x| Arg::In(x))
}

/// Forward.
pub(super) fn forward<E: MeanError>(gpu: &Gpu, io: Forward<'_>) -> Result<()> {
    let ([p, y, weight @ ..], [loss]) = (io.x, io.y) else { return Err(wrong_operands(E::NAME)) };
    let x = Operands::new(p, y, weight.first(), Weighting::of(p.spec(), weight.first().map(View::spec)));
    let (teams, sums) = x.sums::<E>(gpu, 1, true)?;
    let args = &mut [
        Arg::Out(loss),
        Arg::In(&sums),
        length(E::NAME, "stretches", teams.items())?,
        length(E::NAME, "elements", x.n())?,
    ];
    E::kernels().fwd.launch_as(gpu, &x.variant, Launch::linear(1, THREADS as u32), args)
}

/// Backward.
pub(super) fn backward<E: MeanError>(gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([dloss], [dp, dy, dweight @ ..]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands(E::NAME)) };
    let Some(dloss) = dloss else { return no_gradient(io.dx) };
    let (p, y) = (launch::kept(E::NAME, io.x, 0)?, launch::kept(E::NAME, io.x, 1)?);
    let weight = io.x.get(2).and_then(Option::as_ref);
    let x = Operands::new(p, y, weight, Weighting::of(io.specs[0], io.specs.get(2).copied()));
    let factor = (E::FACTOR / x.n() as f64) as f32;
    for (slot, kernel, factor) in [(dp, &E::kernels().dp, factor), (dy, &E::kernels().dy, -factor)] {
        let Some((d, add)) = launch::slot(slot) else { continue };
        let mut args = vec![Arg::Out(d), Arg::In(p), Arg::In(y), operand(weight), Arg::In(dloss)];
        let lengths = [("elements", x.n()), ("W", x.weighting.width), ("H", x.weighting.weights.max(1))];
        for (axis, n) in lengths {
            args.push(length(E::NAME, axis, n)?);
        }
        args.extend([Arg::F32(factor), Arg::I32(add)]);
        kernel.launch_as(gpu, &x.variant, launch::flat(E::NAME, x.widest(), 2, x.n())?, &mut args)?;
    }
    let Some((to, add)) = dweight.first_mut().and_then(launch::slot) else { return Ok(()) };
    let w = x.weighting;
    let (teams, sums) = x.sums::<E>(gpu, w.rows, false)?;
    let k = E::kernels();
    let kernels = SumKernels {
        rows: &k.dweight_rows,
        axis: &k.dweight_axis,
        rows_again: &k.dweight_rows,
        axis_again: &k.dweight_axis,
    };
    let dims = totals::of_rows(w.rows, w.weights, teams.stretches());
    let tail = || Ok(vec![Arg::In(dloss as &dyn Operand), length(E::NAME, "elements", x.n())?, Arg::I32(add)]);
    totals::reduce(gpu, E::NAME, kernels, &x.variant, Numbers::Sums, (to, &sums), &dims, tail)
}
