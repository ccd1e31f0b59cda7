//! `rms_norm`: every row to mean square 1, then scaled per column.

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
use crate::ops::norm::{RowBackward, rescale};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::{Scalar, sum};
use crate::tensor::{Dtype, Spec, View, ViewMut, expect_dtype, expect_shape};

/// Root-mean-square normalisation over the last axis.
///
/// ```text
/// y[r, c] = x[r, c] · rstd[r] · weight[c],  rstd[r] = 1 / √(Σ_k x[r, k]² / C + eps)
/// ```
///
/// # Shapes
/// `x [.., C]`, `weight [C]` → `y [.., C]`; saves `rstd` `[rows]` in f32.
///
/// # Units
/// `y` has the unit of `weight`; `eps` has the unit of `x` squared.
///
/// # Cost
/// forward `rows·(4C + 3)` vector, `rows` special; backward of `x` `rows·(6C + 3)` vector, of `weight` `3·rows·C`.
///
/// # Errors
/// [`Error::Shape`] if `weight` is not `[C]` or `C` is 0; [`Error::Dtype`] unless both are f32, both bf16 or both f16;
/// [`Error::Argument`] unless `eps` is positive and finite.
///
/// # Source
/// Zhang, Sennrich 2019, equation 4, with `eps` inside the root. Gradient by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square. Positive.
    pub eps: f32,
}

const SOURCE: Source = crate::source!("rms_norm/rms_norm.cu");
static FWD: Kernel = Kernel::new(SOURCE, "rms_norm_fwd");
static FWD_WIDE: Kernel = Kernel::new(SOURCE, "rms_norm_fwd_wide");
static BWD_DX: Kernel = Kernel::new(SOURCE, "rms_norm_bwd_dx");
static BWD_DX_WIDE: Kernel = Kernel::new(SOURCE, "rms_norm_bwd_dx_wide");
static BWD_DWEIGHT: Kernel = Kernel::new(SOURCE, "rms_norm_bwd_dweight");
static BWD_TOTAL: Kernel = Kernel::new(SOURCE, "rms_norm_bwd_total");
const HELD_SOURCE: Source = crate::source!("rms_norm/rms_norm_held.cu");
const HELD_UNITS: [Unit; 2] = launch::held_units(HELD_SOURCE);
static FWD_HELD: Kernel = Kernel::new(HELD_SOURCE, "rms_norm_fwd_held");
static BWD_HELD: Kernel = Kernel::new(HELD_SOURCE, "rms_norm_bwd_held");
/// Packs that a thread of `SOURCE` holds: of one row forward, of each of two backward.
const HELD_FWD: usize = 8;
const HELD_BWD: usize = 4;

impl Arity<2> for RmsNorm {}

impl Operator for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x, weight] = expect_inputs("rms_norm", x)?;
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(Error::argument(format!("rms_norm: eps: expected a positive number, found {}", self.eps)));
        }
        expect_dtype("rms_norm", "x", x, &Dtype::FLOATS)?;
        let (rows, c) = x.rows_cols();
        if c == 0 {
            return Err(Error::shape(format!("rms_norm: x: expected C of 1 or more, found {:?}", x.shape())));
        }
        expect_dtype("rms_norm", "weight", weight, &[x.dtype()])?;
        expect_shape("rms_norm", "weight", weight, &[("C", c)])?;
        Ok(Outputs { y: vec![(*x).clone()], saved: vec![Spec::f32([rows])?] })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let (rows, c) = x[0].rows_cols();
        let (rows, c) = (rows as u128, c as u128);
        let dx = if wanted.has(0) { rows * (6 * c + 3) } else { 0 };
        let dweight = if wanted.has(1) { rows * 3 * c } else { 0 };
        OpFlops {
            forward: Flops::vector(rows * (4 * c + 3)) + Flops::special(rows),
            backward: Flops::vector(dx + dweight),
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, weight], [y], [rstd]) = (io.x, io.y, io.saved) else { return Err(wrong_operands("rms_norm")) };
        let (rows, c) = x.spec().rows_cols();
        if let Some(gpu) = exec.gpu() {
            let dtype = x.spec().dtype();
            if let Some(held) = Held::forward(gpu, dtype, [rows, c], &[x, weight, y]) {
                let mut args = vec![Arg::Out(y), Arg::Out(rstd), Arg::In(x), Arg::In(weight)];
                args.extend(held.args("rms_norm")?.into_iter().chain([Arg::F32(self.eps)]));
                return FWD_HELD.launch_as(gpu, &held.variant(), held.launch("rms_norm")?, &mut args);
            }
            let place = Rows::new("rms_norm", gpu, dtype, rows, c, HELD_FWD)?;
            let mut args = vec![Arg::Out(y), Arg::Out(rstd), Arg::In(x), Arg::In(weight)];
            args.extend([launch::length("rms_norm", "rows", rows)?, launch::c("rms_norm", c)?, Arg::F32(self.eps)]);
            return place.pick(&FWD, &FWD_WIDE).launch(gpu, dtype, place.launch, &mut args);
        }
        let weight = Floats::of(weight)?.widened();
        let to = [Out::of(y, c)?, Out::of(rstd, 1)?];
        map(rows, 3 * TOUCH * c, [In::new(Floats::of(x)?, c)], to, |_, [x], [y, rstd]| {
            for ((x, y), rstd) in x.chunks(c).zip(y.chunks_mut(c)).zip(rstd) {
                // In f64, where no square overflows.
                let mean_square = vector::sum_squares(x) / c as f64;
                *rstd = (1.0 / (mean_square + f64::from(self.eps)).sqrt()) as f32;
                rescale(x, *rstd, &weight, y);
            }
        });
        Ok(())
    }
}

