//! `pad`: zeros around a tensor.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::movement::launch::{Kernels, Window, WindowAxis};
use crate::ops::movement::{Axis, Move, Movement, expect_one, strides};
use crate::ops::operator::Arity;
use crate::tensor::{Dtype, Spec};

/// Zeros before and after along every axis.
///
/// ```text
/// y[i + before, j + before', ..] = x[i, j, ..], 0 elsewhere
/// ```
///
/// # Shapes
/// `x [d0, d1, ..]` → `y [before + d0 + after, ..]`. The gradient is cut out.
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// No operation; reads `x` once and writes `y` once.
///
/// # Errors
/// [`Error::Argument`] unless there is one pair for every axis; [`Error::TooLarge`] if the result cannot be addressed;
/// [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// Definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pad {
    /// How many zeros come before and after, for each axis.
    pub zeros: Vec<[usize; 2]>,
}

impl Pad {
    fn padded(&self, shape: &[usize]) -> Option<Vec<usize>> {
        let axis = |(&d, [before, after]): (&usize, &[usize; 2])| d.checked_add(*before)?.checked_add(*after);
        shape.iter().zip(&self.zeros).map(axis).collect()
    }
}

const SOURCE: Source = crate::source!("pad/pad.cu");

impl Arity<1> for Pad {}

impl Movement for Pad {
    const NAME: &'static str = "pad";

    fn result(&self, x: &[&Spec]) -> Result<Spec> {
        let x = expect_one("pad", x)?;
        if self.zeros.len() != x.rank() {
            return Err(Error::argument(format!(
                "pad: zeros: expected a pair for each of the {} axes of x {:?}, found {:?}",
                x.rank(),
                x.shape(),
                self.zeros
            )));
        }
        let padded = self.padded(x.shape()).and_then(|shape| x.with_shape(shape).ok());
        padded.ok_or_else(|| Error::too_large("pad", "zeros", format!("{:?} around {:?}", self.zeros, x.shape())))
    }

    fn moves(&self, x: &[&Spec]) -> Vec<(usize, Move)> {
        let shape = x[0].shape();
        let (from, to) = (strides(shape), strides(&self.padded(shape).unwrap_or_default()));
        let start = self.zeros.iter().zip(&to).map(|([before, _], to)| before * to).sum();
        let axes = shape.iter().zip(from.into_iter().zip(to)).map(|(&len, (from, to))| Axis { len, from, to });
        vec![(0, Move::new(axes, 0, start))]
    }

    const KERNELS: Kernels = Kernels {
        fwd_window: Some(Kernel::new(SOURCE, "pad_fwd")),
        bwd_box: Some(Kernel::new(SOURCE, "pad_bwd_dx")),
        ..Kernels::NONE
    };

    fn window(&self, x: &[&Spec]) -> Option<Window> {
        let shape = x[0].shape();
        let axes = shape.iter().zip(&self.zeros).zip(strides(shape)).map(|((&d, [before, after]), from)| WindowAxis {
            len: before + d + after,
            start: *before,
            inner: d,
            from,
        });
        Some(Window::new(axes, false))
    }

    fn pairs(&self, x: &[&Spec], visit: &mut dyn FnMut(usize, usize, usize)) {
        let shape = x[0].shape();
        for from in 0..x[0].len() {
            // From the last axis on: where the number lies in x, hence in y.
            let (mut rest, mut stride, mut to) = (from, 1, 0);
            for (&d, [before, after]) in shape.iter().zip(&self.zeros).rev() {
                to += (rest % d + before) * stride;
                rest /= d;
                stride *= before + d + after;
            }
            visit(0, from, to);
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "pad",
    about: "zeros around a tensor",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case<const N: usize>(shape: [usize; N], zeros: [[usize; 2]; N]) -> Case {
    Case::new(Pad { zeros: zeros.to_vec() }, [Input::new("x", shape)])
}

fn cases() -> Vec<Case> {
    vec![
        case([], []),
        case([1], [[0, 0]]),
        case([7], [[2, 3]]),
        case([0], [[2, 3]]),
        case([5, 9], [[0, 0], [1, 0]]),
        case([5, 9], [[3, 0], [0, 0]]),
        case([2, 8, 17], [[0, 0], [1, 2], [3, 4]]),
        case([2, 3, 5, 7], [[1, 1], [0, 0], [2, 1], [0, 1]]),
        case([1, 2, 16, 31], [[0, 0], [0, 0], [0, 7], [0, 1]]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op = |zeros: &[[usize; 2]]| Pad { zeros: zeros.to_vec() };
    let i32s = || Spec::new(Dtype::I32, [7]).into_iter().collect::<Vec<_>>();
    vec![
        BadCase::new(
            op(&[[1, 1]]),
            &[&[3, 4]],
            "zeros: expected a pair for each of the 2 axes of x [3, 4], found [[1, 1]]",
        ),
        BadCase::new(op(&[[usize::MAX, 1]]), &[&[3]], "zeros: length"),
        BadCase::new(op(&[[usize::MAX / 8, 0], [0, 0]]), &[&[3, 64]], "zeros: length"),
        BadCase::new(op(&[[1, 1]]), &[&[3], &[3]], "expected 1 inputs, found 2"),
        BadCase::of_specs(op(&[[1, 1]]), i32s(), "x: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case([4, 20, 360, 720], [[0, 0], [0, 0], [4, 4], [4, 4]])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::movement::tests::holds_at_size;

    crate::room_tests!(ROOM);

    #[test]
    fn tensors_of_many_pieces_are_padded_like_small_ones() {
        holds_at_size(&Pad { zeros: vec![[1, 0], [2, 3], [0, 5]] }, &[&[3, 127, 201]]);
        holds_at_size(&Pad { zeros: vec![[1, 2]] }, &[&[70_001]]);
    }
}
