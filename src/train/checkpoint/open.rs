//! Opening and verifying: nothing of a checkpoint is used before its hash was compared.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::manifest::{Manifest, Piece, TensorFile};
use super::{MANIFEST, STATE};
use crate::error::{Error, Faults, Result};
use crate::io::TensorView;
use crate::io::bytes::read_file;
use crate::io::safetensors::SafetensorsFile;

/// What every message of damage ends with.
const REMEDY: &str = "resume from another checkpoint, or restore this one from a copy";

/// A checkpoint in memory, verified.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    step: u64,
    weights: SafetensorsFile,
    optimizer: SafetensorsFile,
    state: Value,
}

/// What a sound checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verification {
    /// Optimizer steps done.
    pub step: u64,
    /// Tensors of weights and optimizer.
    pub tensors: usize,
    /// Bytes that were hashed.
    pub bytes: u64,
}

impl Checkpoint {
    /// Reads the checkpoint in the folder `path` and verifies all of it.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with every damaged tensor and file by name; [`Error::Io`] if a file cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let manifest = read_manifest(path)?;
        let mut faults = Faults::new();
        let mut load = |entry: &TensorFile| {
            tensors(path, entry).map_err(|e| faults.absorb(e)).ok() //
        };
        let (weights, optimizer) = (load(&manifest.weights), load(&manifest.optimizer));
        let state = state(path, &manifest).map_err(|e| faults.absorb(e)).ok();
        match (weights, optimizer, state) {
            (Some(weights), Some(optimizer), Some(state)) => {
                Ok(Checkpoint { path: path.to_path_buf(), step: manifest.step, weights, optimizer, state })
            }
            _ => Err(Error::Checkpoint(faults)),
        }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The parameters.
    pub fn weights(&self) -> &SafetensorsFile {
        &self.weights
    }

    /// The optimizer's tensors.
    pub fn optimizer(&self) -> &SafetensorsFile {
        &self.optimizer
    }

    /// Everything else.
    pub fn state(&self) -> &Value {
        &self.state
    }

    /// Compares the weights with the parameters that a model has, in both directions.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with every parameter that is missing, unexpected or of another shape.
    pub fn check_weights<'a>(&self, expected: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Result<()> {
        check_names(&self.path.display().to_string(), self.weights.tensors(), expected)
    }
}

/// Compares tensors with the names and shapes that are expected; `origin` begins every line.
pub(crate) fn check_names<'a, 'b>(
    origin: &str,
    found: impl IntoIterator<Item = TensorView<'b>>,
    expected: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Result<()> {
    let mut faults = Faults::new();
    let mut found: std::collections::BTreeMap<&str, TensorView<'_>> =
        found.into_iter().map(|t| (t.name(), t)).collect();
    for (name, shape) in expected {
        match found.remove(name) {
            None => faults.push(format!("{origin}: {name}: expected {shape:?}, found nothing of that name")),
            Some(t) if t.shape() != shape => {
                faults.push(format!("{origin}: {name}: expected {shape:?}, found {:?}", t.shape()));
            }
            Some(_) => {}
        }
    }
    for (name, t) in found {
        let name = crate::io::stored::printable(name);
        faults.push(format!("{origin}: {name}: expected no tensor of that name, found {:?}", t.shape()));
    }
    faults.into_result(Error::Checkpoint)
}

/// Verifies the checkpoint in the folder `path`, a piece at a time: memory stays small.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn verify(path: impl AsRef<Path>) -> Result<Verification> {
    let path = path.as_ref();
    let manifest = read_manifest(path)?;
    let mut faults = Faults::new();
    for entry in [&manifest.weights, &manifest.optimizer] {
        let file = path.join(&entry.file);
        match File::open(&file).map_err(Error::io("open", &file)) {
            Ok(open) => check_pieces(&mut BufReader::new(open), &file, entry, &mut faults)?,
            Err(e) => faults.absorb(e),
        }
    }
    state(path, &manifest).map(drop).unwrap_or_else(|e| faults.absorb(e));
    faults.into_result(Error::Checkpoint)?;
    Ok(Verification {
        step: manifest.step,
        tensors: manifest.weights.tensors.len() + manifest.optimizer.tensors.len(),
        bytes: manifest.files().iter().map(|f| f.1).sum(),
    })
}

