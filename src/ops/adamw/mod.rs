//! `adamw`: one step of Adam with decoupled weight decay over a flat arena.

mod cases;
mod clock;
mod cpu;

pub use clock::{Clock, Step};

use std::ops::Range;
use std::sync::Arc;

use crate::backend::Exec;
use crate::backend::cpu::vector::Adamw;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit};
use crate::backend::gpu::{FLAT_THREADS, Gpu};
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::contract::Room;
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
/// `param`, `grad`, `m`, `v`, all of one shape → new `param`, `m`, `v`, and `param` in 16 bits where a `shadow` is asked for.
/// All are f32; `grad` may be narrower, and the moments are in what [`moments`](AdamW::moments) says.
///
/// # Units
/// `lr` has the unit of `param`, `eps` that of `grad`; `weight_decay` is in 1/`lr`.
///
/// # Cost
/// With n numbers, k of them decayed: `13n + k` vector, `n` special.
///
/// # Errors
/// [`Error::Shape`] unless all shapes are equal; [`Error::Dtype`] unless f32 (`grad`: f32, bf16 or f16; the moments: as asked for;
/// `shadow`: bf16 or f16); [`Error::Argument`] unless `lr` and `weight_decay` are finite and not negative, both betas in [0, 1), `eps` positive and
/// finite, `gradient_factor` finite, `step` 1 or more, and `undecayed` ascending, apart and inside.
///
/// # Source
/// Loshchilov, Hutter 2019, algorithm 2; order of operations as PyTorch's `torch.optim.AdamW`; rounding of moments as Gupta et
/// al. 2015, section 3.1.
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
    /// What the moments are kept in.
    pub moments: MomentStorage,
    /// In which 16-bit type the new parameters are written once more, for those who compute with them.
    pub shadow: Option<Dtype>,
}

/// What moments are kept in between two steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentStorage {
    /// As they are computed.
    #[default]
    F32,
    /// In half of the memory. Each is rounded up with the probability of what is cut off, so that changes that are smaller than
    /// the last place (of the second moment all of them are) happen on the average. The numbers of a step are those of the Philox
    /// stream of its number: the same wherever and whenever it runs.
    Bf16Stochastic {
        /// Key of the random numbers.
        seed: u64,
    },
}

impl MomentStorage {
    /// Number type of both moments.
    pub fn dtype(self) -> Dtype {
        match self {
            MomentStorage::F32 => Dtype::F32,
            MomentStorage::Bf16Stochastic { .. } => Dtype::Bf16,
        }
    }
}

/// What a step updates, in place.
#[derive(Debug)]
pub struct Updated<'a> {
    /// The parameters.
    pub param: ViewMut<'a>,
    /// Mean of the gradients.
    pub m: ViewMut<'a>,
    /// Mean of their squares.
    pub v: ViewMut<'a>,
    /// The parameters in 16 bits: written only.
    pub shadow: Option<ViewMut<'a>>,
}

impl Updated<'_> {
    /// What is written, in the order of the results.
    pub(super) fn all(&self) -> Vec<&dyn Operand> {
        let three: [&dyn Operand; 3] = [&self.param, &self.m, &self.v];
        three.into_iter().chain(self.shadow.as_ref().map(|s| s as &dyn Operand)).collect()
    }
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
static FWD_STOCHASTIC: Kernel = Kernel::new(SOURCE, "adamw_fwd_stochastic");
/// Numbers of a block: two packs of four a thread.
const COVERED: usize = FLAT_THREADS as usize * 8;
/// Words of 32 bits that a range has on a device.
const EDGES: usize = 4;

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

    /// The step in place: all but the shadow of `to` is read and written, `grad` is read.
    ///
    /// # Errors
    /// As the operator's; [`Error::Argument`] for planned operands, and for a shadow that the operator does not ask for.
    pub fn update(&self, exec: &Exec, grad: View<'_>, to: Updated<'_>) -> Result<()> {
        self.check_operands(&grad, &to)?;
        if exec.is_plan() {
            return Ok(());
        }
        let Some(gpu) = exec.gpu() else { return self.update_here(exec, &grad, to, 0) };
        self.launch(exec, gpu, &to.all(), [&to.param, &to.m, &to.v], &grad, 0, None)
    }

    fn check_operands(&self, grad: &View<'_>, to: &Updated<'_>) -> Result<()> {
        let out = self.infer(&[to.param.spec(), grad.spec(), to.m.spec(), to.v.spec()])?;
        let (want, found) = (out.y.get(3), to.shadow.as_ref().map(ViewMut::spec));
        if want == found {
            return Ok(());
        }
        let word = |spec: Option<&Spec>| spec.map_or_else(|| "none".to_owned(), Spec::to_string);
        Err(Error::argument(format!("adamw: shadow: expected {}, found {}", word(want), word(found))))
    }

    /// The first arguments of every kernel: what is written and what was there before.
    pub(super) fn state_args<'a>(&self, new: &[&'a dyn Operand], old: [&'a dyn Operand; 3]) -> Vec<Arg<'a>> {
        let (new, shadow) = new.split_at(new.len().min(3));
        let shadow = |dtype: Dtype| {
            let found = shadow.iter().find(|s| s.spec().dtype() == dtype);
            found.map_or(Arg::Null, |s| Arg::Out(*s))
        };
        let mut args: Vec<Arg<'_>> = new.iter().map(|new| Arg::Out(*new)).collect();
        args.extend([shadow(Dtype::F16), shadow(Dtype::Bf16)]);
        args.extend(old.into_iter().map(Arg::In));
        args
    }

    /// The factors of the step, in the order of every kernel.
    pub(super) fn factor_args<'a>(&self) -> [Arg<'a>; 8] {
        let Adamw { scale, keep, follow, beta2, take, rate, root, eps } = self.factors();
        [scale, keep, follow, beta2, take, rate, root, eps].map(Arg::F32)
    }

    /// One launch over the arena, in place or not, or over a part whose first number is number `place` of all; with `ready` the
    /// numbers of the step are those that the device has made.
    #[expect(clippy::too_many_arguments, reason = "what a launch has")]
    fn launch(
        &self,
        exec: &Exec,
        gpu: &Gpu,
        new: &[&dyn Operand],
        old: [&dyn Operand; 3],
        grad: &View<'_>,
        place: usize,
        ready: Option<&Tensor>,
    ) -> Result<()> {
        let n = grad.spec().len();
        let spared = self.spared()?.map(|edges| exec.import(&edges)).transpose()?;
        let ranges = spared.as_ref().map_or(0, |edges| edges.spec().len() / EDGES);
        let launch = Launch::linear(launch::blocks("adamw", "elements", n.div_ceil(COVERED))?, FLAT_THREADS);
        let mut args = self.state_args(new, old);
        args.push(Arg::In(grad));
        args.push(launch::length("adamw", "elements", n)?);
        args.push(spared.as_ref().map_or(Arg::Null, Arg::Scratch));
        args.push(Arg::I32(launch::short("adamw", "undecayed", ranges)?));
        args.push(ready.map_or(Arg::Null, Arg::Scratch));
        args.extend(self.factor_args());
        let kernel = match self.moments {
            MomentStorage::F32 => &FWD,
            MomentStorage::Bf16Stochastic { seed } => {
                args.extend([seed, self.step, place as u64].map(|n| Arg::I64(n.cast_signed())));
                &FWD_STOCHASTIC
            }
        };
        kernel.launch(gpu, grad.spec().dtype(), launch, &mut args)
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
}

