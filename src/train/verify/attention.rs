//! Attention cases: q, k, v on their own, every mask and the bias.

use serde::Deserialize;

use super::Computed;
use super::ops::OpRun;
use crate::error::{Error, Result};
use crate::ops::attention::{Attention, Causal};

/// `attrs` of an attention case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttentionCase {
    b: usize,
    heads: usize,
    kv_heads: Option<usize>,
    q_len: usize,
    kv_len: usize,
    head_dim: usize,
    causal: Option<CausalName>,
    scale: Option<f32>,
    #[serde(default)]
    bias: bool,
    key_lengths: Option<Vec<i64>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CausalName {
    TopLeft,
    BottomRight,
}

impl AttentionCase {
    pub(super) fn run(&self, mut run: OpRun<'_>) -> Result<Vec<Computed>> {
        let (b, n, m, d) = (self.b, self.q_len, self.kv_len, self.head_dim);
        let kv_heads = self.kv_heads.unwrap_or(self.heads);
        let q = run.variable("q", &[b, n, self.heads, d])?;
        let k = run.variable("k", &[b, m, kv_heads, d])?;
        let v = run.variable("v", &[b, m, kv_heads, d])?;
        let causal = match self.causal {
            None => Causal::None,
            Some(CausalName::TopLeft) => Causal::TopLeft,
            Some(CausalName::BottomRight) => Causal::BottomRight,
        };
        let key_lengths = self.lengths(&run)?.map(Into::into);
        // The generator takes a scale of 0 for none.
        let scale = self.scale.filter(|s| *s != 0.0);
        let op = Attention { causal, scale, key_lengths, ..Attention::full(self.heads) };
        let o = if self.bias {
            let bias = run.variable_in_f32("bias", &[self.heads, n, m])?;
            run.tape.apply(op, [q, k, v, bias])?
        } else {
            run.tape.apply(op, [q, k, v])?
        };
        run.finish(&[("o", o)], &[])
    }

    /// The lengths, which stand in the attributes and among the inputs.
    fn lengths(&self, run: &OpRun<'_>) -> Result<Option<Vec<usize>>> {
        let Some(said) = &self.key_lengths else { return Ok(None) };
        let found = run.case.integers("in.key_lengths", &[self.b])?;
        if *said != found {
            return Err(Error::argument(format!("in.key_lengths: expected {said:?} as attrs say, found {found:?}")));
        }
        let length = |n: i64| {
            usize::try_from(n).map_err(|_| Error::argument(format!("key_lengths: expected 0 or more, found {n}")))
        };
        found.into_iter().map(length).collect::<Result<_>>().map(Some)
    }
}
