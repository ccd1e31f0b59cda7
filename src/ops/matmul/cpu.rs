//! The CPU path: three packed products, parameter gradients added in place.

use std::borrow::Cow;

use super::{Activation, Matmul, Size};
use crate::backend::Exec;
use crate::backend::cpu::dispatch::wide;
use crate::backend::cpu::gemm::{self, How, Mat, MatMut, Source};
use crate::backend::cpu::threads::{self, Rows, RowsMut};
use crate::backend::cpu::vector;
use crate::error::Result;
use crate::ops::host;
use crate::ops::operator::{Backward, Forward};
use crate::tensor::{Spec, View};

/// What the derivative of an activation costs, as [`threads::PIECE`] counts.
const DERIVATIVE: usize = 48;
/// Columns that one piece of a column sum takes: a few cache lines of each row.
const STRIP: usize = 64;

impl Activation {
    fn gemm(self) -> gemm::Activation {
        match self {
            Activation::None => gemm::Activation::None,
            Activation::Gelu => gemm::Activation::Gelu,
            Activation::GeluTanh => gemm::Activation::GeluTanh,
            Activation::Relu => gemm::Activation::Relu,
            Activation::Silu => gemm::Activation::Silu,
        }
    }

    /// `dz = dy · f′`, where `x` is what [`Activation::gradient`] wants.
    fn backward(self, x: &[f32], dy: &[f32], dz: &mut [f32]) {
        match self {
            Activation::None => dz.copy_from_slice(dy),
            Activation::Gelu => vector::gelu_backward(x, dy, dz, false),
            Activation::GeluTanh => vector::gelu_tanh_backward(x, dy, dz, false),
            Activation::Relu => relu_backward(x, dy, dz),
            Activation::Silu => vector::silu_backward(x, dy, dz, false),
        }
    }
}

wide! {
    fn relu_backward<F>(y: &[f32], dy: &[f32], dz: &mut [f32]) {
        for ((dz, &dy), &y) in dz.iter_mut().zip(dy).zip(y) {
            let below = if y <= 0.0 { 0.0 } else { y };
            *dz = if y > 0.0 { dy } else { below };
        }
    }
}

impl Matmul {
    /// w as a `[K, N]` matrix.
    fn weight<'a>(&self, s: Size, w: Source<'a>) -> Mat<'a> {
        if self.transpose_w { Mat::new(w, s.n, s.k).t() } else { Mat::new(w, s.k, s.n) }
    }
}

pub(super) fn forward(op: &Matmul, exec: &Exec, io: Forward<'_>) -> Result<()> {
    let specs: Vec<&Spec> = io.x.iter().map(View::spec).collect();
    let s = op.size(&specs);
    let x = Mat::new(host::source(&io.x[0])?, s.rows, s.k);
    let w = op.weight(s, host::source(&io.x[1])?);
    let bias = io.x.get(2).map(host::floats).transpose()?;
    let pre = match io.saved.first_mut() {
        Some(saved) => Some(MatMut::new(saved.f32()?, s.rows, s.n)),
        None => None,
    };
    let how = How { bias: bias.as_deref(), activation: op.activation.gemm(), pre, ..How::default() };
    host::write(exec, &mut io.y[0], |y| gemm::matmul(x, w, MatMut::new(y, s.rows, s.n), how))
}

pub(super) fn backward(op: &Matmul, exec: &Exec, io: Backward<'_>) -> Result<()> {
    let s = op.size(io.specs);
    let Some(dy) = io.dy.first().and_then(Option::as_ref) else {
        // No gradient came: what is set is zero, what is added stays.
        return io.dx.iter_mut().try_for_each(|slot| {
            host::accumulate(exec, slot, |d, add| {
                if !add {
                    d.fill(0.0);
                }
                Ok(())
            })
        });
    };
    if op.activation == Activation::None {
        return products(op, s, exec, host::source(dy)?, io);
    }
    let argument = match (op.activation.keeps_input(), io.saved.first(), io.y.first().and_then(Option::as_ref)) {
        (true, Some(z), _) => Cow::Borrowed(z.f32()?),
        (false, _, Some(y)) => host::floats(y)?,
        _ => unreachable!("`keeps` and `infer` name what the derivative reads"),
    };
    let dy = host::floats(dy)?;
    host::scratch(exec, s.rows * s.n, |dz| {
        let parts = (Rows::new(&argument, 1), Rows::new(&dy, 1), RowsMut::new(dz, 1));
        threads::rows(s.rows * s.n, DERIVATIVE, parts, |_, (x, dy, dz)| {
            op.activation.backward(x.data, dy.data, dz.data)
        });
        products(op, s, exec, Source::F32(dz), io)
    })
}

/// dx = dz·wᵀ, dw = xᵀ·dz, dbias = Σ dz.
fn products(op: &Matmul, s: Size, exec: &Exec, dz: Source<'_>, io: Backward<'_>) -> Result<()> {
    let how = |add| How { add, ..How::default() };
    let g = Mat::new(dz, s.rows, s.n);
    for (i, slot) in io.dx.iter_mut().enumerate().filter(|(_, slot)| slot.is_wanted()) {
        match (i, io.x) {
            (0, [_, Some(w), ..]) => {
                let w = op.weight(s, host::source(w)?);
                host::accumulate(exec, slot, |d, add| gemm::matmul(g, w.t(), MatMut::new(d, s.rows, s.k), how(add)))?;
            }
            (1, [Some(x), ..]) => {
                let x = Mat::new(host::source(x)?, s.rows, s.k);
                host::accumulate(exec, slot, |d, add| {
                    if op.transpose_w {
                        gemm::matmul(g.t(), x, MatMut::new(d, s.n, s.k), how(add))
                    } else {
                        gemm::matmul(x.t(), g, MatMut::new(d, s.k, s.n), how(add))
                    }
                })?;
            }
            (2, _) => {
                let widened;
                let dz = match dz {
                    Source::F32(dz) => dz,
                    Source::Bf16(dz) => {
                        widened = dz.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
                        &widened
                    }
                    Source::F16(dz) => {
                        widened = dz.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
                        &widened
                    }
                };
                host::accumulate(exec, slot, |d, add| {
                    let strips = d.chunks_mut(STRIP).enumerate().collect();
                    threads::each(4 * s.rows * s.n, strips, |(i, to)| {
                        vector::column_sums(dz, s.n, i * STRIP, to, add);
                    });
                    Ok(())
                })?;
            }
            _ => unreachable!("`keeps` names what the gradients read"),
        }
    }
    Ok(())
}
