//! One optimiser step: gradients of some micro-batches, their norm, the update; the same bits every time.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::Exec;
use crate::cost::{Cost, Flops};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::Pass;
use crate::ops::adamw::{AdamW, Clock, MomentStorage, Updated};
use crate::ops::global_norm::{Found, GlobalNorm};
use crate::ops::operator::{Mask, Operator};
use crate::rng::Stream;
use crate::tape::{Buffer, Grads, Part, Profile, StepCost, Tape};
use crate::tensor::{Arena, Dtype, Layout, Spec, Tensor, View};
use crate::train::config::{GradientPrecision, MomentPrecision, Precision, TrainingConfig};
use crate::train::loss_scale::LossScale;
use crate::train::profile::{self, StepProfile, Watch};
use crate::train::shadow::Shadow;

/// Trains one model on one device.
#[derive(Debug)]
pub struct Trainer<M> {
    model: M,
    exec: Exec,
    grads: Grads,
    moments: Moments,
    /// The parameters in `compute`, unless that is their own type.
    shadow: Option<Shadow>,
    update: UpdateRule,
    compute: Dtype,
    seed: u64,
    progress: Progress,
    /// The updates of `progress` where they run; made by the first step.
    clock: Option<Clock>,
    loss_scale: LossScale,
    /// What the model noted in the last step, the mean over its micro-batches.
    noted: Vec<(&'static str, f64)>,
    /// Laps of the last pass: the next will have as many.
    laps: usize,
}

/// First and second moments of AdamW, in the layout of the parameters, in f32 or what the configuration asks for.
#[derive(Debug)]
pub struct Moments {
    /// Running mean of the gradients.
    pub exp_avg: Arena,
    /// Running mean of their squares.
    pub exp_avg_sq: Arena,
}

impl Moments {
    fn new(exec: &Exec, layout: &Layout, rule: &UpdateRule) -> Result<Moments> {
        let layout = layout.beside(rule.moments.dtype())?;
        Ok(Moments { exp_avg: exec.arena(layout.clone())?, exp_avg_sq: exec.arena(layout)? })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.exp_avg.bytes() + self.exp_avg_sq.bytes()
    }
}

/// How far a trainer is: with the parameters and moments, all that a step depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Optimiser steps done, skipped ones included.
    pub step: u64,
    /// Updates done: AdamW's own count.
    pub updates: u64,
    /// Forward passes done: names the random numbers of the next.
    pub passes: u64,
}

#[derive(Clone, Copy, Debug)]
struct UpdateRule {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    max_norm: Option<f64>,
    moments: MomentStorage,
    shadow: Option<Dtype>,
    gradients: Dtype,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Which step, from 1.
    pub step: u64,
    /// Loss, the mean over micro-batches.
    pub loss: f64,
    /// 2-norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Loss scale that the gradients were computed with.
    pub loss_scale: f64,
    /// Whether the update was skipped because gradients overflowed under the loss scale.
    pub is_skipped: bool,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Exact cost of forward and backward.
    pub cost: StepCost,
    /// Exact cost of norm and update.
    pub update: Cost,
}

impl<M: Model> Trainer<M> {
    /// A trainer of `model`, whose parameters are as the model has them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(model: M, exec: &Exec, config: &TrainingConfig) -> Result<Trainer<M>> {
        let layout = model.params().arena().layout().clone();
        let grads = gradients(exec, &layout, config)?;
        let (update, compute) = (UpdateRule::of(config), compute_dtype(config.precision));
        let moments = Moments::new(exec, &layout, &update)?;
        let shadow = Shadow::new(exec, &layout, compute)?;
        Ok(Trainer {
            model,
            exec: exec.clone(),
            grads,
            moments,
            shadow,
            update,
            compute,
            seed: config.seed,
            progress: Progress::default(),
            clock: None,
            loss_scale: LossScale::new(config),
            noted: Vec::new(),
            laps: 0,
        })
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model and the moments, to be overwritten when a run is resumed.
    pub fn state_mut(&mut self) -> (&mut M, &mut Moments) {
        self.shadow.iter_mut().for_each(Shadow::forget);
        (&mut self.model, &mut self.moments)
    }

    /// The moments.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The loss scale of the next step.
    pub fn loss_scale(&self) -> LossScale {
        self.loss_scale
    }

    /// Goes on from another trainer's place.
    pub fn resume(&mut self, progress: Progress, loss_scale: LossScale) {
        self.progress = progress;
        self.clock = None;
        self.loss_scale = loss_scale;
    }

