//! Work that an instruction only starts: when it is done, and who knows of it then.
//!
//! Under an early schedule it is done at once, under a late one when a wait asks for it, or, for loads that complete a barrier,
//! when no warp can go on without. Either way its accesses are those of an agent beside the warp, which knows what the warp
//! knew at the start, and of whose accesses only those know who wait.

use std::collections::VecDeque;

use super::cluster::{Cluster, Run, Trouble, refused};
use super::hopper::words;
use super::hopper_op::Queue;
use super::op::Row;
use super::races::{Agent, Knowledge};
use super::unit::SharedMemory;
use super::units::reduction::{Reduction, reduce};
use super::units::tensor_map::TensorMap;
use super::units::wgmma::{Options, Wgmma};
use super::units::{self, Misuse, Space};
use super::warp::{Warp, lanes};
use crate::backend::emulator::memory::BadAccess;
use crate::backend::emulator::schedule::Order;

/// Work and where it was started.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub agent: Agent,
    pub warp: usize,
    pub block: usize,
    pub lanes: u32,
    pub pc: u32,
    pub work: Work,
}

/// What is to be done. Places are in the shared memory of the task's block; `blocks` has a bit for each block that gets a copy.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Product {
        form: Wgmma,
        d: Box<[Row]>,
        a: Left,
        b: u64,
        options: Options,
    },
    LoadBox {
        map: Box<TensorMap>,
        coordinates: Box<[i32]>,
        to: u32,
        barrier: u32,
        blocks: u32,
    },
    LoadRun {
        from: u64,
        is_from_shared: bool,
        bytes: u32,
        to: u32,
        barrier: u32,
        blocks: u32,
        reduction: Option<(Reduction, &'static str)>,
    },
    StoreBox {
        map: Box<TensorMap>,
        coordinates: Box<[i32]>,
        from: u32,
        reduction: Option<Reduction>,
    },
    StoreRun {
        from: u32,
        to: u64,
        bytes: u32,
        reduction: Option<(Reduction, &'static str)>,
    },
}

/// Where A of a product comes from. Registers are read when the product is made: until then the kernel may not touch them.
#[derive(Clone, Debug)]
pub(super) enum Left {
    Registers(Box<[Row]>),
    Descriptor(u64),
}

/// What a warp has started of one queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Started {
    /// Not yet in a group.
    open: Vec<Task>,
    groups: VecDeque<Group>,
}

/// Work that is waited for together.
#[derive(Clone, Debug)]
struct Group {
    lanes: u32,
    tasks: Vec<Task>,
    /// What is known to who waits, of work that is done already.
    done: Option<Knowledge>,
}

/// The queues of a warp.
#[derive(Clone, Debug, Default)]
pub(super) struct Queues([Started; 2]);

impl Queues {
    fn of(&mut self, queue: Queue) -> &mut Started {
        &mut self.0[queue as usize]
    }

    /// Something that was started and that no wait has covered.
    fn unfinished(&self, queue: Queue) -> Option<&Task> {
        let started = &self.0[queue as usize];
        started.groups.iter().flat_map(|g| &g.tasks).chain(&started.open).next()
    }
}

/// Global memory as a unit sees it.
struct Global<'c, 'a>(&'c mut Cluster<'a>);

fn refuse(is_write: bool) -> impl Fn(Box<BadAccess>) -> Misuse {
    move |bad| Misuse::new(refused(is_write, &bad))
}

impl Space for Global<'_, '_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> units::Result<()> {
        self.0.counters.global.loaded += into.len() as u64;
        self.0.view.read(address, into).map_err(refuse(false))
    }

    fn write(&mut self, address: u64, from: &[u8]) -> units::Result<()> {
        self.0.counters.global.stored += from.len() as u64;
        self.0.view.write(address, from).map_err(refuse(true))
    }

    fn update(&mut self, address: u64, bytes: usize, change: &dyn Fn(u64) -> u64) -> units::Result<()> {
        self.0.counters.global.loaded += bytes as u64;
        self.0.counters.global.stored += bytes as u64;
        let done = match bytes {
            2 => self.0.view.update::<2>(address, change),
            4 => self.0.view.update::<4>(address, change),
            _ => self.0.view.update::<8>(address, change),
        };
        done.map(drop).map_err(refuse(true))
    }
}

impl<'a> Cluster<'a> {
    /// Starts work that belongs to the groups of its warp.
    pub(super) fn submit(&mut self, w: &mut Warp, queue: Queue, task: Task) -> Run<()> {
        if self.is_late() {
            w.queues.of(queue).open.push(task);
            return Ok(());
        }
        self.perform(w, &task)
    }

    /// Starts work that completes bytes at barriers.
    pub(super) fn submit_load(&mut self, task: Task) -> Run<()> {
        if self.is_late() {
            self.loads.push_back(task);
            return Ok(());
        }
        self.perform_alone(&task)
    }

    /// Closes the group of the lanes `m`.
    pub(super) fn commit(&mut self, w: &mut Warp, queue: Queue, m: u32) {
        let agent = self.races.work_of(w.id);
        let done = if self.is_late() { None } else { Some(self.races.stamp(agent)) };
        let started = w.queues.of(queue);
        let mut tasks = Vec::new();
        for task in &mut started.open {
            let lanes = task.lanes & m;
            if lanes != 0 {
                tasks.push(Task { lanes, ..task.clone() });
                task.lanes &= !m;
            }
        }
        started.open.retain(|task| task.lanes != 0);
        started.groups.push_back(Group { lanes: m, tasks, done });
    }

