//! `permute`: axes in another order.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::movement::launch::Kernels;
use crate::ops::movement::{Axis, Move, Movement, expect_one, strides};
use crate::ops::operator::Arity;
use crate::tensor::{Dtype, Spec};

/// The same numbers with the axes in another order.
///
/// ```text
/// y[i[axes[0]], i[axes[1]], ..] = x[i[0], i[1], ..]
/// ```
///
/// # Shapes
/// `x [d0, d1, ..]` → `y [d[axes[0]], d[axes[1]], ..]`. The gradient is the inverse permutation.
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// No operation; reads `x` once and writes `y` once.
///
/// # Errors
/// [`Error::Argument`] unless `axes` names every axis of `x` once; [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// Definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permute {
    /// Which axis of `x` becomes each axis of `y`.
    pub axes: Vec<usize>,
}

const SOURCE: Source = crate::source!("permute/permute.cu");

impl Arity<1> for Permute {}

impl Movement for Permute {
    const NAME: &'static str = "permute";

    fn result(&self, x: &[&Spec]) -> Result<Spec> {
        let x = expect_one("permute", x)?;
        let mut seen = self.axes.clone();
        seen.sort_unstable();
        if !seen.iter().copied().eq(0..x.rank()) {
            return Err(Error::argument(format!(
                "permute: axes: expected each of the {} axes of x {:?} once, found {:?}",
                x.rank(),
                x.shape(),
                self.axes
            )));
        }
        x.with_shape(self.axes.iter().map(|&a| x.shape()[a]).collect::<Vec<_>>())
    }

    fn moves(&self, x: &[&Spec]) -> Vec<(usize, Move)> {
        let shape = x[0].shape();
        let from = strides(shape);
        let to = strides(&self.axes.iter().map(|&a| shape[a]).collect::<Vec<_>>());
        let axes = self.axes.iter().zip(to).map(|(&a, to)| Axis { len: shape[a], from: from[a], to });
        vec![(0, Move::new(axes, 0, 0))]
    }

    const KERNELS: Kernels = Kernels {
        fwd_box: Some(Kernel::new(SOURCE, "permute_fwd")),
        fwd_tiled: Some(Kernel::new(SOURCE, "permute_fwd_tiled")),
        bwd_box: Some(Kernel::new(SOURCE, "permute_bwd_dx")),
        bwd_tiled: Some(Kernel::new(SOURCE, "permute_bwd_dx_tiled")),
        ..Kernels::NONE
    };

    fn pairs(&self, x: &[&Spec], visit: &mut dyn FnMut(usize, usize, usize)) {
        let shape = x[0].shape();
        let mut i = vec![0; shape.len()];
        for from in 0..x[0].len() {
            let to = self.axes.iter().fold(0, |to, &a| to * shape[a] + i[a]);
            visit(0, from, to);
            for a in (0..shape.len()).rev() {
                i[a] += 1;
                if i[a] < shape[a] {
                    break;
                }
                i[a] = 0;
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "permute",
    about: "axes in another order",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case<const N: usize>(shape: [usize; N], axes: [usize; N]) -> Case {
    Case::new(Permute { axes: axes.to_vec() }, [Input::new("x", shape)])
}

fn cases() -> Vec<Case> {
    vec![
        case([], []),
        case([1], [0]),
        case([7], [0]),
        case([0, 3], [1, 0]),
        case([3, 5], [1, 0]),
        case([8, 8], [1, 0]),
        case([9, 17], [1, 0]),
        case([2, 33, 15], [0, 2, 1]),
        case([2, 33, 15], [2, 1, 0]),
        case([3, 4, 5, 6], [0, 2, 1, 3]),
        case([2, 3, 1, 5, 2], [4, 2, 0, 3, 1]),
        case([1, 128, 20], [0, 2, 1]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op = |axes: &[usize]| Permute { axes: axes.to_vec() };
    let i32s = || Spec::new(Dtype::I32, [2, 3]).into_iter().collect::<Vec<_>>();
    vec![
        BadCase::new(op(&[0, 1]), &[&[2, 3, 4]], "axes: expected each of the 3 axes of x [2, 3, 4] once, found [0, 1]"),
        BadCase::new(op(&[0, 0]), &[&[2, 3]], "found [0, 0]"),
        BadCase::new(op(&[0, 2]), &[&[2, 3]], "found [0, 2]"),
        BadCase::new(op(&[1, 0]), &[&[2, 3], &[2, 3]], "expected 1 inputs, found 2"),
        BadCase::of_specs(op(&[1, 0]), i32s(), "x: expected f32 or bf16 or f16, found [2, 3] i32"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![
        case([4, 4050, 20], [0, 2, 1]),
        case([1, 4050, 3, 8, 48], [2, 0, 3, 1, 4]),
        case([2048, 2048], [1, 0]),
        // More than caches hold.
        case([16, 4096, 1024], [0, 2, 1]),
        case([16, 2048, 3, 16, 64], [2, 0, 3, 1, 4]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::movement::tests::holds_at_size;

    crate::room_tests!(ROOM);

    #[test]
    fn tensors_of_many_pieces_are_permuted_like_small_ones() {
        holds_at_size(&Permute { axes: vec![1, 0] }, &[&[301, 203]]);
        holds_at_size(&Permute { axes: vec![0, 2, 1] }, &[&[2, 1027, 20]]);
        holds_at_size(&Permute { axes: vec![2, 0, 1, 3] }, &[&[7, 129, 3, 16]]);
        holds_at_size(&Permute { axes: vec![0, 1] }, &[&[301, 203]]);
    }
}
