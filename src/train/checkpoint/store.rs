//! A folder of checkpoints: saving, finding, replacing.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::file_ops::{Disk, FileOps, Kind, Lock};
use super::manifest::Manifest;
use super::name::CheckpointName;
use super::open::{Checkpoint, read_manifest};
use super::write::{Plan, plain};
use super::{FILES, MANIFEST, WEIGHTS};
use crate::error::{Error, Result};
use crate::io::TensorView;

/// A folder that a save is writing.
pub(crate) const SAVING: &str = ".saving-";
/// A folder that was a checkpoint and is being removed.
pub(crate) const REMOVING: &str = ".removing-";
/// The former content of a name, set aside where two names cannot be exchanged: `.replaced-NAME`.
pub(crate) const REPLACED: &str = ".replaced-";
/// The lock that a saving process holds.
const LOCK: &str = ".lock";

/// What a save writes.
#[derive(Debug, Clone)]
pub struct SaveRequest<'a> {
    /// Optimizer steps done so far: orders the checkpoints of a store.
    pub step: u64,
    /// The parameters, in the model's order.
    pub weights: Vec<TensorView<'a>>,
    /// The optimizer's tensors: `<parameter>.exp_avg`, `<parameter>.exp_avg_sq`.
    pub optimizer: Vec<TensorView<'a>>,
    /// Everything else. JSON has no NaN and no infinity: write such numbers as text.
    pub state: &'a Value,
}

/// What a save did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The checkpoint's folder.
    pub path: PathBuf,
    /// Names of the checkpoints that rotation removed.
    pub removed: Vec<String>,
    /// What went wrong after the checkpoint was published: old checkpoints that are damaged or could not be removed.
    /// To be shown: the save itself is whole.
    pub warnings: Vec<String>,
}

/// A checkpoint of a store, looked at but not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// Its name.
    pub name: CheckpointName,
    /// Steps done and bytes, or why its manifest cannot be believed.
    pub summary: Result<(u64, u64), String>,
}

/// The newest checkpoint that verifies, and what had to be passed over to find it.
#[derive(Debug)]
pub struct Latest {
    /// The checkpoint, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// Newer or unreadable ones that do not verify, with the reason: to be shown.
    pub rejected: Vec<(PathBuf, String)>,
}

/// A folder of checkpoints.
///
/// Reading needs no lock. The first save takes the store's lock and keeps it until the store is dropped, so two runs
/// that were given the same folder cannot remove each other's checkpoints; the system frees it when the process dies.
pub struct CheckpointStore {
    pub(crate) dir: PathBuf,
    pub(crate) max_checkpoints: usize,
    pub(crate) ops: Arc<dyn FileOps>,
    lock: Option<Lock>,
}

impl fmt::Debug for CheckpointStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckpointStore({}, max {})", self.dir.display(), self.max_checkpoints)
    }
}

impl CheckpointStore {
    /// The store in `dir`, which need not exist yet; it keeps the newest `max_checkpoints` epochs and steps (0: all).
    pub fn new(dir: impl Into<PathBuf>, max_checkpoints: usize) -> CheckpointStore {
        CheckpointStore::on(Arc::new(Disk), dir, max_checkpoints)
    }

