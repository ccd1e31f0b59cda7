//! `drop_path`: whole samples kept with a probability, and scaled so that the expectation stays (stochastic depth).

use crate::backend::Exec;
use crate::backend::cpu::vector;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, Out, TOUCH, map_flat, no_gradient, wrong_operands};
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

/// Stochastic depth: drops the branch `x` of whole samples.
///
/// ```text
/// y[b, ..] = x[b, ..] · m[b]        dx[b, ..] = dy[b, ..] · m[b]        m[b] = 1/(1 − p) if u[b] ≥ p, else 0
/// ```
///
/// where `u[b]` is element `b` of the stream, uniform in [0, 1) in steps of 2⁻²⁴. The mask is drawn again in backward and
/// never stored. It multiplies, so NaN and infinity in a dropped sample give NaN and are not hidden. `p = 0` gives `x`
/// itself; in evaluation leave the operator out.
///
/// # Shapes
/// `x [B, ..]` → `y` of the same; backward reads nothing.
///
/// # Units
/// Those of `x`.
///
/// # Cost
/// 1 vector an element, forward and backward; drawing is integer arithmetic and counts nothing.
///
/// # Errors
/// [`Error::Argument`] unless 0 ≤ `p` < 1; [`Error::Shape`] if `x` has no axis; [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// Huang et al. 2016; the per-sample form is that of timm's `DropPath` with `scale_by_keep`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropPath {
    /// Probability that a sample is dropped. At least 0, less than 1.
    pub p: f32,
    /// Where the numbers come from: one stream for one layer at one step.
    pub stream: Stream,
}

impl DropPath {
    fn keep(self) -> Keep {
        Keep { p: self.p, stream: self.stream }
    }

    fn apply(self, spec: &Spec, x: Floats<'_>, y: Out<'_>) {
        let samples = samples(spec);
        let mut factors = vec![0.0; samples];
        self.keep().fill(0, &mut factors);
        let width = spec.len() / samples.max(1);
        map_flat(x.len(), 2 * TOUCH, [x], [y], |first, [x], [y]| {
            let mut at = 0;
            while at < y.len() {
                let (sample, done) = ((first + at) / width, (first + at) % width);
                let part = at..y.len().min(at + width - done);
                vector::scale(factors[sample], &x[part.clone()], &mut y[part.clone()]);
                at = part.end;
            }
        });
    }
}

fn samples(x: &Spec) -> usize {
    x.shape().first().copied().unwrap_or(1)
}

const SOURCE: Source = crate::source!("drop_path/drop_path.cu");
static FWD: Kernel = Kernel::new(SOURCE, "drop_path_fwd");
static BWD: Kernel = Kernel::new(SOURCE, "drop_path_bwd_dx");

impl DropPath {
    /// The launch of both kernels, and their numbers.
    fn place<'a>(self, x: &Spec) -> Result<(Launch, Vec<Arg<'a>>)> {
        let mut numbers = vec![launch::length("drop_path", "elements", x.len())?];
        numbers.push(launch::length("drop_path", "width", x.len() / samples(x).max(1))?);
        numbers.extend(self.keep().args());
        Ok((launch::flat("drop_path", x.dtype(), 1, x.len())?, numbers))
    }
}

impl Arity<1> for DropPath {}

impl Operator for DropPath {
    fn name(&self) -> &'static str {
        "drop_path"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x] = expect_inputs("drop_path", x)?;
        self.keep().check("drop_path")?;
        expect_dtype("drop_path", "x", x, &Dtype::FLOATS)?;
        if x.rank() == 0 {
            return Err(Error::shape("drop_path: x: expected [B, ..], found []"));
        }
        Ok(Outputs::one((*x).clone()))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let once = Flops::vector(x[0].len() as u128);
        let backward = if wanted.has(0) { once } else { Flops::ZERO };
        OpFlops { forward: once, backward, recomputed: Flops::ZERO }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands("drop_path")) };
        if let Some(gpu) = exec.gpu() {
            let (place, numbers) = self.place(x.spec())?;
            let mut args = vec![Arg::Out(y), Arg::In(x)];
            args.extend(numbers);
            return FWD.launch(gpu, x.spec().dtype(), place, &mut args);
        }
        self.apply(x.spec(), Floats::of(x)?, Out::of(y, 1)?);
        Ok(())
    }
}

