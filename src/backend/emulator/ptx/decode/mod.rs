//! Lines into steps: names are looked up once, registers get rows, constants get rows of their own.

mod arithmetic;
mod bulk;
mod hopper;
mod lanes;
mod memory;
mod units;

use std::collections::HashMap;

use super::code::{Code, Listing};
use super::lex::one_line;
use super::op::{CONST, FALSE, NEGATED, Op, Row, SINK, Special, Step, TRUE};
use super::rows;
use super::syntax::{Entry, Operand, Register, Type, Variable};
use crate::backend::emulator::counters::Class;
use crate::error::{Error, Result};

/// Where a name of a variable points.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Param(u64),
    Shared(u64),
    Local(u64),
    Global(u64),
}

/// Decodes `entry`. `globals` are the addresses of module variables, `shared` the module's shared variables.
pub(super) fn decode(
    source: &str,
    entry: &Entry,
    globals: &HashMap<Box<str>, u64>,
    shared: &[Variable],
    target: &str,
) -> Result<Code> {
    let rows = rows::assign(entry);
    let mut decoder = Decoder {
        source,
        entry,
        line: 0,
        code: Code { name: entry.name.clone(), parameters: entry.parameters.clone(), ..Code::default() },
        places: HashMap::new(),
        row_of: rows.row_of,
        rows32: rows.rows32,
        rows64: rows.rows64,
        known32: HashMap::new(),
        known64: HashMap::new(),
        starts: Vec::new(),
    };
    decoder.code.is_hopper = target.starts_with("sm_9");
    decoder.code.predicates = usize::from(rows.predicates);
    decoder.place_variables(globals, shared)?;
    for line in 0..entry.lines.len() {
        decoder.line(line)?;
    }
    decoder.finish()
}

pub(super) struct Decoder<'a> {
    source: &'a str,
    entry: &'a Entry,
    line: usize,
    code: Code,
    places: HashMap<Box<str>, Place>,
    row_of: Vec<Row>,
    rows32: Row,
    rows64: Row,
    known32: HashMap<u32, Row>,
    known64: HashMap<u64, Row>,
    /// The first step of each line.
    starts: Vec<u32>,
}

/// The modifiers of an opcode that are still to be understood.
#[derive(Debug)]
pub(super) struct Modifiers<'a> {
    rest: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    pub(super) fn has(&mut self, name: &str) -> bool {
        let found = self.rest.iter().position(|m| *m == name);
        if let Some(i) = found {
            self.rest.remove(i);
        }
        found.is_some()
    }

    /// Takes the first of `names` that is there.
    pub(super) fn one_of(&mut self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|n| self.has(n)).copied()
    }

    /// Takes the first modifier.
    pub(super) fn shift(&mut self) -> Option<&'a str> {
        (!self.rest.is_empty()).then(|| self.rest.remove(0))
    }

    pub(super) fn peek(&self) -> &[&'a str] {
        &self.rest
    }

    pub(super) fn clear(&mut self) -> Vec<&'a str> {
        std::mem::take(&mut self.rest)
    }

    /// Takes the last modifier, which must be a type.
    pub(super) fn ty(&mut self) -> Option<Type> {
        let ty = Type::parse(self.rest.last()?)?;
        self.rest.pop();
        Some(ty)
    }
}

