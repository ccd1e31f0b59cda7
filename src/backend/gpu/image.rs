//! What a piece of compiled code is, before a driver sees it: drivers are given no length and follow the offsets inside, so a
//! file that was cut short or mixed up must be refused here.

use super::driver::Arch;
use crate::error::{Error, Result};

/// Compiled code that a driver may be given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// An ELF file, with the architecture that its header names; `None` for one that this version does not know.
    Elf {
        /// NVIDIA's rather than AMD's.
        is_nvidia: bool,
        /// What it was compiled for.
        arch: Option<Arch>,
    },
    /// PTX text.
    Ptx,
}

/// ELF's numbers of the two machines.
const EM_CUDA: u16 = 190;
const EM_AMDGPU: u16 = 224;
/// `e_ident[EI_OSABI]` of CUDA's second layout, in which the flags moved by a byte.
const ABI_CUDA_V2: u8 = 65;
/// A section without bytes in the file.
const SHT_NOBITS: u32 = 8;

/// `EF_AMDGPU_MACH` in LLVM's user guide for AMDGPU, table "AMDGPU e_flags": the processors this project compiles for and the
/// others of their family.
const AMD_MACH: [(u32, u32); 9] = [
    (0x2c, 0x900),
    (0x2f, 0x906),
    (0x30, 0x908),
    (0x3f, 0x90a),
    (0x40, 0x940),
    (0x4b, 0x941),
    (0x4c, 0x942),
    (0x4f, 0x950),
    (0x41, 0x1100),
];

impl Image {
    /// What `code` is, with every offset of an ELF file checked against its length.
    ///
    /// # Errors
    /// [`Error::Driver`] if it is nothing that a driver loads or if it is damaged.
    pub(crate) fn of(code: &[u8]) -> Result<Image> {
        if code.starts_with(b"\x7fELF") {
            return elf(code).ok_or_else(|| Error::driver("load: the ELF file is cut short or damaged"))?;
        }
        let text = std::str::from_utf8(code.strip_suffix(b"\0").unwrap_or(code)).ok();
        match text {
            Some(t) if !t.contains('\0') && t.contains(".version") && t.contains(".target") => Ok(Image::Ptx),
            _ => Err(Error::driver(format!(
                "load: expected an ELF file or PTX text, found {} bytes that are neither",
                code.len()
            ))),
        }
    }

    /// Whether a device of architecture `device` runs it, as far as its header tells.
    ///
    /// # Errors
    /// [`Error::Driver`] that names both architectures.
    pub(crate) fn check(&self, device: Arch) -> Result<()> {
        let found = match self {
            Image::Ptx if device.is_nvidia() => return Ok(()),
            Image::Ptx => "PTX text".to_owned(),
            Image::Elf { arch: Some(arch), .. } if fits(*arch, device) => return Ok(()),
            Image::Elf { arch: Some(arch), .. } => arch.to_string(),
            // An architecture without a name here: the driver knows better.
            Image::Elf { is_nvidia, arch: None } if *is_nvidia == device.is_nvidia() => return Ok(()),
            Image::Elf { is_nvidia, .. } => format!("code for {} devices", if *is_nvidia { "NVIDIA" } else { "AMD" }),
        };
        Err(Error::driver(format!("load: expected code for {device}, found {found}; compile it for this device")))
    }
}

/// NVIDIA's code runs on the same major version from its minor version on, unless it is accelerated; AMD's only where it belongs.
fn fits(code: Arch, device: Arch) -> bool {
    match (code, device) {
        (Arch::Sm { capability: c, accelerated: true }, Arch::Sm { capability: d, .. }) => c == d,
        (Arch::Sm { capability: c, .. }, Arch::Sm { capability: d, .. }) => c / 10 == d / 10 && c <= d,
        _ => code == device,
    }
}

