//! HDF5: floating-point arrays, read lazily by hyperslab, and written.
//!
//! ```no_run
//! # fn main() -> perfrun::error::Result<()> {
//! let fields = perfrun::io::hdf5::H5File::open("2010.h5")?.dataset("fields")?;
//! let [_, channels, height, width] = fields.shape() else { return Ok(()) };
//! let mut step = vec![0.0_f32; channels * height * width];
//! fields.read(&[5..6, 0..*channels, 0..*height, 0..*width], &mut step)?;
//! # Ok(())
//! # }
//! ```
//!
//! Files are read in Rust by the crate `hdf5-reader`: any superblock, contiguous, compact and chunked layouts, gzip,
//! shuffle, fletcher32, szip, nbit, scale-offset and lz4, both byte orders, `f2`, `f4` and `f8`. Contiguous data is read
//! from the mapped file without going through the crate. Other filters (lzf, blosc, zstd, ...) and virtual datasets need
//! the C library: built with the cargo feature `hdf5`, such datasets are read through it; without, the error says so.
//!
//! A file is untrusted: links to other files and data in other files are not followed, and a shape that the file cannot
//! hold even compressed is refused.

#[cfg(feature = "hdf5")]
mod library;
mod rust;
mod write;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use write::{H5Storage, write_f32};

use crate::error::{Error, Result};

/// How many bytes one byte of a file can stand for: deflate's bound is 1032.
const MAX_EXPANSION: u64 = 1100;

/// Which code reads a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// Rust where it can, else the C library if it was built in.
    #[default]
    Auto,
    /// The crate `hdf5-reader`.
    Rust,
    /// libhdf5; needs the cargo feature `hdf5`.
    Library,
}

/// The number type of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum H5Float {
    /// IEEE half precision, widened exactly when it is read.
    F16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision, rounded to f32 when it is read.
    F64,
}

impl H5Float {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            H5Float::F16 => 2,
            H5Float::F32 => 4,
            H5Float::F64 => 8,
        }
    }
}

impl fmt::Display for H5Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            H5Float::F16 => "f16",
            H5Float::F32 => "f32",
            H5Float::F64 => "f64",
        })
    }
}

/// How a dataset lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum H5Layout {
    /// One run of bytes.
    Contiguous,
    /// Inside the object header.
    Compact,
    /// Blocks of this shape, each through these filters.
    Chunked {
        /// The lengths of a block's axes.
        chunk: Vec<usize>,
        /// The filters' names, in the order in which they were applied when writing.
        filters: Vec<String>,
    },
    /// Put together from other datasets.
    Virtual,
}

impl fmt::Display for H5Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            H5Layout::Contiguous => f.write_str("contiguous"),
            H5Layout::Compact => f.write_str("compact"),
            H5Layout::Chunked { chunk, filters } if filters.is_empty() => write!(f, "chunks of {chunk:?}"),
            H5Layout::Chunked { chunk, filters } => write!(f, "chunks of {chunk:?} with {}", filters.join(", ")),
            H5Layout::Virtual => f.write_str("virtual"),
        }
    }
}

/// A file that is open for reading.
#[derive(Debug)]
pub struct H5File {
    path: PathBuf,
    engine: Engine,
    // `None` when the C library alone is asked.
    rust: Option<rust::File>,
}

impl H5File {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened; [`Error::Data`] if it is not an HDF5 file.
    pub fn open(path: impl AsRef<Path>) -> Result<H5File> {
        H5File::open_with(path, Engine::Auto)
    }

    /// Opens a file to be read by a chosen engine.
    ///
    /// # Errors
    /// As [`H5File::open`]; [`Error::Argument`] for [`Engine::Library`] without the cargo feature `hdf5`.
    pub fn open_with(path: impl AsRef<Path>, engine: Engine) -> Result<H5File> {
        let path = path.as_ref();
        let rust = match engine {
            Engine::Auto | Engine::Rust => Some(rust::File::open(path)?),
            Engine::Library => None,
        };
        if engine == Engine::Library && cfg!(not(feature = "hdf5")) {
            return Err(Error::argument(format!(
                "{}: this program was built without libhdf5: rebuild it with the cargo feature `hdf5`",
                path.display()
            )));
        }
        Ok(H5File { path: path.to_path_buf(), engine, rust })
    }

    /// The dataset at `name`, as `fields` or `group/fields`.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none, if it holds no floating-point numbers, or if it is stored in a way that cannot be
    /// read; the message says what is there.
    pub fn dataset(&self, name: &str) -> Result<H5Dataset> {
        let label = format!("{}: {name}", self.path.display());
        let found = match &self.rust {
            Some(file) => match file.dataset(name) {
                Ok(d) => Ok((Source::Rust(Box::new(d.0)), d.1)),
                Err(rust::Fault::Unsupported(why)) => self.through_library(name, &why),
                Err(rust::Fault::Broken(why)) => Err(why),
            },
            None => self.through_library(name, ""),
        };
        let (source, facts) = found.map_err(|fault| Error::data(format!("{label}: {fault}")))?;
        let dataset = H5Dataset { label, facts, source };
        dataset.check_size(self.rust.as_ref().map(rust::File::len))?;
        Ok(dataset)
    }

