//! `layer_norm`: every row to mean 0 and variance 1, then scaled and shifted per column.

use crate::backend::Exec;
use crate::backend::cpu::vector;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, In, Out, TOUCH, map, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch::{self, ColumnSums, Held, Rows};
use crate::ops::norm::{RowBackward, normalise};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::{Scalar, sum};
use crate::tensor::{Dtype, Spec, View, ViewMut, expect_dtype, expect_shape};

/// Layer normalisation over the last axis.
///
/// ```text
/// y[r, c] = (x[r, c] − mean[r]) · rstd[r] · gamma[c] + beta[c]
/// ```
///
/// # Shapes
/// `x [.., C]`, `gamma [C]`, `beta [C]` → `y [.., C]`; saves `mean`, `rstd` `[rows]` in f32.
///
/// # Units
/// `y` is dimensionless up to the unit of `beta`; `eps` has the unit of `x` squared.
///
/// # Cost
/// forward `rows·(8C + 4)` vector, `rows` special; backward of `x` `rows·(12C + 2)` vector, of `gamma` `4·rows·C`, of `beta`
/// `rows·C`.
///
/// # Errors
/// [`Error::Shape`] if `gamma` or `beta` is not `[C]` or `C` is 0; [`Error::Dtype`] unless f32, bf16 or f16;
/// [`Error::Argument`] unless `eps` is positive and finite.
///
/// # Source
/// Ba, Kiros, Hinton 2016, section 3. Gradient by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance. Positive.
    pub eps: f32,
}

const SOURCE: Source = crate::source!("layer_norm/layer_norm.cu");
static FWD: Kernel = Kernel::new(SOURCE, "layer_norm_fwd");
static FWD_WIDE: Kernel = Kernel::new(SOURCE, "layer_norm_fwd_wide");
static BWD_DX: Kernel = Kernel::new(SOURCE, "layer_norm_bwd_dx");
static BWD_DX_WIDE: Kernel = Kernel::new(SOURCE, "layer_norm_bwd_dx_wide");
static BWD_DPARAMS: Kernel = Kernel::new(SOURCE, "layer_norm_bwd_dparams");
static BWD_DGAMMA: Kernel = Kernel::new(SOURCE, "layer_norm_bwd_dgamma");
static BWD_DBETA: Kernel = Kernel::new(SOURCE, "layer_norm_bwd_dbeta");
static BWD_TOTAL: Kernel = Kernel::new(SOURCE, "layer_norm_bwd_total");
static BWD_TOTALS: Kernel = Kernel::new(SOURCE, "layer_norm_bwd_totals");
const HELD_SOURCE: Source = crate::source!("layer_norm/layer_norm_held.cu");
const HELD_UNITS: [Unit; 2] = launch::held_units(HELD_SOURCE);
static FWD_HELD: Kernel = Kernel::new(HELD_SOURCE, "layer_norm_fwd_held");
static BWD_HELD: Kernel = Kernel::new(HELD_SOURCE, "layer_norm_bwd_held");
/// Packs that a thread of `SOURCE` holds: of one row forward, of each of two backward.
const HELD_FWD: usize = 8;
const HELD_BWD: usize = 4;

impl Arity<3> for LayerNorm {}

