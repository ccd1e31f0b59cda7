//! Global memory of an emulated device: separate allocations at addresses that no host pointer has, with gaps between
//! them that are never mapped, poisoned when they are made, never at the same address twice.
//!
//! Words are atomics with relaxed order, so that blocks run on several threads without unsafe code; on common hosts that
//! costs nothing. A kernel that races on global memory gets one of the values, as on hardware.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// The first address: above what a 64-bit host hands out, so that a host pointer in a kernel is found.
const BASE: u64 = 0x7f00_0000_0000;
/// Addresses end here, below the windows of shared and local memory.
const END: u64 = 1 << 56;
/// What `cuMemAlloc` promises, and `hipMalloc`.
const ALIGN: u64 = 256;
/// Never mapped, after each allocation: larger than any stray index of a vector load.
const GUARD: u64 = 4096;
/// How many freed ranges are remembered to say "freed" rather than "not mapped".
const REMEMBERED: usize = 4096;
/// Locks for 64-bit read-modify-write.
const STRIPES: usize = 16;
/// The byte of memory that nobody has written: a NaN in every float type.
pub const POISON: u8 = 0xFF;

/// Bytes of allocations that were freed, by address. Launches share it: only a message reads it.
#[derive(Clone, Debug, Default)]
struct Freed(Arc<Mutex<BTreeMap<u64, u64>>>);

impl Freed {
    fn ranges(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, address: u64, bytes: u64) {
        let mut ranges = self.ranges();
        ranges.insert(address, bytes);
        if ranges.len() > REMEMBERED {
            ranges.pop_first();
        }
    }

    /// The range that holds `address`.
    fn around(&self, address: u64) -> Option<(u64, u64)> {
        let found = self.ranges().range(..=address).next_back().map(|(base, len)| (*base, *len));
        found.filter(|(base, len)| address - base < *len)
    }
}

/// Global memory of one emulated device.
#[derive(Debug)]
pub struct Memory {
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    used: u64,
    high_water: u64,
    live: BTreeMap<u64, Arc<Region>>,
    freed: Freed,
    /// The view of launches, until an allocation changes.
    space: Option<Arc<Space>>,
}

/// One allocation.
#[derive(Debug)]
pub struct Region {
    base: u64,
    bytes: u64,
    words: Box<[AtomicU32]>,
}

impl Region {
    fn new(base: u64, bytes: u64) -> Region {
        let words = (0..bytes.div_ceil(4)).map(|_| AtomicU32::new(u32::MAX)).collect();
        Region { base, bytes, words }
    }

    /// An allocation at `base` with these bytes.
    pub(crate) fn filled(base: u64, bytes: &[u8]) -> Region {
        let word = |chunk: &[u8]| {
            let mut word = [POISON; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            AtomicU32::new(u32::from_le_bytes(word))
        };
        Region { base, bytes: bytes.len() as u64, words: bytes.chunks(4).map(word).collect() }
    }

    /// Its first address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its words; a resolved offset is below their number times four.
    pub fn words(&self) -> &[AtomicU32] {
        &self.words
    }
}

impl Memory {
    /// An empty memory of `capacity` bytes.
    pub fn new(capacity: u64) -> Memory {
        let state =
            State { next: BASE, used: 0, high_water: 0, live: BTreeMap::new(), freed: Freed::default(), space: None };
        Memory { capacity, state: Mutex::new(state) }
    }

    /// A panic elsewhere cannot leave the tables half changed, so a poisoned lock is taken over.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that it can hold.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes allocated now.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// The most bytes that were allocated at one time.
    pub fn high_water(&self) -> u64 {
        self.state().high_water
    }

    /// Allocates `bytes`, 256-byte aligned, every byte [`POISON`].
    ///
    /// # Errors
    /// Out of memory: asked and free.
    pub fn alloc(&self, bytes: u64) -> Result<u64> {
        let state = &mut *self.state();
        let free = self.capacity - state.used.min(self.capacity);
        if bytes > free || bytes > END - BASE {
            let all = self.capacity;
            return Err(Error::out_of_memory(format!(
                "emulator: out of memory: asked {bytes} bytes, free {free} of {all}"
            )));
        }
        let base = state.next;
        let end = (base + bytes + GUARD).next_multiple_of(ALIGN);
        if end >= END {
            return Err(Error::out_of_memory("emulator: out of addresses; open the device anew"));
        }
        state.next = end;
        state.used += bytes;
        state.high_water = state.high_water.max(state.used);
        state.live.insert(base, Arc::new(Region::new(base, bytes)));
        state.space = None;
        Ok(base)
    }

