//! Operands of the steps that have too many for [`Op`](super::op::Op): they stand in side tables of the code.

use super::op::{I2, Row};
use super::syntax::Type;

/// State spaces of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    /// The block's own shared memory.
    Shared,
    /// Shared memory of any block of the cluster.
    Cluster,
    Local,
    Param,
    /// The address says which.
    Generic,
}

/// Where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    None,
    Row32(Row),
    Row64(Row),
}

/// An address of each lane: a register plus a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub space: Space,
    pub base: Base,
    pub offset: i64,
}

/// A load or store of up to eight numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryOp {
    pub address: Address,
    /// Bytes of one number.
    pub bytes: u8,
    pub is_signed: bool,
    pub count: u8,
    pub rows: [Row; 8],
    /// Whether the rows are of the 64-bit file.
    pub is_long: bool,
    /// Volatile, relaxed or stronger: may meet other warps' accesses without a barrier.
    pub is_strong: bool,
    /// For atomics: what is done; `rows` are result, operand, second operand.
    pub atomic: Option<(Update, Type)>,
}

/// What an atomic instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Update {
    Integer(I2),
    FloatAdd,
    FloatMin,
    FloatMax,
    Exchange,
    CompareExchange,
    /// Up to a limit, then from zero.
    Increment,
    /// Down to zero, then from a limit.
    Decrement,
}

/// A barrier of the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bar {
    pub id: Row,
    /// How many threads take part; none for all.
    pub count: Option<Row>,
    pub kind: BarKind,
    /// Result: a row for a count, a predicate for and, or.
    pub d: Row,
    /// The predicate that is reduced.
    pub p: Row,
    /// Whether all threads of the warp must execute it together.
    pub is_aligned: bool,
}

/// What a barrier does beside waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BarKind {
    Sync,
    Arrive,
    Count,
    And,
    Or,
}
