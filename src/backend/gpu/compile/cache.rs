//! Compiled code on disk, found again by its key.
//!
//! Processes share the folder without a lock: an entry is written under a name that nobody else has and then renamed, so a
//! reader sees all of it or nothing, and whoever comes second replaces it by the same. Nothing is synced to the disk: an entry
//! that a crash leaves incomplete does not have its hash, and is made again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::request::Key;
use crate::error::{Error, Result};

/// First bytes of an entry: what it is, and the version of its form.
const MAGIC: [u8; 8] = *b"perfrun1";

/// A folder of entries.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

/// What looking up a key gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The code and the compiler's log.
    Entry(Vec<u8>, String),
    /// No entry.
    Nothing,
    /// An entry that cannot be used, and why.
    Damaged(String),
}

impl Cache {
    pub(super) fn new(folder: &Path) -> Cache {
        Cache { folder: folder.to_path_buf() }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{key}.code"))
    }

    pub(super) fn get(&self, key: &Key) -> Found {
        let path = self.path(key);
        let damaged = |why: &str| Found::Damaged(format!("{}: {why}", path.display()));
        match fs::read(&path) {
            Ok(bytes) => parse(&bytes).map_or_else(damaged, |(code, log)| Found::Entry(code, log)),
            Err(e) if e.kind() == ErrorKind::NotFound => Found::Nothing,
            Err(e) => damaged(&e.to_string()),
        }
    }

    pub(super) fn put(&self, key: &Key, code: &[u8], log: &str) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!(".{key}.{}.{count}.tmp", std::process::id()));
        let path = self.path(key);
        let result = fs::write(&temporary, format_entry(code, log))
            .map_err(Error::io("write", &temporary))
            .and_then(|()| fs::rename(&temporary, &path).map_err(Error::io("rename a temporary file to", &path)));
        if result.is_err() {
            // The first error is the one to report; what is left over does no harm.
            let _ = fs::remove_file(&temporary);
        }
        result
    }
}

/// Magic, hash of what follows, length of the log, log, code.
fn format_entry(code: &[u8], log: &str) -> Vec<u8> {
    let mut body = (log.len() as u64).to_le_bytes().to_vec();
    body.extend_from_slice(log.as_bytes());
    body.extend_from_slice(code);
    [&MAGIC[..], blake3::hash(&body).as_bytes(), &body].concat()
}

fn parse(bytes: &[u8]) -> Result<(Vec<u8>, String), &'static str> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or("no entry of this version")?;
    let (hash, body) = rest.split_first_chunk::<32>().ok_or("cut off")?;
    if blake3::hash(body) != *hash {
        return Err("its content does not have its hash");
    }
    let (log_len, rest) = body.split_first_chunk::<8>().ok_or("cut off")?;
    let log_len = usize::try_from(u64::from_le_bytes(*log_len)).map_err(|_| "cut off")?;
    let (log, code) = rest.split_at_checked(log_len).ok_or("cut off")?;
    Ok((code.to_vec(), String::from_utf8_lossy(log).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([7; 32]);

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_entry_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(&folder.path().join("a/b"));
        assert_eq!(cache.get(&KEY), Found::Nothing);
        cache.put(&KEY, b"code", "log").unwrap();
        assert_eq!(cache.get(&KEY), Found::Entry(b"code".into(), "log".into()));
        assert_eq!(cache.get(&Key([8; 32])), Found::Nothing);
        cache.put(&KEY, b"", "").unwrap();
        assert_eq!(cache.get(&KEY), Found::Entry(vec![], String::new()));
        assert_eq!(names(&folder.path().join("a/b")), [format!("{KEY}.code")]);
    }

    #[test]
    fn any_bit_that_flips_and_any_byte_that_is_missing_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        cache.put(&KEY, b"code", "log").unwrap();
        let path = cache.path(&KEY);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, bad).unwrap();
            assert!(matches!(cache.get(&KEY), Found::Damaged(why) if why.contains(".code: ")), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(matches!(cache.get(&KEY), Found::Damaged(_)), "cut at {at}");
        }
    }

    #[test]
    fn readers_beside_writers_see_whole_entries_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let code = vec![42; 100_000];
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..20).for_each(|_| cache.put(&KEY, &code, "log").unwrap()));
                scope.spawn(|| {
                    for _ in 0..50 {
                        assert!(!matches!(cache.get(&KEY), Found::Damaged(_)));
                    }
                });
            }
        });
        assert_eq!(cache.get(&KEY), Found::Entry(code, "log".into()));
        assert_eq!(names(folder.path()).len(), 1, "no temporary file is left");
    }

    #[test]
    fn what_a_killed_writer_left_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        fs::write(folder.path().join(format!(".{KEY}.1.0.tmp")), b"half").unwrap();
        assert_eq!(cache.get(&KEY), Found::Nothing);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = Cache::new(&file.join("x")).put(&KEY, b"", "").unwrap_err().to_string();
        assert!(error.contains("file/x: cannot create"), "{error}");
    }
}
