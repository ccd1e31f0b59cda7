//! What `dropout` and `drop_path` share: which element `i` of a stream is kept, and by what it is multiplied.
//!
//! The factor of element `i` is a pure function of the stream, `p` and `i`. So it is drawn again in backward and nothing is
//! stored, it is the same on every device and number of threads, and a resumed run draws what it would have drawn.

use crate::backend::cpu::dispatch::wide;
use crate::backend::gpu::kernel::Arg;
use crate::error::{Error, Result};
use crate::rng::{Stream, philox_lanes, unit};
use crate::scalar::Scalar;

/// Numbers of 16 Philox blocks, drawn side by side.
const DRAWN: usize = 64;

/// Keeps an element with probability 1 − `p`, and multiplies it by 1/(1 − `p`).
#[derive(Clone, Copy)]
pub(super) struct Keep {
    pub(super) p: f32,
    pub(super) stream: Stream,
}

impl Keep {
    /// Refuses a probability outside [0, 1).
    pub(super) fn check(self, op: &str) -> Result<()> {
        if (0.0..1.0).contains(&self.p) {
            return Ok(());
        }
        Err(Error::argument(format!(
            "{op}: p: expected a probability of 0 or more and less than 1, found {}; with 1 nothing is left: leave the \
             branch out instead",
            self.p
        )))
    }

    /// What kept elements are multiplied by.
    pub(super) fn scale(self) -> f64 {
        1.0 / (1.0 - f64::from(self.p))
    }

    /// Seed, stream, how far the 24 bits of an element must reach, and the scale: as kernels take them.
    pub(super) fn args<'a>(self) -> [Arg<'a>; 4] {
        // Exact: p is a multiple of 2⁻¹⁴⁹ and less than 1.
        let reach = (f64::from(self.p) * 16_777_216.0).ceil() as i32;
        let (seed, id) = (self.stream.seed.cast_signed(), self.stream.id.cast_signed());
        [Arg::I64(seed), Arg::I64(id), Arg::I32(reach), Arg::F32(self.scale() as f32)]
    }

    /// The factor of element `i`: the scale or 0.
    pub(super) fn factor<S: Scalar>(self, i: usize) -> S {
        if self.stream.uniform(i as u64) >= self.p { S::of(self.scale()) } else { S::zero() }
    }

    /// The factors of the elements from `first` on, a multiple of 4.
    pub(super) fn fill(self, first: usize, factors: &mut [f32]) {
        if self.p == 0.0 {
            return factors.fill(1.0);
        }
        draw(self.stream.seed, self.stream.id, first as u64 / 4, self.p, self.scale() as f32, factors);
    }
}

wide! {
    fn draw<F>(seed: u64, id: u64, block: u64, p: f32, scale: f32, factors: &mut [f32]) {
        for (i, factors) in factors.chunks_mut(DRAWN).enumerate() {
            let words = philox_lanes::<{ DRAWN / 4 }>(seed, id, block + (i * DRAWN / 4) as u64);
            let mut drawn = [0.0; DRAWN];
            for lane in 0..DRAWN / 4 {
                for word in 0..4 {
                    drawn[4 * lane + word] = if unit(words[word][lane]) >= p { scale } else { 0.0 };
                }
            }
            factors.copy_from_slice(&drawn[..factors.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_drawn_side_by_side_are_those_drawn_alone() {
        for p in [0.0, 0.1, 0.999_999_9] {
            let keep = Keep { p, stream: Stream::of(3, &[1]) };
            for (first, n) in [(0, 1), (4, 63), (64, 65), (1 << 34, 300)] {
                let mut factors = vec![f32::NAN; n];
                keep.fill(first, &mut factors);
                for (i, f) in factors.iter().enumerate() {
                    assert_eq!(*f, keep.factor::<f32>(first + i), "p = {p}, element {}", first + i);
                }
            }
        }
    }
}
