//! The local data share: loads, stores and atomics with bounds, races and bank conflicts; lane permutations.

use super::micro::{Micro, Step, Trap};
use super::shared::Shared;
use super::waits::{self, Counter, Pending};
use super::wave::{LANES, Lanes, Wave};

/// What is done with a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Read,
    Write,
    /// Unordered with its like, but not with plain accesses.
    Atomic,
}

/// Who has touched a place since the last barrier: a bit for each wave.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    epoch: u32,
    readers: u16,
    writers: u16,
    updaters: u16,
}

/// The local data share of a workgroup.
#[derive(Debug)]
pub(super) struct Lds {
    bytes: Vec<u8>,
    seen: Vec<Seen>,
    /// A place of the race detector is `1 << grain` bytes: as large as the smallest access of the program.
    grain: u32,
    epoch: u32,
    /// Whether there is another wave to race with.
    is_watched: bool,
}

impl Lds {
    /// An LDS of `bytes`, poisoned, in which no access is smaller than `1 << grain`.
    pub(super) fn new(bytes: usize, grain: u32) -> Lds {
        Lds {
            bytes: vec![0xff; bytes],
            seen: vec![Seen::default(); (bytes >> grain) + 1],
            grain,
            epoch: 1,
            is_watched: true,
        }
    }

    /// Poisons it for the next workgroup of `waves`.
    pub(super) fn reset(&mut self, waves: usize) {
        self.bytes.fill(0xff);
        self.is_watched = waves > 1;
        self.pass_barrier();
    }

    /// What was before is ordered with what follows.
    pub(super) fn pass_barrier(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.seen.fill(Seen::default());
            self.epoch = 1;
        }
    }

    /// The range of an access, checked against the size.
    fn range(&self, address: u32, bytes: u32, lane: usize) -> Result<std::ops::Range<usize>, Box<Trap>> {
        let (from, to) = (address as usize, address as usize + bytes as usize);
        if to > self.bytes.len() {
            let size = self.bytes.len();
            return Err(Trap::lane(
                lane,
                format!("LDS address {address:#x}: {bytes} bytes beyond the {size} of the workgroup"),
            ));
        }
        Ok(from..to)
    }

    /// Records an access; a race with another wave is refused.
    #[inline]
    fn touch(&mut self, range: &std::ops::Range<usize>, wave: u32, lane: usize, touch: Touch) -> Step {
        if !self.is_watched || range.is_empty() {
            return Ok(());
        }
        let bit = 1u16 << (wave & 15);
        for seen in &mut self.seen[range.start >> self.grain..=(range.end - 1) >> self.grain] {
            if seen.epoch != self.epoch {
                *seen = Seen { epoch: self.epoch, ..Seen::default() };
            }
            let (others, own) = match touch {
                Touch::Read => (seen.writers | seen.updaters, &mut seen.readers),
                Touch::Write => (seen.readers | seen.writers | seen.updaters, &mut seen.writers),
                Touch::Atomic => (seen.readers | seen.writers, &mut seen.updaters),
            };
            *own |= bit;
            if others & !bit != 0 {
                return Err(self.race(range, wave, lane, touch, others & !bit));
            }
        }
        Ok(())
    }

    #[cold]
    fn race(&self, range: &std::ops::Range<usize>, wave: u32, lane: usize, touch: Touch, others: u16) -> Box<Trap> {
        let what = match touch {
            Touch::Read => "reads",
            Touch::Write => "writes",
            Touch::Atomic => "updates",
        };
        let other = others.trailing_zeros();
        let place = &self.seen[range.start >> self.grain];
        let did = if place.writers >> other & 1 == 1 {
            "wrote"
        } else if place.updaters >> other & 1 == 1 {
            "updated"
        } else {
            "read"
        };
        let line = format!(
            "LDS address {:#x}: wave {wave} {what} what wave {other} {did} with no barrier between",
            range.start
        );
        Trap::lane(lane, line)
    }

    /// Reads a number of up to 8 bytes.
    #[inline]
    pub(super) fn load(
        &mut self,
        address: u32,
        bytes: u32,
        wave: u32,
        lane: usize,
        touch: Touch,
    ) -> Result<u64, Box<Trap>> {
        let range = self.range(address, bytes, lane)?;
        self.touch(&range, wave, lane, touch)?;
        let mut whole = [0; 8];
        whole[..range.len()].copy_from_slice(&self.bytes[range]);
        Ok(u64::from_le_bytes(whole))
    }

    /// Writes the low `bytes` of a number; recorded as `touch`, if it is not part of an atomic that has been.
    #[inline]
    pub(super) fn store(
        &mut self,
        address: u32,
        bytes: u32,
        value: u64,
        wave: u32,
        lane: usize,
        touch: Option<Touch>,
    ) -> Step {
        let range = self.range(address, bytes, lane)?;
        if let Some(touch) = touch {
            self.touch(&range, wave, lane, touch)?;
        }
        let len = range.len();
        self.bytes[range].copy_from_slice(&value.to_le_bytes()[..len]);
        Ok(())
    }
}

