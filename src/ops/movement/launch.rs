//! The launches: boxes, windows and tiles as `kernels/common/movement.cuh` takes them.

use bytemuck::{Pod, Zeroable};

use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel};
use crate::error::{Error, Result};
use crate::ops::launch;
use crate::ops::movement::patches::Tiling;
use crate::ops::movement::{Axis, Move, Movement};
use crate::ops::operator::{Backward, Forward, GradSlot};
use crate::tensor::{Dtype, Spec, View, ViewMut};

/// The kernels of a room; those that its moves do not need are not there.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// Forward, a box at a time.
    pub fwd_box: Option<Kernel>,
    /// Forward, all of the result at once.
    pub fwd_window: Option<Kernel>,
    /// Forward, tiles.
    pub fwd_tiled: Option<Kernel>,
    /// Forward, tiles of patches.
    pub fwd_patches: Option<Kernel>,
    /// Backward, a box at a time.
    pub bwd_box: Option<Kernel>,
    /// Backward, all of a gradient at once.
    pub bwd_window: Option<Kernel>,
    /// Backward, tiles.
    pub bwd_tiled: Option<Kernel>,
    /// Backward, tiles of patches.
    pub bwd_patches: Option<Kernel>,
}

impl Kernels {
    /// None of them.
    pub const NONE: Kernels = Kernels {
        fwd_box: None,
        fwd_window: None,
        fwd_tiled: None,
        fwd_patches: None,
        bwd_box: None,
        bwd_window: None,
        bwd_tiled: None,
        bwd_patches: None,
    };
}

/// A result of which every number comes from inside a box, or is 0, or comes from around the ends of the axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    axes: Vec<WindowAxis>,
    wraps: bool,
}

/// One axis of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowAxis {
    /// Numbers along the axis of what is written.
    pub len: usize,
    /// Where the box begins in it.
    pub start: usize,
    /// How long the box is.
    pub inner: usize,
    /// Distance of neighbours in what is read.
    pub from: usize,
}

impl Window {
    /// A window with these axes, slowest first; with `wraps`, what lies before a start comes from the end of the axis.
    pub fn new(axes: impl IntoIterator<Item = WindowAxis>, wraps: bool) -> Window {
        let mut merged: Vec<WindowAxis> = Vec::new();
        for b in axes {
            if b.len == 1 && b.start == 0 && b.inner == 1 {
                continue;
            }
            let is_full = b.start == 0 && b.inner == b.len;
            match merged.last_mut() {
                Some(a) if is_full && a.from == b.len * b.from => {
                    *a =
                        WindowAxis { len: a.len * b.len, start: a.start * b.len, inner: a.inner * b.len, from: b.from };
                }
                _ => merged.push(b),
            }
        }
        Window { axes: merged, wraps }
    }

    fn len(&self) -> usize {
        self.axes.iter().map(|a| a.len).product()
    }
}

