//! Backward on Hopper in 16-bit types: one kernel for the gradients of q, k and v, between one that prepares rows of queries and one
//! that turns the sums for q into its gradient. `kernels/attention/backward.sm90.cu`, `wide.sm90.cu` beside it and what both include
//! have the numbers that are repeated here.

use super::operands_sm90::{Vectors, maybe, operands_fit};
use super::{Plan, to_i32};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::{Launch, TENSOR_MAP_BYTES};
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit, Variant};
use crate::error::{Error, Result};
use crate::ops::attention::executed;
use crate::ops::attention::geometry::Place;
use crate::ops::operator::GradSlot;
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

const NARROW: Source = source!("attention/backward.sm90.cu");
const WIDE: Source = source!("attention/wide.sm90.cu");
const BIAS: Source = source!("attention/bias.sm90.cu");
static DBIAS: Kernel = Kernel::new(BIAS, "attention_bwd_dbias");
/// What prepares, the products, what ends: for heads of up to 128 numbers, and for longer ones.
static KERNELS: [[Kernel; 3]; 2] = [of(NARROW), of(WIDE)];

const fn of(source: Source) -> [Kernel; 3] {
    [
        Kernel::new(source, "attention_bwd_begin"),
        Kernel::new(source, "attention_bwd"),
        Kernel::new(source, "attention_bwd_end"),
    ]
}

macro_rules! specialised {
    ($($d:literal)*) => {
        &[$(
            &[("D", $d), ("HAS_BIAS", 0), ("HAS_DROPOUT", 0)],
            &[("D", $d), ("HAS_BIAS", 1), ("HAS_DROPOUT", 0)],
            &[("D", $d), ("HAS_BIAS", 0), ("HAS_DROPOUT", 1)],
        )*]
    };
}

/// The head sizes that models have, of f16 the usual ones; the device's compiler makes the others when they are met.
pub(super) const UNITS: [Unit; 2] = [
    Unit { source: NARROW, types: &[&[("T", Dtype::Bf16)]], constants: specialised!(32 48 64 80 96 128) },
    Unit { source: NARROW, types: &[&[("T", Dtype::F16)]], constants: specialised!(64 128) },
];
pub(super) const BIAS_UNIT: Unit = Unit {
    source: BIAS,
    types: &[&[("T", Dtype::Bf16)]],
    constants: &[&[("D", 64), ("HAS_BIAS", 1), ("HAS_DROPOUT", 0)]],
};
pub(super) const WIDE_UNIT: Unit = Unit {
    source: WIDE,
    types: &[&[("T", Dtype::Bf16)]],
    constants: &[&[("D", 256), ("HAS_BIAS", 0), ("HAS_DROPOUT", 0)]],
};

/// Queries of a tile; longest heads of the narrow kernels.
const QUERIES: usize = 64;
const MOST_NARROW: usize = 128;
/// Keys of a block: of the narrow kernels, and of the others.
const KEYS: usize = 128;
const WIDE_KEYS: usize = 64;
/// Queries of a head whose rows the same threads prepare at once.
const AT_ONCE: usize = 8;
/// Queries and keys of a tile of the general kernels, which run where `spoiled` says so.
const MARKED: usize = 64;
/// Bytes that heads side by side may fill with queries, their gradients and sums: what the cache holds; and more under a mask, where a
/// block that begins later has less to do, but waits at its first tile for all of its head that began before, so that few of many heads do.
const SECTION_BYTES: usize = 40 << 20;
const MASKED_BYTES: usize = 96 << 20;
/// Queries of a head up to which those waits are short, a few steps each, and the cache decides under a mask too: of 512 tokens and heads
/// of 128, causal, 40 MB have 1.08 of cuDNN's speed and 96 MB 0.95; of 2048 tokens 1.06 and 1.15.
const SHORT_WAITS: usize = 1024;

