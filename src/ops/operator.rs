//! The contract of an operator: what the tape, the planner, the tests and the benches ask of it. It has no optional parts.
//!
//! An operator is a struct whose fields are its named parameters. It says what it makes of which shapes
//! ([`infer`](Operator::infer)), what that costs ([`flops`](Operator::flops)), and does it ([`forward`](Operator::forward)).
//! Only what is also [`Differentiable`] can be applied on a tape. The mathematics is written once, as plain text over any
//! [`Scalar`], in [`Reference`] and [`ReferenceGrad`].

use std::fmt;

use crate::backend::Exec;
use crate::cost::{Cost, Flops};
use crate::error::{Error, Result};
use crate::scalar::Scalar;
use crate::tensor::{Spec, Tensor, View, ViewMut};

/// What an operator makes of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// The results, in order. Most operators have one.
    pub y: Vec<Spec>,
    /// What forward leaves for backward (a mean, a log-sum-exp); always f32.
    pub saved: Vec<Spec>,
}

impl Outputs {
    /// One result, nothing saved.
    pub fn one(y: Spec) -> Outputs {
        Outputs { y: vec![y], saved: Vec::new() }
    }
}

/// A set of input or result positions, at most 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask(u32);

impl Mask {
    /// None.
    pub const NONE: Mask = Mask(0);
    /// Every position.
    pub const ALL: Mask = Mask(u32::MAX);

    /// The positions listed.
    pub const fn of<const N: usize>(positions: [u32; N]) -> Mask {
        let (mut bits, mut i) = (0, 0);
        while i < N {
            bits |= 1 << positions[i];
            i += 1;
        }
        Mask(bits)
    }

    /// Whether position `i` is in the set.
    pub const fn has(self, i: usize) -> bool {
        i < 32 && self.0 >> i & 1 == 1
    }

    /// The set and position `i`.
    #[must_use]
    pub const fn with(self, i: usize) -> Mask {
        Mask(self.0 | 1 << i)
    }

    /// The set but for the positions of `other`.
    #[must_use]
    pub const fn without(self, other: Mask) -> Mask {
        Mask(self.0 & !other.0)
    }

    /// Whether no position is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// FLOPs of one application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpFlops {
    /// Of the forward pass.
    pub forward: Flops,
    /// Of the gradients that are wanted: the mathematics.
    pub backward: Flops,
    /// What the backward method recomputes on purpose, beyond `backward`: algorithm FLOPs are the sum of both.
    pub recomputed: Flops,
}

/// Cost of one application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCost {
    /// Of the forward pass.
    pub forward: Cost,
    /// Of the gradients that are wanted: the mathematics.
    pub backward: Cost,
    /// What the backward method recomputes on purpose.
    pub recomputed: Flops,
}

/// What backward reads besides the gradients and what forward saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeps {
    /// Inputs.
    pub x: Mask,
    /// Results.
    pub y: Mask,
}

/// An operator: a name, shapes, cost and a forward pass.
pub trait Operator: fmt::Debug + Send + Sync + 'static {
    /// The room's name.
    fn name(&self) -> &'static str;

    /// What the operator makes of inputs of these specs.
    ///
    /// # Errors
    /// Whatever the operator documents: a wrong shape, number type or parameter. Called before anything is allocated.
    fn infer(&self, x: &[&Spec]) -> Result<Outputs>;

    /// FLOPs for inputs that [`infer`](Operator::infer) accepts, when the gradients of the inputs `wanted` are asked for.
    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops;

    /// The same as if no mask and no padding hid anything: what tools count that see shapes alone. `None` where nothing is
    /// hidden.
    fn unmasked_flops(&self, _x: &[&Spec], _wanted: Mask) -> Option<OpFlops> {
        None
    }

    /// What tells uses of the room apart in reports: the activation that a product ends with, for instance.
    fn variant(&self) -> &'static str {
        ""
    }

    /// Computes all of `io.y` and `io.saved`.
    ///
    /// # Errors
    /// What the device reports; an index that lies outside what it points into.
    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()>;
}

/// An operator with a gradient: what the tape accepts.
pub trait Differentiable: Operator {
    /// What [`backward`](Differentiable::backward) reads when the gradients of the inputs `wanted` are asked for. The
    /// rest is freed after the forward pass.
    fn keeps(&self, wanted: Mask) -> Keeps;

