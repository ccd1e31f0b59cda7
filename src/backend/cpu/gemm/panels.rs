//! Single products of operands that the caller packs and keeps: for operators that chain products without storing what
//! lies between them.
//!
//! A *panel of columns* holds [`lanes`](Panels::lanes) columns of a matrix, all values of a row side by side; a *panel of
//! rows* holds as many rows as a register tile, all values of a column side by side. What a product leaves in panel form is
//! an operand of the next: `c [rows, lanes]` may be read as [`by_lanes`](Panels::by_lanes) (as its transpose) or as
//! [`by_rows`](Panels::by_rows).

use super::operand::Mat;
use super::tile::{Flat, Tile, tile};

/// The register tile of this CPU, over packed panels.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    tile: Tile,
}

impl Panels {
    pub(crate) fn new() -> Panels {
        Panels { tile: tile() }
    }

    /// Columns of a panel of columns; at most 32.
    pub(crate) fn lanes(&self) -> usize {
        self.tile.nr
    }

    /// Values that the rows of a `[rows, depth]` matrix take as panels.
    pub(crate) fn rows_len(&self, rows: usize, depth: usize) -> usize {
        rows.next_multiple_of(self.tile.mr) * depth
    }

    /// Values that the columns of a `[depth, columns]` matrix take as panels.
    pub(crate) fn columns_len(&self, depth: usize, columns: usize) -> usize {
        columns.next_multiple_of(self.tile.nr) * depth
    }

    /// Packs all rows of `m`, panel after panel; lanes beyond the last row are 0.
    pub(crate) fn pack_rows(&self, m: Mat<'_>, to: &mut [f32]) {
        let mr = self.tile.mr;
        for (i, panel) in to.chunks_exact_mut((mr * m.cols).max(1)).take(m.rows.div_ceil(mr)).enumerate() {
            (self.tile.pack_a)(m, i * mr, mr.min(m.rows - i * mr), 0..m.cols, panel);
        }
    }

    /// Packs all columns of `m`, panel after panel, as if it had `depth` rows: what lies beyond its own is 0.
    pub(crate) fn pack_columns(&self, m: Mat<'_>, depth: usize, to: &mut [f32]) {
        let nr = self.tile.nr;
        for (i, panel) in to.chunks_exact_mut((nr * depth).max(1)).take(m.cols.div_ceil(nr)).enumerate() {
            let (filled, rest) = panel.split_at_mut(nr * m.rows);
            (self.tile.pack_b)(m.t(), i * nr, nr.min(m.cols - i * nr), 0..m.rows, filled);
            rest.fill(0.0);
        }
    }

    /// `c [rows, lanes] = alpha·A·B`: A in panels of rows, B one panel of columns.
    pub(crate) fn by_panels(&self, a: &[f32], b: &[f32], rows: usize, alpha: f32, c: &mut [f32]) {
        let (mr, nr) = (self.tile.mr, self.tile.nr);
        let depth = b.len() / nr;
        for (i, a) in a.chunks((mr * depth).max(1)).take(rows.div_ceil(mr)).enumerate() {
            let rows = mr.min(rows - i * mr);
            let c = &mut c[i * mr * nr..];
            (self.tile.lanes)(Flat { a, a_step: mr, rows, b, c, stride: nr, width: nr, alpha, add: false });
        }
    }

    /// `c [lanes, columns] = alpha·Aᵀ·B [+ c]`: `a [depth, lanes]`, B in panels of columns whose first values lie `b_step`
    /// apart.
    pub(crate) fn by_lanes(
        &self,
        a: &[f32],
        (b, b_step): (&[f32], usize),
        columns: usize,
        how: (f32, bool),
        c: &mut [f32],
    ) {
        let (mr, nr) = (self.tile.mr, self.tile.nr);
        for col in (0..columns).step_by(nr) {
            let b = &b[col / nr * b_step..][..a.len()];
            for first in (0..nr).step_by(mr) {
                let (rows, width, (alpha, add)) = (mr.min(nr - first), nr.min(columns - col), how);
                let c = &mut c[first * columns + col..];
                let a = &a[first..];
                (self.tile.lanes)(Flat { a, a_step: nr, rows, b, c, stride: columns, width, alpha, add });
            }
        }
    }

