//! Cases of convolutional networks: sliding windows and batch norm.

use serde::Deserialize;

use super::Computed;
use super::ops::OpRun;
use crate::error::{Error, Result};
use crate::ops::batch_norm::{BatchNorm, Statistics};
use crate::ops::conv1d::Conv1d;
use crate::ops::conv2d::Conv2d;

/// `attrs` of a batch norm.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchNormCase {
    b: usize,
    channels: usize,
    size: Vec<usize>,
    training: bool,
}

/// `attrs` of a convolution.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConvCase {
    dims: usize,
    b: usize,
    #[serde(rename = "in")]
    channels: usize,
    out: usize,
    size: Vec<usize>,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl BatchNormCase {
    pub(super) fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let c = self.channels;
        let x = run.variable("x", &[&[self.b, c][..], &self.size].concat())?;
        let (weight, bias) = (run.variable("weight", &[c])?, run.variable("bias", &[c])?);
        let (mean, var) = (run.constant("running_mean", &[c])?, run.constant("running_var", &[c])?);
        // The format has no place for these two: they are PyTorch's defaults.
        let statistics = if self.training { Statistics::Batch { momentum: 0.1 } } else { Statistics::Running };
        let results = run.tape.apply_all(BatchNorm { eps: 1e-5, statistics }, [x, weight, bias, mean, var])?;
        match results[..] {
            [y, new_mean, new_var] => run.finish(&[("y", y)], &[("new_mean", new_mean), ("new_var", new_var)]),
            // Evaluation leaves the statistics as they are.
            [y] => run.finish(&[("y", y)], &[("new_mean", mean), ("new_var", var)]),
            _ => Err(Error::argument(format!("batch_norm: expected 1 or 3 results, found {}", results.len()))),
        }
    }
}

impl ConvCase {
    pub(super) fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let ConvCase { dims, b, channels, out, kernel, stride, padding, .. } = *self;
        if dims != self.size.len() || !matches!(dims, 1 | 2) {
            let size = &self.size;
            return Err(Error::argument(format!(
                "attrs: expected dims of 1 or 2 with a size each, found {dims} and {size:?}"
            )));
        }
        let x = run.variable("x", &[&[b, channels][..], &self.size].concat())?;
        let weight = run.variable("weight", &[&[out, channels][..], &vec![kernel; dims]].concat())?;
        let bias = run.variable("bias", &[out])?;
        let y = if dims == 1 {
            run.tape.apply(Conv1d { stride, padding, dilation: 1, groups: 1 }, [x, weight, bias])?
        } else {
            let op = Conv2d { stride: [stride; 2], padding: [padding; 2], dilation: [1; 2], groups: 1 };
            run.tape.apply(op, [x, weight, bias])?
        };
        run.finish(&[("y", y)], &[])
    }
}
