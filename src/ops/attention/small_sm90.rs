//! Launches for short sequences on Hopper. `kernels/attention/small.sm90.cu` has the numbers that are repeated here.

use super::geometry::{Geometry, Place};
use super::short::{Short, wanted};
use super::windows::Windows;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::{Arch, Launch, MapType, Swizzle, TENSOR_MAP_BYTES, TensorMapSpec};
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit, Variant};
use crate::error::{Error, Result};
use crate::ops::launch;
use crate::ops::operator::{Forward, GradSlot};
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View};

const SOURCE: Source = source!("attention/small.sm90.cu");
static FWD: Kernel = Kernel::new(SOURCE, "attention_small_fwd");
static BWD: Kernel = Kernel::new(SOURCE, "attention_small_bwd");
static BWD_DBIAS: Kernel = Kernel::new(SOURCE, "attention_small_bwd_dbias");

pub(super) const UNIT: Unit = Unit {
    source: SOURCE,
    types: &[&[("T", Dtype::Bf16)], &[("T", Dtype::F16)]],
    constants: &[
        &[("D", 32), ("TOKENS", 64), ("HAS_BIAS", 0)],
        &[("D", 32), ("TOKENS", 64), ("HAS_BIAS", 1)],
        &[("D", 64), ("TOKENS", 128), ("HAS_BIAS", 0)],
        &[("D", 64), ("TOKENS", 144), ("HAS_BIAS", 0)],
        &[("D", 64), ("TOKENS", 144), ("HAS_BIAS", 1)],
    ],
};

/// Head sizes and tokens that the kernels are compiled for.
const SIZES: [usize; 2] = [32, 64];
/// Of 128 tokens each number that 144 have besides costs: 0.14 ms and 0.33 for 1024 times 8 heads of 64, and not 0.18 and 0.39 (measured
/// on an H200, 2026-11-22). With a bias there is no such kernel.
const TOKENS: [usize; 3] = [64, 128, 144];
/// Bits of a token's number; its region has the others of a word.
const TOKEN_BITS: u32 = 26;
/// Heads on their way and in work.
const STAGES: [usize; 3] = [8, 4, 2];
/// Bytes of the kernels' `Shared`: operands, stages, barriers.
const SHARED_BYTES: usize = 4 * 24 + 8 * 16 + 2 * 8 * 8;
/// Queries of a slab.
const SLAB: usize = 64;
/// Threads of a warpgroup.
const GROUP: u32 = 128;

/// The kernels' sizes for one application.
pub(super) struct Sizes {
    d: usize,
    tokens: usize,
}

impl Sizes {
    /// If Hopper's kernels compute it.
    pub(super) fn of(short: &Short<'_>, gpu: &Gpu) -> Option<Sizes> {
        let g = short.g;
        let d = SIZES.into_iter().find(|&d| d >= g.d)?;
        let is_there = |n: usize| n != 128 || g.bias.is_none() && d == 64;
        let tokens = TOKENS.into_iter().find(|&n| n >= short.nq.max(short.nk) && is_there(n))?;
        // Heads and bytes of a row are counted in 32 bits.
        let rows = [g.q.row, g.k.row, g.v.row, g.heads * g.d];
        let is_small =
            short.heads() < 1 << 30 && g.nq.max(g.nk) < 1 << TOKEN_BITS && rows.iter().all(|&row| row < 1 << 30);
        (gpu.driver().info().arch == Arch::SM_90A && is_small).then_some(Sizes { d, tokens })
    }

    fn variant(&self, dtype: Dtype, has_bias: bool) -> Variant {
        let sizes = Variant::of(dtype).with("D", self.d as i64).with("TOKENS", self.tokens as i64);
        sizes.with("HAS_BIAS", i64::from(has_bias))
    }

    /// As many stages of `operands` operands as fit beside `others` bytes, and the bytes of all.
    fn stages(&self, operands: usize, others: usize, most: usize) -> Option<(usize, usize)> {
        let bytes =
            |stages: usize| stages * (operands * self.tokens * self.d * 2 + self.tokens * 4) + others + SHARED_BYTES;
        STAGES.into_iter().map(|stages| (stages, bytes(stages))).find(|&(_, bytes)| bytes <= most)
    }

