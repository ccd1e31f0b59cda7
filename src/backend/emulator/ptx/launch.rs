//! Launches: clusters on threads, the warps of a cluster in turns on one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::barrier::{BARRIERS, describe};
use super::cluster::{Block, Cluster, ClusterBarrier, Trouble};
use super::code::Code;
use super::lex::one_line;
use super::races::Races;
use super::warp::{Wait, Warp};
use crate::backend::emulator::fault::Fault;
use crate::backend::emulator::memory::{Space, View};
use crate::backend::emulator::schedule::{Order, Turns};
use crate::backend::emulator::{Counters, Schedule};

/// Steps of a cluster after which a kernel counts as endless.
const BUDGET: u64 = 1 << 32;
/// The longest turn of a warp, so that the budget is looked at.
const LONGEST_TURN: u32 = 1 << 14;
/// Steps without anything that can end a wait after which other warps and copies go on, although the one that runs could.
const PATIENCE: u64 = 1 << 14;

/// What one launch asks for; checked.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub is_explicit_cluster: bool,
    pub dynamic_shared: u32,
    pub budget: Option<u64>,
}

/// What every cluster of a launch has in common.
#[derive(Debug)]
struct Shared<'a> {
    code: &'a Code,
    source: &'a str,
    shape: &'a Shape,
    parameters: &'a [u8],
    space: Arc<Space>,
    schedule: Schedule,
}

/// Runs all clusters of a grid.
pub(super) fn launch(
    code: &Code,
    source: &str,
    shape: &Shape,
    parameters: &[u8],
    space: Arc<Space>,
    schedule: Schedule,
) -> Result<Counters, Fault> {
    let shared = Shared { code, source, shape, parameters, space, schedule };
    let clusters: Vec<u64> = (0..3).map(|i| u64::from(shape.grid[i] / shape.cluster[i])).collect();
    let count: u64 = clusters.iter().product();
    let order = order(schedule, count);
    // Clusters that a thread takes at a time: few enough to share the work, enough to reuse what a thread keeps.
    let part_len = (order.len() / 64).clamp(1, 16);
    // The first fault in this order is reported, whichever thread is faster: work after it may stop, work before it may not.
    let failed = AtomicU64::new(u64::MAX);
    let found: Mutex<(Counters, Option<(u64, Fault)>)> = Mutex::default();
    let run_some = |(part, numbers): (usize, &[u64])| {
        let mut worker = Worker::default();
        let mut fault = None;
        for (i, &number) in numbers.iter().enumerate() {
            let position = (part * part_len + i) as u64;
            if failed.load(Relaxed) < position {
                break;
            }
            if let Err(found) = worker.cluster(&shared, number) {
                failed.fetch_min(position, Relaxed);
                fault = Some((position, found));
                break;
            }
        }
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.0 += &worker.counters(code);
        if let Some(fault) = fault
            && found.1.as_ref().is_none_or(|first| fault.0 < first.0)
        {
            found.1 = Some(fault);
        }
    };
    // Blocks that update global memory atomically run one after the other: float sums depend on the order.
    if code.has_global_atomics || count == 1 {
        order.chunks(part_len).enumerate().for_each(run_some);
    } else {
        order.par_chunks(part_len).enumerate().for_each(run_some);
    }
    match found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        (_, Some((_, fault))) => Err(fault),
        (counters, None) => Ok(counters),
    }
}

/// In which order clusters start: a part of the schedule.
fn order(schedule: Schedule, count: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..count).collect();
    match schedule.order {
        Order::Forward => {}
        Order::Reverse => order.reverse(),
        Order::Shuffled(_) => {
            let mut turns = schedule.order.turns(u64::MAX);
            for i in (1..order.len()).rev() {
                order.swap(i, turns.pick(i + 1));
            }
        }
    }
    order
}

/// What a thread keeps from cluster to cluster.
#[derive(Debug, Default)]
struct Worker {
    warps: Vec<Warp>,
    blocks: Vec<Block>,
    races: Races,
    counters: Counters,
    hits: Vec<u64>,
    lane_hits: Vec<u64>,
}

impl Worker {
    /// What ran on this thread, by class.
    fn counters(&mut self, code: &Code) -> Counters {
        let mut counters = std::mem::take(&mut self.counters);
        for ((listing, hits), lanes) in code.listings.iter().zip(&self.hits).zip(&self.lane_hits) {
            if let Some(class) = listing.class {
                counters.count(class, *hits);
            }
            counters.lane_flops += u64::from(listing.flops) * lanes;
        }
        counters
    }

