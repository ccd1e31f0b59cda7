//! What atomics make of memory: functions of the old value, the datum, and for a compare-and-swap the second datum.

use crate::backend::emulator::cdna::float::{f16_to_f32, f32_to_f16, max32, max64, min32, min64};
use crate::backend::emulator::cdna::micro::Update;

fn single(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn bits(x: f32) -> u64 {
    u64::from(x.to_bits())
}

/// The function `kind` on numbers of type `number`.
pub(super) fn update(kind: &str, number: &str) -> Option<Update> {
    Some(match (kind, number) {
        ("add", "u32") => |a, b, _| u64::from((a as u32).wrapping_add(b as u32)),
        ("sub", "u32") => |a, b, _| u64::from((a as u32).wrapping_sub(b as u32)),
        ("rsub", "u32") => |a, b, _| u64::from((b as u32).wrapping_sub(a as u32)),
        ("add", "u64") => |a, b, _| a.wrapping_add(b),
        ("sub", "u64") => |a, b, _| a.wrapping_sub(b),
        ("rsub", "u64") => |a, b, _| b.wrapping_sub(a),
        ("inc", _) => |a, b, _| if a >= b { 0 } else { a + 1 },
        ("dec", _) => |a, b, _| if a == 0 || a > b { b } else { a - 1 },
        ("min", "i32") => |a, b, _| u64::from((a as i32).min(b as i32) as u32),
        ("max", "i32") => |a, b, _| u64::from((a as i32).max(b as i32) as u32),
        ("min", "i64") => |a, b, _| (a as i64).min(b as i64) as u64,
        ("max", "i64") => |a, b, _| (a as i64).max(b as i64) as u64,
        ("min", "u32" | "u64") => |a, b, _| a.min(b),
        ("max", "u32" | "u64") => |a, b, _| a.max(b),
        ("and", _) => |a, b, _| a & b,
        ("or", _) => |a, b, _| a | b,
        ("xor", _) => |a, b, _| a ^ b,
        ("swap" | "wrxchg", _) => |_, b, _| b,
        ("mskor", _) => |a, b, c| a & !b | c,
        // The data of global memory are the new value and the one compared with; those of LDS the other way round.
        ("cmpswap", _) => |a, b, c| if a == c { b } else { a },
        ("cmpst", "b32" | "b64") => |a, b, c| if a == b { c } else { a },
        ("cmpst", "f32") => |a, b, c| if single(a) == single(b) { c } else { a },
        ("cmpst", "f64") => |a, b, c| if f64::from_bits(a) == f64::from_bits(b) { c } else { a },
        _ => return float(kind, number),
    })
}

/// Sums and extremes of floats, rounded to nearest, with subnormals.
fn float(kind: &str, number: &str) -> Option<Update> {
    Some(match (kind, number) {
        ("add", "f32") => |a, b, _| bits(single(a) + single(b)),
        ("min", "f32") => |a, b, _| bits(min32(single(a), single(b))),
        ("max", "f32") => |a, b, _| bits(max32(single(a), single(b))),
        ("add", "f64") => |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        ("min", "f64") => |a, b, _| min64(f64::from_bits(a), f64::from_bits(b)).to_bits(),
        ("max", "f64") => |a, b, _| max64(f64::from_bits(a), f64::from_bits(b)).to_bits(),
        ("pk_add", "f16") => |a, b, _| {
            let part = |s: u32| u64::from(f32_to_f16(f16_to_f32((a >> s) as u16) + f16_to_f32((b >> s) as u16))) << s;
            part(0) | part(16)
        },
        ("pk_add", "bf16") => |a, b, _| {
            let wide = |x: u64| f32::from_bits((x as u32) << 16);
            let part = |s: u32| u64::from(half::bf16::from_f32(wide(a >> s) + wide(b >> s)).to_bits()) << s;
            part(0) | part(16)
        },
        _ => return None,
    })
}
