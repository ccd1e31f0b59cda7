//! `adamw`: one step of Adam with decoupled weight decay over a flat arena.

mod clock;

pub use clock::Clock;

use std::ops::Range;
use std::sync::Arc;

use crate::backend::Exec;
use crate::backend::cpu::threads::{Rows, RowsMut, rows};
use crate::backend::cpu::vector::{self, Adamw};
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit};
use crate::backend::gpu::{FLAT_THREADS, Gpu};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::contract::{BadCase, Case, Fill, Input, Room};
use crate::ops::launch;
use crate::ops::operator::{Arity, Forward, Mask, OpFlops, Operator, Outputs, RefForward, Reference, expect_inputs};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut, expect_dtype};

/// One step of AdamW: parameters and both moments, from gradients.
///
/// ```text
/// g = gradient_factor · grad        p = p · (1 − lr · weight_decay)
/// m = m + (1 − β₁)(g − m)           v = β₂ · v + (1 − β₂) · g²
/// p = p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps)
/// ```
///
/// In this order, with the factors computed in f64 and the rest in f32. Training updates in place with
/// [`update_by`](AdamW::update_by), which takes learning rate, step and factor from where the device has them; as an operator it
/// leaves its inputs alone and has no gradient.
///
/// # Shapes
/// `param`, `grad`, `m`, `v`, all of one shape → new `param`, `m`, `v`. All are f32, only `grad` may be narrower.
///
/// # Units
/// `lr` has the unit of `param`, `eps` that of `grad`; `weight_decay` is in 1/`lr`.
///
/// # Cost
/// With n numbers, k of them decayed: `13n + k` vector, `n` special.
///
/// # Errors
/// [`Error::Shape`] unless all shapes are equal; [`Error::Dtype`] unless f32 (`grad`: f32, bf16 or f16);
/// [`Error::Argument`] unless `lr` and `weight_decay` are finite and not negative, both betas in [0, 1), `eps` positive and
/// finite, `gradient_factor` finite, `step` 1 or more, and `undecayed` ascending, apart and inside.
///
/// # Source
/// Loshchilov, Hutter 2019, algorithm 2; order of operations as PyTorch's `torch.optim.AdamW`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// How much of the moments is kept, β₁ and β₂.
    pub betas: [f64; 2],
    /// Added to the root of the second moment. Positive, so that padding of zeros stays zero.
    pub eps: f64,
    /// Decay of the parameters in each step, times `lr`.
    pub weight_decay: f64,
    /// Which step this is, from 1: t in the formula.
    pub step: u64,
    /// Multiplies the gradients: one over the loss scale, times the factor of clipping.
    pub gradient_factor: f64,
    /// Elements that do not decay (biases, norms), ascending.
    pub undecayed: Arc<[Range<usize>]>,
}

/// The factors of one step, for the plain text; [`Adamw`] has them for the CPU.
#[derive(Clone, Copy)]
struct Rates<S> {
    factor: S,
    decay: S,
    /// 1 − β₁.
    follow: S,
    /// β₂ and 1 − β₂.
    keep: S,
    take: S,
    /// √(1 − β₂ᵗ).
    root: S,
    eps: S,
    /// lr / (1 − β₁ᵗ).
    size: S,
}

const SOURCE: Source = crate::source!("adamw/adamw.cu");
static FWD: Kernel = Kernel::new(SOURCE, "adamw_fwd");
/// Numbers of a block: two packs of four a thread.
const COVERED: usize = FLAT_THREADS as usize * 8;

/// Gradients of a narrow type that are widened at a time.
const BLOCK: usize = 1024;
/// Words of 32 bits that a range has on a device.
const EDGES: usize = 4;
/// Work of one element as [`threads`](crate::backend::cpu::threads) counts it: seven passes over memory.
const WORK: usize = 28;

impl AdamW {
    fn rates<S: Scalar>(&self) -> Rates<S> {
        let [b1, b2] = self.betas;
        // A step beyond 2^53 has long had both corrections at 1.
        let t = self.step as f64;
        Rates {
            factor: S::of(self.gradient_factor),
            decay: S::of(1.0 - self.lr * self.weight_decay),
            follow: S::of(1.0 - b1),
            keep: S::of(b2),
            take: S::of(1.0 - b2),
            root: S::of((1.0 - b2.powf(t)).sqrt()),
            eps: S::of(self.eps),
            size: S::of(self.lr / (1.0 - b1.powf(t))),
        }
    }