impl Decoder<'_> {
    /// An error that names the line.
    pub(super) fn wrong(&self, what: impl std::fmt::Display) -> Error {
        let line = &self.entry.lines[self.line];
        let number = super::lex::line_of(self.source, line.text.start);
        let text = one_line(self.source, line.text.clone());
        Error::driver(format!("ptx: {}: line {number}: `{text}`: {what}", self.entry.name))
    }

    fn place_variables(&mut self, globals: &HashMap<Box<str>, u64>, module_shared: &[Variable]) -> Result<()> {
        for (name, address) in globals {
            self.places.insert(name.clone(), Place::Global(*address));
        }
        for p in &self.entry.parameters {
            self.places.insert(p.name.clone(), Place::Param(p.offset as u64));
            self.code.parameter_bytes = self.code.parameter_bytes.max(p.offset + p.bytes);
        }
        let mut local: usize = 0;
        for v in &self.entry.local {
            local = local.next_multiple_of(v.align);
            self.places.insert(v.name.clone(), Place::Local(local as u64));
            local += v.bytes;
        }
        self.code.local_bytes = local.next_multiple_of(16);
        let entry = self.entry;
        let all = || entry.shared.iter().chain(module_shared);
        let mut shared: usize = 0;
        for v in all().filter(|v| !v.is_dynamic && mentions(entry, &v.name)) {
            shared = shared.next_multiple_of(v.align);
            self.places.insert(v.name.clone(), Place::Shared(shared as u64));
            shared += v.bytes;
        }
        self.code.static_shared = shared;
        let align = all().filter(|v| v.is_dynamic).map(|v| v.align).max().unwrap_or(16).max(16);
        self.code.dynamic_start = shared.next_multiple_of(align);
        for v in all().filter(|v| v.is_dynamic) {
            self.places.insert(v.name.clone(), Place::Shared(self.code.dynamic_start as u64));
        }
        if self.code.static_shared > 1 << 20 || self.code.local_bytes > 1 << 20 {
            return Err(Error::driver(format!("ptx: {}: variables larger than a megabyte", self.entry.name)));
        }
        Ok(())
    }

    fn line(&mut self, number: usize) -> Result<()> {
        self.line = number;
        self.starts.push(self.code.steps.len() as u32);
        let line = &self.entry.lines[number];
        let mut parts = line.name.split('.');
        let first = parts.next().unwrap_or_default();
        let mut m = Modifiers { rest: parts.collect() };
        let from = self.code.steps.len();
        let class = self.instruction(first, &mut m, &line.operands)?;
        if let Some(unknown) = m.rest.first() {
            return Err(self.wrong(format!("the modifier .{unknown} is not emulated here")));
        }
        let guard = line.guard.map_or(TRUE, |(r, negated)| self.row_of[r as usize] | if negated { NEGATED } else { 0 });
        for step in &mut self.code.steps[from..] {
            // Steps that only fetch a special register run unguarded: they write rows of their own.
            if step.guard == TRUE {
                step.guard = guard;
            }
        }
        self.code.listings.resize(self.code.steps.len(), Listing { line: number as u32, class: None, flops: 0 });
        if let Some(last) = self.code.listings.last_mut().filter(|_| self.code.steps.len() > from) {
            last.class = Some(class);
            last.flops = flops_of(&self.code.steps[self.code.steps.len() - 1].op);
        }
        Ok(())
    }

    fn instruction(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        if let Some(class) = self.arithmetic(first, m, o)? {
            return Ok(class);
        }
        if let Some(class) = self.memory(first, m, o)? {
            return Ok(class);
        }
        if let Some(class) = self.lanes(first, m, o)? {
            return Ok(class);
        }
        if let Some(class) = self.units(first, m, o)? {
            return Ok(class);
        }
        if let Some(class) = self.hopper(first, m, o)? {
            return Ok(class);
        }
        Err(self.wrong(format!("the instruction {first} is not emulated")))
    }

    fn finish(mut self) -> Result<Code> {
        let end = self.code.steps.len() as u32;
        // A kernel may end without a `ret`.
        self.code.steps.push(Step { guard: TRUE, op: Op::Exit });
        self.code.listings.push(Listing { line: self.entry.lines.len() as u32, class: None, flops: 0 });
        let start = |line: u32| self.starts.get(line as usize).copied().unwrap_or(end);
        for step in &mut self.code.steps {
            if let Op::Branch { to } = &mut step.op {
                *to = start(*to);
            }
        }
        for list in &mut self.code.tables {
            list.iter_mut().for_each(|to| *to = start(*to));
        }
        if self.rows32 >= SINK || self.rows64 >= SINK || self.code.consts32.len().max(self.code.consts64.len()) > 0x7fff
        {
            return Err(Error::driver(format!("ptx: {}: too many registers or constants", self.entry.name)));
        }
        self.code.rows32 = usize::from(self.rows32);
        self.code.rows64 = usize::from(self.rows64);
        self.code.max_threads = self.entry.max_threads;
        self.code.cluster = self.entry.cluster;
        self.code.texts = self.entry.lines.iter().map(|l| l.text.clone()).collect();
        Ok(self.code)
    }

    pub(super) fn push(&mut self, op: Op) {
        self.code.steps.push(Step { guard: TRUE, op });
    }

    /// A step that runs for all active lanes whatever the guard of the line, because only the line itself reads what it writes.
    fn push_free(&mut self, op: Op) {
        self.code.steps.push(Step { guard: FALSE | NEGATED, op });
    }

    pub(super) fn type_of(&self, r: Register) -> Type {
        self.entry.registers[r as usize]
    }

    pub(super) fn constant32(&mut self, bits: u32) -> Row {
        let consts = &mut self.code.consts32;
        *self.known32.entry(bits).or_insert_with(|| {
            consts.push([bits; 32]);
            CONST | (consts.len() - 1).min(0x7fff) as Row
        })
    }

    pub(super) fn constant64(&mut self, bits: u64) -> Row {
        let consts = &mut self.code.consts64;
        *self.known64.entry(bits).or_insert_with(|| {
            consts.push([bits; 32]);
            CONST | (consts.len() - 1).min(0x7fff) as Row
        })
    }

    pub(super) fn temp32(&mut self) -> Row {
        self.rows32 += 1;
        self.rows32 - 1
    }

    pub(super) fn temp64(&mut self) -> Row {
        self.rows64 += 1;
        self.rows64 - 1
    }

    /// The value of a symbol as its space counts: the address of a variable, the offset of a parameter.
    pub(super) fn place(&self, name: &str) -> Result<Place> {
        self.places.get(name).copied().ok_or_else(|| self.wrong(format!("the name {name} is not declared")))
    }

    /// A source of 32 bits or fewer.
    pub(super) fn src32(&mut self, operand: &Operand, ty: Type) -> Result<Row> {
        let mask = if ty.bytes() < 4 { (1u32 << (8 * ty.bytes())) - 1 } else { u32::MAX };
        let bits = match operand {
            Operand::Register(r) if matches!(self.type_of(*r), Type::Pred) || self.type_of(*r).bytes() == 8 => {
                return Err(self.wrong("expected a register of at most 32 bits"));
            }
            Operand::Register(r) => return Ok(self.row_of[*r as usize]),
            Operand::Special(name) => {
                let d = self.temp32();
                let which = self.special(name)?;
                self.push_free(Op::Special { which, d });
                return Ok(d);
            }
            Operand::Integer(n) if ty == Type::F32 => (*n as f32).to_bits(),
            Operand::Integer(n) => *n as u32,
            Operand::Bits32(b) => *b,
            Operand::Float(x) => (*x as f32).to_bits(),
            Operand::Bits64(b) => (f64::from_bits(*b) as f32).to_bits(),
            Operand::Symbol(name, offset) => match self.place(name)? {
                Place::Param(a) | Place::Shared(a) | Place::Local(a) => (a as i64 + offset) as u32,
                Place::Global(_) => return Err(self.wrong("expected a 64-bit register for the address")),
            },
            _ => return Err(self.wrong("expected a register or a number")),
        };
        Ok(self.constant32(bits & mask))
    }

    /// A source of 64 bits.
    pub(super) fn src64(&mut self, operand: &Operand, ty: Type) -> Result<Row> {
        let bits = match operand {
            Operand::Register(r) if self.type_of(*r).bytes() == 8 => return Ok(self.row_of[*r as usize]),
            Operand::Special(name) => {
                let d = self.temp64();
                let which = self.special(name)?;
                self.push_free(Op::Special64 { which, d });
                return Ok(d);
            }
            Operand::Integer(n) if ty == Type::F64 => (*n as f64).to_bits(),
            Operand::Integer(n) => *n as u64,
            Operand::Bits64(b) => *b,
            Operand::Bits32(b) => f64::from(f32::from_bits(*b)).to_bits(),
            Operand::Float(x) => x.to_bits(),
            Operand::Symbol(name, offset) => match self.place(name)? {
                Place::Param(a) | Place::Shared(a) | Place::Local(a) | Place::Global(a) => {
                    a.wrapping_add_signed(*offset)
                }
            },
            _ => return Err(self.wrong("expected a 64-bit register or a number")),
        };
        Ok(self.constant64(bits))
    }

    /// A source in the file of `ty`'s width.
    pub(super) fn src(&mut self, operand: &Operand, ty: Type) -> Result<Row> {
        if ty.bytes() == 8 { self.src64(operand, ty) } else { self.src32(operand, ty) }
    }

    /// A destination in the file of `ty`'s width.
    pub(super) fn dst(&self, operand: &Operand, ty: Type) -> Result<Row> {
        match operand {
            Operand::Register(r) => {
                let found = self.type_of(*r);
                let fits = found != Type::Pred && (found.bytes() == 8) == (ty.bytes() == 8);
                if fits { Ok(self.row_of[*r as usize]) } else { Err(self.wrong("the destination has another width")) }
            }
            Operand::Sink => Ok(SINK),
            _ => Err(self.wrong("expected a register as destination")),
        }
    }

    /// A predicate operand: a register, its negation, or a constant.
    pub(super) fn predicate(&self, operand: &Operand) -> Result<Row> {
        match operand {
            Operand::Register(r) if self.type_of(*r) == Type::Pred => Ok(self.row_of[*r as usize]),
            Operand::Not(r) if self.type_of(*r) == Type::Pred => Ok(self.row_of[*r as usize] | NEGATED),
            Operand::Integer(n) => Ok(if *n == 0 { FALSE } else { TRUE }),
            _ => Err(self.wrong("expected a predicate")),
        }
    }

    /// A predicate as destination.
    pub(super) fn predicate_dst(&self, operand: &Operand) -> Result<Row> {
        match operand {
            Operand::Register(r) if self.type_of(*r) == Type::Pred => Ok(self.row_of[*r as usize]),
            Operand::Sink => Ok(SINK),
            _ => Err(self.wrong("expected a predicate as destination")),
        }
    }

    pub(super) fn arg<'o>(&self, o: &'o [Operand], i: usize) -> Result<&'o Operand> {
        o.get(i).ok_or_else(|| self.wrong(format!("expected at least {} operands", i + 1)))
    }

    pub(super) fn special(&self, name: &str) -> Result<Special> {
        use super::op::Compare::{Eq, Ge, Gt, Le, Lt};
        let (base, axis) = match name.rsplit_once('.') {
            Some((base, "x")) => (base, 0),
            Some((base, "y")) => (base, 1),
            Some((base, "z")) => (base, 2),
            _ => (name, 0),
        };
        Ok(match base {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NWarpId,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NSmId,
            "%gridid" => Special::GridId,
            "%lanemask_eq" => Special::LaneMask(Eq),
            "%lanemask_le" => Special::LaneMask(Le),
            "%lanemask_lt" => Special::LaneMask(Lt),
            "%lanemask_ge" => Special::LaneMask(Ge),
            "%lanemask_gt" => Special::LaneMask(Gt),
            "%clock" | "%clock64" => Special::Clock,
            "%clock_hi" => Special::ClockHi,
            "%globaltimer" | "%globaltimer_lo" => Special::TimerLo,
            "%globaltimer_hi" => Special::TimerHi,
            "%clusterid" => Special::ClusterId(axis),
            "%nclusterid" => Special::NClusterId(axis),
            "%cluster_ctaid" => Special::ClusterCtaid(axis),
            "%cluster_nctaid" => Special::ClusterNctaid(axis),
            "%cluster_ctarank" => Special::ClusterCtaRank,
            "%cluster_nctarank" => Special::ClusterNctaRank,
            "%is_explicit_cluster" => Special::IsExplicitCluster,
            "%dynamic_smem_size" => Special::DynamicSharedBytes,
            "%total_smem_size" => Special::TotalSharedBytes,
            "%aggr_smem_size" => Special::AggregateSharedBytes,
            "%envreg" | "%reserved_smem_offset_begin" | "%reserved_smem_offset_end" => Special::Zero,
            _ => return Err(self.wrong(format!("the register {name} is not declared"))),
        })
    }
}

