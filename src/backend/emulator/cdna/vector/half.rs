//! Half-precision arithmetic on the low half of a register, or the high one where op_sel says so.

use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::float::{Exact, Rounding, f16_to_f32, fma16, frexp64, ldexp32, max32, min32};
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{Lanes, Wave};

/// Half-precision bits of a value, with NaN from the inputs as in [`super::super::float::settle32`].
pub(super) fn settle16(value: Exact, rounding: Rounding, inputs: [f32; 3]) -> u32 {
    if value.high.is_nan() {
        let from = inputs.iter().find(|x| x.is_nan());
        return from.map_or(0x7e00, |x| u32::from(super::super::float::f32_to_f16(*x)) | 0x200);
    }
    u32::from(value.to_f16(rounding))
}

/// A function of widened halves whose value is a single or [`Exact`].
macro_rules! half {
    ($keeps:literal, |$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.halves_f32(m, 0);
            let round = w.mode.round64;
            let mut out: Lanes = std::array::from_fn(|l| {
                let $a: f32 = a[l];
                settle16(Value::from($body).0, round, [a[l], 0.0, 0.0])
            });
            w.put_halves(m, &mut out, $keeps);
            Ok(())
        }
        run as Handler
    }};
    ($keeps:literal, |$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b) = (w.halves_f32(m, 0), w.halves_f32(m, 1));
            let round = w.mode.round64;
            let mut out: Lanes = std::array::from_fn(|l| {
                let ($a, $b): (f32, f32) = (a[l], b[l]);
                settle16(Value::from($body).0, round, [a[l], b[l], 0.0])
            });
            w.put_halves(m, &mut out, $keeps);
            Ok(())
        }
        run as Handler
    }};
    ($keeps:literal, |$a:ident, $b:ident, $c:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b, c) = (w.halves_f32(m, 0), w.halves_f32(m, 1), w.halves_f32(m, 2));
            let round = w.mode.round64;
            let mut out: Lanes = std::array::from_fn(|l| {
                let ($a, $b, $c): (f32, f32, f32) = (a[l], b[l], c[l]);
                settle16(Value::from($body).0, round, [a[l], b[l], c[l]])
            });
            w.put_halves(m, &mut out, $keeps);
            Ok(())
        }
        run as Handler
    }};
}

/// What a formula may give.
struct Value(Exact);

impl From<f32> for Value {
    fn from(x: f32) -> Value {
        Value(Exact::of(f64::from(x)))
    }
}

impl From<f64> for Value {
    fn from(x: f64) -> Value {
        Value(Exact::of(x))
    }
}

impl From<Exact> for Value {
    fn from(x: Exact) -> Value {
        Value(x)
    }
}

pub(super) fn handler(op: Op) -> Option<Handler> {
    arithmetic(op).or_else(|| functions(op))
}

// Sums and products of halves are exact in double precision.
fn arithmetic(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_add_f16 => half!(false, |a, b| f64::from(a) + f64::from(b)),
        Op::v_sub_f16 => half!(false, |a, b| f64::from(a) - f64::from(b)),
        Op::v_subrev_f16 => half!(false, |a, b| f64::from(b) - f64::from(a)),
        Op::v_mul_f16 => half!(false, |a, b| f64::from(a) * f64::from(b)),
        Op::v_min_f16 => half!(false, |a, b| min32(a, b)),
        Op::v_max_f16 => half!(false, |a, b| max32(a, b)),
        Op::v_min3_f16 => half!(true, |a, b, c| min32(min32(a, b), c)),
        Op::v_max3_f16 => half!(true, |a, b, c| max32(max32(a, b), c)),
        Op::v_med3_f16 => half!(true, |a, b, c| max32(min32(max32(a, b), c), min32(a, b))),
        Op::v_fma_f16 => half!(true, |a, b, c| fma16(a, b, c)),
        Op::v_mad_f16 => half!(true, |a, b, c| twice_rounded(a, b, c)),
        Op::v_madmk_f16 | Op::v_madak_f16 => half!(true, |a, b, c| twice_rounded(a, b, c)),
        Op::v_mac_f16 => multiply_accumulate,
        Op::v_div_fixup_f16 => half!(true, |q, d, n| fixup(q, d, n)),
        // The old names clear the other half.
        Op::v_fma_legacy_f16 => half!(false, |a, b, c| fma16(a, b, c)),
        Op::v_mad_legacy_f16 => half!(false, |a, b, c| twice_rounded(a, b, c)),
        Op::v_div_fixup_legacy_f16 => half!(false, |q, d, n| fixup(q, d, n)),
        _ => return None,
    })
}

