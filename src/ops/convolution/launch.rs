//! The launches: three products of one kernel file, or their plain sums where a group is thin.

use super::{Size, Window};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel};
use crate::error::{Error, Result};
use crate::ops::blocks::{no_gradient, wrong_operands};
use crate::ops::launch::{self, ColumnSums};
use crate::ops::operator::{Backward, Forward};
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

/// The kernels of a room.
#[derive(Debug)]
pub(in crate::ops) struct Kernels {
    fwd: Kernel,
    fwd_thin: Kernel,
    bwd_dx: Kernel,
    bwd_dx_thin: Kernel,
    bwd_dw: Kernel,
    bwd_dw_thin: Kernel,
    bwd_dbias: Kernel,
    bwd_total: Kernel,
}

impl Kernels {
    /// The entries of `source`, in the order of the fields.
    pub(in crate::ops) const fn new(source: Source, entries: [&'static str; 8]) -> Kernels {
        let [fwd, fwd_thin, bwd_dx, bwd_dx_thin, bwd_dw, bwd_dw_thin, bwd_dbias, bwd_total] = entries;
        Kernels {
            fwd: Kernel::new(source, fwd),
            fwd_thin: Kernel::new(source, fwd_thin),
            bwd_dx: Kernel::new(source, bwd_dx),
            bwd_dx_thin: Kernel::new(source, bwd_dx_thin),
            bwd_dw: Kernel::new(source, bwd_dw),
            bwd_dw_thin: Kernel::new(source, bwd_dw_thin),
            bwd_dbias: Kernel::new(source, bwd_dbias),
            bwd_total: Kernel::new(source, bwd_total),
        }
    }
}

const THREADS: usize = 128;
/// Rows and columns of a tile, and terms of a stage.
const TILE: usize = 64;
const DEPTH: usize = 16;
/// Up to so many rows a tile would be nearly empty ..
const THIN_ROWS: usize = 4;
/// .. and up to so many terms a thread adds a sum alone.
const THIN_TERMS: usize = 64;
/// Outputs that a stretch of a gradient of weights has at least: more blocks than fill the device only make the total longer.
const LEAST_STRETCH: usize = 256;
/// Most blocks along the second and third axis of a grid.
const MOST_BLOCKS: usize = 65_535;
/// Places of a plane or a product are 32-bit integers: padded planes stay below this.
const MOST_PLACES: usize = 1 << 30;

/// Sizes as the kernels have them.
struct Plan<'a> {
    op: &'static str,
    kernels: &'a Kernels,
    s: Size,
    /// `Window` of `common/convolution.cuh`.
    window: [u8; 64],
}

fn is_thin(rows: usize, terms: usize) -> bool {
    rows <= THIN_ROWS && terms <= THIN_TERMS
}

impl<'a> Plan<'a> {
    fn new(window: &Window, kernels: &'a Kernels, specs: &[&Spec]) -> Result<Plan<'a>> {
        let (op, s) = (window.op, window.size(specs));
        let planes = [s.input, s.output, s.kernel].map(|[rows, columns]| rows.saturating_mul(columns));
        let products = [(s.batch, planes[0]), (s.batch, planes[1]), (s.cin, planes[2]), (s.cout, planes[2])];
        let padded = [window.padding, s.input].into_iter().flatten().map(|n| (n, 4));
        if let Some((n, times)) = products.into_iter().chain(padded).find(|(n, m)| n.saturating_mul(*m) >= MOST_PLACES)
        {
            return Err(Error::too_large(op, "places of all samples", format!("{n} times {times}")));
        }
        let mut all = vec![s.batch, s.groups, s.cin, s.cout];
        for pair in [s.input, s.kernel, s.output, window.stride, window.padding, window.dilation] {
            all.extend(pair);
        }
        let mut window = [0; 64];
        for (to, n) in window.chunks_exact_mut(4).zip(all) {
            // A stride or dilation beyond the plane is never taken.
            let n = i32::try_from(n.min(MOST_PLACES)).map_err(|_| Error::too_large(op, "size", n))?;
            to.copy_from_slice(&n.to_le_bytes());
        }
        Ok(Plan { op, kernels, s, window })
    }

    fn window(&self) -> Arg<'_> {
        Arg::Bytes(&self.window)
    }

