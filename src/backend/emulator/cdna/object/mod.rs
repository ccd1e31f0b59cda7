//! Code objects: the ELF files that clang makes for AMD's processors, code object version 5.
//!
//! Read are the segments that are loaded, the symbols, relocations, the note with the kernels' metadata and the kernel
//! descriptors. Every offset is checked, because a driver is handed these files from disk caches and packs.
//!
//! Source: LLVM, "User Guide for AMDGPU Backend", sections "ELF Code Object" and "Kernel Descriptor".

mod descriptor;
mod elf;
#[cfg(test)]
mod tests;

pub use descriptor::{Descriptor, Initial};

use std::collections::BTreeMap;
use std::ops::Range;

use self::elf::File;
use super::decode::{Instruction, Target, decode_all};
use super::metadata::Metadata;
use crate::error::{Error, Result};

/// A code object as it lies in memory.
#[derive(Clone, Debug)]
pub struct CodeObject {
    target: Target,
    /// Memory from address 0 on.
    image: Vec<u8>,
    /// Where code may be.
    code: Vec<Range<u64>>,
    symbols: Vec<Symbol>,
    relocations: Vec<Relocation>,
    kernels: Vec<Kernel>,
}

/// A name in a code object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
    /// Whether it is a function.
    pub is_function: bool,
}

/// Eight bytes that hold an address of the object: the loader adds where it put the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Where the eight bytes are.
    pub address: u64,
    /// What they point to, if the object lay at 0.
    pub value: u64,
}

/// A kernel of a code object.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What the note says of it.
    pub metadata: Metadata,
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// The address of its descriptor.
    pub address: u64,
    /// The address of its first instruction.
    pub entry: u64,
}

/// What one kernel uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage<'a> {
    /// What the note says: registers, spills, memory.
    pub metadata: &'a Metadata,
    /// Matrix instructions in its code, by mnemonic without operands. Functions that it calls are not counted.
    pub matrix: BTreeMap<&'static str, u32>,
    /// All instructions in its code.
    pub instructions: u32,
}

impl CodeObject {
    /// Reads a code object for gfx90a or gfx942.
    ///
    /// # Errors
    /// [`Error::Driver`]: what is wrong with the file.
    pub fn read(file: &[u8]) -> Result<CodeObject> {
        let damaged = || refused("the ELF file is cut short or damaged");
        let file = File(file);
        let target = elf::header(&file)?;
        let programs = file.table(32, 54, 56).ok_or_else(damaged)?;
        let (image, code) = elf::load(&file, &programs)?;
        let sections = elf::sections(&file).ok_or_else(damaged)?;
        let symbols = elf::symbols(&file, &sections).ok_or_else(damaged)?;
        let relocations = elf::relocations(&file, &sections)?;
        let mut object = CodeObject { target, image, code, symbols, relocations, kernels: Vec::new() };
        for note in elf::metadata_of(&file, &programs)? {
            object.add_kernel(note)?;
        }
        Ok(object)
    }

    fn add_kernel(&mut self, metadata: Metadata) -> Result<()> {
        let name = &metadata.name;
        let symbol = self.symbols.iter().find(|s| s.name == metadata.symbol);
        let symbol = symbol.ok_or_else(|| refused(format!("kernel {name}: symbol {} is missing", metadata.symbol)))?;
        let address = symbol.address;
        let bytes = File(&self.image).take(address);
        let descriptor = bytes.map(Descriptor::new);
        let descriptor = descriptor.ok_or_else(|| refused(format!("kernel {name}: its descriptor is not loaded")))?;
        let entry = address.wrapping_add_signed(descriptor.entry_offset);
        if entry % 4 != 0 || !self.code.iter().any(|range| range.contains(&entry)) {
            return Err(refused(format!("kernel {name}: expected code at {entry:#x}, found none")));
        }
        if metadata.wave != 64 {
            return Err(refused(format!("kernel {name}: expected waves of 64 lanes, found {}", metadata.wave)));
        }
        self.kernels.push(Kernel { metadata, descriptor, address, entry });
        Ok(())
    }

    /// The processor it is for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Its memory, from address 0 on.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Its names.
    pub fn symbols(&self) -> &[Symbol] {
        &self.symbols
    }

    /// Where addresses stand in its memory.
    pub fn relocations(&self) -> &[Relocation] {
        &self.relocations
    }

    /// Its kernels, in the order of the note.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// A kernel by name.
    ///
    /// # Errors
    /// A name that it does not have, with those that it has.
    pub fn kernel(&self, name: &str) -> Result<&Kernel> {
        self.kernels.iter().find(|k| k.metadata.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.kernels.iter().map(|k| k.metadata.name.as_str()).collect();
            refused(format!("expected kernel {name}, found {}", names.join(", ")))
        })
    }

    /// The instructions of its functions, by address. What lies between functions is no code.
    ///
    /// # Errors
    /// Words that are no instruction, with address and words; a function outside the code.
    pub fn instructions(&self) -> Result<Vec<Instruction>> {
        let mut functions: Vec<&Symbol> = self.symbols.iter().filter(|s| s.is_function && s.size > 0).collect();
        functions.sort_by_key(|f| (f.address, u64::MAX - f.size));
        let mut out = Vec::new();
        let mut end = 0;
        for function in functions {
            // A name within another's code is an alias.
            if function.address >= end {
                out.extend(self.function(function)?);
                end = function.address + function.size;
            }
        }
        Ok(out)
    }

    fn function(&self, function: &Symbol) -> Result<Vec<Instruction>> {
        let (address, size) = (function.address, function.size);
        let is_code = |range: &&Range<u64>| range.contains(&address) && size <= range.end - address;
        let inside = self.code.iter().find(is_code).filter(|_| address % 4 == 0 && size % 4 == 0);
        let bytes = inside.and_then(|_| File(&self.image).bytes(address, size));
        let bytes = bytes.ok_or_else(|| refused(format!("function {}: its code is not loaded", function.name)))?;
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let words: Vec<u32> = bytes.chunks_exact(4).map(word).collect();
        decode_all(self.target, address, &words)
    }

    /// What each kernel uses.
    ///
    /// # Errors
    /// As [`CodeObject::instructions`].
    pub fn usage(&self) -> Result<Vec<Usage<'_>>> {
        let mut out = Vec::new();
        for Kernel { metadata, entry, .. } in &self.kernels {
            let is_entry = |s: &&Symbol| s.is_function && s.address == *entry && s.name == metadata.name;
            let code = self.symbols.iter().find(is_entry).map_or(Ok(Vec::new()), |s| self.function(s))?;
            let mut matrix = BTreeMap::new();
            for instruction in code.iter().filter(|i| i.op.is_matrix()) {
                *matrix.entry(instruction.op.name()).or_default() += 1;
            }
            out.push(Usage { metadata, matrix, instructions: code.len() as u32 });
        }
        Ok(out)
    }
}

fn refused(what: impl AsRef<str>) -> Error {
    Error::driver(format!("code object: {}", what.as_ref()))
}
