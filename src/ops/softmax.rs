//! `softmax`: every row to positive numbers that add up to 1.

use crate::backend::Exec;
use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, In, Out, map, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch::{self, Rows};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::{Scalar, sum};
use crate::tensor::{Dtype, Spec, expect_dtype};

/// Softmax over the last axis.
///
/// ```text
/// y[r, c] = exp(x[r, c] − m[r]) / Σ_k exp(x[r, k] − m[r]),  m[r] = max_k x[r, k]
/// dx[r, c] = y[r, c] · (dy[r, c] − Σ_k dy[r, k] · y[r, k])
/// ```
///
/// A row that holds NaN or +∞, or nothing but −∞, gives NaN: it has no softmax. A −∞ among numbers gives 0.
///
/// # Shapes
/// `x [.., C]` → `y [.., C]`; backward reads `y`.
///
/// # Units
/// `x` and `y` are dimensionless.
///
/// # Cost
/// forward `rows·(4C − 1)` vector and `rows·C` special; backward `4·rows·C` vector.
///
/// # Errors
/// [`Error::Shape`] if `C` is 0; [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// The definition, shifted by the maximum so that no exponential overflows; Milakov, Gimelshein 2018, section 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Softmax;

wide! {
    /// The largest that is not NaN: a NaN makes the sum of the row NaN anyhow, and not looking for it makes this faster.
    fn largest_number<F>(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 32];
        let (whole, end) = x.as_chunks::<32>();
        for x in whole {
            for i in 0..32 {
                lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
            }
        }
        let mut m = f32::NEG_INFINITY;
        for &x in lanes.iter().chain(end) {
            m = if x > m { x } else { m };
        }
        m
    }
}

/// Work of one number on the CPU.
const WORK: usize = 48;

const SOURCE: Source = crate::source!("softmax/softmax.cu");
static FWD: Kernel = Kernel::new(SOURCE, "softmax_fwd");
static FWD_WIDE: Kernel = Kernel::new(SOURCE, "softmax_fwd_wide");
static BWD: Kernel = Kernel::new(SOURCE, "softmax_bwd_dx");
static BWD_WIDE: Kernel = Kernel::new(SOURCE, "softmax_bwd_dx_wide");
/// Packs that a thread holds.
const HELD: usize = 4;

impl Arity<1> for Softmax {}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x] = expect_inputs("softmax", x)?;
        expect_dtype("softmax", "x", x, &Dtype::FLOATS)?;
        if x.last() == 0 {
            return Err(Error::shape(format!("softmax: x: expected C of 1 or more, found {:?}", x.shape())));
        }
        Ok(Outputs::one((*x).clone()))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let (rows, c) = x[0].rows_cols();
        let (rows, c) = (rows as u128, c as u128);
        let backward = if wanted.has(0) { 4 * rows * c } else { 0 };
        OpFlops {
            forward: Flops::vector(rows * (4 * c - 1)) + Flops::special(rows * c),
            backward: Flops::vector(backward),
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands("softmax")) };
        let (rows, c) = x.spec().rows_cols();
        if let Some(gpu) = exec.gpu() {
            let dtype = x.spec().dtype();
            let place = Rows::new("softmax", gpu, dtype, rows, c, HELD)?;
            let args =
                &mut [Arg::Out(y), Arg::In(x), launch::length("softmax", "rows", rows)?, launch::c("softmax", c)?];
            return place.pick(&FWD, &FWD_WIDE).launch(gpu, dtype, place.launch, args);
        }
        map(rows, WORK * c, [In::new(Floats::of(x)?, c)], [Out::of(y, c)?], |_, [x], [y]| {
            for (x, y) in x.chunks(c).zip(y.chunks_mut(c)) {
                let m = largest_number(x);
                y.copy_from_slice(x);
                let total = vector::exp_shifted(y, m);
                vector::scale_in_place(1.0 / total, y);
            }
        });
        Ok(())
    }
}

