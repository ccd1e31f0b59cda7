//! Barriers in shared memory, and bulk copies.

use super::{Decoder, Modifiers};
use crate::backend::emulator::counters::Class;
use crate::backend::emulator::ptx::hopper_op::{BarrierAct, Hopper, Queue, Source};
use crate::backend::emulator::ptx::long_op::Space;
use crate::backend::emulator::ptx::op::{Op, SINK};
use crate::backend::emulator::ptx::syntax::{Operand, Type};
use crate::backend::emulator::ptx::units::reduction::{Reduction, function};
use crate::error::Result;

impl Decoder<'_> {
    pub(super) fn mbarrier(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        m.has("b64");
        m.one_of(&["acquire", "release", "relaxed"]);
        m.one_of(&["cta", "cluster"]);
        if m.has("pending_count") {
            let (d, state) = (self.dst(self.arg(o, 0)?, Type::B32)?, self.src64(self.arg(o, 1)?, Type::B64)?);
            self.hopper_step(Hopper::PendingCount { d, state });
            return Ok(Class::Sync);
        }
        let act =
            m.one_of(&["init", "inval", "arrive", "arrive_drop", "expect_tx", "complete_tx", "test_wait", "try_wait"]);
        let act = act.ok_or_else(|| self.wrong("this operation on a barrier is not emulated"))?;
        let space = Self::space(m);
        match act {
            "test_wait" | "try_wait" => {
                let has_parity = m.has("parity");
                let (p, at) = (self.predicate_dst(self.arg(o, 0)?)?, self.address(self.arg(o, 1)?, space)?);
                let phase = self.arg(o, 2)?;
                let parity = if has_parity { Some(self.src32(phase, Type::U32)?) } else { None };
                let state = if has_parity { SINK } else { self.src64(phase, Type::B64)? };
                self.hopper_step(Hopper::Poll { p, at, parity, state });
            }
            "arrive" | "arrive_drop" => self.arrive(act == "arrive_drop", m, o, space)?,
            _ => {
                let at = self.address(self.arg(o, 0)?, space)?;
                let number = if act == "inval" { SINK } else { self.src32(self.arg(o, 1)?, Type::U32)? };
                let act = match act {
                    "init" => BarrierAct::Init { count: number },
                    "inval" => BarrierAct::Invalidate,
                    "expect_tx" => BarrierAct::ExpectBytes { bytes: number },
                    _ => BarrierAct::CompleteBytes { bytes: number },
                };
                self.hopper_step(Hopper::Barrier { at, act });
            }
        }
        Ok(Class::Sync)
    }

    fn arrive(&mut self, drops: bool, m: &mut Modifiers, o: &[Operand], space: Space) -> Result<()> {
        let has_bytes = m.has("expect_tx");
        let is_last_barred = m.has("noComplete");
        // The state may be left out where the barrier is another block's.
        let skip = usize::from(!matches!(self.arg(o, 0)?, Operand::Address(..)));
        let state = if skip == 1 { self.dst(&o[0], Type::B64)? } else { SINK };
        let at = self.address(self.arg(o, skip)?, space)?;
        let number = o.get(skip + 1).map(|n| self.src32(n, Type::U32)).transpose()?;
        let (count, bytes) = if has_bytes { (None, number) } else { (number, None) };
        if has_bytes && bytes.is_none() {
            return Err(self.wrong("expected a number of bytes"));
        }
        self.hopper_step(Hopper::Barrier {
            at,
            act: BarrierAct::Arrive { state, count, bytes, is_last_barred, drops },
        });
        Ok(())
    }

    /// `cp.async.bulk`, `cp.reduce.async.bulk`, and their groups.
    pub(super) fn bulk_copy(&mut self, m: &mut Modifiers, o: &[Operand]) -> Result<Class> {
        m.has("async");
        m.has("bulk");
        if m.has("commit_group") {
            self.hopper_step(Hopper::Commit { queue: Queue::Stores });
            return Ok(Class::Async);
        }
        if m.has("wait_group") {
            // What still reads shared memory and what is not yet written are done at the same time here.
            m.has("read");
            let left = self.integer(self.arg(o, 0)?)? as u32;
            self.hopper_step(Hopper::Wait { queue: Queue::Stores, left });
            return Ok(Class::Sync);
        }
        if m.has("prefetch") {
            m.clear();
            self.push(Op::Nop);
            return Ok(Class::Async);
        }
        super::memory::drop_cache_hints(m);
        let is_reduction = m.has("reduce");
        m.has("noftz");
        if m.has("tensor") {
            self.tensor_copy(is_reduction, m, o)?;
        } else {
            self.run_copy(is_reduction, m, o)?;
        }
        Ok(Class::Async)
    }

    fn tensor_copy(&mut self, is_reduction: bool, m: &mut Modifiers, o: &[Operand]) -> Result<()> {
        let rank = m.one_of(&["1d", "2d", "3d", "4d", "5d"]).map_or(0, |d| usize::from(d.as_bytes()[0] - b'0'));
        m.has("tile");
        let reduction = if is_reduction { Some((self.reduction(m)?, "")) } else { None };
        let is_store = m.has("bulk_group");
        let (near, far) = if is_store { (1, 0) } else { (0, 1) };
        let Operand::Address(list, 0) = self.arg(o, far)? else {
            return Err(self.wrong("expected a map and coordinates"));
        };
        let [map, coordinates] = list.as_slice() else { return Err(self.wrong("expected a map and coordinates")) };
        let map = self.address_of(map, 0, Space::Generic)?;
        let coordinates = self.sources(coordinates, Type::S32)?;
        if coordinates.len() != rank {
            return Err(self.wrong(format!("expected {rank} coordinates, found {}", coordinates.len())));
        }
        let tensor = Source::Box { map, coordinates };
        if is_store {
            let is_known = m.has("global") & m.has("shared::cta");
            let from = self.address(self.arg(o, near)?, Space::Shared)?;
            self.code.has_global_atomics |= is_reduction;
            return self.known(is_known, Hopper::BulkStore { to: tensor, from, reduction });
        }
        let is_known = m.has("global") & (m.has("shared::cluster") | m.has("shared::cta")) & !is_reduction;
        self.load(is_known, m, o, tensor, 2)
    }

    fn run_copy(&mut self, is_reduction: bool, m: &mut Modifiers, o: &[Operand]) -> Result<()> {
        let reduction = if is_reduction {
            let number = m.one_of(&["f16", "bf16", "f32", "f64", "u32", "s32", "b32", "u64", "s64", "b64"]);
            let number = number.ok_or_else(|| self.wrong("expected a type"))?;
            let reduction = self.reduction(m)?;
            function(reduction, number).map_err(|misuse| self.wrong(misuse))?;
            Some((reduction, number))
        } else {
            None
        };
        let bytes = self.src32(self.arg(o, 2)?, Type::U32)?;
        let spaces: Vec<&str> =
            m.peek().iter().copied().filter(|s| *s == "global" || s.starts_with("shared")).collect();
        m.rest.retain(|s| !spaces.contains(s));
        match spaces.as_slice() {
            ["global", "shared::cta"] => {
                let to = Source::Run { at: self.address(self.arg(o, 0)?, Space::Global)?, bytes };
                let from = self.address(self.arg(o, 1)?, Space::Shared)?;
                let is_known = m.has("bulk_group");
                self.code.has_global_atomics |= is_reduction;
                self.known(is_known, Hopper::BulkStore { to, from, reduction })
            }
            ["shared::cluster" | "shared::cta", from @ ("global" | "shared::cta")] => {
                let space = if *from == "global" { Space::Global } else { Space::Shared };
                let from = Source::Run { at: self.address(self.arg(o, 1)?, space)?, bytes };
                if is_reduction {
                    let (to, barrier) =
                        (self.address(&o[0], Space::Cluster)?, self.address(self.arg(o, 3)?, Space::Cluster)?);
                    let is_known = m.has("mbarrier::complete_tx::bytes");
                    return self.known(is_known, Hopper::BulkLoad { to, from, barrier, blocks: None, reduction });
                }
                self.load(true, m, o, from, 3)
            }
            other => Err(self.wrong(format!("a bulk copy between {other:?} is not emulated"))),
        }
    }

    /// A copy into shared memory, whose barrier is operand `at` and, with multicast, whose blocks are the one after.
    fn load(&mut self, is_known: bool, m: &mut Modifiers, o: &[Operand], from: Source, at: usize) -> Result<()> {
        let is_known = is_known & m.has("mbarrier::complete_tx::bytes");
        let to = self.address(self.arg(o, 0)?, Space::Cluster)?;
        let barrier = self.address(self.arg(o, at)?, Space::Cluster)?;
        let blocks =
            if m.has("multicast::cluster") { Some(self.src32(self.arg(o, at + 1)?, Type::U16)?) } else { None };
        self.known(is_known, Hopper::BulkLoad { to, from, barrier, blocks, reduction: None })
    }

    fn known(&mut self, is_known: bool, step: Hopper) -> Result<()> {
        if !is_known {
            return Err(self.wrong("this form of bulk copy is not emulated"));
        }
        self.hopper_step(step);
        Ok(())
    }

    fn reduction(&self, m: &mut Modifiers) -> Result<Reduction> {
        let name = m.one_of(&["add", "min", "max", "inc", "dec", "and", "or", "xor"]);
        name.and_then(Reduction::parse).ok_or_else(|| self.wrong("expected an operation"))
    }
}
