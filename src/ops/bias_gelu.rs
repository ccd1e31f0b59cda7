//! `bias_gelu`: a bias per column and the Gaussian error linear unit in one pass each way: the middle of a transformer's MLP.

use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::broadcast::shaped;
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::elementwise::Elementwise;
use crate::ops::gelu::{Approximate, Gelu};
use crate::ops::host;
use crate::ops::launch::{self, ColumnSums};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype, expect_shape};

/// [`Gelu`] of a sum with a bias.
///
/// ```text
/// y[r, c] = gelu(x[r, c] + bias[c])        dx = dy · gelu′(x + bias)        dbias[c] = Σ_r dx[r, c]
/// ```
///
/// The sum is not stored, and `dbias` adds gradients that were not rounded.
///
/// # Shapes
/// `x [.., C]`, `bias [C]` → `y` like `x`; backward reads both.
///
/// # Units
/// All are dimensionless.
///
/// # Cost
/// that of [`Gelu`] and 1 vector an element, forward and backward; `dbias` 1 more.
///
/// # Errors
/// [`Error::Shape`] unless `x` has an axis and `bias` is `[C]`; [`Error::Dtype`] unless both are f32, both bf16 or both f16.
///
/// # Source
/// Hendrycks, Gimpel 2016, sections 2 and 4. Gradients by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BiasGelu {
    /// Which function.
    pub approximate: Approximate,
}

const OP: &str = "bias_gelu";
const SOURCE: Source = crate::source!("bias_gelu/bias_gelu.cu");
static FWD: Kernel = Kernel::new(SOURCE, "bias_gelu_fwd");
static BWD_DX: Kernel = Kernel::new(SOURCE, "bias_gelu_bwd_dx");
static BWD: Kernel = Kernel::new(SOURCE, "bias_gelu_bwd");
static BWD_TOTAL: Kernel = Kernel::new(SOURCE, "bias_gelu_bwd_total");

impl BiasGelu {
    fn gelu(self) -> Gelu {
        Gelu { approximate: self.approximate }
    }

    fn is_tanh<'a>(self) -> Arg<'a> {
        Arg::I32(i32::from(self.approximate == Approximate::Tanh))
    }

    /// Numbers of `x`, columns, which function: as the flat kernels take them.
    fn args<'a>(self, x: &Spec) -> Result<[Arg<'a>; 3]> {
        Ok([launch::length(OP, "elements", x.len())?, launch::length(OP, "C", x.last())?, self.is_tanh()])
    }
}

impl Arity<2> for BiasGelu {}

impl Operator for BiasGelu {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x, bias] = expect_inputs(OP, x)?;
        expect_dtype(OP, "x", x, &Dtype::FLOATS)?;
        if x.rank() == 0 {
            return Err(Error::shape(format!("{OP}: x: expected [.., C], found {:?}", x.shape())));
        }
        expect_dtype(OP, "bias", bias, &[x.dtype()])?;
        expect_shape(OP, "bias", bias, &[("C", x.last())])?;
        Ok(Outputs::one((*x).clone()))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let n = x[0].len() as u128;
        let times = |one: Flops| Flops::vector(n * (one.vector + 1)) + Flops::special(n * one.special);
        let gradient = if wanted.is_empty() { Flops::ZERO } else { times(self.gelu().gradient_flops()) };
        let sum = if wanted.has(1) { Flops::vector(n) } else { Flops::ZERO };
        OpFlops { forward: times(self.gelu().value_flops()), backward: gradient + sum, recomputed: Flops::ZERO }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let Some(gpu) = exec.gpu() else { return host::forward(self, io) };
        let ([x, bias], [y]) = (io.x, io.y) else { return Err(wrong_operands(OP)) };
        let dtype = x.spec().dtype();
        let mut args = vec![Arg::Out(y), Arg::In(x), Arg::In(bias)];
        args.extend(self.args(x.spec())?);
        FWD.launch(gpu, dtype, launch::flat(OP, dtype, 1, x.spec().len())?, &mut args)
    }
}

impl Differentiable for BiasGelu {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps { x: Mask::of([0, 1]), y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        match exec.gpu() {
            Some(gpu) => self.launch_bwd(gpu, io),
            None => host::backward(self, io),
        }
    }
}

