//! Execution of matrix instructions of a warp and of `cp.async`.

use std::collections::VecDeque;

use super::cluster::{Cluster, Run, refused, trouble, trouble_at};
use super::exec::Flow;
use super::long_op::{Address, Space};
use super::op::Row;
use super::races::{How, Knowledge};
use super::unit_op::Unit;
use super::units::matrix::{ldmatrix, movmatrix, stmatrix, used_rows};
use super::units::mbarrier::Barrier;
use super::units::{self, Lanes, Misuse, accumulate::Core, bank};
use super::warp::{Warp, lanes};

/// One lane's copy.
#[derive(Clone, Copy, Debug)]
struct Copy {
    lane: u8,
    bytes: u8,
    /// Bytes that come from memory; the rest are zero.
    size: u8,
    to: u32,
    from: u64,
}

/// Copies that are waited for together, and what is known when they are done.
#[derive(Debug, Default)]
pub(super) struct Copies {
    list: Vec<Copy>,
    known: Knowledge,
}

/// The asynchronous copies of a warp.
#[derive(Debug, Default)]
pub(super) struct CopyQueue {
    open: Copies,
    groups: VecDeque<Copies>,
}

impl CopyQueue {
    pub(super) fn clear(&mut self) {
        *self = CopyQueue::default();
    }
}

/// Shared memory of one block as a unit sees it; accesses of `agent`.
pub(super) struct SharedMemory<'c, 'a> {
    pub cluster: &'c mut Cluster<'a>,
    pub block: usize,
    pub agent: usize,
}

impl units::Space for SharedMemory<'_, '_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> units::Result<()> {
        let how = How { is_write: false, is_strong: false };
        let (block, at) = self.cluster.shared_place(self.block, address, into.len(), 1).map_err(Misuse::new)?;
        self.cluster.note(self.agent, block, at, into.len(), how).map_err(Misuse::new)?;
        into.copy_from_slice(&self.cluster.blocks[block].shared[at..at + into.len()]);
        self.cluster.counters.shared.loaded += into.len() as u64;
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> units::Result<()> {
        let how = How { is_write: true, is_strong: false };
        let (block, at) = self.cluster.shared_place(self.block, address, from.len(), 1).map_err(Misuse::new)?;
        self.cluster.note(self.agent, block, at, from.len(), how).map_err(Misuse::new)?;
        self.cluster.blocks[block].shared[at..at + from.len()].copy_from_slice(from);
        self.cluster.counters.shared.stored += from.len() as u64;
        Ok(())
    }
}

/// A unit's refusal as trouble of the warp.
pub(super) fn misused<T>(result: units::Result<T>) -> Run<T> {
    result.or_else(|misuse| trouble(misuse.words()))
}

