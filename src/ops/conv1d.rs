//! `conv1d`: a window that slides over one axis.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::Unit;
use crate::ops::contract::{BadCase, Case, Room};
use crate::ops::convolution::{Kernels, Window, case, convolution, size_cases};
use crate::tensor::{Dtype, Spec};

/// Convolution over one axis (cross-correlation, as in every network).
///
/// ```text
/// y[b, o, t] = Σ_c Σ_k x[b, c, t·stride + k·dilation − padding] · w[o, c, k] + bias[o]
/// ```
///
/// where `c` runs over the channels of the group of `o`, and what lies outside `x` is 0 and does not take part.
///
/// # Shapes
/// `x [B, C, L]`, `w [O, C/groups, K]`, optionally `bias [O]` → `y [B, O, (L + 2·padding − dilation·(K − 1) − 1)/stride + 1]`,
/// rounded down. `groups = C = O` is depthwise.
///
/// # Units
/// `y` has the unit of `x` times that of `w`.
///
/// # Cost
/// With `P` the pairs of output position and tap that lie inside `x`: forward `2·B·O·(C/groups)·P` matmul and `B·O·L_out` vector
/// for the bias; backward as much matmul for each of `x` and `w`, and `B·O·L_out` vector for `bias`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for other shapes or a kernel longer than the padded input;
/// [`Error::Dtype`](crate::error::Error::Dtype) unless all are the same of f32, bf16 and f16;
/// [`Error::Argument`](crate::error::Error::Argument) for a stride, dilation or groups of 0, another number of inputs.
///
/// # Source
/// LeCun et al. 1989; groups after Krizhevsky et al. 2012. Gradients by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv1d {
    /// Steps between two outputs. At least 1.
    pub stride: usize,
    /// Zeros before and after.
    pub padding: usize,
    /// Steps between two taps. At least 1.
    pub dilation: usize,
    /// Channels are cut into this many groups that do not see each other. At least 1.
    pub groups: usize,
}

impl Conv1d {
    fn window(&self) -> Window {
        Window {
            op: "conv1d",
            axes: "L",
            dims: 1,
            stride: [1, self.stride],
            padding: [0, self.padding],
            dilation: [1, self.dilation],
            groups: self.groups,
        }
    }
}

const SOURCE: Source = crate::source!("conv1d/conv1d.cu");
static KERNELS: Kernels = Kernels::new(
    SOURCE,
    [
        "conv1d_fwd",
        "conv1d_fwd_thin",
        "conv1d_bwd_dx",
        "conv1d_bwd_dx_thin",
        "conv1d_bwd_dw",
        "conv1d_bwd_dw_thin",
        "conv1d_bwd_dbias",
        "conv1d_bwd_total",
    ],
);

convolution!(Conv1d, "conv1d", KERNELS);

/// The room.
pub static ROOM: Room = Room {
    name: "conv1d",
    about: "a window that slides over one axis",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

const PLAIN: Conv1d = Conv1d { stride: 1, padding: 0, dilation: 1, groups: 1 };

fn cases() -> Vec<Case> {
    let case = |(i, [b, groups, cin, cout, l, k, stride, padding, dilation]): (usize, [usize; 9])| {
        let op = Conv1d { stride, padding, dilation, groups };
        case(op, [b, groups * cin, l], [groups * cout, cin, k], i % 2 == 1)
    };
    size_cases().into_iter().enumerate().map(case).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let f32 = |shape: &[usize]| Spec::f32(shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    let huge = Conv1d { padding: usize::MAX, ..PLAIN };
    vec![
        BadCase::new(PLAIN, &[&[2, 4, 31], &[8, 3, 3]], "x, w: expected [B, C, L] and [O, C/1, kernel ..]"),
        BadCase::new(PLAIN, &[&[2, 4, 31, 1], &[8, 4, 3]], "found [2, 4, 31, 1] and [8, 4, 3]"),
        BadCase::new(
            PLAIN,
            &[&[2, 4, 2], &[8, 4, 3]],
            "expected a kernel within x [2, 4, 2] and padding 0 (L), found [8, 4, 3]",
        ),
        BadCase::new(PLAIN, &[&[2, 4, 2], &[8, 4, 0]], "expected a kernel within x [2, 4, 2]"),
        BadCase::new(huge, &[&[2, 4, 2], &[8, 4, 3]], "expected a kernel within x"),
        BadCase::new(
            Conv1d { groups: 2, ..PLAIN },
            &[&[2, 4, 9], &[7, 2, 3]],
            "O a multiple of groups=2, found [7, 2, 3]",
        ),
        BadCase::new(PLAIN, &[&[2, 4, 9], &[8, 4, 3], &[4]], "bias: expected [O=8], found [4]"),
        BadCase::new(PLAIN, &[&[2, 4, 9]], "expected 2 inputs [x, w] or 3 [x, w, bias], found 1"),
        BadCase::new(Conv1d { stride: 0, ..PLAIN }, &[&[2, 4, 9], &[8, 4, 3]], "stride: expected 1 or more, found 0"),
        BadCase::new(Conv1d { dilation: 0, ..PLAIN }, &[&[2, 4, 9], &[8, 4, 3]], "dilation: expected 1 or more"),
        BadCase::new(Conv1d { groups: 0, ..PLAIN }, &[&[2, 4, 9], &[8, 4, 3]], "groups: expected 1 or more"),
        BadCase::of_specs(PLAIN, vec![f32(&[2, 4, 9]), f32(&[8, 4, 3]).with_dtype(Dtype::Bf16)], "w: expected f32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let op = Conv1d { padding: 1, ..PLAIN };
    vec![
        case(op, [4, 80, 1000], [256, 80, 3], true),
        case(Conv1d { stride: 2, ..op }, [4, 256, 1000], [256, 256, 3], true),
        case(Conv1d { groups: 256, ..op }, [4, 256, 1000], [256, 1, 3], true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::operator::{Mask, Operator};
    use crate::ops::trial;

    crate::room_tests!(ROOM);

    #[test]
    fn a_kernel_of_one_tap_in_the_middle_is_the_identity() {
        let x = [1.0, -2.0, 3.0, 4.0];
        let y = trial::forward(&Conv1d { padding: 1, ..PLAIN }, &[(&[1, 1, 4], &x), (&[1, 1, 3], &[0.0, 1.0, 0.0])]);
        assert_eq!(y, x);
    }

    #[test]
    fn outputs_that_lie_in_the_padding_cost_nothing_and_give_the_bias() {
        let op = Conv1d { padding: 3, ..PLAIN };
        let y = trial::forward(&op, &[(&[1, 1, 1], &[5.0]), (&[1, 1, 1], &[2.0]), (&[1], &[7.0])]);
        assert_eq!(y, [7.0, 7.0, 7.0, 17.0, 7.0, 7.0, 7.0]);
        let (x, w) = (Spec::f32([1, 1, 1]).unwrap(), Spec::f32([1, 1, 1]).unwrap());
        assert_eq!(op.flops(&[&x, &w], Mask::NONE).forward.matmul, 2);
    }
}