impl BiasGelu {
    /// Backward on a device: with the gradient of the bias in one pass over `x` and `dy`, too.
    fn launch_bwd(self, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
        let ([dy], [spec, _], [dx, dbias]) = (io.dy, io.specs, &mut *io.dx) else { return Err(wrong_operands(OP)) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let (dtype, (rows, c)) = (dy.spec().dtype(), spec.rows_cols());
        let (x, bias) = (launch::kept(OP, io.x, 0)?, launch::kept(OP, io.x, 1)?);
        let (dx, add) = launch::slot(dx).map_or((None, 0), |(dx, add)| (Some(dx), add));
        let to = dx.map_or(Arg::Null, |dx| Arg::Out(dx));
        let Some((dbias, add_dbias)) = launch::slot(dbias) else {
            if matches!(to, Arg::Null) {
                return Ok(());
            }
            let mut args = vec![to, Arg::In(x), Arg::In(bias), Arg::In(dy)];
            args.extend(self.args(spec)?.into_iter().chain([Arg::I32(add)]));
            return BWD_DX.launch(gpu, dtype, launch::flat(OP, dtype, 2, spec.len())?, &mut args);
        };
        // A processor has three blocks, or two, at once.
        let sums = ColumnSums::with_blocks(gpu, 6, dtype, 1, rows, c);
        let mut partial = sums.scratch(gpu)?;
        let mut args = vec![to, Arg::Out(&mut partial), Arg::In(x), Arg::In(bias), Arg::In(dy)];
        args.extend(sums.args(OP)?.into_iter().chain([self.is_tanh(), Arg::I32(add)]));
        BWD.launch(gpu, dtype, sums.launch(OP)?, &mut args)?;
        sums.total(gpu, OP, &BWD_TOTAL, dtype, dbias, &partial, Some(add_dbias))
    }
}

impl Reference for BiasGelu {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, bias], [y]) = (io.x, io.y) else { return };
        let c = x.spec.last();
        for (i, y) in y.iter_mut().enumerate() {
            *y = self.gelu().value(x[i] + bias[i % c]);
        }
    }
}

impl ReferenceGrad for BiasGelu {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x, bias], [dy], [dx, dbias]) = (io.x, io.dy, io.dx) else { return };
        let c = x.spec.last();
        if dx.is_none() && dbias.is_none() {
            return;
        }
        for (i, &dy) in dy.iter().enumerate() {
            let gradient = self.gelu().gradient(x[i] + bias[i % c], dy);
            if let Some(dx) = dx {
                dx[i] = gradient;
            }
            if let Some(dbias) = dbias {
                dbias[i % c] = dbias[i % c] + gradient;
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: OP,
    about: "the Gaussian error linear unit of a sum with a bias per column",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

const BOTH: [BiasGelu; 2] = [BiasGelu { approximate: Approximate::None }, BiasGelu { approximate: Approximate::Tanh }];

fn cases() -> Vec<Case> {
    let shapes: [&[usize]; 10] =
        [&[1], &[1, 1], &[3, 7], &[2, 3, 8], &[5, 31], &[67, 24], &[2, 65], &[259, 33], &[3, 1536], &[0, 8]];
    let case = |op, shape: &[usize]| {
        let x = shaped("x", shape).fill(Fill::Uniform(-4.0, 4.0));
        Case::new(op, [x, Input::new("bias", [shape[shape.len() - 1]])])
    };
    BOTH.into_iter().flat_map(|op| shapes.map(|shape| case(op, shape))).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let op = BOTH[0];
    let narrow = [Spec::f32([3, 4]), Spec::new(Dtype::Bf16, [4])];
    vec![
        BadCase::new(op, &[&[3, 4]], "bias_gelu: expected 2 inputs, found 1"),
        BadCase::new(op, &[&[], &[1]], "x: expected [.., C], found []"),
        BadCase::new(op, &[&[3, 4], &[3]], "bias: expected [C=4], found [3]"),
        BadCase::of_specs(op, narrow.into_iter().flatten().collect(), "bias: expected f32, found [4] bf16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let shape = |rows, c| Case::new(BOTH[0], [Input::new("x", [rows, c]), Input::new("bias", [c])]);
    vec![shape(4050, 1536), shape(32_768, 3072)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn it_is_gelu_of_the_sum() {
        for op in BOTH {
            let y = forward(&op, &[(&[2, 2], &[0.5, -1.0, 2.0, 0.0]), (&[2], &[1.0, -0.25])]);
            let want = forward(&op.gelu(), &[(&[2, 2], &[1.5, -1.25, 3.0, -0.25])]);
            assert!(y.iter().zip(&want).all(|(y, want)| (y - want).abs() < 1e-6), "{op:?}: {y:?} {want:?}");
        }
    }

    #[test]
    fn the_gradient_of_the_bias_is_the_sum_of_those_of_the_rows() {
        let x: [(&[usize], &[f32]); 2] = [(&[2, 1], &[100.0, -100.0]), (&[1], &[0.0])];
        assert_eq!(backward(&BOTH[0], &x, Some(&[3.0, 5.0])), [vec![3.0, 0.0], vec![3.0]]);
        assert!(backward(&BOTH[0], &x, None).iter().flatten().all(|g| *g == 0.0));
    }
}
