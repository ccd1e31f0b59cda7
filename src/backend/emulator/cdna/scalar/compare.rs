//! Scalar comparisons into SCC.

use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::Wave;

macro_rules! test {
    (|$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b) = (w.scalar(m.src[0]), w.scalar(m.src[1]));
            w.scc = $body;
            Ok(())
        }
        run as Handler
    }};
    (wide |$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b) = (w.scalar64(m.src[0]), w.scalar64(m.src[1]));
            w.scc = $body;
            Ok(())
        }
        run as Handler
    }};
    (signed |$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b) = (w.scalar(m.src[0]) as i32, m.imm);
            w.scc = $body;
            Ok(())
        }
        run as Handler
    }};
    (unsigned |$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b) = (w.scalar(m.src[0]), m.imm as u32 & 0xffff);
            w.scc = $body;
            Ok(())
        }
        run as Handler
    }};
}

pub(super) fn handler(op: Op) -> Option<Handler> {
    registers(op).or_else(|| immediates(op))
}

fn registers(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_cmp_eq_i32 | Op::s_cmp_eq_u32 => test!(|a, b| a == b),
        Op::s_cmp_lg_i32 | Op::s_cmp_lg_u32 => test!(|a, b| a != b),
        Op::s_cmp_gt_i32 => test!(|a, b| a as i32 > b as i32),
        Op::s_cmp_ge_i32 => test!(|a, b| a as i32 >= b as i32),
        Op::s_cmp_lt_i32 => test!(|a, b| (a as i32) < b as i32),
        Op::s_cmp_le_i32 => test!(|a, b| a as i32 <= b as i32),
        Op::s_cmp_gt_u32 => test!(|a, b| a > b),
        Op::s_cmp_ge_u32 => test!(|a, b| a >= b),
        Op::s_cmp_lt_u32 => test!(|a, b| a < b),
        Op::s_cmp_le_u32 => test!(|a, b| a <= b),
        Op::s_bitcmp0_b32 => test!(|a, b| a >> (b & 31) & 1 == 0),
        Op::s_bitcmp1_b32 => test!(|a, b| a >> (b & 31) & 1 == 1),
        Op::s_bitcmp0_b64 => test!(wide | a, b | a >> (b & 63) & 1 == 0),
        Op::s_bitcmp1_b64 => test!(wide | a, b | a >> (b & 63) & 1 == 1),
        Op::s_cmp_eq_u64 => test!(wide | a, b | a == b),
        Op::s_cmp_lg_u64 => test!(wide | a, b | a != b),
        _ => return None,
    })
}

fn immediates(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_cmpk_eq_i32 => test!(signed | a, b | a == b),
        Op::s_cmpk_lg_i32 => test!(signed | a, b | a != b),
        Op::s_cmpk_gt_i32 => test!(signed | a, b | a > b),
        Op::s_cmpk_ge_i32 => test!(signed | a, b | a >= b),
        Op::s_cmpk_lt_i32 => test!(signed | a, b | a < b),
        Op::s_cmpk_le_i32 => test!(signed | a, b | a <= b),
        Op::s_cmpk_eq_u32 => test!(unsigned | a, b | a == b),
        Op::s_cmpk_lg_u32 => test!(unsigned | a, b | a != b),
        Op::s_cmpk_gt_u32 => test!(unsigned | a, b | a > b),
        Op::s_cmpk_ge_u32 => test!(unsigned | a, b | a >= b),
        Op::s_cmpk_lt_u32 => test!(unsigned | a, b | a < b),
        Op::s_cmpk_le_u32 => test!(unsigned | a, b | a <= b),
        _ => return None,
    })
}
