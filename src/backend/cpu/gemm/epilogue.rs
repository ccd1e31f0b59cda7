//! What follows a product while it is still in the cache: bias, copy of the pre-activation, activation.

use crate::backend::cpu::vector;

/// An elementwise function after a product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activation {
    /// x.
    #[default]
    None,
    /// max(x, 0); NaN stays.
    Relu,
    /// x / (1 + exp(−x)).
    Silu,
    /// x Φ(x), with the error function.
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    GeluTanh,
}

impl Activation {
    /// Applies the function to every value.
    pub fn apply(self, x: &mut [f32]) {
        match self {
            Activation::None => {}
            Activation::Relu => vector::relu_in_place(x),
            Activation::Silu => vector::silu_in_place(x),
            Activation::Gelu => vector::gelu_in_place(x),
            Activation::GeluTanh => vector::gelu_tanh_in_place(x),
        }
    }
}

/// The epilogue of a block: `c` and `pre` are its rows, `col` the column where they begin.
pub(super) fn finish(
    c: &mut [&mut [f32]],
    pre: &mut [&mut [f32]],
    cols: std::ops::Range<usize>,
    bias: Option<&[f32]>,
    act: Activation,
) {
    if bias.is_none() && act == Activation::None && pre.is_empty() {
        return;
    }
    let mut pre = pre.iter_mut();
    for row in c {
        let row = &mut row[cols.clone()];
        if let Some(bias) = bias {
            vector::add_in_place(&bias[cols.clone()], row);
        }
        if let Some(pre) = pre.next() {
            pre[cols.clone()].copy_from_slice(row);
        }
        act.apply(row);
    }
}