    /// What the model noted in the last step beside its loss, by name: means over its micro-batches.
    pub fn noted(&self) -> &[(&'static str, f64)] {
        &self.noted
    }

    /// The device.
    pub fn exec(&self) -> &Exec {
        &self.exec
    }

    /// A pass that drops nothing, in the trainer's number type.
    pub fn eval_pass(&self) -> Pass {
        Pass { compute: self.compute, ..Pass::eval() }
    }

    /// One optimiser step over `micro_batches`; gradients are averaged over them, so several of one size equal one of
    /// the sum of their sizes.
    ///
    /// # Errors
    /// [`Error::Argument`] for no micro-batch; [`Error::NonFinite`] if the loss or the gradients are not finite, named,
    /// before any parameter has changed (with a loss scale an overflow skips the step instead); whatever the model's
    /// forward pass reports.
    pub fn step(&mut self, micro_batches: &[M::Batch], learning_rate: f64) -> Result<StepReport> {
        self.step_watched(micro_batches, learning_rate, None)
    }

    /// The same step, and what it spent: the same numbers, a little later.
    ///
    /// # Errors
    /// As [`step`](Trainer::step).
    pub fn profiled_step(
        &mut self,
        micro_batches: &[M::Batch],
        learning_rate: f64,
    ) -> Result<(StepReport, StepProfile)> {
        let mut watch = self.watch_over(micro_batches.len(), 1)?;
        let report = self.watched_step(micro_batches, learning_rate, &mut watch)?;
        let profile = self.profile(watch, &report)?;
        Ok((report, profile))
    }

    /// What watches the next steps, of `passes` micro-batches each and at most `steps`: one, or, on a device whose marks take
    /// time, several, each of which tells a part of its times and is hardly slower than others.
    ///
    /// # Errors
    /// What the device reports.
    pub fn watch(&self, passes: usize, steps: u64) -> Result<Watch> {
        self.watch_over(passes, Watch::parts(&self.exec, self.laps, steps))
    }

    /// The same over `parts` steps, whatever the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn watch_over(&self, passes: usize, parts: usize) -> Result<Watch> {
        Watch::start(&self.exec, passes, self.laps, parts)
    }

    /// A step that `watch` follows: the same numbers.
    ///
    /// # Errors
    /// As [`step`](Trainer::step).
    pub fn watched_step(
        &mut self,
        micro_batches: &[M::Batch],
        learning_rate: f64,
        watch: &mut Watch,
    ) -> Result<StepReport> {
        watch.begin(&self.exec)?;
        self.step_watched(micro_batches, learning_rate, Some(watch))
    }

    /// What was seen; `last` is of the last step.
    ///
    /// # Errors
    /// What the device reports.
    pub fn profile(&self, watch: Watch, last: &StepReport) -> Result<StepProfile> {
        let update =
            if last.is_skipped { [Cost::ZERO; 2] } else { update_cost(&self.update, &self.model, &self.grads) };
        watch.finish(&self.model, &self.exec, last.step, update)
    }

    fn step_watched(
        &mut self,
        micro_batches: &[M::Batch],
        learning_rate: f64,
        mut watch: Option<&mut Watch>,
    ) -> Result<StepReport> {
        let start = Instant::now();
        if micro_batches.is_empty() {
            return Err(Error::argument("step: expected at least one micro-batch, found none"));
        }
        let step = self.progress.step + 1;
        let scale = self.loss_scale.scale;
        self.grads.clear();
        let (losses, noted, cost) = self.passes(micro_batches, scale, watch.as_deref_mut())?;
        watch.as_deref_mut().map_or(Ok(()), Watch::lap)?;
        let norm = GlobalNorm { loss_scale: scale, max_norm: self.update.max_norm };
        self.grads.settled(&self.exec)?;
        let mut found = norm.find_with(&self.exec, &self.grads.arena().flat(), &self.grads.all_factors())?;
        for loss in &losses {
            found.also(&self.exec, loss)?;
        }
        watch.as_deref_mut().map_or(Ok(()), Watch::lap)?;
        // The device decides whether it updates: what is not finite leaves all as it is.
        self.apply(learning_rate, &found)?;
        watch.map_or(Ok(()), Watch::lap)?;
        // The only place where a step waits for its device: all of it is done now.
        let measured = found.read()?;
        let loss = mean_loss(step, &losses)?;
        self.noted = means(&noted, micro_batches.len())?;
        let is_skipped = !measured.finite;
        if is_skipped && !self.loss_scale.skips() {
            return Err(self.not_finite(step));
        }
        if !self.loss_scale.update(is_skipped) {
            return Err(Error::non_finite(format!(
                "step {step}: gradients overflow at the lowest loss scale {}; nothing has been updated. Use bf16 or fp32",
                self.loss_scale.min
            )));
        }
        let mut update = Cost::ZERO;
        if !is_skipped {
            update = update_cost(&self.update, &self.model, &self.grads).into_iter().sum();
            self.progress.updates += 1;
        }
        self.progress.step = step;
        self.progress.passes += micro_batches.len() as u64;
        let seconds = start.elapsed().as_secs_f64();
        let grad_norm = measured.norm;
        Ok(StepReport { step, loss, grad_norm, learning_rate, loss_scale: scale, is_skipped, seconds, cost, update })
    }

