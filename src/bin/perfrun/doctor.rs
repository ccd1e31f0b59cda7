//! `perfrun doctor`: what this machine has, what can be used of it, and why not the rest.

use std::path::{Path, PathBuf};

use clap::Args;
use perfrun::backend::Exec;
use perfrun::backend::cpu::dispatch;
use perfrun::backend::cpu::rates::rates;
use perfrun::backend::gpu::driver::Arch;
use perfrun::backend::gpu::survey::{self, Found, Seen, Tool};
use perfrun::backend::machine::Machine;
use perfrun::error::{Error, Result};
use serde::Serialize;

use crate::outcome::Outcome;
use crate::output;
use crate::units::{bytes, three_digits};

/// Flags of `perfrun doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Folders that checkpoints and logs are to lie in
    #[arg(value_name = "DIR", default_value = ".")]
    folders: Vec<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Findings {
    version: &'static str,
    machine: Machine,
    /// The widest instruction set that vector code runs in.
    vector_code: String,
    matmul_flop_per_s: f64,
    copy_bytes_per_s: f64,
    devices: Vec<DeviceState>,
    /// The vendors' drivers, with all that they tell of their devices.
    drivers: Vec<Found>,
    /// What kernels are compiled with and what is used beside them.
    tools: Vec<Tool>,
    hdf5: &'static str,
    folders: Vec<Folder>,
}

#[derive(Serialize)]
struct DeviceState {
    name: String,
    usable: bool,
    /// What it is, where a driver tells.
    about: Option<String>,
    /// Why not.
    reason: Option<String>,
}

#[derive(Serialize)]
struct Folder {
    path: PathBuf,
    file_system: String,
    free_bytes: u64,
    note: Option<&'static str>,
}

impl DoctorArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let folders = self.folders.iter().map(|f| folder(f)).collect::<Result<Vec<_>>>()?;
        let rates = rayon::ThreadPoolBuilder::new().build()?.install(rates);
        let (drivers, tools) = (survey::drivers(), survey::tools());
        let findings = Findings {
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::here(),
            vector_code: format!("{:?}", dispatch::level()).to_lowercase(),
            matmul_flop_per_s: rates.flops,
            copy_bytes_per_s: rates.bytes,
            devices: devices(&drivers, &tools),
            drivers,
            tools,
            hdf5: if cfg!(feature = "hdf5") { "rust, then libhdf5" } else { "rust; libhdf5 needs the feature hdf5" },
            folders,
        };
        if self.json {
            output::pretty_json(&findings)?
        } else {
            print(&findings)?
        }
        Ok(Outcome::Done)
    }
}

/// The processor, every device that a driver finds or why there is none, and what is emulated.
fn devices(drivers: &[Found], tools: &[Tool]) -> Vec<DeviceState> {
    let mut all = vec![device("cpu".to_owned(), None)];
    for driver in drivers {
        all.extend(driver.devices.iter().map(|seen| device(seen.name.clone(), Some(about(seen)))));
        if let Some(reason) = &driver.reason {
            all.push(DeviceState {
                name: driver.kind.to_owned(),
                usable: false,
                about: None,
                reason: Some(reason.clone()),
            });
        }
    }
    for arch in Arch::ALL {
        let mut emulated = device(format!("emu:{arch}"), None);
        let compiler = tools.iter().find(|t| t.about == format!("compiler for {arch}"));
        if let Some(reason) = compiler.and_then(|t| t.reason.as_ref()) {
            (emulated.usable, emulated.reason) = (false, Some(reason.clone()));
        }
        all.push(emulated);
    }
    all
}

fn device(name: String, about: Option<String>) -> DeviceState {
    let reason = name.parse().and_then(Exec::open).err().map(|e| e.to_string());
    DeviceState { name, usable: reason.is_none(), about, reason }
}

/// One line of a device.
fn about(seen: &Seen) -> String {
    format!(
        "{} ({}), {} processors, {} memory, {} shared memory a block",
        seen.model,
        seen.arch,
        seen.processors,
        bytes(seen.memory_bytes),
        bytes(seen.max_shared_bytes.into())
    )
}

