//! How long the device takes: between events of its stream, with work queued ahead of it.

use super::Gpu;
use super::driver::Event;
use crate::error::Result;
use crate::tensor::{Spec, Tensor};

/// Bytes that are filled again and again before a series, so that the host is ahead of the device when the series begins: a
/// device that waits for the host is timed too slow.
const LEAD_BYTES: usize = 256 << 20;
/// Groups that a series is cut into, and most calls of a group.
const SERIES: usize = 8;
/// How often: about a millisecond on a device of several TB/s.
const LEAD_FILLS: usize = 12;

impl Gpu {
    /// Seconds that the device takes for each of `runs` calls of `run`, which follow one another without a wait. An event costs more than
    /// a microsecond, and nothing begins before it: calls share the mean of a group between two events.
    ///
    /// # Errors
    /// What `run` or the device reports.
    pub fn time(&self, runs: usize, run: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let mut events = Vec::with_capacity(runs + 1);
        let result = self.time_between(runs, &mut events, run);
        // The times are there, or their error is: nothing is left to say of the events.
        events.into_iter().for_each(|e| drop(self.driver.destroy_event(e)));
        result
    }

    fn time_between(
        &self,
        runs: usize,
        events: &mut Vec<Event>,
        run: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<f64>> {
        let group = runs.div_ceil(SERIES).clamp(1, SERIES);
        let groups: Vec<usize> = (0..runs).step_by(group).map(|at| group.min(runs - at)).collect();
        for _ in 0..=groups.len() {
            events.push(self.driver.create_event()?);
        }
        if self.is_real() {
            let lead = self.bytes(LEAD_BYTES)?;
            if let Some(at) = lead.address() {
                (0..LEAD_FILLS).try_for_each(|_| self.driver.fill(at, 0, LEAD_BYTES, self.stream))?;
            }
        }
        let Some((start, ends)) = events.split_first() else { return Ok(Vec::new()) };
        self.driver.record(*start, self.stream)?;
        for (end, calls) in ends.iter().zip(&groups) {
            (0..*calls).try_for_each(|_| run())?;
            self.driver.record(*end, self.stream)?;
        }
        let mut times = Vec::with_capacity(runs);
        for (pair, calls) in events.windows(2).zip(groups) {
            let mean = self.driver.elapsed(pair[0], pair[1])? / calls as f64;
            times.extend(std::iter::repeat_n(mean, calls));
        }
        Ok(times)
    }

    /// Memory of that many bytes, rounded down to numbers.
    fn bytes(&self, bytes: usize) -> Result<Tensor> {
        self.scratch(Spec::f32([bytes / 4])?)
    }

    /// Bytes read and written a second by copies of `bytes` within the device's memory: the best of some.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory); what the device reports.
    pub fn copy_rate(&self, bytes: usize) -> Result<f64> {
        let (from, to) = (self.bytes(bytes)?, self.bytes(bytes)?);
        let (Some(from), Some(to)) = (from.address(), to.address()) else { return Ok(0.0) };
        self.driver.fill(from, 1, bytes, self.stream)?;
        let times = self.time(10, &mut || self.driver.copy(to, from, bytes, self.stream))?;
        Ok(2.0 * bytes as f64 / times.into_iter().fold(f64::INFINITY, f64::min).max(1e-9))
    }
}
