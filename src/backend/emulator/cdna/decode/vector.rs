//! Vector formats: VOP1, VOP2, VOPC with SDWA and DPP, VOP3, VOP3P, MAI.

use super::fields::{Reader, VCC, count};
use super::{Access, Compare, Format, Instruction, Number, Op, Operand, Part, Unused};
use crate::error::Result;

const SDWA: u32 = 249;
const DPP: u32 = 250;

/// An instruction whose first word starts with binary 0.
pub(super) fn vop(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    match r.bits(0, 25, 6) {
        0x3e => vopc(r, out),
        0x3f => {
            let row = r.row(Format::Vop1, r.bits(0, 9, 8))?;
            (out.format, out.op) = (Format::Vop1, row.op);
            short(r, out, row.shape.as_bytes(), None)
        }
        code => {
            let row = r.row(Format::Vop2, code)?;
            (out.format, out.op) = (Format::Vop2, row.op);
            short(r, out, row.shape.as_bytes(), Some(r.bits(0, 9, 8)))
        }
    }
}

fn vopc(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    out.format = Format::Vopc;
    let letters = comparison(r, out, r.bits(0, 17, 8))?;
    out.dst = Operand::Scalar { first: VCC, count: 2 };
    let shape = [b'm', letters[0], letters[1]];
    short(r, out, &shape, Some(r.bits(0, 9, 8)))
}

/// What opcode `code` compares; the letters of both sources.
fn comparison(r: &Reader, out: &mut Instruction, code: u32) -> Result<[u8; 2]> {
    use Number::{F16, F32, F64, I16, I32, I64, U16, U32, U64};
    let is_x = code & 0x10 != 0;
    let condition = (code & 0xf) as u8;
    // Classes are below the floats, floats have 16 conditions, integers 8 for the signed and 8 for the unsigned.
    let (op, number, condition) = match code {
        0x10..=0x15 => {
            let number = [F32, F64, F16][(code as usize - 0x10) / 2];
            (if code & 1 != 0 { Op::v_cmpx_class } else { Op::v_cmp_class }, number, 0)
        }
        0x20..=0x7f => {
            let number = [F16, F32, F64][(code as usize - 0x20) / 0x20];
            (if is_x { Op::v_cmpx } else { Op::v_cmp }, number, condition)
        }
        0xa0..=0xff => {
            let number =
                [[I16, U16], [I32, U32], [I64, U64]][(code as usize - 0xa0) / 0x20][usize::from(condition >> 3)];
            (if is_x { Op::v_cmpx } else { Op::v_cmp }, number, condition & 7)
        }
        _ => return Err(r.error(&format!("unknown comparison {code:#x}"))),
    };
    out.op = op;
    out.compare = Some(Compare { number, condition });
    let letter = match number {
        F16 | I16 | U16 => b'h',
        F32 | I32 | U32 => b'w',
        I64 | U64 => b'd',
        // Comparisons have one name for all types, so the letter must say that these are floats.
        F64 => b'f',
    };
    let is_class = matches!(op, Op::v_cmp_class | Op::v_cmpx_class);
    Ok([letter, if is_class { b'w' } else { letter }])
}

/// The 32-bit encodings, with a literal or a word of SDWA or DPP. `second` is the field of the second source.
fn short(r: &mut Reader, out: &mut Instruction, shape: &[u8], second: Option<u32>) -> Result<()> {
    let Some(&result) = shape.first() else {
        return Ok(());
    };
    let vcc = Operand::Scalar { first: VCC, count: 2 };
    let field = r.bits(0, 17, 8);
    out.dst = match result {
        b'm' => vcc,
        b's' => r.scalar(field, 1)?,
        letter => r.vector(field, count(letter), out.op == Op::v_accvgpr_mov_b32)?,
    };
    let mut letters = &shape[1..];
    if letters.first() == Some(&b'c') {
        out.sdst = vcc;
        letters = &letters[1..];
    }
    let code = r.bits(0, 0, 9);
    match code {
        SDWA => sdwa(r, out, letters, second)?,
        DPP => dpp(r, out, letters, second)?,
        _ => {
            out.src[0] = r.source9(out.op, letters[0], code)?;
            if out.op == Op::v_accvgpr_mov_b32 {
                out.src[0] = r.vector(code.wrapping_sub(256) & 0xff, 1, true)?;
            }
            if let Some(second) = second {
                out.src[1] = r.vector(second, count(letters[1]), false)?;
            }
        }
    }
    match out.op {
        // The constant stands between the factors or after them.
        Op::v_madmk_f32 | Op::v_madmk_f16 | Op::v_fmamk_f32 => {
            out.src[2] = out.src[1];
            out.src[1] = literal(r)?;
        }
        Op::v_madak_f32 | Op::v_madak_f16 | Op::v_fmaak_f32 => out.src[2] = literal(r)?,
        _ if letters.last() == Some(&b'm') => out.src[2] = vcc,
        _ => {}
    }
    Ok(())
}

