//! Names of checkpoints.

use std::fmt;

use crate::error::{Error, Result};

/// A checkpoint's name in its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointName {
    /// `checkpoint_epoch_N`: after N whole epochs. Rotated.
    Epoch(u64),
    /// `checkpoint_step_N`: after N steps. Rotated.
    Step(u64),
    /// `best_checkpoint`: replaced whenever validation improves.
    Best,
    /// `final_checkpoint`: the end of a run, or where it was stopped.
    Final,
    /// Any other name; neither rotated nor counted.
    Other(String),
}

impl CheckpointName {
    /// The name that a folder's name means.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is empty, hidden, too long or has other characters than letters, digits and `_-.=`.
    pub fn parse(text: &str) -> Result<CheckpointName> {
        let sound = !text.is_empty()
            && text.len() <= 128
            && !text.starts_with('.')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.=".contains(c));
        if !sound {
            let what = "expected up to 128 letters, digits and `_-.=`, not starting with a dot";
            return Err(Error::argument(format!("checkpoint name: {what}, found {text:?}")));
        }
        // `checkpoint_epoch_007` is somebody else's spelling: it must not be taken for ours and be replaced by it.
        let number = |prefix| text.strip_prefix(prefix).and_then(|n| n.parse().ok());
        let parsed = match text {
            "best_checkpoint" => CheckpointName::Best,
            "final_checkpoint" => CheckpointName::Final,
            _ => number("checkpoint_epoch_")
                .map(CheckpointName::Epoch)
                .or_else(|| number("checkpoint_step_").map(CheckpointName::Step))
                .unwrap_or(CheckpointName::Other(text.into())),
        };
        Ok(if parsed.to_string() == text { parsed } else { CheckpointName::Other(text.into()) })
    }

    /// Whether `max_checkpoints` counts it and rotation may remove it.
    pub fn is_rotated(&self) -> bool {
        matches!(self, CheckpointName::Epoch(_) | CheckpointName::Step(_))
    }

    /// Which of several checkpoints of the same step is preferred: the one that says most about where the run is.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            CheckpointName::Final => 4,
            CheckpointName::Epoch(_) => 3,
            CheckpointName::Step(_) => 2,
            CheckpointName::Best => 1,
            CheckpointName::Other(_) => 0,
        }
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointName::Epoch(n) => write!(f, "checkpoint_epoch_{n}"),
            CheckpointName::Step(n) => write!(f, "checkpoint_step_{n}"),
            CheckpointName::Best => f.write_str("best_checkpoint"),
            CheckpointName::Final => f.write_str("final_checkpoint"),
            CheckpointName::Other(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_they_print() {
        for text in ["checkpoint_epoch_5", "checkpoint_step_0", "best_checkpoint", "final_checkpoint", "lr=1e-4.v1"] {
            assert_eq!(CheckpointName::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(CheckpointName::parse("checkpoint_epoch_5").unwrap(), CheckpointName::Epoch(5));
        assert!(matches!(CheckpointName::parse("checkpoint_epoch_05").unwrap(), CheckpointName::Other(_)));
        assert!(matches!(CheckpointName::parse("checkpoint_epoch_").unwrap(), CheckpointName::Other(_)));
    }

    #[test]
    fn names_that_leave_the_store_or_hide_are_refused() {
        for text in ["", ".", "..", "../x", "a/b", ".saving-x", "a b", "a\nb", "ä", &"x".repeat(129)] {
            assert!(CheckpointName::parse(text).is_err(), "{text:?}");
        }
    }
}
