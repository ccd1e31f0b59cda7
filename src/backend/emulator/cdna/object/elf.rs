//! The ELF file: header, segments, sections, symbols, relocations, notes; every offset checked.

use std::ops::Range;

use super::{Relocation, Symbol, refused};
use crate::backend::emulator::cdna::decode::Target;
use crate::backend::emulator::cdna::metadata::{self, Metadata};
use crate::error::Result;

/// ELF's number of the machine.
const EM_AMDGPU: u16 = 224;
/// `EF_AMDGPU_MACH`: the processor in the header's flags.
const MACH: [(u32, Target); 2] = [(0x3f, Target::Gfx90a), (0x4c, Target::Gfx942)];
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_DYNSYM: u32 = 11;
const NT_AMDGPU_METADATA: u32 = 32;
/// A pointer to a place in the object, as the linker leaves it in data; and one to a symbol.
const R_AMDGPU_ABS64: u64 = 3;
const R_AMDGPU_RELATIVE64: u64 = 13;
/// The most bytes that an object may ask for in memory: kernels' code and constants are a thousandth of it.
const IMAGE_LIMIT: u64 = 1 << 28;

/// Reads fields of the file; `None` beyond its end.
pub(super) struct File<'a>(pub(super) &'a [u8]);

impl<'a> File<'a> {
    pub(super) fn bytes(&self, at: u64, length: u64) -> Option<&'a [u8]> {
        let at = usize::try_from(at).ok()?;
        self.0.get(at..at.checked_add(usize::try_from(length).ok()?)?)
    }

    pub(super) fn take<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        self.bytes(at, N as u64)?.try_into().ok()
    }

    fn short(&self, at: u64) -> Option<u16> {
        self.take(at).map(u16::from_le_bytes)
    }

    fn word(&self, at: u64) -> Option<u32> {
        self.take(at).map(u32::from_le_bytes)
    }

    fn long(&self, at: u64) -> Option<u64> {
        self.take(at).map(u64::from_le_bytes)
    }

    /// Entries of a table in the header: `at`, `size` and `count` are where its offset, entry size and length stand.
    pub(super) fn table(&self, at: u64, size: u64, count: u64) -> Option<Vec<File<'a>>> {
        let (start, size, count) = (self.long(at)?, u64::from(self.short(size)?), self.short(count)?);
        (0..u64::from(count)).map(|i| Some(File(self.bytes(start.checked_add(i * size)?, size)?))).collect()
    }

    /// The text at `at` up to its zero.
    fn text(&self, at: u64) -> Option<String> {
        let rest = self.0.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    }
}

/// A section header.
#[derive(Clone, Copy)]
pub(super) struct Section {
    kind: u32,
    offset: u64,
    size: u64,
    link: u32,
}

/// The target that the header names.
pub(super) fn header(file: &File) -> Result<Target> {
    // 64 bits, little-endian, version 1, the operating system "AMDGPU HSA".
    if file.bytes(0, 8) != Some(b"\x7fELF\x02\x01\x01\x40") || file.short(18) != Some(EM_AMDGPU) {
        return Err(refused("expected an ELF file for AMD's processors"));
    }
    let mach = file.word(48).unwrap_or(0) & 0xff;
    let target = MACH.iter().find(|(m, _)| *m == mach).map(|(_, t)| *t);
    target.ok_or_else(|| refused(format!("expected gfx90a or gfx942, found processor number {mach:#x}")))
}

/// The memory of the segments, and where in it code is.
pub(super) fn load(file: &File, programs: &[File]) -> Result<(Vec<u8>, Vec<Range<u64>>)> {
    let damaged = || refused("a segment lies outside the file");
    let (mut image, mut code) = (Vec::new(), Vec::new());
    for program in programs.iter().filter(|p| p.word(0) == Some(PT_LOAD)) {
        let field = |at| program.long(at).ok_or_else(damaged);
        let (offset, address, in_file, in_memory) = (field(8)?, field(16)?, field(32)?, field(40)?);
        let bytes = file.bytes(offset, in_file).filter(|_| in_file <= in_memory).ok_or_else(damaged)?;
        let end = address.checked_add(in_memory).filter(|end| *end <= IMAGE_LIMIT);
        let end = end.ok_or_else(|| refused(format!("a segment of {in_memory} bytes at {address:#x} is too large")))?;
        if image.len() < end as usize {
            image.resize(end as usize, 0);
        }
        let start = address as usize;
        image[start..start + bytes.len()].copy_from_slice(bytes);
        if program.word(4).is_some_and(|flags| flags & PF_X != 0) {
            code.push(address..address + in_file);
        }
    }
    Ok((image, code))
}

