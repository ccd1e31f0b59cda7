//! `roll`: a tensor shifted around its ends.

use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::movement::launch::{Kernels, Window, WindowAxis};
use crate::ops::movement::{Axis, Move, Movement, expect_one, strides};
use crate::ops::operator::Arity;
use crate::tensor::{Dtype, Spec};

/// Shifts along every axis; what leaves at one end comes in at the other.
///
/// ```text
/// y[(i + shift) mod d0, (j + shift') mod d1, ..] = x[i, j, ..]
/// ```
///
/// # Shapes
/// `x [d0, d1, ..]` → `y` of the same shape. The gradient is the roll back.
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// No operation; reads `x` once and writes `y` once.
///
/// # Errors
/// [`Error::Argument`] unless there is one shift for every axis; [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// Definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roll {
    /// How far each axis moves towards higher indices; negative the other way.
    pub shifts: Vec<isize>,
}

/// The shift of an axis of length `d` as an index, 0 for an empty axis.
fn index(shift: isize, d: usize) -> usize {
    // A tensor's axes are never longer than `isize::MAX`.
    if d == 0 { 0 } else { shift.rem_euclid(d as isize) as usize }
}

const SOURCE: Source = crate::source!("roll/roll.cu");

impl Roll {
    /// All of `x` moved up along every axis, by how far `start` says of its length and shift.
    fn rolled(&self, x: &Spec, start: impl Fn(usize, isize) -> usize) -> Window {
        let axes = x.shape().iter().zip(&self.shifts).zip(strides(x.shape()));
        let axis = |((&d, &s), from)| WindowAxis { len: d, start: start(d, s), inner: d, from };
        Window::new(axes.map(axis), true)
    }
}

impl Arity<1> for Roll {}

impl Movement for Roll {
    const NAME: &'static str = "roll";

    fn result(&self, x: &[&Spec]) -> Result<Spec> {
        let x = expect_one("roll", x)?;
        if self.shifts.len() != x.rank() {
            return Err(Error::argument(format!(
                "roll: shifts: expected one for each of the {} axes of x {:?}, found {:?}",
                x.rank(),
                x.shape(),
                self.shifts
            )));
        }
        Ok(x.clone())
    }

    /// Every axis in two parts that each stay in order; all combinations of them.
    fn moves(&self, x: &[&Spec]) -> Vec<(usize, Move)> {
        let shape = x[0].shape();
        let mut boxes = vec![(Vec::new(), 0, 0)];
        for ((&d, &shift), stride) in shape.iter().zip(&self.shifts).zip(strides(shape)) {
            let s = index(shift, d);
            let parts = [(d - s, 0, s), (s, d - s, 0)].into_iter().filter(|part| part.0 > 0 || d == 0).take(2);
            let parts: Vec<_> = parts.collect();
            boxes = boxes
                .iter()
                .flat_map(|(axes, from, to)| {
                    parts.iter().map(move |&(len, f, t)| {
                        let mut axes: Vec<Axis> = axes.clone();
                        axes.push(Axis { len, from: stride, to: stride });
                        (axes, from + f * stride, to + t * stride)
                    })
                })
                .collect();
        }
        boxes.into_iter().map(|(axes, from, to)| (0, Move::new(axes, from, to))).collect()
    }

    const KERNELS: Kernels = Kernels {
        fwd_window: Some(Kernel::new(SOURCE, "roll_fwd")),
        bwd_window: Some(Kernel::new(SOURCE, "roll_bwd_dx")),
        ..Kernels::NONE
    };

    fn window(&self, x: &[&Spec]) -> Option<Window> {
        Some(self.rolled(x[0], |d, s| index(s, d)))
    }

    fn window_of_gradient(&self, x: &[&Spec]) -> Option<Window> {
        Some(self.rolled(x[0], |d, s| (d - index(s, d)) % d.max(1)))
    }

    fn pairs(&self, x: &[&Spec], visit: &mut dyn FnMut(usize, usize, usize)) {
        let shape = x[0].shape();
        for from in 0..x[0].len() {
            let (mut rest, mut stride, mut to) = (from, 1, 0);
            for (&d, &shift) in shape.iter().zip(&self.shifts).rev() {
                to += (rest % d + index(shift, d)) % d * stride;
                rest /= d;
                stride *= d;
            }
            visit(0, from, to);
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "roll",
    about: "a tensor shifted around its ends",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn case<const N: usize>(shape: [usize; N], shifts: [isize; N]) -> Case {
    Case::new(Roll { shifts: shifts.to_vec() }, [Input::new("x", shape)])
}

fn cases() -> Vec<Case> {
    vec![
        case([], []),
        case([1], [5]),
        case([7], [2]),
        case([7], [-2]),
        case([7], [isize::MIN]),
        case([0, 3], [1, 1]),
        case([5, 9], [0, 4]),
        case([5, 9], [3, 0]),
        case([2, 8, 17], [1, -3, 12]),
        case([2, 3, 5, 7], [0, 0, 2, -1]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let op = |shifts: &[isize]| Roll { shifts: shifts.to_vec() };
    let i32s = || Spec::new(Dtype::I32, [7]).into_iter().collect::<Vec<_>>();
    vec![
        BadCase::new(op(&[1]), &[&[3, 4]], "shifts: expected one for each of the 2 axes of x [3, 4], found [1]"),
        BadCase::new(op(&[1]), &[&[3], &[3]], "expected 1 inputs, found 2"),
        BadCase::of_specs(op(&[1]), i32s(), "x: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    vec![case([1, 4, 180, 360, 128], [0, -1, -3, -6, 0])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::movement::tests::holds_at_size;

    crate::room_tests!(ROOM);

    #[test]
    fn tensors_of_many_pieces_are_rolled_like_small_ones() {
        holds_at_size(&Roll { shifts: vec![1, -50, 7] }, &[&[3, 127, 201]]);
    }
}
