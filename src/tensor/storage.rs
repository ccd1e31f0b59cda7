//! Where numbers lie: host memory, a device's own memory, or nowhere on a device that only plans.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::error::Result;

/// Takes back the memory of a tensor that is gone, for the next one of that size.
pub trait Recycle: Send + Sync {
    /// `words` are free again.
    fn recycle(&self, words: Vec<u64>);
    /// `bytes` of a planned tensor are free again.
    fn forget(&self, bytes: usize);
}

/// Memory that this processor cannot address: a device's own. Calls are in the order of the device's work.
pub trait Remote: fmt::Debug + Send + Sync {
    /// Copies to host memory; waits for what the device still has to do.
    ///
    /// # Errors
    /// What the device reports, also of work that was started before.
    fn read(&self, to: &mut [u8], from: u64) -> Result<()>;
    /// Copies from host memory, which may be reused on return.
    ///
    /// # Errors
    /// What the device reports.
    fn write(&self, to: u64, from: &[u8]) -> Result<()>;
    /// Copies within the device.
    ///
    /// # Errors
    /// What the device reports.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Sets `bytes` bytes to zero.
    ///
    /// # Errors
    /// What the device reports.
    fn zero(&self, at: u64, bytes: usize) -> Result<()>;
    /// The memory is free again, once the work that was started before is done.
    fn release(&self, at: u64, bytes: usize);
}

enum Memory {
    /// 8-byte words, so that every number type is aligned.
    Host(Vec<u64>),
    Remote {
        at: u64,
        home: Arc<dyn Remote>,
    },
    Planned,
}

/// Memory of one tensor or one arena.
pub struct Storage {
    memory: Memory,
    len_bytes: usize,
    owner: Option<Weak<dyn Recycle>>,
}

/// Where borrowed numbers lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    Host(&'a [u8]),
    Remote(&'a Arc<dyn Remote>, u64),
    Planned,
}

/// Where numbers that are borrowed for writing lie.
#[derive(Debug)]
pub(crate) enum PlaceMut<'a> {
    Host(&'a mut [u8]),
    Remote(&'a Arc<dyn Remote>, u64),
    Planned,
}

impl Storage {
    /// `len_bytes` zero bytes of host memory.
    pub fn zeroed(len_bytes: usize) -> Storage {
        Storage { memory: Memory::Host(vec![0; len_bytes.div_ceil(8)]), len_bytes, owner: None }
    }

    /// A copy of these bytes in host memory.
    pub fn of_bytes(bytes: &[u8]) -> Storage {
        let mut storage = Storage::zeroed(bytes.len());
        if let Some(to) = storage.bytes_mut() {
            to.copy_from_slice(bytes);
        }
        storage
    }

    /// Words that `owner` lent and takes back; their content is whatever it was. `words` holds at least `len_bytes`.
    pub fn lent(words: Vec<u64>, len_bytes: usize, owner: Weak<dyn Recycle>) -> Storage {
        debug_assert!(words.len() * 8 >= len_bytes);
        Storage { memory: Memory::Host(words), len_bytes, owner: Some(owner) }
    }

    /// `len_bytes` at `at` in the memory of `home`, which takes them back.
    pub fn remote(at: u64, len_bytes: usize, home: Arc<dyn Remote>) -> Storage {
        Storage { memory: Memory::Remote { at, home }, len_bytes, owner: None }
    }

    /// A size without content.
    pub fn planned(len_bytes: usize, owner: Option<Weak<dyn Recycle>>) -> Storage {
        Storage { memory: Memory::Planned, len_bytes, owner }
    }

    /// Size in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Whether there is a size but no content.
    pub fn is_planned(&self) -> bool {
        matches!(self.memory, Memory::Planned)
    }

    /// The bytes, if they lie in host memory.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self.place() {
            Place::Host(bytes) => Some(bytes),
            Place::Remote(..) | Place::Planned => None,
        }
    }

    /// The bytes for writing, if they lie in host memory.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match self.place_mut() {
            PlaceMut::Host(bytes) => Some(bytes),
            PlaceMut::Remote(..) | PlaceMut::Planned => None,
        }
    }

    /// Where the numbers lie.
    pub(crate) fn place(&self) -> Place<'_> {
        match &self.memory {
            Memory::Host(words) => {
                bytemuck::cast_slice(words).get(..self.len_bytes).map_or(Place::Planned, Place::Host)
            }
            Memory::Remote { at, home } => Place::Remote(home, *at),
            Memory::Planned => Place::Planned,
        }
    }

    /// Where the numbers lie, for writing.
    pub(crate) fn place_mut(&mut self) -> PlaceMut<'_> {
        match &mut self.memory {
            Memory::Host(words) => {
                bytemuck::cast_slice_mut(words).get_mut(..self.len_bytes).map_or(PlaceMut::Planned, PlaceMut::Host)
            }
            Memory::Remote { at, home } => PlaceMut::Remote(home, *at),
            Memory::Planned => PlaceMut::Planned,
        }
    }
}

impl<'a> Place<'a> {
    /// The part of it at `range`, in bytes.
    pub(crate) fn part(self, range: std::ops::Range<usize>) -> Place<'a> {
        match self {
            Place::Host(bytes) => bytes.get(range).map_or(Place::Planned, Place::Host),
            Place::Remote(home, at) => Place::Remote(home, at + range.start as u64),
            Place::Planned => Place::Planned,
        }
    }
}

impl<'a> PlaceMut<'a> {
    /// The part of it at `range`, in bytes.
    pub(crate) fn part(self, range: std::ops::Range<usize>) -> PlaceMut<'a> {
        match self {
            PlaceMut::Host(bytes) => bytes.get_mut(range).map_or(PlaceMut::Planned, PlaceMut::Host),
            PlaceMut::Remote(home, at) => PlaceMut::Remote(home, at + range.start as u64),
            PlaceMut::Planned => PlaceMut::Planned,
        }
    }

    pub(crate) fn as_place(&self) -> Place<'_> {
        match self {
            PlaceMut::Host(bytes) => Place::Host(bytes),
            PlaceMut::Remote(home, at) => Place::Remote(home, *at),
            PlaceMut::Planned => Place::Planned,
        }
    }

    pub(crate) fn reborrow(&mut self) -> PlaceMut<'_> {
        match self {
            PlaceMut::Host(bytes) => PlaceMut::Host(bytes),
            PlaceMut::Remote(home, at) => PlaceMut::Remote(home, *at),
            PlaceMut::Planned => PlaceMut::Planned,
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Memory::Remote { at, home } = &self.memory {
            home.release(*at, self.len_bytes);
            return;
        }
        let Some(owner) = self.owner.take().and_then(|o| o.upgrade()) else { return };
        match &mut self.memory {
            Memory::Host(words) => owner.recycle(std::mem::take(words)),
            Memory::Planned => owner.forget(self.len_bytes),
            Memory::Remote { .. } => {}
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.memory {
            Memory::Host(_) => "",
            Memory::Remote { .. } => " on a device",
            Memory::Planned => ", planned",
        };
        write!(f, "Storage({} bytes{place})", self.len_bytes)
    }
}
