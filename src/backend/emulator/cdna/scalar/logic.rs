//! Bits of scalar registers, and of EXEC.

use super::scalar;
use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{EXEC, Wave};

pub(super) fn handler(op: Op) -> Option<Handler> {
    narrow(op).or_else(|| wide(op)).or_else(|| masks(op))
}

/// A result whose SCC says that it is not zero.
fn tested(x: u32) -> (u32, bool) {
    (x, x != 0)
}

fn narrow(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_and_b32 => scalar!(scc | a, b | tested(a & b)),
        Op::s_or_b32 => scalar!(scc | a, b | tested(a | b)),
        Op::s_xor_b32 => scalar!(scc | a, b | tested(a ^ b)),
        Op::s_andn2_b32 => scalar!(scc | a, b | tested(a & !b)),
        Op::s_orn2_b32 => scalar!(scc | a, b | tested(a | !b)),
        Op::s_nand_b32 => scalar!(scc | a, b | tested(!(a & b))),
        Op::s_nor_b32 => scalar!(scc | a, b | tested(!(a | b))),
        Op::s_xnor_b32 => scalar!(scc | a, b | tested(!(a ^ b))),
        Op::s_not_b32 => scalar!(scc | a, _b | tested(!a)),
        Op::s_lshl_b32 => scalar!(scc | a, b | tested(a << (b & 31))),
        Op::s_lshr_b32 => scalar!(scc | a, b | tested(a >> (b & 31))),
        Op::s_ashr_i32 => scalar!(scc | a, b | tested((a as i32 >> (b & 31)) as u32)),
        Op::s_bfe_u32 => scalar!(scc | a, b | tested(field(u64::from(a), b, false, 32) as u32)),
        Op::s_bfe_i32 => scalar!(scc | a, b | tested(field(u64::from(a), b, true, 32) as u32)),
        Op::s_bcnt0_i32_b32 => scalar!(scc | a, _b | tested(a.count_zeros())),
        Op::s_bcnt1_i32_b32 => scalar!(scc | a, _b | tested(a.count_ones())),
        _ => return None,
    })
}

/// The field of `x` whose offset is in the low bits of `what` and whose width from bit 16 on.
fn field(x: u64, what: u32, is_signed: bool, size: u32) -> u64 {
    let (offset, width) = (what & (size - 1), (what >> 16 & 0x7f).min(size));
    if width == 0 {
        return 0;
    }
    let shifted = x >> offset;
    let unused = 64 - width;
    let field = shifted << unused;
    if is_signed && offset + width <= size { (field as i64 >> unused) as u64 } else { field >> unused }
}

/// A 64-bit instruction that sets SCC if its result is not zero.
macro_rules! wide {
    (|$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b) = (w.scalar64(m.src[0]), w.scalar64(m.src[1]));
            let value: u64 = $body;
            w.set_pair(usize::from(m.dst), value);
            w.scc = value != 0;
            Ok(())
        }
        run as Handler
    }};
    (scc |$a:ident, $b:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($a, $b) = (w.scalar64(m.src[0]), w.scalar64(m.src[1]));
            let value: u64 = $body;
            w.set_pair(usize::from(m.dst), value);
            Ok(())
        }
        run as Handler
    }};
}

