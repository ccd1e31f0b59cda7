//! The plain text: three loops.

use super::{Matmul, Size};
use crate::ops::operator::{RefBackward, RefForward, Reference, ReferenceGrad};
use crate::scalar::Scalar;
use crate::tensor::Spec;

impl Matmul {
    fn size_of<S>(&self, x: &[crate::ops::operator::RefInput<'_, S>]) -> Size {
        let specs: Vec<&Spec> = x.iter().map(|x| x.spec).collect();
        self.size(&specs)
    }

    /// Where w[k, n] lies.
    fn at(&self, s: Size, k: usize, n: usize) -> usize {
        if self.transpose_w { n * s.k + k } else { k * s.n + n }
    }
}

impl Reference for Matmul {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let s = self.size_of(io.x);
        let (x, w, bias, y) = (io.x[0], io.x[1], io.x.get(2), &mut *io.y[0]);
        for r in 0..s.rows {
            for n in 0..s.n {
                let mut z = S::zero();
                for k in 0..s.k {
                    z = z.mac(x[r * s.k + k], w[self.at(s, k, n)]);
                }
                if let Some(bias) = bias {
                    z = z + bias[n];
                }
                // An unfused product stores what the activation reads.
                let z = z.stored();
                if let Some(saved) = io.saved.first_mut() {
                    saved[r * s.n + n] = z;
                }
                y[r * s.n + n] = self.activation.of(z);
            }
        }
    }
}

impl ReferenceGrad for Matmul {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let s = self.size_of(io.x);
        if io.wanted().is_empty() {
            return;
        }
        let argument = io.saved.first().copied().unwrap_or(io.y[0]);
        let dz = |(i, &dy): (usize, &S)| self.activation.gradient(argument.get(i).copied().unwrap_or(dy), dy).stored();
        let dz: Vec<S> = io.dy[0].iter().enumerate().map(dz).collect();
        let (x, w) = (io.x[0], io.x[1]);
        for (i, dx) in io.dx.iter_mut().enumerate() {
            let Some(dx) = dx else { continue };
            for r in 0..s.rows {
                for n in 0..s.n {
                    let g = dz[r * s.n + n];
                    match i {
                        0 => (0..s.k).for_each(|k| dx[r * s.k + k] = dx[r * s.k + k].mac(g, w[self.at(s, k, n)])),
                        1 => (0..s.k).for_each(|k| {
                            let at = self.at(s, k, n);
                            dx[at] = dx[at].mac(g, x[r * s.k + k]);
                        }),
                        _ => dx[n] = dx[n] + g,
                    }
                }
            }
        }
    }
}
