//! The text of an instruction in LLVM's assembler syntax.

use std::fmt::{self, Display, Formatter, Write};

use super::op::ROWS;
use super::{Access, Format, Instruction, Number, Op, Operand, Part, Special, Target, Unused};

/// A destination, source or plain text between commas.
struct List<'a, 'b> {
    f: &'a mut Formatter<'b>,
    is_first: bool,
}

impl List<'_, '_> {
    fn item(&mut self, item: impl Display) -> fmt::Result {
        let before = if self.is_first { " " } else { ", " };
        self.is_first = false;
        write!(self.f, "{before}{item}")
    }

    /// An operand, if there is one.
    fn operand(&mut self, instruction: &Instruction, operand: Operand) -> fmt::Result {
        if operand == Operand::None { Ok(()) } else { self.item(Shown { instruction, operand }) }
    }
}

/// An operand of an instruction, which decides how constants are written.
struct Shown<'a> {
    instruction: &'a Instruction,
    operand: Operand,
}

impl Shown<'_> {
    /// Whether a literal here has 16 bits: what it has above them is not shown.
    fn is_half(&self) -> bool {
        let shape = ROWS.iter().find(|r| r.op == self.instruction.op).map_or("", |r| r.shape);
        let number = self.instruction.compare.map(|c| c.number);
        let is_whole = matches!(self.instruction.op, Op::v_madmk_f16 | Op::v_madak_f16 | Op::v_sat_pk_u8_i16);
        (shape.ends_with('h') && !is_whole) || matches!(number, Some(Number::F16 | Number::I16 | Number::U16))
    }

    /// Whether it is read as an integer of 16 bits, in which the inline floats are but bits.
    fn is_half_integer(&self) -> bool {
        let number = self.instruction.compare.map(|c| c.number);
        let name = self.instruction.op.name();
        self.is_half() && (["i16", "u16", "b16"].iter().any(|t| name.ends_with(t)) && name != "v_sat_pk_u8_i16")
            || matches!(number, Some(Number::I16 | Number::U16))
    }
}

fn range(f: &mut Formatter, prefix: &str, first: u8, count: u8) -> fmt::Result {
    match count {
        1 => write!(f, "{prefix}{first}"),
        _ => write!(f, "{prefix}[{first}:{}]", u32::from(first) + u32::from(count) - 1),
    }
}

fn scalar(f: &mut Formatter, first: u8, count: u8) -> fmt::Result {
    let pairs = [(102, "flat_scratch"), (104, "xnack_mask"), (106, "vcc"), (126, "exec")];
    let pair = pairs.iter().find(|(at, _)| first & !1 == *at);
    match (pair, first) {
        (Some((at, name)), _) if count == 1 => {
            write!(f, "{name}_{}", if first == *at { "lo" } else { "hi" })
        }
        (Some((_, name)), _) if count == 2 => f.write_str(name),
        (_, 108..=123) => range(f, "ttmp", first - 108, count),
        (_, 124) => f.write_str("m0"),
        _ => range(f, "s", first, count),
    }
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self.operand {
            Operand::None => f.write_str("off"),
            Operand::Scalar { first, count } => scalar(f, first, count),
            Operand::Vector { first, count } => range(f, "v", first, count),
            Operand::Acc { first, count } => range(f, "a", first, count),
            Operand::Constant { bits, code: 255 } if self.is_half() => {
                write!(f, "{:#x}", bits & 0xffff)
            }
            Operand::Constant { bits, code: 255 } => match u32::try_from(bits) {
                Ok(bits) => write!(f, "{bits:#x}"),
                Err(_) => write!(f, "{:#x}", bits >> 32),
            },
            Operand::Constant { bits, code: 240.. } if self.is_half_integer() => {
                write!(f, "{bits:#x}")
            }
            Operand::Constant { bits, code: code @ 240.. } => {
                let names = ["0.5", "-0.5", "1.0", "-1.0", "2.0", "-2.0", "4.0", "-4.0", "0.15915494"];
                f.write_str(names[usize::from(code).clamp(240, 248) - 240])?;
                f.write_str(if code == 248 && bits >> 32 != 0 { "309189532" } else { "" })
            }
            Operand::Constant { code, .. } => {
                let code = i32::from(code);
                write!(f, "{}", if code <= 192 { code - 128 } else { 192 - code })
            }
            Operand::Special(special) => f.write_str(match special {
                Special::SharedBase => "src_shared_base",
                Special::SharedLimit => "src_shared_limit",
                Special::PrivateBase => "src_private_base",
                Special::PrivateLimit => "src_private_limit",
                Special::PopsExitingWaveId => "src_pops_exiting_wave_id",
                Special::Vccz => "src_vccz",
                Special::Execz => "src_execz",
                Special::Scc => "src_scc",
                Special::LdsDirect => "src_lds_direct",
            }),
        }
    }
}

