//! `conv2d`: a window that slides over two axes.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::Unit;
use crate::ops::contract::{BadCase, Case, Room};
use crate::ops::convolution::{Kernels, Window, case, convolution, size_cases};
use crate::tensor::{Dtype, Spec};

/// Convolution over two axes (cross-correlation, as in every network). Rows before columns in every pair.
///
/// ```text
/// y[b, o, r, s] = Σ_c Σ_i Σ_j x[b, c, r·stride₀ + i·dilation₀ − padding₀, s·stride₁ + j·dilation₁ − padding₁] · w[o, c, i, j]
///               + bias[o]
/// ```
///
/// where `c` runs over the channels of the group of `o`, and what lies outside `x` is 0 and does not take part.
///
/// # Shapes
/// `x [B, C, H, W]`, `w [O, C/groups, Kh, Kw]`, optionally `bias [O]` → `y [B, O, H', W']` with
/// `H' = (H + 2·padding − dilation·(Kh − 1) − 1)/stride + 1`, rounded down, and `W'` alike. `groups = C = O` is depthwise.
///
/// # Units
/// `y` has the unit of `x` times that of `w`.
///
/// # Cost
/// With `P` the pairs of output position and tap that lie inside `x`: forward `2·B·O·(C/groups)·P` matmul and `B·O·H'·W'`
/// vector for the bias; backward as much matmul for each of `x` and `w`, and `B·O·H'·W'` vector for `bias`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for other shapes or a kernel larger than the padded input;
/// [`Error::Dtype`](crate::error::Error::Dtype) unless all are the same of f32, bf16 and f16;
/// [`Error::Argument`](crate::error::Error::Argument) for a stride, dilation or groups of 0, another number of inputs.
///
/// # Source
/// LeCun et al. 1989; groups after Krizhevsky et al. 2012. Gradients by the chain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Steps between two outputs. At least 1.
    pub stride: [usize; 2],
    /// Zeros on either side.
    pub padding: [usize; 2],
    /// Steps between two taps. At least 1.
    pub dilation: [usize; 2],
    /// Channels are cut into this many groups that do not see each other. At least 1.
    pub groups: usize,
}

impl Conv2d {
    fn window(&self) -> Window {
        let Conv2d { stride, padding, dilation, groups } = *self;
        Window { op: "conv2d", axes: "H, W", dims: 2, stride, padding, dilation, groups }
    }
}

const SOURCE: Source = crate::source!("conv2d/conv2d.cu");
static KERNELS: Kernels = Kernels::new(
    SOURCE,
    [
        "conv2d_fwd",
        "conv2d_fwd_thin",
        "conv2d_bwd_dx",
        "conv2d_bwd_dx_thin",
        "conv2d_bwd_dw",
        "conv2d_bwd_dw_thin",
        "conv2d_bwd_dbias",
        "conv2d_bwd_total",
    ],
);

convolution!(Conv2d, "conv2d", KERNELS);

