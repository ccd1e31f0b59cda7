//! Barriers in shared memory: the words of [`mbarrier`](super::units::mbarrier), and what those learn who wait.

use super::cluster::{Cluster, Run, trouble_at};
use super::exec::Flow;
use super::hopper_op::BarrierAct;
use super::long_op::Address;
use super::op::{Row, SINK};
use super::races::{Agent, How};
use super::units::mbarrier::{Barrier, INVALID};
use super::units::{self, Misuse};
use super::warp::{Lanes64, Wait, Warp, lanes};

/// Bytes of a barrier.
const BYTES: usize = 8;
const STRONG: How = How { is_write: true, is_strong: true };
const PLAIN: How = How { is_write: true, is_strong: false };

impl Cluster<'_> {
    fn word(&self, block: usize, at: usize) -> u64 {
        let bytes = &self.blocks[block].shared[at..at + BYTES];
        bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    fn set_word(&mut self, block: usize, at: usize, word: u64) {
        self.blocks[block].shared[at..at + BYTES].copy_from_slice(&word.to_le_bytes());
        self.progress += 1;
    }

    /// Changes a barrier; at the end of a phase those who wait may know what those knew who arrived.
    fn change(
        &mut self,
        block: usize,
        at: usize,
        act: impl FnOnce(&mut Barrier) -> units::Result<()>,
    ) -> units::Result<()> {
        let place = |misuse: Misuse| Misuse::new(format!("barrier at {at:#x}: {misuse}"));
        let mut barrier = Barrier::from_word(self.word(block, at)).map_err(place)?;
        let before = barrier.parity();
        act(&mut barrier).map_err(place)?;
        self.set_word(block, at, barrier.word());
        if barrier.parity() != before {
            let meeting = self.meetings.entry((block as u32, at as u32)).or_default();
            let collected = std::mem::take(&mut meeting.collecting);
            meeting.known.join(&collected);
        }
        Ok(())
    }

    /// `mbarrier` instructions but for waits.
    pub(super) fn barrier_act(&mut self, w: &mut Warp, at: &Address, act: &BarrierAct, m: u32) -> Run<()> {
        let code = self.code;
        let addresses = Self::addresses(code, w, at);
        let mut states: Lanes64 = [0; 32];
        for l in lanes(m) {
            let (block, place) =
                self.shared_at(w, at.space, addresses[l], BYTES, BYTES).or_else(|e| trouble_at(l, e))?;
            let how = if matches!(act, BarrierAct::Init { .. } | BarrierAct::Invalidate) { PLAIN } else { STRONG };
            self.note(w.id, block, place, BYTES, how).or_else(|e| trouble_at(l, e))?;
            let number = |row: Row| u64::from(w.r(code, row)[l]);
            let done = match *act {
                BarrierAct::Init { count } => self.init(block, place, number(count)),
                BarrierAct::Invalidate => {
                    self.set_word(block, place, INVALID);
                    Ok(())
                }
                BarrierAct::ExpectBytes { bytes } => self.change(block, place, |b| b.expect_tx(number(bytes))),
                BarrierAct::CompleteBytes { bytes } => self.change(block, place, |b| b.complete_tx(number(bytes))),
                BarrierAct::Arrive { count, bytes, is_last_barred, drops, .. } => {
                    states[l] = self.word(block, place);
                    let known = self.races.publish(w.id);
                    self.meetings.entry((block as u32, place as u32)).or_default().collecting.join(&known);
                    let count = count.map_or(1, number);
                    self.change(block, place, |b| {
                        if let Some(bytes) = bytes {
                            b.expect_tx(number(bytes))?;
                        }
                        match (is_last_barred, drops) {
                            (true, _) => b.arrive_no_complete(count),
                            (_, true) => b.arrive_drop(count),
                            _ => b.arrive(count),
                        }
                    })
                }
            };
            done.or_else(|misuse| trouble_at(l, misuse.words()))?;
        }
        if let BarrierAct::Arrive { state, .. } = *act
            && state != SINK
        {
            w.set64(state, m, &states);
        }
        Ok(())
    }

    fn init(&mut self, block: usize, at: usize, count: u64) -> units::Result<()> {
        let barrier = Barrier::init(count)?;
        self.set_word(block, at, barrier.word());
        self.meetings.remove(&(block as u32, at as u32));
        Ok(())
    }

    /// `test_wait` and `try_wait`: lanes whose phase is not over wait, and are told no only where nobody else can go on.
    #[allow(clippy::too_many_arguments, reason = "the operands of one instruction")]
    pub(super) fn poll(
        &mut self,
        w: &mut Warp,
        g: usize,
        pc: u32,
        p: Row,
        at: &Address,
        parity: Option<Row>,
        state: Row,
        m: u32,
    ) -> Run<Flow> {
        let code = self.code;
        let addresses = Self::addresses(code, w, at);
        let mut over = 0;
        let mut missing = None;
        for l in lanes(m) {
            let (block, place) =
                self.shared_at(w, at.space, addresses[l], BYTES, BYTES).or_else(|e| trouble_at(l, e))?;
            let how = How { is_write: false, is_strong: true };
            self.note(w.id, block, place, BYTES, how).or_else(|e| trouble_at(l, e))?;
            let barrier = Barrier::from_word(self.word(block, place)).or_else(|e| trouble_at(l, e.words()))?;
            let parity = match parity {
                Some(row) => w.r(code, row)[l] & 1 == 1,
                None => Barrier::from_word(w.d(code, state)[l]).or_else(|e| trouble_at(l, e.words()))?.parity(),
            };
            if barrier.is_complete_parity(parity) {
                over |= 1 << l;
                if let Some(meeting) = self.meetings.get(&(block as u32, place as u32)) {
                    let known = meeting.known.clone();
                    self.races.learn(w.id, &known);
                }
            } else {
                missing = Some(Wait::Phase { block: block as u32, at: place as u32, parity });
            }
        }
        let is_told = matches!(w.groups[g].wait, Wait::TimedOut);
        w.groups[g].wait = Wait::No;
        if let Some(wait) = missing.filter(|_| !is_told) {
            self.hits[pc as usize] -= 1;
            w.groups[g].pc = pc;
            w.groups[g].wait = wait;
            return Ok(Flow::Regroup);
        }
        w.set_p(p, m, over);
        Ok(Flow::Next)
    }

    /// Whether who waits for this phase may look again; also where the barrier is none, so that the instruction says so.
    pub(super) fn is_phase_over(&self, block: u32, at: u32, parity: bool) -> bool {
        Barrier::from_word(self.word(block as usize, at as usize)).map_or(true, |b| b.is_complete_parity(parity))
    }

    /// What a barrier waits for, for the report of a deadlock.
    pub(super) fn describe_phase(&self, block: u32, at: u32) -> String {
        Barrier::from_word(self.word(block as usize, at as usize)).map_or_else(|e| e.to_string(), Barrier::waits_for)
    }

    pub(super) fn pending_count(&mut self, w: &mut Warp, d: Row, state: Row, m: u32) -> Run<()> {
        let mut out = [0; 32];
        for l in lanes(m) {
            let state = Barrier::from_word(w.d(self.code, state)[l]).or_else(|e| trouble_at(l, e.words()))?;
            out[l] = state.pending_count() as u32;
        }
        w.set(d, m, &out);
        Ok(())
    }

    /// Bytes of `agent`'s copy have come.
    pub(super) fn bytes_came(&mut self, agent: Agent, block: usize, at: u32, bytes: u64) -> units::Result<()> {
        let known = self.races.stamp(agent);
        self.meetings.entry((block as u32, at)).or_default().collecting.join(&known);
        self.change(block, at as usize, |b| b.complete_tx(bytes))
    }
}
