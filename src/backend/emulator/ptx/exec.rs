//! The loop that executes a warp.

use super::cluster::{Cluster, Run, Trouble, trouble, trouble_at};
use super::code::Code;
use super::float::{float1, float2, fma};
use super::half::widen_pair;
use super::integer::{combine, compare, int1, int2, int3, logic, long1, long2};
use super::op::{Compare, Number, Op, Row, Special, TRUE};
use super::rare::rare;
use super::warp::{Group, Lanes32, Lanes64, Wait, Warp, lanes};

/// What a step does to the place where its lanes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Jump(u32),
    /// The step has changed the groups of the warp itself.
    Regroup,
}

/// A group lets others of its warp go first after so many steps: lanes that poll must not starve those they wait for.
const PATIENCE: u32 = 4096;

impl Cluster<'_> {
    /// Runs a warp for up to `slice` steps, or until all of its lanes wait or have exited. Gives the steps taken; a fault comes
    /// with the step at which it stands.
    pub(super) fn run(&mut self, w: &mut Warp, slice: u32) -> Result<u32, (u32, Box<Trouble>)> {
        let code = self.code;
        self.blocks[w.block].has_begun = true;
        let mut left = slice;
        while left > 0 {
            let Some(g) = next_group(w) else { break };
            let is_alone = w.groups.len() == 1;
            let Group { mut pc, mask: active, .. } = w.groups[g];
            let mut steps = 0;
            loop {
                let meets_others =
                    !is_alone && steps > 0 && w.groups.iter().enumerate().any(|(i, o)| i != g && o.pc == pc);
                if left == 0 || meets_others || (!is_alone && steps > PATIENCE) {
                    w.groups[g].pc = pc;
                    if steps > PATIENCE {
                        w.turn += 1;
                        w.groups[g].rank = w.turn;
                    }
                    merge(w, g);
                    break;
                }
                left -= 1;
                steps += 1;
                let step = &code.steps[pc as usize];
                let mask = active & w.p(step.guard);
                self.hits[pc as usize] += 1;
                self.lane_hits[pc as usize] += u64::from(mask.count_ones());
                match self.step(w, g, pc, &step.op, mask) {
                    Ok(Flow::Next) => pc += 1,
                    Ok(Flow::Jump(to)) => {
                        pc = to;
                        if !is_alone {
                            w.groups[g].pc = pc;
                            merge(w, g);
                            break;
                        }
                    }
                    Ok(Flow::Regroup) => break,
                    Err(trouble) => return Err((pc, trouble)),
                }
            }
            self.clock += u64::from(steps);
        }
        Ok(slice - left)
    }

    #[inline(always)]
    fn step(&mut self, w: &mut Warp, g: usize, pc: u32, op: &Op, m: u32) -> Run<Flow> {
        let code = self.code;
        match *op {
            Op::Nop | Op::Fence => {}
            Op::Int1 { f, d, a } => {
                let out = int1(f, w.r(code, a));
                w.set(d, m, &out);
            }
            Op::Int2 { f, d, a, b } => {
                let out = int2(f, w.r(code, a), w.r(code, b));
                w.set(d, m, &out);
            }
            Op::Int3 { f, k, d, a, b, c } => {
                let out = int3(f, k, w.r(code, a), w.r(code, b), w.r(code, c));
                w.set(d, m, &out);
            }
            Op::Long1 { f, d, a } => {
                let out = long1(f, w.d(code, a));
                w.set64(d, m, &out);
            }
            Op::Long2 { f, d, a, b } => {
                let out = long2(f, w.d(code, a), w.d(code, b));
                w.set64(d, m, &out);
            }
            Op::Float2 { f, mode, d, a, b } => {
                let out = float2(f, mode, w.r(code, a), w.r(code, b));
                w.set(d, m, &out);
            }
            Op::Fma { mode, d, a, b, c } => {
                let out = fma(mode, w.r(code, a), w.r(code, b), w.r(code, c));
                w.set(d, m, &out);
            }
            Op::Float1 { f, mode, d, a } => {
                let out = float1(f, mode, w.r(code, a));
                w.set(d, m, &out);
            }
            Op::Setp { n, f, with, p, q, a, b, c } => {
                let bits = compared(code, w, n, f, a, b);
                let other = w.p(c);
                w.set_p(p, m, combine(with, bits, other));
                w.set_p(q, m, combine(with, !bits, other));
            }
            Op::Select { d, a, b, p } => {
                let (out, bits) = (*w.r(code, b), w.p(p));
                let mut out = out;
                let a = w.r(code, a);
                for l in 0..32 {
                    out[l] = if bits >> l & 1 != 0 { a[l] } else { out[l] };
                }
                w.set(d, m, &out);
            }
            Op::Predicate { f, d, a, b } => {
                let out = logic(f, w.p(a), w.p(b));
                w.set_p(d, m, out);
            }
            Op::Branch { to } => return Ok(self.branch(w, g, pc, to, m)),
            Op::Load(i) => self.load(w, &code.memory[i as usize], m)?,
            Op::Store(i) => self.store(w, &code.memory[i as usize], m)?,
            Op::Atomic(i) => self.atomic(w, &code.memory[i as usize], m)?,
            Op::Exit => return Ok(self.exit(w, g, pc, m)),
            Op::Trap if m != 0 => return trouble("the kernel stopped itself"),
            Op::Trap => {}
            Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::ActiveMask { .. }
            | Op::Elect { .. }
            | Op::Redux { .. }
            | Op::WarpSync { .. } => return self.exchange(w, g, pc, op, m),
            Op::Barrier(i) => return self.block_barrier(w, g, pc, i, m),
            Op::ClusterArrive | Op::ClusterWait => return self.cluster_barrier(w, g, pc, op, m),
            Op::Unit(i) => return self.unit(w, g, pc, i, m),
            Op::Hopper(i) => return self.hopper(w, g, pc, i, m),
            Op::Table { list, a } => return self.table(w, g, pc, &code.tables[list as usize], a, m),
            Op::Nanosleep => {
                // Others may go first.
                w.turn += 1;
                w.groups[g].rank = w.turn;
            }
            _ => return rare(self, w, op, m),
        }
        Ok(Flow::Next)
    }

    fn branch(&mut self, w: &mut Warp, g: usize, pc: u32, to: u32, m: u32) -> Flow {
        let active = w.groups[g].mask;
        if m == active {
            return Flow::Jump(to);
        }
        if m == 0 {
            return Flow::Next;
        }
        w.groups[g].mask = active & !m;
        w.groups[g].pc = pc + 1;
        let rank = w.groups[g].rank;
        w.groups.push(Group { pc: to, mask: m, rank, wait: Wait::No });
        merge(w, g);
        let last = w.groups.len() - 1;
        merge(w, last);
        Flow::Regroup
    }

    fn table(&mut self, w: &mut Warp, g: usize, pc: u32, targets: &[u32], a: Row, m: u32) -> Run<Flow> {
        let index = *w.r(self.code, a);
        let rank = w.groups[g].rank;
        w.groups[g].mask &= !m;
        w.groups[g].pc = pc + 1;
        for l in lanes(m) {
            let Some(&to) = targets.get(index[l] as usize) else {
                return trouble_at(l, format!("index {} of {} targets", index[l], targets.len()));
            };
            match w.groups.iter_mut().find(|o| o.pc == to && o.mask & m != 0) {
                Some(group) => group.mask |= 1 << l,
                None => w.groups.push(Group { pc: to, mask: 1 << l, rank, wait: Wait::No }),
            }
        }
        w.groups.retain(|o| o.mask != 0);
        let last = w.groups.len() - 1;
        merge(w, last);
        Ok(Flow::Regroup)
    }

    fn exit(&mut self, w: &mut Warp, g: usize, pc: u32, m: u32) -> Flow {
        if m == 0 {
            return Flow::Next;
        }
        self.progress += 1;
        w.live &= !m;
        self.blocks[w.block].live -= m.count_ones();
        w.groups[g].mask &= !m;
        w.groups[g].pc = pc + 1;
        if w.groups[g].mask == 0 {
            w.groups.swap_remove(g);
        }
        // Nobody waits for lanes that are gone.
        for group in w.groups.iter_mut().filter(|o| o.wait == Wait::Lanes { may_exit: true }) {
            group.wait = Wait::No;
        }
        self.left_block(w);
        Flow::Regroup
    }

    /// The value of a special register in each lane.
    pub(super) fn special(&self, w: &Warp, which: Special) -> Lanes64 {
        let block = &self.blocks[w.block];
        let axis = |i: u8| usize::from(i);
        let per_lane = |f: &dyn Fn(u32) -> u32| -> Lanes64 { std::array::from_fn(|l| u64::from(f(l as u32))) };
        let all = |v: u32| -> Lanes64 { [u64::from(v); 32] };
        let rank = w.block as u32;
        let [cx, cy, _] = self.cluster;
        let place = [rank % cx, rank / cx % cy, rank / (cx * cy)];
        match which {
            Special::Tid(i) => {
                let [x, y, _] = self.block;
                per_lane(&|l| {
                    let t = w.index * 32 + l;
                    [t % x, t / x % y, t / (x * y)][axis(i)]
                })
            }
            Special::Ntid(i) => all(self.block[axis(i)]),
            Special::Ctaid(i) => all(block.index[axis(i)]),
            Special::Nctaid(i) => all(self.grid[axis(i)]),
            Special::LaneId => per_lane(&|l| l),
            Special::WarpId => all(w.index),
            Special::NWarpId => all(self.warps_per_block),
            // One multiprocessor a block: no two blocks share one.
            Special::SmId => {
                all((block.index[0] + self.grid[0] * (block.index[1] + self.grid[1] * block.index[2])) % 132)
            }
            Special::NSmId => all(132),
            Special::GridId | Special::Zero => all(0),
            Special::LaneMask(f) => per_lane(&|l| match f {
                Compare::Eq => 1 << l,
                Compare::Lt => (1 << l) - 1,
                Compare::Le => u32::MAX >> (31 - l),
                Compare::Gt => !(u32::MAX >> (31 - l)),
                _ => !((1 << l) - 1),
            }),
            Special::Clock | Special::TimerLo => [self.clock; 32],
            Special::ClockHi | Special::TimerHi => [self.clock >> 32; 32],
            Special::ClusterId(i) => all(block.index[axis(i)] / self.cluster[axis(i)]),
            Special::NClusterId(i) => all(self.grid[axis(i)] / self.cluster[axis(i)]),
            Special::ClusterCtaid(i) => all(place[axis(i)]),
            Special::ClusterNctaid(i) => all(self.cluster[axis(i)]),
            Special::ClusterCtaRank => all(rank),
            Special::ClusterNctaRank => all(self.blocks.len() as u32),
            Special::IsExplicitCluster => all(u32::from(self.is_explicit_cluster)),
            Special::DynamicSharedBytes => all(self.dynamic_shared),
            Special::TotalSharedBytes | Special::AggregateSharedBytes => all(block.shared.len() as u32),
        }
    }
}

