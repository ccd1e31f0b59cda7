//! Data between lanes through the crossbar of the local data share; its memory is not touched.

use super::micro::{Micro, Step};
use super::shared::Shared;
use super::waits::{self, Counter};
use super::wave::{LANES, Lanes, Wave};

fn answer(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>, data: Lanes) -> Step {
    let mut pending = w.queue.take();
    (pending.counter, pending.at, pending.exec) = (Counter::Lds, sh.at, w.exec());
    (pending.dst, pending.words, pending.keep, pending.in_lds) = (m.dst, 1, 0, false);
    pending.data[0] = data;
    waits::finish(w, sh, pending)
}

/// The lane that an address of the crossbar means.
fn lane_of(m: &Micro, address: u32) -> usize {
    (address.wrapping_add(m.imm as u32) >> 2) as usize % LANES
}

/// Each lane reads the lane that it names; a lane that is off gives zero.
pub(super) fn backward(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let (address, data, exec) = (w.lanes(m.src[0]), w.lanes(m.src[1]), w.exec());
    let out = std::array::from_fn(|l| {
        let from = lane_of(m, address[l]);
        if exec >> from & 1 == 1 { data[from] } else { 0 }
    });
    answer(w, m, sh, out)
}

/// Each lane writes to the lane that it names; of several the highest wins, a lane that none names gets zero.
pub(super) fn forward(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let (address, data, exec) = (w.lanes(m.src[0]), w.lanes(m.src[1]), w.exec());
    let mut out = [0; LANES];
    for l in (0..LANES).filter(|l| exec >> l & 1 == 1) {
        out[lane_of(m, address[l])] = data[l];
    }
    answer(w, m, sh, out)
}

/// A fixed pattern: four lanes permuted, or and, or, xor masks within 32 lanes; a lane that is off gives zero.
pub(super) fn swizzle(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let (data, exec, pattern) = (w.lanes(m.src[0]), w.exec(), m.imm as usize);
    let out = std::array::from_fn(|l| {
        let inside = l & 31;
        let from = if pattern & 0x8000 != 0 {
            l & !3 | pattern >> (2 * (l & 3)) & 3
        } else {
            let (and, or, xor) = (pattern & 31, pattern >> 5 & 31, pattern >> 10 & 31);
            l & !31 | ((inside & and) | or) ^ xor
        };
        if exec >> from & 1 == 1 { data[from] } else { 0 }
    });
    answer(w, m, sh, out)
}
