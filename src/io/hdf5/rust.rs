//! Reading through the crate `hdf5-reader`, contiguous data straight from the mapped file.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::layout::DataLayout;
use hdf5_reader::{ByteOrder, Dataset, Datatype, H5Type, Hdf5File, OpenOptions, SliceInfo, SliceInfoElem};

use super::{Facts, H5Float, H5Layout, MAX_EXPANSION};
use crate::error::{Error, Result};
use crate::io::mmap::MappedFile;

/// Decoded chunks kept for each file: enough for neighbouring steps that share a chunk, little enough for fifty files.
const CHUNK_CACHE: usize = 16 << 20;

/// Filters that the crate decodes.
const KNOWN_FILTERS: [u16; 7] = [1, 2, 3, 4, 5, 6, 32004];

/// Why a dataset cannot be read.
pub(super) enum Fault {
    /// A sound file in a form that only the C library reads.
    Unsupported(String),
    /// The file or the request is at fault.
    Broken(String),
}

/// A mapped file and its parsed superblock.
pub(super) struct File {
    map: Arc<MappedFile>,
    file: Hdf5File,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.map.path()).finish_non_exhaustive()
    }
}

/// Shares the mapping with the crate.
struct SharedMap(Arc<MappedFile>);

impl AsRef<[u8]> for SharedMap {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl File {
    pub(super) fn open(path: &Path) -> Result<File> {
        let map = Arc::new(MappedFile::open(path)?);
        // A chunk that the file cannot hold even compressed is refused before memory is asked for.
        let largest = usize::try_from((map.bytes().len() as u64).saturating_mul(MAX_EXPANSION)).unwrap_or(usize::MAX);
        let options = OpenOptions::default().with_chunk_cache_bytes(CHUNK_CACHE).with_max_chunk_bytes(largest);
        let file = Hdf5File::from_owner(SharedMap(Arc::clone(&map)), options).map_err(|e| {
            let fault = match explain(e) {
                Fault::Unsupported(f) | Fault::Broken(f) => f,
            };
            Error::data(format!("{}: {fault}{}", path.display(), kind_of_file(map.bytes())))
        })?;
        Ok(File { map, file })
    }

    pub(super) fn len(&self) -> u64 {
        self.map.bytes().len() as u64
    }

    pub(super) fn dataset(&self, name: &str) -> std::result::Result<(Data, Facts), Fault> {
        let dataset = self.file.dataset(name).map_err(|e| self.name_what_is_there(name, e))?;
        let layout_fault = |e| explain(e);
        let header = self.file.get_or_parse_header(dataset.address()).map_err(layout_fault)?;
        if header.messages.iter().any(|m| matches!(m, HdfMessage::ExternalFiles(_))) {
            return Err(Fault::Broken("its numbers lie in another file, which is not followed".to_owned()));
        }
        let dtype = float_type(&dataset).map_err(Fault::Broken)?;
        let shape = dataset.shape().iter().map(|&d| usize::try_from(d));
        let shape: Vec<usize> = shape
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Fault::Broken(format!("shape {:?} is too large for this machine", dataset.shape())))?;
        // A null data space has no axes either, but unlike a scalar no number.
        if shape.is_empty() && dataset.num_elements().is_ok_and(|n| n == 0) {
            return Err(Fault::Broken("its data space is null: it holds no numbers".to_owned()));
        }
        let filters = filters(&header.messages)?;
        let layout = header.messages.iter().find_map(|m| match m {
            HdfMessage::DataLayout(l) => Some(&l.layout),
            _ => None,
        });
        let (layout, run) = match layout {
            Some(DataLayout::Contiguous { address, size }) => {
                (H5Layout::Contiguous, self.contiguous_run(*address, *size, &shape, dtype)?)
            }
            Some(DataLayout::Compact { .. }) => (H5Layout::Compact, None),
            _ => {
                let chunk = dataset.chunks().unwrap_or_default().iter().map(|&d| d as usize).collect();
                (H5Layout::Chunked { chunk, filters }, None)
            }
        };
        let data = Data { map: Arc::clone(&self.map), dataset, run };
        Ok((data, Facts { shape, dtype, layout }))
    }