/// What the general kernels still need to know.
pub(super) struct Done {
    /// Of every query, in whole tiles: log2 of what its exponentials add up to, and the sum of dy · y.
    exponent: Tensor,
    inner: Tensor,
    /// Sum of dy · y for every query; there if a mask or a bias is.
    pub(super) total: Option<Tensor>,
    /// Tiles of queries and of keys that are left to them; there if a mask is.
    pub(super) spoiled: Option<[Tensor; 2]>,
}

/// Whether these kernels compute this application: `tensors` are all that they read or write 16 bytes at a time.
pub(super) fn fits(plan: &Plan<'_>, gpu: &Gpu, tensors: &[&dyn Operand]) -> bool {
    let g = &plan.g;
    operands_fit(plan, gpu, tensors, 256)
        // Places in a head's bias are counted in 32 bits: 64 leave no registers.
        && (g.bias.is_none() || g.nq.saturating_mul(g.nk) < 1 << 31)
        && g.batch * g.heads * g.nq.max(g.nk).div_ceil(MARKED) < 1 << 30
}

/// Keys of a block for heads of `d` numbers, and bytes of shared memory of the middle kernel.
fn block(d: usize) -> (usize, u32) {
    let panels = d.div_ceil(64);
    if d > MOST_NARROW {
        // Keys, values, two tiles of queries, one of dy; gradients of scores, probabilities, two panels of sums, rows of numbers.
        let tiles = panels * (2 * WIDE_KEYS + 3 * QUERIES) * 128
            + WIDE_KEYS * QUERIES * (2 + 4)
            + 2 * QUERIES * 64 * 4
            + 3 * QUERIES * 4;
        return (WIDE_KEYS, (tiles + 256 + 1024) as u32);
    }
    let stages = if d <= 64 { 4 } else { 2 };
    // Keys and values; tiles of queries and of dy; the scores' gradients twice.
    let tiles = 2 * panels * KEYS * 128 + 2 * stages * panels * QUERIES * 128 + 2 * KEYS * QUERIES * 2;
    let sums = QUERIES * d * 4;
    let twice = if tiles + 2 * sums + 3072 <= 227 * 1024 { 2 } else { 1 };
    // Two rows of numbers for each tile; barriers and what blocks do; up to where swizzled tiles may start.
    (KEYS, (tiles + twice * sums + 2 * stages * QUERIES * 4 + 512 + 1024) as u32)
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
    let is_wide = usize::from(g.d > MOST_NARROW);
    let [begin, bwd, end] = &KERNELS[is_wide];
    let (keys, shared) = block(g.d);
    let rows = heads * tiles * QUERIES;
    let variant = Variant::of(dy.spec().dtype())
        .with("D", g.d as i64)
        .with("HAS_BIAS", i64::from(bias.is_some()))
        .with("HAS_DROPOUT", i64::from(plan.op.dropping().is_some()));
    let ints = |n: usize| gpu.scratch(Spec::new(Dtype::I32, [n])?);
    let exponent = gpu.scratch(Spec::f32([rows])?)?;
    let inner = gpu.scratch(Spec::f32([rows])?)?;
    let sums = gpu.scratch(Spec::f32([rows * g.d])?)?;
    let turns = ints(1 + heads * tiles * (1 + is_wide))?;
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

    let lanes = (g.d / 8).next_power_of_two().clamp(2, 32);
    let grid = blocks("queries of all heads", (rows / AT_ONCE).div_ceil(128 / lanes))?;
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
    begin.launch_as(gpu, &variant, Launch::linear(grid, 128), &mut args)?;

    let maps = maps(plan, gpu, [q, k, v, dy], keys)?;
    let ((dk, add_dk), (dv, add_dv)) = (out(dx.get(g.k.input)), out(dx.get(g.v.input)));
    let bytes = if has_mask && g.nq > SHORT_WAITS { MASKED_BYTES } else { SECTION_BYTES };
    let pairs = g.batch * g.kv_heads;
    let section = (bytes / (g.group() * g.nq * g.d * 8)).clamp(1, pairs);
    // As many in the last one as in the others.
    let section = pairs.div_ceil(pairs.div_ceil(section));
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
    let works = blocks("keys of all heads", g.nk.div_ceil(keys) * g.kv_heads * g.batch)?;
    let grid = works.min(gpu.driver().info().processors);
    gpu.executes(|| executed::backward_sm90(&plan.walk(), keys, QUERIES));
    bwd.launch_as(gpu, &variant, Launch::linear(grid, 384).with_shared(shared), &mut args)?;

    let (dq, add_dq) = out(dx.get(g.q.input));
    if !matches!(dq, Arg::Null) {
        let (at, row) = (Arg::I64(g.q.offset as i64), Arg::I64(g.q.row as i64));
        let mut args = vec![dq, maybe(mark(0)), Arg::Scratch(&sums)];
        args.extend(plan.seen.tables());
        args.extend([at, row, nq()?, nk()?]);
        args.extend(reach()?);
        args.extend([int("heads", g.heads)?, Arg::F32(g.scale), add_dq]);
        end.launch_as(gpu, &variant, Launch::linear(blocks("queries of all heads", heads * tiles)?, 128), &mut args)?;
    }
    Ok(Done { exponent, inner, total, spoiled })
}