    /// Frees the allocation that starts at `address`.
    ///
    /// # Errors
    /// If none starts there: freed before, or never allocated.
    pub fn free(&self, address: u64) -> Result<()> {
        let state = &mut *self.state();
        let Some(region) = state.live.remove(&address) else {
            let why =
                if state.freed.ranges().contains_key(&address) { "was freed before" } else { "is not an allocation" };
            return Err(Error::driver(format!("emulated memory: free: address {address:#x} {why}")));
        };
        state.used -= region.bytes;
        state.freed.remember(address, region.bytes);
        state.space = None;
        Ok(())
    }

    /// The allocations as they are now, for a launch. Regions live as long as the space does, also when freed meanwhile.
    pub fn space(&self) -> Arc<Space> {
        let state = &mut *self.state();
        let make = || {
            let regions = state.live.values().cloned().collect();
            Arc::new(Space { regions, freed: state.freed.clone(), locks: Default::default() })
        };
        state.space.get_or_insert_with(make).clone()
    }

    /// Copies from the device to `to`.
    ///
    /// # Errors
    /// If the range is not inside one allocation.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<()> {
        self.host("copy to the host", address, to.len() as u64, |view| view.read(address, to))
    }

    /// Copies `from` to the device.
    ///
    /// # Errors
    /// If the range is not inside one allocation.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        self.host("copy from the host", address, from.len() as u64, |view| view.write(address, from))
    }

    /// Sets `bytes` bytes to `value`.
    ///
    /// # Errors
    /// If the range is not inside one allocation.
    pub fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        self.host("fill", address, bytes, |view| {
            view.resolve(address, bytes, 1)?;
            let chunk = [value; 4096];
            let mut done = 0;
            while done < bytes {
                let n = (bytes - done).min(4096);
                view.write(address + done, &chunk[..n as usize])?;
                done += n;
            }
            Ok(())
        })
    }

    /// Copies inside the device. The ranges may lie in one allocation, but may not overlap.
    ///
    /// # Errors
    /// If a range is not inside one allocation.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<()> {
        self.host("copy on the device", to, bytes, |view| {
            view.resolve(from, bytes, 1)?;
            view.resolve(to, bytes, 1)?;
            let mut chunk = [0; 4096];
            let mut done = 0;
            while done < bytes {
                let n = (bytes - done).min(4096);
                let part = &mut chunk[..n as usize];
                view.read(from + done, part)?;
                view.write(to + done, part)?;
                done += n;
            }
            Ok(())
        })
    }

    fn host(&self, what: &str, address: u64, bytes: u64, work: impl FnOnce(&View) -> Access<()>) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        work(&View::new(self.space()))
            .map_err(|bad| Error::driver(format!("emulated memory: {what} of {bytes} bytes at {address:#x}: {bad}")))
    }
}

/// The allocations of a device during a launch.
#[derive(Debug)]
pub struct Space {
    /// By rising address.
    regions: Box<[Arc<Region>]>,
    freed: Freed,
    locks: [Mutex<()>; STRIPES],
}

impl Space {
    /// The same with one more allocation, below all others.
    pub(crate) fn with(&self, region: Arc<Region>) -> Space {
        let regions = std::iter::once(region).chain(self.regions.iter().cloned()).collect();
        Space { regions, freed: self.freed.clone(), locks: Default::default() }
    }
}

/// What one thread sees of a [`Space`]: it remembers the allocation of the last access, which is most often that of the next.
#[derive(Clone, Debug)]
pub struct View {
    space: Arc<Space>,
    last: Cell<usize>,
}

/// Result of an access.
pub type Access<T> = std::result::Result<T, Box<BadAccess>>;

/// Why an address cannot be accessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadAccess {
    /// The address is no multiple of `align`.
    Misaligned {
        /// Where.
        address: u64,
        /// The needed alignment.
        align: u64,
    },
    /// It starts inside an allocation, or in the gap after it, and ends outside.
    OutOfBounds {
        /// Where.
        address: u64,
        /// How many bytes.
        bytes: u64,
        /// Start of the allocation.
        base: u64,
        /// Length of the allocation.
        len: u64,
    },
    /// It lies in an allocation that was freed.
    Freed {
        /// Where.
        address: u64,
        /// Start of the allocation.
        base: u64,
        /// Length of the allocation.
        len: u64,
    },
    /// It was never allocated.
    Unmapped {
        /// Where.
        address: u64,
    },
}