    /// Where contiguous numbers lie in the file; `None` if none were ever written, so that all are the fill value.
    fn contiguous_run(
        &self,
        address: u64,
        size: u64,
        shape: &[usize],
        dtype: H5Float,
    ) -> std::result::Result<Option<Range<usize>>, Fault> {
        let undefined = address >= u64::MAX >> (64 - 8 * u64::from(self.file.superblock().offset_size.clamp(1, 8)));
        let needed = shape.iter().try_fold(dtype.bytes() as u64, |n, &d| n.checked_mul(d as u64));
        let Some(needed) = needed else { return Ok(None) };
        // Old layouts store no size: 0 there.
        if size != needed && size != 0 && !undefined {
            return Err(Fault::Broken(format!(
                "shape {shape:?} of {dtype} needs {needed} bytes, but the file says {size}"
            )));
        }
        if undefined || needed == 0 {
            return Ok(None);
        }
        let start = self.file.superblock().base_address.checked_add(address);
        let end = start.and_then(|s| s.checked_add(needed)).filter(|&e| e <= self.len());
        match (start, end) {
            // Both are at most the length of the mapping, so they fit.
            (Some(start), Some(end)) => Ok(Some(start as usize..end as usize)),
            _ => Err(Fault::Broken(format!(
                "its {needed} bytes start at byte {address}, which runs past the end of the file ({} bytes): it is cut short",
                self.len()
            ))),
        }
    }

    /// A dataset that is not found is answered with those that are.
    fn name_what_is_there(&self, name: &str, error: hdf5_reader::error::Error) -> Fault {
        let root = innermost(&error);
        if !matches!(root, hdf5_reader::error::Error::DatasetNotFound(_)) {
            return explain(error);
        }
        let names = self.file.root_group().and_then(|g| g.member_names());
        Fault::Broken(match names {
            Ok((groups, datasets)) if groups.is_empty() && datasets.is_empty() => {
                "no such dataset, nor any other; links to other files or to nothing are not followed".to_owned()
            }
            Ok((groups, _)) if groups.iter().any(|g| g == name.trim_matches('/')) => {
                "expected a dataset, found a group".to_owned()
            }
            Ok((groups, datasets)) => {
                let groups = groups.iter().map(|g| format!("{g}/"));
                let all: Vec<String> = datasets.iter().cloned().chain(groups).take(16).collect();
                format!("no such dataset; the file has {}", all.join(", "))
            }
            Err(_) => "no such dataset".to_owned(),
        })
    }
}

/// What a file that is not HDF5 may be instead.
fn kind_of_file(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => " (the file is empty)",
        [b'C', b'D', b'F', 1 | 2 | 5, ..] => " (this is NetCDF-3: convert it with nccopy -k nc4)",
        [b'G', b'R', b'I', b'B', ..] => " (this is GRIB: convert it first)",
        [b'P', b'K', 3, 4, ..] => " (this is a zip archive)",
        [0x1F, 0x8B, ..] => " (this is gzip: unpack it first)",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => " (this is npy)",
        _ => "",
    }
}

/// An open dataset.
pub(super) struct Data {
    map: Arc<MappedFile>,
    dataset: Dataset,
    // Contiguous numbers in the mapping, checked to lie inside it.
    run: Option<Range<usize>>,
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data").field("path", &self.map.path()).field("run", &self.run).finish_non_exhaustive()
    }
}

impl Data {
    /// `ranges` lie inside the shape and `out` is as long as they say.
    pub(super) fn read(
        &self,
        facts: &Facts,
        ranges: &[Range<usize>],
        out: &mut [f32],
    ) -> std::result::Result<(), String> {
        if let Some(bytes) = self.run.clone().and_then(|run| self.map.bytes().get(run)) {
            let big = is_big_endian(self.dataset.dtype());
            return copy_box(bytes, &facts.shape, ranges, facts.dtype, big, out);
        }
        let selections =
            ranges.iter().map(|r| SliceInfoElem::Slice { start: r.start as u64, end: r.end as u64, step: 1 });
        let slice = SliceInfo { selections: selections.collect() };
        match facts.dtype {
            H5Float::F16 => self.slice::<Half>(&slice, out, |h| h.0.to_f32()),
            H5Float::F32 => self.slice::<f32>(&slice, out, |x| x),
            H5Float::F64 => self
                .slice::<f64>(&slice, out, |x| x as f32)
                .and_then(|()| refuse_overflow(out, || self.slice_has_infinity(&slice))),
        }
    }

    fn slice<T: H5Type + Copy>(
        &self,
        slice: &SliceInfo,
        out: &mut [f32],
        to_f32: impl Fn(T) -> f32,
    ) -> std::result::Result<(), String> {
        let array = self.dataset.read_slice::<T>(slice).map_err(|e| match explain(e) {
            Fault::Unsupported(f) | Fault::Broken(f) => f,
        })?;
        if array.len() != out.len() {
            return Err(format!("expected {} numbers, the file gave {}", out.len(), array.len()));
        }
        for (o, &x) in out.iter_mut().zip(array.iter()) {
            *o = to_f32(x);
        }
        Ok(())
    }

