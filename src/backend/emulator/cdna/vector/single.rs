//! Single-precision arithmetic.

use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::float::{Exact, ldexp32, max32, min32, settle32};
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{LANES, Lanes, Wave};

/// Handlers of functions that are exact, or that MODE does not change.
macro_rules! single {
    (|$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.singles(m, 0);
            let mut out = [0; LANES];
            for l in 0..LANES {
                let $a: f32 = a[l];
                out[l] = settle32($body, [a[l], 0.0, 0.0]);
            }
            w.put_singles(m, &mut out);
            Ok(())
        }
        run as Handler
    }};
    (|$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b) = (w.singles(m, 0), w.singles(m, 1));
            let mut out = [0; LANES];
            for l in 0..LANES {
                let ($a, $b): (f32, f32) = (a[l], b[l]);
                out[l] = settle32($body, [a[l], b[l], 0.0]);
            }
            w.put_singles(m, &mut out);
            Ok(())
        }
        run as Handler
    }};
    (|$a:ident, $b:ident, $c:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b, c) = (w.singles(m, 0), w.singles(m, 1), w.singles(m, 2));
            let mut out = [0; LANES];
            for l in 0..LANES {
                let ($a, $b, $c): (f32, f32, f32) = (a[l], b[l], c[l]);
                out[l] = settle32($body, [a[l], b[l], c[l]]);
            }
            w.put_singles(m, &mut out);
            Ok(())
        }
        run as Handler
    }};
}

pub(super) fn handler(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_add_f32 => add::<0>,
        Op::v_sub_f32 => add::<1>,
        Op::v_subrev_f32 => add::<2>,
        Op::v_mul_f32 => multiply,
        Op::v_fma_f32 | Op::v_fmamk_f32 | Op::v_fmaak_f32 => fused::<false>,
        Op::v_fmac_f32 => fused::<true>,
        Op::v_mad_f32 | Op::v_madmk_f32 | Op::v_madak_f32 => unfused::<false>,
        Op::v_mac_f32 => unfused::<true>,
        Op::v_mul_legacy_f32 => single!(|a, b| if a == 0.0 || b == 0.0 { 0.0 } else { a * b }),
        Op::v_min_f32 => extreme::<false>,
        Op::v_max_f32 => extreme::<true>,
        Op::v_min3_f32 => single!(|a, b, c| min32(min32(a, b), c)),
        Op::v_max3_f32 => single!(|a, b, c| max32(max32(a, b), c)),
        Op::v_med3_f32 => single!(|a, b, c| median(a, b, c)),
        Op::v_floor_f32 => single!(|a| a.floor()),
        Op::v_ceil_f32 => single!(|a| a.ceil()),
        Op::v_trunc_f32 => single!(|a| a.trunc()),
        Op::v_rndne_f32 => single!(|a| a.round_ties_even()),
        Op::v_fract_f32 => single!(|a| fraction(a)),
        Op::v_frexp_mant_f32 => single!(|a| super::super::float::frexp64(f64::from(a)).0 as f32),
        Op::v_frexp_exp_i32_f32 => frexp_exponent,
        Op::v_ldexp_f32 => ldexp,
        _ => return None,
    })
}

/// Below one, also where `a - floor(a)` rounds to one.
fn fraction(a: f32) -> f32 {
    if a.is_infinite() { f32::NAN } else { (a - a.floor()).min(f32::from_bits(0x3f7f_ffff)) }
}

/// The middle of three; the smallest where one is NaN.
#[inline(always)]
fn median(a: f32, b: f32, c: f32) -> f32 {
    if a.is_nan() || b.is_nan() || c.is_nan() {
        return min32(min32(a, b), c);
    }
    max32(min32(max32(a, b), c), min32(a, b))
}

fn add<const KIND: u8>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (mut a, mut b) = (w.singles(m, 0), w.singles(m, 1));
    match KIND {
        1 => b = b.map(|x| -x),
        2 => a = a.map(|x| -x),
        _ => {}
    }
    let mut out = [0; LANES];
    if w.mode.is_plain32 {
        for l in 0..LANES {
            out[l] = settle32(a[l] + b[l], [a[l], b[l], 0.0]);
        }
    } else {
        for l in 0..LANES {
            let sum = Exact::sum(f64::from(a[l]), f64::from(b[l])).to_f32(w.mode.round32);
            out[l] = settle32(sum, [a[l], b[l], 0.0]);
        }
    }
    w.put_singles(m, &mut out);
    Ok(())
}

