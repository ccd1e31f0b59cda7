//! The order in which an epoch visits the samples.

use crate::error::{Error, Result};
use crate::rng::Stream;

/// Separates the streams of shuffles from other uses of the same seed.
const SHUFFLES: u64 = 0x5348_5546;

/// A fresh permutation every epoch, each a function of seed and epoch alone.
///
/// # Source
/// Fisher and Yates's shuffle in Durstenfeld's form, drawing from [`Stream`]; [`Shuffle::like_torch`] draws from the Mersenne
/// Twister instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffle {
    seed: u64,
    like_torch: bool,
}

impl Shuffle {
    /// The permutations of this seed.
    pub fn new(seed: u64) -> Shuffle {
        Shuffle { seed, like_torch: false }
    }

    /// The permutations that PyTorch's `DistributedSampler` of this seed visits: `randperm` of a generator with the seed
    /// `seed + epoch`. For runs that are compared with PyTorch sample by sample.
    pub fn like_torch(seed: u64) -> Shuffle {
        Shuffle { seed, like_torch: true }
    }

    /// The order of `len` samples in `epoch`.
    pub fn permutation(self, epoch: u64, len: usize) -> Vec<usize> {
        if self.like_torch {
            return randperm(len, self.seed.wrapping_add(epoch));
        }
        let stream = Stream::of(self.seed, &[SHUFFLES, epoch]);
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            // At most `last`, so it fits.
            let other = stream.below(last as u64, last as u64 + 1) as usize;
            order.swap(last, other);
        }
        order
    }
}

/// PyTorch's `randperm` on the CPU: forwards, each place swapped with one of those after it, by 32 bits modulo how many there
/// are. Below 2³²/20 samples, as there.
fn randperm(len: usize, seed: u64) -> Vec<usize> {
    let mut twister = Twister::new(seed as u32);
    let mut order: Vec<usize> = (0..len).collect();
    for i in 0..len.saturating_sub(1) {
        let other = i + twister.next() as usize % (len - i);
        order.swap(i, other);
    }
    order
}

/// MT19937.
///
/// # Source
/// Matsumoto and Nishimura 1998, "Mersenne Twister", with the initialisation of 2002.
struct Twister {
    words: [u32; 624],
    // The next word to give.
    at: usize,
}

impl Twister {
    fn new(seed: u32) -> Twister {
        let mut words = [seed; 624];
        let mut last = seed;
        for (i, word) in words.iter_mut().enumerate().skip(1) {
            last = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
            *word = last;
        }
        Twister { words, at: 624 }
    }

    fn word(&self, i: usize) -> u32 {
        self.words.get(i % 624).copied().unwrap_or_default()
    }

    fn next(&mut self) -> u32 {
        if self.at >= 624 {
            for i in 0..624 {
                let joined = (self.word(i) & 0x8000_0000) | (self.word(i + 1) & 0x7FFF_FFFF);
                let twist = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
                let new = self.word(i + 397) ^ (joined >> 1) ^ twist;
                if let Some(word) = self.words.get_mut(i) {
                    *word = new;
                }
            }
            self.at = 0;
        }
        let mut y = self.word(self.at);
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }
}

/// One epoch's samples, cut into batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    order: Vec<usize>,
    batch_size: usize,
    drop_last: bool,
}

impl Batches {
    /// `len` samples in batches of `batch_size`: in the order of `shuffle` for that epoch, or in their own order.
    ///
    /// A last batch that is not full is left out if `drop_last`, so that every step has the same weight.
    ///
    /// # Errors
    /// [`Error::Argument`] if `batch_size` is 0, or if there is not one batch.
    pub fn new(len: usize, batch_size: usize, drop_last: bool, shuffle: Option<(Shuffle, u64)>) -> Result<Batches> {
        if batch_size == 0 {
            return Err(Error::argument("batch_size: expected at least 1, found 0"));
        }
        if len == 0 || (drop_last && len < batch_size) {
            return Err(Error::argument(format!(
                "batch_size: expected at most the number of samples, found {batch_size} for {len} samples"
            )));
        }
        let order = match shuffle {
            Some((shuffle, epoch)) => shuffle.permutation(epoch, len),
            None => (0..len).collect(),
        };
        Ok(Batches { order, batch_size, drop_last })
    }

    /// How many batches there are.
    pub fn len(&self) -> usize {
        if self.drop_last { self.order.len() / self.batch_size } else { self.order.len().div_ceil(self.batch_size) }
    }

    /// Whether there is none; [`Batches::new`] sees to it that there is one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of batch `i`; `None` from [`Batches::len`] on.
    pub fn get(&self, i: usize) -> Option<&[usize]> {
        if i >= self.len() {
            return None;
        }
        let start = i * self.batch_size;
        self.order.get(start..(start + self.batch_size).min(self.order.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_visited_once_an_epoch_and_in_another_order_the_next() {
        let shuffle = Shuffle::new(7);
        let first = shuffle.permutation(0, 100);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(first, shuffle.permutation(1, 100));
        assert_ne!(first, Shuffle::new(8).permutation(0, 100));
        assert_eq!(first, shuffle.permutation(0, 100));
        assert_eq!((shuffle.permutation(3, 0), shuffle.permutation(3, 1)), (vec![], vec![0]));
    }

    #[test]
    fn permutations_like_pytorchs_are_pytorchs() {
        assert_eq!(Shuffle::like_torch(0).permutation(0, 8), [4, 0, 7, 3, 2, 5, 1, 6]);
        let order = Shuffle::like_torch(0).permutation(0, 12_512);
        assert_eq!(order[..5], [364, 9520, 9535, 9861, 5667]);
        assert_eq!(order, Shuffle::like_torch(-3_i64 as u64).permutation(3, 12_512), "seed and epoch are added");
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..12_512).collect::<Vec<_>>());
        assert!(Shuffle::like_torch(1).permutation(0, 0).is_empty());
    }

    #[test]
    fn every_place_is_equally_likely() {
        // 6000 epochs of 5 samples: 1200 expected in each of 25 cells, standard deviation 31.
        let mut counts = [[0_i32; 5]; 5];
        for epoch in 0..6000 {
            for (place, sample) in Shuffle::new(1).permutation(epoch, 5).into_iter().enumerate() {
                counts[place][sample] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|&n| (n - 1200).abs() < 155), "{counts:?}");
    }

    #[test]
    fn batches_cover_the_order_and_the_last_may_be_short_or_left_out() {
        let all = Batches::new(10, 4, false, None).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all.get(2), Some([8, 9].as_slice()));
        assert_eq!(all.get(3), None);
        let full = Batches::new(10, 4, true, None).unwrap();
        assert_eq!((full.len(), full.get(1), full.get(2)), (2, Some([4, 5, 6, 7].as_slice()), None));
    }

    #[test]
    fn no_batch_at_all_is_an_error() {
        for (len, size, drop_last) in [(3, 4, true), (0, 1, false), (3, 0, false)] {
            let error = Batches::new(len, size, drop_last, None).unwrap_err().to_string();
            assert!(error.starts_with("batch_size: expected at "), "{error}");
        }
        assert_eq!(Batches::new(3, 4, false, None).unwrap().len(), 1);
    }
}
