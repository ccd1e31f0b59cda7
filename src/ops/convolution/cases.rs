//! Sizes that both rooms are tested on.

use crate::ops::contract::{Case, Fill, Input};
use crate::ops::operator::ReferenceGrad;

/// A case of a convolution: `x [B, C, ..]`, `w [O, C/groups, ..]`, with weights as layers initialise them.
pub(in crate::ops) fn case<const N: usize>(
    op: impl ReferenceGrad,
    x: [usize; N],
    w: [usize; N],
    has_bias: bool,
) -> Case {
    let taps: usize = w[1..].iter().product();
    let bound = (3.0 / taps.max(1) as f32).sqrt();
    let mut inputs = vec![Input::new("x", x), Input::new("w", w).fill(Fill::Uniform(-bound, bound))];
    if has_bias {
        inputs.push(Input::new("bias", [w[0]]));
    }
    Case::new(op, inputs)
}

/// `(batch, groups, channels in and out of a group, length, kernel, stride, padding, dilation)` along one axis: one number,
/// kernels as long as the padded input, strides longer than the kernel, padding beyond it, groups and depthwise, more than a tile of
/// channels, outputs and taps, several stretches of outputs.
pub(in crate::ops) fn size_cases() -> [[usize; 9]; 17] {
    [
        [1, 1, 1, 1, 1, 1, 1, 0, 1],
        [2, 1, 4, 8, 31, 3, 2, 1, 1],
        [1, 1, 3, 5, 17, 1, 1, 0, 1],
        [2, 1, 5, 3, 16, 1, 2, 0, 1],
        [1, 1, 3, 2, 4, 8, 1, 2, 1],
        [1, 1, 3, 4, 15, 3, 1, 2, 2],
        [2, 3, 1, 1, 33, 5, 1, 2, 1],
        [1, 7, 1, 1, 12, 3, 2, 1, 1],
        [1, 5, 1, 2, 9, 3, 1, 1, 3],
        [3, 2, 3, 4, 10, 4, 3, 1, 1],
        [1, 1, 3, 3, 7, 2, 5, 3, 1],
        [1, 1, 2, 2, 6, 3, 1, 4, 1],
        [0, 1, 3, 3, 6, 3, 1, 1, 1],
        [1, 1, 80, 4, 7, 3, 1, 1, 1],
        [2, 1, 5, 67, 37, 3, 1, 1, 1],
        [1, 2, 66, 5, 70, 1, 1, 0, 1],
        [3, 1, 2, 6, 701, 4, 3, 2, 1],
    ]
}
