//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What to do when the file is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Refuse,
    /// Replace it at the moment when the new one is complete.
    Replace,
}

/// Writes a file through `fill`: into a temporary file of the same folder, then onto the disk, then renamed to `path`.
///
/// A reader sees the old file or the new one, never a part, also when the process is killed; what may be left over is a
/// hidden temporary file, whose name ends in `.tmp`.
///
/// # Errors
/// [`Error::Data`] if the file exists and `existing` refuses; [`Error::Io`] if the system refuses; the error of `fill`.
/// The temporary file is removed after an error.
pub fn write_atomic(
    path: &Path,
    existing: Existing,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    if existing == Existing::Refuse && path.symlink_metadata().is_ok() {
        return Err(Error::data(format!("{}: exists already; remove it or ask to overwrite it", path.display())));
    }
    let temporary = temporary_beside(path)?;
    let result = fill_and_sync(&temporary, fill)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io("rename a temporary file to", path)))
        .and_then(|()| sync_folder_of(path));
    if result.is_err() {
        // The first error is the one to report; a temporary file that cannot be removed either does no harm.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// `.NAME.PID.tmp` in the folder of `path`: a rename within one folder stays within one file system.
fn temporary_beside(path: &Path) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::argument(format!("{}: expected the name of a file, found a folder", path.display())))?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(temporary))
}

fn fill_and_sync(temporary: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(temporary)
        .map_err(Error::io("create", temporary))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer)?;
    writer.flush().map_err(Error::io("write", temporary))?;
    writer.get_ref().sync_all().map_err(Error::io("sync", temporary))
}

/// The rename is durable only when the folder is.
fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        write_atomic(&path, Existing::Refuse, |w| w.write_all(b"old").map_err(Error::io("write", "a"))).unwrap();
        let failed = write_atomic(&path, Existing::Replace, |w| {
            w.write_all(b"half").map_err(Error::io("write", "a"))?;
            Err(Error::data("stop"))
        });
        assert!(failed.is_err_and(|e| e.to_string() == "stop"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.npy"]);
    }

    #[test]
    fn an_existing_file_is_refused_unless_it_may_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b");
        let put = |text: &'static [u8], existing| {
            write_atomic(&path, existing, |w| w.write_all(text).map_err(Error::io("write", "b")))
        };
        put(b"1", Existing::Refuse).unwrap();
        assert!(put(b"2", Existing::Refuse).is_err_and(|e| e.to_string().contains("exists already")));
        put(b"3", Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"3");
        assert_eq!(names(folder.path()), ["b"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_atomic(Path::new("/nonexistent/x"), Existing::Refuse, |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/.x."), "{error}");
        assert!(error.to_string().contains("cannot create"), "{error}");
    }
}
