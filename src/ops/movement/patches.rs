//! Images and the tokens of their patches: tiles as `kernels/common/patches.cuh` takes them.

use bytemuck::{Pod, Zeroable};

use crate::backend::gpu::driver::Launch;
use crate::error::Result;
use crate::ops::launch;
use crate::ops::patchify::{FeatureOrder, Patches};
use crate::tensor::Dtype;

/// Threads of a block.
const THREADS: u32 = 256;
/// Columns of an image that a tile covers, about: enough for long runs of its rows. Twice as many where a tile holds all channels, which
/// are few rows of an image.
const COLUMNS: usize = 256;
/// Bytes of a tile that is cut to this size, and of one that holds all channels.
const TILE_BYTES: usize = 16 << 10;
const LONG_TILE_BYTES: usize = 40 << 10;
/// Shared memory that every device gives a block without asking.
const MOST_BYTES: usize = 48 << 10;
/// Fewer tiles than this in one launch.
const MOST_TILES: usize = 1 << 31;

/// The argument of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(in crate::ops) struct PatchesArg {
    plane: i64,
    width: u32,
    c: u32,
    h: u32,
    p: u32,
    q: u32,
    features: u32,
    rows: u32,
    tokens: u32,
    pitch: u32,
    slabs: u32,
    strips: u32,
    channels_last: i32,
}

/// How patches are cut into tiles.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Tiling {
    pub(in crate::ops) arg: PatchesArg,
    tiles: usize,
    shared: usize,
}

impl Tiling {
    /// Tiles of these patches, whose tokens are of type `dtype`; `None` if a tile does not fit or there is nothing to move.
    pub(in crate::ops) fn new(patches: Patches, dtype: Dtype) -> Option<Tiling> {
        let Patches { b, c, grid: [h, w], patch: [p, q], order } = patches;
        let (size, wide) = (dtype.bytes(), launch::wide(dtype));
        // The kernel divides rows by p as numbers below 2^16.
        if b * c * h * w * p * q == 0 || c * p >= 1 << 16 {
            return None;
        }
        let channels_last = order == FeatureOrder::RowColumnChannel;
        let mut tokens = (2 * COLUMNS / q).max(1);
        let rows = if channels_last {
            while tokens > 1 && c * q * tokens * size > LONG_TILE_BYTES {
                tokens = tokens.div_ceil(2);
            }
            c
        } else {
            // Short runs of tokens are worth more rows of fewer columns.
            let (rows, columns) = (TILE_BYTES / size / COLUMNS, COLUMNS.max(q));
            let (rows, columns) = if q <= 2 { (2 * rows, columns / 2) } else { (rows * COLUMNS / columns, columns) };
            tokens = (columns / q).max(1);
            rows.clamp(1, c * p)
        };
        // Whole packs of a row, where there are enough patches for it.
        let together = wide >> q.trailing_zeros().min(wide.trailing_zeros());
        if tokens > together {
            tokens -= tokens % together;
        }
        let pitch = pitch(rows * q, dtype, !channels_last && q % wide == 0);
        let (slabs, strips) = (if channels_last { p } else { (c * p).div_ceil(rows) }, w.div_ceil(tokens));
        let shared = (tokens * pitch * size).next_multiple_of(16);
        let tiles = b.checked_mul(h)?.checked_mul(slabs)?.checked_mul(strips).filter(|n| *n < MOST_TILES)?;
        if shared > MOST_BYTES {
            return None;
        }
        let int = |n: usize| u32::try_from(n).ok();
        let arg = PatchesArg {
            plane: i64::try_from(h * p * w * q).ok()?,
            width: int(w * q)?,
            c: int(c)?,
            h: int(h)?,
            p: int(p)?,
            q: int(q)?,
            features: int(c * p * q)?,
            rows: int(rows)?,
            tokens: int(tokens)?,
            pitch: int(pitch)?,
            slabs: int(slabs)?,
            strips: int(strips)?,
            channels_last: channels_last.into(),
        };
        Some(Tiling { arg, tiles, shared })
    }

    /// A block for every tile.
    pub(in crate::ops) fn launch(&self, op: &str) -> Result<Launch> {
        let shared = launch::short(op, "tile", self.shared)?.unsigned_abs();
        Ok(Launch::linear(launch::blocks(op, "tiles", self.tiles)?, THREADS).with_shared(shared))
    }
}

/// How far tokens of `run` numbers lie apart in shared memory, so that neighbours begin in different banks: by an odd number of packs
/// where packs are moved whole, else of words.
fn pitch(run: usize, dtype: Dtype, is_packed: bool) -> usize {
    let unit = if is_packed { launch::wide(dtype) } else { 4 / dtype.bytes() };
    let units = run.div_ceil(unit);
    (units + usize::from(units.is_multiple_of(2))) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiling(c: usize, grid: [usize; 2], patch: [usize; 2], order: FeatureOrder, dtype: Dtype) -> Option<Tiling> {
        Tiling::new(Patches { b: 2, c, grid, patch, order }, dtype)
    }

    #[test]
    fn tiles_cover_every_patch_of_any_size_within_shared_memory() {
        for order in [FeatureOrder::ChannelRowColumn, FeatureOrder::RowColumnChannel] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                for (c, patch) in [(1, [1, 1]), (20, [8, 8]), (73, [8, 8]), (160, [2, 2]), (7, [5, 7]), (320, [32, 32])]
                {
                    let t = tiling(c, [9, 181], patch, order, dtype).unwrap();
                    let a = t.arg;
                    assert!(a.strips * a.tokens >= 181 && (a.strips - 1) * a.tokens < 181, "{a:?}");
                    assert!(t.shared <= MOST_BYTES && a.pitch >= a.rows * a.q, "{a:?}");
                    let rows = if a.channels_last == 1 { a.c } else { a.c * a.p };
                    let slabs = if a.channels_last == 1 { 1 } else { a.slabs };
                    assert!(slabs * a.rows >= rows && (slabs - 1) * a.rows < rows, "{a:?}");
                    // The kernel divides what is below 2^16.
                    assert!(a.tokens * a.rows * a.q < 1 << 16, "{a:?}");
                }
            }
        }
    }

    #[test]
    fn what_no_tile_holds_is_left_to_others() {
        assert!(tiling(320, [1, 1], [1, 128], FeatureOrder::RowColumnChannel, Dtype::F32).is_none());
        assert!(tiling(0, [1, 1], [1, 1], FeatureOrder::RowColumnChannel, Dtype::F32).is_none());
    }

    #[test]
    fn neighbouring_tokens_begin_in_different_banks() {
        assert_eq!(pitch(256, Dtype::Bf16, true), 264);
        assert_eq!(pitch(160, Dtype::Bf16, false), 162);
        assert_eq!(pitch(105, Dtype::Bf16, false), 106);
        assert_eq!((pitch(105, Dtype::F32, false), pitch(106, Dtype::F32, false)), (105, 107));
    }
}
