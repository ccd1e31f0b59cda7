//! Where the heads of an application lie in its inputs, and which pairs of query and key its mask lets through.

use super::Attention;
use super::windows::Windows;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Spec, expect_dtype, expect_shape};

/// Largest head size.
pub(super) const MAX_HEAD: usize = 512;

/// Where one of q, k, v lies: the vector of head `h` at token `t` (counted over the batch) begins at
/// `offset + t·row + h·D` of input `input`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) input: usize,
    pub(super) offset: usize,
    pub(super) row: usize,
}

/// Sizes and places of one application.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    /// Queries and keys of a sample.
    pub(super) nq: usize,
    pub(super) nk: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) d: usize,
    pub(super) q: Place,
    pub(super) k: Place,
    pub(super) v: Place,
    /// Position of the bias among the inputs.
    pub(super) bias: Option<usize>,
    /// Shape of the result.
    pub(super) y: Vec<usize>,
    pub(super) scale: f32,
    pub(super) windows: Option<Windows>,
}

impl Geometry {
    /// Checks `inputs` against `op`.
    pub(super) fn of(op: &Attention, inputs: &[&Spec]) -> Result<Geometry> {
        if op.heads == 0 {
            return Err(Error::argument("attention: heads: expected 1 or more, found 0"));
        }
        let found = inputs.len();
        let mut g = match inputs {
            [qkv] => packed(op, qkv, None)?,
            [qkv, _] => packed(op, qkv, Some(1))?,
            [q, k, v] => separate(op, q, k, v, None)?,
            [q, k, v, _] => separate(op, q, k, v, Some(3))?,
            _ => {
                return Err(Error::argument(format!(
                    "attention: expected [qkv], [qkv, bias], [q, k, v] or [q, k, v, bias], found {found} inputs"
                )));
            }
        };
        if g.d == 0 || g.d > MAX_HEAD {
            return Err(Error::shape(format!("attention: head size: expected 1 to {MAX_HEAD}, found {}", g.d)));
        }
        g.scale = op.scale.unwrap_or((1.0 / (g.d as f64).sqrt()) as f32);
        if !g.scale.is_finite() {
            return Err(Error::argument(format!("attention: scale: expected a finite number, found {}", g.scale)));
        }
        if let Some(drop) = op.dropout {
            drop.check()?;
        }
        if let Some(windows) = op.windows {
            windows.check(g.nq)?;
            if g.nk != g.nq || op.hides() || op.dropout.is_some() {
                return Err(Error::argument(format!(
                    "attention: windows: expected Nk = Nq={}, no causal mask, other mask or dropout, found Nk={}, {op:?}",
                    g.nq, g.nk
                )));
            }
            g.windows = Some(windows);
        }
        if let Some(i) = g.bias {
            expect_dtype("attention", "bias", inputs[i], &[Dtype::F32])?;
            let (nq, nk) = g.places();
            expect_shape("attention", "bias", inputs[i], &[("H", g.heads), ("Nq", nq), ("Nk", nk)])?;
        }
        if let Some(sequences) = &op.sequences {
            if g.batch != 1 || op.key_lengths.is_some() {
                return Err(Error::argument(format!(
                    "attention: sequences: expected a single sample (B=1) and no key lengths, found B={}, {:?}",
                    g.batch, op.key_lengths
                )));
            }
            sequences.check(&g)?;
        }
        if let Some(lengths) = &op.key_lengths
            && (lengths.len() != g.batch || lengths.iter().any(|&n| n > g.nk))
        {
            let (b, m) = (g.batch, g.nk);
            return Err(Error::argument(format!(
                "attention: key_lengths: expected B={b} lengths of at most Nk={m}, found {lengths:?}"
            )));
        }
        Ok(g)
    }

    /// Queries that share a head of keys.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Queries and keys that the bias has: those of a window, if there are windows.
    pub(super) fn places(&self) -> (usize, usize) {
        self.windows.map_or((self.nq, self.nk), |w| (w.tokens(), w.tokens()))
    }

