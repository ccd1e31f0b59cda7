//! A driver by the name of its device.

use std::sync::Arc;

use super::cuda::{self, Cuda};
use super::driver::Driver;
use super::dry::Dry;
use super::hip::{self, Hip};
use crate::backend::Device;
use crate::error::{Error, Result};

/// Opens the driver of `device`.
///
/// # Errors
/// [`Error::Device`] if the driver's library or the device is not there or if `device` needs no driver, [`Error::Driver`] if the
/// driver refuses it.
pub fn open(device: Device) -> Result<Arc<dyn Driver>> {
    match device {
        Device::Cuda(ordinal) => Ok(Arc::new(Cuda::open(Arc::new(cuda::Runtime::open(&cuda::NAMES)?), ordinal)?)),
        Device::Hip(ordinal) => Ok(Arc::new(Hip::open(Arc::new(hip::Runtime::open(&hip::NAMES)?), ordinal)?)),
        Device::Dry(arch) => Ok(Arc::new(Dry::new(arch)?)),
        _ => Err(Error::device(format!("{device}: cannot open: no driver for it"))),
    }
}
