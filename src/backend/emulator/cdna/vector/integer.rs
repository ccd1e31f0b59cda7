//! 32-bit and 64-bit integer arithmetic.

use super::int;
use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{LANES, Lanes, Wave, Wide, pack};

pub(super) fn handler(op: Op) -> Option<Handler> {
    arithmetic(op).or_else(|| products(op)).or_else(|| carries(op)).or_else(|| wide(op))
}

/// Sums, differences and extremes.
fn arithmetic(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_add_u32 => CLAMPED_ADD,
        Op::v_sub_u32 => CLAMPED_SUB,
        Op::v_subrev_u32 => CLAMPED_SUBREV,
        Op::v_add_i32 => clamped_i32::<false>,
        Op::v_sub_i32 => clamped_i32::<true>,
        Op::v_add3_u32 => int!(|a, b, c| a.wrapping_add(b).wrapping_add(c)),
        Op::v_lshl_add_u32 => int!(|a, b, c| (a << (b & 31)).wrapping_add(c)),
        Op::v_add_lshl_u32 => int!(|a, b, c| a.wrapping_add(b) << (c & 31)),
        Op::v_xad_u32 => int!(|a, b, c| (a ^ b).wrapping_add(c)),
        Op::v_min_u32 => int!(|a, b| a.min(b)),
        Op::v_max_u32 => int!(|a, b| a.max(b)),
        Op::v_min_i32 => int!(|a, b| (a as i32).min(b as i32) as u32),
        Op::v_max_i32 => int!(|a, b| (a as i32).max(b as i32) as u32),
        Op::v_min3_u32 => int!(|a, b, c| a.min(b).min(c)),
        Op::v_max3_u32 => int!(|a, b, c| a.max(b).max(c)),
        Op::v_min3_i32 => int!(|a, b, c| (a as i32).min(b as i32).min(c as i32) as u32),
        Op::v_max3_i32 => int!(|a, b, c| (a as i32).max(b as i32).max(c as i32) as u32),
        Op::v_med3_u32 => int!(|a, b, c| a.max(b).min(c).max(a.min(b))),
        Op::v_med3_i32 => int!(|a, b, c| {
            let (a, b, c) = (a as i32, b as i32, c as i32);
            a.max(b).min(c).max(a.min(b)) as u32
        }),
        Op::v_sad_u32 => int!(|a, b, c| a.abs_diff(b).wrapping_add(c)),
        Op::v_sad_u16 => int!(|a, b, c| {
            let part = |s: u32| (a >> s & 0xffff).abs_diff(b >> s & 0xffff);
            c.wrapping_add(part(0)).wrapping_add(part(16))
        }),
        Op::v_sad_u8 => int!(|a, b, c| c.wrapping_add(bytes_apart(a, b))),
        Op::v_sad_hi_u8 => int!(|a, b, c| c.wrapping_add(bytes_apart(a, b) << 16)),
        _ => return None,
    })
}

fn bytes_apart(a: u32, b: u32) -> u32 {
    a.to_le_bytes().iter().zip(b.to_le_bytes()).map(|(a, b)| u32::from(a.abs_diff(b))).sum()
}

/// Sums that saturate when the instruction clamps.
macro_rules! clamped {
    ($wrapping:ident, $saturating:ident, $first:literal, $second:literal) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b) = (w.bits(m, $first), w.bits(m, $second));
            let mut out = [0; LANES];
            if m.clamp {
                for l in 0..LANES {
                    out[l] = a[l].$saturating(b[l]);
                }
            } else {
                for l in 0..LANES {
                    out[l] = a[l].$wrapping(b[l]);
                }
            }
            w.put32(m, &out);
            Ok(())
        }
        run as Handler
    }};
}

const CLAMPED_ADD: Handler = clamped!(wrapping_add, saturating_add, 0, 1);
const CLAMPED_SUB: Handler = clamped!(wrapping_sub, saturating_sub, 0, 1);
const CLAMPED_SUBREV: Handler = clamped!(wrapping_sub, saturating_sub, 1, 0);

fn clamped_i32<const IS_SUB: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.bits(m, 0), w.bits(m, 1));
    let out: Lanes = std::array::from_fn(|l| {
        let (a, b) = (a[l] as i32, b[l] as i32);
        (match (IS_SUB, m.clamp) {
            (false, false) => a.wrapping_add(b),
            (false, true) => a.saturating_add(b),
            (true, false) => a.wrapping_sub(b),
            (true, true) => a.saturating_sub(b),
        }) as u32
    });
    w.put32(m, &out);
    Ok(())
}

/// The low 24 bits, unsigned and signed.
const fn u24(x: u32) -> u32 {
    x & 0xff_ffff
}

const fn i24(x: u32) -> i64 {
    ((x << 8) as i32 >> 8) as i64
}

