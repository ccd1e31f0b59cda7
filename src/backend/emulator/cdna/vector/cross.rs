//! Single lanes in scalar registers.

use crate::backend::emulator::cdna::decode::Op;
use crate::backend::emulator::cdna::micro::{Handler, Micro, Step};
use crate::backend::emulator::cdna::shared::Shared;
use crate::backend::emulator::cdna::wave::{LANES, Wave};

pub(super) fn handler(op: Op) -> Option<Handler> {
    Some(match op {
        Op::v_readfirstlane_b32 => read_first,
        Op::v_readlane_b32 => read,
        Op::v_writelane_b32 => write,
        Op::v_nop => nothing,
        _ => return None,
    })
}

fn nothing(_: &mut Wave, _: &Micro, _: &mut Shared<'_>) -> Step {
    Ok(())
}

fn read_first(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let value = w.scalar(m.src[0]);
    w.s[usize::from(m.dst) & 127] = value;
    Ok(())
}

/// Reads a lane whether it is on or not.
fn read(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let lane = w.scalar(m.src[1]) as usize % LANES;
    let value = w.lanes(m.src[0])[lane];
    w.s[usize::from(m.dst) & 127] = value;
    Ok(())
}

/// Writes a lane whether it is on or not.
fn write(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let value = w.scalar(m.src[0]);
    let lane = w.scalar(m.src[1]) as usize % LANES;
    w.v[usize::from(m.dst)][lane] = value;
    Ok(())
}