impl Differentiable for Softmax {
    fn keeps(&self, wanted: Mask) -> Keeps {
        Keeps { x: Mask::NONE, y: if wanted.has(0) { Mask::of([0]) } else { Mask::NONE } }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([dy], [x], [dx]) = (io.dy, io.specs, &mut *io.dx) else { return Err(wrong_operands("softmax")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let (rows, c) = x.rows_cols();
        if let Some(gpu) = exec.gpu() {
            let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
            let (dtype, y) = (dy.spec().dtype(), launch::kept("softmax", io.y, 0)?);
            let place = Rows::new("softmax", gpu, dtype, rows, c, HELD)?;
            let mut args = vec![Arg::Out(dx), Arg::In(y), Arg::In(dy)];
            args.extend([launch::length("softmax", "rows", rows)?, launch::c("softmax", c)?, Arg::I32(add)]);
            return place.pick(&BWD, &BWD_WIDE).launch(gpu, dtype, place.launch, &mut args);
        }
        let Some(dx) = Out::slot(dx, c)? else { return Ok(()) };
        let (y, dy) = (In::new(Floats::kept(io.y.first())?, c), In::new(Floats::of(dy)?, c));
        map(rows, WORK * c, [y, dy], [dx], |_, [y, dy], [dx]| vector::softmax_rows_backward(y, dy, dx, c, false));
        Ok(())
    }
}

impl Reference for Softmax {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x], [y]) = (io.x, io.y) else { return };
        let (rows, c) = x.spec.rows_cols();
        for r in 0..rows {
            let (x, y) = (&x[r * c..][..c], &mut y[r * c..][..c]);
            let m = x[1..].iter().fold(x[0], |m, &v| m.max(v));
            for i in 0..c {
                y[i] = (x[i] - m).exp();
            }
            let total = sum(y.iter().copied());
            for v in y {
                *v = *v / total;
            }
        }
    }
}

impl ReferenceGrad for Softmax {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x], [y], [dy], [Some(dx)]) = (io.x, io.y, io.dy, io.dx) else { return };
        let (rows, c) = x.spec.rows_cols();
        for r in 0..rows {
            let (y, dy) = (&y[r * c..][..c], &dy[r * c..][..c]);
            let inner = sum(y.iter().zip(dy).map(|(&y, &dy)| dy * y));
            for i in 0..c {
                dx[r * c + i] = y[i] * (dy[i] - inner);
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "softmax",
    about: "every row to positive numbers that add up to 1",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case(rows: usize, c: usize, bound: f32) -> Case {
    Case::new(Softmax, [Input::new("x", [rows, c]).fill(Fill::Uniform(-bound, bound))])
}

fn cases() -> Vec<Case> {
    let shapes = [(1, 1), (3, 7), (1, 8), (2, 31), (5, 32), (2, 33), (7, 63), (8, 128), (257, 5), (2, 1025)];
    let mut cases = shapes.map(|(r, c)| case(r, c, 1.0)).to_vec();
    // Rows with one large number, and the span of a language model's logits.
    cases.extend([case(3, 65, 80.0), case(2, 503, 8.0)]);
    cases.push(Case::new(Softmax, [Input::new("x", [2, 3, 50])]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(Softmax, &[&[4], &[4]], "softmax: expected 1 inputs, found 2"),
        BadCase::new(Softmax, &[&[8, 0]], "softmax: x: expected C of 1 or more, found [8, 0]"),
        BadCase::of_specs(Softmax, vec![ints], "softmax: x: expected f32 or bf16 or f16, found [4] i32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case(4096, 1024, 4.0), case(512, 128, 4.0), case(65_536, 1024, 4.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::forward;

    crate::room_tests!(ROOM);

    #[test]
    fn minus_infinity_among_numbers_gives_zero() {
        let y = forward(&Softmax, &[(&[2, 2], &[f32::NEG_INFINITY, 3.0, 5.0, 5.0])]);
        assert_eq!(y, [0.0, 1.0, 0.5, 0.5]);
    }

    #[test]
    fn a_row_without_a_softmax_is_nan_and_its_neighbour_is_not() {
        for bad in [[f32::NEG_INFINITY; 2], [f32::INFINITY, 0.0], [f32::NAN, 0.0], [0.0, f32::NAN]] {
            let y = forward(&Softmax, &[(&[2, 2], &[bad[0], bad[1], 0.0, 0.0])]);
            assert!(y[0].is_nan() && y[1].is_nan(), "{bad:?}: {y:?}");
            assert_eq!(y[2..], [0.5, 0.5]);
        }
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let y = forward(&Softmax, &[(&[1, 2], &[f32::MAX, f32::MAX])]);
        assert_eq!(y, [0.5, 0.5]);
    }
}
