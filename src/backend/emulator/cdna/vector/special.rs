//! Transcendental functions, and the three steps of an exact division.
//!
//! The functions are the correctly rounded values (computed in double precision), which is inside the accuracy that the
//! manuals promise (1 ULP in single precision); hardware may differ in the last bit. In single precision they neither take
//! nor give subnormals: LLVM's lowering scales around that, and a kernel that relies on the bare instruction sees zeros.

use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::float::{flush32, ldexp32, ldexp64, settle32, settle64};
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{LANES, Lanes, VCC, Wave, Wide, pack};

/// A function of one single without subnormals.
macro_rules! special {
    (|$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.singles(m, 0);
            let mut out = [0; LANES];
            for l in 0..LANES {
                let x = f32::from_bits(flush32(a[l].to_bits()));
                let $a = f64::from(x);
                let result: f64 = $body;
                out[l] = flush32(settle32(result as f32, [x, 0.0, 0.0]));
            }
            w.put_singles(m, &mut out);
            Ok(())
        }
        run as Handler
    }};
}

pub(super) fn handler(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_exp_f32 | Op::v_exp_legacy_f32 => special!(|a| a.exp2()),
        Op::v_log_f32 | Op::v_log_legacy_f32 => special!(|a| a.log2()),
        Op::v_rcp_f32 | Op::v_rcp_iflag_f32 => special!(|a| 1.0 / a),
        Op::v_rsq_f32 => special!(|a| 1.0 / a.sqrt()),
        Op::v_sqrt_f32 => special!(|a| a.sqrt()),
        Op::v_sin_f32 => special!(|a| turn(a, f64::sin, 0.0)),
        Op::v_cos_f32 => special!(|a| turn(a, f64::cos, 1.0)),
        Op::v_rcp_f64 => coarse64::<0>,
        Op::v_rsq_f64 => coarse64::<1>,
        Op::v_sqrt_f64 => coarse64::<2>,
        Op::v_div_scale_f32 => div_scale32,
        Op::v_div_fmas_f32 => div_fmas32,
        Op::v_div_fixup_f32 => div_fixup32,
        Op::v_div_scale_f64 => div_scale64,
        Op::v_div_fmas_f64 => div_fmas64,
        Op::v_div_fixup_f64 => div_fixup64,
        _ => return None,
    })
}

/// A function of a number of turns; beyond 256 turns the hardware gives that of zero.
pub(super) fn turn(turns: f64, function: fn(f64) -> f64, far: f64) -> f64 {
    if turns.is_infinite() {
        f64::NAN
    } else if turns.abs() > 256.0 {
        far
    } else {
        // Reduced exactly; symmetric around zero so that the sign of zero stays.
        let rest = turns - turns.round_ties_even();
        function(if rest == 0.0 { 0.0f64.copysign(turns) } else { rest } * std::f64::consts::TAU)
    }
}

/// Double-precision reciprocals and roots have 23 to 26 good bits; the rest is cleared, so that nobody relies on it.
fn coarse64<const KIND: u8>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.doubles(m, 0);
    let mut out: Wide = std::array::from_fn(|l| {
        let exact = match KIND {
            0 => 1.0 / a[l],
            1 => 1.0 / a[l].sqrt(),
            _ => a[l].sqrt(),
        };
        let bits = settle64(exact, [a[l], 0.0, 0.0]);
        if exact.is_finite() { bits & !((1 << 26) - 1) } else { bits }
    });
    w.put_doubles(m, &mut out);
    Ok(())
}

/// The biased exponent.
fn exponent32(x: f32) -> i32 {
    (x.to_bits() >> 23 & 0xff) as i32
}

/// The biased exponent.
fn exponent64(x: f64) -> i32 {
    (x.to_bits() >> 52 & 0x7ff) as i32
}

