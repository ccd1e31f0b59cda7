//! A pack: one file of compiled code, so that a machine without a compiler runs without a stall.
//!
//! ```text
//! magic "PERFPACK" · version u32 · entries u32 · hash of the index · index · payloads
//! entry of the index: key · hash of the payload · offset u64 · lengths of name u32, log u32, code u64
//! payload: name · log · code
//! ```
//!
//! Numbers are little endian, entries are sorted by key, hashes are blake3. A payload's hash is checked when it is read.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::request::Key;
use crate::error::{Error, Result};
use crate::io::atomic::{Existing, write_atomic};
use crate::io::mmap::MappedFile;

const MAGIC: [u8; 8] = *b"PERFPACK";
const VERSION: u32 = 1;
/// Bytes before the index.
const HEAD: usize = 8 + 4 + 4 + 32;
/// Bytes of an entry of the index.
const ENTRY: usize = 32 + 32 + 8 + 4 + 4 + 8;

/// An open pack.
#[derive(Debug)]
pub struct Pack {
    file: MappedFile,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    hash: [u8; 32],
    at: u64,
    name_len: u32,
    log_len: u32,
    code_len: u64,
}

impl Entry {
    fn read(bytes: &[u8; ENTRY]) -> Option<Entry> {
        let mut rest = &bytes[..];
        Some(Entry {
            key: Key(take(&mut rest)?),
            hash: take(&mut rest)?,
            at: u64::from_le_bytes(take(&mut rest)?),
            name_len: u32::from_le_bytes(take(&mut rest)?),
            log_len: u32::from_le_bytes(take(&mut rest)?),
            code_len: u64::from_le_bytes(take(&mut rest)?),
        })
    }

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.key.0);
        to.extend_from_slice(&self.hash);
        to.extend_from_slice(&self.at.to_le_bytes());
        to.extend_from_slice(&self.name_len.to_le_bytes());
        to.extend_from_slice(&self.log_len.to_le_bytes());
        to.extend_from_slice(&self.code_len.to_le_bytes());
    }

    /// Name, log and code of this entry in the bytes of its pack, if they are there and have their hash.
    fn payload<'a>(&self, file: &'a [u8]) -> Option<(&'a [u8], &'a [u8], &'a [u8])> {
        let len = self.code_len.checked_add(u64::from(self.name_len) + u64::from(self.log_len))?;
        let (at, len) = (usize::try_from(self.at).ok()?, usize::try_from(len).ok()?);
        let payload = file.get(at..at.checked_add(len)?).filter(|p| *blake3::hash(p).as_bytes() == self.hash)?;
        let (name, rest) = payload.split_at_checked(self.name_len as usize)?;
        let (log, code) = rest.split_at_checked(self.log_len as usize)?;
        Some((name, log, code))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*first)
}

impl Pack {
    /// Maps a pack and reads its index.
    ///
    /// # Errors
    /// [`Error::Data`] if it is no pack, one of another version or a damaged one; [`Error::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Pack> {
        let file = MappedFile::open(path)?;
        let entries = index(&file).map_err(|why| fault(path, &why))?;
        Ok(Pack { file, entries })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// How many codes it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The code of this key and the log that its compiler left.
    ///
    /// # Errors
    /// [`Error::Data`] if the entry does not have its hash.
    pub(super) fn get(&self, key: &Key) -> Result<Option<(Vec<u8>, String)>> {
        let Ok(found) = self.entries.binary_search_by_key(key, |e| e.key) else {
            return Ok(None);
        };
        let payload = self.entries.get(found).and_then(|e| e.payload(&self.file));
        let (_, log, code) =
            payload.ok_or_else(|| fault(self.path(), &format!("damaged: entry {found} does not have its hash")))?;
        Ok(Some((code.to_vec(), String::from_utf8_lossy(log).into_owned())))
    }

    /// What each entry is, in words: kernel, constants, architecture.
    ///
    /// # Errors
    /// [`Error::Data`] at the first entry that does not have its hash.
    pub fn names(&self) -> Result<Vec<String>> {
        let name = |(i, e): (usize, &Entry)| {
            let payload = e.payload(&self.file);
            let (name, ..) =
                payload.ok_or_else(|| fault(self.path(), &format!("damaged: entry {i} does not have its hash")))?;
            Ok(String::from_utf8_lossy(name).into_owned())
        };
        self.entries.iter().enumerate().map(name).collect()
    }
}

