//! What PTX text says, before it is decoded: declarations, and instructions as words and operands.

use std::ops::Range;

/// Number types of registers and instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Tf32,
    E4m3x2,
    E5m2x2,
}

impl Type {
    pub(super) fn parse(name: &str) -> Option<Type> {
        use Type::*;
        Some(match name {
            "pred" => Pred,
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "b128" => B128,
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "f32" => F32,
            "f64" => F64,
            "tf32" => Tf32,
            "e4m3x2" => E4m3x2,
            "e5m2x2" => E5m2x2,
            _ => return None,
        })
    }

    /// Bytes of one number; a predicate has none.
    pub(super) fn bytes(self) -> usize {
        use Type::*;
        match self {
            Pred => 0,
            B8 | U8 | S8 => 1,
            B16 | U16 | S16 | F16 | Bf16 | E4m3x2 | E5m2x2 => 2,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 | Tf32 => 4,
            B64 | U64 | S64 | F64 => 8,
            B128 => 16,
        }
    }

    pub(super) fn is_signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    pub(super) fn is_float(self) -> bool {
        use Type::*;
        matches!(self, F16 | F16x2 | Bf16 | Bf16x2 | F32 | F64 | Tf32 | E4m3x2 | E5m2x2)
    }
}

/// A register of an entry, by its place in [`Entry::registers`].
pub(super) type Register = u32;

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Register(Register),
    /// `!%p`.
    Not(Register),
    Integer(i128),
    Float(f64),
    /// `0f3F800000`: the bits of an f32.
    Bits32(u32),
    /// `0d3FF0000000000000`: the bits of an f64.
    Bits64(u64),
    /// A variable or parameter, with an offset.
    Symbol(Box<str>, i64),
    /// A place in the code, by the number of the line after it.
    Label(usize),
    /// `%tid.x` and the like.
    Special(Box<str>),
    /// `{%r1, %r2}`.
    Vector(Vec<Operand>),
    /// `[%rd1+8]`; further operands inside the brackets follow the first.
    Address(Vec<Operand>, i64),
    /// `%r1|%p1`.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`.
    Sink,
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// The predicate and whether it is negated.
    pub guard: Option<(Register, bool)>,
    /// The opcode with its modifiers.
    pub name: Box<str>,
    pub operands: Vec<Operand>,
    /// Its place in the text.
    pub text: Range<usize>,
}

/// A parameter of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the text.
    pub name: Box<str>,
    /// Its bytes.
    pub bytes: usize,
    /// Its alignment.
    pub align: usize,
    /// Where it starts in the parameter space.
    pub offset: usize,
}

/// A variable in shared, local, global or constant memory.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub name: Box<str>,
    pub bytes: usize,
    pub align: usize,
    /// Declared `extern`, or with `[]`: dynamic shared memory.
    pub is_dynamic: bool,
    /// Initial bytes; the rest is zero.
    pub initial: Vec<u8>,
    /// Addresses in the initial bytes: offset and symbol.
    pub pointers: Vec<(usize, Box<str>)>,
}

/// A kernel as written.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub name: Box<str>,
    pub parameters: Vec<Parameter>,
    pub registers: Vec<Type>,
    pub shared: Vec<Variable>,
    pub local: Vec<Variable>,
    pub lines: Vec<Line>,
    /// `.maxntid` or `.reqntid`.
    pub max_threads: Option<u32>,
    /// `.reqnctapercluster`.
    pub cluster: Option<[u32; 3]>,
}

/// A translation unit as written.
#[derive(Clone, Debug, Default)]
pub(super) struct Unit {
    pub target: Box<str>,
    pub entries: Vec<Entry>,
    /// `.global` and `.const` variables.
    pub globals: Vec<Variable>,
    /// Shared variables outside entries: dynamic shared memory.
    pub shared: Vec<Variable>,
}
