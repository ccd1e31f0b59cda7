//! Launches for windows that the kernels for short sequences do not take: other types, head sizes, and more tokens.

use super::Attention;
use super::geometry::Geometry;
use super::windows::Windows;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Unit};
use crate::error::Result;
use crate::ops::launch;
use crate::ops::operator::{Forward, GradSlot};
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

const SOURCE: Source = source!("attention/windows.cu");
static FWD: Kernel = Kernel::new(SOURCE, "attention_windows_fwd");
static BWD_DQ: Kernel = Kernel::new(SOURCE, "attention_windows_bwd_dq");
static BWD_DKV: Kernel = Kernel::new(SOURCE, "attention_windows_bwd_dkv");
static BWD_DBIAS: Kernel = Kernel::new(SOURCE, "attention_windows_bwd_dbias");
pub(super) const UNIT: Unit = Unit::floats(SOURCE);

const THREADS: u32 = 128;

/// A warp for each of `n` results.
fn warps(gpu: &Gpu, n: usize) -> Result<Launch> {
    let each = (THREADS / gpu.warp()) as usize;
    Ok(Launch::linear(launch::blocks("attention", "tokens of all heads", n.div_ceil(each))?, THREADS))
}

/// Arguments of all kernels from the places on, up to the windows; `rows` is what a grid covers.
fn common<'a>(g: &Geometry, rows: usize, windows: &'a [u8]) -> Result<Vec<Arg<'a>>> {
    let mut args: Vec<Arg<'a>> = [g.q.offset, g.k.offset, g.v.offset, g.q.row, g.k.row, g.v.row, rows]
        .into_iter()
        .map(|n| launch::length("attention", "row", n))
        .collect::<Result<_>>()?;
    for (axis, n) in [("N", g.nq), ("heads", g.heads), ("heads", g.group()), ("head size", g.d)] {
        args.push(Arg::I32(launch::short("attention", axis, n)?));
    }
    args.extend([Arg::F32(g.scale), Arg::Bytes(windows)]);
    Ok(args)
}

impl Attention {
    pub(super) fn windows_fwd(gpu: &Gpu, g: &Geometry, io: &Forward<'_>) -> Result<()> {
        let ([y], [lse], Some(x)) = (&*io.y, &*io.saved, io.x.first()) else { unreachable!("infer fixed the counts") };
        let (windows, rows) = (Windows::bytes(g.windows.as_ref()), g.batch * g.heads * g.nq);
        let mut args = vec![Arg::Out(y), Arg::Out(lse)];
        args.extend([g.q, g.k, g.v].map(|place| Arg::In(&io.x[place.input])));
        args.push(g.bias.map_or(Arg::Null, |i| Arg::In(&io.x[i])));
        args.extend(common(g, rows, &windows)?);
        FWD.launch(gpu, x.spec().dtype(), warps(gpu, rows)?, &mut args)
    }

    pub(super) fn windows_bwd(
        gpu: &Gpu,
        g: &Geometry,
        [q, k, v, dy]: [&View<'_>; 4],
        bias: Option<&View<'_>>,
        dx: &[GradSlot<'_>],
    ) -> Result<()> {
        let dtype: Dtype = q.spec().dtype();
        let (windows, rows) = (Windows::bytes(g.windows.as_ref()), g.batch * g.heads * g.nq);
        let stats: Vec<Tensor> = (0..3).map(|_| gpu.scratch(Spec::f32([rows])?)).collect::<Result<_>>()?;
        let to = |i: usize| match &dx[i] {
            GradSlot::Unwanted => None,
            GradSlot::Set(to) => Some((to, 0)),
            GradSlot::Add(to) => Some((to, 1)),
        };
        let out = |slot: Option<(&ViewMut<'_>, i32)>| slot.map_or(0, |(_, add)| add);
        let run = |kernel: &Kernel, slots: &[Option<(&ViewMut<'_>, i32)>], n: usize, rows: usize| {
            let mut args: Vec<Arg<'_>> = slots.iter().map(|s| s.map_or(Arg::Null, |(to, _)| Arg::Out(to))).collect();
            args.extend(stats.iter().map(Arg::Scratch));
            args.extend([q, k, v, dy].map(|x| Arg::In(x)));
            args.push(bias.map_or(Arg::Null, |b| Arg::In(b)));
            args.extend(common(g, rows, &windows)?);
            args.extend(slots.iter().map(|&slot| Arg::I32(out(slot))));
            kernel.launch(gpu, dtype, warps(gpu, n)?, &mut args)
        };
        run(&BWD_DQ, &[to(g.q.input)], rows, rows)?;
        let (dk, dv) = (to(g.k.input), to(g.v.input));
        if dk.is_some() || dv.is_some() {
            let rows = rows / g.group();
            run(&BWD_DKV, &[dk, dv], rows, rows)?;
        }
        match g.bias.and_then(to) {
            Some(dbias) => run(&BWD_DBIAS, &[Some(dbias)], g.heads * g.places().0 * g.places().1, g.batch),
            None => Ok(()),
        }
    }
}