/// Keys of [`Micro::flags`] for LDS instructions.
pub(super) mod key {
    /// Mask of the bytes of one access: 1, 2, 4, 8, 12, 16.
    pub(in super::super) const BYTES: u16 = 0x1f;
    /// It writes.
    pub(in super::super) const STORE: u16 = 0x20;
    /// It reads and writes as one step.
    pub(in super::super) const ATOMIC: u16 = 0x40;
    /// Two addresses, `imm` and `imm2`.
    pub(in super::super) const TWO: u16 = 0x80;
    /// What is read is sign-extended.
    pub(in super::super) const SIGNED: u16 = 0x100;
    /// Only the low half of the register is written.
    pub(in super::super) const LOW: u16 = 0x200;
    /// Only the high half of the register is written, or read by a store.
    pub(in super::super) const HIGH: u16 = 0x400;
}

/// Loads, stores and atomics: captures addresses and data; [`perform`] does the rest, now or when a wait demands it.
pub(super) fn access(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let mut pending = w.queue.take();
    (pending.counter, pending.at, pending.exec) = (Counter::Lds, sh.at, w.exec());
    (pending.dst, pending.words, pending.in_lds) = (m.dst, m.words, true);
    pending.keep = match m.flags & (key::LOW | key::HIGH) {
        key::LOW if m.words > 0 => 0xffff_0000,
        key::HIGH if m.words > 0 => 0xffff,
        _ => 0,
    };
    pending.address = w.lanes(m.src[0]);
    if m.flags & (key::STORE | key::ATOMIC) != 0 {
        capture(w, m, &mut pending.data);
    }
    count(m, sh, &pending);
    waits::finish(w, sh, pending)
}

/// Words of data that one of the (up to two) sources has.
fn data_words(m: &Micro) -> usize {
    usize::from(m.flags & key::BYTES).div_ceil(4)
}

fn capture(w: &Wave, m: &Micro, data: &mut [Lanes; 4]) {
    let words = data_words(m);
    for (i, to) in data.iter_mut().enumerate() {
        let (source, word) = (1 + i / words, i % words);
        match m.src.get(source) {
            Some(super::micro::Source::Vector(r)) => *to = w.v[usize::from(*r) + word],
            _ => break,
        }
    }
}

/// The two addresses of a lane.
fn addresses(m: &Micro, base: u32) -> [u32; 2] {
    [base.wrapping_add(m.imm as u32), base.wrapping_add(m.imm2 as u32)]
}

fn count(m: &Micro, sh: &mut Shared<'_>, pending: &Pending) {
    let bytes = u32::from(m.flags & key::BYTES);
    let accesses = if m.flags & key::TWO != 0 { 2 } else { 1 };
    let moved = u64::from(pending.exec.count_ones()) * u64::from(bytes) * accesses;
    if m.flags & key::STORE == 0 {
        sh.counters.shared.loaded += moved;
    }
    if m.flags & (key::STORE | key::ATOMIC) != 0 {
        sh.counters.shared.stored += moved;
    }
    for i in 0..accesses as usize {
        let at: Lanes = std::array::from_fn(|l| addresses(m, pending.address[l])[i]);
        sh.counters.bank_conflicts += conflicts(&at, pending.exec, bytes);
    }
}