/// Whether numerator or denominator of `n / d` must be scaled: the scaled source and the flag for the last step.
fn scale32(s: f32, d: f32, n: f32) -> (f32, bool) {
    let tiny = |x: f32| x.is_subnormal();
    let (apart, quotient, inverse) = (exponent32(n) - exponent32(d), n / d, 1.0 / d);
    let of_denominator = s.to_bits() == d.to_bits();
    if n == 0.0 || d == 0.0 {
        (f32::NAN, false)
    } else if apart >= 96 {
        (if of_denominator { ldexp32(s, 64) } else { s }, true)
    } else if tiny(d) {
        (ldexp32(s, 64), false)
    } else if tiny(inverse) && tiny(quotient) {
        // The manual's pseudo-code scales up here, which would overflow; only down gives the quotients that hardware gives.
        (if of_denominator { ldexp32(s, -64) } else { s }, true)
    } else if tiny(inverse) {
        (ldexp32(s, -64), false)
    } else if tiny(quotient) {
        (if s.to_bits() == n.to_bits() { ldexp32(s, 64) } else { s }, true)
    } else if exponent32(n) <= 23 {
        (ldexp32(s, 64), false)
    } else {
        (s, false)
    }
}

/// [`scale32`] in double precision.
fn scale64(s: f64, d: f64, n: f64) -> (f64, bool) {
    let tiny = |x: f64| x.is_subnormal();
    let (apart, quotient, inverse) = (exponent64(n) - exponent64(d), n / d, 1.0 / d);
    let of_denominator = s.to_bits() == d.to_bits();
    if n == 0.0 || d == 0.0 {
        (f64::NAN, false)
    } else if apart >= 768 {
        (if of_denominator { ldexp64(s, 128) } else { s }, true)
    } else if tiny(d) {
        (ldexp64(s, 128), false)
    } else if tiny(inverse) && tiny(quotient) {
        (if of_denominator { ldexp64(s, -128) } else { s }, true)
    } else if tiny(inverse) {
        (ldexp64(s, -128), false)
    } else if tiny(quotient) {
        (if s.to_bits() == n.to_bits() { ldexp64(s, 128) } else { s }, true)
    } else if exponent64(n) <= 53 {
        (ldexp64(s, 128), false)
    } else {
        (s, false)
    }
}

fn div_scale32(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (s, d, n) = (w.singles(m, 0), w.singles(m, 1), w.singles(m, 2));
    let scaled: [(f32, bool); LANES] = std::array::from_fn(|l| scale32(s[l], d[l], n[l]));
    w.put_singles(m, &mut scaled.map(|(x, _)| x.to_bits()));
    w.put_mask(m, pack(|l| scaled[l].1));
    Ok(())
}

fn div_scale64(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (s, d, n) = (w.doubles(m, 0), w.doubles(m, 1), w.doubles(m, 2));
    let scaled: [(f64, bool); LANES] = std::array::from_fn(|l| scale64(s[l], d[l], n[l]));
    w.put_doubles(m, &mut scaled.map(|(x, _)| x.to_bits()));
    w.put_mask(m, pack(|l| scaled[l].1));
    Ok(())
}

/// A fused multiply and add whose result is scaled back where VCC says that a source was scaled.
fn div_fmas32(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b, c) = (w.singles(m, 0), w.singles(m, 1), w.singles(m, 2));
    let scaled = w.pair(VCC);
    let mut out: Lanes = std::array::from_fn(|l| {
        let (high, low) = (f64::from(a[l]) * f64::from(b[l]), f64::from(c[l]));
        let sum = super::super::float::Exact::sum(high, low);
        let result = if scaled >> l & 1 == 0 {
            sum.to_f32(w.mode.round32)
        } else {
            // Scaled before the rounding: the quotient may become subnormal here. Powers of two are exact in doubles.
            let power = if exponent32(c[l]) > 127 { 2f64.powi(64) } else { 2f64.powi(-64) };
            super::super::float::Exact { high: sum.high * power, low: sum.low * power }.to_f32(w.mode.round32)
        };
        settle32(result, [a[l], b[l], c[l]])
    });
    w.put_singles(m, &mut out);
    Ok(())
}

