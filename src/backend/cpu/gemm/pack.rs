//! Panels: the values of an operand in the order in which the register tile reads them.
//!
//! A panel holds `W` rows of A (or columns of B) for a run of K: for each k, `W` values side by side. Lanes beyond the
//! matrix are zero.
#![allow(unsafe_code, reason = "the transpose in registers may only be called where the CPU has them")]

use half::{bf16, f16};

use crate::backend::cpu::dispatch::{Arith, Body, Level, level, run};

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
        Source::F32(x) => fill::<W, f32>(x, at, panel),
        Source::Bf16(x) => fill::<W, bf16>(x, at, panel),
        Source::F16(x) => fill::<W, f16>(x, at, panel),
    }
}

fn fill<const W: usize, T: Widen>(x: &[T], at: Place, panel: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if at.step == 1 && at.lane != 1 && level() >= Level::Avx2 {
        let out = &mut panel.as_chunks_mut::<W>().0[..at.depth];
        // SAFETY: `level` says Avx2 or more only after it has found the features that `turned::across` is compiled for.
        return unsafe { turned::across::<W, T>(&x[at.start..], at, out) };
    }
    run::<Fill<W>, _>((x, at, panel));
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
        let out = &mut panel.as_chunks_mut::<W>().0[..p.depth];
        let Some(x) = x.get(p.start..) else { return };
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

/// The steps of a lane lie side by side: a transpose.
#[inline(always)]
fn across<const W: usize, T: Widen>(x: &[T], p: Place, out: &mut [[f32; W]]) {
    for lane in 0..p.width.min(W) {
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

/// [`across`] in blocks of 8 lanes by 8 steps, or 4 by 8, turned in registers.
#[cfg(target_arch = "x86_64")]
mod turned {
    use std::arch::x86_64::{
        __m128, __m256, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    use super::{Place, Widen};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn across<const W: usize, T: Widen>(x: &[T], p: Place, out: &mut [[f32; W]]) {
        let width = p.width.min(W);
        let whole = p.depth / 8 * 8;
        let mut lane = 0;
        while lane < width {
            if lane + 8 <= width {
                let rows: [&[T]; 8] = std::array::from_fn(|l| &x[(lane + l) * p.lane..][..p.depth]);
                for (k, out) in out.chunks_exact_mut(8).enumerate() {
                    eight(load(&rows, k * 8), out, lane);
                }
                lane += 8;
            } else if width >= 4 {
                // The last lanes, some of them for the second time if their number is no multiple of four.
                lane = lane.min(width - 4);
                let rows: [&[T]; 4] = std::array::from_fn(|l| &x[(lane + l) * p.lane..][..p.depth]);
                for (k, out) in out.chunks_exact_mut(8).enumerate() {
                    four(load(&rows, k * 8), out, lane);
                }
                lane += 4;
            } else {
                for (out, x) in out[..whole].iter_mut().zip(&x[lane * p.lane..][..p.depth]) {
                    out[lane] = x.one();
                }
                lane += 1;
            }
        }
        for (k, out) in out.iter_mut().enumerate().skip(whole) {
            for (lane, out) in out[..width].iter_mut().enumerate() {
                *out = x[lane * p.lane + k].one();
            }
        }
        if width < W {
            for out in out {
                out[width..].fill(0.0);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn load<const N: usize, T: Widen>(rows: &[&[T]; N], k: usize) -> [__m256; N] {
        std::array::from_fn(|l| {
            let mut eight = [0.0f32; 8];
            T::widen(&rows[l][k..k + 8], &mut eight);
            bytemuck::cast(eight)
        })
    }

    /// Pairs of lanes, then fours: result `j` holds four lanes at step `j` in its lower half, at step `j + 4` in its upper.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn quads(r: [__m256; 4]) -> [__m256; 4] {
        let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpacklo_ps(r[2], r[3]));
        let (c, d) = (_mm256_unpackhi_ps(r[0], r[1]), _mm256_unpackhi_ps(r[2], r[3]));
        [
            _mm256_shuffle_ps::<0x44>(a, b),
            _mm256_shuffle_ps::<0xee>(a, b),
            _mm256_shuffle_ps::<0x44>(c, d),
            _mm256_shuffle_ps::<0xee>(c, d),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn four<const W: usize>(r: [__m256; 4], out: &mut [[f32; W]], lane: usize) {
        for (j, q) in quads(r).into_iter().enumerate() {
            put(out, j, lane, bytemuck::cast::<__m128, [f32; 4]>(_mm256_castps256_ps128(q)));
            put(out, j + 4, lane, bytemuck::cast::<__m128, [f32; 4]>(_mm256_extractf128_ps::<1>(q)));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn eight<const W: usize>(r: [__m256; 8], out: &mut [[f32; W]], lane: usize) {
        let (low, high) = (quads([r[0], r[1], r[2], r[3]]), quads([r[4], r[5], r[6], r[7]]));
        for j in 0..4 {
            let (near, far) =
                (_mm256_permute2f128_ps::<0x20>(low[j], high[j]), _mm256_permute2f128_ps::<0x31>(low[j], high[j]));
            put(out, j, lane, bytemuck::cast::<__m256, [f32; 8]>(near));
            put(out, j + 4, lane, bytemuck::cast::<__m256, [f32; 8]>(far));
        }
    }

    #[inline(always)]
    fn put<const W: usize, const N: usize>(out: &mut [[f32; W]], k: usize, lane: usize, values: [f32; N]) {
        out[k][lane..lane + N].copy_from_slice(&values);
    }
}