    /// FLOPs of a product of slabs of queries with all keys of a head.
    fn slab_flops(&self, slabs: usize) -> u128 {
        2 * (slabs * SLAB * self.tokens * self.d) as u128
    }

    /// Those of both sums over queries, which have 64 rows whatever the head size: of the first 128 queries, and of the others if there
    /// are any.
    fn column_flops(&self, nq: usize) -> u128 {
        let queries = if nq > 2 * SLAB { self.tokens } else { self.tokens.min(2 * SLAB) };
        2 * 2 * (SLAB * self.tokens * queries) as u128
    }

    /// Warpgroups of backward that multiply, and how many heads they have at a time.
    fn groups(&self, has_bias: bool) -> (u32, usize) {
        match (self.tokens > 64, has_bias) {
            (true, _) => (2, 1),
            (false, true) => (2, 2),
            (false, false) => (3, 3),
        }
    }
}

/// Blocks: as many as multiprocessors; with a bias each has one head, and as many blocks as fit share it.
fn blocks(short: &Short<'_>, gpu: &Gpu, has_bias: bool) -> usize {
    let (heads, all) = (short.g.heads, gpu.driver().info().processors as usize);
    if has_bias { (all / heads).clamp(1, short.sharing()) * heads } else { all.min(short.heads()) }
}

/// Numbers that both directions end with: heads of all samples, blocks, stages.
fn ends<'a>(short: &Short<'_>, blocks: usize, stages: usize) -> Result<[Arg<'a>; 3]> {
    let int = |n: usize| launch::short("attention", "heads of all samples", n).map(Arg::I32);
    Ok([int(short.heads())?, int(blocks)?, int(stages)?])
}

fn launch_of(blocks: usize, groups: u32, bytes: usize) -> Result<Launch> {
    let blocks = launch::blocks("attention", "heads of all samples", blocks)?;
    Ok(Launch::linear(blocks, GROUP * (groups + 1)).with_shared(bytes as u32))
}

type Map = [u8; TENSOR_MAP_BYTES];

/// The boxes through which heads come and go: those of a sequence hold it whole, those of a window a plane of it.
struct Boxes<'a> {
    short: &'a Short<'a>,
    gpu: &'a Gpu,
    size: usize,
}

impl<'a> Boxes<'a> {
    /// None where no box holds just what is there: keys of several lengths, places of a window that no token has.
    fn of(sizes: &Sizes, short: &'a Short<'a>, gpu: &'a Gpu, lengths: Option<&Tensor>) -> Option<Boxes<'a>> {
        let is_whole = short.g.windows.is_none() || short.nq == sizes.tokens;
        (is_whole && lengths.is_none()).then_some(Boxes { short, gpu, size: sizes.d })
    }

    /// How many of them hold an operand of a head.
    fn count(&self) -> Result<Arg<'static>> {
        launch::short("attention", "planes", self.short.g.windows.map_or(1, |w| w.size[0])).map(Arg::I32)
    }

    /// Of one operand: axes numbers, heads, and the tokens of a row, rows and planes of all samples, which a sequence has one of.
    fn map(&self, of: &dyn Operand, operand: Tokens, rows: usize) -> Result<Map> {
        let (g, Tokens { offset, row, heads, tokens }) = (self.short.g, operand);
        let ([planes, lines, columns], [high, wide]) = match &g.windows {
            Some(w) => (w.grid, [w.size[1], w.size[2]]),
            None => ([1, 1, tokens], [1, rows]),
        };
        let start = of.address().ok_or_else(|| Error::argument("attention: a tensor outside the device's memory"))?;
        let bytes = |numbers: usize| 2 * numbers as u64;
        self.gpu.driver().tensor_map(&TensorMapSpec {
            dtype: if of.spec().dtype() == Dtype::F16 { MapType::F16 } else { MapType::Bf16 },
            address: start + bytes(offset),
            dims: [g.d, heads, columns, lines, planes * g.batch].map(|n| n as u64).to_vec(),
            strides: vec![bytes(g.d), bytes(row), bytes(columns * row), bytes(lines * columns * row)],
            box_dims: vec![self.size as u32, 1, wide as u32, high as u32, 1],
            swizzle: if self.size == 64 { Swizzle::B128 } else { Swizzle::B64 },
            is_nan_filled: false,
        })
    }
}

