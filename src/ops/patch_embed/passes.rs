//! Patches as a matrix in memory, on every device: made before a product, put back after one.

use super::launch::{gather, scatter};
use super::{ORDER, Size, Statistics, axes};
use crate::backend::Exec;
use crate::error::Result;
use crate::ops::blocks::{Floats, In, Out, map};
use crate::ops::launch::slot;
use crate::ops::operator::{Forward, GradSlot, Operator};
use crate::ops::patchify::{Patches, Patchify};
use crate::ops::unpatchify::Unpatchify;
use crate::tensor::{Dtype, Spec, Tensor, View};

/// Work of one number that is normalised, as [`threads`](crate::backend::cpu::threads) counts it.
const WORK: usize = 12;

/// The normalised patches of `x` in `dtype`.
pub(super) fn tokens(
    exec: &Exec,
    x: &View<'_>,
    statistics: Statistics<'_, '_>,
    s: Size,
    dtype: Dtype,
) -> Result<Tensor> {
    let mut tokens = exec.alloc(Spec::new(dtype, [s.rows, s.features])?)?;
    if let Some(gpu) = exec.gpu() {
        gather(gpu, &tokens, x, statistics, s)?;
        return Ok(tokens);
    }
    let normal;
    let x = if statistics.std.is_none() && x.spec().dtype() == dtype {
        x.clone()
    } else {
        normal = normalised(exec, x, statistics, dtype)?;
        normal.view()
    };
    let cut = Patchify { patch: s.patches.patch, order: ORDER };
    let Patches { b, grid: [h, w], .. } = s.patches;
    if let Some(mut to) = tokens.view_mut() {
        let y = to.part(0, [b, h * w, s.features])?;
        cut.forward(exec, Forward { x: &[x], y: &mut [y], saved: &mut [] })?;
    }
    Ok(tokens)
}

/// On the CPU: every channel less its mean, over its deviation, in `dtype`.
fn normalised(exec: &Exec, x: &View<'_>, statistics: Statistics<'_, '_>, dtype: Dtype) -> Result<Tensor> {
    let [b, c, height, width] = axes(x.spec());
    let plane = height * width;
    let mut y = exec.alloc(x.spec().with_dtype(dtype))?;
    let (Some(mut to), true) = (y.view_mut(), plane > 0) else { return Ok(y) };
    let of = |v: Option<&View<'_>>| v.map(|v| v.to_f32()).transpose();
    let (mean, std) = (of(statistics.mean)?, of(statistics.std)?);
    map(b * c, WORK * plane, [In::new(Floats::of(x)?, plane)], [Out::of(&mut to, plane)?], |first, [x], [y]| {
        for (k, (x, y)) in x.chunks(plane).zip(y.chunks_mut(plane)).enumerate() {
            let channel = (first + k) % c;
            match (&mean, &std) {
                (Some(mean), Some(std)) => {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean[channel]) / std[channel]);
                }
                _ => y.copy_from_slice(x),
            }
        }
    });
    Ok(y)
}

/// The gradient of the image from that of its patches.
pub(super) fn image(
    exec: &Exec,
    dtokens: &Tensor,
    std: Option<&View<'_>>,
    s: Size,
    dx: &mut GradSlot<'_>,
) -> Result<()> {
    let Patches { b, c, grid: [h, w], patch: [p, q], .. } = s.patches;
    let dtype = dtokens.spec().dtype();
    if let Some(gpu) = exec.gpu() {
        return match slot(dx) {
            Some((dx, add)) => scatter(gpu, dtokens, std, s, dx, add),
            None => Ok(()),
        };
    }
    let (plane, back) = (h * p * w * q, Unpatchify { grid: [h, w], patch: [p, q], order: ORDER });
    let mut whole = exec.alloc(Spec::new(dtype, [b, c, h * p, w * q])?)?;
    if plane == 0 {
        return Ok(());
    }
    if let Some(y) = whole.view_mut() {
        let x = dtokens.view().reshape([b, h * w, s.features])?;
        back.forward(exec, Forward { x: &[x], y: &mut [y], saved: &mut [] })?;
    }
    let std = std.map(|v| v.to_f32()).transpose()?;
    let Some(to) = Out::slot(dx, plane)? else { return Ok(()) };
    map(b * c, WORK * plane, [In::new(Floats::of(&whole.view())?, plane)], [to], |first, [x], [y]| {
        for (k, (x, y)) in x.chunks(plane).zip(y.chunks_mut(plane)).enumerate() {
            let std = std.as_ref().map_or(1.0, |std| std[(first + k) % c]);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x / std);
        }
    });
    Ok(())
}
