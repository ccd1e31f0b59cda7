//! Barriers of blocks and clusters.

use super::cluster::{Barrier, Cluster, Run, trouble};
use super::exec::Flow;
use super::long_op::BarKind;
use super::op::Op;
use super::warp::{Group, Wait, Warp};

/// Barriers of a block.
pub(super) const BARRIERS: usize = 16;

impl Cluster<'_> {
    /// `bar` and `barrier` of the block.
    pub(super) fn block_barrier(&mut self, w: &mut Warp, g: usize, pc: u32, number: u32, m: u32) -> Run<Flow> {
        if m == 0 {
            return Ok(Flow::Next);
        }
        let bar = self.code.bars[number as usize];
        let id = w.r(self.code, bar.id)[m.trailing_zeros() as usize];
        if id as usize >= BARRIERS {
            return trouble(format!("barrier {id} of {BARRIERS}"));
        }
        if bar.is_aligned {
            if !self.gathered(w, g, pc, u32::MAX, true) {
                return Ok(Flow::Regroup);
            }
            if m != w.live {
                return trouble(format!("divergent: of the lanes {:#010x} only {m:#010x} arrive", w.live));
            }
        }
        let count = bar.count.map(|row| w.r(self.code, row)[m.trailing_zeros() as usize]);
        if let Some(count) = count.filter(|c| c % 32 != 0 || *c == 0) {
            return trouble(format!("expected a multiple of 32 threads, found {count}"));
        }
        // A counted barrier counts whole warps.
        let threads = if count.is_some() && m == w.live { 32 } else { m.count_ones() };
        let votes = w.p(bar.p) & m;
        let known = self.races.publish(w.id);
        let barrier = &mut self.blocks[w.block].barriers[id as usize];
        if barrier.arrived > 0 && barrier.expected != count {
            let (one, other) = (barrier.expected, count);
            return trouble(format!("barrier {id}: expected {one:?} threads as the warps before, found {other:?}"));
        }
        barrier.known.join(&known);
        barrier.arrived += threads;
        barrier.expected = count;
        barrier.votes.0 += votes.count_ones();
        barrier.votes.1 += m.count_ones();
        self.progress += 1;
        let waits = bar.kind != BarKind::Arrive;
        let is_partial = m != w.groups[g].mask;
        if waits {
            barrier.warps.push(w.index);
        }
        if is_partial {
            w.groups[g].mask &= !m;
            w.groups[g].pc = pc + 1;
            let rank = w.groups[g].rank;
            let wait = if waits { Wait::Barrier(id as u8) } else { Wait::No };
            w.groups.push(Group { pc: pc + 1, mask: m, rank, wait });
        } else {
            w.groups[g].pc = pc + 1;
            w.groups[g].wait = if waits { Wait::Barrier(id as u8) } else { Wait::No };
        }
        self.try_open(w.block, id as usize);
        // The warp that came last is not among those that the scheduler looks at.
        self.pass(w);
        Ok(Flow::Regroup)
    }

    /// Opens the barrier if all have come.
    fn try_open(&mut self, block: usize, id: usize) {
        let live = self.blocks[block].live;
        let barrier = &mut self.blocks[block].barriers[id];
        let expected = barrier.expected.unwrap_or(live);
        if barrier.arrived == 0 || barrier.arrived < expected {
            return;
        }
        self.counters.barriers += 1;
        self.progress += 1;
        let mut opened = std::mem::take(barrier);
        // A warp may look only after the barrier has opened again.
        opened.known.join(&self.blocks[block].last[id].known);
        self.blocks[block].last[id] = opened;
    }

    /// Lets the groups of `w` go on whose barrier has opened since they came.
    pub(super) fn pass(&mut self, w: &mut Warp) -> bool {
        let mut passed = false;
        for g in 0..w.groups.len() {
            let Wait::Barrier(id) = w.groups[g].wait else { continue };
            let id = usize::from(id);
            let block = &self.blocks[w.block];
            // The group is still listed where it arrived as long as the barrier is shut.
            if block.barriers[id].warps.contains(&w.index) {
                continue;
            }
            let opened = &block.last[id];
            let (known, (yes, all)) = (opened.known.clone(), opened.votes);
            self.races.learn(w.id, &known);
            let (mask, pc) = (w.groups[g].mask, w.groups[g].pc);
            w.groups[g].wait = Wait::No;
            passed = true;
            if let Some(Op::Barrier(number)) = self.code.steps.get(pc as usize - 1).map(|s| s.op) {
                let bar = self.code.bars[number as usize];
                match bar.kind {
                    BarKind::Count => w.set(bar.d, mask, &[yes; 32]),
                    BarKind::And => w.set_p(bar.d, mask, if yes == all { u32::MAX } else { 0 }),
                    BarKind::Or => w.set_p(bar.d, mask, if yes > 0 { u32::MAX } else { 0 }),
                    _ => {}
                }
            }
        }
        passed
    }

    /// After lanes have exited: barriers no longer wait for them.
    pub(super) fn left_block(&mut self, w: &Warp) {
        for id in 0..BARRIERS {
            if self.blocks[w.block].barriers[id].arrived > 0 {
                self.try_open(w.block, id);
            }
        }
        self.try_open_cluster();
    }

    /// `barrier.cluster`.
    pub(super) fn cluster_barrier(&mut self, w: &mut Warp, g: usize, pc: u32, op: &Op, m: u32) -> Run<Flow> {
        if m == 0 {
            return Ok(Flow::Next);
        }
        if matches!(op, Op::ClusterArrive) {
            let known = self.races.publish(w.id);
            self.barrier.collecting.join(&known);
            self.barrier.arrived += m.count_ones();
            w.cluster_phase = self.barrier.phase;
            self.progress += 1;
            self.try_open_cluster();
            return Ok(Flow::Next);
        }
        if self.barrier.phase > w.cluster_phase {
            let known = self.barrier.known.clone();
            self.races.learn(w.id, &known);
            return Ok(Flow::Next);
        }
        self.hits[pc as usize] -= 1;
        w.groups[g].pc = pc;
        w.groups[g].wait = Wait::Cluster(w.cluster_phase);
        Ok(Flow::Regroup)
    }

    fn try_open_cluster(&mut self) {
        let live: u32 = self.blocks.iter().map(|b| b.live).sum();
        let barrier = &mut self.barrier;
        if barrier.arrived > 0 && barrier.arrived >= live {
            barrier.arrived = 0;
            barrier.phase += 1;
            let known = std::mem::take(&mut barrier.collecting);
            barrier.known.join(&known);
            self.counters.barriers += 1;
            self.progress += 1;
        }
    }
}

/// Who waits at a barrier, for the report of a deadlock.
pub(super) fn describe(barrier: &Barrier, live: u32) -> String {
    format!("{} of {} threads have arrived", barrier.arrived, barrier.expected.unwrap_or(live))
}
