//! Launches for short sequences: a head's keys and values fit into a block's shared memory whole, so every tensor is read once.

use super::Attention;
use super::geometry::Geometry;
use super::small_sm90::Sizes;
use super::windows::Windows;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::{Arch, Launch};
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit, Variant};
use crate::error::{Error, Result};
use crate::ops::launch;
use crate::ops::operator::{Forward, GradSlot};
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

const SOURCE: Source = source!("attention/short.cu");
static FWD: Kernel = Kernel::new(SOURCE, "attention_short_fwd");
static BWD: Kernel = Kernel::new(SOURCE, "attention_short_bwd");
static BWD_DBIAS: Kernel = Kernel::new(SOURCE, "attention_short_bwd_dbias");

/// Head sizes that the kernels are compiled for.
const SIZES: [i64; 6] = [16, 32, 48, 64, 96, 128];
pub(super) const UNIT: Unit = Unit {
    source: SOURCE,
    types: &[&[("T", Dtype::Bf16)], &[("T", Dtype::F16)]],
    constants: &[
        &[("D", SIZES[0])],
        &[("D", SIZES[1])],
        &[("D", SIZES[2])],
        &[("D", SIZES[3])],
        &[("D", SIZES[4])],
        &[("D", SIZES[5])],
    ],
};

/// Most queries and keys of a head.
const MOST: usize = 256;
/// The same on a device with kernels of its own for long sequences, whose tile of 192 queries is faster from 145 on: 0.24 ms and not
/// 0.41 for 903 times 8 heads of 145 tokens of 64 (measured on an H200, 2026-11-22). Those of the gradients, and those with a bias,
/// have no such tile.
const BEST_ON_HOPPER: [usize; 2] = [144, 160];
/// Numbers in 16 bytes.
const PIECE: usize = 8;
/// FLOPs of a product of two tiles of 16 by 16.
const TILE_FLOPS: u128 = 2 * 16 * 16 * 16;
/// Warps of a block, forward.
const WARPS: u32 = 3;

/// One application as these kernels have it.
pub(super) struct Short<'a> {
    op: &'a Attention,
    pub(super) g: &'a Geometry,
    variant: Variant,
    /// Head size of the kernels.
    size: usize,
    /// Queries and keys of a head of a sample, or of one of its windows.
    pub(super) nq: usize,
    pub(super) nk: usize,
    /// The same, rounded up to whole tiles.
    q_rows: usize,
    k_rows: usize,
    /// Bytes of shared memory that a block may have.
    pub(super) shared: usize,
    warp: u32,
}

impl<'a> Short<'a> {
    /// Whether kernels for long sequences, where the device has its own, are slower.
    pub(super) fn is_best_on_hopper(&self, is_forward: bool) -> bool {
        let has_tile = is_forward && self.g.bias.is_none() && self.g.d <= 64;
        self.g.nq.max(self.g.nk) <= BEST_ON_HOPPER[usize::from(!has_tile)]
    }

    /// Whether the kernels of long sequences, which walk through keys with less shared memory and fewer instructions a tile, are taken
    /// instead although they compute more: on AMD, where nothing is read in place. Up to twice as many tiles are made up for, as
    /// `benches/targets` counts.
    pub(super) fn is_left_to_long(&self) -> bool {
        let is_plain = self.g.windows.is_none() && self.g.bias.is_none();
        let (block, step) = (128, 64);
        let long = self.nq.next_multiple_of(block) * self.nk.next_multiple_of(step) * self.size.max(64);
        let own = self.nq.next_multiple_of(self.own()) * self.k_rows * self.size;
        self.warp == 64 && is_plain && self.size != 96 && long <= 2 * own
    }

    /// Queries that a warp has at a time.
    fn own(&self) -> usize {
        match self.size {
            ..=64 => 48,
            65..=96 => 32,
            _ => 16,
        }
    }

