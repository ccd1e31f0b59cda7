//! What bulk reductions do to one word of memory.

use super::formats::{Format, Rounding, narrow, widen};
use super::{Misuse, Result, Space};

/// An operation of `cp.reduce.async.bulk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Sum.
    Add,
    /// The smaller.
    Min,
    /// The larger.
    Max,
    /// One more, or zero past the operand.
    Inc,
    /// One less, or the operand below zero and past the operand.
    Dec,
    /// Bits of both.
    And,
    /// Bits of either.
    Or,
    /// Bits of one.
    Xor,
}

impl Reduction {
    /// The operation of a modifier.
    pub fn parse(modifier: &str) -> Option<Reduction> {
        Some(match modifier {
            "add" => Reduction::Add,
            "min" => Reduction::Min,
            "max" => Reduction::Max,
            "inc" => Reduction::Inc,
            "dec" => Reduction::Dec,
            "and" => Reduction::And,
            "or" => Reduction::Or,
            "xor" => Reduction::Xor,
            _ => return None,
        })
    }
}

/// Bytes of a number type's name: `f16` 2, `u32` 4, ...
fn width(number: &str) -> Option<usize> {
    Some(match number {
        "f16" | "bf16" => 2,
        "f32" | "u32" | "s32" | "b32" => 4,
        "f64" | "u64" | "s64" | "b64" => 8,
        _ => return None,
    })
}

/// The operation on words of the type `number` (`f16`, `bf16`, `f32`, `f64`, `u32`, `s32`, `b32`, `u64`, `s64`, `b64`) as a
/// function of what memory holds and the operand.
///
/// # Errors
/// If there is no such operation on the type.
pub fn function(reduction: Reduction, number: &str) -> Result<fn(u64, u64) -> u64> {
    use Reduction::{Add, And, Dec, Inc, Max, Min, Or, Xor};
    Ok(match (reduction, number) {
        (Add, "f16") => |a, b| small(Format::F16, a, b, |a, b| a + b),
        (Min, "f16") => |a, b| small(Format::F16, a, b, f64::min),
        (Max, "f16") => |a, b| small(Format::F16, a, b, f64::max),
        (Add, "bf16") => |a, b| small(Format::Bf16, a, b, |a, b| a + b),
        (Min, "bf16") => |a, b| small(Format::Bf16, a, b, f64::min),
        (Max, "bf16") => |a, b| small(Format::Bf16, a, b, f64::max),
        (Add, "f32") => |a, b| u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits()),
        (Add, "f64") => |a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        (Add, "u32" | "s32") => |a, b| u64::from((a as u32).wrapping_add(b as u32)),
        (Add, "u64" | "s64") => u64::wrapping_add,
        (Min, "u32") => |a, b| u64::from((a as u32).min(b as u32)),
        (Max, "u32") => |a, b| u64::from((a as u32).max(b as u32)),
        (Min, "s32") => |a, b| u64::from((a as i32).min(b as i32) as u32),
        (Max, "s32") => |a, b| u64::from((a as i32).max(b as i32) as u32),
        (Min, "u64") => u64::min,
        (Max, "u64") => u64::max,
        (Min, "s64") => |a, b| (a as i64).min(b as i64) as u64,
        (Max, "s64") => |a, b| (a as i64).max(b as i64) as u64,
        (Inc, "u32") => |a, b| if a >= b { 0 } else { a + 1 },
        (Dec, "u32") => |a, b| if a == 0 || a > b { b } else { a - 1 },
        (And, "b32" | "b64" | "u32" | "s32" | "u64" | "s64") => |a, b| a & b,
        (Or, "b32" | "b64" | "u32" | "s32" | "u64" | "s64") => |a, b| a | b,
        (Xor, "b32" | "b64" | "u32" | "s32" | "u64" | "s64") => |a, b| a ^ b,
        _ => return Err(Misuse::new(format!("bulk reduction: there is no {reduction:?} of {number}"))),
    })
}

/// Reduces the words of `operands` into memory from `address` on: `cp.reduce.async.bulk`.
///
/// # Errors
/// If there is no such operation on the type, the bytes are no whole number of words, or memory refuses them.
pub fn reduce(reduction: Reduction, number: &str, address: u64, operands: &[u8], memory: &mut dyn Space) -> Result<()> {
    let change = function(reduction, number)?;
    let width = width(number).ok_or_else(|| Misuse::new(format!("bulk reduction: unknown type {number}")))?;
    if !operands.len().is_multiple_of(width) {
        let bytes = operands.len();
        return Err(Misuse::new(format!("bulk reduction: {bytes} bytes are no whole number of {number}")));
    }
    for (i, word) in operands.chunks_exact(width).enumerate() {
        let operand = word.iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
        memory.update(address + (i * width) as u64, width, &|old| change(old, operand))?;
    }
    Ok(())
}

/// An operation on 16-bit floats: exact in f64, rounded once.
fn small(format: Format, a: u64, b: u64, f: impl Fn(f64, f64) -> f64) -> u64 {
    let number = |bits: u64| f64::from(widen(bits as u32, format));
    u64::from(narrow(f(number(a), number(b)), format, Rounding::Nearest, false, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(reduction: Reduction, number: &str, old: u64, operand: u64) -> u64 {
        let bytes = width(number).unwrap();
        let mut memory = vec![0; 16];
        memory.write(8, &old.to_le_bytes()[..bytes]).unwrap();
        reduce(reduction, number, 8, &operand.to_le_bytes()[..bytes], &mut memory).unwrap();
        assert!(memory[..8].iter().all(|b| *b == 0) && memory[8 + bytes..].iter().all(|b| *b == 0));
        memory[8..8 + bytes].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
    }

    #[test]
    fn words_are_reduced_by_their_type() {
        let half = |x: f32| u64::from(half::f16::from_f32(x).to_bits());
        assert_eq!(word(Reduction::Add, "f16", half(1.5), half(2.25)), half(3.75));
        assert_eq!(word(Reduction::Max, "bf16", 0x3f80, 0xc000), 0x3f80);
        let single = |x: f32| u64::from(x.to_bits());
        assert_eq!(word(Reduction::Add, "f32", single(0.5), single(-2.0)), single(-1.5));
        assert_eq!(word(Reduction::Min, "s32", 5, u64::from(-3i32 as u32)), u64::from(-3i32 as u32));
        assert_eq!(word(Reduction::Min, "u32", 5, u64::from(-3i32 as u32)), 5);
        assert_eq!(word(Reduction::Add, "u32", u64::from(u32::MAX), 2), 1);
        assert_eq!(word(Reduction::Inc, "u32", 7, 7), 0);
        assert_eq!(word(Reduction::Dec, "u32", 0, 9), 9);
        assert_eq!(word(Reduction::Xor, "b64", 0xf0f0, u64::MAX), !0xf0f0);
        assert_eq!(word(Reduction::Max, "s64", u64::MAX, 1), 1);
    }

    #[test]
    fn operations_that_do_not_exist_are_refused() {
        assert!(function(Reduction::Min, "f32").unwrap_err().words().contains("no Min of f32"));
        assert!(function(Reduction::And, "f16").is_err());
        assert!(reduce(Reduction::Add, "u32", 0, &[0; 6], &mut vec![0; 8]).unwrap_err().words().contains("6 bytes"));
        assert_eq!(Reduction::parse("xor"), Some(Reduction::Xor));
        assert_eq!(Reduction::parse("mul"), None);
    }
}
