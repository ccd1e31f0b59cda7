//! `slice`: a stretch of one axis.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::movement::launch::{Kernels, Window, WindowAxis};
use crate::ops::movement::{Axis, Move, Movement, around, expect_axis, expect_one};
use crate::ops::operator::Arity;
use crate::tensor::{Dtype, Spec};

/// The indices `start .. start + len` of one axis.
///
/// ```text
/// y[.., i, ..] = x[.., start + i, ..]
/// ```
///
/// # Shapes
/// `x [.., n, ..]` → `y [.., len, ..]`. The gradient is zero outside the stretch.
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// No operation; bytes are counted as reading `x` once and writing `y` once.
///
/// # Errors
/// [`Error::Argument`] if `x` has no such axis or the stretch leaves it; [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// Definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which axis, from 0.
    pub axis: usize,
    /// First index that is taken.
    pub start: usize,
    /// How many are taken.
    pub len: usize,
}

const SOURCE: Source = crate::source!("slice/slice.cu");

impl Arity<1> for Slice {}

impl Movement for Slice {
    const NAME: &'static str = "slice";

    fn result(&self, x: &[&Spec]) -> Result<Spec> {
        let x = expect_one("slice", x)?;
        expect_axis("slice", "x", x, self.axis)?;
        let n = x.shape()[self.axis];
        if self.start.checked_add(self.len).is_none_or(|end| end > n) {
            return Err(Error::argument(format!(
                "slice: start, len: expected a stretch of axis {} of length {n}, found {} + {}",
                self.axis, self.start, self.len
            )));
        }
        let mut shape = x.shape().to_vec();
        shape[self.axis] = self.len;
        x.with_shape(shape)
    }

    fn moves(&self, x: &[&Spec]) -> Vec<(usize, Move)> {
        let (outer, n, inner) = around(x[0].shape(), self.axis);
        let line = self.len * inner;
        let axes = [Axis { len: outer, from: n * inner, to: line }, Axis { len: line, from: 1, to: 1 }];
        vec![(0, Move::new(axes, self.start * inner, 0))]
    }

    const KERNELS: Kernels = Kernels {
        fwd_box: Some(Kernel::new(SOURCE, "slice_fwd")),
        bwd_window: Some(Kernel::new(SOURCE, "slice_bwd_dx")),
        bwd_box: Some(Kernel::new(SOURCE, "slice_bwd_dx_box")),
        ..Kernels::NONE
    };

    fn window_of_gradient(&self, x: &[&Spec]) -> Option<Window> {
        let (outer, n, inner) = around(x[0].shape(), self.axis);
        let line = self.len * inner;
        let axes = [
            WindowAxis { len: outer, start: 0, inner: outer, from: line },
            WindowAxis { len: n * inner, start: self.start * inner, inner: line, from: 1 },
        ];
        Some(Window::new(axes, false))
    }

    fn pairs(&self, x: &[&Spec], visit: &mut dyn FnMut(usize, usize, usize)) {
        let (outer, n, inner) = around(x[0].shape(), self.axis);
        for o in 0..outer {
            for i in 0..self.len {
                for k in 0..inner {
                    visit(0, (o * n + self.start + i) * inner + k, (o * self.len + i) * inner + k);
                }
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "slice",
    about: "a stretch of one axis",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case<const N: usize>(shape: [usize; N], axis: usize, start: usize, len: usize) -> Case {
    Case::new(Slice { axis, start, len }, [Input::new("x", shape)])
}

fn cases() -> Vec<Case> {
    vec![
        case([1], 0, 0, 1),
        case([7], 0, 2, 3),
        case([7], 0, 7, 0),
        case([5, 9], 0, 1, 3),
        case([5, 9], 1, 8, 1),
        case([3, 33, 5], 1, 1, 31),
        case([3, 33, 5], 2, 0, 5),
        case([2, 3, 17, 4], 2, 5, 8),
        case([0, 4], 1, 1, 2),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op = |axis, start, len| Slice { axis, start, len };
    let i32s = || Spec::new(Dtype::I32, [7]).into_iter().collect::<Vec<_>>();
    vec![
        BadCase::new(op(2, 0, 1), &[&[3, 4]], "axis: expected one of the 2 axes of x [3, 4], found 2"),
        BadCase::new(op(1, 2, 3), &[&[3, 4]], "expected a stretch of axis 1 of length 4, found 2 + 3"),
        BadCase::new(op(0, usize::MAX, 2), &[&[3, 4]], "expected a stretch of axis 0 of length 3"),
        BadCase::new(op(0, 0, 1), &[], "expected 1 inputs, found 0"),
        BadCase::of_specs(op(0, 0, 1), i32s(), "x: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case([4, 20, 721, 1440], 2, 0, 720), case([16_200, 1152], 1, 384, 384)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::movement::tests::holds_at_size;

    crate::room_tests!(ROOM);

    #[test]
    fn stretches_of_many_pieces_are_cut_like_small_ones() {
        holds_at_size(&Slice { axis: 1, start: 3, len: 100 }, &[&[2, 129, 401]]);
        holds_at_size(&Slice { axis: 1, start: 16, len: 16 }, &[&[4099, 48]]);
    }
}
