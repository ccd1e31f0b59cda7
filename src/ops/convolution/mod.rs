//! What `conv1d` and `conv2d` share: a window that slides over two axes, one of which has length 1 for `conv1d`.

mod cases;
mod cpu;
mod launch;
mod reference;

pub(super) use cases::{case, size_cases};
pub(super) use launch::Kernels;

use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::operator::{Keeps, Mask, OpFlops, Outputs};
use crate::tensor::{Dtype, Spec, expect_dtype, expect_shape};

/// A sliding window, rows before columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// The room.
    pub(super) op: &'static str,
    /// Names of the axes of x beyond batch and channels.
    pub(super) axes: &'static str,
    /// Number of these axes: 1 or 2.
    pub(super) dims: usize,
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 2],
    pub(super) dilation: [usize; 2],
    pub(super) groups: usize,
}

/// Sizes of one application.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) batch: usize,
    /// Input and output channels of a group.
    pub(super) cin: usize,
    pub(super) cout: usize,
    pub(super) groups: usize,
    /// Rows and columns of input, kernel and output.
    pub(super) input: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) output: [usize; 2],
}

impl Size {
    /// Numbers of one channel of the input.
    pub(super) fn input_plane(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Numbers of one channel of the output.
    pub(super) fn output_plane(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Numbers that one output is made of.
    pub(super) fn taps(&self) -> usize {
        self.cin * self.kernel[0] * self.kernel[1]
    }
}

/// `[1, L]` for one axis, `[H, W]` for two.
fn plane(axes: &[usize]) -> [usize; 2] {
    match *axes {
        [h, w] => [h, w],
        [l] => [1, l],
        _ => [1, 1],
    }
}

impl Window {
    /// Outputs along one axis; `None` if the kernel is longer than the padded input.
    fn outputs(&self, axis: usize, input: usize, kernel: usize) -> Option<usize> {
        let padded = input.checked_add(self.padding[axis].checked_mul(2)?)?;
        let span = self.dilation[axis].checked_mul(kernel.checked_sub(1)?)?.checked_add(1)?;
        Some(padded.checked_sub(span)? / self.stride[axis] + 1)
    }

    /// The input that output `o` reads at tap `k` of an axis, unless it lies in the padding.
    pub(super) fn tap(&self, axis: usize, o: usize, k: usize, input: usize) -> Option<usize> {
        (o * self.stride[axis] + k * self.dilation[axis]).checked_sub(self.padding[axis]).filter(|&i| i < input)
    }

    /// The outputs that read inside the input at tap `k` of an axis.
    pub(super) fn inside(&self, axis: usize, k: usize, input: usize, output: usize) -> std::ops::Range<usize> {
        let (offset, stride) = (k * self.dilation[axis], self.stride[axis]);
        let first = self.padding[axis].saturating_sub(offset).div_ceil(stride).min(output);
        let end = (input + self.padding[axis]).saturating_sub(offset).div_ceil(stride).min(output);
        first..end.max(first)
    }

    pub(super) fn infer(&self, inputs: &[&Spec]) -> Result<Outputs> {
        let (op, axes) = (self.op, self.axes);
        let (x, w, bias) = match inputs {
            [x, w] => (x, w, None),
            [x, w, bias] => (x, w, Some(bias)),
            _ => {
                let found = inputs.len();
                return Err(Error::argument(format!(
                    "{op}: expected 2 inputs [x, w] or 3 [x, w, bias], found {found}"
                )));
            }
        };
        for (name, values) in [("stride", self.stride), ("dilation", self.dilation), ("groups", [self.groups, 1])] {
            if values.contains(&0) {
                return Err(Error::argument(format!("{op}: {name}: expected 1 or more, found 0")));
            }
        }
        expect_dtype(op, "x", x, &Dtype::FLOATS)?;
        expect_dtype(op, "w", w, &[x.dtype()])?;
        let groups = self.groups;
        let ([batch, channels, spatial @ ..], [out, cin, kernel @ ..]) = (x.shape(), w.shape()) else {
            return Err(self.wrong_shapes(x, w));
        };
        if spatial.len() != self.dims || kernel.len() != self.dims || cin.checked_mul(groups) != Some(*channels) {
            return Err(self.wrong_shapes(x, w));
        }
        if out % groups != 0 {
            let found = w.shape();
            return Err(Error::shape(format!("{op}: w: expected O a multiple of groups={groups}, found {found:?}")));
        }
        let mut y = vec![*batch, *out];
        for (axis, (&n, &k)) in (2 - self.dims..).zip(spatial.iter().zip(kernel)) {
            y.push(self.outputs(axis, n, k).ok_or_else(|| {
                let (x, w, p) = (x.shape(), w.shape(), self.padding[axis]);
                Error::shape(format!("{op}: w: expected a kernel within x {x:?} and padding {p} ({axes}), found {w:?}"))
            })?);
        }
        if let Some(bias) = bias {
            expect_dtype(op, "bias", bias, &[x.dtype()])?;
            expect_shape(op, "bias", bias, &[("O", *out)])?;
        }
        Ok(Outputs::one(x.with_shape(y)?))
    }

    fn wrong_shapes(&self, x: &Spec, w: &Spec) -> Error {
        let (op, axes, groups, x, w) = (self.op, self.axes, self.groups, x.shape(), w.shape());
        Error::shape(format!(
            "{op}: x, w: expected [B, C, {axes}] and [O, C/{groups}, kernel ..], found {x:?} and {w:?}"
        ))
    }

    /// Sizes of inputs that [`Window::infer`] accepts.
    pub(super) fn size(&self, x: &[&Spec]) -> Size {
        let (x, w) = (x[0].shape(), x[1].shape());
        let (input, kernel) = (plane(&x[2..]), plane(&w[2..]));
        let output = [0, 1].map(|axis| self.outputs(axis, input[axis], kernel[axis]).unwrap_or(0));
        Size { batch: x[0], cin: w[1], cout: w[0] / self.groups, groups: self.groups, input, kernel, output }
    }

    /// Products of one channel with one channel: the taps that lie inside the input, over all outputs.
    fn pairs(&self, s: &Size) -> u128 {
        let along = |axis: usize| -> u128 {
            (0..s.kernel[axis]).map(|k| self.inside(axis, k, s.input[axis], s.output[axis]).len() as u128).sum()
        };
        along(0) * along(1)
    }

    pub(super) fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        self.flops_of(x, wanted, |s| self.pairs(s))
    }

    /// As if the padding were read like any other number.
    pub(super) fn unmasked_flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let taps = |s: &Size| s.kernel.iter().chain(&s.output).map(|&n| n as u128).product();
        self.flops_of(x, wanted, taps)
    }

