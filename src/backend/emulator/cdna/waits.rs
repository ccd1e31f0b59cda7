//! Memory instructions whose results are not there yet, and `s_waitcnt`.
//!
//! Under a late schedule a result reaches its registers when a wait demands it and not before. An instruction that uses such
//! a register earlier is a fault, as is one that writes it; the registers hold poison meanwhile.
//!
//! Global memory is accessed when the instruction is issued, because waves of a workgroup reach it in order through one
//! cache; what is late is the register. LDS is accessed late, as its queue is only emptied by waits. Vector memory and
//! LDS complete in order; scalar memory in any order, so only a wait for zero completes it.

use std::collections::VecDeque;

use super::micro::{Micro, Step, Trap};
use super::shared::Shared;
use super::wave::{LANES, Lanes, POISON, Wave};

/// Registers, as bits: the unified vector file and the scalar file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) vector: [u64; 8],
    pub(super) scalar: u128,
}

impl Registers {
    pub(super) fn add_vector(&mut self, first: u16, count: u16) {
        for r in first..first + count {
            self.vector[usize::from(r / 64) & 7] |= 1 << (r % 64);
        }
    }

    pub(super) fn add_scalar(&mut self, first: u8, count: u8) {
        for r in first..first.saturating_add(count) {
            self.scalar |= 1u128.checked_shl(u32::from(r)).unwrap_or(0);
        }
    }

    #[inline]
    fn overlaps(&self, other: &Registers) -> bool {
        let mut any = self.scalar & other.scalar != 0;
        for (a, b) in self.vector.iter().zip(&other.vector) {
            any |= a & b != 0;
        }
        any
    }
}

/// Which counter an instruction holds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    /// Vector memory.
    Vector,
    /// LDS.
    Lds,
    /// Scalar memory.
    Scalar,
}

/// An instruction under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) counter: Counter,
    /// Its index in the program.
    pub(super) at: usize,
    /// The lanes that were on.
    pub(super) exec: u64,
    /// The first register that it writes; none if `words` is zero.
    pub(super) dst: u16,
    /// How many registers it writes.
    pub(super) words: u8,
    /// Bits of the destination that stay.
    pub(super) keep: u32,
    /// Whether LDS is still to be accessed.
    pub(super) in_lds: bool,
    /// Addresses in LDS.
    pub(super) address: Lanes,
    /// Data to write, then data that was read.
    pub(super) data: [Lanes; 4],
}

impl Pending {
    fn new() -> Pending {
        let zero = [0; LANES];
        Pending {
            counter: Counter::Vector,
            at: 0,
            exec: 0,
            dst: 0,
            words: 0,
            keep: 0,
            in_lds: false,
            address: zero,
            data: [zero; 4],
        }
    }

    fn registers(&self) -> Registers {
        let mut registers = Registers::default();
        match self.counter {
            Counter::Scalar => registers.add_scalar(self.dst as u8, self.words),
            _ => registers.add_vector(self.dst, u16::from(self.words)),
        }
        registers
    }

    /// Writes the results.
    pub(super) fn deliver(&self, w: &mut Wave) {
        if self.counter == Counter::Scalar {
            for (i, value) in self.data[0][..usize::from(self.words)].iter().enumerate() {
                w.s[(usize::from(self.dst) + i) & 127] = *value;
            }
            return;
        }
        for (i, data) in self.data[..usize::from(self.words)].iter().enumerate() {
            let register = self.dst + i as u16;
            if self.keep == 0 {
                w.put_where(register, data, self.exec);
            } else {
                let old = w.v[usize::from(register)];
                let merged = std::array::from_fn(|l| old[l] & self.keep | data[l] & !self.keep);
                w.put_where(register, &merged, self.exec);
            }
        }
    }
}

/// The instructions of a wave that are under way.
#[derive(Debug, Default)]
pub(super) struct Queue {
    vector: VecDeque<Box<Pending>>,
    /// LDS and scalar memory share a counter.
    other: VecDeque<Box<Pending>>,
    #[allow(clippy::vec_box, reason = "the same boxes move on to the queues")]
    free: Vec<Box<Pending>>,
    busy: Registers,
}

