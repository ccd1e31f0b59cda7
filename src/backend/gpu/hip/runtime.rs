//! The HIP runtime as a library: opened once, checked, and asked what devices there are.
#![allow(
    unsafe_code,
    reason = "calls of libamdhip64; every pointer given is to a live local of the type in hip_runtime_api.h"
)]

use std::ffi::{CStr, c_int};

use super::api::{self, Api, Core, Status};
use crate::backend::gpu::driver::{Arch, DeviceInfo};
use crate::backend::gpu::library::Library;
use crate::error::{Error, Result};

/// Names of the runtime's library: HIP 7, 6, 5, then what a development package installs.
pub(crate) const NAMES: [&str; 4] = ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"];
/// The first version whose runtime has every function of the table: 5.2, as `hipRuntimeGetVersion` counts.
const LEAST_VERSION: c_int = 50_200_000;

/// An open, initialised HIP runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    library: Library,
    core: Core,
    pub(super) api: Api,
    version: Option<c_int>,
    devices: u32,
}

impl Runtime {
    /// Opens the runtime.
    ///
    /// # Errors
    /// [`Error::Device`] if the library is absent, too old, lacks a function or refuses to start.
    pub(crate) fn open<S: AsRef<str>>(names: &[S]) -> Result<Runtime> {
        let library = Library::open("hip", names)?;
        let core = Core::load("hip", &library)?;
        let refuse = |what: String| Error::device(format!("hip: {}: {what}", library.name()));
        let mut version = 0;
        // SAFETY: `version` is a live int; the call works without a device.
        let status = unsafe { (core.hipRuntimeGetVersion)(&raw mut version) };
        // HIP 5 says so already here where there is no device; whether it is old shows in its functions.
        let is_known = status == 0 && version != 0;
        if is_known && version < LEAST_VERSION {
            return Err(refuse(format!(
                "expected HIP {} or later, found HIP {}; install a newer ROCm",
                dotted(LEAST_VERSION),
                dotted(version)
            )));
        }
        let api = Api::load("hip", &library)?;
        // SAFETY: the flags must be zero.
        let devices = match unsafe { (core.hipInit)(0) } {
            0 => count(&core).map_err(refuse)?,
            api::NO_DEVICE | api::INVALID_DEVICE => 0,
            status => return Err(refuse(describe(&core, "hipInit", status))),
        };
        Ok(Runtime { library, core, api, version: is_known.then_some(version), devices })
    }

    /// Devices that this process may use.
    pub(crate) fn devices(&self) -> u32 {
        self.devices
    }

    /// Its version: "HIP 6.2".
    pub(crate) fn version(&self) -> String {
        self.version.map_or_else(|| "HIP of unknown version".to_owned(), |v| format!("HIP {}", dotted(v)))
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

    /// The runtime's name of device `ordinal`.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device.
    pub(super) fn device(&self, ordinal: u32) -> Result<c_int> {
        if ordinal >= self.devices {
            let found = match self.devices {
                0 => "the runtime finds no device here; see rocminfo, the rights of /dev/kfd and the variable HIP_VISIBLE_DEVICES".to_owned(),
                1 => "this machine has one HIP device, hip:0".to_owned(),
                n => format!("this machine has {n} HIP devices, hip:0 to hip:{}", n - 1),
            };
            return Err(Error::device(format!("hip:{ordinal}: cannot open: {found}")));
        }
        let (mut device, index) = (0, c_int::try_from(ordinal).unwrap_or(c_int::MAX));
        // SAFETY: `device` is a live int.
        self.check("hipDeviceGet", unsafe { (self.api.hipDeviceGet)(&raw mut device, index) })?;
        Ok(device)
    }

    /// What device `ordinal` is; makes no device current.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device, [`Error::Driver`] if the runtime does not tell.
    pub(crate) fn info(&self, ordinal: u32) -> Result<DeviceInfo> {
        let device = self.device(ordinal)?;
        let mut name = [0; 256];
        // SAFETY: the runtime writes at most 256 bytes, the last of them zero.
        self.check("hipDeviceGetName", unsafe { (self.api.hipDeviceGetName)(name.as_mut_ptr(), 256, device) })?;
        let name: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned()).collect();
        let mut memory = 0;
        // SAFETY: `memory` is a live size_t.
        self.check("hipDeviceTotalMem", unsafe { (self.api.hipDeviceTotalMem)(&raw mut memory, device) })?;
        let get = |which| self.attribute(device, which);
        let three = |first| Ok::<_, Error>([get(first)?, get(first + 1)?, get(first + 2)?]);
        let shared = get(api::MAX_SHARED_PER_BLOCK)?;
        Ok(DeviceInfo {
            name: String::from_utf8_lossy(&name).into_owned(),
            arch: self.arch(ordinal)?,
            processors: get(api::MULTIPROCESSOR_COUNT)?,
            warp: get(api::WARP_SIZE)?,
            max_threads: get(api::MAX_THREADS_PER_BLOCK)?,
            max_block: three(api::MAX_BLOCK_DIM_X)?,
            max_grid: three(api::MAX_GRID_DIM_X)?,
            shared_bytes: shared,
            // A block gets all of the local data share without asking.
            max_shared_bytes: shared,
            cache_bytes: get(api::L2_CACHE_SIZE)?.into(),
            memory_bytes: memory as u64,
            driver: self.version(),
            has_clusters: false,
            is_cooperative: get(api::COOPERATIVE_LAUNCH)? != 0 && self.api.hipModuleLaunchCooperativeKernel.is_some(),
        })
    }

