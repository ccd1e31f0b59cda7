//! `add_norm`: a sum of two tensors and its normalised rows, in one pass each way: the step between two branches of a transformer.

use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::add::Add;
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch::{self, Held};
use crate::ops::layer_norm::LayerNorm;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, GradSlot, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward,
    RefForward, RefInput, Reference, ReferenceGrad,
};
use crate::ops::rms_norm::RmsNorm;
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut, expect_dtype, expect_shape};

/// Which normalisation follows the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowNorm {
    /// [`LayerNorm`], with `gamma` and `beta`.
    Layer,
    /// [`RmsNorm`], with `gamma` alone.
    Rms,
}

/// Sum of two tensors, and that sum normalised over the last axis.
///
/// ```text
/// sum = x + residual        y = norm(sum; gamma, beta)        dx = dresidual = dsum + dnorm(dy)
/// ```
///
/// What is normalised is the sum as it is stored: the results are those of [`Add`] followed by [`LayerNorm`] or [`RmsNorm`].
///
/// # Shapes
/// `x [.., C]`, `residual` like `x`, `gamma [C]`, for [`RowNorm::Layer`] `beta [C]` → `sum`, `y` like `x`; saves what the
/// normalisation saves.
///
/// # Units
/// `x`, `residual` and `sum` have one; `y` that of `beta`.
///
/// # Cost
/// that of the normalisation and 1 vector an element, forward and, where `x` or `residual` has a gradient, backward.
///
/// # Errors
/// [`Error::Shape`] if `residual` is not like `x`; otherwise those of the normalisation.
///
/// # Source
/// Ba, Kiros, Hinton 2016, section 3; Zhang, Sennrich 2019, equation 4. Gradient by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddNorm {
    /// Added to the variance or the mean square. Positive.
    pub eps: f32,
    /// Which normalisation.
    pub norm: RowNorm,
}

const OP: &str = "add_norm";
const LAYER: Source = crate::source!("layer_norm/layer_norm_held.cu");
const RMS: Source = crate::source!("rms_norm/rms_norm_held.cu");
static LAYER_FWD: Kernel = Kernel::new(LAYER, "layer_norm_fwd_add_held");
static LAYER_BWD: Kernel = Kernel::new(LAYER, "layer_norm_bwd_add_held");
static LAYER_TOTALS: Kernel = Kernel::new(crate::source!("layer_norm/layer_norm.cu"), "layer_norm_bwd_totals");
static RMS_FWD: Kernel = Kernel::new(RMS, "rms_norm_fwd_add_held");
static RMS_BWD: Kernel = Kernel::new(RMS, "rms_norm_bwd_add_held");
static RMS_TOTAL: Kernel = Kernel::new(crate::source!("rms_norm/rms_norm.cu"), "rms_norm_bwd_total");

impl AddNorm {
    /// The normalisation alone, of which input 0 is the sum and input `i` is this one's input `i + 1`.
    fn alone(&self) -> Box<dyn Differentiable> {
        match self.norm {
            RowNorm::Layer => Box::new(LayerNorm { eps: self.eps }),
            RowNorm::Rms => Box::new(RmsNorm { eps: self.eps }),
        }
    }

    fn inputs(&self) -> usize {
        match self.norm {
            RowNorm::Layer => 4,
            RowNorm::Rms => 3,
        }
    }

    /// Gradients that the normalisation is asked for where these inputs' are wanted.
    fn wanted_alone(&self, wanted: Mask) -> Mask {
        let sum = if wanted.has(0) || wanted.has(1) { Mask::of([0]) } else { Mask::NONE };
        (2..self.inputs()).filter(|&i| wanted.has(i)).fold(sum, |mask, i| mask.with(i - 1))
    }
}

/// The sum's spec or numbers in place of `x` and `residual`.
fn without_residual<T: Clone>(sum: T, x: &[T]) -> Vec<T> {
    std::iter::once(sum).chain(x.iter().skip(2).cloned()).collect()
}

/// A slot borrowed again.
fn again<'s>(slot: &'s mut GradSlot<'_>) -> GradSlot<'s> {
    match slot {
        GradSlot::Unwanted => GradSlot::Unwanted,
        GradSlot::Set(to) => GradSlot::Set(to.reborrow()),
        GradSlot::Add(to) => GradSlot::Add(to.reborrow()),
    }
}

impl Arity<3> for AddNorm {}
impl Arity<4> for AddNorm {}

