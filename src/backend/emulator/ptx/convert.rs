//! `cvt`: between all number types.

use super::op::{Mode, Round};
use super::syntax::Type;
use super::units::formats::{Format, Rounding, narrow, widen};
use super::warp::{Lanes32, Lanes64};

/// A number on its way: integers keep all bits, floats go through f64, which holds every type exactly.
#[derive(Clone, Copy, Debug)]
enum Value {
    Integer(i128),
    Float(f64),
}

fn rounding(round: Round) -> Rounding {
    match round {
        Round::Nearest => Rounding::Nearest,
        Round::Zero => Rounding::Zero,
        Round::Down => Rounding::Down,
        Round::Up => Rounding::Up,
        Round::Away => Rounding::NearestAway,
    }
}

fn flush32(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn read(from: Type, bits: u64, mode: Mode) -> Value {
    match from {
        Type::S8 => Value::Integer(i128::from(bits as i8)),
        Type::S16 => Value::Integer(i128::from(bits as i16)),
        Type::S32 => Value::Integer(i128::from(bits as i32)),
        Type::S64 => Value::Integer(i128::from(bits as i64)),
        Type::U8 | Type::B8 => Value::Integer(i128::from(bits as u8)),
        Type::U16 | Type::B16 => Value::Integer(i128::from(bits as u16)),
        Type::U32 | Type::B32 => Value::Integer(i128::from(bits as u32)),
        Type::F32 | Type::Tf32 => {
            let x = f32::from_bits(bits as u32);
            Value::Float(f64::from(if mode.ftz { flush32(x) } else { x }))
        }
        Type::F64 => Value::Float(f64::from_bits(bits)),
        Type::F16 => Value::Float(f64::from(widen(bits as u32 & 0xffff, Format::F16))),
        Type::Bf16 => Value::Float(f64::from(widen(bits as u32 & 0xffff, Format::Bf16))),
        _ => Value::Integer(i128::from(bits)),
    }
}

fn round_integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
        Round::Away => x.round(),
    }
}