fn fault(path: &Path, why: &str) -> Error {
    let path = path.display();
    Error::data(format!("{path}: {why}; make it again with `perfrun compile --pack {path}`, or remove it"))
}

/// The index of a pack, or what is wrong with it.
fn index(file: &[u8]) -> Result<Vec<Entry>, String> {
    let mut rest = file;
    let magic: Option<[u8; 8]> = take(&mut rest);
    if magic != Some(MAGIC) {
        return Err("expected a pack of kernels, found another kind of file".into());
    }
    let version = take(&mut rest).map(u32::from_le_bytes);
    if version != Some(VERSION) {
        let found = version.map_or("none".into(), |v| v.to_string());
        return Err(format!("expected a pack of version {VERSION}, found version {found}"));
    }
    let cut_off = || "damaged: the file ends inside its index".to_owned();
    let count = take(&mut rest).map(u32::from_le_bytes).ok_or_else(cut_off)?;
    let hash: [u8; 32] = take(&mut rest).ok_or_else(cut_off)?;
    let len = (count as usize).checked_mul(ENTRY).ok_or_else(cut_off)?;
    let index = rest.get(..len).ok_or_else(cut_off)?;
    if blake3::hash(index) != hash {
        return Err("damaged: the index does not have its hash".into());
    }
    let entries: Option<Vec<Entry>> = index.as_chunks().0.iter().map(Entry::read).collect();
    let entries = entries.ok_or_else(cut_off)?;
    let end = |e: &Entry| {
        let len = u64::from(e.name_len) + u64::from(e.log_len);
        e.at.checked_add(e.code_len).and_then(|end| end.checked_add(len))
    };
    if let Some(i) = entries.iter().position(|e| end(e).is_none_or(|end| end > file.len() as u64)) {
        return Err(format!("damaged: the file ends before entry {i} does"));
    }
    Ok(entries)
}

/// What goes into a pack.
#[derive(Debug, Default)]
pub struct PackWriter {
    entries: Vec<(Key, String, String, Vec<u8>)>,
}

impl PackWriter {
    /// Nothing yet.
    pub fn new() -> PackWriter {
        PackWriter::default()
    }

    /// Adds one code; `name` says what it is.
    pub(super) fn add(&mut self, key: Key, name: String, log: String, code: Vec<u8>) {
        self.entries.push((key, name, log, code));
    }

    /// How many codes have been added.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none has been added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes the pack, in place of an older one at the moment when it is complete. Returns its bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond what the form can count; [`Error::Io`] if the system refuses.
    pub fn write(mut self, path: &Path) -> Result<u64> {
        self.entries.sort_by_key(|e| e.0);
        self.entries.dedup_by_key(|e| e.0);
        let u32_of = |what, len: usize| u32::try_from(len).map_err(|_| Error::too_large("pack", what, len));
        let count = u32_of("entries", self.entries.len())?;
        let mut index = Vec::with_capacity(self.entries.len() * ENTRY);
        let mut at = (HEAD + self.entries.len() * ENTRY) as u64;
        for (key, name, log, code) in &self.entries {
            let payload = [name.as_bytes(), log.as_bytes(), code].concat();
            let hash = *blake3::hash(&payload).as_bytes();
            let (name_len, log_len) = (u32_of("name", name.len())?, u32_of("log", log.len())?);
            Entry { key: *key, hash, at, name_len, log_len, code_len: code.len() as u64 }.write(&mut index);
            at += payload.len() as u64;
        }
        write_atomic(path, Existing::Replace, |w| {
            let (version, count, hash) = (VERSION.to_le_bytes(), count.to_le_bytes(), blake3::hash(&index));
            let mut parts: Vec<&[u8]> = vec![&MAGIC, &version, &count, hash.as_bytes(), &index];
            parts.extend(self.entries.iter().flat_map(|(_, n, l, c)| [n.as_bytes(), l.as_bytes(), c]));
            parts.iter().try_for_each(|p| w.write_all(p)).map_err(Error::io("write", path))
        })?;
        Ok(at)
    }
}

