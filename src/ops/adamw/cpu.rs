//! The step on the CPU: blocks that stay in its caches, widened and rounded there.

use half::bf16;

use super::{AdamW, MomentStorage, Updated};
use crate::backend::Exec;
use crate::backend::cpu::threads::{Rows, RowsMut, rows};
use crate::backend::cpu::vector::{self, Adamw};
use crate::error::{Error, Result};
use crate::ops::cast::Cast;
use crate::ops::operator::{Forward, Operator};
use crate::rng::{Stream, philox_lanes};
use crate::tensor::{Dtype, View, ViewMut};

/// Numbers that are worked on at a time.
const BLOCK: usize = 1024;
/// Work of one element as [`threads`](crate::backend::cpu::threads) counts it: seven passes over memory.
const WORK: usize = 28;

/// What moments are kept in.
trait Moment: Send + Sized {
    /// Runs `step` on a block of both moments in f32, which starts at element `first` of all, and keeps what it made of them.
    fn update(dice: Stream, first: usize, m: &mut [Self], v: &mut [Self], step: impl FnOnce(&mut [f32], &mut [f32]));
}

impl Moment for f32 {
    fn update(_: Stream, _: usize, m: &mut [f32], v: &mut [f32], step: impl FnOnce(&mut [f32], &mut [f32])) {
        step(m, v);
    }
}

impl Moment for bf16 {
    fn update(dice: Stream, first: usize, m: &mut [bf16], v: &mut [bf16], step: impl FnOnce(&mut [f32], &mut [f32])) {
        let (mut wide_m, mut wide_v) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (wide_m, wide_v) = (&mut wide_m[..m.len()], &mut wide_v[..v.len()]);
        vector::widen_bf16(m, wide_m);
        vector::widen_bf16(v, wide_v);
        step(wide_m, wide_v);
        keep(dice, first, wide_m, wide_v, m, v);
    }
}

/// Blocks of Philox that are drawn side by side, four numbers each.
const DRAWN: usize = 16;

/// Rounds a block of both moments, whose first is element `first` of all.
fn keep(dice: Stream, first: usize, wide_m: &[f32], wide_v: &[f32], m: &mut [bf16], v: &mut [bf16]) {
    let mut at = first;
    while at < first + m.len() {
        let block = at / 4;
        let words = philox_lanes::<DRAWN>(dice.seed, dice.id, block as u64);
        let end = (4 * (block + DRAWN)).min(first + m.len());
        for element in at..end {
            let (i, word) = (element - first, words[element % 4][element / 4 - block]);
            m[i] = rounded_by(wide_m[i], word);
            v[i] = rounded_by(wide_v[i], word >> 16);
        }
        at = end;
    }
}

/// `x` in bf16, away from zero where the lower 16 bits of `random` and what is cut off exceed a last place.
fn rounded_by(x: f32, random: u32) -> bf16 {
    if !x.is_finite() {
        return bf16::from_f32(x);
    }
    bf16::from_bits(((x.to_bits() + (random & 0xffff)) >> 16) as u16)
}

impl AdamW {
    /// The step in place, of elements of which the first is element `place` of all.
    pub(super) fn update_here(&self, exec: &Exec, grad: &View<'_>, to: Updated<'_>, place: usize) -> Result<()> {
        let Updated { mut param, mut m, mut v, shadow } = to;
        let numbers = param.f32()?;
        match self.moments {
            MomentStorage::F32 => self.step_by(numbers, grad, m.f32()?, v.f32()?, (Stream::new(0, 0), place))?,
            MomentStorage::Bf16Stochastic { seed } => {
                self.step_by(numbers, grad, m.bf16()?, v.bf16()?, (Stream::new(seed, self.step), place))?;
            }
        }
        keep_shadow(exec, &param, shadow)
    }

