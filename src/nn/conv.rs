//! Convolutions, in the number type of the pass.

use crate::error::Result;
use crate::nn::{Init, Pass, Scope, cast};
use crate::ops::conv1d::Conv1d as Conv1dOp;
use crate::ops::conv2d::Conv2d as Conv2dOp;
use crate::tape::{Param, Tape, Var};

/// A window over one axis.
///
/// # Shapes
/// `x [B, C, L]` → `[B, O, L']` in the number type of the pass, `L' = (L + 2·padding − kernel)/stride + 1`, rounded down.
///
/// # Parameters
/// `weight [O, C, kernel]`, `bias [O]`: `O·(C·kernel + 1)` numbers.
///
/// # Source
/// PyTorch's `torch.nn.Conv1d`: names, layout and first values.
#[derive(Clone, Copy, Debug)]
pub struct Conv1d {
    weight: Param,
    bias: Param,
    op: Conv1dOp,
}

/// A window over two axes, of the same size, stride and padding along both.
///
/// # Shapes
/// `x [B, C, H, W]` → `[B, O, H', W']` in the number type of the pass, `H' = (H + 2·padding − kernel)/stride + 1`, rounded
/// down, and `W'` alike.
///
/// # Parameters
/// `weight [O, C, kernel, kernel]`, `bias [O]`: `O·(C·kernel² + 1)` numbers.
///
/// # Source
/// PyTorch's `torch.nn.Conv2d`: names, layout and first values.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    weight: Param,
    bias: Param,
    op: Conv2dOp,
}

/// How the window of a convolution moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input channels C.
    pub input: usize,
    /// Output channels O.
    pub output: usize,
    /// Taps along an axis.
    pub kernel: usize,
    /// Steps between two outputs.
    pub stride: usize,
    /// Zeros on either side.
    pub padding: usize,
}

impl Conv1d {
    /// A convolution of this shape.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn new(scope: &mut Scope<'_>, shape: ConvShape) -> Result<Conv1d> {
        let ConvShape { input, output, kernel, stride, padding } = shape;
        let init = Init::fan_in(input * kernel);
        let weight = scope.param("weight", [output, input, kernel], init)?;
        let bias = scope.param("bias", [output], init)?;
        Ok(Conv1d { weight, bias, op: Conv1dOp { stride, padding, dilation: 1, groups: 1 } })
    }

    /// Convolves.
    ///
    /// # Errors
    /// As the operator.
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        let inputs = inputs(tape, x, self.weight, self.bias, pass)?;
        tape.apply(self.op, inputs)
    }
}

impl Conv2d {
    /// A convolution of this shape.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if a name is taken.
    pub fn new(scope: &mut Scope<'_>, shape: ConvShape) -> Result<Conv2d> {
        let ConvShape { input, output, kernel, stride, padding } = shape;
        let init = Init::fan_in(input * kernel * kernel);
        let weight = scope.param("weight", [output, input, kernel, kernel], init)?;
        let bias = scope.param("bias", [output], init)?;
        let op = Conv2dOp { stride: [stride; 2], padding: [padding; 2], dilation: [1; 2], groups: 1 };
        Ok(Conv2d { weight, bias, op })
    }

    /// Convolves.
    ///
    /// # Errors
    /// As the operator.
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        let inputs = inputs(tape, x, self.weight, self.bias, pass)?;
        tape.apply(self.op, inputs)
    }
}

/// `x`, weight and bias in the number type of the pass.
fn inputs(tape: &mut Tape<'_>, x: Var, weight: Param, bias: Param, pass: &Pass) -> Result<[Var; 3]> {
    let x = cast(tape, x, pass.compute)?;
    let (weight, bias) = (tape.param(weight)?, tape.param(bias)?);
    Ok([x, cast(tape, weight, pass.compute)?, cast(tape, bias, pass.compute)?])
}