    /// `c [rows, columns] += alpha·A·B`: `a [rows, lanes]`, B in panels of columns of a `[lanes, columns]` matrix.
    pub(crate) fn by_rows(&self, a: &[f32], b: &[f32], columns: usize, alpha: f32, c: &mut [f32]) {
        let (mr, nr) = (self.tile.mr, self.tile.nr);
        for (b, col) in b.chunks_exact(nr * nr).zip((0..columns).step_by(nr)) {
            for (i, a) in a.chunks(mr * nr).enumerate() {
                let (rows, width) = (a.len() / nr, nr.min(columns - col));
                let c = &mut c[i * mr * columns + col..];
                (self.tile.rows)(Flat { a, a_step: nr, rows, b, c, stride: columns, width, alpha, add: true });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::dispatch::forced::each_level;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 11) % 23) as f32 - 11.0).collect()
    }

    /// Small integers: every product is exact, so the forms must agree to the bit with three loops.
    #[test]
    fn the_three_forms_agree_with_three_loops() {
        each_level(|level| {
            let panels = Panels::new();
            let lanes = panels.lanes();
            for (rows, depth, columns) in [(1, 1, 1), (5, 7, 20), (29, 48, 48), (40, 3, 33)] {
                let (x, q, v) = (numbers(rows * depth, 1), numbers(lanes * depth, 2), numbers(rows * columns, 3));
                let mut a = vec![f32::NAN; panels.rows_len(rows, depth)];
                panels.pack_rows(Mat::new(&x, rows, depth), &mut a);
                let mut b = vec![f32::NAN; panels.columns_len(depth, lanes)];
                panels.pack_columns(Mat::new(&q, lanes, depth).t(), depth, &mut b);
                let mut s = vec![f32::NAN; rows * lanes];
                panels.by_panels(&a, &b, rows, 2.0, &mut s);
                for (at, &got) in s.iter().enumerate() {
                    let (i, j) = (at / lanes, at % lanes);
                    let want: f32 = (0..depth).map(|k| 2.0 * x[i * depth + k] * q[j * depth + k]).sum();
                    assert_eq!(got, want, "{level:?}: product by panels at [{i}, {j}]");
                }
                let s: Vec<f32> = s.iter().map(|s| s % 7.0).collect();
                let mut b = vec![f32::NAN; panels.columns_len(rows, columns)];
                panels.pack_columns(Mat::new(&v, rows, columns), rows, &mut b);
                let mut c = vec![1.0; lanes * columns];
                panels.by_lanes(&s, (&b, rows * lanes), columns, (0.5, true), &mut c);
                for (at, &got) in c.iter().enumerate() {
                    let (i, j) = (at / columns, at % columns);
                    let want: f32 = (0..rows).map(|k| 0.5 * s[k * lanes + i] * v[k * columns + j]).sum();
                    assert_eq!(got, want + 1.0, "{level:?}: product by lanes at [{i}, {j}]");
                }
                let w = numbers(lanes * columns, 4);
                let mut b = vec![f32::NAN; panels.columns_len(lanes, columns)];
                panels.pack_columns(Mat::new(&w, lanes, columns), lanes, &mut b);
                let mut c = vec![1.0; rows * columns];
                panels.by_rows(&s, &b, columns, 0.5, &mut c);
                for (at, &got) in c.iter().enumerate() {
                    let (i, j) = (at / columns, at % columns);
                    let want: f32 = (0..lanes).map(|k| 0.5 * s[i * lanes + k] * w[k * columns + j]).sum();
                    assert_eq!(got, want + 1.0, "{level:?}: product by rows at [{i}, {j}]");
                }
            }
        });
    }
}