/// A vector source with its signs.
struct Signed<'a> {
    instruction: &'a Instruction,
    at: usize,
}

impl Display for Signed<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let i = self.instruction;
        let bit = 1 << self.at;
        let (mut neg, abs) = (i.modifiers.neg & bit != 0, i.modifiers.abs & bit != 0);
        // In packed operations signs are listed behind.
        let is_mixed = matches!(i.op, Op::v_fma_mix_f32 | Op::v_fma_mixlo_f16 | Op::v_fma_mixhi_f16);
        neg &= i.format != Format::Vop3p || is_mixed;
        let sext = matches!(i.access, Access::Sdwa { sext, .. } if sext & bit != 0);
        let is_constant = matches!(i.src[self.at], Operand::Constant { .. });
        // `-1` is the constant minus one; the negated constant one is `neg(1)`.
        let (open, close) = match (neg, abs) {
            (true, true) => ("-|", "|"),
            (true, false) if is_constant => ("neg(", ")"),
            (true, false) => ("-", ""),
            (false, true) => ("|", "|"),
            (false, false) if sext => ("sext(", ")"),
            (false, false) => ("", ""),
        };
        write!(f, "{open}{}{close}", Shown { instruction: i, operand: i.src[self.at] })
    }
}

fn part(part: Part) -> &'static str {
    match part {
        Part::Byte(0) => "BYTE_0",
        Part::Byte(1) => "BYTE_1",
        Part::Byte(2) => "BYTE_2",
        Part::Byte(_) => "BYTE_3",
        Part::Word(0) => "WORD_0",
        Part::Word(_) => "WORD_1",
        Part::Dword => "DWORD",
    }
}

impl Instruction {
    /// The mnemonic without the suffix of the encoding.
    fn mnemonic(&self, f: &mut Formatter) -> fmt::Result {
        if let Some(compare) = self.compare {
            f.write_str(self.op.name())?;
            let condition = usize::from(compare.condition & 15);
            let is_float = matches!(compare.number, Number::F16 | Number::F32 | Number::F64);
            let floats =
                ["f", "lt", "eq", "le", "gt", "lg", "ge", "o", "u", "nge", "nlg", "ngt", "nle", "neq", "nlt", "tru"];
            let integers = ["f", "lt", "eq", "le", "gt", "ne", "ge", "t"];
            if !matches!(self.op, Op::v_cmp_class | Op::v_cmpx_class) {
                write!(f, "_{}", if is_float { floats[condition] } else { integers[condition & 7] })?;
            }
            return write!(f, "_{}", format!("{:?}", compare.number).to_lowercase());
        }
        match self.format {
            Format::Flat => f.write_str("flat_")?,
            Format::Global => f.write_str("global_")?,
            Format::Scratch => f.write_str("scratch_")?,
            Format::Mubuf => f.write_str("buffer_")?,
            _ => {}
        }
        if self.target == Target::Gfx90a
            && let Some(old) = ROWS.iter().filter(|r| r.op == self.op).find_map(|r| r.old)
        {
            return f.write_str(old);
        }
        f.write_str(self.op.name())
    }

