//! How a command ends: its exit code, and the error that is shown.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;

/// How a command ended that did not fail with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What was asked for is done.
    Done,
    /// The answer is no, and has been printed: a check that fails, a comparison that misses.
    Failed,
    /// The input is at fault, and what is wrong with it has been printed.
    BadInput,
    /// Stopped by a signal or a budget, with a final checkpoint that verifies.
    Stopped,
}

/// The exit code of a result; an error is shown first, a line each fault.
pub(crate) fn exit_code(result: anyhow::Result<Outcome>) -> ExitCode {
    let error = match result {
        Ok(Outcome::Done) => return ExitCode::SUCCESS,
        Ok(Outcome::Failed) => return ExitCode::from(1),
        Ok(Outcome::BadInput) => return ExitCode::from(2),
        Ok(Outcome::Stopped) => return ExitCode::from(75),
        Err(error) => error,
    };
    // Whoever reads the output has had enough.
    if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    eprint!("{}", lines(&error));
    ExitCode::from(if is_bad_input(&error) { 2 } else { 1 })
}

fn is_bad_input(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<perfrun::error::Error>()).any(perfrun::error::Error::is_bad_input)
}

/// The chain of an error, `error: ` before each fault. The library's own error ends the chain: its text holds its source.
pub(crate) fn lines(error: &anyhow::Error) -> String {
    let mut context = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        if !last.is_empty() {
            context.push_str(&last);
            context.push_str(": ");
        }
        last = cause.to_string();
        if cause.is::<perfrun::error::Error>() {
            break;
        }
    }
    // The splits of a data set share faults: each is said once.
    let mut said = BTreeSet::new();
    last.lines().filter(|&line| said.insert(line)).map(|line| format!("error: {context}{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use perfrun::error::{Error, Faults};

    #[test]
    fn every_fault_is_a_line_with_its_context() {
        let mut faults = Faults::from("a: wrong");
        faults.push("b: wrong too");
        faults.push("a: wrong");
        let error = Err::<(), _>(Error::Config(faults)).context("reading x").unwrap_err();
        assert_eq!(lines(&error), "error: reading x: a: wrong\nerror: reading x: b: wrong too\n");
        assert!(is_bad_input(&error));
    }

    #[test]
    fn the_systems_answer_is_said_once() {
        let missing = Error::io("open", "/x")(io::ErrorKind::NotFound.into());
        assert_eq!(lines(&missing.into()), "error: /x: cannot open: entity not found\n");
        let full = anyhow::Error::from(Error::io("write", "/x")(io::ErrorKind::StorageFull.into()));
        assert!(!is_bad_input(&full));
    }
}