    /// The elements `at`, in stretches of which all decay or none does.
    fn stretches(&self, at: Range<usize>) -> Vec<(Range<usize>, bool)> {
        if self.weight_decay == 0.0 {
            return vec![(at, false)];
        }
        let mut out = Vec::new();
        let mut start = at.start;
        let first = self.undecayed.partition_point(|r| r.end <= at.start);
        for r in self.undecayed[first..].iter().take_while(|r| r.start < at.end) {
            let (from, to) = (r.start.max(start), r.end.min(at.end));
            out.extend((start < from).then_some((start..from, true)));
            out.extend((from < to).then_some((from..to, false)));
            start = to.max(start);
        }
        out.extend((start < at.end).then_some((start..at.end, true)));
        out
    }

    fn check(&self, n: usize) -> Result<()> {
        let bad = |name: &str, want: &str, found: &dyn std::fmt::Debug| {
            Err(Error::argument(format!("adamw: {name}: expected {want}, found {found:?}")))
        };
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        if !not_negative(self.lr) {
            return bad("lr", "a number of 0 or more", &self.lr);
        }
        if !self.betas.iter().all(|b| (0.0..1.0).contains(b)) {
            return bad("betas", "two numbers from 0 to below 1", &self.betas);
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return bad("eps", "a positive number", &self.eps);
        }
        if !not_negative(self.weight_decay) {
            return bad("weight_decay", "a number of 0 or more", &self.weight_decay);
        }
        if self.step == 0 {
            return bad("step", "1 or more", &self.step);
        }
        if !self.gradient_factor.is_finite() {
            return bad("gradient_factor", "a finite number", &self.gradient_factor);
        }
        let ordered = self.undecayed.windows(2).all(|w| w[0].end <= w[1].start);
        let inside = self.undecayed.iter().all(|r| r.start <= r.end && r.end <= n);
        if !(ordered && inside) {
            return bad("undecayed", &format!("ascending ranges within {n} elements"), &self.undecayed);
        }
        Ok(())
    }

    /// The step in place: `param`, `m` and `v` are read and written, `grad` is read.
    ///
    /// # Errors
    /// As the operator's; [`Error::Argument`] for planned operands.
    pub fn update(
        &self,
        exec: &Exec,
        mut param: ViewMut<'_>,
        grad: View<'_>,
        mut m: ViewMut<'_>,
        mut v: ViewMut<'_>,
    ) -> Result<()> {
        self.infer(&[param.spec(), grad.spec(), m.spec(), v.spec()])?;
        if exec.is_plan() {
            return Ok(());
        }
        if let Some(gpu) = exec.gpu() {
            let new = [&param, &m, &v];
            return self.launch(exec, gpu, new, [&param, &m, &v], &grad, None);
        }
        let (param, m, v) = (param.f32()?, m.f32()?, v.f32()?);
        match grad.spec().dtype() {
            Dtype::F32 => self.step_all(param, grad.f32()?, m, v, |_, g| g),
            Dtype::Bf16 => self.step_all(param, grad.bf16()?, m, v, |to, g| {
                vector::widen_bf16(g, to);
                to
            }),
            Dtype::F16 => self.step_all(param, grad.f16()?, m, v, |to, g| {
                vector::widen_f16(g, to);
                to
            }),
            Dtype::I32 => return Err(Error::dtype("adamw: grad: expected a floating-point type, found i32")),
        }
        Ok(())
    }