impl Arity<4> for AdamW {}

impl Operator for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [param, grad, m, v] = expect_inputs("adamw", x)?;
        expect_dtype("adamw", "grad", grad, &Dtype::FLOATS)?;
        expect_dtype("adamw", "param", param, &[Dtype::F32])?;
        for (name, s) in [("m", m), ("v", v)] {
            expect_dtype("adamw", name, s, &[self.moments.dtype()])?;
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
        let mut y = vec![(*param).clone(), (*m).clone(), (*v).clone()];
        if let Some(dtype) = self.shadow {
            let shadow = param.with_dtype(dtype);
            expect_dtype("adamw", "shadow", &shadow, &[Dtype::Bf16, Dtype::F16])?;
            y.push(shadow);
        }
        Ok(Outputs { y, saved: Vec::new() })
    }

    fn flops(&self, x: &[&Spec], _: Mask) -> OpFlops {
        let n = x[0].len();
        let decayed: usize = self.stretches(0..n).iter().filter(|(_, d)| *d).map(|(r, _)| r.len()).sum();
        let forward = Flops::vector(13 * n as u128 + decayed as u128) + Flops::special(n as u128);
        OpFlops { forward, ..OpFlops::default() }
    }

    /// On a device from inputs to results; on the CPU copies, then updates the copies.
    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        let ([param, grad, m, v], [p_out, m_out, v_out, shadow @ ..]) = (io.x, io.y) else { return Ok(()) };
        let to = Updated {
            param: p_out.reborrow(),
            m: m_out.reborrow(),
            v: v_out.reborrow(),
            shadow: shadow.first_mut().map(ViewMut::reborrow),
        };
        if let Some(gpu) = exec.gpu() {
            return self.launch(exec, gpu, &to.all(), [param, m, v], grad, 0, None);
        }
        let Updated { param: mut p, m: mut first, v: mut second, shadow } = to;
        for (to, from) in [(&mut p, param), (&mut first, m), (&mut second, v)] {
            to.copy_from(from)?;
        }
        self.update(exec, grad.clone(), Updated { param: p, m: first, v: second, shadow })
    }
}

impl Reference for AdamW {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let [param, grad, m, v] = io.x else { return };
        self.step_ref([param, grad, m, v], io.y);
    }
}

impl AdamW {
    /// The plain text.
    pub(super) fn step_ref<S: Scalar>(&self, [param, grad, m, v]: [&[S]; 4], y: &mut [&mut [S]]) {
        let [p_out, m_out, v_out, shadow @ ..] = y else { return };
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
        shadow.iter_mut().for_each(|s| s.copy_from_slice(p_out));
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "adamw",
    about: "one step of Adam with decoupled weight decay over a flat arena",
    dtypes: &Dtype::FLOATS,
    kernels: &[Unit::floats(SOURCE)],
    cases: cases::cases,
    bad_cases: cases::bad_cases,
    bench_cases: cases::bench_cases,
};

#[cfg(test)]
mod tests {
    use super::cases::op;
    use super::*;

    crate::room_tests!(ROOM);

    fn update(op: &AdamW, p: &[f32], g: &[f32]) -> [Vec<f32>; 3] {
        let shape = [p.len()];
        let mut all = [p, &vec![0.0; p.len()], &vec![0.0; p.len()]].map(|x| Tensor::from_f32(shape, x).unwrap());
        let grad = Tensor::from_f32(shape, g).unwrap();
        let [p, m, v] = &mut all;
        let [param, m, v] = [p, m, v].map(|t| t.view_mut().unwrap());
        op.update(&Exec::cpu(), grad.view(), Updated { param, m, v, shadow: None }).unwrap();
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
        let (param, g, m, v) =
            (views.next().unwrap(), views.next().unwrap(), views.next().unwrap(), views.next().unwrap());
        assert!(op(1).update(&exec, g.as_view(), Updated { param, m, v, shadow: None }).is_ok());
    }
}
