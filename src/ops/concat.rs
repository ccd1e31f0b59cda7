//! `concat`: tensors one after the other along one axis.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::movement::launch::Kernels;
use crate::ops::movement::{Axis, Move, Movement, around, expect_axis};
use crate::ops::operator::AnyArity;
use crate::tensor::{Dtype, Spec, expect_dtype};

/// Joins tensors along one axis, in the order given.
///
/// ```text
/// y[.., n₀ + .. + nₖ₋₁ + i, ..] = xₖ[.., i, ..]
/// ```
///
/// # Shapes
/// `xₖ [.., nₖ, ..]`, alike in all other axes → `y [.., Σ nₖ, ..]`. Each gradient is a slice.
///
/// # Units
/// All inputs have one unit, and `y` has it.
///
/// # Cost
/// No operation; reads every input once and writes `y` once.
///
/// # Errors
/// [`Error::Argument`] without an input or with more than 32, or if there is no such axis; [`Error::Shape`] if other axes
/// differ; [`Error::Dtype`] unless all are f32, all bf16 or all f16; [`Error::TooLarge`] if the result cannot be addressed.
///
/// # Source
/// Definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concat {
    /// Which axis, from 0.
    pub axis: usize,
}

/// As many positions as a set of inputs can name.
const MOST: usize = 32;

const SOURCE: Source = crate::source!("concat/concat.cu");

impl AnyArity for Concat {}

impl Concat {
    fn total(&self, x: &[&Spec]) -> usize {
        x.iter().map(|s| s.shape()[self.axis]).sum()
    }
}

impl Movement for Concat {
    const NAME: &'static str = "concat";

    fn result(&self, x: &[&Spec]) -> Result<Spec> {
        let Some(first) = x.first().filter(|_| x.len() <= MOST) else {
            return Err(Error::argument(format!("concat: expected 1 to {MOST} inputs, found {}", x.len())));
        };
        expect_axis("concat", "x0", first, self.axis)?;
        expect_dtype("concat", "x0", first, &Dtype::FLOATS)?;
        let mut total = 0_usize;
        for (k, s) in x.iter().enumerate() {
            expect_dtype("concat", &format!("x{k}"), s, &[first.dtype()])?;
            let alike = s.rank() == first.rank()
                && s.shape().iter().zip(first.shape()).enumerate().all(|(a, (d, want))| a == self.axis || d == want);
            if !alike {
                return Err(Error::shape(format!(
                    "concat: x{k}: expected {:?} but for axis {}, found {:?}",
                    first.shape(),
                    self.axis,
                    s.shape()
                )));
            }
            let length = s.shape()[self.axis];
            total = total
                .checked_add(length)
                .ok_or_else(|| Error::too_large("concat", "axis", format!("{total} + {length}")))?;
        }
        let mut shape = first.shape().to_vec();
        shape[self.axis] = total;
        first.with_shape(shape).map_err(|_| Error::too_large("concat", "axis", total))
    }

    fn moves(&self, x: &[&Spec]) -> Vec<(usize, Move)> {
        let total = self.total(x);
        let mut start = 0;
        let mut all = Vec::with_capacity(x.len());
        for (k, s) in x.iter().enumerate() {
            let (outer, n, inner) = around(s.shape(), self.axis);
            let line = n * inner;
            let axes = [Axis { len: outer, from: line, to: total * inner }, Axis { len: line, from: 1, to: 1 }];
            all.push((k, Move::new(axes, 0, start * inner)));
            start += n;
        }
        all
    }

    const KERNELS: Kernels = Kernels {
        fwd_box: Some(Kernel::new(SOURCE, "concat_fwd")),
        bwd_box: Some(Kernel::new(SOURCE, "concat_bwd_dx")),
        ..Kernels::NONE
    };

    fn pairs(&self, x: &[&Spec], visit: &mut dyn FnMut(usize, usize, usize)) {
        let total = self.total(x);
        let mut start = 0;
        for (input, s) in x.iter().enumerate() {
            let (outer, n, inner) = around(s.shape(), self.axis);
            for o in 0..outer {
                for i in 0..n {
                    for k in 0..inner {
                        visit(input, (o * n + i) * inner + k, (o * total + start + i) * inner + k);
                    }
                }
            }
            start += n;
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "concat",
    about: "tensors one after the other along one axis",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case<const N: usize, const K: usize>(axis: usize, shapes: [[usize; N]; K]) -> Case {
    const NAMES: [&str; 4] = ["x0", "x1", "x2", "x3"];
    let inputs: Vec<Input> = NAMES.iter().zip(shapes).map(|(name, shape)| Input::new(name, shape)).collect();
    Case::new(Concat { axis }, inputs)
}

fn cases() -> Vec<Case> {
    vec![
        case(0, [[1]]),
        case(0, [[3], [5]]),
        case(0, [[0], [5], [1]]),
        case(0, [[2, 3], [4, 3]]),
        case(1, [[2, 3], [2, 4]]),
        case(1, [[3, 7, 5], [3, 1, 5], [3, 31, 5]]),
        case(2, [[2, 3, 8], [2, 3, 16], [2, 3, 1], [2, 3, 17]]),
        case(1, [[0, 7], [0, 3]]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op = |axis| Concat { axis };
    let mixed = [Spec::f32([2, 3]), Spec::new(Dtype::Bf16, [2, 3])].into_iter().flatten().collect();
    let i32s = Spec::new(Dtype::I32, [7]).into_iter().collect();
    vec![
        BadCase::new(op(0), &[], "expected 1 to 32 inputs, found 0"),
        BadCase::new(op(0), &[&[1][..]; 33], "expected 1 to 32 inputs, found 33"),
        BadCase::new(op(2), &[&[2, 3], &[2, 3]], "axis: expected one of the 2 axes of x0 [2, 3], found 2"),
        BadCase::new(op(1), &[&[2, 3], &[4, 3]], "x1: expected [2, 3] but for axis 1, found [4, 3]"),
        BadCase::new(op(1), &[&[2, 3], &[2, 3, 1]], "x1: expected [2, 3] but for axis 1, found [2, 3, 1]"),
        BadCase::new(op(0), &[&[1 << 60][..]; 8], "axis: length"),
        BadCase::of_specs(op(0), mixed, "x1: expected f32, found [2, 3] bf16"),
        BadCase::of_specs(op(0), i32s, "x0: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case(1, [[4, 4050, 384], [4, 4050, 384]]), case(2, [[4, 4050, 384], [4, 4050, 384]])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::movement::tests::holds_at_size;

    crate::room_tests!(ROOM);

    #[test]
    fn tensors_of_many_pieces_are_joined_like_small_ones() {
        holds_at_size(&Concat { axis: 1 }, &[&[2, 100, 301], &[2, 31, 301]]);
        holds_at_size(&Concat { axis: 1 }, &[&[2053, 16], &[2053, 5], &[2053, 1]]);
        holds_at_size(&Concat { axis: 0 }, &[&[40_000], &[70_000]]);
    }
}