fn products(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_mul_lo_u32 => int!(|a, b| a.wrapping_mul(b)),
        Op::v_mul_hi_u32 => int!(|a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        Op::v_mul_hi_i32 => int!(|a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        Op::v_mul_u32_u24 => int!(|a, b| u24(a).wrapping_mul(u24(b))),
        Op::v_mul_i32_i24 => int!(|a, b| (i24(a) * i24(b)) as u32),
        Op::v_mul_hi_u32_u24 => int!(|a, b| ((u64::from(u24(a)) * u64::from(u24(b))) >> 32) as u32),
        Op::v_mul_hi_i32_i24 => int!(|a, b| ((i24(a) * i24(b)) >> 32) as u32),
        Op::v_mad_u32_u24 => int!(|a, b, c| u24(a).wrapping_mul(u24(b)).wrapping_add(c)),
        Op::v_mad_i32_i24 => int!(|a, b, c| ((i24(a) * i24(b)) as u32).wrapping_add(c)),
        Op::v_mad_u32_u16 => int!(|a, b, c| ((a & 0xffff) * (b & 0xffff)).wrapping_add(c)),
        Op::v_mad_i32_i16 => {
            int!(|a, b, c| (i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c as i32) as u32)
        }
        Op::v_dot4_i32_i8 => int!(|a, b, c| {
            let sum: i32 = a
                .to_le_bytes()
                .iter()
                .zip(b.to_le_bytes())
                .map(|(a, b)| i32::from(*a as i8) * i32::from(b as i8))
                .sum();
            sum.wrapping_add(c as i32) as u32
        }),
        Op::v_dot4_u32_u8 => int!(|a, b, c| {
            let sum: u32 = a.to_le_bytes().iter().zip(b.to_le_bytes()).map(|(a, b)| u32::from(*a) * u32::from(b)).sum();
            sum.wrapping_add(c)
        }),
        Op::v_mad_u64_u32 => mad64::<false>,
        Op::v_mad_i64_i32 => mad64::<true>,
        _ => return None,
    })
}

/// 32 x 32 + 64 bits, with the carry out of the sum.
fn mad64<const IS_SIGNED: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b, c) = (w.bits(m, 0), w.bits(m, 1), w.wide(m.src[2]));
    let mut out: Wide = [0; LANES];
    let mut over = [false; LANES];
    for l in 0..LANES {
        let product = if IS_SIGNED {
            (i64::from(a[l] as i32) * i64::from(b[l] as i32)) as u64
        } else {
            u64::from(a[l]) * u64::from(b[l])
        };
        if IS_SIGNED {
            let (sum, carry) = (product as i64).overflowing_add(c[l] as i64);
            (out[l], over[l]) = (sum as u64, carry);
        } else {
            (out[l], over[l]) = product.overflowing_add(c[l]);
        }
    }
    w.put_wide(m.dst, &out);
    w.put_mask(m, pack(|l| over[l]));
    Ok(())
}

/// Sums and differences with carries: the mask of the carry out is the second destination, that of the carry in the third
/// source.
fn carries(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_add_co_u32 => with_carry::<0, false>,
        Op::v_sub_co_u32 => with_carry::<1, false>,
        Op::v_subrev_co_u32 => with_carry::<2, false>,
        Op::v_addc_co_u32 => with_carry::<0, true>,
        Op::v_subb_co_u32 => with_carry::<1, true>,
        Op::v_subbrev_co_u32 => with_carry::<2, true>,
        _ => return None,
    })
}

fn with_carry<const KIND: u8, const HAS_IN: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.bits(m, 0), w.bits(m, 1));
    let (a, b) = if KIND == 2 { (b, a) } else { (a, b) };
    let carry = if HAS_IN { w.scalar64(m.src[2]) } else { 0 };
    let mut out = [0; LANES];
    let mut over = [false; LANES];
    for l in 0..LANES {
        let carry = carry >> l & 1;
        let (a, b) = (u64::from(a[l]), u64::from(b[l]));
        let sum = if KIND == 0 { a + b + carry } else { a.wrapping_sub(b).wrapping_sub(carry) };
        (out[l], over[l]) = (sum as u32, sum >> 32 != 0);
    }
    if m.clamp {
        for l in 0..LANES {
            out[l] = if over[l] { if KIND == 0 { u32::MAX } else { 0 } } else { out[l] };
        }
    }
    let mask = pack(|l| over[l]);
    w.put32(m, &out);
    w.put_mask(m, mask);
    Ok(())
}

/// 64-bit integers in pairs of registers.
fn wide(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_lshl_add_u64 => lshl_add64,
        Op::v_lshlrev_b64 => shift64::<0>,
        Op::v_lshrrev_b64 => shift64::<1>,
        Op::v_ashrrev_i64 => shift64::<2>,
        Op::v_mov_b64 => mov64,
        _ => return None,
    })
}

fn lshl_add64(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b, c) = (w.wide(m.src[0]), w.lanes(m.src[1]), w.wide(m.src[2]));
    let out: Wide = std::array::from_fn(|l| (a[l] << (b[l] & 7)).wrapping_add(c[l]));
    w.put_wide(m.dst, &out);
    Ok(())
}

fn shift64<const KIND: u8>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (by, x) = (w.lanes(m.src[0]), w.wide(m.src[1]));
    let out: Wide = std::array::from_fn(|l| match KIND {
        0 => x[l] << (by[l] & 63),
        1 => x[l] >> (by[l] & 63),
        _ => (x[l] as i64 >> (by[l] & 63)) as u64,
    });
    w.put_wide(m.dst, &out);
    Ok(())
}

fn mov64(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let out = w.wide(m.src[0]);
    w.put_wide(m.dst, &out);
    Ok(())
}