    /// Pairs of query and key that the mask lets through, and queries that see a key; over all samples and heads.
    pub(super) fn pairs(&self, op: &Attention) -> (u128, u128) {
        if let Some(windows) = self.windows {
            let heads = (self.batch * self.heads) as u128;
            return (windows.pairs() * heads, self.nq as u128 * heads);
        }
        // Every step asks: samples differ in their number of keys alone, and without a mask queries do not differ.
        let (samples, alike) = if op.key_lengths.is_some() { (self.batch, 1) } else { (self.batch.min(1), self.batch) };
        let (queries, each) = if op.is_even() { (self.nq.min(1), self.nq) } else { (self.nq, 1) };
        let (mut pairs, mut rows) = (0_u128, 0_u128);
        for b in 0..samples {
            for n in (0..queries).map(|i| self.seen(op, b, i).len()).filter(|&n| n > 0) {
                pairs += n as u128;
                rows += 1;
            }
        }
        let times = (self.heads * alike) as u128 * each as u128;
        (pairs * times, rows * times)
    }
}

/// `[B, N, 3, H, D]` or `[B, N, 3·H·D]`.
fn packed(op: &Attention, qkv: &Spec, bias: Option<usize>) -> Result<Geometry> {
    expect_dtype("attention", "qkv", qkv, &Dtype::FLOATS)?;
    let (h, shape) = (op.heads, qkv.shape());
    let (batch, n, d, y) = match *shape {
        [b, n, 3, heads, d] if heads == h => (b, n, d, vec![b, n, h, d]),
        [b, n, c] if c % (3 * h) == 0 => (b, n, c / 3 / h, vec![b, n, c / 3]),
        _ => {
            return Err(Error::shape(format!(
                "attention: qkv: expected [B, N, 3, H={h}, D] or [B, N, 3·H·D], found {shape:?}"
            )));
        }
    };
    let place = |i: usize| Place { input: 0, offset: i * h * d, row: 3 * h * d };
    let [q, k, v] = [0, 1, 2].map(place);
    Ok(Geometry { batch, nq: n, nk: n, heads: h, kv_heads: h, d, q, k, v, bias, y, scale: 0.0, windows: None })
}

/// q `[B, Nq, H, D]`, k and v `[B, Nk, Hkv, D]`; or the last two axes as one.
fn separate(op: &Attention, q: &Spec, k: &Spec, v: &Spec, bias: Option<usize>) -> Result<Geometry> {
    expect_dtype("attention", "q", q, &Dtype::FLOATS)?;
    expect_dtype("attention", "k", k, &[q.dtype()])?;
    expect_dtype("attention", "v", v, &[q.dtype()])?;
    let h = op.heads;
    let (batch, nq, d, y) = match *q.shape() {
        [b, n, heads, d] if heads == h => (b, n, d, vec![b, n, h, d]),
        [b, n, c] if c % h == 0 => (b, n, c / h, vec![b, n, c]),
        _ => {
            let found = q.shape();
            return Err(Error::shape(format!(
                "attention: q: expected [B, N, H={h}, D] or [B, N, H·D], found {found:?}"
            )));
        }
    };
    let keys = match *k.shape() {
        [b, m, heads, width] if q.rank() == 4 && b == batch && width == d => Some((m, heads)),
        [b, m, c] if q.rank() == 3 && b == batch && d > 0 && c % d == 0 => Some((m, c / d)),
        _ => None,
    };
    let Some((nk, kv_heads)) = keys.filter(|&(_, kv)| kv > 0 && h.is_multiple_of(kv)) else {
        let axes = if q.rank() == 4 { format!("Hkv, D={d}") } else { format!("Hkv·D, D={d}") };
        return Err(Error::shape(format!(
            "attention: k: expected [B={batch}, Nk, {axes}] with Hkv a divisor of H={h}, found {:?} (q is {:?})",
            k.shape(),
            q.shape()
        )));
    };
    if v.shape() != k.shape() {
        let (found, want) = (v.shape(), k.shape());
        return Err(Error::shape(format!("attention: v: expected {want:?} like k, found {found:?}")));
    }
    let place = |input: usize, heads: usize| Place { input, offset: 0, row: heads * d };
    let (q, k, v) = (place(0, h), place(1, kv_heads), place(2, kv_heads));
    Ok(Geometry { batch, nq, nk, heads: h, kv_heads, d, q, k, v, bias, y, scale: 0.0, windows: None })
}
