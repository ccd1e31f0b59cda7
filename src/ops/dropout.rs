//! `dropout`: each element kept with a probability, and scaled so that the expectation stays.

use crate::backend::Exec;
use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::Result;
use crate::ops::blocks::{Floats, Out, map_flat, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::keep::Keep;
use crate::ops::launch;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::rng::Stream;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype};

/// Inverted dropout.
///
/// ```text
/// y[i] = x[i] · m[i]        dx[i] = dy[i] · m[i]        m[i] = 1/(1 − p) if u[i] ≥ p, else 0
/// ```
///
/// where `u[i]` is element `i` of the stream, uniform in [0, 1) in steps of 2⁻²⁴, and `i` counts elements in row-major order.
/// The mask is drawn again in backward and never stored. It multiplies, so NaN and infinity in a dropped element give NaN
/// and are not hidden. `p = 0` gives `x` itself; in evaluation leave the operator out.
///
/// # Shapes
/// `x` of any shape → `y` of the same; backward reads nothing.
///
/// # Units
/// Those of `x`.
///
/// # Cost
/// 1 vector an element, forward and backward; drawing is integer arithmetic and counts nothing.
///
/// # Errors
/// [`Error::Argument`](crate::error::Error::Argument) unless 0 ≤ `p` < 1;
/// [`Error::Dtype`](crate::error::Error::Dtype) unless f32, bf16 or f16.
///
/// # Source
/// Srivastava et al. 2014, section 10 (the inverted form); Salmon et al. 2011 for the numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element is dropped. At least 0, less than 1.
    pub p: f32,
    /// Where the numbers come from: one stream for one layer at one step.
    pub stream: Stream,
}

impl Dropout {
    fn keep(self) -> Keep {
        Keep { p: self.p, stream: self.stream }
    }

    fn apply(self, x: Floats<'_>, y: Out<'_>) {
        // About 30 integer operations an element for the stream.
        map_flat(x.len(), 48, [x], [y], |first, [x], [y]| {
            self.keep().fill(first, y);
            vector::mul_in_place(x, y);
        });
    }
}

const SOURCE: Source = crate::source!("dropout/dropout.cu");
static FWD: Kernel = Kernel::new(SOURCE, "dropout_fwd");
static BWD: Kernel = Kernel::new(SOURCE, "dropout_bwd_dx");

impl Dropout {
    /// The launch of both kernels, and their numbers.
    fn place<'a>(self, x: &Spec) -> Result<(Launch, Vec<Arg<'a>>)> {
        let mut numbers = vec![launch::length("dropout", "elements", x.len())?];
        numbers.extend(self.keep().args());
        Ok((launch::flat("dropout", x.dtype(), 1, x.len())?, numbers))
    }
}

impl Arity<1> for Dropout {}

impl Operator for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x] = expect_inputs("dropout", x)?;
        self.keep().check("dropout")?;
        expect_dtype("dropout", "x", x, &Dtype::FLOATS)?;
        Ok(Outputs::one((*x).clone()))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let once = Flops::vector(x[0].len() as u128);
        let backward = if wanted.has(0) { once } else { Flops::ZERO };
        OpFlops { forward: once, backward, recomputed: Flops::ZERO }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands("dropout")) };
        if let Some(gpu) = exec.gpu() {
            let (place, numbers) = self.place(x.spec())?;
            let mut args = vec![Arg::Out(y), Arg::In(x)];
            args.extend(numbers);
            return FWD.launch(gpu, x.spec().dtype(), place, &mut args);
        }
        self.apply(Floats::of(x)?, Out::of(y, 1)?);
        Ok(())
    }
}

impl Differentiable for Dropout {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps::default()
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([dy], [dx]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands("dropout")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        if let Some(gpu) = exec.gpu() {
            let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
            let (place, numbers) = self.place(dy.spec())?;
            let mut args = vec![Arg::Out(dx), Arg::In(dy)];
            args.extend(numbers.into_iter().chain([Arg::I32(add)]));
            return BWD.launch(gpu, dy.spec().dtype(), place, &mut args);
        }
        if let Some(dx) = Out::slot(dx, 1)? {
            self.apply(Floats::of(dy)?, dx);
        }
        Ok(())
    }
}

