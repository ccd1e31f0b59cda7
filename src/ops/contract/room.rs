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
    /// The storage types that `case` is timed in.
    pub fn timed_dtypes(&self, case: &Case) -> impl Iterator<Item = Dtype> {
        let only = case.timed_in;
        self.dtypes.iter().copied().filter(move |d| only.is_none_or(|only| only == *d))
    }

    /// The whole contract: the mathematics, then [`check_on`](Room::check_on) the device.
    pub fn check(&self, exec: &Exec, reach: Reach) -> Vec<Check> {
        let mut all = vec![
            Check { name: "shapes", verdict: super::shapes(self) },
            Check { name: "cost_is_counted", verdict: super::cost_is_counted(self) },
            Check { name: "gradient_rule", verdict: super::gradient_rule(self) },
        ];
        all.extend(self.check_on(exec, reach));
        all
    }

    /// The half of the contract that is about a device.
    pub fn check_on(&self, exec: &Exec, reach: Reach) -> Vec<Check> {
        vec![
            Check { name: "device", verdict: super::device(self, exec, reach) },
            Check { name: "repeatable", verdict: super::repeatable(self, exec, reach) },
            Check { name: "accumulate", verdict: super::accumulate(self, exec, reach) },
        ]
    }
}
