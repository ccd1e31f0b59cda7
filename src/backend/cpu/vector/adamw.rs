//! One step of AdamW over slices.

use crate::backend::cpu::dispatch::wide;

/// The numbers of one step, in the order in which they are used. 1 − β is kept beside β: as a difference of f32 it would
/// have lost five of its digits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adamw {
    /// Factor of the gradient: clipping and loss scale.
    pub scale: f32,
    /// 1 − learning rate · weight decay.
    pub keep: f32,
    /// 1 − β₁.
    pub follow: f32,
    /// β₂.
    pub beta2: f32,
    /// 1 − β₂.
    pub take: f32,
    /// Learning rate / (1 − β₁ᵗ).
    pub rate: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub root: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
}

impl Adamw {
    /// The numbers of step `step` (the first is 1) for a learning rate, (β₁, β₂), ε, weight decay and gradient factor.
    pub fn new(step: u64, rate: f64, (beta1, beta2): (f64, f64), eps: f64, decay: f64, scale: f64) -> Adamw {
        Adamw {
            scale: scale as f32,
            keep: (1.0 - rate * decay) as f32,
            follow: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            take: (1.0 - beta2) as f32,
            rate: (rate / (1.0 - power(beta1, step))) as f32,
            root: (1.0 / (1.0 - power(beta2, step)).sqrt()) as f32,
            eps: eps as f32,
        }
    }
}

/// bᵗ by squaring: the same bits on every machine, which a library's power does not promise.
fn power(mut b: f64, mut t: u64) -> f64 {
    let mut all = 1.0;
    while t > 0 {
        if t & 1 == 1 {
            all *= b;
        }
        b *= b;
        t >>= 1;
    }
    all
}

wide! {
    /// `g = scale·grad; m = m + follow·(g − m); v = β₂v + take·g²; p = keep·p − rate·(m / (root·√v + ε))`.
    ///
    /// Without fused arithmetic, so that every CPU gives the same bits.
    pub fn adamw<F>(how: &Adamw, p: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        let Adamw { scale, keep, follow, beta2, take, rate, root, eps } = *how;
        for (((p, &g), m), v) in p.iter_mut().zip(grad).zip(m).zip(v) {
            let g = scale * g;
            *m += follow * (g - *m);
            *v = beta2 * *v + take * (g * g);
            *p = keep * *p - rate * (*m / (root * v.sqrt() + eps));
        }
    }
}