/// Most axes that a kernel takes.
const AXES: usize = 6;
/// Threads of a block, and packs of a thread.
const THREADS: u32 = 256;
const PACKS: usize = 4;
/// Fewer packs than this in one launch: they are counted in 32 bits.
const MOST: usize = 1 << 31;
/// Shorter sides than this are not worth tiles.
const LEAST_SIDE: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BoxAxis {
    from: i64,
    to: i64,
    len: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BoxArg {
    from: i64,
    to: i64,
    count: u32,
    rank: i32,
    width: i32,
    unused: u32,
    axis: [BoxAxis; AXES],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WindowArgAxis {
    from: i64,
    len: u32,
    start: u32,
    inner: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WindowArg {
    from: i64,
    count: u32,
    rank: i32,
    width: i32,
    wraps: i32,
    axis: [WindowArgAxis; AXES],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct TileAxisArg {
    near: i64,
    far: i64,
    len: u32,
    run: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TilesArg {
    lines: TileAxisArg,
    across: TileAxisArg,
    tiles_down: u32,
    tiles_across: u32,
    rest: BoxArg,
}

/// Which way a room is launched: its name, its kernels one way, and the flag of backward kernels.
#[derive(Clone, Copy)]
struct Way {
    op: &'static str,
    of_box: Option<Kernel>,
    of_window: Option<Kernel>,
    of_tiles: Option<Kernel>,
    of_patches: Option<Kernel>,
    add: Option<i32>,
}

/// Forward on a device.
pub(super) fn forward<M: Movement>(op: &M, gpu: &Gpu, io: Forward<'_>) -> Result<()> {
    let [y] = io.y else { return Ok(()) };
    let specs: Vec<&Spec> = io.x.iter().map(View::spec).collect();
    let k = M::KERNELS;
    let way = Way {
        op: M::NAME,
        of_box: k.fwd_box,
        of_window: k.fwd_window,
        of_tiles: k.fwd_tiled,
        of_patches: k.fwd_patches,
        add: None,
    };
    if let ([x], Some(tiling)) = (io.x, op.patches(&specs).and_then(|p| Tiling::new(p, y.spec().dtype()))) {
        return way.cut(gpu, &tiling, x, y);
    }
    if let (Some(window), [x]) = (op.window(&specs), io.x) {
        return way.fill(gpu, &window, x, y);
    }
    op.moves(&specs).iter().try_for_each(|(i, m)| way.copy(gpu, m, &io.x[*i], y))
}

/// Backward on a device.
pub(super) fn backward<M: Movement>(op: &M, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
    let (moves, window) = (op.moves(io.specs), op.window_of_gradient(io.specs));
    let k = M::KERNELS;
    let dy = io.dy.first().and_then(Option::as_ref);
    for (i, slot) in io.dx.iter_mut().enumerate() {
        let (dx, add) = match slot {
            GradSlot::Unwanted => continue,
            GradSlot::Set(dx) => (dx, 0),
            GradSlot::Add(dx) => (dx, 1),
        };
        let Some(dy) = dy else {
            if add == 0 {
                dx.zero()?;
            }
            continue;
        };
        let way = Way {
            op: M::NAME,
            of_box: k.bwd_box,
            of_window: k.bwd_window,
            of_tiles: k.bwd_tiled,
            of_patches: k.bwd_patches,
            add: Some(add),
        };
        if let Some(tiling) = op.patches(io.specs).and_then(|p| Tiling::new(p, dx.spec().dtype())) {
            way.cut(gpu, &tiling, dy, dx)?;
            continue;
        }
        // Where a gradient is added, what lies outside the box stays: a window would only add zeros.
        if let Some(window) = window.as_ref().filter(|w| add == 0 || w.wraps) {
            way.fill(gpu, window, dy, dx)?;
            continue;
        }
        let here = moves.iter().filter(|(input, _)| *input == i);
        here.into_iter().try_for_each(|(_, m)| way.copy(gpu, &m.inverse(), dy, dx))?;
    }
    Ok(())
}

impl Way {
    fn kernel(&self, which: Option<Kernel>, what: &str) -> Result<Kernel> {
        which.ok_or_else(|| Error::argument(format!("{}: has no kernel for {what}", self.op)))
    }

    fn launch(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
        blocks: usize,
        arg: &[u8],
        x: &View<'_>,
        y: &mut ViewMut<'_>,
    ) -> Result<()> {
        let place = Launch::linear(launch::blocks(self.op, "elements", blocks)?, THREADS);
        let dtype = y.spec().dtype();
        let mut args = vec![Arg::Out(y), Arg::In(x), Arg::Bytes(arg)];
        args.extend(self.add.map(Arg::I32));
        kernel.launch(gpu, dtype, place, &mut args)
    }

    /// Fills all of `y`.
    fn fill(&self, gpu: &Gpu, window: &Window, x: &View<'_>, y: &mut ViewMut<'_>) -> Result<()> {
        let kernel = self.kernel(self.of_window, "a window")?;
        let width = widest(y.spec().dtype(), &[x.address(), y.address()], window_fits(window));
        let arg = window_arg(window, width).ok_or_else(|| Error::too_large(self.op, "elements", window.len()))?;
        let blocks = (arg.count as usize).div_ceil(THREADS as usize * PACKS);
        self.launch(gpu, kernel, blocks, bytemuck::bytes_of(&arg), x, y)
    }

    /// Cuts an image into patches, or puts them together.
    fn cut(&self, gpu: &Gpu, tiling: &Tiling, x: &View<'_>, y: &mut ViewMut<'_>) -> Result<()> {
        let (kernel, dtype) = (self.kernel(self.of_patches, "patches")?, y.spec().dtype());
        let mut args = vec![Arg::Out(y), Arg::In(x), Arg::Bytes(bytemuck::bytes_of(&tiling.arg))];
        args.extend(self.add.map(Arg::I32));
        kernel.launch(gpu, dtype, tiling.launch(self.op)?, &mut args)
    }

    /// Copies a box, in as many launches as its size takes.
    fn copy(&self, gpu: &Gpu, m: &Move, x: &View<'_>, y: &mut ViewMut<'_>) -> Result<()> {
        if m.is_empty() {
            return Ok(());
        }
        if let (Some(kernel), Some((arg, blocks))) = (self.of_tiles, tiles_arg(m, y.spec().dtype())) {
            return self.launch(gpu, kernel, blocks, bytemuck::bytes_of(&arg), x, y);
        }
        let width = widest(y.spec().dtype(), &[x.address(), y.address()], box_fits(m));
        if m.axes.len() > AXES || m.len / width >= MOST {
            return halves(m).iter().try_for_each(|half| self.copy(gpu, half, x, y));
        }
        let (kernel, arg) = (self.kernel(self.of_box, "a box")?, box_arg(m, width));
        let blocks = (arg.count as usize).div_ceil(THREADS as usize * PACKS);
        self.launch(gpu, kernel, blocks, bytemuck::bytes_of(&arg), x, y)
    }
}

/// The box in two along its slowest axis; a slowest axis of 1 is none.
fn halves(m: &Move) -> [Move; 2] {
    let Some((&first, rest)) = m.axes.split_first() else { return [m.clone(), m.clone()] };
    let half = |start: usize, len: usize| {
        let axes = std::iter::once(Axis { len, ..first }).chain(rest.iter().copied());
        Move::new(axes, m.from + start * first.from, m.to + start * first.to)
    };
    [half(0, first.len / 2), half(first.len / 2, first.len - first.len / 2)]
}

/// The most numbers up to 16 bytes that move together: `fits(w)` says whether the box allows w.
fn widest(dtype: Dtype, places: &[Option<u64>], fits: impl Fn(usize) -> bool) -> usize {
    let mut width = launch::wide(dtype);
    let is_aligned = |w: usize| places.iter().all(|p| p.is_some_and(|at| at % (w * dtype.bytes()) as u64 == 0));
    while width > 1 && !(fits(width) && is_aligned(width)) {
        width /= 2;
    }
    width
}

fn box_fits(m: &Move) -> impl Fn(usize) -> bool {
    move |w| {
        let Some((line, rest)) = m.axes.split_last() else { return false };
        let steps = rest.iter().flat_map(|a| [a.from, a.to]).chain([m.from, m.to, line.len]);
        line.from == 1 && line.to == 1 && steps.into_iter().all(|n| n % w == 0)
    }
}

fn window_fits(window: &Window) -> impl Fn(usize) -> bool {
    move |w| {
        let Some((line, rest)) = window.axes.split_last() else { return false };
        let ends = [line.len, line.start, line.inner];
        line.from == 1 && rest.iter().map(|a| a.from).chain(ends).all(|n| n % w == 0)
    }
}

/// A box in packs of `width` numbers. It has no more axes and packs than a launch takes.
fn box_arg(m: &Move, width: usize) -> BoxArg {
    let step = |n: usize, is_line: bool| (if is_line && width > 1 { n } else { n / width }) as i64;
    let mut arg = BoxArg {
        from: (m.from / width) as i64,
        to: (m.to / width) as i64,
        count: (m.len / width) as u32,
        rank: m.axes.len() as i32,
        width: width as i32,
        ..BoxArg::zeroed()
    };
    let first = AXES - m.axes.len();
    for (i, a) in m.axes.iter().enumerate() {
        let is_line = i + 1 == m.axes.len();
        let len = if is_line { a.len / width } else { a.len } as u32;
        arg.axis[first + i] = BoxAxis { from: step(a.from, is_line), to: step(a.to, is_line), len, unused: 0 };
    }
    arg
}

/// A window in packs of `width` numbers; `None` if one launch does not hold it.
fn window_arg(window: &Window, width: usize) -> Option<WindowArg> {
    let rank = window.axes.len();
    if rank > AXES || window.len() / width >= MOST {
        return None;
    }
    let count = (window.len() / width) as u32;
    let mut arg =
        WindowArg { count, rank: rank as i32, width: width as i32, wraps: window.wraps.into(), ..WindowArg::zeroed() };
    for (i, a) in window.axes.iter().enumerate() {
        let (unit, from) =
            if i + 1 == rank { (width, if width > 1 { 1 } else { a.from }) } else { (1, a.from / width) };
        let [len, start, inner] = [a.len, a.start, a.inner].map(|n| (n / unit) as u32);
        arg.axis[AXES - rank + i] = WindowArgAxis { from: from as i64, len, start, inner, unused: 0 };
    }
    Some(arg)
}

/// Takes from `axes` the one whose numbers are neighbours by `here`, and the one whose are next to them, if there is one: a side of
/// tiles if together they are long enough. `there` is the distance on the other side.
fn side_of(axes: &mut Vec<Axis>, here: fn(&Axis) -> usize, there: fn(&Axis) -> usize) -> Option<TileAxisArg> {
    let near = axes.remove(axes.iter().position(|a| here(a) == 1)?);
    // A side is no part of the other one.
    let far = axes.iter().position(|a| here(a) == near.len && there(a) != 1).map(|i| axes.remove(i));
    let len = near.len * far.map_or(1, |a| a.len);
    if len < LEAST_SIDE || there(&near) == 1 {
        return None;
    }
    let [len, run] = [len, near.len].map(|n| u32::try_from(n).ok());
    Some(TileAxisArg { near: there(&near) as i64, far: far.map_or(0, |a| there(&a) as i64), len: len?, run: run? })
}

/// Tiles, where the fastest axis of one side is a slow one of the other and both are long enough; and how many blocks.
fn tiles_arg(m: &Move, dtype: Dtype) -> Option<(TilesArg, usize)> {
    let mut others = m.axes.clone();
    let lines = side_of(&mut others, |a| a.to, |a| a.from)?;
    let across = side_of(&mut others, |a| a.from, |a| a.to)?;
    if others.len() > AXES {
        return None;
    }
    let side = 128 / dtype.bytes();
    let (down, side_by_side) = ((lines.len as usize).div_ceil(side), (across.len as usize).div_ceil(side));
    let len = others.iter().map(|a| a.len).product();
    let others = Move { axes: others, from: m.from, to: m.to, len };
    let blocks = others.len.checked_mul(down)?.checked_mul(side_by_side).filter(|&b| b < MOST)?;
    let rest = box_arg(&others, 1);
    let arg = TilesArg { lines, across, tiles_down: down as u32, tiles_across: side_by_side as u32, rest };
    Some((arg, blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where each number of a launch comes from and goes to, as the kernel computes it.
    fn pairs(arg: &BoxArg) -> Vec<(usize, usize)> {
        let width = arg.width as usize;
        let mut all = Vec::new();
        for k in 0..arg.count {
            let (mut k, mut from, mut to) = (k, arg.from, arg.to);
            for a in arg.axis[AXES - arg.rank as usize..].iter().rev() {
                let i = i64::from(k % a.len);
                (from, to, k) = (from + i * a.from, to + i * a.to, k / a.len);
            }
            all.extend((0..width).map(|i| (from as usize * width + i, to as usize * width + i)));
        }
        all
    }

    fn axis(len: usize, from: usize, to: usize) -> Axis {
        Axis { len, from, to }
    }

    #[test]
    fn wide_packs_move_the_numbers_that_single_ones_do() {
        let m = Move::new([axis(3, 40, 16), axis(2, 200, 48), axis(8, 1, 1)], 16, 8);
        let aligned = [Some(256), Some(512)];
        assert_eq!(widest(Dtype::Bf16, &aligned, box_fits(&m)), 8);
        assert_eq!(widest(Dtype::F32, &aligned, box_fits(&m)), 4);
        assert_eq!(widest(Dtype::Bf16, &[Some(256), Some(520)], box_fits(&m)), 4);
        let sorted = |width| {
            let mut all = pairs(&box_arg(&m, width));
            all.sort_unstable();
            all
        };
        assert_eq!(sorted(8), sorted(1));
        assert_eq!(sorted(2), sorted(1));
        assert_eq!(sorted(1).len(), m.len());
    }

    #[test]
    fn halves_of_a_box_are_the_box() {
        let m = Move::new((0..7).map(|i| axis(3, 3_usize.pow(i), 4_usize.pow(i + 1))), 1, 2);
        assert_eq!(m.axes.len(), 7);
        let mut boxes = vec![m.clone()];
        while boxes.iter().any(|b| b.axes.len() > AXES) {
            boxes = boxes
                .iter()
                .flat_map(|b| if b.axes.len() > AXES { halves(b).to_vec() } else { vec![b.clone()] })
                .collect();
        }
        let mut all: Vec<_> = boxes.iter().flat_map(|b| pairs(&box_arg(b, 1))).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), m.len());
    }

    #[test]
    fn full_axes_of_a_window_are_merged() {
        let full = |len, from| WindowAxis { len, start: 0, inner: len, from };
        let part = WindowAxis { len: 7, start: 2, inner: 3, from: 20 };
        let w = Window::new([full(1, 60), part, full(4, 5), full(5, 1)], false);
        assert_eq!(w.axes, [WindowAxis { len: 140, start: 40, inner: 60, from: 1 }]);
        assert_eq!(widest(Dtype::F32, &[Some(0)], window_fits(&w)), 4);
        assert_eq!(widest(Dtype::Bf16, &[Some(0)], window_fits(&w)), 4);
    }

    #[test]
    fn short_axes_that_follow_one_another_make_a_side() {
        // Rows of an image of 20 channels as patches of 8 columns, channels last, and back.
        let rows = Move::new([axis(90, 8, 1280), axis(8, 1, 20), axis(20, 720, 1)], 0, 0);
        let (channels, columns) = (
            TileAxisArg { near: 720, far: 0, len: 20, run: 20 },
            TileAxisArg { near: 20, far: 1280, len: 720, run: 8 },
        );
        let (arg, blocks) = tiles_arg(&rows, Dtype::Bf16).unwrap();
        assert_eq!((arg.lines, arg.across, blocks), (channels, columns, 12));
        let (arg, blocks) = tiles_arg(&rows.inverse(), Dtype::Bf16).unwrap();
        assert_eq!((arg.lines, arg.across, blocks), (columns, channels, 12));
    }

    #[test]
    fn short_sides_are_not_tiled() {
        let transpose = |a: usize, b: usize| Move::new([axis(b, 1, a), axis(a, b, 1)], 0, 0);
        assert!(tiles_arg(&transpose(3, 130), Dtype::F32).is_none());
        let (arg, blocks) = tiles_arg(&transpose(33, 130), Dtype::F32).unwrap();
        let found = (arg.lines.len, arg.across.len, arg.tiles_down, arg.tiles_across, blocks);
        assert_eq!(found, (33, 130, 2, 5, 10));
        assert_eq!(tiles_arg(&transpose(33, 130), Dtype::Bf16).unwrap().1, 3);
    }
}
