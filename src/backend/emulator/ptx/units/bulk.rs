//! Bulk tensor copies: a box of a tensor in global memory to and from shared memory.
//!
//! A tile on the way is the box's bytes, packed, fastest axis first; so a multicast is one fetch and several places, and whoever
//! calls decides when each half happens. In shared memory the rows of a swizzled box have the pitch of the swizzle's span, also
//! where the box is narrower (CUDA C++ Programming Guide, tensor memory accelerator: room for the full width is needed).
//!
//! Along the fastest axis a box starts at a multiple of 16 bytes: elsewhere a Hopper GPU ends the kernel with an illegal instruction, of
//! which the manuals say nothing (github.com/triton-lang/triton, issue 7385 and pull request 9112). So it does where a box that is
//! written begins before the tensor; that, the Programming Guide says. Both were tried on an H200, see the anchors.

use super::reduction::{Reduction, function};
use super::swizzle::{permuted, span};
use super::tensor_map::{TensorMap, width};
use super::{Misuse, Result, Space};
use crate::backend::gpu::driver::{MapType, Swizzle};

/// What the start of a box in shared memory is a multiple of.
const ALIGN: u32 = 128;
/// More than the shared memory of any block.
const MOST: usize = 1 << 18;

/// The part of a row of the box that lies inside the tensor.
struct Inside {
    /// Where it is in global memory.
    address: u64,
    /// Its bytes in the packed tile.
    bytes: std::ops::Range<usize>,
}

impl TensorMap {
    /// The box at `coordinates` (fastest axis first, which may be negative), with zero or NaN where it leaves the tensor.
    ///
    /// # Errors
    /// If there is not one coordinate an axis, or `global` refuses an address.
    pub fn fetch(&self, coordinates: &[i32], global: &mut dyn Space) -> Result<Vec<u8>> {
        self.fits()?;
        let mut tile = self.outside();
        for row in self.rows(coordinates)? {
            global.read(row.address, &mut tile[row.bytes])?;
        }
        Ok(tile)
    }

    /// Writes a packed tile to shared memory at `address`.
    ///
    /// # Errors
    /// If the address is no multiple of 128, or `shared` refuses a piece.
    pub fn place(&self, tile: &[u8], address: u32, shared: &mut dyn Space) -> Result<()> {
        self.whole(tile)?;
        let start = self.start(address)?;
        for (i, piece) in tile.chunks_exact(16).enumerate() {
            shared.write(self.piece(start, i), piece)?;
        }
        Ok(())
    }

    /// Reads a packed tile from shared memory at `address`.
    ///
    /// # Errors
    /// As [`TensorMap::place`].
    pub fn collect(&self, address: u32, shared: &mut dyn Space) -> Result<Vec<u8>> {
        self.fits()?;
        let start = self.start(address)?;
        let mut tile = vec![0; self.tile_bytes()];
        for (i, piece) in tile.chunks_exact_mut(16).enumerate() {
            shared.read(self.piece(start, i), piece)?;
        }
        Ok(tile)
    }

    /// Writes a packed tile to the box at `coordinates`; what lies outside the tensor is dropped. But hardware writes pieces of 16
    /// bytes whole, an H200 does: where rows of the tensor end inside a piece, the rest of it is overwritten too.
    ///
    /// # Errors
    /// As [`TensorMap::fetch`].
    pub fn store(&self, tile: &[u8], coordinates: &[i32], global: &mut dyn Space) -> Result<()> {
        self.whole(tile)?;
        is_inside_at_start(coordinates)?;
        for row in self.rows(coordinates)? {
            // Boxes start at pieces and are whole pieces wide, so the last one ends in the box.
            let end = row.bytes.start + row.bytes.len().next_multiple_of(16);
            global.write(row.address, &tile[row.bytes.start..end])?;
        }
        Ok(())
    }

    /// Reduces a packed tile into the box at `coordinates`; what lies outside the tensor is dropped.
    ///
    /// # Errors
    /// As [`TensorMap::fetch`], or if the elements have no such reduction.
    pub fn reduce(&self, reduction: Reduction, tile: &[u8], coordinates: &[i32], global: &mut dyn Space) -> Result<()> {
        let number = match self.spec.dtype {
            MapType::F32 => "f32",
            MapType::Bf16 => "bf16",
            MapType::F16 => "f16",
            MapType::I32 => "s32",
            MapType::U8 => "u8",
        };
        self.whole(tile)?;
        is_inside_at_start(coordinates)?;
        let change = function(reduction, number)?;
        let width = width(self.spec.dtype) as usize;
        for row in self.rows(coordinates)? {
            for (i, element) in tile[row.bytes].chunks_exact(width).enumerate() {
                let operand = element.iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
                global.update(row.address + (i * width) as u64, width, &|old| change(old, operand))?;
            }
        }
        Ok(())
    }

