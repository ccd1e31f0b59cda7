//! Loads, stores and atomics of lanes through 64-bit addresses: global memory, and by flat addresses LDS and private memory.

use std::sync::atomic::Ordering::Relaxed;

use super::lds::{Touch, key, narrow};
use super::micro::{Micro, Source, Step, Trap};
use super::scratch;
use super::shared::{PRIVATE_WINDOW, SHARED_WINDOW, Shared};
use super::waits::{self, Counter, Pending};
use super::wave::{LANES, Lanes, Wave, Wide};

/// Keys of [`Micro::flags`] beyond those of LDS.
pub(super) mod also {
    /// The address is a scalar base and a 32-bit offset.
    pub(in super::super) const BASE: u16 = 0x800;
    /// The address may lie in any space.
    pub(in super::super) const FLAT: u16 = 0x1000;
    /// What is loaded goes to LDS at M0, a word a lane.
    pub(in super::super) const TO_LDS: u16 = 0x2000;
}

/// Addresses of all lanes.
fn addresses(w: &Wave, m: &Micro) -> Wide {
    let imm = i64::from(m.imm) as u64;
    if m.flags & also::BASE != 0 {
        let base = w.scalar64(m.src[2]).wrapping_add(imm);
        let (offsets, mut out) = (w.lanes(m.src[0]), [0; LANES]);
        for l in 0..LANES {
            out[l] = base.wrapping_add(u64::from(offsets[l]));
        }
        return out;
    }
    let mut out = w.wide(m.src[0]);
    for address in &mut out {
        *address = address.wrapping_add(imm);
    }
    out
}

/// One load, store or atomic of all lanes.
pub(super) fn access(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let address = addresses(w, m);
    at(w, m, sh, &address, w.exec())
}

/// The same at given addresses, for the lanes of `exec`; the rest read zero.
pub(super) fn at(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>, address: &Wide, exec: u64) -> Step {
    let bytes = u64::from(m.flags & key::BYTES);
    let moved = bytes * u64::from(exec.count_ones());
    let mut pending = w.queue.take();
    (pending.counter, pending.at, pending.exec) = (Counter::Vector, sh.at, w.exec());
    (pending.dst, pending.words, pending.in_lds) = (m.dst, m.words, false);
    pending.keep = match m.flags & (key::LOW | key::HIGH | key::STORE) {
        key::LOW => 0xffff_0000,
        key::HIGH => 0xffff,
        _ => 0,
    };
    if m.flags & (key::STORE | key::ATOMIC) != 0 {
        capture(w, m, &mut pending);
        sh.counters.global.stored += moved;
    }
    if m.flags & key::STORE == 0 {
        sh.counters.global.loaded += moved;
    }
    if m.flags & also::FLAT != 0 && has_window(address, exec) {
        each_window(w, m, sh, address, exec, &mut pending)?;
    } else if m.flags & key::ATOMIC != 0 {
        atomics(m, sh, address, exec, &mut pending)?;
    } else if m.flags & key::STORE != 0 {
        stores(m, sh, address, exec, &pending.data)?;
    } else {
        if exec != pending.exec {
            pending.data = [[0; LANES]; 4];
        }
        loads(m, sh, address, exec, &mut pending.data)?;
    }
    if m.flags & also::TO_LDS != 0 {
        to_lds(w, m, sh, &pending)?;
    }
    waits::finish(w, sh, pending)
}

fn capture(w: &Wave, m: &Micro, pending: &mut Pending) {
    let Source::Vector(first) = m.src[1] else { return };
    // A compare-and-swap has two data.
    let words = usize::from(m.imm2.max(0) as u8);
    for (i, to) in pending.data.iter_mut().enumerate().take(words) {
        *to = w.v[usize::from(first) + i];
    }
}

fn bad(lane: usize, why: impl std::fmt::Display) -> Box<Trap> {
    Trap::lane(lane, why.to_string())
}

