//! NIfTI-1: volumes of voxels, read one after another, plain or through gzip; f32 volumes written.
//!
//! Read here and not by a crate, since 348 bytes of header are all there is to it: a scan of 1 GB is passed through volume by
//! volume, a length in the header is checked before anything is allocated, and what is written carries the place in the head
//! of what was read.
//!
//! # Source
//! The header file `nifti1.h` of the NIfTI Data Format Working Group.

mod header;

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::error::{Error, Result};
use crate::io::atomic::{Existing, write_atomic};
use header::{FIRST_OFFSET, HEADER};
pub use header::{Geometry, NiftiDtype, NiftiHeader};

/// A file that is being read, volume by volume.
pub struct NiftiReader {
    path: PathBuf,
    header: NiftiHeader,
    source: Box<dyn Read + Send>,
    // Volumes read so far.
    done: usize,
    raw: Vec<u8>,
}

impl std::fmt::Debug for NiftiReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NiftiReader").field("path", &self.path).field("header", &self.header).finish_non_exhaustive()
    }
}

impl NiftiReader {
    /// Opens `.nii` or `.nii.gz` (which it is, is seen by the first bytes) and reads the header.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened; [`Error::Data`] if it is not NIfTI-1 in one file with 3 or 4 axes of
    /// integers, f32 or f64, or if a plain file is cut short.
    pub fn open(path: impl AsRef<Path>) -> Result<NiftiReader> {
        let path = path.as_ref();
        let fault = |fault: String| Error::data(format!("{}: {fault}", path.display()));
        let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if !kind.is_file() {
            return Err(fault("expected a file, found a folder, a pipe or a device".to_owned()));
        }
        let mut first = [0_u8; 2];
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let seen = file.read(&mut first).map_err(Error::io("read", path))?;
        let file = BufReader::with_capacity(1 << 20, File::open(path).map_err(Error::io("open", path))?);
        let is_packed = seen == 2 && first == [0x1F, 0x8B];
        let mut source: Box<dyn Read + Send> =
            if is_packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        let mut bytes = [0_u8; HEADER];
        source.read_exact(&mut bytes).map_err(|e| fault(unreadable(&e, "the header")))?;
        let header = NiftiHeader::parse(&bytes).map_err(fault)?;
        if !is_packed {
            let needed = header.voxels().saturating_mul(header.volumes).saturating_mul(header.dtype.size());
            let needed = needed.saturating_add(header.offset) as u64;
            if kind.len() < needed {
                return Err(fault(format!(
                    "expected {needed} bytes for {} volumes of {:?}, found {}: the file is cut short",
                    header.volumes,
                    header.axes,
                    kind.len()
                )));
            }
        }
        let skipped = (header.offset - HEADER) as u64;
        let copied = std::io::copy(&mut source.by_ref().take(skipped), &mut std::io::sink());
        match copied {
            Ok(n) if n == skipped => {}
            Ok(_) => return Err(fault("the file ends before its first volume: it is cut short".to_owned())),
            Err(e) => return Err(fault(unreadable(&e, "the header's extensions"))),
        }
        Ok(NiftiReader { path: path.to_path_buf(), header, source, done: 0, raw: Vec::new() })
    }

    /// What the header says.
    pub fn header(&self) -> &NiftiHeader {
        &self.header
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the next volume into `out`, scaled, x fastest; `false` after the last one.
    ///
    /// # Errors
    /// [`Error::Argument`] if `out` does not hold a volume; [`Error::Data`] if the file is cut short or damaged; after the
    /// last volume of a packed file its checksum counts too.
    pub fn next(&mut self, out: &mut [f32]) -> Result<bool> {
        let fault = |path: &Path, fault: String| Error::data(format!("{}: {fault}", path.display()));
        if self.done == self.header.volumes {
            // To the end, where the checksum is.
            let rest = std::io::copy(&mut self.source, &mut std::io::sink());
            return rest.map(|_| false).map_err(|e| fault(&self.path, unreadable(&e, "the end of the file")));
        }
        let voxels = self.header.voxels();
        if out.len() != voxels {
            return Err(Error::argument(format!("volume: expected room for {voxels} voxels, found {}", out.len())));
        }
        self.raw.resize(voxels * self.header.dtype.size(), 0);
        let what = format!("volume {} of {}", self.done + 1, self.header.volumes);
        self.source.read_exact(&mut self.raw).map_err(|e| fault(&self.path, unreadable(&e, &what)))?;
        decode(&self.raw, &self.header, out);
        self.done += 1;
        Ok(true)
    }
}

/// The system's or the unpacker's words, as a fault of the file.
fn unreadable(error: &std::io::Error, what: &str) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => format!("the file ends within {what}: it is cut short"),
        _ => format!("cannot unpack {what}: {error}: the file is damaged"),
    }
}