/// Where an operand's heads lie: the first number, numbers between tokens, heads, tokens of a sample.
#[derive(Clone, Copy)]
struct Tokens {
    offset: usize,
    row: usize,
    heads: usize,
    tokens: usize,
}

impl Tokens {
    fn of(place: Place, heads: usize, tokens: usize) -> Tokens {
        Tokens { offset: place.offset, row: place.row, heads, tokens }
    }
    /// Of a result, or of its gradient: heads side by side.
    fn whole(g: &Geometry) -> Tokens {
        Tokens { offset: 0, row: g.heads * g.d, heads: g.heads, tokens: g.nq }
    }
}

/// Rows of a result that leave in a box.
const SENT: usize = 16;
const NO_MAP: Map = [0; TENSOR_MAP_BYTES];

impl Sizes {
    pub(super) fn fwd(&self, short: &Short<'_>, gpu: &Gpu, io: &Forward<'_>, lengths: Option<&Tensor>) -> Result<()> {
        let g = short.g;
        let ([y], [lse]) = (&*io.y, &*io.saved) else { unreachable!("infer fixed the counts") };
        let bias_bytes = if g.bias.is_some() { self.tokens * self.tokens * 4 } else { 0 };
        let (stages, bytes) = self.stages(3, bias_bytes, short.shared).ok_or_else(|| too_large(self))?;
        let blocks = blocks(short, gpu, g.bias.is_some());
        let mut args = vec![Arg::Out(y), Arg::Out(lse)];
        args.extend([g.q, g.k, g.v].map(|place| Arg::In(&io.x[place.input])));
        args.push(g.bias.map_or(Arg::Null, |i| Arg::In(&io.x[i])));
        args.push(lengths.map_or(Arg::Null, |l| Arg::In(l)));
        args.extend(short.places()?);
        args.push(Arg::I32(launch::short("attention", "heads", g.group())?));
        args.extend([Arg::I32(launch::short("attention", "head size", g.d)?), Arg::F32(g.scale)]);
        args.extend(ends(short, blocks, stages)?);
        let windows = Windows::bytes(g.windows.as_ref());
        args.push(Arg::Bytes(&windows));
        let (mut maps, mut count) = ([NO_MAP; 4], Arg::I32(0));
        if let Some(boxes) = Boxes::of(self, short, gpu, lengths) {
            count = boxes.count()?;
            if g.windows.is_none() {
                maps[0] = boxes.map(y, Tokens::whole(g), SENT)?;
            }
            for (map, (place, heads, n)) in maps[1..].iter_mut().zip(operands(g)) {
                *map = boxes.map(&io.x[place.input], Tokens::of(place, heads, n), self.tokens)?;
            }
        }
        args.push(count);
        args.extend(maps.iter().map(|map| Arg::Bytes(map)));
        let variant = self.variant(y.spec().dtype(), false);
        gpu.executes(|| short.heads() as u128 * 2 * self.slab_flops(short.nq.div_ceil(SLAB)));
        FWD.launch_as(gpu, &variant, launch_of(blocks, 3, bytes)?, &mut args)
    }

