//! `adamw_product`: AdamW of a weight matrix whose gradient is a product, which is never stored.

use std::ops::Range;

use crate::backend::Exec;
use crate::backend::cpu::{threads, vector};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::adamw::{AdamW, MomentStorage, Updated};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch;
use crate::ops::operator::{
    Arity, Factors, Forward, Mask, OpFlops, Operator, Outputs, RefForward, Reference, expect_inputs,
};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut, expect_dtype, expect_rank};

/// One step of [`AdamW`] of a weight matrix, from what its gradient is the product of: the gradient of a linear map's results and
/// the map's inputs.
///
/// ```text
/// grad[n, k] = Σᵣ dy[r, n] · x[r, k]        then as `adamw`
/// ```
///
/// The gradient is summed in f32 where the step reads it, and never written: for a batch of few rows that is less work than
/// writing and reading it, and a model needs no memory for it.
///
/// # Shapes
/// `param [N, K]`, `dy [.., N]`, `x [.., K]` of as many rows R, `m`, `v [N, K]` → new `param`, `m`, `v`, and `param` in 16 bits where
/// a shadow is asked for. `dy` and `x` are of one type, the others as of [`AdamW`].
///
/// # Units
/// `dy · x` has the unit of the gradient; the rest as [`AdamW`].
///
/// # Cost
/// `2·R·N·K` matmul beside what [`AdamW`] costs.
///
/// # Errors
/// As [`AdamW`]; [`Error::Shape`] unless the shapes are as above; [`Error::Argument`] if some elements shall not decay: a matrix
/// decays or does not.
///
/// # Source
/// Loshchilov, Hutter 2019, algorithm 2; Goodfellow 2015, "Efficient per-example gradient computations", for the product.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWProduct {
    /// The step.
    pub step: AdamW,
}

const SOURCE: Source = crate::source!("adamw_product/adamw_product.cu");
static FWD: Kernel = Kernel::new(SOURCE, "adamw_product_fwd");
static FWD_STOCHASTIC: Kernel = Kernel::new(SOURCE, "adamw_product_fwd_stochastic");
static FWD_SQUARES: Kernel = Kernel::new(SOURCE, "adamw_product_fwd_squares");
const THREADS: u32 = 256;
/// Rows, columns and depth of a tile of the product.
const TILE: [usize; 3] = [64, 128, 64];
/// Blocks that the squares of one product are shared by, about: enough for every device, and on all the same.
const SHARED: usize = 4096;

/// What the matrix unit executes for tiles that cover the product.
fn executes(gpu: &Gpu, dtype: Dtype, [r, n, k]: [usize; 3]) {
    gpu.executes(|| {
        let [rows, columns, depth] = TILE;
        let padded = [(n, rows), (k, columns), (r, depth)].map(|(n, of)| n.next_multiple_of(of) as u128);
        if dtype == Dtype::F32 { 0 } else { 2 * padded.iter().product::<u128>() }
    });
}

/// Rows and N of dy, K of x.
fn size_of(dy: &Spec, x: &Spec) -> [usize; 3] {
    let ((r, n), (_, k)) = (dy.rows_cols(), x.rows_cols());
    [r, n, k]
}

