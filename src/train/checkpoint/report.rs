//! What the command line prints about checkpoints.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{Checkpoint, CheckpointStore, OPTIMIZER, Verification, WEIGHTS, verify};
use crate::error::{Error, Result};
use crate::io::safetensors::SafetensorsFile;
use crate::io::stored::printable;

/// The checkpoints of a folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListReport {
    /// The folder.
    pub dir: PathBuf,
    /// A line for each, newest first.
    pub checkpoints: Vec<Listed>,
    /// Whether every hash was compared, or only manifests and lengths.
    pub is_verified: bool,
}

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Optimizer steps done.
    pub step: Option<u64>,
    /// Its size.
    pub bytes: Option<u64>,
    /// What is wrong with it.
    pub fault: Option<String>,
}

/// Lists the checkpoints in `dir`; `verified` compares every hash.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
pub fn list(dir: &Path, verified: bool) -> Result<ListReport> {
    let mut checkpoints = Vec::new();
    for found in CheckpointStore::new(dir, 0).list()? {
        let mut fault = found.summary.as_ref().err().cloned();
        if verified && fault.is_none() {
            fault = verify(&found.path).err().map(|e| e.to_string());
        }
        let (step, bytes) = found.summary.ok().unzip();
        checkpoints.push(Listed { name: found.name.to_string(), step, bytes, fault });
    }
    Ok(ListReport { dir: dir.into(), checkpoints, is_verified: verified })
}

impl ListReport {
    /// Whether none of them has a fault.
    pub fn is_sound(&self) -> bool {
        self.checkpoints.iter().all(|c| c.fault.is_none())
    }
}

impl fmt::Display for ListReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.checkpoints.is_empty() {
            return write!(f, "{}: no checkpoints", self.dir.display());
        }
        let width = self.checkpoints.iter().map(|c| c.name.len()).max().unwrap_or(0);
        write!(f, "{:<width$}  {:>9}  {:>10}", "name", "step", "size")?;
        for c in &self.checkpoints {
            let step = c.step.map_or("-".into(), |n| n.to_string());
            let size = c.bytes.map_or("-".into(), size);
            write!(f, "\n{:<width$}  {step:>9}  {size:>10}", c.name)?;
            match &c.fault {
                // A checkpoint can have many faults; the list has a line for each checkpoint.
                Some(fault) => write!(f, "  damaged: {}", fault.lines().next().unwrap_or_default())?,
                None if self.is_verified => write!(f, "  verified")?,
                None => {}
            }
        }
        Ok(())
    }
}

/// Bytes with a unit, powers of 1000.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShowReport {
    /// Its folder.
    pub path: PathBuf,
    /// Optimizer steps done.
    pub step: u64,
    /// How many numbers the weights are.
    pub parameters: usize,
    /// File, tensor, type and shape.
    pub tensors: Vec<(String, String, String)>,
    /// Everything else.
    pub state: Value,
}

/// Opens, verifies and describes a checkpoint.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn show(path: &Path) -> Result<ShowReport> {
    let checkpoint = Checkpoint::open(path)?;
    let describe = |name: &str, file: &SafetensorsFile| {
        let line = |t: crate::io::TensorView<'_>| {
            (name.to_string(), t.name().to_string(), format!("{} {:?}", t.dtype(), t.shape()))
        };
        file.tensors().map(line).collect::<Vec<_>>()
    };
    let mut tensors = describe(WEIGHTS, checkpoint.weights());
    tensors.extend(describe(OPTIMIZER, checkpoint.optimizer()));
    Ok(ShowReport {
        path: path.into(),
        step: checkpoint.step(),
        parameters: checkpoint.weights().tensors().map(|t| t.len()).sum(),
        tensors,
        state: checkpoint.state().clone(),
    })
}

impl fmt::Display for ShowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, parameters) = (self.step, self.parameters);
        writeln!(f, "{}: step {step}, {parameters} parameters, verified", self.path.display())?;
        for (file, name, kind) in &self.tensors {
            writeln!(f, "{file}: {}: {kind}", printable(name))?;
        }
        let state = serde_json::to_string_pretty(&self.state).map_err(|_| fmt::Error)?;
        write!(f, "state.json: {state}")
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {} tensors, {}: every hash matches", self.step, self.tensors, size(self.bytes))
    }
}

/// The checkpoint that a path on the command line means: itself, or the newest sound one of a folder of checkpoints,
/// with a line about each that was passed over.
///
/// # Errors
/// [`Error::Checkpoint`] if there is none; as [`Checkpoint::open`].
pub fn resolve(path: &Path) -> Result<(PathBuf, Vec<String>)> {
    if path.join(super::MANIFEST).exists() {
        return Ok((path.into(), Vec::new()));
    }
    let latest = CheckpointStore::new(path, 0).latest()?;
    let passed: Vec<_> = latest.rejected.into_iter().map(|(_, reason)| format!("passed over: {reason}")).collect();
    match latest.checkpoint {
        Some(checkpoint) => Ok((checkpoint.path().into(), passed)),
        None => {
            let mut lines = vec![format!("{}: expected a checkpoint or a folder of them, found none", path.display())];
            lines.extend(passed);
            Err(Error::checkpoint(lines.join("\n")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_keeps_them_short() {
        assert_eq!([size(0), size(999), size(1000), size(12_345_678)], ["0 B", "999 B", "1.0 kB", "12.3 MB"]);
        assert_eq!(size(2_500_000_000_000), "2.5 TB");
    }
}
