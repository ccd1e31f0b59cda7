//! A room as a plain struct of facts and function pointers: what tests, benches and the command line walk.

use crate::backend::Exec;
use crate::backend::gpu::kernel::Unit;
use crate::ops::contract::{BadCase, Case, Reach};
use crate::tensor::Dtype;

/// One operator with everything that belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// The operator's name: of its files, its tests, its benches.
    pub name: &'static str,
    /// One line that says what it computes.
    pub about: &'static str,
    /// Storage types that it accepts.
    pub dtypes: &'static [Dtype],
    /// Its kernel files with every specialisation that its launcher uses.
    pub kernels: &'static [Unit],
    /// What it is tested on: one element, odd primes, around every tile and vector width, the models' real shapes.
    pub cases: fn() -> Vec<Case>,
    /// What it must refuse.
    pub bad_cases: fn() -> Vec<BadCase>,
    /// What it is timed on.
    pub bench_cases: fn() -> Vec<Case>,
}

/// What a check of one room found.
#[derive(Clone, Debug)]
pub struct Check {
    /// Name of the check.
    pub name: &'static str,
    /// Its result.
    pub verdict: Verdict,
}

/// Passed, or what failed.
pub type Verdict = Result<(), String>;

impl Room {
    /// The same room with this storage type alone, if it accepts it.
    pub fn in_dtype(&self, dtype: Dtype) -> Option<Room> {
        let at = self.dtypes.iter().position(|d| *d == dtype)?;
        Some(Room { dtypes: &self.dtypes[at..=at], ..*self })
    }

    /// The storage types that `case` is timed in.
    pub fn timed_dtypes(&self, case: &Case) -> impl Iterator<Item = Dtype> {
        let only = case.timed_in;
        self.dtypes.iter().copied().filter(move |d| only.is_none_or(|only| only == *d))
    }

    /// The whole contract: the mathematics, then [`check_on`](Room::check_on) the device.
    pub fn check(&self, exec: &Exec, reach: Reach) -> Vec<Check> {
        self.run(&CHECKS, exec, reach)
    }

    /// The half of the contract that is about a device.
    pub fn check_on(&self, exec: &Exec, reach: Reach) -> Vec<Check> {
        self.run(&CHECKS[3..], exec, reach)
    }

    /// Some of [`CHECKS`], in this order.
    pub fn run(&self, checks: &[(&'static str, Prove)], exec: &Exec, reach: Reach) -> Vec<Check> {
        checks.iter().map(|&(name, prove)| Check { name, verdict: prove(self, exec, reach) }).collect()
    }
}

/// A check of a room on a device.
pub type Prove = fn(&Room, &Exec, Reach) -> Verdict;

/// The contract: three checks of the mathematics, three of the device.
pub const CHECKS: [(&str, Prove); 6] = [
    ("shapes", |room, _, _| super::shapes(room)),
    ("cost_is_counted", |room, _, _| super::cost_is_counted(room)),
    ("gradient_rule", |room, _, _| super::gradient_rule(room)),
    ("device", super::device),
    ("repeatable", super::repeatable),
    ("accumulate", super::accumulate),
];