fn decode(raw: &[u8], header: &NiftiHeader, out: &mut [f32]) {
    let (slope, intercept) = (header.slope, header.intercept);
    let mut fill = |number: &dyn Fn(&[u8]) -> f64| {
        for (x, bytes) in out.iter_mut().zip(raw.chunks_exact(header.dtype.size())) {
            *x = number(bytes).mul_add(slope, intercept) as f32;
        }
    };
    // In little-endian order, whatever the file's.
    fn ordered<const N: usize>(bytes: &[u8], is_big_endian: bool) -> [u8; N] {
        let mut b = [0; N];
        b.iter_mut().zip(bytes).for_each(|(b, &x)| *b = x);
        if is_big_endian {
            b.reverse();
        }
        b
    }
    let big = header.is_big_endian;
    match header.dtype {
        NiftiDtype::U8 => fill(&|b| f64::from(u8::from_le_bytes(ordered(b, big)))),
        NiftiDtype::I8 => fill(&|b| f64::from(i8::from_le_bytes(ordered(b, big)))),
        NiftiDtype::U16 => fill(&|b| f64::from(u16::from_le_bytes(ordered(b, big)))),
        NiftiDtype::I16 => fill(&|b| f64::from(i16::from_le_bytes(ordered(b, big)))),
        NiftiDtype::U32 => fill(&|b| f64::from(u32::from_le_bytes(ordered(b, big)))),
        NiftiDtype::I32 => fill(&|b| f64::from(i32::from_le_bytes(ordered(b, big)))),
        NiftiDtype::F32 => fill(&|b| f64::from(f32::from_le_bytes(ordered(b, big)))),
        NiftiDtype::F64 => fill(&|b| f64::from_le_bytes(ordered(b, big))),
    }
}

/// Writes f32 volumes, whole or not at all, packed if the name ends in `.gz`: `fill` makes volume after volume, x fastest.
///
/// # Errors
/// [`Error::Argument`] if an axis is longer than NIfTI-1 can say; [`Error::Data`] if the file exists and must not be
/// replaced; [`Error::Io`] if the system refuses; the error of `fill`.
pub fn write(
    path: &Path,
    existing: Existing,
    axes: [usize; 3],
    volumes: usize,
    geometry: &Geometry,
    fill: impl FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let header = NiftiHeader::bytes(axes, volumes, geometry)
        .map_err(|fault| Error::argument(format!("{}: {fault}", path.display())))?;
    let is_packed = path.extension().is_some_and(|e| e == "gz");
    write_atomic(path, existing, |file| {
        if is_packed {
            let mut packer = GzEncoder::new(&mut *file, Compression::fast());
            write_into(&mut packer, path, &header, axes, volumes, fill)?;
            packer.finish().map(drop).map_err(Error::io("write", path))
        } else {
            write_into::<BufWriter<File>>(file, path, &header, axes, volumes, fill)
        }
    })
}

