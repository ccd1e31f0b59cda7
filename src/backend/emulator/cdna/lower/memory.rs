//! Memory instructions, by the parts of their names.

use super::Refusal;
use super::update::update;
use crate::backend::emulator::cdna::buffer::{self, how};
use crate::backend::emulator::cdna::decode::{Format, Instruction, Op, Operand};
use crate::backend::emulator::cdna::global::{self, also};
use crate::backend::emulator::cdna::lds::{self, key};
use crate::backend::emulator::cdna::micro::{Handler, Micro, Update};
use crate::backend::emulator::cdna::{lanes, scalar_memory, scratch};

/// The function of a memory instruction, if it is one that accesses memory.
pub(super) fn handler(i: &Instruction) -> Option<Handler> {
    let name = i.op.name();
    Some(match i.format {
        Format::Smem if name.starts_with("s_load_") => scalar_memory::load,
        Format::Smem if name.starts_with("s_buffer_load_") => scalar_memory::load_buffer,
        Format::Smem if matches!(i.op, Op::s_memtime | Op::s_memrealtime) => scalar_memory::time,
        Format::Ds => match i.op {
            Op::ds_bpermute_b32 => lanes::backward,
            Op::ds_permute_b32 => lanes::forward,
            Op::ds_swizzle_b32 => lanes::swizzle,
            _ => lds::access,
        },
        Format::Flat | Format::Global if is_data(name) => global::access,
        Format::Scratch if is_data(name) => scratch::access,
        Format::Mubuf if is_data(name) => buffer::access,
        _ => return None,
    })
}

fn is_data(name: &str) -> bool {
    ["load_", "store_", "atomic_"].iter().any(|p| name.starts_with(p))
}

/// Fills what a memory instruction needs; whether it is one.
pub(super) fn prepare(i: &Instruction, m: &mut Micro) -> Result<bool, Refusal> {
    m.words = match i.dst {
        Operand::Vector { count, .. } | Operand::Acc { count, .. } | Operand::Scalar { count, .. } => count,
        _ => 0,
    };
    match i.format {
        Format::Ds => of_lds(i, m)?,
        Format::Flat | Format::Global | Format::Scratch | Format::Mubuf if is_data(i.op.name()) => of_memory(i, m)?,
        Format::Smem => {}
        _ => return Ok(false),
    }
    Ok(true)
}

/// Bytes of the smallest LDS access that an instruction makes, as a power of two.
pub(in super::super) fn lds_bytes(i: &Instruction) -> Option<u32> {
    match i.format {
        Format::Ds => width(i.op.name().trim_end_matches("_hi").trim_end_matches("_d16").rsplit('_').next()?),
        // A flat address may reach LDS.
        Format::Flat => Some(u32::from(memory_bytes(i.op.name())?)),
        _ => None,
    }
    .map(|bytes| bytes.min(4))
}

/// Bytes of a number type: `b32`, `u16`, `f64`.
fn width(number: &str) -> Option<u32> {
    let bits: u32 = number.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse().ok()?;
    Some(bits / 8)
}

