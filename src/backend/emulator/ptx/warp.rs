//! A warp: its registers, and which lanes stand where.

use super::asynchronous::Queues;
use super::code::Code;
use super::op::{CONST, NEGATED, Row, SINK};
use super::unit::CopyQueue;

/// A 32-bit register of all lanes.
pub(super) type Lanes32 = [u32; 32];
/// A 64-bit register of all lanes.
pub(super) type Lanes64 = [u64; 32];

/// Lanes that stand at the same step.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub pc: u32,
    pub mask: u32,
    /// How often it gave way to other groups of the warp; the lowest goes first.
    pub rank: u64,
    pub wait: Wait,
}

/// What a group of lanes waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    /// A barrier of the block; when it opens, the group goes on behind the instruction.
    Barrier(u8),
    /// The barrier of the cluster, of this phase.
    Cluster(u64),
    /// A phase of an mbarrier; the instruction is tried again when it is over.
    Phase {
        block: u32,
        at: u32,
        parity: bool,
    },
    /// Lanes of the warp that must execute the same instruction with it, or may have exited instead.
    Lanes {
        may_exit: bool,
    },
    /// Waited in vain while nobody else could move: the instruction answers no.
    TimedOut,
}

/// Registers and control of one warp.
#[derive(Debug, Default)]
pub(super) struct Warp {
    pub r: Vec<Lanes32>,
    pub d: Vec<Lanes64>,
    pub p: Vec<u32>,
    pub carry: u32,
    pub groups: Vec<Group>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Number of its block in the cluster.
    pub block: usize,
    /// Number in its block.
    pub index: u32,
    /// Number in the cluster.
    pub id: usize,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    pub turn: u64,
    pub copies: CopyQueue,
    /// Bulk stores and products that it has started.
    pub queues: Queues,
    /// The phase of the cluster's barrier at which it last arrived.
    pub cluster_phase: u64,
}

impl Warp {
    /// Ready to run `code` from its first step with `lanes` lanes.
    pub(super) fn reset(&mut self, code: &Code, lanes: u32) {
        // Registers that nobody has written hold what poisoned memory holds.
        self.r.clear();
        self.r.resize(code.rows32, [u32::MAX; 32]);
        self.d.clear();
        self.d.resize(code.rows64, [u64::MAX; 32]);
        self.p.clear();
        self.p.resize(code.predicates, 0);
        self.p[1] = u32::MAX;
        self.carry = 0;
        self.live = if lanes >= 32 { u32::MAX } else { (1 << lanes) - 1 };
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: self.live, rank: 0, wait: Wait::No });
        self.local.clear();
        self.local.resize(code.local_bytes * 32, 0xFF);
        self.turn = 0;
        self.copies.clear();
        self.queues = Queues::default();
        self.cluster_phase = 0;
    }

    /// A source row.
    #[inline(always)]
    pub(super) fn r<'a>(&'a self, code: &'a Code, row: Row) -> &'a Lanes32 {
        if row < CONST { &self.r[row as usize] } else { &code.consts32[(row & !CONST) as usize] }
    }

    /// A 64-bit source row.
    #[inline(always)]
    pub(super) fn d<'a>(&'a self, code: &'a Code, row: Row) -> &'a Lanes64 {
        if row < CONST { &self.d[row as usize] } else { &code.consts64[(row & !CONST) as usize] }
    }

    /// A predicate operand.
    #[inline(always)]
    pub(super) fn p(&self, row: Row) -> u32 {
        let bits = self.p[(row & !NEGATED) as usize];
        if row & NEGATED != 0 { !bits } else { bits }
    }

    #[inline(always)]
    pub(super) fn set(&mut self, row: Row, mask: u32, value: &Lanes32) {
        let Some(to) = self.r.get_mut(row as usize) else { return };
        if mask == u32::MAX {
            *to = *value;
        } else {
            for l in 0..32 {
                to[l] = if mask >> l & 1 != 0 { value[l] } else { to[l] };
            }
        }
    }

    #[inline(always)]
    pub(super) fn set64(&mut self, row: Row, mask: u32, value: &Lanes64) {
        let Some(to) = self.d.get_mut(row as usize) else { return };
        if mask == u32::MAX {
            *to = *value;
        } else {
            for l in 0..32 {
                to[l] = if mask >> l & 1 != 0 { value[l] } else { to[l] };
            }
        }
    }

    #[inline(always)]
    pub(super) fn set_p(&mut self, row: Row, mask: u32, value: u32) {
        if row != SINK {
            let to = &mut self.p[row as usize];
            *to = (*to & !mask) | (value & mask);
        }
    }
}

/// The numbers of the lanes in `mask`.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            lane
        })
    })
}
