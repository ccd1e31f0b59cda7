//! Instructions of gfx90a and gfx942 from their words.
//!
//! An own decoder, so that neither a disassembler nor a compiler is needed to run a packed code object. It is driven by
//! one table of opcodes (`op.rs`); its text is the assembler syntax of LLVM, because that is what it is held against.
//!
//! Sources: AMD, "Instinct MI200 Instruction Set Architecture" (2022) and "Instinct MI300 Instruction Set Architecture"
//! (2023), chapters "Microcode Formats"; LLVM's AMDGPU assembler for the names.

mod fields;
mod memory;
mod op;
mod scalar;
mod text;
mod vector;

#[cfg(test)]
mod tests;

pub use op::Op;

use crate::backend::gpu::driver::Arch;
use crate::error::{Error, Result};

/// The processor whose encoding is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// MI200 series.
    Gfx90a,
    /// MI300 series.
    Gfx942,
}

impl Target {
    /// The target of an architecture.
    ///
    /// # Errors
    /// An architecture that is not one of the two.
    pub fn of(arch: Arch) -> Result<Target> {
        match arch {
            Arch::GFX90A => Ok(Target::Gfx90a),
            Arch::GFX942 => Ok(Target::Gfx942),
            _ => Err(Error::argument(format!("cdna: expected gfx90a or gfx942, found {arch}"))),
        }
    }
}

/// The encoding that an instruction came in. A vector operation may come in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Scalar, two sources.
    Sop2,
    /// Scalar, one source.
    Sop1,
    /// Scalar comparison into SCC.
    Sopc,
    /// Scalar with a 16-bit immediate.
    Sopk,
    /// Program control, with a 16-bit immediate.
    Sopp,
    /// Scalar memory.
    Smem,
    /// Vector, one source, 32 bits.
    Vop1,
    /// Vector, two sources, 32 bits.
    Vop2,
    /// Vector comparison, 32 bits.
    Vopc,
    /// Vector, up to three sources and all modifiers, 64 bits.
    Vop3,
    /// Packed vector.
    Vop3p,
    /// Matrix.
    Mai,
    /// Local data share.
    Ds,
    /// Memory of any space by 64-bit address.
    Flat,
    /// Global memory by 64-bit address or scalar base and 32-bit offset.
    Global,
    /// Scratch memory of a lane.
    Scratch,
    /// Memory by buffer descriptor.
    Mubuf,
}

/// Where an operand is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Operand {
    /// There is none.
    #[default]
    None,
    /// Scalar registers, by their number in the encoding: 0 to 101 are SGPRs, 102 FLAT_SCRATCH, 104 XNACK_MASK, 106 VCC
    /// (low, high), 108 to 123 TTMP, 124 M0, 126 EXEC (low, high). One file of 128 registers serves them all.
    Scalar {
        /// The first register.
        first: u8,
        /// How many, 1 to 16.
        count: u8,
    },
    /// Vector registers.
    Vector {
        /// The first register.
        first: u8,
        /// How many, 1 to 32.
        count: u8,
    },
    /// Accumulation registers.
    Acc {
        /// The first register.
        first: u8,
        /// How many, 1 to 32.
        count: u8,
    },
    /// A constant in the encoding or a literal after it.
    Constant {
        /// Its bits as the operand has them: sign-extended integers, floats of the operand's width (16 bits in the low half
        /// for 16-bit and packed 16-bit operands, 32 bits in the low half for packed f32), f64 literals in the high half.
        bits: u64,
        /// The number in the encoding: 128 to 248 inline, 255 a literal.
        code: u8,
    },
    /// A value of the hardware.
    Special(Special),
}

/// Values of the hardware that are read as operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// High word of the address where the window of shared memory starts.
    SharedBase,
    /// Its last address.
    SharedLimit,
    /// High word of the address where the window of scratch memory starts.
    PrivateBase,
    /// Its last address.
    PrivateLimit,
    /// Rasteriser ordering; not of compute kernels.
    PopsExitingWaveId,
    /// Whether VCC is zero.
    Vccz,
    /// Whether EXEC is zero.
    Execz,
    /// The scalar condition.
    Scc,
    /// Shared memory at the address in M0.
    LdsDirect,
}

