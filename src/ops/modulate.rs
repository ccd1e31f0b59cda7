//! `modulate`: every sample scaled and shifted per column as a condition says: the second half of an adaptive normalisation.

use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::broadcast::shaped;
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::host;
use crate::ops::launch::{self, ColumnSums};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype, expect_shape};

/// Scale and shift of whole samples.
///
/// ```text
/// y[b, n, c] = x[b, n, c] · (base + scale[b, c]) + shift[b, c]
/// dx = dy · (base + scale)        dscale[b, c] = Σ_n dy · x        dshift[b, c] = Σ_n dy
/// ```
///
/// After [`LayerNorm`](crate::ops::layer_norm::LayerNorm) or [`RmsNorm`](crate::ops::rms_norm::RmsNorm) it makes an adaptive
/// normalisation, whose scale and shift come from a condition such as a lead time.
///
/// # Shapes
/// `x [B, .., C]`, `scale [B, C]`, `shift [B, C]` → `y` like `x`. Backward reads `scale` for `dx` and `x` for `dscale`.
///
/// # Units
/// `scale` has none; `y` and `shift` have that of `x`.
///
/// # Cost
/// forward 2 vector an element of `x` and 1 one of `scale`; backward of `x` 1 and 1, of `scale` 2 an element of `x`, of `shift` 1.
///
/// # Errors
/// [`Error::Shape`] unless `x` has two axes or more and `scale` and `shift` are `[B, C]`; [`Error::Dtype`] unless all are f32, all
/// bf16 or all f16; [`Error::Argument`] unless `base` is finite.
///
/// # Source
/// Perez et al. 2018, equation 1 (`base` 0); Peebles, Xie 2023, section 3.2 (`base` 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Modulate {
    /// Added to every scale: with 1, a scale of zeros leaves `x` as it is.
    pub base: f32,
}

const OP: &str = "modulate";
const SOURCE: Source = crate::source!("modulate/modulate.cu");
static FWD: Kernel = Kernel::new(SOURCE, "modulate_fwd");
static BWD_DX: Kernel = Kernel::new(SOURCE, "modulate_bwd_dx");
static BWD_PARAMS: Kernel = Kernel::new(SOURCE, "modulate_bwd_params");
static BWD_TOTAL: Kernel = Kernel::new(SOURCE, "modulate_bwd_total");

/// Samples, rows of each, columns.
#[derive(Clone, Copy)]
struct Axes {
    b: usize,
    n: usize,
    c: usize,
}

impl Axes {
    fn of(x: &Spec) -> Axes {
        let shape = x.shape();
        let middle = shape.get(1..shape.len().saturating_sub(1)).unwrap_or_default();
        Axes { b: shape.first().copied().unwrap_or(0), n: middle.iter().product(), c: x.last() }
    }

    fn len(self) -> usize {
        self.b * self.n * self.c
    }

    fn params(self) -> usize {
        self.b * self.c
    }

    /// Numbers, those of a sample, columns, as the flat kernels take them.
    fn args<'a>(self) -> Result<[Arg<'a>; 3]> {
        let length = |n| launch::length(OP, "elements", n);
        Ok([length(self.len())?, length(self.n * self.c)?, length(self.c)?])
    }
}

impl Arity<3> for Modulate {}

impl Operator for Modulate {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x, scale, shift] = expect_inputs(OP, x)?;
        if !self.base.is_finite() {
            return Err(Error::argument(format!("{OP}: base: expected a finite number, found {}", self.base)));
        }
        expect_dtype(OP, "x", x, &Dtype::FLOATS)?;
        if x.rank() < 2 {
            return Err(Error::shape(format!("{OP}: x: expected [B, .., C], found {:?}", x.shape())));
        }
        let Axes { b, c, .. } = Axes::of(x);
        for (name, s) in [("scale", scale), ("shift", shift)] {
            expect_dtype(OP, name, s, &[x.dtype()])?;
            expect_shape(OP, name, s, &[("B", b), ("C", c)])?;
        }
        Ok(Outputs::one((*x).clone()))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let axes = Axes::of(x[0]);
        let (n, params) = (axes.len() as u128, axes.params() as u128);
        let dx = if wanted.has(0) { n + params } else { 0 };
        let dscale = if wanted.has(1) { 2 * n } else { 0 };
        let dshift = if wanted.has(2) { n } else { 0 };
        OpFlops {
            forward: Flops::vector(2 * n + params),
            backward: Flops::vector(dx + dscale + dshift),
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let Some(gpu) = exec.gpu() else { return host::forward(self, io) };
        let ([x, scale, shift], [y]) = (io.x, io.y) else { return Err(wrong_operands(OP)) };
        let (axes, dtype) = (Axes::of(x.spec()), x.spec().dtype());
        let mut args = vec![Arg::Out(y), Arg::In(x), Arg::In(scale), Arg::In(shift)];
        args.extend(axes.args()?.into_iter().chain([Arg::F32(self.base)]));
        FWD.launch(gpu, dtype, launch::flat(OP, dtype, 1, axes.len())?, &mut args)
    }
}

impl Differentiable for Modulate {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let x = if wanted.has(1) { Mask::of([0]) } else { Mask::NONE };
        Keeps { x: if wanted.has(0) { x.with(1) } else { x }, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        match exec.gpu() {
            Some(gpu) => self.launch_bwd(gpu, io),
            None => host::backward(self, io),
        }
    }
}

