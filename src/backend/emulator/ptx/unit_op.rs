//! Operands of matrix instructions and of `cp.async`.

use super::long_op::Address;
use super::op::Row;
use super::units::mma::Mma;

/// An instruction of a unit beside the arithmetic.
#[derive(Clone, Debug)]
pub(super) enum Unit {
    /// Copies `bytes` from global to shared memory, of which `size` come from there and the rest are zero.
    Copy {
        bytes: u8,
        to: Address,
        from: Address,
        size: Option<Row>,
        is_ignored: Option<Row>,
    },
    /// The copies since the last commit become a group.
    Commit,
    /// Waits until at most so many groups are under way; `None`: for all copies, committed or not.
    Wait {
        most: Option<u32>,
    },
    /// An arrival at an mbarrier when the copies so far are done.
    CopyArrive {
        at: Address,
        is_counted: bool,
    },
    LoadMatrix {
        at: Address,
        is_transposed: bool,
        rows: Vec<Row>,
    },
    StoreMatrix {
        at: Address,
        is_transposed: bool,
        rows: Vec<Row>,
    },
    MoveMatrix {
        d: Row,
        a: Row,
    },
    Mma {
        mma: Mma,
        is_long: bool,
        d: Vec<Row>,
        a: Vec<Row>,
        b: Vec<Row>,
        c: Vec<Row>,
    },
}
