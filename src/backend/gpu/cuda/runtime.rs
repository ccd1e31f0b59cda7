//! The CUDA driver as a library: opened once, checked, and asked what devices there are.
#![allow(unsafe_code, reason = "calls of libcuda; every pointer given is to a live local of the type in cuda.h")]

use std::ffi::{CStr, c_int};

use super::api::{self, Api, Core, Status};
use crate::backend::gpu::driver::{Arch, DeviceInfo};
use crate::backend::gpu::library::Library;
use crate::error::{Error, Result};

/// Names of the driver's library: what the driver installs, then what a development package installs.
pub(crate) const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
/// The first version whose driver has every function of the table: 12.0.
const LEAST_VERSION: c_int = 12_000;

/// An open, initialised CUDA driver.
#[derive(Debug)]
pub(crate) struct Runtime {
    library: Library,
    core: Core,
    pub(super) api: Api,
    version: c_int,
    devices: u32,
}

impl Runtime {
    /// Opens the driver.
    ///
    /// # Errors
    /// [`Error::Device`] if the library is absent, too old, lacks a function or refuses to start.
    pub(crate) fn open<S: AsRef<str>>(names: &[S]) -> Result<Runtime> {
        let library = Library::open("cuda", names)?;
        let core = Core::load("cuda", &library)?;
        let mut version = 0;
        // SAFETY: `version` is a live int; this call is allowed before cuInit.
        let status = unsafe { (core.cuDriverGetVersion)(&raw mut version) };
        let refuse = |what: String| Error::device(format!("cuda: {}: {what}", library.name()));
        if status == api::STUB_LIBRARY {
            return Err(refuse(
                "this is the toolkit's stub, not a driver; install NVIDIA's driver or put its library first".to_owned(),
            ));
        }
        if status != 0 {
            return Err(refuse(describe(&core, "cuDriverGetVersion", status)));
        }
        if version < LEAST_VERSION {
            return Err(refuse(format!(
                "expected a driver for CUDA {} or later, found one for CUDA {}; install a newer NVIDIA driver",
                dotted(LEAST_VERSION),
                dotted(version)
            )));
        }
        let api = Api::load("cuda", &library)?;
        // SAFETY: the flags must be zero.
        let devices = match unsafe { (core.cuInit)(0) } {
            0 => count(&core).map_err(refuse)?,
            api::NO_DEVICE => 0,
            api::SYSTEM_DRIVER_MISMATCH => {
                let text = describe(&core, "cuInit", api::SYSTEM_DRIVER_MISMATCH);
                return Err(refuse(format!("{text}; the kernel module and the library differ: restart the machine")));
            }
            status => return Err(refuse(describe(&core, "cuInit", status))),
        };
        Ok(Runtime { library, core, api, version, devices })
    }

    /// Devices that this process may use.
    pub(crate) fn devices(&self) -> u32 {
        self.devices
    }

    /// The library's name and its version: "CUDA 13.0 (driver 580.95.05)".
    pub(crate) fn version(&self) -> String {
        let cuda = format!("CUDA {}", dotted(self.version));
        // The library does not tell the driver's own number; the kernel module does.
        let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        let number = module.split_whitespace().find(|w| {
            w.contains('.') && w.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        });
        number.map_or(cuda.clone(), |n| format!("{cuda} (driver {n})"))
    }

    /// The name under which the library was found.
    pub(crate) fn library(&self) -> &str {
        self.library.name()
    }

    /// What a test's driver says.
    #[cfg(test)]
    pub(super) fn says(&self, symbol: &str) -> String {
        self.library.says(symbol)
    }

    /// The driver's name of device `ordinal`.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device.
    pub(super) fn device(&self, ordinal: u32) -> Result<c_int> {
        if ordinal >= self.devices {
            let found = match self.devices {
                0 => "the driver finds no device here; see nvidia-smi and the variable CUDA_VISIBLE_DEVICES".to_owned(),
                1 => "this machine has one CUDA device, cuda:0".to_owned(),
                n => format!("this machine has {n} CUDA devices, cuda:0 to cuda:{}", n - 1),
            };
            return Err(Error::device(format!("cuda:{ordinal}: cannot open: {found}")));
        }
        let (mut device, index) = (0, c_int::try_from(ordinal).unwrap_or(c_int::MAX));
        // SAFETY: `device` is a live int.
        self.check("cuDeviceGet", unsafe { (self.api.cuDeviceGet)(&raw mut device, index) })?;
        Ok(device)
    }

