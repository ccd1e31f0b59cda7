//! The text of an instruction in LLVM's assembler syntax.

mod operand;
mod pattern;

use std::fmt::{self, Display, Formatter, Write};

use self::operand::{List, Shown, Signed};
use self::pattern::{HardwareRegister, dpp_control, swizzle, waitcnt};
use super::op::ROWS;
use super::{Access, Format, Instruction, Number, Op, Operand, Part, Target, Unused};

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
            return if self.target == Target::Gfx942 { self.cache(list.f) } else { Ok(()) };
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
