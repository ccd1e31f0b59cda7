//! Scalar arithmetic.

mod compare;
mod logic;

use super::decode::Op;
use super::micro::{Handler, Micro, Step};
use super::shared::Shared;
use super::wave::Wave;

/// The function of a scalar instruction, if it is one.
pub(super) fn handler(op: Op) -> Option<Handler> {
    sums(op)
        .or_else(|| products(op))
        .or_else(|| moves(op))
        .or_else(|| immediate(op))
        .or_else(|| logic::handler(op))
        .or_else(|| compare::handler(op))
}

impl Wave {
    /// Writes the 32-bit result of a scalar instruction.
    #[inline]
    fn put_scalar(&mut self, m: &Micro, value: u32) {
        self.s[usize::from(m.dst) & 127] = value;
    }
}

/// A 32-bit instruction that leaves SCC alone, or sets it by the second value.
macro_rules! scalar {
    (|$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b) = (w.scalar(m.src[0]), w.scalar(m.src[1]));
            w.put_scalar(m, $body);
            Ok(())
        }
        run as Handler
    }};
    (scc |$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b) = (w.scalar(m.src[0]), w.scalar(m.src[1]));
            let (value, scc): (u32, bool) = $body;
            w.put_scalar(m, value);
            w.scc = scc;
            Ok(())
        }
        run as Handler
    }};
    (with $in:ident |$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b, $in) = (w.scalar(m.src[0]), w.scalar(m.src[1]), w.scc);
            let (value, scc): (u32, bool) = $body;
            w.put_scalar(m, value);
            w.scc = scc;
            Ok(())
        }
        run as Handler
    }};
}
use scalar;

fn sums(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_add_u32 => scalar!(scc | a, b | a.overflowing_add(b)),
        Op::s_sub_u32 => scalar!(scc | a, b | a.overflowing_sub(b)),
        Op::s_add_i32 => scalar!(scc | a, b | of_signed((a as i32).overflowing_add(b as i32))),
        Op::s_sub_i32 => scalar!(scc | a, b | of_signed((a as i32).overflowing_sub(b as i32))),
        Op::s_addc_u32 => scalar!(with carry |a, b| {
            let sum = u64::from(a) + u64::from(b) + u64::from(carry);
            (sum as u32, sum >> 32 != 0)
        }),
        Op::s_subb_u32 => scalar!(with carry |a, b| {
            let rest = u64::from(a).wrapping_sub(u64::from(b)).wrapping_sub(u64::from(carry));
            (rest as u32, rest >> 32 != 0)
        }),
        Op::s_min_i32 => scalar!(scc | a, b | (if (a as i32) < b as i32 { a } else { b }, (a as i32) < b as i32)),
        Op::s_max_i32 => scalar!(scc | a, b | (if a as i32 > b as i32 { a } else { b }, a as i32 > b as i32)),
        Op::s_min_u32 => scalar!(scc | a, b | (a.min(b), a < b)),
        Op::s_max_u32 => scalar!(scc | a, b | (a.max(b), a > b)),
        Op::s_absdiff_i32 => scalar!(
            scc | a,
            b | {
                let x = (a as i32).wrapping_sub(b as i32).unsigned_abs();
                (x, x != 0)
            }
        ),
        Op::s_abs_i32 => scalar!(
            scc | a,
            _b | {
                let x = (a as i32).unsigned_abs();
                (x, x != 0)
            }
        ),
        Op::s_lshl1_add_u32 => scalar!(scc | a, b | shifted(a, b, 1)),
        Op::s_lshl2_add_u32 => scalar!(scc | a, b | shifted(a, b, 2)),
        Op::s_lshl3_add_u32 => scalar!(scc | a, b | shifted(a, b, 3)),
        Op::s_lshl4_add_u32 => scalar!(scc | a, b | shifted(a, b, 4)),
        _ => return None,
    })
}

fn of_signed((value, over): (i32, bool)) -> (u32, bool) {
    (value as u32, over)
}

fn shifted(a: u32, b: u32, by: u32) -> (u32, bool) {
    let sum = (u64::from(a) << by) + u64::from(b);
    (sum as u32, sum >> 32 != 0)
}