    /// The same of a matrix whose gradient is `dyᵀ·x`, a row of it at a time.
    pub(in crate::ops) fn update_product_here(
        &self,
        exec: &Exec,
        [dy, x]: [&View<'_>; 2],
        to: Updated<'_>,
        place: usize,
    ) -> Result<()> {
        let Updated { mut param, mut m, mut v, shadow } = to;
        let factors = [dy.to_f32()?, x.to_f32()?];
        let numbers = param.f32()?;
        let sizes = [dy.spec().last(), x.spec().last()];
        match self.moments {
            MomentStorage::F32 => {
                self.step_product(numbers, &factors, sizes, m.f32()?, v.f32()?, (Stream::new(0, 0), place));
            }
            MomentStorage::Bf16Stochastic { seed } => {
                let dice = Stream::new(seed, self.step);
                self.step_product(numbers, &factors, sizes, m.bf16()?, v.bf16()?, (dice, place));
            }
        }
        keep_shadow(exec, &param, shadow)
    }

    fn step_product<M: Moment>(
        &self,
        param: &mut [f32],
        [dy, x]: &[Vec<f32>; 2],
        [n, k]: [usize; 2],
        m: &mut [M],
        v: &mut [M],
        (dice, place): (Stream, usize),
    ) {
        let how = self.factors();
        let (depth, width) = (dy.len() / n.max(1), k.max(1));
        let parts = (RowsMut::new(param, k), RowsMut::new(m, k), RowsMut::new(v, k));
        rows(if k == 0 { 0 } else { n }, (WORK + depth) * k, parts, |first, (p, m, v)| {
            let mut grad = vec![0.0; k];
            for (i, p) in p.data.chunks_mut(width).enumerate() {
                grad.fill(0.0);
                for r in 0..depth {
                    vector::axpy(dy[r * n + first + i], &x[r * k..(r + 1) * k], &mut grad);
                }
                for start in (0..k).step_by(BLOCK) {
                    let at = start..k.min(start + BLOCK);
                    let here = i * k + at.start..i * k + at.end;
                    let (p, g, m) = (&mut p[at.clone()], &grad[at], &mut m.data[here.clone()]);
                    let all = place + first * k + here.start;
                    M::update(dice, all, m, &mut v.data[here], |m, v| vector::adamw(&how, p, g, m, v));
                }
            }
        });
    }

    fn step_by<M: Moment>(
        &self,
        param: &mut [f32],
        grad: &View<'_>,
        m: &mut [M],
        v: &mut [M],
        dice: (Stream, usize),
    ) -> Result<()> {
        match grad.spec().dtype() {
            Dtype::F32 => self.step_all(param, grad.f32()?, m, v, dice, |_, g| g),
            Dtype::Bf16 => self.step_all(param, grad.bf16()?, m, v, dice, |to, g| {
                vector::widen_bf16(g, to);
                to
            }),
            Dtype::F16 => self.step_all(param, grad.f16()?, m, v, dice, |to, g| {
                vector::widen_f16(g, to);
                to
            }),
            Dtype::I32 => return Err(Error::dtype("adamw: grad: expected a floating-point type, found i32")),
        }
        Ok(())
    }

    /// All elements; `read` gives gradients in f32, in the room that it is lent if need be.
    fn step_all<G: Sync, M: Moment>(
        &self,
        param: &mut [f32],
        grad: &[G],
        m: &mut [M],
        v: &mut [M],
        (dice, place): (Stream, usize),
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
                    let (p, m) = (&mut p.data[at.clone()], &mut m.data[at.clone()]);
                    M::update(dice, place + start, m, &mut v.data[at], |m, v| vector::adamw(how, p, g, m, v));
                }
            }
        });
    }
}

