//! `matmul`: a matrix times a weight matrix, with bias and activation before the result is stored.

mod activation;
mod cases;
mod cpu;
mod launch;
mod reference;

#[cfg(test)]
mod tests;

pub use activation::Activation;

use crate::backend::Exec;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::contract::Room;
use crate::ops::operator::{Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs};
use crate::tensor::{Dtype, Spec, expect_dtype, expect_rank, expect_shape};

/// Product with a weight matrix, plus bias, through an activation.
///
/// ```text
/// z[r, n] = Σₖ x[r, k] · w[k, n] + bias[n]        y = activation(z)
/// ```
///
/// # Shapes
/// `x [.., K]`, `w [K, N]` (or `[N, K]` with `transpose_w`, as PyTorch's Linear stores it), optionally `bias [N]` →
/// `y [.., N]`. The activations `Gelu`, `GeluTanh` and `Silu` save `z [.., N]` in f32; `Relu` reads `y` back; without an
/// activation nothing is kept but `x` and `w`. Nothing is recomputed.
///
/// # Units
/// `z` has the unit of `x` times that of `w`; an activation wants it dimensionless.
///
/// # Cost
/// With `R` rows: forward `2·R·K·N` matmul, `R·N` vector for the bias, and the activation's `R·N` times (vector, special):
/// `Gelu` (4, 1), `GeluTanh` (8, 1), `Relu` (1, 0), `Silu` (2, 1). Backward: `2·R·K·N` matmul for each of `x` and `w`,
/// `R·N` vector for `bias`, and once the activation's derivative, `R·N` times `Gelu` (9, 2), `GeluTanh` (16, 1),
/// `Relu` (0, 0), `Silu` (7, 1).
///
/// # Errors
/// [`Error::Shape`] unless `w` is a matrix with the `K` of `x` and `bias` is `[N]`; [`Error::Dtype`] unless all are the
/// same of f32, bf16 and f16; [`Error::Argument`] for another number of inputs.
///
/// # Source
/// Hendrycks, Gimpel 2016 for GELU and its tanh form; Elfwing et al. 2017 for SiLU. Gradients by the chain rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matmul {
    /// Whether `w` is `[N, K]` instead of `[K, N]`.
    pub transpose_w: bool,
    /// Applied to the sum before it is stored.
    pub activation: Activation,
}

impl Arity<2> for Matmul {}
impl Arity<3> for Matmul {}

/// Sizes of one application: rows of x, their length, columns of y.
#[derive(Clone, Copy, Debug)]
struct Size {
    rows: usize,
    k: usize,
    n: usize,
}

impl Matmul {
    fn size(&self, x: &[&Spec]) -> Size {
        let (rows, k) = x[0].rows_cols();
        let n = x[1].shape()[usize::from(!self.transpose_w)];
        Size { rows, k, n }
    }
}

impl Operator for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let (x, w, bias) = match inputs {
            [x, w] => (x, w, None),
            [x, w, bias] => (x, w, Some(bias)),
            _ => {
                let found = inputs.len();
                return Err(Error::argument(format!(
                    "matmul: expected 2 inputs [x, w] or 3 [x, w, bias], found {found}"
                )));
            }
        };
        expect_dtype("matmul", "x", x, &Dtype::FLOATS)?;
        expect_dtype("matmul", "w", w, &[x.dtype()])?;
        let (k, n) = if self.transpose_w {
            let [n, k] = *expect_rank("matmul", "w", w, ["N", "K"])?;
            (k, n)
        } else {
            let [k, n] = *expect_rank("matmul", "w", w, ["K", "N"])?;
            (k, n)
        };
        let Some((&last, lead)) = x.shape().split_last() else {
            return Err(Error::shape(format!("matmul: x: expected [.., K={k}], found a scalar")));
        };
        if last != k {
            let (found, w) = (x.shape(), w.shape());
            return Err(Error::shape(format!("matmul: x: expected [.., K={k}], found {found:?} (w is {w:?})")));
        }
        if let Some(bias) = bias {
            expect_dtype("matmul", "bias", bias, &[x.dtype()])?;
            expect_shape("matmul", "bias", bias, &[("N", n)])?;
        }
        let y = x.with_shape([lead, &[n]].concat())?;
        let saved = if self.activation.keeps_input() { vec![Spec::f32(y.shape())?] } else { Vec::new() };
        Ok(Outputs { y: vec![y], saved })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let Size { rows, k, n } = self.size(x);
        let (results, product) = ((rows * n) as u128, Flops::matmul(2 * (rows as u128) * (k as u128) * (n as u128)));
        let bias = if x.len() == 3 { Flops::vector(results) } else { Flops::ZERO };
        let each = [product, product, bias].into_iter().take(x.len()).enumerate();
        let mut backward: Flops = each.filter(|(i, _)| wanted.has(*i)).map(|(_, cost)| cost).sum();
        // The derivative of the activation is taken once, for whichever gradient asks first.
        if (0..x.len()).any(|i| wanted.has(i)) {
            backward += self.activation.gradient_flops(results);
        }
        let forward = product + bias + self.activation.flops(results);
        OpFlops { forward, backward, recomputed: Flops::ZERO }
    }

    fn variant(&self) -> &'static str {
        match self.activation {
            Activation::None => "",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Relu => "relu",
            Activation::Silu => "silu",
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        match exec.gpu() {
            Some(gpu) => self.launch_fwd(gpu, io),
            None => cpu::forward(self, exec, io),
        }
    }
}

impl Differentiable for Matmul {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let mut x = Mask::NONE;
        if wanted.has(0) {
            x = x.with(1);
        }
        if wanted.has(1) {
            x = x.with(0);
        }
        Keeps { x, y: if self.activation == Activation::Relu { Mask::of([0]) } else { Mask::NONE } }
    }

    fn gradient_factor(&self, i: usize) -> Option<usize> {
        (i == 1 && self.transpose_w && self.activation == Activation::None).then_some(0)
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        match exec.gpu() {
            Some(gpu) => self.launch_bwd(gpu, io),
            None => cpu::backward(self, exec, io),
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "matmul",
    about: "a matrix times a weight matrix, plus bias, through an activation",
    dtypes: &Dtype::FLOATS,
    kernels: launch::KERNELS,
    cases: cases::cases,
    bad_cases: cases::bad_cases,
    bench_cases: cases::bench_cases,
};
