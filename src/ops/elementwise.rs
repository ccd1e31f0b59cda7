//! What the elementwise functions of one input share: a function, its gradient and two counts make a whole operator.

use std::fmt;

use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::kernel::{Arg, Kernel};
use crate::cost::Flops;
use crate::error::Result;
use crate::ops::blocks::{Floats, Out, map_flat, no_gradient, wrong_operands};
use crate::ops::launch;
use crate::ops::operator::{Backward, Forward, Keeps, Mask, OpFlops, Outputs, RefBackward, RefForward, expect_inputs};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype};

/// What the gradient of an elementwise function reads besides `dy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The input.
    Input,
    /// The result.
    Result,
    /// Nothing.
    Nothing,
}

/// A function of one number, applied to each element. The macro `elementwise!` makes an operator with a gradient of it.
pub trait Elementwise: Copy + fmt::Debug + Send + Sync + 'static {
    /// The room's name.
    const NAME: &'static str;
    /// What [`gradient`](Elementwise::gradient) is given.
    const READS: Reads;

    /// Refuses parameters that make no sense.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::error::Error::Argument) that names the parameter.
    fn check(self) -> Result<()> {
        Ok(())
    }

    /// What [`value`](Elementwise::value) counts.
    fn value_flops(self) -> Flops;
    /// What [`gradient`](Elementwise::gradient) counts.
    fn gradient_flops(self) -> Flops;
    /// The function.
    fn value<S: Scalar>(self, x: S) -> S;
    /// `dy` times the derivative, where `kept` is the input or the result, as [`READS`](Elementwise::READS) says.
    fn gradient<S: Scalar>(self, kept: S, dy: S) -> S;

    /// Work of one element on the CPU, as [`threads::PIECE`](crate::backend::cpu::threads::PIECE) counts it.
    const WORK: usize;
    /// The function on the CPU.
    fn values(self, x: &[f32], y: &mut [f32]);
    /// The gradient on the CPU; `kept` is empty where nothing is kept.
    fn gradients(self, kept: &[f32], dy: &[f32], dx: &mut [f32]);

    /// The kernel of the forward pass: result, input, length, [`numbers`](Elementwise::numbers).
    const FWD: Kernel;
    /// The kernel of the backward pass: gradient, what is kept if anything, incoming gradient, length, numbers, whether to add.
    const BWD: Kernel;
    /// The operator's parameters, as its kernels take them.
    fn numbers<'a>(self) -> Vec<Arg<'a>> {
        Vec::new()
    }
}

/// What [`Operator::infer`](crate::ops::operator::Operator::infer) says.
pub(super) fn infer<E: Elementwise>(op: E, x: &[&Spec]) -> Result<Outputs> {
    let [x] = expect_inputs(E::NAME, x)?;
    op.check()?;
    expect_dtype(E::NAME, "x", x, &Dtype::FLOATS)?;
    Ok(Outputs::one((*x).clone()))
}

/// What [`Operator::flops`](crate::ops::operator::Operator::flops) says.
pub(super) fn flops<E: Elementwise>(op: E, x: &[&Spec], wanted: Mask) -> OpFlops {
    let n = x[0].len() as u128;
    let backward = if wanted.has(0) { op.gradient_flops() * n } else { Flops::ZERO };
    OpFlops { forward: op.value_flops() * n, backward, recomputed: Flops::ZERO }
}

/// Forward.
pub(super) fn forward<E: Elementwise>(op: E, exec: &Exec, io: Forward<'_>) -> Result<()> {
    let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands(E::NAME)) };
    if let Some(gpu) = exec.gpu() {
        let (dtype, n) = (x.spec().dtype(), x.spec().len());
        let mut args = vec![Arg::Out(y), Arg::In(x), launch::length(E::NAME, "elements", n)?];
        args.extend(op.numbers());
        return E::FWD.launch(gpu, dtype, launch::flat(E::NAME, dtype, 1, n)?, &mut args);
    }
    map_flat(x.spec().len(), E::WORK, [Floats::of(x)?], [Out::of(y, 1)?], |_, [x], [y]| op.values(x, y));
    Ok(())
}

/// What the gradient reads.
pub(super) fn keeps<E: Elementwise>(wanted: Mask) -> Keeps {
    let first = if wanted.has(0) { Mask::of([0]) } else { Mask::NONE };
    match E::READS {
        Reads::Input => Keeps { x: first, y: Mask::NONE },
        Reads::Result => Keeps { x: Mask::NONE, y: first },
        Reads::Nothing => Keeps::default(),
    }
}

