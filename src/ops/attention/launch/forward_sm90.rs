//! Forward on Hopper in 16-bit types. `kernels/attention/forward.sm90.cu` has the numbers that are repeated here.

use super::operands_sm90::{Vectors, maybe, operands_fit};
use super::{Plan, to_i32};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit, Variant};
use crate::error::{Error, Result};
use crate::ops::attention::executed;
use crate::ops::attention::geometry::Place;
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

const SOURCE: Source = source!("attention/forward.sm90.cu");
static FWD: Kernel = Kernel::new(SOURCE, "attention_fwd");

macro_rules! specialised {
    ($($d:literal)*; $($wide:literal)*) => {
        &[
            $(
                &[("D", $d), ("GROUPS", 2), ("HAS_BIAS", 0), ("HAS_DROPOUT", 0)],
                &[("D", $d), ("GROUPS", 2), ("HAS_BIAS", 1), ("HAS_DROPOUT", 0)],
                &[("D", $d), ("GROUPS", 3), ("HAS_BIAS", 0), ("HAS_DROPOUT", 0)],
                &[("D", $d), ("GROUPS", 2), ("HAS_BIAS", 0), ("HAS_DROPOUT", 1)],
            )*
            $(
                &[("D", $wide), ("GROUPS", 2), ("HAS_BIAS", 0), ("HAS_DROPOUT", 0)],
                &[("D", $wide), ("GROUPS", 2), ("HAS_BIAS", 1), ("HAS_DROPOUT", 0)],
                &[("D", $wide), ("GROUPS", 2), ("HAS_BIAS", 0), ("HAS_DROPOUT", 1)],
            )*
        ]
    };
}

/// The head sizes that models have, of f16 the usual ones; the device's compiler makes the others when they are met.
pub(super) const UNITS: [Unit; 2] = [
    Unit { source: SOURCE, types: &[&[("T", Dtype::Bf16)]], constants: specialised!(32 48 64; 80 96 128 256) },
    Unit { source: SOURCE, types: &[&[("T", Dtype::F16)]], constants: specialised!(64; 128) },
];

/// Rows of a slab of queries, which is marked for the general kernel as a whole.
const SLAB: usize = 64;
/// Rows of results that a warp stores.
const STORED: usize = 16;
/// Head sizes of which three warpgroups have the registers, unless they draw numbers.
const NARROW: usize = 64;
/// Tiles of a block from which on their lengths even out.
const MANY: usize = 12;
/// Bytes of the cache that keys and values of heads side by side may fill.
const SECTION_BYTES: usize = 32 << 20;

/// Tiles of one application.
struct Tiles {
    /// Warpgroups that multiply, of 64 queries each.
    groups: usize,
    /// Keys of a block.
    keys: usize,
    shared: usize,
}

impl Tiles {
    fn of(plan: &Plan<'_>) -> Tiles {
        let d = plan.g.d;
        // Three warpgroups share each block of keys, unless that leaves more than an eighth of their rows empty.
        let fills = |groups: usize| 8 * plan.g.nq >= 7 * plan.g.nq.next_multiple_of(groups * SLAB);
        let is_plain = plan.g.bias.is_none() && plan.op.dropping().is_none();
        // One tile of three warpgroups is shorter than two of two.
        let is_one = plan.op.is_even() && (2 * 64 + 1..=3 * 64).contains(&plan.g.nq);
        let groups = if d <= NARROW && is_plain && (is_one || fills(3)) { 3 } else { 2 };
        let keys = match d {
            0..=128 => 128,
            129..=192 => 112,
            _ => 80,
        };
        let (ahead, queue) = (if d <= NARROW { 4 } else { 2 }, if d <= 128 { 3 } else { 1 });
        // Panels of 64 numbers; tiles' places and barriers; up to where swizzled tiles may start.
        let shared = d.div_ceil(64) * 128 * (queue * groups * SLAB + 2 * ahead * keys) + 512 + 1024;
        Tiles { groups, keys, shared }
    }
}

