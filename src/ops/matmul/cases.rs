//! What the room is tested and timed on.

use super::{Activation, Matmul};
use crate::ops::contract::{BadCase, Case, Fill, Input};
use crate::tensor::{Dtype, Spec};

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu];

/// Weights as layers initialise them: small where K is large.
fn inputs(op: Matmul, rows: &[usize], k: usize, n: usize, has_bias: bool) -> Vec<Input> {
    let bound = (6.0 / k.max(1) as f32).sqrt();
    let shape = if op.transpose_w { [n, k] } else { [k, n] };
    let x = match *rows {
        [a, b] => Input::new("x", [a, b, k]),
        _ => Input::new("x", [rows.iter().product(), k]),
    };
    let mut x = vec![x, Input::new("w", shape).fill(Fill::Uniform(-bound, bound))];
    if has_bias {
        x.push(Input::new("bias", [n]));
    }
    x
}

pub(super) fn cases() -> Vec<Case> {
    let sizes: [(&[usize], usize, usize); 13] = [
        (&[1], 1, 1),
        (&[3], 5, 7),
        (&[11], 7, 31),
        (&[12], 8, 32),
        (&[13], 9, 33),
        (&[2, 3], 17, 16),
        (&[5], 15, 65),
        (&[2], 384, 5),
        (&[9], 300, 3),
        (&[1], 4, 127),
        (&[257], 3, 2),
        (&[4, 8], 32, 12),
        (&[0], 3, 4),
    ];
    let mut cases = Vec::new();
    for (i, (rows, k, n)) in sizes.into_iter().enumerate() {
        let op = Matmul { transpose_w: i % 2 == 0, activation: ACTIVATIONS[i % 5] };
        cases.push(Case::new(op, inputs(op, rows, k, n, i % 3 != 1)));
    }
    for activation in ACTIVATIONS {
        for transpose_w in [false, true] {
            let op = Matmul { transpose_w, activation };
            // Few results: with many, one lies so near the kink of `Relu` that differences straddle it.
            cases.push(Case::new(op, inputs(op, &[3], 10, 6, transpose_w)));
        }
        // Large values: both tails of the activation.
        let op = Matmul { transpose_w: false, activation };
        let x = Input::new("x", [8, 2]).fill(Fill::Uniform(-6.0, 6.0));
        cases.push(Case::new(op, [x, Input::new("w", [2, 5]), Input::new("bias", [5])]));
    }
    cases
}

pub(super) fn bad_cases() -> Vec<BadCase> {
    let op = Matmul { transpose_w: false, activation: Activation::None };
    let linear = Matmul { transpose_w: true, ..op };
    let f32 = |shape: &[usize]| Spec::f32(shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(op, &[&[8, 96], &[95, 200]], "x: expected [.., K=95], found [8, 96] (w is [95, 200])"),
        BadCase::new(linear, &[&[8, 96], &[96, 200]], "x: expected [.., K=200], found [8, 96] (w is [96, 200])"),
        BadCase::new(op, &[&[], &[96, 200]], "x: expected [.., K=96], found a scalar"),
        BadCase::new(op, &[&[8, 96], &[96, 200, 1]], "w: expected 2 axes [K, N], found [96, 200, 1]"),
        BadCase::new(linear, &[&[8, 96], &[96]], "w: expected 2 axes [N, K], found [96]"),
        BadCase::new(linear, &[&[8, 96], &[200, 96], &[96]], "bias: expected [N=200], found [96]"),
        BadCase::new(op, &[&[8, 96]], "expected 2 inputs [x, w] or 3 [x, w, bias], found 1"),
        BadCase::of_specs(
            op,
            vec![f32(&[8, 4]), f32(&[4, 4]).with_dtype(Dtype::Bf16)],
            "w: expected f32, found [4, 4] bf16",
        ),
        BadCase::of_specs(
            op,
            vec![f32(&[8, 4]).with_dtype(Dtype::I32), f32(&[4, 4])],
            "x: expected f32 or bf16 or f16",
        ),
    ]
}

pub(super) fn bench_cases() -> Vec<Case> {
    let linear = |activation, rows, k, n| {
        let op = Matmul { transpose_w: true, activation };
        Case::new(op, inputs(op, &[rows], k, n, true))
    };
    let none = Activation::None;
    vec![
        linear(none, 512, 384, 1152),
        linear(Activation::Gelu, 512, 384, 1536),
        linear(none, 512, 1536, 384),
        linear(none, 512, 128, 384),
        linear(Activation::Gelu, 512, 128, 512),
        linear(none, 512, 512, 128),
        linear(none, 4050, 384, 1152),
    ]
}
