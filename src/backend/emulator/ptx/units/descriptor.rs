//! Shared-memory matrix descriptors of `wgmma`: where the 16-byte pieces of an operand lie.
//!
//! ```text
//! bits  0..14  start address / 16
//!      16..30  leading byte offset / 16
//!      32..46  stride byte offset / 16
//!      49..52  base offset: rows of 128 bytes by which the pattern starts past a multiple of 1024
//!      62..64  swizzle: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32
//! ```
//!
//! Pieces are eight (four, sixteen) neighbours along K, or along M and N where the operand is "MN-major". With `T` such a piece,
//! the layouts are, written as in CUTLASS (`mma_traits_sm90_gmma.hpp`) and anchored on an H200 for K-major bf16 with 128 bytes:
//!
//! | major | swizzle | along MN | along K |
//! |---|---|---|---|
//! | K | none | 8 rows at 16 bytes, then stride | 2 pieces at leading |
//! | K | S bytes | 8 rows at S bytes, then stride | pieces side by side |
//! | MN | none | pieces at stride | 8 rows at 16 bytes, then leading |
//! | MN | S bytes | S/16 pieces side by side, then leading | 8 rows at S bytes, then stride |
//!
//! The permutation of [`swizzle`](super::swizzle) applies to the address that comes out.

use super::swizzle::{permuted, span};
use super::{Misuse, Result};
use crate::backend::gpu::driver::Swizzle;

/// A descriptor's fields, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the operand starts.
    pub start: u64,
    /// The leading byte offset.
    pub leading: u64,
    /// The stride byte offset.
    pub stride: u64,
    /// Rows of 128 bytes by which the pattern starts past a multiple of 1024.
    pub base_offset: u64,
    /// How pieces are permuted.
    pub swizzle: Swizzle,
}

/// Bits that must be zero.
const RESERVED: u64 = !(FIELD | FIELD << 16 | FIELD << 32 | 0b111 << 49 | 0b11 << 62);
const FIELD: u64 = (1 << 14) - 1;

impl Descriptor {
    /// The fields of a descriptor.
    ///
    /// # Errors
    /// If bits outside the fields are set.
    pub fn decode(word: u64) -> Result<Descriptor> {
        if word & RESERVED != 0 {
            let bits = word & RESERVED;
            return Err(Misuse::new(format!("matrix descriptor {word:#018x}: reserved bits {bits:#x} must be zero")));
        }
        let field = |at: u32| (word >> at & FIELD) << 4;
        Ok(Descriptor {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base_offset: word >> 49 & 0b111,
            swizzle: [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(word >> 62) as usize],
        })
    }

    /// The descriptor of these fields.
    pub fn encode(&self) -> u64 {
        let field = |bytes: u64| bytes >> 4 & FIELD;
        let swizzle = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        swizzle << 62
            | self.base_offset << 49
            | field(self.stride) << 32
            | field(self.leading) << 16
            | field(self.start)
    }

    /// Address of piece `piece` (0 or 1) of a row of 32 bytes along K, for row `row` of a K-major operand.
    pub fn piece_along_k(&self, row: u64, piece: u64) -> u64 {
        let (pitch, step) = match self.swizzle {
            Swizzle::None => (16, self.leading),
            other => (span(other), 16),
        };
        self.place(row / 8 * self.stride + row % 8 * pitch + piece * step)
    }

    /// Address of the eight elements of rows `8 * piece..8 * piece + 8` at `k` of an MN-major operand of 16-bit elements.
    pub fn piece_along_mn(&self, piece: u64, k: u64) -> u64 {
        let offset = match self.swizzle {
            Swizzle::None => piece * self.stride + k % 8 * 16 + k / 8 * self.leading,
            other => {
                let pieces = span(other) / 16;
                piece / pieces * self.leading + piece % pieces * 16 + k % 8 * span(other) + k / 8 * self.stride
            }
        };
        self.place(offset)
    }

    /// The address at an offset; as in the descriptor, addresses have 18 bits.
    fn place(&self, offset: u64) -> u64 {
        permuted(self.start + offset, self.swizzle, self.base_offset) & ((FIELD << 4) | 0xf)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sequence;
    use super::*;

    const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

    #[test]
    fn fields_come_back_and_reserved_bits_are_refused() {
        let mut numbers = Sequence(8);
        for round in 0..1000 {
            let mut field = || numbers.below(1 << 14) << 4;
            let (start, leading, stride) = (field(), field(), field());
            let descriptor =
                Descriptor { start, leading, stride, base_offset: round % 8, swizzle: ALL[round as usize % 4] };
            assert_eq!(Descriptor::decode(descriptor.encode()), Ok(descriptor));
        }
        for bit in [14, 15, 30, 31, 46, 48, 52, 61] {
            assert!(Descriptor::decode(1 << bit).unwrap_err().words().contains("must be zero"), "{bit}");
        }
        // 1 << 62 is the swizzle of 128 bytes.
        assert_eq!(Descriptor::decode(1 << 62 | 64 << 32 | 0x40).unwrap().swizzle, Swizzle::B128);
    }

    #[test]
    fn the_pieces_of_an_operand_are_distinct_and_fill_their_rows() {
        for swizzle in ALL {
            let span = span(swizzle);
            // 64 rows of 32 bytes, K-major: groups of 8 rows follow one another.
            let d = Descriptor { start: 1024, leading: 128 * 8, stride: 8 * span, base_offset: 0, swizzle };
            let d = if swizzle == Swizzle::None { Descriptor { stride: 128, ..d } } else { d };
            let mut found: Vec<u64> = (0..64).flat_map(|r| [d.piece_along_k(r, 0), d.piece_along_k(r, 1)]).collect();
            found.sort_unstable();
            found.dedup();
            assert_eq!(found.len(), 128, "{swizzle:?}");
            // 128 elements by 16 of K, MN-major: panels of one span, each 16 rows high.
            let d = Descriptor { start: 0, leading: 16 * span, stride: 8 * span, base_offset: 0, swizzle };
            let d = if swizzle == Swizzle::None { Descriptor { leading: 128, stride: 256, ..d } } else { d };
            let mut found: Vec<u64> = (0..16).flat_map(|p| (0..16).map(move |k| d.piece_along_mn(p, k))).collect();
            found.sort_unstable();
            assert_eq!(found, (0..256).map(|i| i * 16).collect::<Vec<u64>>(), "{swizzle:?}");
        }
    }

    #[test]
    fn a_step_along_k_inside_the_span_moves_only_the_start() {
        // Step 2 of a K-major tile with 128-byte rows: what is at K = 32..48 of each row.
        let tile = Descriptor { start: 2048, leading: 16, stride: 1024, base_offset: 0, swizzle: Swizzle::B128 };
        let step = Descriptor { start: 2048 + 64, ..tile };
        for row in 0..64 {
            for piece in 0..2 {
                let expected = 2048 + row * 128 + ((4 + piece) ^ (row % 8)) * 16;
                assert_eq!(step.piece_along_k(row, piece), expected);
            }
        }
    }
}
