//! Backward on Hopper in 16-bit types: one kernel for the gradients of q, k and v, between one that prepares rows of queries and one
//! that turns the sums for q into its gradient. `kernels/attention/backward.sm90.cu` has the numbers that are repeated here.

use super::operands_sm90::{Vectors, maybe, operands_fit};
use super::{Plan, to_i32};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit, Variant};
use crate::error::{Error, Result};
use crate::ops::attention::geometry::Place;
use crate::ops::operator::GradSlot;
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View};

const SOURCE: Source = source!("attention/backward.sm90.cu");
static BEGIN: Kernel = Kernel::new(SOURCE, "attention_bwd_begin");
static BWD: Kernel = Kernel::new(SOURCE, "attention_bwd");
static END: Kernel = Kernel::new(SOURCE, "attention_bwd_end");

macro_rules! specialised {
    ($($d:literal)*) => {
        &[$(
            &[("D", $d), ("HAS_BIAS", 0), ("HAS_DROPOUT", 0)],
            &[("D", $d), ("HAS_BIAS", 1), ("HAS_DROPOUT", 0)],
            &[("D", $d), ("HAS_BIAS", 0), ("HAS_DROPOUT", 1)],
        )*]
    };
}

/// The head sizes that models have; the device's compiler makes the others when they are met.
pub(super) const UNIT: Unit = Unit {
    source: SOURCE,
    types: &[&[("T", Dtype::Bf16)], &[("T", Dtype::F16)]],
    constants: specialised!(32 48 64 80 96 128),
};

/// Keys of a block, queries of a tile.
const KEYS: usize = 128;
const QUERIES: usize = 64;
/// Queries and keys of a tile of the general kernels, which run where `spoiled` says so.
const MARKED: usize = 64;
/// Bytes of the cache that heads side by side may fill with queries, their gradients and sums.
const SECTION_BYTES: usize = 40 << 20;

/// What the general kernels still need to know.
pub(super) struct Done {
    /// Sum of dy · y for every query; there if a mask or a bias is.
    pub(super) total: Option<Tensor>,
    /// Tiles of queries and of keys that are left to them; there if a mask is.
    pub(super) spoiled: Option<[Tensor; 2]>,
}

/// Whether these kernels compute this application: `tensors` are all that they read or write 16 bytes at a time.
pub(super) fn fits(plan: &Plan<'_>, gpu: &Gpu, tensors: &[&dyn Operand]) -> bool {
    let g = &plan.g;
    operands_fit(plan, gpu, tensors, 128)
        // Places in a head's bias are counted in 32 bits: 64 leave no registers.
        && (g.bias.is_none() || g.nq.saturating_mul(g.nk) < 1 << 31)
        && g.batch * g.heads * g.nq.max(g.nk).div_ceil(MARKED) < 1 << 30
}

/// Bytes of shared memory of the middle kernel for heads of `d` numbers.
fn shared_bytes(d: usize) -> u32 {
    let panels = d.div_ceil(64);
    let stages = if d <= 64 { 4 } else { 2 };
    // Keys and values; tiles of queries and of dy; the scores' gradients twice.
    let tiles = 2 * panels * KEYS * 128 + 2 * stages * panels * QUERIES * 128 + 2 * KEYS * QUERIES * 2;
    let sums = QUERIES * d * 4;
    let twice = if tiles + 2 * sums + 3072 <= 227 * 1024 { 2 } else { 1 };
    // Two rows of numbers for each tile; barriers and the ticket; up to where swizzled tiles may start.
    (tiles + twice * sums + 2 * stages * QUERIES * 4 + 256 + 1024) as u32
}

/// Destination and whether it is added to; null where the gradient is not wanted.
pub(super) fn out<'a>(slot: Option<&'a GradSlot<'_>>) -> (Arg<'a>, Arg<'a>) {
    match slot {
        Some(GradSlot::Set(to)) => (Arg::Out(to), Arg::I32(0)),
        Some(GradSlot::Add(to)) => (Arg::Out(to), Arg::I32(1)),
        Some(GradSlot::Unwanted) | None => (Arg::Null, Arg::I32(0)),
    }
}