    /// As [`CheckpointStore::new`], with other file operations than the disk's.
    pub fn on(ops: Arc<dyn FileOps>, dir: impl Into<PathBuf>, max_checkpoints: usize) -> CheckpointStore {
        CheckpointStore { dir: dir.into(), max_checkpoints, ops, lock: None }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Saves under `name`, replacing what had that name, then rotates. When it returns, the checkpoint survives a
    /// power cut. Whatever goes wrong, and whenever the process dies, every earlier checkpoint stays as it was.
    ///
    /// # Errors
    /// [`Error::Argument`] for a bad name; [`Error::Checkpoint`] for bad tensor names, for a folder that another
    /// process saves to, or for something at that name that is no checkpoint; [`Error::Io`] if the disk is full or
    /// fails.
    pub fn save(&mut self, name: &str, request: &SaveRequest<'_>) -> Result<Saved> {
        let name = CheckpointName::parse(name)?;
        let plan = Plan::new(request)?;
        self.create_dir()?;
        self.take_lock()?;
        let mut warnings = self.clean()?;
        let target = self.dir.join(name.to_string());
        let replaces = self.may_replace(&target)?;
        self.check_space(plan.bytes())?;

        let temporary = self.dir.join(format!("{SAVING}{}", unique()));
        self.ops.create_folder(&temporary).map_err(Error::io("create", &temporary))?;
        let published = plan.write(&*self.ops, &temporary).and_then(|()| self.publish(&temporary, &target, replaces));
        if let Err(e) = published {
            // The first fault is the one to report; what cannot be removed now is removed by the next save.
            let _ = self.remove_tree(&temporary);
            return Err(e);
        }
        if self.ops.kind(&temporary).is_ok_and(|k| k.is_some()) {
            self.remove_tree(&temporary).unwrap_or_else(|e| warnings.push(e.to_string()));
        }
        let removed = self.rotate(&name, &mut warnings);
        Ok(Saved { path: target, removed, warnings })
    }

    /// Writes what a save of `bytes` begins with, waits until it is on the disk and removes it: a measure of how long a save
    /// takes. How many bytes were written: all of them, 16 MiB at most.
    ///
    /// # Errors
    /// As [`CheckpointStore::save`].
    pub fn rehearse(&mut self, bytes: u64) -> Result<u64> {
        const MOST: u64 = 16 << 20;
        self.create_dir()?;
        self.take_lock()?;
        self.check_space(bytes)?;
        let temporary = self.dir.join(format!("{SAVING}{}", unique()));
        self.ops.create_folder(&temporary).map_err(Error::io("create", &temporary))?;
        let content = vec![0x5a; bytes.min(MOST) as usize];
        let written = plain(&*self.ops, &temporary.join(WEIGHTS), &content)
            .and_then(|()| self.ops.sync_folder(&temporary).map_err(Error::io("sync", &temporary)));
        let removed = self.remove_tree(&temporary);
        written.and(removed).map(|()| content.len() as u64)
    }

    /// Makes the store's folder, if missing, so that it survives a power cut: a new name is on the disk when the folder
    /// that holds it is.
    fn create_dir(&self) -> Result<()> {
        let mut missing = Vec::new();
        for folder in self.dir.ancestors().filter(|p| !p.as_os_str().is_empty()) {
            if self.ops.kind(folder).map_err(Error::io("look at", folder))?.is_some() {
                break;
            }
            missing.push(folder);
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.ops.create_folders(&self.dir).map_err(Error::io("create", &self.dir))?;
        for folder in missing {
            let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            self.ops.sync_folder(parent).map_err(Error::io("sync", parent))?;
        }
        Ok(())
    }

    /// Gives the finished folder its name.
    fn publish(&self, temporary: &Path, target: &Path, replaces: bool) -> Result<()> {
        let sync = || self.ops.sync_folder(&self.dir).map_err(Error::io("sync", &self.dir));
        if !replaces {
            self.ops.rename(temporary, target).map_err(Error::io("rename", target))?;
            return sync();
        }
        match self.ops.exchange(temporary, target) {
            Ok(()) => sync().inspect_err(|_| {
                // A failed sync is a failed save: the name keeps its former content.
                let _ = self.ops.exchange(temporary, target);
            }),
            Err(e) if e.kind() == std::io::ErrorKind::Unsupported => self.set_aside(temporary, target),
            Err(source) => Err(Error::Io { path: target.to_path_buf(), what: "exchange", source }),
        }
    }

    /// Replaces `target` where names cannot be exchanged: between the two renames the former content has the name
    /// `.replaced-NAME`, under which `list` and `latest` find it.
    fn set_aside(&self, temporary: &Path, target: &Path) -> Result<()> {
        let aside = beside(target, REPLACED);
        let sync = || self.ops.sync_folder(&self.dir).map_err(Error::io("sync", &self.dir));
        // A former content that is still set aside is there because what followed it is damaged: that one goes.
        let aside = match self.ops.kind(&aside).map_err(Error::io("look at", &aside))? {
            None => aside,
            Some(_) => self.dir.join(format!("{REMOVING}{}", unique())),
        };
        self.ops.rename(target, &aside).map_err(Error::io("rename", target))?;
        let renamed = self.ops.rename(temporary, target).map_err(Error::io("rename", target)).and_then(|()| sync());
        match renamed {
            Ok(()) => {
                // From here on the new one is good; what is left of the old one is cleared by the next save.
                let _ = self.discard(&aside);
                Ok(())
            }
            Err(e) => {
                let _ = self.ops.rename(target, temporary);
                let _ = self.ops.rename(&aside, target);
                Err(e)
            }
        }
    }

    fn take_lock(&mut self) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let path = self.dir.join(LOCK);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let owner = format!("process {} on {host}", std::process::id());
        match self.ops.lock(&path, &owner).map_err(Error::io("lock", &path))? {
            Lock::Busy(by) => Err(Error::checkpoint(format!(
                "{}: {by} saves its checkpoints here: give this run another checkpoint_dir, or stop that one",
                self.dir.display()
            ))),
            lock => {
                self.lock = Some(lock);
                Ok(())
            }
        }
    }

    /// Clears away what saves and removals of dead processes left. Under the lock nobody else is saving, so all of it
    /// is dead; without a lock nothing is touched.
    fn clean(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if !matches!(self.lock, Some(Lock::Held(_))) {
            return Ok(warnings);
        }
        for entry in self.ops.list(&self.dir).map_err(Error::io("list", &self.dir))? {
            let path = self.dir.join(&entry);
            let done = if let Some(name) = entry.strip_prefix(REPLACED) {
                self.settle(&path, &self.dir.join(name))
            } else if entry.starts_with(SAVING) || entry.starts_with(REMOVING) {
                self.remove_tree(&path)
            } else {
                Ok(())
            };
            done.unwrap_or_else(|e| warnings.push(e.to_string()));
        }
        Ok(warnings)
    }

    /// Ends a replacement that was cut short: if the new content has not arrived, the former one takes its name back.
    fn settle(&self, aside: &Path, target: &Path) -> Result<()> {
        match self.ops.kind(target).map_err(Error::io("look at", target))? {
            None => self.ops.rename(aside, target).map_err(Error::io("rename", aside)),
            // A checkpoint that is published and damaged is no reason to lose its predecessor.
            Some(_) if super::verify(target).is_err() => Ok(()),
            Some(_) => self.discard(aside),
        }
    }

    /// Removes a checkpoint. Its name goes first, in one step: a half-removed folder never looks like a checkpoint.
    pub(crate) fn discard(&self, checkpoint: &Path) -> Result<()> {
        let hidden = self.dir.join(format!("{REMOVING}{}", unique()));
        self.ops.rename(checkpoint, &hidden).map_err(Error::io("rename", checkpoint))?;
        self.remove_tree(&hidden)
    }

    /// Whether something at `target` is to be replaced; refuses what is not a checkpoint.
    fn may_replace(&self, target: &Path) -> Result<bool> {
        let foreign = |what: &str| {
            Err(Error::checkpoint(format!(
                "{}: expected a checkpoint or nothing, found {what}: move it away",
                target.display()
            )))
        };
        match self.ops.kind(target).map_err(Error::io("look at", target))? {
            None => Ok(false),
            Some(Kind::Folder) => {
                let names = self.ops.list(target).map_err(Error::io("list", target))?;
                match names.iter().find(|n| !FILES.contains(&n.as_str())) {
                    Some(other) => foreign(&format!("a folder with {other:?} in it")),
                    None => Ok(true),
                }
            }
            Some(Kind::File) => foreign("a file"),
            Some(Kind::Other) => foreign("a link or device"),
        }
    }

    /// Refuses before the first byte what the disk cannot hold.
    fn check_space(&self, needed: u64) -> Result<()> {
        let needed = needed.saturating_add(needed / 20);
        match self.ops.free_bytes(&self.dir).map_err(Error::io("measure", &self.dir))? {
            Some(free) if free < needed => {
                let text = format!(
                    "{needed} bytes are needed, {free} are free: free some, lower max_checkpoints or move checkpoint_dir"
                );
                let source = std::io::Error::new(std::io::ErrorKind::StorageFull, text);
                Err(Error::Io { path: self.dir.clone(), what: "save a checkpoint", source })
            }
            _ => Ok(()),
        }
    }

    /// Removes a folder of ours: the files that a checkpoint has, then the folder. A file of any other name stays, and
    /// with it the folder.
    pub(crate) fn remove_tree(&self, folder: &Path) -> Result<()> {
        if self.ops.kind(folder).map_err(Error::io("look at", folder))? != Some(Kind::Folder) {
            return Err(Error::checkpoint(format!("{}: expected a folder to remove", folder.display())));
        }
        for name in self.ops.list(folder).map_err(Error::io("list", folder))? {
            if FILES.contains(&name.as_str()) {
                let file = folder.join(name);
                self.ops.remove_file(&file).map_err(Error::io("remove", &file))?;
            }
        }
        self.ops.remove_folder(folder).map_err(Error::io("remove", folder))
    }

    /// The checkpoints of the store, newest first. A folder without a readable manifest is listed with the reason;
    /// folders with other contents are not.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in &self.ops.list(&self.dir).map_err(Error::io("list", &self.dir))? {
            let shown = entry.strip_prefix(REPLACED).unwrap_or(entry);
            let (Ok(name), path) = (CheckpointName::parse(shown), self.dir.join(entry)) else { continue };
            if self.ops.kind(&path).map_err(Error::io("look at", &path))? != Some(Kind::Folder) {
                continue;
            }
            let summary = summary(&*self.ops, &path);
            let claims = name != CheckpointName::Other(shown.into()) || path.join(MANIFEST).exists();
            if summary.is_ok() || claims {
                found.push(Found { path, name, summary });
            }
        }
        found.sort_by_key(|f| std::cmp::Reverse((f.step(), f.name.rank())));
        Ok(found)
    }

    /// Opens the newest checkpoint that verifies. Those that do not are reported, never passed over in silence.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read; a missing folder is an empty store.
    pub fn latest(&self) -> Result<Latest> {
        let mut latest = Latest { checkpoint: None, rejected: Vec::new() };
        if self.ops.kind(&self.dir).map_err(Error::io("look at", &self.dir))?.is_none() {
            return Ok(latest);
        }
        for found in self.list()? {
            match (&found.summary, &latest.checkpoint) {
                (Err(reason), _) => latest.rejected.push((found.path, reason.clone())),
                (Ok(_), Some(_)) => {}
                (Ok(_), None) => match Checkpoint::open(&found.path) {
                    Ok(checkpoint) => latest.checkpoint = Some(checkpoint),
                    Err(e) => latest.rejected.push((found.path, e.to_string())),
                },
            }
        }
        Ok(latest)
    }
}

impl Found {
    /// Steps done; none if the manifest cannot be believed.
    pub fn step(&self) -> Option<u64> {
        self.summary.as_ref().ok().map(|s| s.0)
    }
}

/// Step and bytes of a checkpoint whose manifest is sound and whose files have the right lengths.
fn summary(ops: &dyn FileOps, folder: &Path) -> Result<(u64, u64), String> {
    let manifest: Manifest = read_manifest(folder).map_err(|e| e.to_string())?;
    let mut total = 0u64;
    for (file, bytes) in manifest.files() {
        let path = folder.join(file);
        if ops.kind(&path).map_err(|e| e.to_string())? != Some(Kind::File) {
            return Err(format!("{}: missing", path.display()));
        }
        let found = std::fs::metadata(&path).map_err(|e| e.to_string())?.len();
        if found != bytes {
            return Err(format!("{}: expected {bytes} bytes, found {found}", path.display()));
        }
        total = total.saturating_add(bytes);
    }
    Ok((manifest.step, total))
}

/// The path of `target` with `prefix` before its last part.
pub(crate) fn beside(target: &Path, prefix: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{prefix}{name}"))
}

/// A name that nobody can foresee or plant: hash maps are seeded by the system.
pub(crate) fn unique() -> String {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}
