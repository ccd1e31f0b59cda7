//! A disk that fails, or on which the process dies, at the operation that a test names.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use perfrun::train::checkpoint::{CheckpointStore, Disk, DurableFile, FileOps, Kind, Lock};

/// What happens at operation `at` (counted from 0), of those that change something.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The process dies: this operation is done to a half if it can be, and nothing comes after it.
    Die { at: usize },
    /// The operation fails, once.
    Fail { at: usize, errno: i32 },
}

#[derive(Debug)]
struct State {
    fault: Fault,
    done: usize,
    dead: bool,
    log: String,
}

/// The disk with a fault.
#[derive(Debug, Clone)]
pub(crate) struct FaultyDisk {
    state: Arc<Mutex<State>>,
    exchanges: bool,
    full: bool,
}

impl FaultyDisk {
    pub(crate) fn new(fault: Fault) -> FaultyDisk {
        let state = State { fault, done: 0, dead: false, log: String::new() };
        FaultyDisk { state: Arc::new(Mutex::new(state)), exchanges: true, full: false }
    }

    /// A file system that cannot exchange two names.
    pub(crate) fn without_exchange(self) -> FaultyDisk {
        FaultyDisk { exchanges: false, ..self }
    }

    /// A file system that says it is full.
    pub(crate) fn full(self) -> FaultyDisk {
        FaultyDisk { full: true, ..self }
    }

    /// Operations so far.
    pub(crate) fn done(&self) -> usize {
        self.state.lock().unwrap().done
    }

    /// The operations, a line each.
    pub(crate) fn log(&self) -> String {
        self.state.lock().unwrap().log.clone()
    }

    /// Counts an operation; the error if it is the one that fails, whether it is the one at which the process dies.
    fn step(&self, what: &str, path: &Path) -> io::Result<bool> {
        let mut state = self.state.lock().unwrap();
        if state.dead {
            return Err(io::Error::other("the process is dead"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let n = state.done;
        state.done += 1;
        writeln!(state.log, "{what} {name}").unwrap();
        match state.fault {
            Fault::Die { at } if at == n => {
                state.dead = true;
                Ok(true)
            }
            Fault::Fail { at, errno } if at == n => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(false),
        }
    }

    /// An operation that is done whole or not at all.
    fn whole<T>(&self, what: &str, path: &Path, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.step(what, path)? { Err(io::Error::other("the process died")) } else { operation() }
    }
}

/// A store on a disk without faults that is not waited for.
pub(crate) fn quick_store(dir: &Path, max_checkpoints: usize) -> CheckpointStore {
    CheckpointStore::on(Arc::new(FaultyDisk::new(Fault::None)), dir, max_checkpoints)
}

struct FaultyFile {
    disk: FaultyDisk,
    path: std::path::PathBuf,
    file: Box<dyn DurableFile>,
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.disk.step("write", &self.path)? {
            self.file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(io::Error::other("the process died"));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl DurableFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        // Waiting for the disk changes nothing that a process which dies (and not the machine) could see.
        self.disk.whole("sync", &self.path, || Ok(()))
    }
}

impl FileOps for FaultyDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.whole("create_folder", path, || Disk.create_folder(path))
    }
    fn create_folders(&self, path: &Path) -> io::Result<()> {
        self.whole("create_folders", path, || Disk.create_folders(path))
    }
    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DurableFile>> {
        let file = self.whole("create_file", path, || Disk.create_file(path))?;
        Ok(Box::new(FaultyFile { disk: self.clone(), path: path.to_path_buf(), file }))
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.whole("sync_folder", path, || Ok(()))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.whole("rename", to, || Disk.rename(from, to))
    }
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        if !self.exchanges {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.whole("exchange", b, || Disk.exchange(a, b))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.whole("remove_file", path, || Disk.remove_file(path))
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.whole("remove_folder", path, || Disk.remove_folder(path))
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.whole("list", path, || Disk.list(path))
    }
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        self.whole("kind", path, || Disk.kind(path))
    }
    fn free_bytes(&self, path: &Path) -> io::Result<Option<u64>> {
        let free = self.whole("free_bytes", path, || Disk.free_bytes(path))?;
        Ok(if self.full { Some(1000) } else { free })
    }
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Lock> {
        self.whole("lock", path, || Disk.lock(path, owner))
    }
}

/// The disk, announcing each operation on standard output before it is done.
#[derive(Debug)]
pub(crate) struct Reporting(pub(crate) Disk);

struct ReportingFile(Box<dyn DurableFile>);

fn report(what: &str) {
    // A line of its own, whatever the test harness has printed before.
    println!("\nop {what}");
}

impl Write for ReportingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        report("write");
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl DurableFile for ReportingFile {
    fn sync(&mut self) -> io::Result<()> {
        report("sync");
        self.0.sync()
    }
}

impl FileOps for Reporting {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        report("create_folder");
        self.0.create_folder(path)
    }
    fn create_folders(&self, path: &Path) -> io::Result<()> {
        self.0.create_folders(path)
    }
    fn create_file(&self, path: &Path) -> io::Result<Box<dyn DurableFile>> {
        report("create_file");
        Ok(Box::new(ReportingFile(self.0.create_file(path)?)))
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        report("sync_folder");
        self.0.sync_folder(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        report("rename");
        self.0.rename(from, to)
    }
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        report("exchange");
        self.0.exchange(a, b)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        report("remove_file");
        self.0.remove_file(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        report("remove_folder");
        self.0.remove_folder(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.list(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        self.0.kind(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<Option<u64>> {
        self.0.free_bytes(path)
    }
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Lock> {
        self.0.lock(path, owner)
    }
}
