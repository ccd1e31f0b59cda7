//! A step whose learning rate, number and gradient factor lie on the device: nobody waits between the norm and the update, and what was
//! launched once can be launched again.

use super::{AdamW, SOURCE, Updated};
use crate::backend::Exec;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand};
use crate::error::{Error, Result};
use crate::ops::adamw_product::AdamWProduct;
use crate::ops::global_norm::{Found, elsewhere};
use crate::ops::operator::Factors;
use crate::tensor::{Arena, Dtype, Layout, Spec, Tensor, View};

static READY: Kernel = Kernel::new(SOURCE, "adamw_fwd_ready");
/// Threads of the block in which one works.
const THREADS: u32 = 64;
/// Numbers that the device makes for a step: eight factors, whether it is skipped, and which it is, in two halves.
const READY_NUMBERS: usize = 11;

/// The learning rate of the next step and how many updates were done, where the updates run.
#[derive(Debug)]
pub struct Clock {
    lr: f64,
    /// Of the host.
    updates: u64,
    /// Of a device: the learning rate, then the updates, 64 bits each.
    there: Option<Arena>,
}

impl Clock {
    /// After `updates` updates, with a learning rate of 0.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(exec: &Exec, updates: u64) -> Result<Clock> {
        let there = match exec.gpu() {
            Some(_) => {
                let layout = Layout::new(Dtype::I32, [[2].into(), [2].into()] as [Box<[usize]>; 2])?;
                let mut there = exec.arena(layout)?;
                write(&mut there, 1, updates.to_le_bytes())?;
                Some(there)
            }
            None => None,
        };
        Ok(Clock { lr: 0.0, updates, there })
    }

    /// Sets the learning rate of the next steps.
    ///
    /// # Errors
    /// [`Error::Argument`] unless it is a number of 0 or more; what the device reports.
    pub fn set_rate(&mut self, lr: f64) -> Result<()> {
        if !(lr >= 0.0 && lr.is_finite()) {
            return Err(Error::argument(format!("adamw: lr: expected a number of 0 or more, found {lr:?}")));
        }
        if let Some(there) = self.there.as_mut().filter(|_| lr != self.lr) {
            write(there, 0, lr.to_le_bytes())?;
        }
        self.lr = lr;
        Ok(())
    }

    /// Updates done; waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn updates(&self) -> Result<u64> {
        let Some(bytes) =
            self.there.as_ref().and_then(|t| t.view(1)).map(|v| v.read().map(|b| b.to_vec())).transpose()?
        else {
            return Ok(self.updates);
        };
        Ok(bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)))
    }
}

fn write(there: &mut Arena, which: usize, bytes: [u8; 8]) -> Result<()> {
    there.view_mut(which).map_or(Ok(()), |mut v| v.write(&bytes))
}

/// A step that has begun: its numbers are known where it runs. See [`AdamW::begin`].
#[derive(Debug)]
pub struct Step {
    rule: AdamW,
    /// Where a device made the numbers.
    ready: Option<Tensor>,
    is_skipped: bool,
}

impl Step {
    /// A part of it, in place: elements of which the first is element `first` of all, which random numbers go by. Ranges that do not
    /// decay count from there.
    ///
    /// # Errors
    /// As [`AdamW::update`].
    pub fn update(&self, exec: &Exec, grad: &View<'_>, to: Updated<'_>, first: usize) -> Result<()> {
        self.rule.check_operands(grad, &to)?;
        match exec.gpu() {
            _ if self.is_skipped => Ok(()),
            Some(gpu) => {
                let old: [&dyn Operand; 3] = [&to.param, &to.m, &to.v];
                self.rule.launch(exec, gpu, &to.all(), old, grad, first, self.ready.as_ref())
            }
            None => self.rule.update_here(exec, grad, to, first),
        }
    }

    /// The part that is a weight matrix whose gradient is the product of `factors`.
    ///
    /// # Errors
    /// As [`AdamWProduct`].
    pub fn update_product(&self, exec: &Exec, factors: &Factors, to: Updated<'_>, first: usize) -> Result<()> {
        if self.is_skipped {
            return Ok(());
        }
        let op = AdamWProduct { step: self.rule.clone() };
        op.update(exec, [&factors.dy.view(), &factors.x.view()], to, first, self.ready.as_ref())
    }
}