    pub(super) fn bwd(
        &self,
        short: &Short<'_>,
        gpu: &Gpu,
        [q, k, v, y, dy, lse]: [&View<'_>; 6],
        bias: Option<&View<'_>>,
        lengths: Option<&Tensor>,
        dx: &mut [GradSlot<'_>],
    ) -> Result<()> {
        let g = short.g;
        let (groups, teams) = self.groups(bias.is_some());
        let square = self.tokens * self.tokens;
        let (stages, bytes) = self.stages(4, teams * 2 * square * 2, short.shared).ok_or_else(|| too_large(self))?;
        let blocks = blocks(short, gpu, bias.is_some());
        let slots: Vec<_> = dx.iter().map(wanted).collect();
        let partial = match bias {
            Some(_) => Some(gpu.scratch(Spec::f32([blocks * teams, square])?)?),
            None => None,
        };
        let places = [g.q, g.k, g.v].map(|place| slots[place.input]);
        let mut args: Vec<Arg<'_>> = places.iter().map(|slot| slot.map_or(Arg::Null, |(d, _)| Arg::Out(d))).collect();
        args.push(partial.as_ref().map_or(Arg::Null, Arg::Scratch));
        args.extend([q, k, v, y, dy].map(|x| Arg::In(x)));
        args.extend([bias.map_or(Arg::Null, |b| Arg::In(b)), Arg::In(lse)]);
        args.push(lengths.map_or(Arg::Null, |l| Arg::In(l)));
        args.extend(short.places()?);
        args.extend([Arg::I32(launch::short("attention", "head size", g.d)?), Arg::F32(g.scale)]);
        args.extend(ends(short, blocks, stages)?);
        args.extend(places.iter().map(|slot| Arg::I32(slot.map_or(0, |(_, add)| add))));
        let windows = Windows::bytes(g.windows.as_ref());
        args.push(Arg::Bytes(&windows));
        // A box sets; what is added to goes token by token.
        let is_sent = places[1..].iter().flatten().all(|&(_, add)| add == 0);
        let (mut maps, mut count) = ([NO_MAP; 6], Arg::I32(0));
        if let Some(boxes) = Boxes::of(self, short, gpu, lengths) {
            count = boxes.count()?;
            let [of_q, of_k, of_v] = operands(g).map(|(place, heads, n)| Tokens::of(place, heads, n));
            for (map, (slot, tokens)) in maps.iter_mut().zip([(places[1], of_k), (places[2], of_v)]) {
                if let Some((to, _)) = slot {
                    *map = boxes.map(to, tokens, self.tokens)?;
                }
            }
            let read = [(q, of_q), (dy, Tokens::whole(g)), (k, of_k), (v, of_v)];
            for (map, (from, tokens)) in maps[2..].iter_mut().zip(read) {
                *map = boxes.map(from, tokens, self.tokens)?;
            }
        }
        args.extend([count, Arg::I32(i32::from(is_sent))]);
        args.extend(maps.iter().map(|map| Arg::Bytes(map)));
        let variant = self.variant(dy.spec().dtype(), bias.is_some());
        // Each warpgroup of a team has a slab, with or without queries.
        let slabs = short.nq.div_ceil(SLAB).max(if self.tokens > SLAB { 2 } else { 1 });
        gpu.executes(|| short.heads() as u128 * (3 * self.slab_flops(slabs) + self.column_flops(short.nq)));
        BWD.launch_as(gpu, &variant, launch_of(blocks, groups, bytes)?, &mut args)?;
        let (Some((to, add)), Some(partial)) = (g.bias.and_then(|i| slots[i]), &partial) else { return Ok(()) };
        let mut args = vec![Arg::Out(to), Arg::Scratch(partial)];
        for n in [short.nq, short.nk, g.heads, blocks / g.heads] {
            args.push(Arg::I32(launch::short("attention", "bias", n)?));
        }
        args.push(Arg::I32(add));
        let launch = launch::each("attention", "bias", g.heads * short.nq * short.nk)?;
        BWD_DBIAS.launch_as(gpu, &variant, launch, &mut args)
    }
}

/// Places, heads and tokens of queries, keys and values.
fn operands(g: &Geometry) -> [(Place, usize, usize); 3] {
    [(g.q, g.heads, g.nq), (g.k, g.kv_heads, g.nk), (g.v, g.kv_heads, g.nk)]
}

fn too_large(sizes: &Sizes) -> Error {
    Error::too_large("attention", "tokens", sizes.tokens)
}