    /// Does what the lanes `m` wait for: all but their last `left` groups.
    pub(super) fn await_groups(&mut self, w: &mut Warp, queue: Queue, left: u32, m: u32) -> Run<()> {
        let mut newer = [0u32; 32];
        let mut due = Vec::new();
        let started = w.queues.of(queue);
        // A group that other lanes share is done for them too: it may end at any time.
        for i in (0..started.groups.len()).rev() {
            let mine = started.groups[i].lanes & m;
            if lanes(mine).any(|l| newer[l] >= left) {
                due.extend(started.groups.remove(i));
            }
            lanes(mine).for_each(|l| newer[l] += 1);
        }
        let agent = self.races.work_of(w.id);
        for group in due.into_iter().rev() {
            for task in &group.tasks {
                self.perform(w, task).map_err(|trouble| started_earlier(self, task, *trouble))?;
            }
            let done = match group.done {
                Some(done) => done,
                None => self.races.stamp(agent),
            };
            self.races.learn(w.id, &done);
        }
        self.progress += 1;
        Ok(())
    }

    fn perform(&mut self, w: &mut Warp, task: &Task) -> Run<()> {
        if matches!(task.work, Work::Product { .. }) { self.product(w, task) } else { self.perform_alone(task) }
    }

    /// Does work that needs no registers.
    pub(super) fn perform_alone(&mut self, task: &Task) -> Run<()> {
        self.progress += 1;
        self.try_perform(task).map_err(words)
    }

    fn try_perform(&mut self, task: &Task) -> units::Result<()> {
        let (agent, block) = (task.agent, task.block);
        match &task.work {
            Work::LoadBox { map, coordinates, to, barrier, blocks } => {
                let tile = map.fetch(coordinates, &mut Global(self))?;
                for block in lanes(*blocks) {
                    self.is_within_reach(task.block, block).map_err(Misuse::new)?;
                    map.place(&tile, *to, &mut SharedMemory { cluster: self, block, agent })?;
                    self.bytes_came(agent, block, *barrier, tile.len() as u64)?;
                }
                Ok(())
            }
            Work::LoadRun { from, is_from_shared, bytes, to, barrier, blocks, reduction } => {
                let mut run = vec![0; *bytes as usize];
                if *is_from_shared {
                    read_pieces(&mut SharedMemory { cluster: self, block, agent }, *from, &mut run)?;
                } else {
                    Global(self).read(*from, &mut run)?;
                }
                for block in lanes(*blocks) {
                    self.is_within_reach(task.block, block).map_err(Misuse::new)?;
                    let mut shared = SharedMemory { cluster: self, block, agent };
                    match reduction {
                        Some((reduction, number)) => reduce(*reduction, number, u64::from(*to), &run, &mut shared)?,
                        None => write_pieces(&mut shared, u64::from(*to), &run)?,
                    }
                    self.bytes_came(agent, block, *barrier, u64::from(*bytes))?;
                }
                Ok(())
            }
            Work::StoreBox { map, coordinates, from, reduction } => {
                let tile = map.collect(*from, &mut SharedMemory { cluster: self, block, agent })?;
                match reduction {
                    Some(reduction) => map.reduce(*reduction, &tile, coordinates, &mut Global(self)),
                    None => map.store(&tile, coordinates, &mut Global(self)),
                }
            }
            Work::StoreRun { from, to, bytes, reduction } => {
                let mut run = vec![0; *bytes as usize];
                read_pieces(&mut SharedMemory { cluster: self, block, agent }, u64::from(*from), &mut run)?;
                match reduction {
                    Some((reduction, number)) => reduce(*reduction, number, *to, &run, &mut Global(self)),
                    None => Global(self).write(*to, &run),
                }
            }
            Work::Product { .. } => Ok(()),
        }
    }

    /// Does one of the loads that are under way; whether there was one.
    pub(super) fn finish_one(&mut self) -> Result<bool, (usize, u32, Box<Trouble>)> {
        let next = if self.schedule.order == Order::Reverse { self.loads.pop_back() } else { self.loads.pop_front() };
        let Some(task) = next else { return Ok(false) };
        self.perform_alone(&task).map_err(|trouble| (task.warp, task.pc, trouble))?;
        Ok(true)
    }

    /// At the end of a cluster: what was started must have been waited for, or it writes where nobody expects it.
    pub(super) fn end(&mut self, warps: &[Warp]) -> Result<(), (usize, u32, Box<Trouble>)> {
        let left = self.loads.front().map(|task| (task, "load into shared memory"));
        let of = |w: &'_ Warp| w.queues.unfinished(Queue::Stores).cloned();
        let stores = warps.iter().find_map(of);
        let Some((task, what)) = left.map(|(t, what)| (t.clone(), what)).or(stores.map(|t| (t, "store"))) else {
            return Ok(());
        };
        self.loads.clear();
        let what = format!("the block ended while this {what} was under way: nothing waits for it");
        Err((task.warp, task.pc, Box::new(Trouble { lane: None, what })))
    }
}

/// Runs of bytes go through shared memory in pieces, as units do.
fn read_pieces(shared: &mut SharedMemory<'_, '_>, from: u64, to: &mut [u8]) -> units::Result<()> {
    to.chunks_mut(16).enumerate().try_for_each(|(i, piece)| shared.read(from + 16 * i as u64, piece))
}

fn write_pieces(shared: &mut SharedMemory<'_, '_>, to: u64, from: &[u8]) -> units::Result<()> {
    from.chunks(16).enumerate().try_for_each(|(i, piece)| shared.write(to + 16 * i as u64, piece))
}

/// Trouble of work shows at the wait; the words say where it was started.
fn started_earlier(cluster: &Cluster<'_>, task: &Task, trouble: Trouble) -> Box<Trouble> {
    let line = cluster.code.listings.get(task.pc as usize).map_or(0, |l| l.line);
    let what = format!("{} (work that was started by instruction {line} of the kernel)", trouble.what);
    Box::new(Trouble { what, ..trouble })
}