/// Shared variables of the module belong to the entries that use them.
fn mentions(entry: &Entry, name: &str) -> bool {
    fn within(operand: &Operand, name: &str) -> bool {
        match operand {
            Operand::Symbol(s, _) => **s == *name,
            Operand::Vector(list) | Operand::Address(list, _) => list.iter().any(|o| within(o, name)),
            _ => false,
        }
    }
    entry.shared.iter().any(|v| *v.name == *name)
        || entry.lines.iter().flat_map(|l| &l.operands).any(|o| within(o, name))
}

/// FLOPs that a lane does in a step: 2 for a fused multiply and add, doubled for packed pairs.
fn flops_of(op: &Op) -> u32 {
    use super::op::{F1, F2, Number};
    let pair = |n: Number| if matches!(n, Number::F16x2 | Number::Bf16x2) { 2 } else { 1 };
    let one = |f: F1| u32::from(!matches!(f, F1::Neg | F1::Abs));
    let two = |f: F2| u32::from(f != F2::Copysign);
    match *op {
        Op::Float1 { f, .. } | Op::Double1 { f, .. } => one(f),
        Op::Half1 { f, n, .. } => one(f) * pair(n),
        Op::Float2 { f, .. } | Op::Double2 { f, .. } => two(f),
        Op::Half2 { f, n, .. } => two(f) * pair(n),
        Op::Fma { .. } | Op::DoubleFma { .. } => 2,
        Op::HalfFma { n, .. } => 2 * pair(n),
        _ => 0,
    }
}