impl Differentiable for RmsNorm {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let x = match (wanted.has(0), wanted.has(1)) {
            (true, _) => Mask::of([0, 1]),
            (false, true) => Mask::of([0]),
            (false, false) => Mask::NONE,
        };
        Keeps { x, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch_bwd(gpu, io);
        }
        let ([dy], [x, _], [rstd], [dx, dweight]) = (io.dy, io.specs, io.saved, &mut *io.dx) else {
            return Err(wrong_operands("rms_norm"));
        };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let c = x.last();
        let weight = Floats::kept(io.x.get(1))?.widened();
        let (x, dy) = (Floats::kept(io.x.first())?, Floats::of(dy)?);
        RowBackward { c, x, dy, gamma: &weight, mean: None, rstd: rstd.f32()? }.run(
            Out::slot(dx, c)?,
            Out::slot(dweight, c)?,
            None,
        );
        Ok(())
    }
}

/// Backward on a device.
fn launch_bwd(gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([dy], [x, _], [rstd], [dx, dweight]) = (io.dy, io.specs, io.saved, &mut *io.dx) else {
        return Err(wrong_operands("rms_norm"));
    };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let (dtype, (rows, c)) = (dy.spec().dtype(), x.rows_cols());
    let (dx, dweight) = match (launch::slot(dx), launch::slot(dweight)) {
        (Some(dx), Some(dweight)) => {
            let (x, weight) = (launch::kept("rms_norm", io.x, 0)?, launch::kept("rms_norm", io.x, 1)?);
            if let Some(held) = Held::backward(gpu, dtype, [rows, c], &[x, weight, dy, &*dx.0]) {
                return launch_held(gpu, held, [x, weight, rstd, dy], [dx, dweight]);
            }
            (Some(dx), Some(dweight))
        }
        some => some,
    };
    if let Some((dx, add)) = dx {
        let (x, weight) = (launch::kept("rms_norm", io.x, 0)?, launch::kept("rms_norm", io.x, 1)?);
        let place = Rows::new("rms_norm", gpu, dtype, rows, c, HELD_BWD)?;
        let mut args = vec![Arg::Out(dx), Arg::In(x), Arg::In(weight), Arg::In(rstd), Arg::In(dy)];
        args.extend([launch::length("rms_norm", "rows", rows)?, launch::c("rms_norm", c)?, Arg::I32(add)]);
        place.pick(&BWD_DX, &BWD_DX_WIDE).launch(gpu, dtype, place.launch, &mut args)?;
    }
    let Some((dweight, add)) = dweight else { return Ok(()) };
    let sums = ColumnSums::new(gpu, dtype, 1, rows, c);
    let mut partial = sums.scratch(gpu)?;
    let x = launch::kept("rms_norm", io.x, 0)?;
    let mut args = vec![Arg::Out(&mut partial), Arg::In(x), Arg::In(rstd), Arg::In(dy)];
    args.extend(sums.args("rms_norm")?);
    BWD_DWEIGHT.launch(gpu, dtype, sums.launch("rms_norm")?, &mut args)?;
    sums.total(gpu, "rms_norm", &BWD_TOTAL, dtype, dweight, &partial, Some(add))
}

/// Both gradients, x and dy read once.
fn launch_held(
    gpu: &Gpu,
    held: Held,
    [x, weight, rstd, dy]: [&View<'_>; 4],
    [dx, dweight]: [(&mut ViewMut<'_>, i32); 2],
) -> Result<()> {
    let mut sums = held.scratch(gpu)?;
    let mut args = vec![Arg::Out(dx.0), Arg::Out(&mut sums), Arg::In(x), Arg::In(weight), Arg::In(rstd), Arg::In(dy)];
    args.extend(held.args("rms_norm")?.into_iter().chain([Arg::I32(dx.1)]));
    BWD_HELD.launch_as(gpu, &held.variant(), held.launch("rms_norm")?, &mut args)?;
    held.sums().total(gpu, "rms_norm", &BWD_TOTAL, dy.spec().dtype(), dweight.0, &sums, Some(dweight.1))
}

impl Reference for RmsNorm {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, weight], [y], [rstd]) = (io.x, io.y, io.saved) else { return };
        let (rows, c) = x.spec.rows_cols();
        for r in 0..rows {
            let x = &x[r * c..][..c];
            let mean_square = sum(x.iter().map(|&v| v * v)) / S::count(c);
            rstd[r] = S::one() / (mean_square + S::of(f64::from(self.eps))).sqrt();
            for i in 0..c {
                y[r * c + i] = x[i] * rstd[r] * weight[i];
            }
        }
    }
}

