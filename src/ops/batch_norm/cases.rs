//! What the room is tested and timed on.

use super::{BatchNorm, Statistics};
use crate::ops::contract::{BadCase, Case, Fill, Input};
use crate::tensor::{Dtype, Spec};

const TRAIN: BatchNorm = BatchNorm { eps: 1e-5, statistics: Statistics::Batch { momentum: 0.1 } };
const EVAL: BatchNorm = BatchNorm { eps: 1e-5, statistics: Statistics::Running };

fn case<const N: usize>(op: BatchNorm, shape: [usize; N]) -> Case {
    let c = shape[1];
    let weight = Input::new("weight", [c]).fill(Fill::Uniform(0.5, 1.5));
    let mean = Input::new("running_mean", [c]).always_f32();
    let var = Input::new("running_var", [c]).fill(Fill::Uniform(0.5, 2.0)).always_f32();
    Case::new(op, [Input::new("x", shape), weight, Input::new("bias", [c]), mean, var])
}

pub(super) fn cases() -> Vec<Case> {
    let eps = |op: BatchNorm| BatchNorm { eps: 1e-3, ..op };
    let all = |momentum| BatchNorm { statistics: Statistics::Batch { momentum }, ..TRAIN };
    vec![
        case(TRAIN, [2, 1]),
        case(TRAIN, [5, 7]),
        case(TRAIN, [6, 5, 4, 3]),
        case(TRAIN, [1, 3, 17]),
        case(TRAIN, [3, 2, 33]),
        case(TRAIN, [257, 3]),
        case(TRAIN, [2, 64, 5]),
        case(TRAIN, [2, 2, 8, 9, 2]),
        case(TRAIN, [3, 2, 8]),
        case(TRAIN, [7, 3, 5, 16]),
        case(TRAIN, [5, 2, 1000]),
        case(eps(TRAIN), [17, 33]),
        case(all(1.0), [4, 2, 6]),
        case(all(0.0), [4, 2, 1]),
        case(EVAL, [1, 1]),
        case(EVAL, [6, 5]),
        case(EVAL, [2, 3, 31]),
        case(eps(EVAL), [3, 7, 4, 8]),
        case(EVAL, [0, 3, 2]),
    ]
}

pub(super) fn bad_cases() -> Vec<BadCase> {
    let c: [usize; 1] = [3];
    let momentum = |momentum| BatchNorm { statistics: Statistics::Batch { momentum }, ..TRAIN };
    let f32 = |shape: &[usize]| Spec::f32(shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    let bf16 = |shape: &[usize]| f32(shape).with_dtype(Dtype::Bf16);
    vec![
        BadCase::new(TRAIN, &[&[3], &c, &c, &c, &c], "x: expected [B, C, ..], found [3]"),
        BadCase::new(TRAIN, &[&[4, 3], &[4], &c, &c, &c], "weight: expected [C=3], found [4]"),
        BadCase::new(TRAIN, &[&[4, 3], &c, &c, &c, &[1, 3]], "running_var: expected [C=3], found [1, 3]"),
        BadCase::new(
            TRAIN,
            &[&[1, 3], &c, &c, &c, &c],
            "batch statistics need 2 numbers a channel or more, found [1, 3]",
        ),
        BadCase::new(TRAIN, &[&[4, 3], &c, &c], "expected 5 inputs, found 3"),
        BadCase::new(TRAIN, &[&[4, 0], &[0], &[0], &[0], &[0]], "expected C and space of 1 or more, found [4, 0]"),
        BadCase::new(TRAIN, &[&[2, 3, 0], &c, &c, &c, &c], "expected C and space of 1 or more, found [2, 3, 0]"),
        BadCase::new(
            BatchNorm { eps: 0.0, ..EVAL },
            &[&[4, 3], &c, &c, &c, &c],
            "eps: expected a positive number, found 0",
        ),
        BadCase::new(momentum(1.5), &[&[4, 3], &c, &c, &c, &c], "momentum: expected a number in [0, 1], found 1.5"),
        BadCase::new(momentum(f32::NAN), &[&[4, 3], &c, &c, &c, &c], "momentum: expected a number in [0, 1]"),
        BadCase::of_specs(EVAL, vec![bf16(&[4, 3]), f32(&c), f32(&c), f32(&c), f32(&c)], "weight: expected bf16"),
        BadCase::of_specs(
            EVAL,
            vec![bf16(&[4, 3]), bf16(&c), bf16(&c), bf16(&c), f32(&c)],
            "running_mean: expected f32",
        ),
    ]
}

pub(super) fn bench_cases() -> Vec<Case> {
    vec![
        case(TRAIN, [8, 64, 56, 56]),
        case(EVAL, [8, 64, 56, 56]),
        case(TRAIN, [64, 512]),
        case(TRAIN, [64, 256, 56, 56]),
    ]
}
