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
#[derive(Debug)]
pub struct Timeline {
    exec: Exec,
    marks: Marks,
}

#[derive(Debug)]
enum Marks {
    Clock(Vec<Instant>),
    Events(Vec<Event>),
}

impl Timeline {
    /// Begins the first lap.
    ///
    /// # Errors
    /// What the device reports.
    pub fn start(exec: &Exec) -> Result<Timeline> {
        let marks = if exec.gpu().is_some() { Marks::Events(Vec::new()) } else { Marks::Clock(Vec::new()) };
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
            (Marks::Events(events), Some(gpu)) => {
                let event = gpu.driver().create_event()?;
                events.push(event);
                gpu.driver().record(event, gpu.stream())?;
            }
            (Marks::Clock(marks), _) => marks.push(Instant::now()),
            (Marks::Events(_), None) => {}
        }
        Ok(())
    }

    /// Seconds of every lap that has ended; waits for the device.
    ///
    /// # Errors
    /// What the device reports, also of work that was started before.
    pub fn seconds(self) -> Result<Vec<f64>> {
        match (&self.marks, self.exec.gpu()) {
            (Marks::Events(events), Some(gpu)) => {
                events.windows(2).map(|pair| gpu.driver().elapsed(pair[0], pair[1])).collect()
            }
            (Marks::Clock(marks), _) if self.exec.is_plan() => Ok(vec![0.0; marks.len().saturating_sub(1)]),
            (Marks::Clock(marks), _) => Ok(marks.windows(2).map(|p| (p[1] - p[0]).as_secs_f64()).collect()),
            (Marks::Events(_), None) => Ok(Vec::new()),
        }
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        if let (Marks::Events(events), Some(gpu)) = (&self.marks, self.exec.gpu()) {
            // The times are there, or their error is: nothing is left to say of the events.
            events.iter().for_each(|e| drop(gpu.driver().destroy_event(*e)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_add_up_to_the_time_that_passed() {
        let start = Instant::now();
        let mut timeline = Timeline::start(&Exec::cpu()).unwrap();
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
            let mut timeline = Timeline::start(&exec).unwrap();
            timeline.lap().unwrap();
            timeline.lap().unwrap();
            let laps = timeline.seconds().unwrap();
            assert!(laps.len() == 2 && laps.iter().all(|s| *s < 1.0), "{device}: {laps:?}");
        }
    }
}