impl Operator for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x, gamma, beta] = expect_inputs("layer_norm", x)?;
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(Error::argument(format!("layer_norm: eps: expected a positive number, found {}", self.eps)));
        }
        let (rows, c) = x.rows_cols();
        if c == 0 {
            return Err(Error::shape(format!("layer_norm: x: expected C of 1 or more, found {:?}", x.shape())));
        }
        for (name, s) in [("x", x), ("gamma", gamma), ("beta", beta)] {
            expect_dtype("layer_norm", name, s, &Dtype::FLOATS)?;
        }
        expect_shape("layer_norm", "gamma", gamma, &[("C", c)])?;
        expect_shape("layer_norm", "beta", beta, &[("C", c)])?;
        Ok(Outputs { y: vec![(*x).clone()], saved: vec![Spec::f32([rows])?, Spec::f32([rows])?] })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let (rows, c) = x[0].rows_cols();
        let (rows, c) = (rows as u128, c as u128);
        let dx = if wanted.has(0) { rows * (12 * c + 2) } else { 0 };
        let dgamma = if wanted.has(1) { rows * 4 * c } else { 0 };
        let dbeta = if wanted.has(2) { rows * c } else { 0 };
        OpFlops {
            forward: Flops::vector(rows * (8 * c + 4)) + Flops::special(rows),
            backward: Flops::vector(dx + dgamma + dbeta),
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, gamma, beta], [y], [mean, rstd]) = (io.x, io.y, io.saved) else {
            return Err(wrong_operands("layer_norm"));
        };
        let (rows, c) = x.spec().rows_cols();
        if let Some(gpu) = exec.gpu() {
            let dtype = x.spec().dtype();
            if let Some(held) = Held::forward(gpu, dtype, [rows, c], &[x, gamma, beta, y]) {
                let mut args = vec![Arg::Out(y), Arg::Out(mean), Arg::Out(rstd)];
                args.extend([Arg::In(x), Arg::In(gamma), Arg::In(beta)]);
                args.extend(held.args("layer_norm")?.into_iter().chain([Arg::F32(self.eps)]));
                return FWD_HELD.launch_as(gpu, &held.variant(), held.launch("layer_norm")?, &mut args);
            }
            let place = Rows::new("layer_norm", gpu, dtype, rows, c, HELD_FWD)?;
            let mut args = vec![Arg::Out(y), Arg::Out(mean), Arg::Out(rstd), Arg::In(x), Arg::In(gamma), Arg::In(beta)];
            args.extend([launch::length("layer_norm", "rows", rows)?, launch::c("layer_norm", c)?, Arg::F32(self.eps)]);
            return place.pick(&FWD, &FWD_WIDE).launch(gpu, dtype, place.launch, &mut args);
        }
        let (gamma, beta) = (Floats::of(gamma)?.widened(), Floats::of(beta)?.widened());
        let to = [Out::of(y, c)?, Out::of(mean, 1)?, Out::of(rstd, 1)?];
        map(rows, 4 * TOUCH * c, [In::new(Floats::of(x)?, c)], to, |_, [x], [y, mean, rstd]| {
            let rows = x.chunks(c).zip(y.chunks_mut(c));
            for ((x, y), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
                *mean = vector::sum(x) / c as f32;
                let variance = vector::sum_squared_deviations(x, *mean) / c as f32;
                *rstd = 1.0 / (variance + self.eps).sqrt();
                normalise(x, (*mean, *rstd), &gamma, &beta, y);
            }
        });
        Ok(())
    }
}

impl Differentiable for LayerNorm {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let mut x = Mask::NONE;
        if wanted.has(0) || wanted.has(1) {
            x = x.with(0);
        }
        Keeps { x: if wanted.has(0) { x.with(1) } else { x }, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch_bwd(gpu, io);
        }
        let ([dy], [x, ..], [mean, rstd], [dx, dgamma, dbeta]) = (io.dy, io.specs, io.saved, &mut *io.dx) else {
            return Err(wrong_operands("layer_norm"));
        };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let c = x.last();
        let gamma = Floats::kept(io.x.get(1))?.widened();
        let (x, dy) = (Floats::kept(io.x.first())?, Floats::of(dy)?);
        RowBackward { c, x, dy, gamma: &gamma, mean: Some(mean.f32()?), rstd: rstd.f32()? }.run(
            Out::slot(dx, c)?,
            Out::slot(dgamma, c)?,
            Out::slot(dbeta, c)?,
        );
        Ok(())
    }
}