fn multiply(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.singles(m, 0), w.singles(m, 1));
    let mut out = [0; LANES];
    if w.mode.is_plain32 {
        for l in 0..LANES {
            out[l] = settle32(a[l] * b[l], [a[l], b[l], 0.0]);
        }
    } else {
        for l in 0..LANES {
            let product = Exact::of(f64::from(a[l]) * f64::from(b[l])).to_f32(w.mode.round32);
            out[l] = settle32(product, [a[l], b[l], 0.0]);
        }
    }
    w.put_singles(m, &mut out);
    Ok(())
}

/// Source 2, or the destination where the instruction accumulates.
fn addend(w: &Wave, m: &Micro, accumulates: bool) -> [f32; LANES] {
    if !accumulates {
        return w.singles(m, 2);
    }
    let x = w.v[usize::from(m.dst)];
    if w.mode.flush_in32 { x.map(|x| f32::from_bits(super::flush32(x))) } else { x.map(f32::from_bits) }
}

fn fused<const ACCUMULATES: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b, c) = (w.singles(m, 0), w.singles(m, 1), addend(w, m, ACCUMULATES));
    let mut out = [0; LANES];
    if w.mode.is_plain32 {
        for l in 0..LANES {
            out[l] = settle32(a[l].mul_add(b[l], c[l]), [a[l], b[l], c[l]]);
        }
    } else {
        for l in 0..LANES {
            let sum = Exact::sum(f64::from(a[l]) * f64::from(b[l]), f64::from(c[l])).to_f32(w.mode.round32);
            out[l] = settle32(sum, [a[l], b[l], c[l]]);
        }
    }
    w.put_singles(m, &mut out);
    Ok(())
}

/// Two roundings, and no subnormals whatever MODE says.
fn unfused<const ACCUMULATES: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b, c) = (w.singles(m, 0), w.singles(m, 1), addend(w, m, ACCUMULATES));
    let flush = |x: f32| f32::from_bits(super::flush32(x.to_bits()));
    let mut out: Lanes = std::array::from_fn(|l| {
        let (a, b, c) = (flush(a[l]), flush(b[l]), flush(c[l]));
        let product = flush(Exact::of(f64::from(a) * f64::from(b)).to_f32(w.mode.round32));
        let sum = Exact::sum(f64::from(product), f64::from(c)).to_f32(w.mode.round32);
        super::flush32(settle32(sum, [a, b, c]))
    });
    w.put_singles(m, &mut out);
    Ok(())
}

/// Minimum and maximum; in IEEE mode a signalling NaN gives a quiet one.
fn extreme<const IS_MAX: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.singles(m, 0), w.singles(m, 1));
    let mut out = [0; LANES];
    let ieee = w.mode.is_ieee;
    for l in 0..LANES {
        let (x, y) = (a[l], b[l]);
        let plain = if IS_MAX { max32(x, y) } else { min32(x, y) };
        let signals = |x: f32| x.is_nan() && x.to_bits() & 0x40_0000 == 0;
        let bits = if ieee & signals(x) {
            x.to_bits() | 0x40_0000
        } else if ieee & signals(y) {
            y.to_bits() | 0x40_0000
        } else {
            plain.to_bits()
        };
        out[l] = bits;
    }
    w.put_singles(m, &mut out);
    Ok(())
}

fn frexp_exponent(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.singles(m, 0);
    let out = a.map(|a| super::super::float::frexp64(f64::from(a)).1 as u32);
    w.put32(m, &out);
    Ok(())
}

fn ldexp(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, e) = (w.singles(m, 0), w.bits(m, 1));
    let mut out: Lanes = std::array::from_fn(|l| settle32(ldexp32(a[l], e[l] as i32), [a[l], 0.0, 0.0]));
    w.put_singles(m, &mut out);
    Ok(())
}
