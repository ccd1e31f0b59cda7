//! What sm_90 added: products of four warps and bulk copies, from the registers of a warp into [`units`](super::units).

use super::asynchronous::{Left, Task, Work};
use super::cluster::{Cluster, Run, Trouble, refused, trouble, trouble_at};
use super::exec::Flow;
use super::hopper_op::{Hopper, Queue, Source};
use super::long_op::{Address, Space};
use super::op::Row;
use super::unit::SharedMemory;
use super::units::bulk::check_copy;
use super::units::tensor_map::TensorMap;
use super::units::wgmma::{self, Options};
use super::units::{Lanes, Misuse};
use super::warp::{Lanes32, Warp, lanes};
use crate::backend::gpu::driver::TENSOR_MAP_BYTES;

/// A register as units see it.
fn wide(row: &Lanes32) -> Lanes {
    row.map(u64::from)
}

fn narrow(row: &Lanes) -> Lanes32 {
    row.map(|v| v as u32)
}

impl Cluster<'_> {
    /// Executes an instruction of sm_90.
    pub(super) fn hopper(&mut self, w: &mut Warp, g: usize, pc: u32, number: u32, m: u32) -> Run<Flow> {
        let code = self.code;
        if m == 0 {
            return Ok(Flow::Next);
        }
        let step = &code.hopper[number as usize];
        if is_collective(step) {
            if !self.gathered(w, g, pc, u32::MAX, true) {
                return Ok(Flow::Regroup);
            }
            if m != u32::MAX {
                return trouble(format!("divergent: expected all 32 lanes of the warp, found {m:#010x}"));
            }
        }
        match step {
            Hopper::Commit { queue } => self.commit(w, *queue, m),
            Hopper::Wait { queue, left } => self.await_groups(w, *queue, *left, m)?,
            Hopper::Barrier { at, act } => self.barrier_act(w, at, act, m)?,
            Hopper::Poll { p, at, parity, state } => return self.poll(w, g, pc, *p, at, *parity, *state, m),
            Hopper::PendingCount { d, state } => self.pending_count(w, *d, *state, m)?,
            Hopper::BulkLoad { .. } => self.bulk_load(w, pc, step, m)?,
            Hopper::BulkStore { .. } => self.bulk_store(w, pc, step, m)?,
            Hopper::MultiplyGroup { d, a, b, add, form, options } => {
                let agent = self.races.start(w.id);
                let is_accumulating = w.p(*add) & 1 != 0;
                let (form, options) = (*form, Options { is_accumulating, ..*options });
                let b = w.d(code, *b)[0];
                let a = match **a {
                    [row] => Left::Descriptor(w.d(code, row)[0]),
                    _ => Left::Registers(a.clone()),
                };
                let work = Work::Product { form, d: d.clone(), a, b, options };
                let task = Task { agent, warp: w.id, block: w.block, lanes: m, pc, work };
                self.submit(w, Queue::Products, task)?;
            }
        }
        Ok(Flow::Next)
    }

    /// Block and place of an address that must be in shared memory.
    pub(super) fn shared_at(
        &self,
        w: &Warp,
        space: Space,
        address: u64,
        bytes: usize,
        align: usize,
    ) -> Result<(usize, usize), String> {
        match Self::resolve(space, address) {
            (Space::Shared | Space::Cluster, at) => self.shared_place(w.block, at, bytes, align),
            _ => Err(format!("expected an address in shared memory, found {address:#x}")),
        }
    }

    /// Makes a product of `wgmma` whose time has come.
    pub(super) fn product(&mut self, w: &mut Warp, task: &Task) -> Run<()> {
        let Work::Product { form, d, a, b, options } = &task.work else { return Ok(()) };
        let code = self.code;
        let mut sums: Vec<Lanes> = d.iter().map(|row| wide(w.r(code, *row))).collect();
        let registers: Vec<Lanes>;
        let source = match a {
            Left::Registers(rows) => {
                registers = rows.iter().map(|row| wide(w.r(code, *row))).collect();
                wgmma::Source::Registers(&registers)
            }
            Left::Descriptor(word) => wgmma::Source::Shared(*word),
        };
        let shared = &mut SharedMemory { block: w.block, agent: task.agent, cluster: self };
        form.execute(w.index as usize % 4, source, *b, *options, &mut sums, shared).map_err(words)?;
        for (row, value) in d.iter().zip(&sums) {
            w.set(*row, u32::MAX, &narrow(value));
        }
        self.counters.count_matrix(form.kind(), form.flops());
        Ok(())
    }

    /// The map of a bulk tensor copy, from parameters, global or constant memory.
    fn tensor_map(&self, w: &Warp, map: &Address, lane: usize) -> Result<TensorMap, String> {
        let address = Self::addresses(self.code, w, map)[lane];
        let mut bytes = [0; TENSOR_MAP_BYTES];
        match Self::resolve(map.space, address) {
            (Space::Param, at) => self.read_parameters(at, &mut bytes)?,
            (Space::Global | Space::Generic, at) => {
                self.view.read(at, &mut bytes).map_err(|bad| refused(false, &bad))?;
            }
            _ => return Err(format!("tensor map at {address:#x}: expected parameters or global memory")),
        }
        if !address.is_multiple_of(64) {
            return Err(format!("tensor map at {address:#x}: expected a multiple of 64"));
        }
        TensorMap::decode(&bytes).map_err(|misuse| misuse.to_string())
    }

    fn box_of(
        &self,
        w: &Warp,
        map: &Address,
        rows: &[Row],
        lane: usize,
    ) -> Result<(Box<TensorMap>, Box<[i32]>), String> {
        let map = Box::new(self.tensor_map(w, map, lane)?);
        if map.rank() != rows.len() {
            return Err(format!("the map has {} axes, the instruction {}", map.rank(), rows.len()));
        }
        Ok((map, rows.iter().map(|row| w.r(self.code, *row)[lane] as i32).collect()))
    }

    fn bulk_load(&mut self, w: &mut Warp, pc: u32, step: &Hopper, m: u32) -> Run<()> {
        let Hopper::BulkLoad { to, from, barrier, blocks, reduction } = step else { return Ok(()) };
        let code = self.code;
        let (tos, bars) = (Self::addresses(code, w, to), Self::addresses(code, w, barrier));
        for l in lanes(m) {
            let place = |space, at, bytes| self.shared_at(w, space, at, bytes, bytes).or_else(|e| trouble_at(l, e));
            let (block, at) = place(to.space, tos[l], 16)?;
            let (bar_block, bar) = place(barrier.space, bars[l], 8)?;
            if block != bar_block {
                return trouble_at(l, format!("the copy goes to block {block}, its barrier is in block {bar_block}"));
            }
            let chosen = blocks.map_or(1 << block, |row| w.r(code, row)[l] & 0xffff);
            if chosen == 0 || chosen >> self.blocks.len() != 0 {
                return trouble_at(l, format!("blocks {chosen:#x} of a cluster of {}", self.blocks.len()));
            }
            let work = match from {
                Source::Box { map, coordinates } => {
                    let (map, coordinates) = self.box_of(w, map, coordinates, l).or_else(|e| trouble_at(l, e))?;
                    Work::LoadBox { map, coordinates, to: at as u32, barrier: bar as u32, blocks: chosen }
                }
                Source::Run { at: source, bytes } => {
                    let (address, bytes) = (Self::addresses(code, w, source)[l], w.r(code, *bytes)[l]);
                    check_copy(at as u64, address, u64::from(bytes)).or_else(|e| trouble_at(l, e.words()))?;
                    let is_from_shared = source.space != Space::Global;
                    let from = if is_from_shared { place(source.space, address, 16)?.1 as u64 } else { address };
                    let (to, barrier) = (at as u32, bar as u32);
                    Work::LoadRun { from, is_from_shared, bytes, to, barrier, blocks: chosen, reduction: *reduction }
                }
            };
            let agent = self.races.start(w.id);
            let task = Task { agent, warp: w.id, block: w.block, lanes: 1 << l, pc, work };
            self.submit_load(task).map_err(|e| at_lane(e, l))?;
        }
        Ok(())
    }

    fn bulk_store(&mut self, w: &mut Warp, pc: u32, step: &Hopper, m: u32) -> Run<()> {
        let Hopper::BulkStore { to, from, reduction } = step else { return Ok(()) };
        let froms = Self::addresses(self.code, w, from);
        for l in lanes(m) {
            let (block, at) = self.shared_at(w, from.space, froms[l], 1, 16).or_else(|e| trouble_at(l, e))?;
            if block != w.block {
                return trouble_at(l, "expected shared memory of the lane's own block");
            }
            let work = match to {
                Source::Box { map, coordinates } => {
                    let (map, coordinates) = self.box_of(w, map, coordinates, l).or_else(|e| trouble_at(l, e))?;
                    Work::StoreBox { map, coordinates, from: at as u32, reduction: reduction.map(|r| r.0) }
                }
                Source::Run { at: target, bytes } => {
                    let (address, bytes) = (Self::addresses(self.code, w, target)[l], w.r(self.code, *bytes)[l]);
                    check_copy(address, at as u64, u64::from(bytes)).or_else(|e| trouble_at(l, e.words()))?;
                    Work::StoreRun { from: at as u32, to: address, bytes, reduction: *reduction }
                }
            };
            let agent = self.races.start(w.id);
            let task = Task { agent, warp: w.id, block: w.block, lanes: 1 << l, pc, work };
            self.submit(w, Queue::Stores, task).map_err(|e| at_lane(e, l))?;
        }
        Ok(())
    }
}

/// Whether all lanes of the warp must execute it together.
fn is_collective(step: &Hopper) -> bool {
    matches!(
        step,
        Hopper::MultiplyGroup { .. }
            | Hopper::Commit { queue: Queue::Products }
            | Hopper::Wait { queue: Queue::Products, .. }
    )
}

/// The trouble of a misuse.
pub(super) fn words(misuse: Misuse) -> Box<Trouble> {
    Box::new(Trouble { lane: None, what: misuse.words().to_owned() })
}

/// The same trouble, of a lane.
fn at_lane(mut trouble: Box<Trouble>, lane: usize) -> Box<Trouble> {
    trouble.lane.get_or_insert(lane as u32);
    trouble
}
