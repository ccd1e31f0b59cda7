//! The loop that executes a warp.

use super::cluster::{Cluster, Run, Trouble, trouble, trouble_at};
use super::code::Code;
use super::convert::convert;
use super::float::{double_fma, double1, double2, float1, float2, fma, test};
use super::half::{half_fma, half1, half2, widen_pair};
use super::integer::{
    carry, combine, compare, count64, extract64, insert, int1, int2, int3, logic, long1, long2, mad_carry, mad_wide,
    mad_wide16, shift64, short1, short2,
};
use super::op::{Compare, Mode, Number, Op, Row, Special};
use super::warp::{Group, Lanes32, Lanes64, Wait, Warp};
use super::window;

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
        for l in super::warp::lanes(m) {
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
    let is_open = |wait: Wait| matches!(wait, Wait::No | Wait::Lanes);
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
fn compared(code: &Code, w: &Warp, n: Number, f: Compare, a: Row, b: Row) -> u32 {
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

/// Steps that are seldom executed, kept out of the loop.
#[inline(never)]
fn rare(cluster: &mut Cluster, w: &mut Warp, op: &Op, m: u32) -> Run<Flow> {
    let code = cluster.code;
    match *op {
        Op::Count64 { f, d, a } => {
            let out = count64(f, w.d(code, a));
            w.set(d, m, &out);
        }
        Op::Short2 { f, d, a, b } => {
            let out = short2(f, w.r(code, a), w.r(code, b));
            w.set(d, m, &out);
        }
        Op::Short1 { f, d, a } => {
            let out = short1(f, w.r(code, a));
            w.set(d, m, &out);
        }
        Op::Shift64 { f, d, a, b } => {
            let out = shift64(f, w.d(code, a), w.r(code, b));
            w.set64(d, m, &out);
        }
        Op::Mad64 { d, a, b, c } => {
            let product = long2(super::op::I2::Mul, w.d(code, a), w.d(code, b));
            let out = long2(super::op::I2::Add, &product, w.d(code, c));
            w.set64(d, m, &out);
        }
        Op::MadWide { is_signed, d, a, b, c } => {
            let out = mad_wide(is_signed, w.r(code, a), w.r(code, b), w.d(code, c));
            w.set64(d, m, &out);
        }
        Op::MadWide16 { is_signed, d, a, b, c } => {
            let out = mad_wide16(is_signed, w.r(code, a), w.r(code, b), w.r(code, c));
            w.set(d, m, &out);
        }
        Op::Bfi { d, a, b, c, e } => {
            let [a, b, c, e] = [a, b, c, e].map(|row| *w.r(code, row));
            let out = std::array::from_fn(|l| insert(u64::from(a[l]), u64::from(b[l]), c[l], e[l], 32) as u32);
            w.set(d, m, &out);
        }
        Op::Bfi64 { d, a, b, c, e } => {
            let (a, b, c, e) = (w.d(code, a), w.d(code, b), w.r(code, c), w.r(code, e));
            let out = std::array::from_fn(|l| insert(a[l], b[l], c[l], e[l], 64));
            w.set64(d, m, &out);
        }
        Op::Bfe64 { is_signed, d, a, b, c } => {
            let out = extract64(is_signed, w.d(code, a), w.r(code, b), w.r(code, c));
            w.set64(d, m, &out);
        }
        Op::Carry { is_sub, takes, gives, is_long, d, a, b } => {
            carry(w, code, m, [is_sub, takes, gives, is_long], [d, a, b]);
        }
        Op::MadCarry { is_high, is_signed, takes, gives, d, a, b, c } => {
            mad_carry(w, code, m, [is_high, is_signed, takes, gives], [d, a, b, c]);
        }
        Op::Select64 { d, a, b, p } => {
            let bits = w.p(p);
            let (a, b) = (w.d(code, a), w.d(code, b));
            let out = std::array::from_fn(|l| if bits >> l & 1 != 0 { a[l] } else { b[l] });
            w.set64(d, m, &out);
        }
        Op::Slct64 { is_float, d, a, b, c } => {
            let (a, b, c) = (w.d(code, a), w.d(code, b), w.r(code, c));
            let takes = |c: u32| if is_float { f32::from_bits(c) >= 0.0 } else { c as i32 >= 0 };
            let out = std::array::from_fn(|l| if takes(c[l]) { a[l] } else { b[l] });
            w.set64(d, m, &out);
        }
        Op::Set { n, f, with, gives_float, d, a, b, c } => {
            let bits = combine(with, compared(code, w, n, f, a, b), w.p(c));
            let one = if gives_float { 1f32.to_bits() } else { u32::MAX };
            let out = std::array::from_fn(|l| if bits >> l & 1 != 0 { one } else { 0 });
            w.set(d, m, &out);
        }
        Op::Double1 { f, mode, d, a } => {
            let out = double1(f, mode, w.d(code, a));
            w.set64(d, m, &out);
        }
        Op::Double2 { f, mode, d, a, b } => {
            let out = double2(f, mode, w.d(code, a), w.d(code, b));
            w.set64(d, m, &out);
        }
        Op::DoubleFma { mode, d, a, b, c } => {
            let out = double_fma(mode, w.d(code, a), w.d(code, b), w.d(code, c));
            w.set64(d, m, &out);
        }
        Op::Half1 { n, f, mode, d, a } => {
            let out = half1(n, f, mode, w.r(code, a));
            w.set(d, m, &out);
        }
        Op::Half2 { n, f, mode, d, a, b } => {
            let out = half2(n, f, mode, w.r(code, a), w.r(code, b));
            w.set(d, m, &out);
        }
        Op::HalfFma { n, mode, d, a, b, c } => {
            let out = half_fma(n, mode, w.r(code, a), w.r(code, b), w.r(code, c));
            w.set(d, m, &out);
        }
        Op::Convert { to, from, mode, d, a, b } => {
            let mode = Mode::unpack(mode);
            let source = |row: Row, l: usize| {
                if from.bytes() == 8 { w.d(code, row)[l] } else { u64::from(w.r(code, row)[l]) }
            };
            let b_row = |l: usize| if from.bytes() == 8 { 0 } else { source(b, l) };
            let out: Lanes64 = std::array::from_fn(|l| convert(to, from, mode, source(a, l), b_row(l)));
            if to.bytes() == 8 { w.set64(d, m, &out) } else { w.set(d, m, &out.map(|v| v as u32)) }
        }
        _ => return seldom(cluster, w, op, m),
    }
    Ok(Flow::Next)
}

/// Moves of parts, special registers, addresses.
fn seldom(cluster: &mut Cluster, w: &mut Warp, op: &Op, m: u32) -> Run<Flow> {
    let code = cluster.code;
    match *op {
        Op::Testp { k, is_double, p, a } => {
            let mut bits = 0;
            for l in 0..32 {
                let holds = if is_double {
                    let x = f64::from_bits(w.d(code, a)[l]);
                    test(k, x, x.is_subnormal())
                } else {
                    let x = f32::from_bits(w.r(code, a)[l]);
                    test(k, f64::from(x), x.is_subnormal())
                };
                bits |= u32::from(holds) << l;
            }
            w.set_p(p, m, bits);
        }
        Op::Pack64 { d, a, b } => {
            let (a, b) = (w.r(code, a), w.r(code, b));
            let out = std::array::from_fn(|l| u64::from(b[l]) << 32 | u64::from(a[l]));
            w.set64(d, m, &out);
        }
        Op::Unpack64 { d, e, a } => {
            let a = *w.d(code, a);
            w.set(d, m, &a.map(|v| v as u32));
            w.set(e, m, &a.map(|v| (v >> 32) as u32));
        }
        Op::Pack32 { d, a, b } => {
            let (a, b) = (w.r(code, a), w.r(code, b));
            let out = std::array::from_fn(|l| b[l] << 16 | (a[l] & 0xffff));
            w.set(d, m, &out);
        }
        Op::Unpack32 { d, e, a } => {
            let a = *w.r(code, a);
            w.set(d, m, &a.map(|v| v & 0xffff));
            w.set(e, m, &a.map(|v| v >> 16));
        }
        Op::Pack16x4 { d, a } => {
            let out = std::array::from_fn(|l| {
                (0..4).fold(0, |word, i| word | u64::from(w.r(code, a[i])[l] & 0xffff) << (16 * i))
            });
            w.set64(d, m, &out);
        }
        Op::Unpack16x4 { d, a } => {
            let a = *w.d(code, a);
            for (i, d) in d.into_iter().enumerate() {
                w.set(d, m, &a.map(|v| (v >> (16 * i)) as u32 & 0xffff));
            }
        }
        Op::Special { which, d } => {
            let out = cluster.special(w, which).map(|v| v as u32);
            w.set(d, m, &out);
        }
        Op::Special64 { which, d } => {
            let out = cluster.special(w, which);
            w.set64(d, m, &out);
        }
        Op::Window { base, is_into, d, a } => return cluster.window(w, base, is_into, [d, a], m),
        Op::IsSpace { base, p, a } => {
            let a = w.d(code, a);
            let bits = (0..32).fold(0, |bits, l| bits | u32::from(window::of(a[l]) == base) << l);
            w.set_p(p, m, bits);
        }
        Op::MapRank { is_long, is_generic, d, a, b } => {
            let rank = *w.r(code, b);
            let map = |at: u64, rank: u32| {
                let low = at & ((1 << window::RANK_SHIFT) - 1);
                let window = if is_generic { window::SHARED } else { 0 };
                window | u64::from(rank.wrapping_add(1)) << window::RANK_SHIFT | low
            };
            let blocks = cluster.blocks.len() as u32;
            if let Some(l) = super::warp::lanes(m).find(|&l| rank[l] >= blocks) {
                return trouble_at(l, format!("rank {} in a cluster of {blocks}", rank[l]));
            }
            if is_long {
                let a = w.d(code, a);
                let out = std::array::from_fn(|l| map(a[l], rank[l]));
                w.set64(d, m, &out);
            } else {
                let a = w.r(code, a);
                let out = std::array::from_fn(|l| map(u64::from(a[l]), rank[l]) as u32);
                w.set(d, m, &out);
            }
        }
        Op::RankOf { is_long, d, a } => {
            let own = w.block as u32;
            let rank = |at: u64| ((at & 0xffff_ffff) >> window::RANK_SHIFT) as u32;
            let out = std::array::from_fn(|l| {
                let at = if is_long { w.d(code, a)[l] } else { u64::from(w.r(code, a)[l]) };
                if rank(at) == 0 { own } else { rank(at) - 1 }
            });
            w.set(d, m, &out);
        }
        _ => return trouble(format!("{op:?} is not executed")),
    }
    Ok(Flow::Next)
}

impl Cluster<'_> {
    /// `cvta` of a space that has a window.
    fn window(&self, w: &mut Warp, base: u64, is_into: bool, [d, a]: [Row; 2], m: u32) -> Run<Flow> {
        let a = *w.d(self.code, a);
        let mut out = a;
        for l in super::warp::lanes(m) {
            if is_into {
                if window::of(a[l]) != base {
                    return trouble_at(l, format!("address {:#x} does not lie in this space", a[l]));
                }
                out[l] = a[l] & !(0xff << 56);
            } else {
                out[l] = a[l] & 0xffff_ffff | base;
            }
        }
        w.set64(d, m, &out);
        Ok(Flow::Next)
    }

    /// Whether all lanes of `needed` stand here; else the group waits for them, if they can still come.
    pub(super) fn gathered(&mut self, w: &mut Warp, g: usize, pc: u32, needed: u32) -> bool {
        let missing = needed & w.live & !w.groups[g].mask;
        if missing != 0 {
            w.groups[g].wait = Wait::Lanes;
            w.groups[g].pc = pc;
            self.hits[pc as usize] -= 1;
        }
        missing == 0
    }
}
