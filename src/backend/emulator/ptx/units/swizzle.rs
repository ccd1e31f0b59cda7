//! The permutation of 16-byte pieces that bulk tensor copies and `wgmma` share, so that neither rows nor columns of a tile meet
//! the same banks.
//!
//! The piece's place within its row of 32, 64 or 128 bytes is combined, exclusive or, with bits 7 and up of the address: it is a
//! function of the final address, not of the place in the tile.

use crate::backend::gpu::driver::Swizzle;

/// Bytes of a row whose pieces are permuted; 16 where nothing is.
pub fn span(swizzle: Swizzle) -> u64 {
    match swizzle {
        Swizzle::None => 16,
        Swizzle::B32 => 32,
        Swizzle::B64 => 64,
        Swizzle::B128 => 128,
    }
}

/// Where the byte of the unpermuted `address` lies, for a pattern that starts `phase` rows of 128 bytes past a multiple of 1024.
pub fn permuted(address: u64, swizzle: Swizzle, phase: u64) -> u64 {
    let pieces = span(swizzle) / 16;
    address ^ (((address >> 7).wrapping_sub(phase) & (pieces - 1)) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

    #[test]
    fn a_permutation_is_its_own_inverse_and_stays_in_its_row() {
        for swizzle in ALL {
            for address in 0..4096 {
                let to = permuted(address, swizzle, 0);
                assert_eq!(permuted(to, swizzle, 0), address);
                assert_eq!((to / span(swizzle), to % 16), (address / span(swizzle), address % 16));
            }
        }
    }

    #[test]
    fn in_a_tile_of_128_byte_rows_the_piece_is_combined_with_the_row() {
        for row in 0..16 {
            for piece in 0..8 {
                assert_eq!(permuted(row * 128 + piece * 16, Swizzle::B128, 0), row * 128 + (piece ^ (row & 7)) * 16);
            }
        }
        // Two rows of 64 bytes share a line, so a row counts by half.
        for row in 0..16 {
            for piece in 0..4 {
                assert_eq!(permuted(row * 64 + piece * 16, Swizzle::B64, 0), row * 64 + (piece ^ ((row / 2) & 3)) * 16);
            }
            for piece in 0..2 {
                assert_eq!(permuted(row * 32 + piece * 16, Swizzle::B32, 0), row * 32 + (piece ^ ((row / 4) & 1)) * 16);
            }
        }
    }

    #[test]
    fn a_phase_moves_the_pattern() {
        for row in 0..8 {
            assert_eq!(permuted((row + 3) * 128, Swizzle::B128, 3), (row + 3) * 128 + row * 16);
        }
    }
}