    /// The processor's name, out of the struct that this version of the runtime fills.
    fn arch(&self, ordinal: u32) -> Result<Arch> {
        let (call, fill, at) = match (self.api.hipGetDevicePropertiesR0600, self.api.hipGetDeviceProperties) {
            (Some(new), _) => ("hipGetDevicePropertiesR0600", new, api::ARCH_NAME_R0600),
            (None, Some(old)) => ("hipGetDeviceProperties", old, api::ARCH_NAME_R0000),
            (None, None) => return Err(Error::device("hip: the library lacks hipGetDeviceProperties")),
        };
        let mut properties = api::Properties([0; 4096]);
        let index = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: the struct of either version is shorter than `properties`.
        self.check(call, unsafe { fill(&raw mut properties, index) })?;
        let name: Vec<u8> = properties.0[at..at + 256].iter().copied().take_while(|c| *c != 0).collect();
        String::from_utf8_lossy(&name).parse().map_err(|e| Error::device(format!("hip:{ordinal}: {e}")))
    }

    /// One number of a device.
    pub(super) fn attribute(&self, device: c_int, which: c_int) -> Result<u32> {
        let mut value = 0;
        // SAFETY: `value` is a live int; an attribute that the runtime does not know is an error.
        let status = unsafe { (self.api.hipDeviceGetAttribute)(&raw mut value, which, device) };
        self.check("hipDeviceGetAttribute", status)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// An error for any status but success.
    pub(super) fn check(&self, call: &str, status: Status) -> Result<()> {
        if status == 0 { Ok(()) } else { Err(Error::driver(format!("hip: {}", self.describe(call, status)))) }
    }

    /// The call, the code, its name and the runtime's sentence.
    pub(super) fn describe(&self, call: &str, status: Status) -> String {
        describe(&self.core, call, status)
    }
}

fn count(core: &Core) -> Result<u32, String> {
    let mut devices = 0;
    // SAFETY: `devices` is a live int.
    match unsafe { (core.hipGetDeviceCount)(&raw mut devices) } {
        0 => Ok(u32::try_from(devices).unwrap_or(0)),
        api::NO_DEVICE => Ok(0),
        status => Err(describe(core, "hipGetDeviceCount", status)),
    }
}

/// 50200000 is 5.2.
fn dotted(version: c_int) -> String {
    format!("{}.{}", version / 10_000_000, version / 100_000 % 100)
}

/// `hipMalloc: 2 hipErrorOutOfMemory: out of memory`.
fn describe(core: &Core, call: &str, status: Status) -> String {
    let text = |at: *const std::ffi::c_char| {
        // SAFETY: the runtime gives a string that lives as long as the library, which is for good, or null.
        (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned())
    };
    // SAFETY: any number may be asked for.
    let (name, sentence) = unsafe { ((core.hipGetErrorName)(status), (core.hipGetErrorString)(status)) };
    let name = text(name).unwrap_or_else(|| "unknown".to_owned());
    // HIP 5 gives the name for both.
    let sentence = text(sentence).filter(|s| *s != name).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{call}: {status} {name}{sentence}")
}