impl AdamW {
    /// Begins a step in pieces: with the learning rate and the number of `clock`, which goes on by one, and the factor of `found`.
    /// Nothing is read or written by its pieces, and the clock stays, if what was found is not finite. `lr`, `step` and
    /// `gradient_factor` of the operator are not read. Nobody waits for a device.
    ///
    /// # Errors
    /// [`Error::Argument`] if `found` or `clock` are of another device; what the device reports.
    pub fn begin(&self, exec: &Exec, found: &Found, clock: &mut Clock) -> Result<Step> {
        let now = AdamW { lr: clock.lr, step: 1, gradient_factor: 1.0, ..self.clone() };
        match (found.here_or_there(), exec.gpu(), &mut clock.there) {
            (Ok(measured), None, None) => {
                if !measured.finite {
                    return Ok(Step { rule: now, ready: None, is_skipped: true });
                }
                clock.updates = clock.updates.saturating_add(1);
                let rule = AdamW { step: clock.updates, gradient_factor: measured.factor, ..now };
                Ok(Step { rule, ready: None, is_skipped: false })
            }
            (Err(Some(found)), Some(gpu), Some(there)) => {
                let ready = Some(now.ready(gpu, &found, there)?);
                Ok(Step { rule: now, ready, is_skipped: false })
            }
            _ => Err(elsewhere()),
        }
    }

    /// The step in place as [`update`](AdamW::update) does it, with the learning rate and the number of `clock`, which goes on by one, and
    /// the factor of `found`. Nothing is read or written, and the clock stays, if what was found is not finite. `lr`, `step` and
    /// `gradient_factor` of the operator are not read. Nobody waits for a device.
    ///
    /// # Errors
    /// As [`update`](AdamW::update); [`Error::Argument`] if `found` or `clock` are of another device.
    pub fn update_by(
        &self,
        exec: &Exec,
        grad: View<'_>,
        to: Updated<'_>,
        found: &Found,
        clock: &mut Clock,
    ) -> Result<()> {
        AdamW { lr: clock.lr, step: 1, gradient_factor: 1.0, ..self.clone() }.check_operands(&grad, &to)?;
        self.begin(exec, found, clock)?.update(exec, &grad, to, 0)
    }

