//! Operands from the fields of an encoding, by the letters of a shape.

use std::sync::OnceLock;

use super::op::{ROWS, Row};
use super::{Format, Op, Operand, Special, Target};
use crate::error::{Error, Result};

/// The number of VCC among the scalar registers.
pub(super) const VCC: u8 = 106;

/// Places for codes of one format in the index; VOP3 has the widest opcode.
const CODES: usize = 1 << 10;

/// The rows of `target` by format and code, made once.
fn index(target: Target) -> &'static [Option<&'static Row>] {
    static TABLES: [OnceLock<Vec<Option<&'static Row>>>; 2] = [const { OnceLock::new() }; 2];
    TABLES[target as usize].get_or_init(|| {
        let mut table = vec![None; (Format::Mubuf as usize + 1) * CODES];
        for row in ROWS.iter().filter(|r| r.only.is_none_or(|only| only == target)) {
            table[row.format as usize * CODES + usize::from(row.code)] = Some(row);
        }
        table
    })
}

/// The words of one instruction on the way to becoming it.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) target: Target,
    pub(super) address: u64,
    pub(super) words: &'a [u32],
    /// Words that the encoding has without a literal.
    pub(super) length: usize,
    /// Whether the literal after them is used.
    pub(super) has_literal: bool,
}

impl Reader<'_> {
    /// Bits `low..low + width` of word `word`; 0 beyond the end, which `error` has refused before.
    pub(super) fn bits(&self, word: usize, low: u32, width: u32) -> u32 {
        self.words.get(word).map_or(0, |w| (w >> low) & (u32::MAX >> (32 - width)))
    }

    /// One bit.
    pub(super) fn flag(&self, word: usize, bit: u32) -> bool {
        self.bits(word, bit, 1) == 1
    }

    /// Sets the length of the encoding.
    pub(super) fn take(&mut self, length: usize) -> Result<()> {
        self.length = length;
        if self.words.len() < length {
            return Err(self.error("ends before the instruction does"));
        }
        Ok(())
    }

    /// What is wrong with this encoding, with its address and words.
    pub(super) fn error(&self, what: &str) -> Error {
        let words: Vec<String> = self.words.iter().take(self.length.max(1)).map(|w| format!("{w:08x}")).collect();
        let target = match self.target {
            Target::Gfx90a => "gfx90a",
            Target::Gfx942 => "gfx942",
        };
        Error::driver(format!("{target}: instruction {} at {:#x}: {what}", words.join(" "), self.address))
    }

    /// The row of `code` in `format`.
    pub(super) fn row(&self, format: Format, code: u32) -> Result<&'static Row> {
        let row = index(self.target).get(format as usize * CODES + code as usize).copied().flatten();
        row.ok_or_else(|| self.error(&format!("unknown opcode {code:#x} of {format:?}")))
    }

    /// The word after the encoding.
    pub(super) fn literal(&mut self) -> Result<u32> {
        let word = self.words.get(self.length).copied();
        self.has_literal = true;
        word.ok_or_else(|| self.error("ends before its literal"))
    }

    /// Scalar registers as a destination or a source that cannot be anything else.
    pub(super) fn scalar(&self, first: u32, count: u8) -> Result<Operand> {
        let aligned = first.is_multiple_of(u32::from(count.clamp(1, 4).next_power_of_two()));
        // M0 and the number after it are no pair.
        if first + u32::from(count) > 128 || !aligned || (count > 1 && first == 124) {
            return Err(
                self.error(&format!("scalar registers {first} to {} do not exist", first + u32::from(count) - 1))
            );
        }
        Ok(Operand::Scalar { first: first as u8, count })
    }

    /// Vector or accumulation registers.
    pub(super) fn vector(&self, first: u32, count: u8, is_acc: bool) -> Result<Operand> {
        if first + u32::from(count) > 256 {
            return Err(
                self.error(&format!("vector registers {first} to {} do not exist", first + u32::from(count) - 1))
            );
        }
        let first = first as u8;
        Ok(if is_acc { Operand::Acc { first, count } } else { Operand::Vector { first, count } })
    }

    /// A source of 8 bits: scalar registers, constants, values of the hardware.
    pub(super) fn source8(&mut self, op: Op, letter: u8, code: u32) -> Result<Operand> {
        let special = |s| Ok(Operand::Special(s));
        match code {
            0..=127 => self.scalar(code, count(letter)),
            128..=208 | 240..=248 => Ok(Operand::Constant { bits: inline(op, letter, code), code: code as u8 }),
            235 => special(Special::SharedBase),
            236 => special(Special::SharedLimit),
            237 => special(Special::PrivateBase),
            238 => special(Special::PrivateLimit),
            239 => special(Special::PopsExitingWaveId),
            251 => special(Special::Vccz),
            252 => special(Special::Execz),
            253 => special(Special::Scc),
            254 => special(Special::LdsDirect),
            // Only encodings of one word can be followed by a literal.
            255 if self.length == 1 => {
                let word = self.literal()?;
                Ok(Operand::Constant { bits: widen(op, letter, word), code: 255 })
            }
            _ => Err(self.error(&format!("operand {code} does not exist"))),
        }
    }

    /// A source of 9 bits: vector registers above the rest.
    pub(super) fn source9(&mut self, op: Op, letter: u8, code: u32) -> Result<Operand> {
        match code {
            256.. => self.vector(code - 256, count(letter), false),
            _ => self.source8(op, letter, code),
        }
    }
}

