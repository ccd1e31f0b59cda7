//! The device path: places and masks of any layout are arguments of one kernel file, so nothing is split or copied.

mod backward_sm90;
mod forward_sm90;
mod general;
mod long;
mod operands_sm90;
mod seen;

use long::Long;

use super::executed::{General, Walk};
use super::gathered;
use super::geometry::Geometry;
use super::short::{self, Short};
use super::small_sm90;
use super::{Attention, ProbabilityDropout};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit, Variant};
use crate::error::{Error, Result};
use crate::ops::launch;
use crate::ops::operator::{Backward, Forward, GradSlot};
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View};
use seen::Seen;

const SOURCE: Source = source!("attention/attention.cu");
static FWD: Kernel = Kernel::new(SOURCE, "attention_fwd");
static BWD_TOTAL: Kernel = Kernel::new(SOURCE, "attention_bwd_total");
static BWD_ROWS: Kernel = Kernel::new(SOURCE, "attention_bwd_rows");
static BWD_DQ: Kernel = Kernel::new(SOURCE, "attention_bwd_dq");
static BWD_DKV: Kernel = Kernel::new(SOURCE, "attention_bwd_dkv");
static BWD_DBIAS: Kernel = Kernel::new(SOURCE, "attention_bwd_dbias");

pub(super) const KERNELS: &[Unit] = &[
    Unit { constants: &[&[("D", NARROW)], &[("D", WIDE)]], ..Unit::floats(SOURCE) },
    short::UNIT,
    small_sm90::UNIT,
    forward_sm90::UNITS[0],
    forward_sm90::UNITS[1],
    backward_sm90::UNITS[0],
    backward_sm90::UNITS[1],
    backward_sm90::WIDE_UNIT,
    backward_sm90::BIAS_UNIT,
    long::UNIT,
    long::BACKWARD_UNIT,
    gathered::UNIT,
];

const THREADS: u32 = 128;
/// Lanes of a query where results are multiplied with their gradients: SHARERS of the kernels' text.
const SHARERS: u32 = 8;
/// Tiles through which a block looks for marked ones: MARKS of the kernels' text.
const MARKS: u32 = 32;
/// Numbers of a result's row that a block computes: heads up to the first have one stage of products, longer ones several.
const NARROW: i64 = 64;
const WIDE: i64 = 128;

/// Sizes of one application as the kernels have them.
struct Plan<'a> {
    op: &'a Attention,
    g: Geometry,
    variant: Variant,
    /// Blocks side by side for one row of a result.
    outs: u32,
    /// Rows of a block; columns of a tile.
    rows: usize,
    columns: usize,
    seen: Seen,
}

fn to_i32(what: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::too_large("attention", what, n))
}

impl<'a> Plan<'a> {
    fn new(op: &'a Attention, gpu: &Gpu, specs: &[&Spec]) -> Result<Plan<'a>> {
        let g = Geometry::of(op, specs)?;
        let dtype = specs[g.q.input].dtype();
        let d = if g.d <= NARROW as usize { NARROW } else { WIDE };
        let variant = Variant::of(dtype).with("D", d);
        Ok(Plan {
            op,
            seen: Seen::new(op, gpu, &g, &variant)?,
            variant,
            outs: launch::blocks("attention", "head size", g.d.div_ceil(d as usize))?,
            rows: 16 * (THREADS / gpu.warp()) as usize,
            columns: if dtype == Dtype::F32 { 16 } else { 32 },
            g,
        })
    }

    /// How tiles are walked, for what launches state.
    fn walk(&self) -> Walk<'_> {
        Walk { op: self.op, g: &self.g }
    }

