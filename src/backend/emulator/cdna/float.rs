//! Float arithmetic as a wave does it: half precision in integer code, flushing of subnormals, the four rounding modes.
//!
//! What is not said otherwise follows the "AMD Instinct MI200" and "MI300" instruction set manuals.

/// Where a result goes that no number of the format equals: the two-bit fields of the MODE register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Towards plus infinity.
    Up,
    /// Towards minus infinity.
    Down,
    /// Towards zero.
    Zero,
}

impl Rounding {
    pub(super) fn from_bits(bits: u32) -> Rounding {
        match bits & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Up,
            2 => Rounding::Down,
            _ => Rounding::Zero,
        }
    }

    /// Whether `nearest`, which differs from the exact value by `error` (exact - nearest), moves one step; and if so, up.
    fn step(self, nearest: f64, error: f64) -> Option<bool> {
        match self {
            Rounding::Nearest => None,
            Rounding::Up => (error > 0.0).then_some(true),
            Rounding::Down => (error < 0.0).then_some(false),
            Rounding::Zero if nearest > 0.0 => (error < 0.0).then_some(false),
            Rounding::Zero => (error > 0.0).then_some(true),
        }
    }
}

/// A value as the sum of a double and what its rounding lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exact {
    pub(super) high: f64,
    pub(super) low: f64,
}

impl Exact {
    pub(super) fn of(high: f64) -> Exact {
        Exact { high, low: 0.0 }
    }

    /// `a + b` without loss (Knuth's two-sum).
    pub(super) fn sum(a: f64, b: f64) -> Exact {
        let high = a + b;
        if !high.is_finite() {
            return Exact::of(high);
        }
        let t = high - a;
        Exact { high, low: (a - (high - t)) + (b - t) }
    }

    /// The double nearest to odd: rounding it once more to a format of at most 51 bits is as good as rounding the value.
    #[inline(always)]
    fn to_odd(self) -> f64 {
        let bits = self.high.to_bits();
        if self.low == 0.0 || bits & 1 == 1 || !self.high.is_finite() {
            return self.high;
        }
        // An even neighbour next to the value: the odd one lies on the value's side.
        let away = (self.low > 0.0) == (self.high > 0.0);
        f64::from_bits(if away { bits + 1 } else { bits - 1 })
    }

    /// Rounded to single precision.
    pub(super) fn to_f32(self, rounding: Rounding) -> f32 {
        let nearest = self.to_odd() as f32;
        if rounding == Rounding::Nearest || nearest.is_nan() || !self.high.is_finite() {
            return nearest;
        }
        let wide = f64::from(nearest);
        let error = if wide.is_infinite() { -wide } else { (self.high - wide) + self.low };
        match rounding.step(wide, error) {
            Some(true) => nearest.next_up(),
            Some(false) => nearest.next_down(),
            None => nearest,
        }
    }

    /// Rounded to half precision.
    pub(super) fn to_f16(self, rounding: Rounding) -> u16 {
        let odd = self.to_odd();
        let nearest = f32_to_f16(f64_to_f32_odd(odd));
        let wide = f64::from(f16_to_f32(nearest));
        if rounding == Rounding::Nearest || wide.is_nan() || !self.high.is_finite() {
            return nearest;
        }
        let error = if wide.is_infinite() { -wide } else { (self.high - wide) + self.low };
        match rounding.step(wide, error) {
            Some(up) => step_f16(nearest, up),
            None => nearest,
        }
    }
}

/// The half-precision number next to `h`.
fn step_f16(h: u16, up: bool) -> u16 {
    match (h & 0x7fff, (h & 0x8000 == 0) == up) {
        (0, _) => u16::from(!up) << 15 | 1,
        (_, true) => h + 1,
        (_, false) => h - 1,
    }
}

/// A double with its lost bits as one sticky bit: rounding the result to half precision is then right.
#[inline(always)]
fn f64_to_f32_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let wide = f64::from(nearest);
    let bits = nearest.to_bits();
    if wide == x || nearest.is_nan() || x.is_infinite() {
        return nearest;
    }
    let truncated = if wide.abs() > x.abs() { bits - 1 } else { bits };
    f32::from_bits(truncated | 1)
}

/// Half to single precision; a signalling NaN becomes quiet.
#[inline(always)]
pub(super) fn f16_to_f32(h: u16) -> f32 {
    let magnitude = u32::from(h & 0x7fff);
    // 2^112 moves the exponent's bias; subnormals become normal in the product, exactly.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let special = (magnitude << 13) | 0x7f80_0000 | if magnitude > 0x7c00 { 0x40_0000 } else { 0 };
    let bits = if magnitude >= 0x7c00 { special } else { scaled.to_bits() };
    f32::from_bits(bits | u32::from(h & 0x8000) << 16)
}

