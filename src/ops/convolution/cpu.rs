//! The CPU path: patches as columns of a matrix, a block of outputs at a time, and the packed product; where a group has few
//! channels (depthwise), each tap is a scaled row that is added. The plain text has no products with the padding; a matrix has,
//! and there 0 times an infinity would be NaN: with padding, factors that are not finite take the way of the rows.

use super::{Size, Window};
use crate::backend::cpu::gemm::{How, Mat, MatMut, matmul, matmul_here, with_scratch};
use crate::backend::cpu::{threads, vector};
use crate::error::Result;
use crate::ops::operator::{RefBackward, RefForward};

/// Numbers of a block of patches: it stays in the second-level cache.
const BLOCK: usize = 128 * 1024;
/// Up to this many channels on either side of a group, taps are added one by one.
const FEW: usize = 2;

impl Window {
    fn is_thin(s: &Size) -> bool {
        s.cin <= FEW && s.cout <= FEW
    }

    /// Whether products with the zeros of the padding are all 0, as if they were not there.
    fn may_pad(&self, factors: &[f32]) -> bool {
        self.padding == [0, 0] || vector::all_finite(factors)
    }

    /// Whether patches are the input itself: a kernel of one tap that moves by one.
    fn is_pointwise(&self, s: &Size) -> bool {
        s.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0]
    }

    /// Output rows of a block.
    fn block_rows(s: &Size) -> usize {
        (BLOCK / (s.taps() * s.output[1]).max(1)).clamp(1, s.output[0].max(1))
    }

    /// The product of a block: on this thread alone if the caller is one of many (`here`), else parallel inside.
    fn multiply(here: bool, a: Mat<'_>, b: Mat<'_>, c: MatMut<'_>, add: bool) {
        let how = How { add, ..How::default() };
        let done: Result<()> = if here { matmul_here(a, b, c, how) } else { matmul(a, b, c, how) };
        if let Err(e) = done {
            unreachable!("sizes follow from shapes that were checked: {e}");
        }
    }

    /// Fills `columns [taps, rows·W]` with the patches of the output rows from `first` on; what lies in the padding is 0.
    fn patches(&self, s: &Size, x: &[f32], first: usize, columns: &mut [f32]) {
        let (width, taps) = (s.output[1], s.kernel[0] * s.kernel[1]);
        let per_tap = columns.len() / s.taps().max(1);
        for (t, to) in columns.chunks_mut(per_tap.max(1)).enumerate() {
            let (kr, kc) = (t % taps / s.kernel[1], t % s.kernel[1]);
            let plane = &x[t / taps * s.input_plane()..][..s.input_plane()];
            let inside = self.inside(1, kc, s.input[1], width);
            for (row, to) in (first..).zip(to.chunks_mut(width)) {
                let source = self.tap(0, row, kr, s.input[0]).filter(|_| !inside.is_empty());
                let Some(r) = source else {
                    to.fill(0.0);
                    continue;
                };
                to[..inside.start].fill(0.0);
                to[inside.end..].fill(0.0);
                let from = inside.start * self.stride[1] + kc * self.dilation[1] - self.padding[1];
                let from = &plane[r * s.input[1] + from..(r + 1) * s.input[1]];
                let to = &mut to[inside.clone()];
                if self.stride[1] == 1 {
                    to.copy_from_slice(&from[..to.len()]);
                } else {
                    to.iter_mut().zip(from.iter().step_by(self.stride[1])).for_each(|(to, &x)| *to = x);
                }
            }
        }
    }

    /// Adds a block of gradients of patches to where the patches came from.
    fn add_patches(&self, s: &Size, columns: &[f32], first: usize, dx: &mut [f32]) {
        let (width, taps) = (s.output[1], s.kernel[0] * s.kernel[1]);
        let per_tap = columns.len() / s.taps().max(1);
        for (t, from) in columns.chunks(per_tap.max(1)).enumerate() {
            let (kr, kc) = (t % taps / s.kernel[1], t % s.kernel[1]);
            let plane = &mut dx[t / taps * s.input_plane()..][..s.input_plane()];
            for (row, from) in (first..).zip(from.chunks(width)) {
                self.add_row(s, (row, kr, kc), 1.0, from, plane);
            }
        }
    }

    /// `plane += a·from`, where output row `row` reads at tap `(kr, kc)`.
    fn add_row(&self, s: &Size, (row, kr, kc): (usize, usize, usize), a: f32, from: &[f32], plane: &mut [f32]) {
        let inside = self.inside(1, kc, s.input[1], s.output[1]);
        let (Some(r), false) = (self.tap(0, row, kr, s.input[0]), inside.is_empty()) else { return };
        let at = inside.start * self.stride[1] + kc * self.dilation[1] - self.padding[1];
        let to = &mut plane[r * s.input[1] + at..(r + 1) * s.input[1]];
        if self.stride[1] == 1 {
            return vector::axpy(a, &from[inside], to);
        }
        to.iter_mut().step_by(self.stride[1]).zip(&from[inside]).for_each(|(to, &x)| *to += a * x);
    }

    /// The numbers that output row `row` reads at tap `(kr, kc)`, and the outputs that read them.
    fn read_row<'a>(
        &self,
        s: &Size,
        (row, kr, kc): (usize, usize, usize),
        plane: &'a [f32],
    ) -> Option<(&'a [f32], std::ops::Range<usize>)> {
        let inside = self.inside(1, kc, s.input[1], s.output[1]);
        let r = self.tap(0, row, kr, s.input[0]).filter(|_| !inside.is_empty())?;
        let at = inside.start * self.stride[1] + kc * self.dilation[1] - self.padding[1];
        Some((&plane[r * s.input[1] + at..(r + 1) * s.input[1]], inside))
    }

    /// Taps of a kernel.
    fn kernel_taps(s: &Size) -> impl Iterator<Item = (usize, usize)> + use<> {
        let [rows, cols] = s.kernel;
        (0..rows).flat_map(move |r| (0..cols).map(move |c| (r, c)))
    }

    pub(in crate::ops) fn forward_cpu(&self, io: RefForward<'_, f32>) {
        let s = self.size_of(io.x);
        let (x, w, bias, y) = (io.x[0].v, io.x[1].v, io.x.get(2).map(|b| b.v), &mut *io.y[0]);
        if y.is_empty() {
            return;
        }
        let (x_len, y_len) = (s.cin * s.input_plane(), s.cout * s.output_plane());
        let items = s.batch * s.groups;
        let here = items >= 2 * threads::count();
        let by_rows = Window::is_thin(&s) || !self.may_pad(w);
        let run = |(item, y): (usize, &mut [f32])| {
            let group = item % s.groups;
            if let Some(bias) = bias {
                let bias = &bias[group * s.cout..];
                y.chunks_mut(s.output_plane()).zip(bias).for_each(|(y, &bias)| y.fill(bias));
            } else {
                y.fill(0.0);
            }
            let x = x.get(item * x_len..(item + 1) * x_len).unwrap_or(&[]);
            let w = &w[group * s.cout * s.taps()..][..s.cout * s.taps()];
            if by_rows { self.forward_thin(&s, x, w, y) } else { self.forward_block(&s, here, x, w, y) }
        };
        let work = (s.taps() * y_len / 4).saturating_mul(items);
        let parts: Vec<(usize, &mut [f32])> = y.chunks_mut(y_len).enumerate().collect();
        if here || by_rows { threads::each(work, parts, run) } else { parts.into_iter().for_each(run) }
    }

    fn forward_thin(&self, s: &Size, x: &[f32], w: &[f32], y: &mut [f32]) {
        for (o, y) in y.chunks_mut(s.output_plane()).enumerate() {
            for (row, y) in y.chunks_mut(s.output[1]).enumerate() {
                for c in 0..s.cin {
                    let plane = &x[c * s.input_plane()..][..s.input_plane()];
                    for (t, (kr, kc)) in Window::kernel_taps(s).enumerate() {
                        let a = w[o * s.taps() + c * s.kernel[0] * s.kernel[1] + t];
                        let Some((from, inside)) = self.read_row(s, (row, kr, kc), plane) else { continue };
                        let to = &mut y[inside];
                        if self.stride[1] == 1 {
                            vector::axpy(a, from, to);
                        } else {
                            to.iter_mut().zip(from.iter().step_by(self.stride[1])).for_each(|(y, &x)| *y += a * x);
                        }
                    }
                }
            }
        }
    }

    fn forward_block(&self, s: &Size, here: bool, x: &[f32], w: &[f32], y: &mut [f32]) {
        let (taps, plane) = (s.taps(), s.output_plane());
        let w = Mat::new(w, s.cout, taps);
        if self.is_pointwise(s) {
            return Window::multiply(here, w, Mat::new(x, taps, plane), MatMut::new(y, s.cout, plane), true);
        }
        self.each_block(s, |first, at, columns| {
            self.patches(s, x, first, columns);
            let count = at.len();
            let to = MatMut::strided(&mut y[at.start..], (s.cout, count), plane);
            Window::multiply(here, w, Mat::new(&*columns, taps, count), to, true);
        });
    }

    /// Calls `f(first row, outputs, memory for their patches)` for blocks of output rows.
    fn each_block(&self, s: &Size, mut f: impl FnMut(usize, std::ops::Range<usize>, &mut [f32])) {
        let rows = Window::block_rows(s);
        with_scratch(s.taps() * rows * s.output[1], |columns| {
            for first in (0..s.output[0]).step_by(rows) {
                let at = first * s.output[1]..(first + rows).min(s.output[0]) * s.output[1];
                let len = s.taps() * at.len();
                f(first, at, &mut columns[..len]);
            }
        });
    }

    pub(in crate::ops) fn backward_cpu(&self, io: RefBackward<'_, f32>) {
        let s = self.size_of(io.x);
        let (x, w, dy) = (io.x[0].v, io.x[1].v, io.dy[0]);
        if dy.is_empty() {
            return;
        }
        if let Some(dx) = &mut io.dx[0] {
            self.input_gradient(&s, w, dy, dx);
        }
        if let Some(dw) = &mut io.dx[1] {
            self.kernel_gradient(&s, x, dy, dw);
        }
        if let Some(Some(dbias)) = io.dx.get_mut(2) {
            let (channels, plane) = (s.groups * s.cout, s.output_plane());
            let rows: Vec<(usize, &mut f32)> = dbias.iter_mut().enumerate().collect();
            threads::each(dy.len(), rows, |(o, to)| {
                let sums = (0..s.batch).map(|b| f64::from(vector::sum(&dy[(b * channels + o) * plane..][..plane])));
                *to = sums.sum::<f64>() as f32;
            });
        }
    }

    fn input_gradient(&self, s: &Size, w: &[f32], dy: &[f32], dx: &mut [f32]) {
        let (x_len, y_len) = (s.cin * s.input_plane(), s.cout * s.output_plane());
        if x_len == 0 {
            return;
        }
        let items = s.batch * s.groups;
        let here = items >= 2 * threads::count();
        let run = |(item, dx): (usize, &mut [f32])| {
            let group = item % s.groups;
            let dy = &dy[item * y_len..][..y_len];
            let w = &w[group * s.cout * s.taps()..][..s.cout * s.taps()];
            if Window::is_thin(s) {
                return self.input_gradient_thin(s, w, dy, dx);
            }
            let plane = s.output_plane();
            let w = Mat::new(w, s.cout, s.taps()).t();
            if self.is_pointwise(s) {
                let to = MatMut::new(dx, s.taps(), plane);
                return Window::multiply(here, w, Mat::new(dy, s.cout, plane), to, false);
            }
            dx.fill(0.0);
            self.each_block(s, |first, at, columns| {
                let count = at.len();
                let dy = Mat::strided(&dy[at.start..], (s.cout, count), (plane, 1));
                Window::multiply(here, w, dy, MatMut::new(columns, s.taps(), count), false);
                self.add_patches(s, columns, first, dx);
            });
        };
        let parts: Vec<(usize, &mut [f32])> = dx.chunks_mut(x_len).enumerate().collect();
        let work = (s.taps() * y_len / 4).saturating_mul(items);
        if here || Window::is_thin(s) { threads::each(work, parts, run) } else { parts.into_iter().for_each(run) }
    }

    fn input_gradient_thin(&self, s: &Size, w: &[f32], dy: &[f32], dx: &mut [f32]) {
        dx.fill(0.0);
        for (c, plane) in dx.chunks_mut(s.input_plane()).enumerate() {
            for (o, dy) in dy.chunks(s.output_plane()).enumerate() {
                for (row, dy) in dy.chunks(s.output[1]).enumerate() {
                    for (t, (kr, kc)) in Window::kernel_taps(s).enumerate() {
                        let a = w[o * s.taps() + c * s.kernel[0] * s.kernel[1] + t];
                        self.add_row(s, (row, kr, kc), a, dy, plane);
                    }
                }
            }
        }
    }

    /// Groups in parallel if there are many, samples in their order.
    fn kernel_gradient(&self, s: &Size, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let (x_len, y_len, w_len) = (s.cin * s.input_plane(), s.cout * s.output_plane(), s.cout * s.taps());
        if w_len == 0 {
            return;
        }
        let here = s.groups >= 2 * threads::count();
        let by_rows = Window::is_thin(s) || !self.may_pad(dy);
        let run = |(group, dw): (usize, &mut [f32])| {
            dw.fill(0.0);
            for b in 0..s.batch {
                let item = b * s.groups + group;
                let (x, dy) = (x.get(item * x_len..(item + 1) * x_len).unwrap_or(&[]), &dy[item * y_len..][..y_len]);
                if by_rows {
                    self.kernel_gradient_thin(s, x, dy, dw);
                } else {
                    self.kernel_gradient_block(s, here, x, dy, dw);
                }
            }
        };
        let parts: Vec<(usize, &mut [f32])> = dw.chunks_mut(w_len).enumerate().collect();
        let work = (s.taps() * y_len / 4).saturating_mul(s.batch * s.groups);
        if here || by_rows { threads::each(work, parts, run) } else { parts.into_iter().for_each(run) }
    }

    fn kernel_gradient_thin(&self, s: &Size, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let per_channel = s.kernel[0] * s.kernel[1];
        for (at, to) in dw.iter_mut().enumerate() {
            let (o, c, t) = (at / s.taps(), at % s.taps() / per_channel, at % per_channel);
            let (kr, kc) = (t / s.kernel[1], t % s.kernel[1]);
            let plane = &x[c * s.input_plane()..][..s.input_plane()];
            let dy = &dy[o * s.output_plane()..][..s.output_plane()];
            let mut sum = 0.0_f64;
            for (row, dy) in dy.chunks(s.output[1]).enumerate() {
                let Some((from, inside)) = self.read_row(s, (row, kr, kc), plane) else { continue };
                let dy = &dy[inside];
                sum += f64::from(if self.stride[1] == 1 {
                    vector::dot(&from[..dy.len()], dy)
                } else {
                    from.iter().step_by(self.stride[1]).zip(dy).map(|(x, dy)| x * dy).sum::<f32>()
                });
            }
            *to += sum as f32;
        }
    }

    fn kernel_gradient_block(&self, s: &Size, here: bool, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let (taps, plane) = (s.taps(), s.output_plane());
        if self.is_pointwise(s) {
            let (dy, x) = (Mat::new(dy, s.cout, plane), Mat::new(x, taps, plane));
            return Window::multiply(here, dy, x.t(), MatMut::new(dw, s.cout, taps), true);
        }
        self.each_block(s, |first, at, columns| {
            self.patches(s, x, first, columns);
            let count = at.len();
            let dy = Mat::strided(&dy[at.start..], (s.cout, count), (plane, 1));
            Window::multiply(here, dy, Mat::new(&*columns, taps, count).t(), MatMut::new(dw, s.cout, taps), true);
        });
    }
}
