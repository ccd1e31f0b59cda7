//! The flag that chooses a device.

use clap::Args;
use perfrun::backend::{Device, Exec};
use perfrun::error::{Error, Result};

/// Where operators run.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: cpu, cuda[:N], hip[:N], emu:ARCH (executes compiled kernels without a GPU) or dry:ARCH
    #[arg(long, value_name = "DEVICE", default_value = "cpu", overrides_with = "device")]
    pub(crate) device: String,
}

impl DeviceArgs {
    /// Opens the device.
    pub(crate) fn open(&self) -> Result<Exec> {
        match self.device.parse()? {
            Device::Plan => Err(Error::argument("device: `plan` computes nothing; use --device cpu")),
            device => Exec::open(device),
        }
    }

    /// Opens a device whose results mean something.
    pub(crate) fn open_to_compute(&self) -> Result<Exec> {
        match self.device.parse()? {
            Device::Dry(arch) => Err(Error::argument(format!(
                "device: `dry:{arch}` checks launches and computes nothing; use --device emu:{arch}"
            ))),
            _ => self.open(),
        }
    }
}

/// Says what the device found worth telling although all went well: an entry of the cache that was damaged, a cache that cannot
/// be written.
pub(crate) fn print_notices(exec: &Exec) {
    exec.take_notices().iter().for_each(|line| eprintln!("notice: {line}"));
}
