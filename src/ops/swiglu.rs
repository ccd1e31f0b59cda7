//! `swiglu`: one projection gated by the silu of another.

use crate::backend::Exec;
use crate::backend::cpu::vector;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, Out, map_flat, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::ops::sigmoid::sigmoid;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype};

/// Gated silu.
///
/// ```text
/// y = silu(gate) · up,  silu(g) = g · s,  s = 1 / (1 + exp(−g))
/// dgate = dy · up · (s + g·s · (1 − s))        dup = dy · silu(gate)
/// ```
///
/// # Shapes
/// `gate` of any shape, `up` of the same → `y` of the same; backward reads `gate`, and `up` for `dgate`.
///
/// # Units
/// `gate` is dimensionless; `y` has the unit of `up`.
///
/// # Cost
/// An element: forward 3 vector and 1 special; backward 3 vector and 1 special for silu, 5 vector more for `dgate`, 1 vector
/// more for `dup`.
///
/// # Errors
/// [`Error::Shape`] if `up` has another shape than `gate`;
/// [`Error::Dtype`] unless both are f32, both bf16 or both f16.
///
/// # Source
/// Shazeer 2020, equation 6 with β = 1. Gradient by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swiglu;

const WORK: usize = 48;

const SOURCE: Source = crate::source!("swiglu/swiglu.cu");
static FWD: Kernel = Kernel::new(SOURCE, "swiglu_fwd");
static BWD: Kernel = Kernel::new(SOURCE, "swiglu_bwd");
static BWD_DGATE: Kernel = Kernel::new(SOURCE, "swiglu_bwd_dgate");
static BWD_DUP: Kernel = Kernel::new(SOURCE, "swiglu_bwd_dup");

impl Arity<2> for Swiglu {}

impl Operator for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [gate, up] = expect_inputs("swiglu", x)?;
        expect_dtype("swiglu", "gate", gate, &Dtype::FLOATS)?;
        expect_dtype("swiglu", "up", up, &[gate.dtype()])?;
        if gate.shape() != up.shape() {
            let (gate, up) = (gate.shape(), up.shape());
            return Err(Error::shape(format!("swiglu: up: expected {gate:?} like gate, found {up:?}")));
        }
        Ok(Outputs::one((*gate).clone()))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let n = x[0].len() as u128;
        let silu = Flops::vector(3) + Flops::special(1);
        let mut backward = if wanted.has(0) || wanted.has(1) { silu } else { Flops::ZERO };
        backward += Flops::vector(if wanted.has(0) { 5 } else { 0 } + if wanted.has(1) { 1 } else { 0 });
        OpFlops { forward: silu * n, backward: backward * n, recomputed: Flops::ZERO }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([gate, up], [y]) = (io.x, io.y) else { return Err(wrong_operands("swiglu")) };
        if let Some(gpu) = exec.gpu() {
            let (dtype, n) = (gate.spec().dtype(), gate.spec().len());
            let args = &mut [Arg::Out(y), Arg::In(gate), Arg::In(up), launch::length("swiglu", "elements", n)?];
            return FWD.launch(gpu, dtype, launch::flat("swiglu", dtype, 2, n)?, args);
        }
        let x = [Floats::of(gate)?, Floats::of(up)?];
        map_flat(gate.spec().len(), WORK, x, [Out::of(y, 1)?], |_, [g, u], [y]| vector::swiglu(g, u, y));
        Ok(())
    }
}

impl Differentiable for Swiglu {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let x = match (wanted.has(0), wanted.has(1)) {
            (true, _) => Mask::of([0, 1]),
            (false, true) => Mask::of([0]),
            (false, false) => Mask::NONE,
        };
        Keeps { x, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch_bwd(gpu, io);
        }
        let ([dy], [dgate, dup]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands("swiglu")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let (len, dy) = (dy.spec().len(), Floats::of(dy)?);
        let (gate, up) = (Floats::kept(io.x.first())?, Floats::kept(io.x.get(1))?);
        match (Out::slot(dgate, 1)?, Out::slot(dup, 1)?) {
            (Some(dgate), Some(dup)) => {
                map_flat(len, WORK, [gate, up, dy], [dgate, dup], |_, [g, u, dy], [dg, du]| {
                    vector::silu_backward(g, dy, dg, false);
                    vector::mul_in_place(u, dg);
                    vector::swiglu(g, dy, du);
                });
            }
            (Some(dgate), None) => map_flat(len, WORK, [gate, up, dy], [dgate], |_, [g, u, dy], [dg]| {
                vector::silu_backward(g, dy, dg, false);
                vector::mul_in_place(u, dg);
            }),
            (None, Some(dup)) => {
                map_flat(len, WORK, [gate, dy], [dup], |_, [g, dy], [du]| vector::swiglu(g, dy, du));
            }
            (None, None) => {}
        }
        Ok(())
    }
}

