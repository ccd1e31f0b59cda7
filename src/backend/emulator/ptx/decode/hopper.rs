//! What sm_90 added: products of four warps; barriers and bulk copies are next door.

use super::{Decoder, Modifiers};
use crate::backend::emulator::counters::Class;
use crate::backend::emulator::ptx::hopper_op::{Hopper, Queue};
use crate::backend::emulator::ptx::op::{Op, Row};
use crate::backend::emulator::ptx::syntax::{Operand, Type};
use crate::backend::emulator::ptx::units::wgmma::{Options, Wgmma};
use crate::error::Result;

impl Decoder<'_> {
    pub(super) fn hopper(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Option<Class>> {
        Ok(Some(match first {
            "wgmma" => self.multiply_group(m, o)?,
            "cp" if m.peek().contains(&"bulk") => self.bulk_copy(m, o)?,
            "mbarrier" => self.mbarrier(m, o)?,
            _ => return Ok(None),
        }))
    }

    pub(super) fn hopper_step(&mut self, step: Hopper) {
        let number = self.code.hopper.len() as u32;
        self.code.hopper.push(step);
        self.push(Op::Hopper(number));
    }

    pub(super) fn integer(&self, operand: &Operand) -> Result<i64> {
        match operand {
            Operand::Integer(n) => Ok(*n as i64),
            _ => Err(self.wrong("expected a number")),
        }
    }

    /// The rows of the operands inside braces, or of the one that stands without.
    pub(super) fn sources(&mut self, operand: &Operand, ty: Type) -> Result<Box<[Row]>> {
        let list = if let Operand::Vector(list) = operand { list } else { std::slice::from_ref(operand) };
        list.iter().map(|o| self.src(o, ty)).collect()
    }

    fn multiply_group(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        match m.peek().first() {
            Some(&"fence") => {
                m.clear();
                self.push(Op::Fence);
                return Ok(Class::Sync);
            }
            Some(&"commit_group") => {
                m.clear();
                self.hopper_step(Hopper::Commit { queue: Queue::Products });
                return Ok(Class::Sync);
            }
            Some(&"wait_group") => {
                m.clear();
                let left = self.integer(self.arg(o, 0)?)? as u32;
                self.hopper_step(Hopper::Wait { queue: Queue::Products, left });
                return Ok(Class::Sync);
            }
            _ => {}
        }
        let form = Wgmma::parse(&m.clear()).map_err(|misuse| self.wrong(misuse))?;
        let Operand::Vector(list) = self.arg(o, 0)? else { return Err(self.wrong("expected registers for D")) };
        let d = list.iter().map(|o| self.dst(o, Type::B32)).collect::<Result<Box<[Row]>>>()?;
        let from_registers = matches!(self.arg(o, 1)?, Operand::Vector(_));
        let a = self.sources(self.arg(o, 1)?, if from_registers { Type::B32 } else { Type::B64 })?;
        let b = self.src64(self.arg(o, 2)?, Type::B64)?;
        let add = self.predicate(self.arg(o, 3)?)?;
        let flags = o[4..].iter().map(|o| self.integer(o)).collect::<Result<Vec<i64>>>()?;
        if d.len() != form.accumulators() || flags.len() < 2 || a.len() != if from_registers { 4 } else { 1 } {
            return Err(self.wrong(format!("expected {} registers of D, A, B and the scales", form.accumulators())));
        }
        let turned = |i: usize| flags.get(i).is_some_and(|f| *f != 0);
        let options = Options {
            is_accumulating: true,
            is_a_negated: flags[0] < 0,
            is_b_negated: flags[1] < 0,
            is_a_mn_major: !from_registers && turned(2),
            is_b_mn_major: turned(if from_registers { 2 } else { 3 }),
        };
        self.hopper_step(Hopper::MultiplyGroup { form, d, a, b, add, options });
        Ok(Class::Matrix)
    }
}
