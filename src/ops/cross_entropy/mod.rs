//! `cross_entropy`: how surprised predicted logits are by the labels.

mod launch;
mod pieces;

use std::ops::Range;

use crate::backend::Exec;
use crate::backend::cpu::vector;
use crate::backend::gpu::kernel::Unit;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
pub(in crate::ops) use crate::ops::cross_entropy::pieces::{Losses, Scale};
use crate::ops::launch::kept;
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::{Scalar, sum};
use crate::tensor::{Dtype, Spec, expect_dtype};

/// Negative log-probability of the labels under softmax, averaged over the rows that have one.
///
/// ```text
/// loss = 1/m · Σ_{r labelled} (ln Σ_v exp logits[r, v] − logits[r, label[r]])      m rows are labelled
/// ```
///
/// Softmax never exists in memory. A row whose label is `ignore_index` takes no part, whatever its logits are. Without a
/// labelled row the loss is NaN, as a mean of nothing is, and the gradient is 0.
///
/// # Shapes
/// `logits [.., V]`, `labels [..]` i32 → `loss []` in f32; saves the log-sum-exp `[rows]` in f32, 0 for ignored rows.
///
/// # Units
/// `loss` is in nats.
///
/// # Cost
/// As if every row were labelled: forward `rows·(3V + 2) + 1` vector, `rows·(V + 1)` special; backward `rows·(2V + 1) + 1`
/// vector, `rows·V` special.
///
/// # Errors
/// [`Error::Shape`] unless `labels` has the shape of `logits` without its last axis, and V is 1 or more; [`Error::Dtype`]
/// unless `logits` is f32, bf16 or f16 and `labels` i32; when it runs, [`Error::Argument`] for a label that is neither in
/// 0 .. V nor `ignore_index`. On a GPU the loss and the gradient of that row are NaN, and the error comes when the host next
/// reads from it or waits for it.
///
/// # Source
/// Definition; `ignore_index` and the mean as in PyTorch's `cross_entropy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossEntropy {
    /// The label of rows that take no part; usually -100.
    pub ignore_index: i32,
}

/// Numbers whose exponentials are summed at a time.
const BLOCK: usize = 512;
/// Work of one logit as [`threads`](crate::backend::cpu::threads) counts it.
const WORK: usize = 24;

impl CrossEntropy {
    /// The label as an index, `None` for a row that takes no part.
    fn label(&self, label: i32) -> Option<usize> {
        if label == self.ignore_index { None } else { usize::try_from(label).ok() }
    }

    fn labelled(&self, labels: &[i32]) -> usize {
        labels.iter().filter(|&&l| self.label(l).is_some()).count()
    }

    fn check(&self, labels: &[i32], v: usize) -> Result<()> {
        let inside = |l: i32| l == self.ignore_index || usize::try_from(l).is_ok_and(|l| l < v);
        match labels.iter().position(|&l| !inside(l)) {
            None => Ok(()),
            Some(row) => Err(wrong_label(v as i64, self.ignore_index.into(), row as i64, labels[row])),
        }
    }
}

fn wrong_label(v: i64, ignored: i64, row: i64, label: i32) -> Error {
    let last = v - 1;
    Error::argument(format!("cross_entropy: labels: expected 0 to {last} or {ignored}, found {label} in row {row}"))
}

impl Arity<2> for CrossEntropy {}

impl Operator for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [logits, labels] = expect_inputs("cross_entropy", x)?;
        expect_dtype("cross_entropy", "logits", logits, &Dtype::FLOATS)?;
        expect_dtype("cross_entropy", "labels", labels, &[Dtype::I32])?;
        let Some((v, outer)) = logits.shape().split_last().filter(|(v, _)| **v > 0) else {
            return Err(Error::shape(format!(
                "cross_entropy: logits: expected [.., V] with V of 1 or more, found {:?}",
                logits.shape()
            )));
        };
        if labels.shape() != outer {
            return Err(Error::shape(format!(
                "cross_entropy: labels: expected {outer:?} like logits without V={v}, found {:?}",
                labels.shape()
            )));
        }
        Ok(Outputs { y: vec![Spec::f32([])?], saved: vec![Spec::f32([labels.len()])?] })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let (rows, v) = x[0].rows_cols();
        let (rows, v) = (rows as u128, v as u128);
        let backward = Flops::vector(rows * (2 * v + 1) + 1) + Flops::special(rows * v);
        OpFlops {
            forward: Flops::vector(rows * (3 * v + 2) + 1) + Flops::special(rows * (v + 1)),
            backward: if wanted.has(0) { backward } else { Flops::ZERO },
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([logits, labels], [loss], [lse]) = (io.x, io.y, io.saved) else {
            return Err(wrong_operands("cross_entropy"));
        };
        let (rows, v) = logits.spec().rows_cols();
        let mut losses = Losses::new(self, exec, labels, v, &[rows])?;
        losses.add(logits, labels, lse)?;
        losses.total(labels, loss)
    }
}

