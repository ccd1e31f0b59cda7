//! Files as slices of bytes, without a copy.

// The one file of `io` that needs unsafe code: mapping memory is unsafe by nature, see `MappedFile::open`.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A regular file, mapped read-only.
///
/// The file must not be changed while it is mapped: a file that is overwritten in place shows the new bytes, one that is
/// truncated ends the process with a bus error. Files that are replaced by a rename (as everything here writes them) are
/// safe: the mapping keeps the old file.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    // `None` for an empty file, which no system maps.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened or mapped; [`Error::Data`] if it is no regular file (a folder, a pipe, a
    /// device), found before it is opened, so that a pipe does not block.
    pub fn open(path: impl AsRef<Path>) -> Result<MappedFile> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(Error::io("open", path))?;
        if !kind.is_file() {
            let found = if kind.is_dir() { "a folder" } else { "a pipe or device" };
            return Err(Error::data(format!("{}: expected a file, found {found}", path.display())));
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let map = if kind.len() == 0 {
            None
        } else {
            // SAFETY: the mapping is read-only and lives as long as this value, and no reference into it outlives it.
            // What Rust cannot check is that no other process changes the file meanwhile; the type's documentation asks
            // for it, every writer of this crate replaces files by rename, and readers check lengths against the mapping
            // and never trust a value that they read before.
            Some(unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?)
        };
        Ok(MappedFile { path: path.to_path_buf(), map })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Where the file lay when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_its_bytes_and_an_empty_one_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, b"weather").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"weather");
        fs::write(&path, b"").unwrap();
        assert_eq!(MappedFile::open(&path).unwrap().bytes(), b"");
    }

    #[test]
    fn folders_pipes_and_missing_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = MappedFile::open(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with("expected a file, found a folder"), "{error}");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let error = MappedFile::open(&pipe).unwrap_err();
        assert!(error.to_string().ends_with("found a pipe or device"), "{error}");
        let error = MappedFile::open(folder.path().join("none")).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("none: cannot open"), "{error}");
    }
}