    #[cfg(feature = "hdf5")]
    fn through_library(&self, name: &str, why: &str) -> std::result::Result<(Source, Facts), String> {
        if self.engine == Engine::Rust {
            return Err(why.to_owned());
        }
        library::dataset(&self.path, name).map(|(d, facts)| (Source::Library(d), facts))
    }

    #[cfg(not(feature = "hdf5"))]
    fn through_library(&self, _name: &str, why: &str) -> std::result::Result<(Source, Facts), String> {
        debug_assert!(self.engine != Engine::Library);
        Err(format!(
            "{why}; rebuild with the cargo feature `hdf5` to read it through libhdf5, or rewrite the file with gzip \
             (h5repack -f GZIP=4)"
        ))
    }
}

/// What is known of a dataset before any number is read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    shape: Vec<usize>,
    dtype: H5Float,
    layout: H5Layout,
}

#[derive(Debug)]
enum Source {
    // Large beside the other: a dataset is moved when it is opened.
    Rust(Box<rust::Data>),
    #[cfg(feature = "hdf5")]
    Library(library::Data),
}

/// A dataset of floating-point numbers; reading needs no lock, so threads can read at once.
#[derive(Debug)]
pub struct H5Dataset {
    label: String,
    facts: Facts,
    source: Source,
}

impl H5Dataset {
    /// The lengths of the axes, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.facts.shape
    }

    /// The number type in the file.
    pub fn dtype(&self) -> H5Float {
        self.facts.dtype
    }

    /// How the numbers lie in the file.
    pub fn layout(&self) -> &H5Layout {
        &self.facts.layout
    }

    /// Which code reads it: never [`Engine::Auto`].
    pub fn engine(&self) -> Engine {
        match self.source {
            Source::Rust(_) => Engine::Rust,
            #[cfg(feature = "hdf5")]
            Source::Library(_) => Engine::Library,
        }
    }

    /// Reads the hyperslab `ranges` (one half-open range an axis) into `out`, row-major.
    ///
    /// # Errors
    /// [`Error::Argument`] if a range ends before it starts or leaves the dataset, or `out` has another length;
    /// [`Error::Data`] if the file is broken there, or an f64 does not fit f32.
    pub fn read(&self, ranges: &[Range<usize>], out: &mut [f32]) -> Result<()> {
        let shape = self.shape();
        if ranges.len() != shape.len() {
            return Err(Error::argument(format!(
                "{}: expected a range for each of {} axes, found {}",
                self.label,
                shape.len(),
                ranges.len()
            )));
        }
        let mut count = 1_usize;
        for (axis, (range, &len)) in ranges.iter().zip(shape).enumerate() {
            if range.start > range.end || range.end > len {
                return Err(Error::argument(format!(
                    "{}: axis {axis}: expected a range within 0..{len}, found {}..{}",
                    self.label, range.start, range.end
                )));
            }
            // No overflow: the whole shape was checked when the dataset was opened.
            count = count.saturating_mul(range.end - range.start);
        }
        if out.len() != count {
            return Err(Error::argument(format!(
                "{}: expected room for {count} numbers, found {}",
                self.label,
                out.len()
            )));
        }
        if count == 0 {
            return Ok(());
        }
        let done = match &self.source {
            Source::Rust(data) => data.read(&self.facts, ranges, out),
            #[cfg(feature = "hdf5")]
            Source::Library(data) => data.read(&self.facts, ranges, out),
        };
        done.map_err(|fault| Error::data(format!("{}: {fault}", self.label)))
    }

    /// Reads everything; for small datasets.
    ///
    /// # Errors
    /// As [`H5Dataset::read`].
    pub fn read_all(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.shape().iter().product()];
        let ranges: Vec<_> = self.shape().iter().map(|&d| 0..d).collect();
        self.read(&ranges, &mut out)?;
        Ok(out)
    }

    /// Refuses a shape that no file of this length can hold, so that nobody allocates for it.
    fn check_size(&self, file_len: Option<u64>) -> Result<()> {
        let start = self.facts.dtype.bytes();
        let bytes = self.shape().iter().try_fold(start, |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize);
        let Some(bytes) = bytes else {
            return Err(Error::data(format!(
                "{}: shape {:?} has more bytes than the machine can address",
                self.label,
                self.shape()
            )));
        };
        match file_len {
            Some(len) if bytes as u64 > len.saturating_mul(MAX_EXPANSION) => Err(Error::data(format!(
                "{}: shape {:?} needs {bytes} bytes, but the file has {len}: even compressed they cannot be in it (were \
                 all chunks written?)",
                self.label,
                self.shape()
            ))),
            _ => Ok(()),
        }
    }
}
