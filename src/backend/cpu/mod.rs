//! The CPU's arithmetic over plain slices: matrix products, vector functions, threads.
//!
//! | module | what |
//! |---|---|
//! | [`gemm`] | `c = activation(alpha·A·B [+ c] [+ bias])`, any strides, f32, bf16 and f16 inputs, batches |
//! | [`vector`] | exp, tanh, erf, gelu … and their gradients, sums in fixed order, softmax, AdamW, conversions |
//! | [`threads`] | rows split over the pool; results have the same bits for any number of threads |
//! | [`dispatch`] | plain loops compiled for AVX-512, AVX2 and the baseline, picked at run time |
//! | [`rates`] | what this machine reaches: copy and product rates, for floors |
//!
//! An operator takes [`threads::rows`] to cut its rows and [`vector`] inside a piece; its own loops become vector code
//! with the macro of [`dispatch`]:
//!
//! ```
//! use perfrun::backend::cpu::threads::{Rows, RowsMut, rows};
//! use perfrun::backend::cpu::vector;
//! let x = vec![0.5f32; 1000];
//! let mut y = vec![0.0f32; 1000];
//! // About 40 operations an element: see `threads::PIECE`.
//! rows(1000, 40, (Rows::new(&x, 1), RowsMut::new(&mut y, 1)), |_, (x, y)| vector::gelu(x.data, y.data));
//! assert!((y[0] - 0.345_731_23).abs() < 1e-6);
//! ```

pub mod dispatch;
pub mod gemm;
pub mod rates;
pub mod threads;
pub mod vector;