/// `(a b + c) 2^by`, rounded once: a subnormal result must not be rounded a second time.
fn fma_scaled(a: f64, b: f64, c: f64, by: i32) -> f64 {
    let sum = a.mul_add(b, c);
    let scaled = ldexp64(sum, by);
    if !sum.is_finite() || scaled.abs() > f64::MIN_POSITIVE {
        return scaled;
    }
    // Only a sum halfway between two subnormals can have gone to the wrong one; what the sum lost to rounding decides.
    let beyond = sum - ldexp64(scaled, -by);
    let product = a * b;
    let total = product + c;
    let lost_of_total = (product - (total - c)) + (c - (total - (total - c)));
    let lost = (total - sum) + (lost_of_total + a.mul_add(b, -product));
    let is_halfway = beyond.abs() == ldexp64(f64::from_bits(1), -by) / 2.0;
    if is_halfway && lost != 0.0 && (lost > 0.0) == (beyond > 0.0) {
        scaled + f64::from_bits(1).copysign(beyond)
    } else {
        scaled
    }
}

fn div_fmas64(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b, c) = (w.doubles(m, 0), w.doubles(m, 1), w.doubles(m, 2));
    let scaled = w.pair(VCC);
    let mut out: Wide = std::array::from_fn(|l| {
        let by = if exponent64(c[l]) > 1023 { 128 } else { -128 };
        let is_scaled = scaled >> l & 1 == 1;
        let result = if is_scaled { fma_scaled(a[l], b[l], c[l], by) } else { a[l].mul_add(b[l], c[l]) };
        settle64(result, [a[l], b[l], c[l]])
    });
    w.put_doubles(m, &mut out);
    Ok(())
}

/// The quotient `q` of `n / d`, with the special cases put right.
fn fixup32(q: f32, d: f32, n: f32) -> f32 {
    let quiet = |x: f32| f32::from_bits(x.to_bits() | 0x40_0000);
    let sign = (d.to_bits() ^ n.to_bits()) & 0x8000_0000;
    let signed = |x: f32| f32::from_bits(x.to_bits() & 0x7fff_ffff | sign);
    if n.is_nan() {
        quiet(n)
    } else if d.is_nan() {
        quiet(d)
    } else if (d == 0.0 && n == 0.0) || (d.is_infinite() && n.is_infinite()) {
        f32::from_bits(0xffc0_0000)
    } else if d == 0.0 || n.is_infinite() {
        signed(f32::INFINITY)
    } else if d.is_infinite() || n == 0.0 || exponent32(n) - exponent32(d) < -150 {
        // The last is the hardware's own underflow of quotients that no scaling saved.
        signed(0.0)
    } else if q.is_nan() {
        // Of numbers, only an overflow on the way makes one: the manual does not say it, hardware gives infinity.
        signed(f32::INFINITY)
    } else {
        signed(q)
    }
}

/// [`fixup32`] in double precision.
fn fixup64(q: f64, d: f64, n: f64) -> f64 {
    let quiet = |x: f64| f64::from_bits(x.to_bits() | 1 << 51);
    let sign = (d.to_bits() ^ n.to_bits()) & (1 << 63);
    let signed = |x: f64| f64::from_bits(x.to_bits() & !(1 << 63) | sign);
    if n.is_nan() {
        quiet(n)
    } else if d.is_nan() {
        quiet(d)
    } else if (d == 0.0 && n == 0.0) || (d.is_infinite() && n.is_infinite()) {
        f64::from_bits(0xfff8 << 48)
    } else if d == 0.0 || n.is_infinite() {
        signed(f64::INFINITY)
    } else if d.is_infinite() || n == 0.0 || exponent64(n) - exponent64(d) < -1075 {
        signed(0.0)
    } else if q.is_nan() {
        signed(f64::INFINITY)
    } else {
        signed(q)
    }
}

fn div_fixup32(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (q, d, n) = (w.singles(m, 0), w.singles(m, 1), w.singles(m, 2));
    let mut out: Lanes = std::array::from_fn(|l| fixup32(q[l], d[l], n[l]).to_bits());
    w.put_singles(m, &mut out);
    Ok(())
}

fn div_fixup64(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (q, d, n) = (w.doubles(m, 0), w.doubles(m, 1), w.doubles(m, 2));
    let mut out: Wide = std::array::from_fn(|l| fixup64(q[l], d[l], n[l]).to_bits());
    w.put_doubles(m, &mut out);
    Ok(())
}
