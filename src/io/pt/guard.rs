//! What a file must satisfy before it is parsed: archive entries that lie in the file, and a pickle whose objects cost
//! no more memory than a small multiple of the file.
//!
//! A pickle of a few bytes can ask for any amount of memory by copying from its memo again and again, and one byte of
//! pickle can make an object of seventy. So the opcodes are walked with a stack of costs instead of objects.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use crate::io::bytes::read_file;
use crate::io::stored::{escaped, printable};

/// Bytes that an object costs in memory, beside its text.
const OBJECT: u64 = 72;
/// The longest pickle that is read: names and shapes of a million tensors.
const MAX_PICKLE: u64 = 100 << 20;

/// Refuses files that are not sound PyTorch files; `Ok` says nothing about the objects in it.
pub(super) fn check(path: &Path) -> Result<()> {
    let at = path.display();
    let fault = |text: String| Error::data(format!("{at}: {text}"));
    let meta = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !meta.is_file() {
        let found = if meta.is_dir() { "a folder" } else { "a pipe or device" };
        return Err(fault(format!("expected a file, found {found}")));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut head = Vec::new();
    file.take(262).read_to_end(&mut head).map_err(Error::io("read", path))?;
    if head.starts_with(b"PK\x03\x04") {
        return archive(path, size).map_err(fault);
    }
    if head.get(257..262) == Some(b"ustar") {
        let text = "a tar archive of PyTorch before 0.1.10: load it with PyTorch and save it again";
        return Err(fault(text.into()));
    }
    if head.first() != Some(&0x80) || head.get(8) == Some(&b'{') {
        return Err(fault("expected a zip archive or a pickle, as torch.save writes them".into()));
    }
    // A bare pickle, or the five pickles of the format before PyTorch 1.6, storages after them.
    let bytes = read_file(path)?;
    let mut rest = bytes.as_slice();
    let legacy = bytes.get(2..6) == Some(&[0x8a, 0x0a, 0x6c, 0xfc]);
    for _ in 0..if legacy { 5 } else { 1 } {
        let start = bytes.len() - rest.len();
        let end = Walk::new(rest, size).run().map_err(|e| fault(e.at(start)))?;
        rest = rest.get(end..).unwrap_or_default();
    }
    if !legacy && !rest.is_empty() {
        return Err(fault(format!("{} bytes follow the pickle", rest.len())));
    }
    Ok(())
}

/// Checks the archive's directory, then its pickle.
fn archive(path: &Path, size: u64) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| format!("zip: {}", escaped(&e.to_string()));
    let file = File::open(path).map_err(|e| text(&e))?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| text(&e))?;
    let mut pickle: Option<(usize, String)> = None;
    let mut names = HashSet::new();
    let mut total = 0u64;
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|e| text(&e))?;
        let name = entry.name().map_err(|e| text(&e))?.into_owned();
        let shown = printable(&name);
        if entry.encrypted() {
            return Err(format!("{shown}: is encrypted"));
        }
        if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
            return Err(format!("{shown}: is compressed, which torch.save never does: unpack it and zip it with -0"));
        }
        total = total.saturating_add(entry.size());
        if total > size {
            return Err(format!("{shown}: the entries claim more than the file's {size} bytes"));
        }
        if name.ends_with("constants.pkl") {
            return Err(format!("{shown}: a TorchScript archive: export its state_dict with torch.save"));
        }
        let shortest = |(_, best): &(usize, String)| name.len() < best.len();
        if (name == "data.pkl" || name.ends_with("/data.pkl")) && pickle.as_ref().is_none_or(shortest) {
            pickle = Some((index, name.clone()));
        }
        if !names.insert(name) {
            return Err(format!("{shown}: appears twice"));
        }
    }
    if directory_entries(path).is_some_and(|n| n != zip.len() as u64) {
        return Err("zip: its directory names an entry twice".into());
    }
    let (index, name) = pickle.ok_or("expected an archive with data.pkl, as torch.save writes it, found none")?;
    let entry = zip.by_index_raw(index).map_err(|e| text(&e))?;
    if entry.size() > MAX_PICKLE {
        return Err(format!("{}: a pickle of {} bytes: more than {MAX_PICKLE}", printable(&name), entry.size()));
    }
    let mut bytes = Vec::new();
    entry.take(MAX_PICKLE).read_to_end(&mut bytes).map_err(|e| format!("{}: {e}", printable(&name)))?;
    let end = Walk::new(&bytes, size).run().map_err(|e| format!("{}: {}", printable(&name), e.at(0)))?;
    if end != bytes.len() {
        return Err(format!("{}: {} bytes follow the pickle", printable(&name), bytes.len() - end));
    }
    Ok(())
}