impl Cluster<'_> {
    /// Executes an instruction of the side table.
    pub(super) fn unit(&mut self, w: &mut Warp, g: usize, pc: u32, number: u32, m: u32) -> Run<Flow> {
        let code = self.code;
        let unit = &code.units[number as usize];
        match unit {
            Unit::Copy { bytes, to, from, size, is_ignored } => {
                self.start_copies(w, m, usize::from(*bytes), [to, from], *size, *is_ignored)?;
                return Ok(Flow::Next);
            }
            Unit::Commit => {
                let group = std::mem::take(&mut w.copies.open);
                w.copies.groups.push_back(group);
                return Ok(Flow::Next);
            }
            Unit::Wait { most } => {
                self.wait_copies(w, *most)?;
                return Ok(Flow::Next);
            }
            Unit::CopyArrive { at, is_counted } => {
                self.arrive_after_copies(w, m, at, *is_counted)?;
                return Ok(Flow::Next);
            }
            _ => {}
        }
        if m == 0 {
            return Ok(Flow::Next);
        }
        if !self.gathered(w, g, pc, u32::MAX, true) {
            return Ok(Flow::Regroup);
        }
        if m != u32::MAX {
            return trouble(format!("divergent: expected all 32 lanes, found {m:#010x}"));
        }
        match unit {
            Unit::LoadMatrix { at, is_transposed, rows } => self.load_matrices(w, at, *is_transposed, rows)?,
            Unit::StoreMatrix { at, is_transposed, rows } => self.store_matrices(w, at, *is_transposed, rows)?,
            Unit::MoveMatrix { d, a } => {
                let out = movmatrix(&w.r(code, *a).map(u64::from));
                w.set(*d, m, &out.map(|v| v as u32));
            }
            Unit::Mma { mma, is_long, d, a, b, c } => {
                let get = |rows: &[Row]| -> Vec<Lanes> {
                    let row = |r: &Row| if *is_long { *w.d(code, *r) } else { w.r(code, *r).map(u64::from) };
                    rows.iter().map(row).collect()
                };
                let core = if code.is_hopper { Core::Hopper } else { Core::Ampere };
                let out = misused(mma.execute(core, &get(a), &get(b), &get(c)))?;
                self.counters.count_matrix(mma.kind(), mma.flops());
                for (row, value) in d.iter().zip(&out) {
                    if *is_long {
                        w.set64(*row, m, value);
                    } else {
                        w.set(*row, m, &value.map(|v| v as u32));
                    }
                }
            }
            _ => {}
        }
        Ok(Flow::Next)
    }

    /// The shared addresses of all lanes, as offsets in the block's own memory.
    fn row_addresses(&self, w: &Warp, at: &Address) -> Run<[u32; 32]> {
        let mut out = [0; 32];
        for (l, address) in Self::addresses(self.code, w, at).into_iter().enumerate() {
            let (space, address) = Self::resolve(at.space, address);
            if !matches!(space, Space::Shared | Space::Cluster) {
                return trouble_at(l, format!("expected an address in shared memory, found {address:#x}"));
            }
            out[l] = address as u32;
        }
        Ok(out)
    }

    fn load_matrices(&mut self, w: &mut Warp, at: &Address, is_transposed: bool, rows: &[Row]) -> Run<()> {
        let addresses = self.row_addresses(w, at)?;
        let passes = bank::passes_of_rows(used_rows(&addresses, rows.len()));
        self.counters.bank_conflicts += u64::from(passes.conflicts());
        let mut memory = SharedMemory { block: w.block, agent: w.id, cluster: self };
        let out = misused(ldmatrix(&addresses, rows.len(), is_transposed, &mut memory))?;
        for (row, value) in rows.iter().zip(&out) {
            w.set(*row, u32::MAX, &value.map(|v| v as u32));
        }
        Ok(())
    }

    fn store_matrices(&mut self, w: &Warp, at: &Address, is_transposed: bool, rows: &[Row]) -> Run<()> {
        let addresses = self.row_addresses(w, at)?;
        let passes = bank::passes_of_rows(used_rows(&addresses, rows.len()));
        self.counters.bank_conflicts += u64::from(passes.conflicts());
        let values: Vec<Lanes> = rows.iter().map(|r| w.r(self.code, *r).map(u64::from)).collect();
        self.progress += 1;
        let mut memory = SharedMemory { block: w.block, agent: w.id, cluster: self };
        misused(stmatrix(&addresses, &values, is_transposed, &mut memory))
    }

    /// `cp.async`: checked and known to the race detector at once; the bytes move now or at the wait.
    fn start_copies(
        &mut self,
        w: &mut Warp,
        m: u32,
        bytes: usize,
        [to, from]: [&Address; 2],
        size: Option<Row>,
        is_ignored: Option<Row>,
    ) -> Run<()> {
        let (targets, sources) = (Self::addresses(self.code, w, to), Self::addresses(self.code, w, from));
        let sizes = size.map(|row| *w.r(self.code, row));
        let ignored = is_ignored.map_or(0, |p| w.p(p));
        let agent = self.races.start(w.id);
        for l in lanes(m) {
            let (_, target) = Self::resolve(to.space, targets[l]);
            let (block, at) = self.shared_place(w.block, target, bytes, bytes).or_else(|what| trouble_at(l, what))?;
            let asked = if ignored >> l & 1 == 1 { 0 } else { sizes.map_or(bytes as u32, |s| s[l]) };
            if asked as usize > bytes {
                return trouble_at(l, format!("expected at most {bytes} bytes of source, found {asked}"));
            }
            let source = sources[l];
            if asked > 0
                && let Err(bad) = self.view.resolve(source, u64::from(asked), 1)
            {
                return trouble_at(l, refused(false, &bad));
            }
            if source % bytes as u64 != 0 {
                return trouble_at(l, format!("address {source:#x}: expected a multiple of {bytes}"));
            }
            self.note(agent, block, at, bytes, How { is_write: true, is_strong: false })
                .or_else(|what| trouble_at(l, what))?;
            self.counters.global.loaded += u64::from(asked);
            self.counters.shared.stored += bytes as u64;
            let copy = Copy { lane: l as u8, bytes: bytes as u8, size: asked as u8, to: at as u32, from: source };
            if self.is_late() {
                w.copies.open.list.push(copy);
            } else {
                self.copy(w.block, &copy)?;
            }
        }
        let done = self.races.stamp(agent);
        w.copies.open.known.join(&done);
        Ok(())
    }

    fn copy(&mut self, block: usize, copy: &Copy) -> Run<()> {
        let mut buffer = [0u8; 16];
        if copy.size > 0
            && let Err(bad) = self.view.read(copy.from, &mut buffer[..usize::from(copy.size)])
        {
            return trouble_at(usize::from(copy.lane), refused(false, &bad));
        }
        let to = copy.to as usize;
        self.blocks[block].shared[to..to + usize::from(copy.bytes)].copy_from_slice(&buffer[..usize::from(copy.bytes)]);
        self.progress += 1;
        Ok(())
    }

    fn finish_copies(&mut self, w: &Warp, copies: &Copies) -> Run<()> {
        for copy in &copies.list {
            self.copy(w.block, copy)?;
        }
        self.races.learn(w.id, &copies.known);
        Ok(())
    }

    fn wait_copies(&mut self, w: &mut Warp, most: Option<u32>) -> Run<()> {
        while w.copies.groups.len() > most.unwrap_or(0) as usize {
            if let Some(group) = w.copies.groups.pop_front() {
                self.finish_copies(w, &group)?;
            }
        }
        if most.is_none() {
            let open = std::mem::take(&mut w.copies.open);
            self.finish_copies(w, &open)?;
        }
        Ok(())
    }

    /// `cp.async.mbarrier.arrive`. The copies are done here: as late as this instruction lets them be without a queue of their
    /// own, which no wait of the issuing warp would see.
    fn arrive_after_copies(&mut self, w: &mut Warp, m: u32, at: &Address, is_counted: bool) -> Run<()> {
        let addresses = Self::addresses(self.code, w, at);
        let mut known = Knowledge::default();
        for group in w.copies.groups.iter_mut().chain(std::iter::once(&mut w.copies.open)) {
            known.join(&group.known);
            for copy in std::mem::take(&mut group.list) {
                self.copy(w.block, &copy)?;
            }
        }
        for l in lanes(m) {
            let (_, address) = Self::resolve(at.space, addresses[l]);
            let (block, at) = self.shared_place(w.block, address, 8, 8).or_else(|what| trouble_at(l, what))?;
            self.arrive_known(block, at, &known, |barrier| {
                // Without `noinc` the arrival adds to what the phase expects.
                if !is_counted {
                    barrier.add_pending(1)?;
                }
                barrier.arrive(1)
            })
            .or_else(|what| trouble_at(l, what))?;
        }
        Ok(())
    }

    /// Changes the mbarrier at a place; those who wait for its phase then know `known`.
    pub(super) fn arrive_known(
        &mut self,
        block: usize,
        at: usize,
        known: &Knowledge,
        change: impl FnOnce(&mut Barrier) -> units::Result<()>,
    ) -> Result<(), String> {
        let place = &mut self.blocks[block].shared[at..at + 8];
        let mut word = [0; 8];
        word.copy_from_slice(place);
        let mut barrier = Barrier::from_word(u64::from_le_bytes(word)).map_err(|misuse| misuse.to_string())?;
        let before = barrier.parity();
        change(&mut barrier).map_err(|misuse| misuse.to_string())?;
        place.copy_from_slice(&barrier.word().to_le_bytes());
        let meeting = self.meetings.entry((block as u32, at as u32)).or_default();
        meeting.collecting.join(known);
        if barrier.parity() != before {
            let all = std::mem::take(&mut meeting.collecting);
            meeting.known.join(&all);
        }
        self.progress += 1;
        Ok(())
    }
}
