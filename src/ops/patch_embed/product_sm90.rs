//! Forward on Hopper in 16-bit types, without a matrix of patches. `kernels/patch_embed/product.sm90.cu` has the numbers that are
//! repeated here.

use bytemuck::{Pod, Zeroable};

use super::{NAME, Size, Statistics};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::{Arch, Launch, MapType, Swizzle, TensorMapSpec};
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit};
use crate::error::{Error, Result};
use crate::ops::patchify::Patches;
use crate::tensor::{Dtype, View, ViewMut};

const SOURCE: Source = crate::source!("patch_embed/product.sm90.cu");
static PRODUCT: Kernel = Kernel::new(SOURCE, "patch_embed_fwd_product");

pub(super) const UNIT: Unit =
    Unit { source: SOURCE, types: &[&[("T", Dtype::Bf16)], &[("T", Dtype::F16)]], constants: &[&[]] };

/// Tokens and columns of a block's tile, features of a step.
const TOKENS: usize = 128;
const COLUMNS: usize = 384;
const DEEP: usize = 32;
/// Blocks that share weights.
const PAIR: usize = 2;
const THREADS: u32 = 384;
const STAGES: usize = 5;
/// Bytes of the kernel's `Shared`, on a boundary of 1024 bytes: stages of weights and of the image, barriers.
const SHARED_BYTES: usize = 1024 + STAGES * (COLUMNS * 2 * DEEP + TOKENS * 4 * DEEP + 3 * 8);
/// Bytes of a channel's constants.
const CHANNEL_BYTES: usize = 8;
/// Numbers of 16 bytes of the image.
const QUAD: u32 = 4;
/// Features of a step of the matrix units, which are of one channel.
const STEP: usize = 16;
/// The kernel divides features below this.
const MOST_FEATURES: usize = 1 << 16;

/// What a launch reads.
pub(super) struct Operands<'s, 'a> {
    pub(super) x: &'s View<'a>,
    pub(super) weight: &'s View<'a>,
    pub(super) bias: &'s View<'a>,
    pub(super) statistics: Statistics<'s, 'a>,
    pub(super) position: Option<&'s View<'a>>,
}

/// The kernel's `Problem`: `plane`, `image` and `width` in quads, 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Problem {
    plane: u32,
    image: u32,
    width: u32,
    p: u32,
    q: u32,
    c: u32,
    across: u32,
    per: u32,
    rows: u32,
    features: u32,
    d: u32,
    tiles: u32,
    tiles_across: u32,
    walkers: u32,
    area: u32,
    by_area: u32,
    by_q: u32,
}

/// One application: its tiles.
pub(super) struct Product {
    problem: Problem,
    shared: u32,
}

/// 2^32 over `n`, rounded up: what the kernel multiplies by where it divides.
fn inverse(n: u32) -> u32 {
    (u32::MAX / n).wrapping_add(1)
}

impl Product {
    /// If the kernel computes it, and faster than a product of patches that lie in memory.
    pub(super) fn of(gpu: &Gpu, s: Size, operands: &Operands<'_, '_>, y: &ViewMut<'_>) -> Result<Option<Product>> {
        let info = gpu.driver().info();
        let Patches { b, c, grid: [h, w], patch: [p, q], .. } = s.patches;
        let numbers = b * c * h * w * p * q;
        let shared = SHARED_BYTES + c * CHANNEL_BYTES;
        let read =
            [Some(operands.x), Some(operands.weight), Some(operands.bias), operands.position].into_iter().flatten();
        let are_aligned =
            read.map(Operand::address).chain([Operand::address(y)]).flatten().all(|at| at.is_multiple_of(16));
        // Images are addressed by quads of 32 bits.
        let fits = info.arch == Arch::SM_90A
            && y.spec().dtype() != Dtype::F32
            && are_aligned
            && q.is_multiple_of(QUAD as usize)
            && (p * q).is_multiple_of(STEP)
            && s.d.is_multiple_of(8)
            && s.features < MOST_FEATURES
            && (1..1 << 33).contains(&numbers)
            && (1..1 << 30).contains(&s.rows)
            && (1..1 << 24).contains(&s.d)
            && shared <= info.max_shared_bytes as usize;
        if !fits {
            return Ok(None);
        }
        let (down, across) = (s.rows.div_ceil(TOKENS * PAIR), s.d.div_ceil(COLUMNS));
        let pairs = (info.processors as usize / PAIR).max(1);
        // Beside a library's product of patches that lie in memory this one is slower: kernels/patch_embed/LADDER.md.
        if gpu.products()?.library().is_some() {
            return Ok(None);
        }
        let int = |n: usize| u32::try_from(n).map_err(|_| Error::too_large(NAME, "tiles", n));
        let (area, q) = (int(p * q)?, int(q)?);
        let problem = Problem {
            plane: int(h * p * w)? * (q / QUAD),
            image: int(c * h * p * w)? * (q / QUAD),
            width: int(w)? * (q / QUAD),
            p: int(p)?,
            q,
            c: int(c)?,
            across: int(w)?,
            per: int(h * w)?,
            rows: int(s.rows)?,
            features: int(s.features)?,
            d: int(s.d)?,
            tiles: int(down * across)?,
            tiles_across: int(across)?,
            walkers: int(pairs.min(down * across))?,
            area,
            by_area: inverse(area),
            by_q: inverse(q),
        };
        Ok(Some(Product { problem, shared: int(shared)? }))
    }

    /// Launches it.
    pub(super) fn launch(&self, gpu: &Gpu, operands: &Operands<'_, '_>, y: &ViewMut<'_>) -> Result<()> {
        let Problem { features, d, tiles, walkers, .. } = self.problem;
        let weight = operands.weight;
        let address =
            weight.address().ok_or_else(|| Error::argument(format!("{NAME}: weight: outside the device's memory")))?;
        let map = gpu.driver().tensor_map(&TensorMapSpec {
            dtype: if weight.spec().dtype() == Dtype::F16 { MapType::F16 } else { MapType::Bf16 },
            address,
            dims: vec![features.into(), d.into()],
            strides: vec![2 * u64::from(features)],
            box_dims: vec![DEEP as u32, (COLUMNS / PAIR) as u32],
            swizzle: Swizzle::B64,
            is_nan_filled: false,
        })?;
        gpu.executes(|| {
            let deep = (features as usize).next_multiple_of(DEEP);
            2 * u128::from(tiles) * (PAIR * TOKENS * COLUMNS * deep) as u128
        });
        let [mean, std] = operands.statistics.args();
        let launch =
            Launch::linear(walkers * PAIR as u32, THREADS).in_clusters([PAIR as u32, 1, 1]).with_shared(self.shared);
        let args = &mut [
            Arg::Out(y),
            Arg::In(operands.x),
            Arg::Bytes(&map),
            Arg::In(operands.bias),
            mean,
            std,
            operands.position.map_or(Arg::Null, |v| Arg::In(v)),
            Arg::Bytes(bytemuck::bytes_of(&self.problem)),
        ];
        PRODUCT.launch(gpu, y.spec().dtype(), launch, args)
    }
}

#[cfg(test)]
mod tests {
    use super::inverse;

    #[test]
    fn features_are_divided_by_any_area_as_integers_are() {
        for by in (4..2048_u32).step_by(4) {
            for n in (0..1 << 16).step_by(7).chain([by - 1, by, by + 1, 65_535]) {
                assert_eq!((u64::from(n) * u64::from(inverse(by)) >> 32) as u32, n / by, "{n} / {by}");
            }
        }
    }
}
