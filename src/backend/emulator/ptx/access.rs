//! Loads, stores and atomics of the lanes of a warp.

use super::cluster::{Cluster, Run, refused, trouble, trouble_at};
use super::half::half2;
use super::integer::{int2, long2};
use super::long_op::{MemoryOp, Space, Update};
use super::op::{F2, I2, Number};
use super::races::How;
use super::syntax::Type;
use super::units::bank;
use super::warp::{Lanes32, Lanes64, Warp, lanes};
use crate::backend::emulator::counters::Bytes;

/// The numbers of a load, element by element.
type Elements = [Lanes64; 8];

impl Cluster<'_> {
    /// Where the bytes of an access count.
    fn count_bytes(&mut self, space: Space, bytes: u64, is_write: bool) {
        let counter: &mut Bytes = match space {
            Space::Shared | Space::Cluster => &mut self.counters.shared,
            Space::Local => &mut self.counters.local,
            Space::Param => return,
            _ => &mut self.counters.global,
        };
        *(if is_write { &mut counter.stored } else { &mut counter.loaded }) += bytes;
    }

    /// `ld`.
    pub(super) fn load(&mut self, w: &mut Warp, op: &MemoryOp, mask: u32) -> Run<()> {
        let addresses = Self::addresses(self.code, w, &op.address);
        let bytes = usize::from(op.bytes);
        let total = bytes * usize::from(op.count);
        let mut space = op.address.space;
        if space == Space::Global && bytes == 4 && !op.is_long {
            return self.load_global_words(w, op, mask, &addresses);
        }
        if let Some(places) = self.own_places(w, op, mask, &addresses) {
            return self.load_own(w, op, mask, &places);
        }
        let mut out: Elements = [[0; 32]; 8];
        let mut buffer = [0u8; 64];
        for l in lanes(mask) {
            let at;
            (space, at) = Self::resolve(op.address.space, addresses[l]);
            let part = &mut buffer[..total];
            let done = match space {
                Space::Global | Space::Generic => self.read_global(at, part),
                Space::Shared | Space::Cluster => self.read_shared(w.block, at, part),
                Space::Local => read_local(w, l, at, part),
                Space::Param => self.read_parameters(at, part),
            };
            done.or_else(|what| trouble_at(l, what))?;
            for k in 0..usize::from(op.count) {
                let value = number(&buffer[k * bytes..][..bytes]);
                out[k][l] = if op.is_signed { extend(value, bytes) } else { value };
            }
        }
        if matches!(space, Space::Shared | Space::Cluster) {
            self.shared_access(w, op, mask, &addresses, total, false)?;
        }
        if op.is_strong && space == Space::Global {
            let known = self.global_meeting.clone();
            self.races.learn(w.id, &known);
        }
        self.count_bytes(space, total as u64 * u64::from(mask.count_ones()), false);
        for k in 0..usize::from(op.count) {
            if op.is_long {
                w.set64(op.rows[k], mask, &out[k]);
            } else {
                w.set(op.rows[k], mask, &out[k].map(|v| v as u32));
            }
        }
        Ok(())
    }

    /// The common load: 32-bit words of global memory.
    fn load_global_words(&mut self, w: &mut Warp, op: &MemoryOp, mask: u32, addresses: &Lanes64) -> Run<()> {
        let count = usize::from(op.count);
        let mut out = [[0u32; 32]; 8];
        let mut buffer = [0u32; 8];
        for l in lanes(mask) {
            let part = &mut buffer[..count];
            if let Err(bad) = self.view.load_words(addresses[l], 4 * count as u64, part) {
                return trouble_at(l, refused(false, &bad));
            }
            for k in 0..count {
                out[k][l] = buffer[k];
            }
        }
        if op.is_strong {
            let known = self.global_meeting.clone();
            self.races.learn(w.id, &known);
        }
        self.count_bytes(Space::Global, 4 * count as u64 * u64::from(mask.count_ones()), false);
        for k in 0..count {
            w.set(op.rows[k], mask, &out[k]);
        }
        Ok(())
    }

    /// `st`.
    pub(super) fn store(&mut self, w: &mut Warp, op: &MemoryOp, mask: u32) -> Run<()> {
        let addresses = Self::addresses(self.code, w, &op.address);
        let bytes = usize::from(op.bytes);
        let total = bytes * usize::from(op.count);
        let mut space = op.address.space;
        let mut buffer = [0u8; 64];
        self.progress += 1;
        if let Some(places) = self.own_places(w, op, mask, &addresses) {
            return self.store_own(w, op, mask, &places);
        }
        let (mut seen_shared, mut seen_global) = (false, false);
        for l in lanes(mask) {
            for k in 0..usize::from(op.count) {
                let value =
                    if op.is_long { w.d(self.code, op.rows[k])[l] } else { u64::from(w.r(self.code, op.rows[k])[l]) };
                buffer[k * bytes..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
            let at;
            (space, at) = Self::resolve(op.address.space, addresses[l]);
            let part = &buffer[..total];
            let done = match space {
                Space::Global | Space::Generic => {
                    seen_global = true;
                    self.write_global(at, part)
                }
                Space::Shared | Space::Cluster => {
                    seen_shared = true;
                    self.write_shared(w.block, at, part)
                }
                Space::Local => write_local(w, l, at, part),
                Space::Param => Err("write to a parameter".to_owned()),
            };
            done.or_else(|what| trouble_at(l, what))?;
        }
        if seen_shared {
            self.shared_access(w, op, mask, &addresses, total, true)?;
        }
        if op.is_strong && seen_global {
            let known = self.races.publish(w.id);
            self.global_meeting.join(&known);
        }
        self.count_bytes(space, total as u64 * u64::from(mask.count_ones()), true);
        Ok(())
    }

    /// The common access to shared memory: up to 32 bits a register, in the block's own, every lane where it may be. Where it lies.
    fn own_places(&self, w: &Warp, op: &MemoryOp, mask: u32, addresses: &Lanes64) -> Option<Lanes32> {
        if op.address.space != Space::Shared
            || op.bytes > 4
            || op.is_long
            || op.is_strong
            || mask == 0
            || (op.is_signed && op.bytes < 4)
        {
            return None;
        }
        let bytes = u32::from(op.bytes) * u32::from(op.count);
        let most = (self.blocks[w.block].shared.len() as u32).checked_sub(bytes)?;
        let mut places = [0; 32];
        let mut rest = mask;
        while rest != 0 {
            let l = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            // The own block's memory is the window's start: other ranks lie far beyond its end.
            let at = addresses[l] as u32;
            if at > most || !at.is_multiple_of(bytes) {
                return None;
            }
            places[l] = at;
        }
        Some(places)
    }

    fn load_own(&mut self, w: &mut Warp, op: &MemoryOp, mask: u32, places: &Lanes32) -> Run<()> {
        let (bytes, count) = (usize::from(op.bytes), usize::from(op.count));
        let shared = &self.blocks[w.block].shared[..];
        let mut out = [[0; 32]; 8];
        for l in 0..32 {
            for k in 0..count {
                let at = places[l] as usize + k * bytes;
                out[k][l] = number(&shared[at..at + bytes]) as u32;
            }
        }
        self.note_own(w, mask, places, bytes * count, false)?;
        for k in 0..count {
            w.set(op.rows[k], mask, &out[k]);
        }
        Ok(())
    }

    fn store_own(&mut self, w: &Warp, op: &MemoryOp, mask: u32, places: &Lanes32) -> Run<()> {
        let (bytes, count) = (usize::from(op.bytes), usize::from(op.count));
        let shared = &mut self.blocks[w.block].shared[..];
        for k in 0..count {
            let values = w.r(self.code, op.rows[k]);
            for l in lanes(mask) {
                let at = places[l] as usize + k * bytes;
                let to = &mut shared[at..at + bytes];
                match <&mut [u8; 4]>::try_from(&mut *to) {
                    Ok(word) => *word = values[l].to_le_bytes(),
                    Err(_) => to.copy_from_slice(&values[l].to_le_bytes()[..bytes]),
                }
            }
        }
        self.note_own(w, mask, places, bytes * count, true)
    }

    /// Bytes, races and bank conflicts of an access to the block's own shared memory.
    fn note_own(&mut self, w: &Warp, mask: u32, places: &Lanes32, bytes: usize, is_write: bool) -> Run<()> {
        let how = How { is_write, is_strong: false };
        let mut first = mask.trailing_zeros() as usize;
        let (mut start, mut end) = (places[first] as usize, places[first] as usize + bytes);
        let mut is_in_order = true;
        for l in lanes(mask & (mask - 1)) {
            let at = places[l] as usize;
            // Neighbours are looked at together.
            if at == end {
                end += bytes;
                continue;
            }
            is_in_order = false;
            if at != start || end - start != bytes {
                self.note(w.id, w.block, start, end - start, how).or_else(|what| trouble_at(first, what))?;
                (first, start, end) = (l, at, at + bytes);
            }
        }
        self.note(w.id, w.block, start, end - start, how).or_else(|what| trouble_at(first, what))?;
        if !is_in_order {
            let asked = std::array::from_fn(|l| (mask >> l & 1 == 1).then_some(places[l]));
            self.counters.bank_conflicts += u64::from(bank::passes(&asked, bytes).conflicts());
        }
        self.count_bytes(Space::Shared, bytes as u64 * u64::from(mask.count_ones()), is_write);
        Ok(())
    }

    /// Races and bank conflicts of an access of all lanes to shared memory.
    fn shared_access(
        &mut self,
        w: &Warp,
        op: &MemoryOp,
        mask: u32,
        addresses: &Lanes64,
        bytes: usize,
        is_write: bool,
    ) -> Run<()> {
        let how = How { is_write, is_strong: op.is_strong };
        let mut places: [Option<u32>; 32] = [None; 32];
        let mut run: Option<(usize, usize, usize, usize)> = None;
        let mut is_in_order = true;
        for l in lanes(mask) {
            let (space, at) = Self::resolve(op.address.space, addresses[l]);
            if !matches!(space, Space::Shared | Space::Cluster) {
                continue;
            }
            let (block, at) = self.shared_place(w.block, at, bytes, 1).or_else(|what| trouble_at(l, what))?;
            places[l] = Some(at as u32);
            if op.is_strong {
                self.meet(w.id, block, at, is_write, !is_write);
            }
            // Neighbours are looked at together.
            run = match run {
                Some((b, start, end, lane)) if b == block && at == end => Some((b, start, end + bytes, lane)),
                Some((b, start, end, lane)) => {
                    is_in_order = false;
                    if b != block || at != start || end - start != bytes {
                        self.note(w.id, b, start, end - start, how).or_else(|what| trouble_at(lane, what))?;
                        Some((block, at, at + bytes, l))
                    } else {
                        Some((b, start, end, lane))
                    }
                }
                None => Some((block, at, at + bytes, l)),
            };
        }
        if let Some((block, start, end, lane)) = run {
            self.note(w.id, block, start, end - start, how).or_else(|what| trouble_at(lane, what))?;
        }
        if !is_in_order {
            self.counters.bank_conflicts += u64::from(bank::passes(&places, bytes).conflicts());
        }
        Ok(())
    }

    /// Strong accesses of one place make known to readers what writers knew.
    pub(super) fn meet(&mut self, agent: usize, block: usize, at: usize, gives: bool, takes: bool) {
        let meeting = self.meetings.entry((block as u32, at as u32)).or_default();
        if takes {
            self.races.learn(agent, &meeting.known);
        }
        if gives {
            let known = self.races.publish(agent);
            meeting.known.join(&known);
        }
    }

    pub(super) fn read_global(&self, at: u64, to: &mut [u8]) -> Result<(), String> {
        let len = to.len() as u64;
        let align = if len.is_power_of_two() { len } else { 1 };
        self.view.resolve(at, len, align).and_then(|_| self.view.read(at, to)).map_err(|bad| refused(false, &bad))
    }

    pub(super) fn write_global(&self, at: u64, from: &[u8]) -> Result<(), String> {
        let len = from.len() as u64;
        let align = if len.is_power_of_two() { len } else { 1 };
        self.view.resolve(at, len, align).and_then(|_| self.view.write(at, from)).map_err(|bad| refused(true, &bad))
    }

    fn read_shared(&self, own: usize, at: u64, to: &mut [u8]) -> Result<(), String> {
        let (block, at) = self.shared_place(own, at, to.len(), to.len())?;
        to.copy_from_slice(&self.blocks[block].shared[at..at + to.len()]);
        Ok(())
    }

    fn write_shared(&mut self, own: usize, at: u64, from: &[u8]) -> Result<(), String> {
        let (block, at) = self.shared_place(own, at, from.len(), from.len())?;
        self.blocks[block].shared[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }

    pub(super) fn read_parameters(&self, at: u64, to: &mut [u8]) -> Result<(), String> {
        let found = usize::try_from(at).ok().and_then(|at| self.parameters.get(at..at + to.len()));
        let from = found.ok_or_else(|| {
            format!(
                "read of {} bytes at {at} of {} bytes of parameters: out of bounds",
                to.len(),
                self.parameters.len()
            )
        })?;
        to.copy_from_slice(from);
        Ok(())
    }

    /// `atom` and `red`: lanes one after the other.
    pub(super) fn atomic(&mut self, w: &mut Warp, op: &MemoryOp, mask: u32) -> Run<()> {
        let Some((update, ty)) = op.atomic else { return trouble("an atomic without a function") };
        let addresses = Self::addresses(self.code, w, &op.address);
        let bytes = usize::from(op.bytes);
        let mut old = [0u64; 32];
        let mut space = op.address.space;
        self.progress += 1;
        for l in lanes(mask) {
            let at;
            (space, at) = Self::resolve(op.address.space, addresses[l]);
            let value = |row: u16| {
                if row == super::op::SINK {
                    0
                } else if op.is_long {
                    w.d(self.code, row)[l]
                } else {
                    u64::from(w.r(self.code, row)[l])
                }
            };
            let (b, c) = (value(op.rows[1]), value(op.rows[2]));
            let is_global = !matches!(space, Space::Shared | Space::Cluster);
            let change = |now: u64| updated(update, ty, is_global, now, b, c);
            old[l] = if is_global {
                let done = match bytes {
                    8 => self.view.update::<8>(at, change),
                    4 => self.view.update::<4>(at, change),
                    _ => self.view.update::<2>(at, change),
                };
                done.or_else(|bad| trouble_at(l, refused(true, &bad)))?
            } else {
                let (block, at) = self.shared_place(w.block, at, bytes, bytes).or_else(|what| trouble_at(l, what))?;
                let how = How { is_write: true, is_strong: true };
                self.note(w.id, block, at, bytes, how).or_else(|what| trouble_at(l, what))?;
                self.meet(w.id, block, at, true, true);
                let place = &mut self.blocks[block].shared[at..at + bytes];
                let mut word = [0; 8];
                word[..bytes].copy_from_slice(place);
                let now = u64::from_le_bytes(word);
                place.copy_from_slice(&change(now).to_le_bytes()[..bytes]);
                now
            };
        }
        if !matches!(space, Space::Shared | Space::Cluster) {
            let known = self.global_meeting.clone();
            self.races.learn(w.id, &known);
            let known = self.races.publish(w.id);
            self.global_meeting.join(&known);
        }
        let total = bytes as u64 * u64::from(mask.count_ones());
        self.count_bytes(space, total, false);
        self.count_bytes(space, total, true);
        if op.is_long {
            w.set64(op.rows[0], mask, &old);
        } else {
            w.set(op.rows[0], mask, &old.map(|v| v as u32));
        }
        Ok(())
    }
}

/// The number in 1, 2, 4 or 8 bytes. Read at once: byte by byte into a word, the host would wait for each.
#[inline(always)]
fn number(bytes: &[u8]) -> u64 {
    match *bytes {
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        [a] => a.into(),
        _ => 0,
    }
}

fn extend(value: u64, bytes: usize) -> u64 {
    let shift = 64 - 8 * bytes as u32;
    (((value << shift) as i64) >> shift) as u64
}

fn local_place(w: &Warp, lane: usize, at: u64, bytes: usize) -> Result<usize, String> {
    let len = w.local.len() / 32;
    if !at.is_multiple_of(bytes as u64) {
        return Err(format!("local address {at:#x}: expected a multiple of {bytes}"));
    }
    if at + bytes as u64 > len as u64 {
        return Err(format!("local address {at:#x}: {bytes} bytes at {at} of {len}: out of bounds"));
    }
    Ok(lane * len + at as usize)
}

fn read_local(w: &Warp, lane: usize, at: u64, to: &mut [u8]) -> Result<(), String> {
    let at = local_place(w, lane, at, to.len())?;
    to.copy_from_slice(&w.local[at..at + to.len()]);
    Ok(())
}

fn write_local(w: &mut Warp, lane: usize, at: u64, from: &[u8]) -> Result<(), String> {
    let at = local_place(w, lane, at, from.len())?;
    w.local[at..at + from.len()].copy_from_slice(from);
    Ok(())
}

/// What an atomic instruction leaves in memory.
fn updated(update: Update, ty: Type, is_global: bool, now: u64, b: u64, c: u64) -> u64 {
    match update {
        Update::Integer(f) => integer(f, ty, now, b),
        Update::Exchange => b,
        Update::CompareExchange => {
            if now == b {
                c
            } else {
                now
            }
        }
        Update::Increment => {
            if now >= b {
                0
            } else {
                now + 1
            }
        }
        Update::Decrement => {
            if now == 0 || now > b {
                b
            } else {
                now - 1
            }
        }
        Update::FloatAdd | Update::FloatMin | Update::FloatMax => {
            let f = match update {
                Update::FloatAdd => F2::Add,
                Update::FloatMin => F2::Min,
                _ => F2::Max,
            };
            match ty {
                Type::F64 => super::float::double2(f, 0, &[now; 32], &[b; 32])[0],
                // Sums in global memory flush subnormal numbers, those in shared memory do not.
                Type::F32 => {
                    let mode = super::op::Mode { ftz: is_global, ..Default::default() }.pack();
                    u64::from(super::float::float2(f, mode, &[now as u32; 32], &[b as u32; 32])[0])
                }
                _ => {
                    let n = match ty {
                        Type::Bf16 => Number::Bf16,
                        Type::F16x2 => Number::F16x2,
                        Type::Bf16x2 => Number::Bf16x2,
                        _ => Number::F16,
                    };
                    u64::from(half2(n, f, 0, &[now as u32; 32], &[b as u32; 32])[0])
                }
            }
        }
    }
}

fn integer(f: I2, ty: Type, now: u64, b: u64) -> u64 {
    if ty.bytes() == 8 {
        return long2(f, &[now; 32], &[b; 32])[0];
    }
    u64::from(int2(f, &[now as u32; 32], &[b as u32; 32])[0])
}