/// Bytes of `code` from `at` on.
fn take<const N: usize>(code: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    code.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A 64-bit little-endian ELF file; `None` if an offset leads outside.
fn elf(code: &[u8]) -> Option<Result<Image>> {
    let short = |at| take(code, at).map(u16::from_le_bytes);
    let word = |at| take(code, at).map(u32::from_le_bytes);
    let long = |at| take(code, at).map(u64::from_le_bytes);
    let is_inside = |at: u64, bytes: u64| at.checked_add(bytes).is_some_and(|end| end <= code.len() as u64);
    if code.get(4..6)? != [2, 1] {
        return Some(Err(Error::driver("load: expected a 64-bit little-endian ELF file")));
    }
    let (programs, sections) = (long(32)?, long(40)?);
    for i in 0..u64::from(short(56)?) {
        let at = programs.checked_add(i * u64::from(short(54)?))?;
        if !is_inside(long(at.checked_add(8)?)?, long(at.checked_add(32)?)?) {
            return None;
        }
    }
    for i in 0..u64::from(short(60)?) {
        let at = sections.checked_add(i * u64::from(short(58)?))?;
        let is_empty = word(at.checked_add(4)?)? == SHT_NOBITS;
        if !is_empty && !is_inside(long(at.checked_add(24)?)?, long(at.checked_add(32)?)?) {
            return None;
        }
    }
    let flags = word(48)?;
    Some(match short(18)? {
        EM_CUDA => {
            // The accelerated architectures are marked beside the number.
            let (capability, accelerated) = if *code.get(7)? == ABI_CUDA_V2 {
                (flags >> 8 & 0xffff, flags & 0x8 != 0)
            } else {
                (flags & 0xff, flags & 0x800 != 0)
            };
            let arch = (capability != 0).then_some(Arch::Sm { capability, accelerated });
            Ok(Image::Elf { is_nvidia: true, arch })
        }
        EM_AMDGPU => {
            let arch = AMD_MACH.iter().find(|(mach, _)| *mach == flags & 0xff).map(|(_, n)| Arch::Gfx(*n));
            Ok(Image::Elf { is_nvidia: false, arch })
        }
        other => Err(Error::driver(format!("load: expected code for a device, found an ELF file for machine {other}"))),
    })
}

/// An ELF header with one section of 16 bytes.
#[cfg(test)]
pub(crate) fn small(machine: u16, abi: u8, flags: u32) -> Vec<u8> {
    let mut code = vec![0; 64 + 64 + 16];
    code[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, abi]);
    code[18..20].copy_from_slice(&machine.to_le_bytes());
    code[40..48].copy_from_slice(&64u64.to_le_bytes());
    code[48..52].copy_from_slice(&flags.to_le_bytes());
    code[58..60].copy_from_slice(&64u16.to_le_bytes());
    code[60..62].copy_from_slice(&1u16.to_le_bytes());
    code[64 + 4..64 + 8].copy_from_slice(&1u32.to_le_bytes());
    code[64 + 24..64 + 32].copy_from_slice(&128u64.to_le_bytes());
    code[64 + 32..64 + 40].copy_from_slice(&16u64.to_le_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_names_the_architecture() {
        // Flags as NVRTC 12.9 and clang 19 write them.
        for (machine, abi, flags, arch) in [
            (EM_CUDA, 51, 0x0050_0550, "sm_80"),
            (EM_CUDA, 51, 0x005a_055a, "sm_90"),
            (EM_CUDA, 51, 0x005a_0d5a, "sm_90a"),
            (EM_CUDA, 65, 0x0600_640a, "sm_100a"),
            (EM_AMDGPU, 64, 0x53f, "gfx90a"),
            (EM_AMDGPU, 64, 0x54c, "gfx942"),
        ] {
            let arch = Some(arch.parse().unwrap());
            assert_eq!(
                Image::of(&small(machine, abi, flags)).unwrap(),
                Image::Elf { is_nvidia: machine == EM_CUDA, arch }
            );
        }
    }

    #[test]
    fn code_for_another_device_is_refused_with_both_names() {
        let load = |code: &[u8], device| Image::of(code).unwrap().check(device).map_err(|e| e.to_string());
        let sm_80 = small(EM_CUDA, 51, 0x0050_0550);
        assert!(load(&sm_80, Arch::SM_80).is_ok());
        assert!(load(&sm_80, Arch::of_capability(8, 6)).is_ok());
        assert_eq!(
            load(&sm_80, Arch::SM_90A).unwrap_err(),
            "load: expected code for sm_90a, found sm_80; compile it for this device"
        );
        assert!(load(&small(EM_CUDA, 51, 0x005a_0d5a), Arch::SM_90A).is_ok());
        assert!(load(&small(EM_AMDGPU, 64, 0x53f), Arch::GFX942).unwrap_err().contains("found gfx90a"));
        assert!(load(b".version 8.0\n.target sm_80\n", Arch::GFX90A).unwrap_err().contains("found PTX text"));
    }

    #[test]
    fn damaged_code_is_refused_at_every_length() {
        let code = small(EM_CUDA, 51, 0x0050_0550);
        for n in 0..code.len() {
            assert!(Image::of(&code[..n]).is_err(), "{n} of {} bytes", code.len());
        }
        let mut far = code;
        far[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Image::of(&far).is_err());
    }
}
