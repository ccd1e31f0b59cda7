//! Rows for registers.

use super::op::{Row, SINK};
use super::syntax::{Entry, Type};

/// Which row of its file each register has.
#[derive(Debug)]
pub(super) struct Rows {
    pub row_of: Vec<Row>,
    pub rows32: Row,
    pub rows64: Row,
    pub predicates: Row,
}

/// Gives each register a row. The first two predicates are the constants.
pub(super) fn assign(entry: &Entry) -> Rows {
    let mut rows = Rows { row_of: vec![], rows32: 0, rows64: 0, predicates: 2 };
    for ty in &entry.registers {
        let next = match ty {
            Type::Pred => &mut rows.predicates,
            ty if ty.bytes() == 8 => &mut rows.rows64,
            _ => &mut rows.rows32,
        };
        rows.row_of.push(*next);
        *next = (*next + 1).min(SINK);
    }
    rows
}
