//! The flag that chooses a device.

use clap::Args;
use perfrun::backend::{Device, Exec};
use perfrun::error::{Error, Result};

/// Where operators run.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: cpu, cuda[:N], hip[:N], emu:ARCH (executes compiled kernels without a GPU) or dry:ARCH
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
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
}
