//! What kind of work an instruction is, for the counters.

use crate::backend::emulator::cdna::decode::{Access, Format, Instruction, Op};
use crate::backend::emulator::counters::Class;

/// The class of an instruction.
pub(super) fn class(i: &Instruction) -> Class {
    let name = i.op.name();
    match i.format {
        Format::Sopp => match i.op {
            Op::s_waitcnt | Op::s_barrier | Op::s_nop | Op::s_sleep => Class::Sync,
            _ => Class::Control,
        },
        Format::Sop1 | Format::Sopk if is_jump(i.op) => Class::Control,
        Format::Sop1 | Format::Sop2 | Format::Sopc | Format::Sopk => Class::Scalar,
        Format::Ds if ["ds_permute", "ds_bpermute", "ds_swizzle"].iter().any(|p| name.starts_with(p)) => Class::Lanes,
        Format::Ds => Class::Shared,
        Format::Smem | Format::Flat | Format::Global | Format::Scratch | Format::Mubuf => Class::Memory,
        Format::Mai if i.op.is_matrix() => Class::Matrix,
        _ if matches!(i.op, Op::v_readlane_b32 | Op::v_writelane_b32 | Op::v_readfirstlane_b32) => Class::Lanes,
        _ if matches!(i.access, Access::Dpp { .. }) && i.op == Op::v_mov_b32 => Class::Lanes,
        _ if i.compare.is_some() => Class::Integer,
        _ if name.starts_with("v_cvt_") => Class::Convert,
        _ if is_special(name) => Class::Special,
        _ if is_float(name) => Class::Float,
        _ => Class::Integer,
    }
}

fn is_jump(op: Op) -> bool {
    matches!(op, Op::s_setpc_b64 | Op::s_swappc_b64 | Op::s_call_b64)
}

fn is_special(name: &str) -> bool {
    ["v_exp_", "v_log_", "v_rcp_", "v_rsq_", "v_sqrt_", "v_sin_", "v_cos_"].iter().any(|p| name.starts_with(p))
}

fn is_float(name: &str) -> bool {
    ["_f16", "_f32", "_f64"].iter().any(|s| name.ends_with(s))
}

/// FLOPs of an active lane: 2 for a multiply and add, 1 for other arithmetic, each for both halves of packed instructions.
pub(super) fn flops(i: &Instruction) -> u8 {
    if class(i) != Class::Float {
        return 0;
    }
    let name = i.op.name();
    let is_fused = ["fma", "mad", "mac", "dot2"].iter().any(|p| name.contains(p));
    let is_packed = name.starts_with("v_pk_") || name.starts_with("v_dot2");
    (1 + u8::from(is_fused)) * (1 + u8::from(is_packed))
}
