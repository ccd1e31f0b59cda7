//! The half of the contract that is about the mathematics: shapes, counted cost, and the gradient against differences.

use crate::error::Error;
use crate::ops::contract::{Case, Draw, Room};
use crate::ops::operator::{Mask, op_cost};
use crate::rng::Stream;
use crate::tensor::Dtype;

/// Collects what failed, so that one run shows all of it.
#[derive(Default)]
pub(super) struct Failures(Vec<String>);

impl Failures {
    pub(super) fn note(&mut self, case: &Case, what: impl std::fmt::Display) {
        self.0.push(format!("{}: {what}", case.label));
    }

    pub(super) fn check(&mut self, case: &Case, result: Result<(), String>) {
        if let Err(e) = result {
            self.note(case, e);
        }
    }

    pub(super) fn finish(self) -> Result<(), String> {
        let n = self.0.len();
        if n == 0 {
            return Ok(());
        }
        Err(self
            .0
            .into_iter()
            .take(20)
            .chain((n > 20).then(|| format!("and {} more", n - 20)))
            .collect::<Vec<_>>()
            .join("\n"))
    }
}

pub(super) fn text(e: Error) -> String {
    e.to_string()
}

/// `infer` accepts every case in every storage type, and refuses each bad case with the documented words.
///
/// # Errors
/// What failed, a line each.
pub fn shapes(room: &Room) -> Result<(), String> {
    let mut failures = Failures::default();
    for case in (room.cases)() {
        for &dtype in room.dtypes {
            if let Err(e) = Draw::new(&case, dtype, 0) {
                failures.note(&case, format!("{dtype}: {e}"));
            }
        }
        if case.operator().name() != room.name {
            failures.note(&case, format!("is named {} in the room {}", case.operator().name(), room.name));
        }
    }
    for bad in (room.bad_cases)() {
        let specs: Vec<_> = bad.x.iter().collect();
        match bad.op.infer(&specs) {
            Ok(out) => failures
                .0
                .push(format!("{:?} accepts {specs:?} and makes {out:?}; want an error with `{}`", bad.op, bad.error)),
            Err(e) if !e.to_string().contains(bad.error) => {
                failures.0.push(format!("{:?} refuses {specs:?} with `{e}`; want `{}`", bad.op, bad.error));
            }
            Err(e) if !e.to_string().starts_with(room.name) => {
                failures.0.push(format!("`{e}` does not begin with the operator's name"));
            }
            Err(_) => {}
        }
    }
    failures.finish()
}

/// The cost formulas equal what the reference counts, forward and backward, for all gradients and for each alone.
///
/// # Errors
/// What failed, a line each.
pub fn cost_is_counted(room: &Room) -> Result<(), String> {
    let mut failures = Failures::default();
    for case in (room.cases)() {
        let draw = Draw::new(&case, Dtype::F32, 0).map_err(text)?;
        let specs: Vec<_> = draw.specs.iter().collect();
        let all = case.wanted();
        let each = (0..case.x.len()).filter(|&i| all.has(i)).map(|i| Mask::NONE.with(i));
        for wanted in std::iter::once(all).chain(each) {
            let run = draw.exact(&*case.subject, wanted);
            let flops = case.operator().flops(&specs, wanted);
            if flops.forward != run.forward {
                failures.note(
                    &case,
                    format!("forward: the formula says {}, the text counts {}", flops.forward, run.forward),
                );
            }
            let counted = flops.backward + flops.recomputed;
            if counted != run.backward {
                failures.note(
                    &case,
                    format!("backward of {wanted:?}: the formula says {counted}, the text counts {}", run.backward),
                );
            }
        }
        if let Some(op) = case.subject.differentiable()
            && let Err(e) = op_cost(op, &specs, all)
        {
            failures.note(&case, e);
        }
    }
    failures.finish()
}

/// Counted operations that the differences of one case may take.
const DIFFERENCE_BUDGET: u128 = 20_000_000;
/// Step of the differences.
const STEP: f64 = 1e-4;

