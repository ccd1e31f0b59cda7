//! When the work of a device was done: marks in the order of its work, read when all of it is over. Between two marks nobody
//! waits.

use std::time::Instant;

use crate::backend::Exec;
use crate::backend::gpu::driver::Event;
use crate::error::Result;

/// Laps of a device's work, one after the other.
///
/// On a device behind a driver a mark is an event of its stream: a lap is what the device took, with the time that it waited
/// for the host. On the CPU work is done when a call returns, and the clock tells. On a plan every lap takes no time.
///
/// Events outlive their timeline, for the next one: of as many laps as were [reserved](Timeline::reserve), none makes one.
#[derive(Debug)]
pub struct Timeline {
    exec: Exec,
    marks: Marks,
}

#[derive(Debug)]
enum Marks {
    Clock(Vec<Instant>),
    Events { made: Vec<Event>, recorded: usize },
}

impl Timeline {
    /// Makes what timelines of `laps` laps in all will need, so that none of them has to while the device waits.
    /// `timelines` may be alive at once.
    ///
    /// # Errors
    /// What the device reports.
    pub fn reserve(exec: &Exec, timelines: usize, laps: usize) -> Result<()> {
        exec.gpu().map_or(Ok(()), |gpu| gpu.reserve_events(timelines + laps))
    }

    /// Whether a mark takes time of its own, a few microseconds of device and host: where it is an event of hardware.
    pub fn takes_time(exec: &Exec) -> bool {
        exec.gpu().is_some_and(|gpu| gpu.is_real())
    }

    /// Begins the first of about `laps` laps; more may follow.
    ///
    /// # Errors
    /// What the device reports.
    pub fn start(exec: &Exec, laps: usize) -> Result<Timeline> {
        let marks = match exec.gpu() {
            Some(gpu) => Marks::Events { made: gpu.take_events(laps + 1), recorded: 0 },
            None => Marks::Clock(Vec::with_capacity(laps + 1)),
        };
        let mut timeline = Timeline { exec: exec.clone(), marks };
        timeline.lap()?;
        Ok(timeline)
    }

    /// Ends a lap and begins the next.
    ///
    /// # Errors
    /// What the device reports.
    pub fn lap(&mut self) -> Result<()> {
        match (&mut self.marks, self.exec.gpu()) {
            (Marks::Events { made, recorded }, Some(gpu)) => {
                if made.len() == *recorded {
                    made.push(gpu.driver().create_event()?);
                }
                gpu.driver().record(made[*recorded], gpu.stream())?;
                *recorded += 1;
            }
            (Marks::Clock(marks), _) => marks.push(Instant::now()),
            (Marks::Events { .. }, None) => {}
        }
        Ok(())
    }

    /// Seconds of every lap that has ended; waits for the device.
    ///
    /// # Errors
    /// What the device reports, also of work that was started before.
    pub fn seconds(self) -> Result<Vec<f64>> {
        match (&self.marks, self.exec.gpu()) {
            (Marks::Events { made, recorded }, Some(gpu)) => {
                made[..*recorded].windows(2).map(|pair| gpu.driver().elapsed(pair[0], pair[1])).collect()
            }
            (Marks::Clock(marks), _) if self.exec.is_plan() => Ok(vec![0.0; marks.len().saturating_sub(1)]),
            (Marks::Clock(marks), _) => Ok(marks.windows(2).map(|p| (p[1] - p[0]).as_secs_f64()).collect()),
            (Marks::Events { .. }, None) => Ok(Vec::new()),
        }
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        if let (Marks::Events { made, .. }, Some(gpu)) = (&mut self.marks, self.exec.gpu()) {
            gpu.keep_events(made);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_add_up_to_the_time_that_passed() {
        let start = Instant::now();
        let mut timeline = Timeline::start(&Exec::cpu(), 0).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(3));
        timeline.lap().unwrap();
        timeline.lap().unwrap();
        let laps = timeline.seconds().unwrap();
        assert!(laps.len() == 2 && laps[0] >= 3e-3 && laps.iter().sum::<f64>() <= start.elapsed().as_secs_f64());
    }

    #[test]
    fn a_plan_takes_no_time_and_a_checked_device_ends_every_lap() {
        for device in ["plan", "dry:sm_90a", "emu:gfx90a"] {
            let exec = Exec::open(device.parse().unwrap()).unwrap();
            let mut timeline = Timeline::start(&exec, 2).unwrap();
            timeline.lap().unwrap();
            timeline.lap().unwrap();
            let laps = timeline.seconds().unwrap();
            assert!(laps.len() == 2 && laps.iter().all(|s| *s < 1.0), "{device}: {laps:?}");
        }
    }

    #[test]
    fn what_was_reserved_is_used_again_and_a_timeline_may_outgrow_it() {
        let exec = Exec::open("dry:sm_90a".parse().unwrap()).unwrap();
        let waiting = || {
            let events = exec.gpu().unwrap().take_events(usize::MAX);
            let known: Vec<u64> = events.iter().map(|e| e.0).collect();
            exec.gpu().unwrap().keep_events(&mut events.clone());
            known
        };
        Timeline::reserve(&exec, 2, 5).unwrap();
        let first = waiting();
        assert_eq!(first.len(), 7);
        for laps in [2, 3, 4] {
            // One of two timelines is told too little.
            let (mut a, mut b) = (Timeline::start(&exec, 3).unwrap(), Timeline::start(&exec, 2).unwrap());
            (0..laps).for_each(|_| [&mut a, &mut b].into_iter().for_each(|t| t.lap().unwrap()));
            assert_eq!((a.seconds().unwrap().len(), b.seconds().unwrap().len()), (laps, laps));
        }
        let last = waiting();
        assert!(first.iter().all(|e| last.contains(e)) && last.len() == 11, "{first:?} {last:?}");
        Timeline::reserve(&exec, 2, 5).unwrap();
        assert_eq!(waiting(), last, "there are enough");
    }
}