/// What is done to operands and result on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Modifiers {
    /// Bit i: source i is negated (packed: its low half).
    pub neg: u8,
    /// Bit i: the magnitude of source i is taken, before `neg`.
    pub abs: u8,
    /// Packed: bit i: the high half of source i is negated.
    pub neg_hi: u8,
    /// Bit i: source i is read from its high half (packed: for the low result); bit 3 (not packed): the result goes into the
    /// high half.
    pub op_sel: u8,
    /// Packed: bit i: the high result reads the high half of source i.
    pub op_sel_hi: u8,
    /// The result is multiplied: 0 by 1, 1 by 2, 2 by 4, 3 by 1/2.
    pub omod: u8,
    /// The result is clamped: floats to [0, 1], integers to their range.
    pub clamp: bool,
    /// Matrix: how many blocks share a broadcast A, as a power of two.
    pub cbsz: u8,
    /// Matrix: which block of A is broadcast.
    pub abid: u8,
    /// Matrix: the permutation of B's lanes; for f64 on gfx942 bit i negates A, B, C.
    pub blgp: u8,
    /// `glc`, on gfx942 `sc0`: atomics return the value before.
    pub glc: bool,
    /// `slc`, on gfx942 `nt`.
    pub slc: bool,
    /// `scc`, on gfx942 `sc1`.
    pub scc: bool,
    /// Buffer: the address has an index; the first vector register.
    pub idxen: bool,
    /// Buffer: the address has an offset in a vector register.
    pub offen: bool,
    /// Buffer, and global loads on gfx90a: the data goes to shared memory at M0.
    pub lds: bool,
    /// Data share: the global one; compute kernels do not have it.
    pub gds: bool,
}

/// A part of a register that SDWA reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Byte 0 to 3.
    Byte(u8),
    /// Half 0 or 1.
    Word(u8),
    /// All of it.
    Dword,
}

/// What SDWA does with the bits that the result does not cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unused {
    /// They become zero.
    Pad,
    /// They become the result's sign above it, zero below.
    Sext,
    /// They stay.
    Preserve,
}

/// How a 32-bit vector encoding reads its operands, where it is not plainly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// Plainly.
    #[default]
    Plain,
    /// Parts of registers.
    Sdwa {
        /// The part of the destination that is written; `Dword` for comparisons.
        dst: Part,
        /// What happens to the rest.
        unused: Unused,
        /// The parts of the sources.
        src: [Part; 2],
        /// Bit i: source i is sign-extended.
        sext: u8,
    },
    /// Source 0 comes from another lane.
    Dpp {
        /// Which lane: 0x00 to 0xff quad permutation, 0x101 row shift left by 1, ... as in the manual's DPP_CTRL.
        control: u16,
        /// Rows of 16 lanes that are written.
        rows: u8,
        /// Banks of 4 lanes within a row that are written.
        banks: u8,
        /// Lanes without a source read 0; otherwise they are not written.
        bound: bool,
    },
}

/// The number type that a comparison compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Number {
    F16,
    F32,
    F64,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
}

/// A vector comparison.
///
/// `condition` is the low bits of the opcode: for integers 3 bits, less 1, equal 2, greater 4 (0 never, 7 always); for floats
/// 4 bits, less 1, equal 2, greater 4, and unordered 8: the result is true if a bit's relation holds. (The manual's order
/// F LT EQ LE GT LG GE O U NGE NLG NGT NLE NEQ NLT TRU is exactly this.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compare {
    /// What is compared.
    pub number: Number,
    /// Which relations make it true.
    pub condition: u8,
}