impl Modulate {
    /// Backward on a device.
    fn launch_bwd(&self, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
        let ([dy], [x, ..], [dx, dscale, dshift]) = (io.dy, io.specs, &mut *io.dx) else {
            return Err(wrong_operands(OP));
        };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let (axes, dtype) = (Axes::of(x), dy.spec().dtype());
        if let Some((dx, add)) = launch::slot(dx) {
            let mut args = vec![Arg::Out(dx), Arg::In(launch::kept(OP, io.x, 1)?), Arg::In(dy)];
            args.extend(axes.args()?.into_iter().chain([Arg::F32(self.base), Arg::I32(add)]));
            BWD_DX.launch(gpu, dtype, launch::flat(OP, dtype, 1, axes.len())?, &mut args)?;
        }
        let (dscale, dshift) = (launch::slot(dscale), launch::slot(dshift));
        // Where the scale's gradient is not wanted, x may not be there: dy stands in for it.
        let x = match (&dscale, &dshift) {
            (None, None) => return Ok(()),
            (None, Some(_)) => dy,
            (Some(_), _) => launch::kept(OP, io.x, 0)?,
        };
        let sums = ColumnSums::new(gpu, dtype, axes.b, axes.n, axes.c);
        let (mut products, mut plain) = (sums.scratch(gpu)?, sums.scratch(gpu)?);
        let mut args = vec![Arg::Out(&mut products), Arg::Out(&mut plain), Arg::In(x), Arg::In(dy)];
        args.extend(sums.args(OP)?);
        BWD_PARAMS.launch(gpu, dtype, sums.launch(OP)?, &mut args)?;
        for (to, partial) in [(dscale, &products), (dshift, &plain)] {
            if let Some((to, add)) = to {
                sums.total(gpu, OP, &BWD_TOTAL, dtype, to, partial, Some(add))?;
            }
        }
        Ok(())
    }
}

impl Reference for Modulate {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, scale, shift], [y]) = (io.x, io.y) else { return };
        let Axes { b, n, c } = Axes::of(x.spec);
        for k in 0..b * c {
            let (factor, first) = (S::of(f64::from(self.base)) + scale[k], k / c * n * c + k % c);
            for i in (0..n).map(|row| first + row * c) {
                y[i] = x[i] * factor + shift[k];
            }
        }
    }
}

impl ReferenceGrad for Modulate {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, scale, _], [dy], [dx, dscale, dshift]) = (io.x, io.dy, io.dx) else { return };
        let Axes { b, n, c } = Axes::of(x.spec);
        for k in 0..b * c {
            let numbers = || (0..n).map(|row| k / c * n * c + k % c + row * c);
            if let Some(dx) = dx {
                let factor = S::of(f64::from(self.base)) + scale[k];
                numbers().for_each(|i| dx[i] = dy[i] * factor);
            }
            if let Some(dscale) = dscale {
                numbers().for_each(|i| dscale[k] = dscale[k] + dy[i] * x[i]);
            }
            if let Some(dshift) = dshift {
                numbers().for_each(|i| dshift[k] = dshift[k] + dy[i]);
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: OP,
    about: "every sample scaled and shifted per column as a condition says",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case(base: f32, x: &[usize]) -> Case {
    let params = [x[0], x[x.len() - 1]];
    Case::new(Modulate { base }, [shaped("x", x), Input::new("scale", params), Input::new("shift", params)])
}

fn cases() -> Vec<Case> {
    let shapes: [&[usize]; 10] = [
        &[1, 1],
        &[3, 7],
        &[2, 5, 8],
        &[2, 3, 5, 24],
        &[3, 11, 31],
        &[2, 17, 33],
        &[5, 1, 130],
        &[2, 67, 384],
        &[0, 3, 8],
        &[2, 0, 8],
    ];
    shapes.into_iter().map(|x| case(1.0, x)).chain([case(0.0, &[2, 9, 40])]).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let op = Modulate { base: 1.0 };
    let narrow = [Spec::f32([2, 3, 4]), Spec::new(Dtype::Bf16, [2, 4]), Spec::f32([2, 4])];
    vec![
        BadCase::new(op, &[&[2, 3, 4], &[2, 4]], "expected 3 inputs, found 2"),
        BadCase::new(op, &[&[4], &[4], &[4]], "x: expected [B, .., C], found [4]"),
        BadCase::new(op, &[&[2, 3, 4], &[2, 3], &[2, 4]], "scale: expected [B=2, C=4], found [2, 3]"),
        BadCase::new(op, &[&[2, 3, 4], &[2, 4], &[4]], "shift: expected [B=2, C=4], found [4]"),
        BadCase::of_specs(op, narrow.into_iter().flatten().collect(), "scale: expected f32, found [2, 4] bf16"),
        BadCase::new(
            Modulate { base: f32::NAN },
            &[&[1, 1], &[1, 1], &[1, 1]],
            "base: expected a finite number, found NaN",
        ),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case(1.0, &[4, 4050, 384]), case(1.0, &[16, 4096, 1024])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn a_condition_of_zeros_leaves_the_numbers_and_each_sample_has_its_own() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let of = |scale: &[f32], shift: &[f32]| {
            forward(&Modulate { base: 1.0 }, &[(&[2, 2, 2], &x), (&[2, 2], scale), (&[2, 2], shift)])
        };
        assert_eq!(of(&[0.0; 4], &[0.0; 4]), x);
        let got = of(&[0.0, 1.0, 0.0, -1.0], &[0.0, 0.0, 10.0, 0.5]);
        assert_eq!(got, [1.0, 4.0, 3.0, 8.0, 15.0, 0.5, 17.0, 0.5]);
    }

    #[test]
    fn no_incoming_gradient_means_zero() {
        let x: [(&[usize], &[f32]); 3] = [(&[1, 2, 1], &[1.0, 2.0]), (&[1, 1], &[3.0]), (&[1, 1], &[4.0])];
        let dx = backward(&Modulate { base: 1.0 }, &x, None);
        assert!(dx.iter().flatten().all(|g| *g == 0.0), "{dx:?}");
    }
}