/// The lowest address and the length of the range that the lanes of `exec` touch together, if it is small.
fn hull(address: &Wide, exec: u64, bytes: u64) -> Option<(u64, u64)> {
    let (mut low, mut high) = (u64::MAX, 0);
    for lane in 0..LANES {
        let is_on = exec >> lane & 1 == 1;
        low = low.min(if is_on { address[lane] } else { u64::MAX });
        high = high.max(if is_on { address[lane] } else { 0 });
    }
    let len = high.checked_sub(low)?.checked_add(bytes)?;
    (len < 1 << 40).then_some((low, len))
}

fn all_aligned(address: &Wide, exec: u64) -> bool {
    let mut low = 0;
    for lane in 0..LANES {
        low |= if exec >> lane & 1 == 1 { address[lane] } else { 0 };
    }
    low & 3 == 0
}

fn loads(m: &Micro, sh: &Shared<'_>, address: &Wide, exec: u64, data: &mut [Lanes; 4]) -> Step {
    let bytes = usize::from(m.flags & key::BYTES);
    if bytes >= 4
        && all_aligned(address, exec)
        && let Some((low, len)) = hull(address, exec, bytes as u64)
        && let Ok((region, offset)) = sh.view.resolve(low, len, 1)
    {
        let words = &region.words()[offset / 4..];
        for lane in 0..LANES {
            if exec >> lane & 1 == 1 {
                let at = ((address[lane] - low) / 4) as usize;
                for (word, to) in words[at..at + bytes / 4].iter().zip(data.iter_mut()) {
                    to[lane] = word.load(Relaxed);
                }
            }
        }
        return Ok(());
    }
    for lane in (0..LANES).filter(|l| exec >> l & 1 == 1) {
        let mut raw = [0; 16];
        read(sh, address[lane], &mut raw[..bytes], lane)?;
        unpack(m, &raw, bytes, data, lane);
    }
    Ok(())
}

/// Bytes as the registers of a lane.
pub(super) fn unpack(m: &Micro, raw: &[u8; 16], bytes: usize, data: &mut [Lanes; 4], lane: usize) {
    if bytes < 4 {
        data[0][lane] = narrow(m, u32::from(raw[0]) | u32::from(raw[1]) << 8, bytes as u32);
        return;
    }
    for (from, to) in raw[..bytes].chunks_exact(4).zip(data) {
        to[lane] = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    }
}

/// The registers of a lane as bytes.
pub(super) fn pack(m: &Micro, data: &[Lanes; 4], lane: usize) -> [u8; 16] {
    let mut raw = [0; 16];
    for (to, from) in raw.chunks_exact_mut(4).zip(data) {
        to.copy_from_slice(&from[lane].to_le_bytes());
    }
    if m.flags & key::HIGH != 0 {
        raw.copy_within(2..4, 0);
    }
    raw
}

