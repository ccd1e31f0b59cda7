//! Energy that a run used, where somebody counts it: the device's driver, else the machine.
//!
//! # Source
//! Linux, `Documentation/power/powercap/powercap.rst`: a counter of microjoules a package, and where it begins anew.
//! HPE Cray EX, `/sys/cray/pm_counters`: `energy`, in joules, of the whole node.

use std::path::{Path, PathBuf};

use perfrun::backend::Exec;

/// Counters that are read again and again.
pub(super) struct Energy {
    /// The device's own, and its joules at the start. It does not begin anew.
    device: Option<(Exec, f64)>,
    counters: Vec<Counter>,
}

struct Counter {
    path: PathBuf,
    joules_a_count: f64,
    /// Counts after which it begins anew; none if it does not.
    range: Option<f64>,
    last: f64,
    sum: f64,
}

impl Energy {
    /// The counter of the device, else of the whole node, else those of the processors. `None` if there is none that may be
    /// read.
    pub(super) fn start(exec: &Exec) -> Option<Energy> {
        match exec.energy_joules() {
            Some(joules) => Some(Energy { device: Some((exec.clone(), joules)), counters: Vec::new() }),
            None => Energy::below(Path::new("/sys")),
        }
    }

    fn below(sys: &Path) -> Option<Energy> {
        let node = Counter::open(sys.join("cray/pm_counters/energy"), 1.0, None);
        let mut counters: Vec<Counter> = node.into_iter().collect();
        if counters.is_empty() {
            let zones = std::fs::read_dir(sys.join("class/powercap")).into_iter().flatten().flatten();
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
            let is_package = |name: &str| name.starts_with("intel-rapl:") && name.matches(':').count() == 1;
            let packages = zones.filter(|z| is_package(&z.file_name().to_string_lossy())).map(|z| z.path());
            counters.extend(packages.filter_map(|zone| {
                let range = first_number(&zone.join("max_energy_range_uj"));
                Counter::open(zone.join("energy_uj"), 1e-6, range)
            }));
        }
        (!counters.is_empty()).then_some(Energy { device: None, counters })
    }

    /// Takes note of the counters: at least once between two new beginnings of one.
    pub(super) fn read(&mut self) {
        self.counters.iter_mut().for_each(Counter::read);
    }

    /// Joules from the start: of a device until now, of other counters until the last reading.
    pub(super) fn joules(&self) -> f64 {
        match &self.device {
            Some((exec, first)) => exec.energy_joules().map_or(0.0, |now| now - first),
            None => self.counters.iter().map(|c| c.sum * c.joules_a_count).sum(),
        }
    }
}

impl Counter {
    fn open(path: PathBuf, joules_a_count: f64, range: Option<f64>) -> Option<Counter> {
        let last = first_number(&path)?;
        Some(Counter { path, joules_a_count, range, last, sum: 0.0 })
    }

    fn read(&mut self) {
        if let Some(now) = first_number(&self.path) {
            let step = now - self.last;
            self.sum += if step < 0.0 { step + self.range.unwrap_or(-step) } else { step };
            self.last = now;
        }
    }
}

fn first_number(path: &Path) -> Option<f64> {
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_packages_are_added_also_when_one_begins_anew() {
        let sys = tempfile::tempdir().unwrap();
        assert!(Energy::below(sys.path()).is_none());
        let zones = sys.path().join("class/powercap");
        for zone in ["intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1", "intel-rapl"] {
            std::fs::create_dir_all(zones.join(zone)).unwrap();
            std::fs::write(zones.join(zone).join("energy_uj"), "900\n").unwrap();
            std::fs::write(zones.join(zone).join("max_energy_range_uj"), "1000\n").unwrap();
        }
        let mut energy = Energy::below(sys.path()).unwrap();
        std::fs::write(zones.join("intel-rapl:0/energy_uj"), "950\n").unwrap();
        energy.read();
        std::fs::write(zones.join("intel-rapl:1/energy_uj"), "20\n").unwrap();
        energy.read();
        assert!((energy.joules() - 170e-6).abs() < 1e-12, "{}", energy.joules());
    }

    #[test]
    fn a_node_that_counts_for_itself_is_believed_first() {
        let sys = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(sys.path().join("cray/pm_counters")).unwrap();
        let file = sys.path().join("cray/pm_counters/energy");
        std::fs::write(&file, "5000 J 1700000000 us\n").unwrap();
        let mut energy = Energy::below(sys.path()).unwrap();
        std::fs::write(&file, "5250 J 1700000100 us\n").unwrap();
        energy.read();
        assert_eq!(energy.joules(), 250.0);
    }
}