/// Where a pack is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackPlace {
    /// Nowhere.
    None,
    /// Here, if a file is here: beside the binary.
    IfThere(PathBuf),
    /// Here, and it is an error if it is not: someone asked for it by name.
    Required(PathBuf),
}

impl PackPlace {
    /// Opens the pack; `None` where none needs to be.
    ///
    /// # Errors
    /// Those of [`Pack::open`].
    pub fn open(&self) -> Result<Option<Pack>> {
        match self {
            PackPlace::None => Ok(None),
            PackPlace::IfThere(path) if !path.exists() => Ok(None),
            PackPlace::IfThere(path) | PackPlace::Required(path) => Pack::open(path).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [Key; 3] = [Key([9; 32]), Key([1; 32]), Key([5; 32])];

    fn pack(path: &Path) {
        let mut writer = PackWriter::new();
        for (i, key) in KEYS.iter().enumerate() {
            writer.add(*key, format!("kernel {i}"), "log".repeat(i), vec![i as u8; 10 * i]);
        }
        let bytes = writer.write(path).unwrap();
        assert_eq!(bytes, std::fs::metadata(path).unwrap().len());
    }

    fn why(path: &Path) -> String {
        let error = Pack::open(path).unwrap_err();
        assert!(error.is_bad_input(), "{error}");
        error.to_string()
    }

    #[test]
    fn what_was_packed_is_found_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.pack");
        pack(&path);
        let pack = Pack::open(&path).unwrap();
        assert_eq!(pack.len(), 3);
        for (i, key) in KEYS.iter().enumerate() {
            assert_eq!(pack.get(key).unwrap(), Some((vec![i as u8; 10 * i], "log".repeat(i))));
        }
        assert_eq!(pack.get(&Key([2; 32])).unwrap(), None);
        assert_eq!(pack.names().unwrap(), ["kernel 1", "kernel 2", "kernel 0"], "in the order of keys");
    }

    #[test]
    fn an_empty_pack_is_a_pack() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.pack");
        PackWriter::new().write(&path).unwrap();
        let pack = Pack::open(&path).unwrap();
        assert!(pack.is_empty() && pack.get(&KEYS[0]).unwrap().is_none());
    }

    #[test]
    fn a_pack_of_another_version_and_another_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.pack");
        pack(&path);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] = 2;
        std::fs::write(&path, &bytes).unwrap();
        assert!(why(&path).contains("expected a pack of version 1, found version 2; make it again with `perfrun"));
        for other in [&b""[..], b"PERF", b"\x7fELF............"] {
            std::fs::write(&path, other).unwrap();
            assert!(why(&path).contains("expected a pack of kernels, found another kind of file"));
        }
        std::fs::write(&path, b"PERFPACK").unwrap();
        assert!(why(&path).contains("found version none"));
    }

    #[test]
    fn damage_anywhere_is_found_when_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.pack");
        pack(&path);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let read = Pack::open(&path).and_then(|p| KEYS.iter().try_for_each(|k| p.get(k).map(drop)));
            assert!(matches!(read, Err(Error::Data(_))), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(Pack::open(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn offsets_that_a_stranger_wrote_do_not_leave_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.pack");
        for (at, code_len) in [(u64::MAX, 1), (1, u64::MAX), (0, 1000)] {
            let mut index = Vec::new();
            Entry { key: KEYS[0], hash: [0; 32], at, name_len: 1, log_len: 1, code_len }.write(&mut index);
            let hash = blake3::hash(&index);
            let parts = [&MAGIC[..], &1u32.to_le_bytes(), &1u32.to_le_bytes(), hash.as_bytes(), &index];
            std::fs::write(&path, parts.concat()).unwrap();
            assert!(why(&path).contains("damaged: the file ends before entry 0 does"));
        }
    }

    #[test]
    fn a_pack_that_was_asked_for_must_be_there_and_the_one_beside_the_binary_need_not() {
        let nowhere = Path::new("/nonexistent/p.pack").to_path_buf();
        assert!(PackPlace::None.open().unwrap().is_none());
        assert!(PackPlace::IfThere(nowhere.clone()).open().unwrap().is_none());
        let error = PackPlace::Required(nowhere).open().unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/p.pack: cannot open"), "{error}");
    }
}