/// Tiles of queries, keys, values and gradients of results.
fn maps(plan: &Plan<'_>, gpu: &Gpu, [q, k, v, dy]: [&View<'_>; 4], keys: usize) -> Result<Vec<[u8; TENSOR_MAP_BYTES]>> {
    let g = &plan.g;
    let place = |of, p: Place, heads, tokens, rows| Vectors::new(of, p.offset, p.row, heads, tokens, rows);
    let maps = [
        place(q, g.q, g.heads, g.nq, QUERIES),
        place(k, g.k, g.kv_heads, g.nk, keys),
        place(v, g.v, g.kv_heads, g.nk, keys),
        Vectors::new(dy, 0, g.heads * g.d, g.heads, g.nq, QUERIES),
    ];
    maps.iter().map(|m| m.map(gpu, g.batch, g.d)).collect()
}

/// The gradient of the bias, behind `run`; false where the general kernel has to make it.
pub(super) fn bias_gradient(
    plan: &Plan<'_>,
    gpu: &Gpu,
    operands: [&View<'_>; 4],
    bias: &View<'_>,
    done: &Done,
    (dbias, add): (&ViewMut<'_>, i32),
) -> Result<bool> {
    let g = &plan.g;
    let panes = g.nk.div_ceil(KEYS).saturating_mul(g.nq.div_ceil(QUERIES)).saturating_mul(g.heads);
    let (Ok(blocks), true) = (i32::try_from(panes), g.d <= MOST_NARROW) else { return Ok(false) };
    let variant = Variant::of(operands[0].spec().dtype())
        .with("D", g.d as i64)
        .with("HAS_BIAS", 1)
        .with("HAS_DROPOUT", i64::from(plan.op.dropping().is_some()));
    let panels = g.d.div_ceil(64);
    let stages = if g.d <= 64 { 4 } else { 2 };
    let shared = stages * (2 * panels * (KEYS + QUERIES) * 128 + 2 * QUERIES * 4) + 256 + 1024;
    let maps = maps(plan, gpu, operands, KEYS)?;
    let int = |what: &str, n: usize| to_i32(what, n).map(Arg::I32);
    let mut args = vec![Arg::Out(dbias)];
    args.extend(maps.iter().map(|m| Arg::Bytes(m)));
    args.extend([Arg::Scratch(&done.exponent), Arg::Scratch(&done.inner), Arg::In(bias)]);
    args.extend(plan.seen.tables());
    args.extend([int("queries", g.nq)?, int("keys", g.nk)?]);
    args.extend(plan.seen.short_reach()?);
    args.extend([int("heads", g.heads)?, int("heads", g.group())?, int("samples", g.batch)?]);
    args.extend([Arg::F32(g.scale), Arg::I32(add)]);
    args.extend(plan.dropping());
    let launch = Launch::linear(blocks.unsigned_abs(), 384).with_shared(shared as u32);
    gpu.executes(|| executed::bias_sm90(&plan.walk(), KEYS, QUERIES));
    DBIAS.launch_as(gpu, &variant, launch, &mut args)?;
    Ok(true)
}
