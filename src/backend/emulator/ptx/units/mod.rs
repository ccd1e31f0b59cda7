//! Models of the units that a PTX instruction only names: number formats, matrix units, bulk tensor copies, barriers in
//! shared memory, banks.
//!
//! Each is plain functions over numbers: registers of a warp and bytes in, registers of a warp and bytes out, with no
//! knowledge of an interpreter, so that each can be compared with a plain matrix product or an enumeration, and with
//! hardware, by itself. What a kernel may not do comes back as [`Misuse`], the words of a fault; whoever calls knows the place.
//!
//! Source of layouts and rules, unless a module says otherwise: NVIDIA, Parallel Thread Execution ISA, version 8.8.

pub mod accumulate;
pub mod bank;
pub mod bulk;
pub mod descriptor;
pub mod formats;
pub mod matrix;
pub mod mbarrier;
pub mod mma;
pub mod reduction;
pub mod swizzle;
pub mod tensor_map;
pub mod wgmma;

use std::fmt;

/// Lanes of a warp.
pub const WARP: usize = 32;

/// One register of a warp: the value of each lane. A register of 32 bits uses the low half; what is returned here has zero above.
pub type Lanes = [u64; WARP];

/// What a kernel did that the unit does not allow: the words of a fault, without its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misuse(Box<str>);

impl Misuse {
    /// A misuse in these words: lower case, expected before found.
    pub fn new(words: impl Into<Box<str>>) -> Misuse {
        Misuse(words.into())
    }

    /// The words.
    pub fn words(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// What a unit gives back.
pub type Result<T> = std::result::Result<T, Misuse>;

/// Memory as a unit sees it, shared or global. Bounds, alignment of words, races and poison are the matter of whoever implements
/// it; shared memory is read and written in pieces of at most 16 bytes that do not cross a multiple of 16.
pub trait Space {
    /// Copies the bytes at `address` into `into`.
    ///
    /// # Errors
    /// Where the kernel may not read there.
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<()>;

    /// Copies `from` to `address`.
    ///
    /// # Errors
    /// Where the kernel may not write there.
    fn write(&mut self, address: u64, from: &[u8]) -> Result<()>;

    /// Replaces the word of `bytes` bytes (1, 2, 4 or 8) at `address` by what `change` makes of it, as one step where others
    /// write at the same time.
    ///
    /// # Errors
    /// Where the kernel may not read or write there.
    fn update(&mut self, address: u64, bytes: usize, change: &dyn Fn(u64) -> u64) -> Result<()> {
        let mut word = [0; 8];
        let part =
            word.get_mut(..bytes).ok_or_else(|| Misuse::new(format!("a word of {bytes} bytes cannot be updated")))?;
        self.read(address, part)?;
        let changed = change(u64::from_le_bytes(word)).to_le_bytes();
        self.write(address, &changed[..bytes])
    }
}

/// Memory from address 0 on.
impl Space for [u8] {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<()> {
        let bytes = piece(self.len(), address, into.len())?;
        into.copy_from_slice(&self[bytes]);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<()> {
        let bytes = piece(self.len(), address, from.len())?;
        self[bytes].copy_from_slice(from);
        Ok(())
    }
}

/// The range of `bytes` bytes at `address` in a memory of `len`.
fn piece(len: usize, address: u64, bytes: usize) -> Result<std::ops::Range<usize>> {
    usize::try_from(address)
        .ok()
        .and_then(|start| Some(start..start.checked_add(bytes)?))
        .filter(|range| range.end <= len)
        .ok_or_else(|| Misuse::new(format!("expected an address below {len:#x}, found {address:#x} and {bytes} bytes")))
}

/// Memory from address 0 on, for those who hold it as a vector.
impl Space for Vec<u8> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<()> {
        self.as_mut_slice().read(address, into)
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<()> {
        self.as_mut_slice().write(address, from)
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Numbers for tests: the same at every run.

    /// A sequence of pseudo-random words (splitmix64).
    #[derive(Debug)]
    pub(crate) struct Sequence(pub(crate) u64);

    impl Sequence {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        }

        pub(crate) fn below(&mut self, bound: u64) -> u64 {
            self.next() % bound
        }

        /// A small integer in -`size`..=`size`: sums of products are exact in every format, in any order.
        pub(crate) fn small(&mut self, size: u64) -> f32 {
            self.below(2 * size + 1) as f32 - size as f32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_refuses_what_is_outside_and_updates_words_in_place() {
        let mut memory = vec![0u8; 16];
        memory.write(4, &7u32.to_le_bytes()).unwrap();
        memory.update(4, 4, &|x| x + 5).unwrap();
        let mut word = [0; 4];
        memory.read(4, &mut word).unwrap();
        assert_eq!(u32::from_le_bytes(word), 12);
        assert!(memory.read(13, &mut word).is_err());
        assert!(memory.write(u64::MAX, &[0]).is_err());
        assert!(memory.update(0, 9, &|x| x).is_err());
    }
}
