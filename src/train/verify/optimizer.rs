//! Optimiser cases: steps of AdamW with clipping and a loss scale, over one arena.

use std::sync::Arc;

use serde::Deserialize;

use super::{Case, Computed};
use crate::backend::Exec;
use crate::error::{Error, Result};
use crate::ops::adamw::{AdamW, Clock, MomentStorage, Updated};
use crate::ops::global_norm::GlobalNorm;
use crate::tensor::{Arena, Dtype, Layout};
use crate::train::loss_scale::{Hysteresis, LossScale};

/// `attrs` of an optimiser case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizerCase {
    shapes: Vec<Vec<usize>>,
    steps: usize,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    max_norm: Option<f64>,
    init_scale: Option<f64>,
    growth: Option<f64>,
    backoff: Option<f64>,
    growth_interval: Option<u64>,
    /// Which gradients the generator made infinite, and how large the others are; the gradients tell.
    #[serde(rename = "inf_steps")]
    _inf_steps: Option<Vec<usize>>,
    #[serde(rename = "grad_size")]
    _grad_size: Option<f64>,
}

impl OptimizerCase {
    /// The loss scale before the first step. The generator takes 0 for none.
    fn loss_scale(&self) -> Result<LossScale> {
        let Some(scale) = self.init_scale.filter(|s| *s != 0.0) else { return Ok(LossScale::NONE) };
        let (Some(growth), Some(backoff), Some(window)) = (self.growth, self.backoff, self.growth_interval) else {
            return Err(Error::argument("attrs: expected growth, backoff and growth_interval beside init_scale"));
        };
        let hysteresis = Hysteresis::default();
        Ok(LossScale { scale, good_steps: 0, backoff, growth, window, min: 0.0, hysteresis })
    }
}

/// One run of the optimiser.
struct Steps<'a> {
    case: &'a Case,
    exec: &'a Exec,
    attrs: OptimizerCase,
    params: Arena,
    grads: Arena,
    exp_avg: Arena,
    exp_avg_sq: Arena,
    clock: Clock,
    scale: LossScale,
    /// Scale, norm and whether it was skipped, a step each.
    log: Vec<f64>,
}

pub(super) fn run(case: &Case, exec: &Exec) -> Result<Vec<Computed>> {
    let attrs: OptimizerCase = case.attrs()?;
    // Before anything is allocated: the file has tensors of these shapes.
    let first = |i: usize, shape: &[usize]| case.floats(&format!("in.param.{i}"), shape, Dtype::F32);
    let first = attrs.shapes.iter().enumerate().map(|(i, s)| first(i, s)).collect::<Result<Vec<_>>>()?;
    let layout = Layout::new(Dtype::F32, attrs.shapes.iter().map(|s| s.as_slice().into()))?;
    let arena = || exec.arena(layout.clone());
    let (mut params, grads, exp_avg, exp_avg_sq) = (arena()?, arena()?, arena()?, arena()?);
    for (i, from) in first.iter().enumerate() {
        if let Some(mut to) = params.view_mut(i) {
            to.write(from.bytes())?;
        }
    }
    let scale = attrs.loss_scale()?;
    let clock = Clock::new(exec, 0)?;
    let mut steps = Steps { case, exec, attrs, params, grads, exp_avg, exp_avg_sq, clock, scale, log: Vec::new() };
    for step in 0..steps.attrs.steps {
        steps.step(step)?;
    }
    steps.computed()
}

impl Steps<'_> {
    /// One step, as the trainer does it.
    fn step(&mut self, step: usize) -> Result<()> {
        let scale = self.scale.scale;
        for (i, shape) in self.attrs.shapes.iter().enumerate() {
            let mut grad = self.case.floats(&format!("in.grad.{step}.{i}"), shape, Dtype::F32)?.to_f32()?;
            // What a backward pass of the scaled loss gives.
            grad.iter_mut().for_each(|g| *g *= scale as f32);
            if let Some(mut to) = self.grads.view_mut(i) {
                to.write(bytemuck::cast_slice(&grad))?;
            }
        }
        let norm = GlobalNorm { loss_scale: scale, max_norm: self.attrs.max_norm.filter(|n| *n != 0.0) };
        let found = norm.find(self.exec, &self.grads.flat())?;
        let OptimizerCase { lr, betas, eps, weight_decay, .. } = self.attrs;
        let (undecayed, moments) = (Arc::new([]), MomentStorage::F32);
        let op =
            AdamW { lr, betas, eps, weight_decay, step: 1, gradient_factor: 1.0, undecayed, moments, shadow: None };
        let (m, v) = (self.exp_avg.flat_mut(), self.exp_avg_sq.flat_mut());
        let to = Updated { param: self.params.flat_mut(), m, v, shadow: None };
        self.clock.set_rate(lr)?;
        let clock = &mut self.clock;
        op.update_by(self.exec, self.grads.flat(), to, &found, clock)?;
        let measured = found.read()?;
        let is_skipped = !measured.finite;
        if is_skipped && !self.scale.skips() {
            return Err(Error::non_finite(format!(
                "step {step}: gradients are not finite, and no loss scale skips them"
            )));
        }
        let logged = if is_skipped { -1.0 } else { measured.norm };
        self.log.extend([scale, logged, f64::from(u8::from(is_skipped))]);
        if !self.scale.update(is_skipped) {
            return Err(Error::non_finite(format!("step {step}: the loss scale cannot fall any further")));
        }
        Ok(())
    }

    fn computed(self) -> Result<Vec<Computed>> {
        let mut out = Vec::new();
        for (key, arena) in [("param", &self.params), ("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)] {
            for i in 0..self.attrs.shapes.len() {
                if let Some(view) = arena.view(i) {
                    out.push(Computed::of(format!("out.{key}.{i}"), &view)?);
                }
            }
        }
        let log = Computed::new("out.log", &[self.attrs.steps, 3], self.log);
        out.push(Computed { columns: &["scale", "norm", "skipped"], ..log });
        out.push(Computed::new("out.final_scale", &[1], vec![self.scale.scale]));
        Ok(out)
    }
}