/// Backward on a device.
fn launch_bwd(gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([dy], [x, ..], [mean, rstd], [dx, dgamma, dbeta]) = (io.dy, io.specs, io.saved, &mut *io.dx) else {
        return Err(wrong_operands("layer_norm"));
    };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let (dtype, (rows, c)) = (dy.spec().dtype(), x.rows_cols());
    let (dx, dgamma, dbeta) = (launch::slot(dx), launch::slot(dgamma), launch::slot(dbeta));
    let (dx, dgamma, dbeta) = match (dx, dgamma, dbeta) {
        (Some(dx), Some(dgamma), Some(dbeta)) => {
            let (x, gamma) = (launch::kept("layer_norm", io.x, 0)?, launch::kept("layer_norm", io.x, 1)?);
            if let Some(held) = Held::backward(gpu, dtype, [rows, c], &[x, gamma, dy, &*dx.0]) {
                return launch_held(gpu, held, [x, gamma, mean, rstd, dy], [dx, dgamma, dbeta]);
            }
            (Some(dx), Some(dgamma), Some(dbeta))
        }
        some => some,
    };
    if let Some((dx, add)) = dx {
        let (x, gamma) = (launch::kept("layer_norm", io.x, 0)?, launch::kept("layer_norm", io.x, 1)?);
        let place = Rows::new("layer_norm", gpu, dtype, rows, c, HELD_BWD)?;
        let mut args = vec![Arg::Out(dx), Arg::In(x), Arg::In(gamma), Arg::In(mean), Arg::In(rstd), Arg::In(dy)];
        args.extend([launch::length("layer_norm", "rows", rows)?, launch::c("layer_norm", c)?, Arg::I32(add)]);
        place.pick(&BWD_DX, &BWD_DX_WIDE).launch(gpu, dtype, place.launch, &mut args)?;
    }
    if dgamma.is_none() && dbeta.is_none() {
        return Ok(());
    }
    let sums = ColumnSums::new(gpu, dtype, 1, rows, c);
    let scratch = |wanted: bool| wanted.then(|| sums.scratch(gpu)).transpose();
    let (mut gamma_sums, mut beta_sums) = (scratch(dgamma.is_some())?, scratch(dbeta.is_some())?);
    let kernel = match (&gamma_sums, &beta_sums) {
        (Some(_), Some(_)) => &BWD_DPARAMS,
        (Some(_), None) => &BWD_DGAMMA,
        _ => &BWD_DBETA,
    };
    let mut args = Vec::new();
    let needs_x = gamma_sums.is_some();
    args.extend(gamma_sums.iter_mut().chain(&mut beta_sums).map(|to| Arg::Out(to)));
    if needs_x {
        args.extend([Arg::In(launch::kept("layer_norm", io.x, 0)?), Arg::In(mean), Arg::In(rstd)]);
    }
    args.push(Arg::In(dy));
    args.extend(sums.args("layer_norm")?);
    kernel.launch(gpu, dtype, sums.launch("layer_norm")?, &mut args)?;
    for (to, partial) in [(dgamma, gamma_sums), (dbeta, beta_sums)] {
        if let (Some((to, add)), Some(partial)) = (to, partial) {
            sums.total(gpu, "layer_norm", &BWD_TOTAL, dtype, to, &partial, Some(add))?;
        }
    }
    Ok(())
}

/// All three gradients, x and dy read once.
fn launch_held(
    gpu: &Gpu,
    held: Held,
    [x, gamma, mean, rstd, dy]: [&View<'_>; 5],
    [dx, dgamma, dbeta]: [(&mut ViewMut<'_>, i32); 3],
) -> Result<()> {
    let (dtype, mut sums) = (dy.spec().dtype(), [held.scratch(gpu)?, held.scratch(gpu)?]);
    let [gamma_sums, beta_sums] = &mut sums;
    let mut args = vec![Arg::Out(dx.0), Arg::Out(gamma_sums), Arg::Out(beta_sums), Arg::In(x), Arg::In(gamma)];
    args.extend([Arg::In(mean), Arg::In(rstd), Arg::In(dy)]);
    args.extend(held.args("layer_norm")?.into_iter().chain([Arg::I32(dx.1)]));
    BWD_HELD.launch_as(gpu, &held.variant(), held.launch("layer_norm")?, &mut args)?;
    let [gamma_sums, beta_sums] = &sums;
    let mut args = vec![Arg::Out(dgamma.0), Arg::Out(dbeta.0), Arg::In(gamma_sums), Arg::In(beta_sums)];
    args.extend(held.sums().total_args("layer_norm")?.into_iter().chain([Arg::I32(dgamma.1), Arg::I32(dbeta.1)]));
    BWD_TOTALS.launch(gpu, dtype, held.sums().total_launch("layer_norm", 2)?, &mut args)
}

impl Reference for LayerNorm {
    /// Two passes, plain sums.
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, gamma, beta], [y], [mean, rstd]) = (io.x, io.y, io.saved) else { return };
        let (rows, c) = x.spec.rows_cols();
        for r in 0..rows {
            let (x, y) = (&x[r * c..][..c], &mut y[r * c..][..c]);
            let m = sum(x.iter().copied()) / S::count(c);
            let var = sum(x.iter().map(|&v| {
                let d = v - m;
                d * d
            })) / S::count(c);
            let s = S::one() / (var + S::of(f64::from(self.eps))).sqrt();
            for i in 0..c {
                y[i] = (x[i] - m) * s * gamma[i] + beta[i];
            }
            (mean[r], rstd[r]) = (m, s);
        }
    }
}

