//! The register tile: `MR × NR` sums that stay in registers while K runs.
//!
//! AVX-512 keeps 12 × 32 sums in 24 of its 32 registers, AVX2 6 × 16 in 12 of 16. For each k a tile reads one row of the
//! B panel and broadcasts `MR` values of the A panel; Zen 4 and the AVX-512 server cores then issue one or two fused
//! multiply-adds a cycle and are not bound by loads. Tiles at the edge take fewer registers, never another order of sums.
#![allow(unsafe_code, reason = "vector intrinsics: a compiler's own choice spills the sums to memory")]

use crate::backend::cpu::dispatch::{Level, level};

/// One tile's work: `c[i][col..col + width] = alpha·(A panel · B panel) [+ c]` for every row of `c`.
pub(super) struct Job<'t, 'c> {
    /// `MR` values for each k.
    pub(super) a: &'t [f32],
    /// For each k `NR` values, `b_step` apart; a packed panel has `b_step = NR`.
    pub(super) b: &'t [f32],
    pub(super) b_step: usize,
    /// At most `MR` rows.
    pub(super) c: &'t mut [&'c mut [f32]],
    pub(super) col: usize,
    /// At most `NR`.
    pub(super) width: usize,
    pub(super) alpha: f32,
    pub(super) add: bool,
}

/// One tile's work over plain memory: `c[i·stride + j] = alpha·Σₖ a(i, k)·b[k·NR + j] [+ c]` for `i` in `0..rows` and `j` in
/// `0..width`.
pub(super) struct Flat<'t> {
    /// `a(i, k)` is `a[k·a_step + i]` for [`Tile::lanes`], `a[i·NR + k]` for [`Tile::rows`].
    pub(super) a: &'t [f32],
    pub(super) a_step: usize,
    /// At most `MR`.
    pub(super) rows: usize,
    /// `NR` values for each k; their number is the depth (`NR` for [`Tile::rows`]).
    pub(super) b: &'t [f32],
    pub(super) c: &'t mut [f32],
    pub(super) stride: usize,
    /// At most `NR`.
    pub(super) width: usize,
    pub(super) alpha: f32,
    pub(super) add: bool,
}

/// A tile for one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Rows.
    pub(super) mr: usize,
    /// Columns.
    pub(super) nr: usize,
    /// Does the work.
    pub(super) run: fn(Job<'_, '_>),
    /// Does it where the rows of A lie side by side for each k.
    pub(super) lanes: fn(Flat<'_>),
    /// Does it where a row of A is `NR` values long, and so is K.
    pub(super) rows: fn(Flat<'_>),
    /// Packs rows of A.
    pub(super) pack_a: super::pack::Pack,
    /// Packs columns of B (give it the transpose).
    pub(super) pack_b: super::pack::Pack,
}

/// The tile for this CPU.
pub(super) fn tile() -> Tile {
    use super::pack::panel;
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Tile {
            mr: 12,
            nr: 32,
            run: avx512::checked,
            lanes: avx512::lanes_checked,
            rows: avx512::rows_checked,
            pack_a: panel::<12>,
            pack_b: panel::<32>,
        },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Tile {
            mr: 6,
            nr: 16,
            run: avx2::checked,
            lanes: avx2::lanes_checked,
            rows: avx2::rows_checked,
            pack_a: panel::<6>,
            pack_b: panel::<16>,
        },
        _ => Tile {
            mr: 4,
            nr: 8,
            run: portable,
            lanes: |job| portable_flat(job, |k, (step, i)| k * step + i),
            rows: |job| portable_flat(job, |k, (_, i)| i * 8 + k),
            pack_a: panel::<4>,
            pack_b: panel::<8>,
        },
    }
}

