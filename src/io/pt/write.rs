//! Writes `.pt` archives.

use std::io::{Seek, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::pickle::{Value, encode};
use crate::error::{Error, Result};

/// Storages begin at multiples of this, as torch has it: they can be mapped and used in place.
const ALIGNMENT: u16 = 64;
/// Name of the archive's root folder; torch takes any.
const ROOT: &str = "archive";

/// Writes `root` as an archive that `torch.load(path, weights_only=True)` reads. The same value gives the same bytes.
///
/// # Errors
/// [`Error::Dtype`] for number types without a typed storage in PyTorch, [`Error::Argument`] for absurd nesting;
/// [`Error::Io`] (on `path`, which is for messages) if `out` refuses bytes.
pub fn write(out: impl Write + Seek, path: &Path, root: &Value<'_>) -> Result<()> {
    let (pickle, tensors) = encode(root)?;
    let mut zip = ZipWriter::new(out);
    let failed = |e: zip::result::ZipError| Error::Io { path: path.into(), what: "write", source: e.into() };
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment_and_header_id(ALIGNMENT, u16::from_le_bytes(*b"FB"));
    let mut entry = |name: &str, bytes: &[u8]| {
        // Lengths of 4 GiB and more need the larger fields of zip64.
        let options = options.large_file(bytes.len() as u64 >= u64::from(u32::MAX));
        zip.start_file(format!("{ROOT}/{name}"), options).map_err(failed)?;
        zip.write_all(bytes).map_err(Error::io("write", path))
    };
    entry("data.pkl", &pickle)?;
    entry("byteorder", b"little")?;
    for (key, tensor) in tensors.iter().enumerate() {
        entry(&format!("data/{key}"), tensor.bytes())?;
    }
    entry("version", b"3\n")?;
    zip.finish().map(drop).map_err(failed)
}
