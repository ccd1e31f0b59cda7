//! The launches.

use super::{CrossEntropy, wrong_label};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::faults::Site;
use crate::backend::gpu::kernel::{Arg, Kernel};
use crate::error::Result;
use crate::ops::launch::{self, length};
use crate::ops::operator::GradSlot;
use crate::ops::totals::{self, Numbers, RowTeams, THREADS};
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

const OP: &str = "cross_entropy";
pub(super) const SOURCE: Source = crate::source!("cross_entropy/cross_entropy.cu");
static FWD_STRETCHES: Kernel = Kernel::new(SOURCE, "cross_entropy_fwd_stretches");
static FWD_ROWS: Kernel = Kernel::new(SOURCE, "cross_entropy_fwd_rows");
static FWD: Kernel = Kernel::new(SOURCE, "cross_entropy_fwd");
static BWD_LABELLED: Kernel = Kernel::new(SOURCE, "cross_entropy_bwd_labelled");
static BWD_SCALE: Kernel = Kernel::new(SOURCE, "cross_entropy_bwd_scale");
static BWD_DLOGITS: Kernel = Kernel::new(SOURCE, "cross_entropy_bwd_dlogits");
/// What is known of a block of rows: numbers in f64.
const KNOWN: usize = 3;
/// Rows whose labels a block counts.
const COUNTED_ROWS: usize = 16 * THREADS;

fn one_block() -> Launch {
    Launch::linear(1, THREADS as u32)
}

/// Memory for what is known of rows that come in pieces of so many.
pub(super) fn known(gpu: &Gpu, pieces: &[usize]) -> Result<Tensor> {
    totals::sums(gpu, KNOWN * pieces.iter().map(|rows| rows.div_ceil(THREADS)).sum::<usize>())
}

/// What there is to know of some rows, as the blocks from `first` on; how many blocks they are.
pub(super) fn rows(
    op: &CrossEntropy,
    gpu: &Gpu,
    [logits, labels]: [&View<'_>; 2],
    lse: &ViewMut<'_>,
    known: &Tensor,
    first: usize,
) -> Result<usize> {
    let (dtype, (rows, v)) = (logits.spec().dtype(), logits.spec().rows_cols());
    let ignored = || Arg::I32(op.ignore_index);
    let teams = RowTeams::new(gpu, Numbers::Of(dtype), rows, v);
    let spec = Spec::f32([teams.items()])?;
    let (tops, sums) = (gpu.scratch(spec.clone())?, gpu.scratch(spec)?);
    let mut args = vec![Arg::Out(&tops), Arg::Out(&sums), Arg::In(logits), Arg::In(labels)];
    args.extend(teams.args(OP)?.into_iter().chain([ignored()]));
    FWD_STRETCHES.launch(gpu, dtype, teams.launch(OP)?, &mut args)?;
    let blocks = rows.div_ceil(THREADS);
    // Numbers of 64 bits lie in pairs of ints.
    let known = known.view().part(first * KNOWN * 2, [blocks * KNOWN, 2])?;
    let mut args =
        vec![Arg::Out(lse), Arg::Out(&known), Arg::In(&tops), Arg::In(&sums), Arg::In(logits), Arg::In(labels)];
    for (axis, n) in [("rows", rows), ("V", v), ("stretches", teams.stretches())] {
        args.push(length(OP, axis, n)?);
    }
    args.push(ignored());
    FWD_ROWS.launch(gpu, dtype, launch::each(OP, "rows", rows)?, &mut args)?;
    Ok(blocks)
}

/// The loss of all rows, of which `blocks` blocks are known. A wrong label is told when the host next reads or waits.
pub(super) fn total(
    op: &CrossEntropy,
    gpu: &Gpu,
    labels: &View<'_>,
    v: usize,
    known: &Tensor,
    blocks: usize,
    loss: &ViewMut<'_>,
) -> Result<()> {
    let fault = gpu.record(op.site(v))?;
    let mut args = vec![Arg::Out(loss), Arg::Out(&fault), Arg::In(known), Arg::In(labels)];
    let ignored = Arg::I32(op.ignore_index);
    args.extend([length(OP, "rows", blocks)?, length(OP, "V", v)?, ignored, Arg::I32(fault.site)]);
    FWD.launch(gpu, Dtype::F32, one_block(), &mut args)
}

/// The factor of all gradients.
pub(super) fn scale(op: &CrossEntropy, gpu: &Gpu, labels: &View<'_>, dloss: &View<'_>) -> Result<Tensor> {
    let rows = labels.spec().len();
    let ignored = || Arg::I32(op.ignore_index);
    let blocks = rows.div_ceil(COUNTED_ROWS);
    let labelled = (blocks > 1).then(|| totals::sums(gpu, blocks)).transpose()?;
    if let Some(labelled) = &labelled {
        let grid = Launch::linear(launch::blocks(OP, "rows", blocks)?, THREADS as u32);
        let args = &mut [Arg::Out(labelled), Arg::In(labels), length(OP, "rows", rows)?, ignored()];
        BWD_LABELLED.launch(gpu, Dtype::F32, grid, args)?;
    }
    let scale = gpu.scratch(Spec::f32([1])?)?;
    let mut args = vec![Arg::Out(&scale), labelled.as_ref().map_or(Arg::Null, |l| Arg::In(l))];
    args.extend([Arg::In(labels), Arg::In(dloss), length(OP, "rows", blocks)?, length(OP, "rows", rows)?, ignored()]);
    BWD_SCALE.launch(gpu, Dtype::F32, one_block(), &mut args)?;
    Ok(scale)
}

/// The gradient of some rows.
pub(super) fn derive(
    op: &CrossEntropy,
    gpu: &Gpu,
    [logits, labels, lse]: [&View<'_>; 3],
    scale: &Tensor,
    dx: &mut GradSlot<'_>,
) -> Result<()> {
    let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
    let (dtype, (rows, v)) = (logits.spec().dtype(), logits.spec().rows_cols());
    let mut args = vec![Arg::Out(dx), Arg::In(logits), Arg::In(labels), Arg::In(lse), Arg::In(scale)];
    args.extend([length(OP, "elements", rows * v)?, length(OP, "V", v)?, Arg::I32(op.ignore_index), Arg::I32(add)]);
    BWD_DLOGITS.launch(gpu, dtype, launch::flat(OP, dtype, 1, rows * v)?, &mut args)
}

impl CrossEntropy {
    fn site(&self, v: usize) -> Site {
        let tell = |[v, ignored]: [i64; 2], [low, high, label]: [i32; 3]| {
            let row = i64::from(high) << 32 | i64::from(low as u32);
            wrong_label(v, ignored, row, label)
        };
        Site { op: OP, tell, known: [v as i64, i64::from(self.ignore_index)] }
    }
}