    /// Runs one cluster to its end.
    fn cluster(&mut self, shared: &Shared, number: u64) -> Result<(), Fault> {
        let (code, shape) = (shared.code, shared.shape);
        let mut cluster = self.prepare(shared, number);
        let blocks = cluster.blocks.len();
        let mut warps = std::mem::take(&mut self.warps);
        let per_block = cluster.warps_per_block as usize;
        warps.resize_with(blocks * per_block, Warp::default);
        for (id, warp) in warps.iter_mut().enumerate() {
            (warp.id, warp.block, warp.index) = (id, id / per_block, (id % per_block) as u32);
            warp.reset(code, cluster.threads - warp.index * 32);
        }
        let mut turns = shared.schedule.order.turns(number);
        let outcome = cluster.run_all(&mut warps, &mut turns, shape.budget.unwrap_or(BUDGET));
        let result = outcome.map_err(|(warp, pc, trouble)| fault(shared, &cluster, &warps, warp, pc, *trouble));
        (self.blocks, self.races) = (cluster.blocks, cluster.races);
        (self.counters, self.hits, self.lane_hits) = (cluster.counters, cluster.hits, cluster.lane_hits);
        self.warps = warps;
        result
    }

    fn prepare<'a>(&mut self, shared: &Shared<'a>, number: u64) -> Cluster<'a> {
        let (code, shape) = (shared.code, shared.shape);
        let [cx, cy, cz] = shape.cluster;
        let clusters = [shape.grid[0] / cx, shape.grid[1] / cy, shape.grid[2] / cz].map(u64::from);
        let origin = [
            (number % clusters[0]) as u32 * cx,
            (number / clusters[0] % clusters[1]) as u32 * cy,
            (number / (clusters[0] * clusters[1])) as u32 * cz,
        ];
        let bytes = match shape.dynamic_shared {
            0 => code.static_shared,
            n => code.dynamic_start + n as usize,
        };
        let threads: u32 = shape.block.iter().product();
        let warps_per_block = threads.div_ceil(32);
        let count = cx * cy * cz;
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.resize_with(count as usize, Block::default);
        for (rank, block) in blocks.iter_mut().enumerate() {
            let rank = rank as u32;
            block.index = [origin[0] + rank % cx, origin[1] + rank / cx % cy, origin[2] + rank / (cx * cy)];
            block.shared.clear();
            block.shared.resize(bytes, crate::backend::emulator::memory::POISON);
            block.barriers = vec![Default::default(); BARRIERS];
            block.last = vec![Default::default(); BARRIERS];
            block.live = threads;
            block.has_begun = false;
        }
        let mut races = std::mem::take(&mut self.races);
        races.reset(count as usize, bytes, (count * warps_per_block) as usize);
        let mut hits = std::mem::take(&mut self.hits);
        hits.resize(code.steps.len(), 0);
        let mut lane_hits = std::mem::take(&mut self.lane_hits);
        lane_hits.resize(code.steps.len(), 0);
        Cluster {
            code,
            view: View::new(shared.space.clone()),
            schedule: shared.schedule,
            parameters: shared.parameters,
            blocks,
            races,
            meetings: Default::default(),
            global_meeting: Default::default(),
            barrier: ClusterBarrier::default(),
            loads: Default::default(),
            counters: std::mem::take(&mut self.counters),
            hits,
            lane_hits,
            progress: 0,
            clock: 0,
            grid: shape.grid,
            block: shape.block,
            cluster: shape.cluster,
            is_explicit_cluster: shape.is_explicit_cluster,
            dynamic_shared: shape.dynamic_shared,
            threads,
            warps_per_block,
        }
    }
}

