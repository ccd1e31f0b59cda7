//! Where numbers lie: host memory, or nowhere on a device that only plans.

use std::fmt;
use std::sync::Weak;

/// Takes back the memory of a tensor that is gone, for the next one of that size.
pub trait Recycle: Send + Sync {
    /// `words` are free again.
    fn recycle(&self, words: Vec<u64>);
    /// `bytes` of a planned tensor are free again.
    fn forget(&self, bytes: usize);
}

enum Memory {
    /// 8-byte words, so that every number type is aligned.
    Host(Vec<u64>),
    Planned,
}

/// Memory of one tensor or one arena.
pub struct Storage {
    memory: Memory,
    len_bytes: usize,
    owner: Option<Weak<dyn Recycle>>,
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

    /// The bytes, if there are any.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.memory {
            Memory::Host(words) => bytemuck::cast_slice(words).get(..self.len_bytes),
            Memory::Planned => None,
        }
    }

    /// The bytes for writing, if there are any.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.memory {
            Memory::Host(words) => bytemuck::cast_slice_mut(words).get_mut(..self.len_bytes),
            Memory::Planned => None,
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let Some(owner) = self.owner.take().and_then(|o| o.upgrade()) else { return };
        match &mut self.memory {
            Memory::Host(words) => owner.recycle(std::mem::take(words)),
            Memory::Planned => owner.forget(self.len_bytes),
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({} bytes{})", self.len_bytes, if self.is_planned() { ", planned" } else { "" })
    }
}