fn literal(r: &mut Reader) -> Result<Operand> {
    Ok(Operand::Constant { bits: u64::from(r.literal()?), code: 255 })
}

fn part(r: &Reader, selector: u32) -> Result<Part> {
    match selector {
        0..=3 => Ok(Part::Byte(selector as u8)),
        4 | 5 => Ok(Part::Word(selector as u8 - 4)),
        6 => Ok(Part::Dword),
        _ => Err(r.error("SDWA selector 7 does not exist")),
    }
}

fn sdwa(r: &mut Reader, out: &mut Instruction, letters: &[u8], second: Option<u32>) -> Result<()> {
    r.take(2)?;
    let source = |r: &mut Reader, op, letter, code: u32, is_scalar| match is_scalar {
        true => r.source8(op, letter, code),
        false => r.vector(code, count(letter), false),
    };
    out.src[0] = source(r, out.op, letters[0], r.bits(1, 0, 8), r.flag(1, 23))?;
    let mut parts = [part(r, r.bits(1, 16, 3))?, Part::Dword];
    let m = &mut out.modifiers;
    m.neg = r.bits(1, 20, 1) as u8;
    m.abs = r.bits(1, 21, 1) as u8;
    let mut sext = r.bits(1, 19, 1) as u8;
    if let Some(second) = second {
        out.src[1] = source(r, out.op, letters[1], second, r.flag(1, 31))?;
        parts[1] = part(r, r.bits(1, 24, 3))?;
        m.neg |= (r.bits(1, 28, 1) as u8) << 1;
        m.abs |= (r.bits(1, 29, 1) as u8) << 1;
        sext |= (r.bits(1, 27, 1) as u8) << 1;
    }
    let (mut dst, mut unused) = (Part::Dword, Unused::Pad);
    if out.format == Format::Vopc {
        if r.flag(1, 15) {
            out.dst = r.scalar(r.bits(1, 8, 7), 2)?;
        }
    } else {
        dst = part(r, r.bits(1, 8, 3))?;
        unused = match r.bits(1, 11, 2) {
            0 => Unused::Pad,
            1 => Unused::Sext,
            2 => Unused::Preserve,
            _ => return Err(r.error("SDWA treatment 3 of unused bits does not exist")),
        };
        m.clamp = r.flag(1, 13);
        m.omod = r.bits(1, 14, 2) as u8;
    }
    out.access = Access::Sdwa { dst, unused, src: parts, sext };
    Ok(())
}

fn dpp(r: &mut Reader, out: &mut Instruction, letters: &[u8], second: Option<u32>) -> Result<()> {
    r.take(2)?;
    out.src[0] = r.vector(r.bits(1, 0, 8), count(letters[0]), false)?;
    if let Some(second) = second {
        out.src[1] = r.vector(second, count(letters[1]), false)?;
    }
    out.modifiers.neg = (r.bits(1, 20, 1) | r.bits(1, 22, 1) << 1) as u8;
    out.modifiers.abs = (r.bits(1, 21, 1) | r.bits(1, 23, 1) << 1) as u8;
    out.access = Access::Dpp {
        control: r.bits(1, 8, 9) as u16,
        rows: r.bits(1, 28, 4) as u8,
        banks: r.bits(1, 24, 4) as u8,
        bound: r.flag(1, 19),
    };
    Ok(())
}

