//! The safetensors format: a JSON header with names, types, shapes and ranges, then the bytes.
//!
//! The header is examined here before the `safetensors` crate parses it, for what the crate lets pass or reports without
//! a name: duplicate names (it keeps the last), ranges whose sum wraps around, faults without the tensor's name. Several
//! faults are listed at once.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::stored::{StoredDtype, TensorView, byte_len, printable};
use crate::error::{Error, Faults, Result};

/// Length of the number that opens the file: the header's length.
const PREFIX: usize = 8;
/// The longest header that readers of the format accept.
const MAX_HEADER: usize = 100_000_000;
/// How many faults of one file are spelled out.
const MAX_FAULTS: usize = 20;
/// The header's key that is not a tensor.
const METADATA: &str = "__metadata__";

/// A safetensors file, read and checked.
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    by_name: BTreeMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

/// Where a tensor lies; `begin..end` counts from the start of the file.
struct Entry {
    name: String,
    dtype: StoredDtype,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

impl SafetensorsFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Data`] with every fault of its header.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        SafetensorsFile::from_bytes(path, super::bytes::read_file(path)?)
    }

    /// Takes over the bytes of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] with every fault of its header.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<SafetensorsFile> {
        let at = path.display();
        let data_start = examine(&at, &bytes)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| Error::data(format!("{at}: {e}")))?;
        let entries = entries_of(&at, &header, data_start)?;
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(SafetensorsFile { path: path.to_path_buf(), bytes, entries, by_name, metadata })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many tensors it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The tensors in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.entries.iter().filter_map(|e| self.view(e))
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.entries.get(*self.by_name.get(name)?).and_then(|e| self.view(e))
    }

    /// The strings beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Where the bytes of tensor `name` lie in the file.
    pub fn range(&self, name: &str) -> Option<std::ops::Range<usize>> {
        self.entries.get(*self.by_name.get(name)?).map(|e| e.begin..e.end)
    }

    fn view<'a>(&'a self, e: &'a Entry) -> Option<TensorView<'a>> {
        let bytes = self.bytes.get(e.begin..e.end)?;
        TensorView::new(&e.name, e.dtype, &e.shape, bytes).ok()
    }
}

impl fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafetensorsFile({}, {} tensors)", self.path.display(), self.entries.len())
    }
}

/// One header entry, as the file spells it.
#[derive(Deserialize)]
struct Declared {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A header with its entries in the order of the file, duplicates kept.
struct Header {
    metadata: usize,
    tensors: Vec<(String, Declared)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { metadata: 0, tensors: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    let named = |e: A::Error| A::Error::custom(format!("{}: {e}", printable(&name)));
                    if name == METADATA {
                        map.next_value::<Option<BTreeMap<String, String>>>().map_err(named)?;
                        header.metadata += 1;
                    } else {
                        let declared = map.next_value().map_err(named)?;
                        header.tensors.push((name, declared));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Checks everything that the header declares against the file; gives back where the bytes of tensors start.
fn examine(at: &dyn fmt::Display, bytes: &[u8]) -> Result<usize> {
    let fault = |text: String| Err(Error::data(format!("{at}: {text}")));
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return fault(format!("expected at least {PREFIX} bytes of safetensors, found {}", bytes.len()));
    };
    let declared = u64::from_le_bytes(*prefix);
    let header = usize::try_from(declared).ok().filter(|n| *n <= MAX_HEADER);
    let Some(header_len) = header else {
        return fault(format!(
            "expected a safetensors header of at most {MAX_HEADER} bytes, found {declared}: not a safetensors file?"
        ));
    };
    let data_start = PREFIX + header_len;
    let Some(text) = bytes.get(PREFIX..data_start) else {
        return fault(format!("header of {header_len} bytes ends beyond the file's {} bytes: truncated", bytes.len()));
    };
    if text.first() != Some(&b'{') {
        return fault("expected the header to start with `{`: not a safetensors file?".into());
    }
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(e) => return fault(format!("header is not UTF-8 at byte {}", PREFIX + e.valid_up_to())),
    };
    let header: Header = match serde_json::from_str(text) {
        Ok(header) => header,
        Err(e) => return fault(format!("header: {e}")),
    };
    check_entries(at, &header, (bytes.len() - data_start) as u64)?;
    Ok(data_start)
}

/// Faults of the entries of a header before `data` bytes.
fn check_entries(at: &dyn fmt::Display, header: &Header, data: u64) -> Result<()> {
    let mut lines = Vec::new();
    if header.metadata > 1 {
        lines.push(format!("{at}: {METADATA} appears {} times", header.metadata));
    }
    let mut names = HashSet::with_capacity(header.tensors.len());
    for (name, declared) in &header.tensors {
        if !names.insert(name.as_str()) {
            lines.push(format!("{at}: {}: name appears twice", printable(name)));
        }
        if let Err(text) = declared.check(data) {
            lines.push(format!("{at}: {}: {text}", printable(name)));
        }
    }
    if lines.is_empty() {
        lines.extend(gap(header, data).map(|text| format!("{at}: {text}")));
    }
    let hidden = lines.len().saturating_sub(MAX_FAULTS);
    lines.truncate(MAX_FAULTS);
    if hidden > 0 {
        lines.push(format!("{at}: and {hidden} faults more"));
    }
    let mut faults = Faults::new();
    lines.into_iter().for_each(|l| faults.push(l));
    faults.into_result(Error::Data)
}

impl Declared {
    fn check(&self, data: u64) -> Result<(), String> {
        let Some(dtype) = StoredDtype::from_name(&self.dtype) else {
            return Err(format!("type {:?} is not supported", printable(&self.dtype)));
        };
        let shape: Option<Vec<usize>> = self.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
        let Some(size) = shape.and_then(|shape| byte_len(dtype, &shape)) else {
            return Err(format!("shape {:?} of {dtype} has more bytes than an integer holds", self.shape));
        };
        let (begin, end) = self.data_offsets;
        if begin > end {
            return Err(format!("range {begin}..{end} ends before it begins"));
        }
        if end > data {
            return Err(format!("range {begin}..{end} ends beyond the {data} bytes of data: truncated?"));
        }
        if end - begin != size as u64 {
            return Err(format!("expected {size} bytes for {dtype} {:?}, found {}", self.shape, end - begin));
        }
        Ok(())
    }
}

/// The first place where the ranges do not follow each other from 0 to the end of the data.
fn gap(header: &Header, data: u64) -> Option<String> {
    let mut ranges: Vec<_> = header.tensors.iter().map(|(name, d)| (d.data_offsets, name)).collect();
    ranges.sort_unstable();
    let mut next = 0;
    for ((begin, end), name) in ranges {
        if begin != next {
            let what = if begin < next { "overlaps another tensor" } else { "leaves a hole before it" };
            return Some(format!("{}: range {begin}..{end} {what}: expected it to begin at {next}", printable(name)));
        }
        next = end;
    }
    (next != data).then(|| format!("expected {next} bytes of data, found {data}: trailing bytes belong to no tensor"))
}

fn entries_of(at: &dyn fmt::Display, header: &Metadata, data_start: usize) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for name in header.offset_keys() {
        let entry = header.info(&name).and_then(|info| {
            let dtype = StoredDtype::from_name(&info.dtype.to_string())?;
            let (begin, end) = info.data_offsets;
            Some(Entry {
                dtype,
                shape: info.shape.clone(),
                begin: data_start.checked_add(begin)?,
                end: data_start.checked_add(end)?,
                name: name.clone(),
            })
        });
        entries.push(entry.ok_or_else(|| Error::data(format!("{at}: {}: unreadable entry", printable(&name))))?);
    }
    Ok(entries)
}

/// Where everything goes in a file that is to be written.
pub struct Layout {
    /// The file's first bytes: length and header.
    pub header: Vec<u8>,
    /// Indices of the tensors in the order of their bytes: larger types first, so that all are aligned; else as given.
    pub order: Vec<usize>,
    /// Range of each tensor of `order`, from the start of the file.
    pub ranges: Vec<(u64, u64)>,
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layout({} header bytes, {} tensors)", self.header.len(), self.order.len())
    }
}

#[derive(Serialize)]
struct Written<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    data_offsets: (u64, u64),
}

impl Layout {
    /// Plans a file: the same tensors and metadata give the same bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] with every name that is empty, reserved or there twice; [`Error::TooLarge`] if the header
    /// is longer than readers accept.
    pub fn plan(tensors: &[TensorView<'_>], metadata: &BTreeMap<String, String>) -> Result<Layout> {
        let mut seen = HashSet::new();
        let bad: Vec<_> = tensors
            .iter()
            .map(|t| t.name())
            .filter(|name| name.is_empty() || *name == METADATA || !seen.insert(*name))
            .map(|name| format!("tensor {:?}: its name is empty, reserved or there twice", printable(name)))
            .collect();
        if !bad.is_empty() {
            return Err(Error::argument(bad.join("\n")));
        }
        let mut sorted: Vec<_> = tensors.iter().enumerate().collect();
        sorted.sort_by_key(|(_, t)| std::cmp::Reverse(t.dtype().size()));
        let mut header = serde_json::Map::new();
        let json = |v: serde_json::Result<serde_json::Value>| v.map_err(|e| Error::argument(format!("header: {e}")));
        header.insert(METADATA.into(), json(serde_json::to_value(metadata))?);
        let mut next = 0u64;
        let mut ranges = Vec::with_capacity(tensors.len());
        for (_, t) in &sorted {
            let end = next + t.bytes().len() as u64;
            let written = Written { dtype: crate_dtype(t.dtype()), shape: t.shape(), data_offsets: (next, end) };
            header.insert(t.name().into(), json(serde_json::to_value(written))?);
            ranges.push((next, end));
            next = end;
        }
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(PREFIX), b' ');
        if text.len() > MAX_HEADER {
            return Err(Error::too_large("safetensors", "header", text.len()));
        }
        let start = (PREFIX + text.len()) as u64;
        ranges.iter_mut().for_each(|(begin, end)| (*begin, *end) = (*begin + start, *end + start));
        let header = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        Ok(Layout { header, order: sorted.into_iter().map(|(i, _)| i).collect(), ranges })
    }

    /// Bytes of the whole file.
    pub fn total(&self) -> u64 {
        self.ranges.last().map_or(self.header.len() as u64, |r| r.1)
    }
}

fn crate_dtype(dtype: StoredDtype) -> Dtype {
    match dtype {
        StoredDtype::F64 => Dtype::F64,
        StoredDtype::F32 => Dtype::F32,
        StoredDtype::F16 => Dtype::F16,
        StoredDtype::Bf16 => Dtype::BF16,
        StoredDtype::I64 => Dtype::I64,
        StoredDtype::I32 => Dtype::I32,
        StoredDtype::I16 => Dtype::I16,
        StoredDtype::I8 => Dtype::I8,
        StoredDtype::U64 => Dtype::U64,
        StoredDtype::U32 => Dtype::U32,
        StoredDtype::U16 => Dtype::U16,
        StoredDtype::U8 => Dtype::U8,
        StoredDtype::Bool => Dtype::BOOL,
    }
}

/// The metadata that Python readers expect: the tensors are PyTorch's kind.
pub fn pt_metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_string(), "pt".to_string())])
}

/// Writes a file to `out`, a tensor after the other; nothing is gathered in memory but the header.
///
/// # Errors
/// As [`Layout::plan`]; [`Error::Io`] (on `path`, which is for messages) if `out` refuses bytes.
pub fn write(
    out: &mut dyn Write,
    path: &Path,
    tensors: &[TensorView<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let layout = Layout::plan(tensors, metadata)?;
    out.write_all(&layout.header).map_err(Error::io("write", path))?;
    for tensor in layout.order.iter().filter_map(|&i| tensors.get(i)) {
        out.write_all(tensor.bytes()).map_err(Error::io("write", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"w": f32[2,3] = 0..5}` with metadata `format: pt`, as other writers make it.
    const GOLDEN: &str = "58000000000000007b225f5f6d657461646174615f5f223a7b22666f726d6174223a227074227d2c2277223a7b226474797065223a22463332222c227368617065223a5b322c335d2c22646174615f6f666673657473223a5b302c32345d7d7d000000000000803f0000004000004040000080400000a040";

    fn golden() -> Vec<u8> {
        (0..GOLDEN.len() / 2).map(|i| u8::from_str_radix(&GOLDEN[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_bytes_of_other_writers_are_read_and_written() {
        let file = SafetensorsFile::from_bytes(Path::new("g"), golden()).unwrap();
        let w = file.get("w").unwrap();
        assert_eq!((w.dtype(), w.shape()), (StoredDtype::F32, &[2, 3][..]));
        assert_eq!(w.to_f64().collect::<Vec<_>>(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(file.metadata(), &pt_metadata());
        let mut out = Vec::new();
        write(&mut out, Path::new("g"), &[w], &pt_metadata()).unwrap();
        assert_eq!(out, golden());
    }

    #[test]
    fn tensors_of_all_types_come_back_aligned_and_in_order() {
        let bytes: Vec<u8> = (0..96).collect();
        let views: Vec<_> = StoredDtype::NAMES
            .iter()
            .map(|&(d, name)| TensorView::new(name, d, &[3], &bytes[..3 * d.size()]).unwrap())
            .chain([TensorView::new("empty", StoredDtype::F32, &[0, 4], &[]).unwrap()])
            .collect();
        let mut out = Vec::new();
        write(&mut out, Path::new("f"), &views, &BTreeMap::new()).unwrap();
        assert_eq!(out.len() as u64, Layout::plan(&views, &BTreeMap::new()).unwrap().total());
        let file = SafetensorsFile::from_bytes(Path::new("f"), out.clone()).unwrap();
        assert_eq!(file.len(), views.len());
        for view in &views {
            assert_eq!(file.get(view.name()), Some(*view));
            assert_eq!(file.range(view.name()).unwrap().start % view.dtype().size(), 0, "{view:?}");
        }
        let theirs = SafeTensors::deserialize(&out).unwrap();
        assert_eq!(theirs.tensor("BF16").unwrap().data(), &bytes[..6]);
    }

    #[test]
    fn names_that_no_reader_could_tell_apart_are_not_written() {
        let t = |name| TensorView::new(name, StoredDtype::U8, &[1], &[0]).unwrap();
        let error = Layout::plan(&[t("a"), t(""), t("a"), t(METADATA)], &BTreeMap::new()).unwrap_err();
        assert_eq!(error.to_string().lines().count(), 3);
    }
}
