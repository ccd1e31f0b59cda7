//! `attention`: softmax(q·kᵀ) over the keys that a mask lets through, times v, without ever storing the scores.

mod cases;
mod cpu;
mod dropping;
mod executed;
mod gathered;
mod geometry;
mod launch;
mod reference;
mod short;
mod small_sm90;
mod visible;
mod windows;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use geometry::Geometry;
pub use visible::{Sequences, SlidingWindow};
pub use windows::Windows;

use crate::backend::Exec;
use crate::cost::Flops;
use crate::error::Result;
use crate::ops::contract::Room;
use crate::ops::host;
use crate::ops::operator::{Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs};
use crate::rng::Stream;
use crate::tensor::{Dtype, Spec};

/// Multi-head attention.
///
/// ```text
/// s[i, j] = scale · q[i]·k[j] + bias[h, i, j]        p[i, j] = exp(s[i, j]) / Σ_visible exp(s[i, ·])
/// y[i]    = Σ_visible dropped(p[i, j]) · v[j]         lse[i] = ln Σ_visible exp(s[i, ·])
/// ```
///
/// for every sample and head `h`, which reads the keys of head `h / (H / Hkv)`. A query sees the first `key_lengths[b]` keys,
/// of these with [`Causal::TopLeft`] the first `i + 1`, with [`Causal::BottomRight`] the first `i + 1 + Nk − Nq`; with a
/// [`SlidingWindow`] those near its own; with [`Sequences`] those of its own sequence, in which the other masks count. What is
/// not visible does not take part, whatever it holds. With [`Windows`] a token sees the tokens of its window and region, and `i`, `j`
/// of the bias are places in the window. A query that sees no key, or only keys of bias −∞, gives 0.
///
/// # Shapes
/// `qkv [B, N, 3, H, D]` or `[B, N, 3·H·D]`, or `q [B, Nq, H, D]`, `k`, `v` `[B, Nk, Hkv, D]`, or `q [B, Nq, H·D]`, `k`, `v`
/// `[B, Nk, Hkv·D]`; each with or without `bias [H, Nq, Nk]` (of a window's tokens, if there are windows), which is always f32 → `y [B, Nq, H, D]` or `[B, Nq, H·D]`.
/// `H` is a multiple of `Hkv`, `D` at most 512. Saves `lse [B, H, Nq]` in f32.
///
/// # Units
/// Scores are dimensionless; `y` has the unit of `v`.
///
/// # Cost
/// Over the `P` visible pairs and the `R` queries that see a key, of all samples and heads: forward `4·D·P` matmul,
/// `5·P` vector (`+P` with a bias, `+P` with dropout), `P + R` special. Backward `2·D·P` matmul for each of q, k, v and, unless
/// only v is wanted, for the gradient of the probabilities, with `2·P + 2·D·R` vector (`+P` with dropout, `+P` for q or k,
/// `+P` for the bias). Recomputed: the scores, `2·D·P` matmul, `2·P` vector (`+P` with a bias, `+P` with dropout if v is
/// wanted), `P` special.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for other shapes, a head size of 0 or above 512, heads that do not divide; [`Error::Dtype`](crate::error::Error::Dtype) unless q, k
/// and v are the same of f32, bf16 and f16 and `bias` is f32; [`Error::Argument`](crate::error::Error::Argument) for 0 heads, a scale that is not finite,
/// a dropout outside [0, 1), key lengths that are not `B` numbers up to `Nk`, sequences of several samples,
/// beside key lengths, or that do not cover the tokens, windows that do not cut the tokens or stand beside another mask, another number of inputs.
///
/// # Source
/// Vaswani et al. 2017, section 3.2; online softmax and recomputation after Dao et al. 2022, algorithms 1 and 4.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads `H`.
    pub heads: usize,
    /// Which later keys a query does not see.
    pub causal: Causal,
    /// Factor of the scores; `None` is 1/√D.
    pub scale: Option<f32>,
    /// How many keys each sample has; `None` is all of them. On the host, so that the cost is exact.
    pub key_lengths: Option<Arc<[usize]>>,
    /// Queries see keys near their own alone.
    pub sliding: Option<SlidingWindow>,
    /// The single sample is several sequences, one after the other. On the host, so that the cost is exact.
    pub sequences: Option<Sequences>,
    /// Dropout of the probabilities.
    pub dropout: Option<ProbabilityDropout>,
    /// Tokens see those of their window alone; excludes every other mask and dropout.
    pub windows: Option<Windows>,
}

/// Which keys lie in a query's future.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Causal {
    /// None: every query sees every key.
    #[default]
    None,
    /// Query `i` sees key `j` if `j ≤ i`: both begin together.
    TopLeft,
    /// Query `i` sees key `j` if `j ≤ i + Nk − Nq`: both end together, as when keys were cached.
    BottomRight,
}

