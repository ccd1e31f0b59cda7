//! What sites differ in: nodes, binding, modules, caches, limits.
//!
//! # Source
//! OLCF's Frontier user guide of July 2026 (nodes, low-noise cores, binding, limits by size, libfabric's variables); for
//! Perlmutter, scripts of projects that run there and Slurm's own documentation.

use clap::ValueEnum;
use perfrun::error::Faults;

use super::QueueArgs;

/// A site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Site {
    /// OLCF Frontier: MI250X, 8 GCDs a node
    Frontier,
    /// NERSC Perlmutter: 4 A100 a node
    Perlmutter,
    /// Any Slurm cluster: nothing is assumed
    Generic,
}

/// How tasks and devices are spread over a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// One task a node, which drives all its devices
    Node,
    /// One task a device
    Device,
    /// One task with one device
    Single,
}

/// A GCD's share of the 56 cores that low-noise mode leaves on Frontier.
const FRONTIER_CORES: u32 = 7;
/// An A100's share of Perlmutter's 128 hardware threads.
const PERLMUTTER_CORES: u32 = 32;

impl Layout {
    /// Tasks of a node.
    pub(crate) fn tasks(self, queue: &QueueArgs) -> u32 {
        if self == Layout::Device { queue.site.devices(queue) } else { 1 }
    }

    /// Devices of a task.
    pub(crate) fn devices(self, queue: &QueueArgs) -> u32 {
        if self == Layout::Node { queue.site.devices(queue) } else { 1 }
    }
}

impl Site {
    /// Devices of a node.
    pub(crate) fn devices(self, queue: &QueueArgs) -> u32 {
        match self {
            Site::Frontier => 8,
            Site::Perlmutter => 4,
            Site::Generic => queue.devices_per_node.unwrap_or(1),
        }
    }

