//! Bank conflicts of shared memory: 32 banks of 4 bytes, one word of each a pass.
//!
//! Lanes that want the same word share it. An access of 8 bytes a lane goes in two halves of the warp, one of 16 bytes in four
//! quarters, each by itself; so 1, 2 and 4 passes are the fewest for a warp whose lanes want different words (CUDA C++
//! Programming Guide, compute capability 5.x and later; the split of wide accesses as NVIDIA's profiler counts it).

use super::WARP;

/// Banks of shared memory.
const BANKS: usize = 32;

/// Passes over the banks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    /// That the access takes.
    pub taken: u32,
    /// That the same words would take if they were spread evenly over the banks.
    pub fewest: u32,
}

impl Passes {
    /// Passes that a better layout would save.
    pub fn conflicts(self) -> u32 {
        self.taken - self.fewest
    }
}

/// The passes of one access by a warp: `bytes` (1, 2, 4, 8 or 16) at the address of each lane that takes part.
pub fn passes(addresses: &[Option<u32>; WARP], bytes: usize) -> Passes {
    let lanes = match bytes {
        0..=4 => WARP,
        5..=8 => WARP / 2,
        _ => WARP / 4,
    };
    let mut all = Passes::default();
    for group in addresses.chunks(lanes) {
        add(&mut all, group.iter().flatten().copied(), bytes);
    }
    all
}

/// The passes of `ldmatrix` and `stmatrix`: eight rows of 16 bytes a matrix, one matrix a pass at best.
pub fn passes_of_rows(rows: &[u32]) -> Passes {
    let mut all = Passes::default();
    for matrix in rows.chunks(8) {
        add(&mut all, matrix.iter().copied(), 16);
    }
    all
}

/// No word of shared memory.
const NONE: u32 = u32::MAX;

/// Adds the passes of a group that is served at once.
fn add(all: &mut Passes, addresses: impl Iterator<Item = u32>, bytes: usize) {
    // The first word that each bank gives, and what it gives besides: without conflicts nothing. At most one word for each lane of
    // a warp, as no group is wider.
    let mut first = [NONE; BANKS];
    let mut load = [0u32; BANKS];
    let mut more = [NONE; WARP];
    let (mut others, mut found, mut most) = (0, 0, 0);
    for address in addresses {
        let mut word = address / 4;
        let end = address.saturating_add(bytes as u32).div_ceil(4);
        while word < end {
            let bank = word as usize % BANKS;
            let is_new = match first[bank] {
                NONE => true,
                known => known != word && !more[..others].contains(&word),
            };
            if is_new && found < WARP {
                if first[bank] == NONE {
                    first[bank] = word;
                } else {
                    more[others] = word;
                    others += 1;
                }
                found += 1;
                load[bank] += 1;
                if load[bank] > most {
                    most = load[bank];
                }
            }
            word += 1;
        }
    }
    all.taken += most;
    all.fewest += (found as u32).div_ceil(BANKS as u32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(stride: u32, bytes: usize) -> Passes {
        passes(&std::array::from_fn(|lane| Some(lane as u32 * stride)), bytes)
    }

    #[test]
    fn consecutive_lanes_of_any_width_have_no_conflict() {
        for (bytes, fewest) in [(1, 1), (2, 1), (4, 1), (8, 2), (16, 4)] {
            assert_eq!(strided(bytes, bytes as usize), Passes { taken: fewest, fewest }, "{bytes}");
        }
    }

    #[test]
    fn a_stride_of_a_power_of_two_words_conflicts_by_that_power() {
        for power in 0..6 {
            let found = strided(4 << power, 4);
            assert_eq!((found.taken, found.conflicts()), (1 << power, (1 << power) - 1));
        }
        // An odd stride meets every bank once.
        assert_eq!(strided(4 * 33, 4).conflicts(), 0);
    }

    #[test]
    fn one_word_for_all_lanes_is_one_pass() {
        assert_eq!(passes(&[Some(64); WARP], 4), Passes { taken: 1, fewest: 1 });
        assert_eq!(passes(&[Some(64); WARP], 16), Passes { taken: 4, fewest: 4 });
        assert_eq!(passes(&[None; WARP], 4), Passes::default());
    }

    #[test]
    fn rows_of_a_matrix_conflict_unless_they_are_swizzled() {
        // Rows of 128 bytes: all eight in the same four banks.
        let plain: Vec<u32> = (0..8).map(|r| r * 128).collect();
        assert_eq!(passes_of_rows(&plain), Passes { taken: 8, fewest: 1 });
        let swizzled: Vec<u32> = (0..8).map(|r| (r * 128) ^ ((r & 7) << 4)).collect();
        assert_eq!(passes_of_rows(&swizzled).conflicts(), 0);
        let padded: Vec<u32> = (0..32).map(|r| r * 144).collect();
        assert_eq!(passes_of_rows(&padded), Passes { taken: 4, fewest: 4 });
    }

    #[test]
    fn quarters_of_a_warp_are_served_by_themselves() {
        // Lanes 0 and 8 want the same banks, but in different quarters.
        let mut lanes = [None; WARP];
        (lanes[0], lanes[8]) = (Some(0), Some(128));
        assert_eq!(passes(&lanes, 16), Passes { taken: 2, fewest: 2 });
        (lanes[0], lanes[1]) = (Some(0), Some(128));
        lanes[8] = None;
        assert_eq!(passes(&lanes, 16).conflicts(), 1);
    }
}
