//! What kernels find wrong with numbers that only the device knows: a label outside the classes, an index outside a table.
//!
//! Nobody waits for it: a kernel leaves the first such fault in one record in the device's memory, and whoever next reads from
//! the device or waits for it gets the error instead. A record is read only if a kernel was launched since that may write it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::backend::gpu::Gpu;
use crate::backend::gpu::kernel::Operand;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Spec};

/// Ints of the record: the site, 0 if nothing is wrong, and what was found.
const INTS: usize = 4;

/// A kind of fault: what the launcher knows and the message needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Which operator's.
    pub(crate) op: &'static str,
    /// Makes the error from `known` and from what the kernel left.
    pub(crate) tell: fn(known: [i64; 2], found: [i32; INTS - 1]) -> Error,
    /// Limits, for instance.
    pub(crate) known: [i64; 2],
}

/// The record, as an argument `int*`.
#[derive(Debug)]
pub(crate) struct Record {
    spec: Spec,
    at: u64,
    /// What a kernel writes first, as an argument `int`.
    pub(crate) site: i32,
}

impl Operand for Record {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn address(&self) -> Option<u64> {
        Some(self.at)
    }
}

/// The faults of one device.
#[derive(Debug, Default)]
pub(super) struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Where the record lies, once there is one.
    at: Option<u64>,
    sites: Vec<Site>,
    /// Whether a kernel that may write it was launched since it was read.
    is_open: bool,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gpu {
    /// The record for a kernel that is about to be launched.
    ///
    /// # Errors
    /// What the device reports.
    pub(crate) fn record(&self, site: Site) -> Result<Record> {
        let spec = Spec::new(Dtype::I32, [INTS])?;
        let mut state = self.faults.state();
        let at = match state.at {
            Some(at) => at,
            None => {
                let at = self.pool.take(spec.bytes())?;
                state.at = Some(at);
                self.driver.fill(at, 0, spec.bytes(), self.stream)?;
                at
            }
        };
        let known = state.sites.iter().position(|s| (s.op, s.known) == (site.op, site.known));
        let number = known.unwrap_or_else(|| {
            state.sites.push(site);
            state.sites.len() - 1
        });
        state.is_open = true;
        let site = i32::try_from(number + 1).map_err(|_| Error::too_large("faults", "sites", number))?;
        Ok(Record { spec, at, site })
    }

    /// The error of the first fault since this was last asked, if there is one.
    pub(super) fn tell_faults(&self) -> Result<()> {
        let mut state = self.faults.state();
        let (true, Some(at)) = (state.is_open, state.at) else { return Ok(()) };
        state.is_open = false;
        let mut record = [0_i32; INTS];
        self.driver.read(bytemuck::cast_slice_mut(&mut record), at, self.stream)?;
        let [site, found @ ..] = record;
        let Some(site) = usize::try_from(site).ok().and_then(|s| state.sites.get(s.checked_sub(1)?)) else {
            return Ok(());
        };
        self.driver.fill(at, 0, size_of_val(&record), self.stream)?;
        Err((site.tell)(site.known, found))
    }
}