    /// A thread for each of `n` numbers.
    fn each(&self, n: usize) -> Result<Launch> {
        Ok(Launch::linear(launch::blocks(self.op, "elements", n.div_ceil(THREADS))?, THREADS as u32))
    }

    /// Says what tiles of `rows` by `columns` sums of all groups execute, of `terms` terms in stretches of `stretch`.
    fn state(&self, gpu: &Gpu, dtype: Dtype, [rows, columns]: [usize; 2], terms: usize, stretch: usize) {
        gpu.executes(|| {
            let tiles = [rows, columns].map(|n| n.next_multiple_of(TILE) as u128);
            let whole = (terms / stretch.max(1)) as u128 * stretch.next_multiple_of(DEPTH) as u128;
            let rest = (terms % stretch.max(1)).next_multiple_of(DEPTH) as u128;
            let flops = 2 * self.s.groups as u128 * tiles[0] * tiles[1] * (whole + rest);
            if launch::has_matrix_unit(gpu, dtype) { flops } else { 0 }
        });
    }

    /// Tiles of `rows` by `columns` sums, for each of `products`.
    fn tiles(&self, rows: usize, columns: usize, products: usize) -> Result<Launch> {
        let grid = [
            launch::blocks(self.op, "columns", columns.div_ceil(TILE))?,
            launch::blocks(self.op, "channels", rows.div_ceil(TILE))?,
            launch::blocks(self.op, "groups", products)?,
        ];
        Ok(Launch::grid(grid, [THREADS as u32, 1, 1]))
    }

