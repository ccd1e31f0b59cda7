//! The half of the contract that is about a device: its path against the reference, its repeatability, its slots.

use crate::backend::Exec;
use crate::error::Result;
use crate::ops::compare::{Margin, compare};
use crate::ops::contract::oracle::Run;
use crate::ops::contract::prove::{Failures, text};
use crate::ops::contract::{Case, Draw, Room};
use crate::ops::operator::{Backward, Forward, GradSlot, Mask, forward_cost};
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

/// The device's path against the f64 reference, forward and backward, in every storage type of the room. Results start
/// as NaN, so that what is not written is found.
///
/// # Errors
/// What failed, a line each.
pub fn device(room: &Room, exec: &Exec, reach: Reach) -> Result<(), String> {
    let mut failures = Failures::default();
    for case in cases_on(room, exec, reach) {
        for &dtype in room.dtypes {
            for result in compare_case(&case, dtype, exec).map_err(|e| format!("{}: {dtype}: {e}", case.label))? {
                failures.check(&case, result);
            }
        }
    }
    failures.finish()
}

/// Everything that is compared: results, what is saved, gradients.
fn tensors(case: &Case, draw: &Draw, run: &Run, wanted: Mask) -> Vec<(String, Spec, Vec<f64>)> {
    let mut all = Vec::new();
    let several = run.y.len() > 1;
    for (i, (v, s)) in run.y.iter().zip(&draw.out.y).enumerate() {
        all.push((if several { format!("y{i}") } else { "y".into() }, s.clone(), v.clone()));
    }
    for (i, (v, s)) in run.saved.iter().zip(&draw.out.saved).enumerate() {
        all.push((format!("saved{i}"), s.clone(), v.clone()));
    }
    for (i, v) in run.dx.iter().enumerate().filter(|(i, _)| wanted.has(*i)) {
        all.push((format!("d{}", case.x[i].name), draw.specs[i].clone(), v.clone()));
    }
    all
}

fn compare_case(case: &Case, dtype: Dtype, exec: &Exec) -> Result<Vec<Result<(), String>>> {
    let wanted = case.wanted();
    let draw = Draw::new(case, dtype, 0)?;
    let want = tensors(case, &draw, &draw.exact(&*case.subject, wanted), wanted);
    let base = tensors(case, &draw, &draw.base(&*case.subject, wanted), wanted);
    exec.count_stated(true);
    let before = matrix_flops(exec);
    let got = tensors(case, &draw, &execute(case, &draw, exec, wanted, Slot::Set)?, wanted);
    let executed = same_flops(case, &draw, exec, before);
    let compared = got.iter().zip(&base).zip(&want).map(|((g, b), w)| {
        let margin = Margin::of(&b.2, &w.2);
        compare(&format!("{dtype}: {}", w.0), w.1.shape(), w.1.dtype(), &g.2, &w.2, margin)
    });
    Ok(compared.chain([executed.map_err(|e| format!("{dtype}: {e}"))]).collect())
}

/// What an emulator counted so far on matrix units.
fn matrix_flops(exec: &Exec) -> Option<u128> {
    exec.executed().map(|counters| counters.matrix_flops.values().map(|&n| u128::from(n)).sum())
}

/// The FLOPs that launches stated for the matrix units are those that an emulator counted. Of data that are not finite kernels
/// take tiles in another way: nothing is required of them.
fn same_flops(case: &Case, draw: &Draw, exec: &Exec, before: Option<u128>) -> Result<(), String> {
    let (Some(stated), Some(before), Some(after)) = (exec.count_stated(false), before, matrix_flops(exec)) else {
        return Ok(());
    };
    let counted = after - before;
    let is_finite = draw.x.iter().chain(&draw.dy).flatten().all(|x| x.is_finite());
    if stated == counted || !is_finite || case.takes_tiles_again && stated < counted {
        return Ok(());
    }
    Err(format!("executed: the launches state {stated} FLOPs on matrix units, the emulator counted {counted}"))
}

/// Which cases of a room are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All; on an emulator those that it runs in well under a second.
    Whole,
    /// Those of at most `SMALL` bytes of operands and operations, or the cheapest one if there is none: enough to reach
    /// every kernel in every type where a run is slow.
    Small,
}

