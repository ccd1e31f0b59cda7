//! One workgroup: its waves in turn, barriers, the end.

use super::micro::Trap;
use super::shared::Shared;
use super::waits;
use super::wave::{State, Wave};
use crate::backend::emulator::schedule::Turns;

/// Instructions after which another wave has its turn, so that a wave may wait for another in a loop.
const PATIENCE: u32 = 1 << 20;

/// Where a workgroup failed: the wave, the instruction and why.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) wave: u32,
    /// Index in the program; none if no instruction is at fault.
    pub(super) at: Option<usize>,
    pub(super) trap: Trap,
}

/// Runs the waves of a workgroup to their ends.
pub(super) fn run(waves: &mut [Wave], sh: &mut Shared<'_>, turns: &mut Turns, budget: u64) -> Result<(), Box<Failure>> {
    let mut ready: Vec<usize> = (0..waves.len()).collect();
    loop {
        let pick = turns.pick(ready.len());
        let slice = turns.slice().min(PATIENCE);
        let Some(&index) = ready.get(pick) else { return stuck(waves) };
        let wave = &mut waves[index];
        if let Err(trap) = step(wave, sh, slice, budget) {
            return Err(Box::new(Failure { wave: wave.index, at: Some(sh.at), trap: *trap }));
        }
        if wave.state != State::Running {
            ready.remove(pick);
        } else if ready.len() > 1 {
            // Whose patience is over goes behind the others, on the side from which the schedule does not pick.
            ready.remove(pick);
            let place = if pick == 0 { ready.len() } else { 0 };
            ready.insert(place, index);
        }
        if ready.is_empty() {
            if waves.iter().all(|w| w.state == State::Done) {
                return Ok(());
            }
            open_barrier(waves, sh, &mut ready);
        }
    }
}

/// Lets the waves at the barrier pass: all that have not ended are there. The hardware counts ended waves as arrived.
fn open_barrier(waves: &mut [Wave], sh: &mut Shared<'_>, ready: &mut Vec<usize>) {
    for (i, wave) in waves.iter_mut().enumerate() {
        if wave.state == State::AtBarrier {
            wave.state = State::Running;
            ready.push(i);
        }
    }
    sh.lds.pass_barrier();
    sh.counters.barriers += 1;
}

fn stuck(waves: &[Wave]) -> Result<(), Box<Failure>> {
    let wave = waves.iter().find(|w| w.state != State::Done).map_or(0, |w| w.index);
    Err(Box::new(Failure { wave, at: None, trap: *Trap::new("no wave can go on") }))
}

/// Executes up to `slice` instructions of a wave, until it waits or ends.
fn step(w: &mut Wave, sh: &mut Shared<'_>, slice: u32, budget: u64) -> Result<(), Box<Trap>> {
    let program = sh.program;
    let mut counts = [0u64; 16];
    let mut lane_flops = 0;
    let mut result = Ok(());
    for _ in 0..slice {
        let at = w.pc;
        sh.at = at;
        let Some(m) = program.code.get(at) else {
            result = Err(Trap::new("execution runs past the end of the code"));
            break;
        };
        if !w.queue.is_empty() && w.queue.conflict(&program.uses[at]).is_some() {
            result = waits::refuse(w, sh, &program.uses[at]);
            break;
        }
        w.pc = at + 1;
        counts[m.class as usize & 15] += 1;
        if m.flops != 0 {
            lane_flops += u64::from(m.flops) * u64::from(w.exec().count_ones());
        }
        if let Err(trap) = (m.run)(w, m, sh) {
            result = Err(trap);
            break;
        }
        w.executed += 1;
        if w.state != State::Running {
            if w.state == State::Resting {
                w.state = State::Running;
            }
            break;
        }
    }
    if w.executed > budget && result.is_ok() {
        result = Err(Trap::new(format!("more than {budget} instructions: the wave does not end")));
    }
    sh.counters.lane_flops += lane_flops;
    for (sum, n) in sh.counters.instructions.iter_mut().zip(counts) {
        *sum += n;
    }
    result
}