/// Range of an integer type.
fn range(to: Type) -> (i128, i128) {
    let bits = 8 * to.bytes() as u32;
    if to.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn to_integer(value: Value, to: Type, mode: Mode) -> u64 {
    let (least, most) = range(to);
    match value {
        Value::Integer(n) if mode.sat => n.clamp(least, most) as u64,
        Value::Integer(n) => n as u64,
        // Floats are clamped always, NaN becomes zero, except for 64-bit results of which hardware sets the top bit.
        Value::Float(x) if x.is_nan() => {
            if to.bytes() == 8 {
                1 << 63
            } else {
                0
            }
        }
        Value::Float(x) => (round_integral(x, mode.round) as i128).clamp(least, most) as u64,
    }
}

/// An integer or f64 as f32, rounded once.
fn to_f32(value: Value, mode: Mode) -> f32 {
    let x = match value {
        // Up to 64 bits: past 53 an f64 would round first.
        Value::Integer(n) => return integer_to_float(n, mode.round, 24) as f32,
        Value::Float(x) => x,
    };
    let x = if mode.integral { round_integral(x, mode.round) } else { x };
    if x.is_nan() {
        return f32::from_bits(0x7fff_ffff);
    }
    f32::from_bits(narrow(x, Format::F32, rounding(mode.round), false, mode.relu))
}

/// An integer rounded to `places` binary places; f64 holds the result exactly.
fn integer_to_float(n: i128, round: Round, places: u32) -> f64 {
    let magnitude = n.unsigned_abs();
    let len = 128 - magnitude.leading_zeros();
    if len <= places {
        return n as f64;
    }
    let shift = len - places;
    let (kept, rest, half) = (magnitude >> shift, magnitude & ((1 << shift) - 1), 1u128 << (shift - 1));
    let up = match round {
        Round::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Round::Away => rest >= half,
        Round::Zero => false,
        Round::Down => n < 0 && rest > 0,
        Round::Up => n > 0 && rest > 0,
    };
    let value = ((kept + u128::from(up)) << shift) as f64;
    if n < 0 { -value } else { value }
}

fn to_f64(value: Value, mode: Mode) -> f64 {
    match value {
        Value::Integer(n) => integer_to_float(n, mode.round, 53),
        Value::Float(x) if mode.integral => round_integral(x, mode.round),
        Value::Float(x) => x,
    }
}

fn is_nan_bf16(bits: u64) -> bool {
    bits & 0x7fff > 0x7f80
}

fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// A 16-bit float of `value`.
fn to_half(value: Value, to: Format, mode: Mode) -> u32 {
    let x = match value {
        Value::Integer(n) => n as f64,
        Value::Float(x) if mode.integral => round_integral(x, mode.round),
        Value::Float(x) => x,
    };
    let x = if mode.sat && !(x > 0.0) {
        0.0
    } else if mode.sat {
        x.min(1.0)
    } else {
        x
    };
    narrow(x, to, rounding(mode.round), mode.satfinite, mode.relu)
}

/// One conversion: `b` is the lower half of a packed result.
pub(super) fn convert(to: Type, from: Type, mode: Mode, a: u64, b: u64) -> u64 {
    let pair = |format: Format, bits: u32| {
        let [high, low] = [a, b].map(|x| u64::from(to_half(read(from, x, mode), format, mode)));
        high << bits | low
    };
    match (to, from) {
        (Type::Bf16x2, _) => pair(Format::Bf16, 16),
        (Type::F16x2, Type::E4m3x2 | Type::E5m2x2) => {
            let format = if from == Type::E4m3x2 { Format::E4m3 } else { Format::E5m2 };
            let half = |byte: u64| {
                let x = f64::from(widen(byte as u32 & 0xff, format));
                u64::from(narrow(x, Format::F16, Rounding::Nearest, false, mode.relu))
            };
            half(a >> 8) << 16 | half(a)
        }
        (Type::F16x2, _) => pair(Format::F16, 16),
        (Type::E4m3x2 | Type::E5m2x2, _) => {
            let format = if to == Type::E4m3x2 { Format::E4m3 } else { Format::E5m2 };
            if matches!(from, Type::F16x2 | Type::Bf16x2) {
                let source = if from == Type::F16x2 { Format::F16 } else { Format::Bf16 };
                let half = |bits: u64| {
                    let x = f64::from(widen(bits as u32 & 0xffff, source));
                    u64::from(narrow(x, format, Rounding::Nearest, true, mode.relu))
                };
                return half(a >> 16) << 8 | half(a);
            }
            pair(format, 8)
        }
        // What hardware makes of NaN is what its shifts leave.
        (Type::Tf32, Type::F32) if f32::from_bits(a as u32).is_nan() && !mode.relu => a & 0xffff_e000,
        (Type::F32, Type::Bf16) if is_nan_bf16(a) && !mode.sat => (a & 0xffff) << 16,
        (Type::F32, Type::F64) if f64::from_bits(a).is_nan() && !mode.sat => {
            a >> 32 & 0x8000_0000 | 0x7fc0_0000 | a >> 29 & 0x007f_ffff
        }
        (Type::Tf32, _) => match read(from, a, mode) {
            Value::Float(x) => u64::from(narrow(x, Format::Tf32, rounding(mode.round), mode.satfinite, mode.relu)),
            Value::Integer(n) => n as u64,
        },
        (Type::F16, _) => u64::from(to_half(read(from, a, mode), Format::F16, mode)),
        (Type::Bf16, _) => u64::from(to_half(read(from, a, mode), Format::Bf16, mode)),
        (Type::F32, _) => {
            let x = to_f32(read(from, a, mode), mode);
            let x = if mode.ftz { flush32(x) } else { x };
            u64::from(if mode.sat { saturate(x) } else { x }.to_bits())
        }
        (Type::F64, _) => {
            let x = to_f64(read(from, a, mode), mode);
            if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { x.to_bits() }
        }
        (to, _) => {
            let bits = to_integer(read(from, a, mode), to, mode);
            // A signed result fills the register that holds it.
            match to {
                Type::S8 => bits as i8 as i32 as u32 as u64,
                Type::S16 => bits & 0xffff,
                Type::U8 | Type::B8 => bits & 0xff,
                Type::U16 | Type::B16 => bits & 0xffff,
                Type::S32 | Type::U32 | Type::B32 => bits & 0xffff_ffff,
                _ => bits,
            }
        }
    }
}

/// The conversions to 64 bits that addresses are made of.
pub(super) fn extended(from: Type, a: &Lanes32) -> Option<Lanes64> {
    Some(match from {
        Type::U32 | Type::B32 => a.map(u64::from),
        Type::S32 => a.map(|x| i64::from(x as i32) as u64),
        _ => return None,
    })
}

/// The conversions between 32-bit rows that kernels are full of, without flags; the rest is [`convert`]'s.
pub(super) fn common(to: Type, from: Type, mode: Mode, a: &Lanes32, b: &Lanes32) -> Option<Lanes32> {
    let toward_zero = Mode { round: Round::Zero, integral: true, ..Mode::default() };
    if mode == toward_zero {
        return Some(match (to, from) {
            // Clamped, NaN to zero: what the language's own conversion does.
            (Type::S32, Type::F32) => a.map(|x| f32::from_bits(x) as i32 as u32),
            (Type::U32, Type::F32) => a.map(|x| f32::from_bits(x) as u32),
            _ => return None,
        });
    }
    if mode != Mode::default() {
        return None;
    }
    let float = |x: u32| f32::from_bits(x);
    Some(match (to, from) {
        (Type::F32, Type::Bf16) => a.map(|x| x << 16),
        (Type::F32, Type::F16) => a.map(|x| canonical(half::f16::from_bits(x as u16).to_f32().to_bits())),
        (Type::Bf16, Type::F32) => a.map(|x| bf16(float(x))),
        (Type::F16, Type::F32) => a.map(|x| f16(float(x))),
        (Type::Bf16x2, Type::F32) => std::array::from_fn(|l| bf16(float(a[l])) << 16 | bf16(float(b[l]))),
        (Type::F16x2, Type::F32) => std::array::from_fn(|l| f16(float(a[l])) << 16 | f16(float(b[l]))),
        (Type::F32, Type::S32) => a.map(|x| (x as i32 as f32).to_bits()),
        (Type::F32, Type::U32) => a.map(|x| (x as f32).to_bits()),
        (Type::U32 | Type::S32 | Type::B32, Type::U16 | Type::B16) => a.map(|x| x & 0xffff),
        (Type::U32 | Type::S32 | Type::B32, Type::U8 | Type::B8) => a.map(|x| x & 0xff),
        (Type::U32 | Type::S32 | Type::B32, Type::S16) => a.map(|x| i32::from(x as i16) as u32),
        (Type::U16 | Type::S16 | Type::B16, Type::U32 | Type::S32 | Type::B32) => a.map(|x| x & 0xffff),
        _ => return None,
    })
}

fn canonical(x: u32) -> u32 {
    if x & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { x }
}

/// To nearest, ties to even: half of the last place, less one unless that is odd, carries into it.
fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fff } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16 }
}