/// Gradients of q, k and v into their slots.
pub(super) fn run(
    plan: &Plan<'_>,
    gpu: &Gpu,
    [q, k, v, y, dy, lse]: [&View<'_>; 6],
    bias: Option<&View<'_>>,
    dx: &[GradSlot<'_>],
) -> Result<Done> {
    let g = &plan.g;
    let has_mask = plan.op.hides();
    let (tiles, heads) = (g.nq.div_ceil(QUERIES), g.batch * g.heads);
    let rows = heads * tiles * QUERIES;
    let variant = Variant::of(dy.spec().dtype())
        .with("D", g.d as i64)
        .with("HAS_BIAS", i64::from(bias.is_some()))
        .with("HAS_DROPOUT", i64::from(plan.op.dropping().is_some()));
    let ints = |n: usize| gpu.scratch(Spec::new(Dtype::I32, [n])?);
    let exponent = gpu.scratch(Spec::f32([rows])?)?;
    let inner = gpu.scratch(Spec::f32([rows])?)?;
    let sums = gpu.scratch(Spec::f32([rows * g.d])?)?;
    let turns = ints(1 + heads * tiles)?;
    let total = if has_mask || bias.is_some() { Some(gpu.scratch(Spec::f32([heads * g.nq])?)?) } else { None };
    let spoiled = if has_mask {
        Some([ints(heads * g.nq.div_ceil(MARKED))?, ints(g.batch * g.kv_heads * g.nk.div_ceil(MARKED))?])
    } else {
        None
    };
    let mark = |i: usize| spoiled.as_ref().and_then(|s| s.get(i));
    let int = |what: &str, n: usize| to_i32(what, n).map(Arg::I32);
    let reach = || plan.seen.short_reach();
    let (nq, nk) = (|| int("queries", g.nq), || int("keys", g.nk));
    let blocks = |what: &str, n: usize| u32::try_from(n).map_err(|_| Error::too_large("attention", what, n));

    let lanes = (g.d / 8).next_power_of_two().clamp(2, 16);
    let grid = blocks("queries of all heads", rows.div_ceil(128 / lanes))?;
    let mut args = vec![
        Arg::Scratch(&exponent),
        Arg::Scratch(&inner),
        maybe(total.as_ref()),
        Arg::Scratch(&turns),
        Arg::In(y),
        Arg::In(dy),
        Arg::In(lse),
    ];
    args.extend(plan.seen.tables());
    args.extend([Arg::I64(rows as i64), nq()?, nk()?]);
    args.extend(reach()?);
    args.push(int("heads", g.heads)?);
    BEGIN.launch_as(gpu, &variant, Launch::linear(grid, 128), &mut args)?;

    let place = |of, p: Place, heads, tokens, rows| Vectors::new(of, p.offset, p.row, heads, tokens, rows);
    let maps = [
        place(q, g.q, g.heads, g.nq, QUERIES),
        place(k, g.k, g.kv_heads, g.nk, KEYS),
        place(v, g.v, g.kv_heads, g.nk, KEYS),
        Vectors::new(dy, 0, g.heads * g.d, g.heads, g.nq, QUERIES),
    ];
    let maps = maps.iter().map(|m| m.map(gpu, g.batch, g.d)).collect::<Result<Vec<_>>>()?;
    let ((dk, add_dk), (dv, add_dv)) = (out(dx.get(g.k.input)), out(dx.get(g.v.input)));
    let section = (SECTION_BYTES / (g.group() * g.nq * g.d * 8)).clamp(1, g.batch * g.kv_heads);
    let mut args = vec![dk, dv, Arg::Scratch(&sums), Arg::Scratch(&turns), maybe(mark(1))];
    args.extend(maps.iter().map(|m| Arg::Bytes(m)));
    args.extend([Arg::Scratch(&exponent), Arg::Scratch(&inner), bias.map_or(Arg::Null, |b| Arg::In(b))]);
    args.extend(plan.seen.tables());
    args.extend([g.k.offset, g.v.offset, g.k.row, g.v.row].map(|n| Arg::I64(n as i64)));
    args.extend([nq()?, nk()?]);
    args.extend(reach()?);
    args.extend([int("heads", g.heads)?, int("heads", g.group())?, int("samples", g.batch)?]);
    args.extend([Arg::F32(g.scale), int("heads", section)?, add_dk, add_dv]);
    args.extend(plan.dropping());
    let grid = blocks("keys of all heads", g.nk.div_ceil(KEYS) * g.kv_heads * g.batch)?;
    BWD.launch_as(gpu, &variant, Launch::linear(grid, 384).with_shared(shared_bytes(g.d)), &mut args)?;

    let (dq, add_dq) = out(dx.get(g.q.input));
    if !matches!(dq, Arg::Null) {
        let (at, row) = (Arg::I64(g.q.offset as i64), Arg::I64(g.q.row as i64));
        let mut args = vec![dq, maybe(mark(0)), Arg::Scratch(&sums)];
        args.extend(plan.seen.tables());
        args.extend([at, row, nq()?, nk()?]);
        args.extend(reach()?);
        args.extend([int("heads", g.heads)?, Arg::F32(g.scale), add_dq]);
        END.launch_as(gpu, &variant, Launch::linear(blocks("queries of all heads", heads * tiles)?, 128), &mut args)?;
    }
    Ok(Done { total, spoiled })
}
