//! Between f32 and the two half-width types: to the nearest, ties to even; NaN stays NaN.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::backend::cpu::dispatch::wide;

wide! {
    /// bf16 to f32, exact.
    pub fn widen_bf16<F>(x: &[bf16], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }

    /// f32 to the nearest bf16. A NaN keeps its sign and upper bits and becomes quiet.
    pub fn narrow_bf16<F>(x: &[f32], y: &mut [bf16]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *y = bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16);
        }
    }
}

/// f16 to f32, exact.
pub fn widen_f16(x: &[f16], y: &mut [f32]) {
    let n = x.len().min(y.len());
    x[..n].convert_to_f32_slice(&mut y[..n]);
}

/// f32 to the nearest f16; beyond 65504 and a half unit, infinity.
pub fn narrow_f16(x: &[f32], y: &mut [f16]) {
    let n = x.len().min(y.len());
    y[..n].convert_from_f32_slice(&x[..n]);
}