/// The room.
pub static ROOM: Room = Room {
    name: "conv2d",
    about: "a window that slides over two axes",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

const PLAIN: Conv2d = Conv2d { stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 };

fn cases() -> Vec<Case> {
    // The sizes of one axis beside others, so that rows and columns cannot be mistaken for each other.
    let along = |(i, [b, groups, cin, cout, l, k, stride, padding, dilation]): (usize, [usize; 9])| {
        let op = Conv2d { stride: [2, stride], padding: [1, padding], dilation: [1, dilation], groups };
        case(op, [b, groups * cin, 3, l], [groups * cout, cin, 2, k], i % 2 == 0)
    };
    let mut cases: Vec<Case> = size_cases().into_iter().take(12).enumerate().map(along).collect();
    let same = Conv2d { padding: [1, 1], ..PLAIN };
    cases.extend([
        case(Conv2d { stride: [2, 2], ..same }, [1, 3, 13, 20], [4, 3, 3, 3], true),
        case(PLAIN, [1, 6, 3, 5], [5, 6, 1, 1], false),
        case(Conv2d { groups: 4, ..same }, [2, 4, 6, 7], [4, 1, 3, 3], true),
        case(Conv2d { stride: [4, 4], ..PLAIN }, [1, 3, 8, 12], [6, 3, 4, 4], true),
        case(Conv2d { dilation: [3, 1], padding: [3, 0], ..PLAIN }, [1, 3, 5, 4], [3, 3, 3, 2], false),
        // More than a tile of channels, outputs and taps.
        case(Conv2d { stride: [1, 2], ..same }, [2, 9, 9, 11], [66, 9, 3, 3], true),
    ]);
    cases
}

fn bad_cases() -> Vec<BadCase> {
    let f32 = |shape: &[usize]| Spec::f32(shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    let (x, w): ([usize; 4], [usize; 4]) = ([2, 3, 8, 9], [4, 3, 3, 3]);
    vec![
        BadCase::new(PLAIN, &[&x, &[4, 2, 3, 3]], "x, w: expected [B, C, H, W] and [O, C/1, kernel ..]"),
        BadCase::new(PLAIN, &[&[2, 3, 8], &w], "found [2, 3, 8] and [4, 3, 3, 3]"),
        BadCase::new(PLAIN, &[&[2, 3, 2, 9], &w], "expected a kernel within x [2, 3, 2, 9] and padding 0 (H, W)"),
        BadCase::new(
            Conv2d { groups: 3, ..PLAIN },
            &[&x, &[4, 1, 3, 3]],
            "O a multiple of groups=3, found [4, 1, 3, 3]",
        ),
        BadCase::new(PLAIN, &[&x, &w, &[3]], "bias: expected [O=4], found [3]"),
        BadCase::new(PLAIN, &[&x], "expected 2 inputs [x, w] or 3 [x, w, bias], found 1"),
        BadCase::new(Conv2d { stride: [1, 0], ..PLAIN }, &[&x, &w], "stride: expected 1 or more, found 0"),
        BadCase::new(Conv2d { dilation: [0, 1], ..PLAIN }, &[&x, &w], "dilation: expected 1 or more, found 0"),
        BadCase::of_specs(PLAIN, vec![f32(&x).with_dtype(Dtype::I32), f32(&w)], "x: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let same = Conv2d { padding: [1, 1], ..PLAIN };
    vec![
        case(same, [4, 64, 56, 56], [64, 64, 3, 3], true),
        case(PLAIN, [4, 64, 56, 56], [128, 64, 1, 1], true),
        case(Conv2d { groups: 64, ..same }, [4, 64, 56, 56], [64, 1, 3, 3], true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Exec;
    use crate::ops::operator::{RefBackward, RefForward, RefInput, Reference, ReferenceGrad};
    use crate::ops::trial;

    crate::room_tests!(ROOM);

    #[test]
    fn a_sum_over_a_window_is_a_kernel_of_ones() {
        let x: Vec<f32> = (0..9).map(|i| i as f32).collect();
        let y = trial::forward(&PLAIN, &[(&[1, 1, 3, 3], &x), (&[1, 1, 2, 2], &[1.0; 4])]);
        assert_eq!(y, [8.0, 12.0, 20.0, 24.0]);
    }

    /// With `c` channels read and `o` written: odd ones out in the middle and at the edges of kernel and result.
    fn products_are_those_inside(exec: &Exec, c: usize, o: usize) {
        let op = Conv2d { padding: [1, 2], ..PLAIN };
        let specs = [[2, c, 5, 6], [o, c, 3, 3], [2, o, 5, 8]].map(|s| Spec::f32(s).unwrap());
        let mut v = specs.each_ref().map(|s| (0..s.len()).map(|i| (i * 7 % 11) as f32 - 5.0).collect::<Vec<f32>>());
        for (i, odd) in [(0, f32::INFINITY), (13, f32::NAN), (53, f32::NEG_INFINITY)] {
            v[1][i] = odd;
        }
        for (i, odd) in [(0, f32::NAN), (45, f32::INFINITY), (150, f32::INFINITY), (319, f32::NEG_INFINITY)] {
            v[2][i] = odd;
        }
        let (dy, x) = (&v[2], [(specs[0].shape(), &v[0][..]), (specs[1].shape(), &v[1][..])]);
        let inputs = [0, 1].map(|i| RefInput { spec: &specs[i], v: &v[i], ints: &[] });
        let mut want = [&v[2], &v[0], &v[1]].map(|v| vec![0.0_f32; v.len()]);
        let [y, dx, dw] = &mut want;
        op.forward_ref(RefForward { x: &inputs, y: &mut [y], saved: &mut [] });
        op.backward_ref(RefBackward { x: &inputs, y: &[], saved: &[], dy: &[dy], dx: &mut [Some(dx), Some(dw)] });
        let mut got = vec![trial::forward_on(exec, &op, &x)];
        got.extend(trial::backward_on(exec, &op, &x, Some(dy)));
        for (got, want) in got.iter().zip(&want) {
            assert!(want.iter().any(|w| w.is_finite()) && want.iter().any(|w| !w.is_finite()));
            let same = |(g, w): (&f32, &f32)| g == w || (g.is_nan() && w.is_nan());
            assert!(got.iter().zip(want).all(same), "{got:?}\n{want:?}");
        }
    }

    #[test]
    fn no_product_with_the_padding_exists() {
        // More channels than the path of thin groups takes.
        products_are_those_inside(&Exec::cpu(), 3, 4);
    }

    #[test]
    fn groups_do_not_see_each_other() {
        let op = Conv2d { groups: 2, ..PLAIN };
        let x: (&[usize], &[f32]) = (&[1, 2, 1, 2], &[1.0, 2.0, f32::NAN, 3.0]);
        let y = trial::forward(&op, &[x, (&[2, 1, 1, 1], &[10.0, 1.0])]);
        assert!(y[0] == 10.0 && y[1] == 20.0 && y[2].is_nan() && y[3] == 3.0, "{y:?}");
    }

    mod with_compilers {
        use super::*;
        use crate::backend::Device;
        use crate::backend::gpu::driver::Arch;

        #[test]
        #[ignore = "needs NVRTC and clang-19: see ci/install"]
        fn no_product_with_the_padding_exists_on_a_device() {
            for arch in [Arch::SM_80, Arch::GFX90A] {
                let exec = Exec::open(Device::Emulator(arch)).unwrap();
                // Few enough channels for plain sums, and so many that tiles are multiplied.
                products_are_those_inside(&exec, 3, 4);
                products_are_those_inside(&exec, 9, 7);
            }
        }
    }
}