    /// Runs `part(memory, stretch, stretches)` over stretches of the outputs of all samples, with `others` blocks for each,
    /// and adds them into `to`.
    fn in_stretches(
        &self,
        gpu: &Gpu,
        (to, add): (&mut ViewMut<'_>, i32),
        others: usize,
        most: usize,
        part: impl FnOnce(&mut Tensor, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let (width, terms) = (to.spec().len(), self.s.batch * self.s.output_plane());
        // Four blocks for every processor keep it busy.
        let wanted = (gpu.driver().info().processors as usize * 4).div_ceil(others.max(1));
        let stretches = wanted.min(terms / LEAST_STRETCH).min(most).max(1);
        let stretch = terms.div_ceil(stretches).max(1);
        let stretches = terms.div_ceil(stretch).max(1);
        let mut partial = gpu.scratch(Spec::f32([stretches, width])?)?;
        part(&mut partial, stretch, stretches)?;
        let dtype = to.spec().dtype();
        ColumnSums::of_rows(stretches, width).total(
            gpu,
            self.op,
            &self.kernels.bwd_total,
            dtype,
            to,
            &partial,
            Some(add),
        )
    }

    fn input(&self, gpu: &Gpu, (dx, add): (&mut ViewMut<'_>, i32), w: &View<'_>, dy: &View<'_>) -> Result<()> {
        let (s, dtype, count) = (&self.s, dy.spec().dtype(), dx.spec().len());
        let mut args = vec![Arg::Out(dx), Arg::In(w), Arg::In(dy), self.window()];
        if is_thin(s.cin, s.cout * s.kernel[0] * s.kernel[1]) {
            args.extend([launch::length(self.op, "elements", count)?, Arg::I32(add)]);
            return self.kernels.bwd_dx_thin.launch(gpu, dtype, self.each(count)?, &mut args);
        }
        args.push(Arg::I32(add));
        let terms = s.cout * s.kernel[0] * s.kernel[1];
        self.state(gpu, dtype, [s.cin, s.batch * s.input_plane()], terms, terms);
        let tiles = self.tiles(s.cin, s.batch * s.input_plane(), s.groups)?;
        self.kernels.bwd_dx.launch(gpu, dtype, tiles, &mut args)
    }

    fn weight(&self, gpu: &Gpu, slot: (&mut ViewMut<'_>, i32), x: &View<'_>, dy: &View<'_>) -> Result<()> {
        let (s, dtype, weights) = (&self.s, dy.spec().dtype(), slot.0.spec().len());
        let int = |what: &str, n: usize| Ok::<_, Error>(Arg::I32(launch::short(self.op, what, n)?));
        if is_thin(s.cout, s.taps()) {
            return self.in_stretches(gpu, slot, weights, MOST_BLOCKS, |part, stretch, stretches| {
                let mut args = vec![Arg::Out(part), Arg::In(x), Arg::In(dy), self.window(), int("stretch", stretch)?];
                args.push(launch::length(self.op, "weights", weights)?);
                let grid = [launch::blocks(self.op, "weights", weights)?, stretches as u32, 1];
                let launch = Launch::grid(grid, [THREADS as u32, 1, 1]);
                self.kernels.bwd_dw_thin.launch(gpu, dtype, launch, &mut args)
            });
        }
        let tiles = s.taps().div_ceil(TILE) * s.cout.div_ceil(TILE) * s.groups;
        self.in_stretches(gpu, slot, tiles, MOST_BLOCKS / s.groups, |part, stretch, stretches| {
            let mut args = vec![Arg::Out(part), Arg::In(x), Arg::In(dy), self.window(), int("stretch", stretch)?];
            args.push(int("stretches", stretches)?);
            self.state(gpu, dtype, [s.cout, s.taps()], s.batch * s.output_plane(), stretch);
            let launch = self.tiles(s.cout, s.taps(), s.groups * stretches)?;
            self.kernels.bwd_dw.launch(gpu, dtype, launch, &mut args)
        })
    }

    fn bias(&self, gpu: &Gpu, slot: (&mut ViewMut<'_>, i32), dy: &View<'_>) -> Result<()> {
        let channels = self.s.groups * self.s.cout;
        self.in_stretches(gpu, slot, channels, MOST_BLOCKS, |part, stretch, stretches| {
            let stretch = Arg::I32(launch::short(self.op, "stretch", stretch)?);
            let mut args = vec![Arg::Out(part), Arg::In(dy), self.window(), stretch];
            let grid = [launch::blocks(self.op, "O", channels)?, stretches as u32, 1];
            let launch = Launch::grid(grid, [THREADS as u32, 1, 1]);
            self.kernels.bwd_dbias.launch(gpu, dy.spec().dtype(), launch, &mut args)
        })
    }
}

impl Window {
    pub(in crate::ops) fn launch_fwd(&self, gpu: &Gpu, kernels: &Kernels, io: Forward<'_>) -> Result<()> {
        let ([x, w, bias @ ..], [y]) = (io.x, io.y) else { return Err(wrong_operands(self.op)) };
        let specs: Vec<&Spec> = io.x.iter().map(View::spec).collect();
        let plan = Plan::new(self, kernels, &specs)?;
        let (s, dtype, count) = (&plan.s, x.spec().dtype(), y.spec().len());
        let bias = bias.first().map_or(Arg::Null, |b| Arg::In(b));
        let mut args = vec![Arg::Out(y), Arg::In(x), Arg::In(w), bias, plan.window()];
        if is_thin(s.cout, s.taps()) {
            args.push(launch::length(self.op, "elements", count)?);
            return kernels.fwd_thin.launch(gpu, dtype, plan.each(count)?, &mut args);
        }
        plan.state(gpu, dtype, [s.cout, s.batch * s.output_plane()], s.taps(), s.taps());
        kernels.fwd.launch(gpu, dtype, plan.tiles(s.cout, s.batch * s.output_plane(), s.groups)?, &mut args)
    }

    pub(in crate::ops) fn launch_bwd(&self, gpu: &Gpu, kernels: &Kernels, io: Backward<'_>) -> Result<()> {
        let [Some(dy)] = io.dy else { return no_gradient(io.dx) };
        let plan = Plan::new(self, kernels, io.specs)?;
        for (i, slot) in io.dx.iter_mut().enumerate() {
            let Some(slot) = launch::slot(slot) else { continue };
            match i {
                0 => plan.input(gpu, slot, launch::kept(self.op, io.x, 1)?, dy)?,
                1 => plan.weight(gpu, slot, launch::kept(self.op, io.x, 0)?, dy)?,
                _ => plan.bias(gpu, slot, dy)?,
            }
        }
        Ok(())
    }
}
