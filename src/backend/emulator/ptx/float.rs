//! Float arithmetic over the lanes of a warp, bit for bit as the hardware rounds it.
//!
//! Approximate instructions (`ex2`, `lg2`, `rcp`, `rsqrt`, `sqrt`, `sin`, `cos`, `tanh`, `div.full`) give the exact result
//! rounded once, which lies within the error that the instruction set allows; the last bit may differ from the hardware's.

use super::op::{F1, F2, Mode, Round};
use super::warp::{Lanes32, Lanes64};

/// The NaN that arithmetic gives.
const NAN: u32 = 0x7fff_ffff;
const NAN64: u64 = 0x7fff_ffff_ffff_ffff;

/// Subnormal to zero of the same sign.
#[inline(always)]
fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

#[inline(always)]
fn canonical(x: f32) -> u32 {
    if x.is_nan() { NAN } else { x.to_bits() }
}

/// `a + b` rounded to odd: the sum, with the last bit set if it is inexact, so that rounding it again gives what rounding the
/// exact sum would give.
#[inline(always)]
pub(super) fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    let bits = sum.to_bits();
    // Towards the error: away from zero if it has the sign of the sum.
    let step = if (error > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let is_inexact = error != 0.0 && error.is_finite() && sum.is_finite();
    f64::from_bits(if is_inexact && bits & 1 == 0 { bits.wrapping_add(step) } else { bits })
}

/// A number that is exact, or rounded to odd, as f32.
#[inline(always)]
fn round32(x: f64, round: Round) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    match round {
        Round::Nearest | Round::Away => near,
        Round::Zero if back.abs() > x.abs() => {
            if near > 0.0 {
                near.next_down()
            } else {
                near.next_up()
            }
        }
        Round::Down if back > x => near.next_down(),
        Round::Up if back < x => near.next_up(),
        _ => near,
    }
}

/// What follows the arithmetic: canonical NaN, flush, clamp.
#[inline(always)]
fn finish(x: f32, mode: Mode) -> u32 {
    let bits = canonical(x);
    let bits = if mode.ftz { flush(bits) } else { bits };
    if mode.sat {
        // NaN becomes zero.
        let x = f32::from_bits(bits);
        return if x > 0.0 { x.min(1.0).to_bits() } else { 0 };
    }
    bits
}

#[inline(always)]
fn enter(bits: u32, mode: Mode) -> f32 {
    f32::from_bits(if mode.ftz { flush(bits) } else { bits })
}

/// Zero sums are negative only when rounding down.
#[inline(always)]
fn zero_sum(sum: f64, is_plus_zeros: bool, round: Round) -> f64 {
    if round == Round::Down && sum == 0.0 && !is_plus_zeros { -0.0 } else { sum }
}

#[inline(always)]
fn is_plus_zero(x: f64) -> bool {
    x.to_bits() == 0
}

#[inline(always)]
fn map2(mode: Mode, a: &Lanes32, b: &Lanes32, f: impl Fn(f32, f32) -> f32) -> Lanes32 {
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = finish(f(enter(a[l], mode), enter(b[l], mode)), mode);
    }
    out
}

/// A function of two f32.
pub(super) fn float2(f: F2, mode: u8, a: &Lanes32, b: &Lanes32) -> Lanes32 {
    let mode = Mode::unpack(mode);
    let plain = mode.round == Round::Nearest;
    match f {
        F2::Add if plain && !mode.ftz && !mode.sat => map2(Mode::default(), a, b, |a, b| a + b),
        F2::Sub if plain && !mode.ftz && !mode.sat => map2(Mode::default(), a, b, |a, b| a - b),
        F2::Mul if plain && !mode.ftz && !mode.sat => map2(Mode::default(), a, b, |a, b| a * b),
        F2::Add if plain => map2(mode, a, b, |a, b| a + b),
        F2::Sub if plain => map2(mode, a, b, |a, b| a - b),
        F2::Mul if plain => map2(mode, a, b, |a, b| a * b),
        F2::Div if plain => map2(mode, a, b, |a, b| a / b),
        F2::Add => map2(mode, a, b, |a, b| sum32(a, b, mode.round)),
        F2::Sub => map2(mode, a, b, |a, b| sum32(a, -b, mode.round)),
        F2::Mul => map2(mode, a, b, |a, b| round32(f64::from(a) * f64::from(b), mode.round)),
        F2::Div => map2(mode, a, b, |a, b| round32(f64::from(a) / f64::from(b), mode.round)),
        F2::Min => map2(mode, a, b, |a, b| extreme(a, b, mode, true)),
        F2::Max => map2(mode, a, b, |a, b| extreme(a, b, mode, false)),
        F2::Copysign => std::array::from_fn(|l| (b[l] & 0x7fff_ffff) | (a[l] & 0x8000_0000)),
    }
}

