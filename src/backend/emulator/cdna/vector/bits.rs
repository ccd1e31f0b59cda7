//! Bits of 32-bit registers, and 16-bit integers.

use super::int;
use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{LANES, Lanes, VCC, Wave};

pub(super) fn handler(op: Op) -> Option<Handler> {
    logic(op).or_else(|| fields(op)).or_else(|| short(op)).or_else(|| moves(op))
}

fn logic(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_and_b32 => int!(|a, b| a & b),
        Op::v_or_b32 => int!(|a, b| a | b),
        Op::v_xor_b32 => int!(|a, b| a ^ b),
        Op::v_xnor_b32 => int!(|a, b| !(a ^ b)),
        Op::v_not_b32 => int!(|a| !a),
        Op::v_lshlrev_b32 => int!(|a, b| b << (a & 31)),
        Op::v_lshrrev_b32 => int!(|a, b| b >> (a & 31)),
        Op::v_ashrrev_i32 => int!(|a, b| (b as i32 >> (a & 31)) as u32),
        Op::v_lshl_or_b32 => int!(|a, b, c| a << (b & 31) | c),
        Op::v_and_or_b32 => int!(|a, b, c| a & b | c),
        Op::v_or3_b32 => int!(|a, b, c| a | b | c),
        Op::v_bfrev_b32 => int!(|a| a.reverse_bits()),
        Op::v_ffbh_u32 => int!(|a| if a == 0 { u32::MAX } else { a.leading_zeros() }),
        Op::v_ffbl_b32 => int!(|a| if a == 0 { u32::MAX } else { a.trailing_zeros() }),
        Op::v_ffbh_i32 => int!(|a| match (a as i32 ^ (a as i32 >> 31)).leading_zeros() {
            32 => u32::MAX,
            n => n,
        }),
        Op::v_bcnt_u32_b32 => int!(|a, b| a.count_ones().wrapping_add(b)),
        _ => return None,
    })
}

fn fields(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_bfe_u32 => int!(|a, b, c| (a >> (b & 31)) & ((1 << (c & 31)) - 1)),
        Op::v_bfe_i32 => int!(|a, b, c| match c & 31 {
            0 => 0,
            n => {
                let field = a >> (b & 31);
                ((field << (32 - n)) as i32 >> (32 - n)) as u32
            }
        }),
        Op::v_bfi_b32 => int!(|a, b, c| a & b | !a & c),
        Op::v_bfm_b32 => int!(|a, b| ((1 << (a & 31)) - 1) << (b & 31)),
        Op::v_alignbit_b32 => int!(|a, b, c| ((u64::from(a) << 32 | u64::from(b)) >> (c & 31)) as u32),
        Op::v_alignbyte_b32 => int!(|a, b, c| ((u64::from(a) << 32 | u64::from(b)) >> (8 * (c & 3))) as u32),
        Op::v_perm_b32 => int!(|a, b, c| permute(u64::from(a) << 32 | u64::from(b), c)),
        Op::v_lerp_u8 => int!(|a, b, c| {
            let byte = |s: u32| (((a >> s & 0xff) + (b >> s & 0xff) + (c >> s & 1)) >> 1) << s;
            byte(0) | byte(8) | byte(16) | byte(24)
        }),
        _ => return None,
    })
}

/// Four bytes chosen from eight by the bytes of `select`: 8 to 11 repeat a sign, 12 is zero, 13 and above all ones.
fn permute(data: u64, select: u32) -> u32 {
    let byte = |s: u8| match s {
        0..=7 => (data >> (8 * s)) as u8,
        8..=11 => 0u8.wrapping_sub((data >> (16 * (s - 8) + 15)) as u8 & 1),
        12 => 0,
        _ => 0xff,
    };
    u32::from_le_bytes(select.to_le_bytes().map(byte))
}

/// Handlers of 16-bit integer instructions; `keeps` says whether the other half of the destination stays.
macro_rules! short {
    ($keeps:literal, |$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b) = (w.halves(m, 0), w.halves(m, 1));
            let out: Lanes = std::array::from_fn(|l| {
                let ($a, $b) = (a[l] as u16, b[l] as u16);
                u32::from($body)
            });
            w.put16(m, &out, $keeps);
            Ok(())
        }
        run as Handler
    }};
    ($keeps:literal, |$a:ident, $b:ident, $c:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let (a, b, c) = (w.halves(m, 0), w.halves(m, 1), w.halves(m, 2));
            let out: Lanes = std::array::from_fn(|l| {
                let ($a, $b, $c) = (a[l] as u16, b[l] as u16, c[l] as u16);
                u32::from($body)
            });
            w.put16(m, &out, $keeps);
            Ok(())
        }
        run as Handler
    }};
}

