//! The loss and its gradient of rows that come in pieces: `cross_entropy` has one, `linear_cross_entropy` as many as its logits need.

use super::{CrossEntropy, WORK, launch, log_sum_exp};
use crate::backend::Exec;
use crate::backend::cpu::vector;
use crate::backend::gpu::Gpu;
use crate::error::Result;
use crate::ops::blocks::{Floats, In, Out, map};
use crate::ops::operator::GradSlot;
use crate::tensor::{Tensor, View, ViewMut};

/// The losses of rows, as far as they are known.
#[derive(Debug)]
pub(in crate::ops) struct Losses<'a> {
    op: &'a CrossEntropy,
    v: usize,
    place: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    /// Of every row.
    Here(Vec<f32>),
    /// Of every block of rows, so many of which are known.
    There { gpu: &'a Gpu, known: Tensor, blocks: usize },
}

impl<'a> Losses<'a> {
    /// Of rows of `v` logits with these labels, which will come in pieces of so many rows.
    ///
    /// # Errors
    /// On the CPU a wrong label; what the device reports.
    pub(in crate::ops) fn new(
        op: &'a CrossEntropy,
        exec: &'a Exec,
        labels: &View<'_>,
        v: usize,
        pieces: &[usize],
    ) -> Result<Losses<'a>> {
        let place = match exec.gpu() {
            Some(gpu) => Place::There { gpu, known: launch::known(gpu, pieces)?, blocks: 0 },
            None => {
                op.check(labels.i32()?, v)?;
                Place::Here(Vec::with_capacity(labels.spec().len()))
            }
        };
        Ok(Losses { op, v, place })
    }

    /// Takes the next rows; leaves their log-sum-exp.
    ///
    /// # Errors
    /// What the device reports.
    pub(in crate::ops) fn add(&mut self, logits: &View<'_>, labels: &View<'_>, lse: &mut ViewMut<'_>) -> Result<()> {
        match &mut self.place {
            Place::There { gpu, known, blocks } => {
                *blocks += launch::rows(self.op, gpu, [logits, labels], lse, known, *blocks)?;
            }
            Place::Here(each) => {
                let (op, v, labels, first) = (self.op, self.v, labels.i32()?, each.len());
                each.resize(first + labels.len(), 0.0);
                let to = [Out::of(lse, 1)?, Out::f32(&mut each[first..], 1)];
                map(labels.len(), WORK * v, [In::new(Floats::of(logits)?, v)], to, |first, [x], [lse, each]| {
                    for (r, (x, (lse, each))) in x.chunks(v).zip(lse.iter_mut().zip(each)).enumerate() {
                        (*lse, *each) = match op.label(labels[first + r]) {
                            Some(label) => {
                                let all = log_sum_exp(x);
                                (all, all - x[label])
                            }
                            None => (0.0, 0.0),
                        };
                    }
                });
            }
        }
        Ok(())
    }

    /// The mean over all rows that have a label.
    ///
    /// # Errors
    /// What the device reports.
    pub(in crate::ops) fn total(self, labels: &View<'_>, loss: &mut ViewMut<'_>) -> Result<()> {
        match self.place {
            Place::There { gpu, known, blocks } => launch::total(self.op, gpu, labels, self.v, &known, blocks, loss),
            Place::Here(each) => {
                let total: f64 = each.iter().map(|&e| f64::from(e)).sum();
                loss.f32()?.fill((total / self.op.labelled(labels.i32()?) as f64) as f32);
                Ok(())
            }
        }
    }
}

/// What the gradient of every labelled row is multiplied by: the gradient of the loss over the number of such rows.
#[derive(Debug)]
pub(in crate::ops) enum Scale {
    Here(f32),
    There(Tensor),
}

impl Scale {
    /// For all rows with these labels.
    ///
    /// # Errors
    /// What the device reports.
    pub(in crate::ops) fn new(op: &CrossEntropy, exec: &Exec, labels: &View<'_>, dloss: &View<'_>) -> Result<Scale> {
        if let Some(gpu) = exec.gpu() {
            return launch::scale(op, gpu, labels, dloss).map(Scale::There);
        }
        Ok(Scale::Here(dloss.f32()?.iter().sum::<f32>() / op.labelled(labels.i32()?) as f32))
    }
}

impl CrossEntropy {
    /// The gradient of some rows of logits.
    ///
    /// # Errors
    /// What the device reports.
    pub(in crate::ops) fn derive(
        &self,
        exec: &Exec,
        logits: &View<'_>,
        labels: &View<'_>,
        lse: &View<'_>,
        scale: &Scale,
        dx: &mut GradSlot<'_>,
    ) -> Result<()> {
        let (n, v) = logits.spec().rows_cols();
        let scale = match (scale, exec.gpu()) {
            (Scale::There(scale), Some(gpu)) => return launch::derive(self, gpu, [logits, labels, lse], scale, dx),
            (Scale::Here(scale), _) => *scale,
            (Scale::There(scale), None) => scale.item()?,
        };
        let (labels, lse) = (labels.i32()?, lse.f32()?);
        let Some(dx) = Out::slot(dx, v)? else { return Ok(()) };
        map(n, WORK * v, [In::new(Floats::of(logits)?, v)], [dx], |first, [x], [dx]| {
            for (r, (x, dx)) in x.chunks(v).zip(dx.chunks_mut(v)).enumerate() {
                let Some(label) = self.label(labels[first + r]) else {
                    dx.fill(0.0);
                    continue;
                };
                dx.copy_from_slice(x);
                vector::exp_shifted(dx, lse[first + r]);
                dx[label] -= 1.0;
                vector::scale_in_place(scale, dx);
            }
        });
        Ok(())
    }
}
