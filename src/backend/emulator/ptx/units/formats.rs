//! Number formats of `cvt` and the matrix units, exact in every rounding mode.
//!
//! One rounding serves all formats: the value is taken as an f64, which holds every f32, f16, bf16, tf32 and eight-bit float
//! exactly, and is rounded once.

/// A float format narrower than f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// Single precision with 10 bits of fraction, in the high bits of a 32-bit register.
    Tf32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Four bits of exponent, three of fraction, no infinity; largest 448.
    E4m3,
    /// Five bits of exponent, two of fraction; largest 57344.
    E5m2,
}

/// How a value between two numbers of the format is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To the nearest, ties to even: `.rn`.
    Nearest,
    /// Towards zero: `.rz`.
    Zero,
    /// Towards minus infinity: `.rm`.
    Down,
    /// Towards plus infinity: `.rp`.
    Up,
    /// To the nearest, ties away from zero: `.rna`.
    NearestAway,
}

impl Rounding {
    /// The rounding of a modifier: `rn`, `rz`, `rm`, `rp` or `rna`.
    pub fn parse(modifier: &str) -> Option<Rounding> {
        Some(match modifier {
            "rn" => Rounding::Nearest,
            "rz" => Rounding::Zero,
            "rm" => Rounding::Down,
            "rp" => Rounding::Up,
            "rna" => Rounding::NearestAway,
            _ => return None,
        })
    }
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 6] = [Format::F32, Format::Tf32, Format::Bf16, Format::F16, Format::E4m3, Format::E5m2];

    /// The format of a type's name: `f32`, `tf32`, `bf16`, `f16`, `e4m3` or `e5m2`.
    pub fn parse(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.name() == name)
    }

    /// Its name in PTX.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::Tf32 => "tf32",
            Format::Bf16 => "bf16",
            Format::F16 => "f16",
            Format::E4m3 => "e4m3",
            Format::E5m2 => "e5m2",
        }
    }

    /// Bits that an element takes in a register or in memory.
    #[inline]
    pub fn bits(self) -> usize {
        match self {
            Format::F32 | Format::Tf32 => 32,
            Format::Bf16 | Format::F16 => 16,
            Format::E4m3 | Format::E5m2 => 8,
        }
    }

    /// Bits of the stored fraction.
    #[inline]
    pub fn fraction(self) -> u32 {
        match self {
            Format::F32 => 23,
            Format::Tf32 | Format::F16 => 10,
            Format::Bf16 => 7,
            Format::E4m3 => 3,
            Format::E5m2 => 2,
        }
    }

    /// What is added to an exponent where it is stored.
    #[inline]
    pub fn bias(self) -> i32 {
        match self {
            Format::F32 | Format::Tf32 | Format::Bf16 => 127,
            Format::F16 | Format::E5m2 => 15,
            Format::E4m3 => 7,
        }
    }

    /// The largest finite number's bits, without the empty low bits of tf32.
    #[inline]
    fn largest(self) -> u64 {
        match self {
            Format::E4m3 => 0x7e,
            // One below infinity, whose exponent is all ones.
            other => (((2 * other.bias() + 1) as u64) << other.fraction()) - 1,
        }
    }

    /// The bits that `cvt` gives for NaN: all ones but the sign.
    #[inline]
    pub fn nan(self) -> u32 {
        match self {
            Format::F32 | Format::Tf32 => 0x7fff_ffff,
            Format::Bf16 | Format::F16 => 0x7fff,
            Format::E4m3 | Format::E5m2 => 0x7f,
        }
    }

    /// Bits below the fraction in a register.
    fn empty(self) -> u32 {
        if self == Format::Tf32 { 13 } else { 0 }
    }
}

