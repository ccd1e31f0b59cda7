//! Matrix instructions of a warp and asynchronous copies of its lanes.

use super::memory::drop_cache_hints;
use super::{Decoder, Modifiers};
use crate::backend::emulator::counters::Class;
use crate::backend::emulator::ptx::long_op::Space;
use crate::backend::emulator::ptx::op::{Op, Row};
use crate::backend::emulator::ptx::syntax::{Operand, Type};
use crate::backend::emulator::ptx::unit_op::Unit;
use crate::backend::emulator::ptx::units::mma::Mma;
use crate::error::Result;

impl Decoder<'_> {
    pub(super) fn units(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Option<Class>> {
        let (unit, class) = match first {
            "cp" if m.peek().get(1) != Some(&"bulk") && m.peek().first() == Some(&"async") => self.copy(m, o)?,
            "ldmatrix" | "stmatrix" => self.move_matrices(first, m, o)?,
            "movmatrix" => {
                m.clear();
                let (d, a) = (self.dst(self.arg(o, 0)?, Type::B32)?, self.src32(self.arg(o, 1)?, Type::B32)?);
                (Unit::MoveMatrix { d, a }, Class::Matrix)
            }
            "mma" => self.mma(m, o)?,
            "setmaxnreg" => {
                // How many registers there are is the hardware's matter.
                m.clear();
                self.push(Op::Nop);
                return Ok(Some(Class::Control));
            }
            _ => return Ok(None),
        };
        let number = self.code.units.len() as u32;
        self.code.units.push(unit);
        self.push(Op::Unit(number));
        Ok(Some(class))
    }

    fn copy(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<(Unit, Class)> {
        m.has("async");
        if m.has("commit_group") {
            return Ok((Unit::Commit, Class::Sync));
        }
        if m.has("wait_all") {
            return Ok((Unit::Wait { most: None }, Class::Sync));
        }
        if m.has("wait_group") {
            let Operand::Integer(n) = self.arg(o, 0)? else { return Err(self.wrong("expected a number of groups")) };
            return Ok((Unit::Wait { most: Some(*n as u32) }, Class::Sync));
        }
        if m.has("mbarrier") {
            m.has("arrive");
            let is_counted = m.has("noinc");
            m.one_of(&["shared", "shared::cta"]);
            m.has("b64");
            let at = self.address(self.arg(o, 0)?, Space::Shared)?;
            return Ok((Unit::CopyArrive { at, is_counted }, Class::Sync));
        }
        let has_policy = drop_cache_hints(m);
        m.one_of(&["shared", "shared::cta"]);
        m.has("global");
        let (to, from) = (self.address(self.arg(o, 0)?, Space::Shared)?, self.address(self.arg(o, 1)?, Space::Global)?);
        let Operand::Integer(bytes @ (4 | 8 | 16)) = self.arg(o, 2)? else {
            return Err(self.wrong("expected 4, 8 or 16 bytes"));
        };
        let (mut size, mut is_ignored) = (None, None);
        let optional = o.get(3..o.len() - usize::from(has_policy)).unwrap_or_default();
        match optional.first() {
            Some(Operand::Register(r)) if self.type_of(*r) == Type::Pred => {
                is_ignored = Some(self.predicate(&optional[0])?);
            }
            Some(operand) => size = Some(self.src32(operand, Type::U32)?),
            None => {}
        }
        Ok((Unit::Copy { bytes: *bytes as u8, to, from, size, is_ignored }, Class::Async))
    }

    fn registers(&mut self, operand: &Operand, ty: Type, is_destination: bool) -> Result<Vec<Row>> {
        let list = if let Operand::Vector(list) = operand { list.as_slice() } else { std::slice::from_ref(operand) };
        list.iter().map(|o| if is_destination { self.dst(o, ty) } else { self.src(o, ty) }).collect()
    }

    fn move_matrices(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<(Unit, Class)> {
        for word in ["sync", "aligned", "m8n8", "b16"] {
            if !m.has(word) {
                return Err(self.wrong(format!("expected the modifier .{word}")));
            }
        }
        let count = match m.one_of(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            _ => 4,
        };
        let is_transposed = m.has("trans");
        let space = Self::space(m);
        let is_load = first == "ldmatrix";
        let (data, at) = if is_load { (self.arg(o, 0)?, self.arg(o, 1)?) } else { (self.arg(o, 1)?, self.arg(o, 0)?) };
        let at = self.address(at, space)?;
        let rows = self.registers(data, Type::B32, is_load)?;
        if rows.len() != count {
            return Err(self.wrong(format!("expected {count} registers")));
        }
        Ok(if is_load {
            (Unit::LoadMatrix { at, is_transposed, rows }, Class::Shared)
        } else {
            (Unit::StoreMatrix { at, is_transposed, rows }, Class::Shared)
        })
    }

    fn mma(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<(Unit, Class)> {
        let words = m.clear();
        let mma = Mma::parse(&words).map_err(|misuse| self.wrong(misuse))?;
        let is_long = words.contains(&"f64");
        let ty = if is_long { Type::F64 } else { Type::B32 };
        let d = self.registers(self.arg(o, 0)?, ty, true)?;
        let [a, b, c] = [1, 2, 3].map(|i| self.arg(o, i).cloned());
        let (a, b, c) =
            (self.registers(&a?, ty, false)?, self.registers(&b?, ty, false)?, self.registers(&c?, ty, false)?);
        if mma.registers() != [a.len(), b.len(), c.len()] || c.len() != d.len() {
            return Err(self.wrong(format!("expected {:?} registers of A, B and C", mma.registers())));
        }
        Ok((Unit::Mma { mma, is_long, d, a, b, c }, Class::Matrix))
    }
}