fn wide(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_and_b64 => wide!(|a, b| a & b),
        Op::s_or_b64 => wide!(|a, b| a | b),
        Op::s_xor_b64 => wide!(|a, b| a ^ b),
        Op::s_andn2_b64 => wide!(|a, b| a & !b),
        Op::s_orn2_b64 => wide!(|a, b| a | !b),
        Op::s_nand_b64 => wide!(|a, b| !(a & b)),
        Op::s_nor_b64 => wide!(|a, b| !(a | b)),
        Op::s_xnor_b64 => wide!(|a, b| !(a ^ b)),
        Op::s_not_b64 => wide!(|a, _b| !a),
        Op::s_wqm_b64 => wide!(|a, _b| quads(a) * 15),
        Op::s_quadmask_b64 => wide!(|a, _b| gather_quads(quads(a))),
        Op::s_lshl_b64 => wide!(|a, b| a << (b & 63)),
        Op::s_lshr_b64 => wide!(|a, b| a >> (b & 63)),
        Op::s_ashr_i64 => wide!(|a, b| (a as i64 >> (b & 63)) as u64),
        Op::s_bfe_u64 => wide!(|a, b| field(a, b as u32, false, 64)),
        Op::s_bfe_i64 => wide!(|a, b| field(a, b as u32, true, 64)),
        Op::s_bfm_b64 => wide!(scc | a, b | ((1u64 << (a & 63)) - 1) << (b & 63)),
        Op::s_brev_b64 => wide!(scc | a, _b | a.reverse_bits()),
        Op::s_bcnt0_i32_b64 => count::<false>,
        Op::s_bcnt1_i32_b64 => count::<true>,
        Op::s_bitset0_b64 => bit_set::<false>,
        Op::s_bitset1_b64 => bit_set::<true>,
        Op::s_bitreplicate_b64_b32 => replicate,
        _ => return None,
    })
}

/// The lowest bit of every four in which one is set.
fn quads(x: u64) -> u64 {
    let pairs = x | x >> 1;
    (pairs | pairs >> 2) & 0x1111_1111_1111_1111
}

fn gather_quads(quads: u64) -> u64 {
    (0..16).fold(0, |bits, i| bits | (quads >> (4 * i) & 1) << i)
}

fn count<const OF: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = w.scalar64(m.src[0]);
    let n = if OF { a.count_ones() } else { a.count_zeros() };
    w.s[usize::from(m.dst) & 127] = n;
    w.scc = n != 0;
    Ok(())
}

fn bit_set<const VALUE: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let bit = 1u64 << (w.scalar(m.src[0]) & 63);
    let old = w.pair(usize::from(m.dst));
    w.set_pair(usize::from(m.dst), if VALUE { old | bit } else { old & !bit });
    Ok(())
}

fn replicate(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let a = u64::from(w.scalar(m.src[0]));
    let out = (0..32).fold(0, |bits, i| bits | ((a >> i & 1) * 3) << (2 * i));
    w.set_pair(usize::from(m.dst), out);
    Ok(())
}

/// The old EXEC into the destination, a function of it and the source into EXEC; or that function into both.
macro_rules! mask {
    ($saves:literal, |$source:ident, $exec:ident| $body:expr) => {{
        fn run(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
            let ($source, $exec) = (w.scalar64(m.src[0]), w.exec());
            let value: u64 = $body;
            w.set_pair(usize::from(m.dst), if $saves { $exec } else { value });
            w.set_pair(EXEC, value);
            w.scc = value != 0;
            Ok(())
        }
        run as Handler
    }};
}

fn masks(op: Op) -> Option<Handler> {
    Some(match op {
        Op::s_and_saveexec_b64 => mask!(true, |a, exec| a & exec),
        Op::s_or_saveexec_b64 => mask!(true, |a, exec| a | exec),
        Op::s_xor_saveexec_b64 => mask!(true, |a, exec| a ^ exec),
        Op::s_andn2_saveexec_b64 => mask!(true, |a, exec| a & !exec),
        Op::s_orn2_saveexec_b64 => mask!(true, |a, exec| a | !exec),
        Op::s_nand_saveexec_b64 => mask!(true, |a, exec| !(a & exec)),
        Op::s_nor_saveexec_b64 => mask!(true, |a, exec| !(a | exec)),
        Op::s_xnor_saveexec_b64 => mask!(true, |a, exec| !(a ^ exec)),
        Op::s_andn1_saveexec_b64 => mask!(true, |a, exec| !a & exec),
        Op::s_orn1_saveexec_b64 => mask!(true, |a, exec| !a | exec),
        Op::s_andn1_wrexec_b64 => mask!(false, |a, exec| !a & exec),
        Op::s_andn2_wrexec_b64 => mask!(false, |a, exec| a & !exec),
        _ => return None,
    })
}
