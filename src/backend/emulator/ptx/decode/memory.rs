//! Loads, stores, atomics and addresses.

use super::{Decoder, Modifiers, Place};
use crate::backend::emulator::counters::Class;
use crate::backend::emulator::ptx::long_op::{Address, Base, MemoryOp, Space, Update};
use crate::backend::emulator::ptx::op::{I1, I2, Op, Row, SINK};
use crate::backend::emulator::ptx::syntax::{Operand, Type};
use crate::backend::emulator::ptx::window;
use crate::error::Result;

/// Drops what says how caches treat an access; returns whether a policy operand follows.
pub(super) fn drop_cache_hints(m: &mut Modifiers) -> bool {
    let has_policy = m.has("L2::cache_hint") | m.has("L1::cache_hint");
    while let Some(hint) = m.peek().iter().position(|p| p.starts_with("L1::") || p.starts_with("L2::")) {
        m.rest.remove(hint);
    }
    while m.one_of(&["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified"]).is_some() {}
    has_policy
}

/// Takes the order and scope of an access; whether it is more than weak.
pub(super) fn strength(m: &mut Modifiers) -> bool {
    let order = m.one_of(&["volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"]).is_some();
    let _weak = m.has("weak");
    m.one_of(&["cta", "cluster", "gpu", "sys"]);
    order
}