/// Both gradients in one pass, or the one that is wanted.
fn launch_bwd(gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([dy], [dgate, dup]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands("swiglu")) };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let n = dy.spec().len();
    let (dtype, length) = (dy.spec().dtype(), || launch::length("swiglu", "elements", n));
    let input = |i| launch::kept("swiglu", io.x, i);
    let place = launch::flat("swiglu", dtype, 2, n)?;
    match (launch::slot(dgate), launch::slot(dup)) {
        (None, None) => Ok(()),
        (Some((dgate, add)), None) => {
            let (gate, up) = (input(0)?, input(1)?);
            let args = &mut [Arg::Out(dgate), Arg::In(gate), Arg::In(up), Arg::In(dy), length()?, Arg::I32(add)];
            BWD_DGATE.launch(gpu, dtype, place, args)
        }
        (None, Some((dup, add))) => {
            let gate = input(0)?;
            let args = &mut [Arg::Out(dup), Arg::In(gate), Arg::In(dy), length()?, Arg::I32(add)];
            BWD_DUP.launch(gpu, dtype, place, args)
        }
        (Some((dgate, add_dgate)), Some((dup, add_dup))) => {
            let (gate, up) = (input(0)?, input(1)?);
            let mut args = vec![Arg::Out(dgate), Arg::Out(dup), Arg::In(gate), Arg::In(up), Arg::In(dy), length()?];
            args.extend([Arg::I32(add_dgate), Arg::I32(add_dup)]);
            BWD.launch(gpu, dtype, place, &mut args)
        }
    }
}

impl Reference for Swiglu {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([gate, up], [y]) = (io.x, io.y) else { return };
        for i in 0..gate.len() {
            y[i] = gate[i] / (S::one() + (-gate[i]).exp()) * up[i];
        }
    }
}

impl ReferenceGrad for Swiglu {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([gate, up], [dy], [dgate, dup]) = (io.x, io.dy, io.dx) else { return };
        if dgate.is_none() && dup.is_none() {
            return;
        }
        for i in 0..gate.len() {
            let s = sigmoid(gate[i]);
            let silu = gate[i] * s;
            if let Some(dgate) = dgate {
                dgate[i] = dy[i] * up[i] * (s + silu * (S::one() - s));
            }
            if let Some(dup) = dup {
                dup[i] = dy[i] * silu;
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "swiglu",
    about: "one projection gated by the silu of another",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case(rows: usize, c: usize, bound: f32) -> Case {
    let gate = Input::new("gate", [rows, c]).fill(Fill::Uniform(-bound, bound));
    Case::new(Swiglu, [gate, Input::new("up", [rows, c]).fill(Fill::Uniform(-2.0, 2.0))])
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [1, 7, 8, 9, 31, 32, 33, 1009].map(|c| case(1, c, 6.0)).to_vec();
    cases.extend([case(13, 65, 6.0), case(3, 65, 40.0), case(2, 1536, 1.0)]);
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let spec = |dtype| Spec::new(dtype, [4]).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(Swiglu, &[&[4]], "swiglu: expected 2 inputs, found 1"),
        BadCase::new(Swiglu, &[&[2, 4], &[4]], "swiglu: up: expected [2, 4] like gate, found [4]"),
        BadCase::of_specs(Swiglu, vec![spec(Dtype::F16), spec(Dtype::F32)], "swiglu: up: expected f16, found [4] f32"),
        BadCase::of_specs(Swiglu, vec![spec(Dtype::I32); 2], "swiglu: gate: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case(4050, 1024, 4.0), case(16_384, 4096, 4.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    #[test]
    fn a_closed_gate_gives_zero_and_an_open_one_the_product() {
        let y = forward(&Swiglu, &[(&[3], &[-200.0, 200.0, f32::NAN]), (&[3], &[3.0, 0.5, 1.0])]);
        assert_eq!(y[..2], [0.0, 100.0]);
        assert!(y[2].is_nan());
    }

    #[test]
    fn gradients_of_closed_and_open_gates_are_exact() {
        let dx = backward(&Swiglu, &[(&[2], &[-200.0, 200.0]), (&[2], &[3.0, 0.5])], Some(&[2.0, 2.0]));
        assert_eq!(dx, [[0.0, 1.0], [0.0, 400.0]]);
    }
}