impl ReferenceGrad for RmsNorm {
    /// With g = dy·weight: dx = rstd·(g − x·rstd²·avg(g·x)).
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, weight], [rstd], [dy], [dx, dweight]) = (io.x, io.saved, io.dy, io.dx) else { return };
        let (rows, c) = x.spec.rows_cols();
        for r in 0..rows {
            let (x, dy, s) = (&x[r * c..][..c], &dy[r * c..][..c], rstd[r]);
            if let Some(dx) = dx {
                let dx = &mut dx[r * c..][..c];
                let mut sum_gx = S::zero();
                for i in 0..c {
                    // Kept for the second pass: dx holds g meanwhile.
                    dx[i] = dy[i] * weight[i];
                    sum_gx = sum_gx + dx[i] * x[i];
                }
                let k = sum_gx / S::count(c) * s * s;
                for i in 0..c {
                    dx[i] = s * (dx[i] - x[i] * k);
                }
            }
            if let Some(dweight) = dweight {
                for i in 0..c {
                    dweight[i] = dweight[i] + dy[i] * (x[i] * s);
                }
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "rms_norm",
    about: "every row to mean square 1, scaled per column",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE), HELD_UNITS[0], HELD_UNITS[1]],
    cases,
    bad_cases,
    bench_cases,
};

fn case(rows: usize, c: usize) -> Case {
    let weight = Input::new("weight", [c]).fill(Fill::Uniform(0.5, 1.5));
    Case::new(RmsNorm { eps: 1e-5 }, [Input::new("x", [rows, c]), weight])
}

fn cases() -> Vec<Case> {
    let narrow = [(1, 1), (3, 7), (1, 31), (5, 32), (2, 33), (7, 63), (8, 128), (3, 768), (257, 5), (2, 1025)];
    // Teams of one thread to all of a block, and rows that no team holds.
    let held = [(67, 8), (131, 24), (37, 40), (5, 2048), (3, 4096), (2, 6160), (1, 12_296), (259, 48)];
    narrow.into_iter().chain(held).map(|(r, c)| case(r, c)).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let op = RmsNorm { eps: 1e-5 };
    let spec = |dtype| Spec::new(dtype, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(op, &[&[8, 768], &[512]], "rms_norm: weight: expected [C=768], found [512]"),
        BadCase::new(op, &[&[8, 0], &[0]], "rms_norm: x: expected C of 1 or more, found [8, 0]"),
        BadCase::new(op, &[&[8, 4]], "rms_norm: expected 2 inputs, found 1"),
        BadCase::of_specs(
            op,
            vec![spec(Dtype::Bf16), spec(Dtype::F32)],
            "rms_norm: weight: expected bf16, found [4] f32",
        ),
        BadCase::of_specs(op, vec![spec(Dtype::I32); 2], "rms_norm: x: expected f32 or bf16 or f16"),
        BadCase::new(RmsNorm { eps: 0.0 }, &[&[8, 4], &[4]], "rms_norm: eps: expected a positive number, found 0"),
        BadCase::new(RmsNorm { eps: f32::NAN }, &[&[8, 4], &[4]], "rms_norm: eps: expected a positive number"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let long = [(65_536, 768), (32_768, 1024), (8192, 4096), (1 << 20, 128), (8192, 12_288)];
    let models = [(2048, 896), (16_200, 384), (512, 384)];
    models.into_iter().chain(long).map(|(r, c)| case(r, c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn a_row_of_zeros_is_zero_and_its_gradient_finite() {
        let op = RmsNorm { eps: 1e-4 };
        let x: [(&[usize], &[f32]); 2] = [(&[1, 2], &[0.0, 0.0]), (&[2], &[1.0, 2.0])];
        assert_eq!(forward(&op, &x), [0.0, 0.0]);
        let dx = backward(&op, &x, Some(&[1.0, 1.0]));
        for (got, want) in dx[0].iter().zip([100.0, 200.0]) {
            assert!((got - want).abs() < 1e-4, "{dx:?}");
        }
        assert_eq!(dx[1], [0.0, 0.0]);
    }

    #[test]
    fn squares_that_overflow_in_f32_do_not() {
        let y = forward(&RmsNorm { eps: 1e-6 }, &[(&[1, 2], &[3e25, -3e25]), (&[2], &[1.0, 1.0])]);
        assert!((y[0] - 1.0).abs() < 1e-6 && (y[1] + 1.0).abs() < 1e-6, "{y:?}");
    }

    #[test]
    fn a_nan_stays_in_its_row() {
        let y = forward(&RmsNorm { eps: 1e-6 }, &[(&[2, 2], &[f32::NAN, 1.0, 1.0, 1.0]), (&[2], &[1.0, 1.0])]);
        assert!(y[0].is_nan() && y[1].is_nan() && y[2].is_finite() && y[3].is_finite(), "{y:?}");
    }
}
