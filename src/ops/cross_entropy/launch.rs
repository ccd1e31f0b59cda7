//! The launches.

use super::{CrossEntropy, wrong_label};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::faults::Site;
use crate::backend::gpu::kernel::{Arg, Kernel};
use crate::error::Result;
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::launch::{self, length};
use crate::ops::operator::{Backward, Forward};
use crate::ops::totals::{self, Numbers, RowTeams, THREADS};
use crate::tensor::Spec;

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

/// Forward. A wrong label is told when the host next reads or waits.
pub(super) fn forward(op: &CrossEntropy, gpu: &Gpu, io: Forward<'_>) -> Result<()> {
    let ([logits, labels], [loss], [lse]) = (io.x, io.y, io.saved) else { return Err(wrong_operands(OP)) };
    let (dtype, (rows, v)) = (logits.spec().dtype(), logits.spec().rows_cols());
    let ignored = || Arg::I32(op.ignore_index);
    let teams = RowTeams::new(gpu, Numbers::Of(dtype), rows, v);
    let spec = Spec::f32([teams.items()])?;
    let (tops, sums) = (gpu.scratch(spec.clone())?, gpu.scratch(spec)?);
    let mut args = vec![Arg::Out(&tops), Arg::Out(&sums), Arg::In(logits), Arg::In(labels)];
    args.extend(teams.args(OP)?.into_iter().chain([ignored()]));
    FWD_STRETCHES.launch(gpu, dtype, teams.launch(OP)?, &mut args)?;
    let blocks = rows.div_ceil(THREADS);
    let known = totals::sums(gpu, KNOWN * blocks)?;
    let mut args =
        vec![Arg::Out(lse), Arg::Out(&known), Arg::In(&tops), Arg::In(&sums), Arg::In(logits), Arg::In(labels)];
    for (axis, n) in [("rows", rows), ("V", v), ("stretches", teams.stretches())] {
        args.push(length(OP, axis, n)?);
    }
    args.push(ignored());
    FWD_ROWS.launch(gpu, dtype, launch::each(OP, "rows", rows)?, &mut args)?;
    let fault = gpu.record(op.site(v))?;
    let mut args = vec![Arg::Out(loss), Arg::Out(&fault), Arg::In(&known), Arg::In(labels)];
    args.extend([length(OP, "rows", blocks)?, length(OP, "V", v)?, ignored(), Arg::I32(fault.site)]);
    FWD.launch(gpu, dtype, one_block(), &mut args)
}

/// Backward.
pub(super) fn backward(op: &CrossEntropy, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let ([lse], [dloss], [dx, _]) = (io.saved, io.dy, &mut *io.dx) else { return Err(wrong_operands(OP)) };
    let Some(dloss) = dloss else { return no_gradient(io.dx) };
    let Some((dx, add)) = launch::slot(dx) else { return Ok(()) };
    let (logits, labels) = (launch::kept(OP, io.x, 0)?, launch::kept(OP, io.x, 1)?);
    let (dtype, (rows, v)) = (logits.spec().dtype(), logits.spec().rows_cols());
    let ignored = || Arg::I32(op.ignore_index);
    let blocks = rows.div_ceil(COUNTED_ROWS);
    let labelled = (blocks > 1).then(|| totals::sums(gpu, blocks)).transpose()?;
    if let Some(labelled) = &labelled {
        let grid = Launch::linear(launch::blocks(OP, "rows", blocks)?, THREADS as u32);
        let args = &mut [Arg::Out(labelled), Arg::In(labels), length(OP, "rows", rows)?, ignored()];
        BWD_LABELLED.launch(gpu, dtype, grid, args)?;
    }
    let scale = gpu.scratch(Spec::f32([1])?)?;
    let mut args = vec![Arg::Out(&scale), labelled.as_ref().map_or(Arg::Null, |l| Arg::In(l))];
    args.extend([Arg::In(labels), Arg::In(dloss), length(OP, "rows", blocks)?, length(OP, "rows", rows)?, ignored()]);
    BWD_SCALE.launch(gpu, dtype, one_block(), &mut args)?;
    let mut args = vec![Arg::Out(dx), Arg::In(logits), Arg::In(labels), Arg::In(lse), Arg::In(&scale)];
    args.extend([length(OP, "elements", rows * v)?, length(OP, "V", v)?, ignored(), Arg::I32(add)]);
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