/// Reads memory, or what a launch adds to it.
pub(super) fn read(sh: &Shared<'_>, address: u64, to: &mut [u8], lane: usize) -> Step {
    match sh.view.read(address, to) {
        Ok(()) => Ok(()),
        Err(why) => match sh.constant(address, to.len()) {
            Some(bytes) => {
                to.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(bad(lane, why)),
        },
    }
}

fn stores(m: &Micro, sh: &Shared<'_>, address: &Wide, exec: u64, data: &[Lanes; 4]) -> Step {
    let bytes = usize::from(m.flags & key::BYTES);
    if bytes >= 4
        && all_aligned(address, exec)
        && let Some((low, len)) = hull(address, exec, bytes as u64)
        && let Ok((region, offset)) = sh.view.resolve(low, len, 1)
    {
        let words = &region.words()[offset / 4..];
        for lane in 0..LANES {
            if exec >> lane & 1 == 1 {
                let at = ((address[lane] - low) / 4) as usize;
                for (word, from) in words[at..at + bytes / 4].iter().zip(data) {
                    word.store(from[lane], Relaxed);
                }
            }
        }
        return Ok(());
    }
    for lane in (0..LANES).filter(|l| exec >> l & 1 == 1) {
        let raw = pack(m, data, lane);
        sh.view.write(address[lane], &raw[..bytes]).map_err(|why| bad(lane, why))?;
    }
    Ok(())
}

fn atomics(m: &Micro, sh: &Shared<'_>, address: &Wide, exec: u64, pending: &mut Pending) -> Step {
    let bytes = m.flags & key::BYTES;
    for lane in (0..LANES).filter(|l| exec >> l & 1 == 1) {
        let (first, second) = operands(pending, bytes, lane);
        let step = |old: u64| (m.update)(old, first, second);
        let old = match bytes {
            8 => sh.view.update::<8>(address[lane], step),
            _ => sh.view.update::<4>(address[lane], step),
        };
        let old = old.map_err(|why| bad(lane, why))?;
        (pending.data[0][lane], pending.data[1][lane]) = (old as u32, (old >> 32) as u32);
    }
    Ok(())
}

fn operands(pending: &Pending, bytes: u16, lane: usize) -> (u64, u64) {
    let word = |i: usize| u64::from(pending.data[i][lane]);
    match bytes {
        8 => (word(0) | word(1) << 32, word(2) | word(3) << 32),
        _ => (word(0), word(1)),
    }
}

fn has_window(address: &Wide, exec: u64) -> bool {
    (0..LANES).any(|l| exec >> l & 1 == 1 && matches!((address[l] >> 32) as u32, SHARED_WINDOW | PRIVATE_WINDOW))
}

/// Flat addresses some of which are in the windows of LDS or private memory.
fn each_window(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>, address: &Wide, exec: u64, pending: &mut Pending) -> Step {
    for lane in (0..LANES).filter(|l| exec >> l & 1 == 1) {
        let only = 1 << lane;
        let low = address[lane] as u32;
        match (address[lane] >> 32) as u32 {
            SHARED_WINDOW => in_lds(w, m, sh, low, pending, lane)?,
            PRIVATE_WINDOW => scratch::move_lane(w, m, u64::from(low), 0, pending, lane)?,
            _ if m.flags & key::ATOMIC != 0 => atomics(m, sh, address, only, pending)?,
            _ if m.flags & key::STORE != 0 => stores(m, sh, address, only, &pending.data)?,
            _ => loads(m, sh, address, only, &mut pending.data)?,
        }
    }
    Ok(())
}

fn in_lds(w: &Wave, m: &Micro, sh: &mut Shared<'_>, at: u32, pending: &mut Pending, lane: usize) -> Step {
    let bytes = m.flags & key::BYTES;
    if m.flags & key::ATOMIC != 0 {
        let (first, second) = operands(pending, bytes, lane);
        let old = sh.lds.load(at, u32::from(bytes), w.index, lane, Touch::Atomic)?;
        sh.lds.store(at, u32::from(bytes), (m.update)(old, first, second), w.index, lane, None)?;
        (pending.data[0][lane], pending.data[1][lane]) = (old as u32, (old >> 32) as u32);
        return Ok(());
    }
    // A load shorter than a word leaves no bytes of the last one.
    let mut raw = if m.flags & key::STORE != 0 { pack(m, &pending.data, lane) } else { [0; 16] };
    for (i, part) in raw[..usize::from(bytes)].chunks_mut(4).enumerate() {
        let (at, n) = (at.wrapping_add(4 * i as u32), part.len() as u32);
        if m.flags & key::STORE != 0 {
            let mut value = [0; 8];
            value[..part.len()].copy_from_slice(part);
            sh.lds.store(at, n, u64::from_le_bytes(value), w.index, lane, Some(Touch::Write))?;
        } else {
            let value = sh.lds.load(at, n, w.index, lane, Touch::Read)?.to_le_bytes();
            part.copy_from_slice(&value[..part.len()]);
        }
    }
    if m.flags & key::STORE == 0 {
        unpack(m, &raw, usize::from(bytes), &mut pending.data, lane);
    }
    Ok(())
}

/// What was loaded goes to LDS: lane by lane a word, from M0's offset on.
fn to_lds(w: &Wave, m: &Micro, sh: &mut Shared<'_>, pending: &Pending) -> Step {
    let base = (w.s[super::wave::M0] & 0xffff).wrapping_add(m.imm as u32);
    for lane in (0..LANES).filter(|l| pending.exec >> l & 1 == 1) {
        let value = u64::from(pending.data[0][lane]);
        sh.lds.store(base.wrapping_add(4 * lane as u32), 4, value, w.index, lane, Some(Touch::Write))?;
    }
    Ok(())
}
