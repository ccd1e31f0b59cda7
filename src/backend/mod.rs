//! Where operators run. The only module that speaks to a device; above it there is only the opaque [`Exec`].

pub mod cpu;
mod datasheet;
pub mod emulator;
mod exec;
pub mod gpu;
pub mod machine;
mod memory;
mod pool;
mod timeline;

pub use datasheet::Datasheet;
pub use exec::{Exec, Variation};
pub use pool::Usage;
pub use timeline::Timeline;

use std::fmt;

use crate::error::{Error, Result};

use crate::backend::gpu::driver::Arch;

/// A device by name: `cpu`, `cuda:0`, `hip:1`, `emu:gfx90a`, `dry:sm_80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// This machine's processor.
    Cpu,
    /// Shapes, costs and memory without numbers: what `perfrun plan` runs on.
    Plan,
    /// An NVIDIA GPU by number, through the CUDA driver.
    Cuda(u32),
    /// An AMD GPU by number, through the HIP runtime.
    Hip(u32),
    /// No GPU: executes the code that was compiled for this architecture.
    Emulator(Arch),
    /// No GPU: checks every launch for this architecture and computes nothing.
    Dry(Arch),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.pad("cpu"),
            Device::Plan => f.pad("plan"),
            Device::Cuda(n) => f.pad(&format!("cuda:{n}")),
            Device::Hip(n) => f.pad(&format!("hip:{n}")),
            Device::Emulator(arch) => f.pad(&format!("emu:{arch}")),
            Device::Dry(arch) => f.pad(&format!("dry:{arch}")),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Device> {
        let wrong = || {
            Error::argument(format!("device: expected cpu, cuda[:N], hip[:N], emu:ARCH or dry:ARCH, found `{name}`"))
        };
        let (kind, rest) = name.split_once(':').map_or((name, None), |(k, r)| (k, Some(r)));
        let number = || rest.map_or(Ok(0), |r| r.parse::<u32>().map_err(|_| wrong()));
        let arch = || {
            let arch: Arch = rest.ok_or_else(wrong)?.parse()?;
            let known = Arch::ALL.contains(&arch);
            known.then_some(arch).ok_or_else(|| {
                Error::argument(format!(
                    "device: expected sm_80, sm_90a, gfx90a or gfx942 after `{kind}:`, found {arch}"
                ))
            })
        };
        match (kind, rest) {
            ("cpu", None) => Ok(Device::Cpu),
            ("plan", None) => Ok(Device::Plan),
            ("cuda", _) => number().map(Device::Cuda),
            ("hip", _) => number().map(Device::Hip),
            ("emu", _) => arch().map(Device::Emulator),
            ("dry", _) => arch().map(Device::Dry),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_printed_and_others_are_refused_with_the_choice() {
        for name in ["cpu", "plan", "cuda:0", "hip:3", "emu:sm_80", "emu:gfx942", "dry:sm_90a"] {
            assert_eq!(name.parse::<Device>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for wrong in ["tpu", "cpu:0", "cuda:x", "cuda:-1", "emu", "emu:", "emu:sm_70", "emu:0", ""] {
            assert!(matches!(wrong.parse::<Device>(), Err(Error::Argument(_))), "{wrong}");
        }
    }
}
