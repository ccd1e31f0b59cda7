//! The same step under the rules of other tools, and where each of them differs from the exact count.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Pass, StepProfile, number};
use crate::error::{Error, Result};
use crate::tape::Row;

/// Whose rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Convention {
    /// Every operation of forward and backward, as the operators state it.
    Exact,
    /// PyTorch's `FlopCounterMode`: products alone, attention's backward with five instead of four, no masks.
    Pytorch,
    /// DeepSpeed's flops profiler: some calls of the forward pass, by its own weights, and twice that for backward.
    Deepspeed,
    /// PaLM, appendix B: `6·N + 12·L·H·Q·T` for each token.
    Palm,
}

impl Convention {
    /// All of them.
    pub const ALL: [Convention; 4] = [Convention::Exact, Convention::Pytorch, Convention::Deepspeed, Convention::Palm];

    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Convention::Exact => "exact",
            Convention::Pytorch => "pytorch",
            Convention::Deepspeed => "deepspeed",
            Convention::Palm => "palm",
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Convention {
    type Err = Error;

    fn from_str(name: &str) -> Result<Convention> {
        Convention::ALL.into_iter().find(|c| c.name() == name).ok_or_else(|| {
            Error::argument(format!("convention: expected deepspeed, pytorch, palm or exact, found `{name}`"))
        })
    }
}

/// One reason for which a count is not the exact one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Why.
    pub reason: &'static str,
    /// FLOPs above the exact count, or below.
    pub flops: i128,
}

/// A step counted by some rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Whose.
    pub convention: Convention,
    /// FLOPs of the step.
    pub flops: u128,
    /// Of its forward passes.
    pub forward: u128,
    /// Why it is not the exact count: these add up to the whole difference.
    pub differences: Vec<Difference>,
}

impl Count {
    /// One object.
    pub fn json(&self) -> Value {
        let differences: Vec<Value> =
            self.differences.iter().map(|d| json!({"reason": d.reason, "flops": d.flops as f64})).collect();
        json!({
            "convention": self.convention, "flops": number(self.flops), "forward": number(self.forward),
            "differences": differences,
        })
    }
}

/// Sums that differences are made of.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    products: u128,
    attention: u128,
    vector: u128,
    /// Above `products`, if masks and padding hid nothing.
    masked: u128,
    /// Scores that a fused attention computes again, masks hiding nothing.
    scores: u128,
    /// Products of blocks that run again, masks hiding nothing.
    rerun: u128,
}

impl Sums {
    fn of(profile: &StepProfile) -> Sums {
        let mut sums = Sums::default();
        for row in &profile.uses {
            let (model, unmasked) = (row.cost.model().flops, row.unmasked.model().flops);
            sums.products += model.matmul;
            sums.vector += model.vector;
            sums.masked += unmasked.matmul.saturating_sub(model.matmul);
            sums.rerun += row.unmasked.rerun.flops.matmul;
            if row.op == "attention" {
                sums.attention += model.matmul;
                sums.scores += row.unmasked.recomputed.matmul;
            }
        }
        sums
    }
}

impl StepProfile {
    /// The step by some rules.
    ///
    /// # Errors
    /// [`Error::Argument`] if the rules do not fit: PaLM's need attention over tokens.
    pub fn count(&self, convention: Convention) -> Result<Count> {
        let sums = Sums::of(self);
        let exact = sums.products + sums.vector;
        let (flops, forward, differences) = match convention {
            Convention::Exact => (exact, self.exact_forward(), Vec::new()),
            Convention::Pytorch => self.pytorch(sums),
            Convention::Deepspeed => self.deepspeed(exact),
            Convention::Palm => self.palm(sums)?,
        };
        let differences = differences.into_iter().filter(|d| d.flops != 0).collect();
        Ok(Count { convention, flops, forward, differences })
    }

    fn exact_forward(&self) -> u128 {
        self.rows.iter().filter(|r| r.pass == Pass::Forward).map(|r| r.model.total()).sum()
    }

    fn pytorch(&self, sums: Sums) -> (u128, u128, Vec<Difference>) {
        let flops = sums.products + sums.masked + sums.scores + sums.rerun;
        let forward = self.uses.iter().map(|u| u.unmasked.forward.flops.matmul).sum();
        let differences = vec![
            below("everything that is no product is not counted", sums.vector),
            above("what masks and padding hide is counted", sums.masked),
            above("attention's backward counts five products: the scores again", sums.scores),
            above("blocks that run again are counted", sums.rerun),
        ];
        (flops, forward, differences)
    }