/// How many entries the archive's end record claims; readers that keep names in a map have silently dropped doubles.
fn directory_entries(path: &Path) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(22 + 65_535))).ok()?;
    let mut tail = Vec::new();
    file.take(22 + 65_535).read_to_end(&mut tail).ok()?;
    let at = tail.windows(4).rposition(|w| w == b"PK\x05\x06")?;
    let count: [u8; 2] = tail.get(at + 10..at + 12)?.try_into().ok()?;
    let count = u16::from_le_bytes(count);
    (count != u16::MAX).then_some(count.into())
}

/// Why a pickle was refused, and at which of its bytes.
struct Refused {
    offset: usize,
    why: String,
}

impl Refused {
    fn at(&self, start: usize) -> String {
        format!("pickle, byte {}: {}", start + self.offset, self.why)
    }
}

/// A walk over the opcodes of one pickle. The stack holds what each object costs, itself and all in it.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<u64>,
    marks: Vec<usize>,
    memo: BTreeMap<u64, u64>,
    /// What was made so far, copies included.
    spent: u64,
    budget: u64,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], file: u64) -> Walk<'a> {
        let budget = file.saturating_mul(8).saturating_add(32 << 20);
        Walk { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new(), spent: 0, budget }
    }

    /// Walks to the end; gives back where that is.
    fn run(mut self) -> Result<usize, Refused> {
        loop {
            let offset = self.at;
            match self.step() {
                Ok(true) => {}
                Ok(false) => return Ok(self.at),
                Err(why) => return Err(Refused { offset, why }),
            }
        }
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("asks for {n} bytes, {} are left", self.bytes.len() - self.at))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// A little-endian number of `n` bytes.
    fn number(&mut self, n: u64) -> Result<u64, String> {
        Ok(self.take(n)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<&'a [u8], String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|&b| b == b'\n').ok_or("a line without an end")?;
        let line = self.take(n as u64)?;
        self.at += 1;
        Ok(line)
    }

    /// A counted text of a length that takes `n` bytes.
    fn counted(&mut self, n: u64) -> Result<(), String> {
        let len = self.number(n)?;
        self.take(len)?;
        self.push(OBJECT + len)
    }

    fn push(&mut self, cost: u64) -> Result<(), String> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.budget {
            return Err("makes more objects than the file's size can justify".into());
        }
        self.stack.push(cost);
        Ok(())
    }

    /// Pushes something that is made of what was taken from the stack: only its frame is new.
    fn wrap(&mut self, cost: u64) -> Result<(), String> {
        self.push(OBJECT)?;
        self.stack.pop();
        self.stack.push(cost.saturating_add(OBJECT));
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, String> {
        self.stack.pop().ok_or_else(|| "takes from an empty stack".into())
    }

    /// Takes all above the last mark.
    fn pop_mark(&mut self) -> Result<u64, String> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        let above = self.stack.get(mark..).unwrap_or_default().iter().fold(0, |sum: u64, c| sum.saturating_add(*c));
        self.stack.truncate(mark);
        Ok(above)
    }

    /// Adds to the container on top.
    fn grow(&mut self, cost: u64) -> Result<(), String> {
        let top = self.stack.last_mut().ok_or("takes from an empty stack")?;
        *top = top.saturating_add(cost);
        Ok(())
    }

    fn put(&mut self, key: u64) -> Result<(), String> {
        let cost = self.pop()?;
        // The reader's memo holds a copy.
        self.push(cost)?;
        self.memo.insert(key, cost);
        Ok(())
    }

    fn get(&mut self, key: u64) -> Result<(), String> {
        let cost = *self.memo.get(&key).ok_or_else(|| format!("memo {key} was never set"))?;
        self.push(cost)
    }

    fn decimal(&mut self) -> Result<u64, String> {
        let line = self.line()?;
        std::str::from_utf8(line).ok().and_then(|t| t.parse().ok()).ok_or_else(|| "expected a number".into())
    }

    /// One opcode; whether there is another.
    fn step(&mut self) -> Result<bool, String> {
        let opcode = *self.bytes.get(self.at).ok_or("ends without a stop: truncated")?;
        self.at += 1;
        match opcode {
            b'.' => return self.pop().map(|_| false),
            0x80 => self.number(1).map(drop)?,
            0x95 => self.number(8).map(drop)?,
            b'N' | 0x88 | 0x89 | b')' | b']' | b'}' | 0x8f => self.push(OBJECT)?,
            b'K' => self.take(1).and_then(|_| self.push(OBJECT))?,
            b'M' => self.take(2).and_then(|_| self.push(OBJECT))?,
            b'J' => self.take(4).and_then(|_| self.push(OBJECT))?,
            b'G' => self.take(8).and_then(|_| self.push(OBJECT))?,
            b'I' | b'L' | b'F' | b'V' | b'P' => {
                let len = self.line()?.len() as u64;
                self.push(OBJECT + len)?;
            }
            0x8a | b'C' | 0x8c | b'U' => self.counted(1)?,
            0x8b | b'B' | b'X' | b'T' => self.counted(4)?,
            0x8d | 0x8e | 0x96 => self.counted(8)?,
            b'c' => {
                let len = self.line()?.len() + self.line()?.len();
                self.push(OBJECT + len as u64)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            _ => return self.combine(opcode).map(|()| true),
        }
        Ok(true)
    }

    /// The opcodes that work on what is on the stack.
    fn combine(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b't' | b'l' | b'd' | 0x91 => self.pop_mark().and_then(|c| self.wrap(c)),
            0x85 | b'Q' => self.pop().and_then(|c| self.wrap(c)),
            0x86 | b'R' | b'b' | 0x81 | 0x93 => {
                let cost = self.pop()?.saturating_add(self.pop()?);
                self.wrap(cost)
            }
            0x87 | 0x92 => {
                let cost = self.pop()?.saturating_add(self.pop()?).saturating_add(self.pop()?);
                self.wrap(cost)
            }
            b'a' => self.pop().and_then(|c| self.grow(c)),
            b's' => {
                let cost = self.pop()?.saturating_add(self.pop()?);
                self.grow(cost)
            }
            b'e' | b'u' | 0x90 => self.pop_mark().and_then(|c| self.grow(c)),
            b'0' if self.marks.last() == Some(&self.stack.len()) => self.pop_mark().map(drop),
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let cost = self.pop()?;
                self.stack.push(cost);
                self.push(cost)
            }
            b'q' => self.number(1).and_then(|k| self.put(k)),
            b'r' => self.number(4).and_then(|k| self.put(k)),
            b'p' => self.decimal().and_then(|k| self.put(k)),
            0x94 => self.put(self.memo.len() as u64),
            b'h' => self.number(1).and_then(|k| self.get(k)),
            b'j' => self.number(4).and_then(|k| self.get(k)),
            b'g' => self.decimal().and_then(|k| self.get(k)),
            b'i' | b'o' => Err("makes an object of a class, which torch.save never does in this way".into()),
            0x82..=0x84 | 0x97 | 0x98 => Err(format!("opcode {opcode:#04x} needs a program beside the file")),
            other => Err(format!("{other:#04x} is no opcode")),
        }
    }
}