    fn slice_has_infinity(&self, slice: &SliceInfo) -> bool {
        self.dataset.read_slice::<f64>(slice).is_ok_and(|a| a.iter().any(|x| x.is_infinite()))
    }
}

/// An f64 that becomes infinite in f32 is an error; one that is infinite in the file is for the caller to judge.
fn refuse_overflow(out: &[f32], infinite_in_file: impl Fn() -> bool) -> std::result::Result<(), String> {
    if out.iter().any(|x| x.is_infinite()) && !infinite_in_file() {
        return Err("an f64 value is too large for f32".to_owned());
    }
    Ok(())
}

/// Copies a box of a row-major array that lies in `bytes`.
fn copy_box(
    bytes: &[u8],
    shape: &[usize],
    ranges: &[Range<usize>],
    dtype: H5Float,
    big: bool,
    out: &mut [f32],
) -> std::result::Result<(), String> {
    let missing = || "its numbers are not all in the file".to_owned();
    // Trailing axes that are read whole make one run of numbers together with the first axis that is not.
    let mut run = 1_usize;
    let mut outer = shape.len();
    for (&len, range) in shape.iter().zip(ranges).rev() {
        outer -= 1;
        run *= range.len();
        if range.len() != len {
            break;
        }
    }
    let mut strides = vec![1_usize; shape.len()];
    let mut stride = 1_usize;
    for (s, &len) in strides.iter_mut().zip(shape).rev() {
        *s = stride;
        stride = stride.saturating_mul(len);
    }
    let offset = |index: &[usize]| -> usize { index.iter().zip(&strides).map(|(&i, &s)| i * s).sum() };
    let mut index: Vec<usize> = ranges.iter().map(|r| r.start).collect();
    for piece in out.chunks_exact_mut(run) {
        let from = offset(&index) * dtype.bytes();
        let source = bytes.get(from..from + run * dtype.bytes()).ok_or_else(missing)?;
        decode(source, dtype, big, piece)?;
        for (i, r) in index.iter_mut().zip(ranges).take(outer).rev() {
            *i += 1;
            if *i < r.end {
                break;
            }
            *i = r.start;
        }
    }
    Ok(())
}

fn decode(source: &[u8], dtype: H5Float, big: bool, out: &mut [f32]) -> std::result::Result<(), String> {
    match dtype {
        H5Float::F16 => {
            for (o, b) in out.iter_mut().zip(source.as_chunks::<2>().0) {
                *o = if big { f16::from_be_bytes(*b) } else { f16::from_le_bytes(*b) }.to_f32();
            }
        }
        H5Float::F32 => {
            for (o, b) in out.iter_mut().zip(source.as_chunks::<4>().0) {
                *o = if big { f32::from_be_bytes(*b) } else { f32::from_le_bytes(*b) };
            }
        }
        H5Float::F64 => {
            let mut infinite = false;
            for (o, b) in out.iter_mut().zip(source.as_chunks::<8>().0) {
                let x = if big { f64::from_be_bytes(*b) } else { f64::from_le_bytes(*b) };
                *o = x as f32;
                infinite |= x.is_infinite();
            }
            refuse_overflow(out, || infinite)?;
        }
    }
    Ok(())
}

/// f16 for the crate, which knows none.
#[derive(Clone, Copy)]
struct Half(f16);

impl H5Type for Half {
    fn hdf5_type() -> Datatype {
        Datatype::FloatingPoint { size: 2, byte_order: ByteOrder::LittleEndian }
    }

    fn from_bytes(bytes: &[u8], dtype: &Datatype) -> hdf5_reader::error::Result<Half> {
        let Ok(pair) = <[u8; 2]>::try_from(bytes) else {
            return Err(hdf5_reader::error::Error::InvalidData("a half is two bytes".to_owned()));
        };
        Ok(Half(if is_big_endian(dtype) { f16::from_be_bytes(pair) } else { f16::from_le_bytes(pair) }))
    }

    fn element_size(_dtype: &Datatype) -> usize {
        2
    }
}

fn is_big_endian(dtype: &Datatype) -> bool {
    matches!(dtype, Datatype::FloatingPoint { byte_order: ByteOrder::BigEndian, .. })
}

