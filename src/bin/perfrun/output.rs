//! What is printed: results on standard output, progress on standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// Prints `text` and a line end. Unlike `println!`, a reader that is gone is an error and no panic.
pub(crate) fn line(text: impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}

/// Prints `value` as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string(value)?)?)
}

/// Prints `value` as JSON over several lines.
pub(crate) fn pretty_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// How far something is: a bar on a terminal, now and then a plain line in a file.
pub(crate) struct Progress {
    bar: ProgressBar,
    plain: bool,
    what: &'static str,
    /// Tenths of the whole that have been said.
    said: u64,
}

impl Progress {
    pub(crate) fn new(what: &'static str) -> Progress {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target).with_prefix(what);
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {elapsed} (left {eta}) {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        if !plain {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Progress { bar, plain, what, said: 0 }
    }

    /// `done` of `total`; the last thing worked on is shown.
    pub(crate) fn set(&mut self, done: usize, total: usize, last: impl std::fmt::Display) {
        let (done, total) = (done as u64, (total as u64).max(1));
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(last.to_string());
        let tenth = done.saturating_mul(10) / total;
        if self.plain && tenth > self.said {
            self.said = tenth;
            eprintln!("{}: {done}/{total} {last}", self.what);
        }
    }

    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
