//! `manifest.json`: what a checkpoint consists of, with a hash of every tensor and file, and of itself.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{OPTIMIZER, STATE, WEIGHTS};
use crate::error::{Error, Result};

/// The format that this library writes, and the newest that it reads.
pub(crate) const VERSION: u32 = 1;
/// Says that the folder is one of ours.
const FORMAT: &str = "perfrun checkpoint";
/// Length of a hash in text.
const HEX: usize = 64;

/// The file's content, less its own hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: String,
    pub(crate) version: u32,
    pub(crate) step: u64,
    pub(crate) weights: TensorFile,
    pub(crate) optimizer: TensorFile,
    pub(crate) state: PlainFile,
}

/// A safetensors file: its header and tensors cover all of its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TensorFile {
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
    pub(crate) header: Piece,
    pub(crate) tensors: Vec<TensorEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TensorEntry {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    #[serde(flatten)]
    pub(crate) piece: Piece,
}

/// A range of a file and its hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) blake3: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlainFile {
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
}

/// A hash as the manifest spells it.
pub(crate) fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

impl Manifest {
    pub(crate) fn new(step: u64, weights: TensorFile, optimizer: TensorFile, state: PlainFile) -> Manifest {
        Manifest { format: FORMAT.into(), version: VERSION, step, weights, optimizer, state }
    }

    /// The file's bytes. The last line holds the hash of all lines before it, so that a damaged manifest cannot pass.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::checkpoint(format!("manifest.json: cannot be written as JSON: {e}")))?;
        let mut body = text.strip_suffix("\n}").unwrap_or(&text).as_bytes().to_vec();
        let tail = tail(&body);
        body.extend_from_slice(tail.as_bytes());
        Ok(body)
    }

    /// Reads the file's bytes; `path` is for messages.
    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Manifest> {
        let fault = |text: &str| Err(Error::checkpoint(format!("{}: {text}", path.display())));
        let split = bytes.len().checked_sub(tail(b"").len());
        let Some((body, found)) = split.and_then(|at| bytes.split_at_checked(at)) else {
            return fault("truncated: resume from another checkpoint");
        };
        if tail(body).as_bytes() != found {
            return fault("damaged: its hash does not match its content; resume from another checkpoint");
        }
        // The version is looked at alone: a newer one may have fields of other types.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        match serde_json::from_slice::<Head>(bytes) {
            Ok(head) if head.format != FORMAT => {
                return fault(&format!("expected format {FORMAT:?}, found {:?}", head.format));
            }
            Ok(head) if head.version != VERSION => {
                let text = format!("expected version {VERSION}, found {}: written by another release", head.version);
                return fault(&format!("{text}; read it with that release and export it"));
            }
            Ok(_) => {}
            Err(e) => return fault(&format!("not a manifest: {e}")),
        }
        let manifest: Manifest = match serde_json::from_slice(bytes) {
            Ok(manifest) => manifest,
            Err(e) => return fault(&format!("not a manifest: {e}")),
        };
        // A name with a path in it would make us read a file outside the checkpoint.
        match manifest.files().map(|f| f.0) {
            [WEIGHTS, OPTIMIZER, STATE] => Ok(manifest),
            other => fault(&format!("expected {WEIGHTS}, {OPTIMIZER} and {STATE}, found {other:?}")),
        }
    }

    /// The files that a checkpoint of this manifest consists of, besides the manifest.
    pub(crate) fn files(&self) -> [(&str, u64); 3] {
        [
            (&self.weights.file, self.weights.bytes),
            (&self.optimizer.file, self.optimizer.bytes),
            (&self.state.file, self.state.bytes),
        ]
    }
}

/// What follows `body`: always as long, since a hash is.
fn tail(body: &[u8]) -> String {
    let text = format!(",\n  \"blake3\": \"{}\"\n}}\n", hash(body));
    debug_assert_eq!(text.len(), HEX + 19);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let piece = Piece { begin: 0, end: 8, blake3: hash(b"x") };
        let entry = TensorEntry { name: "w".into(), dtype: "F32".into(), shape: vec![2], piece: piece.clone() };
        let file = |name: &str| TensorFile {
            file: name.into(),
            bytes: 16,
            blake3: hash(b"f"),
            header: piece.clone(),
            tensors: vec![entry.clone()],
        };
        let state = PlainFile { file: "state.json".into(), bytes: 3, blake3: hash(b"{}\n") };
        Manifest::new(7, file("model.safetensors"), file("optimizer.safetensors"), state)
    }

    #[test]
    fn a_manifest_reads_back_and_is_json() {
        let bytes = sample().encode().unwrap();
        assert_eq!(Manifest::decode(Path::new("m"), &bytes).unwrap(), sample());
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["blake3"].as_str().map(str::len), Some(HEX));
        assert_eq!(json["weights"]["tensors"][0]["shape"], serde_json::json!([2]));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_of_a_manifest_is_seen() {
        let bytes = sample().encode().unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(Manifest::decode(Path::new("m"), &flipped).is_err(), "bit {at}");
            assert!(Manifest::decode(Path::new("m"), &bytes[..at]).is_err(), "length {at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut newer = sample();
        newer.version = VERSION + 1;
        let error = Manifest::decode(Path::new("m"), &newer.encode().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("m: expected version 1, found 2: written by another release"), "{error}");
    }
}