    /// Says what a general kernel executes, where matrix units compute this type.
    fn state(&self, gpu: &Gpu, flops: impl FnOnce(General<'_>) -> u128) {
        let is_f32 = self.columns == 16;
        gpu.executes(|| {
            let wide = if self.g.d <= NARROW as usize { NARROW } else { WIDE } as usize;
            let (walk, skips_zeros) = (self.walk(), gpu.warp() == 32);
            let kernels = General { walk, rows: self.rows, columns: self.columns, wide, skips_zeros };
            if is_f32 && skips_zeros { 0 } else { flops(kernels) }
        });
    }

    /// Tiles of `n` rows of each of `heads` heads of each sample.
    fn tiles(&self, n: usize, heads: usize) -> Result<i32> {
        to_i32("rows of all heads", n.div_ceil(self.rows) * heads * self.g.batch)
    }

    /// A block for each of so many tiles, or for each MARKS of which it takes those that are marked.
    fn launch(&self, tiles: i32, only: &Arg<'_>) -> Launch {
        let tiles = tiles.unsigned_abs();
        let blocks = if matches!(only, Arg::Null) { tiles } else { tiles.div_ceil(MARKS) };
        Launch::grid([blocks, 1, self.outs], [THREADS, 1, 1])
    }

    /// What the gradients of scores need of every query: Σ p · dp, and for f32 1 / Σ p.
    fn row_sums(
        &self,
        gpu: &Gpu,
        [q, k, v, y, dy, lse]: [&View<'_>; 6],
        bias: Option<&View<'_>>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let g = &self.g;
        let queries = g.batch * g.heads * g.nq;
        let total = gpu.scratch(Spec::f32([queries])?)?;
        if dy.spec().dtype() == Dtype::F32 {
            let inverse = gpu.scratch(Spec::f32([queries])?)?;
            let mut args = vec![Arg::Scratch(&total), Arg::Scratch(&inverse), Arg::In(q), Arg::In(k), Arg::In(v)];
            args.extend([Arg::In(dy), bias.map_or(Arg::Null, |b| Arg::In(b)), Arg::In(lse)]);
            args.extend(self.common()?);
            let launch = Launch::linear(self.tiles(g.nq, g.heads)?.unsigned_abs(), THREADS);
            self.state(gpu, |kernels| kernels.rows());
            BWD_ROWS.launch_as(gpu, &self.variant, launch, &mut args)?;
            return Ok((total, Some(inverse)));
        }
        let blocks = u32::try_from(queries.div_ceil((THREADS / SHARERS) as usize));
        let blocks = blocks.map_err(|_| Error::too_large("attention", "queries", queries))?;
        let (heads, d) = (to_i32("heads", g.heads)?, to_i32("head size", g.d)?);
        let args = &mut [
            Arg::Scratch(&total),
            Arg::In(y),
            Arg::In(dy),
            Arg::I64(queries as i64),
            Arg::I64(g.nq as i64),
            Arg::I32(heads),
            Arg::I32(d),
        ];
        BWD_TOTAL.launch_as(gpu, &self.variant, Launch::linear(blocks, THREADS), args)?;
        Ok((total, None))
    }

    /// Arguments that all kernels end with, but for what is theirs.
    fn common(&self) -> Result<Vec<Arg<'_>>> {
        let g = &self.g;
        let place = |n: usize| Arg::I64(n as i64);
        let mut args = Vec::from(self.seen.tables());
        args.extend([
            place(g.q.offset),
            place(g.k.offset),
            place(g.v.offset),
            place(g.q.row),
            place(g.k.row),
            place(g.v.row),
            place(g.nq),
            place(g.nk),
        ]);
        args.extend(self.seen.reach().map(Arg::I64));
        args.extend([
            Arg::I32(to_i32("heads", g.heads)?),
            Arg::I32(to_i32("heads", g.group())?),
            Arg::I32(to_i32("head size", g.d)?),
            Arg::F32(g.scale),
        ]);
        args.extend(self.dropping());
        Ok(args)
    }

    /// Arguments of the kernels' `Dropping`: the stream, how many of 256 numbers are dropped, by what the others are multiplied.
    fn dropping(&self) -> [Arg<'static>; 4] {
        let nothing = [Arg::I64(0), Arg::I64(0), Arg::I32(0), Arg::F32(1.0)];
        self.op.dropping().map_or(nothing, ProbabilityDropout::args)
    }
}

impl Attention {
    pub(super) fn launch_fwd(&self, gpu: &Gpu, io: Forward<'_>) -> Result<()> {
        let specs: Vec<&Spec> = io.x.iter().map(View::spec).collect();
        let plan = Plan::new(self, gpu, &specs)?;
        let g = &plan.g;
        let tensors: Vec<&dyn Operand> =
            io.x.iter().take(3).map(|x| x as &dyn Operand).chain(io.y.iter().map(|y| y as _)).collect();
        let is_hoppers = g.windows.is_none() && forward_sm90::fits(&plan, gpu, &tensors);
        let is_shorts = |short: &Short<'_>| match is_hoppers {
            true => short.is_best_on_hopper(true),
            false => !short.is_left_to_long(),
        };
        if let Some(short) = Short::of(self, gpu, g, &tensors).filter(is_shorts) {
            return short.fwd(gpu, &io, plan.seen.lengths.as_ref());
        }
        if g.windows.is_some() {
            general::tell(&plan, gpu, &tensors);
            return Attention::windows_fwd(gpu, g, &io);
        }
        let ([y], [lse]) = (&*io.y, &*io.saved) else { unreachable!("infer fixed the counts") };
        let [q, k, v] = [g.q, g.k, g.v].map(|place| &io.x[place.input]);
        let bias = g.bias.map(|i| &io.x[i]);
        let mut spoiled = None;
        if is_hoppers {
            spoiled = forward_sm90::run(&plan, gpu, [q, k, v], bias, y, lse)?;
            if spoiled.is_none() {
                return Ok(());
            }
        } else if let Some(long) = Long::of(&plan, gpu, &tensors) {
            spoiled = long.fwd(gpu, [q, k, v], bias, y, lse)?;
            if spoiled.is_none() {
                return Ok(());
            }
        } else {
            general::tell(&plan, gpu, &tensors);
        }
        let bias = bias.map_or(Arg::Null, |b| Arg::In(b));
        let mut args = vec![Arg::Out(y), Arg::Out(lse), Arg::In(q), Arg::In(k), Arg::In(v), bias];
        args.extend(plan.common()?);
        let (tiles, only) = (plan.tiles(g.nq, g.heads)?, spoiled.as_ref().map_or(Arg::Null, Arg::Scratch));
        let launch = plan.launch(tiles, &only);
        args.extend([only, Arg::I32(tiles)]);
        // Marked tiles are there only where data are not finite.
        if spoiled.is_none() {
            plan.state(gpu, |kernels| kernels.forward());
        }
        FWD.launch_as(gpu, &plan.variant, launch, &mut args)
    }

