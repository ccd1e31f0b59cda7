//! Control flow, barriers, and exchange between lanes.

use super::{Decoder, Modifiers};
use crate::backend::emulator::counters::Class;
use crate::backend::emulator::ptx::long_op::{Bar, BarKind};
use crate::backend::emulator::ptx::op::{I2, Op, Row, SINK, Shuffle, TRUE, Vote};
use crate::backend::emulator::ptx::syntax::{Operand, Type};
use crate::error::Result;

impl Decoder<'_> {
    pub(super) fn lanes(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Option<Class>> {
        let class = match first {
            "bra" => {
                m.has("uni");
                let Operand::Label(line) = self.arg(o, 0)? else { return Err(self.wrong("expected a label")) };
                self.push(Op::Branch { to: *line as u32 });
                Class::Control
            }
            "brx" => self.table(m, o)?,
            "ret" | "exit" => {
                m.has("uni");
                self.push(Op::Exit);
                Class::Control
            }
            "trap" | "brkpt" => {
                self.push(Op::Trap);
                Class::Control
            }
            "call" => return Err(self.wrong("calls of functions are not emulated; inline them")),
            "bar" | "barrier" => self.barrier(first, m, o)?,
            "nanosleep" => {
                m.clear();
                self.push(Op::Nanosleep);
                Class::Control
            }
            "pmevent" | "griddepcontrol" => {
                m.clear();
                self.push(Op::Nop);
                Class::Control
            }
            "shfl" => self.shuffle(m, o)?,
            "vote" => self.vote(m, o)?,
            "match" => self.find_equal(m, o)?,
            "activemask" => {
                m.has("b32");
                let d = self.dst(self.arg(o, 0)?, Type::B32)?;
                self.push(Op::ActiveMask { d });
                Class::Lanes
            }
            "elect" => {
                m.has("sync");
                let mask = self.src32(self.arg(o, 1)?, Type::B32)?;
                let (d, p) = self.pair(self.arg(o, 0)?)?;
                self.push(Op::Elect { d, p, mask });
                Class::Lanes
            }
            "redux" => self.redux(m, o)?,
            _ => return Ok(None),
        };
        Ok(Some(class))
    }

    /// `d|p`, either of which may be missing.
    fn pair(&self, operand: &Operand) -> Result<(Row, Row)> {
        match operand {
            Operand::Pair(d, p) => Ok((self.dst(d, Type::B32)?, self.predicate_dst(p)?)),
            d => Ok((self.dst(d, Type::B32)?, SINK)),
        }
    }

    fn table(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        m.has("idx");
        m.has("uni");
        let a = self.src32(self.arg(o, 0)?, Type::U32)?;
        let Operand::Vector(list) = self.arg(o, 1)? else { return Err(self.wrong("expected a list of targets")) };
        let mut targets = Vec::new();
        for target in list {
            let Operand::Label(line) = target else { return Err(self.wrong("expected labels")) };
            targets.push(*line as u32);
        }
        let list = self.code.tables.len() as u32;
        self.code.tables.push(targets);
        self.push(Op::Table { list, a });
        Ok(Class::Control)
    }

    fn barrier(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        if m.has("warp") {
            m.has("sync");
            let mask = self.src32(self.arg(o, 0)?, Type::B32)?;
            self.push(Op::WarpSync { mask });
            return Ok(Class::Sync);
        }
        if m.has("cluster") {
            let is_arrive = m.has("arrive");
            m.has("wait");
            m.one_of(&["release", "relaxed", "acquire"]);
            m.has("aligned");
            self.push(if is_arrive { Op::ClusterArrive } else { Op::ClusterWait });
            return Ok(Class::Sync);
        }
        m.has("cta");
        let is_aligned = m.has("aligned") || first == "bar";
        let (kind, skip) = if m.has("sync") {
            (BarKind::Sync, 0)
        } else if m.has("arrive") {
            (BarKind::Arrive, 0)
        } else if m.has("red") {
            (
                match m.one_of(&["popc", "and", "or"]) {
                    Some("popc") => BarKind::Count,
                    Some("and") => BarKind::And,
                    _ => BarKind::Or,
                },
                1,
            )
        } else {
            return Err(self.wrong("expected sync, arrive or red"));
        };
        m.one_of(&["u32", "pred"]);
        let id = self.src32(self.arg(o, skip)?, Type::U32)?;
        let has_count = o.len() > skip + 1 + skip;
        let count = if has_count { Some(self.src32(self.arg(o, skip + 1)?, Type::U32)?) } else { None };
        let (mut d, mut p) = (SINK, TRUE);
        if skip == 1 {
            p = self.predicate(self.arg(o, o.len() - 1)?)?;
            let first = self.arg(o, 0)?;
            d = if kind == BarKind::Count { self.dst(first, Type::B32)? } else { self.predicate_dst(first)? };
        }
        let number = self.code.bars.len() as u32;
        self.code.bars.push(Bar { id, count, kind, d, p, is_aligned });
        self.push(Op::Barrier(number));
        Ok(Class::Sync)
    }

    fn shuffle(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        if !m.has("sync") {
            return Err(self.wrong("expected shfl.sync"));
        }
        let f = match m.one_of(&["up", "down", "bfly", "idx"]) {
            Some("up") => Shuffle::Up,
            Some("down") => Shuffle::Down,
            Some("bfly") => Shuffle::Butterfly,
            _ => Shuffle::Index,
        };
        m.has("b32");
        let a = self.src32(self.arg(o, 1)?, Type::B32)?;
        let b = self.src32(self.arg(o, 2)?, Type::B32)?;
        let c = self.src32(self.arg(o, 3)?, Type::B32)?;
        let mask = self.src32(self.arg(o, 4)?, Type::B32)?;
        let (d, p) = self.pair(self.arg(o, 0)?)?;
        self.push(Op::Shuffle { f, d, p, a, b, c, mask });
        Ok(Class::Lanes)
    }

    fn vote(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        if !m.has("sync") {
            return Err(self.wrong("expected vote.sync"));
        }
        let f = match m.one_of(&["all", "any", "uni", "ballot"]) {
            Some("all") => Vote::All,
            Some("any") => Vote::Any,
            Some("uni") => Vote::Uniform,
            _ => Vote::Ballot,
        };
        m.one_of(&["pred", "b32"]);
        let first = self.arg(o, 0)?;
        let d = if f == Vote::Ballot { self.dst(first, Type::B32)? } else { self.predicate_dst(first)? };
        let (a, mask) = (self.predicate(self.arg(o, 1)?)?, self.src32(self.arg(o, 2)?, Type::B32)?);
        self.push(Op::Vote { f, d, a, mask });
        Ok(Class::Lanes)
    }

    fn find_equal(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let is_all = m.has("all");
        m.has("any");
        m.has("sync");
        let ty = self.type_at_end(m)?;
        let a = self.src(self.arg(o, 1)?, ty)?;
        let mask = self.src32(self.arg(o, 2)?, Type::B32)?;
        let (d, p) = self.pair(self.arg(o, 0)?)?;
        self.push(Op::Match { is_all, is_long: ty.bytes() == 8, d, p, a, mask });
        Ok(Class::Lanes)
    }

    fn redux(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        m.has("sync");
        let ty = self.type_at_end(m)?;
        let signed = ty.is_signed();
        if ty.is_float() {
            return Err(self.wrong("redux of floats is not emulated"));
        }
        let f = match m.one_of(&["add", "min", "max", "and", "or", "xor"]) {
            Some("add") => I2::Add,
            Some("min") => [I2::MinU, I2::MinS][usize::from(signed)],
            Some("max") => [I2::MaxU, I2::MaxS][usize::from(signed)],
            Some("and") => I2::And,
            Some("or") => I2::Or,
            _ => I2::Xor,
        };
        let (d, a) = (self.dst(self.arg(o, 0)?, Type::B32)?, self.src32(self.arg(o, 1)?, Type::B32)?);
        let mask = self.src32(self.arg(o, 2)?, Type::B32)?;
        self.push(Op::Redux { f, d, a, mask });
        Ok(Class::Lanes)
    }
}
