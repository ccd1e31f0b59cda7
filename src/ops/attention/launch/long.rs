//! Long sequences in 16-bit types where the device has no kernels of its own. `kernels/attention/long.cu` has the numbers that are
//! repeated here.

use super::backward_sm90::out;
use super::operands_sm90::maybe;
use super::{Plan, to_i32};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::{Arch, Launch};
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit, Variant};
use crate::error::{Error, Result};
use crate::ops::attention::{Causal, executed};
use crate::ops::operator::GradSlot;
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

const SOURCE: Source = source!("attention/long.cu");
const BACKWARD: Source = source!("attention/long_backward.cu");
static FWD: Kernel = Kernel::new(SOURCE, "attention_long_fwd");
static BWD_DKV: Kernel = Kernel::new(BACKWARD, "attention_long_bwd_dkv");
static BWD_DQ: Kernel = Kernel::new(BACKWARD, "attention_long_bwd_dq");

/// Head sizes that the kernels are compiled for; the middle one, and a bias or dropout with any other, when they are met.
const SIZES: [i64; 3] = [64, 96, 128];
pub(super) const UNIT: Unit = Unit {
    source: SOURCE,
    types: &[&[("T", Dtype::Bf16)], &[("T", Dtype::F16)]],
    constants: &[
        &[("D", SIZES[0]), ("EXTRAS", 0)],
        &[("D", SIZES[2]), ("EXTRAS", 0)],
        &[("D", SIZES[2]), ("EXTRAS", 1)],
    ],
};
pub(super) const BACKWARD_UNIT: Unit = Unit { source: BACKWARD, ..UNIT };

/// Numbers in 16 bytes.
const PIECE: usize = 8;
/// Queries of a block, forward; keys of a block, for dk and dv.
const ROWS: usize = 128;
/// Rows of the other side of a step, backward.
const BWD_STEP: usize = 32;
/// One application as these kernels have it.
pub(super) struct Long<'a> {
    plan: &'a Plan<'a>,
    variant: Variant,
    /// Head size of the kernels.
    size: usize,
    /// Whether there is a bias or dropout.
    has_extras: bool,
    warp: u32,
}