    pub(super) fn launch_bwd(&self, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
        let plan = Plan::new(self, gpu, io.specs)?;
        let g = &plan.g;
        let Some(dy) = io.dy.first().and_then(Option::as_ref) else {
            // No gradient came: what is set is zero, what is added stays.
            return io.dx.iter_mut().try_for_each(|slot| if let GradSlot::Set(d) = slot { d.zero() } else { Ok(()) });
        };
        let input = |i: usize| io.x.get(i).and_then(Option::as_ref);
        let (Some(q), Some(k), Some(v)) = (input(g.q.input), input(g.k.input), input(g.v.input)) else {
            unreachable!("`keeps` names what backward reads")
        };
        let (Some(y), Some(lse)) = (io.y.first().and_then(Option::as_ref), io.saved.first()) else {
            unreachable!("`keeps` names what backward reads")
        };
        let bias = g.bias.and_then(input);
        let mut tensors: Vec<&dyn Operand> = vec![q, k, v, y, dy];
        tensors.extend([g.q, g.k, g.v].iter().filter_map(|place| match &io.dx[place.input] {
            GradSlot::Unwanted => None,
            GradSlot::Set(d) | GradSlot::Add(d) => Some(d as &dyn Operand),
        }));
        let operands = [q, k, v, y, dy, lse];
        let is_hoppers = g.windows.is_none() && backward_sm90::fits(&plan, gpu, &tensors);
        let is_shorts = |short: &Short<'_>| {
            short.has_backward() && if is_hoppers { short.is_best_on_hopper(false) } else { !short.is_left_to_long() }
        };
        if let Some(short) = Short::of(self, gpu, g, &tensors).filter(is_shorts) {
            return short.bwd(gpu, operands, bias, plan.seen.lengths.as_ref(), io.dx);
        }
        if g.windows.is_some() {
            general::tell(&plan, gpu, &tensors);
            return Attention::windows_bwd(gpu, g, [q, k, v, dy], bias, io.dx);
        }
        // The kernels of long sequences leave tiles that they mark to the general ones, and those not of Hopper the bias.
        let mut has_bias = false;
        let (total, inverse, spoiled) = if is_hoppers {
            let done = backward_sm90::run(&plan, gpu, operands, bias, io.dx)?;
            let slot = match g.bias.and_then(|i| io.dx.get(i)) {
                Some(GradSlot::Set(to)) => Some((to, 0)),
                Some(GradSlot::Add(to)) => Some((to, 1)),
                Some(GradSlot::Unwanted) | None => None,
            };
            if let (Some(bias), Some(slot)) = (bias, slot) {
                has_bias = backward_sm90::bias_gradient(&plan, gpu, [q, k, v, dy], bias, &done, slot)?;
            }
            (done.total, None, Some(done.spoiled))
        } else if let Some(long) = Long::of(&plan, gpu, &tensors) {
            let (total, _) = plan.row_sums(gpu, operands, bias)?;
            let spoiled = long.bwd(gpu, [q, k, v, dy, lse], bias, &total, io.dx)?;
            (Some(total), None, Some(spoiled))
        } else {
            general::tell(&plan, gpu, &tensors);
            let (total, inverse) = plan.row_sums(gpu, operands, bias)?;
            (Some(total), inverse, None)
        };
        let Some(total) = total else { return Ok(()) };
        // Of a kernel for queries or keys: all tiles, marked ones, none.
        let only = |i: usize| match &spoiled {
            None => Some(Arg::Null),
            Some(marked) => marked.as_ref().and_then(|marked| marked.get(i)).map(Arg::Scratch),
        };
        for (i, slot) in io.dx.iter_mut().enumerate() {
            let (d, add) = match slot {
                GradSlot::Unwanted => continue,
                GradSlot::Set(d) => (d, 0),
                GradSlot::Add(d) => (d, 1),
            };
            let bias = g.bias.and_then(input).map_or(Arg::Null, |b| Arg::In(b));
            // Destination first; the packed input takes three parts of one gradient.
            let mut run = |kernel: &Kernel, launch: Launch, own: Vec<Arg<'_>>| {
                let bias = if let Arg::In(b) = &bias { Arg::In(*b) } else { Arg::Null };
                let (q, k, v) = (Arg::In(q), Arg::In(k), Arg::In(v));
                let mut args = vec![Arg::Out(&mut *d), q, k, v, Arg::In(dy), bias, Arg::In(lse)];
                args.extend([Arg::Scratch(&total), inverse.as_ref().map_or(Arg::Null, Arg::Scratch)]);
                args.extend(plan.common()?);
                args.extend(own);
                kernel.launch_as(gpu, &plan.variant, launch, &mut args)
            };
            if i == g.q.input
                && let Some(only) = only(0)
            {
                if spoiled.is_none() {
                    plan.state(gpu, |kernels| kernels.dq());
                }
                let tiles = plan.tiles(g.nq, g.heads)?;
                run(&BWD_DQ, plan.launch(tiles, &only), vec![Arg::I32(add), only, Arg::I32(tiles)])?;
            }
            for (place, is_value) in [(g.k, 0), (g.v, 1)] {
                if i == place.input
                    && let Some(only) = only(1)
                {
                    if spoiled.is_none() {
                        plan.state(gpu, |kernels| kernels.dkv(is_value == 1));
                    }
                    let tiles = plan.tiles(g.nk, g.kv_heads)?;
                    let launch = plan.launch(tiles, &only);
                    run(&BWD_DKV, launch, vec![Arg::I32(is_value), Arg::I32(add), only, Arg::I32(tiles)])?;
                }
            }
            if Some(i) == g.bias && !has_bias {
                if spoiled.is_some() {
                    general::tell_of(gpu, "the gradient of a bias");
                }
                let tiles = g.nq.div_ceil(plan.rows) * g.nk.div_ceil(plan.columns) * g.heads;
                let blocks = u32::try_from(tiles).map_err(|_| Error::too_large("attention", "bias", tiles))?;
                let own = vec![Arg::I64(g.batch as i64), Arg::I32(add)];
                plan.state(gpu, |kernels| kernels.dbias());
                run(&BWD_DBIAS, Launch::linear(blocks, THREADS), own)?;
            }
        }
        Ok(())
    }
}
