//! Devices by name: `cuda[:N]`.

use std::sync::Arc;

use super::cuda::{self, Cuda};
use super::driver::Driver;
use crate::error::{Error, Result};

/// Opens the device of this name.
///
/// # Errors
/// [`Error::Argument`] if it is no such name, [`Error::Device`] if the driver's library or the device is not there,
/// [`Error::Driver`] if the driver refuses it.
pub fn open(name: &str) -> Result<Arc<dyn Driver>> {
    let (vendor, rest) = name.split_once(':').map_or((name, None), |(vendor, rest)| (vendor, Some(rest)));
    match vendor {
        "cuda" => {
            let ordinal = ordinal(name, rest)?;
            Ok(Arc::new(Cuda::open(Arc::new(cuda::Runtime::open(&cuda::NAMES)?), ordinal)?))
        }
        _ => Err(Error::argument(format!("device: expected cuda[:N], found `{name}`"))),
    }
}

/// The number after the colon; none means the first device.
fn ordinal(name: &str, rest: Option<&str>) -> Result<u32> {
    let Some(rest) = rest else { return Ok(0) };
    let wrong = || Error::argument(format!("device: expected a number after the colon, found `{name}`"));
    // `parse` alone would take a plus sign.
    if rest.bytes().all(|b| b.is_ascii_digit()) { rest.parse().map_err(|_| wrong()) } else { Err(wrong()) }
}