fn write_into<W: Write>(
    out: &mut W,
    path: &Path,
    header: &[u8; FIRST_OFFSET],
    axes: [usize; 3],
    volumes: usize,
    mut fill: impl FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    out.write_all(header).map_err(Error::io("write", path))?;
    let mut volume = vec![0.0_f32; axes.iter().product()];
    for t in 0..volumes {
        fill(t, &mut volume)?;
        let bytes: Vec<u8> = volume.iter().flat_map(|x| x.to_le_bytes()).collect();
        out.write_all(&bytes).map_err(Error::io("write", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        let mut geometry = Geometry { codes: [1, 4], ..Geometry::default() };
        geometry.place[6] = -3.0;
        geometry.steps[4] = 1.5;
        geometry
    }

    fn put(path: &Path) {
        write(path, Existing::Replace, [2, 3, 4], 5, &geometry(), |t, volume| {
            volume.iter_mut().enumerate().for_each(|(i, x)| *x = (t * 24 + i) as f32 / 2.0);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn what_is_written_is_read_back_plain_and_packed_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.nii", "a.nii.gz"] {
            let path = folder.path().join(name);
            put(&path);
            let mut reader = NiftiReader::open(&path).unwrap();
            assert_eq!((reader.header().axes, reader.header().volumes), ([2, 3, 4], 5));
            assert_eq!(reader.header().geometry, geometry());
            let mut volume = vec![0.0; 24];
            for t in 0..5 {
                assert!(reader.next(&mut volume).unwrap());
                assert_eq!((volume[0], volume[23]), (t as f32 * 12.0, (t * 24 + 23) as f32 / 2.0));
            }
            assert!(!reader.next(&mut volume).unwrap());
        }
    }

    #[test]
    fn numbers_of_every_type_and_order_are_scaled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.nii");
        let header = NiftiHeader::bytes([2, 1, 1], 1, &geometry()).unwrap();
        let float = |x: f32| x.to_le_bytes();
        for (code, little) in [
            (2_i16, vec![3_u8, 200]),
            (256, vec![3, 200]),
            (4, vec![3, 0, 200, 0]),
            (512, vec![3, 0, 200, 0]),
            (8, vec![3, 0, 0, 0, 200, 0, 0, 0]),
            (768, vec![3, 0, 0, 0, 200, 0, 0, 0]),
            (16, [float(3.0), float(200.0)].concat()),
            (64, [3.0_f64.to_le_bytes(), 200.0_f64.to_le_bytes()].concat()),
        ] {
            let mut bytes = header.to_vec();
            bytes[70..72].copy_from_slice(&code.to_le_bytes());
            bytes[112..116].copy_from_slice(&float(2.0));
            bytes[116..120].copy_from_slice(&float(-1.0));
            bytes.extend(&little);
            std::fs::write(&path, &bytes).unwrap();
            let mut volume = [0.0; 2];
            assert!(NiftiReader::open(&path).unwrap().next(&mut volume).unwrap());
            let last = if code == 256 { 2.0 * (200.0 - 256.0) - 1.0 } else { 399.0 };
            assert_eq!(volume, [5.0, last], "type {code}");
        }
        // The same file as a big-endian machine would have written it.
        let mut bytes = header.to_vec();
        bytes[112..116].copy_from_slice(&float(0.0));
        for (at, size) in [(0, 4), (70, 2), (72, 2), (108, 4), (112, 4), (116, 4)] {
            bytes[at..at + size].reverse();
        }
        (40..56).step_by(2).for_each(|at| bytes[at..at + 2].reverse());
        bytes.extend([3.0_f32.to_be_bytes(), 200.0_f32.to_be_bytes()].concat());
        std::fs::write(&path, &bytes).unwrap();
        let mut volume = [0.0; 2];
        assert!(NiftiReader::open(&path).unwrap().next(&mut volume).unwrap());
        assert_eq!(volume, [3.0, 200.0]);
    }

    #[test]
    fn cut_and_damaged_files_say_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.nii.gz");
        put(&path);
        let whole = std::fs::read(&path).unwrap();
        let read = |bytes: &[u8]| -> String {
            std::fs::write(&path, bytes).unwrap();
            let mut volume = vec![0.0; 24];
            let mut reader = match NiftiReader::open(&path) {
                Ok(reader) => reader,
                Err(e) => return e.to_string(),
            };
            loop {
                match reader.next(&mut volume) {
                    Ok(true) => {}
                    Ok(false) => return String::new(),
                    Err(e) => return e.to_string(),
                }
            }
        };
        assert_eq!(read(&whole), "");
        for cut in 0..whole.len() {
            let error = read(&whole[..cut]);
            assert!(error.contains("cut short") || error.contains("damaged"), "{cut}: {error}");
        }
        let mut flipped = whole.clone();
        let checksum = flipped.len() - 8;
        flipped[checksum] ^= 1;
        assert!(read(&flipped).contains("the end of the file"), "{}", read(&flipped));
    }
}
