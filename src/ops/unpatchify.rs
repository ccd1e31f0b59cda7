//! `unpatchify`: a row of patches as an image.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::movement::launch::Kernels;
use crate::ops::movement::{Move, Movement, expect_one};
use crate::ops::operator::Arity;
use crate::ops::patchify::{FeatureOrder, Patches};
use crate::tensor::{Dtype, Spec, expect_rank};

/// Puts patches side by side to images: the inverse of [`Patchify`].
///
/// ```text
/// y[b, c, i·P + p, j·Q + q] = x[b, i·w + j, f(c, p, q)]      f by `order`
/// ```
///
/// # Shapes
/// `x [B, h·w, C·P·Q]` → `y [B, C, h·P, w·Q]`. The gradient is [`Patchify`].
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// No operation; reads `x` once and writes `y` once.
///
/// # Errors
/// [`Error::Shape`] unless `x` has three axes, `h·w` tokens and a multiple of `P·Q` features; [`Error::Argument`] if a
/// patch or the grid has no side; [`Error::TooLarge`] if the image cannot be addressed; [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// The inverse of Dosovitskiy et al. 2021, section 3.1.
///
/// [`Patchify`]: crate::ops::patchify::Patchify
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpatchify {
    /// Rows `h` and columns `w` of the grid of patches.
    pub grid: [usize; 2],
    /// Rows `P` and columns `Q` of a patch.
    pub patch: [usize; 2],
    /// Order of the numbers within a token.
    pub order: FeatureOrder,
}

impl Unpatchify {
    fn cut(&self, x: &Spec) -> Patches {
        let [b, _, features] = *x.shape() else { unreachable!("infer has seen three axes") };
        let [p, q] = self.patch;
        Patches { b, c: features / (p * q), grid: self.grid, patch: self.patch, order: self.order }
    }
}

const SOURCE: Source = crate::source!("unpatchify/unpatchify.cu");

impl Arity<1> for Unpatchify {}

impl Movement for Unpatchify {
    const NAME: &'static str = "unpatchify";

    fn result(&self, x: &[&Spec]) -> Result<Spec> {
        let x = expect_one("unpatchify", x)?;
        let &[b, tokens, features] = expect_rank("unpatchify", "x", x, ["B", "h·w", "C·P·Q"])?;
        let ([h, w], [p, q]) = (self.grid, self.patch);
        let too_large = |axis: &str| Error::too_large("unpatchify", axis, format!("{:?}·{:?}", self.grid, self.patch));
        let area = p.checked_mul(q).ok_or_else(|| too_large("patch"))?;
        if h == 0 || w == 0 || area == 0 {
            return Err(Error::argument(format!(
                "unpatchify: grid, patch: expected 1 or more each way, found {:?}, {:?}",
                self.grid, self.patch
            )));
        }
        if h.checked_mul(w) != Some(tokens) || features % area != 0 {
            return Err(Error::shape(format!(
                "unpatchify: x: expected [B, h·w={h}·{w}, a multiple of P·Q={area}], found {:?}",
                x.shape()
            )));
        }
        let height = h.checked_mul(p).ok_or_else(|| too_large("height"))?;
        let width = w.checked_mul(q).ok_or_else(|| too_large("width"))?;
        x.with_shape([b, features / area, height, width])
    }

    fn moves(&self, x: &[&Spec]) -> Vec<(usize, Move)> {
        vec![(0, self.cut(x[0]).to_tokens().inverse())]
    }

    fn patches(&self, x: &[&Spec]) -> Option<Patches> {
        Some(self.cut(x[0]))
    }

    const KERNELS: Kernels = Kernels {
        fwd_box: Some(Kernel::new(SOURCE, "unpatchify_fwd")),
        fwd_patches: Some(Kernel::new(SOURCE, "unpatchify_fwd_patches")),
        bwd_box: Some(Kernel::new(SOURCE, "unpatchify_bwd_dx")),
        bwd_patches: Some(Kernel::new(SOURCE, "unpatchify_bwd_dx_patches")),
        ..Kernels::NONE
    };

    fn pairs(&self, x: &[&Spec], visit: &mut dyn FnMut(usize, usize, usize)) {
        self.cut(x[0]).pairs(&mut |image, token| visit(0, token, image));
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "unpatchify",
    about: "a row of patches as an image",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

const ORDERS: [FeatureOrder; 2] = [FeatureOrder::ChannelRowColumn, FeatureOrder::RowColumnChannel];

fn case(b: usize, c: usize, grid: [usize; 2], patch: [usize; 2], order: FeatureOrder) -> Case {
    let x = Input::new("x", [b, grid[0] * grid[1], c * patch[0] * patch[1]]);
    Case::new(Unpatchify { grid, patch, order }, [x])
}

fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, [1, 1], [1, 1]),
        (2, 3, [1, 1], [5, 7]),
        (2, 2, [2, 3], [4, 4]),
        (1, 9, [3, 2], [2, 5]),
        (3, 5, [4, 6], [1, 1]),
        (1, 17, [3, 3], [3, 3]),
        (1, 20, [2, 3], [8, 8]),
    ];
    shapes.iter().flat_map(|&(b, c, g, p)| ORDERS.map(|o| case(b, c, g, p, o))).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let op = |grid, patch| Unpatchify { grid, patch, order: FeatureOrder::RowColumnChannel };
    vec![
        BadCase::new(
            op([2, 3], [4, 4]),
            &[&[1, 5, 32]],
            "expected [B, h·w=2·3, a multiple of P·Q=16], found [1, 5, 32]",
        ),
        BadCase::new(op([2, 3], [4, 4]), &[&[1, 6, 33]], "a multiple of P·Q=16], found [1, 6, 33]"),
        BadCase::new(op([2, 3], [4, 4]), &[&[6, 32]], "x: expected 3 axes [B, h·w, C·P·Q], found [6, 32]"),
        BadCase::new(op([2, 0], [4, 4]), &[&[1, 0, 32]], "grid, patch: expected 1 or more each way"),
        BadCase::new(op([2, 3], [0, 4]), &[&[1, 6, 32]], "grid, patch: expected 1 or more each way"),
        BadCase::new(op([1, 6], [usize::MAX, 2]), &[&[1, 6, 32]], "patch: length"),
        BadCase::new(op([2, 3], [4, 4]), &[], "expected 1 inputs, found 0"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let shapes = [(4, 20, [8, 16], [8, 8]), (1, 20, [45, 90], [8, 8])];
    shapes.iter().flat_map(|&(b, c, g, p)| ORDERS.map(|o| case(b, c, g, p, o))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::movement::tests::holds_at_size;

    crate::room_tests!(ROOM);

    #[test]
    fn images_of_many_pieces_are_put_together_like_small_ones() {
        for order in ORDERS {
            holds_at_size(&Unpatchify { grid: [4, 8], patch: [8, 8], order }, &[&[2, 32, 20 * 64]]);
            holds_at_size(&Unpatchify { grid: [20, 17], patch: [3, 2], order }, &[&[1, 340, 19 * 6]]);
        }
    }
}
