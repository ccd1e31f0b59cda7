//! Tensor maps: the 128 opaque bytes that describe a tensor and the box that a bulk copy moves.
//!
//! The driver's encoding is NVIDIA's secret, so these bytes are the emulator's own: a mark, the fields of
//! [`TensorMapSpec`], and a sum over them, by which bytes that are no map, or only a part of one, are told from a map.
//!
//! The limits are those that `cuTensorMapEncodeTiled` documents. Its remark that a stride should be a multiple of the one before
//! it is not enforced, as the driver does not: permuted and overlapping axes are legal. Interleaved layouts, strides of
//! elements inside the box and im2col maps are not in the driver table, so no map has them.

use super::swizzle::span;
use super::{Misuse, Result};
use crate::backend::gpu::driver::{MapType, Swizzle, TENSOR_MAP_BYTES, TensorMapSpec};
use crate::error::Error;

const MARK: &[u8; 4] = b"tmap";
/// Where the fields begin; the sum is the last word.
const ADDRESS: usize = 16;
const DIMS: usize = 24;
const STRIDES: usize = 64;
const BOX: usize = 96;
const SUM: usize = 120;

const TYPES: [MapType; 5] = [MapType::F32, MapType::Bf16, MapType::F16, MapType::U8, MapType::I32];
const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

/// Bytes of an element.
pub(crate) fn width(dtype: MapType) -> u64 {
    match dtype {
        MapType::F32 | MapType::I32 => 4,
        MapType::Bf16 | MapType::F16 => 2,
        MapType::U8 => 1,
    }
}

/// A tensor map that was read back from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub(crate) spec: TensorMapSpec,
}

