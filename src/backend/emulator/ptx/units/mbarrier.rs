//! The barrier object in shared memory: arrivals, outstanding bytes, phases.
//!
//! The 64-bit word is opaque in PTX, so its bits are this emulator's own, with a mark that memory which was never initialised
//! does not carry:
//!
//! ```text
//! bits  0..21  outstanding bytes, plus 2^20
//!      21..41  pending arrivals of the current phase
//!      41..61  arrivals that a phase expects
//!      61..63  the mark 0b10
//!          63  parity of the phase that is under way
//! ```
//!
//! A phase is complete when no arrival is pending and no bytes are outstanding; then the next one begins with all arrivals
//! pending.

use super::{Misuse, Result};

/// The largest count of arrivals and of outstanding bytes.
pub const MOST: u64 = (1 << 20) - 1;

/// The word of a barrier after `mbarrier.inval`: no operation accepts it.
pub const INVALID: u64 = 0;

const TX_ZERO: i64 = 1 << 20;
const MARK: u64 = 0b10;

/// A barrier object: what its word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barrier {
    parity: bool,
    expected: u64,
    pending: u64,
    /// Bytes that are expected less those that came; below zero where they came first.
    outstanding: i64,
}

impl Barrier {
    /// `mbarrier.init`: phase 0 under way, `count` arrivals pending.
    ///
    /// # Errors
    /// If the count is not 1 to 2^20 - 1.
    pub fn init(count: u64) -> Result<Barrier> {
        if !(1..=MOST).contains(&count) {
            return Err(Misuse::new(format!("mbarrier: expected a count of 1 to {MOST}, found {count}")));
        }
        Ok(Barrier { parity: false, expected: count, pending: count, outstanding: 0 })
    }

    /// The barrier of a word in shared memory.
    ///
    /// # Errors
    /// If no `mbarrier.init` wrote it, or `mbarrier.inval` did away with it.
    pub fn from_word(word: u64) -> Result<Barrier> {
        if word >> 61 & 0b11 != MARK {
            let why = if word == INVALID { "was invalidated or never initialised" } else { "was not initialised" };
            return Err(Misuse::new(format!("mbarrier: the word {word:#018x} {why}; mbarrier.init must come first")));
        }
        Ok(Barrier {
            parity: word >> 63 == 1,
            expected: word >> 41 & MOST,
            pending: word >> 21 & MOST,
            outstanding: (word & ((1 << 21) - 1)) as i64 - TX_ZERO,
        })
    }

    /// The word to keep in shared memory; also the state that an arrive returns, taken before the arrival.
    pub fn word(self) -> u64 {
        let tx = (self.outstanding + TX_ZERO) as u64;
        u64::from(self.parity) << 63 | MARK << 61 | self.expected << 41 | self.pending << 21 | tx
    }

    /// Parity of the phase under way: the number of completed phases, modulo 2.
    pub fn parity(self) -> bool {
        self.parity
    }

    /// Bytes that are expected less those that came.
    pub fn outstanding(self) -> i64 {
        self.outstanding
    }

    /// `mbarrier.pending_count` of a state: arrivals that were pending.
    pub fn pending_count(self) -> u64 {
        self.pending
    }

    /// Arrivals that each phase expects.
    pub fn expected(self) -> u64 {
        self.expected
    }

    /// `mbarrier.arrive` of `count`; completes the phase if it was the last and no bytes are outstanding.
    ///
    /// # Errors
    /// If fewer arrivals are pending.
    pub fn arrive(&mut self, count: u64) -> Result<()> {
        self.take(count)?;
        self.turn();
        Ok(())
    }

    /// `mbarrier.arrive.noComplete`: as [`Barrier::arrive`], but it may not be the last.
    ///
    /// # Errors
    /// If it completes the phase, or fewer arrivals are pending.
    pub fn arrive_no_complete(&mut self, count: u64) -> Result<()> {
        self.take(count)?;
        if self.is_done() {
            return Err(Misuse::new(
                "mbarrier: arrive.noComplete would complete the phase; the last arrival must be an arrive without it",
            ));
        }
        Ok(())
    }