fn functions(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_floor_f16 => half!(false, |a| a.floor()),
        Op::v_ceil_f16 => half!(false, |a| a.ceil()),
        Op::v_trunc_f16 => half!(false, |a| a.trunc()),
        Op::v_rndne_f16 => half!(false, |a| a.round_ties_even()),
        // Below one, as in single precision.
        Op::v_fract_f16 => half!(false, |a| (a - a.floor()).min(0.999_511_7)),
        Op::v_rcp_f16 => half!(false, |a| 1.0 / f64::from(a)),
        Op::v_sqrt_f16 => half!(false, |a| f64::from(a).sqrt()),
        Op::v_rsq_f16 => half!(false, |a| 1.0 / f64::from(a).sqrt()),
        Op::v_log_f16 => half!(false, |a| f64::from(a).log2()),
        Op::v_exp_f16 => half!(false, |a| f64::from(a).exp2()),
        Op::v_sin_f16 => half!(false, |a| super::special::turn(f64::from(a), f64::sin, 0.0)),
        Op::v_cos_f16 => half!(false, |a| super::special::turn(f64::from(a), f64::cos, 1.0)),
        Op::v_frexp_mant_f16 => half!(false, |a| frexp64(f64::from(a)).0),
        Op::v_frexp_exp_i16_f16 => frexp_exponent,
        Op::v_ldexp_f16 => ldexp,
        _ => return None,
    })
}

fn twice_rounded(a: f32, b: f32, c: f32) -> f64 {
    let product = Exact::of(f64::from(a) * f64::from(b)).to_f16(Rounding::Nearest);
    f64::from(f16_to_f32(product)) + f64::from(c)
}

fn fixup(q: f32, d: f32, n: f32) -> f32 {
    let sign = (d.to_bits() ^ n.to_bits()) & 0x8000_0000;
    let signed = |x: f32| f32::from_bits(x.to_bits() & 0x7fff_ffff | sign);
    if n.is_nan() {
        n
    } else if d.is_nan() {
        d
    } else if (d == 0.0 && n == 0.0) || (d.is_infinite() && n.is_infinite()) {
        f32::NAN
    } else if d == 0.0 || n.is_infinite() {
        signed(f32::INFINITY)
    } else if d.is_infinite() || n == 0.0 {
        signed(0.0)
    } else {
        signed(q)
    }
}

fn multiply_accumulate(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.halves_f32(m, 0), w.halves_f32(m, 1));
    let c = w.v[usize::from(m.dst)].map(|x| f16_to_f32(x as u16));
    let round = w.mode.round64;
    let mut out: Lanes =
        std::array::from_fn(|l| settle16(Exact::of(twice_rounded(a[l], b[l], c[l])), round, [a[l], b[l], c[l]]));
    w.put_halves(m, &mut out, true);
    Ok(())
}

fn frexp_exponent(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let out = w.halves_f32(m, 0).map(|a| frexp64(f64::from(a)).1 as u32 & 0xffff);
    w.put16(m, &out, false);
    Ok(())
}

fn ldexp(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, e) = (w.halves_f32(m, 0), w.halves(m, 1));
    let round = w.mode.round64;
    let mut out: Lanes = std::array::from_fn(|l| {
        // Single precision holds the product exactly while the exponent is bounded like this.
        let e = i32::from(e[l] as i16).clamp(-60, 60);
        settle16(Exact::of(f64::from(ldexp32(a[l], e))), round, [a[l], 0.0, 0.0])
    });
    w.put_halves(m, &mut out, false);
    Ok(())
}