/// The new parameters in 16 bits.
fn keep_shadow(exec: &Exec, param: &ViewMut<'_>, shadow: Option<ViewMut<'_>>) -> Result<()> {
    let Some(shadow) = shadow else { return Ok(()) };
    let cast = Cast { to: shadow.spec().dtype() };
    cast.forward(exec, Forward { x: &[param.as_view()], y: &mut [shadow], saved: &mut [] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Device;
    use crate::ops::adamw::cases::op;
    use crate::tensor::{Spec, Tensor};

    #[test]
    fn moments_between_two_numbers_become_either_and_keep_their_mean() {
        // A quarter of the way between 1 and the next number of bf16.
        let x = 1.0 + 0.25 / 128.0;
        let (wide, n) = (vec![x; 40_000], 40_000);
        let (mut m, mut v) = (vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
        keep(Stream::new(5, 7), 3, &wide, &wide, &mut m, &mut v);
        for (name, kept) in [("m", &m), ("v", &v)] {
            assert!(kept.iter().all(|k| [1.0, 1.0 + 1.0 / 128.0].contains(&k.to_f32())), "{name}");
            let up = kept.iter().filter(|k| k.to_f32() > 1.0).count() as f64 / n as f64;
            // Standard error 0.0022: five of them.
            assert!((up - 0.25).abs() < 0.011, "{name}: {up}");
        }
        assert!(m.iter().zip(&v).any(|(m, v)| m != v), "both moments have random bits of their own");
        let again = |first: usize, n: usize| {
            let (mut m, mut v) = (vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
            keep(Stream::new(5, 7), first, &wide[..n], &wide[..n], &mut m, &mut v);
            m
        };
        assert_eq!(again(104, 301), m[101..402], "an element's bits do not depend on where its block starts");
    }

    #[test]
    fn what_is_exact_or_not_finite_is_rounded_by_nothing() {
        for x in [0.0, -0.0, 1.5, -3.0, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(rounded_by(x, u32::MAX).to_f32().to_bits(), x.to_bits(), "{x}");
        }
        assert!(rounded_by(f32::from_bits(0x7f80_0001), 0).is_nan());
        assert_eq!(rounded_by(-1.003, 0xffff).to_f32(), -1.0 - 1.0 / 128.0, "away from zero");
    }

    /// Three steps from the same start: the bytes of parameters, moments and shadow.
    fn three_steps(exec: &Exec, n: usize) -> Vec<Vec<u8>> {
        let numbers = |k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<f32>>();
        let zeros = |dtype| exec.import(&Tensor::zeros(Spec::new(dtype, [n]).unwrap())).unwrap();
        let start = exec.import(&Tensor::from_f32([n], &numbers(0.37)).unwrap()).unwrap();
        let mut state = [start, zeros(Dtype::Bf16), zeros(Dtype::Bf16), zeros(Dtype::F16)];
        for step in 1..4 {
            let grad = exec.import(&Tensor::from_f32([n], &numbers(0.11 * step as f32)).unwrap()).unwrap();
            let moments = MomentStorage::Bf16Stochastic { seed: 9 };
            let op = AdamW { moments, shadow: Some(Dtype::F16), ..op(step) };
            let [param, m, v, shadow] = &mut state;
            let [param, m, v, shadow] = [param, m, v, shadow].map(|t| t.view_mut().unwrap());
            op.update(exec, grad.view(), Updated { param, m, v, shadow: Some(shadow) }).unwrap();
        }
        state.iter().map(|t| t.view().read().unwrap().to_vec()).collect()
    }

    #[test]
    fn a_shadow_that_nobody_asked_for_is_refused() {
        let mut all =
            [Dtype::F32, Dtype::F32, Dtype::F32, Dtype::Bf16].map(|d| Tensor::zeros(Spec::new(d, [2]).unwrap()));
        let grad = Tensor::zeros(Spec::f32([2]).unwrap());
        let [param, m, v, shadow] = all.each_mut().map(|t| t.view_mut().unwrap());
        let e = op(1).update(&Exec::cpu(), grad.view(), Updated { param, m, v, shadow: Some(shadow) }).unwrap_err();
        assert_eq!(e.to_string(), "adamw: shadow: expected none, found [2] bf16");
    }

    #[test]
    #[ignore = "needs NVRTC and clang-19: see ci/install"]
    fn a_device_rounds_moments_with_the_bits_of_the_cpu() {
        let want = three_steps(&Exec::cpu(), 2051);
        for arch in ["sm_80", "sm_90a", "gfx90a", "gfx942"] {
            let exec = Exec::open(format!("emu:{arch}").parse::<Device>().unwrap()).unwrap();
            assert_eq!(three_steps(&exec, 2051), want, "{arch}");
        }
    }
}