    /// Forward and backward of every micro-batch: losses and notes, which are not waited for, and cost. Buffers hold what the
    /// last pass found.
    fn passes(
        &mut self,
        micro_batches: &[M::Batch],
        scale: f64,
        mut watch: Option<&mut Watch>,
    ) -> Result<(Vec<Tensor>, Vec<Note>, StepCost)> {
        let (mut losses, mut cost) = (Vec::with_capacity(micro_batches.len()), StepCost::default());
        let mut noted = Vec::new();
        let params = self.model.params().arena();
        let shadow = self.shadow.as_mut().map(|s| s.of(&self.exec, params)).transpose()?;
        for (i, batch) in micro_batches.iter().enumerate() {
            let pass =
                Pass { train: true, compute: self.compute, seed: self.seed, number: self.progress.passes + i as u64 };
            let share = (scale / micro_batches.len() as f64) as f32;
            let on = On { model: &self.model, exec: &self.exec, shadow };
            let timed = watch.as_ref().map(|w| w.timed());
            let done = on.pass(batch, &pass, share, &mut self.grads, timed)?;
            self.model.params_mut().buffers_mut().renew(&done.renewed)?;
            losses.push(done.loss);
            noted.extend(done.noted);
            cost += done.profile.total();
            self.laps = done.profile.laps();
            if let Some(watch) = &mut watch {
                watch.pass(done.profile);
            }
        }
        Ok((losses, noted, cost))
    }

    fn apply(&mut self, lr: f64, found: &Found) -> Result<()> {
        let clock = match &mut self.clock {
            Some(clock) => clock,
            none => none.insert(Clock::new(&self.exec, self.progress.updates)?),
        };
        clock.set_rate(lr)?;
        // The learning rate, the step and the factor are those of the clock and of what was found.
        let step = self.update.step(lr).begin(&self.exec, found, clock)?;
        let (exec, flat) = (&self.exec, self.grads.arena().flat());
        let mut param = self.model.params_mut().arena_mut().flat_mut();
        let (mut m, mut v) = (self.moments.exp_avg.flat_mut(), self.moments.exp_avg_sq.flat_mut());
        let mut shadow = self.shadow.as_mut().map(Shadow::flat_mut);
        for part in self.grads.parts() {
            let (at, shape) = match &part {
                Part::Flat { params, .. } => (params.start, vec![params.len()]),
                Part::Product { params, factors } => {
                    let [_, n, k] = factors.size();
                    (params.start, vec![n, k])
                }
            };
            let to = Updated {
                param: param.part(at, &shape[..])?,
                m: m.part(at, &shape[..])?,
                v: v.part(at, &shape[..])?,
                shadow: shadow.as_mut().map(|s| s.part(at, &shape[..])).transpose()?,
            };
            match part {
                Part::Flat { grads, .. } => step.update(exec, &flat.part(grads.start, [grads.len()])?, to, at)?,
                Part::Product { factors, .. } => step.update_product(exec, factors, to, at)?,
            }
        }
        Ok(())
    }

    /// Names the parameters whose gradients are not finite.
    fn not_finite(&self, step: u64) -> Error {
        let bad = |name: &str, view: Option<View<'_>>| {
            let v = view.and_then(|v| v.to_f32().ok())?;
            let at = v.iter().position(|x| !x.is_finite())?;
            Some(format!("{name}[{at}] = {}", v[at]))
        };
        let named = self.model.params().iter().filter_map(|(p, name)| match self.grads.factors(p) {
            None => bad(name, self.grads.get(p)),
            Some(of) => bad(&format!("the results of {name}"), Some(of.dy.view()))
                .or_else(|| bad(&format!("the inputs of {name}"), Some(of.x.view()))),
        });
        let named: Vec<String> = named.take(4).collect();
        Error::non_finite(format!(
            "step {step}: gradients are not finite: {}; nothing has been updated. Lower learning_rate or clip gradients",
            named.join(", ")
        ))
    }
}

