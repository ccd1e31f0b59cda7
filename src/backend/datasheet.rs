//! What vendors promise of their devices: dense matrix rates, never those with structured zeros.

use serde::Serialize;

use crate::tensor::Dtype;

/// A device's promised rates for one number type.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Datasheet {
    /// The device as its datasheet names it.
    pub device: &'static str,
    /// Dense operations a second.
    pub flop_per_s: f64,
    /// Bytes of its memory a second.
    pub bytes_per_s: f64,
}

/// Words of a device's own name; its datasheet's name; TFLOP/s of 16-bit and of f32 products, TB/s of memory.
///
/// A MI250X shows as two devices of half its promise. f32 is without TF32.
///
/// # Source
/// NVIDIA's datasheets of A100, H100 and H200; AMD's of MI250X, MI210 and MI300X.
const KNOWN: [(&[&str], &str, f64, f64, f64); 10] = [
    (&["H200", "NVL"], "H200 NVL", 835.5, 60.0, 4.8),
    (&["H200"], "H200 SXM", 989.4, 66.9, 4.8),
    (&["H100", "NVL"], "H100 NVL", 835.5, 60.0, 3.9),
    (&["H100", "PCIe"], "H100 PCIe", 756.0, 51.0, 2.0),
    (&["H100"], "H100 SXM", 989.4, 66.9, 3.35),
    (&["A100", "40GB"], "A100 40 GB", 312.0, 19.5, 1.555),
    (&["A100"], "A100 80 GB", 312.0, 19.5, 2.039),
    (&["MI250X"], "MI250X, one of its two GCDs", 191.5, 47.9, 1.6384),
    (&["MI210"], "MI210", 181.0, 45.3, 1.6384),
    (&["MI300X"], "MI300X", 1307.4, 163.4, 5.3),
];

/// What is promised of the device of this name; `None` if it is not known.
pub(super) fn of(name: &str, dtype: Dtype) -> Option<Datasheet> {
    let (_, device, narrow, single, bytes) = KNOWN.iter().find(|(words, ..)| words.iter().all(|w| name.contains(w)))?;
    let tera = match dtype {
        Dtype::Bf16 | Dtype::F16 => narrow,
        Dtype::F32 => single,
        Dtype::I32 => return None,
    };
    Some(Datasheet { device, flop_per_s: tera * 1e12, bytes_per_s: bytes * 1e12 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_dense_and_of_what_shows_as_one_device() {
        let rate = |name| of(name, Dtype::Bf16).map(|d| d.flop_per_s / 1e12);
        assert_eq!(rate("NVIDIA H200"), Some(989.4));
        assert_eq!(rate("NVIDIA H100 80GB HBM3"), Some(989.4));
        assert_eq!(rate("NVIDIA H100 PCIe"), Some(756.0));
        assert_eq!(rate("NVIDIA A100-SXM4-80GB"), Some(312.0));
        assert_eq!(rate("AMD Instinct MI250X"), Some(191.5), "383 are of both halves");
        assert_eq!(rate("some other card"), None);
        assert_eq!((of("NVIDIA H200", Dtype::F32).unwrap().flop_per_s / 1e10).round(), 6690.0);
        assert_eq!((of("NVIDIA A100-SXM4-40GB", Dtype::F32).unwrap().bytes_per_s / 1e9).round(), 1555.0);
    }
}