    /// What device `ordinal` is; needs no context.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device, [`Error::Driver`] if the driver does not tell.
    pub(crate) fn info(&self, ordinal: u32) -> Result<DeviceInfo> {
        let device = self.device(ordinal)?;
        let mut name = [0; 256];
        // SAFETY: the driver writes at most 256 bytes, the last of them zero.
        self.check("cuDeviceGetName", unsafe { (self.api.cuDeviceGetName)(name.as_mut_ptr(), 256, device) })?;
        let name: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned()).collect();
        let mut memory = 0;
        // SAFETY: `memory` is a live size_t.
        self.check("cuDeviceTotalMem", unsafe { (self.api.cuDeviceTotalMem)(&raw mut memory, device) })?;
        let get = |which| self.attribute(device, which);
        let three = |first| Ok::<_, Error>([get(first)?, get(first + 1)?, get(first + 2)?]);
        let arch = Arch::of_capability(get(api::COMPUTE_CAPABILITY_MAJOR)?, get(api::COMPUTE_CAPABILITY_MINOR)?);
        Ok(DeviceInfo {
            name: String::from_utf8_lossy(&name).into_owned(),
            arch,
            processors: get(api::MULTIPROCESSOR_COUNT)?,
            warp: get(api::WARP_SIZE)?,
            max_threads: get(api::MAX_THREADS_PER_BLOCK)?,
            max_block: three(api::MAX_BLOCK_DIM_X)?,
            max_grid: three(api::MAX_GRID_DIM_X)?,
            shared_bytes: get(api::MAX_SHARED_PER_BLOCK)?,
            max_shared_bytes: get(api::MAX_SHARED_PER_BLOCK_OPTIN)?,
            cache_bytes: get(api::L2_CACHE_SIZE)?.into(),
            memory_bytes: memory as u64,
            driver: self.version(),
            has_clusters: get(api::CLUSTER_LAUNCH)? != 0,
            is_cooperative: get(api::COOPERATIVE_LAUNCH)? != 0,
        })
    }

    /// One number of a device.
    pub(super) fn attribute(&self, device: c_int, which: c_int) -> Result<u32> {
        let mut value = 0;
        // SAFETY: `value` is a live int; an attribute that the driver does not know is an error.
        let status = unsafe { (self.api.cuDeviceGetAttribute)(&raw mut value, which, device) };
        self.check("cuDeviceGetAttribute", status)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// An error for any status but success.
    pub(super) fn check(&self, call: &str, status: Status) -> Result<()> {
        if status == 0 { Ok(()) } else { Err(Error::driver(format!("cuda: {}", self.describe(call, status)))) }
    }

    /// The call, the code, its name and the driver's sentence.
    pub(super) fn describe(&self, call: &str, status: Status) -> String {
        describe(&self.core, call, status)
    }
}

fn count(core: &Core) -> Result<u32, String> {
    let mut devices = 0;
    // SAFETY: `devices` is a live int.
    match unsafe { (core.cuDeviceGetCount)(&raw mut devices) } {
        0 => Ok(u32::try_from(devices).unwrap_or(0)),
        api::NO_DEVICE => Ok(0),
        status => Err(describe(core, "cuDeviceGetCount", status)),
    }
}

/// 12040 is 12.4.
fn dotted(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// `cuMemAlloc: 2 CUDA_ERROR_OUT_OF_MEMORY: out of memory`.
fn describe(core: &Core, call: &str, status: Status) -> String {
    let text = |get: unsafe extern "C" fn(Status, *mut *const std::ffi::c_char) -> Status| {
        let mut at = std::ptr::null();
        // SAFETY: the driver sets `at` to a string that lives as long as the library, which is for good, or to null.
        unsafe {
            let known = get(status, &raw mut at) == 0 && !at.is_null();
            known.then(|| CStr::from_ptr(at).to_string_lossy().into_owned())
        }
    };
    let name = text(core.cuGetErrorName).unwrap_or_else(|| "unknown".to_owned());
    let sentence = text(core.cuGetErrorString).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{call}: {status} {name}{sentence}")
}
