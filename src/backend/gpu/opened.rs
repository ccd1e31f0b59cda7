//! What is kept of an open device whoever its vendor is: its handles, what ended it, and the words for both.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::driver::{DeviceInfo, Stream};
use super::handles::Handles;
use crate::error::{Error, Result};

/// An entry point as a vendor's table knows it.
pub(crate) trait Entry {
    /// Its name in the code.
    fn name(&self) -> &str;
}

/// The state of one open device; `E` is what is known of an entry point.
#[derive(Debug)]
pub(crate) struct Opened<E> {
    /// What `--device` calls it.
    pub(crate) name: String,
    pub(crate) info: DeviceInfo,
    /// The error that ended the device's work.
    lost: OnceLock<Box<str>>,
    /// The kernel that was launched last.
    last: Mutex<Option<Arc<E>>>,
    /// Allocations that did not come from the pool.
    pub(crate) shared: Handles<()>,
    pub(crate) modules: Handles<()>,
    pub(crate) functions: Handles<E>,
    pub(crate) streams: Handles<()>,
    pub(crate) events: Handles<()>,
    pub(crate) graphs: Handles<()>,
}

impl<E: Entry> Opened<E> {
    pub(crate) fn new(name: String, info: DeviceInfo) -> Opened<E> {
        Opened {
            name,
            info,
            lost: OnceLock::new(),
            last: Mutex::new(None),
            shared: Handles::new("shared memory"),
            modules: Handles::new("module"),
            functions: Handles::new("function"),
            streams: Handles::new("stream"),
            events: Handles::new("event"),
            graphs: Handles::new("graph"),
        }
    }

    /// Refuses a device that was lost.
    pub(crate) fn usable(&self) -> Result<()> {
        let Some(why) = self.lost.get() else { return Ok(()) };
        Err(Error::driver(format!(
            "{}: the device cannot be used by this process any more since {why}; start the process again",
            self.name
        )))
    }

    /// The error for a call that failed in these words; one that ends the device's work is remembered.
    pub(crate) fn failed(&self, text: &str, ends_the_device: bool) -> Error {
        if !ends_the_device {
            return Error::driver(format!("{}: {text}", self.name));
        }
        let of = match &*self.last.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(entry) => format!(" (last launch: {}; KERNEL_SYNC=1 finds the kernel)", entry.name()),
            None => String::new(),
        };
        let text = format!("{text}{of}");
        let error = Error::driver(format!("{}: {text}; this process has to be started again", self.name));
        // The first error is the cause; what follows is its echo.
        let _ = self.lost.set(text.into());
        error
    }

    /// Remembers what was launched last: a fault that shows later is told with it.
    pub(crate) fn launched(&self, entry: Arc<E>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
    }

    /// What the driver calls a stream.
    pub(crate) fn stream(&self, stream: Stream) -> Result<u64> {
        if stream != Stream::DEFAULT {
            self.streams.get(stream.0)?;
        }
        Ok(stream.0)
    }

    /// The error for what the host reads or writes while the stream records: it could not be replayed.
    pub(crate) fn recording_error(&self, what: &str) -> Error {
        Error::argument(format!("{}: {what}: the stream is being recorded; do it before or after", self.name))
    }

    /// The error for an allocation that the device has no room for.
    pub(crate) fn out_of_memory(&self, bytes: usize, (free, total): (u64, u64)) -> Error {
        Error::out_of_memory(format!("{}: out of memory: asked {bytes} bytes, free {free} of {total}", self.name))
    }
}
