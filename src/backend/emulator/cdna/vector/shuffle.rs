//! Operands that are parts of registers (SDWA) or come from another lane (DPP).

use crate::backend::emulator::cdna::micro::{Dpp, Micro, Part, Sdwa, Shuffle};
use crate::backend::emulator::cdna::wave::{LANES, Lanes, Wave};

/// Source `i` as the instruction rearranges it.
pub(super) fn source(w: &Wave, m: &Micro, i: usize, raw: &Lanes) -> Lanes {
    match m.shuffle {
        Shuffle::Sdwa(sdwa) if i < 2 => raw.map(|x| extract(x, sdwa.parts[i], sdwa.sign[i])),
        Shuffle::Dpp(dpp) if i == 0 => {
            let (from, valid) = dpp_sources(dpp.control, w.exec());
            std::array::from_fn(|l| if valid >> l & 1 == 1 { raw[usize::from(from[l])] } else { 0 })
        }
        _ => *raw,
    }
}

fn extract(x: u32, part: Part, is_signed: bool) -> u32 {
    match (part, is_signed) {
        (Part::Byte(i), false) => x >> (8 * i) & 0xff,
        (Part::Byte(i), true) => (x >> (8 * i)) as i8 as u32,
        (Part::Word(i), false) => x >> (16 * i) & 0xffff,
        (Part::Word(i), true) => (x >> (16 * i)) as i16 as u32,
        (Part::Whole, _) => x,
    }
}

/// Writes results where the instruction rearranges them.
pub(super) fn put(w: &mut Wave, m: &Micro, out: &Lanes) {
    match m.shuffle {
        Shuffle::None => w.put(m.dst, out),
        Shuffle::Sdwa(sdwa) => {
            let old = w.v[usize::from(m.dst)];
            let merged = std::array::from_fn(|l| insert(old[l], out[l], &sdwa));
            w.put(m.dst, &merged);
        }
        Shuffle::Dpp(dpp) => {
            let mask = w.exec() & written(&dpp, w.exec());
            w.put_where(m.dst, out, mask);
        }
    }
}

fn insert(old: u32, new: u32, sdwa: &Sdwa) -> u32 {
    let (shift, bits) = match sdwa.dst {
        Part::Byte(i) => (8 * u32::from(i), 8),
        Part::Word(i) => (16 * u32::from(i), 16),
        Part::Whole => return new,
    };
    let mask = ((1u32 << bits) - 1) << shift;
    let part = (new << shift) & mask;
    let rest = match sdwa.rest {
        0 => 0,
        1 => {
            // Above the part its sign, below it zero.
            let is_negative = new >> (bits - 1) & 1 == 1;
            if is_negative { !mask & !((1u32 << shift) - 1) } else { 0 }
        }
        _ => old & !mask,
    };
    part | rest
}

/// The lanes that a DPP instruction writes.
fn written(dpp: &Dpp, exec: u64) -> u64 {
    let mut mask = 0;
    for l in 0..LANES {
        let (row, bank) = (l / 16, l / 4 % 4);
        mask |= u64::from(dpp.rows >> row & dpp.banks >> bank & 1) << l;
    }
    if dpp.is_zero_filled { mask } else { mask & dpp_sources(dpp.control, exec).1 }
}

/// From which lane each lane reads, and which of them have one that is on.
fn dpp_sources(control: u16, exec: u64) -> ([u8; LANES], u64) {
    let mut from = [0; LANES];
    let mut valid = 0;
    for l in 0..LANES as i32 {
        let (row, inside) = (l & !15, l & 15);
        let n = i32::from(control & 15);
        let source = match control {
            0..=0xff => Some((l & !3) | i32::from(control >> (2 * (l & 3)) & 3)),
            0x101..=0x10f => (inside + n < 16).then_some(l + n),
            0x111..=0x11f => (inside - n >= 0).then_some(l - n),
            0x121..=0x12f => Some(row | ((inside - n) & 15)),
            0x130 => (l < 63).then_some(l + 1),
            0x134 => Some((l + 1) & 63),
            0x138 => (l > 0).then_some(l - 1),
            0x13c => Some((l - 1) & 63),
            0x140 => Some(row | (15 - inside)),
            0x141 => Some((l & !7) | (7 - (l & 7))),
            0x142 => (l >= 16).then_some(row - 1),
            0x143 => (l >= 32).then_some(31),
            0x150..=0x15f => Some(row | n),
            _ => None,
        };
        if let Some(source) = source {
            from[l as usize] = source as u8;
            valid |= (exec >> source & 1) << l;
        }
    }
    (from, valid)
}
