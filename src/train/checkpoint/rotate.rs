//! Rotation: which old checkpoints go when a new one has come.

use super::name::CheckpointName;
use super::store::{CheckpointStore, Found};

impl CheckpointStore {
    /// Removes the oldest rotated checkpoints beyond `max_checkpoints`; gives back their names.
    ///
    /// Damaged ones are not counted, or a row of them would push out the good ones, and not removed, since somebody
    /// may want to look at them; they are reported. What goes wrong here is a warning: the save itself is done.
    pub(crate) fn rotate(&self, saved: &CheckpointName, warnings: &mut Vec<String>) -> Vec<String> {
        let mut removed = Vec::new();
        if self.max_checkpoints == 0 || !saved.is_rotated() {
            return removed;
        }
        let found = match self.list() {
            Ok(found) => found,
            Err(e) => {
                warnings.push(format!("rotation: {e}"));
                return removed;
            }
        };
        let (sound, damaged): (Vec<Found>, Vec<Found>) =
            found.into_iter().filter(|f| f.name.is_rotated()).partition(|f| f.summary.is_ok());
        warnings.extend(damaged.into_iter().filter_map(|f| f.summary.err()));
        for old in self.surplus(sound, saved, warnings) {
            match self.discard(&old.path) {
                Ok(()) => removed.push(old.name.to_string()),
                Err(e) => warnings.push(format!("rotation: {e}")),
            }
        }
        removed
    }

    /// Those of `sound` (newest first) that may go.
    fn surplus(&self, mut sound: Vec<Found>, saved: &CheckpointName, warnings: &mut Vec<String>) -> Vec<Found> {
        if sound.len() <= self.max_checkpoints {
            return Vec::new();
        }
        // A run that went back to an earlier step saves behind the newest: what was just saved stays in any case.
        sound.sort_by_key(|f| f.name != *saved);
        let mut surplus = sound.split_off(self.max_checkpoints);
        if sound.iter().any(|f| super::verify(&f.path).is_ok()) {
            return surplus;
        }
        // None that would stay is good: the newest good one of the others stays too.
        if let Some(at) = surplus.iter().position(|f| super::verify(&f.path).is_ok()) {
            let good = surplus.remove(at);
            warnings.push(format!("{}: kept beyond max_checkpoints: the newer ones are damaged", good.path.display()));
        }
        surplus
    }
}
