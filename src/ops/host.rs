//! Runs an operator's f32 text over operands in host memory, whatever their storage type: 16-bit operands are widened
//! before and rounded once after, and gradients are set or added as their slots say.

use half::{bf16, f16};

use crate::error::Result;
use crate::ops::operator::{Backward, Forward, GradSlot, RefBackward, RefForward, RefInput, Reference, ReferenceGrad};
use crate::tensor::{Dtype, Spec, View, ViewMut};

/// Numbers for reading: borrowed where they are f32, widened where they are not.
enum Widened<'a> {
    Borrowed(&'a [f32]),
    Owned(Vec<f32>),
    Ints(&'a [i32]),
    Absent,
}

impl<'a> Widened<'a> {
    fn of(view: &View<'a>) -> Result<Widened<'a>> {
        Ok(match view.spec().dtype() {
            Dtype::F32 => Widened::Borrowed(view.f32()?),
            Dtype::I32 => Widened::Ints(view.i32()?),
            Dtype::Bf16 | Dtype::F16 => Widened::Owned(view.to_f32()?),
        })
    }

    fn of_option(view: Option<&View<'a>>) -> Result<Widened<'a>> {
        view.map_or(Ok(Widened::Absent), Widened::of)
    }

    fn floats(&self) -> &[f32] {
        match self {
            Widened::Borrowed(v) => v,
            Widened::Owned(v) => v,
            Widened::Ints(_) | Widened::Absent => &[],
        }
    }

    fn input<'s>(&'s self, spec: &'s Spec) -> RefInput<'s, f32> {
        let ints = if let Widened::Ints(v) = self { v } else { &[][..] };
        RefInput { spec, v: self.floats(), ints }
    }
}

/// f32 numbers for writing: in place where the operand is f32, beside it where it is not.
enum Narrowing<'a> {
    InPlace(&'a mut [f32]),
    Beside { numbers: Vec<f32>, to: ViewMut<'a>, add: bool },
    Unwanted,
}

impl<'a> Narrowing<'a> {
    fn set(view: &'a mut ViewMut<'_>) -> Result<Narrowing<'a>> {
        if view.spec().dtype() == Dtype::F32 {
            let numbers = view.f32()?;
            numbers.fill(0.0);
            return Ok(Narrowing::InPlace(numbers));
        }
        Ok(Narrowing::Beside { numbers: vec![0.0; view.spec().len()], to: view.reborrow(), add: false })
    }

    fn slot(slot: &'a mut GradSlot<'_>) -> Result<Narrowing<'a>> {
        match slot {
            GradSlot::Unwanted => Ok(Narrowing::Unwanted),
            GradSlot::Set(view) => Narrowing::set(view),
            GradSlot::Add(view) => {
                Ok(Narrowing::Beside { numbers: vec![0.0; view.spec().len()], to: view.reborrow(), add: true })
            }
        }
    }

    fn numbers(&mut self) -> Option<&mut [f32]> {
        match self {
            Narrowing::InPlace(v) => Some(v),
            Narrowing::Beside { numbers, .. } => Some(numbers),
            Narrowing::Unwanted => None,
        }
    }

    fn finish(self) -> Result<()> {
        let Narrowing::Beside { numbers, mut to, add } = self else { return Ok(()) };
        narrow(&numbers, &mut to, add)
    }
}

/// Stores `numbers` into `to`, rounded once; with `add`, what is there is widened and added first.
fn narrow(numbers: &[f32], to: &mut ViewMut<'_>, add: bool) -> Result<()> {
    match to.spec().dtype() {
        Dtype::F32 => {
            for (to, &x) in to.f32()?.iter_mut().zip(numbers) {
                *to = if add { *to + x } else { x };
            }
        }
        Dtype::Bf16 => {
            for (to, &x) in to.bf16()?.iter_mut().zip(numbers) {
                *to = bf16::from_f32(if add { to.to_f32() + x } else { x });
            }
        }
        Dtype::F16 => {
            for (to, &x) in to.f16()?.iter_mut().zip(numbers) {
                *to = f16::from_f32(if add { to.to_f32() + x } else { x });
            }
        }
        Dtype::I32 => return Err(crate::error::Error::dtype("result: expected a floating-point type, found i32")),
    }
    Ok(())
}

/// Runs [`Reference::forward_cpu`] over `io`.
///
/// # Errors
/// [`Error::Argument`](crate::error::Error::Argument) for planned operands.
pub fn forward<O: Reference>(op: &O, io: Forward<'_>) -> Result<()> {
    let x = io.x.iter().map(Widened::of).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<RefInput<'_, f32>> = x.iter().zip(io.x).map(|(w, v)| w.input(v.spec())).collect();
    let mut y = io.y.iter_mut().map(Narrowing::set).collect::<Result<Vec<_>>>()?;
    let mut saved = io.saved.iter_mut().map(Narrowing::set).collect::<Result<Vec<_>>>()?;
    {
        let mut y: Vec<&mut [f32]> = y.iter_mut().filter_map(Narrowing::numbers).collect();
        let mut saved: Vec<&mut [f32]> = saved.iter_mut().filter_map(Narrowing::numbers).collect();
        op.forward_cpu(RefForward { x: &inputs, y: &mut y, saved: &mut saved });
    }
    y.into_iter().chain(saved).try_for_each(Narrowing::finish)
}

/// Runs [`ReferenceGrad::backward_cpu`] over `io`.
///
/// # Errors
/// As [`forward`].
pub fn backward<O: ReferenceGrad>(op: &O, io: Backward<'_>) -> Result<()> {
    let x = io.x.iter().map(|v| Widened::of_option(v.as_ref())).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<RefInput<'_, f32>> = x.iter().zip(io.specs).map(|(w, s)| w.input(s)).collect();
    let y = io.y.iter().map(|v| Widened::of_option(v.as_ref())).collect::<Result<Vec<_>>>()?;
    let y: Vec<&[f32]> = y.iter().map(Widened::floats).collect();
    let saved = io.saved.iter().map(Widened::of).collect::<Result<Vec<_>>>()?;
    let saved: Vec<&[f32]> = saved.iter().map(Widened::floats).collect();
    let out = if io.dy.iter().any(Option::is_none) { Some(op.infer(io.specs)?) } else { None };
    let mut dy = Vec::with_capacity(io.dy.len());
    for (i, d) in io.dy.iter().enumerate() {
        dy.push(match (d, &out) {
            (Some(view), _) => Widened::of(view)?,
            (None, out) => Widened::Owned(vec![0.0; out.as_ref().and_then(|o| o.y.get(i)).map_or(0, Spec::len)]),
        });
    }
    let dy: Vec<&[f32]> = dy.iter().map(Widened::floats).collect();
    let mut dx = io.dx.iter_mut().map(Narrowing::slot).collect::<Result<Vec<_>>>()?;
    {
        let mut dx: Vec<Option<&mut [f32]>> = dx.iter_mut().map(Narrowing::numbers).collect();
        op.backward_cpu(RefBackward { x: &inputs, y: &y, saved: &saved, dy: &dy, dx: &mut dx });
    }
    dx.into_iter().try_for_each(Narrowing::finish)
}