macro_rules! register_tile {
    ($name:ident, $features:literal, $mr:literal x $nr:literal, lanes $lanes:literal, rows [$($rows:literal)+],
     $vector:ident, $zero:ident, $splat:ident, $load:ident, $store:ident, $fma:ident, $mul:ident) => {
        #[cfg(target_arch = "x86_64")]
        mod $name {
            use super::{Flat, Job};
            use std::arch::x86_64::{$vector, $fma, $load, $mul, $splat, $store, $zero};

            const MR: usize = $mr;
            const NR: usize = $nr;
            const LANES: usize = $lanes;

            /// Reached through `tile` alone.
            pub(super) fn checked(job: Job<'_, '_>) {
                // SAFETY: `tile` hands this function out only where `level` has found the features.
                unsafe { pick(job) }
            }

            #[target_feature(enable = $features)]
            fn pick(job: Job<'_, '_>) {
                let rows = job.c.len();
                $(if rows <= $rows {
                    return if job.width <= LANES { sums::<$rows, 1>(job) } else { sums::<$rows, { NR / LANES }>(job) };
                })+
            }

            /// Reached through `tile` alone.
            pub(super) fn lanes_checked(job: Flat<'_>) {
                // SAFETY: `tile` hands this function out only where `level` has found the features.
                unsafe { pick_lanes(job) }
            }

            /// Reached through `tile` alone.
            pub(super) fn rows_checked(job: Flat<'_>) {
                // SAFETY: `tile` hands this function out only where `level` has found the features.
                unsafe { pick_rows(job) }
            }

            #[target_feature(enable = $features)]
            fn pick_lanes(job: Flat<'_>) {
                $(if job.rows <= $rows {
                    return if job.width <= LANES { lanes::<$rows, 1>(job) } else { lanes::<$rows, { NR / LANES }>(job) };
                })+
            }

            #[target_feature(enable = $features)]
            fn pick_rows(job: Flat<'_>) {
                $(if job.rows <= $rows {
                    return if job.width <= LANES { rows::<$rows, 1>(job) } else { rows::<$rows, { NR / LANES }>(job) };
                })+
            }

            #[target_feature(enable = $features)]
            fn lanes<const M: usize, const V: usize>(job: Flat<'_>) {
                let mut acc = [[$zero(); V]; M];
                for (a, b) in job.a.chunks(job.a_step).zip(job.b.as_chunks::<NR>().0) {
                    let Some(a) = a.first_chunk::<M>() else { break };
                    step(&mut acc, a, b);
                }
                finish_flat(&acc, job);
            }

            #[target_feature(enable = $features)]
            fn rows<const M: usize, const V: usize>(job: Flat<'_>) {
                let (a, _) = job.a.as_chunks::<NR>();
                let (b, _) = job.b.as_chunks::<NR>();
                let (Some(last), Some(b)) = (a.len().min(job.rows).checked_sub(1), b.first_chunk::<NR>()) else { return };
                // Rows beyond the last repeat it; their sums are dropped.
                let a: [&[f32; NR]; M] = std::array::from_fn(|i| &a[i.min(last)]);
                let mut acc = [[$zero(); V]; M];
                for k in 0..NR {
                    let mut column = [0.0; M];
                    for i in 0..M {
                        column[i] = a[i][k];
                    }
                    step(&mut acc, &column, &b[k]);
                }
                finish_flat(&acc, job);
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn load(x: &[f32; LANES]) -> $vector {
                // SAFETY: the reference covers as many values as the instruction reads; it needs no alignment.
                unsafe { $load(x.as_ptr()) }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn store(x: &mut [f32; LANES], v: $vector) {
                // SAFETY: the reference covers as many values as the instruction writes; it needs no alignment.
                unsafe { $store(x.as_mut_ptr(), v) }
            }

            /// `M` rows by `V` vectors.
            #[target_feature(enable = $features)]
            fn sums<const M: usize, const V: usize>(job: Job<'_, '_>) {
                let mut acc = [[$zero(); V]; M];
                let a = job.a.as_chunks::<MR>().0;
                if job.b_step == NR {
                    for (a, b) in a.iter().zip(job.b.as_chunks::<NR>().0) {
                        step(&mut acc, a, b);
                    }
                } else {
                    for (a, b) in a.iter().zip(job.b.chunks(job.b_step)) {
                        let Some(b) = b.first_chunk::<NR>() else { break };
                        step(&mut acc, a, b);
                    }
                }
                finish(&acc, job);
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn step<const M: usize, const V: usize, const A: usize>(
                acc: &mut [[$vector; V]; M],
                a: &[f32; A],
                b: &[f32; NR],
            ) {
                let (b, _) = b.as_chunks::<LANES>();
                let mut bs = [$zero(); V];
                for v in 0..V {
                    bs[v] = load(&b[v]);
                }
                for i in 0..M {
                    let x = $splat(a[i]);
                    for v in 0..V {
                        acc[i][v] = $fma(x, bs[v], acc[i][v]);
                    }
                }
            }

            /// A whole tile goes from the registers to C.
            #[inline]
            #[target_feature(enable = $features)]
            fn finish<const M: usize, const V: usize>(acc: &[[$vector; V]; M], job: Job<'_, '_>) {
                let Job { c, col, width, alpha, add, .. } = job;
                if width != V * LANES || c.len() != M {
                    return edge(*acc, c.iter_mut().map(|row| &mut **row), col..col + width, alpha, add);
                }
                let factor = $splat(alpha);
                for i in 0..M {
                    let (to, _) = c[i][col..col + V * LANES].as_chunks_mut::<LANES>();
                    for v in 0..V {
                        let new =
                            if add { $fma(acc[i][v], factor, load(&to[v])) } else { $mul(acc[i][v], factor) };
                        store(&mut to[v], new);
                    }
                }
            }

            /// The same over plain memory.
            #[inline]
            #[target_feature(enable = $features)]
            fn finish_flat<const M: usize, const V: usize>(acc: &[[$vector; V]; M], job: Flat<'_>) {
                let Flat { rows, c, stride, width, alpha, add, .. } = job;
                let mut rows = c.chunks_mut(stride).take(rows);
                if width != V * LANES || rows.len() != M {
                    return edge(*acc, rows, 0..width, alpha, add);
                }
                let factor = $splat(alpha);
                for i in 0..M {
                    let Some(row) = rows.next() else { return };
                    let (to, _) = row[..V * LANES].as_chunks_mut::<LANES>();
                    for v in 0..V {
                        let new =
                            if add { $fma(acc[i][v], factor, load(&to[v])) } else { $mul(acc[i][v], factor) };
                        store(&mut to[v], new);
                    }
                }
            }

            /// A tile at the edge goes through memory. By value, so that the sums of others need no address.
            #[cold]
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn edge<'c, const M: usize, const V: usize>(
                acc: [[$vector; V]; M],
                c: impl Iterator<Item = &'c mut [f32]>,
                cols: std::ops::Range<usize>,
                alpha: f32,
                add: bool,
            ) {
                for (row, acc) in c.zip(&acc) {
                    let mut sums = [[0.0f32; LANES]; V];
                    for (to, from) in sums.iter_mut().zip(acc) {
                        store(to, *from);
                    }
                    for (to, &sum) in row[cols.clone()].iter_mut().zip(sums.as_flattened()) {
                        *to = if add { sum.mul_add(alpha, *to) } else { sum * alpha };
                    }
                }
            }
        }
    };
}

register_tile!(avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", 12 x 32, lanes 16, rows [1 4 8 12],
    __m512, _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps, _mm512_mul_ps);
register_tile!(avx2, "avx2,fma", 6 x 16, lanes 8, rows [1 2 4 6],
    __m256, _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps, _mm256_mul_ps);

/// Multiply-add, fused where the target's baseline has it.
#[inline(always)]
fn mac(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
}

/// 4 × 8 sums over plain memory; `at(k, (a_step, i))` says where a(i, k) lies.
fn portable_flat(job: Flat<'_>, at: impl Fn(usize, (usize, usize)) -> usize) {
    for i in 0..job.rows {
        let mut sums = [0.0f32; 8];
        for (k, b) in job.b.as_chunks::<8>().0.iter().enumerate() {
            let Some(&a) = job.a.get(at(k, (job.a_step, i))) else { break };
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = mac(a, b, *sum);
            }
        }
        for (to, &sum) in job.c[i * job.stride..].iter_mut().zip(&sums).take(job.width) {
            *to = if job.add { mac(sum, job.alpha, *to) } else { sum * job.alpha };
        }
    }
}

/// 4 × 8 sums in plain loops, without fused arithmetic where the target's baseline has none.
fn portable(job: Job<'_, '_>) {
    let mut acc = [[0.0f32; 8]; 4];
    for (a, b) in job.a.as_chunks::<4>().0.iter().zip(job.b.chunks(job.b_step)) {
        let Some(b) = b.first_chunk::<8>() else { break };
        for i in 0..4 {
            for j in 0..8 {
                acc[i][j] = mac(a[i], b[j], acc[i][j]);
            }
        }
    }
    for (row, acc) in job.c.iter_mut().zip(&acc) {
        for (to, &sum) in row[job.col..job.col + job.width].iter_mut().zip(acc) {
            *to = if job.add { mac(sum, job.alpha, *to) } else { sum * job.alpha };
        }
    }
}
