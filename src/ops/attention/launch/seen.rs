//! Who sees whom, as kernels take it: see `kernels/common/seen.cuh`.

use super::{SOURCE, to_i32};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Variant};
use crate::error::{Error, Result};
use crate::ops::attention::geometry::Geometry;
use crate::ops::attention::visible::Reach;
use crate::ops::attention::{Attention, Causal, Sequences};
use crate::ops::launch;
use crate::tensor::{Dtype, Spec, Tensor};

static SEEN: Kernel = Kernel::new(SOURCE, "attention_seen");
const THREADS: usize = 256;
/// More tokens than that have no table.
const MOST: usize = 1 << 29;

/// The masks of one application.
pub(super) struct Seen {
    /// Keys of each sample.
    pub(super) lengths: Option<Tensor>,
    /// Ranges of queries and keys, where no formula gives them.
    table: Option<Tensor>,
    reach: Reach,
}

impl Seen {
    pub(super) fn new(op: &Attention, gpu: &Gpu, g: &Geometry, variant: &Variant) -> Result<Seen> {
        let lengths = op.key_lengths.as_ref().map(|lengths| upload(gpu, lengths)).transpose()?;
        let table = op.sequences.as_ref().map(|sequences| table(op, gpu, g, variant, sequences)).transpose()?;
        Ok(Seen { lengths, table, reach: op.reach(&(0..g.nq), &(0..g.nk)) })
    }

    /// Whether all samples and heads have the same mask, which a formula gives.
    pub(super) fn is_even(&self) -> bool {
        self.lengths.is_none() && self.table.is_none()
    }

    pub(super) fn lengths(&self) -> Arg<'_> {
        self.lengths.as_ref().map_or(Arg::Null, |l| Arg::In(l))
    }

    /// Lengths and the table.
    pub(super) fn tables(&self) -> [Arg<'_>; 2] {
        [self.lengths(), self.table.as_ref().map_or(Arg::Null, |t| Arg::In(t))]
    }

    /// How many keys before and after its own a query sees.
    pub(super) fn reach(&self) -> [i64; 2] {
        [self.reach.before, self.reach.after]
    }

    /// The same for kernels that count in 32 bits.
    pub(super) fn short_reach(&self) -> Result<[Arg<'static>; 2]> {
        let [before, after] = self.reach().map(i32::try_from);
        match (before, after) {
            (Ok(before), Ok(after)) => Ok([Arg::I32(before), Arg::I32(after)]),
            _ => Err(Error::too_large("attention", "tokens", usize::MAX)),
        }
    }
}

fn upload(gpu: &Gpu, numbers: &[usize]) -> Result<Tensor> {
    let numbers = numbers.iter().map(|&n| to_i32("tokens of a sequence", n)).collect::<Result<Vec<_>>>()?;
    let mut there = gpu.scratch(Spec::new(Dtype::I32, [numbers.len()])?)?;
    if let Some(mut view) = there.view_mut() {
        view.write(bytemuck::cast_slice(&numbers))?;
    }
    Ok(there)
}

fn table(op: &Attention, gpu: &Gpu, g: &Geometry, variant: &Variant, sequences: &Sequences) -> Result<Tensor> {
    let rows = g.nq.saturating_add(g.nk);
    if rows > MOST {
        return Err(Error::too_large("attention", "queries and keys of packed sequences", rows));
    }
    let table = gpu.scratch(Spec::new(Dtype::I32, [rows, 2])?)?;
    let (queries, keys) = (upload(gpu, &sequences.queries)?, upload(gpu, &sequences.keys)?);
    // Of sequences that begin together the reach has no place in it.
    let Reach { before, after } = op.reach(&(0..0), &(0..0));
    let ints = [g.nq, g.nk, sequences.queries.len() - 1].map(|n| to_i32("tokens", n).map(Arg::I32));
    let mut args = vec![Arg::Scratch(&table), Arg::In(&queries), Arg::In(&keys)];
    args.extend(ints.into_iter().collect::<Result<Vec<_>>>()?);
    args.extend([before, after - 1].map(|n| Arg::I32(n as i32)));
    args.push(Arg::I32(i32::from(op.causal == Causal::BottomRight)));
    let blocks = launch::blocks("attention", "tokens", rows.div_ceil(THREADS))?;
    SEEN.launch_as(gpu, variant, Launch::linear(blocks, THREADS as u32), &mut args)?;
    Ok(table)
}