/// The group that goes next: it gave way least often, and of those the one that is furthest behind.
fn next_group(w: &Warp) -> Option<usize> {
    let ready = w.groups.iter().enumerate().filter(|(_, g)| matches!(g.wait, Wait::No | Wait::TimedOut));
    ready.min_by_key(|(_, g)| (g.rank, g.pc)).map(|(i, _)| i)
}

/// Joins group `g` with others that stand at the same step and wait for nothing but one another.
fn merge(w: &mut Warp, g: usize) {
    let Some(Group { pc, .. }) = w.groups.get(g).cloned() else { return };
    let is_open = |wait: Wait| matches!(wait, Wait::No | Wait::Lanes { .. });
    if !is_open(w.groups[g].wait) || !w.groups.iter().enumerate().any(|(i, o)| i != g && o.pc == pc && is_open(o.wait))
    {
        return;
    }
    let mut all = Group { pc, mask: 0, rank: u64::MAX, wait: Wait::No };
    w.groups.retain(|o| {
        let joins = o.pc == pc && is_open(o.wait);
        if joins {
            all.mask |= o.mask;
            all.rank = all.rank.min(o.rank);
        }
        !joins
    });
    w.groups.push(all);
}

#[inline(always)]
pub(super) fn compared(code: &Code, w: &Warp, n: Number, f: Compare, a: Row, b: Row) -> u32 {
    match n {
        Number::U32 => compare(f, w.r(code, a), w.r(code, b)),
        Number::S32 => {
            // The sign bit flipped, signed order is unsigned order.
            let flip = |x: &Lanes32| x.map(|x| x ^ 0x8000_0000);
            compare(f, &flip(w.r(code, a)), &flip(w.r(code, b)))
        }
        Number::F32 => {
            let float = |x: &Lanes32| x.map(f32::from_bits);
            compare(f, &float(w.r(code, a)), &float(w.r(code, b)))
        }
        Number::U64 => compare(f, w.d(code, a), w.d(code, b)),
        Number::S64 => {
            let flip = |x: &Lanes64| x.map(|x| x ^ 1 << 63);
            compare(f, &flip(w.d(code, a)), &flip(w.d(code, b)))
        }
        Number::F64 => {
            let float = |x: &Lanes64| x.map(f64::from_bits);
            compare(f, &float(w.d(code, a)), &float(w.d(code, b)))
        }
        Number::U16 | Number::S16 => {
            let flip = if n == Number::S16 { 0x8000 } else { 0 };
            let low = |x: &Lanes32| x.map(|x| (x ^ flip) & 0xffff);
            compare(f, &low(w.r(code, a)), &low(w.r(code, b)))
        }
        _ => {
            let low = |x: &Lanes32| x.map(|x| widen_pair(n, x)[0]);
            compare(f, &low(w.r(code, a)), &low(w.r(code, b)))
        }
    }
}

impl Cluster<'_> {
    /// Whether all lanes of `needed` stand here; else the group waits for them, if they can still come. Lanes that exit are
    /// not needed at a barrier; elsewhere only those that are about to, so that one which passes by is found.
    pub(super) fn gathered(&mut self, w: &mut Warp, g: usize, pc: u32, needed: u32, is_barrier: bool) -> bool {
        let missing = needed & w.live & !w.groups[g].mask;
        if missing != 0 {
            let leaves = |o: &&Group| {
                let op = self.code.steps.get(o.pc as usize).map(|s| (s.op, s.guard));
                matches!(op, Some((Op::Exit, TRUE)))
            };
            let leaving = w.groups.iter().filter(leaves).fold(0, |lanes, o| lanes | o.mask);
            w.groups[g].wait = Wait::Lanes { may_exit: is_barrier || missing & !leaving == 0 };
            w.groups[g].pc = pc;
            self.hits[pc as usize] -= 1;
        }
        missing == 0
    }
}
