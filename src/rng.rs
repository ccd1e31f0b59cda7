//! Philox 4x32-10: random numbers as a pure function of key and counter.
//!
//! Element `i` of stream `s` under seed `k` is the same number on every device, in every order and on every number of
//! threads, so dropout masks are recomputed instead of stored and a resumed run draws what it would have drawn.
//!
//! # Source
//! Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; test vectors from the Random123
//! distribution.

/// The bits of counter block `[block_lo, block_hi, stream_lo, stream_hi]` under `key`.
pub fn philox(key: u64, stream: u64, block: u64) -> [u32; 4] {
    philox_lanes::<1>(key, stream, block).map(|[word]| word)
}

/// The bits of `L` neighbouring counter blocks from `first` on, word by word: `[word][lane]`, so that loops over lanes become
/// vector code wherever this is inlined.
#[inline(always)]
pub fn philox_lanes<const L: usize>(key: u64, stream: u64, first: u64) -> [[u32; L]; 4] {
    philox_rounds::<10, L>(key, stream, first)
}

/// The same with `ROUNDS` rounds. With 7 the numbers pass the tests of BigCrush as well (Salmon et al. 2011, table 2); 10 are the
/// authors' margin.
#[inline(always)]
pub fn philox_rounds<const ROUNDS: usize, const L: usize>(key: u64, stream: u64, first: u64) -> [[u32; L]; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    let mut c = [[0; L], [0; L], [stream as u32; L], [(stream >> 32) as u32; L]];
    for lane in 0..L {
        let block = first.wrapping_add(lane as u64);
        (c[0][lane], c[1][lane]) = (block as u32, (block >> 32) as u32);
    }
    for _ in 0..ROUNDS {
        for lane in 0..L {
            let p0 = u64::from(c[0][lane]) * 0xD251_1F53;
            let p1 = u64::from(c[2][lane]) * 0xCD9E_8D57;
            c[0][lane] = (p1 >> 32) as u32 ^ c[1][lane] ^ k0;
            c[1][lane] = p1 as u32;
            c[2][lane] = (p0 >> 32) as u32 ^ c[3][lane] ^ k1;
            c[3][lane] = p0 as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    c
}

/// A family of random numbers: element `i` is always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Which experiment.
    pub seed: u64,
    /// Which use within it: one layer at one step, one parameter's initialisation, one epoch's shuffle.
    pub id: u64,
}

impl Stream {
    /// The stream `id` of `seed`.
    pub const fn new(seed: u64, id: u64) -> Stream {
        Stream { seed, id }
    }

    /// A stream whose id is a hash of these parts: for uses that are named by several numbers.
    pub fn of(seed: u64, parts: &[u64]) -> Stream {
        let mut id = 0x9E37_79B9_7F4A_7C15_u64;
        for &part in parts {
            let b = philox(seed, id, part);
            id = u64::from(b[0]) | u64::from(b[1]) << 32;
        }
        Stream { seed, id }
    }

    /// The 32 random bits of element `i`.
    pub fn bits(self, i: u64) -> u32 {
        philox(self.seed, self.id, i / 4)[(i % 4) as usize]
    }

    /// Element `i`, uniform in [0, 1) with 24 bits: the same number on every device.
    pub fn uniform(self, i: u64) -> f32 {
        unit(self.bits(i))
    }

    /// Element `i`, uniform in [−1, 1).
    pub fn signed(self, i: u64) -> f32 {
        2.0 * self.uniform(i) - 1.0
    }

    /// Element `i` of the standard normal distribution (Box-Muller over two neighbouring 53-bit uniforms), in f64.
    pub fn normal(self, i: u64) -> f64 {
        let b = philox(self.seed, self.id, i);
        // (0, 1], so that the logarithm is finite.
        let u1 = 1.0 - unit64(b[0], b[1]);
        let u2 = unit64(b[2], b[3]);
        (-2.0 * u1.ln()).sqrt() * (std::f64::consts::TAU * u2).cos()
    }

    /// Element `i`, an integer in [0, n), unbiased to 2⁻³²: for shuffles. `n` is at least 1.
    pub fn below(self, i: u64, n: u64) -> u64 {
        let b = philox(self.seed, self.id, i);
        let wide = u128::from(u64::from(b[0]) | u64::from(b[1]) << 32) * u128::from(n.max(1));
        (wide >> 64) as u64
    }
}

/// 24 bits as a number in [0, 1).
pub fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 / 16_777_216.0
}

fn unit64(lo: u32, hi: u32) -> f64 {
    ((u64::from(lo) | u64::from(hi) << 32) >> 11) as f64 / 9_007_199_254_740_992.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_test_vectors_hold() {
        assert_eq!(philox(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, u64::MAX, u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        // Counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0.
        let block = 0x85a3_08d3_243f_6a88;
        let stream = 0x0370_7344_1319_8a2e;
        let key = 0x299f_31d0_a409_3822;
        assert_eq!(philox(key, stream, block), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn lanes_are_neighbouring_blocks() {
        let first = u64::from(u32::MAX) - 2;
        let words = philox_lanes::<8>(7, 9, first);
        for lane in 0..8 {
            assert_eq!(words.map(|w| w[lane]), philox(7, 9, first + lane as u64));
        }
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let s = Stream::of(7, &[1, 2]);
        let n = 20_000_u64;
        let mean = (0..n).map(|i| f64::from(s.uniform(i))).sum::<f64>() / n as f64;
        // Standard error 0.002: five of them.
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let var = (0..n).map(|i| s.normal(i).powi(2)).sum::<f64>() / n as f64;
        // Standard error of the variance 0.01.
        assert!((var - 1.0).abs() < 0.05, "{var}");
        assert!((0..n).all(|i| s.below(i, 7) < 7 && (0.0..1.0).contains(&s.uniform(i))));
    }

    #[test]
    fn streams_of_different_parts_differ() {
        assert_ne!(Stream::of(1, &[1, 2]).id, Stream::of(1, &[2, 1]).id);
        assert_ne!(Stream::of(1, &[0]).bits(0), Stream::of(2, &[0]).bits(0));
        assert_eq!(Stream::of(1, &[3]), Stream::of(1, &[3]));
    }
}