    /// If these kernels can do it at all, forward: `tensors` are all that they read or write 16 bytes at a time.
    pub(super) fn of(op: &'a Attention, gpu: &Gpu, g: &'a Geometry, tensors: &[&dyn Operand]) -> Option<Short<'a>> {
        let dtype = tensors.first()?.spec().dtype();
        let info = gpu.driver().info();
        // The f16 products of gfx90a take numbers below 2⁻¹⁴ for 0: too coarse for probabilities.
        let is_exact = dtype == Dtype::Bf16 || dtype == Dtype::F16 && info.arch != Arch::GFX90A;
        let is_plain = op.is_even() && op.dropping().is_none() && (1e-9..1e9).contains(&g.scale);
        let (nq, nk) = g.places();
        let is_small = (1..=MOST).contains(&nq) && (1..=MOST).contains(&nk) && g.batch * g.nq > 0;
        let places = [g.q.offset, g.q.row, g.k.offset, g.k.row, g.v.offset, g.v.row, g.d];
        let is_whole = places.iter().all(|n| n.is_multiple_of(PIECE))
            && tensors.iter().all(|t| t.address().is_none_or(|at| at.is_multiple_of(16)));
        let size = SIZES.into_iter().find(|&size| size as usize >= g.d)?;
        let short = Short {
            op,
            g,
            variant: Variant::of(dtype).with("D", size),
            size: size as usize,
            nq,
            nk,
            q_rows: nq.next_multiple_of(16),
            k_rows: nk.next_multiple_of(16),
            shared: info.max_shared_bytes as usize,
            warp: gpu.warp(),
        };
        (is_exact && is_plain && is_small && is_whole && short.fwd_bytes() <= short.shared).then_some(short)
    }

    /// Whether backward can, too.
    pub(super) fn has_backward(&self) -> bool {
        self.g.group() == 1 && self.bwd_bytes() <= self.shared
    }

    /// Bytes of shared memory of a head.
    fn fwd_bytes(&self) -> usize {
        (self.q_rows + 2 * self.k_rows) * self.size * 2 + self.q_rows * if self.g.windows.is_some() { 12 } else { 4 }
    }

    fn bwd_bytes(&self) -> usize {
        (2 * (self.q_rows + self.k_rows) * self.size + self.q_rows * self.k_rows.max(self.size)) * 2
    }

    /// Heads of all samples and windows, and how many of them share a bias.
    pub(super) fn heads(&self) -> usize {
        self.sharing() * self.g.heads
    }

    pub(super) fn sharing(&self) -> usize {
        self.g.batch * self.g.windows.map_or(1, |w| w.count())
    }

    fn bwd_warps(&self) -> u32 {
        if self.warp == 32 { 6 } else { 4 }
    }

    /// The launch of `blocks` blocks with `each` heads of `bytes` bytes.
    fn launch(&self, blocks: usize, each: usize, bytes: usize, warps: u32) -> Result<Launch> {
        let blocks = launch::blocks("attention", "heads of all samples", blocks)?;
        let shared = u32::try_from(each * bytes).map_err(|_| Error::too_large("attention", "shared memory", bytes))?;
        Ok(Launch::linear(blocks, warps * self.warp).with_shared(shared))
    }

    pub(super) fn fwd(&self, gpu: &Gpu, io: &Forward<'_>, lengths: Option<&Tensor>) -> Result<()> {
        if let Some(sizes) = Sizes::of(self, gpu) {
            return sizes.fwd(self, gpu, io, lengths);
        }
        let g = self.g;
        let ([y], [lse]) = (&*io.y, &*io.saved) else { unreachable!("infer fixed the counts") };
        // As many heads as keep all warps busy, four blocks on a processor.
        let own = self.own();
        let is_even = self.nq.div_ceil(own).is_multiple_of(WARPS as usize);
        let fits = 3 * self.fwd_bytes() <= self.shared / 4;
        let each = if is_even || !fits { 1 } else { self.heads().min(3) };
        let bias = g.bias.map_or(Arg::Null, |i| Arg::In(&io.x[i]));
        let (q, k, v) = (Arg::In(&io.x[g.q.input]), Arg::In(&io.x[g.k.input]), Arg::In(&io.x[g.v.input]));
        let mut args = vec![Arg::Out(y), Arg::Out(lse), q, k, v, bias, lengths.map_or(Arg::Null, |l| Arg::In(l))];
        args.extend(self.places()?);
        args.extend([
            Arg::I32(launch::short("attention", "heads", g.group())?),
            Arg::I32(launch::short("attention", "head size", g.d)?),
        ]);
        let windows = Windows::bytes(g.windows.as_ref());
        args.extend([Arg::F32(g.scale), Arg::I64(self.heads() as i64), Arg::I32(each as i32), Arg::Bytes(&windows)]);
        let launch = self.launch(self.heads().div_ceil(each), each, self.fwd_bytes(), WARPS)?;
        gpu.executes(|| self.executed_fwd(own));
        FWD.launch_as(gpu, &self.variant, launch, &mut args)
    }

    /// FLOPs of the forward kernel, a warp of which has `own` queries at a time: whole tiles of 16 by 16.
    fn executed_fwd(&self, own: usize) -> u128 {
        // Tiles of keys of a step, as the kernel has them.
        let step = if self.size <= 96 { 1 } else { 3 };
        let of_head = |keys: usize| -> usize {
            let tiles = |j0: usize, end: usize| (0..step).filter(|&t| t == 0 || j0 + t * 16 < end).count();
            (0..keys).step_by(16 * step).map(|j0| tiles(j0, self.k_rows) + tiles(j0, keys)).sum()
        };
        let products = match &self.op.key_lengths {
            None => of_head(self.nk) * self.heads(),
            Some(lengths) => lengths.iter().map(|&n| of_head(n)).sum::<usize>() * self.heads() / self.g.batch.max(1),
        };
        (products * self.q_rows.div_ceil(own) * (own / 16) * (self.size / 16)) as u128 * TILE_FLOPS
    }

    /// Where q, k and v lie, and their lengths.
    pub(super) fn places<'b>(&self) -> Result<Vec<Arg<'b>>> {
        let g = self.g;
        let mut args: Vec<Arg<'b>> = [g.q.offset, g.k.offset, g.v.offset, g.q.row, g.k.row, g.v.row, g.nq, g.nk]
            .into_iter()
            .map(|n| launch::length("attention", "row", n))
            .collect::<Result<_>>()?;
        for n in [self.nq, self.nk, g.heads] {
            args.push(Arg::I32(launch::short("attention", "heads", n)?));
        }
        Ok(args)
    }

    pub(super) fn bwd(
        &self,
        gpu: &Gpu,
        [q, k, v, y, dy, lse]: [&View<'_>; 6],
        bias: Option<&View<'_>>,
        lengths: Option<&Tensor>,
        dx: &mut [GradSlot<'_>],
    ) -> Result<()> {
        if let Some(sizes) = Sizes::of(self, gpu) {
            return sizes.bwd(self, gpu, [q, k, v, y, dy, lse], bias, lengths, dx);
        }
        let g = self.g;
        let (heads, bytes) = (self.heads(), self.bwd_bytes());
        let slots: Vec<Option<(&ViewMut<'_>, i32)>> = dx.iter().map(wanted).collect();
        let dbias = g.bias.and_then(|i| slots[i]);
        let stats = gpu.scratch(Spec::f32([heads, self.q_rows, 2])?)?;
        // With a gradient of the bias a block stays with a head, and as many blocks as the device has at once share the samples.
        let at_once = 2 * gpu.driver().info().processors as usize;
        let shares = at_once.div_ceil(g.heads).clamp(1, self.sharing());
        let warps = self.bwd_warps();
        let (each, blocks, step) = if dbias.is_some() {
            (1, g.heads * shares, g.heads * shares)
        } else {
            let each = (warps as usize * 16 / self.k_rows).min(self.shared / 2 / bytes).clamp(1, heads);
            (each, heads.div_ceil(each), heads)
        };
        let partial = match dbias {
            Some(_) => Some(gpu.scratch(Spec::f32([blocks, self.k_rows, self.q_rows])?)?),
            None => None,
        };
        let seats = match g.windows {
            Some(_) => Some(gpu.scratch(Spec::new(Dtype::I32, [heads, 2, self.q_rows])?)?),
            None => None,
        };
        let windows = Windows::bytes(g.windows.as_ref());
        let places = [g.q, g.k, g.v].map(|place| slots[place.input]);
        let mut args: Vec<Arg<'_>> = places.iter().map(|slot| slot.map_or(Arg::Null, |(d, _)| Arg::Out(d))).collect();
        args.extend([partial.as_ref().map_or(Arg::Null, Arg::Scratch), Arg::Scratch(&stats)]);
        args.push(seats.as_ref().map_or(Arg::Null, Arg::Scratch));
        args.extend([q, k, v, y, dy].map(|x| Arg::In(x)));
        args.extend([bias.map_or(Arg::Null, |b| Arg::In(b)), Arg::In(lse)]);
        args.push(lengths.map_or(Arg::Null, |l| Arg::In(l)));
        args.extend(self.places()?);
        args.extend([Arg::I32(launch::short("attention", "head size", g.d)?), Arg::F32(g.scale)]);
        args.extend([Arg::I64(heads as i64), Arg::I32(each as i32), launch::length("attention", "heads", step)?]);
        args.extend(places.iter().map(|slot| Arg::I32(slot.map_or(0, |(_, add)| add))));
        args.push(Arg::Bytes(&windows));
        gpu.executes(|| {
            let [dq, dk, _] = places.map(|slot| u128::from(slot.is_some()));
            let tiles = (self.q_rows / 16 * (self.k_rows / 16) * (self.size / 16) * heads) as u128;
            tiles * TILE_FLOPS * (3 + dk + dq)
        });
        BWD.launch_as(gpu, &self.variant, self.launch(blocks, each, bytes, warps)?, &mut args)?;
        let (Some((to, add)), Some(partial)) = (dbias, &partial) else { return Ok(()) };
        let numbers = [self.nq, self.nk, g.heads, shares].map(|n| launch::short("attention", "bias", n).map(Arg::I32));
        let mut args = vec![Arg::Out(to), Arg::Scratch(partial)];
        for number in numbers {
            args.push(number?);
        }
        args.push(Arg::I32(add));
        let launch = launch::each("attention", "bias", g.heads * self.nk * self.q_rows)?;
        BWD_DBIAS.launch_as(gpu, &self.variant, launch, &mut args)
    }
}

/// Where a gradient goes and whether it is added, if it is wanted.
pub(super) fn wanted<'s, 'a>(slot: &'s GradSlot<'a>) -> Option<(&'s ViewMut<'a>, i32)> {
    match slot {
        GradSlot::Unwanted => None,
        GradSlot::Set(to) => Some((to, 0)),
        GradSlot::Add(to) => Some((to, 1)),
    }
}