/// Dropout of attention probabilities: each is 0 with probability `p`, else divided by `1 − p`, where `p` counts as the nearest 256th
/// from 1/256 to 255/256: 0.1 is 26/256. So the mean stays exactly, and one draw of 128 bits decides about 16 probabilities.
///
/// The mask is recomputed, never stored. The probability of sample `b`, head `h`, query `i`, key `j` is kept if 8 bits of the stream's
/// Philox 4x32-7 block `(r << 32) + 16·c + 4·a + d` are at least `256·p`, with `r = (b·H + h)·⌈Nq/16⌉ + ⌊i/16⌋`, `c = ⌊j/16⌋`,
/// `a = ⌊(i mod 8)/2⌋`, `d = ⌊(j mod 8)/2⌋`: bits `t` and `t + 16` of its four words, from the lowest bit of the number the lower ones
/// of words 0 to 3, then the upper ones, with `t = j mod 2 + 2·⌊(i mod 16)/8⌋ + 4·⌊(j mod 16)/8⌋ + 8·(i mod 2)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbabilityDropout {
    /// In [0, 1).
    pub p: f32,
    /// Random numbers of this use: one layer at one step.
    pub stream: Stream,
}

impl Attention {
    /// Every query of `heads` heads sees every key; the usual scale, no dropout.
    pub fn full(heads: usize) -> Attention {
        Attention {
            heads,
            causal: Causal::None,
            scale: None,
            key_lengths: None,
            sliding: None,
            sequences: None,
            dropout: None,
            windows: None,
        }
    }

    /// The dropout, if it does anything.
    fn dropping(&self) -> Option<ProbabilityDropout> {
        self.dropout.filter(|d| d.p > 0.0)
    }
}

impl Arity<1> for Attention {}
impl Arity<2> for Attention {}
impl Arity<3> for Attention {}
impl Arity<4> for Attention {}

/// Which gradients are asked for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    q: bool,
    k: bool,
    v: bool,
    bias: bool,
}

impl Wanted {
    fn of(inputs: usize, wanted: Mask) -> Wanted {
        let has = |i: usize| i < inputs && wanted.has(i);
        match inputs {
            1 | 2 => Wanted { q: has(0), k: has(0), v: has(0), bias: has(1) },
            _ => Wanted { q: has(0), k: has(1), v: has(2), bias: has(3) },
        }
    }

    fn any(self) -> bool {
        self.v || self.scores()
    }

    /// Whether the gradient of the scores is needed.
    fn scores(self) -> bool {
        self.q || self.k || self.bias
    }
}

impl Operator for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let g = Geometry::of(self, x)?;
        Ok(Outputs { y: vec![x[0].with_shape(g.y)?], saved: vec![Spec::f32([g.batch, g.heads, g.nq])?] })
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let Ok(g) = Geometry::of(self, x) else { return OpFlops::default() };
        let (pairs, rows) = g.pairs(self);
        let product = Flops::matmul(2 * g.d as u128 * pairs);
        let when = |yes: bool, flops: Flops| if yes { flops } else { Flops::ZERO };
        let each = Flops::vector(pairs);
        let (bias, drop) = (g.bias.is_some(), self.dropping().is_some());
        // Scale, shift, sum and quotient for each pair; the maximum takes one less for each row, its logarithm is added.
        let forward = product * 2 + each * 5 + when(bias, each) + when(drop, each) + Flops::special(pairs + rows);
        let w = Wanted::of(x.len(), wanted);
        let mut backward = when(w.q, product) + when(w.k, product) + when(w.v, product) + when(w.bias, each);
        if w.scores() {
            backward += product + each * 2 + when(drop, each) + Flops::vector(2 * g.d as u128 * rows);
            backward += when(w.q || w.k, each);
        }
        let scores = product + each * 2 + when(bias, each) + when(drop && w.v, each) + Flops::special(pairs);
        OpFlops { forward, backward, recomputed: when(w.any(), scores) }
    }

    fn unmasked_flops(&self, x: &[&Spec], wanted: Mask) -> Option<OpFlops> {
        let Attention { heads, scale, dropout, .. } = *self;
        // Windows are what is computed, not a mask of it, but for the regions that a shift brings together.
        let windows = self.windows.map(|w| Windows { shift: [0; 3], ..w });
        Some(Attention { scale, dropout, windows, ..Attention::full(heads) }.flops(x, wanted))
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        match exec.gpu() {
            Some(gpu) => self.launch_fwd(gpu, io),
            None => host::forward(self, io),
        }
    }
}

impl Differentiable for Attention {
    /// Which inputs there are is not known here: positions beyond them do no harm.
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps { x: Mask::ALL, y: Mask::of([0]) }
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        match exec.gpu() {
            Some(gpu) => self.launch_bwd(gpu, io),
            None => host::backward(self, io),
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "attention",
    about: "softmax of scaled scores over the visible keys, times the values",
    dtypes: &Dtype::FLOATS,
    kernels: launch::KERNELS,
    cases: cases::cases,
    bad_cases: cases::bad_cases,
    bench_cases: cases::bench_cases,
};