#[inline(always)]
fn sum32(a: f32, b: f32, round: Round) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    round32(zero_sum(add_odd(a, b), is_plus_zero(a) && is_plus_zero(b), round), round)
}

/// The smaller or larger number; one NaN gives the other number unless the mode says NaN; −0 is below +0.
#[inline(always)]
pub(super) fn extreme(a: f32, b: f32, mode: Mode, is_min: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return if mode.nan || (a.is_nan() && b.is_nan()) {
            f32::NAN
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    if mode.xorsign {
        let (x, y) = (a.abs(), b.abs());
        let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
        return f32::from_bits(if (x < y) == is_min { x } else { y }.to_bits() | sign);
    }
    let a_below = a < b || (a == b && a.is_sign_negative());
    if a_below == is_min { a } else { b }
}

/// `a·b + c`, rounded once.
pub(super) fn fma(mode: u8, a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    let mode = Mode::unpack(mode);
    let mut out = [0; 32];
    if mode == Mode::default() {
        for l in 0..32 {
            let product = f64::from(f32::from_bits(a[l])) * f64::from(f32::from_bits(b[l]));
            out[l] = canonical(add_odd(product, f64::from(f32::from_bits(c[l]))) as f32);
        }
    } else {
        for l in 0..32 {
            let (a, b, c) = (enter(a[l], mode), enter(b[l], mode), enter(c[l], mode));
            let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
            let sum = zero_sum(add_odd(product, c), is_plus_zero(product) && is_plus_zero(c), mode.round);
            out[l] = finish(round32(sum, mode.round), mode);
        }
    }
    out
}

/// A function of one f32.
pub(super) fn float1(f: F1, mode: u8, a: &Lanes32) -> Lanes32 {
    let mode = Mode::unpack(mode);
    match f {
        F1::Neg | F1::Abs => {
            let mut out = *a;
            for x in &mut out {
                let bits = if mode.ftz { flush(*x) } else { *x };
                let signed = if f == F1::Neg { bits ^ 0x8000_0000 } else { bits & 0x7fff_ffff };
                *x = canonical(f32::from_bits(signed));
            }
            out
        }
        _ => a.map(|x| finish(round32(exact1(f, f64::from(enter(x, mode))), mode.round), mode)),
    }
}

/// The function in f64, so precise that rounding it to f32 is nearly always rounding the exact value.
pub(super) fn exact1(f: F1, x: f64) -> f64 {
    match f {
        F1::Neg => -x,
        F1::Abs => x.abs(),
        F1::Rcp => 1.0 / x,
        F1::Sqrt => x.sqrt(),
        F1::Rsqrt => 1.0 / x.sqrt(),
        F1::Ex2 => exp2(x),
        F1::Lg2 => x.log2(),
        F1::Sin => x.sin(),
        F1::Cos => x.cos(),
        F1::Tanh => x.tanh(),
    }
}

/// 2^x to about 1e-15: the C library's is exact but several times slower, and attention lives on it.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    if !(-1022.0..1024.0).contains(&x) {
        return x.exp2();
    }
    let whole = (x + 6_755_399_441_055_744.0) - 6_755_399_441_055_744.0;
    let t = (x - whole) * std::f64::consts::LN_2;
    // Taylor's series of e^t for |t| <= 0.35: the next term is below 1e-17.
    let mut sum = 1.0 / 6_227_020_800.0;
    for factor in [479_001_600.0, 39_916_800.0, 3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0]
    {
        sum = sum * t + 1.0 / factor;
    }
    let fraction = (sum * t + 1.0) * t + 1.0;
    f64::from_bits(fraction.to_bits().wrapping_add(((whole as i64) << 52) as u64))
}