pub(super) fn sections(file: &File) -> Option<Vec<Section>> {
    let sections = file.table(40, 58, 60)?;
    let read = |s: &File| Some(Section { kind: s.word(4)?, offset: s.long(24)?, size: s.long(32)?, link: s.word(40)? });
    sections.iter().map(read).collect()
}

/// The named symbols of the symbol table, or of the dynamic one if the file was stripped.
pub(super) fn symbols(file: &File, sections: &[Section]) -> Option<Vec<Symbol>> {
    let find = |kind| sections.iter().find(|s| s.kind == kind);
    let Some(table) = find(SHT_SYMTAB).or_else(|| find(SHT_DYNSYM)) else { return Some(Vec::new()) };
    let names = sections.get(table.link as usize)?;
    let names = File(file.bytes(names.offset, names.size)?);
    let mut out = Vec::new();
    for entry in file.bytes(table.offset, table.size)?.chunks_exact(24).map(File) {
        let name = names.text(u64::from(entry.word(0)?))?;
        // Index 0 is "defined elsewhere".
        if !name.is_empty() && entry.short(6)? != 0 {
            let is_function = entry.take::<1>(4)?[0] & 15 == 2;
            out.push(Symbol { name, address: entry.long(8)?, size: entry.long(16)?, is_function });
        }
    }
    Some(out)
}

/// The relocations, with their symbols resolved.
pub(super) fn relocations(file: &File, sections: &[Section]) -> Result<Vec<Relocation>> {
    let damaged = || refused("a relocation lies outside the file");
    let mut out = Vec::new();
    for section in sections.iter().filter(|s| s.kind == SHT_RELA) {
        for entry in file.bytes(section.offset, section.size).ok_or_else(damaged)?.chunks_exact(24).map(File) {
            let field = |at| entry.long(at).ok_or_else(damaged);
            let (address, info, addend) = (field(0)?, field(8)?, field(16)?);
            let base = match info & 0xffff_ffff {
                R_AMDGPU_RELATIVE64 => 0,
                R_AMDGPU_ABS64 => {
                    let table = sections.get(section.link as usize).ok_or_else(damaged)?;
                    let at = table.offset.checked_add((info >> 32) * 24 + 8).ok_or_else(damaged)?;
                    file.long(at).ok_or_else(damaged)?
                }
                other => return Err(refused(format!("relocations of type {other} are not known"))),
            };
            out.push(Relocation { address, value: base.wrapping_add(addend) });
        }
    }
    Ok(out)
}

/// The kernels in the metadata note.
pub(super) fn metadata_of(file: &File, programs: &[File]) -> Result<Vec<Metadata>> {
    for program in programs.iter().filter(|p| p.word(0) == Some(PT_NOTE)) {
        let bytes = program.long(8).zip(program.long(32)).and_then(|(at, length)| file.bytes(at, length));
        let notes = File(bytes.ok_or_else(|| refused("the notes lie outside the file"))?);
        let mut at = 0;
        // Name and description are padded to four bytes.
        while let (Some(name), Some(length), Some(kind)) = (notes.word(at), notes.word(at + 4), notes.word(at + 8)) {
            let start = at + 12 + u64::from(name).next_multiple_of(4);
            if kind == NT_AMDGPU_METADATA && notes.bytes(at + 12, u64::from(name)) == Some(b"AMDGPU\0") {
                let description = notes.bytes(start, u64::from(length));
                let read = metadata::read(description.ok_or_else(|| refused("the metadata is cut short"))?);
                return Ok(read.map_err(|why| refused(format!("metadata: {why}")))?.1);
            }
            at = start + u64::from(length).next_multiple_of(4);
        }
    }
    Err(refused("expected metadata of kernels, found none"))
}
