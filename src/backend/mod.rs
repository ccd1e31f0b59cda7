//! Where operators run. The only module that speaks to a device; above it there is only the opaque [`Exec`].

pub mod cpu;
pub mod emulator;
mod exec;
pub mod gpu;
pub mod machine;
mod memory;
mod pool;

pub use exec::Exec;
pub use pool::Usage;

use std::fmt;

use crate::error::{Error, Result};

/// A device by name: `cpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// This machine's processor.
    Cpu,
    /// Shapes, costs and memory without numbers: what `perfrun plan` runs on.
    Plan,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Cpu => "cpu",
            Device::Plan => "plan",
        })
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Device> {
        match name {
            "cpu" => Ok(Device::Cpu),
            "plan" => Ok(Device::Plan),
            _ if ["cuda", "hip", "emu"].iter().any(|p| name == *p || name.starts_with(&format!("{p}:"))) => Err(
                Error::device(format!("{name}: cannot open: this version computes on the CPU only; use --device cpu")),
            ),
            _ => Err(Error::argument(format!("device: expected cpu, cuda[:N], hip[:N] or emu:ARCH, found `{name}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_and_others_are_refused_with_the_choice() {
        assert_eq!("cpu".parse::<Device>().unwrap(), Device::Cpu);
        assert!(matches!("cuda:0".parse::<Device>(), Err(Error::Device(_))));
        assert!(matches!("tpu".parse::<Device>(), Err(Error::Argument(_))));
    }
}
