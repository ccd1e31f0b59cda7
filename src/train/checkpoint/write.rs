//! Writes the files of a checkpoint into a folder, hashing on the way.

use std::io;
use std::path::Path;

use super::file_ops::{DurableFile, FileOps};
use super::manifest::{Manifest, Piece, PlainFile, TensorEntry, TensorFile};
use super::store::SaveRequest;
use super::{MANIFEST, OPTIMIZER, STATE, WEIGHTS};
use crate::error::{Error, Result};
use crate::io::TensorView;
use crate::io::safetensors::{Layout, pt_metadata};

/// Bytes handed to the system at once: large enough for full speed, small enough that a full disk is met early.
const CHUNK: usize = 4 << 20;

/// A request with everything decided, before the first byte is written: all its faults are known by now.
pub(crate) struct Plan<'a> {
    weights: Layout,
    optimizer: Layout,
    state: Vec<u8>,
    request: &'a SaveRequest<'a>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(request: &'a SaveRequest<'a>) -> Result<Plan<'a>> {
        let named = |file: &str, e: Error| Error::checkpoint(format!("{file}: {e}"));
        let weights = Layout::plan(&request.weights, &pt_metadata()).map_err(|e| named(WEIGHTS, e))?;
        let optimizer = Layout::plan(&request.optimizer, &pt_metadata()).map_err(|e| named(OPTIMIZER, e))?;
        let mut state = serde_json::to_vec_pretty(request.state)
            .map_err(|e| Error::checkpoint(format!("{STATE}: cannot be written as JSON: {e}")))?;
        state.push(b'\n');
        Ok(Plan { weights, optimizer, state, request })
    }

    /// Bytes that the checkpoint takes on the disk, with room for the manifest and the blocks' ends.
    pub(crate) fn bytes(&self) -> u64 {
        let tensors = (self.request.weights.len() + self.request.optimizer.len()) as u64;
        self.weights.total() + self.optimizer.total() + self.state.len() as u64 + tensors * 512 + (64 << 10)
    }

    /// Writes all files into `folder` and waits until they and their names are on the disk.
    pub(crate) fn write(&self, ops: &dyn FileOps, folder: &Path) -> Result<()> {
        let weights = tensors(ops, folder, WEIGHTS, &self.weights, &self.request.weights)?;
        let optimizer = tensors(ops, folder, OPTIMIZER, &self.optimizer, &self.request.optimizer)?;
        let state = PlainFile {
            file: STATE.into(),
            bytes: self.state.len() as u64,
            blake3: super::manifest::hash(&self.state),
        };
        plain(ops, &folder.join(STATE), &self.state)?;
        let manifest = Manifest::new(self.request.step, weights, optimizer, state).encode()?;
        plain(ops, &folder.join(MANIFEST), &manifest)?;
        ops.sync_folder(folder).map_err(Error::io("sync", folder))
    }
}

/// A file that is hashed while it is written.
struct Hashed {
    file: Box<dyn DurableFile>,
    whole: blake3::Hasher,
    at: u64,
}

impl Hashed {
    fn piece(&mut self, bytes: &[u8]) -> io::Result<Piece> {
        let begin = self.at;
        let mut own = blake3::Hasher::new();
        for chunk in bytes.chunks(CHUNK) {
            self.file.write_all(chunk)?;
            own.update(chunk);
            self.whole.update(chunk);
        }
        self.at += bytes.len() as u64;
        Ok(Piece { begin, end: self.at, blake3: own.finalize().to_hex().to_string() })
    }
}

/// Writes a safetensors file and waits until it is on the disk.
fn tensors(
    ops: &dyn FileOps,
    folder: &Path,
    name: &str,
    plan: &Layout,
    views: &[TensorView<'_>],
) -> Result<TensorFile> {
    let path = folder.join(name);
    let file = ops.create_file(&path).map_err(Error::io("create", &path))?;
    let mut file = Hashed { file, whole: blake3::Hasher::new(), at: 0 };
    let header = file.piece(&plan.header).map_err(Error::io("write", &path))?;
    let mut entries = Vec::with_capacity(views.len());
    for view in plan.order.iter().filter_map(|&i| views.get(i)) {
        let piece = file.piece(view.bytes()).map_err(Error::io("write", &path))?;
        entries.push(TensorEntry {
            name: view.name().into(),
            dtype: view.dtype().name().into(),
            shape: view.shape().to_vec(),
            piece,
        });
    }
    file.file.sync().map_err(Error::io("sync", &path))?;
    let blake3 = file.whole.finalize().to_hex().to_string();
    Ok(TensorFile { file: name.into(), bytes: file.at, blake3, header, tensors: entries })
}

/// Writes a small file and waits until it is on the disk.
pub(crate) fn plain(ops: &dyn FileOps, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = ops.create_file(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.sync().map_err(Error::io("sync", path))
}