impl fmt::Display for BadAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BadAccess::Misaligned { address, align } => {
                write!(f, "address {address:#x}: expected a multiple of {align}")
            }
            BadAccess::OutOfBounds { address, bytes, base, len } if address < base => {
                write!(f, "address {address:#x}: {bytes} bytes that start {} before", base - address)?;
                write!(f, " the allocation of {len} bytes at {base:#x}")
            }
            BadAccess::OutOfBounds { address, bytes, base, len } => {
                write!(f, "address {address:#x}: {bytes} bytes at offset {}", address - base)?;
                write!(f, " of the allocation of {len} bytes at {base:#x}: out of bounds")
            }
            BadAccess::Freed { address, base, len } => {
                write!(f, "address {address:#x}: in the allocation of {len} bytes at {base:#x}, which was freed")
            }
            BadAccess::Unmapped { address } => write!(f, "address {address:#x}: in no allocation"),
        }
    }
}

impl View {
    /// A view of `space` for one thread.
    pub fn new(space: Arc<Space>) -> View {
        View { space, last: Cell::new(0) }
    }

    /// The allocation that holds `bytes` at `address`, and the offset in it. `align` is a power of two.
    ///
    /// # Errors
    /// If no allocation holds them all, or the address is misaligned.
    #[inline]
    pub fn resolve(&self, address: u64, bytes: u64, align: u64) -> Access<(&Region, usize)> {
        if let Some(region) = self.space.regions.get(self.last.get()) {
            let offset = address.wrapping_sub(region.base);
            if offset < region.bytes && region.bytes - offset >= bytes && address & (align - 1) == 0 {
                return Ok((region, offset as usize));
            }
        }
        self.search(address, bytes, align)
    }

    #[cold]
    #[inline(never)]
    fn search(&self, address: u64, bytes: u64, align: u64) -> Access<(&Region, usize)> {
        if address & (align - 1) != 0 {
            return Err(Box::new(BadAccess::Misaligned { address, align }));
        }
        let regions = &self.space.regions;
        let after = regions.partition_point(|r| r.base <= address);
        let found = after.checked_sub(1).map(|i| (i, &*regions[i]));
        if let Some((i, region)) = found {
            let offset = address - region.base;
            if offset < region.bytes && region.bytes - offset >= bytes {
                self.last.set(i);
                return Ok((region, offset as usize));
            }
        }
        Err(Box::new(self.blame(address, bytes, found.map(|(_, r)| r), regions.get(after).map(|r| &**r))))
    }

    /// What is nearest to an address that cannot be accessed.
    fn blame(&self, address: u64, bytes: u64, below: Option<&Region>, above: Option<&Region>) -> BadAccess {
        if let Some((base, len)) = self.space.freed.around(address) {
            return BadAccess::Freed { address, base, len };
        }
        let near_below = below.filter(|r| address - r.base < r.bytes + GUARD);
        let near_above = above.filter(|r| r.base - address <= GUARD / 2);
        match near_below.or(near_above) {
            Some(r) => BadAccess::OutOfBounds { address, bytes, base: r.base, len: r.bytes },
            None => BadAccess::Unmapped { address },
        }
    }

    /// Reads a little-endian number of `N` bytes (1, 2, 4 or 8), naturally aligned.
    ///
    /// # Errors
    /// If the address cannot be accessed.
    #[inline]
    pub fn load<const N: u64>(&self, address: u64) -> Access<u64> {
        let (region, offset) = self.resolve(address, N, N)?;
        let word = |i: usize| u64::from(region.words[i].load(Relaxed));
        Ok(match N {
            8 => word(offset / 4) | word(offset / 4 + 1) << 32,
            4 => word(offset / 4),
            _ => (word(offset / 4) >> (offset % 4 * 8)) & ((1 << (N * 8)) - 1),
        })
    }

    /// Writes the low `N` bytes (1, 2, 4 or 8) of `value`, naturally aligned.
    ///
    /// # Errors
    /// If the address cannot be accessed.
    #[inline]
    pub fn store<const N: u64>(&self, address: u64, value: u64) -> Access<()> {
        let (region, offset) = self.resolve(address, N, N)?;
        match N {
            8 => {
                region.words[offset / 4].store(value as u32, Relaxed);
                region.words[offset / 4 + 1].store((value >> 32) as u32, Relaxed);
            }
            4 => region.words[offset / 4].store(value as u32, Relaxed),
            _ => {
                let mask = ((1u32 << (N * 8)) - 1) << (offset % 4 * 8);
                merge(&region.words[offset / 4], (value as u32) << (offset % 4 * 8), mask);
            }
        }
        Ok(())
    }