impl Operator for AddNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let (true, [first, residual, ..]) = (x.len() == self.inputs(), x) else {
            return Err(Error::argument(format!("{OP}: expected {} inputs, found {}", self.inputs(), x.len())));
        };
        if first != residual {
            return Err(Error::shape(format!("{OP}: residual: expected {first} as x is, found {residual}")));
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(Error::argument(format!("{OP}: eps: expected a positive number, found {}", self.eps)));
        }
        expect_dtype(OP, "x", first, &Dtype::FLOATS)?;
        let (_, c) = first.rows_cols();
        if c == 0 {
            return Err(Error::shape(format!("{OP}: x: expected C of 1 or more, found {:?}", first.shape())));
        }
        for (name, s) in ["gamma", "beta"].into_iter().zip(x.iter().skip(2)) {
            expect_dtype(OP, name, s, &[first.dtype()])?;
            expect_shape(OP, name, s, &[("C", c)])?;
        }
        let norm = self.alone().infer(&without_residual(*first, x))?;
        Ok(Outputs { y: vec![(*first).clone(), (*first).clone()], saved: norm.saved })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let n = x[0].len() as u128;
        let norm = self.alone().flops(&without_residual(x[0], x), self.wanted_alone(wanted));
        let has_dx = wanted.has(0) || wanted.has(1);
        OpFlops {
            forward: norm.forward + Flops::vector(n),
            backward: norm.backward + Flops::vector(if has_dx { n } else { 0 }),
            recomputed: norm.recomputed,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([x, residual, params @ ..], [sum, y]) = (io.x, &mut *io.y) else { return Err(wrong_operands(OP)) };
        if let Some(gpu) = exec.gpu() {
            let mut operands: Vec<&dyn Operand> = vec![x, residual, &*sum, &*y];
            operands.extend(params.iter().map(|p| p as &dyn Operand));
            let (rows, c) = x.spec().rows_cols();
            if let Some(held) = Held::forward(gpu, x.spec().dtype(), [rows, c], &operands) {
                let mut args = vec![Arg::Out(&mut *sum), Arg::Out(&mut *y)];
                args.extend(io.saved.iter_mut().map(|s| Arg::Out(s)));
                args.extend(io.x.iter().map(|x| Arg::In(x)));
                args.extend(held.args(OP)?.into_iter().chain([Arg::F32(self.eps)]));
                let kernel = if self.norm == RowNorm::Layer { &LAYER_FWD } else { &RMS_FWD };
                return kernel.launch_as(gpu, &held.variant(), held.launch(OP)?, &mut args);
            }
        }
        Add.forward(exec, Forward { x: &io.x[..2], y: &mut [sum.reborrow()], saved: &mut [] })?;
        let mut saved: Vec<ViewMut<'_>> = io.saved.iter_mut().map(ViewMut::reborrow).collect();
        let x = without_residual(sum.as_view(), io.x);
        self.alone().forward(exec, Forward { x: &x, y: &mut [y.reborrow()], saved: &mut saved })
    }
}

impl Differentiable for AddNorm {
    fn keeps(&self, wanted: Mask) -> Keeps {
        let norm = self.alone().keeps(self.wanted_alone(wanted)).x;
        let x = (2..self.inputs()).filter(|&i| norm.has(i - 1)).fold(Mask::NONE, Mask::with);
        Keeps { x, y: if norm.has(0) { Mask::of([0]) } else { Mask::NONE } }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([dsum, dy], [x, residual, ..]) = (io.dy, io.specs) else { return Err(wrong_operands(OP)) };
        if dsum.is_none() && dy.is_none() {
            return no_gradient(io.dx);
        }
        if let Some(gpu) = exec.gpu()
            && let (Some(dsum), Some(dy)) = (dsum, dy)
            && io.dx.iter().all(GradSlot::is_wanted)
            && let Some(held) = self.held(gpu, &io)
        {
            return self.launch_bwd(gpu, held, (dsum, dy), io);
        }
        // The sum's own gradient, to which that of the normalisation is added.
        let has_dx = io.dx.iter().take(2).any(GradSlot::is_wanted);
        let mut total = match dsum {
            _ if !has_dx => None,
            Some(dsum) => Some(exec.copy(dsum)?),
            None => Some(exec.alloc((*x).clone())?),
        };
        let (adds, params) = io.dx.split_at_mut(2);
        match dy {
            None => no_gradient(params)?,
            Some(dy) => {
                let to = total.as_mut().and_then(Tensor::view_mut);
                let first = match to {
                    None => GradSlot::Unwanted,
                    Some(to) if dsum.is_some() => GradSlot::Add(to),
                    Some(to) => GradSlot::Set(to),
                };
                let mut slots: Vec<GradSlot<'_>> = std::iter::once(first).chain(params.iter_mut().map(again)).collect();
                let kept = without_residual(io.y.first().cloned().flatten(), io.x);
                self.alone().backward(
                    exec,
                    Backward {
                        specs: &without_residual(*x, io.specs),
                        x: &kept,
                        y: &[None],
                        saved: io.saved,
                        dy: &[Some(dy.clone())],
                        dx: &mut slots,
                    },
                )?;
            }
        }
        let Some(total) = total else { return Ok(()) };
        let mut slots: Vec<GradSlot<'_>> = adds.iter_mut().map(again).collect();
        let dy = [Some(total.view())];
        let specs = [*x, *residual];
        Add.backward(
            exec,
            Backward { specs: &specs, x: &[None, None], y: &[None], saved: &[], dy: &dy, dx: &mut slots },
        )
    }
}