/// What a configuration's precision computes matrix products in.
pub fn compute_dtype(precision: Precision) -> Dtype {
    match precision {
        Precision::Fp32 => Dtype::F32,
        Precision::Bf16 => Dtype::Bf16,
        Precision::Fp16 => Dtype::F16,
    }
}

/// What gradients are kept in.
fn gradient_dtype(config: &TrainingConfig) -> Dtype {
    match config.gradients {
        GradientPrecision::Fp32 | GradientPrecision::Factors => Dtype::F32,
        GradientPrecision::Pass => compute_dtype(config.precision),
    }
}

/// Room for the gradients of parameters of this layout.
fn gradients(exec: &Exec, layout: &Layout, config: &TrainingConfig) -> Result<Grads> {
    let is_matrix = |i: usize| layout.specs().get(i).is_some_and(|s| s.rank() == 2);
    let has_factors = config.gradients == GradientPrecision::Factors;
    Grads::with_factors(exec, &layout.beside(gradient_dtype(config))?, |i| has_factors && is_matrix(i))
}

impl UpdateRule {
    fn of(config: &TrainingConfig) -> UpdateRule {
        UpdateRule {
            betas: config.betas,
            eps: config.eps,
            weight_decay: config.weight_decay,
            max_norm: (config.gradient_clipping > 0.0).then_some(config.gradient_clipping),
            moments: match config.moments {
                MomentPrecision::Fp32 => MomentStorage::F32,
                // Which random numbers: no layer's, whose streams are under the seed itself.
                MomentPrecision::Bf16Stochastic => {
                    MomentStorage::Bf16Stochastic { seed: Stream::of(config.seed, &[0xada3]).id }
                }
            },
            shadow: Some(compute_dtype(config.precision)).filter(|d| *d != Dtype::F32),
            gradients: gradient_dtype(config),
        }
    }

    /// The update at this learning rate.
    fn step(&self, lr: f64) -> AdamW {
        let UpdateRule { betas, eps, weight_decay, moments, shadow, .. } = *self;
        let undecayed = Arc::new([]);
        AdamW { lr, betas, eps, weight_decay, step: 1, gradient_factor: 1.0, undecayed, moments, shadow }
    }
}

/// Cost of norm and update of all parameters: padding of their arena is not counted, it is nobody's. Gradients that are kept as
/// factors are made twice, once for the norm and once for the update; one of both is counted with the pass.
fn update_cost<M: Model>(rule: &UpdateRule, model: &M, grads: &Grads) -> [Cost; 2] {
    let n: usize = model.params().arena().layout().specs().iter().map(|s| s.len()).sum();
    let products: Flops = grads.all_factors().iter().map(|of| of.flops()).sum();
    let stored: usize = grads.arena().layout().specs().iter().map(|s| s.len()).sum();
    let sides: u128 = grads.all_factors().iter().map(|of| (of.dy.spec().bytes() + of.x.spec().bytes()) as u128).sum();
    let Ok(flat) = Spec::f32([n]) else { return [Cost::ZERO; 2] };
    let norm = GlobalNorm { loss_scale: 1.0, max_norm: rule.max_norm };
    let measure: Flops = norm.flops(&[&flat], Mask::NONE).forward;
    let moment = flat.with_dtype(rule.moments.dtype());
    let update: Flops = rule.step(0.0).flops(&[&flat, &flat, &moment, &moment], Mask::NONE).forward + products;
    // The norm reads the gradients; the update reads them, and reads and writes all else but the shadow, which it writes.
    let bytes = |dtype: Dtype| flat.with_dtype(dtype).bytes() as u128;
    let read = (stored * rule.gradients.bytes()) as u128 + sides;
    let moved = 2 * bytes(Dtype::F32) + read + 4 * bytes(moment.dtype()) + rule.shadow.map_or(0, bytes);
    [Cost { flops: measure, bytes: read }, Cost { flops: update, bytes: moved }]
}

/// The mean over micro-batches.
fn mean_loss(step: u64, losses: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for (i, loss) in losses.iter().enumerate() {
        let value = loss.item()?;
        if !value.is_finite() {
            return Err(Error::non_finite(format!(
                "step {step}: the loss of micro-batch {i} is {value}; nothing has been updated. Lower learning_rate, or \
                 look for such values in the data with `perfrun data validate`"
            )));
        }
        sum += f64::from(value);
    }
    Ok(sum / losses.len() as f64)
}

