//! An instruction as it is executed: a function and its operands, resolved once when the code is loaded.

use super::shared::Shared;
use super::wave::Wave;
use crate::backend::emulator::counters::Class;

/// Executes one instruction.
pub(super) type Handler = fn(&mut Wave, &Micro, &mut Shared<'_>) -> Step;

/// What an atomic writes, of what was there, its data and its second datum.
pub(super) type Update = fn(u64, u64, u64) -> u64;

/// What an instruction ends with.
pub(super) type Step = Result<(), Box<Trap>>;

/// Why an instruction cannot be executed.
#[derive(Debug)]
pub(super) struct Trap {
    /// The first lane at fault, if one lane is.
    pub(super) lane: Option<u32>,
    /// What happened.
    pub(super) what: String,
}

impl Trap {
    /// A trap of the whole wave.
    pub(super) fn new(what: impl Into<String>) -> Box<Trap> {
        Box::new(Trap { lane: None, what: what.into() })
    }

    /// A trap of one lane.
    pub(super) fn lane(lane: usize, what: impl Into<String>) -> Box<Trap> {
        Box::new(Trap { lane: Some(lane as u32), what: what.into() })
    }
}

/// Where an operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A register of the unified vector file.
    Vector(u16),
    /// A scalar register, VCC, M0 or EXEC.
    Scalar(u8),
    /// A number, extended to 64 bits as the instruction needs it.
    Constant(u64),
    /// The scalar condition.
    Scc,
    /// Whether VCC is zero.
    VccZero,
    /// Whether EXEC is zero.
    ExecZero,
}

/// Which part of a register a sub-dword operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// One of the four bytes.
    Byte(u8),
    /// One of the two halves.
    Word(u8),
    /// All of it.
    Whole,
}

/// Sub-dword addressing of a vector instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sdwa {
    /// Which part of each source is read.
    pub(super) parts: [Part; 2],
    /// Whether it is sign-extended.
    pub(super) sign: [bool; 2],
    /// Which part of the destination is written.
    pub(super) dst: Part,
    /// What becomes of the rest: 0 zero, 1 sign-extended, 2 kept.
    pub(super) rest: u8,
}

/// Data-parallel primitive: the first source comes from another lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dpp {
    /// The pattern of lanes.
    pub(super) control: u16,
    /// Rows (of 16 lanes) that are written.
    pub(super) rows: u8,
    /// Banks (of 4 lanes) of each row that are written.
    pub(super) banks: u8,
    /// Lanes without a source read zero instead of not being written.
    pub(super) is_zero_filled: bool,
}

/// How lanes of operands are rearranged.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shuffle {
    /// Not at all.
    None,
    /// Sub-dword addressing.
    Sdwa(Sdwa),
    /// Data-parallel primitive.
    Dpp(Dpp),
}

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Micro {
    /// Executes it.
    pub(super) run: Handler,
    /// For the counters.
    pub(super) class: Class,
    /// FLOPs of an active lane.
    pub(super) flops: u8,
    /// Vector or scalar register that is written first.
    pub(super) dst: u16,
    /// Scalar registers that get a mask beside it.
    pub(super) sdst: u8,
    /// Sources.
    pub(super) src: [Source; 4],
    /// A bit for each source: its sign is flipped.
    pub(super) neg: u8,
    /// A bit for each source: its sign is cleared first. In packed instructions: the high half's sign is flipped.
    pub(super) abs: u8,
    /// A bit for each source, and 8 for the destination: the high half is meant.
    pub(super) op_sel: u8,
    /// A bit for each source: the high result takes the high half.
    pub(super) op_sel_hi: u8,
    /// 1 doubles, 2 quadruples, 3 halves the result.
    pub(super) omod: u8,
    /// The result is clamped.
    pub(super) clamp: bool,
    /// Rearranged lanes.
    pub(super) shuffle: Shuffle,
    /// A number in the instruction: offset, count, literal, branch target.
    pub(super) imm: i32,
    /// A second one.
    pub(super) imm2: i32,
    /// Registers of data that a memory instruction moves.
    pub(super) words: u8,
    /// Settings of a memory or matrix instruction, by its own key.
    pub(super) flags: u16,
    /// What an atomic makes of memory, data and the number compared with.
    pub(super) update: Update,
}

impl Micro {
    /// An instruction without operands.
    pub(super) fn new(run: Handler, class: Class) -> Micro {
        Micro {
            run,
            class,
            flops: 0,
            dst: 0,
            sdst: super::wave::VCC as u8,
            src: [Source::Constant(0); 4],
            neg: 0,
            abs: 0,
            op_sel: 0,
            op_sel_hi: 0,
            omod: 0,
            clamp: false,
            shuffle: Shuffle::None,
            imm: 0,
            imm2: 0,
            words: 1,
            flags: 0,
            update: |_, data, _| data,
        }
    }
}
