//! Whole files as bytes.
//!
//! Files are read, not mapped: a mapping would need `unsafe`, and a file that another process truncates or rewrites
//! under a mapping changes values after they were verified. What was hashed here is what is used.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a regular file. Folders, pipes and devices are refused, so that a name in a configuration can neither block
/// nor fill the memory.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Data`] if it is not a regular file or changed while it was read,
/// [`Error::OutOfMemory`] if its bytes do not fit in memory.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    // Asked before opening: opening a pipe would wait for a writer.
    let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if meta.is_dir() {
        return Err(Error::data(format!("{}: expected a file, found a folder", path.display())));
    }
    if !meta.is_file() {
        return Err(Error::data(format!("{}: expected a regular file, found a pipe or device", path.display())));
    }
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut bytes = Vec::new();
    usize::try_from(size).ok().and_then(|n| bytes.try_reserve_exact(n).ok()).ok_or_else(|| {
        Error::OutOfMemory(format!("{}: its {size} bytes do not fit in memory", path.display()).into())
    })?;
    file.by_ref().take(size).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 != size {
        return Err(Error::data(format!(
            "{}: expected {size} bytes, found {}: the file shrank while it was read",
            path.display(),
            bytes.len()
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, b"abc").unwrap();
        assert_eq!(read_file(&file).unwrap(), b"abc");
        assert!(read_file(dir.path()).unwrap_err().to_string().ends_with("expected a file, found a folder"));
        let device = read_file(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(device, "/dev/zero: expected a regular file, found a pipe or device");
        assert!(matches!(read_file(&dir.path().join("b")), Err(Error::Io { what: "read", .. })));
    }
}