/// `x` in the format `to`: `cvt` from any float type. With `saturate`, what is too large, infinity included, becomes the
/// largest finite number (`.satfinite`); with `relu`, what is negative becomes zero. NaN stays NaN, as [`Format::nan`].
pub fn narrow(x: f64, to: Format, rounding: Rounding, saturate: bool, relu: bool) -> u32 {
    if x.is_nan() {
        return to.nan();
    }
    if relu && x.is_sign_negative() {
        return 0;
    }
    let is_negative = x.is_sign_negative();
    let sign = u64::from(is_negative) << (to.bits() as u32 - to.empty() - 1);
    let magnitude = if x.is_infinite() { u64::MAX } else { round_magnitude(x.abs(), to, rounding, is_negative) };
    let magnitude = if magnitude <= to.largest() {
        magnitude
    } else if saturate || (x.is_finite() && stops_at_largest(rounding, is_negative)) {
        to.largest()
    } else if to == Format::E4m3 {
        u64::from(to.nan())
    } else {
        to.largest() + 1
    };
    ((sign | magnitude) << to.empty()) as u32
}

/// Whether a directed rounding of a finite number of this sign never reaches infinity.
fn stops_at_largest(rounding: Rounding, is_negative: bool) -> bool {
    match rounding {
        Rounding::Nearest | Rounding::NearestAway => false,
        Rounding::Zero => true,
        Rounding::Down => !is_negative,
        Rounding::Up => is_negative,
    }
}

/// Exponent and fraction bits of a finite `x >= 0`, above [`Format::largest`] where it is too large.
fn round_magnitude(x: f64, to: Format, rounding: Rounding, is_negative: bool) -> u64 {
    let bits = x.to_bits();
    let field = (bits >> 52) as i32;
    let fraction = bits & ((1 << 52) - 1);
    // x = whole * 2^scale
    let (whole, scale) = if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
    if whole == 0 {
        return 0;
    }
    let exponent = scale + 63 - whole.leading_zeros() as i32;
    let smallest = 1 - to.bias();
    // The value of the last place that the result has.
    let place = exponent.max(smallest) - to.fraction() as i32;
    let shift = place - scale;
    let (kept, rest, half) = if shift <= 0 {
        (whole << -shift, 0, 1)
    } else if shift < 63 {
        (whole >> shift, whole & ((1 << shift) - 1), 1 << (shift - 1))
    } else {
        (0, 1, 2)
    };
    let up = match rounding {
        Rounding::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Rounding::NearestAway => rest >= half,
        Rounding::Zero => false,
        Rounding::Down => is_negative && rest > 0,
        Rounding::Up => !is_negative && rest > 0,
    };
    let kept = kept + u64::from(up);
    if exponent < smallest {
        // A subnormal that rounds up to the smallest normal number has its bits already.
        kept
    } else {
        // The leading one adds one to the exponent field, and so does a carry out of the fraction.
        (((exponent - smallest) as u64) << to.fraction()) + kept
    }
}

/// The number that `bits` stand for, exact in f32; of tf32 the low 13 bits are ignored, as the matrix units do.
#[inline]
pub fn widen(bits: u32, from: Format) -> f32 {
    match from {
        Format::F32 => return f32::from_bits(bits),
        Format::Tf32 => return f32::from_bits(bits & !0x1fff),
        Format::Bf16 => return f32::from_bits((bits & 0xffff) << 16),
        _ => {}
    }
    let (fraction, width) = (from.fraction(), from.bits() as u32);
    let sign = (bits >> (width - 1) & 1) << 31;
    let magnitude = bits & ((1 << (width - 1)) - 1);
    if u64::from(magnitude) > from.largest() {
        let is_infinity = from != Format::E4m3 && u64::from(magnitude) == from.largest() + 1;
        return f32::from_bits(if is_infinity { sign | 0x7f80_0000 } else { Format::F32.nan() });
    }
    // In f32's places; the exponents differ by the difference of the biases, which a product mends for subnormal numbers too.
    let moved = f32::from_bits(magnitude << (23 - fraction));
    let scale = f32::from_bits(((127 + 127 - from.bias()) as u32) << 23);
    f32::from_bits((moved * scale).to_bits() | sign)
}

