//! `cast`: the same numbers in another type, rounded once.

use crate::backend::Exec;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, Out, TOUCH, map_flat, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype};

/// Conversion between floating-point types.
///
/// ```text
/// y = x rounded to `to`        dx = dy rounded to the type of x
/// ```
///
/// To the nearest, ties to even; what is too large becomes infinite, NaN stays NaN.
///
/// # Shapes
/// `x` of any shape → `y` of the same in the type `to`; backward reads nothing.
///
/// # Units
/// Those of `x`.
///
/// # Cost
/// Nothing: conversions do not count. Bytes: those of `x` and of `y`.
///
/// # Errors
/// [`Error::Dtype`] unless `x` and `to` are f32, bf16 or f16; [`Error::TooLarge`] if `y` has more bytes than can be addressed.
///
/// # Source
/// IEEE 754-2019, sections 4.3.1 and 5.4.2; bfloat16 is the upper half of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// The type of the result.
    pub to: Dtype,
}

fn convert(x: Floats<'_>, y: Out<'_>) {
    map_flat(x.len(), 2 * TOUCH, [x], [y], |_, [x], [y]| y.copy_from_slice(x));
}

const SOURCE: Source = crate::source!("cast/cast.cu");
static FWD_F32: Kernel = Kernel::new(SOURCE, "cast_fwd_f32");
static FWD_BF16: Kernel = Kernel::new(SOURCE, "cast_fwd_bf16");
static FWD_F16: Kernel = Kernel::new(SOURCE, "cast_fwd_f16");
static BWD_F32: Kernel = Kernel::new(SOURCE, "cast_bwd_dx_f32");
static BWD_BF16: Kernel = Kernel::new(SOURCE, "cast_bwd_dx_bf16");
static BWD_F16: Kernel = Kernel::new(SOURCE, "cast_bwd_dx_f16");

/// The kernels to and from `other`, and the wider of both types.
fn kernels(x: Dtype, other: Dtype) -> (&'static Kernel, &'static Kernel, Dtype) {
    let widest = if other.bytes() > x.bytes() { other } else { x };
    let (fwd, bwd) = match other {
        Dtype::Bf16 => (&FWD_BF16, &BWD_BF16),
        Dtype::F16 => (&FWD_F16, &BWD_F16),
        Dtype::F32 | Dtype::I32 => (&FWD_F32, &BWD_F32),
    };
    (fwd, bwd, widest)
}

impl Arity<1> for Cast {}

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x] = expect_inputs("cast", x)?;
        expect_dtype("cast", "x", x, &Dtype::FLOATS)?;
        let y = x.with_dtype(self.to);
        expect_dtype("cast", "to", &y, &Dtype::FLOATS)?;
        // Checked anew: the result may have more bytes than the input.
        Spec::new(self.to, y.shape()).map(Outputs::one).map_err(|_| Error::too_large("cast", "x", x.len()))
    }

    fn flops(&self, _: &[&Spec], _: Mask) -> OpFlops {
        OpFlops { forward: Flops::ZERO, backward: Flops::ZERO, recomputed: Flops::ZERO }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands("cast")) };
        if let Some(gpu) = exec.gpu() {
            let (dtype, n) = (x.spec().dtype(), x.spec().len());
            let (fwd, _, widest) = kernels(dtype, self.to);
            let args = &mut [Arg::Out(y), Arg::In(x), launch::length("cast", "elements", n)?];
            return fwd.launch(gpu, dtype, launch::flat("cast", widest, 1, n)?, args);
        }
        convert(Floats::of(x)?, Out::of(y, 1)?);
        Ok(())
    }
}

impl Differentiable for Cast {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps::default()
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([dy], [dx]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands("cast")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        if let Some(gpu) = exec.gpu() {
            let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
            let (dtype, n) = (dx.spec().dtype(), dx.spec().len());
            let (_, bwd, widest) = kernels(dtype, self.to);
            let args = &mut [Arg::Out(dx), Arg::In(dy), launch::length("cast", "elements", n)?, Arg::I32(add)];
            return bwd.launch(gpu, dtype, launch::flat("cast", widest, 1, n)?, args);
        }
        if let Some(dx) = Out::slot(dx, 1)? {
            convert(Floats::of(dy)?, dx);
        }
        Ok(())
    }
}

impl Reference for Cast {
    /// A copy: the rounding is the storage's.
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x], [y]) = (io.x, io.y) else { return };
        y.copy_from_slice(x);
    }
}

impl ReferenceGrad for Cast {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([dy], [Some(dx)]) = (io.dy, io.dx) else { return };
        dx.copy_from_slice(dy);
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "cast",
    about: "the same numbers in another type, rounded once",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for to in Dtype::FLOATS {
        for n in [1, 7, 8, 9, 31, 32, 33, 1009] {
            cases.push(Case::new(Cast { to }, [Input::new("x", [n])]));
        }
        cases.push(Case::new(Cast { to }, [Input::new("x", [3, 2, 1025])]));
        // Subnormal in f16, and ties.
        cases.push(Case::new(Cast { to }, [Input::new("x", [67]).fill(Fill::Uniform(-1e-5, 1e-5))]));
        let ties = Fill::Values(vec![1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0]);
        cases.push(Case::new(Cast { to }, [Input::new("x", [5]).fill(ties)]));
    }
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    let op = Cast { to: Dtype::Bf16 };
    let huge = Spec::new(Dtype::F16, [isize::MAX as usize / 2]).unwrap_or_else(|e| unreachable!("it fits: {e}"));
    vec![
        BadCase::new(op, &[&[4], &[4]], "cast: expected 1 inputs, found 2"),
        BadCase::of_specs(op, vec![ints], "cast: x: expected f32 or bf16 or f16, found [4] i32"),
        BadCase::new(Cast { to: Dtype::I32 }, &[&[4]], "cast: to: expected f32 or bf16 or f16, found [4] i32"),
        BadCase::of_specs(Cast { to: Dtype::F32 }, vec![huge], "cast: x: length"),
    ]
}

fn bench_cases() -> Vec<Case> {
    // The second is more than caches hold.
    let shapes = [[4050, 1536], [65_536, 1024]];
    shapes.map(|shape| Case::new(Cast { to: Dtype::Bf16 }, [Input::new("x", shape)])).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::forward;

    crate::room_tests!(ROOM);

    #[test]
    fn too_large_becomes_infinite_and_nan_stays() {
        let y = forward(&Cast { to: Dtype::F16 }, &[(&[5], &[1e6, -1e6, 65_504.0, f32::NAN, f32::INFINITY])]);
        assert_eq!((y[0], y[1], y[2], y[4]), (f32::INFINITY, f32::NEG_INFINITY, 65_504.0, f32::INFINITY));
        assert!(y[3].is_nan());
        let y = forward(&Cast { to: Dtype::Bf16 }, &[(&[3], &[f32::MAX, f32::NAN, -0.0])]);
        assert_eq!((y[0], y[2].to_bits()), (f32::INFINITY, (-0.0_f32).to_bits()));
        assert!(y[1].is_nan());
    }

    #[test]
    fn ties_go_to_even() {
        let y = forward(&Cast { to: Dtype::Bf16 }, &[(&[2], &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0])]);
        assert_eq!(y, [1.0, 1.0 + 4.0 / 256.0]);
    }
}