/// Backward.
pub(super) fn backward<E: Elementwise>(op: E, exec: &Exec, io: Backward<'_>) -> Result<()> {
    if let Some(gpu) = exec.gpu() {
        return launch_bwd(op, gpu, io);
    }
    let ([dy], [slot]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands(E::NAME)) };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let (len, dy) = (dy.spec().len(), Floats::of(dy)?);
    let Some(dx) = Out::slot(slot, 1)? else { return Ok(()) };
    let kept = match E::READS {
        Reads::Input => io.x,
        Reads::Result => io.y,
        Reads::Nothing => {
            map_flat(len, E::WORK, [dy], [dx], |_, [dy], [dx]| op.gradients(&[], dy, dx));
            return Ok(());
        }
    };
    let [Some(kept)] = kept else { return Err(wrong_operands(E::NAME)) };
    map_flat(len, E::WORK, [Floats::of(kept)?, dy], [dx], |_, [kept, dy], [dx]| op.gradients(kept, dy, dx));
    Ok(())
}

/// Backward on a device.
fn launch_bwd<E: Elementwise>(op: E, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([dy], [slot]) = (io.dy, &mut *io.dx) else { return Err(wrong_operands(E::NAME)) };
    let Some(dy) = dy else { return no_gradient(io.dx) };
    let Some((dx, add)) = launch::slot(slot) else { return Ok(()) };
    let kept = match E::READS {
        Reads::Input => io.x.first(),
        Reads::Result => io.y.first(),
        Reads::Nothing => None,
    };
    let mut args = vec![Arg::Out(dx)];
    args.extend(kept.and_then(Option::as_ref).map(|v| Arg::In(v)));
    let inputs = args.len();
    let (dtype, n) = (dy.spec().dtype(), dy.spec().len());
    args.extend([Arg::In(dy), launch::length(E::NAME, "elements", n)?]);
    args.extend(op.numbers());
    args.push(Arg::I32(add));
    E::BWD.launch(gpu, dtype, launch::flat(E::NAME, dtype, inputs, n)?, &mut args)
}

/// The plain text of the forward pass.
pub(super) fn forward_ref<E: Elementwise, S: Scalar>(op: E, io: RefForward<'_, S>) {
    let ([x], [y]) = (io.x, io.y) else { return };
    for (y, &x) in y.iter_mut().zip(x.v) {
        *y = op.value(x);
    }
}

/// The plain text of the backward pass.
pub(super) fn backward_ref<E: Elementwise, S: Scalar>(op: E, io: RefBackward<'_, S>) {
    let ([x], [y], [dy], [Some(dx)]) = (io.x, io.y, io.dy, io.dx) else { return };
    for (i, (dx, &dy)) in dx.iter_mut().zip(*dy).enumerate() {
        let kept = match E::READS {
            Reads::Input => x[i],
            Reads::Result => y[i],
            Reads::Nothing => S::zero(),
        };
        *dx = op.gradient(kept, dy);
    }
}

/// Makes an operator of a type that is [`Elementwise`].
macro_rules! elementwise {
    ($op:ty) => {
        impl $crate::ops::operator::Arity<1> for $op {}

        impl $crate::ops::operator::Operator for $op {
            fn name(&self) -> &'static str {
                <$op as $crate::ops::elementwise::Elementwise>::NAME
            }

            fn infer(&self, x: &[&$crate::tensor::Spec]) -> $crate::error::Result<$crate::ops::operator::Outputs> {
                $crate::ops::elementwise::infer(*self, x)
            }

            fn flops(
                &self,
                x: &[&$crate::tensor::Spec],
                wanted: $crate::ops::operator::Mask,
            ) -> $crate::ops::operator::OpFlops {
                $crate::ops::elementwise::flops(*self, x, wanted)
            }

            fn forward(
                &self,
                exec: &$crate::backend::Exec,
                io: $crate::ops::operator::Forward<'_>,
            ) -> $crate::error::Result<()> {
                $crate::ops::elementwise::forward(*self, exec, io)
            }
        }

        impl $crate::ops::operator::Differentiable for $op {
            fn keeps(&self, wanted: $crate::ops::operator::Mask) -> $crate::ops::operator::Keeps {
                $crate::ops::elementwise::keeps::<$op>(wanted)
            }

            fn backward(
                &self,
                exec: &$crate::backend::Exec,
                io: $crate::ops::operator::Backward<'_>,
            ) -> $crate::error::Result<()> {
                $crate::ops::elementwise::backward(*self, exec, io)
            }
        }

        impl $crate::ops::operator::Reference for $op {
            fn forward_ref<S: $crate::scalar::Scalar>(&self, io: $crate::ops::operator::RefForward<'_, S>) {
                $crate::ops::elementwise::forward_ref(*self, io);
            }
        }

        impl $crate::ops::operator::ReferenceGrad for $op {
            fn backward_ref<S: $crate::scalar::Scalar>(&self, io: $crate::ops::operator::RefBackward<'_, S>) {
                $crate::ops::elementwise::backward_ref(*self, io);
            }
        }
    };
}
pub(super) use elementwise;
