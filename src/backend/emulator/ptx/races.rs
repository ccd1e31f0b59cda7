//! Which accesses to shared memory are ordered: vector clocks over the warps of a cluster.
//!
//! Time is one counter for the cluster, advanced whenever somebody makes its accesses known: at a barrier, an arrival, a
//! commit. For each agent there is the time up to which it knows the accesses of each other agent; an access of another agent
//! after that time, to the same bytes, is a race if one of the two is a write. An agent is a warp, or the asynchronous work
//! that a warp has started, which is known only to who waits for it.

use std::fmt;
use std::ops::Range;

/// Number of an agent: a warp of the cluster, or [`Races::work_of`] it.
pub(super) type Agent = usize;

/// What an agent knows: a time for each agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Knowledge(Vec<u32>);

impl Knowledge {
    /// Adds what `other` knows.
    pub(super) fn join(&mut self, other: &Knowledge) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }
}

/// Two accesses that are not ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Race {
    pub at: usize,
    pub other: Agent,
    pub is_other_write: bool,
    warps: usize,
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_other_write { "a write" } else { "a read" };
        let (warp, work) = (self.other % self.warps, self.other >= self.warps);
        let work = if work { "asynchronous work started by " } else { "" };
        write!(f, "race on shared memory at byte {}: no barrier orders this after {what} by {work}warp {warp}", self.at)
    }
}

/// What is known of one word.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// When it was last written.
    written: u32,
    /// When anybody last read it.
    read: u32,
    writer: u16,
    /// Which of its bytes the last write touched.
    mask: u8,
    is_strong: bool,
}

/// How an access counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub is_write: bool,
    /// Atomic or volatile: two of them never race.
    pub is_strong: bool,
}

/// The accesses of a cluster to its shared memory.
#[derive(Debug, Default)]
pub(super) struct Races {
    warps: usize,
    time: u32,
    known: Vec<Knowledge>,
    /// Up to when each agent knows the accesses of all others.
    floor: Vec<u32>,
    is_active: Vec<bool>,
    active: Vec<Agent>,
    /// By block.
    cells: Vec<Vec<Cell>>,
    /// By block and agent: when each word was read, and which bytes, in the low four bits.
    reads: Vec<Vec<Vec<u32>>>,
}

/// The low bits of a read stamp that hold bytes.
const MASK_BITS: u32 = 4;

impl Races {
    /// Forgets all accesses: a new cluster of `blocks` blocks with `bytes` bytes and `warps` warps in all.
    pub(super) fn reset(&mut self, blocks: usize, bytes: usize, warps: usize) {
        let words = bytes.div_ceil(4);
        let is_same = self.warps == warps && self.cells.len() == blocks && self.cells.iter().all(|c| c.len() == words);
        // Stamps of earlier clusters lie before the start of this one, so the tables need no cleaning until time runs out.
        if !is_same || self.time > 1 << 26 {
            *self = Races { warps, ..Races::default() };
            self.cells = vec![vec![Cell::default(); words]; blocks];
            self.reads = vec![vec![Vec::new(); 2 * warps]; blocks];
        }
        self.time += 1;
        let start = self.time - 1;
        self.known = vec![Knowledge(vec![start; 2 * warps]); 2 * warps];
        self.floor = vec![start; 2 * warps];
        self.is_active = vec![false; 2 * warps];
        self.active.clear();
    }

    /// The agent that stands for what `warp` has started.
    pub(super) fn work_of(&self, warp: usize) -> Agent {
        self.warps + warp
    }

    fn activate(&mut self, agent: Agent) {
        if !self.is_active[agent] {
            self.is_active[agent] = true;
            self.active.push(agent);
            for other in 0..self.floor.len() {
                self.refresh(other);
            }
        }
    }

    fn refresh(&mut self, agent: Agent) {
        let known = &self.known[agent].0;
        let others = self.active.iter().filter(|&&a| a != agent);
        self.floor[agent] = others.map(|&a| known[a]).min().unwrap_or(u32::MAX);
    }