/// Passes over the 32 banks beyond one for each group of lanes that the width lets through together: 32 lanes of 4 bytes,
/// 16 of 8, 8 of 16. Lanes with the same word share a pass.
pub(super) fn conflicts(address: &Lanes, exec: u64, bytes: u32) -> u64 {
    let words = (bytes as usize).div_ceil(4);
    let group = match words {
        0 | 1 => 32,
        2 => 16,
        _ => 8,
    };
    let mut extra = 0;
    for first in (0..LANES).step_by(group) {
        // The words that each bank has given in this group; almost always one.
        let mut given = [[u32::MAX; 4]; 32];
        let mut count = [0u8; 32];
        let mut most = 1;
        for lane in first..first + group {
            if exec >> lane & 1 == 0 {
                continue;
            }
            for word in 0..words as u32 {
                let at = (address[lane] >> 2).wrapping_add(word);
                let bank = (at & 31) as usize;
                let known = usize::from(count[bank]).min(4);
                if given[bank][..known].contains(&at) {
                    continue;
                }
                if known < 4 {
                    given[bank][known] = at;
                }
                count[bank] += 1;
                most = most.max(count[bank]);
            }
        }
        extra += u64::from(most - 1);
    }
    extra
}

/// Accesses LDS.
pub(super) fn perform(w: &mut Wave, sh: &mut Shared<'_>, pending: &mut Pending) -> Step {
    let m = &sh.program.code[pending.at];
    let bytes = u32::from(m.flags & key::BYTES);
    let accesses = if m.flags & key::TWO != 0 { 2 } else { 1 };
    let words = data_words(m);
    for lane in 0..LANES {
        if pending.exec >> lane & 1 == 0 {
            continue;
        }
        let at = addresses(m, pending.address[lane]);
        if m.flags & key::ATOMIC != 0 {
            atomic(w, &mut sh.lds, m, pending, at[0], lane)?;
            continue;
        }
        for i in 0..accesses {
            let data = &mut pending.data[i * words..(i + 1) * words];
            if m.flags & key::STORE != 0 {
                store(&mut sh.lds, m, data, at[i], bytes, (w.index, lane))?;
            } else {
                load(&mut sh.lds, m, data, at[i], bytes, (w.index, lane))?;
            }
        }
    }
    pending.in_lds = false;
    Ok(())
}

#[inline]
fn store(lds: &mut Lds, m: &Micro, data: &[Lanes], at: u32, bytes: u32, (wave, lane): (u32, usize)) -> Step {
    if bytes < 4 {
        let shift = if m.flags & key::HIGH != 0 { 16 } else { 0 };
        return lds.store(at, bytes, u64::from(data[0][lane] >> shift), wave, lane, Some(Touch::Write));
    }
    let range = lds.range(at, bytes, lane)?;
    lds.touch(&range, wave, lane, Touch::Write)?;
    for (to, from) in lds.bytes[range].chunks_exact_mut(4).zip(data) {
        to.copy_from_slice(&from[lane].to_le_bytes());
    }
    Ok(())
}

#[inline]
fn load(lds: &mut Lds, m: &Micro, data: &mut [Lanes], at: u32, bytes: u32, (wave, lane): (u32, usize)) -> Step {
    if bytes < 4 {
        let raw = lds.load(at, bytes, wave, lane, Touch::Read)? as u32;
        data[0][lane] = narrow(m, raw, bytes);
        return Ok(());
    }
    let range = lds.range(at, bytes, lane)?;
    lds.touch(&range, wave, lane, Touch::Read)?;
    for (from, to) in lds.bytes[range].chunks_exact(4).zip(data) {
        to[lane] = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    }
    Ok(())
}

/// Extends a byte or half as the instruction says and puts it where the register takes it.
pub(super) fn narrow(m: &Micro, raw: u32, bytes: u32) -> u32 {
    let wide = match (bytes, m.flags & key::SIGNED != 0) {
        (1, true) => raw as i8 as u32,
        (2, true) => raw as i16 as u32,
        _ => raw,
    };
    match m.flags & (key::LOW | key::HIGH) {
        0 => wide,
        key::LOW => wide & 0xffff,
        _ => wide << 16,
    }
}

fn atomic(w: &Wave, lds: &mut Lds, m: &Micro, pending: &mut Pending, at: u32, lane: usize) -> Step {
    let bytes = u32::from(m.flags & key::BYTES);
    let value = |i: usize| -> u64 {
        match bytes {
            8 => u64::from(pending.data[2 * i][lane]) | u64::from(pending.data[2 * i + 1][lane]) << 32,
            _ => u64::from(pending.data[i][lane]),
        }
    };
    let (first, second) = (value(0), value(1));
    let old = lds.load(at, bytes, w.index, lane, Touch::Atomic)?;
    lds.store(at, bytes, (m.update)(old, first, second), w.index, lane, None)?;
    pending.data[0][lane] = old as u32;
    if bytes == 8 {
        pending.data[1][lane] = (old >> 32) as u32;
    }
    Ok(())
}