impl AddNorm {
    /// How all gradients are computed at once, if teams can hold the rows.
    fn held(&self, gpu: &Gpu, io: &Backward<'_>) -> Option<Held> {
        let (sum, gamma) = (io.y.first()?.as_ref()?, io.x.get(2)?.as_ref()?);
        let mut operands: Vec<&dyn Operand> = vec![sum, gamma];
        operands.extend(io.dy.iter().flatten().map(|d| d as &dyn Operand));
        for slot in io.dx.iter().take(2) {
            match slot {
                GradSlot::Unwanted => return None,
                GradSlot::Set(to) | GradSlot::Add(to) => operands.push(to),
            }
        }
        let (rows, c) = sum.spec().rows_cols();
        Some(Held::backward(gpu, sum.spec().dtype(), [rows, c], &operands)?.with_one_more())
    }

    /// All gradients, everything read once.
    fn launch_bwd(&self, gpu: &Gpu, held: Held, (dsum, dy): (&View<'_>, &View<'_>), io: Backward<'_>) -> Result<()> {
        let (sum, gamma) = (launch::kept(OP, io.y, 0)?, launch::kept(OP, io.x, 2)?);
        let dtype = dy.spec().dtype();
        let mut sums = (3..=self.inputs()).map(|_| held.scratch(gpu)).collect::<Result<Vec<_>>>()?;
        let mut slots: Vec<(&mut ViewMut<'_>, i32)> = io.dx.iter_mut().filter_map(launch::slot).collect();
        let [(dx, add_dx), (dresidual, add_residual), params @ ..] = &mut slots[..] else {
            return Err(wrong_operands(OP));
        };
        let mut args = vec![Arg::Out(&mut **dx), Arg::Out(&mut **dresidual)];
        args.extend(sums.iter_mut().map(|s| Arg::Out(s)));
        args.extend([Arg::In(sum), Arg::In(gamma)]);
        args.extend(io.saved.iter().map(|s| Arg::In(s)));
        args.extend([Arg::In(dy), Arg::In(dsum)]);
        args.extend(held.args(OP)?.into_iter().chain([Arg::I32(*add_dx), Arg::I32(*add_residual)]));
        let kernel = if self.norm == RowNorm::Layer { &LAYER_BWD } else { &RMS_BWD };
        kernel.launch_as(gpu, &held.variant(), held.launch(OP)?, &mut args)?;
        match (params, &sums[..]) {
            ([(dgamma, add_gamma), (dbeta, add_beta)], [gamma_sums, beta_sums]) => {
                let mut args = vec![Arg::Out(&mut **dgamma), Arg::Out(&mut **dbeta)];
                args.extend([Arg::In(gamma_sums), Arg::In(beta_sums)]);
                let flags = [Arg::I32(*add_gamma), Arg::I32(*add_beta)];
                args.extend(held.sums().total_args(OP)?.into_iter().chain(flags));
                LAYER_TOTALS.launch(gpu, dtype, held.sums().total_launch(OP, 2)?, &mut args)
            }
            ([(dgamma, add)], [sums]) => held.sums().total(gpu, OP, &RMS_TOTAL, dtype, &mut **dgamma, sums, Some(*add)),
            _ => Err(wrong_operands(OP)),
        }
    }
}

impl Reference for AddNorm {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x, residual, ..], [sum, y]) = (io.x, io.y) else { return };
        for i in 0..x.spec.len() {
            sum[i] = (x[i] + residual[i]).stored();
        }
        let x = without_residual(RefInput { spec: x.spec, v: sum, ints: &[] }, io.x);
        let mut saved: Vec<&mut [S]> = io.saved.iter_mut().map(|s| &mut **s).collect();
        let io = RefForward { x: &x, y: &mut [&mut **y], saved: &mut saved };
        match self.norm {
            RowNorm::Layer => LayerNorm { eps: self.eps }.forward_ref(io),
            RowNorm::Rms => RmsNorm { eps: self.eps }.forward_ref(io),
        }
    }
}

