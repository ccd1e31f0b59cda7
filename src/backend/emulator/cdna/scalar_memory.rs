//! Loads into scalar registers.

use super::global;
use super::micro::{Micro, Step};
use super::shared::Shared;
use super::waits::{self, Counter};
use super::wave::Wave;

/// `s_load`: a pair of registers, an offset register, an offset.
pub(super) fn load(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let offset = u64::from(w.scalar(m.src[1])).wrapping_add(i64::from(m.imm) as u64);
    // Scalar loads ignore the lowest bits.
    let address = w.scalar64(m.src[0]).wrapping_add(offset) & !3;
    fetch(w, m, sh, address, usize::MAX)
}

/// `s_buffer_load`: a descriptor; words beyond its range are zero.
pub(super) fn load_buffer(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let super::micro::Source::Scalar(first) = m.src[0] else { return Ok(()) };
    let word = |i: usize| w.s[(usize::from(first) + i) & 127];
    let offset = (u64::from(w.scalar(m.src[1])) + i64::from(m.imm) as u64) & !3;
    let stride = u64::from(word(1) >> 16 & 0x3fff).max(1);
    let room = (u64::from(word(2)) * stride).saturating_sub(offset) / 4;
    let base = u64::from(word(0)) | u64::from(word(1) & 0xffff) << 32;
    fetch(w, m, sh, base.wrapping_add(offset), usize::try_from(room).unwrap_or(usize::MAX))
}

fn fetch(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>, address: u64, room: usize) -> Step {
    let words = usize::from(m.words).min(16);
    let mut raw = [0; 64];
    let bytes = 4 * words.min(room);
    if bytes > 0 {
        global::read(sh, address, &mut raw[..bytes], 0).map_err(|mut trap| {
            trap.lane = None;
            trap
        })?;
    }
    sh.counters.global.loaded += bytes as u64;
    let mut pending = w.queue.take();
    (pending.counter, pending.at, pending.dst) = (Counter::Scalar, sh.at, m.dst);
    (pending.words, pending.in_lds, pending.keep) = (m.words, false, 0);
    for (to, from) in pending.data[0].iter_mut().zip(raw.chunks_exact(4)).take(words) {
        *to = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    }
    waits::finish(w, sh, pending)
}

/// The clock: instructions that the wave has executed, so that runs repeat.
pub(super) fn time(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let now = w.executed;
    let mut pending = w.queue.take();
    (pending.counter, pending.at, pending.dst) = (Counter::Scalar, sh.at, m.dst);
    (pending.words, pending.in_lds, pending.keep) = (2, false, 0);
    (pending.data[0][0], pending.data[0][1]) = (now as u32, (now >> 32) as u32);
    waits::finish(w, sh, pending)
}