/// What `.ftz` makes of a single-precision operand or result: subnormal numbers become zero of their sign.
pub fn flush(x: f32) -> f32 {
    if x.is_subnormal() { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sequence;
    use super::*;

    const MODES: [Rounding; 5] =
        [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up, Rounding::NearestAway];

    #[test]
    fn every_half_and_bfloat16_widens_and_comes_back() {
        for bits in 0..=u16::MAX {
            let half = widen(u32::from(bits), Format::F16);
            let brain = widen(u32::from(bits), Format::Bf16);
            let (h, b) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            assert!(half == h.to_f32() || (half.is_nan() && h.is_nan()), "{bits:#x}");
            assert!(brain == b.to_f32() || (brain.is_nan() && b.is_nan()), "{bits:#x}");
            for mode in MODES {
                if !half.is_nan() {
                    assert_eq!(narrow(f64::from(half), Format::F16, mode, false, false), u32::from(bits));
                }
                if !brain.is_nan() {
                    assert_eq!(narrow(f64::from(brain), Format::Bf16, mode, false, false), u32::from(bits));
                }
            }
        }
    }

    #[test]
    fn rounding_to_nearest_agrees_with_the_half_crate() {
        let mut numbers = Sequence(1);
        for i in 0..60_000 {
            // Half of them near the range of f16, with ties.
            let word = numbers.next() as u32;
            let x = if i % 2 == 0 {
                f32::from_bits(word)
            } else {
                f32::from_bits(word & 0x8000_1000 | (0x3000_0000 + (word >> 3) % 0x2000_0000) & 0x7fff_f000)
            };
            if x.is_nan() {
                continue;
            }
            let n = |to| narrow(f64::from(x), to, Rounding::Nearest, false, false);
            assert_eq!(n(Format::F16), u32::from(half::f16::from_f32(x).to_bits()), "{x:e}");
            assert_eq!(n(Format::Bf16), u32::from(half::bf16::from_f32(x).to_bits()), "{x:e}");
            assert_eq!(n(Format::F32), x.to_bits());
        }
        for _ in 0..60_000 {
            let x = f64::from_bits(numbers.next() & !(0x7ff << 52) | (1023 - 160 + numbers.below(300)) << 52);
            assert_eq!(narrow(x, Format::F32, Rounding::Nearest, false, false), (x as f32).to_bits(), "{x:e}");
        }
    }

    /// The rounding by its definition: the neighbours among all numbers of the format, in exact arithmetic.
    fn by_search(x: f64, to: Format, mode: Rounding) -> f64 {
        let all: Vec<f64> = (0..1u32 << to.bits()).map(|b| f64::from(widen(b, to))).filter(|v| v.is_finite()).collect();
        let below = all.iter().copied().filter(|v| *v <= x).fold(f64::NEG_INFINITY, f64::max);
        let above = all.iter().copied().filter(|v| *v >= x).fold(f64::INFINITY, f64::min);
        let to_zero = if x > 0.0 { below } else { above };
        let from_zero = if x > 0.0 { above } else { below };
        match mode {
            Rounding::Down => below,
            Rounding::Up => above,
            Rounding::Zero => to_zero,
            _ if (x - below) < (above - x) => below,
            _ if (x - below) > (above - x) => above,
            Rounding::NearestAway => from_zero,
            // Of two neighbours the even one has an even index, and so has its multiple of the step.
            Rounding::Nearest => {
                let step = above - below;
                if (to_zero / step) % 2.0 == 0.0 { to_zero } else { from_zero }
            }
        }
    }

    #[test]
    fn eight_bit_floats_round_as_a_search_through_all_of_them_does() {
        let mut numbers = Sequence(2);
        for to in [Format::E4m3, Format::E5m2] {
            let largest = f64::from(widen(to.largest() as u32, to));
            for i in 0..2000 {
                // Eighths of the last place, so that ties are met, over the whole range with subnormal numbers.
                let scale = 2f64.powi(numbers.below(34) as i32 - 20);
                let x = (numbers.below(513) as f64 - 256.0) / 32.0 * scale;
                if x.abs() > largest || x == 0.0 {
                    continue;
                }
                let mode = MODES[i % MODES.len()];
                let found = f64::from(widen(narrow(x, to, mode, true, false), to));
                assert_eq!(found, by_search(x, to, mode), "{x} {to:?} {mode:?}");
            }
        }
    }

    #[test]
    fn directed_roundings_bracket_the_value_and_differ_by_one_place() {
        let mut numbers = Sequence(3);
        for _ in 0..20_000 {
            let x = f32::from_bits(numbers.next() as u32 & 0xbfff_ffff | 0x2000_0000);
            for to in [Format::Tf32, Format::Bf16] {
                let n = |mode| widen(narrow(f64::from(x), to, mode, false, false), to);
                let (down, up, zero) = (n(Rounding::Down), n(Rounding::Up), n(Rounding::Zero));
                assert!(down <= x && x <= up);
                assert_eq!(zero, if x > 0.0 { down } else { up });
                let (near, away) = (n(Rounding::Nearest), n(Rounding::NearestAway));
                assert!((near == down || near == up) && (away == down || away == up));
                // The definition of tf32's `.rna`: half a place added to the bits, the rest cut off.
                if to == Format::Tf32 {
                    assert_eq!(away.to_bits(), (x.to_bits() + 0x1000) & !0x1fff);
                    assert_eq!(zero.to_bits(), x.to_bits() & !0x1fff);
                }
            }
        }
    }

    #[test]
    fn overflow_saturates_or_becomes_infinity_by_the_mode() {
        let big = 1e30;
        let n = |x, to, mode, saturate| narrow(x, to, mode, saturate, false);
        assert_eq!(n(big, Format::F16, Rounding::Nearest, false), 0x7c00);
        assert_eq!(n(big, Format::F16, Rounding::Zero, false), 0x7bff);
        assert_eq!(n(-big, Format::F16, Rounding::Down, false), 0xfc00);
        assert_eq!(n(-big, Format::F16, Rounding::Up, false), 0xfbff);
        assert_eq!(n(f64::INFINITY, Format::F16, Rounding::Zero, false), 0x7c00);
        assert_eq!(n(f64::INFINITY, Format::F16, Rounding::Nearest, true), 0x7bff);
        assert_eq!(n(big, Format::E4m3, Rounding::Nearest, true), 0x7e);
        assert_eq!(n(-big, Format::E4m3, Rounding::Nearest, true), 0xfe);
        assert_eq!(n(big, Format::E4m3, Rounding::Nearest, false), 0x7f);
        assert_eq!(n(big, Format::E5m2, Rounding::Nearest, true), 0x7b);
        assert_eq!(n(-big, Format::E5m2, Rounding::Nearest, false), 0xfc);
        // 65520 is half way between the largest f16 and the first number past it.
        assert_eq!(n(65519.0, Format::F16, Rounding::Nearest, false), 0x7bff);
        assert_eq!(n(65520.0, Format::F16, Rounding::Nearest, false), 0x7c00);
        assert_eq!(n(464.0, Format::E4m3, Rounding::Nearest, true), 0x7e);
    }

    #[test]
    fn relu_clears_the_negative_and_keeps_nan() {
        for to in Format::ALL {
            assert_eq!(narrow(-2.5, to, Rounding::Nearest, false, true), 0);
            assert_eq!(narrow(-0.0, to, Rounding::Nearest, false, true), 0);
            assert_eq!(narrow(f64::NEG_INFINITY, to, Rounding::Nearest, true, true), 0);
            assert_eq!(widen(narrow(2.5, to, Rounding::Nearest, true, true), to), 2.5);
            assert_eq!(narrow(f64::NAN, to, Rounding::Nearest, true, true), to.nan());
            assert!(widen(to.nan(), to).is_nan());
            assert_eq!(Format::parse(to.name()), Some(to));
        }
        assert_eq!(narrow(-0.0, Format::F16, Rounding::Nearest, false, false), 0x8000);
    }

    #[test]
    fn flushing_keeps_the_sign_and_all_normal_numbers() {
        assert_eq!(flush(-1e-40).to_bits(), 0x8000_0000);
        assert_eq!(flush(f32::MIN_POSITIVE), f32::MIN_POSITIVE);
        assert_eq!(flush(1e-45), 0.0);
        assert!(flush(f32::NAN).is_nan());
    }
}
