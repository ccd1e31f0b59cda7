//! Arithmetic of 16-bit floats, single and in pairs: computed so that it is rounded once.

use super::float::{add_odd, exact1, extreme};
use super::op::{F1, F2, Mode, Number};
use super::units::formats::{Format, Rounding, narrow, widen};
use super::warp::Lanes32;

fn format(n: Number) -> Format {
    if matches!(n, Number::Bf16 | Number::Bf16x2) { Format::Bf16 } else { Format::F16 }
}

fn is_pair(n: Number) -> bool {
    matches!(n, Number::F16x2 | Number::Bf16x2)
}

/// The two numbers of a register; the second is zero if there is one.
pub(super) fn widen_pair(n: Number, bits: u32) -> [f32; 2] {
    let high = if is_pair(n) { bits >> 16 } else { 0 };
    [widen(bits & 0xffff, format(n)), widen(high, format(n))]
}

/// Applies `f` to the numbers of a register.
fn each(n: Number, mode: Mode, words: [u32; 3], f: impl Fn([f64; 3]) -> f64) -> u32 {
    let half = |shift: u32| {
        let x = words.map(|w| {
            let x = widen(w >> shift & 0xffff, format(n));
            f64::from(if mode.ftz && x.abs() < f32::from_bits(0x3880_0000) { 0f32.copysign(x) } else { x })
        });
        let mut bits = narrow(f(x), format(n), Rounding::Nearest, false, mode.relu);
        if mode.ftz && bits & 0x7c00 == 0 {
            bits &= 0x8000;
        }
        if mode.sat {
            let x = widen(bits, format(n));
            bits = if x > 0.0 { narrow(f64::from(x.min(1.0)), format(n), Rounding::Nearest, false, false) } else { 0 };
        }
        bits & 0xffff
    };
    if is_pair(n) { half(0) | half(16) << 16 } else { half(0) }
}

/// A function of one number, or of each of a pair.
pub(super) fn half1(n: Number, f: F1, mode: u8, a: &Lanes32) -> Lanes32 {
    let mode = Mode::unpack(mode);
    match f {
        F1::Neg => a.map(|a| each(n, Mode::default(), [a, 0, 0], |[x, ..]| -x)),
        F1::Abs => a.map(|a| each(n, Mode::default(), [a, 0, 0], |[x, ..]| x.abs())),
        _ => a.map(|a| each(n, mode, [a, 0, 0], |[x, ..]| exact1(f, x))),
    }
}

/// A function of two numbers, or of each of two pairs.
pub(super) fn half2(n: Number, f: F2, mode: u8, a: &Lanes32, b: &Lanes32) -> Lanes32 {
    // `relu` and `xorsign` share a bit; of functions of two numbers only min and max have either.
    let mut mode = Mode::unpack(mode);
    mode.relu = false;
    std::array::from_fn(|l| {
        each(n, mode, [a[l], b[l], 0], |[a, b, _]| match f {
            F2::Add => add_odd(a, b),
            F2::Sub => add_odd(a, -b),
            F2::Mul => a * b,
            F2::Div => a / b,
            F2::Min => f64::from(extreme(a as f32, b as f32, mode, true)),
            F2::Max => f64::from(extreme(a as f32, b as f32, mode, false)),
            F2::Copysign => b.copysign(a),
        })
    })
}

/// `a·b + c` of each number, rounded once.
pub(super) fn half_fma(n: Number, mode: u8, a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    let mode = Mode::unpack(mode);
    std::array::from_fn(|l| each(n, mode, [a[l], b[l], c[l]], |[a, b, c]| add_odd(a * b, c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_computed_half_by_half() {
        let ones = [0x3f80_3f80; 32];
        let twos = [0x4000_bf80; 32];
        // 1·2 + 1 = 3 above, 1·(-1) + 1 = 0 below.
        assert_eq!(half_fma(Number::Bf16x2, 0, &ones, &twos, &ones)[3], 0x4040_0000);
        assert_eq!(
            half2(Number::F16, F2::Add, 0, &[0x3c00; 32], &[0x1000; 32])[0],
            0x3c00,
            "1 + 2^-11 is half way: even"
        );
        assert_eq!(half1(Number::F16x2, F1::Neg, 0, &[0x3c00_bc00; 32])[0], 0xbc00_3c00);
        assert_eq!(half1(Number::F16x2, F1::Abs, 0, &[0x8001_ff21; 32])[0], 0x0001_7fff);
    }
}