/// An instruction of two words with all modifiers.
pub(super) fn vop3(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    r.take(2)?;
    let code = r.bits(0, 16, 10);
    if code >= 0x380 {
        return packed(r, out, code - 0x380);
    }
    out.format = Format::Vop3;
    let m = &mut out.modifiers;
    m.neg = r.bits(1, 29, 3) as u8;
    m.omod = r.bits(1, 27, 2) as u8;
    m.clamp = r.flag(0, 15);
    let letters;
    let shape = match code {
        0..0x100 => {
            let [a, b] = comparison(r, out, code)?;
            letters = [b'm', a, b];
            &letters[..]
        }
        _ => {
            // The 32-bit encodings reappear here at offsets.
            let row = match code {
                0x100..0x140 => r.row(Format::Vop2, code - 0x100)?,
                0x140..0x1c0 => r.row(Format::Vop1, code - 0x140)?,
                _ => r.row(Format::Vop3, code)?,
            };
            out.op = row.op;
            row.shape.as_bytes()
        }
    };
    if matches!(out.op, Op::v_madmk_f32 | Op::v_madak_f32 | Op::v_fmamk_f32 | Op::v_fmaak_f32)
        || matches!(out.op, Op::v_madmk_f16 | Op::v_madak_f16 | Op::v_swap_b32 | Op::v_accvgpr_mov_b32)
    {
        return Err(r.error("the 32-bit operation has no encoding of 64 bits"));
    }
    let Some((&result, mut shape)) = shape.split_first() else {
        return Ok(());
    };
    let field = r.bits(0, 0, 8);
    out.dst = match result {
        b'm' => r.scalar(field, 2)?,
        b's' => r.scalar(field, 1)?,
        letter => r.vector(field, count(letter), false)?,
    };
    if shape.first() == Some(&b'c') {
        out.sdst = r.scalar(r.bits(0, 8, 7), 2)?;
        shape = &shape[1..];
    } else {
        out.modifiers.abs = r.bits(0, 8, 3) as u8;
        out.modifiers.op_sel = r.bits(0, 11, 4) as u8;
        // Only the operations that were new with packed numbers read it.
        let name = out.op.name();
        let is_new = code >= 0x1c0 && !name.contains("legacy") && (shape.contains(&b'h') || name.contains("f8_f32"));
        if out.modifiers.op_sel != 0 && !is_new && !name.contains("p8_f32") {
            return Err(r.error("the operation has no op_sel"));
        }
    }
    for (i, &letter) in shape.iter().enumerate() {
        out.src[i] = r.source9(out.op, letter, r.bits(1, 9 * i as u32, 9))?;
    }
    Ok(())
}

fn packed(r: &mut Reader, out: &mut Instruction, code: u32) -> Result<()> {
    let row = r.row(Format::Vop3p, code)?;
    out.op = row.op;
    let shape = row.shape.as_bytes();
    if row.op.is_matrix() || matches!(row.op, Op::v_accvgpr_read_b32 | Op::v_accvgpr_write_b32) {
        return matrix(r, out, shape);
    }
    out.format = Format::Vop3p;
    let m = &mut out.modifiers;
    m.neg = r.bits(1, 29, 3) as u8;
    m.neg_hi = r.bits(0, 8, 3) as u8;
    m.op_sel = r.bits(0, 11, 3) as u8;
    m.op_sel_hi = (r.bits(1, 27, 2) | r.bits(0, 14, 1) << 2) as u8;
    m.clamp = r.flag(0, 15);
    // The mixed operations are not packed: the field that would negate high halves takes magnitudes.
    if matches!(row.op, Op::v_fma_mix_f32 | Op::v_fma_mixlo_f16 | Op::v_fma_mixhi_f16) {
        m.abs = std::mem::take(&mut m.neg_hi);
    }
    out.dst = r.vector(r.bits(0, 0, 8), count(shape[0]), false)?;
    for (i, &letter) in shape[1..].iter().enumerate() {
        out.src[i] = r.source9(out.op, letter, r.bits(1, 9 * i as u32, 9))?;
    }
    Ok(())
}

fn matrix(r: &mut Reader, out: &mut Instruction, shape: &[u8]) -> Result<()> {
    out.format = Format::Mai;
    let is_acc_cd = r.flag(0, 15);
    // Moves to and from accumulation registers carry the defaults of packed operations here, which mean nothing.
    if out.op.is_matrix() {
        out.modifiers.cbsz = r.bits(0, 8, 3) as u8;
        out.modifiers.abid = r.bits(0, 11, 4) as u8;
        out.modifiers.blgp = r.bits(1, 29, 3) as u8;
    }
    let is_acc_dst = if out.op.is_matrix() { is_acc_cd } else { out.op == Op::v_accvgpr_write_b32 };
    out.dst = r.vector(r.bits(0, 0, 8), count(shape[0]), is_acc_dst)?;
    for (i, &letter) in shape[1..].iter().enumerate() {
        let code = r.bits(1, 9 * i as u32, 9);
        let is_acc = match (out.op, i) {
            (Op::v_accvgpr_read_b32, _) => true,
            (Op::v_accvgpr_write_b32, _) => false,
            // The index of a sparse product is an ordinary register.
            (_, 2) => is_acc_cd && letter != b'w',
            _ => r.flag(1, 27 + i as u32),
        };
        out.src[i] = match code {
            256.. => r.vector(code - 256, count(letter), is_acc)?,
            _ if i < 2 && out.op.is_matrix() => {
                return Err(r.error("a matrix must be in vector registers"));
            }
            _ => r.source9(out.op, letter, code)?,
        };
    }
    Ok(())
}