    /// What `agent` knows, its own accesses included; they are known to whoever takes this over.
    pub(super) fn publish(&mut self, agent: Agent) -> Knowledge {
        let mut known = self.known[agent].clone();
        known.0[agent] = self.time;
        self.time += 1;
        known
    }

    /// Adds to what `agent` knows.
    pub(super) fn learn(&mut self, agent: Agent, what: &Knowledge) {
        self.known[agent].join(what);
        self.refresh(agent);
    }

    /// Starts asynchronous work of `warp`: it comes after all that the warp has done. Returns what is known when it is done.
    pub(super) fn start(&mut self, warp: usize) -> Agent {
        let agent = self.work_of(warp);
        let known = self.publish(warp);
        self.learn(agent, &known);
        agent
    }

    /// The time of what `agent` has done so far, and nothing else: for waits that cover its work.
    pub(super) fn stamp(&mut self, agent: Agent) -> Knowledge {
        let mut known = Knowledge(vec![0; 2 * self.warps]);
        known.0[agent] = self.time;
        self.time += 1;
        known
    }

    /// Records an access of `agent` to `bytes` bytes of `block` at `at`.
    pub(super) fn access(&mut self, agent: Agent, block: usize, at: usize, bytes: usize, how: How) -> Result<(), Race> {
        if !self.is_active[agent] {
            self.activate(agent);
        }
        let end = at + bytes;
        let (mut words, mut masks) =
            (at / 4..end.div_ceil(4), [(15_u8 << (at % 4)) & 15, 15 >> (end.next_multiple_of(4) - end)]);
        // The first and the last word may be touched in part.
        if words.len() == 1 {
            masks = [masks[0] & masks[1], 15];
        }
        if masks[0] != 15 {
            self.touch(agent, block, words.start..words.start + 1, masks[0], how)?;
            words.start += 1;
        }
        if masks[1] != 15 && !words.is_empty() {
            self.touch(agent, block, words.end - 1..words.end, masks[1], how)?;
            words.end -= 1;
        }
        self.touch(agent, block, words, 15, how)
    }

    /// The same of words, of each of which the bytes in `mask` are touched.
    fn touch(&mut self, agent: Agent, block: usize, words: Range<usize>, mask: u8, how: How) -> Result<(), Race> {
        if how.is_write {
            self.write(agent, block, words, mask, how)
        } else {
            self.read(agent, block, words, mask, how)
        }
    }

    /// The writer of a word, if `agent` does not know of it.
    #[inline(always)]
    fn unknown_writer(known: &[u32], agent: Agent, cell: &Cell, mask: u8, how: How) -> Option<Agent> {
        let writer = usize::from(cell.writer);
        let is_known = writer == agent || cell.written <= known[writer];
        (!is_known && cell.mask & mask != 0 && !(how.is_strong && cell.is_strong)).then_some(writer)
    }

    fn read(&mut self, agent: Agent, block: usize, words: Range<usize>, mask: u8, how: How) -> Result<(), Race> {
        let (floor, time, known) = (self.floor[agent], self.time, &self.known[agent].0[..]);
        let cells = &mut self.cells[block];
        let end = words.end.min(cells.len());
        let stamps = &mut self.reads[block][agent];
        if stamps.len() < cells.len() {
            stamps.resize(cells.len(), 0);
        }
        for word in words.start..end {
            let cell = &mut cells[word];
            if cell.written > floor
                && let Some(other) = Races::unknown_writer(known, agent, cell, mask, how)
            {
                return Err(Race { at: word * 4, other, is_other_write: true, warps: self.warps });
            }
            // Strong reads poll: what they are ordered after is decided by what they read.
            if how.is_strong {
                continue;
            }
            cell.read = time;
            let stamp = &mut stamps[word];
            let earlier = if *stamp >> MASK_BITS == time { *stamp } else { 0 };
            *stamp = time << MASK_BITS | u32::from(mask) | earlier & 15;
        }
        Ok(())
    }