impl Reference for Dropout {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x], [y]) = (io.x, io.y) else { return };
        for (i, (y, &x)) in y.iter_mut().zip(x.v).enumerate() {
            *y = x * self.keep().factor(i);
        }
    }
}

impl ReferenceGrad for Dropout {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([dy], [Some(dx)]) = (io.dy, io.dx) else { return };
        for (i, (dx, &dy)) in dx.iter_mut().zip(*dy).enumerate() {
            *dx = dy * self.keep().factor(i);
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "dropout",
    about: "each element kept with a probability, and scaled so that the expectation stays",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn op(p: f32) -> Dropout {
    Dropout { p, stream: Stream::new(17, 4) }
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> =
        [1, 3, 4, 5, 7, 63, 64, 65, 1009].map(|n| Case::new(op(0.1), [Input::new("x", [n])])).to_vec();
    cases.extend([0.0, 0.5, 0.999].map(|p| Case::new(op(p), [Input::new("x", [5, 129])])));
    cases.push(Case::new(op(0.1), [Input::new("x", [3, 2, 1025])]));
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(op(0.1), &[&[4], &[4]], "dropout: expected 1 inputs, found 2"),
        BadCase::of_specs(op(0.1), vec![ints], "dropout: x: expected f32 or bf16 or f16, found [4] i32"),
        BadCase::new(op(1.0), &[&[4]], "dropout: p: expected a probability of 0 or more and less than 1, found 1"),
        BadCase::new(op(-0.1), &[&[4]], "less than 1, found -0.1"),
        BadCase::new(op(f32::NAN), &[&[4]], "less than 1, found NaN"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let shapes = [[4050, 384], [512, 384], [65_536, 768]];
    shapes.map(|shape| Case::new(op(0.1), [Input::new("x", shape)])).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn the_share_that_is_kept_is_one_minus_p_and_the_expectation_stays() {
        for p in [0.1_f32, 0.5, 0.9] {
            let n = 40_000;
            let y = forward(&op(p), &[(&[n], &vec![1.0; n])]);
            let kept = y.iter().filter(|y| **y != 0.0).count() as f64 / n as f64;
            // Five standard errors of a share.
            let spread = 5.0 * (f64::from(p) * (1.0 - f64::from(p)) / n as f64).sqrt();
            assert!((kept - (1.0 - f64::from(p))).abs() < spread, "p = {p}: kept {kept}");
            let scale = (1.0 / (1.0 - f64::from(p))) as f32;
            assert!(y.iter().all(|y| *y == 0.0 || *y == scale));
        }
    }

    #[test]
    fn backward_drops_what_forward_dropped() {
        let x = vec![1.0; 999];
        assert_eq!(backward(&op(0.3), &[(&[999], &x)], Some(&x))[0], forward(&op(0.3), &[(&[999], &x)]));
    }

    #[test]
    fn another_stream_drops_others_and_the_same_stream_the_same() {
        let x = vec![1.0; 256];
        let y = |id| forward(&Dropout { p: 0.5, stream: Stream::new(17, id) }, &[(&[256], &x)]);
        assert_eq!(y(1), y(1));
        assert_ne!(y(1), y(2));
    }

    #[test]
    fn a_dropped_nan_is_not_hidden() {
        let y = forward(&op(0.999_999_9), &[(&[4], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0])]);
        assert!(y[..3].iter().all(|y| y.is_nan()));
    }

    #[test]
    fn a_probability_just_below_one_has_a_finite_scale() {
        let p = 1.0 - f32::EPSILON / 2.0;
        assert!(op(p).keep().check("dropout").is_ok());
        assert_eq!(op(p).keep().scale(), 16_777_216.0);
    }

    #[test]
    fn without_a_probability_the_input_passes() {
        let x = [1.5, -0.0, f32::INFINITY];
        assert_eq!(forward(&op(0.0), &[(&[3], &x)]), x);
    }
}
