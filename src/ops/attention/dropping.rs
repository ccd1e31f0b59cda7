//! Which probabilities dropout keeps: the host's half of `kernels/common/dropping.cuh`.
//!
//! A head's probabilities lie in tiles of 16 queries by 16 keys, a tile in 16 blocks of four queries by four keys, and one block of
//! Philox gives each of its 16 probabilities 8 bits. Matrix units leave a block to two neighbouring lanes, whichever of queries and keys are
//! rows: so forward and backward draw every number once.

use super::ProbabilityDropout;
use crate::backend::cpu::dispatch::wide;
use crate::backend::gpu::kernel::Arg;
use crate::error::Result;
use crate::ops::keep::Keep;
use crate::rng::philox_rounds;
use crate::scalar::Scalar;

/// Queries, and keys, of a tile; blocks of it.
const SIDE: usize = 16;
const BLOCKS: usize = 16;
/// Of Philox: multiplications are what dropout costs beside the exponentials, on GPUs.
const ROUNDS: usize = 7;

impl ProbabilityDropout {
    /// Refuses a probability outside [0, 1).
    pub(super) fn check(self) -> Result<()> {
        Keep { p: self.p, stream: self.stream }.check("attention: dropout")
    }

    /// How many of 256 numbers are dropped; at least one, and not all.
    fn reach(self) -> u32 {
        ((f64::from(self.p) * 256.0).round() as u32).clamp(1, 255)
    }

    /// What is kept is multiplied by this.
    fn scale(self) -> f64 {
        256.0 / f64::from(256 - self.reach())
    }

    /// Seed, stream, how many of 256 numbers are dropped, and the scale: as kernels take them.
    pub(super) fn args<'a>(self) -> [Arg<'a>; 4] {
        let (seed, id) = (self.stream.seed.cast_signed(), self.stream.id.cast_signed());
        [Arg::I64(seed), Arg::I64(id), Arg::I32(self.reach().cast_signed()), Arg::F32(self.scale() as f32)]
    }

    /// The factor of query `i` and key `j` of the `head`-th of all heads, of `nq` queries: the scale or 0.
    pub(super) fn factor<S: Scalar>(self, head: usize, nq: usize, i: usize, j: usize) -> S {
        let block = block(head * nq.div_ceil(SIDE) + i / SIDE, j / SIDE) + (i % 8 / 2 * 4 + j % 8 / 2) as u64;
        let words = philox_rounds::<ROUNDS, 1>(self.stream.seed, self.stream.id, block).map(|[word]| word);
        let place = place(i, j);
        let number = (0..8).map(|bit| (words[bit % 4] >> (place + bit / 4 * 16) & 1) << bit).sum::<u32>();
        if number >= self.reach() { S::of(self.scale()) } else { S::zero() }
    }

    /// The factors of `queries` queries from `first` on and of keys from `key` on, a key a row of `lanes` factors.
    pub(super) fn fill(
        self,
        (head, nq): (usize, usize),
        (first, queries): (usize, usize),
        key: usize,
        lanes: usize,
        factors: &mut [f32],
    ) {
        let keys = factors.len() / lanes;
        if queries == 0 || keys == 0 {
            return;
        }
        let (reach, scale) = (self.reach(), self.scale() as f32);
        for row in first / SIDE..=(first + queries - 1) / SIDE {
            let mine = (row * SIDE).max(first)..((row + 1) * SIDE).min(first + queries);
            for column in key / SIDE..=(key + keys - 1) / SIDE {
                let at = block(head * nq.div_ceil(SIDE) + row, column);
                let kept = kept(self.stream.seed, self.stream.id, at, reach);
                for j in (column * SIDE).max(key)..((column + 1) * SIDE).min(key + keys) {
                    for i in mine.clone() {
                        let is_kept = kept[i % 8 / 2 * 4 + j % 8 / 2] >> place(i, j) & 1 == 1;
                        factors[(j - key) * lanes + i - first] = if is_kept { scale } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// The first block of the tile in row `row` of all heads' tiles and column `column`.
fn block(row: usize, column: usize) -> u64 {
    (row as u64) << 32 | (column * BLOCKS) as u64
}

/// Where in its block the number of query `i` and key `j` stands.
fn place(i: usize, j: usize) -> usize {
    j % 2 + i % SIDE / 8 * 2 + j % SIDE / 8 * 4 + i % 2 * 8
}

wide! {
    /// Which numbers of each block of a tile are at least `reach`: compared bit by bit from the lowest, all of a block at once.
    fn kept<F>(seed: u64, stream: u64, first: u64, reach: u32) -> [u32; BLOCKS] {
        let words = philox_rounds::<ROUNDS, BLOCKS>(seed, stream, first);
        let mut at_least = [u32::MAX; BLOCKS];
        for bit in 0..8 {
            let is_clear = (reach >> bit & 1).wrapping_sub(1);
            for (at_least, &word) in at_least.iter_mut().zip(&words[bit % 4]) {
                let so_far = if bit == 4 { *at_least << 16 } else { *at_least };
                *at_least = (so_far & word) | (is_clear & (so_far | word));
            }
        }
        at_least.map(|bits| bits >> 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn drop(p: f32) -> ProbabilityDropout {
        ProbabilityDropout { p, stream: Stream::new(3, 5) }
    }

    #[test]
    fn factors_filled_in_tiles_are_those_drawn_alone() {
        for (p, first, queries, key, keys) in
            [(0.1, 0, 16, 0, 16), (0.5, 5, 8, 3, 30), (0.999, 17, 40, 32, 7), (0.001, 30, 1, 47, 1)]
        {
            let (lanes, drop) = (queries + 3, drop(p));
            let mut factors = vec![f32::NAN; keys * lanes];
            drop.fill((2, 71), (first, queries), key, lanes, &mut factors);
            for j in 0..keys {
                for i in 0..queries {
                    let alone: f32 = drop.factor(2, 71, first + i, key + j);
                    assert_eq!(factors[j * lanes + i], alone, "p = {p}, query {}, key {}", first + i, key + j);
                }
            }
        }
    }

    #[test]
    fn every_probability_has_bits_of_its_own() {
        // Of two different ones of a tile of 16 by 32, whose blocks are 32, no two may always agree.
        let words = |i: usize, j: usize| {
            (0..64).map(|head| u64::from(drop(0.5).factor::<f32>(head, 16, i, j) > 0.0) << head).sum::<u64>()
        };
        let mut all: Vec<u64> = (0..16).flat_map(|i| (0..32).map(move |j| words(i, j))).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 16 * 32);
    }

    #[test]
    fn a_probability_is_that_of_the_nearest_256th_and_the_mean_stays() {
        for (p, reach) in [(1e-30, 1), (0.1, 26), (0.5, 128), (0.999, 255), (0.999_999_9, 255)] {
            let drop = drop(p);
            assert_eq!(drop.reach(), reach);
            let share = (256 - reach) as f64 / 256.0;
            assert_eq!(drop.scale() * share, 1.0);
            let n = 256;
            let kept =
                (0..n * n).filter(|k| drop.factor::<f32>(0, n, k / n, k % n) > 0.0).count() as f64 / (n * n) as f64;
            // Five standard errors of the share.
            assert!((kept - share).abs() < 5.0 * (share * (1.0 - share)).sqrt() / n as f64 + 1e-9, "p = {p}: {kept}");
        }
    }
}