fn f16(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { u32::from(half::f16::from_f32(x).to_bits()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(to: Type, from: Type, mode: Mode, a: u64) -> u64 {
        convert(to, from, mode, a, 0)
    }

    #[test]
    fn integers_are_cut_extended_and_saturated() {
        let plain = Mode::default();
        assert_eq!(one(Type::S64, Type::S32, plain, 0xffff_fff0), 0xffff_ffff_ffff_fff0);
        assert_eq!(one(Type::U64, Type::U32, plain, 0xffff_fff0), 0xffff_fff0);
        assert_eq!(one(Type::U16, Type::U64, plain, 0x12345), 0x2345);
        let sat = Mode { sat: true, ..plain };
        assert_eq!(one(Type::U8, Type::S32, sat, 300), 255);
        assert_eq!(one(Type::U8, Type::S32, sat, 0xffff_ffff), 0);
    }

    #[test]
    fn floats_to_integers_round_as_told_and_clamp() {
        let zero = Mode { round: Round::Zero, integral: true, ..Mode::default() };
        let bits = |x: f32| u64::from(x.to_bits());
        assert_eq!(one(Type::S32, Type::F32, zero, bits(-2.7)), 0xffff_fffe);
        assert_eq!(one(Type::S32, Type::F32, zero, bits(1e20)), 0x7fff_ffff);
        assert_eq!(one(Type::U32, Type::F32, zero, bits(-1.0)), 0);
        assert_eq!(one(Type::U32, Type::F32, zero, bits(f32::NAN)), 0);
        let near = Mode { integral: true, ..Mode::default() };
        assert_eq!(one(Type::S32, Type::F32, near, bits(2.5)), 2);
        assert_eq!(one(Type::F32, Type::F32, near, bits(2.5)), bits(2.0));
    }

    #[test]
    fn large_integers_round_once() {
        let n = (1u64 << 60) + (1 << 36) + 1;
        assert_eq!(one(Type::F32, Type::U64, Mode::default(), n), u64::from((n as f32).to_bits()));
        assert_eq!(one(Type::F64, Type::S64, Mode::default(), u64::MAX), (-1f64).to_bits());
        let up = Mode { round: Round::Up, ..Mode::default() };
        assert_eq!(one(Type::F32, Type::U32, up, 0x0100_0001), u64::from(16_777_218f32.to_bits()));
    }

    #[test]
    fn common_conversions_are_the_general_ones() {
        let values: Vec<u32> = (0..4096u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ i << 7).chain([0, 1 << 31]).collect();
        let special = [f32::NAN, f32::INFINITY, -0.0, 65520.0, 65519.0, 1e-8, 5.9e-8, 3.4e38, -1e-41].map(f32::to_bits);
        let zero = Mode { round: Round::Zero, integral: true, ..Mode::default() };
        let pairs = [
            (Type::F32, Type::Bf16, Mode::default()),
            (Type::F32, Type::F16, Mode::default()),
            (Type::Bf16, Type::F32, Mode::default()),
            (Type::F16, Type::F32, Mode::default()),
            (Type::Bf16x2, Type::F32, Mode::default()),
            (Type::F16x2, Type::F32, Mode::default()),
            (Type::F32, Type::S32, Mode::default()),
            (Type::F32, Type::U32, Mode::default()),
            (Type::U32, Type::U16, Mode::default()),
            (Type::S32, Type::S16, Mode::default()),
            (Type::U16, Type::U32, Mode::default()),
            (Type::S32, Type::F32, zero),
            (Type::U32, Type::F32, zero),
        ];
        for (to, from, mode) in pairs {
            for &x in values.iter().chain(&special) {
                let fast = common(to, from, mode, &[x; 32], &[x ^ 1; 32]).unwrap()[7];
                let plain = convert(to, from, mode, u64::from(x), u64::from(x ^ 1));
                assert_eq!(u64::from(fast), plain, "{to:?} of {from:?} {x:#x}");
            }
        }
    }

    #[test]
    fn packed_results_have_the_first_source_above() {
        let bits = |x: f32| u64::from(x.to_bits());
        let packed = convert(Type::Bf16x2, Type::F32, Mode::default(), bits(1.0), bits(2.0));
        assert_eq!(packed, 0x3f80_4000);
        assert_eq!(convert(Type::F16x2, Type::F32, Mode::default(), bits(1.0), bits(2.0)), 0x3c00_4000);
        let fp8 = Mode { satfinite: true, ..Mode::default() };
        assert_eq!(convert(Type::E4m3x2, Type::F32, fp8, bits(1000.0), bits(1.0)), 0x7e38);
    }
}