fn of_lds(i: &Instruction, m: &mut Micro) -> Result<(), Refusal> {
    let unknown = || Refusal::from("unknown instruction");
    if i.modifiers.gds {
        return Err("the global data share is not of compute kernels".into());
    }
    let name = i.op.name().trim_start_matches("ds_");
    if ["bpermute_b32", "permute_b32"].contains(&name) {
        return Ok(());
    }
    if name == "swizzle_b32" {
        return if m.imm >= 0xc000 { Err("this pattern is not known".into()) } else { Ok(()) };
    }
    let is_high = name.ends_with("_d16_hi");
    let is_low = name.ends_with("_d16");
    let short = name.trim_end_matches("_hi").trim_end_matches("_d16");
    let (kind, number) = short.rsplit_once('_').ok_or_else(unknown)?;
    let bytes = width(number).ok_or_else(unknown)?;
    m.flags = bytes as u16;
    m.flags |= if is_high {
        key::HIGH
    } else if is_low {
        key::LOW
    } else {
        0
    };
    m.flags |= if number.starts_with('i') && bytes < 4 { key::SIGNED } else { 0 };
    match kind {
        "read" => {}
        "write" => m.flags |= key::STORE,
        "read2" | "read2st64" | "write2" | "write2st64" => {
            let step = bytes as i32 * if kind.ends_with("st64") { 64 } else { 1 };
            (m.imm, m.imm2) = ((i.imm & 0xff) * step, (i.imm >> 8 & 0xff) * step);
            m.flags |= key::TWO | if kind.starts_with('w') { key::STORE } else { 0 };
        }
        _ => {
            let (kind, number) = match kind.strip_prefix("pk_add") {
                Some(_) => ("pk_add", number),
                None => (kind.trim_end_matches("_rtn"), number),
            };
            m.update = update(kind, number).ok_or_else(unknown)?;
            m.flags = key::ATOMIC | if kind == "pk_add" { 4 } else { bytes as u16 };
        }
    }
    Ok(())
}

/// Bytes that a lane moves.
fn memory_bytes(name: &str) -> Option<u16> {
    let rest = name.split_once('_')?.1.trim_start_matches("lds_");
    if name.starts_with("atomic_") {
        return Some(if rest.ends_with("_x2") || rest.ends_with("f64") { 8 } else { 4 });
    }
    Some(match rest.split('_').next()? {
        "ubyte" | "sbyte" | "byte" => 1,
        "ushort" | "sshort" | "short" => 2,
        "dword" => 4,
        "dwordx2" => 8,
        "dwordx3" => 12,
        "dwordx4" => 16,
        _ => return None,
    })
}

fn atomic(name: &str) -> Option<Update> {
    let rest = name.strip_prefix("atomic_")?;
    let (rest, size) = rest.strip_suffix("_x2").map_or((rest, "32"), |r| (r, "64"));
    for number in ["f32", "f64", "bf16", "f16"] {
        if let Some(kind) = rest.strip_suffix(number).and_then(|r| r.strip_suffix('_')) {
            return update(kind, number);
        }
    }
    let (kind, letter) = match rest {
        "smin" => ("min", 'i'),
        "umin" => ("min", 'u'),
        "smax" => ("max", 'i'),
        "umax" => ("max", 'u'),
        other => (other, 'u'),
    };
    update(kind, &format!("{letter}{size}"))
}

fn of_memory(i: &Instruction, m: &mut Micro) -> Result<(), Refusal> {
    let unknown = || Refusal::from("unknown instruction");
    let name = i.op.name();
    m.flags = memory_bytes(name).ok_or_else(unknown)?;
    if name.contains("_d16") {
        m.flags |= if name.ends_with("_hi") { key::HIGH } else { key::LOW };
    }
    if name.contains("sbyte") || name.contains("sshort") {
        m.flags |= key::SIGNED;
    }
    if name.starts_with("store_") {
        m.flags |= key::STORE;
    }
    if name.starts_with("atomic_") {
        m.flags |= key::ATOMIC;
        m.update = atomic(name).ok_or_else(unknown)?;
    }
    if name.starts_with("load_lds_") || i.modifiers.lds {
        m.flags |= also::TO_LDS;
    }
    // How many registers of data there are.
    m.imm2 = match i.src[1] {
        Operand::Vector { count, .. } | Operand::Acc { count, .. } => i32::from(count),
        _ => 0,
    };
    match i.format {
        Format::Flat => m.flags |= also::FLAT,
        Format::Global if i.src[2] != Operand::None => m.flags |= also::BASE,
        Format::Mubuf => {
            m.flags |= if i.modifiers.idxen { how::INDEX } else { 0 };
            m.flags |= if i.modifiers.offen { how::OFFSET } else { 0 };
        }
        _ => {}
    }
    Ok(())
}
