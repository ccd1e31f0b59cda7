//! Arithmetic over slices of f32, compiled for each instruction set: special functions, their derivatives, sums in a fixed
//! order, softmax, conversions and the AdamW update.
//!
//! Everything here runs on the calling thread; split long slices with [`threads`](crate::backend::cpu::threads). Where two
//! slices differ in length, the shorter one counts. NaN and infinities come out as the formula says.
//!
//! | function | largest error, units in the last place | found |
//! |---|---|---|
//! | [`exp`], [`ln`], [`erf`], [`tanh`] | 2 | 1.02, 0.77, 1.52, 1.50 |
//! | [`sigmoid`], [`silu`] | 2.5, 3 | 2.12, 2.85 |
//! | [`selu`], [`mish`] | 3, 5 | 1.69, 3.77 |
//! | [`gelu`], [`gelu_tanh`] | 6 | 5.3 at −5.1, 3.4 |
//! | derivatives | 6 of the larger of their two terms (they cross zero) | 4.6 |

mod adamw;
mod convert;
mod map;
pub(crate) mod math;
mod sums;

#[cfg(test)]
mod tests;

pub use adamw::{Adamw, adamw};
pub use convert::{narrow_bf16, narrow_f16, widen_bf16, widen_f16};
pub use map::*;
pub use sums::*;
