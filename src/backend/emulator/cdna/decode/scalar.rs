//! Scalar formats: SOP1, SOP2, SOPC, SOPK, SOPP, SMEM.

use super::fields::{Reader, count};
use super::{Format, Instruction, Op, Operand};
use crate::error::Result;

/// An instruction whose first word starts with binary 10.
pub(super) fn sop(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    match r.bits(0, 23, 7) {
        0x7d => sop1(r, out),
        0x7e => sopc(r, out),
        0x7f => sopp(r, out),
        0x60.. => sopk(r, out),
        code => {
            let row = r.row(Format::Sop2, code)?;
            (out.format, out.op) = (Format::Sop2, row.op);
            let shape = row.shape.as_bytes();
            out.dst = r.scalar(r.bits(0, 16, 7), count(shape[0]))?;
            out.src[0] = r.source8(row.op, shape[1], r.bits(0, 0, 8))?;
            out.src[1] = r.source8(row.op, shape[2], r.bits(0, 8, 8))?;
            Ok(())
        }
    }
}

fn sop1(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    let row = r.row(Format::Sop1, r.bits(0, 8, 8))?;
    (out.format, out.op) = (Format::Sop1, row.op);
    let shape = row.shape.as_bytes();
    if shape[0] != b'-' {
        out.dst = r.scalar(r.bits(0, 16, 7), count(shape[0]))?;
    }
    if let Some(&letter) = shape.get(1) {
        out.src[0] = r.source8(row.op, letter, r.bits(0, 0, 8))?;
    }
    Ok(())
}

fn sopc(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    let row = r.row(Format::Sopc, r.bits(0, 16, 7))?;
    (out.format, out.op) = (Format::Sopc, row.op);
    let shape = row.shape.as_bytes();
    out.src[0] = r.source8(row.op, shape[1], r.bits(0, 0, 8))?;
    out.src[1] = r.source8(row.op, shape[2], r.bits(0, 8, 8))?;
    Ok(())
}

fn sopp(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    let row = r.row(Format::Sopp, r.bits(0, 16, 7))?;
    (out.format, out.op) = (Format::Sopp, row.op);
    let imm = r.bits(0, 0, 16) as u16;
    out.imm = if row.op.is_branch() { i32::from(imm as i16) } else { i32::from(imm) };
    Ok(())
}

fn sopk(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    let row = r.row(Format::Sopk, r.bits(0, 23, 5))?;
    (out.format, out.op) = (Format::Sopk, row.op);
    let shape = row.shape.as_bytes();
    let imm = r.bits(0, 0, 16) as u16;
    let is_unsigned = row.op.name().ends_with("_u32") || row.shape == "--" || row.op == Op::s_getreg_b32;
    let is_unsigned = is_unsigned || row.op == Op::s_setreg_b32;
    out.imm = if is_unsigned { i32::from(imm) } else { i32::from(imm as i16) };
    let field = r.bits(0, 16, 7);
    if shape[0] != b'-' {
        out.dst = r.scalar(field, count(shape[0]))?;
    }
    match row.op {
        Op::s_setreg_imm32_b32 => {
            let literal = r.literal()?;
            out.src[0] = Operand::Constant { bits: u64::from(literal), code: 255 };
        }
        Op::s_addk_i32 | Op::s_mulk_i32 => out.src[0] = out.dst,
        _ if shape[0] == b'-' => out.src[0] = r.scalar(field, 1)?,
        _ => {}
    }
    Ok(())
}

/// Scalar memory.
pub(super) fn smem(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    r.take(2)?;
    let row = r.row(Format::Smem, r.bits(0, 18, 8))?;
    (out.format, out.op) = (Format::Smem, row.op);
    let shape = row.shape.as_bytes();
    if let Some(&letter) = shape.first() {
        out.dst = r.scalar(r.bits(0, 6, 7), count(letter))?;
    }
    let Some(&base) = shape.get(1) else {
        return Ok(());
    };
    out.src[0] = r.scalar(r.bits(0, 0, 6) * 2, count(base))?;
    out.modifiers.glc = r.flag(0, 16);
    let (has_imm, has_register) = (r.flag(0, 17), r.flag(0, 14));
    // The register is in its own field where both are given, else in the low bits of the offset.
    if has_register {
        out.src[1] = r.scalar(r.bits(1, 25, 7), 1)?;
    } else if !has_imm {
        out.src[1] = r.scalar(r.bits(1, 0, 7), 1)?;
    }
    if has_imm {
        out.imm = (r.bits(1, 0, 21) << 11) as i32 >> 11;
    }
    Ok(())
}