    fn deepspeed(&self, exact: u128) -> (u128, u128, Vec<Difference>) {
        let forward: u128 = self.uses.iter().map(|u| rule(u).flops).sum();
        let exact_forward = self.exact_forward();
        let differences = vec![
            Difference {
                reason: "forward: its own weights for norms and activations; softmax, residual sums, biases, loss not",
                flops: forward as i128 - exact_forward as i128,
            },
            Difference {
                reason: "backward is taken to be twice its forward",
                flops: 2 * forward as i128 - (exact - exact_forward) as i128,
            },
        ];
        (3 * forward, forward, differences)
    }

    fn palm(&self, sums: Sums) -> Result<(u128, u128, Vec<Difference>)> {
        let attentions = || self.uses.iter().filter(|u| u.op == "attention");
        let Some([b, n, ..]) = attentions().map(|u| u.result.shape()).next() else {
            return Err(Error::argument("convention: palm: expected attention over tokens, found none in this model"));
        };
        let tokens = (*b as u128) * (*n as u128) * self.micro_batches as u128;
        let weights = 6 * u128::from(self.parameters) * tokens;
        let squares: u128 = attentions().map(|u| 3 * u.unmasked.forward.flops.matmul).sum();
        let differences = vec![
            below("everything that is no product is not counted", sums.vector),
            Difference {
                reason: "6 for each parameter and token, biases, norms and position embedding among them",
                flops: weights as i128 - (sums.products - sums.attention) as i128,
            },
            Difference {
                reason: "attention over full squares, three times its forward",
                flops: squares as i128 - sums.attention as i128,
            },
        ];
        Ok((weights + squares, (weights + squares) / 3, differences))
    }
}

fn above(reason: &'static str, flops: u128) -> Difference {
    Difference { reason, flops: flops as i128 }
}

fn below(reason: &'static str, flops: u128) -> Difference {
    Difference { reason, flops: -(flops as i128) }
}

/// What DeepSpeed counts of forward passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Multiply-adds.
    pub macs: u128,
    /// FLOPs.
    pub flops: u128,
}

/// DeepSpeed's count of a use's forward passes: the call of PyTorch that the original makes there, by its rule.
///
/// # Source
/// deepspeedai/DeepSpeed, `deepspeed/profiling/flops_profiler/profiler.py`.
pub fn rule(row: &Row) -> Counted {
    let results = row.result.len() as u128 * u128::from(row.calls);
    let macs = row.unmasked.forward.flops.matmul / 2;
    let extra = match row.op {
        // A linear map's bias is not counted, a convolution's is.
        "matmul" if !row.variant.is_empty() => results,
        "patch_embed" | "conv1d" | "conv2d" if row.cost.forward.flops.vector > 0 => results,
        "layer_norm" | "group_norm" | "batch_norm" => 5 * results,
        "gelu" | "relu" | "silu" | "softmax" => results,
        "unpatchify" => permuting_einsum(row.result.len()) * u128::from(row.calls),
        // Batch and channels are forgotten.
        "resize_bilinear" | "resize_tokens" => {
            row.result.shape().iter().rev().take(2).product::<usize>() as u128 * u128::from(row.calls)
        }
        _ => 0,
    };
    Counted { macs, flops: 2 * macs + extra }
}

/// An einsum that only moves `n` numbers counts `n + 1`, read from a text of four digits.
fn permuting_einsum(n: usize) -> u128 {
    let text = format!("{:.3e}", n as f64 + 1.0);
    text.parse::<f64>().map_or(0, |count| count as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_refused() {
        for convention in Convention::ALL {
            assert_eq!(convention.to_string().parse::<Convention>().unwrap(), convention);
        }
        let error = "fvcore".parse::<Convention>().unwrap_err().to_string();
        assert!(error.contains("expected deepspeed, pytorch, palm or exact, found `fvcore`"), "{error}");
    }

    #[test]
    fn an_einsum_is_counted_from_its_four_digits() {
        assert_eq!((permuting_einsum(384), permuting_einsum(163_840)), (385, 163_800));
    }
}
