//! `add`: the sum of two tensors, the second repeated over leading axes.

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
    Arity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, Reference, ReferenceGrad,
};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec};

/// Sum of two tensors.
///
/// ```text
/// y[r, i] = x[r, i] + b[i]        dx = dy        db[i] = Σ_r dy[r, i]
/// ```
///
/// where `r` runs over the leading axes that `b` does not have.
///
/// # Shapes
/// `x` of any shape, `b` of the last axes of `x` (leading axes of length 1 count as absent) → `y` like `x`.
///
/// # Units
/// One unit for all three.
///
/// # Cost
/// forward 1 vector an element of `x`; backward of `x` nothing; of `b` 1 vector an element of `x` if there is more than one
/// `r`, else nothing.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if `b` has not the last axes of `x`;
/// [`Error::Dtype`](crate::error::Error::Dtype) unless both are f32, both bf16 or both f16.
///
/// # Source
/// The definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add;

const SOURCE: Source = crate::source!("add/add.cu");
static FWD: Kernel = Kernel::new(SOURCE, "add_fwd");
static BWD_DX: Kernel = Kernel::new(SOURCE, "add_bwd_dx");
static BWD: Kernel = Kernel::new(SOURCE, "add_bwd");
static BWD_DB_TOTAL: Kernel = Kernel::new(SOURCE, "add_bwd_db_total");

impl Arity<2> for Add {}

impl Operator for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        broadcast::infer("add", x)
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let n = x[0].len() as u128;
        let (rows, _) = broadcast::rows_and_width(x[0], x[1]);
        let db = if wanted.has(1) && rows > 1 { n } else { 0 };
        OpFlops { forward: Flops::vector(n), backward: Flops::vector(db), recomputed: Flops::ZERO }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, b], [y]) = (io.x, io.y) else { return Err(wrong_operands("add")) };
        if let Some(gpu) = exec.gpu() {
            let [n, width] = broadcast::lengths("add", x.spec(), b.spec())?;
            let dtype = x.spec().dtype();
            let place = launch::flat("add", dtype, broadcast::inputs(x.spec(), b.spec()), x.spec().len())?;
            return FWD.launch(gpu, dtype, place, &mut [Arg::Out(y), Arg::In(x), Arg::In(b), n, width]);
        }
        broadcast::map(Floats::of(x)?, Floats::of(b)?, Out::of(y, 1)?, vector::add);
        Ok(())
    }
}

impl Differentiable for Add {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps::default()
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch_bwd(gpu, io);
        }
        let ([dy], [x, b], [dx, db]) = (io.dy, io.specs, &mut *io.dx) else { return Err(wrong_operands("add")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let (rows, width) = broadcast::rows_and_width(x, b);
        let dy = Floats::of(dy)?;
        let copy = |to| map_flat(dy.len(), 2 * TOUCH, [dy], [to], |_, [dy], [dx]| dx.copy_from_slice(dy));
        if let Some(dx) = Out::slot(dx, 1)? {
            copy(dx);
        }
        match Out::slot(db, 1)? {
            Some(db) if rows == 1 => copy(db),
            Some(db) => sum_rows([dy], (rows, width), db, |[dy], sums| vector::add_in_place(dy, sums)),
            None => {}
        }
        Ok(())
    }
}

/// Backward on a device.
fn launch_bwd(gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([dy], [x, b], [dx, db]) = (io.dy, io.specs, &mut *io.dx) else { return Err(wrong_operands("add")) };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let (dtype, n) = (dy.spec().dtype(), dy.spec().len());
    let (rows, width) = broadcast::rows_and_width(x, b);
    let copy = |to: &mut GradSlot<'_>| {
        let Some((to, add)) = launch::slot(to) else { return Ok(()) };
        let args = &mut [Arg::Out(to), Arg::In(dy), launch::length("add", "elements", n)?, Arg::I32(add)];
        BWD_DX.launch(gpu, dtype, launch::flat("add", dtype, 1, n)?, args)
    };
    if rows == 1 || !db.is_wanted() {
        copy(dx)?;
        return copy(db);
    }
    let (Some((db, add_db)), dx) = (launch::slot(db), launch::slot(dx)) else { return Ok(()) };
    let add_dx = dx.as_ref().map_or(0, |(_, add)| *add);
    let sums = ColumnSums::new(gpu, dtype, 1, rows, width);
    let partial = sums.partial(gpu)?;
    let mut args = vec![dx.map_or(Arg::Null, |(dx, _)| Arg::Out(dx)), Arg::Out(&mut *db)];
    args.extend([partial.as_ref().map_or(Arg::Null, Arg::Scratch), Arg::In(dy)]);
    args.extend(sums.args("add")?.into_iter().chain([Arg::I32(add_dx), Arg::I32(add_db)]));
    BWD.launch(gpu, dtype, sums.launch("add")?, &mut args)?;
    let Some(partial) = partial else { return Ok(()) };
    sums.total(gpu, "add", &BWD_DB_TOTAL, dtype, db, &partial, Some(add_db))
}

impl Reference for Add {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, b], [y]) = (io.x, io.y) else { return };
        let (rows, width) = broadcast::rows_and_width(x.spec, b.spec);
        for r in 0..rows {
            for i in 0..width {
                y[r * width + i] = x[r * width + i] + b[i];
            }
        }
    }
}

impl ReferenceGrad for Add {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, b], [dy], [dx, db]) = (io.x, io.dy, io.dx) else { return };
        let (rows, width) = broadcast::rows_and_width(x.spec, b.spec);
        if let Some(dx) = dx {
            dx.copy_from_slice(dy);
        }
        let Some(db) = db else { return };
        if rows == 1 {
            return db.copy_from_slice(dy);
        }
        for r in 0..rows {
            for i in 0..width {
                db[i] = db[i] + dy[r * width + i];
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "add",
    about: "the sum of two tensors, the second repeated over leading axes",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    broadcast::cases(Add)
}

fn bad_cases() -> Vec<BadCase> {
    broadcast::bad_cases(Add)
}

fn bench_cases() -> Vec<Case> {
    broadcast::bench_cases(Add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn infinities_of_opposite_sign_give_nan() {
        let y = forward(&Add, &[(&[2, 1], &[f32::INFINITY, 1.0]), (&[1], &[f32::NEG_INFINITY])]);
        assert!(y[0].is_nan());
        assert_eq!(y[1], f32::NEG_INFINITY);
    }

    #[test]
    fn the_gradient_of_a_second_operand_without_rows_is_zero() {
        let dx = backward(&Add, &[(&[0, 2], &[]), (&[2], &[1.0, 2.0])], Some(&[]));
        assert_eq!(dx, [vec![], vec![0.0, 0.0]]);
    }

    #[test]
    fn a_long_reduction_errs_far_less_than_one_long_sum() {
        let rows = 100_000;
        let dy = vec![0.1; rows];
        let dx = backward(&Add, &[(&[rows, 1], &dy), (&[1], &[0.0])], Some(&dy));
        let error = |sum: f32| (f64::from(sum) - f64::from(0.1_f32) * rows as f64).abs();
        let plain = dy.iter().sum::<f32>();
        assert!(error(dx[1][0]) < error(plain) / 50.0, "{} {plain}", dx[1][0]);
    }
}