/// Single to half precision, to nearest even, with subnormals.
#[inline(always)]
pub(super) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_add(0xfff + odd).wrapping_sub(112 << 23) >> 13;
    // One half has the spacing of half precision's subnormals: the addition rounds at the right place.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let nan = 0x7e00 | (magnitude >> 13 & 0x1ff);
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let bounded = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    let result = if magnitude > 0x7f80_0000 { nan } else { bounded };
    (result | (bits >> 16 & 0x8000)) as u16
}

/// A subnormal becomes zero of its sign.
#[inline(always)]
pub(super) fn flush32(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// A half-precision subnormal becomes zero of its sign.
#[inline(always)]
pub(super) fn flush16(x: u16) -> u16 {
    if x & 0x7c00 == 0 { x & 0x8000 } else { x }
}

/// A double-precision subnormal becomes zero of its sign.
#[inline(always)]
pub(super) fn flush64(x: u64) -> u64 {
    if x & (0x7ff << 52) == 0 { x & (1 << 63) } else { x }
}

/// The result of an operation that gave NaN, the same on every host: the first NaN among the inputs made quiet, else the
/// positive quiet NaN.
#[inline(always)]
pub(super) fn settle32(result: f32, inputs: [f32; 3]) -> u32 {
    let quiet = |x: f32| x.to_bits() | 0x40_0000;
    let [a, b, c] = inputs;
    let nan = if a.is_nan() {
        quiet(a)
    } else if b.is_nan() {
        quiet(b)
    } else if c.is_nan() {
        quiet(c)
    } else {
        0x7fc0_0000
    };
    if result.is_nan() { nan } else { result.to_bits() }
}

/// The same in double precision.
#[inline(always)]
pub(super) fn settle64(result: f64, inputs: [f64; 3]) -> u64 {
    let quiet = |x: f64| x.to_bits() | 1 << 51;
    let [a, b, c] = inputs;
    let nan = if a.is_nan() {
        quiet(a)
    } else if b.is_nan() {
        quiet(b)
    } else if c.is_nan() {
        quiet(c)
    } else {
        0x7ff8 << 48
    };
    if result.is_nan() { nan } else { result.to_bits() }
}

/// The smaller, minus zero below plus zero, a number before NaN.
#[inline(always)]
pub(super) fn min32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b {
        f32::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

/// The larger, plus zero above minus zero, a number before NaN.
#[inline(always)]
pub(super) fn max32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b {
        f32::from_bits(a.to_bits() & b.to_bits())
    } else if a > b {
        a
    } else {
        b
    }
}

/// [`min32`] in double precision.
#[inline(always)]
pub(super) fn min64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b {
        f64::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

/// [`max32`] in double precision.
#[inline(always)]
pub(super) fn max64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b {
        f64::from_bits(a.to_bits() & b.to_bits())
    } else if a > b {
        a
    } else {
        b
    }
}

/// `a·b + c`, rounded once, for half-precision inputs; the products are exact in double precision.
#[inline(always)]
pub(super) fn fma16(a: f32, b: f32, c: f32) -> Exact {
    Exact::sum(f64::from(a) * f64::from(b), f64::from(c))
}

/// `m·2^e` with one rounding.
#[inline(always)]
pub(super) fn ldexp32(m: f32, e: i32) -> f32 {
    // A double holds the product exactly as long as it is not far below the single-precision subnormals.
    let e = e.clamp(-400, 400);
    (f64::from(m) * f64::from_bits(((1023 + i64::from(e)) as u64) << 52)) as f32
}

/// `m·2^e` with one rounding.
pub(super) fn ldexp64(m: f64, e: i32) -> f64 {
    let power = |e: i32| f64::from_bits(((1023 + i64::from(e)) as u64) << 52);
    let mut e = e.clamp(-2200, 2200);
    let mut m = m;
    while e > 1000 {
        m *= power(1000);
        e -= 1000;
    }
    // Downwards the last step alone may round: as long as steps remain, stay in the normal range.
    let (fraction, own) = frexp64(m);
    if own + e >= -1021 {
        while e < -1000 {
            m *= power(-1000);
            e += 1000;
        }
        return m * power(e);
    }
    if fraction == 0.0 || !fraction.is_finite() {
        return m;
    }
    let total = (own + e + 1021).max(-60);
    fraction * power(-1021) * power(total)
}

/// Fraction in [0.5, 1) and exponent; zero, infinity and NaN are their own fraction.
pub(super) fn frexp64(x: f64) -> (f64, i32) {
    if x == 0.0 || !x.is_finite() {
        return (x, 0);
    }
    let (x, shift) = if x.abs() < f64::MIN_POSITIVE { (x * 2f64.powi(64), 64) } else { (x, 0) };
    let bits = x.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1022 - shift;
    (f64::from_bits(bits & !(0x7ff << 52) | 1022 << 52), exponent)
}