#[inline(always)]
fn canonical64(x: f64) -> u64 {
    if x.is_nan() { NAN64 } else { x.to_bits() }
}

/// A nearest result and the sign of what is missing, as rounded in direction.
fn direct64(near: f64, missing: f64, round: Round) -> f64 {
    if !near.is_finite() || missing == 0.0 || missing.is_nan() {
        return near;
    }
    match round {
        Round::Up if missing > 0.0 => near.next_up(),
        Round::Down if missing < 0.0 => near.next_down(),
        Round::Zero if near > 0.0 && missing < 0.0 => near.next_down(),
        Round::Zero if near < 0.0 && missing > 0.0 => near.next_up(),
        _ => near,
    }
}

/// A function of two f64.
pub(super) fn double2(f: F2, mode: u8, a: &Lanes64, b: &Lanes64) -> Lanes64 {
    let mode = Mode::unpack(mode);
    let add = |a: f64, b: f64| {
        let sum = a + b;
        let part = sum - a;
        direct64(sum, (a - (sum - part)) + (b - part), mode.round)
    };
    std::array::from_fn(|l| {
        let (x, y) = (f64::from_bits(a[l]), f64::from_bits(b[l]));
        canonical64(match f {
            F2::Add => add(x, y),
            F2::Sub => add(x, -y),
            F2::Mul => {
                direct64(x * y, if mode.round == Round::Nearest { 0.0 } else { x.mul_add(y, -(x * y)) }, mode.round)
            }
            F2::Div if mode.round == Round::Nearest => x / y,
            F2::Div => direct64(x / y, (-(x / y)).mul_add(y, x) * y.signum(), mode.round),
            F2::Min | F2::Max => {
                if x.is_nan() {
                    y
                } else if y.is_nan() || (x < y || (x == y && x.is_sign_negative())) == (f == F2::Min) {
                    x
                } else {
                    y
                }
            }
            F2::Copysign => return (b[l] & !(1 << 63)) | (a[l] & (1 << 63)),
        })
    })
}

/// `a·b + c` of f64, rounded once, to nearest or toward a direction where the error can be had.
pub(super) fn double_fma(mode: u8, a: &Lanes64, b: &Lanes64, c: &Lanes64) -> Lanes64 {
    let mode = Mode::unpack(mode);
    std::array::from_fn(|l| {
        let (a, b, c) = (f64::from_bits(a[l]), f64::from_bits(b[l]), f64::from_bits(c[l]));
        let near = a.mul_add(b, c);
        if mode.round == Round::Nearest {
            return canonical64(near);
        }
        // a·b + c - near, in two parts of which the larger decides the sign.
        let product = a * b;
        let low = a.mul_add(b, -product);
        let (sum, part) = (product + c, (product + c) - product);
        let error = (product - (sum - part)) + (c - part);
        canonical64(direct64(near, (sum - near) + (error + low), mode.round))
    })
}

/// A function of one f64.
pub(super) fn double1(f: F1, mode: u8, a: &Lanes64) -> Lanes64 {
    let mode = Mode::unpack(mode);
    a.map(|bits| {
        let x = f64::from_bits(bits);
        match f {
            F1::Neg => bits ^ 1 << 63,
            F1::Abs => bits & !(1 << 63),
            F1::Rcp if mode.round != Round::Nearest => {
                canonical64(direct64(1.0 / x, (-(1.0 / x)).mul_add(x, 1.0) * x.signum(), mode.round))
            }
            F1::Sqrt if mode.round != Round::Nearest => {
                canonical64(direct64(x.sqrt(), (-x.sqrt()).mul_add(x.sqrt(), x), mode.round))
            }
            _ => canonical64(exact1(f, x)),
        }
    })
}

