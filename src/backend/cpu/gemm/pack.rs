//! Panels: the values of an operand in the order in which the register tile reads them.
//!
//! A panel holds `W` rows of A (or columns of B) for a run of K: for each k, `W` values side by side. Lanes beyond the
//! matrix are zero.

use crate::backend::cpu::dispatch::{Arith, Body, run};

use super::operand::{Mat, Source, Widen};

/// [`panel`] for one width.
pub(super) type Pack = fn(Mat<'_>, usize, usize, std::ops::Range<usize>, &mut [f32]);

/// Fills `panel` (`W` values for each k of `ks`) with the lanes `first..first + width` of `m`, where a lane is a row.
pub(super) fn panel<const W: usize>(
    m: Mat<'_>,
    first: usize,
    width: usize,
    ks: std::ops::Range<usize>,
    panel: &mut [f32],
) {
    let at = Place { lane: m.row, step: m.col, start: first * m.row + ks.start * m.col, width, depth: ks.len() };
    match m.data {
        Source::F32(x) => run::<Fill<W>, _>((x, at, panel)),
        Source::Bf16(x) => run::<Fill<W>, _>((x, at, panel)),
        Source::F16(x) => run::<Fill<W>, _>((x, at, panel)),
    }
}

/// Where a panel lies in its matrix: lane `l` at step `k` is value `start + l·lane + k·step`.
#[derive(Clone, Copy)]
struct Place {
    lane: usize,
    step: usize,
    start: usize,
    width: usize,
    depth: usize,
}

struct Fill<const W: usize>;

impl<const W: usize, T: Widen> Body<(&[T], Place, &mut [f32])> for Fill<W> {
    type Out = ();

    #[inline(always)]
    fn call<F: Arith>((x, p, panel): (&[T], Place, &mut [f32])) {
        let (out, _) = panel.as_chunks_mut::<W>();
        let Some(x) = x.get(p.start..) else { return };
        let out = &mut out[..p.depth];
        if p.lane == 1 {
            beside::<W, T>(x, p, out);
        } else if p.step == 1 {
            across::<W, T>(x, p, out);
        } else {
            for (k, out) in out.iter_mut().enumerate() {
                for (l, o) in out.iter_mut().enumerate() {
                    *o = if l < p.width { x[l * p.lane + k * p.step].one() } else { 0.0 };
                }
            }
        }
    }
}

/// The lanes of a step lie side by side: a copy for each step.
#[inline(always)]
fn beside<const W: usize, T: Widen>(x: &[T], p: Place, out: &mut [[f32; W]]) {
    if p.width == W {
        for (k, out) in out.iter_mut().enumerate() {
            T::widen(&x[k * p.step..][..W], out);
        }
    } else {
        for (k, out) in out.iter_mut().enumerate() {
            T::widen(&x[k * p.step..][..p.width], &mut out[..p.width]);
            out[p.width..].fill(0.0);
        }
    }
}

/// The steps of a lane lie side by side: four lanes by sixteen steps are turned at a time.
#[inline(always)]
fn across<const W: usize, T: Widen>(x: &[T], p: Place, out: &mut [[f32; W]]) {
    let mut lane = 0;
    while lane + 4 <= p.width.min(W) {
        let rows: [&[T]; 4] = std::array::from_fn(|l| &x[(lane + l) * p.lane..][..p.depth]);
        let mut k = 0;
        while k + 16 <= p.depth {
            let mut block = [[0.0f32; 16]; 4];
            for (to, from) in block.iter_mut().zip(rows) {
                T::widen(&from[k..k + 16], to);
            }
            turn(&block, &mut out[k..k + 16], lane);
            k += 16;
        }
        for k in k..p.depth {
            for l in 0..4 {
                out[k][lane + l] = rows[l][k].one();
            }
        }
        lane += 4;
    }
    for lane in lane..p.width.min(W) {
        for (out, x) in out.iter_mut().zip(&x[lane * p.lane..][..p.depth]) {
            out[lane] = x.one();
        }
    }
    if p.width < W {
        for out in out.iter_mut() {
            out[p.width..].fill(0.0);
        }
    }
}

#[inline(always)]
fn turn<const W: usize>(block: &[[f32; 16]; 4], out: &mut [[f32; W]], lane: usize) {
    for (k, out) in out.iter_mut().enumerate().take(16) {
        let four = [block[0][k], block[1][k], block[2][k], block[3][k]];
        out[lane..lane + 4].copy_from_slice(&four);
    }
}