/// The bytes of a tensor map.
///
/// # Errors
/// If the spec is past a limit that `cuTensorMapEncodeTiled` documents; the line says which.
pub fn encode(spec: &TensorMapSpec) -> crate::error::Result<[u8; TENSOR_MAP_BYTES]> {
    check(spec).map_err(|line| Error::argument(format!("tensor map: {line}")))?;
    let mut bytes = [0; TENSOR_MAP_BYTES];
    bytes[..4].copy_from_slice(MARK);
    bytes[4] = spec.dims.len() as u8;
    bytes[5] = TYPES.iter().position(|t| *t == spec.dtype).unwrap_or(0) as u8;
    bytes[6] = SWIZZLES.iter().position(|s| *s == spec.swizzle).unwrap_or(0) as u8;
    bytes[7] = u8::from(spec.is_nan_filled);
    bytes[ADDRESS..DIMS].copy_from_slice(&spec.address.to_le_bytes());
    for (to, dim) in bytes[DIMS..STRIDES].chunks_exact_mut(8).zip(&spec.dims) {
        to.copy_from_slice(&dim.to_le_bytes());
    }
    for (to, stride) in bytes[STRIDES..BOX].chunks_exact_mut(8).zip(&spec.strides) {
        to.copy_from_slice(&stride.to_le_bytes());
    }
    for (to, len) in bytes[BOX..SUM].chunks_exact_mut(4).zip(&spec.box_dims) {
        to.copy_from_slice(&len.to_le_bytes());
    }
    let sum = sum(&bytes);
    bytes[SUM..].copy_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

/// A hash of the bytes before the sum (FNV-1a).
fn sum(bytes: &[u8; TENSOR_MAP_BYTES]) -> u64 {
    bytes[..SUM].iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The limits; the error is a line without its beginning.
fn check(spec: &TensorMapSpec) -> std::result::Result<(), String> {
    let (rank, element) = (spec.dims.len(), width(spec.dtype));
    if !(1..=5).contains(&rank) {
        return Err(format!("dims: expected 1 to 5 axes, found {rank}"));
    }
    if spec.strides.len() != rank - 1 || spec.box_dims.len() != rank {
        let (strides, boxes) = (spec.strides.len(), spec.box_dims.len());
        return Err(format!(
            "expected {} strides and {rank} box_dims for {rank} dims, found {strides} and {boxes}",
            rank - 1
        ));
    }
    if !spec.address.is_multiple_of(16) {
        return Err(format!("address: expected a multiple of 16, found {:#x}", spec.address));
    }
    if let Some((axis, dim)) = spec.dims.iter().enumerate().find(|(_, d)| !(1..=1 << 32).contains(*d)) {
        return Err(format!("dims[{axis}]: expected 1 to 2^32, found {dim}"));
    }
    if let Some((axis, stride)) = spec.strides.iter().enumerate().find(|(_, s)| !s.is_multiple_of(16) || **s >= 1 << 40)
    {
        return Err(format!("strides[{axis}]: expected a multiple of 16 below 2^40 bytes, found {stride}"));
    }
    if let Some((axis, len)) = spec.box_dims.iter().enumerate().find(|(_, l)| !(1..=256).contains(*l)) {
        return Err(format!("box_dims[{axis}]: expected 1 to 256, found {len}"));
    }
    let row = u64::from(spec.box_dims[0]) * element;
    if !row.is_multiple_of(16) {
        return Err(format!("box_dims[0]: expected a multiple of 16 bytes, found {row}"));
    }
    if spec.swizzle != Swizzle::None && row > span(spec.swizzle) {
        let most = span(spec.swizzle);
        return Err(format!("box_dims[0]: expected at most {most} bytes with swizzle {:?}, found {row}", spec.swizzle));
    }
    if spec.is_nan_filled && matches!(spec.dtype, MapType::U8 | MapType::I32) {
        return Err(format!("is_nan_filled: expected a float type, found {:?}", spec.dtype));
    }
    Ok(())
}

impl TensorMap {
    /// The map in these bytes.
    ///
    /// # Errors
    /// If they are not what [`encode`] gave.
    pub fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Result<TensorMap> {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
        let rank = usize::from(bytes[4]);
        if bytes[..4] != *MARK || word(SUM) != sum(bytes) || !(1..=5).contains(&rank) {
            let first = word(0);
            let words = format!(
                "tensor map: the 128 bytes (first {first:#018x}) are not what the driver encoded; \
                 pass the map as a __grid_constant__ parameter or copy all of it"
            );
            return Err(Misuse::new(words));
        }
        let spec = TensorMapSpec {
            dtype: TYPES[usize::from(bytes[5]) % TYPES.len()],
            address: word(ADDRESS),
            dims: (0..rank).map(|i| word(DIMS + 8 * i)).collect(),
            strides: (0..rank - 1).map(|i| word(STRIDES + 8 * i)).collect(),
            box_dims: (0..rank).map(|i| word(BOX + 4 * i) as u32).collect(),
            swizzle: SWIZZLES[usize::from(bytes[6]) % SWIZZLES.len()],
            is_nan_filled: bytes[7] == 1,
        };
        Ok(TensorMap { spec })
    }

    /// Axes of the tensor.
    pub fn rank(&self) -> usize {
        self.spec.dims.len()
    }

    /// What the map describes.
    pub fn spec(&self) -> &TensorMapSpec {
        &self.spec
    }

    /// Bytes of a box, elements outside the tensor included: what a load completes at its barrier.
    pub fn tile_bytes(&self) -> usize {
        self.spec.box_dims.iter().map(|len| *len as usize).product::<usize>() * width(self.spec.dtype) as usize
    }

    /// Bytes of a box's row along the fastest axis.
    pub(crate) fn row_bytes(&self) -> usize {
        self.spec.box_dims[0] as usize * width(self.spec.dtype) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TensorMapSpec {
        TensorMapSpec {
            dtype: MapType::Bf16,
            address: 0x7f00_0000_0100,
            dims: vec![100, 70, 3],
            strides: vec![208, 14560],
            box_dims: vec![64, 16, 2],
            swizzle: Swizzle::B128,
            is_nan_filled: true,
        }
    }

    #[test]
    fn a_map_comes_back_from_its_bytes() {
        let map = TensorMap::decode(&encode(&spec()).unwrap()).unwrap();
        assert_eq!(*map.spec(), spec());
        assert_eq!((map.rank(), map.tile_bytes(), map.row_bytes()), (3, 64 * 16 * 2 * 2, 128));
        let flat = TensorMapSpec {
            dtype: MapType::U8,
            dims: vec![1 << 32],
            strides: vec![],
            box_dims: vec![256],
            swizzle: Swizzle::None,
            is_nan_filled: false,
            ..spec()
        };
        assert_eq!(*TensorMap::decode(&encode(&flat).unwrap()).unwrap().spec(), flat);
        let five = TensorMapSpec {
            dims: vec![64, 1, 1, 1, 9],
            strides: vec![16, 16, 16, (1 << 40) - 16],
            box_dims: vec![64, 1, 1, 1, 256],
            ..spec()
        };
        assert_eq!(*TensorMap::decode(&encode(&five).unwrap()).unwrap().spec(), five);
    }

    #[test]
    fn every_documented_limit_has_a_line_of_its_own() {
        let cases: [(fn(&mut TensorMapSpec), &str); 12] = [
            (|s| (s.dims, s.strides, s.box_dims) = (vec![], vec![], vec![]), "dims: expected 1 to 5 axes, found 0"),
            (|s| s.dims = vec![8; 6], "expected 1 to 5 axes, found 6"),
            (|s| s.strides.push(16), "expected 2 strides and 3 box_dims for 3 dims, found 3 and 3"),
            (|s| s.address += 8, "address: expected a multiple of 16, found 0x7f0000000108"),
            (|s| s.dims[1] = 0, "dims[1]: expected 1 to 2^32, found 0"),
            (|s| s.dims[2] = (1 << 32) + 1, "dims[2]: expected 1 to 2^32"),
            (|s| s.strides[0] = 200, "strides[0]: expected a multiple of 16 below 2^40 bytes, found 200"),
            (|s| s.strides[1] = 1 << 40, "strides[1]: expected a multiple of 16 below 2^40"),
            (|s| s.box_dims[1] = 257, "box_dims[1]: expected 1 to 256, found 257"),
            (|s| s.box_dims[0] = 60, "box_dims[0]: expected a multiple of 16 bytes, found 120"),
            (|s| s.swizzle = Swizzle::B64, "box_dims[0]: expected at most 64 bytes with swizzle B64, found 128"),
            (|s| s.dtype = MapType::I32, "box_dims[0]: expected at most 128 bytes with swizzle B128, found 256"),
        ];
        for (change, line) in cases {
            let mut spec = spec();
            change(&mut spec);
            let found = encode(&spec).unwrap_err().to_string();
            assert!(found.starts_with("tensor map: ") && found.contains(line), "{found}");
        }
        let whole = TensorMapSpec { dtype: MapType::I32, box_dims: vec![32, 1, 1], ..spec() };
        assert!(encode(&whole).unwrap_err().to_string().contains("is_nan_filled: expected a float type"));
    }

    #[test]
    fn bytes_that_are_no_map_are_told() {
        let mut bytes = encode(&spec()).unwrap();
        bytes[70] ^= 1;
        for wrong in [[0; 128], [0xff; 128], bytes] {
            assert!(TensorMap::decode(&wrong).unwrap_err().words().contains("not what the driver encoded"));
        }
    }
}