    /// `mbarrier.arrive_drop`: arrives, and expects that many fewer from the next phase on.
    ///
    /// # Errors
    /// If fewer arrivals are pending.
    pub fn arrive_drop(&mut self, count: u64) -> Result<()> {
        self.take(count)?;
        self.expected -= count;
        self.turn();
        Ok(())
    }

    /// One more pending arrival in this phase: what `cp.async.mbarrier.arrive` without `.noinc` does before the copies end.
    ///
    /// # Errors
    /// Past 2^20 - 1.
    pub fn add_pending(&mut self, count: u64) -> Result<()> {
        if self.pending + count > MOST {
            return Err(Misuse::new(format!("mbarrier: more than {MOST} pending arrivals")));
        }
        self.pending += count;
        Ok(())
    }

    /// `mbarrier.expect_tx`: this many more bytes before the phase completes.
    ///
    /// # Errors
    /// If more than 2^20 - 1 bytes would be outstanding.
    pub fn expect_tx(&mut self, bytes: u64) -> Result<()> {
        self.transact(i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// `mbarrier.complete_tx`, and what a bulk copy does at its end: this many bytes have come.
    ///
    /// # Errors
    /// If 2^20 bytes came that nobody expects yet.
    pub fn complete_tx(&mut self, bytes: u64) -> Result<()> {
        self.transact(-i64::try_from(bytes).unwrap_or(i64::MAX))?;
        self.turn();
        Ok(())
    }

    /// `mbarrier.arrive.expect_tx`: expects the bytes, then arrives once.
    ///
    /// # Errors
    /// Those of [`Barrier::expect_tx`] and [`Barrier::arrive`].
    pub fn arrive_expect_tx(&mut self, bytes: u64) -> Result<()> {
        self.expect_tx(bytes)?;
        self.arrive(1)
    }

    /// `mbarrier.test_wait.parity` and `try_wait.parity`: whether the phase of this parity is complete. Only the phase under
    /// way and the one before it can be told apart.
    pub fn is_complete_parity(self, parity: bool) -> bool {
        self.parity != parity
    }

    /// `mbarrier.test_wait` and `try_wait`: whether the phase in which an arrive returned `state` is complete.
    ///
    /// # Errors
    /// If `state` is not what an arrive returned.
    pub fn is_complete(self, state: u64) -> Result<bool> {
        let state = Barrier::from_word(state)
            .map_err(|_| Misuse::new(format!("mbarrier: {state:#018x} is not a state that an arrive returned")))?;
        Ok(self.parity != state.parity)
    }

    /// What it waits for, in words: for the message about a kernel that hangs.
    pub fn waits_for(self) -> String {
        let (parity, bytes) = (u8::from(self.parity), self.outstanding);
        format!(
            "phase of parity {parity}: {} of {} arrivals and {bytes} bytes are missing",
            self.pending, self.expected
        )
    }

    fn take(&mut self, count: u64) -> Result<()> {
        if count == 0 || count > self.pending {
            let (pending, expected) = (self.pending, self.expected);
            let words = format!("mbarrier: {count} arrivals where {pending} of {expected} are pending in this phase");
            return Err(Misuse::new(words));
        }
        self.pending -= count;
        Ok(())
    }

    fn transact(&mut self, bytes: i64) -> Result<()> {
        let outstanding = self.outstanding.saturating_add(bytes);
        if outstanding.unsigned_abs() > MOST {
            let had = self.outstanding;
            let words = format!(
                "mbarrier: {had} bytes outstanding and {bytes} more: expected at most {MOST} either way; \
                 expect_tx and the bytes of the copies do not match"
            );
            return Err(Misuse::new(words));
        }
        self.outstanding = outstanding;
        Ok(())
    }

    fn is_done(self) -> bool {
        self.pending == 0 && self.outstanding == 0
    }

    fn turn(&mut self) {
        if self.is_done() {
            self.parity = !self.parity;
            self.pending = self.expected;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sequence;
    use super::*;

    #[test]
    fn a_phase_completes_with_its_last_arrival_and_the_next_begins() {
        let mut barrier = Barrier::init(3).unwrap();
        let state = barrier.word();
        barrier.arrive(2).unwrap();
        assert!(!barrier.is_complete(state).unwrap() && !barrier.is_complete_parity(false));
        // The phase before the first counts as complete, so a producer may wait for it with parity 1.
        assert!(barrier.is_complete_parity(true));
        assert_eq!(Barrier::from_word(barrier.word()).unwrap().pending_count(), 1);
        barrier.arrive(1).unwrap();
        assert!(barrier.is_complete(state).unwrap() && barrier.is_complete_parity(false));
        assert_eq!((barrier.pending_count(), barrier.parity()), (3, true));
    }

    #[test]
    fn bytes_hold_the_phase_open_whichever_side_comes_first() {
        let mut barrier = Barrier::init(1).unwrap();
        barrier.arrive_expect_tx(4096).unwrap();
        barrier.complete_tx(4000).unwrap();
        assert!(!barrier.is_complete_parity(false));
        barrier.complete_tx(96).unwrap();
        assert!(barrier.is_complete_parity(false));
        // The copy ends before the thread says that it expects it.
        barrier.complete_tx(64).unwrap();
        assert_eq!(barrier.outstanding(), -64);
        barrier.arrive_expect_tx(64).unwrap();
        assert!(barrier.is_complete_parity(true));
    }

    #[test]
    fn words_keep_every_count() {
        let mut numbers = Sequence(4);
        for _ in 0..2000 {
            let mut barrier = Barrier::init(1 + numbers.below(MOST)).unwrap();
            let _ = barrier.arrive(1 + numbers.below(MOST));
            let bytes = numbers.below(MOST + 1);
            let _ = if numbers.below(2) == 0 { barrier.expect_tx(bytes) } else { barrier.complete_tx(bytes) };
            assert_eq!(Barrier::from_word(barrier.word()), Ok(barrier));
        }
    }

    #[test]
    fn misuse_is_told_in_words() {
        let words = |r: Result<()>| r.unwrap_err().words().to_owned();
        let mut barrier = Barrier::init(2).unwrap();
        assert!(words(barrier.arrive(3)).contains("3 arrivals where 2 of 2 are pending"));
        assert!(words(barrier.arrive(0)).contains("0 arrivals"));
        barrier.arrive_no_complete(1).unwrap();
        assert!(words(barrier.arrive_no_complete(1)).contains("would complete the phase"));
        assert!(words(barrier.expect_tx(1 << 20)).contains("at most 1048575"));
        assert!(words(barrier.complete_tx(u64::MAX)).contains("do not match"));
        for poison in [u64::MAX, INVALID, 0x1234] {
            assert!(Barrier::from_word(poison).unwrap_err().words().contains("mbarrier.init must come first"));
        }
        assert!(barrier.is_complete(7).unwrap_err().words().contains("not a state"));
        assert!(Barrier::init(0).is_err() && Barrier::init(1 << 20).is_err());
        assert!(Barrier::init(9).unwrap().waits_for().contains("9 of 9 arrivals"));
    }

    #[test]
    fn a_dropped_thread_is_not_expected_again() {
        let mut barrier = Barrier::init(2).unwrap();
        barrier.arrive_drop(1).unwrap();
        barrier.arrive(1).unwrap();
        assert_eq!((barrier.expected(), barrier.pending_count(), barrier.parity()), (1, 1, true));
        barrier.arrive(1).unwrap();
        assert!(!barrier.parity());
        barrier.add_pending(1).unwrap();
        assert_eq!(barrier.pending_count(), 2);
    }
}