impl ReferenceGrad for AddNorm {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([first, ..], [sum, _], [dsum, dy]) = (io.x, io.y, io.dy) else { return };
        let (adds, params) = io.dx.split_at_mut(2);
        let has_dx = adds.iter().any(Option::is_some);
        let mut total = vec![S::zero(); if has_dx { first.spec.len() } else { 0 }];
        let x = without_residual(RefInput { spec: first.spec, v: sum, ints: &[] }, io.x);
        let mut slots: Vec<Option<&mut [S]>> = vec![has_dx.then_some(&mut total[..])];
        slots.extend(params.iter_mut().map(|p| p.as_deref_mut()));
        let io = RefBackward { x: &x, y: &[&[]], saved: io.saved, dy: &[*dy], dx: &mut slots };
        match self.norm {
            RowNorm::Layer => LayerNorm { eps: self.eps }.backward_ref(io),
            RowNorm::Rms => RmsNorm { eps: self.eps }.backward_ref(io),
        }
        for (total, &dsum) in total.iter_mut().zip(*dsum) {
            *total = *total + dsum;
        }
        for d in adds.iter_mut().flatten() {
            d.copy_from_slice(&total);
        }
    }
}

/// The room. Its kernels are those of the normalisations: no file is compiled for it alone.
pub static ROOM: Room = Room {
    name: OP,
    about: "a sum of two tensors and its rows normalised",
    dtypes: &Dtype::FLOATS,
    kernels: &[],
    cases,
    bad_cases,
    bench_cases,
};

fn case(norm: RowNorm, rows: usize, c: usize) -> Case {
    let gamma = Input::new("gamma", [c]).fill(Fill::Uniform(0.5, 1.5));
    let mut x = vec![Input::new("x", [rows, c]), Input::new("residual", [rows, c]), gamma];
    if norm == RowNorm::Layer {
        x.push(Input::new("beta", [c]));
    }
    Case::new(AddNorm { eps: 1e-5, norm }, x)
}

fn cases() -> Vec<Case> {
    // Rows that teams hold in every number of packs, and rows that none holds.
    let sizes = [(1, 1), (3, 7), (67, 8), (37, 40), (131, 24), (3, 768), (5, 2048), (3, 4096), (2, 6144), (2, 1025)];
    let all = |norm| sizes.iter().map(move |&(rows, c)| case(norm, rows, c));
    all(RowNorm::Layer).chain(all(RowNorm::Rms)).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let (layer, rms) = (AddNorm { eps: 1e-5, norm: RowNorm::Layer }, AddNorm { eps: 1e-5, norm: RowNorm::Rms });
    vec![
        BadCase::new(layer, &[&[8, 4], &[8, 4], &[4]], "add_norm: expected 4 inputs, found 3"),
        BadCase::new(rms, &[&[8, 4], &[8, 4], &[4], &[4]], "add_norm: expected 3 inputs, found 4"),
        BadCase::new(layer, &[&[8, 4], &[4], &[4], &[4]], "add_norm: residual: expected"),
        BadCase::new(layer, &[&[8, 4], &[8, 4], &[5], &[4]], "add_norm: gamma: expected [C=4], found [5]"),
        BadCase::new(
            AddNorm { eps: 0.0, ..rms },
            &[&[8, 4], &[8, 4], &[4]],
            "add_norm: eps: expected a positive number",
        ),
    ]
}

fn bench_cases() -> Vec<Case> {
    let sizes = [(65_536, 768), (8192, 4096)];
    let all = |norm| sizes.iter().map(move |&(rows, c)| case(norm, rows, c));
    all(RowNorm::Layer).chain(all(RowNorm::Rms)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trial::forward;

    crate::room_tests!(ROOM);

    #[test]
    fn both_results_are_those_of_the_two_operators_one_after_the_other() {
        let (x, residual) = ([1.0, 2.0, 4.0], [0.5, -1.0, 3.0]);
        let (gamma, beta) = ([1.0, 2.0, 0.5], [0.1, 0.2, 0.3]);
        let inputs: [(&[usize], &[f32]); 4] = [(&[1, 3], &x), (&[1, 3], &residual), (&[3], &gamma), (&[3], &beta)];
        let sum = forward(&AddNorm { eps: 1e-5, norm: RowNorm::Layer }, &inputs);
        assert_eq!(sum, [1.5, 1.0, 7.0]);
        let keeps = AddNorm { eps: 1e-5, norm: RowNorm::Rms }.keeps(Mask::of([0, 2]));
        assert_eq!((keeps.x, keeps.y), (Mask::of([2]), Mask::of([0])));
    }
}