/// Whether a float has the property `k`: finite, infinite, number, NaN, normal, subnormal.
pub(super) fn test(k: u8, x: f64, is_subnormal: bool) -> bool {
    match k {
        0 => x.is_finite(),
        1 => x.is_infinite(),
        2 => !x.is_nan(),
        3 => x.is_nan(),
        4 => x.is_finite() && x != 0.0 && !is_subnormal,
        _ => is_subnormal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(x: f32) -> Lanes32 {
        [x.to_bits(); 32]
    }

    #[test]
    fn fma_rounds_once() {
        let mut seed = 1u64;
        let mut draw = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Exponents near one another, so that sums cancel and half-way cases occur.
            f32::from_bits(((seed >> 33) as u32 & 0x807f_ffff) | (0x3c + (seed >> 60) as u32) << 23)
        };
        for _ in 0..20_000 {
            let (a, b, c) = (draw(), draw(), draw());
            assert_eq!(fma(0, &one(a), &one(b), &one(c))[5], a.mul_add(b, c).to_bits(), "{a:e} {b:e} {c:e}");
        }
        for (a, b, c) in
            [(1e-30, 1e-15, 1e-42), (1e38, 10.0, -1e38), (f32::MAX, 2.0, f32::NEG_INFINITY), (0.0, -1.0, 0.0)]
        {
            assert_eq!(fma(0, &one(a), &one(b), &one(c))[0], a.mul_add(b, c).to_bits(), "{a:e} {b:e} {c:e}");
        }
        assert_eq!(fma(0, &one(f32::INFINITY), &one(0.0), &one(1.0))[0], NAN);
    }

    #[test]
    fn directed_rounding_brackets_the_exact_value() {
        let with = |round, f, a: f32, b: f32| {
            f32::from_bits(float2(f, Mode { round, ..Mode::default() }.pack(), &one(a), &one(b))[0])
        };
        for (f, a, b) in [(F2::Add, 1.0, 1e-9), (F2::Div, 1.0, 3.0), (F2::Mul, 0.1, 0.3), (F2::Sub, -1.0, 1e-9)] {
            let (down, near, up) =
                (with(Round::Down, f, a, b), with(Round::Nearest, f, a, b), with(Round::Up, f, a, b));
            assert_eq!(down.next_up(), up, "{f:?}");
            assert!(near == down || near == up);
            assert_eq!(with(Round::Zero, f, a, b), if up > 0.0 { down } else { up });
        }
        assert!(with(Round::Down, F2::Sub, 1.0, 1.0).is_sign_negative());
        assert!(with(Round::Nearest, F2::Sub, 1.0, 1.0).is_sign_positive());
    }

    #[test]
    fn flush_saturation_and_nan_follow_the_modifiers() {
        let tiny = f32::from_bits(5);
        let ftz = Mode { ftz: true, ..Mode::default() }.pack();
        assert_eq!(float2(F2::Add, ftz, &one(tiny), &one(-0.0))[0], 0);
        assert_eq!(float2(F2::Add, 0, &one(tiny), &one(0.0))[0], 5);
        let sat = Mode { sat: true, ..Mode::default() }.pack();
        assert_eq!(float2(F2::Add, sat, &one(2.0), &one(3.0))[0], 1f32.to_bits());
        assert_eq!(float2(F2::Mul, sat, &one(f32::INFINITY), &one(0.0))[0], 0);
        assert_eq!(float2(F2::Max, 0, &one(f32::NAN), &one(3.0))[0], 3f32.to_bits());
        let nan = Mode { nan: true, ..Mode::default() }.pack();
        assert_eq!(float2(F2::Max, nan, &one(f32::NAN), &one(3.0))[0], NAN);
        assert_eq!(float2(F2::Min, 0, &one(0.0), &one(-0.0))[0], 1 << 31);
    }

    #[test]
    fn approximations_are_the_rounded_value() {
        for i in -1000..1000 {
            let x = i as f32 * 0.0371;
            assert_eq!(float1(F1::Ex2, 0, &one(x))[0], (f64::from(x).exp2() as f32).to_bits(), "{x}");
        }
        assert_eq!(float1(F1::Ex2, 0, &one(f32::NEG_INFINITY))[0], 0);
        assert_eq!(float1(F1::Lg2, 0, &one(0.0))[0], f32::NEG_INFINITY.to_bits());
        assert_eq!(float1(F1::Rsqrt, 0, &one(4.0))[0], 0.5f32.to_bits());
        assert_eq!(float1(F1::Lg2, 0, &one(-1.0))[0], NAN);
    }
}