impl Differentiable for DropPath {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps::default()
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([dy], [dx]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands("drop_path")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        if let Some(gpu) = exec.gpu() {
            let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
            let (place, numbers) = self.place(dy.spec())?;
            let mut args = vec![Arg::Out(dx), Arg::In(dy)];
            args.extend(numbers.into_iter().chain([Arg::I32(add)]));
            return BWD.launch(gpu, dy.spec().dtype(), place, &mut args);
        }
        if let Some(dx) = Out::slot(dx, 1)? {
            self.apply(dy.spec(), Floats::of(dy)?, dx);
        }
        Ok(())
    }
}

impl Reference for DropPath {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x], [y]) = (io.x, io.y) else { return };
        let width = x.len() / samples(x.spec).max(1);
        for (i, (y, &x)) in y.iter_mut().zip(x.v).enumerate() {
            *y = x * self.keep().factor(i / width);
        }
    }
}

impl ReferenceGrad for DropPath {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x], [dy], [Some(dx)]) = (io.x, io.dy, io.dx) else { return };
        let width = dy.len() / samples(x.spec).max(1);
        for (i, (dx, &dy)) in dx.iter_mut().zip(*dy).enumerate() {
            *dx = dy * self.keep().factor(i / width);
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "drop_path",
    about: "whole samples kept with a probability, and scaled so that the expectation stays",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn op(p: f32) -> DropPath {
    DropPath { p, stream: Stream::new(17, 4) }
}

fn cases() -> Vec<Case> {
    let case = |p, shape: [usize; 3]| Case::new(op(p), [Input::new("x", shape)]);
    vec![
        Case::new(op(0.3), [Input::new("x", [1])]),
        Case::new(op(0.3), [Input::new("x", [1009])]),
        case(0.3, [5, 3, 7]),
        case(0.3, [7, 1, 31]),
        case(0.3, [7, 2, 16]),
        case(0.3, [7, 3, 11]),
        case(0.0, [3, 2, 65]),
        case(0.999, [33, 1, 64]),
        case(0.5, [4, 3, 768]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let ints = Spec::new(Dtype::I32, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(op(0.1), &[&[4], &[4]], "drop_path: expected 1 inputs, found 2"),
        BadCase::new(op(0.1), &[&[]], "drop_path: x: expected [B, ..], found []"),
        BadCase::of_specs(op(0.1), vec![ints], "drop_path: x: expected f32 or bf16 or f16, found [4] i32"),
        BadCase::new(op(1.0), &[&[4]], "drop_path: p: expected a probability of 0 or more and less than 1, found 1"),
        BadCase::new(op(f32::NAN), &[&[4]], "less than 1, found NaN"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![Case::new(op(0.1), [Input::new("x", [4, 4050, 384])])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn a_sample_is_dropped_whole_or_kept_whole() {
        let (b, c) = (200, 5);
        let y = forward(&op(0.5), &[(&[b, c], &vec![1.0; b * c])]);
        let mut kept = 0;
        for row in y.chunks(c) {
            assert!(row.iter().all(|v| *v == 0.0) || row.iter().all(|v| *v == 2.0), "{row:?}");
            kept += usize::from(row[0] != 0.0);
        }
        // Five standard errors of a count of 200.
        assert!(kept.abs_diff(100) < 36, "{kept}");
    }

    #[test]
    fn backward_drops_what_forward_dropped() {
        let x = vec![1.0; 60];
        assert_eq!(backward(&op(0.3), &[(&[20, 3], &x)], Some(&x))[0], forward(&op(0.3), &[(&[20, 3], &x)]));
    }

    #[test]
    fn empty_batches_and_empty_samples_are_fine() {
        assert!(forward(&op(0.3), &[(&[0, 3], &[])]).is_empty());
        assert!(forward(&op(0.3), &[(&[3, 0], &[])]).is_empty());
    }
}