    fn write(&mut self, agent: Agent, block: usize, words: Range<usize>, mask: u8, how: How) -> Result<(), Race> {
        let (floor, known) = (self.floor[agent], &self.known[agent].0[..]);
        let (cells, reads) = (&mut self.cells[block], &self.reads[block]);
        let end = words.end.min(cells.len());
        for word in words.start..end {
            let cell = &mut cells[word];
            if cell.written > floor
                && let Some(other) = Races::unknown_writer(known, agent, cell, mask, how)
            {
                return Err(Race { at: word * 4, other, is_other_write: true, warps: self.warps });
            }
            if cell.read > floor {
                for &other in &self.active {
                    let stamp = reads[other].get(word).copied().unwrap_or(0);
                    let is_known = other == agent || stamp >> MASK_BITS <= known[other];
                    if !is_known && stamp & u32::from(mask) != 0 {
                        return Err(Race { at: word * 4, other, is_other_write: false, warps: self.warps });
                    }
                }
            }
            *cell = Cell { written: self.time, read: cell.read, writer: agent as u16, mask, is_strong: how.is_strong };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: How = How { is_write: false, is_strong: false };
    const WRITE: How = How { is_write: true, is_strong: false };

    fn fresh() -> Races {
        let mut races = Races::default();
        races.reset(1, 64, 4);
        races
    }

    #[test]
    fn an_unordered_write_and_read_race_and_a_barrier_orders_them() {
        let mut races = fresh();
        races.access(0, 0, 8, 4, WRITE).unwrap();
        let race = races.access(1, 0, 8, 4, READ).unwrap_err();
        assert_eq!((race.at, race.other, race.is_other_write), (8, 0, true));
        let known = races.publish(0);
        races.learn(1, &known);
        races.access(1, 0, 8, 4, READ).unwrap();
        // The reader has told nobody.
        assert!(!races.access(0, 0, 8, 4, WRITE).unwrap_err().is_other_write);
        let known = races.publish(1);
        races.learn(0, &known);
        races.access(0, 0, 8, 4, WRITE).unwrap();
    }

    #[test]
    fn bytes_of_one_word_and_concurrent_reads_do_not_race() {
        let mut races = fresh();
        races.access(0, 0, 8, 2, WRITE).unwrap();
        races.access(1, 0, 10, 2, WRITE).unwrap();
        races.access(2, 0, 16, 16, READ).unwrap();
        races.access(3, 0, 16, 16, READ).unwrap();
        assert!(races.access(2, 0, 10, 1, READ).is_err());
        // Some words and a part of the next one, whose other part is another's.
        races.access(0, 0, 32, 6, WRITE).unwrap();
        races.access(1, 0, 38, 10, WRITE).unwrap();
        races.access(2, 0, 48, 2, WRITE).unwrap();
        assert!(races.access(3, 0, 46, 4, READ).is_err());
    }

    #[test]
    fn work_that_a_warp_started_is_known_only_after_a_wait() {
        let mut races = fresh();
        let work = races.start(0);
        races.access(work, 0, 0, 16, WRITE).unwrap();
        assert!(races.access(0, 0, 4, 4, READ).is_err());
        let done = races.stamp(work);
        races.learn(0, &done);
        races.access(0, 0, 4, 4, READ).unwrap();
        // What comes after the wait is not covered by it.
        let work = races.start(0);
        races.access(work, 0, 0, 16, WRITE).unwrap();
        assert!(races.access(0, 0, 4, 4, READ).is_err());
    }

    #[test]
    fn atomics_do_not_race_with_one_another() {
        let mut races = fresh();
        let atomic = How { is_write: true, is_strong: true };
        races.access(0, 0, 0, 4, atomic).unwrap();
        races.access(1, 0, 0, 4, atomic).unwrap();
        assert!(races.access(2, 0, 0, 4, WRITE).is_err());
    }

    #[test]
    fn a_new_cluster_does_not_remember() {
        let mut races = fresh();
        races.access(0, 0, 0, 4, WRITE).unwrap();
        races.access(2, 0, 4, 4, READ).unwrap();
        races.reset(1, 64, 4);
        races.access(1, 0, 0, 8, WRITE).unwrap();
    }
}