fn short(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_add_u16 => short!(false, |a, b| a.wrapping_add(b)),
        Op::v_sub_u16 => short!(false, |a, b| a.wrapping_sub(b)),
        Op::v_subrev_u16 => short!(false, |a, b| b.wrapping_sub(a)),
        Op::v_mul_lo_u16 => short!(false, |a, b| a.wrapping_mul(b)),
        Op::v_lshlrev_b16 => short!(false, |a, b| b << (a & 15)),
        Op::v_lshrrev_b16 => short!(false, |a, b| b >> (a & 15)),
        Op::v_ashrrev_i16 => short!(false, |a, b| (b as i16 >> (a & 15)) as u16),
        Op::v_min_u16 => short!(false, |a, b| a.min(b)),
        Op::v_max_u16 => short!(false, |a, b| a.max(b)),
        Op::v_min_i16 => short!(false, |a, b| (a as i16).min(b as i16) as u16),
        Op::v_max_i16 => short!(false, |a, b| (a as i16).max(b as i16) as u16),
        Op::v_add_i16 => short!(false, |a, b| a.wrapping_add(b)),
        Op::v_sub_i16 => short!(false, |a, b| a.wrapping_sub(b)),
        Op::v_mad_u16 => short!(true, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        Op::v_mad_legacy_u16 | Op::v_mad_legacy_i16 => short!(false, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        Op::v_mad_i16 => short!(true, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        Op::v_min3_u16 => short!(true, |a, b, c| a.min(b).min(c)),
        Op::v_max3_u16 => short!(true, |a, b, c| a.max(b).max(c)),
        Op::v_med3_u16 => short!(true, |a, b, c| a.max(b).min(c).max(a.min(b))),
        Op::v_min3_i16 => short!(true, |a, b, c| (a as i16).min(b as i16).min(c as i16) as u16),
        Op::v_max3_i16 => short!(true, |a, b, c| (a as i16).max(b as i16).max(c as i16) as u16),
        Op::v_med3_i16 => short!(true, |a, b, c| {
            let (a, b, c) = (a as i16, b as i16, c as i16);
            a.max(b).min(c).max(a.min(b)) as u16
        }),
        _ => return None,
    })
}

fn moves(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_mov_b32 | Op::v_accvgpr_read_b32 | Op::v_accvgpr_write_b32 | Op::v_accvgpr_mov_b32 => int!(|a| a),
        Op::v_cndmask_b32 => select,
        Op::v_swap_b32 => swap,
        Op::v_pack_b32_f16 => pack_halves,
        Op::v_mbcnt_lo_u32_b32 => count_below::<false>,
        Op::v_mbcnt_hi_u32_b32 => count_below::<true>,
        _ => return None,
    })
}

/// One of two sources, by a mask.
fn select(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (mut a, mut b) = (w.bits(m, 0), w.bits(m, 1));
    super::sign(&mut a, m, 0, super::SIGN);
    super::sign(&mut b, m, 1, super::SIGN);
    let mask = w.scalar64(m.src[2]);
    let halves = [mask as u32, (mask >> 32) as u32];
    let mut out = [0; LANES];
    for l in 0..LANES {
        let all = 0u32.wrapping_sub(halves[l / 32] >> (l % 32) & 1);
        out[l] = (a[l] & !all) | (b[l] & all);
    }
    w.put32(m, &out);
    Ok(())
}

fn swap(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let crate::backend::emulator::cdna::micro::Source::Vector(other) = m.src[0] else { return Ok(()) };
    let (a, b) = (w.v[usize::from(m.dst)], w.v[usize::from(other)]);
    w.put(m.dst, &b);
    w.put(other, &a);
    Ok(())
}

fn pack_halves(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (mut a, mut b) = (w.halves(m, 0), w.halves(m, 1));
    super::sign(&mut a, m, 0, 0x8000);
    super::sign(&mut b, m, 1, 0x8000);
    w.put32(m, &std::array::from_fn(|l| a[l] | b[l] << 16));
    Ok(())
}

/// How many bits of a half of a mask are set for lanes below one's own.
fn count_below<const IS_HIGH: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (a, b) = (w.bits(m, 0), w.bits(m, 1));
    let out = std::array::from_fn(|l| {
        let below = if IS_HIGH { (l as u32).saturating_sub(32) } else { (l as u32).min(32) };
        let mask = ((1u64 << below) - 1) as u32;
        (a[l] & mask).count_ones().wrapping_add(b[l])
    });
    w.put32(m, &out);
    Ok(())
}

const _: () = assert!(VCC == 106);