    /// One launch over the arena, in place or not; with `ready` the numbers of the step are those that the device has made.
    fn launch(
        &self,
        exec: &Exec,
        gpu: &Gpu,
        [param, m, v]: [&ViewMut<'_>; 3],
        old: [&dyn Operand; 3],
        grad: &View<'_>,
        ready: Option<&Tensor>,
    ) -> Result<()> {
        let n = param.spec().len();
        let spared = self.spared()?.map(|edges| exec.import(&edges)).transpose()?;
        let ranges = spared.as_ref().map_or(0, |edges| edges.spec().len() / EDGES);
        let launch = Launch::linear(launch::blocks("adamw", "elements", n.div_ceil(COVERED))?, FLAT_THREADS);
        let Adamw { scale, keep, follow, beta2, take, rate, root, eps } = self.factors();
        let mut args = vec![Arg::Out(param), Arg::Out(m), Arg::Out(v)];
        args.extend(old.into_iter().chain([grad as &dyn Operand]).map(Arg::In));
        args.push(launch::length("adamw", "elements", n)?);
        args.push(spared.as_ref().map_or(Arg::Null, Arg::Scratch));
        args.push(Arg::I32(launch::short("adamw", "undecayed", ranges)?));
        args.push(ready.map_or(Arg::Null, Arg::Scratch));
        args.extend([scale, keep, follow, beta2, take, rate, root, eps].map(Arg::F32));
        FWD.launch(gpu, grad.spec().dtype(), launch, &mut args)
    }

    /// The ranges that do not decay, first and last place in 64 bits each; `None` if there is nothing to tell apart.
    fn spared(&self) -> Result<Option<Tensor>> {
        let some = || self.undecayed.iter().filter(|r| !r.is_empty());
        if self.weight_decay == 0.0 || some().next().is_none() {
            return Ok(None);
        }
        let edges: Vec<u64> = some().flat_map(|r| [r.start as u64, r.end as u64]).collect();
        let spec = Spec::new(Dtype::I32, [edges.len() / 2 * EDGES])?;
        Tensor::from_bytes(spec, bytemuck::cast_slice(&edges)).map(Some)
    }

    /// The factors of the step in f32.
    fn factors(&self) -> Adamw {
        let [b1, b2] = self.betas;
        Adamw::new(self.step, self.lr, (b1, b2), self.eps, self.weight_decay, self.gradient_factor)
    }

    /// All elements; `read` gives gradients in f32, in the room that it is lent if need be.
    fn step_all<G: Sync>(
        &self,
        param: &mut [f32],
        grad: &[G],
        m: &mut [f32],
        v: &mut [f32],
        read: impl for<'a> Fn(&'a mut [f32], &'a [G]) -> &'a [f32] + Sync,
    ) {
        let decayed = self.factors();
        let undecayed = Adamw { keep: 1.0, ..decayed };
        let n = param.len();
        let parts = (RowsMut::new(param, 1), Rows::new(grad, 1), RowsMut::new(m, 1), RowsMut::new(v, 1));
        rows(n, WORK, parts, |first, (p, g, m, v)| {
            let mut room = [0.0; BLOCK];
            for (at, decays) in self.stretches(first..first + p.data.len()) {
                let how = if decays { &decayed } else { &undecayed };
                for start in at.clone().step_by(BLOCK) {
                    let at = start - first..at.end.min(start + BLOCK) - first;
                    let g = read(&mut room[..at.len()], &g.data[at.clone()]);
                    vector::adamw(how, &mut p.data[at.clone()], g, &mut m.data[at.clone()], &mut v.data[at]);
                }
            }
        });
    }
}

impl Arity<4> for AdamW {}

impl Operator for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [param, grad, m, v] = expect_inputs("adamw", x)?;
        expect_dtype("adamw", "grad", grad, &Dtype::FLOATS)?;
        for (name, s) in [("param", param), ("m", m), ("v", v)] {
            expect_dtype("adamw", name, s, &[Dtype::F32])?;
        }
        for (name, s) in [("grad", grad), ("m", m), ("v", v)] {
            if s.shape() != param.shape() {
                return Err(Error::shape(format!(
                    "adamw: {name}: expected {:?} like param, found {:?}",
                    param.shape(),
                    s.shape()
                )));
            }
        }
        self.check(param.len())?;
        Ok(Outputs { y: vec![(*param).clone(), (*m).clone(), (*v).clone()], saved: Vec::new() })
    }

    fn flops(&self, x: &[&Spec], _: Mask) -> OpFlops {
        let n = x[0].len();
        let decayed: usize = self.stretches(0..n).iter().filter(|(_, d)| *d).map(|(r, _)| r.len()).sum();
        let forward = Flops::vector(13 * n as u128 + decayed as u128) + Flops::special(n as u128);
        OpFlops { forward, ..OpFlops::default() }
    }

    /// On a device from inputs to results; on the CPU copies, then updates the copies.
    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([param, grad, m, v], [p_out, m_out, v_out]) = (io.x, io.y) else { return Ok(()) };
        if let Some(gpu) = exec.gpu() {
            return self.launch(exec, gpu, [p_out, m_out, v_out], [param, m, v], grad, None);
        }
        for (to, from) in [(&mut *p_out, param), (&mut *m_out, m), (&mut *v_out, v)] {
            to.copy_from(from)?;
        }
        self.update(exec, p_out.reborrow(), grad.clone(), m_out.reborrow(), v_out.reborrow())
    }
}

