//! Handles that are alive. A vendor's library reads through whatever handle it is given; a handle that ended must be refused
//! before it gets there.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result};

/// Handles of one kind, with what is known of each.
#[derive(Debug)]
pub(crate) struct Handles<T> {
    kind: &'static str,
    alive: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    /// None yet; `kind` names them in errors.
    pub(crate) fn new(kind: &'static str) -> Handles<T> {
        Handles { kind, alive: RwLock::new(HashMap::new()) }
    }

    /// Adds one. The same handle again, as when a function is looked up twice, keeps what was known of it.
    pub(crate) fn insert(&self, handle: u64, what: T) -> Arc<T> {
        let mut alive = self.alive.write().unwrap_or_else(PoisonError::into_inner);
        alive.entry(handle).or_insert_with(|| Arc::new(what)).clone()
    }

    /// What is known of it.
    pub(crate) fn get(&self, handle: u64) -> Result<Arc<T>> {
        let alive = self.alive.read().unwrap_or_else(PoisonError::into_inner);
        alive.get(&handle).cloned().ok_or_else(|| self.unknown(handle))
    }

    /// Takes it out.
    pub(crate) fn remove(&self, handle: u64) -> Result<Arc<T>> {
        let mut alive = self.alive.write().unwrap_or_else(PoisonError::into_inner);
        alive.remove(&handle).ok_or_else(|| self.unknown(handle))
    }

    /// Takes out all of which `keep` says no.
    pub(crate) fn retain(&self, keep: impl Fn(&T) -> bool) {
        self.alive.write().unwrap_or_else(PoisonError::into_inner).retain(|_, what| keep(what));
    }

    fn unknown(&self, handle: u64) -> Error {
        Error::argument(format!("{}: expected one of this device that has not ended, found {handle:#x}", self.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_that_ended_is_refused() {
        let handles = Handles::new("stream");
        handles.insert(7, "a");
        assert_eq!(*handles.insert(7, "b"), "a");
        assert_eq!(*handles.get(7).unwrap(), "a");
        handles.remove(7).unwrap();
        assert_eq!(
            handles.get(7).unwrap_err().to_string(),
            "stream: expected one of this device that has not ended, found 0x7"
        );
        assert!(handles.remove(7).is_err());
    }
}