impl AdamWProduct {
    /// The step in place, of a matrix whose first number is number `first` of all that the update has random numbers for.
    pub(super) fn update(
        &self,
        exec: &Exec,
        [dy, x]: [&View<'_>; 2],
        to: Updated<'_>,
        first: usize,
        ready: Option<&Tensor>,
    ) -> Result<()> {
        self.infer(&[to.param.spec(), dy.spec(), x.spec(), to.m.spec(), to.v.spec()])?;
        match exec.gpu() {
            _ if exec.is_plan() => Ok(()),
            Some(gpu) => self.launch(gpu, &to.all(), [&to.param, &to.m, &to.v], [dy, x], first, ready),
            None => self.step.update_product_here(exec, [dy, x], to, first),
        }
    }

    fn launch(
        &self,
        gpu: &Gpu,
        new: &[&dyn Operand],
        old: [&dyn Operand; 3],
        [dy, x]: [&View<'_>; 2],
        first: usize,
        ready: Option<&Tensor>,
    ) -> Result<()> {
        let op = "adamw_product";
        let [r, n, k] = size_of(dy.spec(), x.spec());
        executes(gpu, dy.spec().dtype(), [r, n, k]);
        let tiles = n.div_ceil(TILE[0]).saturating_mul(k.div_ceil(TILE[1]));
        let launch = Launch::linear(launch::blocks(op, "tiles", tiles)?, THREADS);
        let mut args = self.step.state_args(new, old);
        args.extend([Arg::In(dy), Arg::In(x)]);
        args.extend([launch::length(op, "N", n)?, launch::length(op, "K", k)?, launch::length(op, "rows", r)?]);
        args.push(ready.map_or(Arg::Null, Arg::Scratch));
        args.extend(self.step.factor_args());
        let kernel = match self.step.moments {
            MomentStorage::F32 => &FWD,
            MomentStorage::Bf16Stochastic { seed } => {
                args.extend([seed, self.step.step, first as u64].map(|n| Arg::I64(n.cast_signed())));
                &FWD_STOCHASTIC
            }
        };
        kernel.launch(gpu, dy.spec().dtype(), launch, &mut args)
    }
}

/// Blocks that the squares of this product are summed by: for a row of tiles, and in all.
fn shares([_, n, k]: [usize; 3]) -> [usize; 2] {
    let (down, across) = (n.div_ceil(TILE[0]), k.div_ceil(TILE[1]));
    let each = SHARED.div_ceil(down.max(1)).min(across).max(1);
    [each, down * each]
}

impl Factors {
    /// Sums of 8 bytes that [`squares_there`](Factors::squares_there) leaves.
    pub(super) fn sums(&self) -> usize {
        shares(self.size())[1]
    }

    /// Parts of the sum of the squares of the gradient, in f64, from place `at` of `sums` on.
    pub(super) fn squares_there(&self, gpu: &Gpu, sums: &mut ViewMut<'_>, at: usize) -> Result<()> {
        let (op, size) = ("adamw_product", self.size());
        let ([each, blocks], [r, n, k]) = (shares(size), size);
        let to = sums.part(2 * at, [2 * blocks])?;
        let dtype = self.dy.spec().dtype();
        executes(gpu, dtype, size);
        let launch = Launch::linear(launch::blocks(op, "tiles", blocks)?, THREADS);
        let [n, k, r] = [launch::length(op, "N", n)?, launch::length(op, "K", k)?, launch::length(op, "rows", r)?];
        let shares = Arg::I32(launch::short(op, "shares", each)?);
        let args = &mut [Arg::Out(&to), Arg::In(&self.dy), Arg::In(&self.x), n, k, r, shares];
        FWD_SQUARES.launch(gpu, dtype, launch, args)
    }

    /// The sum of the squares of the gradient, a row of it at a time.
    pub(super) fn square_here(&self) -> Result<f64> {
        let ([depth, n, k], dy, x) = (self.size(), self.dy.to_f32()?, self.x.to_f32()?);
        let square = |rows: Range<usize>| {
            let mut grad = vec![0.0; k];
            let row = |i: usize| {
                grad.fill(0.0);
                (0..depth).for_each(|r| vector::axpy(dy[r * n + i], &x[r * k..(r + 1) * k], &mut grad));
                vector::sum_squares(&grad)
            };
            rows.map(row).sum::<f64>()
        };
        Ok(threads::reduce(n, (depth + 4) * k, square, |a, b| a + b).unwrap_or(0.0))
    }
}

impl Arity<5> for AdamWProduct {}

impl Operator for AdamWProduct {
    fn name(&self) -> &'static str {
        "adamw_product"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let op = "adamw_product";
        let [param, dy, input, m, v] = expect_inputs(op, x)?;
        let [n, k] = *expect_rank(op, "param", param, ["N", "K"])?;
        expect_dtype(op, "dy", dy, &Dtype::FLOATS)?;
        expect_dtype(op, "x", input, &[dy.dtype()])?;
        for (name, axis, want, spec) in [("dy", "N", n, dy), ("x", "K", k, input)] {
            if spec.rank() == 0 || spec.last() != want {
                let found = spec.shape();
                return Err(Error::shape(format!("{op}: {name}: expected [.., {axis}={want}], found {found:?}")));
            }
        }
        let ((rows, _), (found, _)) = (dy.rows_cols(), input.rows_cols());
        if rows != found {
            return Err(Error::shape(format!("{op}: x: expected {rows} rows like dy, found {found}")));
        }
        if !self.step.undecayed.is_empty() {
            let found = &self.step.undecayed;
            return Err(Error::argument(format!("{op}: undecayed: expected none, found {found:?}")));
        }
        self.step.infer(&[param, &param.with_dtype(dy.dtype()), m, v])
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let ((rows, _), [param, _, _, m, v]) = (x[1].rows_cols(), [x[0], x[1], x[2], x[3], x[4]]);
        let step = self.step.flops(&[param, param, m, v], wanted).forward;
        let forward = Flops::matmul(2 * (rows as u128) * (param.len() as u128)) + step;
        OpFlops { forward, ..OpFlops::default() }
    }

    /// On a device from inputs to results; on the CPU copies, then updates the copies.
    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([param, dy, x, m, v], [p_out, m_out, v_out, shadow @ ..]) = (io.x, io.y) else { return Ok(()) };
        let mut to = Updated {
            param: p_out.reborrow(),
            m: m_out.reborrow(),
            v: v_out.reborrow(),
            shadow: shadow.first_mut().map(ViewMut::reborrow),
        };
        if let Some(gpu) = exec.gpu() {
            return self.launch(gpu, &to.all(), [param, m, v], [dy, x], 0, None);
        }
        for (to, from) in [(&mut to.param, param), (&mut to.m, m), (&mut to.v, v)] {
            to.copy_from(from)?;
        }
        self.update(exec, [dy, x], to, 0, None)
    }
}

