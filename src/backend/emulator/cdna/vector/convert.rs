//! Conversions between number types.

use super::half::settle16;
use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::float::{Exact, Rounding, settle32, settle64};
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{LANES, Lanes, Wave, Wide};

/// From integers (`bits`) to single precision; the value is exact in a double.
macro_rules! to_single {
    (|$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.bits(m, 0);
            let mut out = [0; LANES];
            if w.mode.is_plain32 {
                for l in 0..LANES {
                    let $a: u32 = a[l];
                    let x: f64 = $body;
                    out[l] = (x as f32).to_bits();
                }
            } else {
                for l in 0..LANES {
                    let $a: u32 = a[l];
                    out[l] = Exact::of($body).to_f32(w.mode.round32).to_bits();
                }
            }
            w.put_singles(m, &mut out);
            Ok(())
        }
        run as Handler
    }};
}

/// From single precision to bits.
macro_rules! from_single {
    (|$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.singles(m, 0);
            let mut out = [0; LANES];
            for l in 0..LANES {
                let $a: f32 = a[l];
                out[l] = $body;
            }
            w.put32(m, &out);
            Ok(())
        }
        run as Handler
    }};
}

/// From double precision to bits.
macro_rules! from_double {
    (|$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.doubles(m, 0);
            let out: Lanes = std::array::from_fn(|l| {
                let $a: f64 = a[l];
                $body
            });
            w.put32(m, &out);
            Ok(())
        }
        run as Handler
    }};
}

/// From integers to half precision, from half precision to integers.
macro_rules! short {
    (to |$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.halves(m, 0);
            let round = w.mode.round64;
            let mut out: Lanes = std::array::from_fn(|l| {
                let $a = a[l] as u16;
                settle16(Exact::of($body), round, [0.0; 3])
            });
            w.put_halves(m, &mut out, false);
            Ok(())
        }
        run as Handler
    }};
    (from |$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let a = w.halves_f32(m, 0);
            let out: Lanes = std::array::from_fn(|l| {
                let $a: f32 = a[l];
                u32::from($body)
            });
            w.put16(m, &out, false);
            Ok(())
        }
        run as Handler
    }};
}

/// Two sources packed into the halves of one result.
macro_rules! pack2 {
    (|$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b) = (w.singles(m, 0), w.singles(m, 1));
            let part = |$a: f32| -> u16 { $body };
            let out: Lanes = std::array::from_fn(|l| u32::from(part(a[l])) | u32::from(part(b[l])) << 16);
            w.put32(m, &out);
            Ok(())
        }
        run as Handler
    }};
    (bits |$a:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b) = (w.bits(m, 0), w.bits(m, 1));
            let part = |$a: u32| -> u16 { $body };
            let out: Lanes = std::array::from_fn(|l| u32::from(part(a[l])) | u32::from(part(b[l])) << 16);
            w.put32(m, &out);
            Ok(())
        }
        run as Handler
    }};
}

pub(super) fn handler(op: Op) -> Option<Handler> {
    single(op).or_else(|| double(op)).or_else(|| half(op))
}

