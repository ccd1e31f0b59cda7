//! Channels that a cluster of blocks holds in its shared memory: every number is read once.

use super::Size;
use super::launch::OP;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::{Arch, Launch};
use crate::backend::gpu::kernel::{Arg, Kernel, Operand};
use crate::error::Result;
use crate::ops::launch;
use crate::tensor::Dtype;

pub(super) const SOURCE: Source = crate::source!("batch_norm/whole.sm90.cu");
pub(super) static FWD: Kernel = Kernel::new(SOURCE, "batch_norm_fwd_whole");
pub(super) static BWD: Kernel = Kernel::new(SOURCE, "batch_norm_bwd_whole");

const THREADS: u32 = 256;
/// Bytes that are copied at once.
const PACK: usize = 16;
/// Blocks of a cluster at most, on every Hopper.
const MOST_BLOCKS: usize = 8;
/// Bytes of a block that leave room for three others on its processor, and the most that leave room for another one.
const BYTES: [usize; 2] = [54 << 10, 110 << 10];
/// Blocks of a processor, where channels are few.
const RESIDENT: usize = 4;

/// How channels lie over clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    s: Size,
    /// Blocks of a cluster.
    blocks: usize,
    /// Packs of a block.
    share: usize,
    /// Tensors that a block has its share of.
    tensors: usize,
}

impl Whole {
    /// For kernels that hold `tensors` tensors of a batch; `None` where they do not fit or cannot be copied.
    pub(super) fn of(gpu: &Gpu, s: Size, dtype: Dtype, tensors: usize, operands: &[&dyn Operand]) -> Option<Whole> {
        let info = gpu.driver().info();
        let begins = operands.iter().all(|o| o.address().is_some_and(|at| at.is_multiple_of(PACK as u64)));
        if info.arch == Arch::SM_90A && begins {
            Whole::over(info.processors as usize, s, dtype, tensors)
        } else {
            None
        }
    }

    fn over(processors: usize, s: Size, dtype: Dtype, tensors: usize) -> Option<Whole> {
        if !(s.space * dtype.bytes()).is_multiple_of(PACK) || s.n() == 0 || i32::try_from(s.n()).is_err() {
            return None;
        }
        let packs = s.n() * dtype.bytes() / PACK;
        let of = |blocks: usize| Whole { s, blocks, share: packs.div_ceil(blocks), tensors };
        let is_good = |w: &Whole| w.bytes() <= BYTES[0] && s.channels * w.blocks >= RESIDENT * processors;
        let small = [1, 2, 4].map(of).into_iter().find(is_good);
        Some(small.unwrap_or(of(MOST_BLOCKS))).filter(|w| w.bytes() <= BYTES[1])
    }

    fn bytes(self) -> usize {
        self.share * PACK * self.tensors
    }

    /// A cluster for every channel.
    pub(super) fn launch(self) -> Result<Launch> {
        let blocks = launch::blocks(OP, "C", self.s.channels.saturating_mul(self.blocks))?;
        let launch = Launch { shared: self.bytes() as u32, ..Launch::linear(blocks, THREADS) };
        Ok(launch.in_clusters([self.blocks as u32, 1, 1]))
    }

    /// Batch, channels, space, packs of a block.
    pub(super) fn args<'a>(self) -> Result<[Arg<'a>; 4]> {
        let short = |axis, n| launch::short(OP, axis, n).map(Arg::I32);
        let Size { batch, channels, space } = self.s;
        Ok([short("B", batch)?, short("C", channels)?, short("space", space)?, short("a share", self.share)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(batch: usize, channels: usize, space: usize, dtype: Dtype, tensors: usize) -> Option<(usize, usize)> {
        Whole::over(132, Size { batch, channels, space }, dtype, tensors).map(|w| (w.blocks, w.share))
    }

    #[test]
    fn clusters_are_as_small_as_leaves_every_processor_work() {
        assert_eq!(over(64, 256, 3136, Dtype::Bf16, 1), Some((8, 3136)));
        assert_eq!(over(64, 256, 3136, Dtype::Bf16, 2), Some((8, 3136)), "two blocks a processor");
        assert_eq!(over(8, 64, 3136, Dtype::Bf16, 1), Some((8, 392)), "few channels");
        assert_eq!(over(8, 1024, 784, Dtype::F32, 1), Some((1, 1568)));
        assert_eq!(over(2, 3, 8, Dtype::F16, 2), Some((8, 1)), "some blocks have nothing");
    }

    #[test]
    fn channels_that_do_not_fit_or_cannot_be_copied_are_left_to_others() {
        assert_eq!(over(64, 256, 3136, Dtype::F32, 2), None, "200 KB a block");
        assert_eq!(over(64, 256, 49, Dtype::Bf16, 1), None, "98 bytes a row");
        assert_eq!(over(64, 256, 1, Dtype::Bf16, 1), None);
        assert_eq!(over(0, 256, 8, Dtype::Bf16, 1), None);
    }
}