    /// Reads consecutive words; `align` in bytes, at least 4.
    ///
    /// # Errors
    /// If the address cannot be accessed.
    #[inline]
    pub fn load_words(&self, address: u64, align: u64, to: &mut [u32]) -> Access<()> {
        let (region, offset) = self.resolve(address, to.len() as u64 * 4, align.max(4))?;
        for (to, word) in to.iter_mut().zip(&region.words[offset / 4..]) {
            *to = word.load(Relaxed);
        }
        Ok(())
    }

    /// Writes consecutive words; `align` in bytes, at least 4.
    ///
    /// # Errors
    /// If the address cannot be accessed.
    #[inline]
    pub fn store_words(&self, address: u64, align: u64, from: &[u32]) -> Access<()> {
        let (region, offset) = self.resolve(address, from.len() as u64 * 4, align.max(4))?;
        for (from, word) in from.iter().zip(&region.words[offset / 4..]) {
            word.store(*from, Relaxed);
        }
        Ok(())
    }

    /// Reads bytes at any alignment.
    ///
    /// # Errors
    /// If the range is not inside one allocation.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Access<()> {
        let (region, offset) = self.resolve(address, to.len() as u64, 1)?;
        let (skip, mut words) = (offset % 4, region.words[offset / 4..].iter());
        let head = to.len().min((4 - skip) % 4);
        let (first, rest) = to.split_at_mut(head);
        if let Some(word) = words.next().filter(|_| head > 0) {
            first.copy_from_slice(&word.load(Relaxed).to_le_bytes()[skip..skip + head]);
        } else {
            words = region.words[offset / 4..].iter();
        }
        for (chunk, word) in rest.chunks_mut(4).zip(words) {
            chunk.copy_from_slice(&word.load(Relaxed).to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }

    /// Writes bytes at any alignment.
    ///
    /// # Errors
    /// If the range is not inside one allocation.
    pub fn write(&self, address: u64, from: &[u8]) -> Access<()> {
        let (region, offset) = self.resolve(address, from.len() as u64, 1)?;
        let mut at = offset;
        let mut rest = from;
        while !rest.is_empty() {
            let skip = at % 4;
            let (part, after) = rest.split_at(rest.len().min(4 - skip));
            let mut bytes = [0; 4];
            bytes[skip..skip + part.len()].copy_from_slice(part);
            let word = &region.words[at / 4];
            if part.len() == 4 {
                word.store(u32::from_le_bytes(bytes), Relaxed);
            } else {
                let mask = (u32::MAX >> (32 - 8 * part.len())) << (8 * skip);
                merge(word, u32::from_le_bytes(bytes), mask);
            }
            at += part.len();
            rest = after;
        }
        Ok(())
    }

    /// Replaces the number of `N` bytes (2, 4 or 8) at `address` by `update` of it, as one step; returns the number before.
    ///
    /// # Errors
    /// If the address cannot be accessed.
    pub fn update<const N: u64>(&self, address: u64, mut update: impl FnMut(u64) -> u64) -> Access<u64> {
        let (region, offset) = self.resolve(address, N, N)?;
        let (i, shift) = (offset / 4, offset % 4 * 8);
        if N == 8 {
            let lock = &self.space.locks[offset / 8 % STRIPES];
            let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
            let old = u64::from(region.words[i].load(Relaxed)) | u64::from(region.words[i + 1].load(Relaxed)) << 32;
            let new = update(old);
            region.words[i].store(new as u32, Relaxed);
            region.words[i + 1].store((new >> 32) as u32, Relaxed);
            return Ok(old);
        }
        let mask = u32::MAX >> (32 - 8 * N as u32);
        let word = &region.words[i];
        let mut seen = word.load(Relaxed);
        loop {
            let old = (seen >> shift) & mask;
            let new = (seen & !(mask << shift)) | ((update(u64::from(old)) as u32 & mask) << shift);
            match word.compare_exchange_weak(seen, new, Relaxed, Relaxed) {
                Ok(_) => return Ok(u64::from(old)),
                Err(now) => seen = now,
            }
        }
    }
}

/// Writes the bits of `mask`, leaving to other threads the rest of the word.
fn merge(word: &AtomicU32, value: u32, mask: u32) {
    let mut seen = word.load(Relaxed);
    while let Err(now) = word.compare_exchange_weak(seen, (seen & !mask) | (value & mask), Relaxed, Relaxed) {
        seen = now;
    }
}

#[cfg(test)]
mod tests;
