//! What the arithmetic of a step computes, and how it rounds.

/// Integer functions of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum I2 {
    Add,
    Sub,
    Mul,
    MulHiS,
    MulHiU,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
    Shl,
    ShrS,
    ShrU,
    AddSat,
    SubSat,
    Mul24S,
    Mul24U,
    Mul24HiS,
    Mul24HiU,
}

/// Integer functions of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum I1 {
    Mov,
    Neg,
    Abs,
    Not,
    Cnot,
    Brev,
    Clz,
    Popc,
    FindS,
    FindU,
    FindShiftS,
    FindShiftU,
}

/// Integer functions of three 32-bit numbers; the byte beside it is a table or a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum I3 {
    Mad,
    MadHiS,
    MadHiU,
    BfeS,
    BfeU,
    Lop3,
    Prmt,
    ShfLeftWrap,
    ShfLeftClamp,
    ShfRightWrap,
    ShfRightClamp,
    SadS,
    SadU,
    Dp4a,
    Dp2a,
    Mad24S,
    Mad24U,
    Mad24HiS,
    Mad24HiU,
    /// `c >= 0 ? a : b`, the comparison as integer or float.
    SlctS,
    SlctF,
}

/// Float functions of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum F2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Copysign,
}

/// Float functions of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum F1 {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// How a float is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Round {
    #[default]
    Nearest,
    Zero,
    Down,
    Up,
    /// To nearest, ties away from zero (tf32).
    Away,
}

/// Modifiers of float instructions and conversions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mode {
    pub round: Round,
    /// Subnormal inputs and results become zero.
    pub ftz: bool,
    /// Results are clamped to `[0, 1]`, or conversions to the range of the integer.
    pub sat: bool,
    /// A NaN operand gives NaN (min, max).
    pub nan: bool,
    /// The result has the xor of the signs, of magnitudes compared (min, max).
    pub xorsign: bool,
    /// Negative results become zero.
    pub relu: bool,
    /// Too large becomes the largest finite number.
    pub satfinite: bool,
    /// The conversion rounds to an integral value.
    pub integral: bool,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// How the result of a comparison is combined with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combine {
    None,
    And,
    Or,
    Xor,
}

/// Types as arithmetic sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
    F32,
    F64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
}

/// Registers that say where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMask(Compare),
    Clock,
    ClockHi,
    TimerLo,
    TimerHi,
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtaRank,
    ClusterNctaRank,
    IsExplicitCluster,
    DynamicSharedBytes,
    TotalSharedBytes,
    AggregateSharedBytes,
    Zero,
}

/// Exchange between lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// Votes of lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Logic of predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
    Mov,
    Not,
}

/// A mode in one byte: rounding in the low three bits, then a bit a flag.
impl Mode {
    pub(super) fn pack(self) -> u8 {
        let round = match self.round {
            Round::Nearest => 0,
            Round::Zero => 1,
            Round::Down => 2,
            Round::Up => 3,
            Round::Away => 4,
        };
        // `nan` and `xorsign` belong to min and max, `relu` and `satfinite` to conversions, so they share bits where they must.
        round
            | u8::from(self.ftz) << 3
            | u8::from(self.sat) << 4
            | u8::from(self.nan || self.satfinite) << 5
            | u8::from(self.xorsign || self.relu) << 6
            | u8::from(self.integral) << 7
    }

    #[inline(always)]
    pub(super) fn unpack(bits: u8) -> Mode {
        let round = match bits & 7 {
            0 => Round::Nearest,
            1 => Round::Zero,
            2 => Round::Down,
            3 => Round::Up,
            _ => Round::Away,
        };
        Mode {
            round,
            ftz: bits & 8 != 0,
            sat: bits & 16 != 0,
            nan: bits & 32 != 0,
            satfinite: bits & 32 != 0,
            xorsign: bits & 64 != 0,
            relu: bits & 64 != 0,
            integral: bits & 128 != 0,
        }
    }
}