impl Differentiable for CrossEntropy {
    fn keeps(&self, wanted: Mask) -> Keeps {
        Keeps { x: if wanted.has(0) { Mask::of([0, 1]) } else { Mask::NONE }, y: Mask::NONE }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        let ([lse], [dloss], [dx, _]) = (io.saved, io.dy, &mut *io.dx) else {
            return Err(wrong_operands("cross_entropy"));
        };
        let Some(dloss) = dloss else { return no_gradient(io.dx) };
        if !dx.is_wanted() {
            return Ok(());
        }
        let (logits, labels) = (kept("cross_entropy", io.x, 0)?, kept("cross_entropy", io.x, 1)?);
        let scale = Scale::new(self, exec, labels, dloss)?;
        self.derive(exec, logits, labels, lse, &scale, dx)
    }
}

impl Reference for CrossEntropy {
    /// Rows without a label are computed with label 0 and dropped, so that the cost does not depend on the labels.
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([logits, labels], [loss], [lse]) = (io.x, io.y, io.saved) else { return };
        let (n, v) = logits.spec.rows_cols();
        let mut total = S::zero();
        for r in 0..n {
            let x = &logits[r * v..][..v];
            let top = x[1..].iter().fold(x[0], |top, &x| top.max(x));
            let all = top + sum(x.iter().map(|&x| (x - top).exp())).ln();
            let label = self.label(labels.ints[r]);
            let one = all - x[label.unwrap_or(0)];
            total = total + if label.is_some() { one } else { S::zero() };
            lse[r] = if label.is_some() { all } else { S::zero() };
        }
        loss[0] = total / S::count(self.labelled(labels.ints));
    }
}

fn log_sum_exp(x: &[f32]) -> f32 {
    let top = vector::max(x);
    let mut room = [0.0_f32; BLOCK];
    let mut total = 0.0_f64;
    for x in x.chunks(BLOCK) {
        let room = &mut room[..x.len()];
        room.copy_from_slice(x);
        total += f64::from(vector::exp_shifted(room, top));
    }
    (f64::from(top) + total.ln()) as f32
}