/// Most bytes of operands, and most operations, of a case that an emulator runs.
const EMULATED: (u128, u128) = (256 << 10, 4 << 20);
/// The same of a small case.
const SMALL: (u128, u128) = (16 << 10, 128 << 10);

/// The cases of a room that are run on this device.
pub fn cases_on(room: &Room, exec: &Exec, reach: Reach) -> Vec<Case> {
    let (most_bytes, most_flops) = match reach {
        Reach::Small => SMALL,
        Reach::Whole if exec.is_emulated() => EMULATED,
        Reach::Whole => return (room.cases)(),
    };
    let cost = |case: &Case| {
        let specs = case.specs(Dtype::F32);
        forward_cost(case.operator(), &specs.iter().collect::<Vec<_>>()).ok()
    };
    let fits = |case: &Case| cost(case).is_some_and(|c| c.bytes <= most_bytes && c.flops.total() <= most_flops);
    let (mut few, rest): (Vec<Case>, Vec<Case>) = (room.cases)().into_iter().partition(fits);
    if few.is_empty() {
        few.extend(rest.into_iter().min_by_key(|c| cost(c).map_or(u128::MAX, |c| c.bytes + c.flops.total())));
    }
    few
}

/// Two runs give the same bits: on the CPU also runs on one and on three threads, on an emulator runs in every order of
/// warps with asynchronous work early and late.
///
/// # Errors
/// What failed, a line each.
pub fn repeatable(room: &Room, exec: &Exec, reach: Reach) -> Result<(), String> {
    let mut failures = Failures::default();
    for case in cases_on(room, exec, reach) {
        for &dtype in room.dtypes {
            let draw = Draw::new(&case, dtype, 0).map_err(text)?;
            let run = || execute(&case, &draw, exec, case.wanted(), Slot::Set).map_err(text);
            let first = run()?;
            for variation in exec.variations() {
                let again = exec.vary(variation, run)?;
                for (what, a, b) in
                    [("y", &first.y, &again.y), ("saved", &first.saved, &again.saved), ("dx", &first.dx, &again.dx)]
                {
                    let differ =
                        a.iter().zip(b).position(|(a, b)| a.iter().zip(b).any(|(a, b)| a.to_bits() != b.to_bits()));
                    if let Some(i) = differ {
                        failures.note(&case, format!("{dtype}: {what}{i} differs in bits: {variation}"));
                    }
                }
            }
        }
    }
    failures.finish()
}

/// A gradient that is added equals one that is set, plus what was there, rounded once.
///
/// # Errors
/// What failed, a line each.
pub fn accumulate(room: &Room, exec: &Exec, reach: Reach) -> Result<(), String> {
    let mut failures = Failures::default();
    for case in cases_on(room, exec, reach) {
        let wanted = case.wanted();
        if wanted.is_empty() {
            continue;
        }
        for &dtype in room.dtypes {
            let draw = Draw::new(&case, dtype, 0).map_err(text)?;
            let set = execute(&case, &draw, exec, wanted, Slot::Set).map_err(text)?;
            let add = execute(&case, &draw, exec, wanted, Slot::Add).map_err(text)?;
            for (i, (s, a)) in set.dx.iter().zip(&add.dx).enumerate().filter(|(i, _)| wanted.has(*i)) {
                let spec = &draw.specs[i];
                let want: Vec<f64> = s.iter().map(|x| x + OFFSET).collect();
                // The sum is rounded once, and what is set was rounded too: a last place of each.
                let top = s.iter().fold(OFFSET, |t, x| t.max(x.abs()));
                let margin =
                    Margin { max: spec.dtype().ulp() * top, norm: spec.dtype().ulp() * top * (s.len() as f64).sqrt() };
                let what = format!("{dtype}: d{} added", case.x[i].name);
                failures.check(&case, compare(&what, spec.shape(), spec.dtype(), a, &want, margin));
            }
        }
    }
    failures.finish()
}

/// What an added gradient finds.
const OFFSET: f64 = 1.0;

#[derive(Clone, Copy, PartialEq)]
enum Slot {
    Set,
    Add,
}