    /// The numbers of the step, made by the device, which also counts it.
    fn ready(&self, gpu: &Gpu, [factor, finite]: &[View<'_>; 2], clock: &mut Arena) -> Result<Tensor> {
        let ready = gpu.scratch(Spec::f32([READY_NUMBERS])?)?;
        let [b1, b2] = self.betas;
        let rule: Vec<u8> = [b1, b2, self.eps, self.weight_decay].iter().flat_map(|x| x.to_le_bytes()).collect();
        let [lr, updates] = &clock.views_mut(&[0, 1])?[..] else { return Err(elsewhere()) };
        let args = &mut [
            Arg::Scratch(&ready),
            Arg::Out(updates),
            Arg::In(lr),
            Arg::In(factor),
            Arg::In(finite),
            Arg::Bytes(&rule),
        ];
        READY.launch(gpu, Dtype::F32, Launch::linear(1, THREADS), args)?;
        Ok(ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Device;
    use crate::ops::adamw::{MomentStorage, cases};
    use crate::ops::global_norm::GlobalNorm;

    fn op() -> AdamW {
        let betas = [0.9, 0.999];
        let (lr, gradient_factor) = (f64::NAN, f64::NAN);
        let moments = MomentStorage::Bf16Stochastic { seed: 3 };
        AdamW { lr, betas, eps: 1e-8, weight_decay: 0.01, step: 0, gradient_factor, moments, ..cases::op(1) }
    }

    /// Parameters and moments after a step for each of the gradients, and what was counted; `by` steps as the trainer does.
    fn steps(exec: &Exec, gradients: &[Vec<f32>], by: bool) -> (Vec<Vec<u32>>, u64) {
        let n = gradients[0].len();
        let start: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        let put = |x: &[f32]| exec.import(&Tensor::from_f32([n], x).unwrap()).unwrap();
        let zeros = || exec.import(&Tensor::zeros(Spec::new(Dtype::Bf16, [n]).unwrap())).unwrap();
        let mut state = [put(&start), zeros(), zeros()];
        let (mut clock, mut updates) = (Clock::new(exec, 0).unwrap(), 0);
        let norm = GlobalNorm { loss_scale: 2.0, max_norm: Some(1.0) };
        for (i, g) in gradients.iter().enumerate() {
            let (g, lr) = (put(g), 0.1 / (i + 1) as f64);
            let [p, m, v] = &mut state;
            let [param, m, v] = [p, m, v].map(|t| t.view_mut().unwrap());
            let to = Updated { param, m, v, shadow: None };
            if by {
                clock.set_rate(lr).unwrap();
                let found = norm.find(exec, &g.view()).unwrap();
                op().update_by(exec, g.view(), to, &found, &mut clock).unwrap();
                continue;
            }
            let measured = norm.measure(exec, &g.view()).unwrap();
            if measured.finite {
                updates += 1;
                let now = AdamW { lr, step: updates, gradient_factor: measured.factor, ..op() };
                now.update(exec, g.view(), to).unwrap();
            }
        }
        let bits = |t: &Tensor| t.to_f32().unwrap().iter().map(|x| x.to_bits()).collect();
        (state.iter().map(bits).collect(), if by { clock.updates().unwrap() } else { updates })
    }

    /// Good steps, one with an infinity, one with NaN, and good ones again.
    fn gradients(n: usize) -> Vec<Vec<f32>> {
        let mut all: Vec<Vec<f32>> =
            (0..6).map(|k| (0..n).map(|i| ((i + k) as f32 * 0.11).cos() * 10.0).collect()).collect();
        all[1][n / 2] = f32::INFINITY;
        all[3][0] = f32::NAN;
        all
    }

    #[test]
    fn a_step_by_the_clock_is_the_step_that_the_host_would_ask_for() {
        for n in [1, 7, 300] {
            let (got, want) = (steps(&Exec::cpu(), &gradients(n), true), steps(&Exec::cpu(), &gradients(n), false));
            assert_eq!(got, want, "{n}");
            assert_eq!(got.1, 4);
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_keeps_the_parameters_as_they_are() {
        let exec = Exec::cpu();
        let g = Tensor::from_f32([2], &[1.0, 2.0]).unwrap();
        let mut found = GlobalNorm { loss_scale: 1.0, max_norm: None }.find(&exec, &g.view()).unwrap();
        found.also(&exec, &Tensor::from_f32([], &[3.0]).unwrap()).unwrap();
        assert!(found.read().unwrap().finite);
        found.also(&exec, &Tensor::from_f32([], &[f32::INFINITY]).unwrap()).unwrap();
        assert!(!found.read().unwrap().finite);
        assert!(found.also(&exec, &g).is_err());
    }

    #[test]
    fn a_learning_rate_that_is_none_is_refused() {
        let mut clock = Clock::new(&Exec::cpu(), 3).unwrap();
        assert!(clock.set_rate(f64::NAN).is_err() && clock.set_rate(-1.0).is_err() && clock.set_rate(0.0).is_ok());
        assert_eq!(clock.updates().unwrap(), 3);
    }

    #[test]
    #[ignore = "needs NVRTC and clang-19: see ci/install"]
    fn a_device_steps_by_itself_bit_for_bit_as_the_host_asks_it_to() {
        for arch in ["sm_80", "sm_90a", "gfx90a", "gfx942"] {
            let exec = Exec::open(format!("emu:{arch}").parse::<Device>().unwrap()).unwrap();
            let (got, want) = (steps(&exec, &gradients(301), true), steps(&exec, &gradients(301), false));
            assert_eq!(got, want, "{arch}");
            let g = exec.import(&Tensor::from_f32([2], &[1.0, 2.0]).unwrap()).unwrap();
            let mut found = GlobalNorm { loss_scale: 1.0, max_norm: None }.find(&exec, &g.view()).unwrap();
            found.also(&exec, &exec.import(&Tensor::from_f32([], &[f32::NAN]).unwrap()).unwrap()).unwrap();
            assert!(!found.read().unwrap().finite, "{arch}");
        }
    }
}