impl ReferenceGrad for CrossEntropy {
    /// dlogits = (softmax − one at the label) · dloss / m.
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([logits, labels], [lse], [dloss], [Some(dx), ..]) = (io.x, io.saved, io.dy, io.dx) else { return };
        let (n, v) = logits.spec.rows_cols();
        let scale = dloss[0] / S::count(self.labelled(labels.ints));
        for r in 0..n {
            let label = self.label(labels.ints[r]);
            for i in 0..v {
                let p = (logits[r * v + i] - lse[r]).exp();
                let p = if i == label.unwrap_or(0) { p - S::one() } else { p };
                let d = p * scale;
                dx[r * v + i] = if label.is_some() { d } else { S::zero() };
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "cross_entropy",
    about: "how surprised predicted logits are by the labels",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(launch::SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

const OP: CrossEntropy = CrossEntropy { ignore_index: -100 };

fn case(n: usize, v: usize, labels: Fill) -> Case {
    let logits = Input::new("logits", [n, v]).fill(Fill::Uniform(-8.0, 8.0));
    Case::new(OP, [logits, Input::ints("labels", [n], labels)])
}

/// Only forward: a loss that is NaN has no differences.
fn unlabelled(n: usize) -> Case {
    Case::new(OP, [Input::new("logits", [n, 6]).constant(), Input::ints("labels", [n], Fill::Ints(vec![-100]))])
}

fn below(range: Range<i32>) -> Fill {
    Fill::IntsIn(range.start, range.end)
}

fn cases() -> Vec<Case> {
    let batched = [Input::new("logits", [2, 3, 5]), Input::ints("labels", [2, 3], Fill::Ints(vec![0, -100, 4]))];
    let one = [Input::new("logits", [9]), Input::ints("labels", [], Fill::Ints(vec![7]))];
    let wide = Input::new("logits", [4, 17]).fill(Fill::Values(vec![-80.0, 80.0, 0.0, 3.5, -1e4, 79.0]));
    let ignore_two = CrossEntropy { ignore_index: 2 };
    vec![
        case(1, 1, below(0..1)),
        case(3, 7, below(0..7)),
        case(5, 32, below(0..32)),
        case(7, 33, Fill::Ints(vec![32, -100, 0])),
        case(2, 1025, below(0..1025)),
        case(2, 9001, below(0..9001)),
        case(257, 5, Fill::Ints(vec![-100, 4, 3, -100, -100])),
        unlabelled(4),
        unlabelled(0),
        Case::new(OP, batched),
        Case::new(OP, one),
        Case::new(OP, [wide, Input::ints("labels", [4], Fill::Ints(vec![1, 0, 4]))]),
        Case::new(ignore_two, [Input::new("logits", [5, 3]), Input::ints("labels", [5], Fill::Ints(vec![0, 1, 2]))]),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let specs = |logits: &[usize], labels: &[usize]| {
        [Spec::f32(logits), Spec::new(Dtype::I32, labels)].into_iter().flatten().collect::<Vec<_>>()
    };
    vec![
        BadCase::of_specs(OP, specs(&[4, 8], &[5]), "labels: expected [4] like logits without V=8, found [5]"),
        BadCase::of_specs(OP, specs(&[4, 8], &[4, 8]), "labels: expected [4] like logits without V=8, found [4, 8]"),
        BadCase::of_specs(OP, specs(&[4, 0], &[4]), "logits: expected [.., V] with V of 1 or more, found [4, 0]"),
        BadCase::of_specs(OP, specs(&[], &[]), "logits: expected [.., V] with V of 1 or more, found []"),
        BadCase::new(OP, &[&[4, 8], &[4]], "labels: expected i32, found [4] f32"),
        BadCase::new(OP, &[&[4, 8]], "expected 2 inputs, found 1"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let case = |rows, v| case(rows, v, below(0..v as i32));
    vec![case(512, 32_000), case(128, 151_936), case(8192, 32_000), case(1024, 151_936)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::operator::GradSlot;
    use crate::tensor::Tensor;

    crate::room_tests!(ROOM);

    fn loss(logits: &[f32], labels: &[i32]) -> Result<f32> {
        loss_on(&Exec::cpu(), logits, labels)?.item()
    }

    fn loss_on(exec: &Exec, logits: &[f32], labels: &[i32]) -> Result<Tensor> {
        let n = labels.len();
        let x = [Tensor::from_f32([n, logits.len() / n], logits)?, Tensor::from_i32([n], labels)?];
        let x = [exec.import(&x[0])?, exec.import(&x[1])?];
        let (mut y, mut lse) = (exec.alloc(Spec::f32([])?)?, exec.alloc(Spec::f32([n])?)?);
        let io = Forward {
            x: &[x[0].view(), x[1].view()],
            y: &mut [y.view_mut().unwrap()],
            saved: &mut [lse.view_mut().unwrap()],
        };
        OP.forward(exec, io)?;
        Ok(y)
    }

    #[test]
    fn a_label_outside_the_vocabulary_is_an_error_that_names_its_row() {
        let e = loss(&[0.0; 6], &[1, 3]).unwrap_err().to_string();
        assert_eq!(e, "cross_entropy: labels: expected 0 to 2 or -100, found 3 in row 1");
        assert!(loss(&[0.0; 6], &[-1, 0]).is_err());
        assert!(loss(&[0.0; 6], &[-100, 0]).is_ok());
    }

    #[test]
    fn nothing_labelled_is_nan_and_never_zero() {
        assert!(loss(&[0.0; 6], &[-100, -100]).unwrap().is_nan());
    }

    #[test]
    fn nothing_labelled_has_the_gradient_zero() {
        let logits = Tensor::from_f32([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let labels = Tensor::from_i32([2], &[-100, -100]).unwrap();
        let (lse, one) = (Tensor::from_f32([2], &[0.0; 2]).unwrap(), Tensor::from_f32([], &[1.0]).unwrap());
        for dy in [Some(one.view()), None] {
            let mut dx = Tensor::from_f32([2, 3], &[f32::NAN; 6]).unwrap();
            let io = Backward {
                specs: &[logits.spec(), labels.spec()],
                x: &[Some(logits.view()), Some(labels.view())],
                y: &[None],
                saved: &[lse.view()],
                dy: &[dy],
                dx: &mut [GradSlot::Set(dx.view_mut().unwrap()), GradSlot::Unwanted],
            };
            OP.backward(&Exec::cpu(), io).unwrap();
            assert_eq!(dx.to_f32().unwrap(), [0.0; 6]);
        }
    }

    #[test]
    fn an_ignored_row_takes_no_part_whatever_it_holds() {
        let got = loss(&[f32::NAN, f32::INFINITY, 0.0, 0.0], &[-100, 1]).unwrap();
        assert!((got - std::f32::consts::LN_2).abs() < 1e-6, "{got}");
        assert!(loss(&[f32::NAN, 0.0], &[1]).unwrap().is_nan());
    }

    #[test]
    fn logits_of_any_size_do_not_overflow() {
        assert_eq!(loss(&[3e38, -3e38], &[0]).unwrap(), 0.0);
        assert_eq!(loss(&[f32::NEG_INFINITY, 5.0], &[1]).unwrap(), 0.0);
        assert_eq!(loss(&[f32::NEG_INFINITY, 5.0], &[0]).unwrap(), f32::INFINITY);
    }

    mod with_compilers {
        use super::*;
        use crate::backend::Device;
        use crate::backend::gpu::driver::Arch;

        #[test]
        #[ignore = "needs NVRTC and clang-19: see ci/install"]
        fn a_wrong_label_is_told_once_where_the_host_next_reads_or_waits() {
            let [wrong, right] = [[0, 1, 0, -100, 3], [0, 1, 0, -100, 2]];
            let told = "cross_entropy: labels: expected 0 to 2 or -100, found 3 in row 4";
            for arch in [Arch::SM_80, Arch::GFX90A] {
                let exec = Exec::open(Device::Emulator(arch)).unwrap();
                let y = loss_on(&exec, &[0.0; 15], &wrong).unwrap();
                assert_eq!(y.item().unwrap_err().to_string(), told);
                assert!(y.item().unwrap().is_nan());
                // The first fault is the one that is told, and what came after it was computed.
                loss_on(&exec, &[0.0; 15], &wrong).unwrap();
                loss_on(&exec, &[0.0; 6], &[1, -7]).unwrap();
                let last = loss_on(&exec, &[0.0; 15], &right).unwrap();
                assert_eq!(exec.synchronize().unwrap_err().to_string(), told);
                assert!((last.item().unwrap() - 3_f32.ln()).abs() < 1e-6);
                loss_on(&exec, &[0.0; 6], &[6]).unwrap();
                let other = exec.synchronize().unwrap_err().to_string();
                assert_eq!(other, "cross_entropy: labels: expected 0 to 5 or -100, found 6 in row 0");
                exec.synchronize().unwrap();
            }
        }

        #[test]
        #[ignore = "needs NVRTC and clang-19: see ci/install"]
        fn ignored_rows_and_infinities_count_on_a_device_as_on_the_cpu() {
            let nan = f32::NAN;
            let cases: [(&[f32], &[i32]); 6] = [
                (&[nan, f32::INFINITY, 0.0, 0.0], &[-100, 1]),
                (&[nan, 0.0], &[1]),
                (&[3e38, -3e38], &[0]),
                (&[f32::NEG_INFINITY, 5.0], &[0]),
                (&[f32::NEG_INFINITY; 2], &[0]),
                (&[f32::INFINITY, 1.0], &[0]),
            ];
            for arch in [Arch::SM_90A, Arch::GFX942] {
                let exec = Exec::open(Device::Emulator(arch)).unwrap();
                for (logits, labels) in cases {
                    let (want, got) = (loss(logits, labels).unwrap(), loss_on(&exec, logits, labels).unwrap());
                    let got = got.item().unwrap();
                    let same = got == want || (got - want).abs() < 1e-6 || (got.is_nan() && want.is_nan());
                    assert!(same, "{logits:?}, {labels:?}: {got}, on the CPU {want}");
                }
            }
        }
    }
}