/// A number that a model noted, which is not waited for.
type Note = (&'static str, Tensor);

/// What a pass leaves.
struct Done {
    loss: Tensor,
    noted: Vec<Note>,
    renewed: Vec<(Buffer, Tensor)>,
    profile: Profile,
}

/// The mean of what `passes` passes noted under each name, in the order of the first.
fn means(noted: &[Note], passes: usize) -> Result<Vec<(&'static str, f64)>> {
    let mut means: Vec<(&'static str, f64)> = Vec::new();
    for (name, value) in noted {
        let value = f64::from(value.item()?) / passes as f64;
        match means.iter_mut().find(|(n, _)| n == name) {
            Some((_, sum)) => *sum += value,
            None => means.push((name, value)),
        }
    }
    Ok(means)
}

/// What a pass runs with.
struct On<'a, M> {
    model: &'a M,
    exec: &'a Exec,
    shadow: Option<&'a Arena>,
}

impl<M: Model> On<'_, M> {
    /// Forward and backward of one micro-batch; its loss, which is not waited for, and what ran.
    fn pass(
        &self,
        batch: &M::Batch,
        pass: &Pass,
        seed: f32,
        grads: &mut Grads,
        timed: Option<(Range<usize>, usize)>,
    ) -> Result<Done> {
        let params = self.model.params();
        let mut tape = Tape::with_params(self.exec, params.arena()).with_buffers(params.buffers().arena());
        if let Some(shadow) = self.shadow {
            tape = tape.with_shadow(shadow)?;
        }
        if let Some((timed, about)) = timed {
            tape = tape.watched(timed, about)?;
        }
        let loss = self.model.loss(&mut tape, batch, pass)?;
        tape.backward(loss, seed, grads)?;
        let (noted, renewed) = (tape.noted().to_vec(), tape.renewed().to_vec());
        Ok(Done { loss: tape.tensor(loss)?, noted, renewed, profile: tape.into_profile() })
    }
}

/// What one training step costs and needs, without numbers.
#[derive(Debug)]
pub struct StepPlan {
    /// Trainable numbers.
    pub parameters: u64,
    /// What runs in a step of one micro-batch, by module, room and pass.
    pub profile: StepProfile,
    /// Exact cost of forward and backward of one micro-batch.
    pub cost: StepCost,
    /// Cost of norm and update.
    pub update: Cost,
    /// Bytes of parameters, gradients, moments and activations at the worst moment.
    pub peak_bytes: usize,
}

impl StepPlan {
    /// The least seconds of an optimiser step of `accumulation` micro-batches on a device of these measured rates: every
    /// operator by itself is at its floor.
    pub fn floor_seconds(&self, accumulation: usize, matmul_rate: f64, copy_rate: f64) -> f64 {
        let floor = |cost: Cost| cost.floor_seconds(matmul_rate, copy_rate);
        let passes = self.profile.rows.iter().filter(|r| r.pass != profile::Pass::Optimiser);
        let pass: f64 = passes.map(|r| floor(r.cost())).sum();
        pass * accumulation as f64 + floor(self.update)
    }
}

/// Plans a training step of a model that was made on [`Exec::plan`].
///
/// # Errors
/// Whatever the model's forward pass reports; [`Error::Argument`] if `exec` computes.
pub fn plan_step<M: Model>(model: &M, exec: &Exec, batch: &M::Batch, config: &TrainingConfig) -> Result<StepPlan> {
    if !exec.is_plan() {
        return Err(Error::argument("plan: expected a device that only plans"));
    }
    let layout = model.params().arena().layout().clone();
    let mut grads = gradients(exec, &layout, config)?;
    let (rule, compute) = (UpdateRule::of(config), compute_dtype(config.precision));
    let _moments = Moments::new(exec, &layout, &rule)?;
    let mut shadow = Shadow::new(exec, &layout, compute)?;
    let pass = Pass { train: true, compute, seed: config.seed, number: 0 };
    let shadow = shadow.as_mut().map(|s| s.of(exec, model.params().arena())).transpose()?;
    let Done { profile, .. } =
        On { model, exec, shadow }.pass(batch, &pass, 1.0, &mut grads, Some((0..usize::MAX, 0)))?;
    let cost = profile.total();
    let mut watch = Watch::start(exec, 1, 0, 1)?;
    watch.begin(exec)?;
    let peak_bytes = profile.peak_bytes().max(exec.memory().peak);
    watch.pass(profile);
    grads.settled(exec)?;
    let update = update_cost(&rule, model, &grads);
    let profile = watch.finish(model, exec, 0, update)?;
    let parameters = model.params().count();
    Ok(StepPlan { parameters, cost, profile, update: update.into_iter().sum(), peak_bytes })
}