impl Queue {
    /// Whether nothing is under way.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.vector.is_empty() && self.other.is_empty()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.free.extend(self.vector.drain(..));
        self.free.extend(self.other.drain(..));
        self.busy = Registers::default();
    }

    /// A record to fill.
    pub(super) fn take(&mut self) -> Box<Pending> {
        self.free.pop().unwrap_or_else(|| Box::new(Pending::new()))
    }

    /// Gives a record back.
    pub(super) fn give(&mut self, pending: Box<Pending>) {
        self.free.push(pending);
    }

    /// Whether `uses` touches a register whose result is under way: the instruction that will write it.
    #[inline]
    pub(super) fn conflict(&self, uses: &Registers) -> Option<&Pending> {
        if !self.busy.overlaps(uses) {
            return None;
        }
        self.vector.iter().chain(&self.other).find(|p| p.registers().overlaps(uses)).map(|p| &**p)
    }

    fn refresh(&mut self) {
        self.busy = Registers::default();
        for pending in self.vector.iter().chain(&self.other) {
            let registers = pending.registers();
            self.busy.scalar |= registers.scalar;
            for (all, own) in self.busy.vector.iter_mut().zip(registers.vector) {
                *all |= own;
            }
        }
    }
}

/// Hands over a result that is ready: at once, or late.
pub(super) fn finish(w: &mut Wave, sh: &mut Shared<'_>, pending: Box<Pending>) -> Step {
    if !sh.is_late {
        if pending.in_lds {
            let mut pending = pending;
            super::lds::perform(w, sh, &mut pending)?;
            pending.deliver(w);
            w.queue.give(pending);
        } else {
            pending.deliver(w);
            w.queue.give(pending);
        }
        return Ok(());
    }
    if pending.counter == Counter::Scalar {
        for i in 0..usize::from(pending.words) {
            w.s[(usize::from(pending.dst) + i) & 127] = POISON;
        }
    } else if pending.keep == 0 {
        for i in 0..u16::from(pending.words) {
            w.put_where(pending.dst + i, &[POISON; LANES], pending.exec);
        }
    }
    match pending.counter {
        Counter::Vector => w.queue.vector.push_back(pending),
        _ => w.queue.other.push_back(pending),
    }
    w.queue.refresh();
    Ok(())
}

/// `s_waitcnt`: at most so many instructions may be under way.
pub(super) fn wait(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    if w.queue.is_empty() {
        return Ok(());
    }
    let imm = m.imm as usize;
    let vector = imm & 15 | imm >> 10 & 0x30;
    let other = imm >> 8 & 15;
    drain(w, sh, vector, other)
}

/// Completes everything, as the end of a wave does.
pub(super) fn drain_all(w: &mut Wave, sh: &mut Shared<'_>) -> Step {
    if w.queue.is_empty() { Ok(()) } else { drain(w, sh, 0, 0) }
}

fn drain(w: &mut Wave, sh: &mut Shared<'_>, vector: usize, other: usize) -> Step {
    while w.queue.vector.len() > vector {
        if let Some(pending) = w.queue.vector.pop_front() {
            complete(w, sh, pending)?;
        }
    }
    if other == 0 {
        while let Some(pending) = w.queue.other.pop_front() {
            complete(w, sh, pending)?;
        }
    } else {
        // The first in LDS are done; scalar memory may be any of those that are not.
        let of_lds = w.queue.other.iter().filter(|p| p.counter == Counter::Lds).count();
        for _ in other..of_lds {
            let first = w.queue.other.iter().position(|p| p.counter == Counter::Lds);
            if let Some(pending) = first.and_then(|i| w.queue.other.remove(i)) {
                complete(w, sh, pending)?;
            }
        }
    }
    w.queue.refresh();
    Ok(())
}

fn complete(w: &mut Wave, sh: &mut Shared<'_>, mut pending: Box<Pending>) -> Step {
    if pending.in_lds {
        super::lds::perform(w, sh, &mut pending)?;
    }
    pending.deliver(w);
    w.queue.give(pending);
    Ok(())
}

/// Refuses an instruction that uses a register whose result is under way.
#[cold]
pub(super) fn refuse(w: &Wave, sh: &Shared<'_>, uses: &Registers) -> Step {
    let Some(pending) = w.queue.conflict(uses) else { return Ok(()) };
    let busy = pending.registers();
    let both: [u64; 8] = std::array::from_fn(|i| busy.vector[i] & uses.vector[i]);
    let register = match both.iter().position(|b| *b != 0) {
        Some(i) => sh.program.vector_name(i as u16 * 64 + both[i].trailing_zeros() as u16),
        None => super::program::scalar_name((busy.scalar & uses.scalar).trailing_zeros() as u8),
    };
    let loader = sh.program.text(pending.at);
    let counter = if pending.counter == Counter::Vector { "vmcnt" } else { "lgkmcnt" };
    Err(Trap::new(format!("{register} is used before s_waitcnt {counter} for `{loader}`, which writes it")))
}