    /// Which input x the gradient of input `i` is the product `dyᵀ·x` with, both as matrices of their rows: where an update can make
    /// it of these two, its [`Factors`], by itself. `None` where it is anything else.
    fn gradient_factor(&self, _i: usize) -> Option<usize> {
        None
    }

    /// Sets or adds each gradient that is wanted.
    ///
    /// # Errors
    /// What the device reports.
    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()>;
}

/// What the gradient of a weight matrix `[N, K]` is the product of.
#[derive(Clone, Debug)]
pub struct Factors {
    /// Gradient of the results, `[.., N]`.
    pub dy: Tensor,
    /// The inputs, `[.., K]`, of the same type and as many rows.
    pub x: Tensor,
}

impl Factors {
    /// Rows, N and K.
    pub fn size(&self) -> [usize; 3] {
        let ((r, n), (_, k)) = (self.dy.spec().rows_cols(), self.x.spec().rows_cols());
        [r, n, k]
    }

    /// Cost in matrix products of making the gradient once.
    pub fn flops(&self) -> Flops {
        Flops::matmul(2 * self.size().map(|n| n as u128).iter().product::<u128>())
    }
}

/// The operator takes exactly `N` inputs; an operator may implement it for several `N`.
pub trait Arity<const N: usize> {}

/// The operator takes any number of inputs, from one up.
pub trait AnyArity {}

/// Operands of a forward pass, of the specs that [`Operator::infer`] was given and gave.
#[derive(Debug)]
pub struct Forward<'a> {
    /// Inputs.
    pub x: &'a [View<'a>],
    /// Results; their content before is unspecified.
    pub y: &'a mut [ViewMut<'a>],
    /// What backward will need; content before is unspecified.
    pub saved: &'a mut [ViewMut<'a>],
}

/// Operands of a backward pass.
#[derive(Debug)]
pub struct Backward<'a> {
    /// Specs of the inputs.
    pub specs: &'a [&'a Spec],
    /// Inputs; only those that [`Differentiable::keeps`] names are there.
    pub x: &'a [Option<View<'a>>],
    /// Results; only those that [`Differentiable::keeps`] names are there.
    pub y: &'a [Option<View<'a>>],
    /// What forward saved.
    pub saved: &'a [View<'a>],
    /// Gradients of the results; `None` is zero.
    pub dy: &'a [Option<View<'a>>],
    /// Where the gradients of the inputs go.
    pub dx: &'a mut [GradSlot<'a>],
}

/// Where one input's gradient goes.
#[derive(Debug)]
pub enum GradSlot<'a> {
    /// Not needed: do not compute it.
    Unwanted,
    /// First contribution: overwrite.
    Set(ViewMut<'a>),
    /// Further contribution: add to what is there.
    Add(ViewMut<'a>),
}

impl GradSlot<'_> {
    /// Whether the gradient is asked for.
    pub fn is_wanted(&self) -> bool {
        !matches!(self, GradSlot::Unwanted)
    }

    /// The same slot for a while: an operator that is made of others hands it on.
    pub fn reborrow(&mut self) -> GradSlot<'_> {
        match self {
            GradSlot::Unwanted => GradSlot::Unwanted,
            GradSlot::Set(to) => GradSlot::Set(to.reborrow()),
            GradSlot::Add(to) => GradSlot::Add(to.reborrow()),
        }
    }

    /// The numbers of it from `at` on as a tensor of this shape.
    ///
    /// # Errors
    /// As [`ViewMut::part`].
    pub fn part(&mut self, at: usize, shape: impl Into<Box<[usize]>>) -> Result<GradSlot<'_>> {
        Ok(match self {
            GradSlot::Unwanted => GradSlot::Unwanted,
            GradSlot::Set(to) => GradSlot::Set(to.part(at, shape)?),
            GradSlot::Add(to) => GradSlot::Add(to.part(at, shape)?),
        })
    }
}

/// The plain text of the forward pass: loops that a reader checks every kernel against.
pub trait Reference: Operator {
    /// Computes `io.y` and `io.saved`, both zero before.
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>);

    /// The same in f32 on the CPU; its own few lines where the plain text would be slow.
    fn forward_cpu(&self, io: RefForward<'_, f32>) {
        self.forward_ref(io);
    }
}

/// The plain text of the backward pass.
pub trait ReferenceGrad: Reference + Differentiable {
    /// Computes every `io.dx` that is there; all are zero before.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>);

    /// The same in f32 on the CPU.
    fn backward_cpu(&self, io: RefBackward<'_, f32>) {
        self.backward_ref(io);
    }
}

