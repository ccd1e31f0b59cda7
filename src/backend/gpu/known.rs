//! The devices that code is made for, by their published limits: what stands in for hardware that is not there.

use super::driver::{Arch, DeviceInfo};
use crate::error::{Error, Result};

/// Bytes of memory of a device that is not there: of this machine, where an emulator's tensors really lie.
const MEMORY: u64 = 8 << 30;

/// The limits of the device that `arch` is the name of, called `name`.
///
/// # Errors
/// [`Error::Argument`] if nothing is known of it.
///
/// # Source
/// CUDA C++ programming guide, table "Technical specifications per compute capability"; AMD Instinct MI200 and CDNA3
/// instruction set documents, and HIP's device attributes of both.
pub(crate) fn device(arch: Arch, name: String) -> Result<DeviceInfo> {
    let nvidia = |processors, max_shared_kib: u32, cache_mib: u64| DeviceInfo {
        name: name.clone(),
        arch,
        processors,
        warp: arch.warp(),
        max_threads: 1024,
        max_block: [1024, 1024, 64],
        max_grid: [0x7fff_ffff, 0xffff, 0xffff],
        shared_bytes: 48 << 10,
        max_shared_bytes: max_shared_kib << 10,
        cache_bytes: cache_mib << 20,
        memory_bytes: MEMORY,
        driver: "none".into(),
        has_clusters: arch == Arch::SM_90A,
        is_cooperative: true,
    };
    let amd = |processors, cache_mib: u64| DeviceInfo {
        max_block: [1024, 1024, 1024],
        max_grid: [0x7fff_ffff, 0xffff, 0xffff],
        shared_bytes: 64 << 10,
        max_shared_bytes: 64 << 10,
        ..nvidia(processors, 64, cache_mib)
    };
    match arch {
        Arch::SM_80 => Ok(nvidia(108, 163, 40)),
        Arch::SM_90A => Ok(nvidia(132, 227, 50)),
        Arch::GFX90A => Ok(amd(110, 8)),
        Arch::GFX942 => Ok(amd(304, 256)),
        other => Err(Error::argument(format!("{other}: expected sm_80, sm_90a, gfx90a or gfx942"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_that_is_emulated_is_known() {
        for arch in Arch::ALL {
            let device = device(arch, "x".into()).unwrap();
            assert_eq!(device.warp, arch.warp());
            assert!(device.max_shared_bytes >= 64 << 10 && device.processors > 100);
        }
        assert!(device("sm_70".parse().unwrap(), "x".into()).is_err());
    }
}
