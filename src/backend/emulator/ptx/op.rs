//! Decoded instructions: no names, only numbers; what the executor's loop reads.

pub(super) use super::function::*;
use super::syntax::Type;

/// A row of a register file: one register of all lanes. From [`CONST`] on, a row of the constants of the same width.
pub(super) type Row = u16;
/// The first row that is a constant.
pub(super) const CONST: Row = 0x8000;
/// A destination that is thrown away.
pub(super) const SINK: Row = 0x7fff;
/// The predicate row that is false.
pub(super) const FALSE: Row = 0;
/// The predicate row that is true.
pub(super) const TRUE: Row = 1;
/// In a predicate operand: negated.
pub(super) const NEGATED: Row = 0x8000;

/// One step: a guard, and what is done where it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// A predicate row, with [`NEGATED`]; [`TRUE`] for none.
    pub guard: Row,
    pub op: Op,
}

/// What a step does. `d` is the destination, `a b c` sources; rows are of the 32-bit file unless the comment says 64.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Nop,
    Int1 {
        f: I1,
        d: Row,
        a: Row,
    },
    /// 64.
    Long1 {
        f: I1,
        d: Row,
        a: Row,
    },
    /// `d` 32, `a` 64.
    Count64 {
        f: I1,
        d: Row,
        a: Row,
    },
    Int2 {
        f: I2,
        d: Row,
        a: Row,
        b: Row,
    },
    Short2 {
        f: I2,
        d: Row,
        a: Row,
        b: Row,
    },
    Short1 {
        f: I1,
        d: Row,
        a: Row,
    },
    /// 64.
    Long2 {
        f: I2,
        d: Row,
        a: Row,
        b: Row,
    },
    /// `d a` 64, `b` 32.
    Shift64 {
        f: I2,
        d: Row,
        a: Row,
        b: Row,
    },
    Int3 {
        f: I3,
        k: u8,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// 64.
    Mad64 {
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// `d c` 64: the full product of `a b`, plus `c`.
    MadWide {
        is_signed: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// The full product of 16-bit numbers, plus `c`.
    MadWide16 {
        is_signed: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Bfi {
        d: Row,
        a: Row,
        b: Row,
        c: Row,
        e: Row,
    },
    /// `d a b` 64, `c e` 32.
    Bfi64 {
        d: Row,
        a: Row,
        b: Row,
        c: Row,
        e: Row,
    },
    /// `d a` 64, `b c` 32.
    Bfe64 {
        is_signed: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// Sum or difference with carry in and out, of 32-bit numbers or (`is_long`) 64.
    Carry {
        is_sub: bool,
        takes: bool,
        gives: bool,
        is_long: bool,
        d: Row,
        a: Row,
        b: Row,
    },
    /// `a·b + c` with carry, low or high half.
    MadCarry {
        is_high: bool,
        is_signed: bool,
        takes: bool,
        gives: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Select {
        d: Row,
        a: Row,
        b: Row,
        p: Row,
    },
    /// 64.
    Select64 {
        d: Row,
        a: Row,
        b: Row,
        p: Row,
    },
    /// `d a b` 64, `c` 32.
    Slct64 {
        is_float: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// `p|q` predicates; `c` a predicate operand.
    Setp {
        n: Number,
        f: Compare,
        with: Combine,
        p: Row,
        q: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// All ones or 1.0 into a 32-bit row.
    Set {
        n: Number,
        f: Compare,
        with: Combine,
        gives_float: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Predicate {
        f: Logic,
        d: Row,
        a: Row,
        b: Row,
    },
    /// `d` 64.
    Pack64 {
        d: Row,
        a: Row,
        b: Row,
    },
    /// `a` 64.
    Unpack64 {
        d: Row,
        e: Row,
        a: Row,
    },
    Pack32 {
        d: Row,
        a: Row,
        b: Row,
    },
    Unpack32 {
        d: Row,
        e: Row,
        a: Row,
    },
    /// `d` 64, four 16-bit rows.
    Pack16x4 {
        d: Row,
        a: [Row; 4],
    },
    /// `a` 64.
    Unpack16x4 {
        d: [Row; 4],
        a: Row,
    },
    Special {
        which: Special,
        d: Row,
    },
    /// `d` 64.
    Special64 {
        which: Special,
        d: Row,
    },
    Float1 {
        f: F1,
        mode: u8,
        d: Row,
        a: Row,
    },
    Float2 {
        f: F2,
        mode: u8,
        d: Row,
        a: Row,
        b: Row,
    },
    Fma {
        mode: u8,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// 64.
    Double1 {
        f: F1,
        mode: u8,
        d: Row,
        a: Row,
    },
    /// 64.
    Double2 {
        f: F2,
        mode: u8,
        d: Row,
        a: Row,
        b: Row,
    },
    /// 64.
    DoubleFma {
        mode: u8,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Half1 {
        n: Number,
        f: F1,
        mode: u8,
        d: Row,
        a: Row,
    },
    Half2 {
        n: Number,
        f: F2,
        mode: u8,
        d: Row,
        a: Row,
        b: Row,
    },
    HalfFma {
        n: Number,
        mode: u8,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// `.finite .infinite .number .notanumber .normal .subnormal` as 0 to 5; `is_double`: `a` 64.
    Testp {
        k: u8,
        is_double: bool,
        p: Row,
        a: Row,
    },
    /// `d a` in the file of the type's width; `b` the lower half of a packed result.
    Convert {
        to: Type,
        from: Type,
        mode: u8,
        d: Row,
        a: Row,
        b: Row,
    },
    Load(u32),
    Store(u32),
    Atomic(u32),
    /// 64: an address out of, or (`is_into`) into, the window of a space.
    Window {
        base: u64,
        is_into: bool,
        d: Row,
        a: Row,
    },
    /// Whether the generic address `a` (64) lies in a window.
    IsSpace {
        base: u64,
        p: Row,
        a: Row,
    },
    Branch {
        to: u32,
    },
    /// To one of a list, by the number in `a`.
    Table {
        list: u32,
        a: Row,
    },
    Exit,
    Trap,
    Shuffle {
        f: Shuffle,
        d: Row,
        p: Row,
        a: Row,
        b: Row,
        c: Row,
        mask: Row,
    },
    /// `d` a row for a ballot, else a predicate; `a` a predicate operand.
    Vote {
        f: Vote,
        d: Row,
        a: Row,
        mask: Row,
    },
    /// `is_all`: with a predicate `p`; `is_long`: `a` 64.
    Match {
        is_all: bool,
        is_long: bool,
        d: Row,
        p: Row,
        a: Row,
        mask: Row,
    },
    ActiveMask {
        d: Row,
    },
    Elect {
        d: Row,
        p: Row,
        mask: Row,
    },
    /// Reduction over lanes: a function, signedness in it.
    Redux {
        f: I2,
        d: Row,
        a: Row,
        mask: Row,
    },
    WarpSync {
        mask: Row,
    },
    Barrier(u32),
    ClusterArrive,
    ClusterWait,
    Fence,
    Nanosleep,
    /// `mapa`: `d a` 64 if `is_long`; `b` the rank.
    MapRank {
        is_long: bool,
        is_generic: bool,
        d: Row,
        a: Row,
        b: Row,
    },
    /// `getctarank` of an address.
    RankOf {
        is_long: bool,
        d: Row,
        a: Row,
    },
    /// Matrix instructions of a warp and `cp.async`, by their number in the side table.
    Unit(u32),
    /// What sm_90 added, by its number in the side table.
    Hopper(u32),
}