/// Registers that an operand of this letter covers.
pub(super) fn count(letter: u8) -> u8 {
    match letter {
        b'-' => 0,
        b'd' | b'f' | b'q' | b'm' | b'c' => 2,
        b'3' => 3,
        b'4' => 4,
        b'8' => 8,
        b'g' => 16,
        b'x' => 32,
        _ => 1,
    }
}

/// Whether the 64-bit operands of `op` are floats. The names of conversions have both types; only the 64-bit side can be meant.
fn has_f64(op: Op) -> bool {
    op.name().contains("f64")
}

/// An inline constant with the width of its operand.
fn inline(op: Op, letter: u8, code: u32) -> u64 {
    let integer = match code {
        128..=192 => i64::from(code) - 128,
        193..=208 => 192 - i64::from(code),
        _ => 0,
    };
    let is_wide = matches!(letter, b'd' | b'f') || (letter == b'8' && has_f64(op));
    if code <= 208 {
        let bits = integer as u64;
        return if is_wide { bits } else { bits & u64::from(u32::MAX) };
    }
    // 1/(2 pi) is the one value that is not exact; the manual gives its bits for each width.
    let (f16, f32, f64): (u64, f32, f64) = match code {
        240 => (0x3800, 0.5, 0.5),
        241 => (0xb800, -0.5, -0.5),
        242 => (0x3c00, 1.0, 1.0),
        243 => (0xbc00, -1.0, -1.0),
        244 => (0x4000, 2.0, 2.0),
        245 => (0xc000, -2.0, -2.0),
        246 => (0x4400, 4.0, 4.0),
        247 => (0xc400, -4.0, -4.0),
        _ => (0x3118, f32::from_bits(0x3e22_f983), f64::from_bits(0x3fc4_5f30_6dc9_c882)),
    };
    match letter {
        b'h' | b'p' => f16,
        _ if is_wide => f64.to_bits(),
        _ => u64::from(f32.to_bits()),
    }
}

/// A literal with the width of its operand: the high half of an f64, a sign-extended i64, else zero-extended.
fn widen(op: Op, letter: u8, word: u32) -> u64 {
    match letter {
        b'f' => u64::from(word) << 32,
        b'd' if op.name().starts_with("v_") && has_f64(op) => u64::from(word) << 32,
        _ => u64::from(word),
    }
}
