//! Memory formats: DS, FLAT, GLOBAL, SCRATCH, MUBUF.

use super::fields::{Reader, count};
use super::{Format, Instruction, Operand, Target};
use crate::error::Result;

/// Local data share.
pub(super) fn ds(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    r.take(2)?;
    let row = r.row(Format::Ds, r.bits(0, 17, 8))?;
    (out.format, out.op) = (Format::Ds, row.op);
    let shape = row.shape.as_bytes();
    let is_acc = r.flag(0, 25);
    let letter = |i: usize| shape.get(i).copied().unwrap_or(b'-');
    let field = |r: &Reader, i: usize, low: u32, is_acc: bool| match count(letter(i)) {
        0 => Ok(Operand::None),
        n => r.vector(r.bits(1, low, 8), n, is_acc),
    };
    out.dst = field(r, 0, 24, is_acc)?;
    out.src[0] = field(r, 1, 0, false)?;
    out.src[1] = field(r, 2, 8, is_acc)?;
    out.src[2] = field(r, 3, 16, is_acc)?;
    out.imm = r.bits(0, 0, 16) as i32;
    out.modifiers.gds = r.flag(0, 16);
    Ok(())
}

/// Data registers of loads, stores and atomics: where they go depends on which of these it is.
fn data(r: &Reader, out: &mut Instruction, shape: &[u8], low: (u32, u32), is_acc: bool) -> Result<()> {
    let (dst, data) = (shape[0], shape[1]);
    if data != b'-' {
        out.src[1] = r.vector(r.bits(1, low.1, 8), count(data), is_acc)?;
    }
    // An atomic has a result only if it asks for the value before.
    if dst != b'-' && (data == b'-' || out.modifiers.glc) {
        out.dst = r.vector(r.bits(1, low.0, 8), count(dst), is_acc)?;
    }
    Ok(())
}

/// Memory by address.
pub(super) fn flat(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    r.take(2)?;
    let row = r.row(Format::Flat, r.bits(0, 18, 7))?;
    out.op = row.op;
    out.format = match r.bits(0, 14, 2) {
        0 => Format::Flat,
        1 => Format::Scratch,
        2 => Format::Global,
        _ => return Err(r.error("segment 3 does not exist")),
    };
    let is_new = r.target == Target::Gfx942;
    let bit13 = r.flag(0, 13);
    out.modifiers.glc = r.flag(0, 16);
    out.modifiers.slc = r.flag(0, 17);
    out.modifiers.scc = r.flag(0, 25);
    let offset = r.bits(0, 0, 13);
    out.imm = if out.format == Format::Flat { (offset & 0xfff) as i32 } else { (offset << 19) as i32 >> 19 };
    data(r, out, row.shape.as_bytes(), (24, 8), r.flag(1, 23))?;
    let (address, saddr) = (r.bits(1, 0, 8), r.bits(1, 16, 7));
    let has_base = out.format != Format::Flat && saddr != 0x7f;
    if has_base {
        out.src[2] = r.scalar(saddr, if out.format == Format::Global { 2 } else { 1 })?;
    }
    out.src[0] = match out.format {
        // gfx942 says in bit 13 whether there is a vector offset; gfx90a has one where there is no scalar.
        Format::Scratch if (is_new && !bit13) || (!is_new && has_base) => Operand::None,
        Format::Scratch => r.vector(address, 1, false)?,
        _ if has_base => r.vector(address, 1, false)?,
        _ => r.vector(address, 2, false)?,
    };
    if bit13 && !(is_new && out.format == Format::Scratch) {
        let is_load = out.dst != Operand::None && out.src[1] == Operand::None;
        if is_new || out.format == Format::Flat || !is_load {
            return Err(r.error("only loads on gfx90a go to shared memory by a bit"));
        }
        out.modifiers.lds = true;
        out.dst = Operand::None;
    }
    Ok(())
}

/// Memory by descriptor.
pub(super) fn mubuf(r: &mut Reader, out: &mut Instruction) -> Result<()> {
    r.take(2)?;
    let row = r.row(Format::Mubuf, r.bits(0, 18, 7))?;
    (out.format, out.op) = (Format::Mubuf, row.op);
    let m = &mut out.modifiers;
    (m.offen, m.idxen, m.glc) = (r.flag(0, 12), r.flag(0, 13), r.flag(0, 14));
    (m.scc, m.lds, m.slc) = (r.flag(0, 15), r.flag(0, 16), r.flag(0, 17));
    if row.shape.is_empty() {
        return Ok(());
    }
    let (parts, is_to_lds) = (u8::from(m.offen) + u8::from(m.idxen), m.lds);
    out.imm = r.bits(0, 0, 12) as i32;
    data(r, out, row.shape.as_bytes(), (8, 8), r.flag(1, 23))?;
    if is_to_lds {
        out.dst = Operand::None;
    }
    if parts > 0 {
        out.src[0] = r.vector(r.bits(1, 0, 8), parts, false)?;
    }
    out.src[2] = r.scalar(r.bits(1, 16, 5) * 4, 4)?;
    out.src[3] = r.source8(row.op, b'w', r.bits(1, 24, 8))?;
    Ok(())
}