fn single(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_cvt_f32_i32 => to_single!(|a| f64::from(a as i32)),
        Op::v_cvt_f32_u32 => to_single!(|a| f64::from(a)),
        Op::v_cvt_f32_ubyte0 => to_single!(|a| f64::from(a & 0xff)),
        Op::v_cvt_f32_ubyte1 => to_single!(|a| f64::from(a >> 8 & 0xff)),
        Op::v_cvt_f32_ubyte2 => to_single!(|a| f64::from(a >> 16 & 0xff)),
        Op::v_cvt_f32_ubyte3 => to_single!(|a| f64::from(a >> 24)),
        Op::v_cvt_off_f32_i4 => to_single!(|a| f64::from(((a & 15) << 28) as i32 >> 28) / 16.0),
        // Out of range saturates, NaN is zero: as Rust's `as` does.
        Op::v_cvt_u32_f32 => from_single!(|a| a as u32),
        Op::v_cvt_i32_f32 => from_single!(|a| a as i32 as u32),
        Op::v_cvt_rpi_i32_f32 => from_single!(|a| (f64::from(a) + 0.5).floor() as i32 as u32),
        Op::v_cvt_flr_i32_f32 => from_single!(|a| f64::from(a).floor() as i32 as u32),
        Op::v_cvt_pknorm_i16_f32 => pack2!(|a| (a.clamp(-1.0, 1.0) * 32767.0).round_ties_even() as i16 as u16),
        Op::v_cvt_pknorm_u16_f32 => pack2!(|a| (a.clamp(0.0, 1.0) * 65535.0).round_ties_even() as u16),
        Op::v_cvt_pkrtz_f16_f32 => pack2!(|a| settle16(Exact::of(f64::from(a)), Rounding::Zero, [a, 0.0, 0.0]) as u16),
        Op::v_cvt_pk_u16_u32 => pack2!(bits | a | a.min(0xffff) as u16),
        Op::v_cvt_pk_i16_i32 => pack2!(bits | a | (a as i32).clamp(-32768, 32767) as u16),
        _ => return None,
    })
}

fn double(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_cvt_f64_i32 => widen_integer::<true>,
        Op::v_cvt_f64_u32 => widen_integer::<false>,
        Op::v_cvt_f64_f32 => widen_single,
        Op::v_cvt_f32_f64 => narrow_double,
        Op::v_cvt_i32_f64 => from_double!(|a| a as i32 as u32),
        Op::v_cvt_u32_f64 => from_double!(|a| a as u32),
        _ => return None,
    })
}

fn half(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_cvt_f16_f32 => narrow_single,
        Op::v_cvt_f32_f16 => widen_half,
        Op::v_cvt_f16_u16 => short!(to | a | f64::from(a)),
        Op::v_cvt_f16_i16 => short!(to | a | f64::from(a as i16)),
        Op::v_cvt_u16_f16 => short!(from | a | a as u16),
        Op::v_cvt_i16_f16 => short!(from | a | a as i16 as u16),
        Op::v_cvt_norm_i16_f16 => short!(from | a | (a.clamp(-1.0, 1.0) * 32767.0).round_ties_even() as i16 as u16),
        Op::v_cvt_norm_u16_f16 => short!(from | a | (a.clamp(0.0, 1.0) * 65535.0).round_ties_even() as u16),
        _ => return None,
    })
}

fn widen_integer<const IS_SIGNED: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.bits(m, 0);
    let mut out: Wide = a.map(|a| if IS_SIGNED { f64::from(a as i32).to_bits() } else { f64::from(a).to_bits() });
    w.put_doubles(m, &mut out);
    Ok(())
}

fn widen_single(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.singles(m, 0);
    let mut out: Wide = a.map(|a| settle64(f64::from(a), [f64::from(a), 0.0, 0.0]));
    w.put_doubles(m, &mut out);
    Ok(())
}

fn narrow_double(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.doubles(m, 0);
    let mut out: Lanes = a.map(|a| settle32(Exact::of(a).to_f32(w.mode.round32), [a as f32, 0.0, 0.0]));
    w.put_singles(m, &mut out);
    Ok(())
}

fn narrow_single(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.singles(m, 0);
    let round = w.mode.round64;
    let mut out = [0; LANES];
    if round == Rounding::Nearest {
        for l in 0..LANES {
            out[l] = u32::from(super::super::float::f32_to_f16(a[l]));
        }
    } else {
        for l in 0..LANES {
            out[l] = settle16(Exact::of(f64::from(a[l])), round, [a[l], 0.0, 0.0]);
        }
    }
    w.put_halves(m, &mut out, false);
    Ok(())
}

fn widen_half(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.halves_f32(m, 0);
    let mut out = a.map(f32::to_bits);
    w.put_singles(m, &mut out);
    Ok(())
}
