//! Runs an operator's f32 text over operands in host memory, whatever their storage type: 16-bit operands are widened
//! before and rounded once after, and gradients are set or added as their slots say.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::backend::Exec;
use crate::backend::cpu::gemm::Source;
use crate::backend::cpu::vector;
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
        Dtype::Bf16 if !add => vector::narrow_bf16(numbers, to.bf16()?),
        Dtype::F16 if !add => vector::narrow_f16(numbers, to.f16()?),
        Dtype::Bf16 => {
            for (to, &x) in to.bf16()?.iter_mut().zip(numbers) {
                *to = bf16::from_f32(to.to_f32() + x);
            }
        }
        Dtype::F16 => {
            for (to, &x) in to.f16()?.iter_mut().zip(numbers) {
                *to = f16::from_f32(to.to_f32() + x);
            }
        }
        Dtype::I32 => return Err(crate::error::Error::dtype("result: expected a floating-point type, found i32")),
    }
    Ok(())
}

/// The numbers of `view` as an operand of a matrix product, in whatever floating-point type they are.
pub(crate) fn source<'a>(view: &View<'a>) -> Result<Source<'a>> {
    Ok(match view.spec().dtype() {
        Dtype::F32 => view.f32()?.into(),
        Dtype::Bf16 => view.bf16()?.into(),
        Dtype::F16 => view.f16()?.into(),
        Dtype::I32 => return Err(crate::error::Error::dtype("operand: expected a floating-point type, found i32")),
    })
}

/// The numbers of `view` in f32: borrowed or widened.
pub(crate) fn floats<'a>(view: &View<'a>) -> Result<Cow<'a, [f32]>> {
    Ok(if view.spec().dtype() == Dtype::F32 { Cow::Borrowed(view.f32()?) } else { Cow::Owned(view.to_f32()?) })
}

/// Lets `f` write all of `to` in f32 (its content before is unspecified) and rounds once.
pub(crate) fn write(exec: &Exec, to: &mut ViewMut<'_>, f: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    if to.spec().dtype() == Dtype::F32 {
        return f(to.f32()?);
    }
    scratch(exec, to.spec().len(), |numbers| {
        f(numbers)?;
        narrow(numbers, to, false)
    })
}

/// Lets `f` set or add a gradient in f32: `f(numbers, add)` adds to `numbers` if `add`, else writes all of them. An f32
/// gradient is added in place. Nothing happens where the gradient is not wanted.
pub(crate) fn accumulate(
    exec: &Exec,
    slot: &mut GradSlot<'_>,
    f: impl FnOnce(&mut [f32], bool) -> Result<()>,
) -> Result<()> {
    let (to, add) = match slot {
        GradSlot::Unwanted => return Ok(()),
        GradSlot::Set(to) => (to, false),
        GradSlot::Add(to) => (to, true),
    };
    if to.spec().dtype() == Dtype::F32 {
        return f(to.f32()?, add);
    }
    scratch(exec, to.spec().len(), |numbers| {
        f(numbers, false)?;
        narrow(numbers, to, add)
    })
}

/// Lends `f` memory of the device for `len` numbers, whose content is unspecified.
pub(crate) fn scratch<R>(exec: &Exec, len: usize, f: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    let mut lent = exec.alloc(Spec::f32([len])?)?;
    match lent.view_mut() {
        Some(mut view) => f(view.f32()?),
        None => unreachable!("a tensor that was just allocated is not shared"),
    }
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