impl Cluster<'_> {
    /// Runs the warps in turns until all have exited. A fault comes with its warp and step.
    fn run_all(
        &mut self,
        warps: &mut [Warp],
        turns: &mut Turns,
        budget: u64,
    ) -> Result<(), (usize, u32, Box<Trouble>)> {
        let mut spent = 0;
        let mut ready = Vec::with_capacity(warps.len());
        // Progress when lanes last were told that their wait is in vain, and how often since.
        let (mut stuck_at, mut rounds) = (u64::MAX, 0);
        // Progress when it last changed, what had been spent by then, and how often nothing had changed for too long.
        let (mut moved, mut since, mut passed_over) = (self.progress, 0, 0);
        loop {
            ready.clear();
            for i in 0..warps.len() {
                if self.wake(&mut warps[i]) {
                    ready.push(i);
                }
            }
            if ready.is_empty() {
                if warps.iter().all(|w| w.groups.is_empty()) {
                    return self.end(warps);
                }
                if self.finish_one()? {
                    continue;
                }
                if stuck_at == self.progress {
                    rounds += 1;
                } else {
                    (stuck_at, rounds) = (self.progress, 0);
                }
                if rounds < 4 && time_out(warps) {
                    continue;
                }
                return Err(deadlock(self, warps));
            }
            let chosen = ready[(turns.pick(ready.len()) + passed_over) % ready.len()];
            let slice = turns.slice().min(LONGEST_TURN);
            let steps = self.run(&mut warps[chosen], slice).map_err(|(pc, trouble)| (chosen, pc, trouble))?;
            spent += u64::from(steps);
            if self.progress != moved {
                (moved, since) = (self.progress, spent);
            } else if spent - since > PATIENCE {
                // A warp that asks memory again and again is never out of work: what it asks for may wait for another warp,
                // or for a copy.
                passed_over += 1;
                self.finish_one()?;
                since = spent;
            }
            if spent > budget {
                let pc = warps[chosen].groups.first().map_or(0, |g| g.pc);
                let what =
                    format!("the block has executed {spent} instructions: an endless loop, or a lock nobody frees");
                return Err((chosen, pc, Box::new(Trouble { lane: None, what })));
            }
        }
    }

    /// Lets groups go on whose wait is over; whether any group of the warp can run.
    fn wake(&mut self, w: &mut Warp) -> bool {
        let mut can_run = false;
        let mut has_barrier = false;
        for g in 0..w.groups.len() {
            match w.groups[g].wait {
                Wait::No | Wait::TimedOut => can_run = true,
                Wait::Barrier(_) => has_barrier = true,
                Wait::Cluster(phase) if self.barrier.phase > phase => {
                    w.groups[g].wait = Wait::No;
                    can_run = true;
                }
                Wait::Phase { block, at, parity } if self.is_phase_over(block, at, parity) => {
                    w.groups[g].wait = Wait::No;
                    can_run = true;
                }
                _ => {}
            }
        }
        (has_barrier && self.pass(w)) || can_run
    }
}

/// Tells the lanes that poll that they waited in vain; whether there are any.
fn time_out(warps: &mut [Warp]) -> bool {
    let mut found = false;
    for group in warps.iter_mut().flat_map(|w| &mut w.groups) {
        if matches!(group.wait, Wait::Phase { .. }) {
            group.wait = Wait::TimedOut;
            found = true;
        }
    }
    found
}

/// Nobody can move: says who waits where.
fn deadlock(cluster: &Cluster, warps: &[Warp]) -> (usize, u32, Box<Trouble>) {
    let mut first = None;
    let mut lines = Vec::new();
    for (i, w) in warps.iter().enumerate() {
        for group in &w.groups {
            let why = match group.wait {
                Wait::Barrier(id) => {
                    let block = &cluster.blocks[w.block];
                    format!("barrier {id}, {}", describe(&block.barriers[id as usize], block.live))
                }
                Wait::Cluster(_) => "the barrier of the cluster".to_owned(),
                Wait::Phase { block, at, parity } => {
                    let why = cluster.describe_phase(block, at);
                    format!("mbarrier at {at:#x}, parity {}; {why}", u8::from(parity))
                }
                Wait::Lanes { .. } => {
                    let (missing, gone) = (w.live & !group.mask, !w.live);
                    match missing {
                        0 => format!("divergent: lanes {gone:#010x} of its warp have ended without the instruction"),
                        _ => {
                            format!("divergent: lanes {missing:#010x} of its warp do not execute the same instruction")
                        }
                    }
                }
                Wait::No | Wait::TimedOut => continue,
            };
            let is_lanes = matches!(group.wait, Wait::Lanes { .. });
            if first.is_none() || is_lanes {
                first = Some((i, group.pc));
            }
            let place = if cluster.blocks.len() > 1 { format!("block {} ", w.block) } else { String::new() };
            lines.push(format!("{place}warp {} at {why}", w.index));
        }
    }
    let more = lines.len().saturating_sub(8);
    lines.truncate(8);
    let mut what = format!("deadlock: {}", lines.join("; "));
    if more > 0 {
        what.push_str(&format!("; and {more} more"));
    }
    let (warp, pc) = first.unwrap_or((0, 0));
    (warp, pc, Box::new(Trouble { lane: None, what }))
}

fn fault(shared: &Shared, cluster: &Cluster, warps: &[Warp], warp: usize, pc: u32, trouble: Trouble) -> Fault {
    let code = shared.code;
    let line = code.listings.get(pc as usize).map_or(usize::MAX, |l| l.line as usize);
    let text = code.texts.get(line).map_or_else(String::new, |range| one_line(shared.source, range.clone()));
    let (block, index) = warps.get(warp).map_or((0, 0), |w| (w.block, w.index));
    Fault {
        kernel: code.name.clone(),
        instruction: text.into(),
        block: cluster.blocks.get(block).map_or([0; 3], |b| b.index),
        warp: index,
        lane: trouble.lane,
        what: trouble.what.into(),
    }
}
