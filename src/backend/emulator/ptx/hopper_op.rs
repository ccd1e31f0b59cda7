//! Operands of what sm_90 added: barriers in shared memory, bulk copies, products of four warps.

use super::long_op::Address;
use super::op::Row;
use super::units::reduction::Reduction;
use super::units::wgmma::{Options, Wgmma};

/// An instruction of sm_90.
#[derive(Clone, Debug)]
pub(super) enum Hopper {
    /// The work since the last commit becomes a group.
    Commit { queue: Queue },
    /// Until at most `left` groups are unfinished.
    Wait { queue: Queue, left: u32 },
    /// An operation on an mbarrier.
    Barrier { at: Address, act: BarrierAct },
    /// `test_wait` and `try_wait`: `parity` a 32-bit row, or `state` a 64-bit one.
    Poll { p: Row, at: Address, parity: Option<Row>, state: Row },
    /// `mbarrier.pending_count`: `d` a 32-bit row, `state` a 64-bit one.
    PendingCount { d: Row, state: Row },
    /// A bulk copy into shared memory that completes bytes at a barrier.
    BulkLoad {
        to: Address,
        from: Source,
        barrier: Address,
        blocks: Option<Row>,
        reduction: Option<(Reduction, &'static str)>,
    },
    /// A bulk copy from shared memory that belongs to a group.
    BulkStore { to: Source, from: Address, reduction: Option<(Reduction, &'static str)> },
    /// `wgmma.mma_async`; `a` is a 64-bit row, or four 32-bit rows.
    MultiplyGroup { form: Wgmma, d: Box<[Row]>, a: Box<[Row]>, b: Row, add: Row, options: Options },
}

/// The far side of a bulk copy.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A run of bytes, as many as a 32-bit row says.
    Run { at: Address, bytes: Row },
    /// A box of a tensor: where its map lies, and a 32-bit row a coordinate.
    Box { map: Address, coordinates: Box<[Row]> },
}

/// Work that is waited for in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Bulk copies from shared memory.
    Stores,
    /// `wgmma`.
    Products,
}

/// What is done to an mbarrier; counts and bytes are 32-bit rows, the state a 64-bit destination.
#[derive(Clone, Copy, Debug)]
pub(super) enum BarrierAct {
    Init { count: Row },
    Invalidate,
    ExpectBytes { bytes: Row },
    CompleteBytes { bytes: Row },
    Arrive { state: Row, count: Option<Row>, bytes: Option<Row>, is_last_barred: bool, drops: bool },
}