/// An input of a reference: its spec, and its numbers (or its indices).
#[derive(Clone, Copy, Debug)]
pub struct RefInput<'a, S> {
    /// Number type and shape.
    pub spec: &'a Spec,
    /// The numbers; empty for an i32 input, and in backward for an input that is not kept.
    pub v: &'a [S],
    /// The indices of an i32 input, else empty.
    pub ints: &'a [i32],
}

impl<S> std::ops::Deref for RefInput<'_, S> {
    type Target = [S];

    fn deref(&self) -> &[S] {
        self.v
    }
}

/// Operands of [`Reference::forward_ref`].
#[derive(Debug)]
pub struct RefForward<'a, S> {
    /// Inputs.
    pub x: &'a [RefInput<'a, S>],
    /// Results.
    pub y: &'a mut [&'a mut [S]],
    /// What backward will need.
    pub saved: &'a mut [&'a mut [S]],
}

/// Operands of [`ReferenceGrad::backward_ref`].
#[derive(Debug)]
pub struct RefBackward<'a, S> {
    /// Inputs; those that are not kept have no numbers.
    pub x: &'a [RefInput<'a, S>],
    /// Results; those that are not kept are empty.
    pub y: &'a [&'a [S]],
    /// What forward saved.
    pub saved: &'a [&'a [S]],
    /// Gradients of the results; all are there (zeros where nobody asked).
    pub dy: &'a [&'a [S]],
    /// Gradients of the inputs, those that are wanted.
    pub dx: &'a mut [Option<&'a mut [S]>],
}

impl<S> RefBackward<'_, S> {
    /// Which gradients are wanted.
    pub fn wanted(&self) -> Mask {
        self.dx.iter().enumerate().fold(Mask::NONE, |m, (i, d)| if d.is_some() { m.with(i) } else { m })
    }
}

/// Cost of one application of `op`: its FLOPs, and the bytes of every operand once. Empty outputs cost nothing.
///
/// # Errors
/// Whatever [`Operator::infer`] rejects.
pub fn forward_cost(op: &dyn Operator, x: &[&Spec]) -> Result<Cost> {
    let out = op.infer(x)?;
    Ok(Cost { flops: op.flops(x, Mask::NONE).forward, bytes: forward_bytes(x, &out) })
}

/// Bytes of every operand of a forward pass.
fn forward_bytes(x: &[&Spec], out: &Outputs) -> u128 {
    x.iter().copied().chain(&out.y).chain(&out.saved).map(|s| s.bytes() as u128).sum()
}

/// Forward and backward cost of one application of `op` when the gradients of the inputs `wanted` are asked for.
///
/// # Errors
/// Whatever [`Operator::infer`] rejects.
pub fn op_cost(op: &dyn Differentiable, x: &[&Spec], wanted: Mask) -> Result<OpCost> {
    let out = op.infer(x)?;
    let flops = op.flops(x, wanted);
    let forward = Cost { flops: flops.forward, bytes: forward_bytes(x, &out) };
    if wanted.is_empty() {
        return Ok(OpCost { forward, ..OpCost::default() });
    }
    let keeps = op.keeps(wanted);
    let mut bytes = out.saved.iter().chain(&out.y).map(|s| s.bytes() as u128).sum::<u128>();
    for (i, s) in x.iter().enumerate() {
        bytes += s.bytes() as u128 * (u128::from(keeps.x.has(i)) + u128::from(wanted.has(i)));
    }
    bytes += out.y.iter().enumerate().filter(|(i, _)| keeps.y.has(*i)).map(|(_, s)| s.bytes() as u128).sum::<u128>();
    Ok(OpCost { forward, backward: Cost { flops: flops.backward, bytes }, recomputed: flops.recomputed })
}

/// Checks the number of inputs, for operators that are called by number at run time.
///
/// # Errors
/// [`Error::Argument`] that names the operator and both numbers.
pub fn expect_inputs<'a, 'b, const N: usize>(op: &str, x: &'a [&'b Spec]) -> Result<&'a [&'b Spec; N]> {
    x.try_into().map_err(|_| Error::argument(format!("{op}: expected {N} inputs, found {}", x.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_hold_positions() {
        let m = Mask::of([0, 3]).with(5);
        assert!(m.has(0) && m.has(3) && m.has(5) && !m.has(1) && !m.has(40));
        assert_eq!(m.without(Mask::of([3, 4])), Mask::of([0, 5]));
        assert!(Mask::NONE.is_empty() && Mask::ALL.has(31));
    }
}
