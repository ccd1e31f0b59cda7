//! The code of a module as it is executed: instructions resolved once, with their addresses and what they use.

use std::fmt::Write;

use super::decode::Instruction;
use super::lower;
use super::micro::Micro;
use super::waits::Registers;

/// The code that an entry point can reach, resolved for its registers.
#[derive(Debug)]
pub(super) struct Program {
    /// The loaded bytes of the code object, from address 0 on.
    pub(super) image: Vec<u8>,
    pub(super) code: Vec<Micro>,
    /// Registers that each instruction reads, and those that it writes unless it is a memory instruction.
    pub(super) uses: Vec<Registers>,
    /// What was decoded, for messages.
    source: Vec<Instruction>,
    /// Index of the instruction at each word of the code, from `start` on; `u32::MAX` inside an instruction.
    index: Vec<u32>,
    start: u64,
    /// Vector registers before the accumulation registers.
    accumulators: u16,
    /// The smallest access to LDS, as a power of two.
    pub(super) grain: u32,
    /// Which instructions cannot be executed, and why.
    refusals: Vec<(usize, String)>,
}

impl Program {
    /// Resolves `source`, the code of a module in order of address, for an entry with so many registers. What cannot be
    /// resolved is refused when it is executed: other entries of the module may have more registers.
    pub(super) fn new(image: Vec<u8>, source: Vec<Instruction>, registers: u16, accumulators: u16) -> Program {
        let start = source.first().map_or(0, |i| i.address);
        let end = source.last().map_or(start, |i| i.address + u64::from(i.size));
        let mut index = vec![u32::MAX; ((end - start) / 4) as usize];
        for (i, instruction) in source.iter().enumerate() {
            index[((instruction.address - start) / 4) as usize] = i as u32;
        }
        let mut program = Program {
            image,
            code: Vec::with_capacity(source.len()),
            uses: Vec::with_capacity(source.len()),
            source: Vec::new(),
            index,
            start,
            accumulators,
            grain: 2,
            refusals: Vec::new(),
        };
        for instruction in &source {
            let target = instruction.branch().map(|to| program.index_of(to));
            let (micro, uses) = lower::lower(instruction, target, registers, accumulators).unwrap_or_else(|why| {
                program.refusals.push((program.code.len(), why));
                (lower::refused(program.refusals.len() - 1), Registers::default())
            });
            program.code.push(micro);
            program.uses.push(uses);
        }
        program.grain = source.iter().filter_map(lower::lds_bytes).map(u32::trailing_zeros).min().unwrap_or(2).min(2);
        program.source = source;
        program
    }

    /// Index of the instruction at an address of the code object.
    pub(super) fn index_of(&self, address: u64) -> Option<usize> {
        let word = usize::try_from(address.checked_sub(self.start)? / 4).ok()?;
        self.index.get(word).filter(|i| **i != u32::MAX && address.is_multiple_of(4)).map(|i| *i as usize)
    }

    /// Address of the instruction after number `at`.
    pub(super) fn following(&self, at: usize) -> u64 {
        self.source.get(at).map_or(0, |i| i.address + u64::from(i.size))
    }

    /// Refusal number `n`.
    pub(super) fn refusal(&self, n: usize) -> &str {
        self.refusals.get(n).map_or("unknown instruction", |(_, why)| why)
    }

    /// The instructions that cannot be executed: text and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = (String, &str)> {
        self.refusals.iter().map(|(at, why)| (self.text(*at), why.as_str()))
    }

    /// Instruction `at` as it was decoded.
    pub(super) fn instruction(&self, at: usize) -> Option<&Instruction> {
        self.source.get(at)
    }

    /// The text of instruction `at`, with its address.
    pub(super) fn text(&self, at: usize) -> String {
        let mut out = String::new();
        match self.source.get(at) {
            Some(i) => {
                let _ = write!(out, "{i} at {:#x}", i.address);
            }
            None => out.push_str("the end of the code"),
        }
        out
    }

    /// The assembler's name of a register of the unified file.
    pub(super) fn vector_name(&self, register: u16) -> String {
        match register.checked_sub(self.accumulators) {
            Some(acc) => format!("a{acc}"),
            None => format!("v{register}"),
        }
    }
}

/// The assembler's name of a scalar register.
pub(super) fn scalar_name(register: u8) -> String {
    match register {
        102 => "flat_scratch_lo".into(),
        103 => "flat_scratch_hi".into(),
        106 => "vcc_lo".into(),
        107 => "vcc_hi".into(),
        124 => "m0".into(),
        126 => "exec_lo".into(),
        127 => "exec_hi".into(),
        n => format!("s{n}"),
    }
}