    fn flops_of(&self, x: &[&Spec], wanted: Mask, pairs: impl FnOnce(&Size) -> u128) -> OpFlops {
        let s = self.size(x);
        let products = s.batch * s.groups * s.cin * s.cout;
        let product = Flops::matmul(2 * products as u128 * pairs(&s));
        let results = (s.batch * s.groups * s.cout * s.output_plane()) as u128;
        let bias = if x.len() == 3 { Flops::vector(results) } else { Flops::ZERO };
        let each = [product, product, bias].into_iter().take(x.len()).enumerate();
        let backward = each.filter(|(i, _)| wanted.has(*i)).map(|(_, cost)| cost).sum();
        OpFlops { forward: product + bias, backward, recomputed: Flops::ZERO }
    }

    pub(super) fn keeps(wanted: Mask) -> Keeps {
        let x = if wanted.has(1) { Mask::of([0]) } else { Mask::NONE };
        Keeps { x: if wanted.has(0) { x.with(1) } else { x }, y: Mask::NONE }
    }
}

/// The operator traits of a convolution, for a struct with a method `window` and the kernels of its room.
macro_rules! convolution {
    ($name:ident, $room:literal, $kernels:ident) => {
        impl $crate::ops::operator::Arity<2> for $name {}
        impl $crate::ops::operator::Arity<3> for $name {}

        impl $crate::ops::operator::Operator for $name {
            fn name(&self) -> &'static str {
                $room
            }

            fn infer(&self, x: &[&$crate::tensor::Spec]) -> $crate::error::Result<$crate::ops::operator::Outputs> {
                self.window().infer(x)
            }

            fn flops(
                &self,
                x: &[&$crate::tensor::Spec],
                wanted: $crate::ops::operator::Mask,
            ) -> $crate::ops::operator::OpFlops {
                self.window().flops(x, wanted)
            }

            fn unmasked_flops(
                &self,
                x: &[&$crate::tensor::Spec],
                wanted: $crate::ops::operator::Mask,
            ) -> Option<$crate::ops::operator::OpFlops> {
                Some(self.window().unmasked_flops(x, wanted))
            }

            fn forward(
                &self,
                exec: &$crate::backend::Exec,
                io: $crate::ops::operator::Forward<'_>,
            ) -> $crate::error::Result<()> {
                if let Some(gpu) = exec.gpu() {
                    return self.window().launch_fwd(gpu, &$kernels, io);
                }
                $crate::ops::host::forward(self, io)
            }
        }

        impl $crate::ops::operator::Differentiable for $name {
            fn keeps(&self, wanted: $crate::ops::operator::Mask) -> $crate::ops::operator::Keeps {
                $crate::ops::convolution::Window::keeps(wanted)
            }

            fn backward(
                &self,
                exec: &$crate::backend::Exec,
                io: $crate::ops::operator::Backward<'_>,
            ) -> $crate::error::Result<()> {
                if let Some(gpu) = exec.gpu() {
                    return self.window().launch_bwd(gpu, &$kernels, io);
                }
                $crate::ops::host::backward(self, io)
            }
        }

        impl $crate::ops::operator::Reference for $name {
            fn forward_ref<S: $crate::scalar::Scalar>(&self, io: $crate::ops::operator::RefForward<'_, S>) {
                self.window().forward_ref(io);
            }

            fn forward_cpu(&self, io: $crate::ops::operator::RefForward<'_, f32>) {
                self.window().forward_cpu(io);
            }
        }

        impl $crate::ops::operator::ReferenceGrad for $name {
            fn backward_ref<S: $crate::scalar::Scalar>(&self, io: $crate::ops::operator::RefBackward<'_, S>) {
                self.window().backward_ref(io);
            }

            fn backward_cpu(&self, io: $crate::ops::operator::RefBackward<'_, f32>) {
                self.window().backward_cpu(io);
            }
        }
    };
}
pub(super) use convolution;
