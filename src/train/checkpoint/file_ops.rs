//! The file operations that a save is made of, behind one trait, so that tests can fail or end the process at each.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

/// A file that is being written.
pub trait DurableFile: Write {
    /// Returns when all that was written is on the disk.
    ///
    /// # Errors
    /// What the system says; the file must then be taken as lost.
    fn sync(&mut self) -> io::Result<()>;
}

/// What lies at a path; links are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// A link, pipe, socket or device.
    Other,
}

/// The answer to [`FileOps::lock`].
pub enum Lock {
    /// It is ours for as long as this value lives, and no longer than the process does.
    Held(Box<dyn Send + Sync>),
    /// Somebody else holds it; the text says who.
    Busy(String),
    /// The file system has no locks.
    Unsupported,
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lock::Held(_) => f.write_str("Held"),
            Lock::Busy(by) => write!(f, "Busy({by})"),
            Lock::Unsupported => f.write_str("Unsupported"),
        }
    }
}

/// File operations of a checkpoint store.
#[allow(clippy::missing_errors_doc)] // Each gives the system's error of the call that it is named after.
pub trait FileOps: fmt::Debug + Send + Sync {
    /// Makes a folder that must not exist yet.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder and its parents, if missing.
    fn create_folders(&self, path: &Path) -> io::Result<()>;
    /// Makes a file that must not exist yet.
    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DurableFile>>;
    /// Returns when the names in a folder are on the disk.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Renames; `to` must not exist (an empty folder is replaced).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Exchanges two names in one step; [`io::ErrorKind::Unsupported`] if the file system cannot.
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// What lies at a path, if anything.
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>>;
    /// Bytes that this user may still write into a folder, if the system says.
    fn free_bytes(&self, path: &Path) -> io::Result<Option<u64>>;
    /// Takes the lock file at `path`, without waiting; `owner` is what others will be told.
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Lock>;
}

/// The disk itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

/// A lock file, unlocked when dropped. Closing alone is not enough: a process that is being started at the moment has a
/// copy of every open file until it runs its program, and with it the lock.
struct HeldLock(File);

impl Drop for HeldLock {
    fn drop(&mut self) {
        // If this fails, the closing that follows unlocks.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl DurableFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl FileOps for Disk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create_folders(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DurableFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).open(path)?))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Old kernels and some network file systems know no flags; without, a folder still replaces no full folder.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fs::rename(from, to),
            other => Ok(other?),
        }
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Err(io::ErrorKind::Unsupported.into()),
            other => Ok(other?),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Some(Kind::Folder)),
            Ok(meta) if meta.is_file() => Ok(Some(Kind::File)),
            Ok(_) => Ok(Some(Kind::Other)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(path)?;
        // File systems without a size of their own (some network and memory ones) say 0 blocks.
        Ok((stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Lock> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(owner.as_bytes())?;
                Ok(Lock::Held(Box::new(HeldLock(file))))
            }
            Err(Errno::WOULDBLOCK) => {
                let mut by = String::new();
                // The owner may be writing its name just now: then it is anonymous.
                let _ = file.take(200).read_to_string(&mut by);
                Ok(Lock::Busy(if by.is_empty() { "another process".into() } else { by }))
            }
            Err(Errno::NOSYS | Errno::NOTSUP | Errno::NOLCK | Errno::INVAL) => Ok(Lock::Unsupported),
            Err(e) => Err(e.into()),
        }
    }
}
