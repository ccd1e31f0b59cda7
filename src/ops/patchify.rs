//! `patchify`: an image as a row of patches.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::movement::launch::Kernels;
use crate::ops::movement::{Axis, Move, Movement, expect_one};
use crate::ops::operator::Arity;
use crate::tensor::{Dtype, Spec, expect_rank};

/// In which order the numbers of one patch lie in its token, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeatureOrder {
    /// `[channel][row][column]`: what the weight `[D, C, P, Q]` of a convolution expects, flattened.
    ChannelRowColumn,
    /// `[row][column][channel]`: what heads that predict patches emit.
    RowColumnChannel,
}

/// Cuts images into patches that do not overlap; a token is a patch, tokens go row by row.
///
/// ```text
/// y[b, i·w + j, f(c, p, q)] = x[b, c, i·P + p, j·Q + q]      f by `order`
/// ```
///
/// # Shapes
/// `x [B, C, H, W]` → `y [B, h·w, C·P·Q]` with `h = H/P`, `w = W/Q`. The gradient is [`Unpatchify`].
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// No operation; reads `x` once and writes `y` once.
///
/// # Errors
/// [`Error::Shape`] unless `x` has four axes and `P`, `Q` divide `H`, `W`; [`Error::Argument`] if a patch has no side;
/// [`Error::TooLarge`] if a token cannot be addressed; [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// Dosovitskiy et al. 2021, section 3.1.
///
/// [`Unpatchify`]: crate::ops::unpatchify::Unpatchify
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patchify {
    /// Rows `P` and columns `Q` of a patch.
    pub patch: [usize; 2],
    /// Order of the numbers within a token.
    pub order: FeatureOrder,
}

/// An image and its patches, with the number of each.
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    pub(crate) b: usize,
    pub(crate) c: usize,
    /// Patches down and across.
    pub(crate) grid: [usize; 2],
    pub(crate) patch: [usize; 2],
    pub(crate) order: FeatureOrder,
}

impl Patches {
    /// From the image to the tokens.
    pub(crate) fn to_tokens(self) -> Move {
        let Patches { b, c, grid: [h, w], patch: [p, q], order } = self;
        let features = c * p * q;
        let [tc, tp, tq] = match order {
            FeatureOrder::ChannelRowColumn => [p * q, q, 1],
            FeatureOrder::RowColumnChannel => [1, q * c, c],
        };
        let width = w * q;
        Move::new(
            [
                Axis { len: b, from: c * h * p * width, to: h * w * features },
                Axis { len: h, from: p * width, to: w * features },
                Axis { len: w, from: q, to: features },
                Axis { len: c, from: h * p * width, to: tc },
                Axis { len: p, from: width, to: tp },
                Axis { len: q, from: 1, to: tq },
            ],
            0,
            0,
        )
    }

    /// Plainly, which number of the image is which of the tokens.
    pub(crate) fn pairs(self, visit: &mut dyn FnMut(usize, usize)) {
        let Patches { b, c, grid: [h, w], patch: [p, q], order } = self;
        for b in 0..b {
            for k in 0..c {
                for row in 0..h * p {
                    for column in 0..w * q {
                        let image = ((b * c + k) * h * p + row) * w * q + column;
                        let token = (b * h + row / p) * w + column / q;
                        let (y, x) = (row % p, column % q);
                        let feature = match order {
                            FeatureOrder::ChannelRowColumn => (k * p + y) * q + x,
                            FeatureOrder::RowColumnChannel => (y * q + x) * c + k,
                        };
                        visit(image, token * c * p * q + feature);
                    }
                }
            }
        }
    }
}

impl Patchify {
    fn cut(&self, x: &Spec) -> Patches {
        let [b, c, h, w] = *x.shape() else { unreachable!("infer has seen four axes") };
        let [p, q] = self.patch;
        Patches { b, c, grid: [h / p, w / q], patch: self.patch, order: self.order }
    }
}

const SOURCE: Source = crate::source!("patchify/patchify.cu");

impl Arity<1> for Patchify {}

impl Movement for Patchify {
    const NAME: &'static str = "patchify";

