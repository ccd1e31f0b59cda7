//! What the warps of a cluster share: shared memory, barriers, the view of global memory, counters.

use std::collections::{BTreeMap, VecDeque};

use super::asynchronous::Task;
use super::code::Code;
use super::long_op::{Address, Base, Space};
use super::races::{Agent, How, Knowledge, Races};
use super::warp::{Lanes64, Warp};
use super::window;
use crate::backend::emulator::Counters;
use crate::backend::emulator::memory::{BadAccess, View};
use crate::backend::emulator::schedule::{Asynchrony, Schedule};

/// Why a kernel cannot go on: the lane at fault, if one is, and the words.
#[derive(Debug)]
pub(super) struct Trouble {
    pub lane: Option<u32>,
    pub what: String,
}

/// Result of a step.
pub(super) type Run<T> = Result<T, Box<Trouble>>;

/// Trouble of a whole warp.
pub(super) fn trouble<T>(what: impl Into<String>) -> Run<T> {
    Err(Box::new(Trouble { lane: None, what: what.into() }))
}

/// Trouble of one lane.
pub(super) fn trouble_at<T>(lane: usize, what: impl Into<String>) -> Run<T> {
    Err(Box::new(Trouble { lane: Some(lane as u32), what: what.into() }))
}

/// A barrier of a block (`bar.sync` and its kin).
#[derive(Clone, Debug, Default)]
pub(super) struct Barrier {
    /// Threads that have arrived.
    pub arrived: u32,
    /// How many are expected; none for all that have not exited.
    pub expected: Option<u32>,
    pub known: Knowledge,
    /// Results of a reduction: threads with a true predicate, threads in all.
    pub votes: (u32, u32),
    /// Warps whose lanes wait or have arrived.
    pub warps: Vec<u32>,
}

/// A block of the cluster.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub index: [u32; 3],
    pub shared: Vec<u8>,
    pub barriers: Vec<Barrier>,
    /// Each barrier as it was when it last opened.
    pub last: Vec<Barrier>,
    /// Threads that have not exited.
    pub live: u32,
    /// Whether a warp of it has run: before, others cannot know that its memory is there.
    pub has_begun: bool,
}

/// An mbarrier or another place in shared memory through which warps learn of one another.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    /// What those know who arrived in this phase.
    pub collecting: Knowledge,
    /// What those know who arrived in phases that are over.
    pub known: Knowledge,
}

/// A barrier of the cluster.
#[derive(Debug, Default)]
pub(super) struct ClusterBarrier {
    pub arrived: u32,
    pub phase: u64,
    pub collecting: Knowledge,
    pub known: Knowledge,
}

/// Everything of a cluster but its warps.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    pub code: &'a Code,
    pub view: View,
    pub schedule: Schedule,
    pub parameters: &'a [u8],
    pub blocks: Vec<Block>,
    pub races: Races,
    pub meetings: BTreeMap<(u32, u32), Meeting>,
    /// What strong accesses to global memory have made known.
    pub global_meeting: Knowledge,
    pub barrier: ClusterBarrier,
    /// Loads under way that complete bytes at a barrier.
    pub loads: VecDeque<Task>,
    pub counters: Counters,
    /// How often each step was executed, and by how many lanes.
    pub hits: Vec<u64>,
    pub lane_hits: Vec<u64>,
    /// Grows with everything that can end a wait.
    pub progress: u64,
    pub clock: u64,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub is_explicit_cluster: bool,
    pub dynamic_shared: u32,
    pub threads: u32,
    pub warps_per_block: u32,
}

impl Cluster<'_> {
    pub(super) fn is_late(&self) -> bool {
        self.schedule.asynchrony == Asynchrony::Late
    }

    /// The addresses of all lanes, without their windows resolved.
    #[inline]
    pub(super) fn addresses(code: &Code, w: &Warp, address: &Address) -> Lanes64 {
        let mut out = [address.offset as u64; 32];
        match address.base {
            Base::None => {}
            Base::Row64(row) => {
                let base = w.d(code, row);
                for l in 0..32 {
                    out[l] = out[l].wrapping_add(base[l]);
                }
            }
            Base::Row32(row) => {
                let base = w.r(code, row);
                for l in 0..32 {
                    out[l] = out[l].wrapping_add(u64::from(base[l]));
                }
            }
        }
        out
    }

    /// Splits an address of `space` into the space that it lies in and the address there.
    #[inline]
    pub(super) fn resolve(space: Space, address: u64) -> (Space, u64) {
        match space {
            Space::Generic => match window::of(address) {
                window::SHARED => (Space::Cluster, address & !(0xff << 56)),
                window::LOCAL => (Space::Local, address & !(0xff << 56)),
                window::PARAM => (Space::Param, address & !(0xff << 56)),
                _ => (Space::Global, address),
            },
            // A 32-bit address, or the low part of a 64-bit one.
            Space::Shared | Space::Cluster => (space, address & 0xffff_ffff),
            other => (other, address),
        }
    }

    /// Whether a block's shared memory is there for another one: from its first instruction to its last.
    pub(super) fn is_within_reach(&self, own: usize, block: usize) -> Result<(), String> {
        match self.blocks.get(block) {
            _ if own == block => Ok(()),
            None => Err(format!("block {block} of a cluster of {}", self.blocks.len())),
            Some(b) if b.live == 0 => Err(format!("shared memory of block {block} of the cluster, which has ended")),
            Some(b) if !b.has_begun => Err(format!(
                "shared memory of block {block} of the cluster, which may not have begun: no barrier says so"
            )),
            Some(_) => Ok(()),
        }
    }

    /// The block and the byte of a shared address as `own` block sees it.
    pub(super) fn shared_place(
        &self,
        own: usize,
        address: u64,
        bytes: usize,
        align: usize,
    ) -> Result<(usize, usize), String> {
        let rank = (address >> window::RANK_SHIFT) as usize;
        let at = (address & ((1 << window::RANK_SHIFT) - 1)) as usize;
        let block = if rank == 0 { own } else { rank - 1 };
        let Some(len) = self.blocks.get(block).map(|b| b.shared.len()) else {
            return Err(format!("shared address {address:#x}: block {block} of a cluster of {}", self.blocks.len()));
        };
        self.is_within_reach(own, block)?;
        if !at.is_multiple_of(align) {
            return Err(format!("shared address {at:#x}: expected a multiple of {align}"));
        }
        if at + bytes > len {
            return Err(format!(
                "shared address {at:#x}: {bytes} bytes at {at} of {len} bytes of shared memory: out of bounds"
            ));
        }
        Ok((block, at))
    }

    /// Records an access to shared memory, or says which race it is.
    #[inline]
    pub(super) fn note(&mut self, agent: Agent, block: usize, at: usize, bytes: usize, how: How) -> Result<(), String> {
        self.races.access(agent, block, at, bytes, how).map_err(|race| {
            let warps = self.warps_per_block as usize;
            if self.blocks.len() > 1 {
                format!("{race} of the cluster (warp {} of its block {})", race.other % warps, race.other / warps)
            } else {
                race.to_string()
            }
        })
    }
}

/// The words of a refused access to global memory.
pub(super) fn refused(is_write: bool, bad: &BadAccess) -> String {
    format!("{} global memory: {bad}", if is_write { "write to" } else { "read of" })
}
