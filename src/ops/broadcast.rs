//! What `add` and `mul` share: the second operand has the last axes of the first and is repeated over the others.

use std::borrow::Cow;

use crate::backend::gpu::kernel::Arg;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, Out, TOUCH, map_flat};
use crate::ops::contract::{BadCase, Case, Input};
use crate::ops::launch;
use crate::ops::operator::{Operator, Outputs, ReferenceGrad, expect_inputs};
use crate::tensor::{Dtype, Spec, expect_dtype};

/// Shorter second operands are repeated to this length, so that loops over them are long.
const LONG: usize = 1024;

/// `x` as `rows` rows of the `width` numbers that `b` has.
pub(super) fn rows_and_width(x: &Spec, b: &Spec) -> (usize, usize) {
    let rows = x.shape()[..x.rank() - last_axes(b).len()].iter().product();
    (rows, b.len())
}

/// How many numbers `x` and `b` have, as the kernels take them.
pub(super) fn lengths<'a>(op: &str, x: &Spec, b: &Spec) -> Result<[Arg<'a>; 2]> {
    Ok([launch::length(op, "elements", x.len())?, launch::length(op, "width", b.len())?])
}

/// How many of both a flat kernel reads from end to end: where `b` is repeated, it is not counted.
pub(super) fn inputs(x: &Spec, b: &Spec) -> usize {
    if x.len() == b.len() { 2 } else { 1 }
}

/// The axes of `b` without leading ones of length 1.
fn last_axes(b: &Spec) -> &[usize] {
    let ones = b.shape().iter().take_while(|&&d| d == 1).count();
    &b.shape()[ones..]
}

/// The checks and the result of both.
pub(super) fn infer(op: &str, inputs: &[&Spec]) -> Result<Outputs> {
    let [x, b] = expect_inputs(op, inputs)?;
    expect_dtype(op, "x", x, &Dtype::FLOATS)?;
    expect_dtype(op, "b", b, &[x.dtype()])?;
    if b.rank() > x.rank() || !x.shape().ends_with(last_axes(b)) {
        return Err(Error::shape(format!(
            "{op}: b: expected the last axes of x {:?}, found {:?}",
            x.shape(),
            b.shape()
        )));
    }
    Ok(Outputs::one((*x).clone()))
}

/// `to = f(x, b)` with `b` repeated as often as it fits.
pub(super) fn map(x: Floats<'_>, b: Floats<'_>, to: Out<'_>, f: fn(&[f32], &[f32], &mut [f32])) {
    let (len, period) = (x.len(), b.len());
    if len == period {
        return map_flat(len, 3 * TOUCH, [x, b], [to], |_, [x, b], [y]| f(x, b, y));
    }
    let b: Cow<'_, [f32]> = match b {
        Floats::F32(b) if period >= LONG => b.into(),
        b if period >= LONG => b.widened().into(),
        b => b.widened().repeat(LONG.div_ceil(period.max(1)).min(len / period.max(1)).max(1)).into(),
    };
    map_flat(len, 2 * TOUCH, [x], [to], |first, [x], [y]| {
        let mut at = 0;
        while at < y.len() {
            let b = &b[(first + at) % b.len()..];
            let n = b.len().min(y.len() - at);
            f(&x[at..at + n], &b[..n], &mut y[at..at + n]);
            at += n;
        }
    });
}

/// Cases of a room with this broadcast.
pub(super) fn cases<O: ReferenceGrad + Clone>(op: O) -> Vec<Case> {
    let case = |x: &[usize], b: &[usize]| Case::new(op.clone(), [shaped("x", x), shaped("b", b)]);
    vec![
        case(&[1], &[1]),
        case(&[7], &[7]),
        case(&[33], &[33]),
        case(&[3, 5, 7], &[3, 5, 7]),
        case(&[3, 5, 7], &[5, 7]),
        case(&[3, 5, 7], &[7]),
        case(&[3, 5, 7], &[1, 5, 7]),
        case(&[1, 5], &[5]),
        case(&[130, 3], &[3]),
        case(&[67, 1], &[1]),
        case(&[2, 31], &[31]),
        case(&[5, 32], &[32]),
        case(&[65, 33], &[33]),
        case(&[3, 768], &[768]),
        case(&[2, 2053], &[2053]),
        case(&[0, 4], &[4]),
    ]
}

/// An input of any rank.
pub(super) fn shaped(name: &'static str, shape: &[usize]) -> Input {
    let spec = Spec::f32(shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    Input { spec, ..Input::new(name, [1]) }
}

/// What such a room refuses; the texts begin with its name.
pub(super) fn bad_cases<O: Operator + Clone>(op: O) -> Vec<BadCase> {
    let spec =
        |dtype, shape: &[usize]| Spec::new(dtype, shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    let mixed = vec![spec(Dtype::Bf16, &[4]), spec(Dtype::F32, &[4])];
    let ints = vec![spec(Dtype::I32, &[4]), spec(Dtype::I32, &[4])];
    vec![
        BadCase::new(op.clone(), &[&[4]], ": expected 2 inputs, found 1"),
        BadCase::new(
            op.clone(),
            &[&[2, 8, 16], &[4, 16]],
            ": b: expected the last axes of x [2, 8, 16], found [4, 16]",
        ),
        BadCase::new(op.clone(), &[&[2, 8], &[2, 1]], ": b: expected the last axes of x [2, 8], found [2, 1]"),
        BadCase::new(op.clone(), &[&[8], &[1, 8]], ": b: expected the last axes of x [8], found [1, 8]"),
        BadCase::of_specs(op.clone(), mixed, ": b: expected bf16, found [4] f32"),
        BadCase::of_specs(op, ints, ": x: expected f32 or bf16 or f16, found [4] i32"),
    ]
}

/// The models' sums: a residual, a bias, a position embedding.
pub(super) fn bench_cases<O: ReferenceGrad + Clone>(op: O) -> Vec<Case> {
    let case = |x: &[usize], b: &[usize]| Case::new(op.clone(), [shaped("x", x), shaped("b", b)]);
    let (large, small): (&[usize], &[usize]) = (&[4, 4050, 384], &[4, 128, 384]);
    vec![
        case(large, large),
        case(large, &[384]),
        case(large, &[4050, 384]),
        case(small, small),
        case(small, &[384]),
        case(small, &[128, 384]),
    ]
}