/// The manifest of the checkpoint in `folder`.
pub(crate) fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let bytes = read_file(&path).map_err(|e| match e {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Error::checkpoint(format!("{}: expected a checkpoint, found no {MANIFEST} in it", folder.display()))
        }
        other => other,
    })?;
    Manifest::decode(&path, &bytes)
}

/// Reads, verifies and parses a safetensors file.
fn tensors(folder: &Path, entry: &TensorFile) -> Result<SafetensorsFile> {
    let path = folder.join(&entry.file);
    let bytes = read_file(&path)?;
    let mut faults = Faults::new();
    check_pieces(&mut bytes.as_slice(), &path, entry, &mut faults)?;
    faults.into_result(Error::Checkpoint)?;
    let file = SafetensorsFile::from_bytes(&path, bytes)?;
    // Hashes only say that the bytes are those of the manifest; that header and manifest agree is asked here.
    let agrees = file.len() == entry.tensors.len()
        && entry.tensors.iter().all(|t| {
            file.get(&t.name).is_some_and(|v| v.dtype().name() == t.dtype && v.shape() == t.shape)
                && file.range(&t.name).is_some_and(|r| (r.start as u64, r.end as u64) == (t.piece.begin, t.piece.end))
        });
    if !agrees {
        return Err(Error::checkpoint(format!("{}: its header and {MANIFEST} disagree: {REMEDY}", path.display())));
    }
    Ok(file)
}

/// Hashes header and tensors of a file as they come; a fault for each that differs, by name.
fn check_pieces(reader: &mut dyn Read, path: &Path, entry: &TensorFile, faults: &mut Faults) -> Result<()> {
    let at = path.display();
    let pieces = std::iter::once(("header", &entry.header));
    let pieces = pieces.chain(entry.tensors.iter().map(|t| (t.name.as_str(), &t.piece)));
    let mut next = 0;
    for (name, piece) in pieces {
        if piece.begin != next || piece.end < piece.begin {
            let range = format!("{}..{}", piece.begin, piece.end);
            faults.push(format!("{at}: {name}: {MANIFEST} says {range}, expected it to begin at {next}"));
            return Ok(());
        }
        next = piece.end;
        let (hash, read) = hash_piece(reader, piece).map_err(Error::io("read", path))?;
        if read < piece.end - piece.begin {
            faults.push(format!("{at}: {name}: expected {} bytes, found {read}: cut off; {REMEDY}", piece.len()));
        } else if hash != piece.blake3 {
            let (want, got) = (piece.blake3.get(..12).unwrap_or_default(), hash.get(..12).unwrap_or_default());
            faults.push(format!("{at}: {name}: damaged: expected hash {want}…, found {got}…; {REMEDY}"));
        }
    }
    if next != entry.bytes {
        faults.push(format!("{at}: {MANIFEST} says {} bytes, its tensors end at {next}", entry.bytes));
    }
    let more = io::copy(&mut reader.take(1), &mut io::sink()).map_err(Error::io("read", path))?;
    if more > 0 {
        faults.push(format!("{at}: expected {next} bytes, found more: bytes were added; {REMEDY}"));
    }
    Ok(())
}

impl Piece {
    fn len(&self) -> u64 {
        self.end.saturating_sub(self.begin)
    }
}

/// Hash of the next bytes, and how many there were.
fn hash_piece(reader: &mut dyn Read, piece: &Piece) -> io::Result<(String, u64)> {
    let mut hasher = blake3::Hasher::new();
    let read = io::copy(&mut reader.take(piece.len()), &mut hasher)?;
    Ok((hasher.finalize().to_hex().to_string(), read))
}

/// Reads and verifies `state.json`.
fn state(folder: &Path, manifest: &Manifest) -> Result<Value> {
    let path = folder.join(STATE);
    let bytes = read_file(&path)?;
    let fault = |text: String| Error::checkpoint(format!("{}: {text}; {REMEDY}", path.display()));
    if bytes.len() as u64 != manifest.state.bytes {
        return Err(fault(format!("expected {} bytes, found {}", manifest.state.bytes, bytes.len())));
    }
    if super::manifest::hash(&bytes) != manifest.state.blake3 {
        return Err(fault("damaged: its hash is not the manifest's".into()));
    }
    serde_json::from_slice(&bytes).map_err(|e| fault(format!("not JSON: {e}")))
}
