//! `perfrun check`: the contract of rooms, on a machine that needs no compiler.

use clap::Args;
use clap::builder::PossibleValuesParser;
use perfrun::ops::ROOMS;
use perfrun::ops::contract::{Reach, Room};
use serde::Serialize;

use crate::device::{DeviceArgs, print_notices};
use crate::outcome::Outcome;
use crate::output;

/// Flags of `perfrun check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Rooms to check; all of them if none is named
    #[arg(value_name = "ROOM", value_parser = names(), hide_possible_values = true)]
    rooms: Vec<String>,
    /// On the device only the small cases of each room: where a run is slow, under a sanitizer or on an emulator
    #[arg(long)]
    small: bool,
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
        let exec = self.device.open()?;
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        let rooms = chosen(&self.rooms);
        let reach = if self.small { Reach::Small } else { Reach::Whole };
        let mut failed = 0;
        for room in &rooms {
            let checks = pool.install(|| room.check(&exec, reach));
            print_notices(&exec);
            let bad: Vec<_> = checks.iter().filter_map(|c| c.verdict.as_ref().err().map(|e| (c.name, e))).collect();
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
                continue;
            }
            output::line(format!("{:<24} {} of {} checks passed", room.name, checks.len() - bad.len(), checks.len()))?;
            for (check, text) in bad {
                for line in text.lines() {
                    output::line(format!("  {check}: {line}"))?;
                }
            }
        }
        if !self.json {
            output::line(format!("{} rooms, {failed} failed, on {}", rooms.len(), self.device.device))?;
        }
        Ok(if failed == 0 { Outcome::Done } else { Outcome::Failed })
    }
}
