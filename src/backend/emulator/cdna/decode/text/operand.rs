//! Operands as text.

use std::fmt::{self, Display, Formatter};

use crate::backend::emulator::cdna::decode::op::ROWS;
use crate::backend::emulator::cdna::decode::{Access, Format, Instruction, Number, Op, Operand, Special};

/// A destination, source or plain text between commas.
pub(super) struct List<'a, 'b> {
    pub(super) f: &'a mut Formatter<'b>,
    pub(super) is_first: bool,
}

impl List<'_, '_> {
    pub(super) fn item(&mut self, item: impl Display) -> fmt::Result {
        let before = if self.is_first { " " } else { ", " };
        self.is_first = false;
        write!(self.f, "{before}{item}")
    }

    /// An operand, if there is one.
    pub(super) fn operand(&mut self, instruction: &Instruction, operand: Operand) -> fmt::Result {
        if operand == Operand::None { Ok(()) } else { self.item(Shown { instruction, operand }) }
    }
}

/// An operand of an instruction, which decides how constants are written.
pub(super) struct Shown<'a> {
    pub(super) instruction: &'a Instruction,
    pub(super) operand: Operand,
}

/// The inline floats as f16, f32 and f64 bits, and their texts.
const FLOATS: [(u16, u32, u64, &str); 9] = [
    (0x3800, 0x3f00_0000, 0x3fe0_0000_0000_0000, "0.5"),
    (0xb800, 0xbf00_0000, 0xbfe0_0000_0000_0000, "-0.5"),
    (0x3c00, 0x3f80_0000, 0x3ff0_0000_0000_0000, "1.0"),
    (0xbc00, 0xbf80_0000, 0xbff0_0000_0000_0000, "-1.0"),
    (0x4000, 0x4000_0000, 0x4000_0000_0000_0000, "2.0"),
    (0xc000, 0xc000_0000, 0xc000_0000_0000_0000, "-2.0"),
    (0x4400, 0x4080_0000, 0x4010_0000_0000_0000, "4.0"),
    (0xc400, 0xc080_0000, 0xc010_0000_0000_0000, "-4.0"),
    (0x3118, 0x3e22_f983, 0x3fc4_5f30_6dc9_c882, "0.15915494"),
];

impl Shown<'_> {
    /// The letter of this operand in the shape of its operation.
    fn letter(&self) -> u8 {
        let i = self.instruction;
        let at = i.src.iter().position(|s| *s == self.operand).unwrap_or(0);
        match i.compare.map(|c| c.number) {
            Some(Number::F16 | Number::I16 | Number::U16) => b'h',
            Some(Number::F32 | Number::I32 | Number::U32) => b'w',
            Some(Number::F64 | Number::I64 | Number::U64) => b'd',
            None => {
                let shape = ROWS.iter().find(|r| r.op == i.op).map_or("", |r| r.shape);
                shape.bytes().skip(1).filter(|l| *l != b'c').nth(at).unwrap_or(b'w')
            }
        }
    }

    /// Whether it is read as an integer of 16 bits, in which the inline floats are but bits.
    fn is_half_integer(&self) -> bool {
        let name = self.instruction.op.name();
        let is_integer = match self.instruction.compare {
            Some(compare) => matches!(compare.number, Number::I16 | Number::U16),
            None => ["i16", "u16", "b16"].iter().any(|t| name.ends_with(t)),
        };
        is_integer && self.letter() == b'h' && name != "v_sat_pk_u8_i16"
    }

    /// A literal: the number's text where an inline constant of its bits has one.
    fn literal(&self, f: &mut Formatter, bits: u64) -> fmt::Result {
        let letter = self.letter();
        let is_whole = matches!(self.instruction.op, Op::v_madmk_f16 | Op::v_madak_f16 | Op::v_sat_pk_u8_i16);
        let (shown, integer) = match letter {
            b'h' if !is_whole => (bits & 0xffff, i64::from(bits as i16)),
            b'd' => (bits, bits as i64),
            _ => (bits & 0xffff_ffff, i64::from(bits as i32)),
        };
        let float = FLOATS.iter().find(|(half, single, double, _)| match letter {
            b'h' => !is_whole && !self.is_half_integer() && u64::from(*half) == shown,
            b'd' => *double == shown,
            _ => u64::from(*single) == shown,
        });
        match (integer, float) {
            (-16..=64, _) => write!(f, "{integer}"),
            (_, Some((.., text))) => f.write_str(text),
            // Of a 64-bit float only the high half is in the encoding.
            _ if shown >> 32 != 0 => write!(f, "{:#x}", shown >> 32),
            _ => write!(f, "{shown:#x}"),
        }
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
            Operand::Constant { bits, code: 255 } => self.literal(f, bits),
            Operand::Constant { bits, code: 240.. } if self.is_half_integer() => {
                write!(f, "{bits:#x}")
            }
            Operand::Constant { bits, code: code @ 240.. } => {
                f.write_str(FLOATS[usize::from(code).clamp(240, 248) - 240].3)?;
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
pub(super) struct Signed<'a> {
    pub(super) instruction: &'a Instruction,
    pub(super) at: usize,
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