    /// A tile of what elements outside the tensor read as.
    fn outside(&self) -> Vec<u8> {
        // A NaN of its own, as an H200 gives it for bfloat16; in f32 it is one too.
        let nan: &[u8] = if self.spec.is_nan_filled { &[0xf7, 0x7f] } else { &[0] };
        nan.iter().copied().cycle().take(self.tile_bytes()).collect()
    }

    /// Refuses a box that no block has room for; the driver encodes it all the same.
    fn fits(&self) -> Result<()> {
        match self.tile_bytes() {
            bytes if bytes <= MOST => Ok(()),
            bytes => {
                Err(Misuse::new(format!("bulk tensor copy: expected a box of at most {MOST} bytes, found {bytes}")))
            }
        }
    }

    /// Refuses bytes that are no tile of this map.
    fn whole(&self, tile: &[u8]) -> Result<()> {
        let (expected, found) = (self.tile_bytes(), tile.len());
        if expected != found {
            return Err(Misuse::new(format!("bulk tensor copy: expected a tile of {expected} bytes, found {found}")));
        }
        Ok(())
    }

    /// The rows of the box at `coordinates` that lie inside the tensor.
    fn rows(&self, coordinates: &[i32]) -> Result<Vec<Inside>> {
        self.fits()?;
        let (spec, rank) = (&self.spec, self.rank());
        if coordinates.len() != rank {
            let found = coordinates.len();
            return Err(Misuse::new(format!(
                "bulk tensor copy: expected {rank} coordinates for the map, found {found}"
            )));
        }
        let (first, element) = (i64::from(coordinates[0]), width(spec.dtype));
        if !first.unsigned_abs().wrapping_mul(element).is_multiple_of(16) {
            return Err(Misuse::new(format!(
                "bulk tensor copy: expected a first coordinate at a multiple of 16 bytes, found {first} elements of {element} bytes"
            )));
        }
        let dim = i64::try_from(spec.dims[0]).unwrap_or(i64::MAX);
        let from = (-first).clamp(0, i64::from(spec.box_dims[0]));
        let to = (dim - first).clamp(from, i64::from(spec.box_dims[0]));
        let mut rows = Vec::new();
        if from == to {
            return Ok(rows);
        }
        let count: u32 = spec.box_dims[1..].iter().product();
        for row in 0..count {
            let mut address = spec.address.wrapping_add((first + from) as u64 * element);
            let mut rest = row;
            let mut is_inside = true;
            for axis in 1..rank {
                let at = i64::from(coordinates[axis]) + i64::from(rest % spec.box_dims[axis]);
                rest /= spec.box_dims[axis];
                is_inside &= at >= 0 && (at as u64) < spec.dims[axis];
                address = address.wrapping_add((at as u64).wrapping_mul(spec.strides[axis - 1]));
            }
            if is_inside {
                let start = row as usize * self.row_bytes();
                let bytes = |i: i64| start + (i as u64 * element) as usize;
                rows.push(Inside { address, bytes: bytes(from)..bytes(to) });
            }
        }
        Ok(rows)
    }

    fn start(&self, address: u32) -> Result<u64> {
        if !address.is_multiple_of(ALIGN) {
            let words = format!(
                "bulk tensor copy: expected a shared address that is a multiple of {ALIGN}, found {address:#x}"
            );
            return Err(Misuse::new(words));
        }
        Ok(u64::from(address))
    }

    /// Where piece `i` of 16 bytes of the packed tile lies in shared memory.
    fn piece(&self, start: u64, i: usize) -> u64 {
        let pieces = self.row_bytes() / 16;
        let pitch = match self.spec.swizzle {
            Swizzle::None => self.row_bytes() as u64,
            other => span(other),
        };
        permuted(start + (i / pieces) as u64 * pitch + (i % pieces) as u64 * 16, self.spec.swizzle, 0)
    }
}