/// Whether this kernel computes this application: `tensors` are all that it reads or writes 16 bytes at a time.
pub(super) fn fits(plan: &Plan<'_>, gpu: &Gpu, tensors: &[&dyn Operand]) -> bool {
    let g = &plan.g;
    operands_fit(plan, gpu, tensors, 256)
        // The largest score is that of the largest product.
        && g.scale > 0.0
        && g.batch * g.heads * g.nq.div_ceil(SLAB) < 1 << 30
}

/// y and lse. With a mask: the slabs of queries that are left to the general kernel.
pub(super) fn run(
    plan: &Plan<'_>,
    gpu: &Gpu,
    [q, k, v]: [&View<'_>; 3],
    bias: Option<&View<'_>>,
    y: &ViewMut<'_>,
    lse: &ViewMut<'_>,
) -> Result<Option<Tensor>> {
    let g = &plan.g;
    let tiles = Tiles::of(plan);
    let variant = Variant::of(q.spec().dtype())
        .with("D", g.d as i64)
        .with("GROUPS", tiles.groups as i64)
        .with("HAS_BIAS", i64::from(bias.is_some()))
        .with("HAS_DROPOUT", i64::from(plan.op.dropping().is_some()));
    let has_mask = plan.op.hides();
    let ints = |n: usize| gpu.scratch(Spec::new(Dtype::I32, [n])?);
    let (mut counter, mut spoiled) = (None, None);
    let all = g.nq.div_ceil(tiles.groups * SLAB) * g.heads * g.batch;
    let blocks = all.min(gpu.driver().info().processors as usize);
    if has_mask {
        // Of many tiles, longest first, every block gets about the same: a counter would take longer to set than it saves.
        if all < MANY * blocks || !plan.seen.is_even() {
            let mut zero = ints(1)?;
            if let Some(mut word) = zero.view_mut() {
                word.zero()?;
            }
            counter = Some(zero);
        }
        spoiled = Some(ints(g.batch * g.heads * g.nq.div_ceil(SLAB))?);
    }
    let place = |of, p: Place, heads, tokens, rows| Vectors::new(of, p.offset, p.row, heads, tokens, rows);
    let maps = [
        Vectors::new(y, 0, g.heads * g.d, g.heads, g.nq, STORED),
        place(q, g.q, g.heads, g.nq, tiles.groups * SLAB),
        place(k, g.k, g.kv_heads, g.nk, tiles.keys),
        place(v, g.v, g.kv_heads, g.nk, tiles.keys),
    ];
    let maps = maps.iter().map(|m| m.map(gpu, g.batch, g.d)).collect::<Result<Vec<_>>>()?;
    let section = (SECTION_BYTES / (4 * g.nk * g.d)).clamp(1, g.batch * g.heads);
    let int = |what: &str, n: usize| to_i32(what, n).map(Arg::I32);
    let mut args = vec![Arg::Out(lse), maybe(spoiled.as_ref()), maybe(counter.as_ref())];
    args.extend(maps.iter().map(|m| Arg::Bytes(m)));
    args.push(bias.map_or(Arg::Null, |b| Arg::In(b)));
    args.extend(plan.seen.tables());
    args.extend([int("queries", g.nq)?, int("keys", g.nk)?]);
    args.extend(plan.seen.short_reach()?);
    args.extend([int("heads", g.heads)?, int("heads", g.group())?, int("samples", g.batch)?, Arg::F32(g.scale)]);
    args.extend([int("heads", section)?, int("blocks", blocks)?]);
    args.extend(plan.dropping());
    let grid = u32::try_from(blocks).map_err(|_| Error::too_large("attention", "blocks", blocks))?;
    let launch = Launch::linear(grid, 128 * (tiles.groups as u32 + 1)).with_shared(tiles.shared as u32);
    gpu.executes(|| executed::forward_sm90(&plan.walk(), tiles.groups * SLAB, tiles.keys));
    FWD.launch_as(gpu, &variant, launch, &mut args)?;
    Ok(spoiled)
}
