//! Comparisons of all lanes into a mask.

use crate::backend::emulator::cdna::decode::{Number, Op};
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{EXEC, LANES, Wave, pack};

const LESS: u8 = 1;
const EQUAL: u8 = 2;
const GREATER: u8 = 4;
const UNORDERED: u8 = 8;

/// The function of a comparison.
pub(in super::super) fn handler(op: Op, number: Number) -> Option<Handler> {
    Some(match (op, number) {
        (Op::v_cmp | Op::v_cmpx, number) => match number {
            Number::F16 => halves,
            Number::F32 => singles,
            Number::F64 => doubles,
            Number::I16 => short::<true>,
            Number::U16 => short::<false>,
            Number::I32 => signed,
            Number::U32 => unsigned,
            Number::I64 => wide::<true>,
            Number::U64 => wide::<false>,
        },
        (Op::v_cmp_class | Op::v_cmpx_class, Number::F16) => class16,
        (Op::v_cmp_class | Op::v_cmpx_class, Number::F32) => class32,
        (Op::v_cmp_class | Op::v_cmpx_class, Number::F64) => class64,
        _ => return None,
    })
}

#[inline(always)]
fn order<T: PartialOrd>(a: T, b: T) -> u8 {
    (u8::from(a < b) * LESS) | (u8::from(a == b) * EQUAL) | (u8::from(a > b) * GREATER)
}

#[inline(always)]
fn order_float<T: PartialOrd + Copy>(a: T, b: T) -> u8 {
    match order(a, b) {
        0 => UNORDERED,
        relation => relation,
    }
}

/// Writes the lanes whose relation is one of the instruction's; `v_cmpx` writes EXEC as well.
fn finish(w: &mut Wave, m: &Micro, relations: &[u8; LANES]) -> Step {
    let condition = m.flags as u8;
    let mask = pack(|l| relations[l] & condition != 0) & w.exec();
    w.set_pair(usize::from(m.sdst), mask);
    if m.imm != 0 {
        w.set_pair(EXEC, mask);
    }
    Ok(())
}

fn unsigned(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.bits(m, 0), w.bits(m, 1));
    finish(w, m, &std::array::from_fn(|l| order(a[l], b[l])))
}

fn signed(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.bits(m, 0), w.bits(m, 1));
    finish(w, m, &std::array::from_fn(|l| order(a[l] as i32, b[l] as i32)))
}

fn short<const IS_SIGNED: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.halves(m, 0), w.halves(m, 1));
    finish(w, m, &std::array::from_fn(|l| if IS_SIGNED { order(a[l] as i16, b[l] as i16) } else { order(a[l], b[l]) }))
}

fn wide<const IS_SIGNED: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.wide(m.src[0]), w.wide(m.src[1]));
    finish(w, m, &std::array::from_fn(|l| if IS_SIGNED { order(a[l] as i64, b[l] as i64) } else { order(a[l], b[l]) }))
}

fn singles(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.singles(m, 0), w.singles(m, 1));
    finish(w, m, &std::array::from_fn(|l| order_float(a[l], b[l])))
}

fn halves(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.halves_f32(m, 0), w.halves_f32(m, 1));
    finish(w, m, &std::array::from_fn(|l| order_float(a[l], b[l])))
}

fn doubles(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.doubles(m, 0), w.doubles(m, 1));
    finish(w, m, &std::array::from_fn(|l| order_float(a[l], b[l])))
}

/// The class of a float as a bit: signalling and quiet NaN, minus infinity, normal, subnormal, zero; then plus, backwards.
fn class(sign: bool, exponent: u32, top: u32, mantissa: u64, quiet: u64) -> u32 {
    if exponent == top && mantissa != 0 {
        return if mantissa & quiet == 0 { 1 } else { 2 };
    }
    let rank = match (exponent, mantissa) {
        (0, 0) => 3,
        (0, _) => 2,
        (e, _) if e == top => 0,
        _ => 1,
    };
    if sign { 4 << rank } else { 512 >> rank }
}

fn finish_class(w: &mut Wave, m: &Micro, hit: &[bool; LANES]) -> Step {
    let mask = pack(|l| hit[l]) & w.exec();
    w.set_pair(usize::from(m.sdst), mask);
    if m.imm != 0 {
        w.set_pair(EXEC, mask);
    }
    Ok(())
}

fn class32(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (mut a, b) = (w.bits(m, 0), w.bits(m, 1));
    super::sign(&mut a, m, 0, super::SIGN);
    let hit = std::array::from_fn(|l| {
        let x = a[l];
        class(x >> 31 == 1, x >> 23 & 0xff, 0xff, u64::from(x & 0x7f_ffff), 1 << 22) & b[l] != 0
    });
    finish_class(w, m, &hit)
}

fn class16(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (mut a, b) = (w.halves(m, 0), w.bits(m, 1));
    super::sign(&mut a, m, 0, 0x8000);
    let hit = std::array::from_fn(|l| {
        let x = a[l];
        class(x >> 15 & 1 == 1, x >> 10 & 0x1f, 0x1f, u64::from(x & 0x3ff), 1 << 9) & b[l] != 0
    });
    finish_class(w, m, &hit)
}

fn class64(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (mut a, b) = (w.wide(m.src[0]), w.bits(m, 1));
    if m.abs & 1 == 1 {
        a = a.map(|x| x & !(1 << 63));
    }
    if m.neg & 1 == 1 {
        a = a.map(|x| x ^ 1 << 63);
    }
    let hit = std::array::from_fn(|l| {
        let x = a[l];
        class(x >> 63 == 1, (x >> 52 & 0x7ff) as u32, 0x7ff, x & ((1 << 52) - 1), 1 << 51) & b[l] != 0
    });
    finish_class(w, m, &hit)
}
