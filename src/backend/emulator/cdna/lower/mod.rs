//! From decoded instructions to functions and resolved operands.

mod class;
mod memory;
mod update;

use super::decode::{Access, Format, Instruction, Op, Operand, Part as DecodedPart, Special, Unused};
use super::micro::{Dpp, Handler, Micro, Part, Sdwa, Shuffle, Source, Step, Trap};
use super::shared::{PRIVATE_WINDOW, SHARED_WINDOW, Shared};
use super::waits::Registers;
use super::wave::{VCC, Wave};
use super::{control, matrix_unit, scalar, vector};
use crate::backend::emulator::counters::Class;

pub(super) use memory::lds_bytes;

/// Why an instruction cannot be resolved.
pub(super) type Refusal = String;

/// Registers of an entry point, for the checks.
#[derive(Clone, Copy)]
struct File {
    registers: u16,
    accumulators: u16,
}

/// Resolves one instruction; `target` is where it branches: `Some(None)` if that is no instruction.
pub(super) fn lower(
    i: &Instruction,
    target: Option<Option<usize>>,
    registers: u16,
    accumulators: u16,
) -> Result<(Micro, Registers), Refusal> {
    let file = File { registers, accumulators };
    let mut m = Micro::new(handler(i)?, class::class(i));
    m.flops = class::flops(i);
    m.imm = i.imm;
    for (to, from) in m.src.iter_mut().zip(&i.src) {
        *to = source(i, from, file)?;
    }
    m.dst = match i.dst {
        Operand::Scalar { first, .. } => u16::from(first),
        other => vector_register(&other, file)?.unwrap_or(0),
    };
    if let Operand::Scalar { first, .. } = i.sdst {
        m.sdst = first;
    }
    modifiers(i, &mut m);
    if let Some(compare) = i.compare {
        m.sdst = m.dst as u8;
        m.flags = u16::from(compare.condition);
        m.imm = i32::from(matches!(i.op, Op::v_cmpx | Op::v_cmpx_class));
    }
    match target {
        Some(Some(index)) => m.imm = index as i32,
        Some(None) => return Err("branches to what is no instruction".into()),
        None => {}
    }
    if i.op.is_matrix() {
        matrix_unit::prepare(i, &mut m)?;
    }
    let is_memory = memory::prepare(i, &mut m)?;
    Ok((m, uses(i, is_memory, file)?))
}

/// What stands for an instruction that cannot be resolved: number `why` of the program's refusals.
pub(super) fn refused(why: usize) -> Micro {
    Micro { imm: why as i32, ..Micro::new(refuse, Class::Control) }
}

fn refuse(_: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    Err(Trap::new(sh.program.refusal(m.imm as usize)))
}

fn handler(i: &Instruction) -> Result<Handler, Refusal> {
    let found = match i.compare {
        Some(compare) => vector::compare_handler(i.op, compare.number),
        None => match i.format {
            Format::Sop1 | Format::Sop2 | Format::Sopc | Format::Sopk | Format::Sopp => {
                scalar::handler(i.op).or_else(|| control::handler(i.op))
            }
            Format::Mai if i.op.is_matrix() => Some(matrix_unit::run as Handler),
            Format::Smem | Format::Ds | Format::Flat | Format::Global | Format::Scratch | Format::Mubuf => {
                memory::handler(i).or_else(|| control::handler(i.op))
            }
            _ => vector::handler(i.op),
        },
    };
    found.ok_or_else(|| "unknown instruction".into())
}

/// The unified register of a vector operand, if it is one.
fn vector_register(operand: &Operand, file: File) -> Result<Option<u16>, Refusal> {
    let (first, count) = match *operand {
        Operand::Vector { first, count } => (u16::from(first), count),
        Operand::Acc { first, count } => (u16::from(first) + file.accumulators, count),
        _ => return Ok(None),
    };
    if first + u16::from(count) > file.registers {
        return Err(format!("expected registers below {} of the unified file", file.registers));
    }
    Ok(Some(first))
}

fn source(i: &Instruction, operand: &Operand, file: File) -> Result<Source, Refusal> {
    if let Some(register) = vector_register(operand, file)? {
        return Ok(Source::Vector(register));
    }
    let window = |high: u32| {
        let is_wide = i.op == Op::s_mov_b64;
        Source::Constant(if is_wide { u64::from(high) << 32 } else { u64::from(high) })
    };
    Ok(match *operand {
        Operand::None => Source::Constant(0),
        Operand::Scalar { first, .. } => Source::Scalar(first),
        Operand::Constant { bits, .. } => Source::Constant(bits),
        Operand::Special(Special::SharedBase) => window(SHARED_WINDOW),
        Operand::Special(Special::PrivateBase) => window(PRIVATE_WINDOW),
        Operand::Special(Special::SharedLimit | Special::PrivateLimit) => Source::Constant(u64::from(u32::MAX)),
        Operand::Special(Special::Vccz) => Source::VccZero,
        Operand::Special(Special::Execz) => Source::ExecZero,
        Operand::Special(Special::Scc) => Source::Scc,
        Operand::Special(other) => return Err(format!("unknown operand {other:?}")),
        Operand::Vector { .. } | Operand::Acc { .. } => return Err("a register outside the file".into()),
    })
}

fn modifiers(i: &Instruction, m: &mut Micro) {
    let from = &i.modifiers;
    (m.neg, m.op_sel, m.op_sel_hi) = (from.neg, from.op_sel, from.op_sel_hi);
    // Packed instructions have no magnitudes: their second field of signs takes the place, but for mixed ones, which have them.
    m.abs = from.neg_hi | from.abs;
    (m.omod, m.clamp) = (from.omod, from.clamp);
    m.shuffle = match i.access {
        Access::Plain => Shuffle::None,
        Access::Sdwa { dst, unused, src, sext } => Shuffle::Sdwa(Sdwa {
            parts: src.map(part),
            sign: [sext & 1 == 1, sext >> 1 & 1 == 1],
            dst: part(dst),
            rest: match unused {
                Unused::Pad => 0,
                Unused::Sext => 1,
                Unused::Preserve => 2,
            },
        }),
        Access::Dpp { control, rows, banks, bound } => {
            Shuffle::Dpp(Dpp { control, rows, banks, is_zero_filled: bound })
        }
    };
}

fn part(part: DecodedPart) -> Part {
    match part {
        DecodedPart::Byte(n) => Part::Byte(n),
        DecodedPart::Word(n) => Part::Word(n),
        DecodedPart::Dword => Part::Whole,
    }
}

/// The registers that must not have a result under way when the instruction is issued.
fn uses(i: &Instruction, is_memory: bool, file: File) -> Result<Registers, Refusal> {
    let mut uses = Registers::default();
    let mut add = |operand: &Operand| -> Result<(), Refusal> {
        match *operand {
            Operand::Scalar { first, count } => uses.add_scalar(first, count),
            Operand::Vector { count, .. } | Operand::Acc { count, .. } => {
                if let Some(first) = vector_register(operand, file)? {
                    uses.add_vector(first, u16::from(count));
                }
            }
            _ => {}
        }
        Ok(())
    };
    i.src.iter().try_for_each(&mut add)?;
    // Memory instructions of one kind return in order, so one may overwrite the result of another.
    if !is_memory {
        add(&i.dst)?;
        add(&i.sdst)?;
    }
    let reads_vcc = matches!(i.op, Op::s_cbranch_vccz | Op::s_cbranch_vccnz | Op::v_div_fmas_f32 | Op::v_div_fmas_f64);
    if reads_vcc {
        uses.add_scalar(VCC as u8, 2);
    }
    Ok(uses)
}
