//! What there is of the vendors' software on this machine, in which versions, and why not the rest.
#![allow(unsafe_code, reason = "version calls of vendors' libraries")]

use std::ffi::c_int;

use serde::Serialize;

use super::compile::Compiler;
use super::driver::{Arch, DeviceInfo};
use super::library::{Library, SEE_DOCTOR, table};
use super::{cuda, hip};
use crate::error::{Error, Result};

/// A vendor's driver and the devices that it finds.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// How its devices are called: `cuda` or `hip`.
    pub kind: &'static str,
    /// The library that was opened.
    pub library: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its devices.
    pub devices: Vec<Seen>,
    /// Why there is no device, if there is none.
    pub reason: Option<String>,
}

/// A device that a driver finds.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// What `--device` calls it: `cuda:0`.
    pub name: String,
    /// The vendor's name: "NVIDIA H200".
    pub model: String,
    /// What code it takes: `sm_90a`.
    pub arch: String,
    /// Multiprocessors or compute units.
    pub processors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the last-level cache.
    pub cache_bytes: u64,
    /// Lanes that execute together.
    pub warp: u32,
    /// Most threads of a block.
    pub max_threads: u32,
    /// Most bytes of shared memory of a block.
    pub max_shared_bytes: u32,
    /// Whether blocks can be launched in clusters.
    pub has_clusters: bool,
    /// Whether a launch can require all of its blocks to be resident at once.
    pub is_cooperative: bool,
}

/// A library or program that is used where it is there.
#[derive(Clone, Debug, Serialize)]
pub struct Tool {
    /// What it is for.
    pub about: String,
    /// Its name as it was found.
    pub found: Option<String>,
    /// Its version, where it tells.
    pub version: Option<String>,
    /// Why it cannot be used.
    pub reason: Option<String>,
}

/// Every vendor's driver.
pub fn drivers() -> Vec<Found> {
    let cuda = cuda::Runtime::open(&cuda::NAMES);
    let hip = hip::Runtime::open(&hip::NAMES);
    vec![
        found("cuda", cuda.as_ref().map(|r| (r.library(), r.version(), r.devices())), |n| {
            cuda.as_ref().ok()?.info(n).ok()
        }),
        found("hip", hip.as_ref().map(|r| (r.library(), r.version(), r.devices())), |n| {
            hip.as_ref().ok()?.info(n).ok()
        }),
    ]
}

fn found(
    kind: &'static str,
    opened: Result<(&str, String, u32), &Error>,
    info: impl Fn(u32) -> Option<DeviceInfo>,
) -> Found {
    let (library, version, count) = match opened {
        Ok((library, version, count)) => (library, version, count),
        Err(why) => {
            return Found { kind, library: None, version: None, devices: Vec::new(), reason: Some(words(why)) };
        }
    };
    let devices: Vec<Seen> = (0..count).filter_map(|n| info(n).map(|info| seen(format!("{kind}:{n}"), info))).collect();
    let reason = devices.is_empty().then(|| format!("{kind}: {library}: finds no device on this machine"));
    Found { kind, library: Some(library.to_owned()), version: Some(version), devices, reason }
}

/// An error as the survey itself says it.
fn words(why: &Error) -> String {
    let text = why.to_string();
    text.strip_suffix(SEE_DOCTOR).map_or_else(|| text.clone(), str::to_owned)
}

fn seen(name: String, info: DeviceInfo) -> Seen {
    Seen {
        name,
        model: info.name,
        arch: info.arch.to_string(),
        processors: info.processors,
        memory_bytes: info.memory_bytes,
        cache_bytes: info.cache_bytes,
        warp: info.warp,
        max_threads: info.max_threads,
        max_shared_bytes: info.max_shared_bytes,
        has_clusters: info.has_clusters,
        is_cooperative: info.is_cooperative,
    }
}

table! {
    struct CublasLt {
        cublasLtGetVersion: fn() -> usize,
    }
}

table! {
    /// RCCL has the same names.
    struct Nccl {
        ncclGetVersion: fn(*mut c_int) -> c_int,
    }
}

/// Where libraries lie that no loader's configuration names.
const FOLDERS: [&str; 2] = ["/usr/local/cuda/lib64", "/opt/rocm/lib"];

/// Names of a library: as the loader finds them, then in the vendors' own folders.
pub(crate) fn names(names: &[&str]) -> Vec<String> {
    let placed = FOLDERS.iter().flat_map(|f| names.iter().map(move |n| format!("{f}/{n}")));
    let placed = placed.filter(|path| std::path::Path::new(path).exists());
    names.iter().map(|n| (*n).to_owned()).chain(placed).collect()
}

/// Libraries and compilers that are used where they are there.
pub fn tools() -> Vec<Tool> {
    let mut tools = vec![
        tool("cuda matrix products", "cublasLt", &CUBLASLT, |library| {
            let table = CublasLt::load("cublasLt", library)?;
            // SAFETY: it takes nothing and gives a number.
            let v = unsafe { (table.cublasLtGetVersion)() };
            // 120401 is 12.4.1; 130000 is 13.0.0.
            Ok(Some(format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)))
        }),
        // Its version call needs a handle, which needs a device.
        tool("hip matrix products", "hipblaslt", &HIPBLASLT, |_| Ok(None)),
        tool("cuda collectives", "nccl", &["libnccl.so.2"], nccl),
        tool("hip collectives", "rccl", &["librccl.so.1"], nccl),
    ];
    for arch in Arch::ALL {
        let (found, reason) = match Compiler::here().compiler_of(arch) {
            Ok(compiler) => (Some(compiler), None),
            Err(why) => (None, Some(why.to_string())),
        };
        tools.push(Tool { about: format!("compiler for {arch}"), found, version: None, reason });
    }
    tools
}

/// Names of cuBLASLt.
pub(crate) const CUBLASLT: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
/// Names of hipBLASLt.
pub(crate) const HIPBLASLT: [&str; 3] = ["libhipblaslt.so.1", "libhipblaslt.so.0", "libhipblaslt.so"];

/// 22809 is 2.28.9.
fn nccl(library: &Library) -> Result<Option<String>> {
    let table = Nccl::load("nccl", library)?;
    let mut v = 0;
    // SAFETY: `v` is a live int.
    let status = unsafe { (table.ncclGetVersion)(&raw mut v) };
    Ok((status == 0).then(|| format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)))
}

fn tool(about: &str, who: &str, of: &[&str], version: impl Fn(&Library) -> Result<Option<String>>) -> Tool {
    let opened = Library::open(who, &names(of)).and_then(|library| Ok((version(&library)?, library)));
    let (found, version, reason) = match opened {
        Ok((version, library)) => (Some(library.name().to_owned()), version, None),
        Err(why) => (None, None, Some(words(&why))),
    };
    Tool { about: about.to_owned(), found, version, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_has_a_reason_and_what_is_has_none() {
        for driver in drivers() {
            assert_eq!(driver.reason.is_none(), !driver.devices.is_empty(), "{driver:?}");
            assert_eq!(driver.library.is_some(), driver.version.is_some(), "{driver:?}");
        }
        let tools = tools();
        assert_eq!(tools.len(), 8);
        for tool in tools {
            assert_eq!(tool.reason.is_some(), tool.found.is_none(), "{tool:?}");
            assert!(!tool.reason.as_ref().is_some_and(|why| why.contains("doctor")), "{tool:?}");
        }
    }
}
