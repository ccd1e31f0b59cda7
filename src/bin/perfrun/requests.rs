//! `perfrun bench --requests`: times what is asked for line by line, so that two programs can measure in turns on one device.

use std::io::BufRead;

use perfrun::error::Error;
use perfrun::ops::contract::bench::{Bench, Effort, Pass, passes};
use perfrun::ops::contract::{Case, Room};
use perfrun::tensor::Dtype;
use serde::Deserialize;

use crate::bench::Setting;
use crate::device::print_notices;
use crate::outcome::Outcome;
use crate::output;

/// A line of standard input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    room: String,
    case: String,
    dtype: String,
    pass: Pass,
    seconds: f64,
}

/// Cases whose operands stay: an update and the norm before it are asked for in turns.
const KEPT: usize = 2;

/// Answers every line with one measurement; the operands of the last cases stay, so that asking again costs nothing but the runs.
///
/// # Errors
/// A line that is no request or asks for what is not there: its number, and what was expected.
pub(crate) fn answer(s: &Setting, cases: &[(&'static Room, Case, Vec<Dtype>)]) -> anyhow::Result<Outcome> {
    // Makes the one who asks wait until rates are measured.
    output::json(&s.rates)?;
    let mut made: Vec<(usize, Dtype, Bench<'_>)> = Vec::new();
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let fault = |words: String| Error::argument(format!("bench: line {} of the requests: {words}", number + 1));
        let asked: Request = serde_json::from_str(&line?).map_err(|e| fault(e.to_string()))?;
        let Ok(dtype) = asked.dtype.parse::<Dtype>() else {
            return Err(fault(format!("dtype: expected f32, bf16 or f16, found {}", asked.dtype)).into());
        };
        if !(asked.seconds > 0.0 && asked.seconds <= 3600.0) {
            let words = "seconds: expected a number above 0, 3600 at most";
            return Err(fault(format!("{words}, found {}", asked.seconds)).into());
        }
        let fits = |(room, case, dtypes): &(&Room, Case, Vec<Dtype>)| {
            room.name == asked.room && case.label == asked.case && dtypes.contains(&dtype)
        };
        let found = cases.iter().enumerate().find(|(_, c)| fits(c));
        let Some((at, (room, case, _))) = found.filter(|(_, c)| passes(&c.1).contains(&asked.pass)) else {
            let words = "expected a room, case, type and pass that `perfrun bench --list` has";
            let Request { room, case, pass, .. } = asked;
            return Err(fault(format!("{words}, found {} {case} of {room} in {dtype}", pass.name())).into());
        };
        if !made.iter().any(|(index, made_in, _)| (*index, *made_in) == (at, dtype)) {
            // The oldest operands go before new ones come.
            made.drain(..made.len().saturating_sub(KEPT - 1));
            made.push((at, dtype, Bench::prepare(room, case, dtype, &s.exec, s.rotate)?));
        }
        let effort = Effort { seconds: asked.seconds, warm_up_seconds: asked.seconds / 5.0, ..s.effort };
        if let Some((_, _, bench)) = made.iter_mut().find(|(index, made_in, _)| (*index, *made_in) == (at, dtype)) {
            output::json(&bench.measure(asked.pass, effort, s.rates.flops(dtype), s.rates.copy_bytes_per_s)?)?;
        }
        print_notices(&s.exec);
    }
    Ok(Outcome::Done)
}