    /// What tells the encodings of one operation apart; operations with one encoding have none.
    fn suffix(&self) -> &'static str {
        use Op::*;
        let is_short = matches!(self.format, Format::Vop1 | Format::Vop2 | Format::Vopc);
        let has_one =
            matches!(self.op, v_madmk_f32 | v_madak_f32 | v_fmamk_f32 | v_fmaak_f32 | v_madmk_f16 | v_madak_f16)
                || matches!(self.op, v_nop | v_swap_b32 | v_accvgpr_mov_b32 | v_readfirstlane_b32);
        let is_longer = self.compare.is_some()
            || ROWS.iter().any(|r| r.op == self.op && matches!(r.format, Format::Vop1 | Format::Vop2));
        match self.access {
            Access::Sdwa { .. } => "_sdwa",
            Access::Dpp { .. } => "_dpp",
            Access::Plain if is_short && !has_one => "_e32",
            Access::Plain if self.format == Format::Vop3 && is_longer && !matches!(self.op, v_nop) => "_e64",
            Access::Plain => "",
        }
    }

    fn vector_operands(&self, list: &mut List) -> fmt::Result {
        list.operand(self, self.dst)?;
        list.operand(self, self.sdst)?;
        for at in (0..4).filter(|at| self.src[*at] != Operand::None) {
            list.item(Signed { instruction: self, at })?;
        }
        Ok(())
    }

    fn vector_modifiers(&self, f: &mut Formatter) -> fmt::Result {
        let m = &self.modifiers;
        let sources = self.src.iter().filter(|s| **s != Operand::None).count();
        let bits = |f: &mut Formatter, name: &str, value: u8, order: &[usize]| {
            write!(f, " {name}:[")?;
            for (i, bit) in order.iter().enumerate() {
                write!(f, "{}{}", if i > 0 { "," } else { "" }, value >> bit & 1)?;
            }
            f.write_char(']')
        };
        // The stochastic conversions have a place for a third source that they do not read.
        let is_stochastic = matches!(self.op, Op::v_cvt_sr_fp8_f32 | Op::v_cvt_sr_bf8_f32);
        let plain: Vec<usize> = (0..sources + usize::from(is_stochastic)).collect();
        if self.format == Format::Vop3p {
            if m.op_sel != 0 {
                bits(f, "op_sel", m.op_sel, &plain)?;
            }
            let is_mixed = matches!(self.op, Op::v_fma_mix_f32 | Op::v_fma_mixlo_f16 | Op::v_fma_mixhi_f16);
            let all = (1 << sources) - 1;
            if m.op_sel_hi & all != if is_mixed { 0 } else { all } {
                bits(f, "op_sel_hi", m.op_sel_hi, &plain)?;
            }
            if m.neg != 0 && !is_mixed {
                bits(f, "neg_lo", m.neg, &plain)?;
            }
            if m.neg_hi != 0 {
                bits(f, "neg_hi", m.neg_hi, &plain)?;
            }
        } else if m.op_sel != 0 {
            // The destination's bit is written last and stands in bit 3.
            let order: Vec<usize> = plain.into_iter().chain([3]).collect();
            bits(f, "op_sel", m.op_sel, &order)?;
        }
        f.write_str(if m.clamp { " clamp" } else { "" })?;
        f.write_str(["", " mul:2", " mul:4", " div:2"][usize::from(m.omod & 3)])?;
        match self.access {
            Access::Plain => Ok(()),
            Access::Sdwa { dst, unused, src, .. } => {
                // The conversions from 8-bit floats only select their source.
                if self.format != Format::Vopc
                    && !self.op.name().contains("f32_fp8")
                    && !self.op.name().contains("f32_bf8")
                {
                    let unused = match unused {
                        Unused::Pad => "UNUSED_PAD",
                        Unused::Sext => "UNUSED_SEXT",
                        Unused::Preserve => "UNUSED_PRESERVE",
                    };
                    write!(f, " dst_sel:{} dst_unused:{unused}", part(dst))?;
                }
                for (i, selected) in src.iter().enumerate().take(if self.format == Format::Vop1 { 1 } else { 2 }) {
                    write!(f, " src{i}_sel:{}", part(*selected))?;
                }
                Ok(())
            }
            Access::Dpp { control, rows, banks, bound } => {
                dpp_control(f, control)?;
                write!(f, " row_mask:{rows:#x} bank_mask:{banks:#x}")?;
                f.write_str(if bound { " bound_ctrl:1" } else { "" })
            }
        }
    }

    fn matrix_modifiers(&self, f: &mut Formatter) -> fmt::Result {
        let m = &self.modifiers;
        for (name, value) in [("cbsz", m.cbsz), ("abid", m.abid)] {
            if value != 0 {
                write!(f, " {name}:{value}")?;
            }
        }
        match m.blgp {
            0 => Ok(()),
            b if self.target == Target::Gfx942 && self.op.name().ends_with("f64") => {
                write!(f, " neg:[{},{},{}]", b & 1, b >> 1 & 1, b >> 2 & 1)
            }
            b => write!(f, " blgp:{b}"),
        }
    }

    fn memory(&self, list: &mut List) -> fmt::Result {
        let [address, data, base, offset] = self.src;
        let m = &self.modifiers;
        let is_buffer = self.format == Format::Mubuf;
        if is_buffer && base == Operand::None {
            return self.cache(list.f);
        }
        if is_buffer {
            // An atomic that returns writes over its data register.
            list.operand(self, if data == Operand::None { self.dst } else { data })?;
            list.item(Shown { instruction: self, operand: address })?;
            list.operand(self, base)?;
            list.operand(self, offset)?;
        } else {
            list.operand(self, self.dst)?;
            list.item(Shown { instruction: self, operand: address })?;
            list.operand(self, data)?;
            if self.format != Format::Flat {
                list.item(Shown { instruction: self, operand: base })?;
            }
        }
        for (is_set, name) in [(m.idxen, " idxen"), (m.offen, " offen")] {
            list.f.write_str(if is_set { name } else { "" })?;
        }
        if self.imm != 0 {
            write!(list.f, " offset:{}", self.imm)?;
        }
        self.cache(list.f)?;
        list.f.write_str(if m.lds { " lds" } else { "" })
    }

    fn cache(&self, f: &mut Formatter) -> fmt::Result {
        let m = &self.modifiers;
        let names = if self.target == Target::Gfx942 { [" sc0", " nt", " sc1"] } else { [" glc", " slc", " scc"] };
        for (name, is_set) in names.iter().zip([m.glc, m.slc, m.scc]) {
            f.write_str(if is_set { name } else { "" })?;
        }
        Ok(())
    }

    fn scalar_memory(&self, list: &mut List) -> fmt::Result {
        list.operand(self, self.dst)?;
        let [base, register, ..] = self.src;
        list.operand(self, base)?;
        if base == Operand::None {
            return Ok(());
        }
        let sign = if self.imm < 0 { "-" } else { "" };
        let magnitude = self.imm.unsigned_abs();
        if register == Operand::None {
            list.item(format_args!("{sign}{magnitude:#x}"))?;
        } else {
            list.operand(self, register)?;
            if self.imm != 0 {
                write!(list.f, " offset:{sign}{magnitude:#x}")?;
            }
        }
        list.f.write_str(if self.modifiers.glc { " glc" } else { "" })
    }

    fn local(&self, list: &mut List) -> fmt::Result {
        for operand in [self.dst, self.src[0], self.src[1], self.src[2]] {
            list.operand(self, operand)?;
        }
        let imm = self.imm as u32 & 0xffff;
        let name = self.op.name();
        if name.starts_with("ds_swizzle") {
            swizzle(list.f, imm)?;
        } else if ["ds_read2", "ds_write2", "ds_wrxchg2"].iter().any(|two| name.starts_with(two)) {
            for (i, offset) in [imm & 0xff, imm >> 8].into_iter().enumerate().filter(|(_, o)| *o != 0) {
                write!(list.f, " offset{i}:{offset}")?;
            }
        } else if imm != 0 {
            write!(list.f, " offset:{imm}")?;
        }
        list.f.write_str(if self.modifiers.gds { " gds" } else { "" })
    }

    fn control(&self, list: &mut List) -> fmt::Result {
        let imm = self.imm as u32 & 0xffff;
        match self.op {
            Op::s_barrier | Op::s_wakeup | Op::s_icache_inv => Ok(()),
            Op::s_endpgm if imm == 0 => Ok(()),
            Op::s_waitcnt => waitcnt(list.f, imm),
            _ if imm > 64 && !self.op.is_branch() && self.op != Op::s_endpgm => list.item(format_args!("{imm:#x}")),
            _ => list.item(imm),
        }
    }

    fn scalar_immediate(&self, list: &mut List) -> fmt::Result {
        let imm = self.imm as u32 & 0xffff;
        match self.op {
            Op::s_getreg_b32 => {
                list.operand(self, self.dst)?;
                list.item(HardwareRegister(imm, self.target))
            }
            Op::s_setreg_b32 | Op::s_setreg_imm32_b32 => {
                list.item(HardwareRegister(imm, self.target))?;
                list.operand(self, self.src[0])
            }
            Op::s_call_b64 => {
                list.operand(self, self.dst)?;
                list.item(imm)
            }
            _ => {
                list.operand(self, if self.dst == Operand::None { self.src[0] } else { self.dst })?;
                list.item(format_args!("{imm:#x}"))
            }
        }
    }
}

