//! Private memory of lanes. The hardware interleaves it: word `i` of the 64 lanes lies in 64 consecutive words.

use super::global::{pack, unpack};
use super::lds::key;
use super::micro::{Micro, Source, Step, Trap};
use super::shared::Shared;
use super::waits::{self, Counter, Pending};
use super::wave::{LANES, Wave};

/// `scratch_load` and `scratch_store`: an offset of each lane, of the wave, or neither.
pub(super) fn access(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let of_lanes = w.lanes(m.src[0]);
    let of_wave = w.scalar(m.src[2]);
    let imm = m.imm as u32;
    let at = of_lanes.map(|lane| u64::from(lane.wrapping_add(of_wave).wrapping_add(imm)));
    let exec = w.exec();
    let mut pending = start(w, m, sh);
    for lane in (0..LANES).filter(|l| exec >> l & 1 == 1) {
        move_lane(w, m, at[lane], 0, &mut pending, lane)?;
    }
    waits::finish(w, sh, pending)
}

/// Counts an access and captures what it stores.
pub(super) fn start(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Box<Pending> {
    let mut pending = w.queue.take();
    (pending.counter, pending.at, pending.exec) = (Counter::Vector, sh.at, w.exec());
    (pending.dst, pending.words, pending.in_lds) = (m.dst, m.words, false);
    pending.keep = match m.flags & (key::LOW | key::HIGH | key::STORE) {
        key::LOW => 0xffff_0000,
        key::HIGH => 0xffff,
        _ => 0,
    };
    let moved = u64::from(m.flags & key::BYTES) * u64::from(w.exec().count_ones());
    if m.flags & key::STORE != 0 {
        sh.counters.local.stored += moved;
        if let Source::Vector(first) = m.src[1] {
            for i in 0..usize::from(m.flags & key::BYTES).div_ceil(4) {
                pending.data[i] = w.v[usize::from(first) + i];
            }
        }
    } else {
        sh.counters.local.loaded += moved;
    }
    pending
}

/// Loads or stores one lane, at `offset` of its own memory and `base` words into that of the wave.
pub(super) fn move_lane(w: &mut Wave, m: &Micro, offset: u64, base: usize, pending: &mut Pending, lane: usize) -> Step {
    let bytes = usize::from(m.flags & key::BYTES);
    if m.flags & key::ATOMIC != 0 {
        return Err(Trap::lane(lane, "an atomic on private memory is not supported"));
    }
    let index = |byte: u64| usize::try_from(byte / 4).ok()?.checked_mul(LANES)?.checked_add(base + lane);
    let last = index(offset.saturating_add(bytes as u64 - 1));
    if last.is_none_or(|i| i >= w.scratch.len()) {
        let size = w.scratch.len() / LANES * 4;
        return Err(Trap::lane(
            lane,
            format!("private address {offset:#x}: {bytes} bytes beyond the {size} of a lane"),
        ));
    }
    // A load shorter than a word leaves no bytes of the last one.
    let mut raw = if m.flags & key::STORE != 0 { pack(m, &pending.data, lane) } else { [0; 16] };
    for (i, byte) in raw[..bytes].iter_mut().enumerate() {
        let at = offset + i as u64;
        let (Some(word), shift) = (index(at), 8 * (at % 4)) else { continue };
        if m.flags & key::STORE != 0 {
            w.scratch[word] = w.scratch[word] & !(0xff << shift) | u32::from(*byte) << shift;
        } else {
            *byte = (w.scratch[word] >> shift) as u8;
        }
    }
    if m.flags & key::STORE == 0 {
        unpack(m, &raw, bytes, &mut pending.data, lane);
    }
    Ok(())
}