/// Refuses a box to write that begins before the tensor does; it may end behind it.
fn is_inside_at_start(coordinates: &[i32]) -> Result<()> {
    match coordinates.iter().find(|x| **x < 0) {
        None => Ok(()),
        Some(x) => {
            Err(Misuse::new(format!("bulk tensor copy: expected coordinates of at least 0 to write to, found {x}")))
        }
    }
}

/// Checks a bulk copy of `bytes` between `from` and `to`: `cp.async.bulk` moves multiples of 16 between multiples of 16.
///
/// # Errors
/// If one of the three is not, or no block has room for the bytes.
pub fn check_copy(to: u64, from: u64, bytes: u64) -> Result<()> {
    if bytes > MOST as u64 {
        return Err(Misuse::new(format!("bulk copy: expected at most {MOST} bytes, found {bytes}")));
    }
    for (what, value) in [("destination", to), ("source", from), ("size", bytes)] {
        if !value.is_multiple_of(16) {
            return Err(Misuse::new(format!(
                "bulk copy: expected a {what} that is a multiple of 16, found {value:#x}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sequence;
    use super::super::tensor_map::encode;
    use super::*;
    use crate::backend::gpu::driver::TensorMapSpec;

    /// A tensor of bf16 whose element is its own index, 16 bytes past the start of memory.
    fn map(dims: &[u64], strides: &[u64], box_dims: &[u32], swizzle: Swizzle, is_nan_filled: bool) -> TensorMap {
        let spec = TensorMapSpec {
            dtype: MapType::Bf16,
            address: 16,
            dims: dims.to_vec(),
            strides: strides.to_vec(),
            box_dims: box_dims.to_vec(),
            swizzle,
            is_nan_filled,
        };
        TensorMap::decode(&encode(&spec).unwrap()).unwrap()
    }

    fn global() -> Vec<u8> {
        (0..32768u32).flat_map(|i| (i as u16).to_le_bytes()).collect()
    }

    fn halves(bytes: &[u8]) -> Vec<u16> {
        bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
    }

    #[test]
    fn boxes_are_gathered_element_by_element_and_filled_outside() {
        let mut numbers = Sequence(11);
        for round in 0..300 {
            let rank = 1 + round % 5;
            let dims: Vec<u64> = (0..rank).map(|axis| 1 + numbers.below(if axis == 0 { 40 } else { 9 })).collect();
            // Axes in any order, as long as strides are multiples of 16.
            let strides: Vec<u64> = (1..rank).map(|_| 16 * numbers.below(40)).collect();
            let box_dims: Vec<u32> =
                (0..rank).map(|axis| if axis == 0 { 16 } else { 1 + numbers.below(4) as u32 }).collect();
            let is_nan = numbers.below(2) == 0;
            let map = map(&dims, &strides, &box_dims, Swizzle::None, is_nan);
            let mut at: Vec<i32> = (0..rank).map(|_| numbers.below(12) as i32 - 5).collect();
            at[0] *= 8;
            let tile = halves(&map.fetch(&at, &mut global()).unwrap());
            for (i, found) in tile.iter().enumerate() {
                let (mut rest, mut address, mut is_inside) = (i as i64, 16, true);
                for axis in 0..rank {
                    let here = i64::from(at[axis]) + rest % i64::from(box_dims[axis]);
                    rest /= i64::from(box_dims[axis]);
                    is_inside &= (0..dims[axis] as i64).contains(&here);
                    address += here * if axis == 0 { 2 } else { strides[axis - 1] as i64 };
                }
                let fill = if is_nan { 0x7ff7 } else { 0 };
                let expected = if is_inside { (address / 2) as u16 } else { fill };
                assert_eq!(*found, expected, "{dims:?} {strides:?} {at:?} {i}");
            }
        }
    }

    #[test]
    fn a_tile_goes_through_shared_memory_and_back_with_every_swizzle() {
        for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
            for inner in [8, 16, 32, 64] {
                if swizzle != Swizzle::None && 2 * inner > span(swizzle) as u32 {
                    continue;
                }
                let map = map(&[100, 70], &[208], &[inner, 24], swizzle, false);
                let tile = map.fetch(&[16, -3], &mut global()).unwrap();
                let mut shared = vec![0xee; 8192];
                map.place(&tile, 1152, &mut shared).unwrap();
                assert_eq!(map.collect(1152, &mut shared).unwrap(), tile);
                // What is not the box stays untouched.
                let untouched = shared.iter().filter(|b| **b == 0xee).count();
                assert!(untouched >= 8192 - tile.len());
            }
        }
        // Row 5, element 9 with 128 bytes: piece 1 of the row, at piece 1 ^ 5.
        let map = map(&[100, 70], &[208], &[64, 16], Swizzle::B128, false);
        let tile = map.fetch(&[0, 0], &mut global()).unwrap();
        let mut shared = vec![0; 4096];
        map.place(&tile, 1024, &mut shared).unwrap();
        assert_eq!(halves(&shared[1024 + 5 * 128 + (1 ^ 5) * 16..])[1], 8 + 5 * 104 + 9);
    }

    #[test]
    fn stores_drop_what_is_outside_but_for_the_rest_of_a_piece_and_reductions_add() {
        let map = map(&[10, 4], &[32], &[16, 4], Swizzle::B32, false);
        let tile: Vec<u8> = [0x80, 0x3f].iter().copied().cycle().take(map.tile_bytes()).collect();
        let mut memory = vec![0u8; 256];
        map.store(&tile, &[8, 2], &mut memory).unwrap();
        let count = |memory: &[u8], value: u16| halves(memory).iter().filter(|h| **h == value).count();
        // Two rows, in each a piece of 8 numbers of which 2 lie inside.
        assert_eq!((count(&memory, 0x3f80), count(&memory, 0)), (16, 112));
        assert_eq!(halves(&memory)[8 + 2 * 16 + 7..][..10], [&[0][..], &[0x3f80; 8], &[0]].concat());
        map.reduce(Reduction::Add, &tile, &[8, 2], &mut memory).unwrap();
        assert_eq!((count(&memory, 0x4000), count(&memory, 0x3f80)), (4, 12));
        // A box that does not touch the tensor does nothing, however far it is.
        map.store(&tile, &[i32::MAX - 7, 0], &mut memory).unwrap();
        map.store(&tile, &[0, i32::MAX], &mut memory).unwrap();
        assert_eq!(count(&memory, 0x4000), 4);
    }

    #[test]
    fn a_box_that_no_block_has_room_for_is_refused() {
        let huge = map(&[9; 5], &[16; 4], &[256; 5], Swizzle::None, false);
        assert!(huge.fetch(&[0; 5], &mut global()).unwrap_err().words().contains("at most 262144 bytes"));
        assert!(huge.collect(0, &mut global()).is_err() && huge.store(&[], &[0; 5], &mut global()).is_err());
    }

    #[test]
    fn misuse_is_told_in_words() {
        let map = map(&[10, 4], &[32], &[16, 4], Swizzle::B32, false);
        assert!(map.fetch(&[0], &mut global()).unwrap_err().words().contains("expected 2 coordinates"));
        assert!(map.fetch(&[1, 0], &mut global()).unwrap_err().words().contains("found 1 elements of 2 bytes"));
        for coordinates in [[-8, 0], [0, -1]] {
            let fault = map.store(&[0; 128], &coordinates, &mut vec![0; 256]).unwrap_err();
            assert!(fault.words().contains("expected coordinates of at least 0"), "{fault}");
            assert!(map.reduce(Reduction::Add, &[0; 128], &coordinates, &mut vec![0; 256]).is_err());
            assert!(map.fetch(&coordinates, &mut global()).is_ok());
        }
        assert!(map.collect(64, &mut vec![0; 256]).unwrap_err().words().contains("multiple of 128"));
        // The tensor is larger than the memory behind it.
        assert!(map.fetch(&[0, 0], &mut vec![0; 64]).is_err());
        assert!(map.reduce(Reduction::Inc, &[0; 128], &[0, 0], &mut vec![0; 256]).is_err());
        assert!(map.store(&[0; 100], &[0, 0], &mut vec![0; 256]).unwrap_err().words().contains("tile of 128 bytes"));
        assert!(map.place(&[], 0, &mut vec![0; 256]).is_err());
        assert!(check_copy(0, 0, 1 << 30).unwrap_err().words().contains("at most"));
        assert!(check_copy(32, 16, 8).unwrap_err().words().contains("size"));
        assert!(check_copy(8, 16, 16).is_err() && check_copy(16, 48, 0).is_ok());
    }
}
