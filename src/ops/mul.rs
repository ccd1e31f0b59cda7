//! `mul`: the elementwise product of two tensors, the second repeated over leading axes.

use crate::backend::Exec;
use crate::backend::cpu::vector;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::Result;
use crate::ops::blocks::{Floats, Out, TOUCH, map_flat, no_gradient, sum_rows, wrong_operands};
use crate::ops::broadcast;
use crate::ops::contract::{BadCase, Case, Room};
use crate::ops::launch::{self, ColumnSums};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad,
};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Elementwise product of two tensors.
///
/// ```text
/// y[r, i] = x[r, i] · b[i]        dx[r, i] = dy[r, i] · b[i]        db[i] = Σ_r dy[r, i] · x[r, i]
/// ```
///
/// where `r` runs over the leading axes that `b` does not have.
///
/// # Shapes
/// `x` of any shape, `b` of the last axes of `x` (leading axes of length 1 count as absent) → `y` like `x`; backward reads
/// `b` for `dx` and `x` for `db`.
///
/// # Units
/// That of `x` times that of `b`.
///
/// # Cost
/// forward 1 vector an element of `x`; backward of `x` 1 vector; of `b` 2 vector if there is more than one `r`, else 1.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if `b` has not the last axes of `x`;
/// [`Error::Dtype`](crate::error::Error::Dtype) unless both are f32, both bf16 or both f16.
///
/// # Source
/// The definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mul;

const SOURCE: Source = crate::source!("mul/mul.cu");
static FWD: Kernel = Kernel::new(SOURCE, "mul_fwd");
static BWD_DX: Kernel = Kernel::new(SOURCE, "mul_bwd_dx");
static BWD_DB_FLAT: Kernel = Kernel::new(SOURCE, "mul_bwd_db_flat");
static BWD_DB: Kernel = Kernel::new(SOURCE, "mul_bwd_db");
static BWD_DB_TOTAL: Kernel = Kernel::new(SOURCE, "mul_bwd_db_total");

impl Arity<2> for Mul {}

impl Operator for Mul {
    fn name(&self) -> &'static str {
        "mul"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        broadcast::infer("mul", x)
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let n = x[0].len() as u128;
        let (rows, _) = broadcast::rows_and_width(x[0], x[1]);
        let dx = if wanted.has(0) { n } else { 0 };
        let db = match (wanted.has(1), rows) {
            (false, _) => 0,
            (true, 1) => n,
            (true, _) => 2 * n,
        };
        OpFlops { forward: Flops::vector(n), backward: Flops::vector(dx + db), recomputed: Flops::ZERO }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, b], [y]) = (io.x, io.y) else { return Err(wrong_operands("mul")) };
        if let Some(gpu) = exec.gpu() {
            let [n, width] = broadcast::lengths("mul", x.spec(), b.spec())?;
            let dtype = x.spec().dtype();
            let place = launch::flat("mul", dtype, broadcast::inputs(x.spec(), b.spec()), x.spec().len())?;
            return FWD.launch(gpu, dtype, place, &mut [Arg::Out(y), Arg::In(x), Arg::In(b), n, width]);
        }
        broadcast::map(Floats::of(x)?, Floats::of(b)?, Out::of(y, 1)?, vector::mul);
        Ok(())
    }
}