    /// What `--device` is to be, where the site has one kind.
    pub(crate) fn device(self) -> Option<&'static str> {
        match self {
            Site::Frontier => Some("hip"),
            Site::Perlmutter => Some("cuda"),
            Site::Generic => None,
        }
    }

    /// Cores of a task, if they are known.
    pub(crate) fn cores(self, queue: &QueueArgs) -> Option<u32> {
        let devices = queue.layout.devices(queue);
        queue.cpus_per_task.or(match self {
            Site::Frontier => Some(FRONTIER_CORES * devices),
            Site::Perlmutter => Some(PERLMUTTER_CORES * devices),
            Site::Generic => None,
        })
    }

    /// Modules: the vendor's libraries, and on Frontier what takes RCCL to its network.
    pub(crate) fn modules(self, queue: &QueueArgs) -> Vec<String> {
        if !queue.modules.is_empty() {
            return queue.modules.iter().filter(|m| *m != "none").cloned().collect();
        }
        let usual: &[&str] = match self {
            Site::Frontier if queue.nodes > 1 => &["PrgEnv-gnu", "craype-accel-amd-gfx90a", "rocm", "rccl-net-plugin"],
            Site::Frontier => &["PrgEnv-gnu", "craype-accel-amd-gfx90a", "rocm"],
            Site::Perlmutter if queue.nodes > 1 => &["cudatoolkit", "nccl"],
            Site::Perlmutter => &["cudatoolkit"],
            Site::Generic => &[],
        };
        usual.iter().map(|&m| m.to_owned()).collect()
    }

    /// A folder on a disk of the node, as the shell is to read it.
    pub(crate) fn local_disk(self) -> &'static str {
        match self {
            // The nodes' NVMe, which the constraint asks for.
            Site::Frontier => "/mnt/bb/$USER",
            Site::Perlmutter => "/tmp",
            Site::Generic => "${TMPDIR:-/tmp}",
        }
    }

    /// Options of a step that bind tasks to cores and devices.
    pub(crate) fn binding(self, layout: Layout, devices: u32) -> String {
        match (self, layout) {
            (Site::Frontier, Layout::Node) => {
                format!("--gpus-per-task={devices} --threads-per-core=1 --cpu-bind=cores")
            }
            // A task sees the one device nearest to its cores, as number 0.
            (Site::Frontier, _) => "--gpus-per-task=1 --gpu-bind=closest --threads-per-core=1 --cpu-bind=cores".into(),
            // Binding to devices would hide those of other tasks, and NCCL's direct copies with them.
            (Site::Perlmutter, _) => "--gpu-bind=none --cpu-bind=cores".into(),
            (Site::Generic, _) => "--cpu-bind=cores".into(),
        }
    }

    /// Variables of the network between nodes.
    pub(crate) fn network(self) -> &'static [&'static str] {
        match self {
            Site::Frontier => &[
                "NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3",
                "NCCL_NET_GDR_LEVEL=PHB",
                "NCCL_CROSS_NIC=1",
                // memhooks, the default, can lock up.
                "FI_MR_CACHE_MONITOR=kdreg2",
                "FI_CXI_DISABLE_HOST_REGISTER=1",
                "FI_CXI_DEFAULT_CQ_SIZE=131072",
                "FI_CXI_DEFAULT_TX_SIZE=2048",
                "FI_CXI_RX_MATCH_MODE=hybrid",
                "FI_CXI_RDZV_PROTO=alt_read",
            ],
            Site::Perlmutter => &["NCCL_SOCKET_IFNAME=hsn", "FI_MR_CACHE_MONITOR=userfaultfd"],
            Site::Generic => &[],
        }
    }

    /// Options of the job that the site needs: partition, quality of service, constraint and others.
    pub(crate) fn options(self, queue: &QueueArgs) -> Vec<String> {
        let or = |given: &Option<String>, usual: Option<&str>| given.clone().or(usual.map(str::to_owned));
        let (partition, qos, constraint) = match self {
            Site::Frontier => (Some("batch"), None, Some("nvme")),
            Site::Perlmutter => (None, Some("regular"), Some("gpu")),
            Site::Generic => (None, None, None),
        };
        let mut lines: Vec<String> = [
            or(&queue.partition, partition).map(|p| format!("--partition={p}")),
            or(&queue.qos, qos).map(|q| format!("--qos={q}")),
            or(&queue.constraint, constraint).map(|c| format!("--constraint={c}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        match self {
            Site::Frontier => {
                // One core of each cache is left to the system.
                lines.push("--core-spec=8".into());
                if queue.nodes > 1 {
                    lines.push("--network=disable_rdzv_get".into());
                }
            }
            Site::Perlmutter => lines.push(format!("--gpus-per-node={}", self.devices(queue))),
            Site::Generic => {
                if let Some(n) = queue.devices_per_node {
                    lines.push(format!("--gpus-per-node={n}"));
                }
            }
        }
        lines
    }

    /// Longest time limit in seconds of a job of this size, and what the site calls it.
    pub(crate) fn longest(self, nodes: u32, partition: Option<&str>) -> Option<(u64, &'static str)> {
        const HOUR: u64 = 3600;
        match (self, partition) {
            (Site::Frontier, Some("extended")) if nodes <= 64 => Some((24 * HOUR, "extended, up to 64 nodes")),
            (Site::Frontier, Some("extended")) => Some((0, "extended, which has 64 nodes at most")),
            (Site::Frontier, None | Some("batch")) => Some(match nodes {
                0..=91 => (2 * HOUR, "batch, up to 91 nodes"),
                92..=183 => (6 * HOUR, "batch, 92 to 183 nodes"),
                _ => (12 * HOUR, "batch, 184 nodes and more"),
            }),
            _ => None,
        }
    }
}

/// Adds a line to `faults` for everything that the site would refuse or that would not do what is meant.
pub(crate) fn check(queue: &QueueArgs, faults: &mut Faults) {
    if let Some((longest, whom)) =
        queue.site.longest(queue.nodes, queue.partition.as_deref()).filter(|(l, _)| queue.time > *l)
    {
        faults.push(format!(
            "time: expected at most {} in {whom}, found {}; the job is put back into the queue and goes on, or choose \
             --partition extended",
            clock(longest),
            clock(queue.time)
        ));
    }
    if u64::from(queue.warn_seconds) * 2 > queue.time {
        faults.push(format!(
            "warn-seconds: expected at most half of the time limit of {}, found {}",
            clock(queue.time),
            queue.warn_seconds
        ));
    }
    if queue.layout == Layout::Single && queue.nodes > 1 {
        faults.push(format!("nodes: expected 1 with --layout single, found {}", queue.nodes));
    }
    if queue.site == Site::Perlmutter && queue.account.as_ref().is_some_and(|a| !a.ends_with("_g")) {
        faults.push("account: expected a name that ends in _g, as Perlmutter charges nodes with GPUs".to_owned());
    }
}

/// `HH:MM:SS` of seconds.
pub(crate) fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Seconds of a time limit.
pub(crate) fn time(text: &str) -> Result<u64, String> {
    let wrong = || "expected HH:MM:SS, HH:MM or D-HH:MM:SS, from a minute to a year".to_owned();
    let (days, rest) = text.split_once('-').map_or(("0", text), |(d, r)| (d, r));
    let number = |t: &str| t.parse::<u64>().ok().filter(|_| t.len() <= 4 && t.bytes().all(|b| b.is_ascii_digit()));
    let parts: Option<Vec<u64>> = std::iter::once(days).chain(rest.split(':')).map(number).collect();
    let seconds = match parts.as_deref() {
        Some([d, h, m]) if *m < 60 => 86_400 * d + 3600 * h + 60 * m,
        Some([d, h, m, s]) if *m < 60 && *s < 60 => 86_400 * d + 3600 * h + 60 * m + s,
        _ => return Err(wrong()),
    };
    if (60..=366 * 86_400).contains(&seconds) { Ok(seconds) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits_are_read_as_the_queue_reads_them() {
        assert_eq!(time("02:00:00"), Ok(7200));
        assert_eq!(time("00:30"), Ok(1800));
        assert_eq!(time("1-02:03:04"), Ok(93_784));
        assert_eq!(clock(93_784), "26:03:04");
        for wrong in ["", "2", "2h", "00:00:10", "01:60:00", "1:2:3:4", "-1:00:00", "99999:00:00", "1-:00", "+1:00:00"]
        {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
