//! Signals and stop files: read between steps, never acted on inside one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// Signals that end a run in order: SLURM sends USR1 or TERM before it kills, a person sends INT, a closed terminal HUP.
const SIGNALS: [(i32, &str); 4] = [
    (signal_hook::consts::SIGTERM, "SIGTERM"),
    (signal_hook::consts::SIGINT, "SIGINT"),
    (signal_hook::consts::SIGUSR1, "SIGUSR1"),
    (signal_hook::consts::SIGHUP, "SIGHUP"),
];

/// Why a run was asked to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A signal of this name.
    Signal(&'static str),
    /// This file exists.
    File(PathBuf),
    /// [`Stop::request`] was called.
    Request,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StopReason::Signal(name) => f.write_str(name),
            StopReason::File(path) => write!(f, "stop file {}", path.display()),
            StopReason::Request => f.write_str("request"),
        }
    }
}

/// Whether a run is asked to stop. Clones share the request.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// 0 none, 1 requested, from 2 a signal.
    flag: Arc<AtomicUsize>,
    file: Option<PathBuf>,
}

impl Stop {
    /// Nothing asks to stop.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// The same, also stopping when `file` appears.
    #[must_use]
    pub fn on_file(mut self, file: impl Into<PathBuf>) -> Stop {
        self.file = Some(file.into());
        self
    }

    /// The same, also stopping on SIGTERM, SIGINT, SIGUSR1 and SIGHUP. A second signal of the same kind ends the process at
    /// once, as if nobody listened.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses a handler.
    pub fn on_signals(self) -> Result<Stop> {
        for (i, (signal, _)) in SIGNALS.iter().enumerate() {
            let register = || {
                let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
                signal_hook::flag::register_conditional_default(*signal, Arc::clone(&armed))?;
                signal_hook::flag::register(*signal, armed)?;
                signal_hook::flag::register_usize(*signal, Arc::clone(&self.flag), i + 2)
            };
            register().map_err(Error::io("listen to signals", "process"))?;
        }
        Ok(self)
    }

    /// Asks to stop.
    pub fn request(&self) {
        self.flag.store(1, Ordering::SeqCst);
    }

    /// Why to stop, if so.
    pub fn reason(&self) -> Option<StopReason> {
        match self.flag.load(Ordering::SeqCst) {
            0 => self.file.as_ref().filter(|f| f.exists()).map(|f| StopReason::File(f.clone())),
            1 => Some(StopReason::Request),
            n => Some(StopReason::Signal(SIGNALS.get(n - 2).map_or("signal", |s| s.1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_a_file_and_a_signal_are_told_apart() {
        let stop = Stop::new();
        assert_eq!(stop.reason(), None);
        stop.clone().request();
        assert_eq!(stop.reason(), Some(StopReason::Request));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("stop");
        let stop = Stop::new().on_file(&file);
        assert_eq!(stop.reason(), None);
        std::fs::write(&file, "").unwrap();
        assert_eq!(stop.reason(), Some(StopReason::File(file)));
        let stop = Stop::new().on_signals().unwrap();
        signal_hook::low_level::raise(signal_hook::consts::SIGUSR1).unwrap();
        assert_eq!(stop.reason(), Some(StopReason::Signal("SIGUSR1")));
    }
}