/// What is known of file systems that checkpoints get into trouble on, by the number that the system gives them.
const FILE_SYSTEMS: [(u64, &str, Option<&str>); 11] = [
    (0xef53, "ext4", None),
    (0x5846_5342, "xfs", None),
    (0x9123_683e, "btrfs", None),
    (0x2fc1_2fc1, "zfs", None),
    (0x794c_7630, "overlay", Some("a container's layer: checkpoints vanish with the container")),
    (0x0102_1994, "tmpfs", Some("memory: checkpoints are gone after a restart")),
    (0x6969, "nfs", Some("network: a rename is seen by other hosts some seconds late; one run a folder")),
    (0x0bd0_0bd0, "lustre", Some("network: put data files of many gigabytes on several stripes")),
    (0x4750_4653, "gpfs", Some("network")),
    (
        0x6573_5546,
        "fuse",
        Some("a program stands behind it: whether a rename survives a crash depends on that program"),
    ),
    (0x0102_1997, "9p", Some("a host's folder in a virtual machine: sync may not reach the disk")),
];

fn folder(path: &Path) -> Result<Folder> {
    let stat = rustix::fs::statfs(path).map_err(|e| Error::io("look at", path)(e.into()))?;
    let kind = stat.f_type as u64 & 0xffff_ffff;
    let known = FILE_SYSTEMS.iter().find(|(magic, ..)| *magic == kind);
    let free_bytes = (stat.f_bavail as u64).saturating_mul(stat.f_bsize as u64);
    let file_system = known.map_or_else(|| format!("unknown ({kind:#x})"), |k| k.1.to_owned());
    Ok(Folder { path: path.to_path_buf(), file_system, free_bytes, note: known.and_then(|k| k.2) })
}

fn print(f: &Findings) -> std::io::Result<()> {
    let m = &f.machine;
    output::line(format!("perfrun {}", f.version))?;
    output::line(format!("processor   {} ({})", m.processor.as_deref().unwrap_or("unknown"), m.architecture))?;
    output::line(format!("features    {}; vector code runs as {}", m.features.join(" "), f.vector_code))?;
    output::line(format!("threads     {}", m.threads))?;
    let caches: Vec<String> = m.caches.iter().map(|c| format!("L{} {}", c.level, bytes(c.bytes as u64))).collect();
    output::line(format!("caches      {}", if caches.is_empty() { "unknown".into() } else { caches.join(", ") }))?;
    let size = |b: Option<usize>| b.map_or("unknown".into(), |b| bytes(b as u64));
    output::line(format!("memory      {}, {} available", size(m.memory_bytes), size(m.available_bytes)))?;
    output::line(format!(
        "measured    {} GFLOP/s f32 matrix product, {} GB/s copy",
        three_digits(f.matmul_flop_per_s / 1e9),
        three_digits(f.copy_bytes_per_s / 1e9)
    ))?;
    output::line("devices")?;
    for d in &f.devices {
        let about = d.about.as_ref().map(|a| format!("{a}: ")).unwrap_or_default();
        output::line(format!("  {:<10} {about}{}", d.name, d.reason.as_deref().unwrap_or("can be used")))?;
    }
    output::line("drivers")?;
    for d in &f.drivers {
        let found = d.library.as_ref().map(|l| format!("{l}, {}", d.version.as_deref().unwrap_or("version unknown")));
        output::line(format!("  {:<10} {}", d.kind, found.as_deref().unwrap_or("not found")))?;
    }
    output::line("libraries and compilers")?;
    for t in &f.tools {
        let version = t.version.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
        let text = t.found.as_deref().or(t.reason.as_deref()).unwrap_or("not found");
        output::line(format!("  {:<22} {text}{version}", t.about))?;
    }
    output::line(format!("hdf5        {}", f.hdf5))?;
    output::line("folders")?;
    for folder in &f.folders {
        let note = folder.note.map(|n| format!("; {n}")).unwrap_or_default();
        let free = bytes(folder.free_bytes);
        output::line(format!("  {}: {}, {free} free{note}", folder.path.display(), folder.file_system))?;
    }
    Ok(())
}
