//! Functions of one element each.

use super::math;
use crate::backend::cpu::dispatch::wide;

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident, $in_place:ident, $backward:ident, $function:ident, $slope:ident;)+) => {
        wide! {$(
            $(#[$doc])*
            pub fn $name<F>(x: &[f32], y: &mut [f32]) {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = math::$function::<F>(x);
                }
            }

            /// The same, over its argument.
            pub fn $in_place<F>(x: &mut [f32]) {
                for x in x {
                    *x = math::$function::<F>(*x);
                }
            }

            /// Its gradient: `dx = dy · f′(x)`, or added to `dx`.
            pub fn $backward<F>(x: &[f32], dy: &[f32], dx: &mut [f32], add: bool) {
                if add {
                    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                        *dx = F::fma(dy, math::$slope::<F>(x), *dx);
                    }
                } else {
                    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                        *dx = dy * math::$slope::<F>(x);
                    }
                }
            }
        )+}
    };
}

unary! {
    /// `y = 1 / (1 + exp(−x))`.
    sigmoid, sigmoid_in_place, sigmoid_backward, sigmoid, sigmoid_slope;
    /// `y = x / (1 + exp(−x))`.
    silu, silu_in_place, silu_backward, silu, silu_slope;
    /// `y = x Φ(x) = x (1 + erf(x/√2)) / 2`.
    gelu, gelu_in_place, gelu_backward, gelu, gelu_slope;
    /// `y = x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`.
    gelu_tanh, gelu_tanh_in_place, gelu_tanh_backward, gelu_tanh, gelu_tanh_slope;
    /// `y = λx` for x > 0, else `λα(exp(x) − 1)`.
    selu, selu_in_place, selu_backward, selu, selu_slope;
    /// `y = x tanh(ln(1 + exp(x)))`.
    mish, mish_in_place, mish_backward, mish, mish_slope;
    /// `y = max(x, 0)`; NaN stays NaN.
    relu, relu_in_place, relu_backward, relu, relu_slope;
}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident, $in_place:ident;)+) => {
        wide! {$(
            $(#[$doc])*
            pub fn $name<F>(x: &[f32], y: &mut [f32]) {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = math::$name::<F>(x);
                }
            }

            /// The same, over its argument.
            pub fn $in_place<F>(x: &mut [f32]) {
                for x in x {
                    *x = math::$name::<F>(*x);
                }
            }
        )+}
    };
}

plain! {
    /// `y = exp(x)`.
    exp, exp_in_place;
    /// `y = ln(x)`.
    ln, ln_in_place;
    /// `y = tanh(x)`.
    tanh, tanh_in_place;
    /// `y = erf(x)`.
    erf, erf_in_place;
}

wide! {
    /// `dx = dy (1 − y²)` for `y = tanh(x)`, or added to `dx`.
    pub fn tanh_backward<F>(y: &[f32], dy: &[f32], dx: &mut [f32], add: bool) {
        for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
            let g = dy * F::fma(-y, y, 1.0);
            *dx = if add { *dx + g } else { g };
        }
    }

    /// `z = x + y`.
    pub fn add<F>(x: &[f32], y: &[f32], z: &mut [f32]) {
        for ((z, &x), &y) in z.iter_mut().zip(x).zip(y) {
            *z = x + y;
        }
    }

    /// `y = y + x`.
    pub fn add_in_place<F>(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    /// `z = x · y`, element by element.
    pub fn mul<F>(x: &[f32], y: &[f32], z: &mut [f32]) {
        for ((z, &x), &y) in z.iter_mut().zip(x).zip(y) {
            *z = x * y;
        }
    }

    /// `y = y · x`, element by element.
    pub fn mul_in_place<F>(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y *= x;
        }
    }

    /// `z = z + x · y`, element by element, rounded once.
    pub fn mul_add<F>(x: &[f32], y: &[f32], z: &mut [f32]) {
        for ((z, &x), &y) in z.iter_mut().zip(x).zip(y) {
            *z = F::fma(x, y, *z);
        }
    }

    /// `y = a · y`.
    pub fn scale_in_place<F>(a: f32, y: &mut [f32]) {
        for y in y {
            *y *= a;
        }
    }

    /// `y = a · x`.
    pub fn scale<F>(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = a * x;
        }
    }

    /// `y = y + a · x`, rounded once.
    pub fn axpy<F>(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = F::fma(a, x, *y);
        }
    }

    /// `y = a · x + b · y`.
    pub fn scale_add<F>(a: f32, x: &[f32], b: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = F::fma(a, x, b * *y);
        }
    }

    /// `y = silu(gate) · up`, the gate of a SwiGLU.
    pub fn swiglu<F>(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = math::silu::<F>(g) * u;
        }
    }
}