    fn result(&self, x: &[&Spec]) -> Result<Spec> {
        let x = expect_one("patchify", x)?;
        let &[b, c, h, w] = expect_rank("patchify", "x", x, ["B", "C", "H", "W"])?;
        let [p, q] = self.patch;
        if p == 0 || q == 0 {
            return Err(Error::argument(format!(
                "patchify: patch: expected 1 or more each way, found {:?}",
                self.patch
            )));
        }
        if h % p != 0 || w % q != 0 {
            return Err(Error::shape(format!(
                "patchify: x: expected H a multiple of {p} and W of {q}, found {:?}",
                x.shape()
            )));
        }
        let features = p.checked_mul(q).and_then(|area| area.checked_mul(c));
        let features = features.ok_or_else(|| Error::too_large("patchify", "C·P·Q", format!("{c}·{p}·{q}")))?;
        x.with_shape([b, h / p * (w / q), features])
    }

    fn moves(&self, x: &[&Spec]) -> Vec<(usize, Move)> {
        vec![(0, self.cut(x[0]).to_tokens())]
    }

    fn patches(&self, x: &[&Spec]) -> Option<Patches> {
        Some(self.cut(x[0]))
    }

    const KERNELS: Kernels = Kernels {
        fwd_box: Some(Kernel::new(SOURCE, "patchify_fwd")),
        fwd_patches: Some(Kernel::new(SOURCE, "patchify_fwd_patches")),
        bwd_box: Some(Kernel::new(SOURCE, "patchify_bwd_dx")),
        bwd_patches: Some(Kernel::new(SOURCE, "patchify_bwd_dx_patches")),
        ..Kernels::NONE
    };

    fn pairs(&self, x: &[&Spec], visit: &mut dyn FnMut(usize, usize, usize)) {
        self.cut(x[0]).pairs(&mut |image, token| visit(0, image, token));
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "patchify",
    about: "an image as a row of patches",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

const ORDERS: [FeatureOrder; 2] = [FeatureOrder::ChannelRowColumn, FeatureOrder::RowColumnChannel];

fn case(x: [usize; 4], patch: [usize; 2], order: FeatureOrder) -> Case {
    Case::new(Patchify { patch, order }, [Input::new("x", x)])
}

fn cases() -> Vec<Case> {
    let shapes = [
        ([1, 1, 1, 1], [1, 1]),
        ([2, 3, 5, 7], [5, 7]),
        ([2, 3, 8, 12], [4, 4]),
        ([1, 9, 6, 10], [2, 5]),
        ([3, 5, 4, 6], [1, 1]),
        ([1, 17, 9, 6], [3, 2]),
        ([1, 20, 16, 24], [8, 8]),
        ([1, 33, 4, 136], [2, 4]),
        ([0, 2, 4, 4], [2, 2]),
    ];
    shapes.iter().flat_map(|&(x, p)| ORDERS.map(|o| case(x, p, o))).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let op = |p, q| Patchify { patch: [p, q], order: FeatureOrder::ChannelRowColumn };
    vec![
        BadCase::new(
            op(8, 8),
            &[&[1, 20, 721, 1440]],
            "expected H a multiple of 8 and W of 8, found [1, 20, 721, 1440]",
        ),
        BadCase::new(op(2, 3), &[&[1, 20, 4, 4]], "expected H a multiple of 2 and W of 3"),
        BadCase::new(op(2, 2), &[&[20, 4, 4]], "x: expected 4 axes [B, C, H, W], found [20, 4, 4]"),
        BadCase::new(op(0, 2), &[&[1, 20, 4, 4]], "patch: expected 1 or more each way, found [0, 2]"),
        BadCase::new(op(usize::MAX, 2), &[&[1, 20, 0, 4]], "C·P·Q: length"),
        BadCase::new(op(2, 2), &[], "expected 1 inputs, found 0"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let shapes = [([4, 20, 64, 128], [8, 8]), ([1, 20, 360, 720], [8, 8])];
    shapes.iter().flat_map(|&(x, p)| ORDERS.map(|o| case(x, p, o))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::movement::tests::holds_at_size;

    crate::room_tests!(ROOM);

    #[test]
    fn images_of_many_pieces_are_cut_like_small_ones() {
        for order in ORDERS {
            holds_at_size(&Patchify { patch: [8, 8], order }, &[&[2, 20, 32, 64]]);
            holds_at_size(&Patchify { patch: [3, 2], order }, &[&[1, 19, 60, 34]]);
        }
    }
}