impl<'a> Long<'a> {
    /// If these kernels can do it: `tensors` are all that they read or write 16 bytes at a time.
    pub(super) fn of(plan: &'a Plan<'a>, gpu: &Gpu, tensors: &[&dyn Operand]) -> Option<Long<'a>> {
        let g = &plan.g;
        let dtype = tensors.first()?.spec().dtype();
        // The f16 products of gfx90a take numbers below 2⁻¹⁴ for 0: too coarse for probabilities.
        let is_exact = dtype == Dtype::Bf16 || dtype == Dtype::F16 && gpu.driver().info().arch != Arch::GFX90A;
        let places = [g.q.offset, g.q.row, g.k.offset, g.k.row, g.v.offset, g.v.row, g.d];
        let is_whole = places.iter().all(|n| n.is_multiple_of(PIECE))
            && tensors.iter().all(|t| t.address().is_none_or(|at| at.is_multiple_of(16)));
        let is_counted = g.nq.min(g.nk) > 0
            && g.nq.max(g.nk) <= 1 << 24
            && g.batch * g.heads * g.nq.max(g.nk).div_ceil(16) < 1 << 30;
        let size = SIZES.into_iter().find(|&size| size as usize >= g.d)?;
        let has_extras = g.bias.is_some() || plan.op.dropping().is_some();
        let variant = Variant::of(dtype).with("D", size).with("EXTRAS", i64::from(has_extras));
        let long = Long { plan, variant, size: size as usize, has_extras, warp: gpu.warp() };
        let is_usual = plan.op.sequences.is_none() && g.windows.is_none() && (1e-9..1e9).contains(&g.scale);
        (is_exact && is_whole && is_counted && is_usual).then_some(long)
    }

    /// Whether a number that a query does not see lies in a tile of its own.
    fn is_marked(&self) -> bool {
        self.plan.op.causal != Causal::None || self.plan.op.sliding.is_some()
    }

    /// Whether a warp has 16 queries and not 32, for want of registers.
    fn is_tight(&self) -> bool {
        self.warp == 32 && self.size > 96 && self.has_extras
    }

    /// Memory for the tiles of `rows` rows of all heads that are left to the general kernels.
    fn marks(&self, gpu: &Gpu, rows: usize, heads: usize) -> Result<Option<Tensor>> {
        let tiles = self.plan.g.batch * heads * rows.div_ceil(self.plan.rows);
        self.is_marked().then(|| gpu.scratch(Spec::new(Dtype::I32, [tiles])?)).transpose()
    }

    /// y and lse. With a causal mask: the tiles of queries that are left to the general kernel.
    pub(super) fn fwd(
        &self,
        gpu: &Gpu,
        [q, k, v]: [&View<'_>; 3],
        bias: Option<&View<'_>>,
        y: &ViewMut<'_>,
        lse: &ViewMut<'_>,
    ) -> Result<Option<Tensor>> {
        let g = &self.plan.g;
        let spoiled = self.marks(gpu, g.nq, g.heads)?;
        let mut args = vec![Arg::Out(y), Arg::Out(lse), maybe(spoiled.as_ref()), Arg::In(q), Arg::In(k), Arg::In(v)];
        args.push(bias.map_or(Arg::Null, |b| Arg::In(b)));
        args.extend(self.common()?);
        // Queries, then two places of keys and values; on AMD one place, where the results lie at last.
        let step = if self.warp == 64 || self.size <= 64 && !self.has_extras { 64 } else { 32 };
        let numbers = if self.warp == 64 { ROWS.max(2 * step) } else { ROWS + 4 * step } * self.size;
        let blocks = g.nq.div_ceil(ROWS) * g.heads * g.batch;
        let warps = if self.is_tight() { 8 } else { 4 };
        gpu.executes(|| self.walked(ROWS, warps, step).over_keys(2));
        FWD.launch_as(gpu, &self.variant, self.launch(blocks, warps, numbers)?, &mut args)?;
        Ok(spoiled)
    }

    /// Gradients of q, k and v into their slots; `total` is the sum of y · dy. With a causal mask: the tiles of queries and of keys that
    /// are left to the general kernels.
    pub(super) fn bwd(
        &self,
        gpu: &Gpu,
        [q, k, v, dy, lse]: [&View<'_>; 5],
        bias: Option<&View<'_>>,
        total: &Tensor,
        dx: &[GradSlot<'_>],
    ) -> Result<Option<[Tensor; 2]>> {
        let g = &self.plan.g;
        let spoiled = match (self.marks(gpu, g.nq, g.heads)?, self.marks(gpu, g.nk, g.kv_heads)?) {
            (Some(queries), Some(keys)) => Some([queries, keys]),
            _ => None,
        };
        let mark = |i: usize| maybe(spoiled.as_ref().and_then(|s| s.get(i)));
        let inputs = || -> Result<Vec<Arg<'_>>> {
            let mut args: Vec<Arg<'_>> = [q, k, v, dy].map(|x| Arg::In(x)).into();
            args.extend([bias.map_or(Arg::Null, |b| Arg::In(b)), Arg::In(lse), Arg::Scratch(total)]);
            args.extend(self.common()?);
            Ok(args)
        };
        // Own rows of two tensors and two places of 32 of two others, two numbers for each; on AMD one place, where the results lie at last.
        let numbers = |rows: usize| {
            if self.warp == 64 { rows * self.size + 128 } else { (2 * rows + 128) * self.size + 256 }
        };
        let ((dk, add_dk), (dv, add_dv)) = (out(dx.get(g.k.input)), out(dx.get(g.v.input)));
        if !matches!((&dk, &dv), (Arg::Null, Arg::Null)) {
            let mut args = vec![dk, dv, mark(1)];
            args.extend(inputs()?);
            args.extend([add_dk, add_dv]);
            let blocks = g.nk.div_ceil(ROWS) * g.kv_heads * g.batch;
            let warps = if self.size <= 64 { 4 } else { 8 };
            gpu.executes(|| self.walked(ROWS, warps, BWD_STEP).over_queries(4));
            BWD_DKV.launch_as(gpu, &self.variant, self.launch(blocks, warps, numbers(ROWS))?, &mut args)?;
        }
        let (dq, add_dq) = out(dx.get(g.q.input));
        if !matches!(dq, Arg::Null) {
            let mut args = vec![dq, mark(0)];
            args.extend(inputs()?);
            args.push(add_dq);
            let warps = if self.warp == 64 || self.size <= 64 { 4 } else { 8 };
            let own = if self.is_tight() { 16 } else { 32 };
            let rows = own * warps as usize;
            let blocks = g.nq.div_ceil(rows) * g.heads * g.batch;
            gpu.executes(|| self.walked(rows, warps, BWD_STEP).over_keys(3));
            BWD_DQ.launch_as(gpu, &self.variant, self.launch(blocks, warps, numbers(rows))?, &mut args)?;
        }
        Ok(spoiled)
    }

    /// How blocks of `block` rows and `warps` warps walk, in steps of `step` rows of the other side.
    fn walked(&self, block: usize, warps: u32, step: usize) -> executed::Long<'_> {
        executed::Long { walk: self.plan.walk(), own: block / warps as usize, block, step, d: self.size }
    }

    fn launch(&self, blocks: usize, warps: u32, numbers: usize) -> Result<Launch> {
        let blocks = u32::try_from(blocks).map_err(|_| Error::too_large("attention", "rows of all heads", blocks))?;
        Ok(Launch::linear(blocks, warps * self.warp).with_shared(2 * numbers as u32))
    }

    /// Arguments from the lengths on.
    fn common(&self) -> Result<Vec<Arg<'_>>> {
        let g = &self.plan.g;
        let mut args = vec![self.plan.seen.lengths()];
        args.extend([g.q.offset, g.k.offset, g.v.offset, g.q.row, g.k.row, g.v.row].map(|n| Arg::I64(n as i64)));
        for n in [g.nq, g.nk, g.heads, g.group(), g.batch, g.d] {
            args.push(Arg::I32(to_i32("tokens or heads", n)?));
        }
        args.push(Arg::F32(g.scale));
        args.extend(self.plan.seen.short_reach()?);
        args.extend(self.plan.dropping());
        Ok(args)
    }
}