impl Decoder<'_> {
    pub(super) fn memory(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Option<Class>> {
        Ok(Some(match first {
            "ld" | "ldu" => self.load_store(true, m, self.arg(o, 0)?, self.arg(o, 1)?)?,
            "st" => self.load_store(false, m, self.arg(o, 1)?, self.arg(o, 0)?)?,
            "atom" | "red" => self.atomic(first, m, o)?,
            "cvta" => self.window(m, o)?,
            "isspacep" => {
                let (base, _) = self.window_of(m)?;
                let (p, a) = (self.predicate_dst(self.arg(o, 0)?)?, self.src64(self.arg(o, 1)?, Type::U64)?);
                self.push(Op::IsSpace { base, p, a });
                Class::Integer
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                m.clear();
                self.push(Op::Nop);
                Class::Memory
            }
            "createpolicy" => {
                m.clear();
                let (d, a) = (self.dst(self.arg(o, 0)?, Type::B64)?, self.constant64(0));
                self.push(Op::Long1 { f: I1::Mov, d, a });
                Class::Integer
            }
            "membar" | "fence" => {
                m.clear();
                self.push(Op::Fence);
                Class::Sync
            }
            "mapa" => {
                let ty = self.type_at_end(m)?;
                let is_generic = !m.has("shared::cluster");
                let is_long = ty.bytes() == 8;
                let (d, a) = (self.dst(self.arg(o, 0)?, ty)?, self.src(self.arg(o, 1)?, ty)?);
                let b = self.src32(self.arg(o, 2)?, Type::U32)?;
                self.push(Op::MapRank { is_long, is_generic, d, a, b });
                Class::Integer
            }
            "getctarank" => {
                let ty = self.type_at_end(m)?;
                m.has("shared::cluster");
                let (d, a) = (self.dst(self.arg(o, 0)?, Type::B32)?, self.src(self.arg(o, 1)?, ty)?);
                self.push(Op::RankOf { is_long: ty.bytes() == 8, d, a });
                Class::Integer
            }
            _ => return Ok(None),
        }))
    }

    /// Takes the state space.
    pub(super) fn space(m: &mut Modifiers) -> Space {
        match m.one_of(&[
            "global",
            "const",
            "shared",
            "shared::cta",
            "shared::cluster",
            "local",
            "param",
            "param::entry",
        ]) {
            Some("global" | "const") => Space::Global,
            Some("shared" | "shared::cta") => Space::Shared,
            Some("shared::cluster") => Space::Cluster,
            Some("local") => Space::Local,
            Some(_) => Space::Param,
            None => Space::Generic,
        }
    }

    /// `[%rd1+8]` in `space`.
    pub(super) fn address(&mut self, operand: &Operand, space: Space) -> Result<Address> {
        let Operand::Address(list, offset) = operand else { return Err(self.wrong("expected an address in brackets")) };
        let inner = list.first().ok_or_else(|| self.wrong("expected an address"))?;
        self.address_of(inner, *offset, space)
    }

    /// The address in the register or symbol `inner`.
    pub(super) fn address_of(&mut self, inner: &Operand, offset: i64, space: Space) -> Result<Address> {
        Ok(match inner {
            Operand::Register(r) => {
                let row = self.row_of[*r as usize];
                let base = match self.type_of(*r).bytes() {
                    8 => Base::Row64(row),
                    4 => Base::Row32(row),
                    _ => return Err(self.wrong("expected an address of 32 or 64 bits")),
                };
                Address { space, base, offset }
            }
            Operand::Integer(n) => Address { space, base: Base::None, offset: *n as i64 + offset },
            Operand::Symbol(name, more) => {
                let offset = offset + more;
                let (space, at) = match (self.place(name)?, space) {
                    (Place::Param(a), _) => (Space::Param, a),
                    (Place::Shared(a), Space::Cluster) => (Space::Cluster, a),
                    (Place::Shared(a), _) => (Space::Shared, a),
                    (Place::Local(a), _) => (Space::Local, a),
                    (Place::Global(a), _) => (Space::Global, a),
                };
                Address { space, base: Base::None, offset: at as i64 + offset }
            }
            _ => return Err(self.wrong("expected a register or a variable as address")),
        })
    }

    fn load_store(&mut self, is_load: bool, m: &mut Modifiers, data: &Operand, at: &Operand) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        drop_cache_hints(m);
        let is_strong = strength(m);
        m.one_of(&["v2", "v4", "v8"]);
        let space = Self::space(m);
        let address = self.address(at, space)?;
        let list = if let Operand::Vector(list) = data { list.as_slice() } else { std::slice::from_ref(data) };
        if ty.bytes() == 0 || ty.bytes() > 8 || list.len() > 8 {
            return Err(self.wrong("this width is not emulated"));
        }
        // A register may be wider than what is loaded or stored.
        let is_long = list.iter().any(|o| matches!(o, Operand::Register(r) if self.type_of(*r).bytes() == 8))
            || (ty.bytes() == 8 && !list.iter().any(|o| matches!(o, Operand::Register(_))));
        let file = if is_long { Type::B64 } else { Type::B32 };
        let mut rows = [SINK; 8];
        for (row, operand) in rows.iter_mut().zip(list) {
            *row = if is_load { self.dst(operand, file)? } else { self.store_source(operand, ty, file)? };
        }
        if ty.bytes() == 8 && !is_long {
            return Err(self.wrong("expected 64-bit registers"));
        }
        let (bytes, count, is_signed) = (ty.bytes() as u8, list.len() as u8, ty.is_signed());
        let op = MemoryOp { address, bytes, is_signed, count, rows, is_long, is_strong, atomic: None };
        let number = self.code.memory.len() as u32;
        self.code.memory.push(op);
        self.push(if is_load { Op::Load(number) } else { Op::Store(number) });
        Ok(class_of(address.space))
    }

    fn store_source(&mut self, operand: &Operand, ty: Type, file: Type) -> Result<Row> {
        // A literal of a float store is a float whatever the file.
        let literal = if ty.is_float() || !matches!(operand, Operand::Register(_)) { ty } else { file };
        if file == Type::B64 && !matches!(operand, Operand::Register(_)) && ty.bytes() < 8 {
            let Operand::Integer(n) = operand else { return Err(self.wrong("expected an integer")) };
            return Ok(self.constant64(*n as u64));
        }
        if file == Type::B64 { self.src64(operand, literal) } else { self.src32(operand, literal) }
    }

    fn atomic(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        let has_policy = drop_cache_hints(m);
        strength(m);
        let space = Self::space(m);
        m.has("noftz");
        let name = m.one_of(&["add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"]);
        let s = ty.is_signed();
        let update = match name.ok_or_else(|| self.wrong("expected an operation"))? {
            "add" if ty.is_float() => Update::FloatAdd,
            "min" if ty.is_float() => Update::FloatMin,
            "max" if ty.is_float() => Update::FloatMax,
            "add" => Update::Integer(I2::Add),
            "min" => Update::Integer(if s { I2::MinS } else { I2::MinU }),
            "max" => Update::Integer(if s { I2::MaxS } else { I2::MaxU }),
            "and" => Update::Integer(I2::And),
            "or" => Update::Integer(I2::Or),
            "xor" => Update::Integer(I2::Xor),
            "inc" => Update::Increment,
            "dec" => Update::Decrement,
            "exch" => Update::Exchange,
            _ => Update::CompareExchange,
        };
        if !matches!(ty.bytes(), 2 | 4 | 8) {
            return Err(self.wrong("this width is not emulated"));
        }
        let skip = usize::from(first == "atom");
        let d = if skip == 1 { self.dst(self.arg(o, 0)?, ty)? } else { SINK };
        let address = self.address(self.arg(o, skip)?, space)?;
        let mut rows = [SINK; 8];
        rows[0] = d;
        let sources = o.get(skip + 1..o.len() - usize::from(has_policy)).unwrap_or_default();
        if sources.is_empty() || sources.len() > 2 {
            return Err(self.wrong("expected one or two values"));
        }
        for (row, operand) in rows[1..].iter_mut().zip(sources) {
            *row = self.src(operand, ty)?;
        }
        self.code.has_global_atomics |= matches!(space, Space::Global | Space::Generic);
        let (bytes, is_long) = (ty.bytes() as u8, ty.bytes() == 8);
        let atomic = Some((update, ty));
        let op = MemoryOp { address, bytes, is_signed: s, count: 1, rows, is_long, is_strong: true, atomic };
        let number = self.code.memory.len() as u32;
        self.code.memory.push(op);
        self.push(Op::Atomic(number));
        Ok(class_of(space))
    }

    /// The window of a space in generic addresses.
    fn window_of(&self, m: &mut Modifiers) -> Result<(u64, &'static str)> {
        let name = m.one_of(&[
            "global",
            "const",
            "shared",
            "shared::cta",
            "shared::cluster",
            "local",
            "param",
            "param::entry",
        ]);
        match name {
            Some(n @ ("global" | "const")) => Ok((window::GLOBAL, n)),
            Some(n @ ("shared" | "shared::cta" | "shared::cluster")) => Ok((window::SHARED, n)),
            Some(n @ "local") => Ok((window::LOCAL, n)),
            Some(n) => Ok((window::PARAM, n)),
            None => Err(self.wrong("expected a state space")),
        }
    }

    fn window(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        if ty.bytes() != 8 {
            return Err(self.wrong("generic addresses have 64 bits"));
        }
        let is_into = m.has("to");
        let (base, _) = self.window_of(m)?;
        let (d, a) = (self.dst(self.arg(o, 0)?, ty)?, self.src64(self.arg(o, 1)?, ty)?);
        self.push(if base == window::GLOBAL {
            Op::Long1 { f: I1::Mov, d, a }
        } else {
            Op::Window { base, is_into, d, a }
        });
        Ok(Class::Integer)
    }
}

fn class_of(space: Space) -> Class {
    if matches!(space, Space::Shared | Space::Cluster) { Class::Shared } else { Class::Memory }
}
