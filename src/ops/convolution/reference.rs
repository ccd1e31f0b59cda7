//! The plain text: for every output, the taps that lie inside the input.

use super::{Size, Window};
use crate::ops::operator::{RefBackward, RefForward, RefInput};
use crate::scalar::Scalar;
use crate::tensor::Spec;

/// One product: where its three numbers lie in x, w and y.
struct Term {
    x: usize,
    w: usize,
    y: usize,
}

impl Window {
    pub(super) fn size_of<S>(&self, x: &[RefInput<'_, S>]) -> Size {
        let specs: Vec<&Spec> = x.iter().map(|x| x.spec).collect();
        self.size(&specs)
    }

    /// Calls `f` for every product of every output, output after output.
    fn each_term(&self, s: &Size, mut f: impl FnMut(Term)) {
        let [kernel_rows, kernel_cols] = s.kernel;
        let channels = s.groups * s.cout;
        for y in 0..s.batch * channels * s.output_plane() {
            let (at, out) = (y % s.output_plane(), y / s.output_plane());
            let (b, o) = (out / channels, out % channels);
            let (row, col) = (at / s.output[1], at % s.output[1]);
            for c in 0..s.cin {
                for kr in 0..kernel_rows {
                    for kc in 0..kernel_cols {
                        let rows = self.tap(0, row, kr, s.input[0]);
                        let (Some(r), Some(col)) = (rows, self.tap(1, col, kc, s.input[1])) else { continue };
                        let plane = (b * s.groups + o / s.cout) * s.cin + c;
                        let x = (plane * s.input[0] + r) * s.input[1] + col;
                        let w = ((o * s.cin + c) * kernel_rows + kr) * kernel_cols + kc;
                        f(Term { x, w, y });
                    }
                }
            }
        }
    }

    /// The output channel of result `y`.
    fn channel(s: &Size, y: usize) -> usize {
        y / s.output_plane() % (s.groups * s.cout)
    }

    pub(in crate::ops) fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let s = self.size_of(io.x);
        let (x, w, y) = (io.x[0], io.x[1], &mut *io.y[0]);
        self.each_term(&s, |t| y[t.y] = y[t.y].mac(x[t.x], w[t.w]));
        if let Some(bias) = io.x.get(2) {
            for (i, y) in y.iter_mut().enumerate() {
                *y = *y + bias[Window::channel(&s, i)];
            }
        }
    }

    pub(in crate::ops) fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let s = self.size_of(io.x);
        let (x, w, dy) = (io.x[0], io.x[1], io.dy[0]);
        if let Some(dx) = &mut io.dx[0] {
            self.each_term(&s, |t| dx[t.x] = dx[t.x].mac(dy[t.y], w[t.w]));
        }
        if let Some(dw) = &mut io.dx[1] {
            self.each_term(&s, |t| dw[t.w] = dw[t.w].mac(dy[t.y], x[t.x]));
        }
        if let Some(Some(dbias)) = io.dx.get_mut(2) {
            for (i, &dy) in dy.iter().enumerate() {
                let o = Window::channel(&s, i);
                dbias[o] = dbias[o] + dy;
            }
        }
    }
}