impl Reference for AdamW {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([param, grad, m, v], [p_out, m_out, v_out]) = (io.x, io.y) else { return };
        let r = self.rates::<S>();
        for (at, decays) in self.stretches(0..param.len()) {
            for i in at {
                let g = grad[i] * r.factor;
                m_out[i] = m[i] + (g - m[i]) * r.follow;
                v_out[i] = v[i] * r.keep + g * g * r.take;
                let p = if decays { param[i] * r.decay } else { param[i] };
                p_out[i] = p - r.size * (m_out[i] / (v_out[i].sqrt() / r.root + r.eps));
            }
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "adamw",
    about: "one step of Adam with decoupled weight decay over a flat arena",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases,
    bad_cases,
    bench_cases,
};

fn op(step: u64) -> AdamW {
    AdamW {
        lr: 1e-3,
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.01,
        step,
        gradient_factor: 1.0,
        undecayed: Arc::new([]),
    }
}

fn case(op: AdamW, n: usize) -> Case {
    let x = [
        Input::new("param", [n]).always_f32(),
        Input::new("grad", [n]),
        Input::new("m", [n]).always_f32(),
        Input::new("v", [n]).always_f32().fill(Fill::Uniform(0.0, 1.0)),
    ];
    Case::plain(op, x)
}

fn cases() -> Vec<Case> {
    let fresh = |n: usize| {
        let zeros = || Fill::Values(vec![0.0]);
        let x = [
            Input::new("param", [n]).always_f32(),
            Input::new("grad", [n]),
            Input::new("m", [n]).always_f32().fill(zeros()),
            Input::new("v", [n]).always_f32().fill(zeros()),
        ];
        Case::plain(op(1), x)
    };
    let scaled = AdamW { gradient_factor: 1.0 / 65536.0, lr: 0.5, weight_decay: 0.3, ..op(3) };
    let partly = AdamW { undecayed: [2..5, 5..6, 9..9, 30..37].into(), ..op(7) };
    vec![
        case(op(1), 0),
        case(op(1), 1),
        fresh(7),
        fresh(33),
        case(op(1000), 31),
        case(op(u64::MAX), 32),
        case(AdamW { weight_decay: 0.0, ..op(2) }, 63),
        case(AdamW { betas: [0.0, 0.0], ..op(2) }, 9),
        case(AdamW { lr: 0.0, ..op(2) }, 9),
        case(scaled, 65),
        case(partly, 37),
        case(AdamW { undecayed: [0..1, 2047..2049, 2050..2051, 4096..4099].into(), ..op(7) }, 4101),
        case(AdamW { undecayed: std::iter::once(0..4000).collect(), ..op(5) }, 4099),
    ]
}

fn bad_cases() -> Vec<BadCase> {
    let shapes: &[&[usize]] = &[&[8], &[8], &[8], &[8]];
    let bad = |op, error| BadCase::new(op, shapes, error);
    let narrow = [Spec::new(Dtype::Bf16, [8]), Spec::f32([8]), Spec::f32([8]), Spec::f32([8])];
    vec![
        BadCase::new(op(1), &[&[8], &[9], &[8], &[8]], "grad: expected [8] like param, found [9]"),
        BadCase::new(op(1), &[&[8], &[8], &[8], &[2, 4]], "v: expected [8] like param, found [2, 4]"),
        BadCase::new(op(1), &[&[8], &[8], &[8]], "expected 4 inputs, found 3"),
        BadCase::of_specs(op(1), narrow.into_iter().flatten().collect(), "param: expected f32, found [8] bf16"),
        bad(AdamW { lr: -1.0, ..op(1) }, "lr: expected a number of 0 or more, found -1.0"),
        bad(AdamW { lr: f64::NAN, ..op(1) }, "lr: expected a number of 0 or more, found NaN"),
        bad(AdamW { betas: [0.9, 1.0], ..op(1) }, "betas: expected two numbers from 0 to below 1, found [0.9, 1.0]"),
        bad(AdamW { eps: 0.0, ..op(1) }, "eps: expected a positive number, found 0.0"),
        bad(AdamW { weight_decay: f64::INFINITY, ..op(1) }, "weight_decay: expected a number of 0 or more, found inf"),
        bad(op(0), "step: expected 1 or more, found 0"),
        bad(AdamW { gradient_factor: f64::NAN, ..op(1) }, "gradient_factor: expected a finite number, found NaN"),
        bad(
            AdamW { undecayed: [3..5, 4..6].into(), ..op(1) },
            "undecayed: expected ascending ranges within 8 elements",
        ),
        bad(AdamW { undecayed: std::iter::once(7..9).collect(), ..op(1) }, "undecayed: expected ascending ranges"),
    ]
}

fn bench_cases() -> Vec<Case> {
    // The last: a transformer of 24 blocks, 1,024 wide, in the type that it is compared in.
    vec![case(op(10), 1 << 22), case(op(10), 23_832_960), case(op(10), 302_309_376).timed_in(Dtype::F32)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    crate::room_tests!(ROOM);

    fn update(op: &AdamW, p: &[f32], g: &[f32]) -> [Vec<f32>; 3] {
        let shape = [p.len()];
        let mut all = [p, &vec![0.0; p.len()], &vec![0.0; p.len()]].map(|x| Tensor::from_f32(shape, x).unwrap());
        let grad = Tensor::from_f32(shape, g).unwrap();
        let [p, m, v] = &mut all;
        let [p, m, v] = [p, m, v].map(|t| t.view_mut().unwrap());
        op.update(&Exec::cpu(), p, grad.view(), m, v).unwrap();
        all.map(|t| t.to_f32().unwrap())
    }

    #[test]
    fn the_first_step_has_the_size_of_the_learning_rate_whatever_the_gradient() {
        let [p, ..] = update(&AdamW { weight_decay: 0.0, ..op(1) }, &[1.0, 1.0, 1.0], &[1e-3, -7.0, 1e4]);
        for (p, want) in p.iter().zip([0.999, 1.001, 0.999]) {
            assert!((p - want).abs() < 1e-6, "{p} {want}");
        }
    }

    #[test]
    fn padding_of_zeros_stays_zero() {
        assert_eq!(update(&op(1), &[0.0; 5], &[0.0; 5]), [vec![0.0; 5], vec![0.0; 5], vec![0.0; 5]]);
    }

    #[test]
    fn a_gradient_that_is_nan_is_seen_in_the_parameter() {
        let [p, m, v] = update(&op(1), &[1.0, 1.0], &[f32::NAN, 1.0]);
        assert!(p[0].is_nan() && m[0].is_nan() && v[0].is_nan() && p[1].is_finite());
    }

    #[test]
    fn only_elements_outside_the_ranges_decay() {
        const N: usize = 1 << 15;
        let n = 3 * N + 5;
        let undecayed: Arc<[Range<usize>]> = [1..N + 7, N + 9..N + 10, 2 * N..n - 1].into();
        let op = AdamW { lr: 0.5, weight_decay: 1.0, undecayed: undecayed.clone(), ..op(1) };
        let [p, ..] = update(&op, &vec![1.0; n], &vec![0.0; n]);
        for (i, p) in p.iter().enumerate() {
            let kept = undecayed.iter().any(|r| r.contains(&i));
            assert_eq!(*p, if kept { 1.0 } else { 0.5 }, "element {i}");
        }
    }

    #[test]
    fn nothing_is_updated_on_a_device_that_only_plans() {
        let exec = Exec::plan();
        let mut t: Vec<Tensor> = (0..4).map(|_| exec.alloc(Spec::f32([1 << 40]).unwrap()).unwrap()).collect();
        let mut views = t.iter_mut().map(|t| t.view_mut().unwrap());
        let (p, g, m, v) = (views.next().unwrap(), views.next().unwrap(), views.next().unwrap(), views.next().unwrap());
        assert!(op(1).update(&exec, p, g.as_view(), m, v).is_ok());
    }
}
