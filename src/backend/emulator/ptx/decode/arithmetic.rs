//! Arithmetic, comparison, selection, moves and conversions.

use super::{Decoder, Modifiers};
use crate::backend::emulator::counters::Class;
use crate::backend::emulator::ptx::op::{
    Combine, Compare, F1, F2, FALSE, I1, I2, I3, Logic, Mode, Number, Op, Round, Row, SINK, TRUE,
};
use crate::backend::emulator::ptx::syntax::{Operand, Type};
use crate::error::Result;

/// Takes rounding and flags off the modifiers.
pub(super) fn mode(m: &mut Modifiers) -> Mode {
    let (round, integral) = match m.one_of(&["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"]) {
        Some("rz") => (Round::Zero, false),
        Some("rm") => (Round::Down, false),
        Some("rp") => (Round::Up, false),
        Some("rna") => (Round::Away, false),
        Some("rni") => (Round::Nearest, true),
        Some("rzi") => (Round::Zero, true),
        Some("rmi") => (Round::Down, true),
        Some("rpi") => (Round::Up, true),
        _ => (Round::Nearest, false),
    };
    Mode {
        round,
        integral,
        ftz: m.has("ftz"),
        sat: m.has("sat"),
        nan: m.has("NaN"),
        xorsign: m.has("xorsign") && m.has("abs"),
        relu: m.has("relu"),
        satfinite: m.has("satfinite"),
    }
}

fn number(ty: Type) -> Option<Number> {
    Some(match ty {
        Type::S16 => Number::S16,
        Type::U16 | Type::B16 => Number::U16,
        Type::S32 => Number::S32,
        Type::U32 | Type::B32 => Number::U32,
        Type::S64 => Number::S64,
        Type::U64 | Type::B64 => Number::U64,
        Type::F32 => Number::F32,
        Type::F64 => Number::F64,
        Type::F16 => Number::F16,
        Type::Bf16 => Number::Bf16,
        Type::F16x2 => Number::F16x2,
        Type::Bf16x2 => Number::Bf16x2,
        _ => return None,
    })
}

fn is_half(ty: Type) -> bool {
    matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2)
}

