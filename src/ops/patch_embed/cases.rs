//! What the room is tried with.

use super::PatchEmbed;
use crate::ops::contract::{BadCase, Case, Fill, Input};
use crate::tensor::{Dtype, Spec};

/// With statistics where asked.
fn inputs(x: [usize; 4], [d, p, q]: [usize; 3], has_statistics: bool) -> Vec<Input> {
    let image = Input::new("x", x).always_f32();
    let mut inputs = vec![image, Input::new("weight", [d, x[1], p, q]), Input::new("bias", [d])];
    if has_statistics {
        inputs.push(Input::new("mean", [x[1]]).always_f32().constant());
        inputs.push(Input::new("std", [x[1]]).always_f32().constant().fill(Fill::Uniform(0.5, 2.0)));
    }
    inputs
}

fn case(x: [usize; 4], weight: [usize; 3], has_statistics: bool) -> Case {
    Case::new(PatchEmbed, inputs(x, weight, has_statistics))
}

/// The same with a position of every token.
fn placed(x: [usize; 4], weight: [usize; 3], has_statistics: bool) -> Case {
    let [d, p, q] = weight;
    let mut inputs = inputs(x, weight, has_statistics);
    inputs.push(Input::new("position", [x[2] / p * (x[3] / q), d]));
    Case::new(PatchEmbed, inputs)
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case([1, 1, 1, 1], [1, 1, 1], false),
        case([2, 3, 8, 12], [5, 4, 4], true),
        case([1, 2, 6, 10], [7, 2, 5], true),
        case([2, 3, 8, 16], [8, 8, 8], false),
        case([1, 4, 16, 32], [24, 8, 8], true),
        case([1, 5, 3, 4], [3, 1, 1], false),
        case([1, 3, 6, 9], [4, 3, 3], true),
        case([1, 1, 32, 32], [9, 16, 16], true),
        case([1, 16, 4, 20], [6, 2, 2], true),
        case([0, 2, 4, 4], [3, 2, 2], true),
        placed([2, 3, 6, 10], [5, 2, 5], true),
        placed([3, 2, 4, 8], [8, 4, 4], false),
        placed([1, 2, 16, 8], [16, 8, 8], true),
        // Models' patches: 32 by 32, Prithvi's 2 by 2 of 160 channels, 320 channels.
        case([1, 1, 64, 32], [8, 32, 32], true),
        case([1, 160, 4, 6], [24, 2, 2], true),
        case([1, 320, 2, 4], [8, 2, 2], true),
        // Rows of patches that end inside a tile.
        placed([3, 3, 24, 28], [40, 4, 4], true),
    ]
}

pub(super) fn bad_cases() -> Vec<BadCase> {
    let bad = |shapes: &[&[usize]], error| BadCase::new(PatchEmbed, shapes, error);
    let narrow = [Spec::new(Dtype::Bf16, [1, 2, 4, 4]), Spec::f32([3, 2, 2, 2]), Spec::f32([3])];
    vec![
        bad(&[&[1, 2, 5, 4], &[3, 2, 2, 2], &[3]], "x: expected H a multiple of 2 and W of 2, found [1, 2, 5, 4]"),
        bad(&[&[1, 2, 4, 4], &[3, 4, 2, 2], &[3]], "weight: expected [D, C=2, P, Q] as x, found [3, 4, 2, 2]"),
        bad(&[&[1, 2, 4, 4], &[3, 2, 0, 2], &[3]], "weight: expected a patch of 1 or more each way, found [0, 2]"),
        bad(&[&[1, 2, 4, 4], &[3, 2, 2, 2], &[4]], "bias: expected [D=3], found [4]"),
        bad(&[&[1, 2, 4, 4], &[3, 2, 2, 2], &[3], &[2], &[3]], "std: expected [C=2], found [3]"),
        bad(&[&[2, 4, 4], &[3, 2, 2, 2], &[3]], "x: expected 4 axes [B, C, H, W], found [2, 4, 4]"),
        bad(
            &[&[1, 2, 4, 4], &[3, 2, 2, 2]],
            "expected 3 inputs [x, weight, bias], with [mean, std], with [position], found 2",
        ),
        bad(&[&[1, 2, 4, 4], &[3, 2, 2, 2], &[3], &[3, 3]], "position: expected [h·w=4, D=3], found [3, 3]"),
        BadCase::of_specs(PatchEmbed, narrow.into_iter().flatten().collect(), "x: expected f32"),
    ]
}

pub(super) fn bench_cases() -> Vec<Case> {
    let case = |x, d, p| case(x, [d, p, p], true);
    vec![
        case([4, 20, 64, 128], 192, 8),
        case([4, 20, 720, 1440], 768, 8),
        case([4, 20, 720, 1440], 384, 16),
        case([32, 73, 128, 256], 768, 8),
        case([2, 160, 360, 576], 2560, 2),
    ]
}
