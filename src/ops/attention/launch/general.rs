//! Says where the general kernel computes in a 16-bit type, for which the device has faster kernels of its own: nothing slower takes
//! their place in silence.

use super::Plan;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::Arch;
use crate::backend::gpu::kernel::Operand;
use crate::tensor::Dtype;

/// Numbers in 16 bytes.
const PIECE: usize = 8;
/// Largest heads of the kernels for long sequences: on Hopper, elsewhere.
const MOST: [usize; 2] = [256, 128];
/// Most tokens of windows.
const MOST_TOKENS: usize = 256;

/// Gives a notice of what the general kernel computes; `tensors` are all that the others read or write 16 bytes at a time.
pub(super) fn tell(plan: &Plan<'_>, gpu: &Gpu, tensors: &[&dyn Operand]) {
    if let Some(what) = what(plan, gpu.driver().info().arch, tensors) {
        tell_of(gpu, what);
    }
}

/// The same of something that is known.
pub(super) fn tell_of(gpu: &Gpu, what: &str) {
    let arch = gpu.driver().info().arch;
    gpu.notice(format!("attention: {what}: computed by the general kernel, those made for {arch} do not take it"));
}

/// What the device's own kernels do not take; f32 has none, nor has nothing.
fn what(plan: &Plan<'_>, arch: Arch, tensors: &[&dyn Operand]) -> Option<&'static str> {
    let (g, op) = (&plan.g, plan.op);
    let dtype = tensors.first()?.spec().dtype();
    if dtype == Dtype::F32 || g.nq.min(g.nk) == 0 {
        return None;
    }
    let is_hopper = arch == Arch::SM_90A;
    let is_whole = |n: usize| n.is_multiple_of(PIECE);
    let places = [g.q, g.k, g.v];
    let reasons = [
        (dtype == Dtype::F16 && arch == Arch::GFX90A, "f16"),
        (!is_whole(g.d), "head sizes that are no multiple of 8"),
        (g.windows.is_some() && g.places().0 > MOST_TOKENS, "windows of more than 256 tokens"),
        (g.windows.is_some() && op.dropping().is_some(), "windows with dropout"),
        (is_hopper && g.windows.is_none() && g.d < 16, "head sizes below 16"),
        (g.d > MOST[usize::from(!is_hopper)], "head sizes above what they hold"),
        (!is_hopper && op.sequences.is_some(), "packed sequences"),
        (!(1e-9..1e9).contains(&g.scale), "scales that are not between 1e-9 and 1e9"),
        (
            !places.iter().all(|p| is_whole(p.offset) && is_whole(p.row))
                || tensors.iter().any(|t| t.address().is_some_and(|at| !at.is_multiple_of(16))),
            "tensors whose rows are not at multiples of 16 bytes",
        ),
    ];
    let found = reasons.into_iter().find(|&(is_so, _)| is_so);
    Some(found.map_or("sizes beyond what they count or hold", |(_, what)| what))
}