fn products(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_mul_i32 => scalar!(|a, b| a.wrapping_mul(b)),
        Op::s_mul_hi_u32 => scalar!(|a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        Op::s_mul_hi_i32 => scalar!(|a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        Op::s_pack_ll_b32_b16 => scalar!(|a, b| a & 0xffff | b << 16),
        Op::s_pack_lh_b32_b16 => scalar!(|a, b| a & 0xffff | b & 0xffff_0000),
        Op::s_pack_hh_b32_b16 => scalar!(|a, b| a >> 16 | b & 0xffff_0000),
        Op::s_bfm_b32 => scalar!(|a, b| ((1u32 << (a & 31)) - 1) << (b & 31)),
        Op::s_sext_i32_i8 => scalar!(|a, _b| a as i8 as u32),
        Op::s_sext_i32_i16 => scalar!(|a, _b| a as i16 as u32),
        Op::s_brev_b32 => scalar!(|a, _b| a.reverse_bits()),
        Op::s_ff0_i32_b32 => scalar!(|a, _b| first(u64::from(!a))),
        Op::s_ff1_i32_b32 => scalar!(|a, _b| first(u64::from(a))),
        Op::s_flbit_i32_b32 => scalar!(|a, _b| if a == 0 { u32::MAX } else { a.leading_zeros() }),
        Op::s_flbit_i32 => scalar!(|a, _b| match (a as i32 ^ (a as i32 >> 31)).leading_zeros() {
            32 => u32::MAX,
            n => n,
        }),
        Op::s_ff0_i32_b64 => of_wide::<0>,
        Op::s_ff1_i32_b64 => of_wide::<1>,
        Op::s_flbit_i32_b64 => of_wide::<2>,
        Op::s_flbit_i32_i64 => of_wide::<3>,
        Op::s_bitset0_b32 => bit_set::<false>,
        Op::s_bitset1_b32 => bit_set::<true>,
        _ => return None,
    })
}

fn first(x: u64) -> u32 {
    if x == 0 { u32::MAX } else { x.trailing_zeros() }
}

fn of_wide<const KIND: u8>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.scalar64(m.src[0]);
    let leading = |x: u64| if x == 0 { u32::MAX } else { x.leading_zeros() };
    let value = match KIND {
        0 => first(!a),
        1 => first(a),
        2 => leading(a),
        _ => leading((a as i64 ^ (a as i64 >> 63)) as u64),
    };
    w.put_scalar(m, value);
    Ok(())
}

fn bit_set<const VALUE: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let bit = 1 << (w.scalar(m.src[0]) & 31);
    let old = w.s[usize::from(m.dst) & 127];
    w.put_scalar(m, if VALUE { old | bit } else { old & !bit });
    Ok(())
}

fn moves(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_mov_b32 => scalar!(|a, _b| a),
        Op::s_mov_b64 => mov64,
        Op::s_cmov_b32 => cmov::<false>,
        Op::s_cmov_b64 => cmov::<true>,
        Op::s_cselect_b32 => select::<false>,
        Op::s_cselect_b64 => select::<true>,
        _ => return None,
    })
}

fn mov64(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.scalar64(m.src[0]);
    w.set_pair(usize::from(m.dst), a);
    Ok(())
}

fn cmov<const IS_WIDE: bool>(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    if !w.scc {
        return Ok(());
    }
    if IS_WIDE {
        return mov64(w, m, sh);
    }
    let a = w.scalar(m.src[0]);
    w.put_scalar(m, a);
    Ok(())
}

fn select<const IS_WIDE: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let source = m.src[usize::from(!w.scc)];
    if IS_WIDE {
        let value = w.scalar64(source);
        w.set_pair(usize::from(m.dst), value);
    } else {
        let value = w.scalar(source);
        w.put_scalar(m, value);
    }
    Ok(())
}

/// Instructions with a 16-bit immediate whose destination is also a source.
fn immediate(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_movk_i32 => move_immediate::<false>,
        Op::s_cmovk_i32 => move_immediate::<true>,
        Op::s_addk_i32 => add_immediate,
        Op::s_mulk_i32 => multiply_immediate,
        _ => return None,
    })
}

fn move_immediate<const IS_CONDITIONAL: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    if !IS_CONDITIONAL || w.scc {
        w.put_scalar(m, m.imm as u32);
    }
    Ok(())
}

fn add_immediate(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (sum, over) = (w.s[usize::from(m.dst) & 127] as i32).overflowing_add(m.imm);
    w.put_scalar(m, sum as u32);
    w.scc = over;
    Ok(())
}

fn multiply_immediate(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let product = (w.s[usize::from(m.dst) & 127] as i32).wrapping_mul(m.imm);
    w.put_scalar(m, product as u32);
    Ok(())
}
