//! `perfrun check`: the contract of rooms, on a machine that needs no compiler.

use clap::Args;
use clap::builder::PossibleValuesParser;
use perfrun::backend::emulator::Counters;
use perfrun::backend::emulator::counters::{Bytes, Class};
use perfrun::error::Error;
use perfrun::ops::ROOMS;
use perfrun::ops::contract::{CHECKS, Reach, Room};
use perfrun::tensor::Dtype;
use serde::Serialize;

use crate::device::{DeviceArgs, print_notices};
use crate::outcome::Outcome;
use crate::output;
use crate::units::{bytes, flops};

/// Flags of `perfrun check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Rooms to check; all of them if none is named
    #[arg(value_name = "ROOM", value_parser = names(), hide_possible_values = true)]
    rooms: Vec<String>,
    /// On the device only the small cases of each room: where a run is slow, under a sanitizer or on an emulator
    #[arg(long)]
    small: bool,
    /// Only this check of the contract, as often as wanted
    #[arg(long, value_name = "CHECK", value_parser = PossibleValuesParser::new(CHECKS.map(|c| c.0)))]
    only: Vec<String>,
    /// Only this storage type: f32, bf16 or f16; rooms without it are left out
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Dtype>,
    /// Print the rooms that would be checked, with their storage types
    #[arg(long, conflicts_with = "json")]
    list: bool,
    /// One line of JSON for each check
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    room: &'a str,
    check: &'a str,
    device: &'a str,
    passed: bool,
    /// What failed, a line each.
    failures: Vec<&'a str>,
}

/// What an emulated device executed for a room, all cases and schedules together.
#[derive(Serialize)]
struct Executed<'a> {
    room: &'a str,
    device: &'a str,
    executed: &'a Counters,
}

/// Names of rooms, so that a wrong one is answered with the right ones.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(ROOMS.iter().map(|r| r.name))
}

/// The rooms of these names, in the order of the list; all if there is none.
pub(crate) fn chosen(names: &[String]) -> Vec<&'static Room> {
    ROOMS.iter().copied().filter(|r| names.is_empty() || names.iter().any(|n| n == r.name)).collect()
}

impl CheckArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let rooms = self.chosen()?;
        if self.list {
            return list(&rooms);
        }
        let exec = self.device.open()?;
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        let checks: Vec<_> = CHECKS.into_iter().filter(|c| self.asks_for(c.0)).collect();
        let reach = if self.small { Reach::Small } else { Reach::Whole };
        let mut failed = 0;
        for room in &rooms {
            let checks = pool.install(|| room.run(&checks, &exec, reach));
            print_notices(&exec);
            let bad: Vec<_> = checks.iter().filter_map(|c| c.verdict.as_ref().err().map(|e| (c.name, e))).collect();
            let executed = exec.take_executed();
            failed += usize::from(!bad.is_empty());
            if self.json {
                for c in &checks {
                    let failures = c.verdict.as_ref().err().map(|e| e.lines().collect()).unwrap_or_default();
                    let passed = c.verdict.is_ok();
                    output::json(&Line {
                        room: room.name,
                        check: c.name,
                        device: &self.device.device,
                        passed,
                        failures,
                    })?;
                }
                if let Some(executed) = &executed {
                    output::json(&Executed { room: room.name, device: &self.device.device, executed })?;
                }
                continue;
            }
            output::line(format!("{:<24} {} of {} checks passed", room.name, checks.len() - bad.len(), checks.len()))?;
            for (check, text) in bad {
                for line in text.lines() {
                    output::line(format!("  {check}: {line}"))?;
                }
            }
            for line in executed.iter().flat_map(words) {
                output::line(format!("  executed: {line}"))?;
            }
        }
        if !self.json {
            output::line(format!("{} rooms, {failed} failed, on {}", rooms.len(), self.device.device))?;
        }
        Ok(if failed == 0 { Outcome::Done } else { Outcome::Failed })
    }

    fn asks_for(&self, check: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| o == check)
    }

    /// The rooms that the flags choose, in the type that they choose. None is a mistake.
    fn chosen(&self) -> anyhow::Result<Vec<Room>> {
        let in_type = |room: &Room| self.dtype.map_or(Some(*room), |dtype| room.in_dtype(dtype));
        let rooms: Vec<Room> = chosen(&self.rooms).into_iter().filter_map(in_type).collect();
        match self.dtype {
            Some(dtype) if rooms.is_empty() => {
                Err(Error::argument(format!("check: no room named has the storage type {dtype}")).into())
            }
            _ => Ok(rooms),
        }
    }
}

fn list(rooms: &[Room]) -> anyhow::Result<Outcome> {
    for room in rooms {
        let dtypes: Vec<String> = room.dtypes.iter().map(ToString::to_string).collect();
        output::line(format!("{} {}", room.name, dtypes.join(" ")))?;
    }
    Ok(Outcome::Done)
}

/// What was executed, in two lines: instructions of warps by class and FLOPs; bytes, banks and barriers.
pub(crate) fn words(c: &Counters) -> [String; 2] {
    let total = c.total();
    let mut classes: Vec<_> = Class::ALL.into_iter().map(|k| (c.instructions[k as usize], k.name())).collect();
    classes.sort_unstable_by(|a, b| b.cmp(a));
    let shares = classes.iter().filter(|(n, _)| *n > 0).map(|(n, name)| format!("{name} {}", flops(*n as f64)));
    let shares = shares.collect::<Vec<_>>().join(", ");
    let matrix = c.matrix_flops.iter().map(|(kind, n)| format!(", matrix FLOPs {kind} {}", flops(*n as f64)));
    let moved = |name: &str, b: Bytes| format!("{name} {} in {} out", bytes(b.loaded), bytes(b.stored));
    let spaces = [("global", c.global), ("shared", c.shared), ("local", c.local)].map(|(name, b)| moved(name, b));
    [
        format!(
            "{} instructions ({shares}), FLOPs of lanes {}{}",
            flops(total as f64),
            flops(c.lane_flops as f64),
            matrix.collect::<String>()
        ),
        format!("{}, {} bank conflicts, {} barriers", spaces.join(", "), c.bank_conflicts, c.barriers),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_executed_is_told_in_two_lines() {
        let mut c = Counters { lane_flops: 1500, bank_conflicts: 3, barriers: 2, ..Counters::default() };
        c.count(Class::Float, 12_000);
        c.count(Class::Sync, 7);
        c.count_matrix("bf16", 4_000_000);
        c.global = Bytes { loaded: 2048, stored: 16 };
        let [first, second] = words(&c);
        assert_eq!(
            first,
            "12.0 k instructions (float 12.0 k, sync 7), FLOPs of lanes 1.50 k, matrix FLOPs bf16 4.00 M"
        );
        assert_eq!(
            second,
            "global 2.00 KiB in 16 B out, shared 0 B in 0 B out, local 0 B in 0 B out, 3 bank conflicts, 2 barriers"
        );
    }
}