impl Reference for AdamWProduct {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([param, dy, x, m, v], y) = (io.x, io.y) else { return };
        let [rows, n, k] = size_of(dy.spec, x.spec);
        let mut grad = Vec::with_capacity(n * k);
        for at in 0..n * k {
            let (i, j) = (at / k, at % k);
            grad.push((0..rows).fold(S::zero(), |sum, r| sum.mac(dy[r * n + i], x[r * k + j])));
        }
        self.step.step_ref([param, &grad, m, v], y);
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "adamw_product",
    about: "one step of Adam of a weight matrix whose gradient is a product, which is never stored",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn op(step: u64) -> AdamWProduct {
    let undecayed: std::sync::Arc<[Range<usize>]> = [].into();
    let (moments, gradient_factor) = (MomentStorage::F32, 0.25);
    let (betas, weight_decay) = ([0.9, 0.999], 0.01);
    let step =
        AdamW { lr: 1e-3, betas, eps: 1e-8, weight_decay, step, gradient_factor, undecayed, moments, shadow: None };
    AdamWProduct { step }
}

fn narrow(step: u64, shadow: Option<Dtype>) -> AdamWProduct {
    let moments = MomentStorage::Bf16Stochastic { seed: 0x5ee_d0f1_2345_6789 };
    AdamWProduct { step: AdamW { moments, shadow, ..op(step).step } }
}

fn case(op: AdamWProduct, [r, n, k]: [usize; 3]) -> Case {
    let moment = op.step.moments.dtype();
    let x = [
        Input::new("param", [n, k]).always_f32(),
        Input::new("dy", [r, n]),
        Input::new("x", [r, k]),
        Input::new("m", [n, k]).always(moment),
        Input::new("v", [n, k]).always(moment).fill(Fill::Uniform(0.01, 1.0)),
    ];
    Case::plain(op, x)
}

fn cases() -> Vec<Case> {
    let shadow = |step, dtype| AdamWProduct { step: AdamW { shadow: Some(dtype), ..op(step).step } };
    vec![
        case(op(1), [1, 1, 1]),
        case(op(1), [0, 3, 5]),
        case(op(1), [3, 0, 5]),
        case(op(2), [5, 7, 3]),
        case(op(1000), [3, 65, 8]),
        case(op(u64::MAX), [17, 63, 129]),
        case(shadow(3, Dtype::Bf16), [64, 64, 128]),
        case(shadow(3, Dtype::F16), [65, 66, 132]),
        case(shadow(7, Dtype::Bf16), [2, 131, 7]),
        case(narrow(u64::MAX - 1, None), [4, 9, 140]),
        case(narrow(1 << 33, Some(Dtype::Bf16)), [31, 66, 13]),
        case(narrow(3, Some(Dtype::F16)), [130, 70, 256]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let shapes: &[&[usize]] = &[&[4, 6], &[3, 4], &[3, 6], &[4, 6], &[4, 6]];
    let with = |i: usize, shape: &'static [usize]| {
        let mut all = shapes.to_vec();
        all[i] = shape;
        all
    };
    let spared = AdamWProduct { step: AdamW { undecayed: std::iter::once(0..3).collect(), ..op(1).step } };
    vec![
        BadCase::new(op(1), &shapes[..4], "expected 5 inputs, found 4"),
        BadCase::new(op(1), &with(0, &[24]), "param: expected"),
        BadCase::new(op(1), &with(1, &[3, 5]), "dy: expected [.., N=4], found [3, 5]"),
        BadCase::new(op(1), &with(2, &[3, 4]), "x: expected [.., K=6], found [3, 4]"),
        BadCase::new(op(1), &with(2, &[2, 6]), "x: expected 3 rows like dy, found 2"),
        BadCase::new(spared, shapes, "undecayed: expected none"),
    ]
}

fn bench_cases() -> Vec<Case> {
    // A batch of the Sherlock autoencoder: from the bottleneck towards voxels, and a part of the last map.
    let brain = || AdamWProduct { step: AdamW { shadow: Some(Dtype::Bf16), ..op(10).step } };
    vec![
        case(op(10), [64, 2048, 2048]),
        case(brain(), [64, 16_384, 8000]).timed_in(Dtype::Bf16),
        case(narrow(10, Some(Dtype::Bf16)), [64, 16_384, 8000]).timed_in(Dtype::Bf16),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::room_tests!(ROOM);
}