impl Decoder<'_> {
    pub(super) fn arithmetic(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Option<Class>> {
        let class = match first {
            "mov" => return self.mov(m, o).map(Some),
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" | "copysign" | "mul24"
            | "addc" | "subc" => self.binary(first, m, o)?,
            "shl" | "shr" => self.shift(first, m, o)?,
            "mad" | "fma" | "sad" | "mad24" | "madc" => self.ternary(first, m, o)?,
            "bfe" | "bfi" | "lop3" | "prmt" | "shf" | "dp4a" | "dp2a" | "slct" | "bmsk" | "szext" => {
                self.bits(first, m, o)?
            }
            "neg" | "abs" | "not" | "cnot" | "brev" | "clz" | "popc" | "bfind" | "rcp" | "sqrt" | "rsqrt" | "ex2"
            | "lg2" | "sin" | "cos" | "tanh" => self.unary(first, m, o)?,
            "setp" | "set" => self.compare(first, m, o)?,
            "selp" => self.select(m, o)?,
            "testp" => self.testp(m, o)?,
            "cvt" => self.convert(m, o)?,
            _ => return Ok(None),
        };
        Ok(Some(class))
    }

    pub(super) fn type_at_end(&self, m: &mut Modifiers) -> Result<Type> {
        m.ty().ok_or_else(|| self.wrong("expected a type at the end of the opcode"))
    }

    fn binary(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        if m.has("cc") || matches!(first, "addc" | "subc") {
            return self.carry(first, ty, o);
        }
        if first == "mul" && m.has("wide") {
            return self.wide(ty, o, None);
        }
        if ty == Type::Pred {
            let f = match first {
                "and" => Logic::And,
                "or" => Logic::Or,
                "xor" => Logic::Xor,
                _ => return Err(self.wrong("predicates have only and, or, xor, not")),
            };
            let (a, b) = (self.predicate(self.arg(o, 1)?)?, self.predicate(self.arg(o, 2)?)?);
            let d = self.predicate_dst(self.arg(o, 0)?)?;
            self.push(Op::Predicate { f, d, a, b });
            return Ok(Class::Integer);
        }
        if ty.is_float() {
            return self.float2(first, ty, m, o);
        }
        let f = self.integer2(first, ty, m)?;
        let d = self.dst(self.arg(o, 0)?, ty)?;
        let (a, b) = (self.src(self.arg(o, 1)?, ty)?, self.src(self.arg(o, 2)?, ty)?);
        self.push(match ty.bytes() {
            8 => Op::Long2 { f, d, a, b },
            4 => Op::Int2 { f, d, a, b },
            _ => Op::Short2 { f, d, a, b },
        });
        Ok(Class::Integer)
    }

    fn integer2(&self, first: &str, ty: Type, m: &mut Modifiers) -> Result<I2> {
        let s = ty.is_signed();
        let pick = |signed, unsigned| if s { signed } else { unsigned };
        Ok(match first {
            "add" if m.has("sat") => I2::AddSat,
            "sub" if m.has("sat") => I2::SubSat,
            "add" => I2::Add,
            "sub" => I2::Sub,
            "mul" if m.has("hi") => pick(I2::MulHiS, I2::MulHiU),
            "mul" => {
                m.has("lo");
                I2::Mul
            }
            "mul24" if m.has("hi") => pick(I2::Mul24HiS, I2::Mul24HiU),
            "mul24" => {
                m.has("lo");
                pick(I2::Mul24S, I2::Mul24U)
            }
            "div" => pick(I2::DivS, I2::DivU),
            "rem" => pick(I2::RemS, I2::RemU),
            "min" => pick(I2::MinS, I2::MinU),
            "max" => pick(I2::MaxS, I2::MaxU),
            "and" => I2::And,
            "or" => I2::Or,
            "xor" => I2::Xor,
            _ => return Err(self.wrong(format!("{first} of integers is not emulated"))),
        })
    }

    fn float2(&mut self, first: &str, ty: Type, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let f = match first {
            "add" => F2::Add,
            "sub" => F2::Sub,
            "mul" => F2::Mul,
            "div" => F2::Div,
            "min" => F2::Min,
            "max" => F2::Max,
            "copysign" => F2::Copysign,
            _ => return Err(self.wrong(format!("{first} of floats is not emulated"))),
        };
        // `approx` and `full` are computed exactly: inside the error that they are allowed.
        let is_special = m.one_of(&["approx", "full"]).is_some() || f == F2::Div;
        let mode = mode(m).pack();
        let d = self.dst(self.arg(o, 0)?, ty)?;
        let (a, b) = (self.src(self.arg(o, 1)?, ty)?, self.src(self.arg(o, 2)?, ty)?);
        self.push(match (ty, number(ty)) {
            // PTX's copysign has the sign first.
            (Type::F32, _) => Op::Float2 { f, mode, d, a, b },
            (Type::F64, _) => Op::Double2 { f, mode, d, a, b },
            (_, Some(n)) if is_half(ty) => Op::Half2 { n, f, mode, d, a, b },
            _ => return Err(self.wrong("this float type has no arithmetic")),
        });
        Ok(if is_special { Class::Special } else { Class::Float })
    }

    fn carry(&mut self, first: &str, ty: Type, o: &[Operand]) -> Result<Class> {
        let name = self.entry.lines[self.line].name.clone();
        let (takes, gives) = (first.ends_with('c'), name.split('.').any(|p| p == "cc"));
        let d = self.dst(self.arg(o, 0)?, ty)?;
        let (a, b) = (self.src(self.arg(o, 1)?, ty)?, self.src(self.arg(o, 2)?, ty)?);
        self.push(Op::Carry { is_sub: first.starts_with("sub"), takes, gives, is_long: ty.bytes() == 8, d, a, b });
        Ok(Class::Integer)
    }

    /// `mul.wide` and, with a third operand, `mad.wide`.
    fn wide(&mut self, ty: Type, o: &[Operand], third: Option<&Operand>) -> Result<Class> {
        let is_signed = ty.is_signed();
        let (a, b) = (self.src32(self.arg(o, 1)?, ty)?, self.src32(self.arg(o, 2)?, ty)?);
        if ty.bytes() == 2 {
            let d = self.dst(self.arg(o, 0)?, Type::B32)?;
            let c = self.src32(third.unwrap_or(&Operand::Integer(0)), Type::B32)?;
            self.push(Op::MadWide16 { is_signed, d, a, b, c });
        } else {
            let d = self.dst(self.arg(o, 0)?, Type::B64)?;
            let c = self.src64(third.unwrap_or(&Operand::Integer(0)), Type::B64)?;
            self.push(Op::MadWide { is_signed, d, a, b, c });
        }
        Ok(Class::Integer)
    }

    fn shift(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        let f = match (first, ty.is_signed()) {
            ("shl", _) => I2::Shl,
            (_, true) => I2::ShrS,
            _ => I2::ShrU,
        };
        let (d, a) = (self.dst(self.arg(o, 0)?, ty)?, self.src(self.arg(o, 1)?, ty)?);
        let b = self.src32(self.arg(o, 2)?, Type::U32)?;
        self.push(match ty.bytes() {
            8 => Op::Shift64 { f, d, a, b },
            4 => Op::Int2 { f, d, a, b },
            _ => Op::Short2 { f, d, a, b },
        });
        Ok(Class::Integer)
    }

    fn ternary(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        if m.has("wide") {
            return self.wide(ty, o, Some(self.arg(o, 3)?));
        }
        let has_cc = m.has("cc");
        let d = self.dst(self.arg(o, 0)?, ty)?;
        let (a, b) = (self.src(self.arg(o, 1)?, ty)?, self.src(self.arg(o, 2)?, ty)?);
        let c = self.src(self.arg(o, 3)?, if first == "sad" && ty.is_signed() { Type::U32 } else { ty })?;
        if ty.is_float() {
            let mode = mode(m).pack();
            self.push(match (ty, number(ty)) {
                (Type::F32, _) => Op::Fma { mode, d, a, b, c },
                (Type::F64, _) => Op::DoubleFma { mode, d, a, b, c },
                (_, Some(n)) if is_half(ty) => Op::HalfFma { n, mode, d, a, b, c },
                _ => return Err(self.wrong("this float type has no arithmetic")),
            });
            return Ok(Class::Float);
        }
        let (is_high, signed) = (m.has("hi"), ty.is_signed());
        m.has("lo");
        if first == "madc" || has_cc {
            if ty.bytes() != 4 {
                return Err(self.wrong("mad with carry is emulated for 32 bits only"));
            }
            let (takes, gives) = (first == "madc", has_cc);
            self.push(Op::MadCarry { is_high, is_signed: signed, takes, gives, d, a, b, c });
            return Ok(Class::Integer);
        }
        let f = match (first, is_high, signed) {
            ("sad", _, true) => I3::SadS,
            ("sad", ..) => I3::SadU,
            ("mad24", true, true) => I3::Mad24HiS,
            ("mad24", true, false) => I3::Mad24HiU,
            ("mad24", false, true) => I3::Mad24S,
            ("mad24", ..) => I3::Mad24U,
            (_, true, true) => I3::MadHiS,
            (_, true, false) => I3::MadHiU,
            _ => I3::Mad,
        };
        let op = match (ty.bytes(), f) {
            (4, _) => Op::Int3 { f, k: 0, d, a, b, c },
            (8, I3::Mad) => Op::Mad64 { d, a, b, c },
            (2, I3::Mad) => {
                let product = self.temp32();
                self.push(Op::Short2 { f: I2::Mul, d: product, a, b });
                Op::Short2 { f: I2::Add, d, a: product, b: c }
            }
            _ => return Err(self.wrong("this width is not emulated")),
        };
        self.push(op);
        Ok(Class::Integer)
    }

    fn bits(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        if first == "prmt" {
            let k = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"].iter().position(|n| m.has(n)).map_or(0, |k| k + 1);
            m.has("b32");
            return self.int3(I3::Prmt, k as u8, o);
        }
        if first == "slct" {
            return self.slct(m, o);
        }
        if first == "dp4a" || first == "dp2a" {
            let (b, a) = (self.type_at_end(m)?, self.type_at_end(m)?);
            let k = u8::from(a.is_signed()) | u8::from(b.is_signed()) << 1 | u8::from(m.has("hi")) << 2;
            m.has("lo");
            return self.int3(if first == "dp4a" { I3::Dp4a } else { I3::Dp2a }, k, o);
        }
        let ty = self.type_at_end(m)?;
        match (first, ty.bytes()) {
            ("lop3", 4) => {
                let Operand::Integer(table) = self.arg(o, 4)? else { return Err(self.wrong("expected a table")) };
                self.int3(I3::Lop3, *table as u8, o)
            }
            ("shf", 4) => {
                let (is_left, is_wrap) = (m.has("l"), m.has("wrap"));
                m.one_of(&["r", "clamp"]);
                m.has("clamp");
                let f = match (is_left, is_wrap) {
                    (true, true) => I3::ShfLeftWrap,
                    (true, false) => I3::ShfLeftClamp,
                    (false, true) => I3::ShfRightWrap,
                    (false, false) => I3::ShfRightClamp,
                };
                self.int3(f, 0, o)
            }
            ("bfe", 4) => self.int3(if ty.is_signed() { I3::BfeS } else { I3::BfeU }, 0, o),
            ("bfe", 8) => {
                let (d, a) = (self.dst(self.arg(o, 0)?, ty)?, self.src64(self.arg(o, 1)?, ty)?);
                let (b, c) = (self.src32(self.arg(o, 2)?, Type::U32)?, self.src32(self.arg(o, 3)?, Type::U32)?);
                self.push(Op::Bfe64 { is_signed: ty.is_signed(), d, a, b, c });
                Ok(Class::Integer)
            }
            ("bfi", 4 | 8) => {
                let d = self.dst(self.arg(o, 0)?, ty)?;
                let (a, b) = (self.src(self.arg(o, 1)?, ty)?, self.src(self.arg(o, 2)?, ty)?);
                let (c, e) = (self.src32(self.arg(o, 3)?, Type::U32)?, self.src32(self.arg(o, 4)?, Type::U32)?);
                self.push(if ty.bytes() == 8 { Op::Bfi64 { d, a, b, c, e } } else { Op::Bfi { d, a, b, c, e } });
                Ok(Class::Integer)
            }
            ("szext", 4) => {
                // The low `b` bits of `a`, extended: a bit field from 0 on.
                m.one_of(&["clamp", "wrap"]);
                let (d, a) = (self.dst(self.arg(o, 0)?, ty)?, self.src32(self.arg(o, 1)?, ty)?);
                let (b, c) = (self.constant32(0), self.src32(self.arg(o, 2)?, Type::U32)?);
                let f = if ty.is_signed() { I3::BfeS } else { I3::BfeU };
                self.push(Op::Int3 { f, k: 0, d, a, b, c });
                Ok(Class::Integer)
            }
            ("bmsk", 4) => {
                m.one_of(&["clamp", "wrap"]);
                let d = self.dst(self.arg(o, 0)?, ty)?;
                let (ones, zero) = (self.constant32(u32::MAX), self.constant32(0));
                let (c, e) = (self.src32(self.arg(o, 1)?, ty)?, self.src32(self.arg(o, 2)?, ty)?);
                self.push(Op::Bfi { d, a: ones, b: zero, c, e });
                Ok(Class::Integer)
            }
            _ => Err(self.wrong("this width is not emulated")),
        }
    }

    fn int3(&mut self, f: I3, k: u8, o: &[Operand]) -> Result<Class> {
        let d = self.dst(self.arg(o, 0)?, Type::B32)?;
        let a = self.src32(self.arg(o, 1)?, Type::B32)?;
        let b = self.src32(self.arg(o, 2)?, Type::B32)?;
        let c = self.src32(self.arg(o, 3)?, Type::B32)?;
        self.push(Op::Int3 { f, k, d, a, b, c });
        Ok(Class::Integer)
    }

    fn slct(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let (by, ty) = (self.type_at_end(m)?, self.type_at_end(m)?);
        m.has("ftz");
        let d = self.dst(self.arg(o, 0)?, ty)?;
        let (a, b) = (self.src(self.arg(o, 1)?, ty)?, self.src(self.arg(o, 2)?, ty)?);
        let c = self.src32(self.arg(o, 3)?, by)?;
        let is_float = by == Type::F32;
        let f = if is_float { I3::SlctF } else { I3::SlctS };
        self.push(if ty.bytes() == 8 { Op::Slct64 { is_float, d, a, b, c } } else { Op::Int3 { f, k: 0, d, a, b, c } });
        Ok(Class::Integer)
    }

    fn unary(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        if ty == Type::Pred {
            let (d, a) = (self.predicate_dst(self.arg(o, 0)?)?, self.predicate(self.arg(o, 1)?)?);
            self.push(Op::Predicate { f: Logic::Not, d, a, b: FALSE });
            return Ok(Class::Integer);
        }
        if ty.is_float() {
            return self.float1(first, ty, m, o);
        }
        let f = match first {
            "neg" => I1::Neg,
            "abs" => I1::Abs,
            "not" => I1::Not,
            "cnot" => I1::Cnot,
            "brev" => I1::Brev,
            "clz" => I1::Clz,
            "popc" => I1::Popc,
            "bfind" => match (m.has("shiftamt"), ty.is_signed()) {
                (false, false) => I1::FindU,
                (false, true) => I1::FindS,
                (true, false) => I1::FindShiftU,
                (true, true) => I1::FindShiftS,
            },
            _ => return Err(self.wrong(format!("{first} of integers is not emulated"))),
        };
        let is_count = matches!(f, I1::Clz | I1::Popc | I1::FindS | I1::FindU | I1::FindShiftS | I1::FindShiftU);
        let d = self.dst(self.arg(o, 0)?, if is_count { Type::B32 } else { ty })?;
        let a = self.src(self.arg(o, 1)?, ty)?;
        self.push(match ty.bytes() {
            8 if is_count => Op::Count64 { f, d, a },
            8 => Op::Long1 { f, d, a },
            4 => Op::Int1 { f, d, a },
            _ => Op::Short1 { f, d, a },
        });
        Ok(Class::Integer)
    }

    fn float1(&mut self, first: &str, ty: Type, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let f = match first {
            "neg" => F1::Neg,
            "abs" => F1::Abs,
            "rcp" => F1::Rcp,
            "sqrt" => F1::Sqrt,
            "rsqrt" => F1::Rsqrt,
            "ex2" => F1::Ex2,
            "lg2" => F1::Lg2,
            "sin" => F1::Sin,
            "cos" => F1::Cos,
            "tanh" => F1::Tanh,
            _ => return Err(self.wrong(format!("{first} of floats is not emulated"))),
        };
        m.has("approx");
        let mode = mode(m).pack();
        let (d, a) = (self.dst(self.arg(o, 0)?, ty)?, self.src(self.arg(o, 1)?, ty)?);
        self.push(match (ty, number(ty)) {
            (Type::F32, _) => Op::Float1 { f, mode, d, a },
            (Type::F64, _) => Op::Double1 { f, mode, d, a },
            (_, Some(n)) if is_half(ty) => Op::Half1 { n, f, mode, d, a },
            _ => return Err(self.wrong("this float type has no arithmetic")),
        });
        Ok(if matches!(f, F1::Neg | F1::Abs) { Class::Float } else { Class::Special })
    }

    fn comparison(&self, m: &mut Modifiers, is_unsigned: bool) -> Result<Compare> {
        let word = m.shift().unwrap_or_default();
        Ok(match word {
            "eq" => Compare::Eq,
            "ne" => Compare::Ne,
            "lt" | "lo" => Compare::Lt,
            "le" | "ls" => Compare::Le,
            "gt" => Compare::Gt,
            "hi" if is_unsigned => Compare::Gt,
            "ge" | "hs" => Compare::Ge,
            "equ" => Compare::Equ,
            "neu" => Compare::Neu,
            "ltu" => Compare::Ltu,
            "leu" => Compare::Leu,
            "gtu" => Compare::Gtu,
            "geu" => Compare::Geu,
            "num" => Compare::Num,
            "nan" => Compare::Nan,
            _ => return Err(self.wrong(format!("the comparison {word} is not known"))),
        })
    }

    fn compare(&mut self, first: &str, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        let gives = if first == "set" { Some(self.type_at_end(m)?) } else { None };
        let f = self.comparison(m, !ty.is_signed() && !ty.is_float())?;
        let with = match m.one_of(&["and", "or", "xor"]) {
            Some("and") => Combine::And,
            Some("or") => Combine::Or,
            Some("xor") => Combine::Xor,
            _ => Combine::None,
        };
        // Comparison sees subnormal inputs as zero under `ftz`; that changes a result only between two of them.
        m.has("ftz");
        let n = number(ty).ok_or_else(|| self.wrong("this type cannot be compared"))?;
        let (a, b) = (self.src(self.arg(o, 1)?, ty)?, self.src(self.arg(o, 2)?, ty)?);
        let c = if with == Combine::None { TRUE } else { self.predicate(self.arg(o, 3)?)? };
        if let Some(gives) = gives {
            let d = self.dst(self.arg(o, 0)?, Type::B32)?;
            self.push(Op::Set { n, f, with, gives_float: gives == Type::F32, d, a, b, c });
            return Ok(Class::Integer);
        }
        let (p, q) = match self.arg(o, 0)? {
            Operand::Pair(p, q) => (self.predicate_dst(p)?, self.predicate_dst(q)?),
            p => (self.predicate_dst(p)?, SINK),
        };
        self.push(Op::Setp { n, f, with, p, q, a, b, c });
        Ok(if ty.is_float() { Class::Float } else { Class::Integer })
    }

    fn select(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        let d = self.dst(self.arg(o, 0)?, ty)?;
        let (a, b) = (self.src(self.arg(o, 1)?, ty)?, self.src(self.arg(o, 2)?, ty)?);
        let p = self.predicate(self.arg(o, 3)?)?;
        self.push(if ty.bytes() == 8 { Op::Select64 { d, a, b, p } } else { Op::Select { d, a, b, p } });
        Ok(Class::Integer)
    }

    fn testp(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        let kinds = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let k = kinds.iter().position(|k| m.has(k)).ok_or_else(|| self.wrong("expected a property"))? as u8;
        let (p, a) = (self.predicate_dst(self.arg(o, 0)?)?, self.src(self.arg(o, 1)?, ty)?);
        self.push(Op::Testp { k, is_double: ty == Type::F64, p, a });
        Ok(Class::Float)
    }

    fn convert(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let (from, to) = (self.type_at_end(m)?, self.type_at_end(m)?);
        let mode = mode(m).pack();
        let a = self.convert_source(self.arg(o, 1)?, from)?;
        let b = if o.len() > 2 { self.src(self.arg(o, 2)?, from)? } else { self.constant32(0) };
        let is_wide = matches!(self.arg(o, 0)?, Operand::Register(r) if self.type_of(*r).bytes() == 8);
        if is_wide && to.bytes() < 8 {
            let d = self.temp32();
            self.push(Op::Convert { to, from, mode, d, a, b });
            let wide = if to.is_signed() { Type::S64 } else { Type::U64 };
            let (a, d, mode) = (d, self.dst(self.arg(o, 0)?, wide)?, Mode::default().pack());
            self.push(Op::Convert { to: wide, from: to, mode, d, a, b: a });
        } else {
            let d = self.dst(self.arg(o, 0)?, to)?;
            self.push(Op::Convert { to, from, mode, d, a, b });
        }
        Ok(Class::Convert)
    }

    /// The source of a conversion, which may be wider than its type.
    fn convert_source(&mut self, operand: &Operand, from: Type) -> Result<Row> {
        match operand {
            Operand::Register(r) if self.type_of(*r).bytes() == 8 && from.bytes() < 8 => {
                let (a, d) = (self.src64(operand, Type::B64)?, self.temp32());
                self.push(Op::Unpack64 { d, e: SINK, a });
                Ok(d)
            }
            _ => self.src(operand, from),
        }
    }

    fn mov(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        let ty = self.type_at_end(m)?;
        match (self.arg(o, 0)?, self.arg(o, 1)?) {
            (d, a) if ty == Type::Pred => {
                let (d, a) = (self.predicate_dst(d)?, self.predicate(a)?);
                self.push(Op::Predicate { f: Logic::Mov, d, a, b: FALSE });
            }
            (Operand::Vector(d), a) => self.unpack(ty, d, a)?,
            (d, Operand::Vector(a)) => self.pack(ty, d, a)?,
            (d, Operand::Special(name)) => {
                let (which, d) = (self.special(name)?, self.dst(d, ty)?);
                self.push(if ty.bytes() == 8 { Op::Special64 { which, d } } else { Op::Special { which, d } });
            }
            (d, a) => {
                let (d, a) = (self.dst(d, ty)?, self.src(a, ty)?);
                let f = I1::Mov;
                self.push(if ty.bytes() == 8 { Op::Long1 { f, d, a } } else { Op::Int1 { f, d, a } });
            }
        }
        Ok(Class::Integer)
    }

    fn rows4(rows: &[Row]) -> Option<[Row; 4]> {
        rows.try_into().ok()
    }

    fn unpack(&mut self, ty: Type, d: &[Operand], a: &Operand) -> Result<()> {
        let part = if d.len() * 4 == ty.bytes() { Type::B32 } else { Type::B16 };
        let rows: Vec<Row> = d.iter().map(|d| self.dst(d, part)).collect::<Result<_>>()?;
        let a = self.src(a, ty)?;
        self.push(match (ty.bytes(), &rows[..]) {
            (8, &[d, e]) => Op::Unpack64 { d, e, a },
            (4, &[d, e]) => Op::Unpack32 { d, e, a },
            (8, rows) => match Self::rows4(rows) {
                Some(d) => Op::Unpack16x4 { d, a },
                None => return Err(self.wrong("this split is not emulated")),
            },
            _ => return Err(self.wrong("this split is not emulated")),
        });
        Ok(())
    }

    fn pack(&mut self, ty: Type, d: &Operand, a: &[Operand]) -> Result<()> {
        let part = if a.len() * 4 == ty.bytes() { Type::B32 } else { Type::B16 };
        let rows: Vec<Row> = a.iter().map(|a| self.src32(a, part)).collect::<Result<_>>()?;
        let d = self.dst(d, ty)?;
        self.push(match (ty.bytes(), &rows[..]) {
            (8, &[a, b]) => Op::Pack64 { d, a, b },
            (4, &[a, b]) => Op::Pack32 { d, a, b },
            (8, rows) => match Self::rows4(rows) {
                Some(a) => Op::Pack16x4 { d, a },
                None => return Err(self.wrong("this packing is not emulated")),
            },
            _ => return Err(self.wrong("this packing is not emulated")),
        });
        Ok(())
    }
}