/// One instruction.
///
/// | format | `dst` | `sdst` | `src` | `imm` |
/// |---|---|---|---|---|
/// | Sop1, Sop2 | result | | sources | |
/// | Sopc | | | both sources | |
/// | Sopk | result, or none | | source register, if it is read | the immediate, sign-extended |
/// | Sopp | | | | the immediate; branches: words from the next instruction |
/// | Smem | loaded | | base (address pair or descriptor of 4), offset register | offset in bytes |
/// | Vop1, Vop2, Vop3, Vop3p | result | carry or scale flags out | sources; carry in or select mask is the last | |
/// | Vopc, and comparisons in Vop3 | scalar pair | | both sources | |
/// | Mai | D | | A, B, C | |
/// | Ds | loaded or value before | | address, data 0, data 1 | offset; two-address forms: offset 0 + 256 * offset 1 |
/// | Flat, Global, Scratch | loaded or value before | | address, data, scalar base | offset in bytes |
/// | Mubuf | loaded or value before | | address, data, descriptor, scalar offset | offset in bytes |
///
/// Registers that an encoding implies (VCC of `v_addc_co_u32_e32`) stand where they are read. What `v_fmac` or `v_writelane`
/// keep of `dst` is the operation's own matter. Data registers of memory instructions are as wide as the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its address in the code object.
    pub address: u64,
    /// Its bytes: 4, 8 or 12.
    pub size: u8,
    /// Its encoding.
    pub format: Format,
    /// Whose encoding it is; decides names.
    pub target: Target,
    /// What it does.
    pub op: Op,
    /// Where the result goes.
    pub dst: Operand,
    /// A second, scalar result.
    pub sdst: Operand,
    /// What it reads.
    pub src: [Operand; 4],
    /// An immediate or offset.
    pub imm: i32,
    /// What is done to operands and result.
    pub modifiers: Modifiers,
    /// Parts of registers or other lanes.
    pub access: Access,
    /// For `v_cmp`, `v_cmpx` and the class tests: what is compared.
    pub compare: Option<Compare>,
}

impl Instruction {
    /// Where a branch goes; `None` if it is none.
    pub fn branch(&self) -> Option<u64> {
        let branches = self.op.is_branch() || self.op == Op::s_call_b64;
        let next = self.address.wrapping_add(u64::from(self.size));
        branches.then(|| next.wrapping_add_signed(i64::from(self.imm) * 4))
    }
}

/// The matrix operations, each once.
#[cfg(test)]
pub(in crate::backend::emulator) fn matrix_operations() -> std::collections::BTreeSet<Op> {
    op::ROWS.iter().map(|r| r.op).filter(|op| op.is_matrix()).collect()
}

/// Decodes the first instruction of `words`, which stand at `address`.
///
/// # Errors
/// Words that are no instruction of `target`, with the address and the words.
pub fn decode(target: Target, address: u64, words: &[u32]) -> Result<Instruction> {
    let mut r = fields::Reader { target, address, words, length: 0, has_literal: false };
    let mut out = Instruction {
        address,
        size: 0,
        format: Format::Sopp,
        target,
        op: Op::s_nop,
        dst: Operand::None,
        sdst: Operand::None,
        src: [Operand::None; 4],
        imm: 0,
        modifiers: Modifiers::default(),
        access: Access::Plain,
        compare: None,
    };
    r.take(1)?;
    let first = r.bits(0, 26, 6);
    match first {
        0x00..0x20 => vector::vop(&mut r, &mut out)?,
        0x20..0x30 => scalar::sop(&mut r, &mut out)?,
        0x30 => scalar::smem(&mut r, &mut out)?,
        0x34 => vector::vop3(&mut r, &mut out)?,
        0x36 => memory::ds(&mut r, &mut out)?,
        0x37 => memory::flat(&mut r, &mut out)?,
        0x38 => memory::mubuf(&mut r, &mut out)?,
        _ => return Err(r.error("unknown encoding")),
    }
    out.size = ((r.length + usize::from(r.has_literal)) * 4) as u8;
    Ok(out)
}

/// Decodes all of `words`, which start at `address`.
///
/// # Errors
/// As [`decode`], at the first word that is no instruction.
pub fn decode_all(target: Target, address: u64, words: &[u32]) -> Result<Vec<Instruction>> {
    let mut out = Vec::with_capacity(words.len() / 2);
    let mut at = 0;
    while let Some(rest) = words.get(at..).filter(|rest| !rest.is_empty()) {
        let instruction = decode(target, address.wrapping_add(at as u64 * 4), rest)?;
        at += usize::from(instruction.size / 4);
        out.push(instruction);
    }
    Ok(out)
}