/// The reference's gradient equals central differences of the reference in f64: along one random direction of all inputs
/// together, and for single elements as far as the budget allows.
///
/// The tolerance is what the differences themselves may err by: the difference between steps `h` and `2h` bounds the
/// truncation, the size of the results over `h` the rounding.
///
/// # Errors
/// What failed, a line each.
pub fn gradient_rule(room: &Room) -> Result<(), String> {
    let mut failures = Failures::default();
    for case in (room.cases)() {
        let wanted = case.wanted();
        if wanted.is_empty() {
            continue;
        }
        let draw = Draw::new(&case, Dtype::F32, 1).map_err(text)?;
        let run = draw.exact(&*case.subject, wanted);
        let evaluation =
            (run.forward.total() + run.forward.special + draw.x.iter().map(Vec::len).sum::<usize>() as u128).max(1);
        let singles = (DIFFERENCE_BUDGET / (4 * evaluation)).min(24) as u64;
        let pick = Stream::of(0x9ad, &[draw.x.len() as u64]);
        let mut directions = vec![random_direction(&draw, wanted)];
        let inputs: Vec<usize> = (0..draw.x.len()).filter(|&i| wanted.has(i) && !draw.x[i].is_empty()).collect();
        for k in 0..if inputs.is_empty() { 0 } else { singles } {
            let i = inputs[(k % inputs.len() as u64) as usize];
            let mut direction: Vec<Vec<f64>> = draw.x.iter().map(|v| vec![0.0; v.len()]).collect();
            direction[i][pick.below(k, draw.x[i].len() as u64) as usize] = 1.0;
            directions.push(direction);
        }
        for direction in directions {
            failures.check(&case, along(&case, &draw, &run.dx, &direction));
        }
    }
    failures.finish()
}

fn random_direction(draw: &Draw, wanted: Mask) -> Vec<Vec<f64>> {
    let part = |(i, v): (usize, &Vec<f64>)| {
        let stream = Stream::of(0xd14, &[i as u64]);
        (0..v.len() as u64).map(|k| if wanted.has(i) { f64::from(stream.signed(k)) } else { 0.0 }).collect()
    };
    draw.x.iter().enumerate().map(part).collect()
}

/// Compares dx · direction with the differences of dy · y along it.
fn along(case: &Case, draw: &Draw, dx: &[Vec<f64>], direction: &[Vec<f64>]) -> Result<(), String> {
    let objective = |h: f64| {
        let x: Vec<Vec<f64>> =
            draw.x.iter().zip(direction).map(|(x, d)| x.iter().zip(d).map(|(x, d)| x + h * d).collect()).collect();
        let y = draw.exact_results(&*case.subject, &x);
        y.iter().zip(&draw.dy).flat_map(|(y, dy)| y.iter().zip(dy)).map(|(y, dy)| y * dy).collect::<Vec<f64>>()
    };
    let difference = |h: f64| {
        let (up, down) = (objective(h), objective(-h));
        let size: f64 = up.iter().map(|t| t.abs()).sum();
        let sum: f64 = up.iter().zip(&down).map(|(u, d)| u - d).sum();
        (sum / (2.0 * h), size)
    };
    let ((near, size), (far, _)) = (difference(STEP), difference(2.0 * STEP));
    let want = (4.0 * near - far) / 3.0;
    let terms = dx.iter().zip(direction).flat_map(|(g, d)| g.iter().zip(d)).map(|(g, d)| g * d);
    let (got, weight) = terms.fold((0.0, 0.0), |(s, w): (f64, f64), t| (s + t, w + t.abs()));
    let tol = (near - far).abs() + 64.0 * f64::EPSILON * (size / STEP + weight);
    if (got - want).abs() <= tol {
        return Ok(());
    }
    let single = direction.iter().enumerate().find_map(|(i, d)| {
        let mut ones = d.iter().enumerate().filter(|(_, v)| **v != 0.0);
        match (ones.next(), ones.next()) {
            (Some((k, _)), None) => Some(format!("{}[{k}]", case.x[i].name)),
            _ => None,
        }
    });
    let place = single.unwrap_or_else(|| "a random direction".into());
    Err(format!("gradient along {place}: the text says {got:e}, differences say {want:e}, tolerance {tol:.1e}"))
}