impl Differentiable for Mul {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let x = if wanted.has(1) { Mask::of([0]) } else { Mask::NONE };
        Keeps { x: if wanted.has(0) { x.with(1) } else { x }, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch_bwd(gpu, io);
        }
        let ([dy], [x, b], [dx, db]) = (io.dy, io.specs, &mut *io.dx) else { return Err(wrong_operands("mul")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let (rows, width) = broadcast::rows_and_width(x, b);
        let (x, b, dy) = (Floats::kept(io.x.first())?, Floats::kept(io.x.get(1))?, Floats::of(dy)?);
        if let Some(dx) = Out::slot(dx, 1)? {
            broadcast::map(dy, b, dx, vector::mul);
        }
        match Out::slot(db, 1)? {
            Some(db) if rows == 1 => {
                map_flat(dy.len(), 3 * TOUCH, [dy, x], [db], |_, [dy, x], [db]| vector::mul(dy, x, db));
            }
            Some(db) => sum_rows([dy, x], (rows, width), db, |[dy, x], sums| vector::mul_add(dy, x, sums)),
            None => {}
        }
        Ok(())
    }
}

/// Backward on a device.
fn launch_bwd(gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([dy], [x, b], [dx, db]) = (io.dy, io.specs, &mut *io.dx) else { return Err(wrong_operands("mul")) };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let (dtype, n) = (dy.spec().dtype(), dy.spec().len());
    let (rows, width) = broadcast::rows_and_width(x, b);
    if let Some((dx, add)) = launch::slot(dx) {
        let factor = launch::kept("mul", io.x, 1)?;
        let [length, period] = broadcast::lengths("mul", x, b)?;
        let place = launch::flat("mul", dtype, broadcast::inputs(x, b), n)?;
        let args = &mut [Arg::Out(dx), Arg::In(factor), Arg::In(dy), length, period, Arg::I32(add)];
        BWD_DX.launch(gpu, dtype, place, args)?;
    }
    let Some((db, add)) = launch::slot(db) else { return Ok(()) };
    let x = launch::kept("mul", io.x, 0)?;
    if rows == 1 {
        let length = launch::length("mul", "elements", n)?;
        let args = &mut [Arg::Out(db), Arg::In(x), Arg::In(dy), length, Arg::I32(add)];
        return BWD_DB_FLAT.launch(gpu, dtype, launch::flat("mul", dtype, 2, n)?, args);
    }
    let sums = ColumnSums::new(gpu, dtype, 1, rows, width);
    let partial = sums.partial(gpu)?;
    let mut args = vec![Arg::Out(&mut *db), partial.as_ref().map_or(Arg::Null, Arg::Scratch), Arg::In(x), Arg::In(dy)];
    args.extend(sums.args("mul")?.into_iter().chain([Arg::I32(add)]));
    BWD_DB.launch(gpu, dtype, sums.launch("mul")?, &mut args)?;
    let Some(partial) = partial else { return Ok(()) };
    sums.total(gpu, "mul", &BWD_DB_TOTAL, dtype, db, &partial, Some(add))
}

impl Reference for Mul {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, b], [y]) = (io.x, io.y) else { return };
        let (rows, width) = broadcast::rows_and_width(x.spec, b.spec);
        for r in 0..rows {
            for i in 0..width {
                y[r * width + i] = x[r * width + i] * b[i];
            }
        }
    }
}

impl ReferenceGrad for Mul {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, b], [dy], [dx, db]) = (io.x, io.dy, io.dx) else { return };
        let (rows, width) = broadcast::rows_and_width(x.spec, b.spec);
        for r in 0..rows {
            for i in 0..width {
                let at = r * width + i;
                if let Some(dx) = dx {
                    dx[at] = dy[at] * b[i];
                }
                if let Some(db) = db {
                    let term = dy[at] * x[at];
                    db[i] = if rows == 1 { term } else { db[i] + term };
                }
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "mul",
    about: "the elementwise product of two tensors, the second repeated over leading axes",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    broadcast::cases(Mul)
}

fn bad_cases() -> Vec<BadCase> {
    broadcast::bad_cases(Mul)
}

fn bench_cases() -> Vec<Case> {
    broadcast::bench_cases(Mul)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn zero_times_infinity_is_nan() {
        let y = forward(&Mul, &[(&[2, 2], &[0.0, 2.0, f32::NAN, -1.0]), (&[2], &[f32::INFINITY, 3.0])]);
        assert!(y[0].is_nan() && y[2].is_nan());
        assert_eq!((y[1], y[3]), (6.0, -3.0));
    }

    #[test]
    fn no_incoming_gradient_means_zero() {
        let dx = backward(&Mul, &[(&[2, 2], &[1.0; 4]), (&[2], &[1.0; 2])], None);
        assert_eq!(dx, [vec![0.0; 4], vec![0.0; 2]]);
    }
}