/// The float type, checked bit by bit: the crate looks only at the size, and bfloat16 is as long as f16.
fn float_type(dataset: &Dataset) -> std::result::Result<H5Float, String> {
    let Datatype::FloatingPoint { size, .. } = dataset.dtype() else {
        return Err(format!("expected floating-point numbers, found {}", describe(dataset.dtype())));
    };
    // Sign, exponent start, exponent bits, mantissa bits, bias (HDF5 file format, IV.A.2.d, class 1).
    let (float, sign, exp_start, exp_bits, mantissa, bias) = match size {
        2 => (H5Float::F16, 15, 10, 5, 10, 15_u32),
        4 => (H5Float::F32, 31, 23, 8, 23, 127),
        8 => (H5Float::F64, 63, 52, 11, 52, 1023),
        n => return Err(format!("expected f32 or f64, found a floating-point type of {n} bytes")),
    };
    let raw = dataset.raw_datatype().map_err(|e| format!("malformed number type: {e}"))?;
    let expected_tail = [0, 0, size.saturating_mul(8), 0, exp_start, exp_bits, 0, mantissa];
    let ieee = raw.get(1).is_some_and(|flags| flags & 0x40 == 0)
        && raw.get(2) == Some(&sign)
        && raw.get(8..16) == Some(&expected_tail)
        && raw.get(16..20) == Some(&bias.to_le_bytes());
    if !ieee {
        return Err(format!("expected IEEE f32 or f64, found another floating-point type of {size} bytes"));
    }
    Ok(float)
}

fn describe(dtype: &Datatype) -> String {
    match dtype {
        Datatype::FixedPoint { size, signed, .. } => {
            format!("{}{} integers", if *signed { "i" } else { "u" }, u32::from(*size) * 8)
        }
        Datatype::String { .. } => "strings".to_owned(),
        Datatype::Compound { .. } => "compound records".to_owned(),
        Datatype::Array { .. } => "an array type".to_owned(),
        Datatype::Enum { .. } => "an enumeration".to_owned(),
        Datatype::VarLen { .. } => "sequences of varying length".to_owned(),
        Datatype::Opaque { .. } => "opaque bytes".to_owned(),
        Datatype::Reference { .. } => "references".to_owned(),
        Datatype::Bitfield { .. } => "bit fields".to_owned(),
        Datatype::FloatingPoint { size, .. } => format!("floating-point numbers of {size} bytes"),
    }
}

fn filters(messages: &[HdfMessage]) -> std::result::Result<Vec<String>, Fault> {
    let mut names = Vec::new();
    for message in messages {
        let HdfMessage::FilterPipeline(pipeline) = message else { continue };
        for filter in &pipeline.filters {
            if !KNOWN_FILTERS.contains(&filter.id) {
                return Err(Fault::Unsupported(format!("unsupported filter {}", filter_name(filter.id))));
            }
            names.push(filter_name(filter.id));
        }
    }
    Ok(names)
}

/// The names of registered filters (the HDF Group's list) that weather files are seen with.
pub(super) fn filter_name(id: u16) -> String {
    let name = match id {
        1 => "gzip",
        2 => "shuffle",
        3 => "fletcher32",
        4 => "szip",
        5 => "nbit",
        6 => "scale-offset",
        307 => "bzip2 (307)",
        32000 => "lzf (32000)",
        32001 => "blosc (32001)",
        32004 => "lz4",
        32008 => "bitshuffle (32008)",
        32013 => "zfp (32013)",
        32015 => "zstd (32015)",
        32017 => "sz (32017)",
        32026 => "blosc2 (32026)",
        _ => return id.to_string(),
    };
    name.to_owned()
}

fn innermost(error: &hdf5_reader::error::Error) -> &hdf5_reader::error::Error {
    match error {
        hdf5_reader::error::Error::Context { source, .. } => innermost(source),
        other => other,
    }
}

/// The crate's error in this crate's words, sorted by whether the C library could help.
fn explain(error: hdf5_reader::error::Error) -> Fault {
    use hdf5_reader::error::Error as E;
    match innermost(&error) {
        E::InvalidMagic => Fault::Broken("expected an HDF5 file, found no HDF5 signature".to_owned()),
        E::UnsupportedLayoutClass(3) => Fault::Unsupported("a virtual dataset is not supported".to_owned()),
        E::UnsupportedFilter(filter) => Fault::Unsupported(format!("unsupported {filter}")),
        E::UnsupportedEncoding(what) => Fault::Unsupported(format!("unsupported encoding: {what}")),
        E::UnexpectedEof { offset, needed, available } => Fault::Broken(format!(
            "expected {needed} bytes at byte {offset}, found {available}: the file is cut short or damaged"
        )),
        E::OffsetOutOfBounds(at) => {
            Fault::Broken(format!("refers to byte {at}, past the end of the file: it is cut short or damaged"))
        }
        other => Fault::Broken(format!("malformed HDF5: {other}")),
    }
}
