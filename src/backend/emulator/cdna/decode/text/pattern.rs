//! Immediates that are read bit by bit.

use std::fmt::{self, Display, Formatter, Write};

use crate::backend::emulator::cdna::decode::Target;

/// Which field of which hardware register.
pub(super) struct HardwareRegister(pub(super) u32, pub(super) Target);

impl Display for HardwareRegister {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let (id, offset, width) = (self.0 & 0x3f, self.0 >> 6 & 0x1f, (self.0 >> 11) + 1);
        let names = ["MODE", "STATUS", "TRAPSTS", "HW_ID", "GPR_ALLOC", "LDS_ALLOC", "IB_STS"];
        match id {
            1..=7 => write!(f, "hwreg(HW_REG_{}", names[id as usize - 1])?,
            15 => f.write_str("hwreg(HW_REG_SH_MEM_BASES")?,
            16 => f.write_str("hwreg(HW_REG_TBA_LO")?,
            17 => f.write_str("hwreg(HW_REG_TBA_HI")?,
            18 => f.write_str("hwreg(HW_REG_TMA_LO")?,
            19 => f.write_str("hwreg(HW_REG_TMA_HI")?,
            20 if self.1 == Target::Gfx942 => f.write_str("hwreg(HW_REG_XCC_ID")?,
            _ => write!(f, "hwreg({id}")?,
        }
        if (offset, width) != (0, 32) { write!(f, ", {offset}, {width})") } else { f.write_char(')') }
    }
}

pub(super) fn waitcnt(f: &mut Formatter, imm: u32) -> fmt::Result {
    let (vm, exp, lgkm) = (imm & 15 | imm >> 10 & 0x30, imm >> 4 & 7, imm >> 8 & 15);
    let is_all = (vm, exp, lgkm) == (63, 7, 15);
    for (name, value, most) in [("vmcnt", vm, 63), ("expcnt", exp, 7), ("lgkmcnt", lgkm, 15)] {
        if value != most || is_all {
            write!(f, " {name}({value})")?;
        }
    }
    Ok(())
}

/// The patterns of `ds_swizzle_b32`: four lanes by two bits each, or and, or, xor masks within 32 lanes.
pub(super) fn swizzle(f: &mut Formatter, imm: u32) -> fmt::Result {
    let (and, or, xor) = (imm & 31, imm >> 5 & 31, imm >> 10 & 31);
    match imm {
        0 => Ok(()),
        0x8000..=0x80ff => {
            let lane = |i: u32| imm >> (2 * i) & 3;
            write!(f, " offset:swizzle(QUAD_PERM,{},{},{},{})", lane(0), lane(1), lane(2), lane(3))
        }
        0x8100.. => write!(f, " offset:{imm}"),
        _ if and == 31 && or == 0 && xor.is_power_of_two() => {
            write!(f, " offset:swizzle(SWAP,{xor})")
        }
        _ if and == 31 && or == 0 && (xor + 1).is_power_of_two() && xor > 0 => {
            write!(f, " offset:swizzle(REVERSE,{})", xor + 1)
        }
        _ if xor == 0 && or < 32 - and && (32 - and).is_power_of_two() && (32 - and) > 1 => {
            write!(f, " offset:swizzle(BROADCAST,{},{or})", 32 - and)
        }
        _ => {
            f.write_str(" offset:swizzle(BITMASK_PERM,\"")?;
            for bit in (0..5).rev().map(|b| 1 << b) {
                // A lane's bit is and'ed, or'ed, xor'ed in this order: what becomes of a 0 and of a 1?
                let zero = (or ^ xor) & bit != 0;
                let one = ((and & bit | or & bit) ^ xor & bit) != 0;
                f.write_char(match (zero, one) {
                    (false, false) => '0',
                    (true, true) => '1',
                    (false, true) => 'p',
                    (true, false) => 'i',
                })?;
            }
            f.write_str("\")")
        }
    }
}

pub(super) fn dpp_control(f: &mut Formatter, control: u16) -> fmt::Result {
    let low = control & 15;
    match control {
        0..=0xff => {
            let lane = |i: u16| control >> (2 * i) & 3;
            write!(f, " quad_perm:[{},{},{},{}]", lane(0), lane(1), lane(2), lane(3))
        }
        0x101..=0x10f => write!(f, " row_shl:{low}"),
        0x111..=0x11f => write!(f, " row_shr:{low}"),
        0x121..=0x12f => write!(f, " row_ror:{low}"),
        0x130 => f.write_str(" wave_shl:1"),
        0x134 => f.write_str(" wave_rol:1"),
        0x138 => f.write_str(" wave_shr:1"),
        0x13c => f.write_str(" wave_ror:1"),
        0x140 => f.write_str(" row_mirror"),
        0x141 => f.write_str(" row_half_mirror"),
        0x142 => f.write_str(" row_bcast:15"),
        0x143 => f.write_str(" row_bcast:31"),
        0x150..=0x15f => write!(f, " row_newbcast:{low}"),
        _ => write!(f, " dpp_ctrl:{control:#x}"),
    }
}
