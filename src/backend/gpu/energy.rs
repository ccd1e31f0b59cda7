//! Energy that a card has used, from NVIDIA's management library.
//!
//! # Source
//! NVML's reference: `nvmlDeviceGetTotalEnergyConsumption`, millijoules since the driver was loaded, from Volta on. NVML numbers
//! all cards of the machine in the order of their buses and does not know `CUDA_VISIBLE_DEVICES`.
#![allow(unsafe_code, reason = "calls of libnvidia-ml with pointers to live locals of the types in nvml.h")]

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use super::library::{Library, table};

const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

table! {
    struct Table {
        nvmlInit_v2: fn() -> c_int,
        nvmlDeviceGetHandleByIndex_v2: fn(c_uint, *mut *mut c_void) -> c_int,
        nvmlDeviceGetTotalEnergyConsumption: fn(*mut c_void, *mut c_ulonglong) -> c_int,
    }
}

/// Joules that the card of this CUDA number has used since its driver was loaded; `None` where nobody tells.
pub(crate) fn joules(number: u32) -> Option<f64> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    let nvml = NVML.get_or_init(|| Nvml::open(&NAMES)).as_ref()?;
    nvml.joules(place(number, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())?)
}

/// The number that NVML gives to a card; `None` if it is chosen by something else than a number.
fn place(number: u32, visible: Option<&str>) -> Option<u32> {
    match visible {
        None => Some(number),
        Some(list) => list.split(',').nth(number as usize)?.trim().parse().ok(),
    }
}

struct Nvml {
    table: Table,
    /// Keeps the functions of the table where they are.
    _library: Library,
}

impl Nvml {
    fn open(names: &[&str]) -> Option<Nvml> {
        let library = Library::open("energy", names).ok()?;
        let table = Table::load("energy", &library).ok()?;
        // SAFETY: it may be called at any time, again too.
        let status = unsafe { (table.nvmlInit_v2)() };
        (status == 0).then_some(Nvml { table, _library: library })
    }

    fn joules(&self, index: u32) -> Option<f64> {
        let (mut card, mut millijoules) = (std::ptr::null_mut(), 0);
        // SAFETY: both pointers are to live locals; the second call gets the handle that the first has given.
        let is_known = unsafe {
            (self.table.nvmlDeviceGetHandleByIndex_v2)(index, &raw mut card) == 0
                && (self.table.nvmlDeviceGetTotalEnergyConsumption)(card, &raw mut millijoules) == 0
        };
        is_known.then_some(millijoules as f64 * 1e-3)
    }
}

#[cfg(test)]
mod tests {
    use super::super::library::compiled;
    use super::*;

    #[test]
    fn a_card_is_found_by_its_number_among_those_that_are_visible() {
        assert_eq!(
            (place(1, None), place(1, Some("3, 5")), place(0, Some("GPU-1f")), place(2, Some("3"))),
            (Some(1), Some(5), None, None)
        );
    }

    #[test]
    fn what_the_library_says_is_joules_and_a_missing_one_says_nothing() {
        let (_dir, library) = compiled("fake_nvml.c", &[]);
        let nvml = Nvml::open(&[&library]).unwrap();
        assert_eq!((nvml.joules(0), nvml.joules(1), nvml.joules(2)), (Some(2.5), Some(3.5), None));
        assert!(Nvml::open(&["libperfrun_nowhere.so"]).is_none());
        assert!(Nvml::open(&["libc.so.6"]).is_none(), "it has none of the functions");
    }
}