/// Which field of which hardware register.
struct HardwareRegister(u32, Target);

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

fn waitcnt(f: &mut Formatter, imm: u32) -> fmt::Result {
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
fn swizzle(f: &mut Formatter, imm: u32) -> fmt::Result {
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

fn dpp_control(f: &mut Formatter, control: u16) -> fmt::Result {
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

impl Display for Instruction {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        self.mnemonic(f)?;
        f.write_str(self.suffix())?;
        let mut list = List { f, is_first: true };
        match self.format {
            Format::Sop1 | Format::Sop2 | Format::Sopc => {
                list.operand(self, self.dst)?;
                self.src.iter().try_for_each(|s| list.operand(self, *s))
            }
            Format::Sopk => self.scalar_immediate(&mut list),
            Format::Sopp => self.control(&mut list),
            Format::Smem => self.scalar_memory(&mut list),
            Format::Ds => self.local(&mut list),
            Format::Flat | Format::Global | Format::Scratch | Format::Mubuf => self.memory(&mut list),
            Format::Mai => {
                self.vector_operands(&mut list)?;
                self.matrix_modifiers(f)
            }
            Format::Vop1 | Format::Vop2 | Format::Vopc | Format::Vop3 | Format::Vop3p => {
                self.vector_operands(&mut list)?;
                self.vector_modifiers(f)
            }
        }
    }
}