/// A tensor on the device whose every number is NaN (or `value`).
fn filled(exec: &Exec, spec: &Spec, value: f32) -> Result<Tensor> {
    let full = Tensor::from_f32_as(spec.clone(), &vec![value; spec.len()])?;
    exec.import(&full)
}

fn numbers(x: &[Tensor]) -> Result<Vec<Vec<f64>>> {
    x.iter().map(|t| Ok(t.to_f32()?.into_iter().map(f64::from).collect())).collect()
}

fn writable(x: &mut [Tensor]) -> Vec<ViewMut<'_>> {
    x.iter_mut().filter_map(Tensor::view_mut).collect()
}

/// Forward and backward on the device.
fn execute(case: &Case, draw: &Draw, exec: &Exec, wanted: Mask, slot: Slot) -> Result<Run> {
    let load = |(i, spec): (usize, &Spec)| {
        if spec.dtype() == Dtype::I32 {
            exec.import(&Tensor::from_bytes(spec.clone(), bytemuck::cast_slice(&draw.ints[i]))?)
        } else {
            let numbers: Vec<f32> = draw.x[i].iter().map(|&x| x as f32).collect();
            exec.import(&Tensor::from_f32_as(spec.clone(), &numbers)?)
        }
    };
    let x: Vec<Tensor> = draw.specs.iter().enumerate().map(load).collect::<Result<_>>()?;
    let nan = |specs: &[Spec]| specs.iter().map(|s| filled(exec, s, f32::NAN)).collect::<Result<Vec<_>>>();
    let (mut y, mut saved) = (nan(&draw.out.y)?, nan(&draw.out.saved)?);
    let views: Vec<View<'_>> = x.iter().map(Tensor::view).collect();
    case.operator().forward(exec, Forward { x: &views, y: &mut writable(&mut y), saved: &mut writable(&mut saved) })?;
    let mut run = Run { y: numbers(&y)?, saved: numbers(&saved)?, ..Run::default() };
    let Some(op) = case.subject.differentiable().filter(|_| !wanted.is_empty()) else { return Ok(run) };
    let keeps = op.keeps(wanted);
    let start = if slot == Slot::Set { f32::NAN } else { OFFSET as f32 };
    let mut dx: Vec<Tensor> =
        draw.specs.iter().filter(|s| s.dtype().is_float()).map(|s| filled(exec, s, start)).collect::<Result<_>>()?;
    let dy: Vec<Tensor> = draw
        .dy
        .iter()
        .zip(&draw.out.y)
        .map(|(v, s)| exec.import(&Tensor::from_f32_as(s.clone(), &v.iter().map(|&x| x as f32).collect::<Vec<_>>())?))
        .collect::<Result<_>>()?;
    {
        let mut free = dx.iter_mut();
        let mut slots = Vec::new();
        for (i, s) in draw.specs.iter().enumerate() {
            let view = if s.dtype().is_float() { free.next().and_then(Tensor::view_mut) } else { None };
            slots.push(match view {
                Some(v) if wanted.has(i) && slot == Slot::Set => GradSlot::Set(v),
                Some(v) if wanted.has(i) => GradSlot::Add(v),
                _ => GradSlot::Unwanted,
            });
        }
        op.backward(
            exec,
            Backward {
                specs: &draw.specs.iter().collect::<Vec<_>>(),
                x: &views.iter().enumerate().map(|(i, v)| keeps.x.has(i).then(|| v.clone())).collect::<Vec<_>>(),
                y: &y.iter().enumerate().map(|(i, t)| keeps.y.has(i).then(|| t.view())).collect::<Vec<_>>(),
                saved: &saved.iter().map(Tensor::view).collect::<Vec<_>>(),
                dy: &dy.iter().map(|t| Some(t.view())).collect::<Vec<_>>(),
                dx: &mut slots,
            },
        )?;
    }
    let mut got = numbers(&dx)?.into_iter();
    run.dx = draw
        .specs
        .iter()
        .enumerate()
        .map(|(i, s)| {
            let v = if s.dtype().is_float() { got.next().unwrap_or_default() } else { Vec::new() };
            if wanted.has(i) { v } else { Vec::new() }
        })
        .collect();
    Ok(run)
}
