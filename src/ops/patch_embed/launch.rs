//! Launches of the passes between images and matrices of patches.

use super::{NAME, Size, Statistics};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::error::{Error, Result};
use crate::ops::movement::patches::Tiling;
use crate::tensor::{Dtype, Tensor, View, ViewMut};

const SOURCE: Source = crate::source!("patch_embed/patch_embed.cu");
static GATHER: Kernel = Kernel::new(SOURCE, "patch_embed_fwd_gather");
static DX: Kernel = Kernel::new(SOURCE, "patch_embed_bwd_dx");

pub(super) const KERNELS: &[Unit] = &[Unit::floats(SOURCE)];

/// Writes the normalised patches of `x` to `tokens`.
pub(super) fn gather(gpu: &Gpu, tokens: &Tensor, x: &View<'_>, statistics: Statistics<'_, '_>, s: Size) -> Result<()> {
    let dtype = tokens.spec().dtype();
    let Some(tiling) = tiling(s, dtype)? else { return Ok(()) };
    let [mean, std] = statistics.args();
    let args = &mut [Arg::Scratch(tokens), Arg::In(x), mean, std, Arg::Bytes(bytemuck::bytes_of(&tiling.arg))];
    GATHER.launch(gpu, dtype, tiling.launch(NAME)?, args)
}

/// Puts the gradients of patches back into the image.
pub(super) fn scatter(
    gpu: &Gpu,
    dtokens: &Tensor,
    std: Option<&View<'_>>,
    s: Size,
    dx: &mut ViewMut<'_>,
    add: i32,
) -> Result<()> {
    let dtype = dtokens.spec().dtype();
    let Some(tiling) = tiling(s, dtype)? else { return Ok(()) };
    let args = &mut [
        Arg::Out(dx),
        Arg::Scratch(dtokens),
        std.map_or(Arg::Null, |v| Arg::In(v)),
        Arg::Bytes(bytemuck::bytes_of(&tiling.arg)),
        Arg::I32(add),
    ];
    DX.launch(gpu, dtype, tiling.launch(NAME)?, args)
}

/// The tiles of the patches; `None` if there is nothing to move.
fn tiling(s: Size, dtype: Dtype) -> Result<Option<Tiling>> {
    let tiling = Tiling::new(s.patches, dtype);
    if tiling.is_none() && s.rows * s.features > 0 {
        return Err(Error::too_large(NAME, "C·P·Q", format!("{}·{:?}", s.patches.c, s.patches.patch)));
    }
    Ok(tiling)
}