impl ReferenceGrad for LayerNorm {
    /// With n = (x − mean)·rstd and g = dy·gamma: dx = rstd·(g − avg(g) − n·avg(g·n)).
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, gamma, _], [mean, rstd], [dy]) = (io.x, io.saved, io.dy) else { return };
        let [dx, dgamma, dbeta] = io.dx else { return };
        let (rows, c) = x.spec.rows_cols();
        for r in 0..rows {
            let dy = &dy[r * c..][..c];
            if let Some(dx) = dx {
                let (x, dx) = (&x[r * c..][..c], &mut dx[r * c..][..c]);
                let n = |i: usize| (x[i] - mean[r]) * rstd[r];
                let (mut sum_g, mut sum_gn) = (S::zero(), S::zero());
                for i in 0..c {
                    let g = dy[i] * gamma[i];
                    sum_g = sum_g + g;
                    sum_gn = sum_gn + g * n(i);
                    // Kept for the second pass: dx holds g meanwhile.
                    dx[i] = g;
                }
                let (avg_g, avg_gn) = (sum_g / S::count(c), sum_gn / S::count(c));
                for i in 0..c {
                    dx[i] = (dx[i] - avg_g - n(i) * avg_gn) * rstd[r];
                }
            }
            if let Some(dgamma) = dgamma {
                for i in 0..c {
                    dgamma[i] = dgamma[i] + dy[i] * ((x[r * c + i] - mean[r]) * rstd[r]);
                }
            }
            if let Some(dbeta) = dbeta {
                for i in 0..c {
                    dbeta[i] = dbeta[i] + dy[i];
                }
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "layer_norm",
    about: "every row to mean 0 and variance 1, scaled and shifted per column",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE), HELD_UNITS[0], HELD_UNITS[1]],
    cases,
    bad_cases,
    bench_cases,
};

fn case(rows: usize, c: usize) -> Case {
    let gamma = Input::new("gamma", [c]).fill(Fill::Uniform(0.5, 1.5));
    Case::new(LayerNorm { eps: 1e-5 }, [Input::new("x", [rows, c]), gamma, Input::new("beta", [c])])
}

fn cases() -> Vec<Case> {
    let narrow = [(1, 1), (3, 7), (1, 31), (5, 32), (2, 33), (7, 63), (8, 128), (3, 768), (257, 5), (2, 1025)];
    // Teams of one thread to all of a block, and rows that no team holds.
    let held = [(67, 8), (131, 24), (37, 40), (5, 2048), (3, 4096), (2, 6160), (1, 12_296), (259, 48)];
    narrow.into_iter().chain(held).map(|(r, c)| case(r, c)).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let op = LayerNorm { eps: 1e-5 };
    vec![
        BadCase::new(op, &[&[8, 768], &[512], &[768]], "gamma: expected [C=768], found [512]"),
        BadCase::new(op, &[&[8, 768], &[768], &[1, 768]], "beta: expected [C=768], found [1, 768]"),
        BadCase::new(op, &[&[8, 0], &[0], &[0]], "expected C of 1 or more"),
        BadCase::new(op, &[&[8, 4], &[4]], "expected 3 inputs, found 2"),
        BadCase::new(LayerNorm { eps: f32::NAN }, &[&[8, 4], &[4], &[4]], "eps: expected a positive number"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let long = [(65_536, 768), (32_768, 1024), (8192, 4096), (1 << 20, 128), (8192, 12_288)];
    let models = [(2048, 768), (16_200, 384), (512, 384), (512, 128)];
    models.into_iter().chain(long).map(|(r, c)| case(r, c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    const OP: LayerNorm = LayerNorm { eps: 1e-5 };

    #[test]
    fn a_row_of_one_value_gives_beta_and_a_finite_gradient() {
        let x: [(&[usize], &[f32]); 3] = [(&[1, 3], &[7.0; 3]), (&[3], &[2.0; 3]), (&[3], &[0.1, 0.2, 0.3])];
        assert_eq!(forward(&OP, &x), [0.1, 0.2, 0.3]);
        assert!(backward(&OP, &x, Some(&[1.0, 0.0, 0.0])).iter().flatten().all(|g| g.is_finite()));
    }

    #[test]
    fn a_mean_far_above_the_spread_keeps_the_spread() {
        let y =
            forward(&LayerNorm { eps: 1e-12 }, &[(&[1, 2], &[1000.0, 1002.0]), (&[2], &[1.0; 2]), (&[2], &[0.0; 2])]);
        assert!((y[0] + 1.0).abs() < 1e-6 && (y[1] - 1.0).abs() < 1e-6, "{y:?}");
    }

    #[test]
    fn a_nan_stays_in_its_row() {
        let y = forward(&OP, &[(&[2, 2], &[f32::NAN, 1.0, 1.0, 2.0]), (&[2], &[1.0; 2]), (&[2], &[0.0; 2])]);
        assert!(y[0].is_nan() && y[1].is_nan() && y[2].is_finite() && y[3].is_finite(), "{y:?}");
    }

    #[test]
    fn no_incoming_gradient_means_zero() {
        let dx = backward(&OP, &[(&[1, 2], &[1.0, 2.0]), (&[2], &[1.0; 2]), (&[2], &[0.0; 2])], None);
        assert!(dx.iter().flatten().all(|g| *g == 0.0), "{dx:?}");
    }
}
